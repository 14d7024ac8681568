/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The account of requests that a device has taken and not given back, in memory that the front-end keeps while its
 * back-end is away: vhost-user, "Inflight I/O tracking", split virtqueues.
 *
 * Security model: the front-end can write this memory at any time. While a queue runs it is only written. What it says
 * is read once, when the queue starts, and every head in it is checked; a wrong account harms the queue of the VM that
 * wrote it.
 */
#ifndef VP_ENGINE_INFLIGHT_H
#define VP_ENGINE_INFLIGHT_H

#include "virtq/virtq.h"

struct vp_inflight {
	vp_gptr mem;	  /* of this queue */
	uint16_t size;	  /* entries */
	uint64_t counter; /* order of the next request */
	bool on;
};

/* Bytes that one queue of that many entries takes, a multiple of 64; and what a new area begins with (zeroes otherwise). */
uint64_t vp_inflight_bytes(uint16_t size);
void vp_inflight_format(vp_gptr mem, uint16_t size);

/*
 * Go on with the account of a queue whose ring says used_idx: what was completed when the last device went is struck
 * off. heads (at least size of them) gets those that are open, oldest first; how many. -EINVAL: another size.
 */
int vp_inflight_open(struct vp_inflight *f, vp_gptr mem, uint16_t size, uint16_t used_idx, uint16_t *heads);

/* Request `head` was taken. */
VP_INLINE void vp_inflight_take(struct vp_inflight *f, uint16_t head)
{
	size_t at = 16 + 16 * (size_t)head;

	if (!f->on || head >= f->size)
		return;
	vp_st64(f->mem, at + 8, f->counter++);
	/* The counter before the mark: who reads the account after us finds both, or neither. */
	vp_st8_release(f->mem, at, 1);
}

/* Around the completion of request `head` in the ring, one at a time. used_idx: as the ring has it afterwards. */
VP_INLINE void vp_inflight_giving(struct vp_inflight *f, uint16_t head)
{
	if (!f->on || head >= f->size)
		return;
	vp_st16(f->mem, 12, head);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

VP_INLINE void vp_inflight_gave(struct vp_inflight *f, uint16_t head, uint16_t used_idx)
{
	if (!f->on || head >= f->size)
		return;
	vp_st8_release(f->mem, 16 + 16 * (size_t)head, 0);
	vp_st16_release(f->mem, 14, used_idx);
}

#endif
