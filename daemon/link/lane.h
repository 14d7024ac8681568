/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The lanes of a link: what its data threads do, for links of every mode.
 *
 * A lane is the queues that one job serves. What it works on is published as a struct vp_work: a view of rings
 * (view.h), or an engine of copy mode (copy.c). While that is published, it and its queues belong to a data
 * thread, but for what it says itself. To change any of it: vp_lane_withdraw(), for as many lanes as it takes, then one
 * vp_lanes_sync(); from then on it is the main thread's, until vp_lane_publish().
 *
 * Main thread only, except for the operations of a work.
 */
#ifndef VP_DAEMON_LINK_LANE_H
#define VP_DAEMON_LINK_LANE_H

#include "threads/worker.h"

struct vp_work;

/* On a data thread, while the work is published. As struct worker_job_ops, except where said. */
struct vp_work_ops {
	/*
	 * Add to *trouble the things that the main thread has to look at (a broken ring): it is told when their number
	 * changes.
	 */
	unsigned (*run)(struct vp_work *w, struct vp_scratch *s, unsigned *trouble);
	enum worker_next (*arm)(struct vp_work *w);
	void (*disarm)(struct vp_work *w);
	/*
	 * ? Main thread: it was withdrawn, and no data thread has it any more. Without it the work stays its owner's.
	 */
	void (*free)(struct vp_work *w);
};

/* Embedded in what is worked on, first. */
struct vp_work {
	const struct vp_work_ops *ops;
	unsigned                  open;  /* answers that it waits for, after a run */
	struct vp_work           *next;  /* private to lane.c */
};

struct vp_lanes;

/* n lanes, each of which may wait for that many fds; none has a job yet. NULL: no memory. */
struct vp_lanes *vp_lanes_new(struct worker_pool *p, unsigned n, unsigned fds);
/*
 * Lane i gets its job, on the thread with the fewest. thrifty: what it waits for may need the thread's very CPU
 * (worker.h). Notifications that it sees are added to *wakes, NULL = to nothing. 0, -ENOMEM.
 */
int vp_lane_add(struct vp_lanes *ls, unsigned i, bool thrifty, uint64_t *wakes);
/* Withdraws all. NULL is allowed. */
void vp_lanes_free(struct vp_lanes *ls);

/* Before lane i is published: it runs when fd is signalled, until it is withdrawn. As worker_job_watch(). */
int vp_lane_watch(struct vp_lanes *ls, unsigned i, int fd);
/* Lane i has a job and no work. It runs soon. */
void vp_lane_publish(struct vp_lanes *ls, unsigned i, struct vp_work *w);
/* NULL = it has none. */
struct vp_work *vp_lane_work(const struct vp_lanes *ls, unsigned i);

/* Take its work from lane i, if it has any. A data thread may still be at it until vp_lanes_sync(). */
void vp_lane_withdraw(struct vp_lanes *ls, unsigned i);
/* What was withdrawn is in no data thread's hands when this returns. A grace period, where anything was. */
void vp_lanes_sync(struct vp_lanes *ls);

/*
 * Of all lanes of a pool: where a data thread is full and another one has room, move a lane there (one at a time). To
 * be called when a data thread asks for attention.
 */
void vp_lanes_place(struct worker_pool *p);

/* What they wait for may have come: all that have work run soon. */
void vp_lanes_poke(struct vp_lanes *ls);

#endif
