/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Counters of the relay, as the control socket tells them. Each counter has one data thread that writes
 * it. They are read here with relaxed loads: a figure is never torn, but two figures may be from
 * slightly different moments. Main thread.
 */
#ifndef VP_DAEMON_STATS_H
#define VP_DAEMON_STATS_H

#include <jansson.h>

#include "engine/queue.h"
#include "front/peer.h"
#include "front/vdev.h"

void vp_stats_add(struct vp_queue_stats *sum, const struct vp_queue_stats *s);

/* All that the side has sent, with past front-ends and the present one (v may be NULL). */
void vp_stats_side(const struct vp_queue_stats *past, struct vp_vdev *v, struct vp_queue_stats *sum);

/* One side's counters: what its VM sent and what became of it, what it received, and each queue. */
json_t *vp_stats_json(const struct vp_queue_stats *sent, const struct vp_queue_stats *received, struct vp_vdev *v);

/* One side's state: socket, front-end, features, queues. */
json_t *vp_stats_show(const struct vp_conf_side *conf, const struct vp_peer *p, struct vp_vdev *v);

#endif
