/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two halves of the copy engine for requests share. Internal to lib/engine. */
#ifndef VP_ENGINE_REQUEST_PRIV_H
#define VP_ENGINE_REQUEST_PRIV_H

#include "engine/copyq_priv.h"
#include "engine/request.h"

/* Where the readable bytes begin. */
VP_INLINE uint32_t vp_req_out_at(const struct vp_reqq *q)
{
	return q->c.out_head ? VP_REQ_BLOCK - q->c.out_head : 0;
}

/* Where the writable bytes begin, behind out_len readable ones. */
VP_INLINE uint64_t vp_req_in_at(const struct vp_reqq *q, uint32_t out_len)
{
	uint64_t end = vp_req_out_at(q) + (uint64_t)out_len;

	return q->c.out_head || q->c.in_head ? vp_align_up(end + q->c.in_head, VP_REQ_BLOCK) - q->c.in_head
					     : vp_align_up(end, 64);
}

VP_INLINE const struct vp_copyq_seg *vp_req_segs(const struct vp_reqq *q, const struct vp_req *r)
{
	return r->segs.n ? &q->seg[r->segs.at] : r->seg;
}

/* What a device side tells that has written all but the status, or that as well. */
VP_INLINE bool vp_req_full(const struct vp_req *r)
{
	return r->len >= r->in_len - 1;
}

/* It came back. */
VP_INLINE void vp_req_pend(struct vp_reqq *q, uint16_t i)
{
	q->req[i].state = VP_REQ_BACK;
	q->pend[q->pend_head++ & q->mask] = i;
}

/* The contiguous piece of the pool at `at` of the request's bytes: *n of len, and its link address. */
vp_gptr vp_req_piece(const struct vp_reqq *q, const struct vp_req *r, uint32_t at, uint32_t len, uint32_t *n,
		     uint64_t *addr);

/* Zero its writable part. */
void vp_req_scrub(const struct vp_reqq *q, const struct vp_req *r);

/* It is out, the newest of all. */
void vp_req_list_add(struct vp_reqq *q, uint16_t i);
/* Served: the oldest that waits for the device side is given to it next. */
void vp_req_find_waiting(struct vp_reqq *q);
/* The link addresses of the shadow ring, which is set up. */
void vp_req_ring_at(struct vp_reqq *q);

/* Forget a request, with all that it has. */
void vp_req_drop(struct vp_reqq *q, uint16_t i);

/* Take up to max returned requests and give them to the driver: how many moved; *gave: to the driver. */
unsigned vp_req_collect(struct vp_reqq *q, unsigned max, unsigned *gave);

/* Give it to the driver as failed. */
void vp_req_fail(struct vp_reqq *q, uint16_t i);

#endif
