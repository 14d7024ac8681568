/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The library's few messages go to a sink that the program installs at its start. Without a sink,
 * messages are discarded.
 */
#ifndef VP_BASE_LOG_H
#define VP_BASE_LOG_H

/* Levels are syslog's, so that sd-daemon prefixes come for free. */
enum vp_log_level { VP_LOG_ERR = 3, VP_LOG_WARNING = 4, VP_LOG_NOTICE = 5, VP_LOG_INFO = 6, VP_LOG_DEBUG = 7 };

typedef void (*vp_log_sink)(int level, const char *msg);

/* Not thread-safe: call before other threads start. The sink may be called from any thread. */
void vp_log_set(vp_log_sink sink, int max_level);

/* How much is passed to the sink from now on, and how much that is. Any time, any thread. */
void vp_log_set_level(int max_level);
int vp_log_level(void);
/* "error", "warning", "notice", "info", "debug"; -1: none of them. */
int vp_log_level_of(const char *word);
const char *vp_log_level_str(int level);

/*
 * A line begins with its subject and ": ", for example "ab.driver: " or "link ab: ". The subject is a
 * name of the configuration; the daemon's sink bounds what is said about each (base/loglimit.h). The
 * line carries no trailing newline. Never called per packet.
 */
void vp_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
