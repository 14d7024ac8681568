/* SPDX-License-Identifier: BSD-3-Clause */
/* Packed rings off the fast path: chains of several descriptors, dirty logging. */
#include "virtq/virtq.h"

static int packed_walk(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint16_t slot,
		       uint64_t w)
{
	unsigned slots;
	int ret;

	/*
	 * The head is available, so are the rest of its chain (2.8.6: the driver makes
	 * the head available last); their AVAIL and USED bits need no look.
	 */
	for (slots = 1; slots <= vq->size; slots++) {
		uint64_t addr = vp_ld64(vq->desc, 16 * (size_t)slot);
		uint16_t flags = VP_PACKED_FLAGS(w);

		/* 2.8.6: the id of a chain stands in its last descriptor. */
		c->id = VP_PACKED_ID(w);
		c->slots = (uint16_t)slots;
		if (flags & VRING_DESC_F_INDIRECT) {
			if (flags & VRING_DESC_F_NEXT || slots > 1)
				return VP_VQ_BAD_INDIRECT;
			return vp_chain_indirect(vq, b, c, addr, VP_PACKED_LEN(w));
		}
		ret = vp_chain_add(vq, b, c, addr, VP_PACKED_LEN(w), flags & VRING_DESC_F_WRITE);
		if (ret || !(flags & VRING_DESC_F_NEXT))
			return ret;
		slot = slot + 1 == vq->size ? 0 : (uint16_t)(slot + 1);
		w = vp_packed_load(vq->desc, slot);
	}
	return VP_VQ_BAD_CHAIN;
}

bool vp_packed_chain(struct vp_virtq *vq, struct vp_burst *b, uint16_t slot, uint64_t w)
{
	struct vp_chain *c;

	if (vp_burst_full(b))
		return false;
	c = vp_chain_begin(b);
	return vp_chain_end(vq, b, c, packed_walk(vq, b, c, slot, w));
}

static int saved_walk(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, const struct vp_packed_saved *d,
		      unsigned n)
{
	int ret;

	for (unsigned i = 0; i < n; i++) {
		c->id = d[i].id;
		c->slots = (uint16_t)n;
		if (!(d[i].flags & VRING_DESC_F_NEXT) != (i == n - 1))
			return VP_VQ_BAD_CHAIN;
		if (d[i].flags & VRING_DESC_F_INDIRECT)
			return n > 1 ? VP_VQ_BAD_INDIRECT : vp_chain_indirect(vq, b, c, d[i].addr, d[i].len);
		ret = vp_chain_add(vq, b, c, d[i].addr, d[i].len, d[i].flags & VRING_DESC_F_WRITE);
		if (ret)
			return ret;
	}
	return 0;
}

bool vp_packed_saved_chain(struct vp_virtq *vq, struct vp_burst *b, const struct vp_packed_saved *d, unsigned n)
{
	struct vp_chain *c;

	if (vp_burst_full(b))
		return false;
	c = vp_chain_begin(b);
	return vp_chain_end(vq, b, c, saved_walk(vq, b, c, d, n));
}

void vp_packed_log_used(struct vp_virtq *vq, uint16_t slot)
{
	/* Used descriptors are written into the descriptor ring itself. */
	if (vq->log_ring)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, vq->desc_addr + 16 * (uint64_t)slot, 16);
}
