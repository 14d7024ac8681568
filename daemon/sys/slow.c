/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/slow.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "sys/timer.h"

/* A little more than the second after which a guest is cut off: that has a message of its own. */
#define SLOW_US 1050000u

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static double seconds(const struct vp_slow *s)
{
	return (double)(now_us() - s->since_us) / 1e6;
}

static int on_slow(sd_event_source *source, uint64_t usec, void *arg)
{
	struct vp_slow *s = arg;

	s->told = true;
	vp_log(VP_LOG_WARNING, "%s: no answer for %.1f s so far; %s", s->what, seconds(s), s->way);
	return 0;
}

void vp_slow_begin(struct vp_slow *s, sd_event *event, const char *way, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s->what, sizeof(s->what), fmt, ap);
	va_end(ap);
	s->way = way;
	s->told = false;
	s->since_us = now_us();
	vp_timer_at(event, &s->timer, s->since_us + SLOW_US, on_slow, s, "slow operation");
}

void vp_slow_end(struct vp_slow *s)
{
	if (s->told)
		vp_log(VP_LOG_INFO, "%s: over after %.1f s", s->what, seconds(s));
	s->told = false;
	s->since_us = 0;
	vp_timer_end(&s->timer);
}
