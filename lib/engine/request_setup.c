/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests: made and freed. Security model: see request.h. */
#include "engine/request_priv.h"

#include <errno.h>
#include <stdlib.h>

static bool area_ok(const struct vp_copyq_area *a)
{
	return !((a->off | a->size) & 63) && a->size < UINT32_MAX;
}

/* Chains of the driver need not be shorter than in a ring of its own. */
static uint16_t shadow_size(uint16_t size)
{
	uint16_t n = 2 * VP_REQ_RUNS;

	while (n < size && n < VP_REQ_MAX)
		n *= 2;
	return n;
}

int vp_req_make(struct vp_reqq **out, const struct vp_reqq_conf *c, struct vp_err *e)
{
	uint64_t driver, device;
	struct vp_reqq *q;
	uint32_t nsegs;
	int ret;

	if (!c->rq->vq.size)
		return vp_err_set(e, -EINVAL, "the driver's ring is not started");
	q = calloc(1, sizeof(*q));
	if (!q)
		return vp_err_set(e, -ENOMEM, "out of memory");
	q->c = *c;
	q->size = shadow_size(c->rq->vq.size);
	q->n = q->size;
	q->mask = q->size - 1;
	q->given = q->returned = 1; /* 0 is before all of them */
	q->open = true;
	if (!area_ok(&c->ring) || !area_ok(&c->data) || c->data.size < VP_REQ_BLOCK ||
	    c->ring.size < vp_drvq_layout(q->size, false, &driver, &device) || c->out_head > VP_REQ_BLOCK ||
	    c->in_head > VP_REQ_BLOCK) {
		free(q);
		return vp_err_set(e, -EINVAL, "pool areas do not fit a ring of %u", c->rq->vq.size);
	}
	/* Room for several chains of the longest kind, and four pieces of each of the rest. */
	nsegs = VP_REQ_SEGS + VP_CHAIN_DESCS + 4 * q->n;
	ret = vp_runs_init(&q->blocks, (uint32_t)(c->data.size / VP_REQ_BLOCK));
	if (!ret)
		ret = vp_runs_init(&q->segs, nsegs);
	if (c->keep) {
		vp_req_tables(q);
	} else {
		q->req = calloc(q->n + 1, sizeof(*q->req));
		q->seg = calloc(nsegs, sizeof(*q->seg));
	}
	q->pend = calloc(q->n, sizeof(*q->pend));
	if (ret || !q->req || !q->seg || !q->pend) {
		vp_reqq_free(q);
		return vp_err_set(e, -ENOMEM, "out of memory");
	}
	q->first = q->last = q->regive = (uint16_t)q->n;
	*out = q;
	return 0;
}

void vp_req_list_free(struct vp_reqq *q)
{
	q->free = (uint16_t)q->n;
	for (unsigned i = q->n; i--;)
		if (q->req[i].state == VP_REQ_FREE) {
			q->req[i].next = q->free;
			q->free = (uint16_t)i;
		}
}

bool vp_req_runs_claim(struct vp_reqq *q, const struct vp_req *r)
{
	const uint64_t bytes = vp_req_in_at(q, r->out_len) + r->in_len;
	uint64_t blocks = 0;

	if (r->nruns > VP_REQ_RUNS)
		return false;
	for (unsigned k = 0; k < r->nruns; k++) {
		if (!vp_runs_claim(&q->blocks, &r->run[k]))
			return false;
		blocks += r->run[k].n;
	}
	return blocks == (bytes + VP_REQ_BLOCK - 1) / VP_REQ_BLOCK;
}

bool vp_req_segs_fit(const struct vp_reqq *q, const struct vp_req *r)
{
	const struct vp_copyq_seg *sg = vp_req_segs(q, r);
	uint64_t out = 0, in = 0;

	for (unsigned k = 0; k < (unsigned)r->nout + r->nin; k++)
		*(k < r->nout ? &out : &in) += sg[k].len;
	return out == r->out_len && in == r->in_len;
}

int vp_reqq_new(struct vp_reqq **out, const struct vp_reqq_conf *c, struct vp_err *e)
{
	struct vp_reqq *q;
	int ret = vp_req_make(&q, c, e);

	if (ret)
		return ret;
	q->n_heads = c->saved ? c->saved->n : 0;
	vp_req_keep_begin(q);
	vp_req_list_free(q);
	*out = q;
	return 0;
}

void vp_reqq_free(struct vp_reqq *q)
{
	if (!q)
		return;
	if (q->served)
		vp_drvq_fini(&q->shadow);
	vp_runs_fini(&q->blocks);
	vp_runs_fini(&q->segs);
	if (!q->keep) {
		free(q->req);
		free(q->seg);
	}
	free(q->pend);
	free(q);
}
