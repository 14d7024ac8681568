/* SPDX-License-Identifier: BSD-3-Clause */
/* Packed rings off the fast path: chains of several descriptors, dirty logging. */
#include "virtq/virtq.h"

static int packed_walk(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint16_t slot,
		       uint64_t w)
{
	unsigned slots;
	int ret;

	/*
	 * The head is available, so are the rest of its chain (2.8.6: the driver makes
	 * the head available last); their AVAIL and USED bits need no look.
	 */
	for (slots = 1; slots <= vq->size; slots++) {
		uint64_t addr = vp_ld64(vq->desc, 16 * (size_t)slot);
		uint16_t flags = VP_PACKED_FLAGS(w);

		/* 2.8.6: the id of a chain stands in its last descriptor. */
		c->id = VP_PACKED_ID(w);
		c->slots = (uint16_t)slots;
		if (flags & VRING_DESC_F_INDIRECT) {
			if (flags & VRING_DESC_F_NEXT || slots > 1)
				return VP_VQ_BAD_INDIRECT;
			return vp_chain_indirect(vq, b, c, addr, VP_PACKED_LEN(w));
		}
		ret = vp_chain_add(vq, b, c, addr, VP_PACKED_LEN(w), flags & VRING_DESC_F_WRITE);
		if (ret || !(flags & VRING_DESC_F_NEXT))
			return ret;
		slot = slot + 1 == vq->size ? 0 : (uint16_t)(slot + 1);
		w = vp_packed_load(vq->desc, slot);
	}
	return VP_VQ_BAD_CHAIN;
}

bool vp_packed_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t slot, uint64_t w)
{
	struct vp_chain *c;

	if (vp_burst_full(b))
		return false;
	c = vp_chain_begin(b);
	return vp_chain_end(vq, b, c, packed_walk(vq, b, c, slot, w));
}

VP_INLINE unsigned packed_rest(struct vp_virtq *vq, struct vp_burst *b, struct vp_packed_at *at, unsigned n,
			       unsigned max, enum vp_access hint)
{
	const uint64_t look = (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED | VP_DESC_FLAGS) << 48;
	const struct vp_memtab *const direct = vq->xl.direct;
	const struct vp_window *w = vq->xl.hot[hint];
	const unsigned size = vq->size;
	const vp_gptr desc = vq->desc;
	unsigned more = 0, nseg; /* more: slots of chains beyond their first */
	uint64_t usual;
	uint16_t slot;
	bool wrap;

	/* From the first chain on that has another region. */
	if (direct)
		n = vp_packed_usual(vq, b, at, n, max, direct, &w, hint);
	nseg = n;
	slot = at->slot;
	wrap = at->wrap;
	usual = at->usual;
	/* And from the first one on that is of another kind. */
	while (n < max) {
		uint64_t word = vp_packed_load(desc, slot), addr;
		unsigned slots;

		if (!(slot & 3) && vp_likely(vp_packed_is_avail(word, wrap)))
			vp_prefetch(desc, 16 * (size_t)slot + 256);
		if (vp_likely((word & look) == usual)) {
			addr = vp_ld64(desc, 16 * (size_t)slot);
			if (vp_likely(vp_chain_single(b, n, nseg, direct, &w, addr, VP_PACKED_LEN(word), hint,
						      VP_PACKED_ID(word)))) {
				nseg++;
				n++;
				if (vp_unlikely(++slot == size)) {
					slot = 0;
					wrap = !wrap;
					usual ^= (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED) << 48;
				}
				continue;
			}
		}
		if (!vp_packed_is_avail(word, wrap))
			break;
		b->n = n;
		b->nseg = nseg;
		vq->xl.hot[hint] = w;
		if (!vp_packed_chain(vq, b, slot, word))
			return n;
		nseg = b->nseg;
		slots = b->chain[n].slots;
		w = vq->xl.hot[hint];
		/* A driver that offers more than its ring holds laps itself. */
		if (n + more + slots > size) {
			vp_vq_break(vq, VP_VQ_BAD_CHAIN);
			break;
		}
		n++;
		more += slots - 1;
		max = VP_MIN(max, size - more);
		vp_packed_step(size, &slot, &wrap, slots);
		usual = (usual & (uint64_t)VRING_DESC_F_WRITE << 48) |
			(uint64_t)(wrap ? VP_PACKED_AVAIL : VP_PACKED_USED) << 48;
	}
	vq->xl.hot[hint] = w;
	b->n = n;
	b->nseg = nseg;
	return n;
}

unsigned vp_packed_rest(struct vp_virtq *vq, struct vp_burst *b, struct vp_packed_at *at, unsigned n, unsigned max,
			enum vp_access hint)
{
	return hint == VP_WRITE ? packed_rest(vq, b, at, n, max, VP_WRITE) : packed_rest(vq, b, at, n, max, VP_READ);
}

unsigned vp_packed_plain_rest(struct vp_virtq *vq, struct vp_plain *p, unsigned n, unsigned max, enum vp_access hint)
{
	const struct vp_memtab *const direct = vq->xl.direct;
	bool elsewhere;

	if (!direct)
		return n;
	return hint == VP_WRITE ? vp_packed_plain(vq, p, n, max, direct, VP_WRITE, &elsewhere) :
				  vp_packed_plain(vq, p, n, max, direct, VP_READ, &elsewhere);
}

enum vp_place_how vp_packed_note_many(struct vp_place *p, const struct vp_used *u, unsigned n)
{
	unsigned most = 0;

	if (n > VP_PLACE_SLOTS)
		return VP_PLACE_UNKNOWN;
	for (unsigned i = 0; i < n; i++) {
		most |= u[i].slots;
		p->slots[i] = (uint8_t)u[i].slots;
	}
	return most <= UINT8_MAX ? VP_PLACE_MANY : VP_PLACE_UNKNOWN;
}

static int saved_walk(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, const struct vp_packed_saved *d,
		      unsigned n)
{
	int ret;

	for (unsigned i = 0; i < n; i++) {
		c->id = d[i].id;
		c->slots = (uint16_t)n;
		if (!(d[i].flags & VRING_DESC_F_NEXT) != (i == n - 1))
			return VP_VQ_BAD_CHAIN;
		if (d[i].flags & VRING_DESC_F_INDIRECT)
			return n > 1 ? VP_VQ_BAD_INDIRECT : vp_chain_indirect(vq, b, c, d[i].addr, d[i].len);
		ret = vp_chain_add(vq, b, c, d[i].addr, d[i].len, d[i].flags & VRING_DESC_F_WRITE);
		if (ret)
			return ret;
	}
	return 0;
}

bool vp_packed_saved_chain(struct vp_virtq *vq, struct vp_burst *b, const struct vp_packed_saved *d, unsigned n)
{
	struct vp_chain *c;

	if (vp_burst_full(b))
		return false;
	c = vp_chain_begin(b);
	return vp_chain_end(vq, b, c, saved_walk(vq, b, c, d, n));
}

void vp_packed_log_used(struct vp_virtq *vq, uint16_t slot)
{
	/* Used descriptors are written into the descriptor ring itself. */
	if (vq->log_ring)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, vq->desc_addr + 16 * (uint64_t)slot, 16);
}
