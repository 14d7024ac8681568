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

VP_INLINE uint64_t vp_packed_load(struct vp_virtq *vq, uint16_t slot)
{
	/* Acquire: addr is read after the flags. Pairs with the driver's release of the flags. */
	return le64toh(__atomic_load_n(VP_GPTR_AT(uint64_t, vq->desc, 16 * (size_t)slot + 8),
				       __ATOMIC_ACQUIRE));
}

static inline bool vp_packed_has_avail(struct vp_virtq *vq)
{
	return vp_packed_is_avail(vp_packed_load(vq, vq->last_avail), vq->avail_wrap);
}

/* slot += n with the wrap counter; n <= size. */
VP_INLINE void vp_packed_step(const struct vp_virtq *vq, uint16_t *slot, bool *wrap, unsigned n)
{
	unsigned s = *slot + n;

	if (s >= vq->size) {
		s -= vq->size;
		*wrap = !*wrap;
	}
	*slot = (uint16_t)s;
}

static inline unsigned vp_packed_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max)
{
	unsigned i, taken = 0;
	uint16_t slot = vq->last_avail;
	bool wrap = vq->avail_wrap;

	max = VP_MIN(max, VP_BURST);
	for (i = 0; i < max; i++) {
		uint64_t w = vp_packed_load(vq, slot), addr;

		if (!vp_packed_is_avail(w, wrap))
			break;
		if (!(slot & 3))
			vp_prefetch(vq->desc, 16 * (size_t)slot + 256);
		addr = vp_ld64(vq->desc, 16 * (size_t)slot);
		if (vp_unlikely((VP_PACKED_FLAGS(w) & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)) ||
				!vp_chain_single(vq, b, addr, VP_PACKED_LEN(w),
						 VP_PACKED_FLAGS(w) & VRING_DESC_F_WRITE, VP_PACKED_ID(w)))) {
			if (!vp_packed_chain(vq, b, slot, w))
				break;
		}
		taken += b->chain[b->n - 1].slots;
		if (vp_unlikely(taken >= vq->size)) {
			/* A ring holds size descriptors; a driver that offers more laps itself. */
			if (taken > vq->size) {
				b->n--;
				vp_vq_break(vq, VP_VQ_BAD_CHAIN);
			}
			break;
		}
		vp_packed_step(vq, &slot, &wrap, b->chain[b->n - 1].slots);
	}
	return b->n;
}

static inline void vp_packed_advance(struct vp_virtq *vq, const struct vp_burst *b, unsigned n)
{
	unsigned i, slots = 0;

	for (i = 0; i < n; i++)
		slots += b->chain[i].slots;
	vp_packed_step(vq, &vq->last_avail, &vq->avail_wrap, slots);
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

	vp_packed_step(vq, &slot, &vq->used_wrap, u[0].slots);
	for (i = 1; i < n; i++) {
		vp_st64(vq->desc, 16 * (size_t)slot + 8, vp_packed_used_word(&u[i], vq->used_wrap));
		if (vp_unlikely(vq->log))
			vp_packed_log_used(vq, slot);
		vp_packed_step(vq, &slot, &vq->used_wrap, u[i].slots);
	}
	/*
	 * The first one last: the driver, which looks at this slot next, sees all or
	 * none. Pairs with the driver's read barrier behind its test of the flags.
	 */
	__atomic_store_n(VP_GPTR_AT(uint64_t, vq->desc, 16 * (size_t)first + 8), htole64(word),
			 __ATOMIC_RELEASE);
	if (vp_unlikely(vq->log))
		vp_packed_log_used(vq, first);
	vq->used_idx = slot;
}

#endif
