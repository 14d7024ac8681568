/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: sources and targets are eventfds that VMMs share with us. Each may be
 * filled, drained, made blocking or closed at the other end at any time. Only the file's being an
 * eventfd is checked (by those who take it in), nothing else about it is relied on.
 */
#include "threads/forward.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "base/watch.h"

#define FORWARD_EVENTS 64
#define FORWARD_SIGNAL SIGUSR2
#define SUPERVISE_MS   500

struct vp_wire {
	struct vp_forward *f;
	struct vp_watch   *src;
	int                dst;       /* our own duplicate; -1 with fn */
	void             (*fn)(void *arg);
	void              *arg;
	pthread_mutex_t    lock;      /* held while fn runs */
	bool               dead;
	uint64_t           count;     /* written by the thread only */
	uint64_t           who;       /* whose dst is */
	struct vp_wire    *next;      /* in the graveyard */
};

struct vp_forward {
	int             epfd, wakefd;
	struct vp_watch *woken;       /* of wakefd */
	pthread_t       thread, supervisor;
	bool            started, supervised, stop;
	uint64_t        seq;          /* odd while in a write */
	pthread_mutex_t gate;         /* held while signals are passed; nothing else waits for it */
	pthread_mutex_t lock;         /* of graveyard, and of stop for the supervisor */
	pthread_cond_t  cond;
	struct vp_wire *graveyard;
	bool            any_dead;
};

static void wire_destroy(struct vp_wire *w)
{
	/* seccomp control: close; signal: close */
	vp_close(&w->dst);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

static void fire(struct vp_forward *f, struct vp_wire *w)
{
	/* seccomp signal: write */
	const uint64_t one = 1;

	__atomic_store_n(&w->count, w->count + 1, __ATOMIC_RELAXED);
	__atomic_store_n(&f->seq, f->seq + 1, __ATOMIC_RELAXED);
	if (w->fn) {
		pthread_mutex_lock(&w->lock);
		if (!w->dead)
			w->fn(w->arg);
		pthread_mutex_unlock(&w->lock);
	} else if (vp_blame_held(w->who)) {
		__atomic_store_n(&w->dead, true, __ATOMIC_RELAXED);
	} else if (write(w->dst, &one, sizeof(one)) < 0 && errno != EAGAIN) {
		/*
		 * EAGAIN: full, so whoever reads it will see it. EINTR: it blocked until the supervisor lost patience.
		 */
		if (errno == EINTR)
			vp_blame(w->who);
		__atomic_store_n(&w->dead, true, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&f->seq, f->seq + 1, __ATOMIC_RELAXED);
}

/* What was taken out of epoll before it came here is in no later batch; this batch is over. */
static void bury(struct vp_forward *f)
{
	struct vp_wire *w, *next;

	pthread_mutex_lock(&f->lock);
	w = f->graveyard;
	f->graveyard = NULL;
	__atomic_store_n(&f->any_dead, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&f->lock);
	for (; w; w = next) {
		next = w->next;
		wire_destroy(w);
	}
}

static void *forward_main(void *arg)
{
	struct vp_forward *f = arg;
	struct epoll_event ev[FORWARD_EVENTS];
	sigset_t set;

	vp_thread_begin(VP_THREAD_SIGNAL, "vp-signal");
	sigfillset(&set);
	sigdelset(&set, FORWARD_SIGNAL);
	sigdelset(&set, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	while (!__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE)) {
		/* seccomp signal: epoll_wait epoll_pwait */
		int n = epoll_wait(f->epfd, ev, FORWARD_EVENTS, -1);

		pthread_mutex_lock(&f->gate);
		for (int i = 0; i < n; i++) {
			struct vp_wire *w = (void *)(uintptr_t)ev[i].data.u64;

			if (w && !__atomic_load_n(&w->dead, __ATOMIC_RELAXED))
				fire(f, w);
		}
		pthread_mutex_unlock(&f->gate);
		if (__atomic_load_n(&f->any_dead, __ATOMIC_RELAXED))
			bury(f);
	}
	return NULL;
}

/* Interrupts a write that hangs, see forward.h. */
static void *supervisor_main(void *arg)
{
	struct vp_forward *f = arg;
	uint64_t seen = 0;

	vp_thread_begin(VP_THREAD_SIGNAL, "vp-signal-watch");
	pthread_mutex_lock(&f->lock);
	while (!f->stop) {
		uint64_t seq;

		vp_cond_wait_ms(&f->cond, &f->lock, SUPERVISE_MS);
		seq = __atomic_load_n(&f->seq, __ATOMIC_RELAXED);
		if ((seq & 1) && seq == seen)
			/* seccomp signal: tgkill */
			pthread_kill(f->thread, FORWARD_SIGNAL);
		seen = seq;
	}
	pthread_mutex_unlock(&f->lock);
	return NULL;
}

static void on_signal(int sig)
{
}

static void wake(struct vp_forward *f)
{
	const uint64_t one = 1;

	if (write(f->wakefd, &one, sizeof(one)) < 0)
		return;  /* full: awake already */
}

int vp_forward_new(struct vp_forward **out, struct vp_err *e)
{
	struct sigaction sa = { .sa_handler = on_signal };  /* no SA_RESTART: that is the point */
	struct vp_forward *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return vp_err_set(e, -ENOMEM, "signal forwarder: out of memory");
	pthread_mutex_init(&f->gate, NULL);
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->cond, NULL);
	f->epfd = epoll_create1(EPOLL_CLOEXEC);
	f->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = f->epfd < 0 || f->wakefd < 0 ? -errno : vp_watch_add(&f->woken, f->epfd, f->wakefd, EPOLLIN | EPOLLET, 0);
	if (r) {
		vp_err_set(e, r, "signal forwarder: %s", strerror(-r));
		goto fail;
	}
	sigaction(FORWARD_SIGNAL, &sa, NULL);
	r = -pthread_create(&f->thread, NULL, forward_main, f);
	f->started = !r;
	if (!r) {
		r = -pthread_create(&f->supervisor, NULL, supervisor_main, f);
		f->supervised = !r;
	}
	if (r) {
		vp_err_set(e, r, "signal forwarder: %s", strerror(-r));
		goto fail;
	}
	*out = f;
	return 0;
fail:
	vp_forward_free(f);
	return r;
}

void vp_forward_pause(struct vp_forward *f)
{
	if (f)
		pthread_mutex_lock(&f->gate);
}

void vp_forward_resume(struct vp_forward *f)
{
	if (f)
		pthread_mutex_unlock(&f->gate);
}

void vp_forward_free(struct vp_forward *f)
{
	if (!f)
		return;
	pthread_mutex_lock(&f->lock);
	__atomic_store_n(&f->stop, true, __ATOMIC_RELEASE);
	pthread_cond_signal(&f->cond);
	pthread_mutex_unlock(&f->lock);
	/* The supervisor last: the thread may have to be interrupted before it can end. */
	if (f->started) {
		wake(f);
		while (f->supervised) {
			if (vp_thread_join_ms(f->thread, 1000))
				break;
			pthread_kill(f->thread, FORWARD_SIGNAL);
		}
		if (!f->supervised)
			pthread_join(f->thread, NULL);
	}
	if (f->supervised)
		pthread_join(f->supervisor, NULL);
	bury(f);
	vp_watch_end(&f->woken);
	vp_close(&f->epfd);
	vp_close(&f->wakefd);
	pthread_mutex_destroy(&f->gate);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->cond);
	free(f);
}

static int wire_make(struct vp_wire **out, struct vp_forward *f, int src, int dst, uint64_t who, void (*fn)(void *),
		     void *arg)
{
	struct vp_wire *w = calloc(1, sizeof(*w));
	int r = 0;

	*out = NULL;
	if (!w)
		return -ENOMEM;
	*w = (struct vp_wire){ .f = f, .dst = -1, .who = who, .fn = fn, .arg = arg };
	pthread_mutex_init(&w->lock, NULL);
	/* seccomp control: fcntl */
	if (!fn) {
		w->dst = fcntl(dst, F_DUPFD_CLOEXEC, 3);
		r = w->dst < 0 ? -errno : 0;
	}
	/* Last: from here on the thread may have it. */
	if (!r)
		r = vp_watch_add(&w->src, f->epfd, src, EPOLLIN | EPOLLET, (uintptr_t)w);
	if (r) {
		wire_destroy(w);
		return r;
	}
	*out = w;
	return 0;
}

int vp_wire_new(struct vp_wire **out, struct vp_forward *f, int src, int dst, uint64_t who)
{
	return wire_make(out, f, src, dst, who, NULL, NULL);
}

int vp_wire_new_fn(struct vp_wire **out, struct vp_forward *f, int src, void (*fn)(void *arg), void *arg)
{
	return wire_make(out, f, src, -1, 0, fn, arg);
}

void vp_wire_free(struct vp_wire *w)
{
	struct vp_forward *f;

	if (!w)
		return;
	f = w->f;
	vp_watch_end(&w->src);
	if (w->fn)
		pthread_mutex_lock(&w->lock);
	__atomic_store_n(&w->dead, true, __ATOMIC_RELAXED);
	if (w->fn)
		pthread_mutex_unlock(&w->lock);
	pthread_mutex_lock(&f->lock);
	w->next = f->graveyard;
	f->graveyard = w;
	__atomic_store_n(&f->any_dead, true, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&f->lock);
	wake(f);
}

uint64_t vp_wire_count(const struct vp_wire *w)
{
	return __atomic_load_n(&w->count, __ATOMIC_RELAXED);
}

bool vp_wire_dead(const struct vp_wire *w)
{
	return __atomic_load_n(&w->dead, __ATOMIC_RELAXED);
}
