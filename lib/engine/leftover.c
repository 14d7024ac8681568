/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/leftover.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

int vp_leftover_count(const struct vp_virtq *vq)
{
	const unsigned size = vq->size, mask = size - 1;
	unsigned same = 0, n;

	if (vq->packed)
		return -ENODATA;
	for (; same < size; same++) {
		unsigned at = (vq->used_idx - 1u - same) & mask;

		if (vp_ld32(vq->device, 4 + 8 * (size_t)at) != vp_ld16(vq->driver, 4 + 2 * (size_t)at))
			break;
	}
	/*
	 * The driver may go on meanwhile, over places that were just compared: the index comes last. It does not go
	 * further than once around what was returned.
	 */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	n = (uint16_t)(vp_ld16(vq->driver, 2) - vq->used_idx);
	return n <= size && same >= size - n ? (int)n : -ENODATA;
}

uint32_t vp_fuse_fail(struct vp_virtq *vq, uint64_t ask, uint32_t ask_len, uint64_t answer, uint32_t answer_len)
{
	/* struct fuse_out_header: length, error, and the request's number, which is in its struct fuse_in_header. */
	uint8_t h[16] = { sizeof(h), 0, 0, 0, (uint8_t)-EIO, 0xff, 0xff, 0xff };

	if (ask_len < 16 || answer_len < sizeof(h) || vp_xlate_copy_in(&vq->xl, h + 8, ask + 8, 8) ||
	    vp_xlate_copy_out(&vq->xl, answer, h, sizeof(h)))
		return 0;
	if (vq->log)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, answer, sizeof(h));
	return sizeof(h);
}

bool vp_leftover_fail(struct vp_virtq *vq, unsigned n, struct vp_burst *b)
{
	bool any = false;

	while (n) {
		unsigned got = vp_vq_fetch(vq, b, VP_MIN(n, VP_BURST));

		if (!got)
			break;
		for (unsigned i = 0; i < got; i++) {
			const struct vp_chain *c = &b->chain[i];
			const struct vp_seg *ask = &b->seg[c->seg], *answer = ask + c->nout;
			struct vp_used u = { .id = c->id, .slots = c->slots };

			if (c->nout && c->nin)
				u.len = vp_fuse_fail(vq, ask->addr, ask->len, answer->addr, answer->len);
			vp_vq_complete(vq, &u, 1);
		}
		vp_vq_advance(vq, b, got);
		n -= got;
		any = true;
	}
	return any && !vq->broken && vp_vq_need_call(vq);
}
