/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: what is shown and counted of them. */
#include "link/port_link.h"

#include "front/carrier.h"
#include "link/grant.h"

const char *vp_plink_status(const struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	if (!l->up)
		return "down";
	if (!pl)
		return "waiting";
	if (pl->slot.v && vp_vdev_broken(pl->slot.v))
		return "broken";
	if (!vp_port_is_up(pl->port))
		return pl->slot.v || vp_port_is_online(pl->port) ? "partial" : "waiting";
	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].given_up)
			return "partial";
	return "up";
}

static json_t *device_json(struct vp_plink *pl)
{
	const struct vp_conf_side *side = &pl->l->conf.side[VP_SIDE_DEVICE];
	json_t *o = vp_port_json(pl->port);
	unsigned taken = 0;

	for (unsigned i = 0; i < pl->n; i++)
		taken += pl->q[i].given_up;
	json_object_set_new(o, "queues_given_up", json_integer((json_int_t)taken));
	json_object_set_new(o, "misfit", pl->misfit[0] ? json_string(pl->misfit) : json_null());
	json_object_set_new(o, "vm", json_string(side->vm));
	json_object_set_new(o, "socket", json_string(side->socket));
	pl->m->show(pl, o);
	pl->att->ops->show(pl->att, o);
	return o;
}

/* What went to the driver VM: receive queues. Nothing is known of them where the device VM does the work. */
static void sum_back(const struct vp_plink *pl, struct vp_queue_stats *sum)
{
	*sum = pl->past_back;
	for (unsigned i = 0; pl->slot.v && i < pl->n; i++)
		if (pl->dev->use(i) == VP_QUEUE_RECEIVES)
			vp_stats_add(sum, &vp_vdev_ring(pl->slot.v, i)->rq.stats);
}

bool vp_plink_sent(const struct vp_link *l, unsigned side, struct vp_queue_stats *sum)
{
	struct vp_plink *pl = l->impl;

	if (!pl || !pl->m->lanes)
		return false;
	if (side == VP_SIDE_DRIVER)
		vp_stats_side(&pl->past, pl->slot.v, sum);
	else
		sum_back(pl, sum);
	return true;
}

bool vp_plink_reported(const struct vp_link *l, unsigned side, struct vp_link_reported *r)
{
	struct vp_plink *pl = l->impl;
	uint64_t c[VHP_COUNTS];

	if (!pl || pl->m->lanes || !vp_port_counted(pl->port, c))
		return false;
	if (side == VP_SIDE_DRIVER)
		*r = (struct vp_link_reported){ c[VHP_COUNT_FROM_PACKETS], c[VHP_COUNT_FROM_BYTES],
						c[VHP_COUNT_FROM_DROPPED] };
	else
		*r = (struct vp_link_reported){ c[VHP_COUNT_TO_PACKETS], c[VHP_COUNT_TO_BYTES],
						c[VHP_COUNT_TO_DROPPED] };
	return true;
}

uint64_t vp_plink_handovers(const struct vp_link *l)
{
	struct vp_plink *pl = l->impl;
	uint64_t sum = 0;

	for (unsigned i = 0; pl && i < pl->n; i++)
		sum += vp_port_queue_runs(pl->port, i);
	return sum;
}

/* What this side's VM has sent, in our own words: nobody here has counted anything but what was drained. */
static void add_reported(const struct vp_link *l, unsigned side, struct vp_queue_stats *sum)
{
	struct vp_link_reported r;

	if (!vp_plink_reported(l, side, &r))
		return;
	sum->packets += r.packets;
	sum->bytes += r.bytes;
}

struct vp_vdev *vp_plink_vdev(const struct vp_link *l, unsigned side)
{
	struct vp_plink *pl = l->impl;

	return pl && side == VP_SIDE_DRIVER ? pl->slot.v : NULL;
}

json_t *vp_plink_sides(const struct vp_link *l, bool counters)
{
	struct vp_plink *pl = l->impl;
	struct vp_queue_stats sent, back;
	json_t *sides = json_object(), *dev = device_json(pl), *drv, *c;

	vp_stats_side(&pl->past, pl->slot.v, &sent);
	sum_back(pl, &back);
	add_reported(l, VP_SIDE_DRIVER, &sent);
	add_reported(l, VP_SIDE_DEVICE, &back);
	if (counters) {
		/* Counters of a side count what its VM sent. */
		c = vp_stats_json(&back, &sent, NULL);
		json_object_set(dev, "tx", json_object_get(c, "tx"));
		json_object_set(dev, "rx", json_object_get(c, "rx"));
		json_decref(c);
	}
	drv = counters ? vp_stats_json(&sent, &back, pl->slot.v) :
			 vp_stats_show(&l->conf.side[VP_SIDE_DRIVER], pl->peer, pl->slot.v);
	if (!counters && vp_plink_grants(l))
		json_object_set_new(drv, "grant", vp_grants_json(vp_plink_grants(l)));
	if (!counters)
		json_object_set_new(drv, "carrier", vp_carrier_json(pl->carrier));
	json_object_set_new(sides, "driver", drv);
	json_object_set_new(sides, "device", dev);
	return sides;
}
