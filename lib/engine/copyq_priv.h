/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two halves of the copy engine share. Internal to lib/engine. */
#ifndef VP_ENGINE_COPYQ_PRIV_H
#define VP_ENGINE_COPYQ_PRIV_H

#include "engine/copyq.h"

/* Single writer: a plain add, published as a relaxed store so that readers never see half of it. */
VP_INLINE void vp_copyq_stat(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

VP_INLINE void vp_copyq_pend(struct vp_copyq *b, uint32_t slot)
{
	b->pend[b->pend_head++ & b->mask] = (uint16_t)(slot & b->mask);
}

/* in_order: what is back at the front of the slots that the driver has not got yet. */
VP_INLINE void vp_copyq_pend_in_order(struct vp_copyq *b)
{
	while (b->order != b->head && b->slot[b->order & b->mask].state == VP_COPYQ_BACK)
		vp_copyq_pend(b, b->order++);
}

/* early: note up to max buffers that the device VM returned. How many. */
unsigned vp_copyq_reclaim(struct vp_copyq *b, unsigned max);

struct vp_copyq_gave {
	unsigned chains;   /* completed */
	unsigned packets;  /* in them, or what a device VM returned instead; other devices than net: chains */
};

/* Take up to max returned buffers and give them to the driver. How many moved. */
unsigned vp_copyq_collect(struct vp_copyq *b, unsigned max, struct vp_copyq_gave *gave);

#endif
