/* SPDX-License-Identifier: BSD-3-Clause */
/* Which CPUs there are for this program. */
#ifndef VP_BASE_CPUS_H
#define VP_BASE_CPUS_H

#include <pthread.h>
#include <stddef.h>

/* The CPUs that the calling thread may run on, such as "0-3,8"; "?" where the kernel does not say. Returns buf. */
char *vp_cpus_allowed(char *buf, size_t len);

/*
 * Let thread t run on this CPU only. -errno, with a sentence without a full stop in why: EINVAL for one that does not
 * exist or is not allowed, which then names those that are.
 */
int vp_cpu_pin(pthread_t t, unsigned cpu, char *why, size_t len);

#endif
