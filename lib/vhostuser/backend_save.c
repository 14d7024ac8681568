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
	TAG_MAIN, TAG_REQ, TAG_RING,
	/* of a connection */
	TAG_SOCKET = 32, TAG_RX, TAG_RX_FD, TAG_OUT, TAG_OUT_MSG, TAG_OUT_OFF, TAG_OUT_FD,
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

enum { R_LOG = 1, R_ADDR_SET = 2, R_KICK_SET = 4, R_CALL_SET = 8, R_ENABLED = 16, R_STARTED = 32 };

struct ring_rec {
	uint32_t num, base, base_from, flags;
	uint64_t desc, avail, used, log_addr;
};

/* ---- writing ------------------------------------------------------------------------------- */

static void save_conn(const struct vu_conn *c, unsigned tag, struct vp_rec *r)
{
	uint8_t raw[VU_HDR_SIZE + VU_MAX_PAYLOAD];
	size_t head = VP_MIN(c->rx_have, (size_t)VU_HDR_SIZE);

	if (c->fd < 0)
		return;
	vp_rec_begin(r, tag);
	vp_rec_fd(r, TAG_SOCKET, VP_REC_FD_SOCKET, c->fd);
	memcpy(raw, &c->rx.hdr, head);
	if (c->rx_have > head)
		memcpy(raw + head, c->rx.p.bytes, c->rx_have - head);
	vp_rec_put(r, TAG_RX, raw, c->rx_have);
	for (unsigned i = 0; i < c->rx_nfds; i++)
		vp_rec_fd(r, TAG_RX_FD, VP_REC_FD_ANY, c->rx_fds[i]);
	for (unsigned i = 0; i < c->out_len; i++) {
		const struct vu_out *o = &c->out[(c->out_head + i) % VU_OUTQ];

		memcpy(raw, &o->msg->hdr, VU_HDR_SIZE);
		memcpy(raw + VU_HDR_SIZE, o->msg->p.bytes, o->msg->hdr.size);
		vp_rec_begin(r, TAG_OUT);
		vp_rec_put(r, TAG_OUT_MSG, raw, VU_HDR_SIZE + o->msg->hdr.size);
		vp_rec_u64(r, TAG_OUT_OFF, o->off);
		for (unsigned k = 0; !o->off && k < o->nfds; k++)
			vp_rec_fd(r, TAG_OUT_FD, VP_REC_FD_ANY, o->fds[k]);
		vp_rec_end(r);
	}
	vp_rec_end(r);
}

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
	vp_rec_str(r, TAG_REFUSAL, b->stat.refusal);
	vp_rec_str(r, TAG_REQ_ERROR, b->stat.req_error);
	save_conn(&b->main, TAG_MAIN, r);
	save_conn(&b->req, TAG_REQ, r);
	for (unsigned q = 0; q < b->cfg.max_queues; q++)
		save_ring(&b->rings[q], r);
}

/* ---- reading ------------------------------------------------------------------------------- */

/* A whole or partial message, as it came. */
static int load_msg(struct vu_msg *m, const struct vp_rec_in *in, bool whole)
{
	if (in->n > VU_HDR_SIZE + VU_MAX_PAYLOAD)
		return -EPROTO;
	memset(m, 0, sizeof(*m));
	memcpy(&m->hdr, in->p, VP_MIN(in->n, (size_t)VU_HDR_SIZE));
	if (in->n < VU_HDR_SIZE)
		return whole ? -EPROTO : 0;
	if (m->hdr.size > VU_MAX_PAYLOAD || in->n > VU_HDR_SIZE + m->hdr.size ||
	    (whole && in->n != VU_HDR_SIZE + m->hdr.size))
		return -EPROTO;
	memcpy(m->p.bytes, in->p + VU_HDR_SIZE, in->n - VU_HDR_SIZE);
	return 0;
}

static int load_out(struct vu_conn *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vu_out *o = &c->out[(c->out_head + c->out_len) % VU_OUTQ];
	struct vp_rec_in rest = *in, body;
	struct vu_msg m;
	unsigned tag;
	int r = 0;

	if (c->out_len == VU_OUTQ || !vp_rec_find(in, TAG_OUT_MSG, &body) || load_msg(&m, &body, true))
		return vp_err_set(e, -EPROTO, "a message to be sent is malformed");
	memset(o, 0, sizeof(*o));
	o->msg = malloc(offsetof(struct vu_msg, p) + m.hdr.size);
	if (!o->msg)
		return vp_err_set(e, -ENOMEM, "out of memory");
	memcpy(o->msg, &m, offsetof(struct vu_msg, p) + m.hdr.size);
	o->len = VU_HDR_SIZE + m.hdr.size;
	o->off = vp_rec_num(in, TAG_OUT_OFF, 0);
	c->out_len++;
	if (o->off >= o->len)
		return vp_err_set(e, -EPROTO, "a message to be sent is malformed");
	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_OUT_FD)
			continue;
		if (o->nfds == VU_MAX_FDS)
			return vp_err_set(e, -EPROTO, "a message to be sent has too many file descriptors");
		r = vp_rec_take_this(&body, VP_REC_FD_ANY, &o->fds[o->nfds], e);
		o->nfds += !r;
	}
	return r;
}

static int load_conn(struct vu_conn *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag;
	int r = vp_rec_take(in, TAG_SOCKET, VP_REC_FD_SOCKET, &c->fd, e);

	if (!r && c->fd < 0)
		r = vp_err_set(e, -EPROTO, "a connection has no socket");
	if (!r && vp_rec_find(in, TAG_RX, &body)) {
		r = load_msg(&c->rx, &body, false);
		if (r)
			return vp_err_set(e, r, "a message that is half read is malformed");
		c->rx_have = body.n;
	}
	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag == TAG_OUT)
			r = load_out(c, &body, e);
		if (tag != TAG_RX_FD)
			continue;
		if (c->rx_nfds == VU_MAX_FDS)
			return vp_err_set(e, -EPROTO, "a message that is half read has too many file descriptors");
		r = vp_rec_take_this(&body, VP_REC_FD_ANY, &c->rx_fds[c->rx_nfds], e);
		c->rx_nfds += !r;
	}
	return r;
}

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
		b->reqs[b->req_len] = (struct vu_req){ .request = ids[b->req_len] };
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
	r = load_conn(&b->main, &body, e);
	if (!r && vp_rec_find(in, TAG_REQ, &body)) {
		r = load_conn(&b->req, &body, e);
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

int vu_backend_await(struct vu_backend *b, unsigned int i, vu_req_done done, void *arg)
{
	struct vu_req *q = &b->reqs[(b->req_head + i) % VU_MAX_REQS];

	if (i >= b->req_len)
		return -ENOENT;
	q->done = done;
	q->arg = arg;
	return 0;
}
