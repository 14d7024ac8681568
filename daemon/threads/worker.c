/* SPDX-License-Identifier: BSD-3-Clause */
#include "threads/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <urcu/urcu-qsbr.h>

#include "base/cpus.h"
#include "base/cycles.h"
#include "base/foreign.h"
#include "base/thread.h"
#include "base/util.h"
#include "base/watch.h"
#include "engine/tap.h"
#include "threads/worker_priv.h"

#define WORKER_WAKE    UINT64_MAX /* epoll data of the thread's own eventfd */
#define WORKER_EVENTS  64
#define WORKER_SIGNAL  SIGUSR2    /* interrupts a hanging notification */
#define SUPERVISE_MS   500
#define WORKER_LOOK_US 20         /* while busy, between looks at the other jobs' kicks */
#define WORKER_LATER_MS 1         /* until a job whose work must wait is run again */
#define WORKER_SKIPS   255        /* of a thrifty job: sleeps without polling, at most */
#define WORKER_FULL_MS 1000       /* over which a thread looks how much of it was work */
/*
 * A thrifty job that waits for so many answers polls once as long for each so many, so often at most: what a wake-up
 * costs the other side's CPU is shared by that many of them.
 */
#define WORKER_ANSWERS 4
#define WORKER_LONGER  4
#define WORKER_RELAX   8          /* pauses after a round without work: the drivers' cores want their rings */

static void wake(struct worker *w)
{
	uint64_t one = 1;

	/* seccomp control: write; data: write */
	/* Our own eventfd: cannot fail but by being full, which is as good. */
	if (write(w->wakefd, &one, sizeof(one)) < 0)
		return;
}

static void activate(struct worker *w, struct worker_job *j)
{
	if (j->active || __atomic_load_n(&j->dead, __ATOMIC_ACQUIRE))
		return;
	if (w->nactive == w->active_room) {
		unsigned room = w->active_room ? 2 * w->active_room : 16;
		struct worker_job **a = realloc(w->active, room * sizeof(*a));

		if (!a)
			return; /* the next kick tries again */
		w->active = a;
		w->active_room = room;
	}
	j->active = true;
	j->later = false;
	j->last_work = vp_cycles();
	j->idle = false;
	w->active[w->nactive++] = j;
	j->ops->disarm(j);
}

static void handle_poked(struct worker *w, const struct slot_table *t)
{
	unsigned i;

	if (!__atomic_exchange_n(&w->poked, false, __ATOMIC_ACQ_REL))
		return;
	for (i = 0; t && i < t->n; i++) {
		struct worker_job *j = __atomic_load_n(&t->job[i], __ATOMIC_ACQUIRE);

		if (j && __atomic_exchange_n(&j->poked, false, __ATOMIC_ACQ_REL))
			activate(w, j);
	}
}

/* Jobs whose work had to wait for a while. */
static void handle_later(struct worker *w, const struct slot_table *t)
{
	unsigned i;

	if (!w->later || (int64_t)(vp_cycles() - w->later) < 0)
		return;
	w->later = 0;
	for (i = 0; t && i < t->n; i++) {
		struct worker_job *j = __atomic_load_n(&t->job[i], __ATOMIC_ACQUIRE);

		if (j && j->later) {
			activate(w, j);
			j->last_work -= w->busy_poll; /* one look, no polling */
		}
	}
}

/*
 * Until worker_pool_resume(). To be called online, before anything of a job is touched: who finds the pool going on
 * here is waited for by worker_pool_pause().
 */
static void stay_paused(struct worker *w)
{
	struct worker_pool *p = w->pool;

	while (vp_unlikely(__atomic_load_n(&p->paused, __ATOMIC_ACQUIRE))) {
		urcu_qsbr_thread_offline();
		pthread_mutex_lock(&p->lock);
		p->resting++;
		while (p->paused)
			pthread_cond_wait(&p->resumed, &p->lock);
		urcu_qsbr_thread_online();
		if (!--p->resting)
			pthread_cond_broadcast(&p->resumed);
		pthread_mutex_unlock(&p->lock);
	}
}

/* Look at the kicks, sleeping for them when no job is active. */
static void wait_kicks(struct worker *w)
{
	struct epoll_event ev[WORKER_EVENTS];
	const struct slot_table *t;
	int i, n;

	if (w->nactive) {
		/* seccomp data: epoll_wait epoll_pwait */
		n = epoll_wait(w->epfd, ev, WORKER_EVENTS, 0);
	} else {
		__atomic_store_n(&w->awake, false, __ATOMIC_RELAXED);
		w->sleeps++;
		urcu_qsbr_thread_offline();
		n = epoll_wait(w->epfd, ev, WORKER_EVENTS, w->later ? WORKER_LATER_MS : -1);
		urcu_qsbr_thread_online();
		/* The kicks that ended the sleep are for afterwards. */
		stay_paused(w);
		__atomic_store_n(&w->awake, true, __ATOMIC_RELAXED);
	}
	/* Jobs are looked up only now, online: a number whose job has gone finds nothing. */
	t = rcu_dereference(w->slots);
	for (i = 0; i < n; i++) {
		struct worker_job *j;

		if (ev[i].data.u64 == WORKER_WAKE)
			continue;
		j = t && ev[i].data.u64 < t->n ? __atomic_load_n(&t->job[ev[i].data.u64], __ATOMIC_ACQUIRE) : NULL;
		if (j && j->wakes)
			__atomic_fetch_add(j->wakes, 1, __ATOMIC_RELAXED);
		if (j)
			activate(w, j);
	}
	handle_poked(w, t);
	handle_later(w, t);
}

/* How long a job polls now. One that polled in vain sleeps at once the next time, the next 3 times, 7, and so on. */
static uint64_t poll_time(const struct worker *w, const struct worker_job *j)
{
	if (!j->thrifty)
		return w->busy_poll;
	if (j->skip)
		return 0;
	return w->busy_poll * (j->alone ? VP_MAX(1, VP_MIN(j->open / WORKER_ANSWERS, WORKER_LONGER)) : 1);
}

/* Polling ended with work, or with a sleep. */
static void polled(struct worker_job *j, bool found)
{
	if (!j->thrifty)
		return;
	j->alone = found && j->open;
	if (found) {
		j->skips = 0;
	} else if (j->skip) {
		j->skip--;
	} else {
		j->skips = VP_MIN(2 * j->skips + 1, WORKER_SKIPS);
		j->skip = j->skips;
	}
}

static unsigned run_active(struct worker *w)
{
	unsigned i = 0, work = 0;
	uint64_t began = vp_cycles();

	while (i < w->nactive) {
		struct worker_job *j = w->active[i];
		bool keep = true;

		if (__atomic_load_n(&j->dead, __ATOMIC_ACQUIRE)) {
			keep = false;
		} else if (j->ops->run(j, w->scratch)) {
			if (j->idle)
				polled(j, true);
			j->idle = false;
			j->last_work = vp_cycles();
			__atomic_store_n(&j->busy, j->busy + (j->last_work - began), __ATOMIC_RELAXED);
			began = j->last_work;
			work++;
		} else if (vp_cycles() - j->last_work >= poll_time(w, j)) {
			enum worker_next next = j->ops->arm(j);

			keep = next == WORKER_AGAIN;
			j->idle = false;
			if (!keep)
				polled(j, false);
			if (keep) {
				j->ops->disarm(j);
				j->last_work = vp_cycles();
			} else if (next == WORKER_LATER) {
				j->later = true;
				if (!w->later)
					w->later = vp_cycles() + vp_cycles_hz() / 1000 * WORKER_LATER_MS;
			}
		} else {
			j->idle = true;
		}
		if (keep) {
			i++;
			continue;
		}
		j->active = false;
		w->active[i] = w->active[--w->nactive];
	}
	return work;
}

static void draw_attention(struct worker_pool *p)
{
	uint64_t one = 1;

	/* Full: the main thread has not looked yet, and will. */
	if (write(p->attention, &one, sizeof(one)) < 0)
		return;
}

/* At work for half of a second: the main thread may find a thread that has less to do (placement.c). */
static void tell_full(struct worker *w, uint64_t now)
{
	uint64_t passed = now - w->since;

	if (w->pool->n < 2 || passed < w->full)
		return;
	if (w->busy - w->busy_since >= passed / 2)
		draw_attention(w->pool);
	w->since = now;
	w->busy_since = w->busy;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint64_t looked = 0, now, began = 0;
	bool worked = false;
	char name[16];
	sigset_t set;
	unsigned i;

	snprintf(name, sizeof(name), "vp-data-%u", w->number & 0xff);
	vp_thread_begin(VP_THREAD_DATA, name);
	vp_tap_thread(1 + w->number);
	sigfillset(&set);
	sigdelset(&set, WORKER_SIGNAL);
	sigdelset(&set, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	__atomic_store_n(&w->tid, (int)gettid(), __ATOMIC_RELAXED);
	urcu_qsbr_register_thread();
	__atomic_store_n(&w->awake, true, __ATOMIC_RELAXED);
	while (!__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
		urcu_qsbr_quiescent_state();
		stay_paused(w);
		now = vp_cycles();
		if (worked)
			__atomic_store_n(&w->busy, w->busy + (now - began), __ATOMIC_RELAXED);
		began = now;
		worked = false;
		if (!w->nactive || now - looked >= w->look) {
			wait_kicks(w);
			looked = now;
			began = vp_cycles();
			tell_full(w, began);
		}
		__atomic_store_n(&w->rounds, w->rounds + 1, __ATOMIC_RELAXED);
		worked = run_active(w) > 0;
		if (worked || !w->nactive)
			continue;
		for (i = 0; i < WORKER_RELAX; i++)
			vp_relax();
	}
	urcu_qsbr_unregister_thread();
	return NULL;
}

/* Handled, so that it interrupts a system call; nothing else is to be done. */
static void on_signal(int sig)
{
}

static void supervise(pthread_t thread, const struct vp_scratch *s, uint64_t *seen)
{
	uint64_t seq = __atomic_load_n(&s->call_seq, __ATOMIC_RELAXED);

	if ((seq & 1) && seq == *seen)
		pthread_kill(thread, WORKER_SIGNAL);
	*seen = seq;
}

/*
 * Interrupts a thread that hangs in a notification (see vp_queue_call()). A thread of its own,
 * because the main thread may be waiting for that very thread to pass a quiescent state.
 */
static void *supervisor_main(void *arg)
{
	struct worker_pool *p = arg;
	uint64_t main_seen = 0;
	unsigned i;

	vp_thread_begin(VP_THREAD_SIGNAL, "vp-watch");
	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		vp_cond_wait_ms(&p->cond, &p->lock, SUPERVISE_MS);
		for (i = 0; i < p->n; i++)
			supervise(p->w[i].thread, p->w[i].scratch, &p->w[i].call_seen);
		supervise(p->main, p->scratch, &main_seen);
		vp_foreign_nudge();
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static int worker_start(struct worker *w, struct worker_pool *p, const struct worker_pool_conf *c,
			unsigned i, struct vp_err *e)
{
	char why[240];
	int ret;

	w->pool = p;
	w->number = i;
	w->cpu = c->ncpus ? c->cpus[i % c->ncpus] : -1;
	w->busy_poll = vp_cycles_hz() / 1000000 * c->busy_poll_us;
	w->look = vp_cycles_hz() / 1000000 * WORKER_LOOK_US;
	w->full = vp_cycles_hz() / 1000 * WORKER_FULL_MS;
	w->scratch = vp_scratch_new();
	/* seccomp control: epoll_create1 eventfd2 */
	w->epfd = epoll_create1(EPOLL_CLOEXEC);
	w->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!w->scratch || w->epfd < 0 || w->wakefd < 0)
		return vp_err_set(e, -errno, "data thread %u: %m", i);
	ret = vp_watch_add(&w->woken, w->epfd, w->wakefd, EPOLLIN | EPOLLET, WORKER_WAKE);
	if (ret)
		return vp_err_set(e, ret, "data thread %u: %s", i, strerror(-ret));
	ret = pthread_create(&w->thread, NULL, worker_main, w);
	if (ret)
		return vp_err_set(e, -ret, "data thread %u: %s", i, strerror(ret));
	if (w->cpu < 0)
		return 0;
	ret = vp_cpu_pin(w->thread, (unsigned)w->cpu, why, sizeof(why));
	return !ret ? 0 : vp_err_set(e, ret, "data thread %u cannot run on CPU %d: %s; see CPUs= and --cpus", i,
				     w->cpu, why);
}

int worker_pool_new(struct worker_pool **out, const struct worker_pool_conf *c, struct vp_err *e)
{
	struct sigaction sa = { .sa_handler = on_signal }; /* no SA_RESTART: that is the point */
	struct worker_pool *p;
	unsigned i;
	int ret;

	*out = NULL;
	if (c->threads < 1 || c->threads > 64)
		return vp_err_set(e, -EINVAL, "%u data threads: choose 1 to 64", c->threads);
	p = calloc(1, sizeof(*p) + c->threads * sizeof(p->w[0]));
	if (!p)
		return vp_err_set(e, -ENOMEM, "data threads: out of memory");
	for (i = 0; i < c->threads; i++)
		p->w[i].epfd = p->w[i].wakefd = -1;
	sigaction(WORKER_SIGNAL, &sa, NULL);
	vp_foreign_nudge_by(WORKER_SIGNAL);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	pthread_cond_init(&p->resumed, NULL);
	p->paused = c->paused;
	p->attention = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->main = pthread_self();
	p->scratch = vp_scratch_new();
	if (!p->scratch) {
		worker_pool_free(p);
		return vp_err_set(e, -ENOMEM, "data threads: out of memory");
	}
	for (i = 0; i < c->threads; i++) {
		p->n = i + 1;
		ret = worker_start(&p->w[i], p, c, i, e);
		if (ret) {
			worker_pool_free(p);
			return ret;
		}
	}
	ret = pthread_create(&p->supervisor, NULL, supervisor_main, p);
	if (ret) {
		p->supervisor = 0;
		worker_pool_free(p);
		return vp_err_set(e, -ret, "supervisor thread: %s", strerror(ret));
	}
	*out = p;
	return 0;
}

void worker_pool_free(struct worker_pool *p)
{
	unsigned i;

	if (!p)
		return;
	if (p->supervisor) {
		pthread_mutex_lock(&p->lock);
		p->stop = true;
		pthread_cond_signal(&p->cond);
		pthread_mutex_unlock(&p->lock);
		pthread_join(p->supervisor, NULL);
	}
	for (i = 0; i < p->n; i++)
		__atomic_store_n(&p->w[i].stop, true, __ATOMIC_RELEASE);
	worker_pool_resume(p);
	for (i = 0; i < p->n; i++) {
		struct worker *w = &p->w[i];

		if (w->thread) {
			wake(w);
			pthread_join(w->thread, NULL);
		}
		vp_watch_end(&w->woken);
		vp_close(&w->epfd);
		vp_close(&w->wakefd);
		free(w->scratch);
		free(w->slots);
		free(w->active);
	}
	pthread_cond_destroy(&p->resumed);
	pthread_cond_destroy(&p->cond);
	pthread_mutex_destroy(&p->lock);
	vp_close(&p->attention);
	free(p->scratch);
	free(p);
}

void worker_pool_pause(struct worker_pool *p)
{
	pthread_mutex_lock(&p->lock);
	__atomic_store_n(&p->paused, true, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&p->lock);
	/* Who sleeps looks before it touches a job. Who does not looks behind its next quiescent state. */
	urcu_qsbr_synchronize_rcu();
}

void worker_pool_resume(struct worker_pool *p)
{
	pthread_mutex_lock(&p->lock);
	__atomic_store_n(&p->paused, false, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&p->resumed);
	/* They have jobs at hand, for which no grace period waits before they are online. */
	while (p->resting)
		pthread_cond_wait(&p->resumed, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

int worker_slot_find(struct worker *w, unsigned *slot)
{
	struct slot_table *old = w->slots, *t;
	unsigned i, n = old ? old->n : 0;

	for (i = 0; i < n; i++)
		if (!old->job[i])
			break;
	if (i == n) {
		n = n ? 2 * n : 16;
		t = calloc(1, sizeof(*t) + n * sizeof(t->job[0]));
		if (!t)
			return -ENOMEM;
		t->n = n;
		if (old)
			memcpy(t->job, old->job, old->n * sizeof(old->job[0]));
		rcu_assign_pointer(w->slots, t);
		urcu_qsbr_synchronize_rcu();
		free(old);
	}
	*slot = i;
	return 0;
}

int worker_job_add(struct worker_pool *p, struct worker_job *j, const struct worker_job *near)
{
	struct worker *w = near ? near->w : &p->w[0];
	unsigned i;
	int ret;

	for (i = 1; !near && i < p->n; i++)
		if (p->w[i].jobs < w->jobs)
			w = &p->w[i];
	ret = worker_slot_find(w, &j->slot);
	if (ret)
		return ret;
	j->w = w;
	w->jobs++;
	__atomic_store_n(&w->slots->job[j->slot], j, __ATOMIC_RELEASE);
	return 0;
}

void worker_job_retire(struct worker_pool *p, struct worker_job *j)
{
	if (!j->w || j->dead)
		return;
	__atomic_store_n(&j->w->slots->job[j->slot], NULL, __ATOMIC_RELEASE);
	__atomic_store_n(&j->dead, true, __ATOMIC_RELEASE);
	j->retired = p->retired;
	p->retired = j;
}

void worker_jobs_reap(struct worker_pool *p)
{
	struct worker_job *j;

	if (!p->retired)
		return;
	/* After the first grace period every round sees them dead and lets go; after the second, all have. */
	urcu_qsbr_synchronize_rcu();
	urcu_qsbr_synchronize_rcu();
	while ((j = p->retired)) {
		p->retired = j->retired;
		j->w->jobs--;
		j->w = NULL;
		j->retired = NULL;
		j->dead = j->active = j->later = false;
	}
}

int worker_job_watch(struct vp_watch **out, struct worker_job *j, int fd)
{
	return vp_watch_add(out, j->w->epfd, fd, EPOLLIN | EPOLLET, j->slot);
}

void worker_poke(struct worker_job *j)
{
	__atomic_store_n(&j->poked, true, __ATOMIC_RELEASE);
	__atomic_store_n(&j->w->poked, true, __ATOMIC_RELEASE);
	wake(j->w);
}

void worker_call(struct worker_pool *p, struct vp_queue *q)
{
	vp_queue_call(q, p->scratch);
}

int worker_attention_fd(const struct worker_pool *p)
{
	return p->attention;
}

void worker_attention(struct worker_job *j)
{
	draw_attention(j->w->pool);
}

unsigned worker_pool_size(const struct worker_pool *p)
{
	return p->n;
}

void worker_pool_info(const struct worker_pool *p, unsigned i, struct worker_info *info)
{
	const struct worker *w = &p->w[i];
	struct timespec ts = { 0 };
	clockid_t clock;

	/* seccomp control: clock_gettime */
	if (pthread_getcpuclockid(w->thread, &clock) || clock_gettime(clock, &ts))
		ts = (struct timespec){ 0 };
	*info = (struct worker_info){
		.jobs = w->jobs,
		.awake = __atomic_load_n(&w->awake, __ATOMIC_RELAXED),
		.rounds = __atomic_load_n(&w->rounds, __ATOMIC_RELAXED),
		.sleeps = __atomic_load_n(&w->sleeps, __ATOMIC_RELAXED),
		.moved = w->moved,
		.busy_us = __atomic_load_n(&w->busy, __ATOMIC_RELAXED) / VP_MAX(vp_cycles_hz() / 1000000, 1),
		.cpu_us = (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000,
		.cpu = w->cpu,
		.tid = __atomic_load_n(&w->tid, __ATOMIC_RELAXED),
	};
}
