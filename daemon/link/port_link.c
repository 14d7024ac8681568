/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: start, end and events, see port_link.h. */
#include "link/port_link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blame.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/types.h"
#include "front/carrier.h"
#include "context/context.h"
#include "link/keep.h"
#include "link/profile.h"

/* ---- events ------------------------------------------------------------------------------------ */

void vp_plink_remember(struct vp_plink *pl)
{
	pl->said = vp_plink_status(pl->l);
	pl->said_online = vp_port_is_online(pl->port);
}

void vp_plink_say(struct vp_plink *pl, const char *why)
{
	vp_plink_remember(pl);
	vp_link_event(pl->l, "link.state", why);
}

/* The port changed: an event if that shows in the link's status. */
void vp_plink_changed(void *ctx)
{
	struct vp_plink *pl = ctx;
	const char *status;
	char why[64];

	if (pl->port && pl->m->tidy)
		pl->m->tidy(pl);
	if (pl->port)
		vp_plink_guard_update(pl);
	/* Not with the driver's queues: without a carrier they do not run. */
	if (pl->port && !vp_port_is_silent(pl->port))
		vp_carrier_set(pl->carrier, pl->l->up && vp_port_attached(pl->port));
	if (pl->quiet || pl->closing)
		return;
	status = vp_plink_status(pl->l);
	if (pl->said_online != vp_port_is_online(pl->port))
		vp_plink_say(pl, pl->said_online ? "device side disconnected" : "device side connected");
	else if (strcmp(status, pl->said)) {
		if (!strcmp(status, "up"))
			snprintf(why, sizeof(why), "link up");
		else if (!strcmp(status, "broken"))
			snprintf(why, sizeof(why), "a queue broke; see link.show");
		else if (vp_port_is_up(pl->port))
			snprintf(why, sizeof(why), "the device VM gave a queue up");
		else
			snprintf(why, sizeof(why), "link down: %s", vp_port_reason_str(vp_port_reason(pl->port)));
		vp_plink_say(pl, why);
	}
}

/* ---- link ops ------------------------------------------------------------------------------------------------ */

/* Another daemon has it, or will: nobody but this process is to notice. */
static void abandon(struct vp_plink *pl)
{
	vp_port_abandon(pl->port);
	/* The driver side first: its wires lead to the attachment. */
	vp_peer_leave(pl->peer);
	pl->peer = NULL;
	if (pl->att)
		pl->att->ops->leave(pl->att);
	pl->att = NULL;
}

void vp_plink_stop(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	if (!pl)
		return;
	pl->quiet++;
	pl->down_owed = false;
	vp_plink_guard_leave(pl);
	if (l->leaving)
		abandon(pl);
	vp_port_leave(pl->port);
	vp_peer_free(pl->peer);
	pl->peer = NULL;
	vp_carrier_free(pl->carrier);
	pl->carrier = NULL;
	vp_port_goodbye(pl->port);
	if (pl->att)
		pl->att->ops->free(pl->att);
	pl->att = NULL;
	vp_plink_lanes_free(pl);
	if (pl->inited)
		pl->m->fini(pl);
	sd_event_source_disable_unref(pl->drain_timer);
	vp_slow_end(&pl->drain_slow);
	sd_event_source_disable_unref(pl->down_timer);
	vp_port_free(pl->port);
	vp_plink_guard_left(pl);
	free(pl->q);
	free(pl);
	l->impl = NULL;
}

static void device_gone(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->m->fresh && pl->att && !pl->l->leaving)
		pl->m->fresh(pl);
}

static void touch(void *ctx)
{
	struct vp_plink *pl = ctx;

	vp_keep_touch(pl->l);
}

static const struct {
	void (*conf)(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
	int (*make)(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
	bool keeps; /* it says when it changes, and can be left (keep.h) */
} attachments[] = {
	[VP_ATTACH_LOCAL] = { vp_local_port_conf, vp_local_new, true },
	[VP_ATTACH_SHMEM] = { vp_shmem_port_conf, vp_shmem_new, true },
	[VP_ATTACH_IVSHMEM] = { vp_ivshmem_port_conf, vp_ivshmem_new, true },
	[VP_ATTACH_HOSTDEV] = { vp_hostdev_port_conf, vp_hostdev_new },
};

static int make_port(struct vp_plink *pl, uint64_t pool, struct vp_err *e)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	struct vp_port_conf pc = { .max_queues = pl->n, .pool_size = pool, .silent = pl->l->heir != NULL };
	struct vp_attach_conf ac = {
		.d = pl->l->d,
		.f = pl->l->d->forward,
		.link = conf,
		.name = pl->dev_name,
		.wires_changed = vp_plink_wires_changed,
		.touch = touch,
		.gone = device_gone,
		.ctx = pl,
		.who = vp_blame_id(conf->side[VP_SIDE_DEVICE].vm),
		.heir = pl->l->heir != NULL,
	};
	int r;

	memcpy(pc.name, conf->name, strnlen(conf->name, sizeof(pc.name)));
	attachments[conf->attachment].conf(ac.d, conf, &pc);
	/* What data threads move they count themselves. */
	pc.count = !pl->m->lanes && !pl->dev->waits;
	r = ac.heir ? vp_plink_heir_port(pl, &pc, e) : 0;
	if (!r)
		r = vp_port_new(&pl->port, ac.d->event, &pc, &vp_plink_port_ops, pl, e);
	if (r && pc.kept && !ac.heir) {
		vp_log(VP_LOG_WARNING, "%s: the port cannot be taken over from the daemon before this one: %s",
		       pl->dev_name, e->msg);
		pc.kept = false;
		r = vp_port_new(&pl->port, ac.d->event, &pc, &vp_plink_port_ops, pl, e);
	}
	if (r)
		return r;
	vp_port_begin(pl->port);
	vp_plink_publish_profile(pl);
	pl->inited = true;
	r = pl->m->init(pl, e);
	vp_port_commit(pl->port);
	return r ? r : attachments[conf->attachment].make(&pl->att, pl->port, &ac, e);
}

/*
 * Where signals go straight through, the device VM's VMM or process has had each call eventfd since
 * the queue was first handed over, keeps it when the link goes down, and a VMM uses the same ones
 * again and again. So it is for both to answer for all of them.
 */
static uint64_t blame_for_calls(const struct vp_plink *pl)
{
	const struct vp_conf_side *side = pl->l->conf.side;
	uint64_t driver = vp_blame_id(side[VP_SIDE_DRIVER].vm);

	if (!pl->m->direct || !pl->att->ops->direct)
		return driver;
	return vp_blame_either(driver, vp_blame_id(side[VP_SIDE_DEVICE].vm));
}

int vp_plink_start(struct vp_link *l, const struct vp_plink_mode *m, uint64_t pool, struct vp_err *e)
{
	struct vp_plink *pl = calloc(1, m->size);
	int r = 0;

	if (!pl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	pl->m = m;
	pl->l = l;
	pl->quiet = 1;
	pl->line[0] = pl->line[1] = pl->claim = -1;
	l->impl = pl;
	pl->dev = vp_device_of(&l->conf);
	pl->n = vp_type_queues(&l->conf);
	vp_profile_load(&l->d->conf->daemon, &l->conf, &pl->profile);
	snprintf(pl->name, sizeof(pl->name), "link %s, driver side", l->conf.name);
	snprintf(pl->dev_name, sizeof(pl->dev_name), "link %s, device side", l->conf.name);
	pl->q = calloc(pl->n, sizeof(*pl->q));
	if (!pl->q)
		r = vp_err_set(e, -ENOMEM, "out of memory");
	if (!r && l->heir)
		r = vp_plink_heir_profile(pl, e);
	for (unsigned i = 0; !r && i < pl->n; i++)
		pl->q[i].m = m;
	if (!r && !l->d->forward)
		r = vp_forward_new(&l->d->forward, e);
	if (!r && m->keeps && attachments[l->conf.attachment].keeps)
		vp_keep_new(l, pl->n, m->engine ? m->engine(pl) : 0);
	if (!r)
		r = vp_carrier_new(&pl->carrier, l->d, &l->conf, pl->name, e);
	if (!r)
		r = make_port(pl, pool, e);
	if (!r)
		pl->call_who = blame_for_calls(pl);
	/* Else when it is: port_settled(). */
	if (!r && vp_port_is_settled(pl->port))
		r = vp_plink_open_driver_side(pl, e);
	if (r) {
		vp_plink_stop(l);
	} else {
		pl->quiet = 0;
		vp_plink_remember(pl);
	}
	return r;
}

void vp_plink_set_hold(struct vp_plink *pl)
{
	vp_port_set_hold(pl->port, (pl->l->up || pl->down_owed ? 0 : VP_PORT_HOLD_ADMIN) |
				   (pl->profile.known ? 0 : VP_PORT_HOLD_PROFILE) |
				   (pl->ungranted ? VP_PORT_HOLD_GRANT : 0));
}

struct vp_grants *vp_plink_grants(const struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	return pl && pl->m->grants ? pl->m->grants(pl) : NULL;
}

/* The caller sends the event. */
void vp_plink_admin(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	vp_keep_touch(l);
	pl->quiet++;
	vp_plink_down(pl);
	pl->quiet--;
	vp_plink_remember(pl);
}

bool vp_plink_busy(const struct vp_link *l)
{
	return ((struct vp_plink *)l->impl)->slot.v != NULL;
}

void vp_plink_reap(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;
	bool broke;

	if (!pl->slot.v)
		return;
	vp_plink_drained(pl, false);
	broke = vp_vdev_check_memory(pl->slot.v);
	broke |= vp_vdev_reap(pl->slot.v);
	if (broke)
		vp_keep_touch(l);
	for (unsigned i = 0; i < pl->n; i++)
		broke |= pl->q[i].handed && pl->q[i].m->lanes &&
			 (vp_vdev_ring(pl->slot.v, i)->rq.vq.broken || pl->q[i].m->broken(pl, i));
	if (!broke)
		return;
	pl->quiet++;
	vp_plink_update(pl);
	pl->quiet--;
	vp_plink_say(pl, "a queue broke; see link.show");
}
