/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/lane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <urcu/urcu-qsbr.h>

#include "base/log.h"
#include "base/util.h"
#include "base/watch.h"
#include "guestmem/map.h"

struct vp_lane {
	struct worker_job job;       /* first: the ops get a pointer to it */
	struct vp_lanes  *all;
	struct vp_work   *work;      /* RCU; NULL = nothing to do */
	/* the data thread's own */
	unsigned          told;      /* trouble that attention was asked for */
	unsigned          lost_seen; /* vp_map_lost_count() when last looked */
	/* main thread */
	struct vp_work   *published;
	unsigned          n_watch;
	bool              added;
};

struct vp_lanes {
	struct worker_pool *pool;
	unsigned            n, fds;
	struct vp_work     *withdrawn; /* since the last grace period */
	struct vp_watch   **watch;     /* [n][fds] */
	struct vp_lane      lane[];
};

/* ---- data threads ---------------------------------------------------------------------------- */

static unsigned lane_run(struct worker_job *j, struct vp_scratch *s)
{
	struct vp_lane *ln = vp_container_of(j, struct vp_lane, job);
	struct vp_work *w = rcu_dereference(ln->work);
	unsigned n, lost, trouble = 0;

	if (!w)
		return 0;
	n = w->ops->run(w, s, &trouble);
	j->open = w->open;
	if (vp_unlikely(trouble != ln->told)) {
		ln->told = trouble;
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
	struct vp_work *w = rcu_dereference(vp_container_of(j, struct vp_lane, job)->work);

	return w ? w->ops->arm(w) : WORKER_SLEEP;
}

static void lane_disarm(struct worker_job *j)
{
	struct vp_work *w = rcu_dereference(vp_container_of(j, struct vp_lane, job)->work);

	if (w)
		w->ops->disarm(w);
}

static const struct worker_job_ops lane_ops = { .run = lane_run, .arm = lane_arm, .disarm = lane_disarm };

/* ---- main thread ------------------------------------------------------------------------------- */

struct vp_lanes *vp_lanes_new(struct worker_pool *p, unsigned n, unsigned fds)
{
	struct vp_lanes *ls = calloc(1, sizeof(*ls) + n * sizeof(ls->lane[0]));

	if (!ls)
		return NULL;
	ls->watch = calloc((size_t)n * fds, sizeof(*ls->watch));
	if (!ls->watch) {
		free(ls);
		return NULL;
	}
	ls->pool = p;
	ls->n = n;
	ls->fds = fds;
	for (unsigned i = 0; i < n; i++) {
		ls->lane[i].all = ls;
		ls->lane[i].job.ops = &lane_ops;
		ls->lane[i].lost_seen = vp_map_lost_count();
	}
	return ls;
}

int vp_lane_add(struct vp_lanes *ls, unsigned i, bool thrifty, uint64_t *wakes)
{
	int r;

	ls->lane[i].job.wakes = wakes;
	ls->lane[i].job.thrifty = thrifty;
	r = worker_job_add(ls->pool, &ls->lane[i].job, NULL);
	ls->lane[i].added = !r;
	return r;
}

int vp_lane_watch(struct vp_lanes *ls, unsigned i, int fd)
{
	struct vp_lane *ln = &ls->lane[i];
	int r;

	if (ln->n_watch == ls->fds)
		return -ENOSPC;
	r = worker_job_watch(&ls->watch[(size_t)i * ls->fds + ln->n_watch], &ln->job, fd);
	if (!r)
		ln->n_watch++;
	return r;
}

void vp_lane_publish(struct vp_lanes *ls, unsigned i, struct vp_work *w)
{
	struct vp_lane *ln = &ls->lane[i];

	ln->told = 0;
	ln->published = w;
	rcu_assign_pointer(ln->work, w);
	worker_poke(&ln->job);
}

struct vp_work *vp_lane_work(const struct vp_lanes *ls, unsigned i)
{
	return ls->lane[i].published;
}

void vp_lane_withdraw(struct vp_lanes *ls, unsigned i)
{
	struct vp_lane *ln = &ls->lane[i];

	if (!ln->published)
		return;
	rcu_assign_pointer(ln->work, NULL);
	ln->published->next = ls->withdrawn;
	ls->withdrawn = ln->published;
	ln->published = NULL;
	while (ln->n_watch)
		vp_watch_end(&ls->watch[(size_t)i * ls->fds + --ln->n_watch]);
}

static void withdrawn_free(struct vp_lanes *ls)
{
	struct vp_work *w;

	while ((w = ls->withdrawn)) {
		ls->withdrawn = w->next;
		w->next = NULL;
		if (w->ops->free)
			w->ops->free(w);
	}
}

void vp_lanes_sync(struct vp_lanes *ls)
{
	if (!ls->withdrawn)
		return;
	urcu_qsbr_synchronize_rcu();
	withdrawn_free(ls);
}

void vp_lanes_free(struct vp_lanes *ls)
{
	if (!ls)
		return;
	for (unsigned i = 0; i < ls->n; i++) {
		vp_lane_withdraw(ls, i);
		if (ls->lane[i].added)
			worker_job_retire(ls->pool, &ls->lane[i].job);
	}
	/* All at once: each grace period lasts as long as a round of the slowest thread. */
	worker_jobs_reap(ls->pool);
	withdrawn_free(ls);
	free(ls->watch);
	free(ls);
}

void vp_lanes_place(struct worker_pool *p)
{
	unsigned to;
	struct worker_job *j = worker_pool_uneven(p, &to);
	struct vp_lane *ln = j ? vp_container_of(j, struct vp_lane, job) : NULL;
	struct vp_lanes *ls;
	int r;

	if (!ln)
		return;
	ls = ln->all;
	r = worker_job_move(p, j, to, &ls->watch[(size_t)(ln - ls->lane) * ls->fds], ln->n_watch);
	if (r)
		vp_log(VP_LOG_WARNING, "a queue cannot move to data thread %u, which has less to do than its own: %s",
		       to, strerror(-r));
	else
		vp_log(VP_LOG_DEBUG, "a queue moved to data thread %u, which has less to do", to);
}

void vp_lanes_poke(struct vp_lanes *ls)
{
	for (unsigned i = 0; i < ls->n; i++)
		if (ls->lane[i].published)
			worker_poke(&ls->lane[i].job);
}
