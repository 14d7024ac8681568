/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: the driver side, its device (front/vdev.h) and its connection (front/peer.h). */
#include "link/grant.h"
#include "link/port_link.h"

#include <linux/vhost_types.h>
#include <stdio.h>

#include "base/util.h"
#include "context/context.h"
#include "front/carrier.h"
#include "link/capture.h"
#include "link/keep.h"

/* ---- the driver side's device ---------------------------------------------------------------------------- */

static void vdev_withdraw(void *ctx, unsigned first, unsigned n)
{
	struct vp_plink *pl = ctx;

	vp_plink_withdraw(pl, first, n);
	/* What is in the device VM's hands stays there, but its fds may change. Wires have duplicates of their own. */
	for (unsigned i = first; i < first + n; i++)
		pl->q[i].rewire = true;
}

static void vdev_offer(void *ctx, unsigned first, unsigned n)
{
	vp_plink_update(ctx);
}

static int vdev_stop(void *ctx, unsigned i)
{
	return vp_plink_stop_queue(ctx, i);
}

static void vdev_memory(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->m->memory)
		pl->m->memory(pl);
}

static void vdev_events_changed(void *ctx)
{
	struct vp_plink *pl = ctx;

	vp_peer_rearm(pl->peer);
}

static struct vu_backend *vdev_session(void *ctx)
{
	struct vp_plink *pl = ctx;

	return vp_peer_session(pl->peer);
}

static int vdev_attention_fd(void *ctx)
{
	struct vp_plink *pl = ctx;

	return worker_attention_fd(pl->l->d->workers);
}

/* Lanes sleep while they wait for this. */
static void vdev_translated(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->lanes)
		vp_lanes_poke(pl->lanes);
	if (pl->m->grants)
		vp_grants_translated(pl->m->grants(pl));
}

static int vdev_revoke(void *ctx, uint64_t iova, uint64_t last, bool remap, uint64_t uva)
{
	struct vp_plink *pl = ctx;

	return pl->m->grants ? vp_grants_revoke(pl->m->grants(pl), iova, last, remap, uva) : 0;
}

static void vdev_config_written(void *ctx, uint32_t off, uint32_t len, const uint8_t *all)
{
	struct vp_plink *pl = ctx;

	vp_port_set_written(pl->port, off, len, all);
}

static int vdev_logged(void *ctx)
{
	return vp_plink_logged(ctx);
}

static const struct vp_vdev_ops vdev_ops = {
	.touch = vp_plink_touch,
	.translated = vdev_translated,
	.logged = vdev_logged,
	.withdraw = vdev_withdraw,
	.offer = vdev_offer,
	.stop = vdev_stop,
	.revoke = vdev_revoke,
	.memory = vdev_memory,
	.events_changed = vdev_events_changed,
	.session = vdev_session,
	.attention_fd = vdev_attention_fd,
	.config_written = vdev_config_written,
};

uint64_t vp_plink_features(const struct vp_plink *pl)
{
	const uint64_t ours = pl->m->not_the_paths | VP_BIT(VU_F_PROTOCOL_FEATURES) | VP_BIT(VHOST_F_LOG_ALL);

	return (vp_vdev_features(pl->slot.v) & ~ours) | (vp_port_path(pl->port) & pl->m->path_bits);
}

void vp_plink_offer(struct vp_plink *pl, struct vu_backend_cfg *cfg)
{
	vp_link_backend_cfg(pl->l, VP_SIDE_DRIVER, &pl->profile, cfg);
	if (pl->m->profile)
		pl->m->profile(&pl->l->conf, cfg);
}

static int drv_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	struct vp_plink *pl = ctx;
	int r = vp_plink_lanes_make(pl);

	if (r)
		return vp_err_set(e, r, "out of memory");
	vp_plink_offer(pl, cfg);
	r = vp_vdev_new(&pl->slot.v, pl->name, &pl->l->conf, VP_SIDE_DRIVER, &pl->profile, &vdev_ops, pl);
	if (r)
		return vp_err_set(e, r, "out of memory");
	vp_vdev_set_places(pl->slot.v, vp_keep_places(pl->l, VP_SIDE_DRIVER));
	for (unsigned i = 0; i < pl->n; i++)
		vp_vdev_ring(pl->slot.v, i)->rq.who = pl->call_who;
	vp_captures_apply(pl->l);
	return 0;
}

static void drv_opened(void *ctx)
{
	struct vp_plink *pl = ctx;

	vp_plink_say(pl, "driver side connected");
	vp_plink_update(pl);
	vp_carrier_connected(pl->carrier);
}

static void drv_gone(struct vp_plink *pl)
{
	struct vp_vdev *v = pl->slot.v;

	if (!v)
		return;
	pl->closing = true;
	vp_port_begin(pl->port);
	vp_port_set_driver(pl->port, VP_PORT_NO_DRIVER, 0);
	vp_port_set_mode(pl->port, pl->m->mode, false);
	vdev_memory(pl);
	vp_port_commit(pl->port);
	vp_vdev_reap(v);
	vp_plink_withdraw(pl, 0, pl->n);
	/* Nobody waits for answers any more. */
	for (unsigned i = 0; i < pl->n; i++)
		pl->q[i].gone = pl->q[i].stop_owed = false;
	pl->log_owed = false;
	for (unsigned i = 0; i < pl->n; i++)
		vp_stats_add(pl->dev->use(i) == VP_QUEUE_RECEIVES ? &pl->past_back : &pl->past,
			     &vp_vdev_ring(v, i)->rq.stats);
	vp_vdev_free(v);
	pl->slot.v = NULL;
	vp_plink_lanes_free(pl);
	if (pl->m->gone)
		pl->m->gone(pl);
	vp_plink_guard_update(pl);
	pl->closing = false;
	vp_plink_drained(pl, false);
	if (pl->reoffer)
		vp_plink_publish_profile(pl);
	pl->reoffer = false;
}

static void drv_closing(void *ctx)
{
	drv_gone(ctx);
}

static void drv_closed(void *ctx, const char *why)
{
	struct vp_plink *pl = ctx;

	drv_gone(pl);  /* the session never began */
	vp_plink_say(pl, why);
}

/*
 * We end it: its VMM goes to work on the rings itself then (guard.h), so the guest has to let go first. port_released()
 * follows.
 */
static bool drv_hold(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->m->lanes || !vp_port_in_guests_hands(pl->port))
		return false;
	for (unsigned i = 0; i < pl->n; i++)
		vp_port_queue_await(pl->port, i);
	return true;
}

static void drv_save(void *ctx, struct vp_rec *r)
{
	struct vp_plink *pl = ctx;

	vp_vdev_save(pl->slot.v, r, true);
}

static int drv_restore(void *ctx, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_plink *pl = ctx;

	return vp_vdev_restore(pl->slot.v, in, e);
}

static const struct vp_peer_ops peer_ops = {
	.touch = vp_plink_touch,
	.open = drv_open, .opened = drv_opened, .closing = drv_closing, .hold = drv_hold, .closed = drv_closed,
	.save = drv_save, .restore = drv_restore,
};

/* The driver VM may connect. Without a profile its VMM cannot be answered: there is no socket yet. */
int vp_plink_open_driver_side(struct vp_plink *pl, struct vp_err *e)
{
	struct vp_link *l = pl->l;
	char act[VP_CONF_NAME_MAX + 16];

	if (!pl->profile.known || pl->peer)
		return 0;
	snprintf(act, sizeof(act), "%s.driver", l->conf.name);
	return vp_peer_new(&pl->peer, l->d, pl->name, act, &l->conf.side[VP_SIDE_DRIVER], &peer_ops, &vp_vdev_vu_ops,
			   pl, e);
}
