/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/packet.h"

#include <errno.h>

const uint8_t vp_pkt_plain_hdr[12] = { [10] = 1 };

VP_INLINE void cursor_step(struct vp_cursor *c, uint32_t n)
{
	c->off += n;
	if (c->off == c->s->len) {
		c->s++;
		c->off = 0;
	}
}

void vp_pkt_gather(struct vp_cursor *cur, void *dst, uint32_t n)
{
	uint8_t *to = dst;

	while (n) {
		uint32_t k = VP_MIN(n, cur->s->len - cur->off);

		vp_copy_in(to, vp_gptr_add(cur->s->p, cur->off), k);
		to += k;
		n -= k;
		cursor_step(cur, k);
	}
}

void vp_pkt_scatter(struct vp_cursor *d, struct vp_cursor *cur, const void *priv, uint32_t n)
{
	const uint8_t *from = priv;

	while (n) {
		uint32_t k = VP_MIN(n, d->s->len - d->off);

		if (cur) {
			k = VP_MIN(k, cur->s->len - cur->off);
			vp_copy_peer(vp_gptr_add(d->s->p, d->off), vp_gptr_add(cur->s->p, cur->off), k);
			cursor_step(cur, k);
		} else {
			vp_copy_out(vp_gptr_add(d->s->p, d->off), from, k);
			from += k;
		}
		n -= k;
		cursor_step(d, k);
	}
}

void vp_pkt_log(struct vp_virtq *vq, const struct vp_burst *b, const struct vp_chain *c, uint32_t len)
{
	const struct vp_seg *s = &b->seg[c->seg + c->nout];

	while (len) {
		uint32_t k = VP_MIN(len, s->len);

		vp_dirty_log_mark_xlate(vq->log, &vq->xl, s->addr, k);
		len -= k;
		s++;
	}
}

/* Our place in the ring. Chains taken from there on can be taken again, as long as none was completed. */
struct place {
	uint16_t last_avail;
	bool     wrap;
};

static struct place place_get(const struct vp_virtq *vq)
{
	return (struct place){ vq->last_avail, vq->avail_wrap };
}

static void place_set(struct vp_virtq *vq, struct place p)
{
	vq->last_avail = p.last_avail;
	vq->avail_wrap = p.wrap;
}

unsigned vp_rxfill_fetch(struct vp_rxfill *f)
{
	vp_burst_clear(f->b);
	if (f->looked >= VP_PKT_CHAINS_MAX)
		return 0;
	vp_vq_fetch_dir(f->vq, f->b, VP_BURST, VP_WRITE);
	f->looked += vp_burst_looked(f->b);
	return f->b->n;
}

/*
 * The next chain of the ring, burst after burst; *at runs through the present burst. NULL: there is no
 * more, or the queue is broken.
 */
static const struct vp_chain *next_chain(struct vp_rxfill *f, unsigned *at)
{
	const struct vp_chain *c;

	if (*at == f->b->n) {
		vp_vq_advance(f->vq, f->b, f->b->n);
		*at = 0;
		if (!vp_rxfill_fetch(f))
			return NULL;
	}
	c = &f->b->chain[(*at)++];
	if (c->nout || c->in_len < f->hdr_len) {
		vp_vq_break(f->vq, VP_VQ_BAD_BUFFER);
		return NULL;
	}
	return c;
}

int vp_rxfill_room(struct vp_rxfill *f, uint32_t plen, unsigned n, unsigned *chains)
{
	const struct place start = place_get(f->vq);
	const uint64_t need = (uint64_t)f->hdr_len + plen;
	unsigned at = 0, slots = 0, k = 0;
	int ret = 0;

	vp_burst_clear(f->b);
	f->looked = 0;
	for (; n && !ret; n--) {
		uint64_t have = 0;

		while (have < need) {
			const struct vp_chain *c;

			if (have && !f->mergeable) {
				ret = -EMSGSIZE;
				break;
			}
			c = slots < f->vq->size && k < VP_PKT_CHAINS_MAX ? next_chain(f, &at) : NULL;
			if (!c) {
				/*
				 * Not enough: this was every buffer that there can be, or more than a
				 * packet may cost.
				 */
				bool all = slots >= f->vq->size || k >= VP_PKT_CHAINS_MAX ||
					   f->looked >= VP_PKT_CHAINS_MAX;

				ret = f->vq->broken ? -EIO : all ? -EMSGSIZE : -EAGAIN;
				break;
			}
			have += c->in_len;
			slots += c->slots;
			k++;
		}
	}
	place_set(f->vq, start);
	vp_burst_clear(f->b);
	f->looked = 0;
	*chains = k;
	return ret;
}

/*
 * A packet that takes more chains than a burst has. They are counted first, then filled, then given
 * back together.
 */
static __attribute__((noinline)) int put_long(struct vp_rxfill *f, const struct virtio_net_hdr *h,
					      const struct vp_cursor *cur, const uint8_t *priv, uint32_t plen)
{
	const struct place start = place_get(f->vq);
	struct vp_used used[VP_PKT_CHAINS_MAX];
	struct vp_cursor from = { 0 };
	unsigned chains, at = 0, i;
	uint8_t hdr[12];
	int ret = vp_rxfill_room(f, plen, 1, &chains);

	if (ret)
		return ret;
	if (cur)
		from = *cur;
	memcpy(hdr, h, sizeof(*h));
	hdr[10] = (uint8_t)chains; /* num_buffers, little-endian */
	hdr[11] = (uint8_t)(chains >> 8);
	for (i = 0; i < chains; i++) {
		const struct vp_chain *c = next_chain(f, &at);
		struct vp_cursor d;
		uint32_t head, n;

		if (!c) {
			/*
			 * A chain that was there is there no more: a translation was taken back, or the
			 * driver takes back what it gave.
			 */
			place_set(f->vq, start);
			vp_burst_clear(f->b);
			return f->vq->broken ? -EIO : -EAGAIN;
		}
		d = (struct vp_cursor){ &f->b->seg[c->seg], 0 };
		head = i ? 0 : f->hdr_len;
		n = VP_MIN(c->in_len - head, plen);
		vp_pkt_scatter(&d, NULL, hdr, head);
		vp_pkt_scatter(&d, cur ? &from : NULL, priv, n);
		if (!cur)
			priv += n;
		plen -= n;
		used[i] = (struct vp_used){ .len = head + n, .id = c->id, .slots = c->slots };
		if (vp_unlikely(f->vq->log))
			vp_pkt_log(f->vq, f->b, c, head + n);
	}
	if (plen) {
		vp_vq_break(f->vq, VP_VQ_BAD_CHAIN); /* its buffers shrank meanwhile */
		return -EIO;
	}
	if (f->early)
		f->early(f);
	vp_vq_advance(f->vq, f->b, at);
	vp_vq_complete(f->vq, used, chains);
	vp_burst_clear(f->b);
	f->direct = true;
	return 0;
}

int vp_pkt_put(struct vp_rxfill *f, const struct virtio_net_hdr *h, struct vp_cursor *cur,
	       const void *priv, uint32_t plen)
{
	uint64_t have = 0, need = (uint64_t)f->hdr_len + plen;
	unsigned first = f->taken, last, i;
	const uint8_t *from = priv;
	uint8_t hdr[12];

	for (last = first; have < need; last++) {
		const struct vp_chain *c = &f->b->chain[last];

		/* More buffers would not help. */
		if (last > first && !f->mergeable)
			return -EMSGSIZE;
		if (last == f->b->n)
			return first == 0 && vp_rxfill_more(f) ? put_long(f, h, cur, priv, plen) : -EAGAIN;
		if (c->nout || c->in_len < f->hdr_len) {
			vp_vq_break(f->vq, VP_VQ_BAD_BUFFER);
			return -EIO;
		}
		have += c->in_len;
	}
	memcpy(hdr, h, sizeof(*h));
	hdr[10] = (uint8_t)(last - first); /* num_buffers, little-endian */
	hdr[11] = 0;
	for (i = first; i < last; i++) {
		const struct vp_chain *c = &f->b->chain[i];
		struct vp_cursor d = { &f->b->seg[c->seg], 0 };
		uint32_t head = i == first ? f->hdr_len : 0, n = VP_MIN(c->in_len - head, plen);

		vp_pkt_scatter(&d, NULL, hdr, head);
		vp_pkt_scatter(&d, cur, from, n);
		if (!cur)
			from += n;
		plen -= n;
		f->used[i] = (struct vp_used){ .len = head + n, .id = c->id, .slots = c->slots };
		if (vp_unlikely(f->vq->log))
			vp_pkt_log(f->vq, f->b, c, head + n);
	}
	f->taken = last;
	return 0;
}

bool vp_rxfill_flush(struct vp_rxfill *f)
{
	bool direct = f->direct;

	f->direct = false;
	if (!f->taken)
		return direct;
	vp_vq_advance(f->vq, f->b, f->taken);
	vp_vq_complete(f->vq, f->used, f->taken);
	f->taken = 0;
	return true;
}
