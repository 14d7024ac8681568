/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Port links: what data threads do of a queue, see port_link.h. One lane a queue: the mode's work while the device VM
 * has it, a view that drains a transmit queue that nobody has.
 */
#include "link/port_link.h"

#include <errno.h>

#include "context/context.h"
#include "link/view.h"

/* The driver's kick, and the device VM's doorbell. */
#define LANE_FDS 2

int vp_plink_lanes_make(struct vp_plink *pl)
{
	int r = 0;

	if (pl->lanes)
		return 0;
	pl->lanes = vp_lanes_new(pl->l->d->workers, pl->n, LANE_FDS);
	if (!pl->lanes)
		return -ENOMEM;
	for (unsigned i = 0; !r && i < pl->n; i++)
		if (pl->m->lanes || pl->copy || vp_plink_drops(pl, i))  /* else nobody drains it */
			/*
			 * A request's way leads through a device side that may share the CPU; polling keeps it from its
			 * work.
			 */
			r = vp_lane_add(pl->lanes, i, pl->dev->waits, &pl->l->wakes[VP_SIDE_DRIVER]);
	if (r)
		vp_plink_lanes_free(pl);
	return r;
}

void vp_plink_lanes_free(struct vp_plink *pl)
{
	vp_lanes_free(pl->lanes);
	pl->lanes = NULL;
}

void vp_plink_withdraw(struct vp_plink *pl, unsigned first, unsigned n)
{
	if (!pl->lanes)
		return;
	for (unsigned i = first; i < first + n; i++)
		vp_lane_withdraw(pl->lanes, i);
	vp_lanes_sync(pl->lanes);
}

static void publish_drain(struct vp_plink *pl, unsigned i, struct vp_vdev_ring *r)
{
	struct vp_view *v = vp_view_new(1);

	if (!v)
		return;
	v->lazy = true;
	v->n = 1;
	v->src[0].rq = &r->rq;
	v->src[0].kick_fd = r->kick_fd;
	vp_view_publish(pl->lanes, i, v);
}

static void publish_work(struct vp_plink *pl, unsigned i, struct vp_vdev_ring *r)
{
	struct vp_plink_work *w = pl->q[i].work;
	int bell = pl->att->ops->call_fd(pl->att, 1 + i);

	/* What cannot be waited for is polled. */
	w->kicked = r->kick_fd >= 0 && !vp_lane_watch(pl->lanes, i, r->kick_fd);
	if (bell >= 0)
		vp_lane_watch(pl->lanes, i, bell);
	if (pl->q[i].m->open)
		pl->q[i].m->open(pl, i, vp_plink_takes(pl, i));
	vp_lane_publish(pl->lanes, i, &w->work);
}

void vp_plink_publish(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);

	if (!pl->lanes || vp_lane_work(pl->lanes, i) || r->rq.vq.broken)
		return;
	if (pl->q[i].handed) {
		if (pl->q[i].m->lanes)
			publish_work(pl, i, r);
		return;
	}
	if (!vp_plink_drops(pl, i))
		return;
	/*
	 * The device VM may still be at work on the driver's own ring, as it is when there are no lanes.
	 * port_released() tries again.
	 */
	if (!pl->m->lanes && vp_port_queue_await(pl->port, i) == VP_LATER)
		return;
	publish_drain(pl, i, r);
}
