/* SPDX-License-Identifier: BSD-3-Clause */
/* What worker.c and placement.c share. */
#ifndef VHOST_PCID_WORKER_PRIV_H
#define VHOST_PCID_WORKER_PRIV_H

#include <pthread.h>

#include "threads/worker.h"

/* Slots by number, replaced as a whole when it grows; read by the thread under RCU. */
struct slot_table {
	unsigned n;
	struct worker_job *job[];
};

struct worker {
	struct worker_pool *pool;
	pthread_t thread;
	int       epfd, wakefd, cpu, tid;
	struct vp_watch *woken;         /* of wakefd */
	unsigned  jobs, number;
	unsigned  moved;                /* jobs that came here because others had less to do */
	uint64_t  busy_poll, look, full; /* in vp_cycles() */
	struct slot_table *slots;
	bool      stop, poked;
	struct vp_scratch *scratch;
	uint64_t  call_seen;            /* of the supervisor */
	/* the thread's own */
	struct worker_job **active;
	unsigned  nactive, active_room;
	bool      awake;
	uint64_t  since, busy_since;    /* when it last looked how busy it is, and busy then */
	uint64_t  later;                /* when jobs that sleep are to be run anyway, 0 = none is */
	uint64_t  rounds, sleeps;
	uint64_t  busy;                 /* vp_cycles() in rounds that did something */
};

struct worker_pool {
	unsigned n;
	int      attention;
	pthread_t supervisor;
	pthread_mutex_t lock;    /* of stop, for the supervisor only */
	pthread_cond_t  cond;
	bool     stop;
	bool     paused;         /* written under lock */
	unsigned resting;        /* threads that are offline for it; under lock */
	pthread_cond_t  resumed;
	pthread_t main;          /* may be in worker_call() */
	struct worker_job *retired; /* main thread */
	uint64_t  weighed;       /* main thread: when worker_pool_uneven() last looked, vp_cycles() */
	struct vp_scratch *scratch;
	struct worker w[];
};

/* Make room for one job more; *slot: the free one that a job gets next. 0, -ENOMEM. A grace period at times. */
int worker_slot_find(struct worker *w, unsigned *slot);

#endif
