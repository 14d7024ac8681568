/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine for requests as a record (docs/handover.md). Threat model: base/record.h. Whatever the record says,
 * no request's place leads out of the pool or into another one's, and each comes back once.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#include "engine/request_priv.h"

enum tag {
	TAG_ENGINE = 1, TAG_REQUEST, TAG_BACK, TAG_SHADOW, TAG_ACCOUNT,
	/* of a request */
	TAG_STATE = 32, TAG_RUNS, TAG_SEGS, TAG_HEAD,
};

enum {
	F_SERVED = 1, F_PACKED = 2, F_BLOCKED = 4, F_AGAIN = 8, F_STALLED = 16, F_OPEN = 32, F_TOLD = 64, F_FLUSH = 128,
};

struct engine_rec {
	uint64_t seq, kicks, regiven, failed, too_big, owed, owed_since;
	uint32_t flags, size, n_owed, full, out_head, in_head;
};

enum { R_RAW = 1 };

struct request_rec {
	uint64_t seq, taken_ns;
	uint32_t index, state, flags;
	uint32_t out_len, in_len, len;
	uint16_t nout, nin, id, slots, pos, entry;
};

/* Both are written as they are. */
_Static_assert(sizeof(struct vp_run) == 8 && sizeof(struct vp_copyq_seg) == 16, "the layout of the record");

/* ---- writing ------------------------------------------------------------------------------- */

static void save_request(const struct vp_reqq *q, uint16_t i, struct vp_rec *to)
{
	const struct vp_req *r = &q->req[i];
	const struct request_rec s = {
		.seq = r->seq, .taken_ns = r->taken_ns, .index = i, .state = r->state, .flags = r->raw ? R_RAW : 0,
		.out_len = r->out_len, .in_len = r->in_len, .len = r->state == VP_REQ_BACK ? r->len : 0,
		.nout = r->nout, .nin = r->nin, .id = r->id, .slots = r->slots, .pos = r->pos, .entry = r->entry,
	};

	vp_rec_begin(to, TAG_REQUEST);
	vp_rec_put(to, TAG_STATE, &s, sizeof(s));
	vp_rec_put(to, TAG_RUNS, r->run, r->nruns * sizeof(r->run[0]));
	vp_rec_put(to, TAG_SEGS, vp_req_segs(q, r), (r->nout + r->nin) * sizeof(struct vp_copyq_seg));
	if (r->taken_ns)
		vp_rec_put(to, TAG_HEAD, r->head, r->head_len);
	vp_rec_end(to);
}

void vp_reqq_save(const struct vp_reqq *q, struct vp_rec *r)
{
	const struct engine_rec s = {
		.seq = q->seq, .kicks = q->kicks, .regiven = q->regiven, .failed = q->failed, .too_big = q->too_big,
		.owed = q->owed, .owed_since = q->owed_since, .size = q->size, .n_owed = q->n_owed, .full = q->full,
		.out_head = q->c.out_head, .in_head = q->c.in_head,
		.flags = (q->served ? F_SERVED : 0) | (q->served && q->shadow.packed ? F_PACKED : 0) |
			 (q->blocked ? F_BLOCKED : 0) | (q->again ? F_AGAIN : 0) | (q->stalled ? F_STALLED : 0) |
			 (q->open ? F_OPEN : 0) | (q->told ? F_TOLD : 0) | (q->flush ? F_FLUSH : 0),
	};
	uint16_t back[VP_REQ_MAX];
	unsigned n = 0;

	vp_rec_put(r, TAG_ENGINE, &s, sizeof(s));
	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		save_request(q, i, r);
	for (uint32_t at = q->pend_tail; at != q->pend_head; at++)
		back[n++] = q->pend[at & q->mask];
	vp_rec_put(r, TAG_BACK, back, n * sizeof(back[0]));
	vp_rec_begin(r, TAG_ACCOUNT);
	if (q->c.saved)
		vp_inflight_save(&q->c.inflight, q->c.saved, q->next_head, q->n_heads, q->next_desc, r);
	vp_rec_end(r);
	if (!q->served)
		return;
	vp_rec_begin(r, TAG_SHADOW);
	vp_drvq_save(&q->shadow, r);
	vp_rec_end(r);
}

/* ---- reading ------------------------------------------------------------------------------- */

/* As merge() of request.c left them: they are as long as the request. */
static bool load_segs(struct vp_reqq *q, struct vp_req *r, const struct vp_rec_in *in)
{
	unsigned n = (unsigned)r->nout + r->nin;
	struct vp_copyq_seg *to = r->seg;

	if (in->n != n * sizeof(*to))
		return false;
	if (n > VP_ARRAY_SIZE(r->seg)) {
		if (vp_runs_take(&q->segs, n, &r->segs, 1) != 1)
			return false;
		to = &q->seg[r->segs.at];
	}
	if (n)
		memcpy(to, in->p, in->n);
	return vp_req_segs_fit(q, r);
}

static bool load_runs(struct vp_reqq *q, struct vp_req *r, const struct vp_rec_in *in)
{
	unsigned n = (unsigned)(in->n / sizeof(r->run[0]));

	if (in->n % sizeof(r->run[0]) || n > VP_REQ_RUNS)
		return false;
	if (n)
		memcpy(r->run, in->p, in->n);
	r->nruns = (uint8_t)n;
	return vp_req_runs_claim(q, r);
}

static bool load_request(struct vp_reqq *q, const struct vp_rec_in *in)
{
	struct vp_rec_in runs, segs, head;
	struct request_rec s;
	struct vp_req *r;

	if (vp_rec_get(in, TAG_STATE, &s, sizeof(s)) || s.index >= q->n || q->req[s.index].state != VP_REQ_FREE ||
	    s.state < VP_REQ_WAITS || s.state > VP_REQ_BACK || (s.state == VP_REQ_AWAY && !q->served) ||
	    s.seq >= q->seq || (q->last != q->n && s.seq <= q->req[q->last].seq) || s.len > s.in_len ||
	    s.slots > q->c.rq->vq.size || (s.flags & R_RAW && s.in_len <= VP_REQ_BLOCK) ||
	    !vp_rec_find(in, TAG_RUNS, &runs) || !vp_rec_find(in, TAG_SEGS, &segs))
		return false;
	r = &q->req[s.index];
	*r = (struct vp_req){
		.seq = s.seq, .taken_ns = s.taken_ns, .out_len = s.out_len, .in_len = s.in_len, .len = s.len,
		.nout = s.nout, .nin = s.nin, .id = s.id, .slots = s.slots, .pos = s.pos, .entry = s.entry,
		.raw = s.flags & R_RAW, .state = (uint8_t)s.state,
	};
	if (vp_rec_find(in, TAG_HEAD, &head) && head.n && head.n <= sizeof(r->head)) {
		memcpy(r->head, head.p, head.n);
		r->head_len = (uint8_t)head.n;
	}
	if (!load_runs(q, r, &runs) || !load_segs(q, r, &segs))
		return false;
	vp_req_list_add(q, (uint16_t)s.index);
	return true;
}

static bool load_requests(struct vp_reqq *q, const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag;

	while (vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_REQUEST && !load_request(q, &body))
			return false;
	vp_req_list_free(q);
	return true;
}

/* How many are in that state. */
static unsigned in_state(const struct vp_reqq *q, enum vp_req_state state)
{
	unsigned n = 0;

	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		n += q->req[i].state == state;
	return n;
}

/* What came back and the driver has not got: all that is in that state, and each once. */
static bool load_back(struct vp_reqq *q, const struct vp_rec_in *in, uint8_t *seen)
{
	const unsigned n = in_state(q, VP_REQ_BACK);
	struct vp_rec_in body;

	if (!vp_rec_find(in, TAG_BACK, &body) || body.n != n * sizeof(q->pend[0]))
		return false;
	if (n)
		memcpy(q->pend, body.p, body.n);
	for (unsigned k = 0; k < n; k++) {
		if (q->pend[k] >= q->n || q->req[q->pend[k]].state != VP_REQ_BACK || seen[q->pend[k]]++)
			return false;
	}
	q->pend_head = n;
	return true;
}

/*
 * What the device side has is in its ring, each once, with as much room to write as the driver gave. Where in the ring
 * is written down for who comes after us.
 */
static bool load_away(struct vp_reqq *q, uint8_t *seen)
{
	unsigned n = 0;

	for (unsigned i = 0; i < q->shadow.size; i++) {
		const struct vp_drvq_id *id = &q->shadow.id[i];

		if (!id->ndesc)
			continue;
		if (id->tag >= q->n || q->req[id->tag].state != VP_REQ_AWAY || seen[id->tag]++ ||
		    id->in_len != q->req[id->tag].in_len || id->ndesc > VP_ARRAY_SIZE(q->req[0].desc))
			return false;
		vp_drvq_chain(&q->shadow, (uint16_t)i, q->req[id->tag].desc);
		n++;
	}
	return n == in_state(q, VP_REQ_AWAY);
}

static int load_shadow(struct vp_reqq *q, bool packed, const struct vp_rec_in *in, uint8_t *seen)
{
	struct vp_rec_in body;
	int r;

	if (!vp_rec_find(in, TAG_SHADOW, &body))
		return -EPROTO;
	r = vp_drvq_restore(&q->shadow, q->size, packed ? VP_BIT(VIRTIO_F_RING_PACKED) : 0,
			    vp_gptr_add(q->c.pool, q->c.ring.off), &body);
	if (r) {
		q->served = false; /* there is none to be freed */
		return r;
	}
	vp_req_ring_at(q);
	return q->shadow.broken || load_away(q, seen) ? 0 : -EPROTO;
}

static void load_engine(struct vp_reqq *q, const struct engine_rec *s)
{
	q->seq = s->seq;
	q->kicks = s->kicks;
	q->regiven = s->regiven;
	q->failed = s->failed;
	q->too_big = s->too_big;
	q->owed = s->owed;
	q->owed_since = s->owed_since;
	q->n_owed = s->n_owed;
	q->full = s->full;
	q->served = s->flags & F_SERVED;
	q->blocked = s->flags & F_BLOCKED;
	q->again = s->flags & F_AGAIN;
	q->stalled = s->flags & F_STALLED;
	q->open = s->flags & F_OPEN;
	q->told = s->flags & F_TOLD;
	q->flush = s->flags & F_FLUSH;
}

static int load(struct vp_reqq *q, const struct engine_rec *s, const struct vp_rec_in *in)
{
	uint8_t *seen = calloc(2 * q->n, 1);
	struct vp_rec_in account;
	int r = seen ? 0 : -ENOMEM;

	load_engine(q, s);
	if (!r && (!load_requests(q, in) || !load_back(q, in, seen) || !vp_rec_find(in, TAG_ACCOUNT, &account)))
		r = -EPROTO;
	if (!r && q->c.saved)
		r = vp_inflight_restore(&q->c.inflight, q->c.saved, q->c.inflight.mem, &q->c.rq->vq, &account);
	if (!r && q->c.saved)
		q->n_heads = q->c.saved->n;
	if (!r && q->served)
		r = load_shadow(q, s->flags & F_PACKED, in, seen + q->n);
	else
		q->served = false;
	if (!r && q->served)
		vp_req_find_waiting(q);
	if (!r)
		vp_req_commit(q);
	free(seen);
	return r;
}

int vp_reqq_restore(struct vp_reqq **out, const struct vp_reqq_conf *c, int kick_fd, uint64_t kick_who,
		    const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_reqq_conf was = *c;
	struct engine_rec s;
	struct vp_reqq *q;
	int r;

	if (vp_rec_get(in, TAG_ENGINE, &s, sizeof(s)) || s.out_head > VP_REQ_BLOCK || s.in_head > VP_REQ_BLOCK)
		return vp_err_set(e, -EPROTO, "the record of its requests is malformed");
	was.out_head = (uint16_t)s.out_head;
	was.in_head = (uint16_t)s.in_head;
	r = vp_reqq_new(&q, &was, e);
	if (r)
		return r;
	q->kick_fd = kick_fd;
	q->kick_who = kick_who;
	r = s.size == q->size ? load(q, &s, in) : -EPROTO;
	if (r) {
		vp_reqq_free(q);
		return vp_err_set(e, r, r == -ENOMEM ? "out of memory" : "the record of its requests is malformed");
	}
	*out = q;
	return 0;
}
