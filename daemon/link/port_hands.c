/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Port links: whose hands a queue is in, see port_link.h. vp_plink_update() compares what is with what should be, and
 * hands over or takes back; the signals of a queue follow it.
 */
#include "link/grant.h"
#include "link/keep.h"
#include "link/port_link.h"

#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "sys/timer.h"

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
	pl->q[i].m->wire(pl, i);
}

/* The device VM's fds are other ones. */
void vp_plink_wires_changed(void *ctx)
{
	struct vp_plink *pl = ctx;

	if (!pl->slot.v || pl->closing)
		return;
	vp_plink_withdraw(pl, 0, pl->n);
	for (unsigned i = 0; i < pl->n; i++) {
		if (pl->q[i].handed)
			wire(pl, i);
		if (vp_vdev_ring(pl->slot.v, i)->usable)
			vp_plink_publish(pl, i);
	}
	pl->guard_stale = true;
	vp_plink_guard_update(pl);
}

/* ---- from hand to hand -------------------------------------------------------------------------------- */

/* What is written to the driver VM's memory has to be logged: all queues are copied. */
static bool logged(const struct vp_plink *pl)
{
	return pl->copy && pl->m != &vp_plink_copy && pl->slot.v && vp_vdev_logging(pl->slot.v);
}

/* In which mode queue i is handed over now. */
static const struct vp_plink_mode *mode_now(const struct vp_plink *pl, unsigned i)
{
	return logged(pl) || (pl->copy && pl->q[i].copied) ? &vp_plink_copy : pl->m;
}

/*
 * Requests that the device VM has are answered also when the driver has disabled the queue, which QEMU does before it
 * stops it: our data threads see to it that no new ones come.
 */
static bool stays_enabled(const struct vp_plink *pl, unsigned i)
{
	return vp_vdev_ring(pl->slot.v, i)->enabled || (pl->dev->waits && mode_now(pl, i)->lanes);
}

static void finish(struct vp_plink *pl, unsigned i)
{
	if (pl->q[i].m->finish)
		pl->q[i].m->finish(pl, i);
}

static void hand_over(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct vp_plink_queue *q = &pl->q[i];
	struct vp_port_ring pr = { .enabled = stays_enabled(pl, i) };

	int ret;

	vp_plink_withdraw(pl, i, 1);
	if (q->m != mode_now(pl, i)) {
		/* What the old mode still knows of the ring is brought to an end first. */
		if (q->m->tidy)
			q->m->tidy(pl);
		finish(pl, i);
		q->m = mode_now(pl, i);
	}
	if (r->rq.vq.broken)
		return;
	ret = q->m->begin(pl, i, &pr);
	if (ret) {
		q->given_up = ret != VP_LATER;
		return;
	}
	if (vp_port_queue_run(pl->port, i, &pr)) {
		q->m->end(pl, i, NULL, true);
		return;
	}
	q->handed = true;
	wire(pl, i);
	vp_plink_publish(pl, i);
}

/* Nobody has the queue. Its front-end may be told so now, or later. */
static int leave(struct vp_plink *pl, unsigned i)
{
	finish(pl, i);
	pl->q[i].gone = true;
	return pl->m->leave ? pl->m->leave(pl, i) : 0;
}

void vp_plink_answer_stop(struct vp_plink *pl, unsigned i)
{
	struct vp_err e = { 0 };

	pl->q[i].stop_owed = false;
	if (vp_vdev_ring_stopped(pl->slot.v, i, &e))
		vp_peer_kick_out(pl->peer, e.code ? e.msg : "the front-end went away");
	vp_peer_rearm(pl->peer);
}

/* What is said of a drain that takes long ends with the last of them. */
static void drains_look(struct vp_plink *pl)
{
	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].draining)
			return;
	vp_slow_end(&pl->drain_slow);
}

static void port_queue_stopped(void *ctx, unsigned i, const struct vp_port_stop *s)
{
	struct vp_plink *pl = ctx;
	struct vp_plink_queue *q = &pl->q[i];
	bool owed = q->stop_owed, alive = pl->slot.v && !pl->closing;

	vp_plink_withdraw(pl, i, 1);
	q->handed = q->stop_owed = q->draining = false;
	drains_look(pl);
	q->m->end(pl, i, s, alive);
	/* Not one that is to be gone on with in another mode. */
	q->given_up = q->spoiled || (!s->lost && !owed && !q->taken && q->m == mode_now(pl, i));
	q->spoiled = q->taken = false;
	if (!alive)
		return;
	if (owed) {
		q->stop_owed = leave(pl, i) == VP_LATER;
		if (!q->stop_owed)
			vp_plink_answer_stop(pl, i);
	} else {
		vp_plink_update(pl);
	}
}

static void port_up(void *ctx)
{
	struct vp_plink *pl = ctx;

	for (unsigned i = 0; i < pl->n; i++)
		pl->q[i].given_up = false;
	vp_plink_update(pl);
}

static void port_down(void *ctx)
{
	vp_plink_update(ctx);
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
		vp_plink_update(pl);
	if (!vp_port_in_guests_hands(pl->port))
		vp_peer_let_go(pl->peer);
}

static uint32_t port_map(void *ctx, uint64_t addr, uint64_t size, bool *covered)
{
	struct vp_plink *pl = ctx;

	return vp_grants_map(pl->m->grants(pl), addr, size, covered);
}

static void port_unmap(void *ctx, uint64_t addr, uint64_t size)
{
	struct vp_plink *pl = ctx;

	vp_grants_unmap(pl->m->grants(pl), addr, size);
}

void vp_plink_touch(void *ctx)
{
	struct vp_plink *pl = ctx;

	vp_keep_touch(pl->l);
}

const struct vp_port_ops vp_plink_port_ops = {
	.touch = vp_plink_touch,
	.map = port_map,
	.unmap = port_unmap,
	.up = port_up,
	.down = port_down,
	.queue_stopped = port_queue_stopped,
	.settled = port_settled,
	.changed = vp_plink_changed,
	.released = port_released,
	.backend = port_backend,
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

/* The device VM has it, and has broken its end of it. */
static bool spoiled(struct vp_plink *pl, unsigned i)
{
	if (!pl->q[i].m->broken || !pl->q[i].m->broken(pl, i))
		return false;
	vp_log(VP_LOG_WARNING,
	       "%s: queue %u: the device VM returned buffers that it did not have, or does not take its kicks; the "
	       "queue is taken from it",
	       pl->dev_name, i);
	pl->spoiled++;
	pl->q[i].spoiled = true;
	return true;
}

static bool drain(struct vp_plink *pl, unsigned i);
static bool undrained(struct vp_plink *pl);
static void go_down(struct vp_plink *pl);

/* The device VM lets go of the queue, and is given it again in the other mode: logging has begun or ended. */
static void change_mode(struct vp_plink *pl, unsigned i)
{
	pl->q[i].taken = true;
	if (!drain(pl, i))
		vp_port_queue_stop(pl->port, i);
}

/* Who has a queue may write to the driver VM's memory, and nobody logs that. */
static bool unlogged(struct vp_plink *pl)
{
	bool some = false;

	for (unsigned i = 0; i < pl->n; i++)
		some |= !pl->q[i].m->lanes && (pl->q[i].handed || vp_port_queue_await(pl->port, i) == VP_LATER);
	return some;
}

int vp_plink_logged(struct vp_plink *pl)
{
	pl->log_owed = pl->copy && unlogged(pl);
	return pl->log_owed ? VP_LATER : 0;
}

static void answer_log(struct vp_plink *pl)
{
	struct vp_err e = { 0 };

	if (!pl->log_owed || unlogged(pl))
		return;
	pl->log_owed = false;
	if (vp_vdev_logged(pl->slot.v, &e))
		vp_peer_kick_out(pl->peer, e.code ? e.msg : "the front-end went away");
	vp_peer_rearm(pl->peer);
}

static void update_queue(struct vp_plink *pl, unsigned i, bool up)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct vp_plink_queue *q = &pl->q[i];
	bool lives = ring_lives(r), bad = q->handed && lives && spoiled(pl, i);
	bool may;

	if (!lives) {
		q->given_up = q->gone = q->copied = false;
		if (!q->handed)
			finish(pl, i);
	}
	/*
	 * The driver's ring is broken, the guest is well: it lets go first. Its next run may have the same shadow ring,
	 * and a guest that is still in a burst of the last one would write into it.
	 */
	if (q->handed && lives && r->rq.vq.broken && !bad && vp_port_queue_stop(pl->port, i) == VP_LATER)
		return;
	if (q->handed && (!lives || r->rq.vq.broken || bad)) {
		vp_port_queue_end(pl->port, i);
		return;
	}
	if (q->handed && !may_have(r, i) && vp_port_queue_stop(pl->port, i) == VP_LATER)
		q->taken = true;
	if (q->handed && q->m != mode_now(pl, i) && !q->taken && !q->stop_owed)
		change_mode(pl, i);
	if (q->handed) {
		vp_port_queue_enable(pl->port, i, stays_enabled(pl, i));
		if (q->m->open)
			q->m->open(pl, i, vp_plink_takes(pl, i));
		if (q->rewire)
			wire(pl, i);
	}
	if (q->gone)
		return;
	may = r->usable && !q->handed && up && !q->given_up && may_have(r, i);
	if (may && vp_port_queue_await(pl->port, i) != VP_LATER)
		hand_over(pl, i);
	else if (may)
		vp_plink_withdraw(pl, i, 1);  /* the device VM gets it soon: what is in it waits */
	else if (r->usable)
		vp_plink_publish(pl, i);
}

static void update_once(struct vp_plink *pl)
{
	struct vp_vdev *v = pl->slot.v;
	bool up;

	vp_port_begin(pl->port);
	if (pl->m->rings)
		pl->m->rings(pl);
	vp_port_set_driver(pl->port, driver_state(pl), v && !pl->closing ? vp_plink_features(pl) : 0);
	vp_port_set_mode(pl->port, logged(pl) ? vp_plink_copy.mode : pl->m->mode, logged(pl));
	up = vp_port_is_up(pl->port);
	for (unsigned i = 0; v && pl->lanes && !pl->closing && i < pl->n; i++)
		update_queue(pl, i, up);
	vp_port_commit(pl->port);
	if (v && !pl->closing && vp_peer_session(pl->peer))
		vp_vdev_set_carrier(v, up);
}

/* Bring port, lanes and wires in line with the rings there are. */
void vp_plink_update(struct vp_plink *pl)
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
	answer_log(pl);
	/* The queues that it waits for may have gone another way. */
	if (pl->down_owed && !undrained(pl))
		go_down(pl);
	if (!pl->closing)
		vp_link_look(pl->l);
}

/* ---- a queue is to be stopped ------------------------------------------------------------------------- */

/* Longer than a disk takes for what was under way; the driver VM's VMM, and its guest, wait meanwhile. */
#define DRAIN_US 5000000u

/* Some queue of the device VM's has requests that are not answered. */
static bool undrained(struct vp_plink *pl)
{
	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].handed && pl->q[i].m->drained && !pl->q[i].m->drained(pl, i))
			return true;
	return false;
}

static void go_down(struct vp_plink *pl)
{
	pl->down_owed = false;
	vp_timer_end(&pl->down_timer);
	vp_plink_set_hold(pl);
}

static int on_down(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_plink *pl = arg;

	vp_log(VP_LOG_WARNING,
	       "%s: requests are still under way %u s after the link was set down; its queues are stopped all the "
	       "same, and what the driver VM has open in the back-end may be lost",
	       pl->dev_name, DRAIN_US / 1000000);
	go_down(pl);
	return 0;
}

void vp_plink_down(struct vp_plink *pl)
{
	bool was = pl->down_owed;

	pl->down_owed = !pl->l->up && !pl->closing && pl->dev->waits && pl->att->ops->saves &&
			pl->att->ops->saves(pl->att) && undrained(pl) &&
			vp_timer_in(pl->l->d->event, &pl->down_timer, DRAIN_US, on_down, pl, pl->name) >= 0;
	if (!pl->down_owed)
		go_down(pl);
	/* Queues take no new requests from now on, or take them again. */
	if (was || pl->down_owed)
		vp_plink_update(pl);
}

/*
 * Requests of queues that are to be stopped have been answered, or (all) have had their time: now the device VM is
 * asked to stop.
 */
void vp_plink_drained(struct vp_plink *pl, bool all)
{
	if (pl->down_owed && !undrained(pl))
		go_down(pl);
	for (unsigned i = 0; i < pl->n; i++) {
		if (!pl->q[i].draining || !(all || pl->q[i].m->drained(pl, i)))
			continue;
		pl->q[i].draining = false;
		if (all)
			vp_log(VP_LOG_WARNING,
			       "%s: queue %u: requests are still under way after %u s; it is stopped all the same",
			       pl->dev_name, i, DRAIN_US / 1000000);
		vp_port_queue_stop(pl->port, i);
	}
	drains_look(pl);
}

static int on_drain(sd_event_source *s, uint64_t usec, void *arg)
{
	vp_plink_drained(arg, true);
	return 0;
}

/* A queue of requests that is to be stopped takes no new ones. True: vp_plink_drained() stops it. */
static bool drain(struct vp_plink *pl, unsigned i)
{
	const struct vp_plink_mode *m = pl->q[i].m;

	if (!pl->q[i].handed || !m->drained || !pl->dev->waits)
		return false;
	m->open(pl, i, false);
	pl->q[i].draining = !m->drained(pl, i) && vp_timer_in(pl->l->d->event, &pl->drain_timer, DRAIN_US, on_drain, pl,
							      pl->name) >= 0;
	if (pl->q[i].draining && !pl->drain_slow.since_us)
		vp_slow_begin(&pl->drain_slow, pl->l->d->event,
			      "requests are under way in the device VM, look at its back-end and at what that writes "
			      "to; the driver VM waits for it, and after 5 s no longer",
			      "%s: the stop of queue %u", pl->dev_name, i);
	return pl->q[i].draining;
}

int vp_plink_stop_queue(struct vp_plink *pl, unsigned i)
{
	if (drain(pl, i)) {
		pl->q[i].stop_owed = true;
		return VP_LATER;
	}
	if (vp_port_queue_stop(pl->port, i) != VP_LATER) {
		vp_plink_withdraw(pl, i, 1);
		pl->q[i].stop_owed = leave(pl, i) == VP_LATER;
		return pl->q[i].stop_owed ? VP_LATER : 0;
	}
	pl->q[i].stop_owed = true;
	/* Until the device VM has answered, what it returns is given back and nothing new is taken. */
	if (pl->q[i].handed && pl->q[i].m->open)
		pl->q[i].m->open(pl, i, false);
	return VP_LATER;
}
