/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two halves of the copy engine for requests share. Internal to lib/engine. */
#ifndef VP_ENGINE_REQUEST_PRIV_H
#define VP_ENGINE_REQUEST_PRIV_H

#include "engine/copyq_priv.h"
#include "engine/request.h"

/* Pieces of requests that the device side has, beyond four for each. */
#define VP_REQ_SEGS 4096u

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
	VP_PLACE_ORDER();
	q->req[i].state = VP_REQ_BACK;
	q->pend[q->pend_head++ & q->mask] = i;
}

/*
 * What a next process finds (request_keep.c). Two snapshots, one of which is in force: the other one is written, and
 * then counts by one store. A request says itself in which state it is, and for those behind the snapshot's counts that
 * state did not come to pass.
 */
struct vp_req_snap {
	uint64_t seq, given, returned; /* of the next ones */
	uint64_t head_word;	       /* packed shadow ring: of what is added and not yet shown, */
	uint16_t head_slot, pending;   /* which begins there; is there any? */
	uint16_t avail, used;	       /* of the shadow ring: vp_drvq_avail_pos(), vp_drvq_used_pos() */
	uint16_t last_avail;	       /* of the driver's ring; packed: bit 15 is the wrap counter */
	uint16_t saved;		       /* are there requests of an earlier daemon that are still to be taken? */
	uint32_t full;
} __attribute__((aligned(64)));

struct vp_req_keep {
	/* A request goes back to the driver: its number + 1, and the used positions before and behind it. 0: none. */
	uint64_t intent;
	uint16_t used; /* of the driver's ring */
	uint8_t which; /* snapshot */
	struct vp_req_snap snap[2];
} __attribute__((aligned(64)));

/* What has happened since the last time counts now. */
void vp_req_commit(struct vp_reqq *q);
/* The tables are in c.keep. And all there begins anew. */
void vp_req_tables(struct vp_reqq *q);
void vp_req_keep_begin(struct vp_reqq *q);
/* vp_reqq_new(), but that what is in c.keep stays as it is. */
int vp_req_make(struct vp_reqq **out, const struct vp_reqq_conf *c, struct vp_err *e);

VP_INLINE uint64_t vp_req_intent(uint16_t i, uint16_t from, uint16_t to)
{
	return (uint64_t)(i + 1) << 32 | (uint64_t)from << 16 | to;
}

/* The contiguous piece of the pool at `at` of the request's bytes: *n of len, and its link address. */
vp_gptr vp_req_piece(const struct vp_reqq *q, const struct vp_req *r, uint32_t at, uint32_t len, uint32_t *n,
		     uint64_t *addr);

/* Zero its writable part. */
void vp_req_scrub(const struct vp_reqq *q, const struct vp_req *r);

/* It is out, the newest of all. */
void vp_req_list_add(struct vp_reqq *q, uint16_t i);
/* The free list, anew: all that are in that state. */
void vp_req_list_free(struct vp_reqq *q);
/* Of a request that was found written down: its blocks are nobody else's, and as many as it needs. Now it has them. */
bool vp_req_runs_claim(struct vp_reqq *q, const struct vp_req *r);
/* Its pieces are as long as it is. */
bool vp_req_segs_fit(const struct vp_reqq *q, const struct vp_req *r);
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
