/* SPDX-License-Identifier: BSD-3-Clause */
/* Building one chain out of descriptors: what both ring formats share. Internal to lib/virtq. */
#ifndef VP_VIRTQ_CHAIN_H
#define VP_VIRTQ_CHAIN_H

#include <linux/virtio_ring.h>

/* Second half of a split descriptor, loaded at once: len, flags, next. */
#define VP_SPLIT_LEN(w)   ((uint32_t)(w))
#define VP_SPLIT_FLAGS(w) ((uint16_t)((w) >> 32))
#define VP_SPLIT_NEXT(w)  ((uint16_t)((w) >> 48))

/* Second half of a packed descriptor: len, id, flags. */
#define VP_PACKED_LEN(w)   ((uint32_t)(w))
#define VP_PACKED_ID(w)    ((uint16_t)((w) >> 32))
#define VP_PACKED_FLAGS(w) ((uint16_t)((w) >> 48))

/*
 * Bring the first lines of a buffer near while the rest of the burst is being read: the
 * virtio-net header and a small packet lie in the first two.
 */
VP_INLINE void vp_seg_prefetch(vp_gptr p, uint32_t len, bool write)
{
	if (write) {
		vp_prefetchw(p, 0);
		vp_prefetchw(p, 64);
	} else {
		vp_prefetch(p, 0);
		vp_prefetch(p, 64);
		if (len > 256) {
			vp_prefetch(p, 128);
			vp_prefetch(p, 192);
		}
	}
}

/* The usual chain: one descriptor, one window. */
VP_INLINE bool vp_chain_single(struct vp_virtq *vq, struct vp_burst *b, uint64_t addr, uint32_t len,
			       bool write, uint16_t id)
{
	struct vp_chain *c = &b->chain[b->n];
	struct vp_seg *s = &b->seg[b->nseg];
	vp_gptr p;

	if (vp_unlikely(!len || b->nseg >= VP_BURST_SEGS || !vp_xlate_hot(&vq->xl, addr, len, write, &p)))
		return false;
	vp_seg_prefetch(p, len, write);
	s->p = p;
	s->addr = addr;
	s->len = len;
	c->seg = b->nseg++;
	c->nout = !write;
	c->nin = write;
	c->out_len = write ? 0 : len;
	c->in_len = write ? len : 0;
	c->id = id;
	c->slots = 1;
	b->n++;
	return true;
}

/* 0, or how the chain ended: > 0 an enum vp_vq_broken, -EAGAIN a vIOMMU miss, -ENOSPC no room in this burst. */
int vp_chain_add(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		 uint32_t len, bool write);

/* A whole indirect table (always of split descriptors in a split ring, of packed ones in a packed ring). */
int vp_chain_indirect(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		      uint32_t len);

/* Start chain b->chain[b->n]; vp_chain_end() makes it count or rolls its segments back. */
VP_INLINE struct vp_chain *vp_chain_begin(struct vp_burst *b)
{
	struct vp_chain *c = &b->chain[b->n];

	*c = (struct vp_chain){ .seg = b->nseg, .slots = 1 };
	return c;
}

/* True when the burst can go on; false when it must end here (the queue may be broken now). */
bool vp_chain_end(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, int how);

#endif
