/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the daemon's log goes: stderr, with sd-daemon's priority prefixes when a service manager reads it. */
#ifndef VP_DAEMON_LOG_SINK_H
#define VP_DAEMON_LOG_SINK_H

/* Before other threads start. */
void vp_log_sink_start(int max_level);

/* A line of any length, text behind head; text holds no control characters. */
void vp_log_sink_long(int level, const char *head, const char *text);

#endif
