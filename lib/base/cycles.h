/* SPDX-License-Identifier: BSD-3-Clause */
/* The cheapest clock of the machine, for bounding polls and accounting busy time. */
#ifndef VP_BASE_CYCLES_H
#define VP_BASE_CYCLES_H

#include <stdint.h>
#include <time.h>

/* Constant-rate ticks; see vp_cycles_hz(). */
static inline uint64_t vp_cycles(void)
{
#if defined(__x86_64__)
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
#elif defined(__aarch64__)
	uint64_t v;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
	return v;
#else
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
#endif
}

/* In a loop that waits for another CPU to write: leaves it the cache line, and the core its sibling. */
static inline void vp_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

/* Ticks per second, measured once (takes about 10 ms the first time). Not thread-safe the first time. */
uint64_t vp_cycles_hz(void);

#endif
