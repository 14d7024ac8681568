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

/* Where a fetch of packed descriptors is. */
struct vp_packed_at {
	uint16_t slot;
	bool     wrap;
	uint64_t usual; /* the flags of the usual chain: available, one descriptor, in the usual direction */
	uint64_t word;  /* of the chain that ended it: not loaded again, since the driver may be writing its line */
};

/* As vp_split_rest(); the chain at *at is available. */
unsigned vp_packed_rest(struct vp_virtq *vq, struct vp_burst *b, struct vp_packed_at *at, unsigned n, unsigned max,
			enum vp_access hint);
unsigned vp_packed_plain_rest(struct vp_virtq *vq, struct vp_plain *p, unsigned n, unsigned max, enum vp_access hint);
/* Everything but the one-descriptor chain, starting at slot. As vp_chain_end(). */
bool vp_packed_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t slot, uint64_t w);

/* A descriptor as somebody noted it when it was taken: in the ring it may have been overwritten since. */
struct vp_packed_saved {
	uint64_t addr;
	uint32_t len;
	uint16_t id, flags;
};

/* A chain of n of these. As vp_chain_end(). */
bool vp_packed_saved_chain(struct vp_virtq *vq, struct vp_burst *b, const struct vp_packed_saved *d, unsigned n);
void vp_packed_log_used(struct vp_virtq *vq, uint16_t slot);
/* How many slots each of n chains has, into the line; how the line can say it. */
enum vp_place_how vp_packed_note_many(struct vp_place *p, const struct vp_used *u, unsigned n);

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

/* As vp_split_near(). */
VP_INLINE bool vp_packed_near(const struct vp_virtq *vq, vp_gptr *at)
{
	const struct vp_window *w = vq->xl.hot[VP_WRITE];
	const uint64_t word = vp_packed_load(vq->desc, vq->last_avail);
	const uint64_t addr = vp_ld64(vq->desc, 16 * (size_t)vq->last_avail);

	if (!vp_packed_is_avail(word, vq->avail_wrap) ||
	    !vp_xlate_window(NULL, &w, addr, 2 * VP_CACHELINE, VP_WRITE))
		return false;
	*at = vp_gptr_add(w->host, addr - w->start);
	return true;
}

VP_INLINE struct vp_packed_at vp_packed_begin(const struct vp_virtq *vq, enum vp_access hint)
{
	struct vp_packed_at at = { .slot = vq->last_avail, .wrap = vq->avail_wrap, .word = 0 };

	at.usual = ((at.wrap ? VP_PACKED_AVAIL : VP_PACKED_USED) |
		    (hint == VP_WRITE ? (uint64_t)VRING_DESC_F_WRITE : 0)) << 48;
	return at;
}

/* As vp_split_usual(), from chain n on, which is at *at. */
VP_INLINE unsigned vp_packed_usual(const struct vp_virtq *vq, struct vp_burst *b, struct vp_packed_at *at, unsigned n,
				   unsigned max, const struct vp_memtab *direct, const struct vp_window **w,
				   enum vp_access hint)
{
	const uint64_t look = (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED | VP_DESC_FLAGS) << 48;
	const unsigned size = vq->size;
	const vp_gptr desc = vq->desc;
	struct vp_packed_at a = *at;

	for (; n < max; n++) {
		const uint64_t word = vp_packed_load(desc, a.slot);

		a.word = word;
		if (vp_unlikely((word & look) != a.usual))
			break;
		if (!(a.slot & 3))
			vp_prefetch(desc, 16 * (size_t)a.slot + 256);
		if (vp_unlikely(!vp_chain_single(b, n, n, direct, w, vp_ld64(desc, 16 * (size_t)a.slot),
						 VP_PACKED_LEN(word), hint, VP_PACKED_ID(word))))
			break;
		if (vp_unlikely(++a.slot == size)) {
			a.slot = 0;
			a.wrap = !a.wrap;
			a.usual ^= (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED) << 48;
		}
	}
	*at = a;
	return n;
}

VP_INLINE unsigned vp_packed_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				   enum vp_access hint)
{
	const struct vp_window *w = vq->xl.hot[hint];
	struct vp_packed_at at = vp_packed_begin(vq, hint);
	unsigned n;

	/* A ring holds size descriptors. */
	max = VP_MIN(VP_MIN(max, VP_BURST), vq->size);
	n = vp_packed_usual(vq, b, &at, 0, max, NULL, &w, hint);
	if (vp_unlikely(n < max && vp_packed_is_avail(at.word, at.wrap)))
		return vp_packed_rest(vq, b, &at, n, max, hint);
	b->n = n;
	b->nseg = n;
	return n;
}

/*
 * From chain n on, which is slots behind the first one: as vp_packed_fetch_plain(). *elsewhere: it ended at a buffer
 * that the window does not hold.
 */
VP_INLINE unsigned vp_packed_plain(struct vp_virtq *vq, struct vp_plain *p, unsigned n, unsigned max,
				   const struct vp_memtab *direct, enum vp_access hint, bool *elsewhere)
{
	const uint64_t look = (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED | VP_DESC_FLAGS) << 48;
	const struct vp_window *w = vq->xl.hot[hint];
	const unsigned size = vq->size;
	const vp_gptr desc = vq->desc;
	uint16_t slot = vq->last_avail;
	bool wrap = vq->avail_wrap;
	uint64_t usual;

	*elsewhere = false;
	vp_packed_step(size, &slot, &wrap, n);
	/* As in vp_packed_fetch(). */
	usual = ((wrap ? VP_PACKED_AVAIL : VP_PACKED_USED) |
		 (hint == VP_WRITE ? (uint64_t)VRING_DESC_F_WRITE : 0)) << 48;
	for (; n < max; n++) {
		const uint64_t word = vp_packed_load(desc, slot);

		if (vp_unlikely((word & look) != usual))
			break;
		if (!(slot & 3))
			vp_prefetch(desc, 16 * (size_t)slot + 256);
		if (!vp_chain_plain(&p[n], direct, &w, vp_ld64(desc, 16 * (size_t)slot), VP_PACKED_LEN(word), hint,
				    VP_PACKED_ID(word))) {
			*elsewhere = true;
			break;
		}
		if (vp_unlikely(++slot == size)) {
			slot = 0;
			usual ^= (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED) << 48;
		}
	}
	vq->xl.hot[hint] = w;
	return n;
}

VP_INLINE unsigned vp_packed_fetch_plain(struct vp_virtq *vq, struct vp_plain *p, unsigned max, enum vp_access hint)
{
	bool elsewhere;
	unsigned n;

	max = VP_MIN(max, vq->size);
	n = vp_packed_plain(vq, p, 0, max, NULL, hint, &elsewhere);
	return vp_likely(!elsewhere) ? n : vp_packed_plain_rest(vq, p, n, max, hint);
}

VP_INLINE void vp_packed_complete_plain(struct vp_virtq *vq, const struct vp_plain *p, unsigned n)
{
	const uint64_t used = (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED) << 48;
	const unsigned first = vq->used_idx, size = vq->size;
	uint64_t flags = vq->used_wrap ? used : 0;
	const uint64_t head = (uint64_t)p[0].id << 32 | flags;
	const vp_gptr desc = vq->desc;
	unsigned slot = first, i;

	for (i = 0; i < n; i++) {
		if (vp_likely(i))
			vp_st64(desc, 16 * (size_t)slot + 8, (uint64_t)p[i].id << 32 | flags);
		if (vp_unlikely(++slot == size)) {
			slot = 0;
			flags ^= used;
		}
	}
	/* The first one last, as in vp_packed_complete(). */
	vp_st64_release(desc, 16 * (size_t)first + 8, head);
	vq->used_idx = (uint16_t)slot;
	vq->used_wrap = flags != 0;
}

static inline void vp_packed_advance(struct vp_virtq *vq, const struct vp_burst *b, unsigned n)
{
	vp_packed_step(vq->size, &vq->last_avail, &vq->avail_wrap, vp_burst_slots(b, 0, n));
}

/* What is written next, for who finds it half done (place.h): n chains in all of `slots`. */
VP_INLINE void vp_packed_note(struct vp_place *p, const struct vp_used *u, unsigned n, unsigned slots)
{
	const bool ones = vp_likely(slots == n && n <= VP_PLACE_SINGLE);
	const enum vp_place_how how = ones ? VP_PLACE_ONES : vp_packed_note_many(p, u, n);

	p->n = (uint8_t)n;
	VP_PLACE_ORDER();
	p->how = (uint8_t)how;
	VP_PLACE_ORDER();
	vp_place_point(VP_POINT_NOTED);
}

/* All but the first descriptor: the driver, which looks at that one next, sees nothing yet. */
VP_INLINE struct vp_shown vp_packed_write(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	const uint64_t used = (uint64_t)(VP_PACKED_AVAIL | VP_PACKED_USED) << 48,
		       wrote = (uint64_t)VRING_DESC_F_WRITE << 48;
	const unsigned first = vq->used_idx, size = vq->size;
	uint64_t flags = vq->used_wrap ? used : 0, head = 0;
	const bool log = vq->log;
	const bool half = vp_unlikely(vp_place_crash_at == VP_POINT_HALF) && vq->place && vp_place_crash_due();
	const vp_gptr desc = vq->desc;
	unsigned slot = first, i;

	if (vp_unlikely(half))
		n = (n + 1) / 2;
	for (i = 0; i < n; i++) {
		const uint64_t word = u[i].len | (uint64_t)u[i].id << 32 | flags | (u[i].len ? wrote : 0);

		if (vp_likely(i))
			vp_st64(desc, 16 * (size_t)slot + 8, word);
		else
			head = word;
		if (vp_unlikely(log) && i)
			vp_packed_log_used(vq, (uint16_t)slot);
		slot += u[i].slots;
		if (vp_unlikely(slot >= size)) {
			slot -= size;
			flags ^= used;
		}
	}
	if (vp_unlikely(half))
		vp_place_crash();
	vq->used_idx = (uint16_t)slot;
	vq->used_wrap = flags != 0;
	return (struct vp_shown){ .head = head, .first = (uint16_t)first, .n = (uint16_t)n };
}

VP_INLINE void vp_packed_show(struct vp_virtq *vq, struct vp_shown s)
{
	struct vp_place *p = vq->place;

	/*
	 * The first one last: the driver, which looks at this slot next, sees all or
	 * none. Pairs with the driver's read barrier behind its test of the flags.
	 */
	vp_st64_release(vq->desc, 16 * (size_t)s.first + 8, s.head);
	if (vp_unlikely(vq->log))
		vp_packed_log_used(vq, s.first);
	if (!p)
		return;
	VP_PLACE_ORDER();
	p->pos = vp_vq_pos(vq);
	VP_PLACE_ORDER();
	vp_place_point(VP_POINT_PLACED);
	p->how = VP_PLACE_NONE;
}

static inline void vp_packed_complete(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	if (vp_unlikely(vq->place != NULL))
		vp_packed_note(vq->place, u, n, vp_used_slots(u, n));
	vp_packed_show(vq, vp_packed_write(vq, u, n));
}

#endif
