/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The burst functions. Security model: the driver VM writes rings and packets at any moment; rings are read by
 * lib/virtq, headers are copied once, checked and used from the copy.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/relay.h"
#include "net/offload.h"
#include "vhostpci/internal.h"

/* The public view of a segment is the private one. */
_Static_assert(sizeof(struct vhp_seg) == sizeof(struct vp_seg), "vhp_seg");
_Static_assert(offsetof(struct vhp_seg, addr) == offsetof(struct vp_seg, addr), "vhp_seg.addr");
_Static_assert(offsetof(struct vhp_seg, len) == offsetof(struct vp_seg, len), "vhp_seg.len");
_Static_assert(VHP_BURST_MAX == VP_BURST, "VHP_BURST_MAX");

/*
 * A file was truncated under somebody of this process. If it was this port's, what is read there is not what was sent.
 */
static void look_for_loss(const struct vhp_port *p, struct vhp_queue *q, unsigned lost)
{
	q->lost_seen = lost;
	if (vp_memtab_lost(p->tab))
		vp_vq_break(&q->rq.vq, VP_VQ_LOST_MEMORY);
}

/* 0 when q can be worked on. */
VP_INLINE int ready(const struct vhp_port *p, struct vhp_queue *q)
{
	unsigned lost = vp_map_lost_count();

	if (vp_unlikely(!q || !p->up || !q->started || !q->enabled))
		return -ENOLINK;
	if (vp_unlikely(lost != q->lost_seen))
		look_for_loss(p, q, lost);
	return vp_unlikely(q->rq.vq.broken) ? -EIO : 0;
}

/* What a call that moved nothing returns: 0, or that the queue broke just now. */
VP_INLINE int idle(struct vhp_port *p, const struct vhp_queue *q)
{
	if (vp_unlikely(q->rq.vq.stalled))
		vhp_want(p, q);
	return vp_unlikely(q->rq.vq.broken) ? -EIO : 0;
}

static void notify(struct vhp_port *p, struct vhp_queue *q)
{
	if (!vp_vq_need_call(&q->rq.vq))
		return;
	vp_queue_call(&q->rq, p->scratch);
	q->calls++;
}

#define LONE 4 /* packets that are returned before their driver is notified, at most */

/* For what vhp_recv() gave back the last time. */
VP_INLINE void notify_late(struct vhp_port *p, struct vhp_queue *q)
{
	if (vp_likely(!q->untold))
		return;
	q->untold = false;
	notify(p, q);
}

/* Has the program sent anything since the last time that this was asked? */
VP_INLINE bool answers(const struct vhp_port *p, unsigned pair)
{
	struct vhp_queue *t = vhp_txq(p, pair);
	const bool does = t->sent;

	t->sent = false;
	return does;
}

/* ---- copy ------------------------------------------------------------------------------------------------ */

/* A packet with offloads, in pieces, too big, or malformed. False: give it up. */
static bool recv_slow(struct vhp_port *p, struct vhp_queue *q, const struct vp_chain *c, struct vhp_packet *pkt)
{
	struct vp_cursor cur = { &q->burst->seg[c->seg], 0 };
	uint8_t raw[12] = { 0 };
	uint32_t plen;

	if (c->nin) {
		vp_vq_break(&q->rq.vq, VP_VQ_BAD_BUFFER);
		return false;
	}
	if (c->out_len < p->hdr_len + VP_PKT_MIN)
		return false;
	plen = c->out_len - p->hdr_len;
	if (plen > pkt->room)
		return false;
	vp_pkt_gather(&cur, raw, p->hdr_len);
	memcpy(&pkt->hdr, raw, sizeof(pkt->hdr));
	if (vp_net_hdr_check(&pkt->hdr, plen, q->rq.features))
		return false;
	vp_pkt_gather(&cur, pkt->data, plen);
	pkt->len = plen;
	return true;
}

/*
 * Nothing to do: what an answer to the next packet needs comes near, once for each time that the ring runs dry. Most
 * programs answer to the pair that the packet came from, and a pair belongs to one thread.
 */
VP_INLINE void prepare_answer(const struct vhp_port *p, unsigned pair, struct vhp_queue *q)
{
	struct vhp_queue *t = vhp_txq(p, pair);

	if (q->answer_near)
		return;
	q->answer_near = true;
	if (!ready(p, t))
		vp_vq_near(&t->rq.vq);
}

int vhp_recv(struct vhp_port *p, unsigned pair, struct vhp_packet *pkt, unsigned n)
{
	struct vhp_queue *q = vhp_rxq(p, pair);
	const unsigned hlen = p->hdr_len;
	struct vp_used *used;
	unsigned i, got = 0;
	uint64_t bytes = 0;
	int ret = ready(p, q);
	VHP_GATE(p);

	if (vp_unlikely(ret))
		return ret;
	n = vp_vq_fetch_dir(&q->rq.vq, q->burst, n, VP_READ);
	if (!n) {
		notify_late(p, q);
		prepare_answer(p, pair, q);
		return idle(p, q);
	}
	q->answer_near = false;
	/* Where a lone packet's used descriptor will be written, while the packet is on its way here. */
	vp_vq_own(&q->rq.vq, 1);
	used = q->used;
	for (i = 0; i < n; i++) {
		const struct vp_chain *c = &q->burst->chain[i];
		const struct vp_seg *s = &q->burst->seg[c->seg];
		struct vhp_packet *o = &pkt[got];
		uint32_t plen = c->out_len - hlen;
		uint16_t asks = 1;

		used[i] = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
		if (vp_likely(c->nout == 1 && !c->nin && c->out_len >= hlen + VP_PKT_MIN && plen <= o->room))
			vp_copy_in(&asks, s->p, sizeof(asks));
		if (vp_likely(!asks)) {
			if (plen > 128 && i + 1 < n)
				vp_pkt_prefetch_src(q->burst->seg[c[1].seg].p, q->burst->seg[c[1].seg].len);
			memset(&o->hdr, 0, sizeof(o->hdr));
			vp_pkt_copy_in(o->data, vp_gptr_add(s->p, hlen), plen);
			o->len = plen;
		} else if (!recv_slow(p, q, c, o)) {
			q->errors++;
			continue;
		}
		bytes += o->len;
		got++;
	}
	vp_vq_advance(&q->rq.vq, q->burst, n);
	vp_vq_complete(&q->rq.vq, used, n);
	/*
	 * The fence of notify() waits for all that was stored. So a lone packet is returned first where the program
	 * answers. One that only receives would look for more too soon, and take lines that are still being filled.
	 * Never twice in a row, nor for most of a ring: the look at a packed ring's event field has to come before the
	 * ring has gone round twice.
	 */
	if (q->untold || n > LONE || n > q->rq.vq.size / 2 || !answers(p, pair)) {
		q->untold = false;
		notify(p, q);
	} else {
		q->untold = true;
	}
	q->packets += got;
	q->bytes += bytes;
	return (int)got;
}

int vhp_send(struct vhp_port *p, unsigned pair, const struct vhp_packet *pkt, unsigned n)
{
	struct vhp_queue *q = vhp_txq(p, pair);
	struct vp_rxfill f;
	unsigned i, want, sent = 0;
	uint64_t bytes = 0;
	int ret = ready(p, q);
	VHP_GATE(p);

	if (vp_unlikely(ret))
		return ret;
	want = n = VP_MIN(n, VP_BURST);
	f = (struct vp_rxfill){
		.vq = &q->rq.vq, .b = q->burst, .used = q->used, .hdr_len = p->hdr_len,
		.mergeable = q->rq.features & VP_BIT(VIRTIO_NET_F_MRG_RXBUF),
	};
	vp_vq_fetch_dir(&q->rq.vq, q->burst, n, VP_WRITE);
	for (i = 0; i < n; i++) {
		const struct vhp_packet *o = &pkt[i];

		if (vp_likely(f.taken < f.b->n && !o->hdr.flags && !o->hdr.gso_type)) {
			const struct vp_chain *c = &f.b->chain[f.taken];
			const struct vp_seg *s = &f.b->seg[c->seg];

			if (vp_likely(c->nin == 1 && !c->nout && o->len <= VP_PKT_MAX &&
				      o->len + f.hdr_len <= s->len)) {
				if (o->len > 128 && i + 1 < n && f.taken + 1 < f.b->n)
					vp_pkt_prefetch_dst(f.b->seg[c[1].seg].p,
							    VP_MIN(o[1].len, f.b->seg[c[1].seg].len));
				vp_pkt_put_plain_hdr(s->p, f.hdr_len);
				vp_pkt_copy_out(vp_gptr_add(s->p, f.hdr_len), o->data, o->len);
				f.used[f.taken++] = (struct vp_used){ .len = f.hdr_len + o->len, .id = c->id,
								      .slots = c->slots };
				bytes += o->len;
				sent++;
				continue;
			}
		}
		if (o->len > VP_PKT_MAX || o->len < VP_PKT_MIN || !vp_net_hdr_accepted(&o->hdr, q->rq.features)) {
			q->errors++;
			continue;
		}
		ret = vp_pkt_put(&f, &o->hdr, NULL, o->data, o->len);
		if (ret == -EAGAIN && (f.b->n == want || f.b->more) && (f.taken || want < VP_BURST)) {
			/* Packets that take several buffers each: look again for what is left. */
			vp_rxfill_flush(&f);
			want = VP_BURST;
			vp_vq_fetch_dir(&q->rq.vq, q->burst, want, VP_WRITE);
			ret = vp_pkt_put(&f, &o->hdr, NULL, o->data, o->len);
		}
		if (ret == -EAGAIN || ret == -EIO)
			break;
		if (ret) {
			q->errors++;
			continue;
		}
		bytes += o->len;
		sent++;
	}
	if (i < n) {
		q->full++;
		idle(p, q);
	}
	if (vp_rxfill_flush(&f))
		notify(p, q);
	else if (sent)
		notify(p, q);
	q->sent |= sent > 0;
	q->packets += sent;
	q->bytes += bytes;
	return i ? (int)i : idle(p, q);
}

/* ---- in place ---------------------------------------------------------------------------------------------- */

struct vhp_loan *vhp_loan_new(void)
{
	struct vhp_loan *l = NULL;

	if (posix_memalign((void **)&l, VP_CACHELINE, sizeof(*l)))
		return NULL;
	l->q = NULL;
	l->held = NULL;
	l->b.n = 0;
	l->b.slow = true; /* of which the rest is not initialised */
	return l;
}

static void unlink_loan(struct vhp_loan *l)
{
	*l->prev = l->next;
	if (l->next)
		l->next->prev = l->prev;
	l->q = NULL;
}

/* Nothing of it is looked at any more. */
VP_INLINE void release(struct vhp_loan *l)
{
	if (vp_unlikely(l->held != NULL)) {
		vhp_maps_unref(l->held);
		l->held = NULL;
	}
}

void vhp_loan_free(struct vhp_loan *l)
{
	if (!l)
		return;
	if (l->q)
		unlink_loan(l);
	release(l);
	free(l);
}

const struct vhp_seg *vhp_loan_segs(const struct vhp_loan *l, unsigned i, unsigned *n)
{
	const struct vp_chain *c = &l->b.chain[i];

	*n = c->nout + c->nin;
	return (const struct vhp_seg *)&l->b.seg[c->seg];
}

uint32_t vhp_loan_len(const struct vhp_loan *l, unsigned i)
{
	return l->b.chain[i].out_len + l->b.chain[i].in_len;
}

/* Where byte `off` of packet i lies, and how many of n bytes from there are in one piece. 0: outside. */
static uint32_t piece(const struct vhp_loan *l, unsigned i, uint32_t off, uint32_t n, vp_gptr *at)
{
	const struct vp_chain *c = &l->b.chain[i];

	for (unsigned k = 0; k < c->nout + c->nin; k++) {
		const struct vp_seg *s = &l->b.seg[c->seg + k];

		if (off < s->len) {
			*at = vp_gptr_add(s->p, off);
			return VP_MIN(n, s->len - off);
		}
		off -= s->len;
	}
	return 0;
}

uint32_t vhp_peek(const struct vhp_port *p, const struct vhp_loan *l, unsigned i, uint32_t off, void *dst, uint32_t n)
{
	uint32_t done = 0, part;
	vp_gptr at;
	VHP_GATE(p);

	if (i >= l->b.n)
		return 0;
	while (done < n && (part = piece(l, i, off + done, n - done, &at))) {
		vp_copy_in((char *)dst + done, at, part);
		done += part;
	}
	return done;
}

uint32_t vhp_poke(const struct vhp_port *p, struct vhp_loan *l, unsigned i, uint32_t off, const void *src, uint32_t n)
{
	uint32_t done = 0, part;
	vp_gptr at;
	VHP_GATE(p);

	if (i >= l->b.n || l->b.chain[i].nout)
		return 0;
	while (done < n && (part = piece(l, i, off + done, n - done, &at))) {
		vp_copy_out(at, (const char *)src + done, part);
		done += part;
	}
	return done;
}

unsigned vhp_hdr_len(const struct vhp_port *p)
{
	return p->hdr_len;
}

VP_INLINE int lend(struct vhp_port *p, struct vhp_queue *q, struct vhp_loan *l, unsigned n, enum vp_access dir)
{
	unsigned i;
	int ret = ready(p, q);
	VHP_GATE(p);

	if (vp_unlikely(ret))
		return ret;
	if (vp_unlikely(l->q))
		return -EBUSY;
	release(l);
	notify_late(p, q);
	n = vp_vq_fetch_dir(&q->rq.vq, &l->b, n, dir);
	for (i = 0; i < n; i++) {
		if (vp_unlikely(dir == VP_READ ? l->b.chain[i].nin : l->b.chain[i].nout)) {
			vp_vq_break(&q->rq.vq, VP_VQ_BAD_BUFFER);
			n = i;
		}
	}
	l->b.n = n;
	if (!n)
		return idle(p, q);
	vp_vq_advance(&q->rq.vq, &l->b, n);
	l->q = q;
	l->next = q->loans;
	l->prev = &q->loans;
	if (l->next)
		l->next->prev = &l->next;
	q->loans = l;
	return (int)n;
}

/* Complete the chains of a loan, with len[i] (NULL: 0) bytes written. */
static void complete(struct vhp_queue *q, struct vhp_loan *l, const uint32_t *len)
{
	unsigned i;

	for (i = 0; i < l->b.n; i++) {
		const struct vp_chain *c = &l->b.chain[i];

		l->used[i] =
			(struct vp_used){ .len = len ? VP_MIN(len[i], c->in_len) : 0, .id = c->id, .slots = c->slots };
	}
	unlink_loan(l);
	vp_vq_complete(&q->rq.vq, l->used, l->b.n);
	l->b.n = 0;
}

void vhp_loans_keep(struct vhp_queue *q, struct vhp_maps *maps)
{
	struct vhp_loan *l;

	for (l = q->loans; l; l = l->next) {
		/* What it holds already is older: the table that it was made under. */
		if (l->held)
			continue;
		l->held = maps;
		__atomic_fetch_add(&maps->refs, 1, __ATOMIC_RELAXED);
	}
}

void vhp_tell(struct vhp_port *p, struct vhp_queue *q)
{
	/* A driver whose ring is full may wait for this. */
	if (!q->rq.vq.broken)
		notify_late(p, q);
	q->untold = false;
}

void vhp_loans_end(struct vhp_port *p, struct vhp_queue *q, struct vhp_maps *maps)
{
	vhp_loans_keep(q, maps);
	vhp_tell(p, q);
	while (q->loans) {
		struct vhp_loan *l = q->loans;

		/* Oldest first: the list grows at its head. */
		while (l->next)
			l = l->next;
		if (q->rq.vq.broken)
			unlink_loan(l);
		else
			complete(q, l, NULL);
	}
}

int vhp_borrow(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n)
{
	return lend(p, vhp_rxq(p, pair), l, n, VP_READ);
}

int vhp_reserve(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n)
{
	return lend(p, vhp_txq(p, pair), l, n, VP_WRITE);
}

int vhp_return(struct vhp_port *p, struct vhp_loan *l)
{
	struct vhp_queue *q = l->q;
	unsigned i;
	VHP_GATE(p);

	if (!q) {
		l->b.n = 0;
		release(l);
		return 0;
	}
	q->packets += l->b.n;
	for (i = 0; i < l->b.n; i++)
		q->bytes += l->b.chain[i].out_len - VP_MIN(p->hdr_len, l->b.chain[i].out_len);
	complete(q, l, NULL);
	release(l);
	notify(p, q);
	return 0;
}

int vhp_commit(struct vhp_port *p, struct vhp_loan *l, const uint32_t *len)
{
	struct vhp_queue *q = l->q;
	unsigned i;
	VHP_GATE(p);

	if (!q) {
		l->b.n = 0;
		release(l);
		return 0;
	}
	for (i = 0; i < l->b.n; i++) {
		if (len[i] <= p->hdr_len)
			continue;
		q->packets++;
		q->bytes += len[i] - p->hdr_len;
	}
	complete(q, l, len);
	release(l);
	notify(p, q);
	return 0;
}

/* ---- forward ----------------------------------------------------------------------------------------------- */

struct vhp_mover *vhp_mover_new(void)
{
	return (struct vhp_mover *)vp_scratch_new();
}

void vhp_mover_free(struct vhp_mover *m)
{
	free(m);
}

int vhp_forward(struct vhp_port *from, unsigned from_pair, struct vhp_port *to, unsigned to_pair,
		struct vhp_mover *m)
{
	struct vhp_queue *src = vhp_rxq(from, from_pair), *dst = vhp_txq(to, to_pair);
	uint64_t packets, bytes;
	unsigned n;
	int ret = ready(from, src);
	VHP_GATE(from->protect ? from : to);

	if (vp_unlikely(ret))
		return ret;
	if (vp_unlikely(ready(to, dst)))
		dst = NULL;
	notify_late(from, src);
	packets = src->rq.stats.packets;
	bytes = src->rq.stats.bytes;
	n = vp_relay_run(&src->rq, dst ? &dst->rq : NULL, (struct vp_scratch *)m);
	if (dst && vp_unlikely(dst->rq.vq.stalled))
		vhp_want(to, dst);
	if (vp_unlikely(!n))
		return idle(from, src);
	if (dst) {
		dst->packets += src->rq.stats.packets - packets;
		dst->bytes += src->rq.stats.bytes - bytes;
	}
	return (int)n;
}

/* ---- sleeping and counters ------------------------------------------------------------------------------------ */

static bool arm(struct vhp_port *p, struct vhp_queue *q)
{
	VHP_GATE(p);

	if (ready(p, q))
		return false;
	notify_late(p, q);
	if (!vp_vq_enable_kicks(&q->rq.vq))
		return false;
	/* It waits for memory that was asked for: the port's fd says when that is there. */
	return !(q->rq.vq.stalled && q->asked);
}

static void disarm(struct vhp_port *p, struct vhp_queue *q)
{
	VHP_GATE(p);

	if (!ready(p, q))
		vp_vq_disable_kicks(&q->rq.vq);
}

bool vhp_recv_arm(struct vhp_port *p, unsigned pair)
{
	return arm(p, vhp_rxq(p, pair));
}

bool vhp_send_arm(struct vhp_port *p, unsigned pair)
{
	return arm(p, vhp_txq(p, pair));
}

void vhp_recv_disarm(struct vhp_port *p, unsigned pair)
{
	disarm(p, vhp_rxq(p, pair));
}

void vhp_send_disarm(struct vhp_port *p, unsigned pair)
{
	disarm(p, vhp_txq(p, pair));
}

int vhp_recv_fd(const struct vhp_port *p, unsigned pair)
{
	const struct vhp_queue *q = vhp_rxq(p, pair);

	return q && q->started ? q->kick_fd : -1;
}

int vhp_send_fd(const struct vhp_port *p, unsigned pair)
{
	const struct vhp_queue *q = vhp_txq(p, pair);

	return q && q->started ? q->kick_fd : -1;
}

unsigned vhp_fds_serial(const struct vhp_port *p)
{
	return p->t->serial + p->kicks_serial;
}

int vhp_pair_info(const struct vhp_port *p, unsigned pair, struct vhp_counters *c)
{
	const struct vhp_queue *r = vhp_rxq(p, pair), *t = vhp_txq(p, pair);
	const struct vp_queue_stats *fwd;
	unsigned i;

	if (!r)
		return -EINVAL;
	fwd = &r->rq.stats;
	*c = (struct vhp_counters){
		.recv_packets = r->packets + fwd->packets, .recv_bytes = r->bytes + fwd->bytes,
		.send_packets = t->packets, .send_bytes = t->bytes, .send_full = t->full,
		.recv_errors = r->errors, .send_errors = t->errors, .calls = r->calls + t->calls + fwd->calls,
		.recv_broken = r->rq.vq.broken ? vp_vq_broken_str(r->rq.vq.broken) : NULL,
		.send_broken = t->rq.vq.broken ? vp_vq_broken_str(t->rq.vq.broken) : NULL,
	};
	for (i = 0; i < VP_DROP_MAX; i++)
		c->recv_errors += fwd->drops[i];
	return 0;
}
