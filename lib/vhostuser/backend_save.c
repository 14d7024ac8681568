/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A session as a record, for the process that goes on with it: the connections with what is half read and not yet
 * sent, what was negotiated, the rings as the front-end set them up. Threat model: base/record.h. What another process
 * says is held to the bounds that the code here relies on; the rest is as untrusted as the front-end's own messages.
 */
#include "vhostuser/backend_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum tag {
	TAG_SESSION = 1, TAG_REGIONS, TAG_GONE, TAG_REQUESTS, TAG_COUNTS, TAG_REFUSAL, TAG_REQ_ERROR,
	TAG_MAIN, TAG_REQ, TAG_RING, TAG_JOURNAL,
	/* of a ring */
	TAG_RING_STATE = 64, TAG_KICK, TAG_CALL, TAG_ERR,
};

struct session_rec {
	uint64_t offered, acked, pf;
	uint32_t state, status, features_set, pf_set;
	uint32_t max_queues, next_gone;
	uint64_t tokens_1024; /* tokens * 1024 */
	uint64_t tokens_ns;
	uint64_t msgs, replies, refused, reqs, reqs_failed;
};

/* At that time. */
struct journal_rec {
	uint32_t asked, heard;
};

enum { R_LOG = 1, R_ADDR_SET = 2, R_KICK_SET = 4, R_CALL_SET = 8, R_ENABLED = 16, R_STARTED = 32 };

struct ring_rec {
	uint32_t num, base, base_from, flags;
	uint64_t desc, avail, used, log_addr;
};

/* ---- writing ------------------------------------------------------------------------------- */

static void save_ring(const struct vu_ring *v, struct vp_rec *r)
{
	const struct ring_rec s = {
		.num = v->num, .base = v->base, .base_from = v->base_from,
		.flags = (v->log ? R_LOG : 0) | (v->addr_set ? R_ADDR_SET : 0) | (v->kick_set ? R_KICK_SET : 0) |
			 (v->call_set ? R_CALL_SET : 0) | (v->enabled ? R_ENABLED : 0) | (v->started ? R_STARTED : 0),
		.desc = v->desc, .avail = v->avail, .used = v->used, .log_addr = v->log_addr,
	};

	vp_rec_begin(r, TAG_RING);
	vp_rec_put(r, TAG_RING_STATE, &s, sizeof(s));
	/* The owner takes those that it uses, and has looked at them. */
	vp_rec_fd(r, TAG_KICK, VP_REC_FD_ANY, v->kick_fd);
	vp_rec_fd(r, TAG_CALL, VP_REC_FD_ANY, v->call_fd);
	vp_rec_fd(r, TAG_ERR, VP_REC_FD_ANY, v->err_fd);
	vp_rec_end(r);
}

bool vu_backend_at_rest(const struct vu_backend *b)
{
	return !b->owed && !b->dead;
}

void vu_backend_note_base(struct vu_backend *b, unsigned int q, uint32_t base)
{
	b->rings[q].base = base;
}

void *vu_backend_pending(const struct vu_backend *b, unsigned int i)
{
	return i < b->req_len ? b->reqs[(b->req_head + i) % VU_MAX_REQS].arg : NULL;
}

void vu_backend_save(const struct vu_backend *b, struct vp_rec *r)
{
	const struct session_rec s = {
		.offered = b->offered, .acked = b->acked, .pf = b->pf, .state = b->state, .status = b->status,
		.features_set = b->features_set, .pf_set = b->pf_set, .max_queues = b->cfg.max_queues,
		.next_gone = b->next_gone, .tokens_1024 = (uint64_t)(VP_MAX(b->tokens, 0) * 1024),
		.tokens_ns = b->tokens_ns, .msgs = b->stat.msgs, .replies = b->stat.replies,
		.refused = b->stat.refused, .reqs = b->stat.reqs, .reqs_failed = b->stat.reqs_failed,
	};
	uint32_t ids[VU_MAX_REQS];

	for (unsigned i = 0; i < b->req_len; i++)
		ids[i] = b->reqs[(b->req_head + i) % VU_MAX_REQS].request;
	vp_rec_put(r, TAG_SESSION, &s, sizeof(s));
	vp_rec_put(r, TAG_REGIONS, b->regions, b->nregions * sizeof(b->regions[0]));
	vp_rec_put(r, TAG_GONE, b->gone, sizeof(b->gone));
	vp_rec_put(r, TAG_REQUESTS, ids, b->req_len * sizeof(ids[0]));
	vp_rec_put(r, TAG_COUNTS, b->stat.count, sizeof(b->stat.count));
	if (b->cfg.journal) {
		const struct vu_journal_state j = vu_journal_get(b->cfg.journal);

		vp_rec_put(r, TAG_JOURNAL, &(struct journal_rec){ j.asked, j.heard }, sizeof(struct journal_rec));
	}
	vp_rec_str(r, TAG_REFUSAL, b->stat.refusal);
	vp_rec_str(r, TAG_REQ_ERROR, b->stat.req_error);
	vu_conn_save(&b->main, TAG_MAIN, r);
	vu_conn_save(&b->req, TAG_REQ, r);
	for (unsigned q = 0; q < b->cfg.max_queues; q++)
		save_ring(&b->rings[q], r);
}

/* ---- reading ------------------------------------------------------------------------------- */

static int load_ring(struct vu_ring *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct ring_rec s;
	int r;

	if (vp_rec_get(in, TAG_RING_STATE, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "a ring has no state");
	if (s.num > VU_MAX_RING_SIZE || s.base_from > VU_BASE_SENT)
		return vp_err_set(e, -EPROTO, "a ring's state is malformed");
	v->num = s.num;
	v->base = s.base;
	v->base_from = s.base_from;
	v->desc = s.desc;
	v->avail = s.avail;
	v->used = s.used;
	v->log_addr = s.log_addr;
	v->log = s.flags & R_LOG;
	v->addr_set = s.flags & R_ADDR_SET;
	v->kick_set = s.flags & R_KICK_SET;
	v->call_set = s.flags & R_CALL_SET;
	v->enabled = s.flags & R_ENABLED;
	v->started = s.flags & R_STARTED;
	r = vp_rec_take(in, TAG_KICK, VP_REC_FD_ANY, &v->kick_fd, e);
	if (!r)
		r = vp_rec_take(in, TAG_CALL, VP_REC_FD_ANY, &v->call_fd, e);
	return r ? r : vp_rec_take(in, TAG_ERR, VP_REC_FD_ANY, &v->err_fd, e);
}

static int load_arrays(struct vu_backend *b, const struct vp_rec_in *in)
{
	uint32_t ids[VU_MAX_REQS];
	struct vp_rec_in body;
	int r;

	if (vp_rec_find(in, TAG_REGIONS, &body)) {
		if (body.n > sizeof(b->regions) || body.n % sizeof(b->regions[0]))
			return -EPROTO;
		memcpy(b->regions, body.p, body.n);
		b->nregions = (unsigned)(body.n / sizeof(b->regions[0]));
	}
	r = vp_rec_get(in, TAG_GONE, b->gone, sizeof(b->gone));
	if (!r)
		r = vp_rec_get(in, TAG_COUNTS, b->stat.count, sizeof(b->stat.count));
	if (!r)
		r = vp_rec_text(in, TAG_REFUSAL, b->stat.refusal, sizeof(b->stat.refusal));
	if (!r)
		r = vp_rec_text(in, TAG_REQ_ERROR, b->stat.req_error, sizeof(b->stat.req_error));
	if (r || !vp_rec_find(in, TAG_REQUESTS, &body))
		return r ? r : -EPROTO;
	if (body.n > sizeof(ids) || body.n % sizeof(ids[0]))
		return -EPROTO;
	memcpy(ids, body.p, body.n);
	/* Who asked has gone: the answers are read, and nobody hears of them but who says so. */
	for (b->req_len = 0; b->req_len < body.n / sizeof(ids[0]); b->req_len++) {
		if (!vu_msg_info(VU_FROM_BACKEND, ids[b->req_len]))
			return -EPROTO;
		b->reqs[b->req_len] = (struct vu_req){ .request = ids[b->req_len], .heir = true };
	}
	if (vp_rec_find(in, TAG_JOURNAL, &body)) {
		struct journal_rec j;

		if (vp_rec_get(in, TAG_JOURNAL, &j, sizeof(j)))
			return -EPROTO;
		b->was_asked = j.asked;
		b->was_heard = j.heard;
	}
	return 0;
}

static int load(struct vu_backend *b, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct session_rec s;
	unsigned tag, q = 0;
	int r;

	if (vp_rec_get(in, TAG_SESSION, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of the session lacks its state, or is of another version");
	if (s.max_queues > b->cfg.max_queues || s.next_gone >= VP_ARRAY_SIZE(b->gone) ||
	    (s.state != VU_ST_NEW && s.state != VU_ST_OWNED))
		return vp_err_set(e, -EPROTO, "the record has %u rings, here are %u", s.max_queues, b->cfg.max_queues);
	b->offered = s.offered;
	b->acked = s.acked;
	b->pf = s.pf;
	b->state = s.state;
	b->status = (uint8_t)s.status;
	b->features_set = s.features_set;
	b->pf_set = s.pf_set;
	b->next_gone = s.next_gone;
	b->tokens = VP_MIN((double)s.tokens_1024 / 1024, (double)b->cfg.msgs_per_sec);
	b->tokens_ns = s.tokens_ns;
	b->stat.msgs = s.msgs;
	b->stat.replies = s.replies;
	b->stat.refused = s.refused;
	b->stat.reqs = s.reqs;
	b->stat.reqs_failed = s.reqs_failed;
	if (load_arrays(b, in))
		return vp_err_set(e, -EPROTO, "the record of the session is malformed");
	if (!vp_rec_find(in, TAG_MAIN, &body))
		return vp_err_set(e, -EPROTO, "the session has no connection");
	r = vu_conn_restore(&b->main, &body, e);
	if (!r && vp_rec_find(in, TAG_REQ, &body)) {
		r = vu_conn_restore(&b->req, &body, e);
		b->req_serial = 1;
	}
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_RING)
			r = q < b->cfg.max_queues ? load_ring(&b->rings[q++], &body, e) :
			    vp_err_set(e, -EPROTO, "the record has more rings than it says");
	return r;
}

struct vu_backend *vu_backend_restore(const struct vp_rec_in *in, const struct vu_backend_cfg *cfg,
				      const struct vu_backend_ops *ops, void *ctx, struct vp_err *e)
{
	struct vu_backend *b = vu_backend_new(-1, cfg, ops, ctx, e);

	if (!b)
		return NULL;
	if (load(b, in, e)) {
		vu_backend_destroy(b);
		return NULL;
	}
	b->seen_events = vu_backend_events(b);
	b->seen_req_events = vu_backend_req_events(b);
	b->seen_req = b->req_serial;
	return b;
}

int vu_backend_recover(struct vu_backend *b, const struct vu_journal *old, struct vp_err *e)
{
	struct vu_journal_state s = vu_journal_get(old);
	struct vu_msg m = { .hdr = { VU_IOTLB_MSG, VU_FLAG_VERSION | VU_FLAG_REPLY, sizeof(uint64_t) } };
	uint32_t open, heard;

	if (s.doing == VU_DOING_ASK)
		s.asked += old->out.msg_len > 0;
	if (s.doing == VU_DOING_HEAR)
		s.heard += old->in.msg_len > 0;
	heard = (s.heard - b->was_heard) & VU_JOURNAL_MASK;
	open = (b->req_len + (s.asked - b->was_asked) - heard) & VU_JOURNAL_MASK;
	if (s.doing > VU_DOING_HEAR || open > VU_MAX_REQS || (open && b->req.fd < 0))
		return vp_err_set(e, -EPROTO, "what it had asked and heard makes no sense");
	for (; heard && b->req_len; heard--, b->req_len--)
		b->req_head = (b->req_head + 1) % VU_MAX_REQS;
	/* All that is asked without a new record. */
	for (; b->req_len < open; b->req_len++)
		b->reqs[(b->req_head + b->req_len) % VU_MAX_REQS] =
			(struct vu_req){ .request = VU_BE_IOTLB_MSG, .heir = true };
	if (s.doing != VU_DOING_TAKE || !old->in.msg_len || old->out.msg_len)
		return 0;
	b->stat.replies++;
	return vu_conn_send(&b->main, &m, NULL, 0, e);
}

bool vu_backend_stale(const struct vu_backend *b)
{
	for (unsigned i = 0; i < b->req_len; i++) {
		const struct vu_req *q = &b->reqs[(b->req_head + i) % VU_MAX_REQS];

		if (q->heir && !q->done && q->request == VU_BE_IOTLB_MSG)
			return true;
	}
	return false;
}

int vu_backend_await(struct vu_backend *b, unsigned int i, vu_req_done done, void *arg)
{
	struct vu_req *q = &b->reqs[(b->req_head + i) % VU_MAX_REQS];

	if (i >= b->req_len)
		return -ENOENT;
	q->done = done;
	q->arg = arg;
	return 0;
}
