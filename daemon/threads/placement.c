/* SPDX-License-Identifier: BSD-3-Clause */
#include "threads/placement.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/cycles.h"
#include "base/util.h"
#include "base/watch.h"
#include "threads/worker_priv.h"

#define GAIN     (VP_LOAD_FULL / 10)
#define LOOK_MS  900    /* between looks: a thread asks once a second */
#define STALE_MS 5000   /* what was done over a longer time says nothing of now */
#define SETTLE   5      /* looks at a job that has moved, before it may move again */

int vp_placement_pick(const struct vp_load *v, unsigned n, unsigned threads, unsigned *to)
{
	unsigned sum[64] = { 0 }, from = 0, least = 0, apart, best_gain = 0;
	int best = -1;

	for (unsigned i = 0; i < n; i++)
		sum[v[i].thread] += v[i].load;
	for (unsigned t = 1; t < threads; t++) {
		from = sum[t] > sum[from] ? t : from;
		least = sum[t] < sum[least] ? t : least;
	}
	apart = sum[from] - sum[least];
	/* Of a full one nobody knows how much more it would do. */
	if (sum[from] < VP_LOAD_FULL / 2 || apart < (sum[from] < VP_LOAD_FULL - GAIN ? 2 * GAIN : GAIN))
		return -1;
	for (unsigned i = 0; i < n; i++) {
		unsigned load = v[i].load, gain = load < apart ? VP_MIN(load, apart - load) : 0;

		/* Of many that are small one after the other goes; a large one has to be worth it. */
		if (v[i].thread != from || !v[i].may || gain <= best_gain || gain < VP_MIN(load, GAIN))
			continue;
		best = (int)i;
		best_gain = gain;
	}
	*to = least;
	return best;
}

static unsigned jobs_of(const struct worker_pool *p, struct worker_job **out)
{
	unsigned n = 0;

	for (unsigned t = 0; t < p->n; t++) {
		const struct slot_table *s = p->w[t].slots;

		for (unsigned i = 0; s && i < s->n; i++)
			if (s->job[i])
				out[n++] = s->job[i];
	}
	return n;
}

struct worker_job *worker_pool_uneven(struct worker_pool *p, unsigned *to)
{
	const uint64_t ms = vp_cycles_hz() / 1000, now = vp_cycles(), passed = now - p->weighed;
	struct worker_job **jobs, *found = NULL;
	unsigned n = 0;
	struct vp_load *v;
	int k;

	if (p->n < 2 || passed < LOOK_MS * ms)
		return NULL;
	for (unsigned t = 0; t < p->n; t++)
		n += p->w[t].jobs;
	jobs = calloc(n + 1, sizeof(*jobs));
	v = calloc(n + 1, sizeof(*v));
	/* Without memory all stay where they are. */
	if (jobs && v) {
		n = jobs_of(p, jobs);
		for (unsigned i = 0; i < n; i++) {
			struct worker_job *j = jobs[i];
			uint64_t busy = __atomic_load_n(&j->busy, __ATOMIC_RELAXED);

			v[i].thread = j->w->number;
			v[i].load = (unsigned)((busy - j->weighed) / VP_MAX(passed / VP_LOAD_FULL, 1));
			v[i].may = !j->settled;
			j->weighed = busy;
			j->settled -= j->settled > 0;
		}
		k = passed < STALE_MS * ms ? vp_placement_pick(v, n, p->n, to) : -1;
		found = k < 0 ? NULL : jobs[k];
		p->weighed = now;
	}
	free(jobs);
	free(v);
	return found;
}

static int watches_to(struct vp_watch *const *watch, unsigned n, int epfd, unsigned slot, unsigned *done)
{
	int r = 0;

	for (*done = 0; !r && *done < n; *done += !r)
		if (watch[*done])
			r = vp_watch_move(watch[*done], epfd, EPOLLIN | EPOLLET, slot);
	return r;
}

int worker_job_move(struct worker_pool *p, struct worker_job *j, unsigned to, struct vp_watch *const *watch,
		    unsigned n)
{
	struct worker *w = &p->w[to], *old = j->w;
	unsigned slot, done, ignored;
	int r = worker_slot_find(w, &slot);

	if (r || w == old)
		return r;
	worker_job_retire(p, j);
	worker_jobs_reap(p);
	r = watches_to(watch, n, w->epfd, slot, &done);
	if (r) {
		watches_to(watch, done, old->epfd, j->slot, &ignored);
		w = old;
		slot = j->slot;
	}
	w->jobs++;
	w->moved += !r;
	j->w = w;
	j->slot = slot;
	j->settled = SETTLE;
	__atomic_store_n(&w->slots->job[slot], j, __ATOMIC_RELEASE);
	worker_poke(j);
	return r;
}
