/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/cycles.h"

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t vp_cycles_hz(void)
{
	static uint64_t hz;
	struct timespec nap = { .tv_nsec = 10 * 1000 * 1000 };
	uint64_t t0, c0, t1, c1;

	if (hz)
		return hz;
	t0 = now_ns();
	c0 = vp_cycles();
	/* seccomp control: nanosleep clock_nanosleep */
	nanosleep(&nap, NULL);
	t1 = now_ns();
	c1 = vp_cycles();
	hz = (uint64_t)((double)(c1 - c0) * 1e9 / (double)(t1 - t0));
	return hz;
}
