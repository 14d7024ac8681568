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

/*
 * The number of chains available beyond last_avail. Loads the driver's index when fewer than want are
 * known.
 */
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

/*
 * Up to max (and VP_BURST) available heads; their descriptors are on the way to the cache. *bad: one
 * out of range follows.
 */
VP_INLINE unsigned vp_split_heads(struct vp_virtq *vq, uint16_t *head, unsigned max, bool *bad)
{
	const unsigned size = vq->size, mask = size - 1, last = vq->last_avail;
	const vp_gptr desc = vq->desc, driver = vq->driver;
	unsigned i, avail;

	max = VP_MIN(max, VP_BURST);
	avail = vp_split_avail(vq, max);
	avail = VP_MIN(avail, max);
	for (i = 0; i < avail; i++) {
		head[i] = vp_ld16(driver, 4 + 2 * ((last + i) & mask));
		if (vp_unlikely(head[i] >= size))
			break;
		vp_prefetch(desc, 16 * (size_t)head[i]);
	}
	*bad = i < avail;
	return i;
}

/* For vp_vq_near(): where the next buffer lies; false: there is none, or it is not easily found. */
VP_INLINE bool vp_split_near(struct vp_virtq *vq, vp_gptr *at)
{
	const struct vp_window *w = vq->xl.hot[VP_WRITE];
	uint64_t addr;
	uint16_t head;

	if (!vp_split_avail(vq, 1))
		return false;
	head = vp_ld16(vq->driver, 4 + 2 * (size_t)(vq->last_avail & (vq->size - 1)));
	if (head >= vq->size)
		return false;
	addr = vp_ld64(vq->desc, 16 * (size_t)head);
	if (!vp_xlate_window(&vq->xl, &w, addr, 2 * VP_CACHELINE, VP_WRITE, false))
		return false;
	*at = vp_gptr_add(w->host, addr - w->start);
	return true;
}

VP_INLINE unsigned vp_split_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				  enum vp_access hint)
{
	const unsigned usual = hint == VP_WRITE ? VRING_DESC_F_WRITE : 0;
	const vp_gptr desc = vq->desc;
	const struct vp_window *w = vq->xl.hot[hint];
	unsigned i, avail, n, nseg;
	uint16_t head[VP_BURST];
	bool bad;

	avail = vp_split_heads(vq, head, max, &bad);
	if (vp_unlikely(bad))
		vp_vq_break(vq, VP_VQ_BAD_DESC);
	for (i = 0; i < avail; i++) {
		uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);
		uint64_t addr = vp_ld64(desc, 16 * (size_t)head[i]);

		if (vp_unlikely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) != usual ||
				!vp_chain_single(b, i, i, &vq->xl, &w, addr, VP_SPLIT_LEN(word), hint, head[i], false)))
			break;
	}
	n = nseg = i;
	/* The same again from the first chain on that has another region, or is of another kind. */
	for (; i < avail; i++) {
		uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);
		uint64_t addr = vp_ld64(desc, 16 * (size_t)head[i]);

		if (vp_likely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) == usual &&
			      vp_chain_single(b, n, nseg, &vq->xl, &w, addr, VP_SPLIT_LEN(word), hint, head[i],
					      true))) {
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

/* From chain i on: as vp_split_fetch_plain(). */
VP_INLINE unsigned vp_split_plain(struct vp_virtq *vq, struct vp_plain *p, const uint16_t *head, unsigned i,
				  unsigned avail, enum vp_access hint, const bool any)
{
	const unsigned usual = hint == VP_WRITE ? VRING_DESC_F_WRITE : 0;
	const struct vp_window *w = vq->xl.hot[hint];
	const vp_gptr desc = vq->desc;

	for (; i < avail; i++) {
		const uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);

		if (vp_unlikely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) != usual))
			break;
		if (!vp_chain_plain(&p[i], &vq->xl, &w, vp_ld64(desc, 16 * (size_t)head[i]), VP_SPLIT_LEN(word), hint,
				    head[i], any))
			break;
	}
	vq->xl.hot[hint] = w;
	return i;
}

VP_INLINE unsigned vp_split_fetch_plain(struct vp_virtq *vq, struct vp_plain *p, unsigned max, enum vp_access hint)
{
	unsigned i, avail;
	uint16_t head[VP_BURST];
	bool bad; /* left to vp_split_fetch() */

	avail = vp_split_heads(vq, head, max, &bad);
	i = vp_split_plain(vq, p, head, 0, avail, hint, false);
	return vp_likely(i == avail) ? i : vp_split_plain(vq, p, head, i, avail, hint, true);
}

VP_INLINE struct vp_shown vp_split_write(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	const struct vp_shown s = { .first = vq->used_idx, .n = (uint16_t)n };
	unsigned i, mask = vq->size - 1;

	for (i = 0; i < n; i++) {
		size_t at = 4 + 8 * (size_t)((vq->used_idx + i) & mask);

		vp_st32(vq->device, at, u[i].id);
		vp_st32(vq->device, at + 4, u[i].len);
	}
	vq->used_idx = (uint16_t)(vq->used_idx + n);
	return s;
}

VP_INLINE void vp_split_show(struct vp_virtq *vq, struct vp_shown s)
{
	/* Pairs with the driver's read barrier after it loads the index. */
	vp_st16_release(vq->device, 2, vq->used_idx);
	/* After the index: a page that is marked before its change may be copied, and cleared, too early. */
	if (vp_unlikely(vq->log))
		vp_split_log_used(vq, s.first, s.n);
}

#endif
