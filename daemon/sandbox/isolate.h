/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The daemon gives up what it does not need, in numbered stages. Each stage says at debug level what it
 * did, and vp_isolate_state() keeps that for `vhost-pcictl status`:
 *
 *   1 process      before anything is read: rlimits, no core files, undumpable, no_new_privs, no new
 *                  executable memory
 *   2 namespaces   configuration read: network, IPC and UTS namespaces of our own, where permitted
 *   3 identity     another user where one is configured; capabilities
 *   4 files        landlock: configuration read-only, sockets and the audit log in their directories
 *   5 calls        seccomp: the control thread's list. Every other thread narrows it down to its own in
 *                  vp_thread_begin() (base/thread.h), the first thing it does
 *
 * A stage that this kernel or this user cannot have is logged and left out, unless RequireIsolation=
 * names it; then the daemon does not start. Any other failure is an error.
 *
 * A call that is on no list ends the process (SIGSYS). Comments beside the code that makes a call say
 * which lists it is on; seccomp_table.py collects them.
 *
 * Main thread, while it is the only one, in this order.
 */
#ifndef VP_DAEMON_ISOLATE_H
#define VP_DAEMON_ISOLATE_H

#include "base/err.h"
#include "base/thread.h"
#include "conf/conf.h"

enum vp_isolate_stage {
	VP_STAGE_PROCESS = 1,
	VP_STAGE_NAMESPACES,
	VP_STAGE_IDENTITY,
	VP_STAGE_FILES,
	VP_STAGE_CALLS,
	VP_STAGES
};

int vp_isolate_process(struct vp_err *e);
int vp_isolate_namespaces(const struct vp_conf_daemon *c, struct vp_err *e);
int vp_isolate_identity(const struct vp_conf_daemon *c, struct vp_err *e);
/* Makes directories of sockets that do not exist yet. */
int vp_isolate_files(const struct vp_conf *c, const struct vp_conf_paths *paths, struct vp_err *e);
int vp_isolate_calls(const struct vp_conf_daemon *c, struct vp_err *e);
/* The guard's process (guard.h), made between stages 4 and 5: no capabilities, and its own list of calls. */
int vp_isolate_guard(const struct vp_conf_daemon *c, struct vp_err *e);
/* The same for the holder's (holder.h). */
int vp_isolate_holder(const struct vp_conf_daemon *c, struct vp_err *e);

/* "namespaces" */
const char *vp_isolate_stage_name(enum vp_isolate_stage s);
/* What the stage did, for people; *on (may be NULL): whether it is in force. */
const char *vp_isolate_state(enum vp_isolate_stage s, bool *on);

/* Number of rules on a list, for status and tests. */
unsigned vp_isolate_list_size(enum vp_thread_kind kind);
/* The i-th rule's call and the place in the source that asked for it; NULL behind the end. */
const char *vp_isolate_list_call(enum vp_thread_kind kind, unsigned i, const char **where);

/* ---- between files of this directory ---- */

/* Record what stage s did. */
void vp_isolate_done(enum vp_isolate_stage s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Stage s cannot be had here: 0 after a line in the log, or -EPERM with a message when it is required. */
int vp_isolate_lacking(enum vp_isolate_stage s, const struct vp_conf_daemon *c, struct vp_err *e, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

#endif
