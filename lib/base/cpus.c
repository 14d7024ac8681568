/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/cpus.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define CPUS 8192u  /* as many as Linux can be built for */

/* Larger than cpu_set_t: the kernel refuses a set that has no room for all of its CPUs. */
struct cpus {
	unsigned long bits[CPUS / (8 * sizeof(unsigned long))];
};

static bool is_in(const struct cpus *s, unsigned cpu)
{
	return cpu < CPUS && CPU_ISSET_S(cpu, sizeof(*s), (const cpu_set_t *)s);
}

char *vp_cpus_allowed(char *buf, size_t len)
{
	struct cpus s = { 0 };
	size_t n = 0;

	snprintf(buf, len, "?");
	/* seccomp control: sched_getaffinity */
	if (sched_getaffinity(0, sizeof(s), (cpu_set_t *)&s) < 0)
		return buf;
	for (unsigned from = 0, to; from < CPUS && n < len; from = to + 1) {
		to = from;
		if (!is_in(&s, from))
			continue;
		while (is_in(&s, to + 1))
			to++;
		n += (size_t)snprintf(buf + n, len - n, to > from ? "%s%u-%u" : "%s%u", n ? "," : "", from, to);
	}
	return buf;
}

int vp_cpu_pin(pthread_t t, unsigned cpu, char *why, size_t len)
{
	struct cpus s = { 0 };
	char allowed[120];
	int r = EINVAL;

	if (cpu < CPUS) {
		CPU_SET_S(cpu, sizeof(s), (cpu_set_t *)&s);
		/* seccomp control: sched_setaffinity */
		r = pthread_setaffinity_np(t, sizeof(s), (cpu_set_t *)&s);
	}
	if (r == EINVAL)
		snprintf(why, len, "there is no such CPU here, or it is not allowed; allowed are %s",
			 vp_cpus_allowed(allowed, sizeof(allowed)));
	else if (r)
		snprintf(why, len, "%s", strerror(r));
	return -r;
}
