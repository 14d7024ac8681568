/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Giving up what is not needed, in stages, each named and logged at debug level:
 *
 *   stage 1, before anything is read: rlimits, dumpable off, no_new_privs
 *   stage 2, configuration read, sockets open, threads not yet started:
 *            capabilities reduced to what run-time link changes need
 *
 * System call filters and file-system confinement are later stages of the same
 * ladder; a stage that fails at run time is an error, never skipped silently.
 */
#ifndef VP_DAEMON_ISOLATE_H
#define VP_DAEMON_ISOLATE_H

#include "base/err.h"

int vp_isolate_stage1(struct vp_err *e);
int vp_isolate_stage2(struct vp_err *e);

#endif
