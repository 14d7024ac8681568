/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split virtqueues, virtio 1.3 section 2.7. Included by virtq.h only.
 *   available ring: flags 0, idx 2, ring[i] 4 + 2i, used_event 4 + 2 size
 *   used ring:      flags 0, idx 2, ring[i] 4 + 8i, avail_event 4 + 8 size
 */
#ifndef VP_VIRTQ_SPLIT_H
#define VP_VIRTQ_SPLIT_H

#include "virtq/chain.h"

/* Everything but the one-descriptor chain. As vp_chain_end(). */
bool vp_split_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t head);
void vp_split_log_used(struct vp_virtq *vq, uint16_t from, unsigned n);

/* Chains that are available beyond last_avail; loads the driver's index when fewer than want are known. */
VP_INLINE unsigned vp_split_avail(struct vp_virtq *vq, unsigned want)
{
	unsigned n = (uint16_t)(vq->avail_seen - vq->last_avail);

	if (n >= want)
		return n;
	/* Pairs with the driver's write barrier before it publishes the index. */
	vq->avail_seen = vp_ld16_acquire(vq->driver, 2);
	n = (uint16_t)(vq->avail_seen - vq->last_avail);
	if (vp_unlikely(n > vq->size)) {
		vp_vq_break(vq, VP_VQ_BAD_INDEX);
		vq->avail_seen = vq->last_avail;
		return 0;
	}
	return n;
}

static inline bool vp_split_has_avail(struct vp_virtq *vq)
{
	return vp_split_avail(vq, 1) > 0;
}

static inline unsigned vp_split_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max)
{
	unsigned i, n, mask = vq->size - 1;
	uint16_t head[VP_BURST];

	max = VP_MIN(max, VP_BURST);
	n = VP_MIN(vp_split_avail(vq, max), max);
	for (i = 0; i < n; i++) {
		head[i] = vp_ld16(vq->driver, 4 + 2 * ((vq->last_avail + i) & mask));
		vp_prefetch(vq->desc, 16 * (size_t)(head[i] & mask));
	}
	for (i = 0; i < n; i++) {
		uint64_t addr, w;

		if (vp_unlikely(head[i] >= vq->size)) {
			vp_vq_break(vq, VP_VQ_BAD_DESC);
			break;
		}
		w = vp_ld64(vq->desc, 16 * (size_t)head[i] + 8);
		addr = vp_ld64(vq->desc, 16 * (size_t)head[i]);
		if (vp_likely(!(VP_SPLIT_FLAGS(w) & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)) &&
			      vp_chain_single(vq, b, addr, VP_SPLIT_LEN(w),
					      VP_SPLIT_FLAGS(w) & VRING_DESC_F_WRITE, head[i])))
			continue;
		if (!vp_split_chain(vq, b, head[i]))
			break;
	}
	return b->n;
}

static inline void vp_split_complete(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	unsigned i, mask = vq->size - 1;

	for (i = 0; i < n; i++) {
		size_t at = 4 + 8 * (size_t)((vq->used_idx + i) & mask);

		vp_st32(vq->device, at, u[i].id);
		vp_st32(vq->device, at + 4, u[i].len);
	}
	if (vp_unlikely(vq->log))
		vp_split_log_used(vq, vq->used_idx, n);
	vq->used_idx = (uint16_t)(vq->used_idx + n);
	/* Pairs with the driver's read barrier after it loads the index. */
	vp_st16_release(vq->device, 2, vq->used_idx);
}

#endif
