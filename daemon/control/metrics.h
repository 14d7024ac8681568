/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What monitoring reads: every metric, in the OpenMetrics text format or in that of Prometheus (docs/control-api.md has
 * the list). Written piece by piece, so that nobody waits for thousands of links. Main thread.
 */
#ifndef VP_DAEMON_METRICS_H
#define VP_DAEMON_METRICS_H

#include "base/text.h"
#include "conf/conf.h"

struct vp_daemon;

/* How far a scrape is. Zeroed = at its beginning. Links and VMs may come and go between two pieces. */
struct vp_metrics_at {
	bool     openmetrics;             /* set by the caller */
	unsigned family;
	bool     inside;                  /* of the family, behind `after` */
	char     after[VP_CONF_NAME_MAX];
	unsigned index;                   /* where that was */
};

/* Add to t until it has max bytes or `us` microseconds have passed. True: that was all. */
bool vp_metrics_write(struct vp_daemon *d, struct vp_metrics_at *at, struct vp_text *t, size_t max, unsigned us);

#endif
