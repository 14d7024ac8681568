/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split virtqueues, virtio 1.3 section 2.7. Included by virtq.h only.
 *   available ring: flags 0, idx 2, ring[i] 4 + 2i, used_event 4 + 2 size
 *   used ring:      flags 0, idx 2, ring[i] 4 + 8i, avail_event 4 + 8 size
 */
#ifndef VP_VIRTQ_SPLIT_H
#define VP_VIRTQ_SPLIT_H

#include "virtq/chain.h"

/* The chains from number i on, in any region and of any kind. The number of all of the burst, as vp_split_fetch(). */
unsigned vp_split_rest(struct vp_virtq *vq, struct vp_burst *b, const uint16_t *head, unsigned i, unsigned avail,
		       enum vp_access hint);
/* The same for vp_split_fetch_plain(): in any region, of the usual kind. */
unsigned vp_split_plain_rest(struct vp_virtq *vq, struct vp_plain *p, const uint16_t *head, unsigned i, unsigned avail,
			     enum vp_access hint);
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
	if (!vp_xlate_window(NULL, &w, addr, 2 * VP_CACHELINE, VP_WRITE))
		return false;
	*at = vp_gptr_add(w->host, addr - w->start);
	return true;
}

/* From chain i on, as long as they are of the usual kind; direct as vp_xlate_window(). The first one that is not. */
VP_INLINE unsigned vp_split_usual(const struct vp_virtq *vq, struct vp_burst *b, const uint16_t *head, unsigned i,
				  unsigned avail, const struct vp_memtab *direct, const struct vp_window **w,
				  enum vp_access hint)
{
	const unsigned usual = hint == VP_WRITE ? VRING_DESC_F_WRITE : 0;
	const vp_gptr desc = vq->desc;

	for (; i < avail; i++) {
		const uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);
		const uint64_t addr = vp_ld64(desc, 16 * (size_t)head[i]);

		if (vp_unlikely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) != usual ||
				!vp_chain_single(b, i, i, direct, w, addr, VP_SPLIT_LEN(word), hint, head[i])))
			break;
	}
	return i;
}

VP_INLINE unsigned vp_split_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				  enum vp_access hint)
{
	const struct vp_window *w = vq->xl.hot[hint];
	uint16_t head[VP_BURST];
	unsigned n, avail;
	bool bad;

	avail = vp_split_heads(vq, head, max, &bad);
	if (vp_unlikely(bad))
		vp_vq_break(vq, VP_VQ_BAD_DESC);
	n = vp_split_usual(vq, b, head, 0, avail, NULL, &w, hint);
	if (vp_unlikely(n < avail))
		return vp_split_rest(vq, b, head, n, avail, hint);
	b->n = n;
	b->nseg = n;
	return n;
}

/* From chain i on: as vp_split_fetch_plain(). */
VP_INLINE unsigned vp_split_plain(struct vp_virtq *vq, struct vp_plain *p, const uint16_t *head, unsigned i,
				  unsigned avail, const struct vp_memtab *direct, enum vp_access hint)
{
	const unsigned usual = hint == VP_WRITE ? VRING_DESC_F_WRITE : 0;
	const struct vp_window *w = vq->xl.hot[hint];
	const vp_gptr desc = vq->desc;

	for (; i < avail; i++) {
		const uint64_t word = vp_ld64(desc, 16 * (size_t)head[i] + 8);

		if (vp_unlikely((VP_SPLIT_FLAGS(word) & VP_DESC_FLAGS) != usual))
			break;
		if (!vp_chain_plain(&p[i], direct, &w, vp_ld64(desc, 16 * (size_t)head[i]), VP_SPLIT_LEN(word), hint,
				    head[i]))
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
	i = vp_split_plain(vq, p, head, 0, avail, NULL, hint);
	return vp_likely(i == avail) ? i : vp_split_plain_rest(vq, p, head, i, avail, hint);
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
