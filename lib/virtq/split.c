/* SPDX-License-Identifier: BSD-3-Clause */
/* Split rings off the fast path: chains of several descriptors, dirty logging. */
#include "virtq/virtq.h"

static int split_walk(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint16_t head)
{
	unsigned seen, i = head;
	int ret;

	/* A chain visits each descriptor at most once, so a loop shows as too many steps. */
	for (seen = 0; seen < vq->size; seen++) {
		uint64_t w = vp_ld64(vq->desc, 16 * (size_t)i + 8);
		uint64_t addr = vp_ld64(vq->desc, 16 * (size_t)i);
		uint16_t flags = VP_SPLIT_FLAGS(w);

		if (flags & VRING_DESC_F_INDIRECT) {
			if (flags & VRING_DESC_F_NEXT)
				return VP_VQ_BAD_INDIRECT;
			return vp_chain_indirect(vq, b, c, addr, VP_SPLIT_LEN(w));
		}
		ret = vp_chain_add(vq, b, c, addr, VP_SPLIT_LEN(w), flags & VRING_DESC_F_WRITE);
		if (ret || !(flags & VRING_DESC_F_NEXT))
			return ret;
		i = VP_SPLIT_NEXT(w);
		if (i >= vq->size)
			return VP_VQ_BAD_DESC;
	}
	return VP_VQ_BAD_CHAIN;
}

bool vp_split_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t head)
{
	struct vp_chain *c;

	if (vp_burst_full(b))
		return false;
	c = vp_chain_begin(b);
	c->id = head;
	return vp_chain_end(vq, b, c, split_walk(vq, b, c, head));
}

VP_INLINE unsigned split_rest(struct vp_virtq *vq, struct vp_burst *b, const uint16_t *head, unsigned i,
			      unsigned avail, enum vp_access hint)
{
	const struct vp_memtab *const direct = vq->xl.direct;
	const unsigned usual = hint == VP_WRITE ? VRING_DESC_F_WRITE : 0;
	const struct vp_window *w = vq->xl.hot[hint];
	const vp_gptr desc = vq->desc;
	unsigned n, nseg;

	/* From the first chain on that has another region. */
	if (direct)
		i = vp_split_usual(vq, b, head, i, avail, direct, &w, hint);
	n = nseg = i;
	/* And from the first one on that is of another kind. */
	for (; i < avail; i++) {
		uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);
		uint64_t addr = vp_ld64(desc, 16 * (size_t)head[i]);

		if (vp_likely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) == usual &&
			      vp_chain_single(b, n, nseg, direct, &w, addr, VP_SPLIT_LEN(word), hint, head[i]))) {
			n++;
			nseg++;
			continue;
		}
		b->n = n;
		b->nseg = nseg;
		vq->xl.hot[hint] = w;
		if (!vp_split_chain(vq, b, head[i]))
			return n;
		n = b->n;
		nseg = b->nseg;
		w = vq->xl.hot[hint];
	}
	vq->xl.hot[hint] = w;
	b->n = n;
	b->nseg = nseg;
	return n;
}

unsigned vp_split_rest(struct vp_virtq *vq, struct vp_burst *b, const uint16_t *head, unsigned i, unsigned avail,
		       enum vp_access hint)
{
	return hint == VP_WRITE ? split_rest(vq, b, head, i, avail, VP_WRITE) :
				  split_rest(vq, b, head, i, avail, VP_READ);
}

unsigned vp_split_plain_rest(struct vp_virtq *vq, struct vp_plain *p, const uint16_t *head, unsigned i, unsigned avail,
			     enum vp_access hint)
{
	const struct vp_memtab *const direct = vq->xl.direct;

	if (!direct)
		return i;
	return hint == VP_WRITE ? vp_split_plain(vq, p, head, i, avail, direct, VP_WRITE) :
				  vp_split_plain(vq, p, head, i, avail, direct, VP_READ);
}

void vp_split_log_used(struct vp_virtq *vq, uint16_t from, unsigned n)
{
	unsigned i;

	if (!vq->log_ring)
		return;
	for (i = 0; i < n; i++)
		vp_vq_log_device(vq, 4 + 8 * (uint64_t)((from + i) & (vq->size - 1)), 8);
	vp_vq_log_device(vq, 0, 4);
}

int vp_vq_depth(const struct vp_virtq *vq)
{
	uint16_t n;

	if (vq->packed || vq->broken)
		return -1;
	n = (uint16_t)(vp_ld16(vq->driver, 2) - vp_ld16(vq->device, 2));
	return n < vq->size ? n : vq->size;
}
