/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PacketsPerSecond= of VMs at run time: one bucket for all that a VM sends, on any links and threads.
 * Main thread.
 */
#ifndef VP_DAEMON_RATES_H
#define VP_DAEMON_RATES_H

#include "base/record.h"
#include "conf/conf.h"
#include "engine/queue.h"

/* The bucket of all that this VM sends. It lives as long as the process. NULL: out of memory, no limit. */
struct vp_bucket *vp_rate_of(const char *vm);
/* Put the rates of c in force, on running links too. */
void vp_rate_apply(const struct vp_conf *c);

/* The buckets for another daemon, while no data thread runs; and there, behind vp_rate_apply() (docs/handover.md). */
void vp_rate_save(struct vp_rec *r);
void vp_rate_restore(const struct vp_rec_in *in);

#endif
