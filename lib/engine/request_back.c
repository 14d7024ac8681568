/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests, towards the driver VM. Security model: see request.h. */
#include "engine/request_priv.h"

#include <errno.h>
#include <string.h>

#include "engine/leftover.h"
#include "engine/packet.h"
#include "engine/tap.h"

/* False: it was raw and is not full, and the device side is to have it again. */
static bool full_enough(struct vp_reqq *q, uint16_t i)
{
	struct vp_req *r = &q->req[i];

	if (!q->c.fills || r->in_len <= VP_REQ_BLOCK)
		return true;
	if (vp_req_full(r)) {
		q->full += q->full < UINT32_MAX;
		return true;
	}
	q->full = 0;
	if (!r->raw)
		return true;
	VP_PLACE_ORDER();
	r->state = VP_REQ_WAITS;
	if (q->regive == q->n || r->seq < q->req[q->regive].seq)
		q->regive = i;
	return false;
}

/* Note what the device side returned. */
static unsigned note(struct vp_reqq *q, unsigned max)
{
	struct vp_drvq_used u[VP_BURST];
	unsigned n = vp_drvq_get_burst(&q->shadow, u, VP_MIN(max, VP_BURST));

	for (unsigned i = 0; i < n; i++) {
		q->req[u[i].tag].len = u[i].len;
		q->req[u[i].tag].back_at = q->returned++;
		if (vp_likely(full_enough(q, u[i].tag)))
			vp_req_pend(q, u[i].tag);
	}
	if (n) {
		vp_place_point(VP_POINT_RETURNED);
		vp_req_commit(q);
		vp_place_point(VP_POINT_NOTED_BACK);
	}
	return n;
}

/* The device side need not have written more than the status of a request that failed. */
static void scrub_failed(const struct vp_reqq *q, const struct vp_req *r)
{
	uint64_t addr;
	uint32_t n;
	vp_gptr p = vp_req_piece(q, r, (uint32_t)vp_req_in_at(q, r->out_len) + r->in_len - 1, 1, &n, &addr);
	uint8_t status = vp_ld8(p, 0);

	if (vp_likely(!status))
		return;
	vp_req_scrub(q, r);
	vp_st8(p, 0, status);
}

/* To the driver's address addr, translated now, from the pool at `at` of the request. 0, -EAGAIN, -EFAULT. */
static int put_seg(struct vp_reqq *q, const struct vp_req *r, uint64_t addr, uint32_t len, uint32_t at)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	uint64_t span, done, paddr;
	uint32_t k, n;
	vp_gptr host;

	for (done = 0; done < len; done += span) {
		int ret = vp_xlate_piece(&vq->xl, addr + done, len - done, VP_WRITE, &host, &span);

		if (ret)
			return ret;
		for (k = 0; k < span; k += n) {
			vp_gptr from = vp_req_piece(q, r, at + (uint32_t)done + k, (uint32_t)span - k, &n, &paddr);

			vp_copy_peer(vp_gptr_add(host, k), from, n);
		}
		if (vp_unlikely(vq->log))
			vp_dirty_log_mark_xlate(vq->log, &vq->xl, addr + done, span);
	}
	return 0;
}

/* The writable part: all of it, or as much as the device side says that it wrote. */
static int put(struct vp_reqq *q, const struct vp_req *r)
{
	const struct vp_copyq_seg *sg = vp_req_segs(q, r) + r->nout;
	uint32_t left = q->c.trust_len ? r->len : r->in_len, at = (uint32_t)vp_req_in_at(q, r->out_len);

	if (r->raw)
		scrub_failed(q, r);
	for (unsigned k = 0; k < r->nin && left; k++) {
		uint32_t n = VP_MIN(left, sg[k].len);
		int ret = put_seg(q, r, sg[k].addr, n, at);

		if (ret)
			return ret;
		at += n;
		left -= n;
	}
	return 0;
}

/* To who traces the queue, before its place in the pool goes. status: -1 = as the device side wrote it. */
static void trace(const struct vp_reqq *q, const struct vp_req *r, uint32_t len, bool failed, int status)
{
	const uint64_t now = vp_tap_now();
	struct vp_cap_request rec = { .out_len = r->out_len, .in_len = r->in_len, .used = len, .failed = failed };
	uint64_t addr;
	uint32_t n;

	if (r->taken_ns) {
		rec.latency_ns = now > r->taken_ns ? now - r->taken_ns : 1;
		rec.head_len = r->head_len;
		memcpy(rec.head, r->head, r->head_len);
	}
	if (failed) {
		rec.has_status = status >= 0;
		rec.status = (uint8_t)status;
	} else if (r->in_len) {
		rec.has_status = true;
		rec.status = vp_ld8(vp_req_piece(q, r, (uint32_t)vp_req_in_at(q, r->out_len) + r->in_len - 1, 1, &n,
						 &addr), 0);
	}
	vp_tap_request(q->c.rq, &rec, now);
}

static void give(struct vp_reqq *q, uint16_t i, uint32_t len, bool failed)
{
	struct vp_req *r = &q->req[i];
	struct vp_virtq *vq = &q->c.rq->vq;
	const uint16_t to = vp_vq_pos_behind(vq, vq->packed ? r->slots : 1);

	if (q->keep) {
		VP_PLACE_ORDER();
		q->keep->intent = vp_req_intent(i, vp_vq_pos(vq), to);
		VP_PLACE_ORDER();
		vp_place_point(VP_POINT_ANSWER);
	}
	vp_inflight_giving(&q->c.inflight, r->entry, r->slots, vq);
	vp_vq_complete(vq, &(struct vp_used){ .len = len, .id = r->id, .slots = r->slots }, 1);
	vp_inflight_gave(&q->c.inflight, r->entry, vq);
	vp_place_point(VP_POINT_ANSWERED);
	vp_copyq_stat(&q->c.rq->stats.packets, 1);
	vp_copyq_stat(&q->c.rq->stats.bytes, (uint64_t)r->out_len + (q->c.trust_len ? len : r->in_len));
	if (vp_unlikely(vp_queue_tapped(q->c.rq)))
		trace(q, r, len, failed, q->c.fail_status);
	vp_req_drop(q, i);
	if (!q->keep)
		return;
	q->keep->used = to;
	VP_PLACE_ORDER();
	vp_place_point(VP_POINT_FREED);
	q->keep->intent = 0;
	VP_PLACE_ORDER();
}

unsigned vp_req_collect(struct vp_reqq *q, unsigned max, unsigned *gave)
{
	uint64_t bytes = 0;
	unsigned n = 0, done = 0;
	int ret = 0;

	if (q->served)
		n = note(q, max);
	while (done < max && bytes < VP_PKT_RUN_BYTES && q->pend_tail != q->pend_head) {
		uint16_t i = q->pend[q->pend_tail & q->mask];

		ret = put(q, &q->req[i]);
		if (ret)
			break;
		q->pend_tail++;
		bytes += q->req[i].in_len;
		q->owed += q->req[i].in_len;
		give(q, i, q->req[i].len, false);
		done++;
	}
	if (ret == -EFAULT)
		vp_vq_break(&q->c.rq->vq, VP_VQ_BAD_ADDR);
	q->again = q->pend_tail != q->pend_head;
	q->stalled = ret == -EAGAIN;
	*gave = done;
	/* What waits for a translation is no work. */
	return ret ? done : VP_MAX(n, done);
}

void vp_req_fail(struct vp_reqq *q, uint16_t i)
{
	const struct vp_req *r = &q->req[i];
	const struct vp_copyq_seg *sg = vp_req_segs(q, r) + r->nout;
	struct vp_virtq *vq = &q->c.rq->vq;
	uint32_t len = 0;
	uint64_t span;
	vp_gptr host;

	q->failed++;
	if (q->c.fuse && r->nout && r->nin)
		len = vp_fuse_fail(vq, sg[-r->nout].addr, sg[-r->nout].len, sg->addr, sg->len);
	if (q->c.fail_status >= 0 && r->nin) {
		uint64_t at = sg[r->nin - 1].addr + sg[r->nin - 1].len - 1;

		if (!vp_xlate_piece(&vq->xl, at, 1, VP_WRITE, &host, &span)) {
			vp_st8(host, 0, (uint8_t)q->c.fail_status);
			if (vq->log)
				vp_dirty_log_mark_xlate(vq->log, &vq->xl, at, 1);
			len = r->in_len;
		}
	}
	give(q, i, len, true);
}
