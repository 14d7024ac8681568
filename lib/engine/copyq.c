/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>

#include "base/cycles.h"
#include "engine/copyq_priv.h"
#include "engine/packet.h"
#include "engine/tap.h"
#include "net/offload.h"

/* A FIFO that is not full begins anew here, so that light traffic stays in the cache. */
#define SOFT_WRAP (128u << 10)

/* ---- FIFO ------------------------------------------------------------------ */

/* n > 0 contiguous units at *at; what was taken of the FIFO (> 0), or 0 = no room. */
VP_INLINE uint32_t fifo_take(struct vp_copyq_fifo *f, uint32_t n, uint32_t *at)
{
	uint32_t skip = 0, head = f->head;

	if (!f->used)
		head = 0;
	if (n > f->size - head || (head >= SOFT_WRAP && n <= head && f->used <= head - n)) {
		skip = f->size - head;
		head = 0;
	}
	if (vp_unlikely(n > f->size || (uint64_t)f->used + skip + n > f->size))
		return 0;
	*at = head;
	f->head = head + n;
	f->used += skip + n;
	return skip + n;
}

/*
 * The same for one of several in a row: *room is what is free right behind the last one, 0 at first; that is looked for
 * again when it is used up.
 */
VP_INLINE uint32_t fifo_next(struct vp_copyq_fifo *f, uint32_t n, uint32_t *room, uint32_t *at)
{
	uint32_t taken;

	if (vp_likely(n <= *room)) {
		*at = f->head;
		f->head += n;
		f->used += n;
		*room -= n;
		return n;
	}
	taken = fifo_take(f, n, at);
	*room = VP_MIN(f->size - f->head, f->size - f->used);
	return taken;
}

/* ---- driver VM to device VM -------------------------------------------------- */

VP_INLINE void copy_out(const struct vp_copyq *b, uint32_t at, const struct vp_seg *sg, unsigned n)
{
	vp_gptr to = vp_gptr_add(b->c.pool, b->c.data.off + at);

	if (vp_likely(n == 1)) {
		vp_pkt_copy_peer(to, sg->p, sg->len);
		return;
	}
	for (; n; n--, sg++) {
		vp_copy_peer(to, sg->p, sg->len);
		to = vp_gptr_add(to, sg->len);
	}
}

/* Remember where the chain may be written: addresses that continue each other become one. */
static bool keep_segs(struct vp_copyq *b, struct vp_copyq_slot *sl, const struct vp_seg *sg, unsigned n)
{
	struct vp_copyq_seg *to;
	uint32_t at;

	if (n == 1) {
		sl->addr = sg->addr;
		sl->nseg = 1;
		return true;
	}
	sl->take_seg = fifo_take(&b->segs, n, &at);
	if (!sl->take_seg)
		return false;
	to = &b->seg[at];
	*to = (struct vp_copyq_seg){ sg->addr, sg->len };
	while (--n) {
		sg++;
		if (to->addr + to->len == sg->addr && to->len <= UINT32_MAX - sg->len)
			to->len += sg->len;
		else
			*++to = (struct vp_copyq_seg){ sg->addr, sg->len };
	}
	sl->seg = at;
	sl->nseg = (uint32_t)(to - &b->seg[at]) + 1;
	sl->addr = b->seg[at].addr;
	return true;
}

/* A packet in any number of pieces. False: no room. */
static bool hand_one_early(struct vp_copyq *b, const struct vp_seg *sg, const struct vp_chain *c)
{
	uint32_t at, taken = fifo_take(&b->data, (uint32_t)vp_align_up(c->out_len, 64), &at);

	if (!taken)
		return false;
	copy_out(b, at, sg, c->nout);
	b->slot[b->head & b->mask] = (struct vp_copyq_slot){ .take = taken };
	vp_drvq_set_tag(&b->shadow, vp_drvq_add_one(&b->shadow, b->c.pool_addr + b->c.data.off + at, c->out_len, false),
			(uint16_t)(b->head & b->mask));
	b->head++;
	return true;
}

/* A buffer of any number of pieces. False: no room. */
static bool hand_one_away(struct vp_copyq *b, const struct vp_seg *sg, const struct vp_chain *c)
{
	struct vp_copyq_slot *sl = &b->slot[b->head & b->mask];
	const struct vp_copyq_fifo before = b->data;
	uint32_t at;

	*sl = (struct vp_copyq_slot){ .id = c->id, .slots = c->slots };
	if (!c->in_len) {
		/* A chain of nothing: no need to ask the device VM. */
		sl->state = VP_COPYQ_BACK;
		if (!b->in_order)
			vp_copyq_pend(b, b->head);
		b->again = true;
		b->head++;
		return true;
	}
	sl->take = fifo_take(&b->data, (uint32_t)vp_align_up(c->in_len, 64), &at);
	if (!sl->take)
		return false;
	if (!keep_segs(b, sl, sg + c->nout, c->nin)) {
		b->data = before;
		return false;
	}
	sl->off = at;
	vp_drvq_set_tag(&b->shadow, vp_drvq_add_one(&b->shadow, b->c.pool_addr + b->c.data.off + at, c->in_len, true),
			(uint16_t)(b->head & b->mask));
	b->head++;
	return true;
}

/* A buffer that the queue's owner can never carry. */
static enum vp_vq_broken misfit(const struct vp_copyq *b, const struct vp_chain *c)
{
	if (c->out_len)
		return VP_VQ_BAD_BUFFER;
	return c->in_len > b->c.data.size || c->nin > b->segs.size ? VP_VQ_TOO_LONG : VP_VQ_OK;
}

/* Why a chain is given back without having been handed over, in early mode. VP_DROP_MAX: it is not. */
static enum vp_drop refuse_packet(const struct vp_copyq *b, const struct vp_chain *c)
{
	uint32_t plen = c->out_len - b->hdr_len;

	if (c->out_len < b->hdr_len + VP_PKT_MIN)
		return VP_DROP_BAD_PACKET;
	if (plen > VP_PKT_MAX || c->out_len > b->c.data.size)
		return VP_DROP_TOO_BIG;
	return VP_DROP_MAX;
}

/* Chains of a net transmit queue that can be given back as soon as they have been copied. As hand_over(). */
static unsigned hand_early(struct vp_copyq *b, struct vp_scratch *s, unsigned n, unsigned pass)
{
	const unsigned hlen = b->hdr_len;
	const vp_gptr area = vp_gptr_add(b->c.pool, b->c.data.off);
	const uint64_t addr = b->c.pool_addr + b->c.data.off;
	struct vp_queue *rq = b->c.rq;
	uint64_t bytes = 0, packets = 0;
	uint32_t ahead = b->data.head;
	uint64_t lost = 0; /* bit i: chain i was dropped, for s->why[i] */
	enum vp_drop why;
	unsigned i;

	/* Where this burst will probably go: the device VM's cores had these lines last. */
	for (i = 0; i < pass && ahead < b->data.size; i++) {
		vp_prefetchw(area, ahead);
		vp_prefetchw(area, ahead + 64);
		ahead += (uint32_t)vp_align_up(VP_MIN(s->src.chain[i].out_len, 1u << 16), 64);
	}
	for (i = 0; i < n && bytes < VP_PKT_RUN_BYTES; i++) {
		const struct vp_chain *c = &s->src.chain[i];
		const struct vp_seg *sg = &s->src.seg[c->seg];
		struct vp_copyq_slot *sl;
		uint32_t at, taken;

		s->used_src[i] = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
		if (vp_unlikely(i >= pass)) {
			why = VP_DROP_RATE;
			goto drop;
		}
		if (vp_likely(c->nout == 1 && !c->nin && c->out_len >= hlen + VP_PKT_MIN &&
			      c->out_len <= hlen + VP_PKT_MAX)) {
			taken = fifo_take(&b->data, (c->out_len + 63u) & ~63u, &at);
			if (vp_unlikely(!taken && c->out_len <= b->data.size)) {
				b->blocked = true;
				break;
			}
			if (vp_likely(taken)) {
				/* The next one behind this one; a guess when the FIFO begins anew. */
				if (c->out_len > 128 && i + 1 < pass && b->data.head + 2048 <= b->data.size)
					vp_pkt_prefetch_rest(vp_gptr_add(area, b->data.head), s->src.seg[c[1].seg].p,
							     s->src.seg[c[1].seg].len);
				vp_pkt_copy_peer(vp_gptr_add(area, at), sg->p, c->out_len);
				sl = &b->slot[b->head & b->mask];
				sl->take = taken;
				sl->take_seg = 0;
				sl->state = VP_COPYQ_AWAY;
				vp_drvq_set_tag(&b->shadow, vp_drvq_add_one(&b->shadow, addr + at, c->out_len, false),
						(uint16_t)(b->head & b->mask));
				b->head++;
				packets++;
				bytes += c->out_len - hlen;
				continue;
			}
		}
		if (c->nin) {
			vp_vq_break(&rq->vq, VP_VQ_BAD_BUFFER);
			break;
		}
		why = refuse_packet(b, c);
		if (why != VP_DROP_MAX)
			goto drop;
		if (!hand_one_early(b, sg, c)) {
			b->blocked = true;
			break;
		}
		packets++;
		bytes += c->out_len - hlen;
		continue;
drop:
		vp_copyq_stat(&rq->stats.drops[why], 1);
		lost |= UINT64_C(1) << i;
		s->why[i] = (uint8_t)why;
	}
	if (vp_unlikely(vp_queue_tapped(rq)) && i)
		vp_tap_burst(rq, &s->src, 0, i, lost, s->why);
	if (packets) {
		vp_copyq_stat(&rq->stats.packets, packets);
		vp_copyq_stat(&rq->stats.bytes, bytes);
	}
	return i;
}

/* As many as make it worth while; fewer are taken along with those of other kinds. */
#define PLAIN_MIN 4

static void tap_plain(const struct vp_queue *rq, const struct vp_plain *p, unsigned n, unsigned hdr_len)
{
	const uint64_t now = vp_tap_now();

	for (; n; n--, p++)
		vp_tap_packet(rq, &(struct vp_seg){ .p = p->p, .len = p->len }, 1, hdr_len, -1, now);
}

static void settle_plain(struct vp_copyq *b, const struct vp_plain *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		b->given[i] = (struct vp_used){ .len = 0, .id = p[i].id, .slots = 1 };
	vp_copyq_settle(b, n);
}

/* hand_early() for the usual packets, and nothing else: how many, 0 when there are too few of them. */
static unsigned hand_plain_early(struct vp_copyq *b, unsigned room)
{
	const unsigned hlen = b->hdr_len, max = hlen + VP_PKT_MAX, min = hlen + VP_PKT_MIN;
	const vp_gptr area = vp_gptr_add(b->c.pool, b->c.data.off);
	const uint64_t addr = b->c.pool_addr + b->c.data.off;
	const uint32_t first = b->head, mask = b->mask;
	struct vp_queue *rq = b->c.rq;
	struct vp_copyq_slot *slots = b->slot;
	struct vp_copyq_fifo out = b->data;
	struct vp_plain p[VP_QUEUE_BURST];
	uint32_t ahead = out.head, contig = 0;
	struct vp_drvq_run run;
	uint64_t bytes = 0;
	unsigned i, n = vp_vq_fetch_plain(&rq->vq, p, room, VP_READ);

	for (i = 0; i < n && p[i].len >= min && p[i].len <= max; i++) {
		/* Where this burst will probably go: the device VM's cores had these lines last. */
		if (vp_likely(ahead < out.size)) {
			vp_prefetchw(area, ahead);
			vp_prefetchw(area, ahead + 64);
			ahead += (p[i].len + 63u) & ~63u;
		}
	}
	n = i;
	if (n < PLAIN_MIN)
		return 0;
	run = vp_drvq_run_begin(&b->shadow, n, false);
	for (i = 0; i < n && bytes < VP_PKT_RUN_BYTES; i++) {
		const uint32_t len = p[i].len, k = (first + i) & mask;
		struct vp_copyq_slot *sl = &slots[k];
		uint32_t at, taken = fifo_next(&out, (len + 63u) & ~63u, &contig, &at);

		if (vp_unlikely(!taken))
			break;
		/* The next one behind this one; a guess when the FIFO begins anew. */
		if (len > 128 && i + 1 < n && out.head + 2048 <= out.size)
			vp_pkt_prefetch_rest(vp_gptr_add(area, out.head), p[i + 1].p, p[i + 1].len);
		vp_pkt_copy_peer(vp_gptr_add(area, at), p[i].p, len);
		sl->take = taken;
		sl->take_seg = 0;
		sl->state = VP_COPYQ_AWAY;
		vp_drvq_run_put(&run, addr + at, len, (uint16_t)k);
		bytes += len;
	}
	if (!i)
		return 0;
	b->data = out;
	b->head = first + i;
	vp_drvq_run_end(&run);
	if (vp_unlikely(vp_queue_tapped(rq)))
		tap_plain(rq, p, i, hlen);
	vp_vq_advance_plain(&rq->vq, i);
	if (b->kept) {
		settle_plain(b, p, i);
	} else {
		vp_drvq_publish(&b->shadow);
		vp_vq_complete_plain(&rq->vq, p, i);
	}
	vp_copyq_stat(&rq->stats.packets, i);
	vp_copyq_stat(&rq->stats.bytes, bytes - (uint64_t)hlen * i);
	return i;
}

/* hand_away() for buffers of one piece, and nothing else: as hand_plain_early(). */
static unsigned hand_plain_away(struct vp_copyq *b, unsigned room)
{
	const uint64_t addr = b->c.pool_addr + b->c.data.off;
	const uint32_t first = b->head, mask = b->mask;
	struct vp_copyq_slot *slots = b->slot;
	struct vp_copyq_fifo in = b->data;
	struct vp_plain p[VP_QUEUE_BURST];
	struct vp_drvq_run run;
	uint32_t contig = 0;
	unsigned i, n = vp_vq_fetch_plain(&b->c.rq->vq, p, room, VP_WRITE);

	if (n < PLAIN_MIN)
		return 0;
	run = vp_drvq_run_begin(&b->shadow, n, true);
	for (i = 0; i < n; i++) {
		const uint32_t len = p[i].len, k = (first + i) & mask;
		struct vp_copyq_slot *sl = &slots[k];
		uint32_t at, taken;

		/* The rounding up must not wrap. */
		if (vp_unlikely(len > in.size))
			break;
		taken = fifo_next(&in, (len + 63u) & ~63u, &contig, &at);
		if (vp_unlikely(!taken))
			break;
		sl->addr = p[i].addr;
		sl->take_seg = 0;
		sl->take = taken;
		sl->off = at;
		sl->nseg = 1;
		sl->id = p[i].id;
		sl->slots = 1;
		sl->state = VP_COPYQ_AWAY;
		vp_drvq_run_put(&run, addr + at, len, (uint16_t)k);
	}
	if (!i)
		return 0;
	b->data = in;
	b->head = first + i;
	vp_drvq_run_end(&run);
	vp_vq_advance_plain(&b->c.rq->vq, i);
	if (b->kept)
		vp_copyq_settle(b, 0);
	else
		vp_drvq_publish(&b->shadow);
	return i;
}

/* Chains that stay with the device VM until it returns them. As hand_over(). */
static unsigned hand_away(struct vp_copyq *b, struct vp_scratch *s, unsigned n)
{
	const uint64_t addr = b->c.pool_addr + b->c.data.off;
	unsigned i;

	for (i = 0; i < n; i++) {
		const struct vp_chain *c = &s->src.chain[i];
		struct vp_copyq_slot *sl;
		uint32_t at, taken;

		if (vp_likely(c->nin == 1 && !c->nout && c->in_len <= b->c.data.size)) {
			taken = fifo_take(&b->data, (c->in_len + 63u) & ~63u, &at);
			if (vp_unlikely(!taken)) {
				b->blocked = true;
				break;
			}
			sl = &b->slot[b->head & b->mask];
			*sl = (struct vp_copyq_slot){ .addr = s->src.seg[c->seg].addr, .take = taken, .off = at,
						       .nseg = 1, .id = c->id, .slots = c->slots };
			vp_drvq_set_tag(&b->shadow, vp_drvq_add_one(&b->shadow, addr + at, c->in_len, true),
					(uint16_t)(b->head & b->mask));
			b->head++;
			continue;
		}
		if (vp_unlikely(misfit(b, c))) {
			vp_vq_break(&b->c.rq->vq, misfit(b, c));
			break;
		}
		if (!hand_one_away(b, &s->src.seg[c->seg], c)) {
			b->blocked = true;
			break;
		}
	}
	return i;
}

static unsigned hand_over(struct vp_copyq *b, struct vp_scratch *s, uint64_t now)
{
	struct vp_queue *rq = b->c.rq;
	struct vp_virtq *vq = &rq->vq;
	unsigned room = b->shadow.num_free, free_slots = b->mask + 1 - (b->head - b->tail);
	unsigned n, done, pass;

	b->blocked = false;
	if (!__atomic_load_n(&b->open, __ATOMIC_RELAXED))
		return 0;
	if (vp_unlikely(b->c.early && vp_queue_limited(rq) && vp_queue_owes(rq, now, s->hz))) {
		b->held = true;
		return 0;
	}
	room = VP_MIN(VP_MIN(room, free_slots), VP_QUEUE_BURST);
	if (!room) {
		b->blocked = true;
		return 0;
	}
	if (!b->c.early)
		n = hand_plain_away(b, room);
	else
		n = !vp_queue_limited(rq) ? hand_plain_early(b, room) : 0;
	if (n || vq->broken)
		return n;
	n = b->c.early ? vp_vq_fetch_dir(vq, &s->src, room, VP_READ) : vp_vq_fetch_dir(vq, &s->src, room, VP_WRITE);
	if (!n)
		return 0;
	if (b->c.early) {
		pass = n;
		if (vp_queue_limited(rq)) {
			pass = vp_queue_allow(rq, now, s->hz, n);
			vp_queue_charge(rq, now, s->hz, vp_queue_extra(n, vp_burst_looked(&s->src)));
		}
		done = hand_early(b, s, n, pass);
		if (done < pass && vp_queue_limited(rq))
			vp_queue_give_back(rq, s->hz, pass - done);
	} else {
		done = hand_away(b, s, n);
	}
	if (!done)
		return 0;
	vp_vq_advance(vq, &s->src, done);
	if (!b->c.early && b->in_order && b->again)
		vp_copyq_pend_in_order(b);
	if (b->kept) {
		if (b->c.early)
			memcpy(b->given, s->used_src, done * sizeof(*b->given));
		vp_copyq_settle(b, b->c.early ? done : 0);
		return done;
	}
	vp_drvq_publish(&b->shadow);
	if (b->c.early)
		vp_vq_complete(vq, s->used_src, done);
	return done;
}

/* ---- both ways ----------------------------------------------------------------- */

/*
 * What an early queue's device VM returned is only room: nobody waits for it, and it is looked at when half of the room
 * is used, many at a time.
 */
VP_INLINE bool wants_room(const struct vp_copyq *b)
{
	return b->blocked || b->shadow.num_free <= b->shadow.size / 2 || b->data.used > b->data.size / 2;
}

unsigned vp_copyq_run(struct vp_copyq *b, struct vp_scratch *s)
{
	struct vp_queue *rq = b->c.rq;
	uint64_t start = vp_cycles();
	unsigned back = 0, handed, max = VP_QUEUE_BURST;
	struct vp_copyq_gave gave = { 0 };
	const uint64_t before = rq->stats.bytes;

	if (vp_unlikely(rq->vq.broken || b->shadow.broken))
		return 0;
	/* Before any use of a remembered translation in this round; see vp_xlate_sync(). */
	vp_xlate_sync(&rq->vq.xl);
	if (b->c.early) {
		b->held = false;
		if (wants_room(b))
			back = vp_copyq_reclaim(b, VP_BURST);
	} else if (vp_queue_limited(rq)) {
		/* Over the rate: returned buffers wait in the shadow ring. */
		max = vp_queue_allow(rq, start, s->hz, max);
		b->held = !max;
		back = vp_copyq_collect(b, max, &gave);
		vp_queue_give_back(rq, s->hz, max - VP_MIN(gave.packets, max));
	} else {
		b->held = false;
		back = vp_copyq_collect(b, max, &gave);
	}
	handed = rq->vq.broken || b->shadow.broken ? 0 : hand_over(b, s, start);
	if (!back && !handed && !b->anew)
		return 0;
	if (vp_queue_limited(rq))
		vp_queue_spend(rq, start, s->hz, rq->stats.bytes - before);
	vp_copyq_notify(rq, &b->shadow, b->c.kick_fd, b->c.kick_who, &b->kicks, handed || b->anew,
			gave.chains || (handed && b->c.early) || b->anew, start, s);
	b->anew = false;
	return back + handed;
}

bool vp_copyq_arm(struct vp_copyq *b)
{
	bool more = false;

	if (b->c.rq->vq.broken || b->shadow.broken) {
		b->held = false;
		return false;
	}
	/* While nothing fits, new chains are no work; what the device VM returns is. */
	if (!b->blocked && !(b->c.early && b->held) && !b->c.rq->vq.stalled &&
	    __atomic_load_n(&b->open, __ATOMIC_RELAXED))
		more = vp_vq_enable_kicks(&b->c.rq->vq);
	if (b->stalled || b->held)
		return more;
	/* A run had enough: nobody would wake us. */
	more |= b->again;
	/* Buffers that were given back to the driver long ago can rest until their room is needed. */
	if (!b->c.early || b->blocked)
		more |= vp_drvq_enable_calls(&b->shadow);
	return more;
}

void vp_copyq_disarm(struct vp_copyq *b)
{
	vp_vq_disable_kicks(&b->c.rq->vq);
	if (!b->shadow.broken)
		vp_drvq_disable_calls(&b->shadow);
}

void vp_copyq_set_open(struct vp_copyq *b, bool open)
{
	__atomic_store_n(&b->open, open, __ATOMIC_RELAXED);
}

/* ---- the end --------------------------------------------------------------------- */

/* The driver's ring as if the last n chains had not been taken. */
static void rewind_avail(struct vp_copyq *b)
{
	struct vp_virtq *vq = &b->c.rq->vq;
	unsigned slots = 0, at;
	uint32_t i;

	if (!vq->packed) {
		vq->last_avail = (uint16_t)(vq->last_avail - (b->head - b->tail));
		vq->avail_seen = vq->last_avail; /* to be loaded, and checked, anew */
		return;
	}
	for (i = b->tail; i != b->head; i++)
		slots += b->slot[i & b->mask].slots;
	/* A driver that laps itself may have more out than the ring holds. */
	for (at = vq->last_avail; slots > at; at += vq->size)
		vq->avail_wrap = !vq->avail_wrap;
	vq->last_avail = (uint16_t)(at - slots);
}

/* Some later chain is completed already: the rest gets a length of 0. */
static void complete_rest(struct vp_copyq *b)
{
	uint32_t i;

	for (i = b->tail; i != b->head; i++) {
		const struct vp_copyq_slot *sl = &b->slot[i & b->mask];

		if (sl->state != VP_COPYQ_DONE)
			vp_vq_complete(&b->c.rq->vq, &(struct vp_used){ .id = sl->id, .slots = sl->slots }, 1);
	}
}

bool vp_copyq_stop(struct vp_copyq *b, bool reachable)
{
	struct vp_virtq *vq = &b->c.rq->vq;
	struct vp_copyq_gave gave = { 0 };
	bool any = false, hole = false;
	unsigned n;
	uint32_t i;

	vp_copyq_set_open(b, false);
	/* The last round may lie before an invalidation that has been acknowledged since. */
	vp_xlate_sync(&vq->xl);
	do {
		n = reachable && !b->c.early ? vp_copyq_collect(b, VP_BURST, &gave) : 0;
		any |= gave.chains != 0;
	} while (n && !vq->broken);
	if (!vq->broken && !b->c.early) {
		/* Everything before tail is done with, so whatever is done from there on was completed out of order. */
		for (i = b->tail; i != b->head; i++)
			hole |= b->slot[i & b->mask].state == VP_COPYQ_DONE;
		if (hole && !reachable) {
			vp_vq_break(vq, VP_VQ_BAD_RING);
		} else if (hole) {
			complete_rest(b);
			any = true;
		} else {
			rewind_avail(b);
		}
	}
	b->tail = b->pend_tail = b->pend_head = b->order = b->head;
	b->again = b->stalled = b->held = false;
	return any && !vq->broken && vp_vq_need_call(vq);
}
