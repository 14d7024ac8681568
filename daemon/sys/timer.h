/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One-shot timers of the main loop. Once the loop has ended, sd-event takes no more of them (-ESTALE).
 * Everything is on its way out then, nothing will run any more, and nothing is wrong.
 */
#ifndef VP_DAEMON_TIMER_H
#define VP_DAEMON_TIMER_H

#include <errno.h>
#include <string.h>
#include <systemd/sd-event.h>
#include <time.h>

#include "base/log.h"

/* The result of adding an event source: r, or 0 for that of an ended loop. Any other error is logged. */
static inline int vp_event_added(int r, const char *name, const char *what)
{
	if (r == -ESTALE)
		return 0;
	if (r < 0)
		vp_log(VP_LOG_ERR, "%s: no %s: %s", name, what, strerror(-r));
	return r;
}

/*
 * Run fn(arg) once at at_us of CLOCK_MONOTONIC, up to 10 ms later. *t is what an earlier call made, or
 * NULL; fn and arg are those of the first call. The owner frees *t. -errno when there is no memory,
 * which has been logged.
 */
static inline int vp_timer_at(sd_event *ev, sd_event_source **t, uint64_t at_us, sd_event_time_handler_t fn, void *arg,
			      const char *name)
{
	if (!*t)
		return vp_event_added(sd_event_add_time(ev, t, CLOCK_MONOTONIC, at_us, 10000, fn, arg), name, "timer");
	sd_event_source_set_time(*t, at_us);
	return sd_event_source_set_enabled(*t, SD_EVENT_ONESHOT);
}

/* The same in in_us from now, up to a tenth later. */
static inline int vp_timer_in(sd_event *ev, sd_event_source **t, uint64_t in_us, sd_event_time_handler_t fn, void *arg,
			      const char *name)
{
	if (!*t)
		return vp_event_added(sd_event_add_time_relative(ev, t, CLOCK_MONOTONIC, in_us, in_us / 10 + 1, fn,
								 arg),
				      name, "timer");
	sd_event_source_set_time_relative(*t, in_us);
	return sd_event_source_set_enabled(*t, SD_EVENT_ONESHOT);
}

/* Cancel the timer. */
static inline void vp_timer_end(sd_event_source **t)
{
	sd_event_source_disable_unref(*t);
	*t = NULL;
}

#endif
