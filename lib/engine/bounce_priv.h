/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two halves of the copy engine share. Internal to lib/engine. */
#ifndef VP_COPY_BOUNCE_PRIV_H
#define VP_COPY_BOUNCE_PRIV_H

#include "engine/bounce.h"

/* Single writer: a plain add, published as a relaxed store so that readers never see half of it. */
VP_INLINE void vp_bounce_stat(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

VP_INLINE void vp_bounce_pend(struct vp_bounce *b, uint32_t slot)
{
	b->pend[b->pend_head++ & b->mask] = (uint16_t)(slot & b->mask);
}

/* in_order: what is back at the front of the slots that the driver has not got yet. */
VP_INLINE void vp_bounce_pend_in_order(struct vp_bounce *b)
{
	while (b->order != b->head && b->slot[b->order & b->mask].state == VP_BOUNCE_BACK)
		vp_bounce_pend(b, b->order++);
}

/* early: note up to max buffers that the device VM returned. How many. */
unsigned vp_bounce_reclaim(struct vp_bounce *b, unsigned max);

struct vp_bounce_gave {
	unsigned chains;   /* completed */
	unsigned packets;  /* in them, or what a device VM returned instead; other devices than net: chains */
};

/* Take up to max returned buffers and give them to the driver. How many moved. */
unsigned vp_bounce_collect(struct vp_bounce *b, unsigned max, struct vp_bounce_gave *gave);

#endif
