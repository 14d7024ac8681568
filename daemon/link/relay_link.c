/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The relay link: two virtio-net devices, each with a front-end of its own,
 * joined ring to ring.
 *
 * Packets run in lanes. A lane is a receive queue of one side together with
 * the transmit queues of the other that feed it (one each when both sides have the
 * same number of queues; transmit queue i feeds receive queue i modulo the receivers that there
 * are), so that every ring has one user. What it works on is a view (view.h), which is published and withdrawn
 * as lane.h says.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "link/capture.h"
#include "link/keep.h"
#include "link/link.h"
#include "link/view.h"
#include "front/peer.h"
#include "front/stats.h"
#include "front/vdev.h"
#include "sys/timer.h"
#include "threads/worker.h"

struct relay_side {
	struct vp_vdev_slot   slot;  /* first: ctx of the session's callbacks */
	struct relay         *r;
	unsigned              id;
	struct vp_peer       *peer;
	char                  name[VP_CONF_NAME_MAX + 24];
	struct vp_queue_stats past;  /* counters of front-ends that have gone */
};

struct relay {
	struct vp_link   *l;
	struct relay_side side[VP_SIDES];
	unsigned          n_lanes;   /* per direction; lanes exist while a front-end is connected */
	struct vp_lanes  *lanes;     /* 2 * n_lanes: to the device side first */
	/*
	 * Gone on with behind a daemon that ended anywhere, and not all rings are translated yet: no packet passes, and
	 * no VMM hears anything of it, until they are, or for the time of late.
	 */
	bool              waits;
	sd_event_source  *late;
};

#define LATE_US 2000000u

/* ---- lanes ----------------------------------------------------------------- */

/* What lane i towards side `to` should work on now; NULL = nothing. */
static struct vp_view *view_make(struct relay *r, unsigned to, unsigned i)
{
	struct vp_vdev *dst = r->side[to].slot.v, *src = r->side[!to].slot.v;
	unsigned receivers = dst && r->l->up ? vp_vdev_active_pairs(dst) : 0;
	struct vp_view *v;

	if (!src || r->l->leaving || r->waits)
		return NULL;
	v = vp_view_new(r->n_lanes);
	if (!v)
		return NULL;
	if (i < receivers)
		v->dst = &vp_vdev_ring(dst, 2 * i)->rq;
	for (unsigned p = 0; p < vp_vdev_rings(src) / 2; p++) {
		struct vp_vdev_ring *ring = vp_vdev_ring(src, 2 * p + 1);

		if (!ring->usable || (receivers ? p % receivers : p) != i)
			continue;
		v->src[v->n].rq = &ring->rq;
		v->src[v->n].kick_fd = ring->kick_fd;
		v->src[v->n++].drop = !ring->enabled;
	}
	if (!v->n) {
		free(v);
		return NULL;
	}
	return v;
}

static void carriers(struct relay *r)
{
	/* No VMM is to see that. */
	if (r->l->leaving || r->waits)
		return;
	for (unsigned s = 0; s < VP_SIDES; s++) {
		struct vp_vdev *v = r->side[s].slot.v, *other = r->side[!s].slot.v;

		if (v && vp_peer_session(r->side[s].peer))
			vp_vdev_set_carrier(v, r->l->up && other && vp_vdev_active_pairs(other));
	}
}

/* Whether a driver was notified of what it last got back is not known. */
static void notify(struct relay *r)
{
	for (unsigned s = 0; s < VP_SIDES; s++)
		for (unsigned q = 0; r->side[s].slot.v && q < vp_vdev_rings(r->side[s].slot.v); q++) {
			struct vp_vdev_ring *ring = vp_vdev_ring(r->side[s].slot.v, q);

			if (ring->usable && !ring->rq.vq.broken)
				worker_call(r->l->d->workers, &ring->rq);
		}
}

/* All that the daemon before had not finished is finished, or has waited for long enough. */
static void end_wait(struct relay *r)
{
	r->waits = false;
	vp_timer_end(&r->late);
	notify(r);
}

static bool recovers(const struct relay *r)
{
	for (unsigned s = 0; s < VP_SIDES; s++)
		if (r->side[s].slot.v && vp_vdev_recovers(r->side[s].slot.v))
			return true;
	return false;
}

/* The lines of rings that were recovered, receivers first. */
static void places_begin(struct relay *r)
{
	for (unsigned i = 0; i < 2 * VP_SIDES; i++)
		if (r->side[i % VP_SIDES].slot.v)
			vp_vdev_places_begin(r->side[i % VP_SIDES].slot.v, i >= VP_SIDES);
}

/* Bring every lane in line with the rings there are. One grace period at most. */
static void relay_update(struct relay *r)
{
	struct vp_view **want;

	if (r->waits && !vp_keep_was(0) && !r->l->leaving && !recovers(r))
		end_wait(r);
	if (!r->waits)
		places_begin(r);
	if (!r->lanes)
		return;
	want = calloc(2 * r->n_lanes, sizeof(*want));
	if (!want) {
		vp_log(VP_LOG_ERR, "link %s: out of memory; packets do not flow until a queue changes",
		       r->l->conf.name);
		return;
	}
	for (unsigned k = 0; k < 2 * r->n_lanes; k++) {
		want[k] = view_make(r, k < r->n_lanes ? VP_SIDE_DEVICE : VP_SIDE_DRIVER, k % r->n_lanes);
		if (vp_view_same(want[k], vp_view_of(r->lanes, k))) {
			free(want[k]);
			want[k] = NULL;
			continue;
		}
		vp_lane_withdraw(r->lanes, k);
	}
	vp_lanes_sync(r->lanes);
	for (unsigned k = 0; k < 2 * r->n_lanes; k++) {
		for (unsigned i = 0; want[k] && i < want[k]->n; i++)
			if (want[k]->src[i].rq->vq.place)
				want[k]->src[i].rq->vq.place->receiver = (uint16_t)(2 * (k % r->n_lanes));
		if (want[k])
			vp_view_publish(r->lanes, k, want[k]);
	}
	free(want);
	carriers(r);
	vp_link_look(r->l);
}

static void side_withdraw(void *ctx, unsigned first, unsigned n)
{
	struct relay_side *side = ctx;
	struct relay *r = side->r;

	if (!r->lanes)
		return;
	for (unsigned k = 0; k < 2 * r->n_lanes; k++) {
		const struct vp_view *v = vp_view_of(r->lanes, k);
		bool uses = false;

		for (unsigned q = first; v && !uses && q < first + n; q++)
			uses = vp_view_uses(v, &vp_vdev_ring(side->slot.v, q)->rq);
		if (uses)
			vp_lane_withdraw(r->lanes, k);
	}
	vp_lanes_sync(r->lanes);
}

static void side_offer(void *ctx, unsigned first, unsigned n)
{
	struct relay_side *side = ctx;

	relay_update(side->r);
}

static void lanes_free(struct relay *r)
{
	vp_lanes_free(r->lanes);
	r->lanes = NULL;
}

static int lanes_make(struct relay *r)
{
	int ret = 0;

	if (r->lanes)
		return 0;
	r->n_lanes = r->l->conf.pairs;
	r->lanes = vp_lanes_new(r->l->d->workers, 2 * r->n_lanes, r->n_lanes);
	if (!r->lanes)
		return -ENOMEM;
	for (unsigned k = 0; !ret && k < 2 * r->n_lanes; k++)
		ret = vp_lane_add(r->lanes, k, false, &r->l->wakes[k < r->n_lanes ? VP_SIDE_DRIVER : VP_SIDE_DEVICE]);
	if (ret)
		lanes_free(r);
	return ret;
}

/* ---- sessions ---------------------------------------------------------------- */

static void side_events_changed(void *ctx)
{
	struct relay_side *side = ctx;

	vp_peer_rearm(side->peer);
}

static struct vu_backend *side_session(void *ctx)
{
	struct relay_side *side = ctx;

	return vp_peer_session(side->peer);
}

static int side_attention_fd(void *ctx)
{
	struct relay_side *side = ctx;

	return worker_attention_fd(side->r->l->d->workers);
}

static void side_translated(void *ctx)
{
	struct relay_side *side = ctx;

	if (side->r->lanes)
		vp_lanes_poke(side->r->lanes);
}

static void side_touch(void *ctx)
{
	struct relay_side *side = ctx;

	vp_keep_touch(side->r->l);
}

static const struct vp_vdev_ops side_vdev_ops = {
	.touch = side_touch,
	.translated = side_translated,
	.attention_fd = side_attention_fd,
	.withdraw = side_withdraw,
	.offer = side_offer,
	.events_changed = side_events_changed,
	.session = side_session,
};

static int on_late(sd_event_source *s, uint64_t usec, void *arg)
{
	struct relay *r = arg;

	if (!r->waits)
		return 0;
	vp_log(VP_LOG_WARNING,
	       "link %s: a VMM has not said where its vIOMMU maps a queue, %u s after this daemon went on with it; the "
	       "other queues go on",
	       r->l->conf.name, LATE_US / 1000000);
	end_wait(r);
	relay_update(r);
	return 0;
}

static int side_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	struct relay_side *side = ctx;
	int ret;

	ret = lanes_make(side->r);
	if (ret)
		return vp_err_set(e, ret, "out of memory");
	vp_link_backend_cfg(side->r->l, side->id, NULL, cfg);
	cfg->journal = vp_keep_journal(side->r->l, side->id);
	if (cfg->journal)
		memset(cfg->journal, 0, sizeof(*cfg->journal));
	ret = vp_vdev_new(&side->slot.v, side->name, &side->r->l->conf, side->id, NULL, &side_vdev_ops, side);
	if (ret)
		return vp_err_set(e, ret, "out of memory");
	vp_vdev_set_places(side->slot.v, vp_keep_places(side->r->l, side->id));
	vp_captures_apply(side->r->l);
	return 0;
}

static void side_opened(void *ctx)
{
	struct relay_side *side = ctx;

	carriers(side->r);
	vp_link_event(side->r->l, "link.state",
		      side->id == VP_SIDE_DRIVER ? "driver side connected" : "device side connected");
}

static void side_gone(struct relay_side *side)
{
	struct vp_vdev *v = side->slot.v;
	struct relay *r = side->r;

	if (!v)
		return;
	vp_keep_touch(r->l);
	vp_vdev_reap(v);
	for (unsigned q = 1; q < vp_vdev_rings(v); q += 2)
		vp_stats_add(&side->past, &vp_vdev_ring(v, q)->rq.stats);
	vp_vdev_free(v);
	side->slot.v = NULL;
	if (!r->side[!side->id].slot.v)
		lanes_free(r);
	else
		relay_update(r);
}

static void side_closed(void *ctx, const char *why)
{
	struct relay_side *side = ctx;

	side_gone(side);  /* the session never began */
	carriers(side->r);
	vp_link_event(side->r->l, "link.state", why);
}

static void side_closing(void *ctx)
{
	side_gone(ctx);
}

static void side_save(void *ctx, struct vp_rec *rec)
{
	struct relay_side *side = ctx;

	vp_vdev_save(side->slot.v, rec, !vp_keep_boxing(side->r->l));
}

static int side_restore(void *ctx, const struct vp_rec_in *in, struct vp_err *e)
{
	struct relay_side *side = ctx;

	return vp_vdev_restore(side->slot.v, in, e);
}

static const struct vp_peer_ops side_peer_ops = {
	.open = side_open, .opened = side_opened, .closing = side_closing, .closed = side_closed, .save = side_save,
	.restore = side_restore, .touch = side_touch,
};

/* ---- link ops ---------------------------------------------------------------- */

static void relay_stop(struct vp_link *l)
{
	struct relay *r = l->impl;

	if (!r)
		return;
	for (unsigned s = 0; s < VP_SIDES; s++) {
		(l->leaving ? vp_peer_leave : vp_peer_free)(r->side[s].peer);
		r->side[s].peer = NULL;
	}
	lanes_free(r);
	vp_timer_end(&r->late);
	free(r);
	l->impl = NULL;
}

static int relay_start(struct vp_link *l, struct vp_err *e)
{
	struct relay *r = calloc(1, sizeof(*r));
	char act[VP_CONF_NAME_MAX + 16];
	int ret = 0;

	if (!r)
		return vp_err_set(e, -ENOMEM, "out of memory");
	r->l = l;
	l->impl = r;
	vp_keep_new(l, 2 * l->conf.pairs, 0);
	for (unsigned s = 0; s < VP_SIDES && !ret; s++) {
		struct relay_side *side = &r->side[s];

		side->r = r;
		side->id = s;
		snprintf(side->name, sizeof(side->name), "link %s, %s side", l->conf.name, vp_side_name(s));
		snprintf(act, sizeof(act), "%s.%s", l->conf.name, vp_side_name(s));
		ret = vp_peer_new(&side->peer, l->d, side->name, act, &l->conf.side[s], &side_peer_ops, &vp_vdev_vu_ops,
				  side, e);
	}
	if (ret)
		relay_stop(l);
	return ret;
}

static void relay_admin(struct vp_link *l)
{
	vp_keep_touch(l);
	relay_update(l->impl);
}

static int relay_alter(struct vp_link *l, const struct vp_conf_link *next, bool again, struct vp_err *e)
{
	struct relay *r = l->impl;

	vp_keep_touch(l);
	vp_conf_take(VP_CONF_LINK, &l->conf, next, VP_EFFECTS_IN_PLACE);
	for (unsigned s = 0; s < VP_SIDES; s++) {
		struct vp_vdev *v = r->side[s].slot.v;

		for (unsigned q = 1; v && q < vp_vdev_rings(v); q += 2)
			vp_vdev_set_rates(v, q);
		if (again)
			vp_peer_kick_out(r->side[s].peer, "what it is offered has changed");
	}
	return 0;
}

static bool relay_busy(const struct vp_link *l)
{
	return ((struct relay *)l->impl)->lanes != NULL;
}

static void relay_reap(struct vp_link *l)
{
	struct relay *r = l->impl;
	bool broke = false;

	for (unsigned s = 0; s < VP_SIDES; s++)
		if (r->side[s].slot.v) {
			broke |= vp_vdev_check_memory(r->side[s].slot.v);
			broke |= vp_vdev_reap(r->side[s].slot.v);
		}
	if (broke)
		vp_keep_touch(l);
	if (broke)
		vp_link_event(l, "link.state", "a queue broke; see link.show");
}

static const char *relay_status(const struct vp_link *l)
{
	struct relay *r = l->impl;
	unsigned live = 0, conn = 0;

	if (!l->up)
		return "down";
	for (unsigned s = 0; s < VP_SIDES; s++) {
		struct vp_vdev *v = r ? r->side[s].slot.v : NULL;

		if (v && vp_vdev_broken(v))
			return "broken";
		conn += v != NULL;
		live += v && vp_vdev_active_pairs(v);
	}
	return live == 2 ? "up" : live || conn ? "partial" : "waiting";
}

static json_t *relay_sides(const struct vp_link *l, bool counters)
{
	struct relay *r = l->impl;
	struct vp_queue_stats sum[VP_SIDES];
	json_t *sides = json_object();

	for (unsigned s = 0; s < VP_SIDES; s++)
		vp_stats_side(&r->side[s].past, r->side[s].slot.v, &sum[s]);
	for (unsigned s = 0; s < VP_SIDES; s++)
		json_object_set_new(sides, vp_side_name(s),
				    counters ? vp_stats_json(&sum[s], &sum[!s], r->side[s].slot.v) :
				    vp_stats_show(&l->conf.side[s], r->side[s].peer, r->side[s].slot.v));
	return sides;
}

static bool relay_sent(const struct vp_link *l, unsigned side, struct vp_queue_stats *sum)
{
	struct relay *r = l->impl;

	vp_stats_side(&r->side[side].past, r->side[side].slot.v, sum);
	return true;
}

static struct vp_vdev *relay_vdev(const struct vp_link *l, unsigned side)
{
	return ((struct relay *)l->impl)->side[side].slot.v;
}

/* ---- for another daemon ------------------------------------------------------ */

enum tag { TAG_PAST = 1 };

static bool relay_at_rest(const struct vp_link *l)
{
	struct relay *r = l->impl;
	bool rest = true;

	for (unsigned s = 0; s < VP_SIDES; s++)
		rest &= vp_peer_at_rest(r->side[s].peer) && (!r->side[s].slot.v || vp_vdev_at_rest(r->side[s].slot.v));
	return rest;
}

static void relay_save(struct vp_link *l, struct vp_rec *rec)
{
	struct relay *r = l->impl;

	for (unsigned s = 0; s < VP_SIDES; s++) {
		vp_rec_begin(rec, VP_LINK_REC_SIDE + s);
		vp_rec_put(rec, TAG_PAST, &r->side[s].past, sizeof(r->side[s].past));
		vp_rec_begin(rec, VP_LINK_REC_PEER);
		vp_peer_save(r->side[s].peer, rec);
		vp_rec_end(rec);
		vp_rec_end(rec);
	}
}

static int relay_restore(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e)
{
	struct relay *r = l->impl;
	struct vp_rec_in side, peer;
	int ret = 0;

	r->waits = vp_keep_was(0) != NULL;
	for (unsigned s = 0; !ret && s < VP_SIDES; s++) {
		if (!vp_rec_find(in, VP_LINK_REC_SIDE + s, &side) || !vp_rec_find(&side, VP_LINK_REC_PEER, &peer) ||
		    vp_rec_get(&side, TAG_PAST, &r->side[s].past, sizeof(r->side[s].past)))
			return vp_err_set(e, -EPROTO, "the record of its %s side is malformed", vp_side_name(s));
		ret = vp_peer_restore(r->side[s].peer, &peer, e);
	}
	/* With both sides there, so that no carrier goes in between. */
	if (!ret)
		relay_update(r);
	return ret;
}

static void relay_save_hot(struct vp_link *l, struct vp_rec *rec)
{
	struct relay *r = l->impl;

	for (unsigned s = 0; s < VP_SIDES; s++) {
		if (!r->side[s].slot.v)
			continue;
		vp_rec_begin(rec, VP_LINK_REC_SIDE + s);
		vp_vdev_save_hot(r->side[s].slot.v, rec);
		vp_rec_end(rec);
	}
}

static int relay_restore_hot(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e)
{
	struct relay *r = l->impl;
	struct vp_rec_in side;
	int ret = 0;

	for (unsigned s = 0; !ret && s < VP_SIDES; s++) {
		if (!r->side[s].slot.v)
			continue;
		if (!vp_rec_find(in, VP_LINK_REC_SIDE + s, &side))
			return vp_err_set(e, -EPROTO, "the record of its %s side's queues is missing", vp_side_name(s));
		ret = vp_vdev_restore_hot(r->side[s].slot.v, &side, e);
	}
	return ret;
}

static int relay_can_keep(const struct vp_link *l, struct vp_err *e)
{
	return 0;
}

static int relay_recover(struct vp_link *l, const struct vp_place *old, unsigned n, const struct vp_rec_in *kept,
			 struct vp_err *e)
{
	struct relay *r = l->impl;
	int ret = 0;

	/* As they were, until all rings are recovered: who is killed before is followed by one who does it again. */
	for (unsigned s = 0; s < VP_SIDES; s++)
		memcpy(vp_keep_places(l, s), old + s * n, n * sizeof(*old));
	for (unsigned s = 0; !ret && s < VP_SIDES; s++) {
		struct relay_side *side = &r->side[s];

		if (!side->slot.v)
			continue;
		ret = vp_vdev_recover(side->slot.v, vp_keep_places(l, !s), n, e);
		if (!ret)
			ret = vu_backend_recover(vp_peer_session(side->peer), vp_keep_was(s), e);
	}
	if (ret)
		return ret;
	if (recovers(r)) {
		vp_timer_in(l->d->event, &r->late, LATE_US, on_late, r, l->conf.name);
		return 0;
	}
	end_wait(r);
	relay_update(r);
	return 0;
}

const struct vp_link_ops vp_link_relay_ops = {
	.start = relay_start, .stop = relay_stop, .admin_changed = relay_admin, .alter = relay_alter,
	.reap = relay_reap, .busy = relay_busy,
	.status = relay_status, .sides = relay_sides, .sent = relay_sent, .vdev = relay_vdev,
	.at_rest = relay_at_rest, .save = relay_save, .restore = relay_restore,
	.save_hot = relay_save_hot, .restore_hot = relay_restore_hot,
	.can_keep = relay_can_keep, .recover = relay_recover,
};
