/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/thread.h"

#include <stddef.h>
#include <sys/prctl.h>
#include <time.h>

static void (*thread_hook)(enum vp_thread_kind kind);

void vp_thread_hook(void (*hook)(enum vp_thread_kind kind))
{
	thread_hook = hook;
}

void vp_thread_begin(enum vp_thread_kind kind, const char *name)
{
	prctl(PR_SET_NAME, name);
	if (thread_hook)
		thread_hook(kind);
}

static struct timespec in_ms(unsigned ms)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	ts.tv_sec += ms / 1000;
	ts.tv_nsec += ms % 1000 * 1000000l;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_sec++;
		ts.tv_nsec -= 1000000000;
	}
	return ts;
}

void vp_cond_wait_ms(pthread_cond_t *c, pthread_mutex_t *m, unsigned ms)
{
	struct timespec ts = in_ms(ms);

	pthread_cond_clockwait(c, m, CLOCK_MONOTONIC, &ts);
}

bool vp_thread_join_ms(pthread_t t, unsigned ms)
{
	struct timespec ts = in_ms(ms);

	return !pthread_clockjoin_np(t, NULL, CLOCK_MONOTONIC, &ts);
}
