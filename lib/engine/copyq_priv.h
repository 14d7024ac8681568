/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two halves of the copy engine share, and with them the one for requests. Internal to lib/engine. */
#ifndef VP_ENGINE_COPYQ_PRIV_H
#define VP_ENGINE_COPYQ_PRIV_H

#include "base/cycles.h"
#include "engine/copyq.h"

/* Single writer: a plain add, published as a relaxed store so that readers never see half of it. */
VP_INLINE void vp_copyq_stat(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

/*
 * The end of an engine's run that began at `start`: the device VM is notified when something was handed over, the
 * driver when something was given back, where they want it. The device VM's fd may be one that its VMM shares and can
 * make block, as a driver's call fd can: then the supervisor interrupts it (vp_queue_call()), and the device VM's run
 * is over.
 */
VP_INLINE void vp_copyq_notify(struct vp_queue *rq, struct vp_drvq *shadow, int kick_fd, uint64_t kick_who,
			       uint64_t *kicks, bool handed, bool gave, uint64_t start, struct vp_scratch *s)
{
	unsigned calls = 0;

	/* What was published for either end before the look at its event field. Pairs with the barriers of both. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (handed && vp_drvq_need_kick_fenced(shadow)) {
		++*kicks;
		if (vp_unlikely(vp_notify(kick_fd, kick_who, s)))
			shadow->broken = true;
		calls++;
	}
	if (gave && vp_vq_need_call_fenced(&rq->vq)) {
		vp_queue_call(rq, s);
		calls++;
	}
	vp_copyq_stat(&rq->stats.calls, calls);
	vp_copyq_stat(&rq->stats.bursts, 1);
	vp_copyq_stat(&rq->stats.busy_cycles, vp_cycles() - start);
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

/* ---- what outlives the process (copyq_kept.c) ---- */

/* Pieces of chains that the device VM has, beyond two for each: Linux's buffers without MRG_RXBUF have 19. */
#define VP_COPYQ_SEGS 4096u
#define VP_COPYQ_SEGS_MAX (VP_COPYQ_SEGS + VP_BURST + 2 * VP_COPYQ_RING_MAX)

/* The tables of b, in b->c.kept. */
void vp_copyq_kept_tables(struct vp_copyq *b);
/* Its shadow ring is there: b begins, where it is now. */
void vp_copyq_kept_begin(struct vp_copyq *b);
/* As vp_copyq_recover(), its shadow ring too, which lies in mem. */
int  vp_copyq_kept_recover(struct vp_copyq *b, uint16_t size, vp_gptr mem);
uint64_t vp_copyq_kept_features(const struct vp_copyq_kept *k);
/* No index of its tables leads out of them, an area, or a ring (copyq_setup.c). */
bool vp_copyq_sound(const struct vp_copyq *b);
/*
 * A step is over, and all that it did counts from one store in here on, behind which both ends see it: what was added
 * to the shadow ring, and the first n of b->given, which the driver gets. A step takes from the driver, or collects,
 * and not both: what one sets free, another one uses. With b->kept.
 */
void vp_copyq_settle(struct vp_copyq *b, unsigned n);

/* early: note up to max buffers that the device VM returned. How many. */
unsigned vp_copyq_reclaim(struct vp_copyq *b, unsigned max);

struct vp_copyq_gave {
	unsigned chains;   /* completed */
	unsigned packets;  /* in them, or what a device VM returned instead */
};

/* Take up to max returned buffers and give them to the driver. How many moved. */
unsigned vp_copyq_collect(struct vp_copyq *b, unsigned max, struct vp_copyq_gave *gave);

#endif
