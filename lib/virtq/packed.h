/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packed virtqueues, virtio 1.3 section 2.8. Included by virtq.h only.
 *   descriptor: addr 0, len 8, id 12, flags 14
 *   event suppression: off_wrap 0, flags 2
 * A descriptor is available when its AVAIL bit equals our wrap counter and its
 * USED bit does not.
 */
#ifndef VP_VIRTQ_PACKED_H
#define VP_VIRTQ_PACKED_H

#include "virtq/chain.h"

#define VP_PACKED_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define VP_PACKED_USED  (1u << VRING_PACKED_DESC_F_USED)

/* Everything but the one-descriptor chain, starting at slot. As vp_chain_end(). */
bool vp_packed_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t slot, uint64_t w);
void vp_packed_log_used(struct vp_virtq *vq, uint16_t slot);

/* The half of descriptor `slot` that holds its flags, if it is available under wrap. */
VP_INLINE bool vp_packed_is_avail(uint64_t w, bool wrap)
{
	unsigned f = VP_PACKED_FLAGS(w) & (VP_PACKED_AVAIL | VP_PACKED_USED);

	return f == (wrap ? VP_PACKED_AVAIL : VP_PACKED_USED);
}

VP_INLINE uint64_t vp_packed_load(vp_gptr desc, uint16_t slot)
{
	/* Acquire: addr is read after the flags. Pairs with the driver's release of the flags. */
	return vp_ld64_acquire(desc, 16 * (size_t)slot + 8);
}

static inline bool vp_packed_has_avail(struct vp_virtq *vq)
{
	return vp_packed_is_avail(vp_packed_load(vq->desc, vq->last_avail), vq->avail_wrap);
}

/* slot += n with the wrap counter; n <= size. */
VP_INLINE void vp_packed_step(unsigned size, uint16_t *slot, bool *wrap, unsigned n)
{
	unsigned s = *slot + n;

	if (s >= size) {
		s -= size;
		*wrap = !*wrap;
	}
	*slot = (uint16_t)s;
}

VP_INLINE unsigned vp_packed_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				   enum vp_access hint)
{
	struct vp_window w = vq->xl.hot[hint];
	const unsigned size = vq->size;
	const vp_gptr desc = vq->desc;
	unsigned taken = 0, n = 0, nseg = 0;
	uint16_t slot = vq->last_avail;
	bool wrap = vq->avail_wrap;

	max = VP_MIN(max, VP_BURST);
	while (n < max) {
		uint64_t word = vp_packed_load(desc, slot), addr;
		unsigned slots = 1;

		if (!vp_packed_is_avail(word, wrap))
			break;
		if (!(slot & 3))
			vp_prefetch(desc, 16 * (size_t)slot + 256);
		addr = vp_ld64(desc, 16 * (size_t)slot);
		if (vp_likely(vp_chain_single(b, n, nseg, &w, addr, VP_PACKED_LEN(word),
					      VP_PACKED_FLAGS(word) & VP_DESC_FLAGS, hint,
					      VP_PACKED_ID(word)))) {
			nseg++;
		} else {
			b->n = n;
			b->nseg = nseg;
			if (!vp_packed_chain(vq, b, slot, word))
				break;
			nseg = b->nseg;
			slots = b->chain[n].slots;
			w = vq->xl.hot[hint];
		}
		taken += slots;
		if (vp_unlikely(taken >= size)) {
			/* A ring holds size descriptors; a driver that offers more laps itself. */
			if (taken > size)
				vp_vq_break(vq, VP_VQ_BAD_CHAIN);
			else
				n++;
			break;
		}
		n++;
		vp_packed_step(size, &slot, &wrap, slots);
	}
	b->n = n;
	b->nseg = nseg;
	return n;
}

static inline void vp_packed_advance(struct vp_virtq *vq, const struct vp_burst *b, unsigned n)
{
	unsigned i, slots = 0;

	for (i = 0; i < n; i++)
		slots += b->chain[i].slots;
	vp_packed_step(vq->size, &vq->last_avail, &vq->avail_wrap, slots);
}

VP_INLINE uint64_t vp_packed_used_word(const struct vp_used *u, bool wrap)
{
	uint64_t flags = wrap ? VP_PACKED_AVAIL | VP_PACKED_USED : 0;

	if (u->len)
		flags |= VRING_DESC_F_WRITE;
	return u->len | (uint64_t)u->id << 32 | flags << 48;
}

static inline void vp_packed_complete(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	uint16_t first = vq->used_idx, slot = first;
	uint64_t word = vp_packed_used_word(&u[0], vq->used_wrap);
	unsigned i;

	vp_packed_step(vq->size, &slot, &vq->used_wrap, u[0].slots);
	for (i = 1; i < n; i++) {
		vp_st64(vq->desc, 16 * (size_t)slot + 8, vp_packed_used_word(&u[i], vq->used_wrap));
		if (vp_unlikely(vq->log))
			vp_packed_log_used(vq, slot);
		vp_packed_step(vq->size, &slot, &vq->used_wrap, u[i].slots);
	}
	/*
	 * The first one last: the driver, which looks at this slot next, sees all or
	 * none. Pairs with the driver's read barrier behind its test of the flags.
	 */
	vp_st64_release(vq->desc, 16 * (size_t)first + 8, word);
	if (vp_unlikely(vq->log))
		vp_packed_log_used(vq, first);
	vq->used_idx = slot;
}

#endif
