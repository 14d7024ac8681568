/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Security model: both drivers may be hostile, to us and to each other. The
 * offload header is loaded once into a local, checked and written from there; the
 * payload is copied once, so that what the receiver gets can no longer be
 * changed by the sender. Lengths come from the chains that virtq.h translated.
 */
#include "copy/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cycles.h"
#include "net/offload.h"

#define PKT_MAX   65535u /* bytes behind the virtio-net header */
#define ETH_HLEN_ 14u

static const char *const drop_str[VP_DROP_MAX] = {
	[VP_DROP_NO_PEER]    = "no-peer",
	[VP_DROP_NO_BUFFER]  = "no-buffer",
	[VP_DROP_TOO_BIG]    = "too-big",
	[VP_DROP_BAD_HEADER] = "bad-header",
	[VP_DROP_BAD_PACKET] = "bad-packet",
	[VP_DROP_RATE]       = "rate",
};

const char *vp_drop_str(enum vp_drop d)
{
	return (unsigned)d < VP_DROP_MAX ? drop_str[d] : "unknown";
}

struct vp_relay_scratch *vp_relay_scratch_new(void)
{
	struct vp_relay_scratch *s = NULL;

	if (posix_memalign((void **)&s, VP_CACHELINE, sizeof(*s)))
		return NULL;
	s->hz = vp_cycles_hz();
	s->call_seq = 0;
	return s;
}

/* Single writer: a plain add, published as a relaxed store so that readers never see half of it. */
VP_INLINE void stat_add(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

/* A position in the segments of a chain. */
struct cursor {
	const struct vp_seg *s;
	uint32_t off;
};

/* The header of a packet: 10 or 12 bytes as one value. */
struct hdr {
	uint64_t lo;  /* flags, gso_type, hdr_len, gso_size, csum_start */
	uint16_t hi;  /* csum_offset */
};

VP_INLINE void hdr_unpack(const struct hdr *h, struct virtio_net_hdr *v)
{
	memcpy(v, &h->lo, 8);
	memcpy((char *)v + 8, &h->hi, 2);
}

VP_INLINE void hdr_pack(struct hdr *h, const struct virtio_net_hdr *v)
{
	memcpy(&h->lo, v, 8);
	memcpy(&h->hi, (const char *)v + 8, 2);
}

/* Copy n bytes at cur into private memory; the chain holds at least n more. */
static void gather(struct cursor *cur, uint8_t *dst, uint32_t n)
{
	while (n) {
		uint32_t k = VP_MIN(n, cur->s->len - cur->off);

		vp_copy_in(dst, vp_gptr_add(cur->s->p, cur->off), k);
		dst += k;
		n -= k;
		cur->off += k;
		if (cur->off == cur->s->len) {
			cur->s++;
			cur->off = 0;
		}
	}
}

/* Small copies inline, larger ones by the C library, which knows the machine. */
VP_INLINE void copy_payload(vp_gptr dst, vp_gptr src, uint32_t n)
{
	if (n >= 64 && n <= 128) {
		/* Two pieces that overlap: no loop, no call. */
		vp_copy_peer(dst, src, 64);
		vp_copy_peer(vp_gptr_add(dst, n - 64), vp_gptr_add(src, n - 64), 64);
	} else {
		vp_copy_peer(dst, src, n);
	}
}

/* n bytes from cur (peer memory, or private memory when cur is NULL) to the cursor d. */
static void scatter(struct cursor *d, struct cursor *cur, const uint8_t *priv, uint32_t n)
{
	while (n) {
		uint32_t k = VP_MIN(n, d->s->len - d->off);

		if (cur) {
			k = VP_MIN(k, cur->s->len - cur->off);
			vp_copy_peer(vp_gptr_add(d->s->p, d->off), vp_gptr_add(cur->s->p, cur->off), k);
			cur->off += k;
			if (cur->off == cur->s->len) {
				cur->s++;
				cur->off = 0;
			}
		} else {
			vp_copy_out(vp_gptr_add(d->s->p, d->off), priv, k);
			priv += k;
		}
		n -= k;
		d->off += k;
		if (d->off == d->s->len) {
			d->s++;
			d->off = 0;
		}
	}
}

/* State of one vp_relay_run(). */
struct run {
	struct vp_relay_queue *src, *dst;
	struct vp_relay_scratch *s;
	unsigned ndst;       /* receive chains fetched */
	unsigned idst;       /* of these, taken */
	unsigned src_hlen, dst_hlen;
	bool     mergeable;
	bool     filled;     /* some were given back */
};

static void log_written(struct vp_virtq *vq, const struct vp_burst *b, const struct vp_chain *c,
			uint32_t len)
{
	const struct vp_seg *s = &b->seg[c->seg + c->nout];

	while (len) {
		uint32_t k = VP_MIN(len, s->len);

		vp_dirty_log_mark(vq->log, s->addr, k);
		len -= k;
		s++;
	}
}

enum verdict { SENT, DROPPED, WAIT };

/*
 * Deliver one packet (header h, plen bytes from cur or priv) into as many
 * receive chains as it takes. WAIT: not enough chains; nothing was consumed.
 */
static enum verdict deliver(struct run *r, struct hdr h, struct cursor *cur, const uint8_t *priv,
			    uint32_t plen, enum vp_drop *why)
{
	struct vp_burst *db = &r->s->dst;
	uint32_t need = r->dst_hlen + plen, have = 0;
	unsigned first = r->idst, last, i;
	uint8_t hdr[12];

	for (last = first; have < need; last++) {
		const struct vp_chain *c;

		if (last == r->ndst) {
			/* A full burst of tiny buffers, none taken yet: it will never fit. */
			if (first == 0 && r->ndst == VP_BURST)
				goto too_big;
			return WAIT;
		}
		c = &db->chain[last];
		if (vp_unlikely(c->nout || c->in_len < r->dst_hlen)) {
			vp_vq_break(&r->dst->vq, VP_VQ_BAD_BUFFER);
			return WAIT;
		}
		if (last > first && !r->mergeable)
			goto too_big;
		have += c->in_len;
	}
	memcpy(hdr, &h.lo, 8);
	memcpy(hdr + 8, &h.hi, 2);
	hdr[10] = (uint8_t)(last - first); /* num_buffers, little-endian */
	hdr[11] = 0;
	for (i = first; i < last; i++) {
		const struct vp_chain *c = &db->chain[i];
		struct cursor d = { &db->seg[c->seg], 0 };
		uint32_t room = c->in_len, n;

		n = i == first ? r->dst_hlen : 0;
		if (n)
			scatter(&d, NULL, hdr, n);
		room = VP_MIN(room - n, plen);
		scatter(&d, cur, priv, room);
		if (!cur)
			priv += room;
		plen -= room;
		r->s->used_dst[i] = (struct vp_used){ .len = n + room, .id = c->id, .slots = c->slots };
		if (vp_unlikely(r->dst->vq.log))
			log_written(&r->dst->vq, db, c, n + room);
	}
	r->idst = last;
	return SENT;
too_big:
	*why = VP_DROP_TOO_BIG;
	return DROPPED;
}

/*
 * A packet that the receiver cannot take as it is: complete its checksum or cut it
 * into segments, in private memory. All segments go out together or none does.
 */
static enum verdict rework(struct run *r, struct virtio_net_hdr *v, struct cursor cur, uint32_t plen,
			   enum vp_drop *why)
{
	struct vp_relay_stats *st = &r->src->stats;
	struct hdr none = { 0, 0 };
	enum verdict ret = SENT;
	unsigned first = r->idst;
	struct vp_gso g;
	uint32_t n;

	gather(&cur, r->s->pkt, plen);
	if (v->gso_type == VIRTIO_NET_HDR_GSO_NONE) {
		if (vp_net_csum_complete(r->s->pkt, plen, v->csum_start, v->csum_offset)) {
			*why = VP_DROP_BAD_HEADER;
			return DROPPED;
		}
		ret = deliver(r, none, NULL, r->s->pkt, plen, why);
		if (ret == SENT)
			stat_add(&st->summed, 1);
		return ret;
	}
	if (vp_gso_init(&g, r->s->pkt, plen, v)) {
		*why = VP_DROP_BAD_PACKET;
		return DROPPED;
	}
	while (ret == SENT && (n = vp_gso_next(&g, r->s->seg)))
		ret = deliver(r, none, NULL, r->s->seg, n, why);
	if (ret == WAIT && first == 0 && r->ndst == VP_BURST) {
		/* More segments than a burst of buffers: this will never fit. */
		*why = VP_DROP_TOO_BIG;
		ret = DROPPED;
	} else if (ret == WAIT) {
		r->idst = first;
	}
	if (ret == SENT)
		stat_add(&st->cut, 1);
	return ret;
}

/* Everything but the plain packet in one piece into one buffer. */
static enum verdict forward_slow(struct run *r, const struct vp_chain *c, uint32_t *bytes,
				 enum vp_drop *why)
{
	const struct vp_burst *sb = &r->s->src;
	struct cursor cur = { &sb->seg[c->seg], 0 };
	struct virtio_net_hdr v;
	uint8_t raw[12] = { 0 };
	enum verdict ret;
	uint32_t plen;
	struct hdr h;

	if (c->nin || c->out_len < r->src_hlen + ETH_HLEN_) {
		*why = VP_DROP_BAD_PACKET;
		return DROPPED;
	}
	plen = c->out_len - r->src_hlen;
	if (plen > PKT_MAX) {
		*why = VP_DROP_TOO_BIG;
		return DROPPED;
	}
	gather(&cur, raw, r->src_hlen);
	memcpy(&v, raw, sizeof(v));
	if (vp_net_hdr_check(&v, plen, r->src->features)) {
		*why = VP_DROP_BAD_HEADER;
		return DROPPED;
	}
	*bytes = plen;
	if (!vp_net_hdr_accepted(&v, r->dst->features))
		return rework(r, &v, cur, plen, why);
	hdr_pack(&h, &v);
	ret = deliver(r, h, &cur, NULL, plen, why);
	if (ret == SENT && v.gso_type != VIRTIO_NET_HDR_GSO_NONE)
		stat_add(&r->src->stats.gso, 1);
	return ret;
}

/* No offloads, num_buffers 1 (little-endian). */
static const uint8_t plain_hdr[12] = { [10] = 1 };

/*
 * The usual packets, from chain i on: no offloads asked for, in one piece, into one
 * buffer in one piece. Returns how many were of this kind; the first that is
 * not stays for forward_slow().
 */
VP_INLINE unsigned forward_plain(struct run *r, unsigned i, unsigned n, unsigned src_hlen,
				 unsigned dst_hlen, uint64_t *bytes)
{
	struct vp_relay_scratch *s = r->s;
	const struct vp_chain *c = &s->src.chain[i], *d = &s->dst.chain[r->idst];
	struct vp_used *us = &s->used_src[i], *ud = &s->used_dst[r->idst];
	unsigned k, count = VP_MIN(n - i, r->ndst - r->idst);
	uint64_t sum = 0;

	for (k = 0; k < count; k++, c++, d++, us++, ud++) {
		const struct vp_seg *ss = &s->src.seg[c->seg], *ds = &s->dst.seg[d->seg];
		uint32_t plen = c->out_len - src_hlen;
		uint16_t asks;

		if (vp_unlikely(c->nout != 1 || c->nin || d->nin != 1 || d->nout ||
				c->out_len < src_hlen + ETH_HLEN_ || plen > PKT_MAX ||
				plen + dst_hlen > ds->len))
			break;
		/* flags and gso_type, loaded together; when both are zero, nothing else in the header counts. */
		vp_copy_in(&asks, ss->p, sizeof(asks));
		if (vp_unlikely(asks))
			break;
		vp_copy_out(ds->p, plain_hdr, dst_hlen);
		copy_payload(vp_gptr_add(ds->p, dst_hlen), vp_gptr_add(ss->p, src_hlen), plen);
		*us = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
		*ud = (struct vp_used){ .len = dst_hlen + plen, .id = d->id, .slots = d->slots };
		sum += plen;
	}
	if (vp_unlikely(r->dst->vq.log))
		for (unsigned j = r->idst; j < r->idst + k; j++)
			log_written(&r->dst->vq, &s->dst, &s->dst.chain[j], s->used_dst[j].len);
	r->idst += k;
	*bytes += sum;
	return k;
}

int vp_relay_call(struct vp_relay_queue *q, struct vp_relay_scratch *s)
{
	uint64_t one = 1;
	ssize_t n;

	if (q->call_fd < 0)
		return 0;
	__atomic_store_n(&s->call_seq, s->call_seq + 1, __ATOMIC_RELAXED);
	n = write(q->call_fd, &one, sizeof(one));
	__atomic_store_n(&s->call_seq, s->call_seq + 1, __ATOMIC_RELAXED);
	if (n == sizeof(one) || (n < 0 && errno == EAGAIN))
		return 0; /* EAGAIN: the counter is full, the driver has a notification pending */
	vp_vq_break(&q->vq, VP_VQ_BAD_CALL);
	return -EIO;
}

/* Give n sender chains back without delivering them. */
static void drop(struct run *r, unsigned n, enum vp_drop why)
{
	struct vp_relay_scratch *s = r->s;
	unsigned i;

	for (i = 0; i < n; i++)
		s->used_src[i] = (struct vp_used){ .len = 0, .id = s->src.chain[i].id,
						   .slots = s->src.chain[i].slots };
	vp_vq_advance(&r->src->vq, &s->src, n);
	vp_vq_complete(&r->src->vq, s->used_src, n);
	stat_add(&r->src->stats.drops[why], n);
}

/* Give the filled receive chains back. */
static void take_dst(struct run *r)
{
	struct vp_virtq *vq = &r->dst->vq;

	if (!r->idst)
		return;
	vp_vq_advance(vq, &r->s->dst, r->idst);
	vp_vq_complete(vq, r->s->used_dst, r->idst);
	r->idst = 0;
	r->filled = true;
}

/* How many of n packets the rate limit lets pass now. */
static unsigned rate_limit(struct vp_relay_queue *src, uint64_t now, uint64_t hz, unsigned n)
{
	uint64_t dt = now - src->token_time, burst = VP_MAX(src->rate / 100, 64);

	if (!src->token_time || dt > hz)
		src->tokens = burst;
	else
		src->tokens = VP_MIN(burst, src->tokens + dt * src->rate / hz);
	/* Advance the clock only by what was turned into whole tokens. */
	if (!src->token_time || dt > hz || dt * src->rate / hz)
		src->token_time = now;
	n = (unsigned)VP_MIN(n, src->tokens);
	src->tokens -= n;
	return n;
}

unsigned vp_relay_run(struct vp_relay_queue *src, struct vp_relay_queue *dst,
		      struct vp_relay_scratch *s)
{
	uint64_t start = vp_cycles(), bytes = 0, sent = 0;
	struct run r = { .src = src, .dst = dst, .s = s };
	unsigned i, n, want, before, calls = 0;

	n = vp_vq_fetch_dir(&src->vq, &s->src, VP_RELAY_BURST, VP_READ);
	if (!n)
		return 0;
	if (src->rate) {
		unsigned pass = rate_limit(src, start, s->hz, n);

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
	r.dst_hlen = vp_net_hdr_len(dst->features);
	r.mergeable = dst->features & VP_BIT(VIRTIO_NET_F_MRG_RXBUF);
	want = n;
	r.ndst = vp_vq_fetch_dir(&dst->vq, &s->dst, want, VP_WRITE);

	for (i = 0; i < n; i++) {
		enum vp_drop why = VP_DROP_NO_BUFFER;
		const struct vp_chain *c;
		enum verdict verdict;
		uint32_t plen = 0;
		unsigned k;

		if (vp_likely(r.src_hlen == 12 && r.dst_hlen == 12))
			k = forward_plain(&r, i, n, 12, 12, &bytes);
		else
			k = forward_plain(&r, i, n, r.src_hlen, r.dst_hlen, &bytes);
		sent += k;
		i += k;
		if (i == n)
			break;
		c = &s->src.chain[i];
		before = r.idst;
		verdict = forward_slow(&r, c, &plen, &why);
		if (verdict == WAIT) {
			/* Packets that take several buffers each: look once whether there are more. */
			if (r.ndst < want || want == VP_BURST || dst->vq.broken)
				break;
			take_dst(&r);
			want = VP_BURST;
			r.ndst = vp_vq_fetch_dir(&dst->vq, &s->dst, want, VP_WRITE);
			i--;
			continue;
		}
		if (verdict == SENT) {
			bytes += plen;
			sent++;
		} else {
			r.idst = before;
			stat_add(&src->stats.drops[why], 1);
			if (c->nin)
				vp_vq_break(&src->vq, VP_VQ_BAD_BUFFER);
		}
		s->used_src[i] = (struct vp_used){ .len = 0, .id = c->id, .slots = c->slots };
	}
	take_dst(&r);
	if (src->rate)
		src->tokens += n - i;
	if (i) {
		src->blocked_since = 0;
		vp_vq_advance(&src->vq, &s->src, i);
		vp_vq_complete(&src->vq, s->used_src, i);
		stat_add(&src->stats.packets, sent);
		stat_add(&src->stats.bytes, bytes);
		n = i;
	} else if (!src->blocked_since) {
		src->blocked_since = start;
		return 0;
	} else if (start - src->blocked_since < s->hz / 1000000 * VP_RELAY_PATIENCE_US) {
		return 0;
	} else {
		/* Out of patience, and for as long as no buffer comes: no second wait per burst. */
		drop(&r, n, VP_DROP_NO_BUFFER);
	}
	if (r.filled && vp_vq_need_call(&dst->vq)) {
		vp_relay_call(dst, s);
		calls++;
	}
out:
	if (vp_vq_need_call(&src->vq)) {
		vp_relay_call(src, s);
		calls++;
	}
	stat_add(&src->stats.calls, calls);
	stat_add(&src->stats.bursts, 1);
	stat_add(&src->stats.busy_cycles, vp_cycles() - start);
	return n;
}
