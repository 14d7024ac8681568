/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Security model: both drivers may be hostile, to us and to each other. The
 * offload header is loaded once into a local, checked and written from there; the
 * payload is copied once, so that what the receiver gets can no longer be
 * changed by the sender. Lengths come from the chains that virtq.h translated.
 */
#include "engine/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/cycles.h"
#include "engine/packet.h"
#include "engine/tap.h"
#include "net/offload.h"

#define SEGMENT_BYTES 512 /* that cutting a segment off costs as much as: its headers, a checksum, a buffer */
#define PIECES_SEGMENT 4 /* pieces that a packet lies in, of which so many cost as much */

/* Single writer: a plain add, published as a relaxed store so that readers never see half of it. */
VP_INLINE void stat_add(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

/* State of one vp_relay_run(). */
struct run {
	struct vp_queue *src, *dst;
	struct vp_scratch *s;
	struct vp_rxfill rx;
	unsigned src_hlen;
	bool     filled;     /* receive chains were given back */
	/* beyond the bytes that arrive */
	uint64_t reworked;   /* bytes of packets that were reworked */
	unsigned segments;   /* that packets were cut into, beyond one for each */
	uint64_t lost;       /* bit i: chain i was dropped, for s->why[i] */
	unsigned settled, at; /* chains of the sender that were given back; the one that is looked at */
};

static const struct virtio_net_hdr no_offload;

/* ---- giving back what a next daemon can finish (place.h) ---- */

/* What becomes of both rings is decided here, by one store. */
static void intend(struct vp_queue *src, uint16_t to, uint16_t rx_from, uint16_t rx_to)
{
	struct vp_place *p = src->vq.place;

	VP_PLACE_ORDER();
	p->intent = vp_place_intent(vp_vq_pos(&src->vq), to, rx_from, rx_to);
	VP_PLACE_ORDER();
	vp_place_point(VP_POINT_INTENT);
}

static void intend_no_more(struct vp_queue *src)
{
	VP_PLACE_ORDER();
	src->vq.place->intent = 0;
	vp_place_point(VP_POINT_OVER);
}

/* n chains of the sender alone, which take so many slots. */
static void give_back(struct vp_queue *src, const struct vp_used *u, unsigned n, unsigned slots)
{
	if (!src->vq.place) {
		vp_vq_complete(&src->vq, u, n);
		return;
	}
	if (!n) {
		src->vq.place->intent = 0; /* of a packet whose receiver broke */
		return;
	}
	vp_vq_note(&src->vq, u, n, slots);
	intend(src, vp_vq_pos_behind(&src->vq, slots), 0, 0);
	vp_vq_show(&src->vq, vp_vq_write(&src->vq, u, n));
	intend_no_more(src);
}

/* As struct vp_rxfill says: the packet, and all before it that are not given back, count as sent. */
static void relay_early(struct vp_rxfill *f)
{
	struct run *r = vp_container_of(f, struct run, rx);
	struct vp_queue *src = r->src;
	const struct vp_used *u = r->s->used_src + r->settled;
	const struct vp_chain *c = &r->s->src.chain[r->at];
	unsigned n = r->at + 1 - r->settled, slots = vp_burst_slots(&r->s->src, r->settled, n);

	if (!src->vq.place)
		return;
	r->s->used_src[r->at] = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
	vp_vq_note(&src->vq, u, n, slots);
	intend(src, vp_vq_pos_behind(&src->vq, slots), 0, 0);
	vp_place_point(VP_POINT_EARLY);
}

/* n chains of the sender, more than 0, of so many slots, and what was taken of the receiver's burst, more than 0. */
static void give_back_both(struct run *r, const struct vp_used *u, unsigned n, unsigned slots)
{
	struct vp_virtq *src = &r->src->vq, *dst = &r->dst->vq;
	uint16_t from = vp_vq_pos(dst);
	struct vp_shown s;

	vp_vq_own(src, slots);
	vp_vq_advance(dst, &r->s->dst, r->rx.taken);
	vp_vq_note(dst, r->rx.used, r->rx.taken, vp_burst_slots(&r->s->dst, 0, r->rx.taken));
	s = vp_vq_write(dst, r->rx.used, r->rx.taken);
	dst->place->head = s.head;
	vp_place_point(VP_POINT_WRITTEN);
	vp_vq_note(src, u, n, slots);
	intend(r->src, vp_vq_pos_behind(src, slots), from, vp_vq_pos(dst));
	vp_vq_show(src, vp_vq_write(src, u, n));
	vp_place_point(VP_POINT_SENT);
	vp_vq_show(dst, s);
	vp_place_point(VP_POINT_DONE);
	intend_no_more(r->src);
	r->rx.taken = 0;
	r->rx.direct = false;
	r->filled = true;
}

/* ---- packets ---- */

/*
 * More segments than a burst of buffers: counted first, so that all go or none; only a receiver that takes its buffers
 * back meanwhile loses some.
 */
static int rework_long(struct run *r, struct vp_gso *g)
{
	uint32_t payload = g->len - g->hdr_len, n;
	unsigned chains, looked = 0;
	int ret =
		vp_rxfill_room(&r->rx, g->hdr_len + VP_MIN(g->mss, payload), (payload + g->mss - 1) / g->mss, &chains);

	if (ret)
		return ret;
	while ((n = vp_gso_next(g, r->s->seg))) {
		ret = vp_pkt_put(&r->rx, &no_offload, NULL, r->s->seg, n);
		if (ret == -EAGAIN) {
			relay_early(&r->rx);
			r->filled |= vp_rxfill_flush(&r->rx);
			/*
			 * What a burst has left is fetched again: less than was used, unless it is not what was
			 * counted.
			 */
			r->rx.looked = 0;
			vp_rxfill_fetch(&r->rx);
			looked += r->rx.looked;
			if (looked > 2 * VP_PKT_CHAINS_MAX + VP_BURST)
				return -EMSGSIZE;
			ret = vp_pkt_put(&r->rx, &no_offload, NULL, r->s->seg, n);
		}
		if (ret)
			return ret == -EIO ? ret : -EMSGSIZE;
	}
	return 0;
}

/*
 * A packet that the receiver cannot take as it is: complete its checksum or cut it
 * into segments, in private memory. All segments go out together or none does.
 * As vp_pkt_put(), and -EINVAL: the packet is not what its header says.
 */
static int rework(struct run *r, struct virtio_net_hdr *v, struct vp_cursor cur, uint32_t plen, unsigned pieces)
{
	struct vp_queue_stats *st = &r->src->stats;
	unsigned first = r->rx.taken;
	struct vp_gso g;
	uint32_t n;
	int ret;

	vp_pkt_gather(&cur, r->s->pkt, plen);
	r->reworked += plen;
	if (v->gso_type == VIRTIO_NET_HDR_GSO_NONE) {
		if (vp_net_csum_complete(r->s->pkt, plen, v->csum_start, v->csum_offset))
			return -EINVAL;
		ret = vp_pkt_put(&r->rx, &no_offload, NULL, r->s->pkt, plen);
		if (!ret)
			stat_add(&st->summed, 1);
		return ret;
	}
	if (vp_gso_init(&g, r->s->pkt, plen, v))
		return -EINVAL;
	n = (plen - g.hdr_len + g.mss - 1) / g.mss;
	/* Both cost time, and what cannot be had together no driver makes. */
	if (n + pieces / PIECES_SEGMENT > VP_GSO_SEGS_MAX)
		return -EINVAL;
	/* Into more buffers than the burst holds: no need to try. */
	ret = !first && n > r->rx.b->n ? -EAGAIN : 0;
	while (!ret && (n = vp_gso_next(&g, r->s->seg)))
		ret = vp_pkt_put(&r->rx, &no_offload, NULL, r->s->seg, n);
	if (ret) {
		r->rx.taken = first;
		if (ret == -EAGAIN && !first && vp_rxfill_more(&r->rx) && !vp_gso_init(&g, r->s->pkt, plen, v))
			ret = rework_long(r, &g);
		if (ret)
			return ret;
	}
	stat_add(&st->cut, 1);
	r->segments += g.index - 1u;
	return 0;
}

/*
 * Everything but the plain packet in one piece into one buffer. As rework(); why is set on other errors than -EAGAIN.
 */
static int forward_slow(struct run *r, const struct vp_chain *c, uint32_t *bytes, enum vp_drop *why)
{
	struct vp_cursor cur = { &r->s->src.seg[c->seg], 0 };
	struct virtio_net_hdr v;
	uint8_t raw[12] = { 0 };
	uint32_t plen;
	int ret;

	*why = VP_DROP_BAD_PACKET;
	if (c->nin || c->out_len < r->src_hlen + VP_PKT_MIN)
		return -EINVAL;
	plen = c->out_len - r->src_hlen;
	*why = VP_DROP_TOO_BIG;
	if (plen > VP_PKT_MAX)
		return -EMSGSIZE;
	vp_pkt_gather(&cur, raw, r->src_hlen);
	memcpy(&v, raw, sizeof(v));
	*why = VP_DROP_BAD_HEADER;
	if (vp_net_hdr_check(&v, plen, r->src->features))
		return -EINVAL;
	*bytes = plen;
	if (!vp_net_hdr_accepted(&v, r->dst->features)) {
		*why = v.gso_type == VIRTIO_NET_HDR_GSO_NONE ? VP_DROP_BAD_HEADER : VP_DROP_BAD_PACKET;
		ret = rework(r, &v, cur, plen, c->nout);
	} else {
		ret = vp_pkt_put(&r->rx, &v, &cur, NULL, plen);
		if (!ret && v.gso_type != VIRTIO_NET_HDR_GSO_NONE)
			stat_add(&r->src->stats.gso, 1);
	}
	if (ret == -EMSGSIZE)
		*why = VP_DROP_TOO_BIG;
	return ret == -EIO ? -EAGAIN : ret; /* the receiver broke: the packet waits for its end */
}

/*
 * The usual packets, from chain i on: no offloads asked for, in one piece, into one
 * buffer in one piece. Returns how many were of this kind; the first that is
 * not stays for forward_slow(). It ends behind `left` bytes.
 */
VP_INLINE unsigned forward_plain(struct run *r, unsigned i, unsigned n, unsigned src_hlen,
				 unsigned dst_hlen, uint64_t left, uint64_t *bytes)
{
	struct vp_scratch *s = r->s;
	const struct vp_chain *c = &s->src.chain[i], *d = &s->dst.chain[r->rx.taken];
	struct vp_used *us = &s->used_src[i], *ud = &s->used_dst[r->rx.taken];
	unsigned k, count = VP_MIN(n - i, s->dst.n - r->rx.taken);
	uint64_t sum = 0;

	for (k = 0; k < count && sum < left; k++, c++, d++, us++, ud++) {
		const struct vp_seg *ss = &s->src.seg[c->seg], *ds = &s->dst.seg[d->seg];
		uint32_t plen = c->out_len - src_hlen;
		uint16_t asks;

		if (vp_unlikely(c->nout != 1 || c->nin || d->nin != 1 || d->nout ||
				c->out_len < src_hlen + VP_PKT_MIN || plen > VP_PKT_MAX ||
				plen + dst_hlen > ds->len))
			break;
		/* flags and gso_type, loaded together; when both are zero, nothing else in the header counts. */
		vp_copy_in(&asks, ss->p, sizeof(asks));
		if (vp_unlikely(asks))
			break;
		if (plen > 128 && k + 1 < count)
			vp_pkt_prefetch_rest(s->dst.seg[d[1].seg].p, s->src.seg[c[1].seg].p,
					     VP_MIN(s->src.seg[c[1].seg].len, s->dst.seg[d[1].seg].len));
		vp_pkt_put_plain_hdr(ds->p, dst_hlen);
		vp_pkt_copy_peer(vp_gptr_add(ds->p, dst_hlen), vp_gptr_add(ss->p, src_hlen), plen);
		*us = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
		*ud = (struct vp_used){ .len = dst_hlen + plen, .id = d->id, .slots = d->slots };
		sum += plen;
	}
	if (vp_unlikely(r->dst->vq.log))
		for (unsigned j = r->rx.taken; j < r->rx.taken + k; j++)
			vp_pkt_log(&r->dst->vq, &s->dst, &s->dst.chain[j], s->used_dst[j].len);
	r->rx.taken += k;
	*bytes += sum;
	return k;
}

/* Give n sender chains back without delivering them. */
static void drop(struct run *r, unsigned n, enum vp_drop why)
{
	struct vp_scratch *s = r->s;
	unsigned i;

	if (vp_unlikely(vp_queue_tapped(r->src)))
		vp_tap_dropped(r->src, &s->src, n, why);
	for (i = 0; i < n; i++)
		s->used_src[i] = (struct vp_used){ .len = 0, .id = s->src.chain[i].id,
						   .slots = s->src.chain[i].slots };
	vp_vq_advance(&r->src->vq, &s->src, n);
	give_back(r->src, s->used_src, n, vp_burst_slots(&s->src, 0, n));
	stat_add(&r->src->stats.drops[why], n);
}

/*
 * Publish what was moved: the sender's chains up to `to`, then the receiver's buffers. A daemon that is killed between
 * the two loses these packets, unless another one finishes it; the other way round, that would deliver them again.
 */
static void settle(struct run *r, unsigned to)
{
	const struct vp_used *u = r->s->used_src + r->settled;
	unsigned n = to - r->settled, slots = vp_burst_slots(&r->s->src, r->settled, n);

	if (vp_unlikely(vp_queue_tapped(r->src)))
		vp_tap_burst(r->src, &r->s->src, r->settled, to, r->lost, r->s->why);
	r->settled = to;
	if (n && r->rx.taken && r->src->vq.place && r->dst->vq.place) {
		give_back_both(r, u, n, slots);
		return;
	}
	give_back(r->src, u, n, slots);
	r->filled |= vp_rxfill_flush(&r->rx);
}

/* What the bytes and the rest of a run leave of its budget. 0: it is over, whatever else there is. */
VP_INLINE uint64_t budget(const struct run *r, uint64_t bytes)
{
	uint64_t spent = bytes + r->reworked + SEGMENT_BYTES * (uint64_t)r->segments;

	return spent < VP_PKT_RUN_BYTES ? VP_PKT_RUN_BYTES - spent : 0;
}

/* Move n fetched packets, as far as the budget of a run goes; how many were dealt with. */
static unsigned forward(struct run *r, unsigned n)
{
	struct vp_queue *src = r->src, *dst = r->dst;
	struct vp_scratch *s = r->s;
	uint64_t bytes = 0, sent = 0, left;
	unsigned i, want = n;

	vp_vq_fetch_dir(&dst->vq, &s->dst, want, VP_WRITE);
	for (i = 0; i < n; i++) {
		const struct vp_chain *c;
		enum vp_drop why;
		uint32_t plen = 0;
		unsigned k;
		int ret;

		left = budget(r, bytes);
		if (vp_unlikely(!left))
			break;
		if (vp_likely(r->src_hlen == 12 && r->rx.hdr_len == 12))
			k = forward_plain(r, i, n, 12, 12, left, &bytes);
		else
			k = forward_plain(r, i, n, r->src_hlen, r->rx.hdr_len, left, &bytes);
		sent += k;
		i += k;
		if (i == n || (k && !budget(r, bytes)))
			break;
		c = &s->src.chain[i];
		r->at = i;
		ret = forward_slow(r, c, &plen, &why);
		if (ret == -EAGAIN) {
			/* Packets that take several buffers each: look once whether there are more. */
			if ((s->dst.n < want && !s->dst.more) || want == VP_BURST || dst->vq.broken)
				break;
			settle(r, i);
			want = VP_BURST;
			vp_vq_fetch_dir(&dst->vq, &s->dst, want, VP_WRITE);
			i--;
			continue;
		}
		if (!ret) {
			bytes += plen;
			sent++;
		} else {
			stat_add(&src->stats.drops[why], 1);
			r->lost |= UINT64_C(1) << i;
			s->why[i] = (uint8_t)why;
			if (c->nin)
				vp_vq_break(&src->vq, VP_VQ_BAD_BUFFER);
		}
		s->used_src[i] = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
	}
	settle(r, i);
	if (i) {
		vp_vq_advance(&src->vq, &s->src, i);
		stat_add(&src->stats.packets, sent);
		stat_add(&src->stats.bytes, bytes);
	}
	return i;
}

/* Microseconds that packets wait for buffers of q. */
static uint64_t patience(const struct vp_queue *q)
{
	return q->vq.stalled ? VP_RELAY_VIOMMU_PATIENCE_US : VP_RELAY_PATIENCE_US;
}

unsigned vp_relay_run(struct vp_queue *src, struct vp_queue *dst,
		      struct vp_scratch *s)
{
	struct run r = { .src = src, .dst = dst, .s = s };
	uint64_t start = vp_cycles();
	const bool limited = vp_queue_limited(src);
	const uint64_t before = src->stats.bytes;
	unsigned n, done, calls = 0;

	if (vp_unlikely(limited && vp_queue_owes(src, start, s->hz)))
		return 0;
	n = vp_vq_fetch_dir(&src->vq, &s->src, VP_QUEUE_BURST, VP_READ);
	if (!n)
		return 0;
	if (limited) {
		unsigned pass = vp_queue_allow(src, start, s->hz, n);

		vp_queue_charge(src, start, s->hz, vp_queue_extra(n, vp_burst_looked(&s->src)));
		if (!pass) {
			drop(&r, n, VP_DROP_RATE);
			goto out;
		}
		n = pass;
	}
	if (!dst || dst->vq.broken) {
		drop(&r, n, VP_DROP_NO_PEER);
		goto out;
	}
	r.src_hlen = vp_net_hdr_len(src->features);
	r.rx = (struct vp_rxfill){
		.vq = &dst->vq,
		.b = &s->dst,
		.used = s->used_dst,
		.hdr_len = vp_net_hdr_len(dst->features),
		.mergeable = dst->features & VP_BIT(VIRTIO_NET_F_MRG_RXBUF),
		.early = relay_early,
	};
	done = forward(&r, n);
	if (limited) {
		vp_queue_give_back(src, s->hz, n - done);
		vp_queue_charge(src, start, s->hz, r.segments);
		vp_queue_spend(src, start, s->hz, src->stats.bytes - before);
	}
	if (done) {
		src->blocked_since = 0;
		n = done;
	} else if (!src->blocked_since) {
		src->blocked_since = start;
		return 0;
	} else if (start - src->blocked_since < s->hz / 1000000 * patience(dst)) {
		return 0;
	} else {
		/* Out of patience, and for as long as no buffer comes: no second wait per burst. */
		drop(&r, n, VP_DROP_NO_BUFFER);
		/*
		 * But for an answer of a vIOMMU: it was asked for these, and what it says may be taken back before the
		 * next ones come. Without a wait of their own they would never arrive.
		 */
		if (dst->vq.stalled)
			src->blocked_since = 0;
	}
out:
	/* What was given back before the look at the event fields of both. Pairs with the drivers' barriers. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (r.filled && vp_vq_need_call_fenced(&dst->vq)) {
		vp_queue_call(dst, s);
		calls++;
	}
	if (vp_vq_need_call_fenced(&src->vq)) {
		vp_queue_call(src, s);
		calls++;
	}
	stat_add(&src->stats.calls, calls);
	stat_add(&src->stats.bursts, 1);
	stat_add(&src->stats.busy_cycles, vp_cycles() - start);
	return n;
}
