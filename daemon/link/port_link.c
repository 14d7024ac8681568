/* SPDX-License-Identifier: BSD-3-Clause */
/* Port links: what fast and copy mode have in common, see port_link.h. */
#include "link/port_link.h"

#include <errno.h>
#include <linux/vhost_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blame.h"
#include "base/log.h"
#include "base/util.h"
#include "front/carrier.h"
#include "context/context.h"
#include "link/profile.h"
#include "sys/timer.h"

static void update(struct vp_plink *pl);

/* ---- events ------------------------------------------------------------------------------------ */

static void remember(struct vp_plink *pl)
{
	pl->said = vp_plink_status(pl->l);
	pl->said_online = vp_port_is_online(pl->port);
}

static void say(struct vp_plink *pl, const char *why)
{
	remember(pl);
	vp_link_event(pl->l, "link.state", why);
}

/* The port changed: an event if that shows in the link's status. */
static void port_changed(void *ctx)
{
	struct vp_plink *pl = ctx;
	const char *status;
	char why[64];

	/* Not with the driver's queues: without a carrier they do not run. */
	if (pl->port)
		vp_carrier_set(pl->carrier, pl->l->up && vp_port_attached(pl->port));
	if (pl->quiet || pl->closing)
		return;
	status = vp_plink_status(pl->l);
	if (pl->said_online != vp_port_is_online(pl->port))
		say(pl, pl->said_online ? "device side disconnected" : "device side connected");
	else if (strcmp(status, pl->said)) {
		if (!strcmp(status, "up"))
			snprintf(why, sizeof(why), "link up");
		else if (!strcmp(status, "broken"))
			snprintf(why, sizeof(why), "a queue broke; see link.show");
		else if (vp_port_is_up(pl->port))
			snprintf(why, sizeof(why), "the device VM gave a queue up");
		else
			snprintf(why, sizeof(why), "link down: %s", vp_port_reason_str(vp_port_reason(pl->port)));
		say(pl, why);
	}
}

/* ---- signals -------------------------------------------------------------------------------------- */

uint64_t vp_plink_wire_count(const struct vp_wire *w)
{
	return w ? vp_wire_count(w) : 0;
}

void vp_plink_unwire(struct vp_plink *pl, struct vp_wire **w)
{
	pl->signals += vp_plink_wire_count(*w);
	vp_wire_free(*w);
	*w = NULL;
}

void vp_plink_wire(struct vp_plink *pl, struct vp_wire **w, int src, int dst, const char *what)
{
	struct vp_wire *old = *w;
	int r;

	*w = NULL;
	/* The new one first: no signal falls between them. */
	r = src >= 0 && dst >= 0 ? vp_wire_new(w, pl->l->d->forward, src, dst, pl->call_who) : 0;
	if (r)
		vp_log(VP_LOG_WARNING, "%s: its %s cannot be forwarded: %s", pl->name, what, strerror(-r));
	vp_plink_unwire(pl, &old);
}

static void wire(struct vp_plink *pl, unsigned i)
{
	pl->q[i].rewire = false;
	pl->m->wire(pl, i);
}

/* The device VM's fds are other ones. */
static void wires_changed(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (!pl->slot.v || pl->closing)
		return;
	vp_lanes_withdraw(pl, 0, pl->n);
	for (unsigned i = 0; i < pl->n; i++) {
		if (pl->q[i].handed)
			wire(pl, i);
		if (vp_vdev_ring(pl->slot.v, i)->usable)
			vp_lane_publish(pl, i);
	}
	pl->guard_stale = true;
	vp_plink_guard_update(pl);
}

static void device_gone(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->m->fresh && pl->att)
		pl->m->fresh(pl);
}

/* ---- from hand to hand -------------------------------------------------------------------------------- */

/*
 * Requests that the device VM has are answered also when the driver has disabled the queue, which QEMU does before it stops
 * it: our data threads see to it that no new ones come.
 */
static bool stays_enabled(const struct vp_plink *pl, const struct vp_vdev_ring *r)
{
	return r->enabled || (pl->dev->waits && pl->m->lanes);
}

static void hand_over(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct vp_plink_queue *q = &pl->q[i];
	struct vp_port_ring pr = { .enabled = stays_enabled(pl, r) };

	vp_lanes_withdraw(pl, i, 1);
	if (r->rq.vq.broken)
		return;
	if (pl->m->begin(pl, i, &pr)) {
		q->given_up = true;
		return;
	}
	if (vp_port_queue_run(pl->port, i, &pr)) {
		pl->m->end(pl, i, NULL, true);
		return;
	}
	q->handed = true;
	wire(pl, i);
	vp_lane_publish(pl, i);
}

static void finish(struct vp_plink *pl, unsigned i)
{
	if (pl->m->finish)
		pl->m->finish(pl, i);
}

static void port_queue_stopped(void *ctx, unsigned i, const struct vp_port_stop *s)
{
	struct vp_plink *pl = ctx;
	struct vp_plink_queue *q = &pl->q[i];
	bool owed = q->stop_owed, alive = pl->slot.v && !pl->closing;
	struct vp_err e = { 0 };

	pl->m->unwire(pl, i);
	vp_lanes_withdraw(pl, i, 1);
	q->handed = q->stop_owed = q->draining = false;
	q->given_up = pl->m->end(pl, i, s, alive) || (!s->lost && !owed && !q->taken);
	q->taken = false;
	if (!alive)
		return;
	if (owed) {
		finish(pl, i);
		if (vp_vdev_ring_stopped(pl->slot.v, i, &e))
			vp_peer_kick_out(pl->peer, e.code ? e.msg : "the front-end went away");
		vp_peer_rearm(pl->peer);
	} else {
		update(pl);
	}
}

static void port_up(void *ctx)
{
	struct vp_plink *pl = ctx;

	for (unsigned i = 0; i < pl->n; i++)
		pl->q[i].given_up = false;
	update(pl);
}

static void port_down(void *ctx)
{
	update(ctx);
}

static void port_settled(void *ctx)
{
	struct vp_plink *pl = ctx;
	struct vp_err e;

	/* att: not while it is still being made, or freed. */
	if (pl->att && !pl->peer && !pl->closing && vp_plink_open_driver_side(pl, &e))
		vp_log(VP_LOG_ERR, "%s: %s", pl->name, e.msg);
}

static uint32_t port_backend(void *ctx, const struct vp_port_backend *b, uint64_t *missing)
{
	return vp_plink_backend(ctx, b, missing);
}

static void port_released(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->slot.v && !pl->closing)
		update(pl);
	if (!vp_port_in_guests_hands(pl->port))
		vp_peer_let_go(pl->peer);
}

static const struct vp_port_ops port_ops = {
	.up = port_up, .down = port_down, .queue_stopped = port_queue_stopped, .settled = port_settled, .changed = port_changed,
	.released = port_released, .backend = port_backend,
};

/* Started, be it that its translation is awaited. */
static bool ring_lives(const struct vp_vdev_ring *r)
{
	return r->usable || r->wait == VP_VDEV_WAIT_REBIND;
}

static enum vp_port_driver driver_state(struct vp_plink *pl)
{
	struct vp_vdev *v = pl->slot.v;

	if (!v || pl->closing)
		return VP_PORT_NO_DRIVER;
	for (unsigned i = 0; i < pl->n; i++)
		if (ring_lives(vp_vdev_ring(v, i)))
			return VP_PORT_DRIVER_RUNS;
	return VP_PORT_DRIVER_IDLE;
}

/*
 * What a driver sends on a queue that is not enabled is taken and discarded (vhost-user, "Ring
 * states"). That is done here, whatever the data path would do: it has no such queue.
 */
static bool may_have(const struct vp_vdev_ring *r, unsigned i)
{
	return r->enabled || !(i & 1);
}

static void update_queue(struct vp_plink *pl, unsigned i, bool up)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct vp_plink_queue *q = &pl->q[i];

	if (!ring_lives(r)) {
		q->given_up = false;
		if (!q->handed)
			finish(pl, i);
	}
	/*
	 * The driver's ring is broken, the guest is well: it lets go first. Its next run may have the same shadow ring, and a
	 * guest that is still in a burst of the last one would write into it.
	 */
	if (q->handed && ring_lives(r) && r->rq.vq.broken && !(pl->m->spoiled && pl->m->spoiled(pl, i)) &&
	    vp_port_queue_stop(pl->port, i) == VP_LATER)
		return;
	if (q->handed && (!ring_lives(r) || r->rq.vq.broken || (pl->m->spoiled && pl->m->spoiled(pl, i)))) {
		vp_port_queue_end(pl->port, i);
		return;
	}
	if (q->handed && !may_have(r, i) && vp_port_queue_stop(pl->port, i) == VP_LATER)
		q->taken = true;
	if (q->handed) {
		vp_port_queue_enable(pl->port, i, stays_enabled(pl, r));
		if (pl->m->open)
			pl->m->open(pl, i, r->enabled && !q->stop_owed);
		if (q->rewire)
			wire(pl, i);
	}
	if (r->usable && !q->handed && up && !q->given_up && may_have(r, i) &&
	    vp_port_queue_await(pl->port, i) != VP_LATER)
		hand_over(pl, i);
	else if (r->usable)
		vp_lane_publish(pl, i);
}

static void update_once(struct vp_plink *pl)
{
	struct vp_vdev *v = pl->slot.v;
	bool up;

	vp_port_begin(pl->port);
	vp_port_set_driver(pl->port, driver_state(pl), v && !pl->closing ? pl->m->features(pl) : 0);
	up = vp_port_is_up(pl->port);
	for (unsigned i = 0; v && pl->lane && !pl->closing && i < pl->n; i++)
		update_queue(pl, i, up);
	vp_port_commit(pl->port);
	if (v && !pl->closing && vp_peer_session(pl->peer))
		vp_vdev_set_carrier(v, up);
}

/* Bring port, lanes and wires in line with the rings there are. */
static void update(struct vp_plink *pl)
{
	pl->again = true;
	if (pl->in_update)
		return;
	pl->in_update = true;
	while (pl->again) {
		pl->again = false;
		update_once(pl);
	}
	pl->in_update = false;
	vp_plink_guard_update(pl);
	if (!pl->closing)
		vp_link_look(pl->l);
}

/* ---- the driver side's device ---------------------------------------------------------------------------- */

static void vdev_withdraw(void *ctx, unsigned first, unsigned n)
{
	struct vp_plink *pl = ctx;

	vp_lanes_withdraw(pl, first, n);
	/* What is in the device VM's hands stays there, but its fds may change. Wires have duplicates of their own. */
	for (unsigned i = first; i < first + n; i++)
		pl->q[i].rewire = true;
}

static void vdev_offer(void *ctx, unsigned first, unsigned n)
{
	update(ctx);
}

/* Longer than a disk takes for what was under way; the driver VM's VMM, and its guest, wait meanwhile. */
#define DRAIN_US 5000000u

/* Requests of queues that are to be stopped have been answered, or (all) have had their time: now the device VM is asked to stop. */
static void drained(struct vp_plink *pl, bool all)
{
	for (unsigned i = 0; i < pl->n; i++) {
		if (!pl->q[i].draining || !(all || pl->m->drained(pl, i)))
			continue;
		pl->q[i].draining = false;
		if (all)
			vp_log(VP_LOG_WARNING, "%s: queue %u: requests are still under way after %u s; it is stopped all the same",
			       pl->dev_name, i, DRAIN_US / 1000000);
		vp_port_queue_stop(pl->port, i);
	}
}

static int on_drain(sd_event_source *s, uint64_t usec, void *arg)
{
	drained(arg, true);
	return 0;
}

static int vdev_stop(void *ctx, unsigned i)
{
	struct vp_plink *pl = ctx;

	if (pl->q[i].handed && pl->m->drained && pl->dev->waits) {
		pl->q[i].stop_owed = true;
		pl->m->open(pl, i, false);
		if (!pl->m->drained(pl, i) &&
		    vp_timer_in(pl->l->d->event, &pl->drain_timer, DRAIN_US, on_drain, pl, pl->name) >= 0) {
			pl->q[i].draining = true;
			return VP_LATER;
		}
		pl->q[i].stop_owed = false;
	}
	if (vp_port_queue_stop(pl->port, i) != VP_LATER) {
		vp_lanes_withdraw(pl, i, 1);
		finish(pl, i);
		return 0;
	}
	pl->q[i].stop_owed = true;
	/* Until the device VM has answered, what it returns is given back and nothing new is taken. */
	if (pl->q[i].handed && pl->m->open)
		pl->m->open(pl, i, false);
	return VP_LATER;
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

	vp_lanes_poke(pl);
}

static void vdev_config_written(void *ctx, uint32_t off, uint32_t len, const uint8_t *all)
{
	struct vp_plink *pl = ctx;

	vp_port_set_written(pl->port, off, len, all);
}

static const struct vp_vdev_ops vdev_ops = {
	.translated = vdev_translated, .withdraw = vdev_withdraw, .offer = vdev_offer, .stop = vdev_stop, .memory = vdev_memory,
	.events_changed = vdev_events_changed, .session = vdev_session, .attention_fd = vdev_attention_fd,
	.config_written = vdev_config_written,
};

void vp_plink_offer(struct vp_plink *pl, struct vu_backend_cfg *cfg)
{
	vp_link_backend_cfg(pl->l, VP_SIDE_DRIVER, &pl->profile, cfg);
	if (pl->m->profile)
		pl->m->profile(&pl->l->conf, cfg);
}

static int drv_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	struct vp_plink *pl = ctx;
	int r = vp_lanes_make(pl);

	if (r)
		return vp_err_set(e, r, "out of memory");
	vp_plink_offer(pl, cfg);
	r = vp_vdev_new(&pl->slot.v, pl->name, &pl->l->conf, VP_SIDE_DRIVER, &pl->profile, &vdev_ops, pl);
	if (r)
		return vp_err_set(e, r, "out of memory");
	for (unsigned i = 0; i < pl->n; i++)
		vp_vdev_ring(pl->slot.v, i)->rq.who = pl->call_who;
	return 0;
}

static void drv_opened(void *ctx)
{
	struct vp_plink *pl = ctx;

	say(pl, "driver side connected");
	update(pl);
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
	vdev_memory(pl);
	vp_port_commit(pl->port);
	vp_vdev_reap(v);
	vp_lanes_withdraw(pl, 0, pl->n);
	for (unsigned i = 0; i < pl->n; i++)
		vp_stats_add(pl->dev->use(i) == VP_QUEUE_RECEIVES ? &pl->past_back : &pl->past, &vp_vdev_ring(v, i)->rq.stats);
	vp_vdev_free(v);
	pl->slot.v = NULL;
	vp_lanes_free(pl);
	if (pl->m->gone)
		pl->m->gone(pl);
	vp_plink_guard_update(pl);
	pl->closing = false;
}

static void drv_closing(void *ctx)
{
	drv_gone(ctx);
}

static void drv_closed(void *ctx, const char *why)
{
	struct vp_plink *pl = ctx;

	drv_gone(pl);  /* the session never began */
	say(pl, why);
}

/* We end it: its VMM goes to work on the rings itself then (guard.h), so the guest has to let go first. port_released() follows. */
static bool drv_hold(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (pl->m->lanes || !vp_port_in_guests_hands(pl->port))
		return false;
	for (unsigned i = 0; i < pl->n; i++)
		vp_port_queue_await(pl->port, i);
	return true;
}

static const struct vp_peer_ops peer_ops = {
	.open = drv_open, .opened = drv_opened, .closing = drv_closing, .hold = drv_hold, .closed = drv_closed,
};

/* The driver VM may connect. Without a profile its VMM cannot be answered: there is no socket yet. */
int vp_plink_open_driver_side(struct vp_plink *pl, struct vp_err *e)
{
	struct vp_link *l = pl->l;
	char act[VP_CONF_NAME_MAX + 16];

	if (!pl->profile.known || pl->peer)
		return 0;
	snprintf(act, sizeof(act), "%s.driver", l->conf.name);
	return vp_peer_new(&pl->peer, l->d, pl->name, act, &l->conf.side[VP_SIDE_DRIVER], &peer_ops, &vp_vdev_vu_ops, pl, e);
}

/* ---- link ops ------------------------------------------------------------------------------------------------ */

void vp_plink_stop(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	if (!pl)
		return;
	pl->quiet++;
	vp_plink_guard_leave(pl);
	vp_port_leave(pl->port);
	vp_peer_free(pl->peer);
	pl->peer = NULL;
	vp_carrier_free(pl->carrier);
	pl->carrier = NULL;
	vp_port_goodbye(pl->port);
	if (pl->att)
		pl->att->ops->free(pl->att);
	pl->att = NULL;
	vp_lanes_free(pl);
	pl->m->fini(pl);
	sd_event_source_disable_unref(pl->drain_timer);
	vp_port_free(pl->port);
	vp_plink_guard_left(pl);
	free(pl->q);
	free(pl);
	l->impl = NULL;
}

static const struct {
	void (*conf)(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
	int (*make)(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
} attachments[] = {
	[VP_ATTACH_LOCAL] = { vp_local_port_conf, vp_local_new },
	[VP_ATTACH_SHMEM] = { vp_shmem_port_conf, vp_shmem_new },
	[VP_ATTACH_IVSHMEM] = { vp_ivshmem_port_conf, vp_ivshmem_new },
	[VP_ATTACH_HOSTDEV] = { vp_hostdev_port_conf, vp_hostdev_new },
};

static int make_port(struct vp_plink *pl, struct vp_err *e)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	struct vp_port_conf pc = { .max_queues = pl->n };
	struct vp_attach_conf ac = {
		.d = pl->l->d, .f = pl->l->d->forward, .link = conf, .name = pl->dev_name, .wires_changed = wires_changed,
		.gone = device_gone, .ctx = pl,
		.who = vp_blame_id(conf->side[VP_SIDE_DEVICE].vm),
	};
	int r;

	memcpy(pc.name, conf->name, strnlen(conf->name, sizeof(pc.name)));
	attachments[conf->attachment].conf(ac.d, conf, &pc);
	r = pl->m->init(pl, &pc, e);
	if (!r)
		r = vp_port_new(&pl->port, ac.d->event, &pc, &port_ops, pl, e);
	if (r && pc.kept) {
		vp_log(VP_LOG_WARNING, "%s: the port cannot be taken over from the daemon before this one: %s", pl->dev_name, e->msg);
		pc.kept = false;
		r = vp_port_new(&pl->port, ac.d->event, &pc, &port_ops, pl, e);
	}
	if (r)
		return r;
	vp_port_begin(pl->port);
	vp_plink_publish_profile(pl);
	r = pl->m->port_made ? pl->m->port_made(pl, e) : 0;
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

int vp_plink_start(struct vp_link *l, const struct vp_plink_mode *m, struct vp_err *e)
{
	struct vp_plink *pl = calloc(1, m->size);
	int r = 0;

	if (!pl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	pl->m = m;
	pl->l = l;
	pl->quiet = 1;
	l->impl = pl;
	pl->dev = vp_device_of(&l->conf);
	pl->n = pl->dev->queues(&l->conf);
	vp_profile_load(&l->d->conf->daemon, &l->conf, &pl->profile);
	snprintf(pl->name, sizeof(pl->name), "link %s, driver side", l->conf.name);
	snprintf(pl->dev_name, sizeof(pl->dev_name), "link %s, device side", l->conf.name);
	pl->q = calloc(pl->n, sizeof(*pl->q));
	if (!pl->q)
		r = vp_err_set(e, -ENOMEM, "out of memory");
	if (!r && !l->d->forward)
		r = vp_forward_new(&l->d->forward, e);
	if (!r)
		r = vp_carrier_new(&pl->carrier, l->d, &l->conf, pl->name, e);
	if (!r)
		r = make_port(pl, e);
	if (!r)
		pl->call_who = blame_for_calls(pl);
	/* Else when it is: port_settled(). */
	if (!r && vp_port_is_settled(pl->port))
		r = vp_plink_open_driver_side(pl, e);
	if (r) {
		vp_plink_stop(l);
	} else {
		pl->quiet = 0;
		remember(pl);
	}
	return r;
}

/* The caller sends the event. */
void vp_plink_admin(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	pl->quiet++;
	vp_port_set_hold(pl->port, (l->up ? 0 : VP_PORT_HOLD_ADMIN) | (pl->profile.known ? 0 : VP_PORT_HOLD_PROFILE));
	pl->quiet--;
	remember(pl);
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
	drained(pl, false);
	broke = vp_vdev_check_memory(pl->slot.v);
	broke |= vp_vdev_reap(pl->slot.v);
	for (unsigned i = 0; pl->m->lanes && i < pl->n; i++)
		broke |= pl->q[i].handed && pl->m->broken(pl->m->lane(pl, i));
	if (!broke)
		return;
	pl->quiet++;
	update(pl);
	pl->quiet--;
	say(pl, "a queue broke; see link.show");
}

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
	if (counters && pl->m->lanes) {
		/* Counters of a side count what its VM sent. */
		c = vp_stats_json(&back, &sent, NULL);
		json_object_set(dev, "tx", json_object_get(c, "tx"));
		json_object_set(dev, "rx", json_object_get(c, "rx"));
		json_decref(c);
	}
	drv = counters ? vp_stats_json(&sent, &back, pl->slot.v) :
			 vp_stats_show(&l->conf.side[VP_SIDE_DRIVER], pl->peer, pl->slot.v);
	if (!counters)
		json_object_set_new(drv, "carrier", vp_carrier_json(pl->carrier));
	json_object_set_new(sides, "driver", drv);
	json_object_set_new(sides, "device", dev);
	return sides;
}
