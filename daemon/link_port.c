/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The port link, fast mode: the driver VM's virtqueues are processed by the
 * device VM, in the driver VM's memory. Not a byte of data passes through here.
 *
 * A queue that the driver VM has started is in one of two hands:
 *   - the device VM's, while the port's link is up (vp_port_queue_run());
 *   - ours otherwise: transmit queues are drained and counted as dropped, receive queues rest,
 *     as with an unplugged cable. The driver VM boots and runs without the device VM.
 * It goes from hand to hand with its ring index, when the port comes up or goes down. A stop by the
 * driver VM's front-end is answered when the device VM has let go, or was cut.
 */
#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <urcu/urcu-qsbr.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon.h"
#include "guestmem/map.h"
#include "link.h"
#include "peer.h"
#include "port/attach.h"
#include "port/forward.h"
#include "port/port.h"
#include "stats.h"
#include "vdev.h"
#include "worker.h"

/* Features that the data path has nothing to do with: the VMM and this daemon provide them. */
#define NOT_THE_PATHS \
	(VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) | VP_BIT(VIRTIO_NET_F_MTU) | VP_BIT(VIRTIO_NET_F_MQ) | \
	 VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | VP_BIT(VIRTIO_F_ANY_LAYOUT))
/* Not offered in fast mode: nobody logs what the device VM writes, nobody translates; and what vhost-net does not have. */
#define NOT_FAST (VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_IN_ORDER) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM))

struct drain {
	struct worker_job      job;        /* first */
	struct vp_relay_queue *rq;         /* RCU; NULL = not ours to drain */
	bool                   told;       /* attention was asked for (data thread's own) */
	/* main thread */
	struct vp_relay_queue *published;
	int                    watched;    /* kick fd, -1 = none */
	bool                   added;
};

struct queue {
	bool            handed;     /* the device VM has it */
	bool            stop_owed;  /* the front-end waits for GET_VRING_BASE's answer */
	bool            given_up;   /* by the data path, of its own will: not handed over again in this run */
	struct vp_wire *kick, *call;
	int             kick_src, call_dst;  /* what they were made for */
};

struct port_link {
	struct vp_vdev_slot   slot;     /* first: ctx of the session's callbacks */
	struct vp_link       *l;
	struct vp_peer       *peer;
	struct vp_port       *port;
	struct vp_attach     *att;
	char                  name[VP_CONF_NAME_MAX + 24], dev_name[VP_CONF_NAME_MAX + 24];
	unsigned              n;        /* queues */
	struct queue         *q;
	struct drain         *drain;    /* [n / 2] while a front-end is connected */
	bool                  closing, in_update, again;
	uint64_t              signals;  /* of wires that have gone */
	struct vp_relay_stats past;
};

static void update(struct port_link *pl);

/* ---- draining (data threads) ------------------------------------------------------------------ */

static unsigned drain_run(struct worker_job *j, struct vp_relay_scratch *s)
{
	struct drain *d = vp_container_of(j, struct drain, job);
	struct vp_relay_queue *rq = rcu_dereference(d->rq);
	unsigned n;

	if (!rq)
		return 0;
	n = vp_relay_run(rq, NULL, s);
	if (vp_unlikely(rq->vq.broken && !d->told)) {
		d->told = true;
		worker_attention(j);
	}
	return n;
}

static bool drain_arm(struct worker_job *j)
{
	struct drain *d = vp_container_of(j, struct drain, job);
	struct vp_relay_queue *rq = rcu_dereference(d->rq);

	/* Without a kick fd the driver expects polling: then a look now and then would do, but nobody is in a hurry to drop. */
	return rq && !rq->vq.broken && vp_vq_enable_kicks(&rq->vq);
}

static void drain_disarm(struct worker_job *j)
{
	struct drain *d = vp_container_of(j, struct drain, job);
	struct vp_relay_queue *rq = rcu_dereference(d->rq);

	if (rq && !rq->vq.broken)
		vp_vq_disable_kicks(&rq->vq);
}

static const struct worker_job_ops drain_ops = { .run = drain_run, .arm = drain_arm, .disarm = drain_disarm };

static bool drain_unpublish(struct drain *d)
{
	if (!d->published)
		return false;
	rcu_assign_pointer(d->rq, NULL);
	d->published = NULL;
	worker_job_unwatch(&d->job, d->watched);
	d->watched = -1;
	return true;
}

static void drains_free(struct port_link *pl)
{
	for (unsigned i = 0; pl->drain && i < pl->n / 2; i++) {
		drain_unpublish(&pl->drain[i]);
		if (pl->drain[i].added)
			worker_job_del(pl->l->d->workers, &pl->drain[i].job);
	}
	free(pl->drain);
	pl->drain = NULL;
}

static int drains_make(struct port_link *pl)
{
	if (pl->drain)
		return 0;
	pl->drain = calloc(pl->n / 2, sizeof(*pl->drain));
	if (!pl->drain)
		return -ENOMEM;
	for (unsigned i = 0; i < pl->n / 2; i++) {
		struct drain *d = &pl->drain[i];
		int r;

		d->job.ops = &drain_ops;
		d->watched = -1;
		r = worker_job_add(pl->l->d->workers, &d->job, NULL);
		if (r) {
			drains_free(pl);
			return r;
		}
		d->added = true;
	}
	return 0;
}

/* ---- signals --------------------------------------------------------------------------------------- */

static void wire_end(struct port_link *pl, struct vp_wire **w)
{
	if (*w)
		pl->signals += vp_wire_count(*w);
	vp_wire_free(*w);
	*w = NULL;
}

static void unwire(struct port_link *pl, unsigned i)
{
	struct queue *q = &pl->q[i];

	wire_end(pl, &q->kick);
	wire_end(pl, &q->call);
	if (pl->att && pl->att->ops->direct && (q->kick_src >= 0 || q->call_dst >= 0))
		pl->att->ops->direct(pl->att, i, -1, -1);
	q->kick_src = q->call_dst = -1;
}

/* Kick of the driver VM to signal 1 + q of the port, doorbell 1 + q to the driver VM's call. */
static void wire(struct port_link *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct queue *q = &pl->q[i];
	unsigned done = 0;
	int from = pl->att->ops->call_fd(pl->att, 1 + i), ret;

	unwire(pl, i);
	if (pl->att->ops->direct)
		done = pl->att->ops->direct(pl->att, i, r->kick_fd, r->rq.call_fd);
	if (r->kick_fd >= 0 && !(done & VP_ATTACH_KICK)) {
		ret = pl->att->ops->wire(pl->att, 1 + i, r->kick_fd, &q->kick);
		if (ret)
			vp_log(VP_LOG_WARNING, "%s: queue %u: its kicks cannot be forwarded: %s", pl->name, i, strerror(-ret));
	}
	if (r->rq.call_fd >= 0 && from >= 0 && !(done & VP_ATTACH_CALL)) {
		ret = vp_wire_new(&q->call, pl->l->d->forward, from, r->rq.call_fd);
		if (ret)
			vp_log(VP_LOG_WARNING, "%s: queue %u: its calls cannot be forwarded: %s", pl->name, i, strerror(-ret));
	}
	q->kick_src = r->kick_fd;
	q->call_dst = r->rq.call_fd;
}

static void wires_changed(void *ctx)
{
	struct port_link *pl = ctx;

	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].handed && pl->slot.v)
			wire(pl, i);
}

/* ---- from hand to hand ------------------------------------------------------------------------------- */

static void hand_over(struct port_link *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct vp_port_ring pr;

	if (i & 1 && pl->drain && drain_unpublish(&pl->drain[i / 2]))
		urcu_qsbr_synchronize_rcu();
	if (r->rq.vq.broken)
		return;
	pr = (struct vp_port_ring){
		.desc = r->rq.vq.desc_addr, .avail = r->rq.vq.driver_addr, .used = r->rq.vq.device_addr,
		.size = r->rq.vq.size, .base = vp_vq_base(&r->rq.vq), .enabled = r->enabled,
	};
	if (vp_port_queue_run(pl->port, i, &pr))
		return;
	pl->q[i].handed = true;
	wire(pl, i);
}

static void publish_drain(struct port_link *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct drain *d = pl->drain ? &pl->drain[i / 2] : NULL;

	if (!d || d->published || r->rq.vq.broken)
		return;
	if (r->kick_fd >= 0 && !worker_job_watch(&d->job, r->kick_fd))
		d->watched = r->kick_fd;
	d->told = false;
	d->published = &r->rq;
	rcu_assign_pointer(d->rq, &r->rq);
	worker_poke(&d->job);
}

static void port_queue_stopped(void *ctx, unsigned i, const struct vp_port_stop *s)
{
	struct port_link *pl = ctx;
	struct queue *q = &pl->q[i];
	struct vp_err e = { 0 };
	bool owed = q->stop_owed;

	q->handed = q->stop_owed = false;
	q->given_up = !s->lost && !owed;
	unwire(pl, i);
	if (!pl->slot.v || pl->closing)
		return;
	if (s->broken)
		vp_log(VP_LOG_WARNING, "%s: queue %u: the device VM found the ring malformed", pl->name, i);
	vp_vdev_ring_resume(pl->slot.v, i, s->base_known, s->base, &e);
	if (s->broken) {
		vp_vq_break(&vp_vdev_ring(pl->slot.v, i)->rq.vq, VP_VQ_BAD_RING);
		vp_vdev_reap(pl->slot.v);
	}
	if (owed) {
		if (vp_vdev_ring_stopped(pl->slot.v, i, &e))
			vp_peer_kick_out(pl->peer, e.code ? e.msg : "the front-end went away");
		vp_peer_rearm(pl->peer);
	} else {
		update(pl);
	}
}

static void port_up(void *ctx)
{
	struct port_link *pl = ctx;

	for (unsigned i = 0; i < pl->n; i++)
		pl->q[i].given_up = false;
	update(pl);
}

static void port_down(void *ctx)
{
	update(ctx);
}

static const struct vp_port_ops port_ops = { .up = port_up, .down = port_down, .queue_stopped = port_queue_stopped };

static enum vp_port_driver driver_state(struct port_link *pl)
{
	struct vp_vdev *v = pl->slot.v;

	if (!v || pl->closing)
		return VP_PORT_NO_DRIVER;
	for (unsigned i = 0; i < pl->n; i++)
		if (vp_vdev_ring(v, i)->usable)
			return VP_PORT_DRIVER_RUNS;
	return VP_PORT_DRIVER_IDLE;
}

static void update_once(struct port_link *pl)
{
	struct vp_vdev *v = pl->slot.v;
	bool up;

	vp_port_begin(pl->port);
	vp_port_set_driver(pl->port, driver_state(pl), v && !pl->closing ?
			   vp_vdev_features(v) & ~(VP_BIT(VU_F_PROTOCOL_FEATURES) | VP_BIT(VHOST_F_LOG_ALL)) : 0);
	up = vp_port_is_up(pl->port);
	for (unsigned i = 0; v && !pl->closing && i < pl->n; i++) {
		struct vp_vdev_ring *r = vp_vdev_ring(v, i);
		struct queue *q = &pl->q[i];

		if (!r->usable)
			q->given_up = false;
		if (q->handed && (!r->usable || r->rq.vq.broken)) {
			vp_port_queue_end(pl->port, i);
			continue;
		}
		if (q->handed) {
			vp_port_queue_enable(pl->port, i, r->enabled);
			if (q->kick_src != r->kick_fd || q->call_dst != r->rq.call_fd)
				wire(pl, i);
		} else if (r->usable && up && !q->given_up) {
			hand_over(pl, i);
		} else if (r->usable && i & 1) {
			publish_drain(pl, i);
		}
	}
	vp_port_commit(pl->port);
	if (v && !pl->closing && vp_peer_session(pl->peer))
		vp_vdev_set_carrier(v, up);
}

/* Bring port, drains and wires in line with the rings there are. */
static void update(struct port_link *pl)
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
}

/* ---- the driver side's device ---------------------------------------------------------------------------- */

static void vdev_withdraw(void *ctx, unsigned first, unsigned n)
{
	struct port_link *pl = ctx;
	bool grace = false;

	for (unsigned i = first; pl->drain && i < first + n; i++)
		if (i & 1)
			grace |= drain_unpublish(&pl->drain[i / 2]);
	if (grace)
		urcu_qsbr_synchronize_rcu();
	/* What is in the device VM's hands stays there: its fds may change under it, its memory is published anew. */
	for (unsigned i = first; i < first + n; i++)
		unwire(pl, i);
}

static void vdev_offer(void *ctx, unsigned first, unsigned n)
{
	struct port_link *pl = ctx;

	update(pl);
}

static int vdev_stop(void *ctx, unsigned i)
{
	struct port_link *pl = ctx;

	if (vp_port_queue_stop(pl->port, i) != VP_PORT_LATER)
		return 0;
	pl->q[i].stop_owed = true;
	return VU_LATER;
}

static void vdev_memory(void *ctx)
{
	struct port_link *pl = ctx;
	const struct vp_memtab *t = vp_vdev_memory(pl->slot.v);
	struct vp_port_region *r = t ? calloc(t->n, sizeof(*r)) : NULL;
	struct vp_err e = { 0 };
	unsigned n = r ? t->n : 0;

	for (unsigned i = 0; i < n; i++)
		r[i] = (struct vp_port_region){
			.addr = t->r[i].gpa, .size = t->r[i].size, .offset = t->r[i].offset, .fd = t->r[i].map->fd,
			.flags = VHP_REGION_READ | VHP_REGION_WRITE,
		};
	if (vp_port_set_memory(pl->port, r, n, &e))
		vp_log(VP_LOG_WARNING, "%s: its memory cannot be shown to the device VM: %s", pl->name, e.msg);
	free(r);
}

static void vdev_events_changed(void *ctx)
{
	struct port_link *pl = ctx;

	vp_peer_rearm(pl->peer);
}

static struct vu_backend *vdev_session(void *ctx)
{
	struct port_link *pl = ctx;

	return vp_peer_session(pl->peer);
}

static const struct vp_vdev_ops vdev_ops = {
	.withdraw = vdev_withdraw, .offer = vdev_offer, .stop = vdev_stop, .memory = vdev_memory,
	.events_changed = vdev_events_changed, .session = vdev_session,
};

static void profile(const struct vp_conf_link *c, struct vu_backend_cfg *cfg)
{
	vp_vdev_backend_cfg(c, VP_SIDE_DRIVER, cfg);
	cfg->features &= ~NOT_FAST;
	if (!c->packed)
		cfg->features &= ~VP_BIT(VIRTIO_F_RING_PACKED);
	if (c->plain)
		cfg->features &= ~(VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VP_BIT(VIRTIO_RING_F_EVENT_IDX));
	cfg->pf &= ~VP_BIT(VU_PF_LOG_SHMFD);
}

static int drv_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	struct port_link *pl = ctx;
	int r = drains_make(pl);

	if (r)
		return vp_err_set(e, r, "out of memory");
	profile(&pl->l->conf, cfg);
	r = vp_vdev_new(&pl->slot.v, pl->name, &pl->l->conf, VP_SIDE_DRIVER, &vdev_ops, pl);
	return r ? vp_err_set(e, r, "out of memory") : 0;
}

static void drv_opened(void *ctx)
{
	struct port_link *pl = ctx;

	update(pl);
	vp_link_event(pl->l, "link.state", "driver side connected");
}

static void drv_gone(struct port_link *pl)
{
	struct vp_vdev *v = pl->slot.v;

	if (!v)
		return;
	pl->closing = true;
	vp_port_begin(pl->port);
	vp_port_set_driver(pl->port, VP_PORT_NO_DRIVER, 0);
	vp_port_set_memory(pl->port, NULL, 0, NULL);
	vp_port_commit(pl->port);
	vp_vdev_reap(v);
	for (unsigned i = 1; i < pl->n; i += 2)
		vp_stats_add(&pl->past, &vp_vdev_ring(v, i)->rq.stats);
	vp_vdev_free(v);
	pl->slot.v = NULL;
	drains_free(pl);
	pl->closing = false;
}

static void drv_closing(void *ctx)
{
	drv_gone(ctx);
}

static void drv_closed(void *ctx, const char *why)
{
	struct port_link *pl = ctx;

	drv_gone(pl);  /* the session never began */
	vp_link_event(pl->l, "link.state", why);
}

static const struct vp_peer_ops peer_ops = {
	.open = drv_open, .opened = drv_opened, .closing = drv_closing, .closed = drv_closed,
};

/* ---- link ops ------------------------------------------------------------------------------------------------ */

static void port_stop(struct vp_link *l)
{
	struct port_link *pl = l->impl;

	if (!pl)
		return;
	vp_peer_free(pl->peer);
	pl->peer = NULL;
	for (unsigned i = 0; pl->q && i < pl->n; i++)
		unwire(pl, i);
	vp_port_goodbye(pl->port);
	if (pl->att)
		pl->att->ops->free(pl->att);
	pl->att = NULL;
	vp_port_free(pl->port);
	drains_free(pl);
	free(pl->q);
	free(pl);
	l->impl = NULL;
}

static int make_port(struct port_link *pl, struct vp_err *e)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	struct vp_port_conf pc = { .max_queues = pl->n };
	struct vp_attach_conf ac = {
		.d = pl->l->d, .f = pl->l->d->forward, .link = conf, .name = pl->dev_name, .wires_changed = wires_changed, .ctx = pl,
	};
	struct vu_backend_cfg cfg;
	uint8_t config[256];
	unsigned len;
	int r;

	memcpy(pc.name, conf->name, strnlen(conf->name, sizeof(pc.name)));
	if (conf->attachment == VP_ATTACH_LOCAL)
		vp_local_port_conf(conf, &pc);
	else if (conf->attachment == VP_ATTACH_SHMEM)
		vp_shmem_port_conf(conf, &pc);
	else
		vp_ivshmem_port_conf(conf, &pc);
	r = vp_port_new(&pl->port, ac.d->event, &pc, &port_ops, pl, e);
	if (r)
		return r;
	profile(conf, &cfg);
	vp_port_begin(pl->port);
	vp_port_set_link(pl->port, conf->device_type, VHP_MODE_FAST, pl->n, cfg.features, cfg.features & ~NOT_THE_PATHS);
	len = vp_vdev_config(conf, VP_SIDE_DRIVER, true, config);
	vp_port_set_config(pl->port, config, len);
	vp_port_set_hold(pl->port, pl->l->up ? 0 : VP_PORT_HOLD_ADMIN);
	vp_port_commit(pl->port);
	return conf->attachment == VP_ATTACH_LOCAL ? vp_local_new(&pl->att, pl->port, &ac, e) :
	       conf->attachment == VP_ATTACH_SHMEM ? vp_shmem_new(&pl->att, pl->port, &ac, e) :
						     vp_ivshmem_new(&pl->att, pl->port, &ac, e);
}

static int port_start(struct vp_link *l, struct vp_err *e)
{
	struct port_link *pl = calloc(1, sizeof(*pl));
	char act[VP_CONF_NAME_MAX + 16];
	int r = 0;

	if (!pl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	pl->l = l;
	l->impl = pl;
	pl->n = 2 * l->conf.pairs;
	snprintf(pl->name, sizeof(pl->name), "link %s, driver side", l->conf.name);
	snprintf(pl->dev_name, sizeof(pl->dev_name), "link %s, device side", l->conf.name);
	pl->q = calloc(pl->n, sizeof(*pl->q));
	if (!pl->q)
		r = vp_err_set(e, -ENOMEM, "out of memory");
	for (unsigned i = 0; pl->q && i < pl->n; i++)
		pl->q[i].kick_src = pl->q[i].call_dst = -1;
	if (!r && !l->d->forward)
		r = vp_forward_new(&l->d->forward, e);
	if (!r)
		r = make_port(pl, e);
	if (!r) {
		snprintf(act, sizeof(act), "%s.driver", l->conf.name);
		r = vp_peer_new(&pl->peer, l->d, pl->name, act, &l->conf.side[VP_SIDE_DRIVER], &peer_ops, &vp_vdev_vu_ops, pl, e);
	}
	if (r)
		port_stop(l);
	return r;
}

static void port_admin(struct vp_link *l)
{
	struct port_link *pl = l->impl;

	vp_port_set_hold(pl->port, l->up ? 0 : VP_PORT_HOLD_ADMIN);
}

static bool port_busy(const struct vp_link *l)
{
	return ((struct port_link *)l->impl)->slot.v != NULL;
}

static void port_reap(struct vp_link *l)
{
	struct port_link *pl = l->impl;

	if (pl->slot.v && (vp_vdev_check_memory(pl->slot.v) | vp_vdev_reap(pl->slot.v)))
		vp_link_event(l, "link.state", "a queue broke; see link.show");
}

static const char *port_status(const struct vp_link *l)
{
	struct port_link *pl = l->impl;

	if (!l->up)
		return "down";
	if (!pl)
		return "waiting";
	if (pl->slot.v && vp_vdev_broken(pl->slot.v))
		return "broken";
	if (vp_port_is_up(pl->port))
		return "up";
	return pl->slot.v || vp_port_is_online(pl->port) ? "partial" : "waiting";
}

static json_t *device_json(struct port_link *pl, bool counters)
{
	uint64_t signals = pl->signals;
	json_t *o = vp_port_json(pl->port);
	unsigned direct = 0;

	for (unsigned i = 0; i < pl->n; i++) {
		signals += pl->q[i].kick ? vp_wire_count(pl->q[i].kick) : 0;
		signals += pl->q[i].call ? vp_wire_count(pl->q[i].call) : 0;
		direct += pl->q[i].handed && !pl->q[i].kick;
	}
	json_object_set_new(o, "signals_forwarded", json_integer((json_int_t)signals));
	json_object_set_new(o, "kicks_direct", json_integer((json_int_t)direct));
	json_object_set_new(o, "vm", json_string(pl->l->conf.side[VP_SIDE_DEVICE].vm));
	json_object_set_new(o, "socket", json_string(pl->l->conf.side[VP_SIDE_DEVICE].socket));
	pl->att->ops->show(pl->att, o);
	return o;
}

static json_t *port_sides(const struct vp_link *l, bool counters)
{
	struct port_link *pl = l->impl;
	struct vp_relay_stats sent, none = { 0 };
	json_t *sides = json_object();

	vp_stats_side(&pl->past, pl->slot.v, &sent);
	json_object_set_new(sides, "driver", counters ? vp_stats_json(&sent, &none, pl->slot.v) :
			    vp_stats_show(&l->conf.side[VP_SIDE_DRIVER], pl->peer, pl->slot.v));
	json_object_set_new(sides, "device", device_json(pl, counters));
	return sides;
}

const struct vp_link_ops vp_link_port_ops = {
	.start = port_start, .stop = port_stop, .admin_changed = port_admin, .reap = port_reap, .busy = port_busy,
	.status = port_status, .sides = port_sides,
};
