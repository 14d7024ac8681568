/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The account of requests that a device has taken and not given back, in memory that outlives it: vhost-user, "Inflight
 * I/O tracking". A split ring's account names heads, whose descriptors stay in the driver's table. A packed ring's has
 * copies of the descriptors, which are overwritten in the ring.
 *
 * Security model: the front-end can write this memory at any time (fast mode: the device VM as well). While a queue
 * runs it is only written. What it says is read once, when the queue starts, and every head and descriptor in it is
 * checked; a wrong account harms the queue of the VM that wrote it.
 */
#ifndef VP_ENGINE_INFLIGHT_H
#define VP_ENGINE_INFLIGHT_H

#include "base/record.h"
#include "virtq/virtq.h"

struct vp_inflight {
	vp_gptr mem;	  /* of this queue */
	uint16_t size;	  /* entries */
	uint64_t counter; /* order of the next request */
	bool on, packed;
	uint16_t free_head; /* packed: entries that no request has are a list in next[] */
	uint16_t n_free;    /* and how many they are */
	uint16_t *next;	    /* [size], of vp_inflight_saved that was opened with it */
};

/* What was open when an account was opened, oldest first. */
struct vp_inflight_saved {
	unsigned n;
	bool fresh; /* nobody had written there */
	uint16_t *heads; /* [n] split: descriptors; packed: entries of the account */
	/* packed: the descriptors of all, and how many each has; and what the account itself needs while it is used */
	struct vp_packed_saved *desc;
	uint16_t *n_desc;
	uint16_t *next;
};

/* Bytes that one queue of that many entries takes, a multiple of 64. A new area is all zeroes. */
uint64_t vp_inflight_bytes(uint16_t size, bool packed);

/*
 * Go on with the account of a queue that has just been set up: what was completed when the last device went is struck
 * off, vq goes on behind what is open. *s is overwritten. -EINVAL: an account of another kind, or one that contradicts
 * itself; -ENOMEM.
 */
int vp_inflight_open(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, struct vp_virtq *vq);
void vp_inflight_saved_free(struct vp_inflight_saved *s);

/*
 * For another process that has the same memory (docs/handover.md), while nobody works with f. Of what was open when it
 * was opened, entries [from, to) are still to be taken; desc: where the descriptors of the first of them are. There the
 * account goes on where it is, s has those entries, what either had before is freed, and nothing is written to mem. vq:
 * the queue, set up; VP_GPTR_NULL: it has no account. -EPROTO; -ENOMEM.
 */
void vp_inflight_save(const struct vp_inflight *f, const struct vp_inflight_saved *s, unsigned from, unsigned to,
		      unsigned desc, struct vp_rec *r);
int  vp_inflight_restore(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, const struct vp_virtq *vq,
			 const struct vp_rec_in *in);

/*
 * For a process that comes when this one has been killed anywhere: the account is made anew from what is open, oldest
 * first, in whose entries its descriptors still are. vq: set up, and where it was. s has nothing then but what the
 * account itself needs. -EPROTO: an entry is none of the account, or another one's; -ENOMEM.
 */
struct vp_inflight_request {
	uint16_t entry, slots;
};
int vp_inflight_recover(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, const struct vp_virtq *vq,
			const struct vp_inflight_request *open, unsigned n);

/*
 * Packed: descriptors [slot, slot + n) of vq were taken as one request, n <= n_free. Its entry, for `giving` and
 * `gave`.
 */
uint16_t vp_inflight_take_packed(struct vp_inflight *f, const struct vp_virtq *vq, uint16_t slot, unsigned n);
void vp_inflight_giving_packed(struct vp_inflight *f, uint16_t entry, unsigned n, const struct vp_virtq *vq);
void vp_inflight_gave_packed(struct vp_inflight *f, uint16_t entry, const struct vp_virtq *vq);

/* Split: request `head` was taken. */
VP_INLINE void vp_inflight_take(struct vp_inflight *f, uint16_t head)
{
	size_t at = 16 + 16 * (size_t)head;

	if (!f->on || head >= f->size)
		return;
	vp_st64(f->mem, at + 8, f->counter++);
	/* The counter before the mark: who reads the account after us finds both, or neither. */
	vp_st8_release(f->mem, at, 1);
}

/*
 * Around the completion of a request in the ring, one at a time: `head` (split) or the account's entry (packed), and
 * how many slots of the ring it had. vq: before and after.
 */
VP_INLINE void vp_inflight_giving(struct vp_inflight *f, uint16_t head, unsigned slots, const struct vp_virtq *vq)
{
	if (!f->on || head >= f->size)
		return;
	if (f->packed)
		vp_inflight_giving_packed(f, head, slots, vq);
	else
		vp_st16(f->mem, 12, head);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

VP_INLINE void vp_inflight_gave(struct vp_inflight *f, uint16_t head, const struct vp_virtq *vq)
{
	if (!f->on || head >= f->size)
		return;
	if (f->packed) {
		vp_inflight_gave_packed(f, head, vq);
		return;
	}
	vp_st8_release(f->mem, 16 + 16 * (size_t)head, 0);
	vp_st16_release(f->mem, 14, vq->used_idx);
}

#endif
