/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine, device VM to driver VM. Security model: see copyq.h. Of the pool only the returned bytes are read:
 * an offload header once, into a local that is checked and written from there; the rest by the copy itself.
 */
#include <errno.h>
#include <linux/virtio_net.h>

#include "engine/copyq_priv.h"
#include "engine/packet.h"
#include "engine/tap.h"
#include "net/offload.h"

/* Release what is done with at the FIFO's end. */
VP_INLINE void release(struct vp_copyq *b)
{
	uint32_t tail = b->tail, data = 0, segs = 0;

	for (; tail != b->head; tail++) {
		const struct vp_copyq_slot *sl = &b->slot[tail & b->mask];

		if (sl->state != VP_COPYQ_DONE)
			break;
		data += sl->take;
		segs += sl->take_seg;
	}
	b->tail = tail;
	b->data.used -= data;
	b->segs.used -= segs;
}

unsigned vp_copyq_reclaim(struct vp_copyq *b, unsigned max)
{
	struct vp_drvq_used u[VP_BURST];
	unsigned i, n = vp_drvq_get_burst(&b->shadow, u, VP_MIN(max, VP_BURST));

	vp_place_point(VP_POINT_COPY_TOOK);
	for (i = 0; i < n; i++)
		b->slot[u[i].tag].state = VP_COPYQ_DONE;
	release(b);
	if (n && b->kept)
		vp_copyq_settle(b, 0);
	return n;
}

VP_INLINE vp_gptr pool_of(const struct vp_copyq *b, const struct vp_copyq_slot *sl)
{
	return vp_gptr_add(b->c.pool, b->c.data.off + sl->off);
}

/* Note what the device VM returned. */
static unsigned take(struct vp_copyq *b, unsigned max)
{
	struct vp_drvq_used u[VP_BURST];
	unsigned i, n = vp_drvq_get_burst(&b->shadow, u, VP_MIN(max, VP_BURST));

	for (i = 0; i < n; i++) {
		struct vp_copyq_slot *sl = &b->slot[u[i].tag];

		sl->len = u[i].len;
		sl->state = VP_COPYQ_BACK;
		vp_prefetch(pool_of(b, sl), 0);
		vp_prefetch(pool_of(b, sl), 64);
		if (!b->in_order)
			vp_copyq_pend(b, u[i].tag);
	}
	if (b->in_order)
		vp_copyq_pend_in_order(b);
	return n;
}

/* ---- into the driver VM's memory -------------------------------------------------------- */

/* To peer memory at addr, translated now; from priv, or when that is NULL from the pool. 0, -EAGAIN, -EFAULT. */
static int put_piece(struct vp_virtq *vq, uint64_t addr, uint32_t len, vp_gptr from, const uint8_t *priv)
{
	uint64_t span, at;
	vp_gptr host;
	int ret;

	for (at = 0; at < len; at += span) {
		ret = vp_xlate_piece(&vq->xl, addr + at, len - at, VP_WRITE, &host, &span);
		if (ret)
			return ret;
		if (priv)
			vp_copy_out(host, priv + at, span);
		else
			vp_copy_peer(host, vp_gptr_add(from, at), span);
		if (vp_unlikely(vq->log))
			vp_dirty_log_mark_xlate(vq->log, &vq->xl, addr + at, span);
	}
	return 0;
}

/* Bytes [at, at + len) of the chain's writable part, from priv or, when that is NULL, from those of its buffer. */
static int put(struct vp_copyq *b, const struct vp_copyq_slot *sl, uint32_t at, uint32_t len, const uint8_t *priv)
{
	struct vp_virtq *vq = &b->c.rq->vq;
	vp_gptr from = vp_gptr_add(pool_of(b, sl), at);
	const struct vp_copyq_seg *sg;
	int ret = 0;

	if (!len)
		return 0; /* at may be the chain's end, where no segment is */
	if (sl->nseg == 1)
		return put_piece(vq, sl->addr + at, len, from, priv);
	for (sg = &b->seg[sl->seg]; at >= sg->len; sg++)
		at -= sg->len;
	for (; len && !ret; sg++, at = 0) {
		uint32_t k = VP_MIN(len, sg->len - at);

		ret = put_piece(vq, sg->addr + at, k, from, priv);
		from = vp_gptr_add(from, k);
		if (priv)
			priv += k;
		len -= k;
	}
	return ret;
}

/* ---- giving back ---------------------------------------------------------------------------- */

/* What one run gives to the driver. */
struct giving {
	unsigned n;              /* entries of b->given */
	uint64_t packets, bytes; /* of packets: the run is over behind VP_PKT_RUN_BYTES */
	unsigned refused;        /* what should have been packets */
	unsigned pieces;         /* that were written, off the fast path: over behind VP_PKT_CHAINS_MAX */
};

/* Has the run had enough? Others are waiting. */
VP_INLINE bool spent(const struct giving *g)
{
	return g->bytes >= VP_PKT_RUN_BYTES || g->pieces >= VP_PKT_CHAINS_MAX;
}

VP_INLINE struct vp_copyq_slot *pending(const struct vp_copyq *b, unsigned k)
{
	return &b->slot[b->pend[(b->pend_tail + k) & b->mask]];
}

VP_INLINE void give(struct vp_copyq *b, struct giving *g, struct vp_copyq_slot *sl, uint32_t len)
{
	b->given[g->n++] = (struct vp_used){ .len = len, .id = sl->id, .slots = sl->slots };
	sl->state = VP_COPYQ_DONE;
	b->pend_tail++;
}

#define TAP_PIECES 64 /* buffers of a packet that a capture has; the rest is cut off as if by its snapshot length */

/* The packet in the first k pending chains; why as vp_tap_packet(). */
static void tap_pending(const struct vp_copyq *b, unsigned k, int why)
{
	struct vp_seg sg[TAP_PIECES];
	unsigned n = VP_MIN(k, TAP_PIECES);

	for (unsigned i = 0; i < n; i++)
		sg[i] = (struct vp_seg){ .p = pool_of(b, pending(b, i)), .len = pending(b, i)->len };
	vp_tap_packet(b->c.rq, sg, n, b->hdr_len, why, vp_tap_now());
}

/* Packets of one buffer each: n slots, the first of them at pend[tail]. */
static void tap_given(const struct vp_copyq *b, uint32_t tail, unsigned n)
{
	const uint64_t now = vp_tap_now();

	for (unsigned i = 0; i < n; i++) {
		const struct vp_copyq_slot *sl = &b->slot[b->pend[(tail + i) & b->mask]];

		vp_tap_packet(b->c.rq, &(struct vp_seg){ .p = pool_of(b, sl), .len = sl->len }, 1, b->hdr_len, -1, now);
	}
}

/* The first k pending chains go back empty. */
static int drop(struct vp_copyq *b, struct giving *g, unsigned k, enum vp_drop why)
{
	if (vp_unlikely(vp_queue_tapped(b->c.rq)))
		tap_pending(b, k, why);
	vp_copyq_stat(&b->c.rq->stats.drops[why], 1);
	g->refused++;
	while (k--)
		give(b, g, pending(b, 0), 0);
	return 0;
}

/*
 * The packet that begins with the first pending chain: with offloads, in several buffers, into several pieces, or
 * malformed. 0: done with it; -ENODATA: not all of its buffers are back; -EAGAIN: a translation is awaited; -EFAULT.
 */
static int give_slow(struct vp_copyq *b, struct giving *g)
{
	struct vp_copyq_slot *sl = pending(b, 0);
	const unsigned hlen = b->hdr_len;
	struct virtio_net_hdr h;
	uint8_t raw[12] = { 0 };
	unsigned i, k = 1, pieces = 0;
	uint64_t total = 0;
	int ret;

	if (!sl->len) {
		give(b, g, sl, 0); /* returned unused */
		g->refused++;
		return 0;
	}
	if (sl->len < hlen)
		return drop(b, g, 1, VP_DROP_BAD_PACKET);
	vp_copy_in(raw, pool_of(b, sl), hlen);
	if (b->mergeable)
		k = VP_MAX(raw[10] | (unsigned)raw[11] << 8, 1);
	/* A packet becomes visible as a whole. A wrong number delays what this device VM sends, and nothing else. */
	if (k > b->mask + 1)
		return drop(b, g, 1, VP_DROP_BAD_HEADER);
	if (k > b->pend_head - b->pend_tail)
		return -ENODATA;
	for (i = 0; i < k; i++) {
		if (!pending(b, i)->len)
			return drop(b, g, k, VP_DROP_BAD_PACKET);
		total += pending(b, i)->len;
		pieces += pending(b, i)->nseg;
	}
	if (total < hlen + VP_PKT_MIN)
		return drop(b, g, k, VP_DROP_BAD_PACKET);
	if (total - hlen > VP_PKT_MAX || pieces > VP_PKT_CHAINS_MAX)
		return drop(b, g, k, VP_DROP_TOO_BIG);
	g->pieces += pieces;
	memcpy(&h, raw, sizeof(h));
	if (vp_net_hdr_check_in(&h, (uint32_t)total - hlen, b->c.rq->features))
		return drop(b, g, k, VP_DROP_BAD_HEADER);
	memcpy(raw, &h, sizeof(h));
	raw[10] = (uint8_t)k;
	raw[11] = (uint8_t)(k >> 8);
	ret = put(b, sl, 0, hlen, raw);
	for (i = 0; i < k && !ret; i++)
		ret = put(b, pending(b, i), i ? 0 : hlen, pending(b, i)->len - (i ? 0 : hlen), NULL);
	if (ret)
		return ret;
	if (h.gso_type)
		vp_copyq_stat(&b->c.rq->stats.gso, 1);
	if (vp_unlikely(vp_queue_tapped(b->c.rq)))
		tap_pending(b, k, -1);
	g->packets++;
	g->bytes += total - hlen;
	while (k--)
		give(b, g, pending(b, 0), pending(b, 0)->len);
	return 0;
}

/*
 * The usual packets: no offloads, in one buffer, into one piece that is translated already. Up to max; the first that
 * is not of this kind stays.
 */
VP_INLINE void give_plain(struct vp_copyq *b, struct giving *g, unsigned max, const unsigned hlen)
{
	const struct vp_memtab *const direct = b->c.rq->vq.xl.direct;
	const struct vp_window *w = b->c.rq->vq.xl.hot[VP_WRITE];
	const unsigned count = VP_MIN(b->pend_head - b->pend_tail, max);
	const vp_gptr area = vp_gptr_add(b->c.pool, b->c.data.off);
	const uint32_t tail = b->pend_tail, mask = b->mask;
	struct vp_copyq_slot *const slots = b->slot;
	struct vp_used *const given = b->given + g->n;
	const uint16_t *const pend = b->pend;
	const bool mergeable = b->mergeable;
	const uint64_t left = VP_PKT_RUN_BYTES - g->bytes; /* of the run: it is not spent */
	uint64_t bytes = 0;
	unsigned i;

	for (i = 0; i < count && bytes < left; i++) {
		struct vp_copyq_slot *sl = &slots[pend[(tail + i) & mask]];
		const uint32_t len = sl->len, plen = len - hlen;
		const vp_gptr from = vp_gptr_add(area, sl->off);
		vp_gptr to;

		if (vp_unlikely(len < hlen + VP_PKT_MIN || plen > VP_PKT_MAX || sl->nseg != 1 ||
				!vp_xlate_window(direct, &w, sl->addr, len, VP_WRITE)))
			break;
		/* flags and gso_type, loaded together; when both are zero, nothing else in the header counts. */
		if (vp_unlikely(vp_ld16(from, 0) || (mergeable && vp_ld16(from, 10) > 1)))
			break;
		if (plen > 128 && i + 1 < count) {
			const struct vp_copyq_slot *next = &slots[pend[(tail + i + 1) & mask]];

			if (next->nseg == 1 && next->addr - w->start < w->size &&
			    w->size - (next->addr - w->start) >= next->len)
				vp_pkt_prefetch_rest(vp_gptr_add(w->host, next->addr - w->start),
						     vp_gptr_add(area, next->off), next->len);
		}
		to = vp_gptr_add(w->host, sl->addr - w->start);
		vp_pkt_put_plain_hdr(to, hlen);
		vp_pkt_copy_peer(vp_gptr_add(to, hlen), vp_gptr_add(from, hlen), plen);
		bytes += plen;
		given[i] = (struct vp_used){ .len = len, .id = sl->id, .slots = sl->slots };
		sl->state = VP_COPYQ_DONE;
	}
	b->c.rq->vq.xl.hot[VP_WRITE] = w;
	if (vp_unlikely(vp_queue_tapped(b->c.rq)) && i)
		tap_given(b, tail, i);
	g->n += i;
	g->packets += i;
	g->bytes += bytes;
	b->pend_tail = tail + i;
}

/* What is pending, up to max chains (and the rest of a packet). */
static void give_net(struct vp_copyq *b, struct giving *g, unsigned max)
{
	struct vp_virtq *vq = &b->c.rq->vq;
	bool wait = false;
	int ret = 0;

	while (g->n < max && b->pend_tail != b->pend_head && !spent(g)) {
		if (vp_likely(!vq->log)) {
			if (vp_likely(b->hdr_len == 12))
				give_plain(b, g, max - g->n, 12);
			else
				give_plain(b, g, max - g->n, b->hdr_len);
			if (g->n >= max || b->pend_tail == b->pend_head || spent(g))
				break;
		}
		ret = give_slow(b, g);
		wait = ret == -ENODATA;
		if (ret == -EFAULT)
			vp_vq_break(vq, VP_VQ_BAD_ADDR);
		if (ret)
			break;
	}
	b->again = b->pend_tail != b->pend_head && !wait;
	b->stalled = ret == -EAGAIN;
	if (g->packets) {
		vp_copyq_stat(&b->c.rq->stats.packets, g->packets);
		vp_copyq_stat(&b->c.rq->stats.bytes, g->bytes);
	}
}

unsigned vp_copyq_collect(struct vp_copyq *b, unsigned max, struct vp_copyq_gave *gave)
{
	struct giving g = { 0 };
	unsigned n = 0;

	/* What waits for its other buffers does not count: they have to come in. */
	if (!b->again || b->pend_head - b->pend_tail < max)
		n = take(b, max);
	vp_place_point(VP_POINT_COPY_TOOK);
	if (b->pend_tail != b->pend_head && !b->c.rq->vq.broken)
		give_net(b, &g, max);
	*gave = (struct vp_copyq_gave){ .chains = g.n, .packets = (unsigned)g.packets + g.refused };
	if (b->kept) {
		release(b);
		if (n || g.n)
			vp_copyq_settle(b, g.n);
	} else if (g.n) {
		vp_vq_complete(&b->c.rq->vq, b->given, g.n);
		release(b);
	}
	return VP_MAX(n, g.n);
}
