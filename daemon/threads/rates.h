/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PacketsPerSecond= of VMs at run time: one bucket for all that a VM sends, on any links and threads.
 * Main thread.
 */
#ifndef VP_DAEMON_RATES_H
#define VP_DAEMON_RATES_H

#include "conf/conf.h"
#include "engine/queue.h"

/* The bucket of all that this VM sends. It lives as long as the process. NULL: out of memory, no limit. */
struct vp_bucket *vp_rate_of(const char *vm);
/* Put the rates of c in force, on running links too. */
void vp_rate_apply(const struct vp_conf *c);

#endif
