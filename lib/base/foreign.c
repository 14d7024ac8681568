/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/util.h"

/* A descriptor that is being closed. There are few: a peer that has several of them gets to send no more. */
struct closing {
	int             fd;
	uint64_t        who;
	bool            inner;      /* a socket and such: in general that takes no time */
	pthread_t       thread;
	bool            begun;      /* thread is known, and in close() or before it */
	unsigned        looks;      /* of vp_foreign_nudge() */
	struct closing *next;
};

/* Memory that is being freed, by one thread in the order in which it went. */
struct freeing {
	void           *base;       /* NULL = it is not mapped */
	size_t          len;
	int             fd;
	struct freeing *next;
};

#define FREEING_MAX   1024u     /* more are freed by who lets go of them */
#define FREEING_BYTES (1u << 20)

static pthread_mutex_t freeing_lock = PTHREAD_MUTEX_INITIALIZER;
static struct freeing *freeing_list, **freeing_end = &freeing_list;
static unsigned freeing_n;
static bool freeing_runs, freeing_on, no_threads;

/* So many sockets of one peer are closed at the same time only if they linger. */
#define INNER_MAX 256u

static pthread_mutex_t closing_lock = PTHREAD_MUTEX_INITIALIZER;
static struct closing *closing_list;
static unsigned closing_n;  /* in the list; atomic */
static int nudge_signal;    /* 0 = nobody nudges */
static __thread uint64_t from;

enum vp_foreign_kind vp_foreign_kind(int fd, uint64_t *dev, uint64_t *rdev)
{
	struct statx st = { .stx_mode = S_IFREG };

	if (dev)
		*dev = 0;
	if (rdev)
		*rdev = 0;
	/* Only files on tmpfs and hugetlbfs have seals, if only the one against sealing. */
	/* seccomp control: fcntl statx */
	if (fcntl(fd, F_GET_SEALS) >= 0)
		return VP_FOREIGN_MEMORY;
	/* The kernel's own knowledge: no server is asked. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0)
		return VP_FOREIGN_FILE;
	if (dev)
		*dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	if (rdev)
		*rdev = makedev(st.stx_rdev_major, st.stx_rdev_minor);
	switch (st.stx_mode & S_IFMT) {
	case 0:
	case S_IFSOCK:
	case S_IFIFO:
		return VP_FOREIGN_INNER;
	case S_IFCHR:
	case S_IFBLK:
		return VP_FOREIGN_DEVICE;
	default:
		return VP_FOREIGN_FILE;
	}
}

/*
 * Closing it asks nobody and takes no time. A socket may linger (SO_LINGER) for as long as its
 * owner says, or have others in its queue that do; of other anonymous inodes it is not known.
 */
static bool closes_at_once(int fd)
{
	static const char eventfd[] = "anon_inode:[eventfd]";
	char path[40], target[sizeof(eventfd)];
	struct statx st;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof(target)) == sizeof(eventfd) - 1 &&
	    !memcmp(target, eventfd, sizeof(eventfd) - 1))
		return true;
	return !statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) &&
	       S_ISFIFO(st.stx_mode);
}

void vp_foreign_from(uint64_t who)
{
	from = who;
}

unsigned vp_foreign_pending(uint64_t who)
{
	unsigned n = 0, inner = 0;

	if (vp_likely(!__atomic_load_n(&closing_n, __ATOMIC_RELAXED)))
		return 0;
	pthread_mutex_lock(&closing_lock);
	for (const struct closing *c = closing_list; c; c = c->next)
		if (c->who == who && c->inner && !c->looks)
			inner++;
		else
			n += c->who == who;
	pthread_mutex_unlock(&closing_lock);
	return inner < INNER_MAX ? n : n + inner;
}

unsigned vp_foreign_closing(void)
{
	return __atomic_load_n(&closing_n, __ATOMIC_RELAXED);
}

static void *close_main(void *arg)
{
	struct closing *c = arg, **at;

	c->thread = pthread_self();
	/* Pairs with the acquire in vp_foreign_nudge(): thread is there. */
	__atomic_store_n(&c->begun, true, __ATOMIC_RELEASE);
	close(c->fd);
	pthread_mutex_lock(&closing_lock);
	for (at = &closing_list; *at != c; at = &(*at)->next)
		;
	*at = c->next;
	__atomic_store_n(&closing_n, closing_n - 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&closing_lock);
	free(c);
	return NULL;
}

/*
 * It inherits its maker's system call filter. The only signal of use to it is the one that ends a
 * wait.
 */
static int run_elsewhere(void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t t;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return r;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 128u << 10);
	sigfillset(&all);
	if (nudge_signal)
		sigdelset(&all, nudge_signal);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return r;
}

static void free_now(void *base, size_t len, int fd)
{
	/* seccomp control: munmap close */
	if (base)
		munmap(base, len);
	close(fd);
}

static void *free_main(void *arg)
{
	struct freeing *f;

	for (;;) {
		pthread_mutex_lock(&freeing_lock);
		f = freeing_list;
		freeing_runs = f != NULL;
		if (f) {
			freeing_list = f->next;
			if (!freeing_list)
				freeing_end = &freeing_list;
			freeing_n--;
		}
		pthread_mutex_unlock(&freeing_lock);
		if (!f)
			return NULL;
		free_now(f->base, f->len, f->fd);
		free(f);
	}
}

void vp_foreign_free_elsewhere(bool on)
{
	freeing_on = on;
}

void vp_foreign_free(void *base, size_t len, int *fd)
{
	struct freeing *f = freeing_on && len >= FREEING_BYTES ? malloc(sizeof(*f)) : NULL;
	bool start = false;

	if (f) {
		*f = (struct freeing){ .base = base, .len = len, .fd = *fd };
		pthread_mutex_lock(&freeing_lock);
		if (freeing_n < FREEING_MAX) {
			*freeing_end = f;
			freeing_end = &f->next;
			freeing_n++;
			start = !freeing_runs;
			freeing_runs = true;
		} else {
			free(f);
			f = NULL;
		}
		pthread_mutex_unlock(&freeing_lock);
	}
	if (!f)
		free_now(base, len, *fd);
	else if (start && run_elsewhere(free_main, NULL))
		free_main(NULL);
	*fd = -1;
}

/* The pages go with the descriptor when it is the last one. */
static bool is_memory(int fd, uint64_t *bytes)
{
	struct statx st;

	if (vp_foreign_kind(fd, NULL, NULL) != VP_FOREIGN_MEMORY)
		return false;
	*bytes = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BLOCKS, &st) < 0 ?
		 SIZE_MAX : st.stx_blocks * 512;
	return true;
}

void vp_foreign_no_threads(void)
{
	freeing_on = false;
	no_threads = true;
}

void vp_close_foreign(int *fd)
{
	struct closing *c;
	uint64_t bytes;

	if (*fd < 0)
		return;
	if (no_threads) {
		vp_close(fd);
		return;
	}
	if (is_memory(*fd, &bytes)) {
		vp_foreign_free(NULL, bytes, fd);
		return;
	}
	if (closes_at_once(*fd)) {
		vp_close(fd);
		return;
	}
	c = malloc(sizeof(*c));
	if (c) {
		*c = (struct closing){
			.fd = *fd, .who = from,
			.inner = vp_foreign_kind(*fd, NULL, NULL) == VP_FOREIGN_INNER,
		};
		pthread_mutex_lock(&closing_lock);
		c->next = closing_list;
		closing_list = c;
		__atomic_store_n(&closing_n, closing_n + 1, __ATOMIC_RELAXED);
		pthread_mutex_unlock(&closing_lock);
		/* Without a thread it is pending for good: better than a process that hangs. */
		run_elsewhere(close_main, c);
	}
	*fd = -1;
}

void vp_foreign_nudge_by(int sig)
{
	nudge_signal = sig;
}

void vp_foreign_nudge(void)
{
	if (vp_likely(!__atomic_load_n(&closing_n, __ATOMIC_RELAXED)))
		return;
	pthread_mutex_lock(&closing_lock);
	/* A closing in the list has a thread that lives: that thread takes the lock to leave the list. */
	for (struct closing *c = closing_list; c; c = c->next)
		if (__atomic_load_n(&c->begun, __ATOMIC_ACQUIRE) && c->looks++)
			pthread_kill(c->thread, nudge_signal);
	pthread_mutex_unlock(&closing_lock);
}
