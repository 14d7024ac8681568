/* SPDX-License-Identifier: BSD-3-Clause */
/* Which job moves to which data thread. Knows loads only: no threads, no clock. */
#ifndef VP_DAEMON_THREADS_PLACEMENT_H
#define VP_DAEMON_THREADS_PLACEMENT_H

#include <stdbool.h>

#define VP_LOAD_FULL 1000u  /* of a thread that does nothing but work */

struct vp_load {
	unsigned thread;  /* where the job is */
	unsigned load;    /* what it takes of that thread, of VP_LOAD_FULL */
	bool     may;     /* it may move */
};

/*
 * Of n jobs on so many threads (at most 64), the one to move and its new thread. -1: none. A job moves from the thread
 * with the most work to that with the least, and only when the first is at least half full and the two are clearly
 * apart: by a fifth of a thread. It is the one that leaves the busier of the two with the least work. So loads that do
 * not change come to rest.
 */
int vp_placement_pick(const struct vp_load *v, unsigned n, unsigned threads, unsigned *to);

#endif
