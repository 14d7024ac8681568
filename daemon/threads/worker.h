/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data threads. A job (the work on one lane of a link) lives on one thread. The thread polls it
 * while there is work. When there is none, the thread arms the job's notifications and sleeps: an idle
 * daemon makes no system calls.
 *
 * Each round runs every job once that has work. A run is bounded (run() below). A job that had more to
 * do comes again in the next round, behind all others. So nobody waits longer than a round.
 *
 * Threads are liburcu QSBR readers that pass a quiescent state once a round. The main thread may
 * therefore change whatever a job's run() reads through an RCU-published pointer: unpublish,
 * synchronize_rcu(), change, publish again, worker_poke().
 *
 * The main thread calls all functions here; the ops run on a data thread.
 */
#ifndef VHOST_PCID_WORKER_H
#define VHOST_PCID_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/queue.h"

struct worker;
struct worker_pool;
struct worker_job;
struct vp_watch;

enum worker_next {
	WORKER_SLEEP, /* until a notification or worker_poke() */
	WORKER_LATER, /* also when about a millisecond has passed: there is work that must wait */
	WORKER_AGAIN, /* not at all: work is there already */
};

struct worker_job_ops {
	/*
	 * Do a bounded piece of work: bounded in time, whatever a peer has put into its rings, to about
	 * what the usual burst of packets takes. Returns how much was done; the job runs again for as
	 * long as that is not 0.
	 */
	unsigned (*run)(struct worker_job *j, struct vp_scratch *s);
	/* Before sleeping: ask for notifications. */
	enum worker_next (*arm)(struct worker_job *j);
	/* Awake again: notifications are not needed. */
	void (*disarm)(struct worker_job *j);
};

/* Embedded in the owner's structure; zeroed before worker_job_add(). */
struct worker_job {
	const struct worker_job_ops *ops;
	/* polls less often when polling finds nothing: what it waits for may need this very CPU */
	bool     thrifty;
	/*
	 * thrifty: answers that it waits for, as its last run left it; 0: that run moved none. While polling finds
	 * something, it polls longer for many of them.
	 */
	unsigned open;
	/* notifications that were seen are added here, atomically: several jobs may share it. NULL = nobody counts */
	uint64_t *wakes;
	/* private to worker.c and placement.c */
	struct worker *w;
	unsigned slot;
	bool     dead, poked;
	struct worker_job *retired; /* the next one of these */
	bool     active, later, idle;
	uint64_t last_work;
	uint64_t busy;              /* vp_cycles() in runs that did something */
	uint64_t weighed;           /* main thread: busy when last looked at */
	unsigned settled;           /* main thread: looks until it may move again */
	/* thrifty: sleeps without polling after the next poll in vain; and until the next poll */
	unsigned skips, skip;
	bool     alone; /* thrifty: the last poll found something, so that who made it has another CPU */
};

struct worker_pool_conf {
	unsigned threads;       /* 1 .. 64 */
	unsigned busy_poll_us;  /* poll this long after the last work before sleeping */
	const int *cpus;        /* one per thread (used in turn), or NULL = anywhere */
	unsigned ncpus;
	bool     paused;        /* no job runs before worker_pool_resume() */
};

/*
 * Start the threads. attention_fd (an eventfd, kept by the pool) becomes readable when a job asks for
 * attention.
 */
int worker_pool_new(struct worker_pool **out, const struct worker_pool_conf *c, struct vp_err *e);
void worker_pool_free(struct worker_pool *p);
/*
 * When this returns, every thread has ended its round and touches nothing of any job until worker_pool_resume(). Kicks
 * that come meanwhile are seen then. Jobs may be added, changed and retired in between, as ever.
 */
void worker_pool_pause(struct worker_pool *p);
void worker_pool_resume(struct worker_pool *p);

/*
 * Put a job on the thread with the fewest jobs, or on the thread of `near` when that is not NULL. 0,
 * -ENOMEM.
 */
int worker_job_add(struct worker_pool *p, struct worker_job *j, const struct worker_job *near);

/*
 * Take jobs off their threads: any number of worker_job_retire(), then one worker_jobs_reap() before
 * any of the jobs is freed. It waits for their threads: two grace periods, however many jobs there are.
 * A job that was not added does no harm.
 */
void worker_job_retire(struct worker_pool *p, struct worker_job *j);
void worker_jobs_reap(struct worker_pool *p);

/*
 * Is a thread full while another one has room? The job that is best moved, and where to; NULL: none is. To be called
 * when attention was asked for: a thread that was at work for half of a second does. Looks at most once a second, and
 * at what was done since the last time.
 */
struct worker_job *worker_pool_uneven(struct worker_pool *p, unsigned *to);
/*
 * Move a job to thread `to`, with the n watches of its fds (worker_job_watch(); NULLs among them are skipped). It
 * stands still meanwhile: three grace periods at most. What is signalled then is seen there. 0; -errno: it is where it
 * was.
 */
int worker_job_move(struct worker_pool *p, struct worker_job *j, unsigned to, struct vp_watch *const *watch,
		    unsigned n);

/*
 * Wake the job's thread when fd (a kick eventfd) is signalled, until vp_watch_end(out) (base/watch.h),
 * which comes before the job goes. The fd is watched edge-triggered and never read, so one that would
 * block, or is not an eventfd, does no harm. 0; -EPERM: the fd cannot be polled; -errno.
 */
int worker_job_watch(struct vp_watch **out, struct worker_job *j, int fd);

/* Run the job soon: something that it looks at has changed. */
void worker_poke(struct worker_job *j);

/*
 * vp_queue_call() from the main thread. Like a data thread, the main thread is interrupted when the
 * write blocks. q is in no data thread's hands.
 */
void worker_call(struct worker_pool *p, struct vp_queue *q);

/*
 * An fd that is readable when a data thread called worker_attention(): a queue broke. The main thread
 * reads it and looks.
 */
int worker_attention_fd(const struct worker_pool *p);
/* From a data thread. */
void worker_attention(struct worker_job *j);

struct worker_info {
	unsigned jobs;
	unsigned moved;    /* jobs that came here because others had less to do, in all */
	bool     awake;
	uint64_t rounds, sleeps;
	uint64_t busy_us;  /* in rounds that did something */
	uint64_t cpu_us;   /* processor time, polling and all */
	int      cpu; /* -1 = anywhere */
	int      tid;
};
unsigned worker_pool_size(const struct worker_pool *p);
void worker_pool_info(const struct worker_pool *p, unsigned i, struct worker_info *info);

#endif
