/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An allocator of contiguous runs of blocks, by bitmap. It takes the lowest place first, so that light
 * use stays in the cache. Runs are given back in any order. The memory is private; nothing allocates
 * after vp_runs_init(). One thread at a time.
 */
#ifndef VP_ENGINE_RUNS_H
#define VP_ENGINE_RUNS_H

#include <stdbool.h>
#include <stdint.h>

struct vp_runs {
	uint64_t *bit;	  /* 1 = free */
	uint32_t n, free; /* blocks */
	uint32_t low;	  /* no word below this one has a free block */
};

struct vp_run {
	uint32_t at, n; /* blocks */
};

/* All n blocks free. -ENOMEM. */
int vp_runs_init(struct vp_runs *r, uint32_t n);
void vp_runs_fini(struct vp_runs *r);

/*
 * Take n > 0 blocks: in one run where there is one, else in up to max runs (the lowest first). Returns
 * the number of runs, or 0: not now.
 */
unsigned vp_runs_take(struct vp_runs *r, uint32_t n, struct vp_run *out, unsigned max);
void vp_runs_give(struct vp_runs *r, const struct vp_run *run);
/* Take these very blocks. False: they are not all there, and free. */
bool vp_runs_claim(struct vp_runs *r, const struct vp_run *run);

#endif
