/* SPDX-License-Identifier: BSD-3-Clause */
/* How one chain is built out of descriptors: what both ring formats share. Internal to lib/virtq. */
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
 * Bring the first lines of a buffer near while the rest of the burst is being read. The virtio-net
 * header and a small packet lie in the first two.
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

/*
 * The usual chain: one descriptor (no NEXT, no INDIRECT) in the usual direction, whose flags the caller
 * has seen. This checks that it lies in one region, see vp_xlate_window(). The caller passes in everything
 * that the fetch loops keep in registers. False leaves all to the slow path.
 */
VP_INLINE bool vp_chain_single(struct vp_burst *b, unsigned n, unsigned nseg, const struct vp_memtab *direct,
			       const struct vp_window **w, uint64_t addr, uint32_t len, enum vp_access hint,
			       uint16_t id)
{
	struct vp_chain *c = &b->chain[n];
	struct vp_seg *s = &b->seg[nseg];

	if (vp_unlikely(!vp_xlate_window(direct, w, addr, len, hint)))
		return false;
	s->p = vp_gptr_add((*w)->host, addr - (*w)->start);
	s->addr = addr;
	s->len = len;
	vp_seg_prefetch(s->p, len, hint == VP_WRITE);
	c->out_len = hint == VP_WRITE ? 0 : len;
	c->in_len = hint == VP_WRITE ? len : 0;
	c->nout = hint != VP_WRITE;
	c->nin = hint == VP_WRITE;
	c->slots = 1;
	c->id = id;
	c->seg = nseg;
	return true;
}

/* The same for vp_vq_fetch_plain(). */
VP_INLINE bool vp_chain_plain(struct vp_plain *o, const struct vp_memtab *direct, const struct vp_window **w,
			      uint64_t addr, uint32_t len, enum vp_access hint, uint16_t id)
{
	if (vp_unlikely(!vp_xlate_window(direct, w, addr, len, hint)))
		return false;
	o->p = vp_gptr_add((*w)->host, addr - (*w)->start);
	o->addr = addr;
	o->len = len;
	o->id = id;
	vp_seg_prefetch(o->p, len, hint == VP_WRITE);
	return true;
}

#define VP_DESC_FLAGS (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT)

/* 0, or how the chain ended: > 0 an enum vp_vq_broken, -EAGAIN a vIOMMU miss, -ENOSPC no room in this burst. */
int vp_chain_add(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		 uint32_t len, bool write);

/* A whole indirect table (always of split descriptors in a split ring, of packed ones in a packed ring). */
int vp_chain_indirect(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		      uint32_t len);

/* Does the burst have its bytes already? Then the chain comes with the next one. */
VP_INLINE bool vp_burst_full(struct vp_burst *b)
{
	if (vp_likely(b->bytes < VP_BURST_BYTES))
		return false;
	b->more = true;
	return true;
}

/* Start chain b->chain[b->n]; vp_chain_end() makes it count or rolls its segments back. */
VP_INLINE struct vp_chain *vp_chain_begin(struct vp_burst *b)
{
	struct vp_chain *c = &b->chain[b->n];

	b->slow = true;
	*c = (struct vp_chain){ .seg = b->nseg, .slots = 1 };
	return c;
}

/* True when the burst can go on; false when it must end here (the queue may be broken now). */
bool vp_chain_end(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, int how);

#endif
