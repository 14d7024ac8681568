/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: what data threads do of a queue, see port_link.h. */
#include "link/port_link.h"

#include <errno.h>
#include <stdlib.h>
#include <urcu/urcu-qsbr.h>

#include "base/util.h"
#include "base/watch.h"
#include "context/context.h"
#include "engine/relay.h"
#include "guestmem/map.h"

/* One queue's work on a data thread: the mode's while the device VM has it, draining a transmit queue that nobody has. */
struct vp_lane {
	struct worker_job           job;    /* first */
	const struct vp_plink_mode *m;
	void                       *own;    /* RCU; the mode's, NULL = nothing */
	struct vp_queue      *drain;  /* RCU; NULL = nothing to drain */
	bool                        told;   /* attention was asked for (data thread's own) */
	unsigned                    lost_seen; /* vp_map_lost_count() when last looked (data thread's own) */
	/* main thread */
	bool                        published, added;
	struct vp_watch            *kick, *bell;  /* NULL = none; other threads only ask whether */
};

static unsigned lane_run(struct worker_job *j, struct vp_scratch *s)
{
	struct vp_lane *ln = vp_container_of(j, struct vp_lane, job);
	void *own = rcu_dereference(ln->own);
	struct vp_queue *rq = own ? NULL : rcu_dereference(ln->drain);
	unsigned n, lost;
	bool broken;

	if (own) {
		n = ln->m->run(own, s);
		broken = ln->m->attention(own);
	} else if (rq) {
		n = vp_relay_run(rq, NULL, s);
		broken = rq->vq.broken;
	} else {
		return 0;
	}
	if (vp_unlikely(broken && !ln->told)) {
		ln->told = true;
		worker_attention(j);
	}
	/* A file was truncated under somebody: whose it was, the main thread finds out. */
	lost = vp_map_lost_count();
	if (vp_unlikely(lost != ln->lost_seen)) {
		ln->lost_seen = lost;
		worker_attention(j);
	}
	return n;
}

static enum worker_next lane_arm(struct worker_job *j)
{
	struct vp_lane *ln = vp_container_of(j, struct vp_lane, job);
	void *own = rcu_dereference(ln->own);
	struct vp_queue *rq = rcu_dereference(ln->drain);

	if (own)
		return ln->m->arm(own, ln->kick != NULL);
	if (rq && vp_queue_must_wait(rq))
		return WORKER_LATER;
	/* Without a kick fd the driver expects polling: then a look now and then would do, but nobody is in a hurry to drop. */
	return rq && !rq->vq.broken && !rq->vq.stalled && vp_vq_enable_kicks(&rq->vq) ? WORKER_AGAIN : WORKER_SLEEP;
}

static void lane_disarm(struct worker_job *j)
{
	struct vp_lane *ln = vp_container_of(j, struct vp_lane, job);
	void *own = rcu_dereference(ln->own);
	struct vp_queue *rq = rcu_dereference(ln->drain);

	if (own)
		ln->m->disarm(own);
	else if (rq && !rq->vq.broken)
		vp_vq_disable_kicks(&rq->vq);
}

static const struct worker_job_ops lane_ops = { .run = lane_run, .arm = lane_arm, .disarm = lane_disarm };

/* True: a grace period is needed before what it used is touched. */
static bool lane_unpublish(struct vp_lane *ln)
{
	if (!ln->published)
		return false;
	rcu_assign_pointer(ln->own, NULL);
	rcu_assign_pointer(ln->drain, NULL);
	vp_watch_end(&ln->kick);
	vp_watch_end(&ln->bell);
	ln->published = false;
	return true;
}

void vp_lanes_withdraw(struct vp_plink *pl, unsigned first, unsigned n)
{
	bool grace = false;

	for (unsigned i = first; pl->lane && i < first + n; i++)
		grace |= lane_unpublish(&pl->lane[i]);
	if (grace)
		urcu_qsbr_synchronize_rcu();
}

void vp_lane_publish(struct vp_plink *pl, unsigned i)
{
	struct vp_lane *ln = pl->lane ? &pl->lane[i] : NULL;
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	bool handed = pl->q[i].handed;
	int bell;

	if (!ln || !ln->added || ln->published || r->rq.vq.broken || (handed ? !pl->m->lanes : !vp_plink_drops(pl, i)))
		return;
	/* The device VM may still be at work on the driver's own ring, as it is when there are no lanes. port_released() tries again. */
	if (!handed && !pl->m->lanes && vp_port_queue_await(pl->port, i) == VP_LATER)
		return;
	ln->told = false;
	/* What cannot be waited for is polled. */
	if (r->kick_fd >= 0)
		worker_job_watch(&ln->kick, &ln->job, r->kick_fd);
	if (handed) {
		bell = pl->att->ops->call_fd(pl->att, 1 + i);
		if (bell >= 0)
			worker_job_watch(&ln->bell, &ln->job, bell);
		if (pl->m->open)
			pl->m->open(pl, i, r->enabled && !pl->q[i].stop_owed);
		rcu_assign_pointer(ln->own, pl->m->lane(pl, i));
	} else {
		rcu_assign_pointer(ln->drain, &r->rq);
	}
	ln->published = true;
	worker_poke(&ln->job);
}

void vp_lanes_free(struct vp_plink *pl)
{
	for (unsigned i = 0; pl->lane && i < pl->n; i++) {
		lane_unpublish(&pl->lane[i]);
		if (pl->lane[i].added)
			worker_job_retire(pl->l->d->workers, &pl->lane[i].job);
	}
	/* All at once: each grace period lasts as long as a round of the slowest thread. */
	worker_jobs_reap(pl->l->d->workers);
	free(pl->lane);
	pl->lane = NULL;
}

int vp_lanes_make(struct vp_plink *pl)
{
	if (pl->lane)
		return 0;
	pl->lane = calloc(pl->n, sizeof(*pl->lane));
	if (!pl->lane)
		return -ENOMEM;
	for (unsigned i = 0; i < pl->n; i++) {
		struct vp_lane *ln = &pl->lane[i];
		int r;

		ln->job.ops = &lane_ops;
		ln->job.wakes = &pl->l->wakes[VP_SIDE_DRIVER];
		ln->m = pl->m;
		ln->lost_seen = vp_map_lost_count();
		if (!pl->m->lanes && !vp_plink_drops(pl, i))
			continue;  /* nobody drains it */
		r = worker_job_add(pl->l->d->workers, &ln->job, NULL);
		if (r) {
			vp_lanes_free(pl);
			return r;
		}
		ln->added = true;
	}
	return 0;
}

void vp_lanes_poke(struct vp_plink *pl)
{
	for (unsigned i = 0; pl->lane && i < pl->n; i++)
		if (pl->lane[i].published)
			worker_poke(&pl->lane[i].job);
}
