/* SPDX-License-Identifier: BSD-3-Clause */
#include "copy/packet.h"

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
			/* A full burst of tiny buffers, none taken yet: it will never fit. */
			return first == 0 && f->b->n == VP_BURST ? -EMSGSIZE : -EAGAIN;
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
		from += cur ? 0 : n;
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
	if (!f->taken)
		return false;
	vp_vq_advance(f->vq, f->b, f->taken);
	vp_vq_complete(f->vq, f->used, f->taken);
	f->taken = 0;
	return true;
}
