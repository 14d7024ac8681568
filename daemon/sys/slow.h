/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An operation that waits for somebody else (a VMM, a guest, a back-end), and normally takes milliseconds. One that
 * takes longer than a second is said in the log: which, for how long so far, and what can be done. It is said once; how
 * long it took in the end follows when it has ended. Main thread only.
 */
#ifndef VP_DAEMON_SLOW_H
#define VP_DAEMON_SLOW_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

/* All zero: nothing is under way. */
struct vp_slow {
	sd_event_source *timer;
	uint64_t         since_us;   /* CLOCK_MONOTONIC; 0 = nothing is under way */
	bool             told;
	const char      *way;
	char             what[160];
};

/*
 * It begins now. fmt: whose it is, ": ", and which, such as "ab: QMP /run/b.qmp: device_add", of which the log says
 * that it has no answer; way, a sentence without a full stop, is what can be done and outlives the operation. What was
 * under way in s until now is forgotten. Without memory nothing is said.
 */
void vp_slow_begin(struct vp_slow *s, sd_event *event, const char *way, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* It has ended, however; also when none was under way. */
void vp_slow_end(struct vp_slow *s);

#endif
