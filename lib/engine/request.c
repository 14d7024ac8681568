/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests: towards the device side, running, the ends. Security model: see request.h. */
#include "engine/request_priv.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/cycles.h"
#include "engine/packet.h"
#include "engine/tap.h"

/* Full lengths in a row, until a device side is taken to tell them always. */
#define FULL 16u

/*
 * Requests that are handed over in one run: few, so that the device side begins while the next ones are being copied.
 */
#define HAND_BURST 8u

/*
 * A driver is called when it has been given all that is there, if that is half as many requests as are still open. Else
 * while somebody polls here anyway, more are waited for; so long at most. It is called as well for so many bytes.
 */
#define OWED_US	   10u
#define OWED_BYTES (512u << 10)

/* ---- records ------------------------------------------------------------------ */

void vp_req_list_add(struct vp_reqq *q, uint16_t i)
{
	struct vp_req *r = &q->req[i];

	r->prev = q->last;
	r->next = (uint16_t)q->n;
	if (q->last != q->n)
		q->req[q->last].next = i;
	else
		q->first = i;
	q->last = i;
	__atomic_store_n(&q->out, q->out + 1, __ATOMIC_RELAXED);
}

void vp_req_drop(struct vp_reqq *q, uint16_t i)
{
	struct vp_req *r = &q->req[i];

	for (unsigned k = 0; k < r->nruns; k++)
		vp_runs_give(&q->blocks, &r->run[k]);
	if (r->segs.n)
		vp_runs_give(&q->segs, &r->segs);
	if (r->prev != q->n)
		q->req[r->prev].next = r->next;
	else
		q->first = r->next;
	if (r->next != q->n)
		q->req[r->next].prev = r->prev;
	else
		q->last = r->prev;
	r->state = VP_REQ_FREE;
	r->next = q->free;
	q->free = i;
	__atomic_store_n(&q->out, q->out - 1, __ATOMIC_RELAXED);
}

/* Segments that continue each other become one; how many. */
static unsigned merge(struct vp_copyq_seg *to, const struct vp_seg *sg, unsigned n)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n; i++) {
		if (k && to[k - 1].addr + to[k - 1].len == sg[i].addr && to[k - 1].len <= UINT32_MAX - sg[i].len)
			to[k - 1].len += sg[i].len;
		else
			to[k++] = (struct vp_copyq_seg){ sg[i].addr, sg[i].len };
	}
	return k;
}

static bool keep_segs(struct vp_reqq *q, struct vp_req *r, const struct vp_seg *sg, unsigned nout, unsigned nin)
{
	struct vp_copyq_seg *to = r->seg;

	r->segs.n = 0;
	if (nout + nin > VP_ARRAY_SIZE(r->seg)) {
		if (vp_runs_take(&q->segs, nout + nin, &r->segs, 1) != 1)
			return false;
		to = &q->seg[r->segs.at];
	}
	r->nout = (uint16_t)merge(to, sg, nout);
	r->nin = (uint16_t)merge(to + r->nout, sg + nout, nin);
	return true;
}

/* ---- places in the pool ---------------------------------------------------------- */

vp_gptr vp_req_piece(const struct vp_reqq *q, const struct vp_req *r, uint32_t at, uint32_t len, uint32_t *n,
		     uint64_t *addr)
{
	uint64_t off;
	unsigned k = 0;

	while (at >= r->run[k].n * VP_REQ_BLOCK)
		at -= r->run[k++].n * VP_REQ_BLOCK;
	*n = VP_MIN(len, r->run[k].n * VP_REQ_BLOCK - at);
	off = q->c.data.off + (uint64_t)r->run[k].at * VP_REQ_BLOCK + at;
	*addr = q->c.pool_addr + off;
	return vp_gptr_add(q->c.pool, off);
}

static unsigned add_bufs(const struct vp_reqq *q, const struct vp_req *r, uint32_t at, uint32_t len, bool write,
			 struct vp_drvq_buf *b)
{
	unsigned k = 0;
	uint64_t addr;
	uint32_t n;

	for (; len; at += n, len -= n) {
		vp_req_piece(q, r, at, len, &n, &addr);
		b[k++] = (struct vp_drvq_buf){ addr, n, write };
	}
	return k;
}

void vp_req_scrub(const struct vp_reqq *q, const struct vp_req *r)
{
	uint32_t at = (uint32_t)vp_req_in_at(q, r->out_len), len = r->in_len, n;
	uint64_t addr;

	for (; len; at += n, len -= n) {
		vp_gptr p = vp_req_piece(q, r, at, len, &n, &addr);

		vp_zero(p, n);
	}
}

/* Into the pool at `at` of the request. */
static void copy_out(const struct vp_reqq *q, const struct vp_req *r, uint32_t at, vp_gptr from, uint32_t len)
{
	uint64_t addr;
	uint32_t n, done;

	for (done = 0; done < len; done += n) {
		vp_gptr to = vp_req_piece(q, r, at + done, len - done, &n, &addr);

		vp_copy_peer(to, vp_gptr_add(from, done), n);
	}
}

/* ---- to the device side ------------------------------------------------------------- */

/* False: no room in the shadow ring. The pool holds what it is to read. */
static bool submit(struct vp_reqq *q, uint16_t i)
{
	struct vp_drvq_buf b[2 * VP_REQ_RUNS];
	struct vp_req *r = &q->req[i];
	unsigned n = 0;
	int id;

	if (r->out_len)
		n = add_bufs(q, r, vp_req_out_at(q), r->out_len, false, b);
	if (r->in_len)
		n += add_bufs(q, r, (uint32_t)vp_req_in_at(q, r->out_len), r->in_len, true, b + n);
	if (!n) {
		/* A chain of nothing: no need to ask anybody. */
		r->len = 0;
		r->back_at = q->returned++;
		vp_req_pend(q, i);
		q->again = true;
		return true;
	}
	r->pos = q->shadow.avail;
	id = vp_drvq_add(&q->shadow, b, n);
	if (id < 0)
		return false;
	vp_drvq_set_tag(&q->shadow, (uint16_t)id, i);
	vp_drvq_chain(&q->shadow, (uint16_t)id, r->desc);
	r->give_at = q->given++;
	VP_PLACE_ORDER();
	r->state = VP_REQ_AWAY;
	return true;
}

/*
 * Once more, from the driver's memory: what the last device side made of the pool is of no interest. 0, -EAGAIN,
 * -EFAULT.
 */
static int copy_again(struct vp_reqq *q, struct vp_req *r)
{
	const struct vp_copyq_seg *sg = vp_req_segs(q, r);
	struct vp_virtq *vq = &q->c.rq->vq;
	uint32_t at = vp_req_out_at(q);
	uint64_t span;
	vp_gptr host;

	for (unsigned k = 0; k < r->nout; k++) {
		for (uint64_t off = 0; off < sg[k].len; off += span) {
			int ret = vp_xlate_piece(&vq->xl, sg[k].addr + off, sg[k].len - off, VP_READ, &host, &span);

			if (ret)
				return ret;
			copy_out(q, r, at, host, (uint32_t)span);
			at += (uint32_t)span;
		}
	}
	if (!q->c.trust_len)
		vp_req_scrub(q, r);
	r->raw = false;
	return 0;
}

/* What waits for a device side, oldest first. How many; fewer than all when it has to stop. */
static unsigned give_again(struct vp_reqq *q)
{
	uint64_t bytes = 0;
	unsigned n = 0;

	while (q->regive != q->n && n < VP_QUEUE_BURST && bytes < VP_PKT_RUN_BYTES) {
		struct vp_req *r = &q->req[q->regive];
		int ret = copy_again(q, r);

		if (ret == -EFAULT)
			vp_vq_break(&q->c.rq->vq, VP_VQ_BAD_ADDR);
		q->stalled = ret == -EAGAIN;
		if (ret || !submit(q, q->regive))
			break;
		do
			q->regive = q->req[q->regive].next;
		while (q->regive != q->n && q->req[q->regive].state != VP_REQ_WAITS);
		bytes += (uint64_t)r->out_len + r->in_len;
		q->regiven++;
		n++;
	}
	return n;
}

/*
 * Its blocks need no zeroes: see request.h. What the driver asks for is its own affair; that it may change it
 * meanwhile, too.
 */
static bool filled(const struct vp_reqq *q, const struct vp_seg *sg, const struct vp_chain *c)
{
	uint32_t op;

	if (q->full < FULL || !c->nout || sg[0].len < sizeof(op) || c->in_len <= VP_REQ_BLOCK)
		return false;
	vp_copy_in(&op, sg[0].p, sizeof(op));
	return le32toh(op) == q->c.fill_op;
}

static void trace_taken(struct vp_req *r, const struct vp_seg *sg, const struct vp_chain *c)
{
	uint32_t n;

	r->taken_ns = vp_tap_now();
	r->head_len = 0;
	for (unsigned k = 0; k < c->nout && r->head_len < VP_CAP_HEAD; k++, r->head_len += (uint8_t)n) {
		n = VP_MIN(sg[k].len, VP_CAP_HEAD - r->head_len);
		vp_copy_in(r->head + r->head_len, sg[k].p, n);
	}
}

enum taken { TAKEN, NO_ROOM, NEVER };

/* A chain becomes a request in the device side's hands. NO_ROOM, NEVER: nothing happened. */
static enum taken take(struct vp_reqq *q, const struct vp_seg *sg, const struct vp_chain *c)
{
	const uint64_t bytes = vp_req_in_at(q, c->out_len) + c->in_len;
	const uint32_t blocks = (uint32_t)((bytes + VP_REQ_BLOCK - 1) / VP_REQ_BLOCK);
	const uint16_t i = q->free;
	struct vp_req *r;
	uint32_t at = vp_req_out_at(q);

	if (bytes > (uint64_t)q->blocks.n * VP_REQ_BLOCK) {
		q->too_big = bytes;
		return NEVER;
	}
	if (i == q->n)
		return NO_ROOM;
	r = &q->req[i];
	r->nruns = 0;
	if (blocks) {
		r->nruns = (uint8_t)vp_runs_take(&q->blocks, blocks, r->run, VP_REQ_RUNS);
		if (!r->nruns)
			return NO_ROOM;
	}
	r->out_len = c->out_len;
	r->in_len = c->in_len;
	r->id = c->id;
	r->slots = c->slots;
	if (!keep_segs(q, r, sg, c->nout, c->nin))
		goto undo;
	for (unsigned k = 0; k < c->nout; k++) {
		copy_out(q, r, at, sg[k].p, sg[k].len);
		at += sg[k].len;
	}
	r->raw = filled(q, sg, c);
	r->taken_ns = 0;
	if (vp_unlikely(vp_queue_tapped(q->c.rq)))
		trace_taken(r, sg, c);
	if (!q->c.trust_len && !r->raw)
		vp_req_scrub(q, r);
	r->seq = q->seq;
	r->back_at = 0;
	if (!submit(q, i))
		goto undo;
	q->free = r->next;
	q->seq++;
	vp_req_list_add(q, i);
	return TAKEN;
undo:
	for (unsigned k = 0; k < r->nruns; k++)
		vp_runs_give(&q->blocks, &r->run[k]);
	if (r->segs.n)
		vp_runs_give(&q->segs, &r->segs);
	return NO_ROOM;
}

static bool saved_chain(struct vp_reqq *q, struct vp_burst *b)
{
	const struct vp_inflight_saved *s = q->c.saved;

	if (q->c.rq->vq.packed)
		return vp_packed_saved_chain(&q->c.rq->vq, b, s->desc + q->next_desc, s->n_desc[q->next_head]);
	return vp_split_chain(&q->c.rq->vq, b, s->heads[q->next_head]);
}

/*
 * A driver that makes slots of a packed ring available anew, before it got them back, has more in it than the ring
 * holds.
 */
static bool laps(const struct vp_reqq *q, const struct vp_chain *c)
{
	return q->c.inflight.on && q->c.inflight.packed && c->slots > q->c.inflight.n_free;
}

/* Chain c, which begins at *slot of a packed ring, has become the newest request. */
static void note_taken(struct vp_reqq *q, const struct vp_chain *c, uint16_t *slot)
{
	const struct vp_virtq *vq = &q->c.rq->vq;
	struct vp_req *r = &q->req[q->last];
	bool wrap = false;

	if (!q->c.inflight.on)
		return;
	r->entry = c->id;
	if (!vq->packed) {
		vp_inflight_take(&q->c.inflight, c->id);
		return;
	}
	r->entry = vp_inflight_take_packed(&q->c.inflight, vq, *slot, c->slots);
	vp_packed_step(vq->size, slot, &wrap, c->slots);
}

/* What an earlier daemon had taken: the ring's index is behind them already. */
static unsigned recover(struct vp_reqq *q, struct vp_scratch *s)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	unsigned n = 0;

	vp_xlate_sync(&vq->xl);
	while (q->next_head < q->n_heads && n < VP_QUEUE_BURST) {
		enum taken t;

		vp_burst_clear(&s->src);
		if (!saved_chain(q, &s->src)) {
			q->stalled = vq->stalled;
			break;
		}
		t = take(q, s->src.seg, &s->src.chain[0]);
		if (t == NEVER)
			vp_vq_break(vq, VP_VQ_TOO_LONG);
		q->blocked |= t == NO_ROOM;
		if (t != TAKEN)
			break;
		q->req[q->last].entry = q->c.saved->heads[q->next_head];
		if (vq->packed)
			q->next_desc += q->c.saved->n_desc[q->next_head];
		q->next_head++;
		q->regiven++;
		n++;
	}
	return n;
}

static unsigned hand_over(struct vp_reqq *q, struct vp_scratch *s)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	uint16_t slot = vq->last_avail;
	uint64_t bytes = 0;
	unsigned n, i;

	q->blocked = false;
	if (vp_unlikely(q->regive != q->n))
		return give_again(q);
	if (vp_unlikely(q->next_head < q->n_heads))
		return recover(q, s);
	if (!__atomic_load_n(&q->open, __ATOMIC_RELAXED))
		return 0;
	if (q->shadow.num_free < 2 || q->free == q->n) {
		q->blocked = true;
		return 0;
	}
	n = vp_vq_fetch(vq, &s->src, HAND_BURST);
	for (i = 0; i < n && bytes < VP_PKT_RUN_BYTES; i++) {
		const struct vp_chain *c = &s->src.chain[i];
		enum taken t;

		if (vp_unlikely(laps(q, c))) {
			vp_vq_break(vq, VP_VQ_BAD_CHAIN);
			break;
		}
		t = take(q, &s->src.seg[c->seg], c);
		if (t == NEVER)
			vp_vq_break(vq, VP_VQ_TOO_LONG);
		q->blocked = t == NO_ROOM;
		if (t != TAKEN)
			break;
		note_taken(q, c, &slot);
		bytes += (uint64_t)c->out_len + c->in_len;
	}
	if (i)
		vp_vq_advance(vq, &s->src, i);
	return i;
}

/* ---- both ways ------------------------------------------------------------------------- */

static void paid(struct vp_reqq *q)
{
	q->owed = q->n_owed = 0;
	q->flush = false;
}

/* A call costs more than a small copy, and so does what it makes the driver do: one for several requests. */
static bool call_due(const struct vp_reqq *q, uint64_t now, uint64_t hz)
{
	if (!q->n_owed)
		return false;
	if (q->flush || q->stalled || q->c.rq->vq.broken || q->owed >= OWED_BYTES)
		return true;
	/* More comes in the next run. */
	if (q->again)
		return false;
	return 2 * q->n_owed >= q->out || now - q->owed_since >= hz / 1000000 * OWED_US;
}

unsigned vp_reqq_run(struct vp_reqq *q, struct vp_scratch *s)
{
	struct vp_queue *rq = q->c.rq;
	uint64_t start = vp_cycles();
	unsigned back, gave, handed = 0;
	bool tell;

	q->moved = false;
	if (vp_unlikely(!q->served || rq->vq.broken || q->shadow.broken))
		return 0;
	vp_xlate_sync(&rq->vq.xl);
	back = vp_req_collect(q, VP_QUEUE_BURST, &gave);
	if (!rq->vq.broken && !q->shadow.broken)
		handed = hand_over(q, s);
	if (gave && !q->n_owed)
		q->owed_since = start;
	q->n_owed += gave;
	tell = call_due(q, start, s->hz);
	q->moved = back || handed;
	if (!back && !handed && !tell && !q->anew)
		return 0;
	if (handed) {
		vp_place_point(VP_POINT_TAKEN);
		vp_req_commit(q);
		vp_place_point(VP_POINT_KEPT);
		vp_drvq_publish(&q->shadow);
		vp_place_point(VP_POINT_GIVEN);
	}
	if (tell)
		paid(q);
	vp_copyq_notify(rq, &q->shadow, q->kick_fd, q->kick_who, &q->kicks, handed || q->anew, tell || q->anew,
			start, s);
	q->anew = false;
	return back + handed + tell;
}

bool vp_reqq_arm(struct vp_reqq *q)
{
	bool more = false;

	if (!q->served || q->c.rq->vq.broken || q->shadow.broken)
		return false;
	if (q->anew)
		return true;
	if (q->n_owed) {
		q->flush = true;
		return true;
	}
	if (!q->blocked && !q->stalled && !q->c.rq->vq.stalled) {
		if (q->regive != q->n || q->next_head < q->n_heads)
			return true;
		if (__atomic_load_n(&q->open, __ATOMIC_RELAXED))
			more = vp_vq_enable_kicks(&q->c.rq->vq);
	}
	if (!q->stalled)
		more |= q->again;
	return vp_drvq_enable_calls(&q->shadow) || more;
}

void vp_reqq_disarm(struct vp_reqq *q)
{
	vp_vq_disable_kicks(&q->c.rq->vq);
	if (q->served && !q->shadow.broken)
		vp_drvq_disable_calls(&q->shadow);
}

void vp_reqq_set_open(struct vp_reqq *q, bool open)
{
	__atomic_store_n(&q->open, open, __ATOMIC_RELAXED);
}

/* ---- who serves ------------------------------------------------------------------------ */

uint32_t vp_reqq_base(const struct vp_reqq *q)
{
	return q->shadow.packed ? 0x80008000u : 0;
}

void vp_req_ring_at(struct vp_reqq *q)
{
	uint64_t driver, device;

	vp_drvq_layout(q->size, q->shadow.packed, &driver, &device);
	q->desc_addr = q->c.pool_addr + q->c.ring.off;
	q->avail_addr = q->desc_addr + driver;
	q->used_addr = q->desc_addr + device;
}

void vp_req_find_waiting(struct vp_reqq *q)
{
	q->regive = q->first;
	while (q->regive != q->n && q->req[q->regive].state != VP_REQ_WAITS)
		q->regive = q->req[q->regive].next;
}

int vp_reqq_begin(struct vp_reqq *q, uint64_t features, int kick_fd, uint64_t kick_who, struct vp_err *e)
{
	int ret;

	if (q->served)
		return vp_err_set(e, -EBUSY, "it is served already");
	ret = vp_drvq_init(&q->shadow, q->size, features & ~VP_BIT(VIRTIO_F_IN_ORDER),
			   vp_gptr_add(q->c.pool, q->c.ring.off));
	if (ret)
		return vp_err_set(e, ret, "shadow ring of %u: %s", q->size,
				  ret == -ENOMEM ? "out of memory" : "invalid size");
	vp_req_ring_at(q);
	q->kick_fd = kick_fd;
	q->kick_who = kick_who;
	q->served = true;
	q->blocked = q->stalled = false;
	q->full = 0;
	vp_req_find_waiting(q);
	vp_drvq_disable_calls(&q->shadow);
	vp_req_commit(q);
	return 0;
}

unsigned vp_reqq_away(const struct vp_reqq *q)
{
	unsigned n = 0;

	for (uint16_t i = q->first; q->served && i != q->n; i = q->req[i].next)
		n += q->req[i].state == VP_REQ_AWAY;
	return n;
}

/* It says itself where it stopped, and may say what it likes: what becomes of its requests is its affair. */
static bool never_had(const struct vp_reqq *q, const struct vp_req *r, const uint32_t *base)
{
	return base && !q->shadow.packed && (int16_t)(r->pos - (uint16_t)*base) >= 0;
}

bool vp_reqq_end(struct vp_reqq *q, bool reachable, const uint32_t *base)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	unsigned n, gave, total = 0;

	if (!q->served)
		return false;
	/* The last round may lie before an invalidation that has been acknowledged since. */
	vp_xlate_sync(&vq->xl);
	do {
		n = reachable && !vq->broken ? vp_req_collect(q, VP_BURST, &gave) : 0;
		total += n ? gave : 0;
	} while (n);
	vp_drvq_fini(&q->shadow);
	q->served = false;
	q->regive = (uint16_t)q->n;
	/* What came back and could not be given yet is given by the next device side's run; it was done. */
	for (uint16_t i = q->first, next; i != q->n; i = next) {
		struct vp_req *r = &q->req[i];

		next = r->next;
		if (r->state != VP_REQ_AWAY)
			continue;
		r->state = VP_REQ_WAITS;
		if (!q->c.once || !r->out_len || !reachable || vq->broken || never_had(q, r, base))
			continue;
		vp_req_fail(q, i);
		total++;
	}
	vp_req_commit(q);
	total += q->n_owed;
	paid(q);
	return total && !vq->broken && vp_vq_need_call(vq);
}

/* ---- the end ----------------------------------------------------------------------------- */

static void rewind_avail(struct vp_reqq *q)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	unsigned slots = 0, at;

	if (!vq->packed) {
		vq->last_avail = (uint16_t)(vq->last_avail - q->out);
		vq->avail_seen = vq->last_avail; /* to be loaded, and checked, anew */
		return;
	}
	for (uint16_t i = q->first; i != q->n; i = q->req[i].next)
		slots += q->req[i].slots;
	for (at = vq->last_avail; slots > at; at += vq->size)
		vq->avail_wrap = !vq->avail_wrap;
	vq->last_avail = (uint16_t)(at - slots);
}

bool vp_reqq_stop(struct vp_reqq *q, bool reachable, unsigned *failed)
{
	struct vp_virtq *vq = &q->c.rq->vq;
	bool hole = q->first != q->n && q->req[q->first].seq != q->seq - q->out;

	*failed = 0;
	if (vq->broken || q->c.inflight.on || q->first == q->n)
		return false;
	if (!hole) {
		rewind_avail(q);
		goto out;
	}
	if (!reachable) {
		vp_vq_break(vq, VP_VQ_BAD_RING);
		return false;
	}
	while (q->first != q->n) {
		vp_req_fail(q, q->first);
		++*failed;
	}
out:
	while (q->first != q->n)
		vp_req_drop(q, q->first);
	q->pend_tail = q->pend_head;
	return *failed && vp_vq_need_call(vq);
}
