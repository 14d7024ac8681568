// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the engine's files have in common: the time, when to try again, and complaints that are logged when they begin.
 */
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "agent_priv.h"
#include "base/log.h"

uint64_t agent_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void agent_complain(struct agent *a, int what, int level, const char *fmt, ...)
{
	char msg[400];
	va_list ap;

	if (a->quiet == what)
		return;
	a->quiet = what;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	vp_log(level, "%s: %s", a->port->what, msg);
}

void agent_retry_at(struct agent *a, uint64_t when)
{
	if (!a->retry_ms || when < a->retry_ms)
		a->retry_ms = when;
}
