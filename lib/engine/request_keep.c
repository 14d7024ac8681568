/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine for requests in memory that outlives the process (docs/handover.md): its requests with their states,
 * and a snapshot of the rest. Who was killed anywhere leaves a snapshot that is whole, and requests that may be further
 * than it. Those go back to where the snapshot has them: what no end has seen is done again.
 *
 * Threat model: the memory is a daemon's of ours, that was killed anywhere or was taken over before. Each request is
 * checked as that of a record is (request_save.c); together they have to be what both rings hold. The rings are their
 * owners', who may write what they like at any time: what they say decides whether one used entry is written again.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#include "engine/request_priv.h"

#define KEEP_SEGS (VP_REQ_SEGS + VP_CHAIN_DESCS + 4 * VP_REQ_MAX)

uint64_t vp_reqq_keep_bytes(void)
{
	return vp_align_up(sizeof(struct vp_req_keep), 64) + vp_align_up((VP_REQ_MAX + 1) * sizeof(struct vp_req), 64) +
	       vp_align_up(KEEP_SEGS * sizeof(struct vp_copyq_seg), 64);
}

void vp_req_tables(struct vp_reqq *q)
{
	uint8_t *p = q->c.keep;

	q->keep = q->c.keep;
	q->req = (struct vp_req *)(p + vp_align_up(sizeof(struct vp_req_keep), 64));
	q->seg = (struct vp_copyq_seg *)((uint8_t *)q->req + vp_align_up((VP_REQ_MAX + 1) * sizeof(*q->req), 64));
}

/* ---- writing ------------------------------------------------------------------------------- */

void vp_req_commit(struct vp_reqq *q)
{
	struct vp_req_keep *k = q->keep;
	const struct vp_virtq *vq = &q->c.rq->vq;

	if (!k)
		return;
	VP_PLACE_ORDER();
	k->snap[!k->which] = (struct vp_req_snap){
		.seq = q->seq,
		.given = q->given,
		.returned = q->returned,
		.full = q->full,
		.head_word = q->served ? q->shadow.head_word : 0,
		.head_slot = q->served ? q->shadow.head_slot : 0,
		.pending = q->served && q->shadow.head_pending,
		.avail = q->served ? vp_drvq_avail_pos(&q->shadow) : 0,
		.used = q->served ? vp_drvq_used_pos(&q->shadow) : 0,
		.last_avail = vp_vq_avail_pos(vq),
		.saved = q->next_head < q->n_heads,
	};
	VP_PLACE_ORDER();
	k->which = !k->which;
	VP_PLACE_ORDER();
}

void vp_req_keep_begin(struct vp_reqq *q)
{
	if (!q->keep)
		return;
	for (unsigned i = 0; i <= q->n; i++)
		q->req[i].state = VP_REQ_FREE;
	q->keep->intent = 0;
	q->keep->used = vp_vq_pos(&q->c.rq->vq);
	vp_req_commit(q);
}

enum tag { TAG_KEPT = 1 };

enum { F_SERVED = 1, F_PACKED = 2, F_OPEN = 4, F_ACCOUNT = 8 };

struct kept_rec {
	uint32_t flags, size, out_head, in_head;
};

void vp_reqq_save_kept(const struct vp_reqq *q, struct vp_rec *r)
{
	const struct kept_rec s = {
		.flags = (q->served ? F_SERVED : 0) | (q->served && q->shadow.packed ? F_PACKED : 0) |
			 (q->open ? F_OPEN : 0) | (q->c.inflight.on ? F_ACCOUNT : 0),
		.size = q->size,
		.out_head = q->c.out_head,
		.in_head = q->c.in_head,
	};

	vp_rec_put(r, TAG_KEPT, &s, sizeof(s));
}

/* ---- reading ------------------------------------------------------------------------------- */

/* The driver's ring is where it was. What was being given back is, and that request is over. */
static int driver_ring(struct vp_reqq *q, const struct vp_req_snap *s)
{
	struct vp_req_keep *k = q->keep;
	const uint64_t i = k->intent >> 32;
	uint16_t from = k->used, to = k->used;
	struct vp_used u = { 0 };
	int r;

	if (i > q->n)
		return -EPROTO;
	if (i) {
		const struct vp_req *req = &q->req[i - 1];

		from = (uint16_t)(k->intent >> 16);
		to = (uint16_t)k->intent;
		u = (struct vp_used){ .len = req->len, .id = req->id, .slots = req->slots };
	}
	r = vp_place_finish(&q->c.rq->vq, from, to, s->last_avail, &u, i ? 1 : 0);
	if (r || !i)
		return r;
	q->req[i - 1].state = VP_REQ_FREE;
	k->used = to;
	VP_PLACE_ORDER();
	k->intent = 0;
	return 0;
}

/* A state that came to pass after the snapshot did not. */
static void roll_back(struct vp_req *r, const struct vp_req_snap *s)
{
	if (r->state == VP_REQ_FREE)
		return;
	if (r->seq >= s->seq)
		r->state = VP_REQ_FREE;
	else if (r->state == VP_REQ_AWAY && r->give_at >= s->given)
		r->state = VP_REQ_WAITS;
	else if (r->state != VP_REQ_AWAY && r->back_at >= s->returned)
		r->state = r->out_len || r->in_len ? VP_REQ_AWAY : VP_REQ_WAITS;
}

static bool segs_ok(struct vp_reqq *q, const struct vp_req *r)
{
	const unsigned n = (unsigned)r->nout + r->nin;

	/* As long as it was before it was merged. */
	if (r->segs.n ? n > r->segs.n || !vp_runs_claim(&q->segs, &r->segs) : n > VP_ARRAY_SIZE(r->seg))
		return false;
	return vp_req_segs_fit(q, r);
}

/* Its descriptors: submit() made one of each contiguous piece. */
static unsigned pieces(const struct vp_reqq *q, const struct vp_req *r)
{
	uint32_t at = vp_req_out_at(q), left = r->out_len, n;
	unsigned count = 0;
	uint64_t addr;

	for (unsigned part = 0; part < 2; part++) {
		for (; left; at += n, left -= n, count++)
			vp_req_piece(q, r, at, left, &n, &addr);
		at = (uint32_t)vp_req_in_at(q, r->out_len);
		left = r->in_len;
	}
	return count;
}

static bool request_ok(struct vp_reqq *q, const struct vp_req *r)
{
	return r->state <= VP_REQ_BACK && (r->state != VP_REQ_AWAY || q->served) &&
	       (r->state != VP_REQ_BACK || r->len <= r->in_len) && r->slots <= q->c.rq->vq.size &&
	       (!r->raw || r->in_len > VP_REQ_BLOCK) && r->head_len <= sizeof(r->head) && vp_req_runs_claim(q, r) &&
	       segs_ok(q, r);
}

struct order {
	uint64_t by;
	uint16_t i;
};

static int cmp(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	return x->by < y->by ? -1 : x->by > y->by;
}

/* All that are out, oldest first; and those that came back, in that order. */
static int load_lists(struct vp_reqq *q, struct order *o)
{
	unsigned n = 0, back = 0;

	for (unsigned i = 0; i < q->n; i++)
		if (q->req[i].state != VP_REQ_FREE)
			o[n++] = (struct order){ q->req[i].seq, (uint16_t)i };
	qsort(o, n, sizeof(*o), cmp);
	for (unsigned k = 0; k < n; k++) {
		if (k && o[k].by == o[k - 1].by)
			return -EPROTO;
		vp_req_list_add(q, o[k].i);
	}
	vp_req_list_free(q);
	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		if (q->req[i].state == VP_REQ_BACK)
			o[back++] = (struct order){ q->req[i].back_at, i };
	qsort(o, back, sizeof(*o), cmp);
	for (unsigned k = 0; k < back; k++)
		q->pend[k] = o[k].i;
	q->pend_head = back;
	q->again = back;
	return 0;
}

static int load_shadow(struct vp_reqq *q, uint64_t features, const struct vp_req_snap *s)
{
	int r = vp_drvq_recover_begin(&q->shadow, q->size, features, vp_gptr_add(q->c.pool, q->c.ring.off), s->avail,
				      s->used);

	for (uint16_t i = q->first; !r && i != q->n; i = q->req[i].next)
		if (q->req[i].state == VP_REQ_AWAY)
			r = vp_drvq_recover_claim(&q->shadow, q->req[i].desc, pieces(q, &q->req[i]), q->req[i].in_len,
						  i);
	return r ? r : vp_drvq_recover_end(&q->shadow, s->pending, s->head_slot, s->head_word);
}

/* What is taken and not given back lies between the two places of the driver's ring. */
static bool driver_ok(const struct vp_reqq *q, const struct vp_req_snap *s)
{
	const struct vp_virtq *vq = &q->c.rq->vq;
	unsigned slots = 0;

	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		slots += vq->packed ? q->req[i].slots : 1;
	return slots <= vq->size && vp_vq_pos_behind(vq, slots) == s->last_avail;
}

static int load_account(struct vp_reqq *q)
{
	struct vp_inflight_request *o = calloc(q->n, sizeof(*o));
	unsigned n = 0;
	int r;

	if (!o)
		return -ENOMEM;
	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		o[n++] = (struct vp_inflight_request){ q->req[i].entry, q->req[i].slots };
	r = vp_inflight_recover(&q->c.inflight, q->c.saved, q->c.inflight.mem, &q->c.rq->vq, o, n);
	free(o);
	return r;
}

static bool packed_as_ever(const struct kept_rec *s, uint64_t features)
{
	return !(s->flags & F_SERVED) || !(s->flags & F_PACKED) == !(features & VP_BIT(VIRTIO_F_RING_PACKED));
}

static int load(struct vp_reqq *q, const struct kept_rec *s, uint64_t features)
{
	struct vp_req_snap snap;
	struct order *o;
	int r;

	if (q->keep->which > 1 || !packed_as_ever(s, features))
		return -EPROTO;
	snap = q->keep->snap[q->keep->which];
	if (snap.saved)
		return -ENODATA;
	r = driver_ring(q, &snap);
	if (r)
		return r;
	q->served = s->flags & F_SERVED;
	for (unsigned i = 0; i < q->n; i++) {
		roll_back(&q->req[i], &snap);
		if (q->req[i].state != VP_REQ_FREE && !request_ok(q, &q->req[i]))
			r = -EPROTO;
	}
	o = calloc(q->n, sizeof(*o));
	if (!r)
		r = o ? load_lists(q, o) : -ENOMEM;
	free(o);
	q->seq = snap.seq;
	q->given = snap.given;
	q->returned = snap.returned;
	q->full = snap.full;
	if (!r && !driver_ok(q, &snap))
		r = -EPROTO;
	if (!r && s->flags & F_ACCOUNT)
		r = q->c.saved && !vp_gptr_is_null(q->c.inflight.mem) ? load_account(q) : -EPROTO;
	if (!r && q->served)
		r = load_shadow(q, features, &snap);
	if (r || !q->served)
		return r;
	vp_req_ring_at(q);
	vp_req_find_waiting(q);
	vp_req_commit(q);
	return 0;
}

int vp_reqq_recover(struct vp_reqq **out, const struct vp_reqq_conf *c, uint64_t features, int kick_fd,
		    uint64_t kick_who, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_reqq_conf was = *c;
	struct kept_rec s;
	struct vp_reqq *q;
	int r;

	if (!c->keep || vp_rec_get(in, TAG_KEPT, &s, sizeof(s)) || s.out_head > VP_REQ_BLOCK ||
	    s.in_head > VP_REQ_BLOCK)
		return vp_err_set(e, -EPROTO, "the record of its requests is malformed");
	was.out_head = (uint16_t)s.out_head;
	was.in_head = (uint16_t)s.in_head;
	r = vp_req_make(&q, &was, e);
	if (r)
		return r;
	q->kick_fd = kick_fd;
	q->kick_who = kick_who;
	q->open = s.flags & F_OPEN;
	/* What the one before owed, and whether it still notified the device side, is not known. */
	q->anew = true;
	r = s.size == q->size ? load(q, &s, features) : -EPROTO;
	if (r) {
		vp_reqq_free(q);
		return vp_err_set(e, r, "where its requests were: %s",
				  r == -ENOMEM	  ? "out of memory"
				  : r == -ENODATA ? "those of an earlier daemon were being taken"
						  : "it contradicts itself, or the rings");
	}
	*out = q;
	return 0;
}
