/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: keys that change while the link runs. */
#include "link/keep.h"
#include "link/port_link.h"

#include <string.h>

#include "front/carrier.h"

static bool same_qmp(const struct vp_conf_link *a, const struct vp_conf_link *b)
{
	return !strcmp(a->qmp, b->qmp) && a->qmp_mode == b->qmp_mode && !strcmp(a->hotplug_bus, b->hotplug_bus);
}

static bool same_carrier(const struct vp_conf_link *a, const struct vp_conf_link *b)
{
	return !strcmp(a->driver_qmp, b->driver_qmp) && a->driver_qmp_mode == b->driver_qmp_mode &&
	       !strcmp(a->nic, b->nic);
}

/* Of all queues: in copy mode those that the driver receives on have the same limits, for what the device VM sends. */
static void set_rates(struct vp_plink *pl)
{
	for (unsigned i = 0; pl->slot.v && !pl->dev->waits && i < pl->n; i++)
		vp_vdev_set_rates(pl->slot.v, i);
}

int vp_plink_alter(struct vp_link *l, const struct vp_conf_link *next, bool again, struct vp_err *e)
{
	bool carrier = !same_carrier(&l->conf, next);
	struct vp_plink *pl = l->impl;
	int r = 0, r2;

	vp_keep_touch(l);

	/* Sockets are removed by the names that they had. */
	if (carrier) {
		vp_carrier_free(pl->carrier);
		pl->carrier = NULL;
	}
	if (pl->att->ops->alter && !same_qmp(&l->conf, next))
		r = pl->att->ops->alter(pl->att, &l->conf, next, e);
	vp_conf_take(VP_CONF_LINK, &l->conf, next, VP_EFFECTS_IN_PLACE);
	if (carrier) {
		r2 = vp_carrier_new(&pl->carrier, l->d, &l->conf, pl->name, r ? &(struct vp_err){ 0 } : e);
		vp_carrier_set(pl->carrier, l->up && vp_port_attached(pl->port));
		r = r ? r : r2;
	}
	set_rates(pl);
	if (!again)
		return r;
	if (pl->peer && vp_peer_session(pl->peer)) {
		pl->reoffer = true;
		vp_peer_kick_out(pl->peer, "what it is offered has changed");
	} else {
		vp_plink_publish_profile(pl);
	}
	return r;
}

bool vp_plink_plugged(const struct vp_link *l)
{
	const struct vp_plink *pl = l->impl;

	return pl->att->ops->plugged && vp_port_is_online(pl->port);
}
