/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A wall clock that is ahead of the kernel's by clock_ahead seconds, for this program only. A time limit that is made
 * of it lies in the future by as much: what happens to a waiter when somebody sets the machine's clock back.
 */
#ifndef TEST_CLOCK_AHEAD_H
#define TEST_CLOCK_AHEAD_H

#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static time_t clock_ahead;

/* In the place of libc's. */
int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int r = (int)syscall(SYS_clock_gettime, clock, ts);

	if (!r && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		ts->tv_sec += clock_ahead;
	return r;
}

#endif
