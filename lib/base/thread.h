/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The beginning of every thread: its name, and what the program wants done in it (narrowing down what
 * the thread may do). As with the log, the library decides nothing: without a hook there is only the
 * name.
 *
 * Also here: waiting for a bounded time. Somebody may set the wall clock at any moment, by hours.
 * Nothing here looks at it, and the test `clocks` keeps it so in the whole of the source.
 */
#ifndef VP_BASE_THREAD_H
#define VP_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

enum vp_thread_kind {
	VP_THREAD_CONTROL,  /* the main thread */
	VP_THREAD_DATA,     /* touches peers' memory and rings */
	VP_THREAD_SIGNAL,   /* passes signals on, or watches those that do */
	VP_THREAD_GUARD,    /* the only one of a process of its own */
	VP_THREAD_HOLDER,   /* likewise */
	VP_THREADS
};

/* Not thread-safe: call before other threads start. hook runs in each new thread. */
void vp_thread_hook(void (*hook)(enum vp_thread_kind kind));

/* First thing in a new thread. name: at most 15 characters. */
void vp_thread_begin(enum vp_thread_kind kind, const char *name);

/* Wait for c, with m locked, for ms milliseconds at most; it may return early. */
void vp_cond_wait_ms(pthread_cond_t *c, pthread_mutex_t *m, unsigned ms);

/* Has t ended within ms milliseconds? Then it is joined. */
bool vp_thread_join_ms(pthread_t t, unsigned ms);

#endif
