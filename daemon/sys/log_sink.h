/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the daemon's log goes: stderr, with sd-daemon's priority prefixes when a service manager reads it. What is said
 * about one subject is bounded (base/loglimit.h), so that no peer can bury what is said about the others, or the audit
 * log, which is not.
 */
#ifndef VP_DAEMON_LOG_SINK_H
#define VP_DAEMON_LOG_SINK_H

#include <stdbool.h>
#include <systemd/sd-event.h>

/* Before other threads start. */
void vp_log_sink_start(int max_level);

/*
 * In a process that was forked, before it closes what it has from the daemon: the journal's socket is none of its, and
 * something else may get that number. Its lines go to stderr.
 */
void vp_log_sink_forked(void);

/* Have the loop tell how many lines were left out. 0, -ENOMEM. Main thread, as the next one. */
int  vp_log_sink_watch(sd_event *ev);
/* Tell all, before the loop goes. */
void vp_log_sink_end(void);
/* Tell those that are due, or all. Any thread. */
void vp_log_sink_tell(bool all);

/*
 * A line of any length, text behind head; text holds no control characters. fields: "NAME=value\n" for the journal, any
 * number. Not bounded: for the audit log.
 */
void vp_log_sink_long(int level, const char *head, const char *text, const char *fields);

/*
 * Who tells which VM is on this side ("driver", "device") of a link, for the journal; NULL = nobody, or nobody knows.
 * Called on the main thread.
 */
void vp_log_sink_vms(const char *(*fn)(const char *link, const char *side));

#endif
