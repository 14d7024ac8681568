/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The daemon's data threads without threads: worker.c itself, whose rounds are run by hand. A grace period is a round
 * of all of them, so that what the real one lets happen meanwhile happens here, too.
 */
#include "session.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <urcu/urcu-qsbr.h>

static void rounds(void);

#define pthread_create(t, attr, fn, arg)  ((void)(fn), *(t) = 0, 0)
#define epoll_wait(fd, ev, n, ms)         epoll_wait(fd, ev, n, 0)
#define urcu_qsbr_synchronize_rcu()       rounds()
#include "threads/worker.c"

static struct worker_pool *pool;

static void rounds(void)
{
	for (unsigned i = 0; pool && i < pool->n; i++) {
		uint64_t since = rig_cpu();

		run_active(&pool->w[i]);
		rig_took("a round of a data thread", since, RIG_ROUND_MS);
	}
}

void rig_threads_are(struct worker_pool *p)
{
	pool = p;
}

bool rig_threads_step(void)
{
	bool busy = false;

	for (unsigned i = 0; i < pool->n; i++) {
		struct worker *w = &pool->w[i];

		wait_kicks(w);
		busy |= w->nactive;
	}
	rounds();
	return busy;
}

int rig_threads_epfd(unsigned i)
{
	return i < pool->n ? pool->w[i].epfd : -1;
}
