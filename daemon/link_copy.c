/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The port link, copy mode: the device VM sees a pool of ours with shadow rings and bounce buffers, and our
 * data threads copy between them and the driver VM's rings (copy/bounce.h). Not a byte of the driver VM's memory
 * is ever mapped for the device VM.
 *
 * Threat model: both VMs are hostile. What a device VM does to its shadow rings ends its run of that queue (it may attach again);
 * the driver VM's ring stays whole, and is ours to drain meanwhile. The pool belongs to one link, and is
 * emptied whenever the driver VM goes.
 *
 * The driver VM's rings and their features are ours to serve, so its ring format is no concern of the device VM: the
 * shadow rings have the format that the data path supports.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <urcu/urcu-qsbr.h>

#include "base/log.h"
#include "base/util.h"
#include "copy/bounce.h"
#include "daemon.h"
#include "link.h"
#include "peer.h"
#include "port/attach.h"
#include "port/forward.h"
#include "port/port.h"
#include "stats.h"
#include "vdev.h"
#include "worker.h"

/* Between the driver VM and us: ring formats, logging, translation. */
#define RING_BITS \
	(VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | \
	 VP_BIT(VIRTIO_F_IN_ORDER))
#define OURS (RING_BITS | VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM) | VP_BIT(VU_F_PROTOCOL_FEATURES))
/* Of those, what shadow rings have when the data path supports it. */
#define SHADOW_BITS (VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_RING_F_EVENT_IDX))
/* Features that the data path has nothing to do with: the VMM and this daemon provide them. */
#define NOT_THE_PATHS \
	(VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) | VP_BIT(VIRTIO_NET_F_MTU) | VP_BIT(VIRTIO_NET_F_MQ) | \
	 VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | VP_BIT(VIRTIO_F_ANY_LAYOUT) | OURS)

#define AREA_MIN (128u << 10) /* of one queue: a packet of 64 KiB and some more */

/* One queue's work: copying while the device VM has it, draining a transmit queue that nobody has. */
struct lane {
	struct worker_job      job;       /* first */
	struct vp_bounce      *bounce;    /* RCU; NULL = nothing to copy */
	struct vp_relay_queue *drain;     /* RCU; NULL = nothing to drain */
	bool                   told;      /* attention was asked for (data thread's own) */
	/* main thread */
	bool                   published, added;
	int                    kick_seen, bell_seen;  /* watched fds, -1 = none */
};

struct queue {
	struct vp_bounce *b;          /* while the device VM has the queue */
	bool              stop_owed;  /* the front-end waits for GET_VRING_BASE's answer */
	bool              given_up;   /* by the data path, or taken from it: not handed over again while it is attached */
	bool              spoiled;    /* by what the device VM did to its ring */
	int               kick_fd;    /* eventfd of ours that becomes signal 1 + q */
	struct vp_wire   *kick;
};

struct copy_link {
	struct vp_vdev_slot   slot;     /* first: ctx of the session's callbacks */
	struct vp_link       *l;
	struct vp_peer       *peer;
	struct vp_port       *port;
	struct vp_attach     *att;
	char                  name[VP_CONF_NAME_MAX + 24], dev_name[VP_CONF_NAME_MAX + 24];
	unsigned              n;        /* queues */
	struct queue         *q;
	struct lane          *lane;     /* [n] while a front-end is connected */
	bool                  closing, in_update, again;
	/* the pool */
	void                 *pool;
	uint64_t              pool_size, pool_addr, area;
	int                   own_fd;   /* the pool's memfd when it is not the port's, else -1 */
	struct vp_relay_scratch *scratch; /* for the end of runs */
	uint64_t              signals, spoiled;
	struct vp_relay_stats past, past_back;
};

static void update(struct copy_link *cl);

/* ---- data threads ----------------------------------------------------------------------------- */

static unsigned lane_run(struct worker_job *j, struct vp_relay_scratch *s)
{
	struct lane *ln = vp_container_of(j, struct lane, job);
	struct vp_bounce *b = rcu_dereference(ln->bounce);
	struct vp_relay_queue *rq = b ? b->c.rq : rcu_dereference(ln->drain);
	unsigned n;

	if (!rq)
		return 0;
	n = b ? vp_bounce_run(b, s) : vp_relay_run(rq, NULL, s);
	if (vp_unlikely((rq->vq.broken || (b && b->shadow.broken)) && !ln->told)) {
		ln->told = true;
		worker_attention(j);
	}
	return n;
}

static bool lane_arm(struct worker_job *j)
{
	struct lane *ln = vp_container_of(j, struct lane, job);
	struct vp_bounce *b = rcu_dereference(ln->bounce);
	struct vp_relay_queue *rq = rcu_dereference(ln->drain);

	if (b)
		/* A driver without a kick fd expects to be polled. */
		return vp_bounce_arm(b) || (ln->kick_seen < 0 && !b->blocked && !b->shadow.broken && !b->c.rq->vq.broken);
	return rq && !rq->vq.broken && vp_vq_enable_kicks(&rq->vq);
}

static void lane_disarm(struct worker_job *j)
{
	struct lane *ln = vp_container_of(j, struct lane, job);
	struct vp_bounce *b = rcu_dereference(ln->bounce);
	struct vp_relay_queue *rq = rcu_dereference(ln->drain);

	if (b)
		vp_bounce_disarm(b);
	else if (rq && !rq->vq.broken)
		vp_vq_disable_kicks(&rq->vq);
}

static const struct worker_job_ops lane_ops = { .run = lane_run, .arm = lane_arm, .disarm = lane_disarm };

/* True: a grace period is needed before what it used is touched. */
static bool lane_unpublish(struct lane *ln)
{
	if (!ln->published)
		return false;
	rcu_assign_pointer(ln->bounce, NULL);
	rcu_assign_pointer(ln->drain, NULL);
	worker_job_unwatch(&ln->job, ln->kick_seen);
	worker_job_unwatch(&ln->job, ln->bell_seen);
	ln->kick_seen = ln->bell_seen = -1;
	ln->published = false;
	return true;
}

static void watch(struct lane *ln, int fd, int *seen)
{
	if (fd >= 0 && !worker_job_watch(&ln->job, fd))
		*seen = fd;
}

/* In its present hands: copying, or draining. */
static void lane_publish(struct copy_link *cl, unsigned i)
{
	struct lane *ln = &cl->lane[i];
	struct vp_vdev_ring *r = vp_vdev_ring(cl->slot.v, i);
	struct vp_bounce *b = cl->q[i].b;

	if (ln->published || r->rq.vq.broken || (!b && !(i & 1)))
		return;
	ln->told = false;
	watch(ln, r->kick_fd, &ln->kick_seen);
	if (b) {
		watch(ln, cl->att->ops->call_fd(cl->att, 1 + i), &ln->bell_seen);
		vp_bounce_set_open(b, r->enabled && !cl->q[i].stop_owed);
		rcu_assign_pointer(ln->bounce, b);
	} else {
		rcu_assign_pointer(ln->drain, &r->rq);
	}
	ln->published = true;
	worker_poke(&ln->job);
}

static void lanes_free(struct copy_link *cl)
{
	for (unsigned i = 0; cl->lane && i < cl->n; i++) {
		lane_unpublish(&cl->lane[i]);
		if (cl->lane[i].added)
			worker_job_del(cl->l->d->workers, &cl->lane[i].job);
	}
	free(cl->lane);
	cl->lane = NULL;
}

static int lanes_make(struct copy_link *cl)
{
	if (cl->lane)
		return 0;
	cl->lane = calloc(cl->n, sizeof(*cl->lane));
	if (!cl->lane)
		return -ENOMEM;
	for (unsigned i = 0; i < cl->n; i++) {
		struct lane *ln = &cl->lane[i];
		int r;

		ln->job.ops = &lane_ops;
		ln->kick_seen = ln->bell_seen = -1;
		r = worker_job_add(cl->l->d->workers, &ln->job, NULL);
		if (r) {
			lanes_free(cl);
			return r;
		}
		ln->added = true;
	}
	return 0;
}

/* ---- the pool ------------------------------------------------------------------------------------ */

/* Layout: all rings, then what device VMs read (transmit queues), then what they write (receive queues). */
static uint64_t rings_size(const struct copy_link *cl)
{
	return cl->n * vp_bounce_ring_bytes();
}

static struct vp_bounce_area ring_area(const struct copy_link *cl, unsigned i)
{
	return (struct vp_bounce_area){ i * vp_bounce_ring_bytes(), vp_bounce_ring_bytes() };
}

static struct vp_bounce_area data_area(const struct copy_link *cl, unsigned i)
{
	return (struct vp_bounce_area){ rings_size(cl) + (i & 1 ? i / 2 : cl->n / 2 + i / 2) * cl->area, cl->area };
}

/* What the last driver VM left is nobody's: the pages go, and come back as zeroes. */
static void pool_scrub(struct copy_link *cl)
{
	if (cl->pool && madvise(cl->pool, cl->pool_size, MADV_REMOVE))
		memset(cl->pool, 0, cl->pool_size);
}

static int pool_make(struct copy_link *cl, struct vp_err *e)
{
	uint64_t off, size, half;
	struct vp_port_region r[3];
	int fd;

	cl->pool_size = vp_conf_link_pool(&cl->l->conf);
	cl->area = cl->pool_size > rings_size(cl) ? (cl->pool_size - rings_size(cl)) / cl->n & ~UINT64_C(4095) : 0;
	if (cl->area < AREA_MIN)
		return vp_err_set(e, -EINVAL, "PoolSize= leaves %llu KiB for each of %u queues, which need %u; raise it",
				  (unsigned long long)cl->area >> 10, cl->n, AREA_MIN >> 10);
	if (cl->area > UINT32_MAX - 63)
		cl->area = 1u << 31;
	half = cl->area * (cl->n / 2);
	fd = vp_port_memfd(cl->port, &size);
	off = vp_port_pool(cl->port, &size);
	if (!size) {
		off = 0;
		/* An attachment that shows no more than the control block of the port's file: it is given as a window. */
		fd = cl->own_fd = memfd_create("vhost-pci pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fd < 0 || ftruncate(fd, (off_t)cl->pool_size) < 0 ||
		    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
			return vp_err_set(e, -errno, "pool of %llu bytes: %m", (unsigned long long)cl->pool_size);
	}
	cl->pool = mmap(NULL, cl->pool_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)off);
	if (cl->pool == MAP_FAILED) {
		cl->pool = NULL;
		return vp_err_set(e, -errno, "pool of %llu bytes cannot be mapped: %m", (unsigned long long)cl->pool_size);
	}
	/* Link addresses: where the pool lies behind a control block; never 0, aligned like the file. */
	cl->pool_addr = VHP_CTRL_POOL_OFF;
	r[0] = (struct vp_port_region){ .addr = cl->pool_addr, .size = rings_size(cl),
					.flags = VHP_REGION_READ | VHP_REGION_WRITE };
	r[1] = (struct vp_port_region){ .offset = rings_size(cl), .size = half, .flags = VHP_REGION_READ };
	r[2] = (struct vp_port_region){ .offset = rings_size(cl) + half, .size = half, .flags = VHP_REGION_WRITE };
	for (unsigned i = 0; i < 3; i++) {
		r[i].addr = cl->pool_addr + r[i].offset;
		r[i].fd = cl->own_fd;
	}
	return vp_port_set_memory(cl->port, r, 3, e);
}

/* ---- signals ----------------------------------------------------------------------------------------- */

static void unwire(struct copy_link *cl, unsigned i)
{
	struct queue *q = &cl->q[i];

	if (q->kick)
		cl->signals += vp_wire_count(q->kick);
	vp_wire_free(q->kick);
	q->kick = NULL;
}

static void wire(struct copy_link *cl, unsigned i)
{
	struct queue *q = &cl->q[i];
	int r;

	unwire(cl, i);
	r = cl->att->ops->wire(cl->att, 1 + i, q->kick_fd, &q->kick);
	if (r && r != -ENOTCONN)
		vp_log(VP_LOG_WARNING, "%s: queue %u: its kicks cannot be forwarded: %s", cl->name, i, strerror(-r));
}

static void wires_changed(void *ctx)
{
	struct copy_link *cl = ctx;
	bool grace = false;

	if (!cl->slot.v || cl->closing)
		return;
	/* The device VM's doorbells may be new files. */
	for (unsigned i = 0; i < cl->n; i++)
		if (cl->q[i].b)
			grace |= lane_unpublish(&cl->lane[i]);
	if (grace)
		urcu_qsbr_synchronize_rcu();
	for (unsigned i = 0; i < cl->n; i++)
		if (cl->q[i].b) {
			wire(cl, i);
			if (vp_vdev_ring(cl->slot.v, i)->usable)
				lane_publish(cl, i);
		}
}

/* ---- from hand to hand -------------------------------------------------------------------------------- */

static uint64_t shadow_features(struct copy_link *cl)
{
	return (vp_vdev_features(cl->slot.v) & ~OURS) | (vp_port_path(cl->port) & SHADOW_BITS);
}

static void hand_over(struct copy_link *cl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(cl->slot.v, i);
	struct queue *q = &cl->q[i];
	struct vp_bounce_conf bc = {
		.rq = &r->rq, .features = shadow_features(cl), .pool = vp_gptr_from_map(cl->pool), .pool_addr = cl->pool_addr,
		.ring = ring_area(cl, i), .net = true, .early = i & 1, .kick_fd = q->kick_fd,
	};
	struct vp_port_ring pr;
	struct vp_err e = { 0 };

	if (lane_unpublish(&cl->lane[i]))
		urcu_qsbr_synchronize_rcu();
	if (r->rq.vq.broken)
		return;
	*(i & 1 ? &bc.out : &bc.in) = data_area(cl, i);
	/* Packets per second hold in each direction. */
	if (!(i & 1) && cl->l->conf.pps)
		r->rq.rate = VP_MAX(cl->l->conf.pps / cl->l->conf.pairs, 1);
	if (vp_bounce_new(&q->b, &bc, &e)) {
		vp_log(VP_LOG_WARNING, "%s: queue %u: %s", cl->name, i, e.msg);
		q->given_up = true;
		return;
	}
	pr = (struct vp_port_ring){
		.desc = q->b->desc_addr, .avail = q->b->avail_addr, .used = q->b->used_addr,
		.size = q->b->shadow.size, .base = vp_bounce_base(q->b), .enabled = r->enabled,
	};
	if (vp_port_queue_run(cl->port, i, &pr)) {
		vp_bounce_free(q->b);
		q->b = NULL;
		return;
	}
	wire(cl, i);
	lane_publish(cl, i);
}

/* The run is over: the driver's ring is ours again, at an exact place. */
static void take_back(struct copy_link *cl, unsigned i)
{
	struct queue *q = &cl->q[i];
	struct vp_vdev_ring *r = cl->slot.v ? vp_vdev_ring(cl->slot.v, i) : NULL;

	unwire(cl, i);
	if (cl->lane && lane_unpublish(&cl->lane[i]))
		urcu_qsbr_synchronize_rcu();
	/* A ring that waits for its translation cannot be written to. */
	if (q->b && r && !cl->closing)
		vp_bounce_stop(q->b, r->usable ? cl->scratch : NULL);
	vp_bounce_free(q->b);
	q->b = NULL;
}

static void port_queue_stopped(void *ctx, unsigned i, const struct vp_port_stop *s)
{
	struct copy_link *cl = ctx;
	struct queue *q = &cl->q[i];
	struct vp_err e = { 0 };
	bool owed = q->stop_owed;

	take_back(cl, i);
	q->stop_owed = false;
	q->given_up = q->spoiled || (!s->lost && !owed);
	q->spoiled = false;
	if (!cl->slot.v || cl->closing)
		return;
	if (s->broken)
		vp_log(VP_LOG_WARNING, "%s: queue %u: the device VM found its shadow ring malformed", cl->name, i);
	if (owed) {
		if (vp_vdev_ring_stopped(cl->slot.v, i, &e))
			vp_peer_kick_out(cl->peer, e.code ? e.msg : "the front-end went away");
		vp_peer_rearm(cl->peer);
	} else {
		update(cl);
	}
}

static void port_up(void *ctx)
{
	struct copy_link *cl = ctx;

	for (unsigned i = 0; i < cl->n; i++)
		cl->q[i].given_up = false;
	update(cl);
}

static void port_down(void *ctx)
{
	update(ctx);
}

static const struct vp_port_ops port_ops = { .up = port_up, .down = port_down, .queue_stopped = port_queue_stopped };

/* Started, be it that its translation is awaited. */
static bool ring_lives(const struct vp_vdev_ring *r)
{
	return r->usable || r->wait == VP_VDEV_WAIT_REBIND;
}

static enum vp_port_driver driver_state(struct copy_link *cl)
{
	struct vp_vdev *v = cl->slot.v;

	if (!v || cl->closing)
		return VP_PORT_NO_DRIVER;
	for (unsigned i = 0; i < cl->n; i++)
		if (ring_lives(vp_vdev_ring(v, i)))
			return VP_PORT_DRIVER_RUNS;
	return VP_PORT_DRIVER_IDLE;
}

static void update_queue(struct copy_link *cl, unsigned i, bool up)
{
	struct vp_vdev_ring *r = vp_vdev_ring(cl->slot.v, i);
	struct queue *q = &cl->q[i];

	if (!ring_lives(r))
		q->given_up = false;
	if (q->b && (!ring_lives(r) || r->rq.vq.broken)) {
		vp_port_queue_end(cl->port, i);
		return;
	}
	if (q->b && q->b->shadow.broken) {
		vp_log(VP_LOG_WARNING, "%s: queue %u: the device VM returned buffers that it did not have; the queue is taken from it",
		       cl->dev_name, i);
		cl->spoiled++;
		q->spoiled = true;
		vp_port_queue_end(cl->port, i);
		return;
	}
	if (q->b) {
		vp_port_queue_enable(cl->port, i, r->enabled);
		vp_bounce_set_open(q->b, r->enabled && !q->stop_owed);
	}
	if (r->usable && !q->b && up && !q->given_up)
		hand_over(cl, i);
	else if (r->usable)
		lane_publish(cl, i);
}

static void update_once(struct copy_link *cl)
{
	struct vp_vdev *v = cl->slot.v;
	bool up;

	vp_port_begin(cl->port);
	vp_port_set_driver(cl->port, driver_state(cl), v && !cl->closing ? shadow_features(cl) : 0);
	up = vp_port_is_up(cl->port);
	for (unsigned i = 0; v && cl->lane && !cl->closing && i < cl->n; i++)
		update_queue(cl, i, up);
	vp_port_commit(cl->port);
	if (v && !cl->closing && vp_peer_session(cl->peer))
		vp_vdev_set_carrier(v, up);
}

/* Bring port and lanes in line with the rings there are. */
static void update(struct copy_link *cl)
{
	cl->again = true;
	if (cl->in_update)
		return;
	cl->in_update = true;
	while (cl->again) {
		cl->again = false;
		update_once(cl);
	}
	cl->in_update = false;
}

/* ---- the driver side's device ---------------------------------------------------------------------------- */

static void vdev_withdraw(void *ctx, unsigned first, unsigned n)
{
	struct copy_link *cl = ctx;
	bool grace = false;

	for (unsigned i = first; cl->lane && i < first + n; i++)
		grace |= lane_unpublish(&cl->lane[i]);
	if (grace)
		urcu_qsbr_synchronize_rcu();
}

static void vdev_offer(void *ctx, unsigned first, unsigned n)
{
	update(ctx);
}

static int vdev_stop(void *ctx, unsigned i)
{
	struct copy_link *cl = ctx;

	if (vp_port_queue_stop(cl->port, i) != VP_PORT_LATER)
		return 0;
	cl->q[i].stop_owed = true;
	/* Until the device VM has answered, what it returns is given back and nothing new is taken. */
	if (cl->q[i].b)
		vp_bounce_set_open(cl->q[i].b, false);
	return VU_LATER;
}

static void vdev_events_changed(void *ctx)
{
	struct copy_link *cl = ctx;

	vp_peer_rearm(cl->peer);
}

static struct vu_backend *vdev_session(void *ctx)
{
	struct copy_link *cl = ctx;

	return vp_peer_session(cl->peer);
}

static int vdev_attention_fd(void *ctx)
{
	struct copy_link *cl = ctx;

	return worker_attention_fd(cl->l->d->workers);
}

static const struct vp_vdev_ops vdev_ops = {
	.withdraw = vdev_withdraw, .offer = vdev_offer, .stop = vdev_stop, .events_changed = vdev_events_changed,
	.session = vdev_session, .attention_fd = vdev_attention_fd,
};

static int drv_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	struct copy_link *cl = ctx;
	int r = lanes_make(cl);

	if (r)
		return vp_err_set(e, r, "out of memory");
	vp_vdev_backend_cfg(&cl->l->conf, VP_SIDE_DRIVER, cfg);
	r = vp_vdev_new(&cl->slot.v, cl->name, &cl->l->conf, VP_SIDE_DRIVER, &vdev_ops, cl);
	return r ? vp_err_set(e, r, "out of memory") : 0;
}

static void drv_opened(void *ctx)
{
	struct copy_link *cl = ctx;

	update(cl);
	vp_link_event(cl->l, "link.state", "driver side connected");
}

static void add_past(struct copy_link *cl)
{
	for (unsigned i = 0; i < cl->n; i++)
		vp_stats_add(i & 1 ? &cl->past : &cl->past_back, &vp_vdev_ring(cl->slot.v, i)->rq.stats);
}

static void drv_gone(struct copy_link *cl)
{
	struct vp_vdev *v = cl->slot.v;

	if (!v)
		return;
	cl->closing = true;
	vp_port_begin(cl->port);
	vp_port_set_driver(cl->port, VP_PORT_NO_DRIVER, 0);
	vp_port_commit(cl->port);
	vp_vdev_reap(v);
	vdev_withdraw(cl, 0, cl->n);
	add_past(cl);
	vp_vdev_free(v);
	cl->slot.v = NULL;
	lanes_free(cl);
	pool_scrub(cl);
	cl->closing = false;
}

static void drv_closing(void *ctx)
{
	drv_gone(ctx);
}

static void drv_closed(void *ctx, const char *why)
{
	struct copy_link *cl = ctx;

	drv_gone(cl);  /* the session never began */
	vp_link_event(cl->l, "link.state", why);
}

static const struct vp_peer_ops peer_ops = {
	.open = drv_open, .opened = drv_opened, .closing = drv_closing, .closed = drv_closed,
};

/* ---- link ops ------------------------------------------------------------------------------------------------ */

static void copy_stop(struct vp_link *l)
{
	struct copy_link *cl = l->impl;

	if (!cl)
		return;
	vp_peer_free(cl->peer);
	cl->peer = NULL;
	vp_port_goodbye(cl->port);
	if (cl->att)
		cl->att->ops->free(cl->att);
	cl->att = NULL;
	for (unsigned i = 0; cl->q && i < cl->n; i++) {
		take_back(cl, i);
		vp_close(&cl->q[i].kick_fd);
	}
	vp_port_free(cl->port);
	lanes_free(cl);
	if (cl->pool)
		munmap(cl->pool, cl->pool_size);
	vp_close(&cl->own_fd);
	free(cl->scratch);
	free(cl->q);
	free(cl);
	l->impl = NULL;
}

static int make_port(struct copy_link *cl, struct vp_err *e)
{
	const struct vp_conf_link *conf = &cl->l->conf;
	struct vp_port_conf pc = { .max_queues = cl->n, .pool_size = vp_conf_link_pool(conf) };
	struct vp_attach_conf ac = {
		.d = cl->l->d, .f = cl->l->d->forward, .link = conf, .name = cl->dev_name, .wires_changed = wires_changed, .ctx = cl,
	};
	struct vu_backend_cfg cfg;
	uint8_t config[256];
	unsigned len;
	int r;

	memcpy(pc.name, conf->name, strnlen(conf->name, sizeof(pc.name)));
	if (conf->attachment == VP_ATTACH_LOCAL) {
		vp_local_port_conf(conf, &pc);
	} else if (conf->attachment == VP_ATTACH_SHMEM) {
		vp_shmem_port_conf(conf, &pc);
		pc.pool_size = 0;  /* only the control block of the port's file is mapped; the pool comes as a window */
	} else {
		vp_ivshmem_port_conf(conf, &pc);
	}
	r = vp_port_new(&cl->port, ac.d->event, &pc, &port_ops, cl, e);
	if (r)
		return r;
	vp_vdev_backend_cfg(conf, VP_SIDE_DRIVER, &cfg);
	vp_port_begin(cl->port);
	vp_port_set_link(cl->port, conf->device_type, VHP_MODE_COPY, cl->n, cfg.features, cfg.features & ~NOT_THE_PATHS);
	len = vp_vdev_config(conf, VP_SIDE_DRIVER, true, config);
	vp_port_set_config(cl->port, config, len);
	vp_port_set_hold(cl->port, cl->l->up ? 0 : VP_PORT_HOLD_ADMIN);
	r = pool_make(cl, e);
	vp_port_commit(cl->port);
	if (r)
		return r;
	return conf->attachment == VP_ATTACH_LOCAL ? vp_local_new(&cl->att, cl->port, &ac, e) :
	       conf->attachment == VP_ATTACH_SHMEM ? vp_shmem_new(&cl->att, cl->port, &ac, e) :
						     vp_ivshmem_new(&cl->att, cl->port, &ac, e);
}

static int copy_start(struct vp_link *l, struct vp_err *e)
{
	struct copy_link *cl = calloc(1, sizeof(*cl));
	char act[VP_CONF_NAME_MAX + 16];
	int r = 0;

	if (!cl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	cl->l = l;
	l->impl = cl;
	cl->own_fd = -1;
	cl->n = 2 * l->conf.pairs;
	snprintf(cl->name, sizeof(cl->name), "link %s, driver side", l->conf.name);
	snprintf(cl->dev_name, sizeof(cl->dev_name), "link %s, device side", l->conf.name);
	cl->scratch = vp_relay_scratch_new();
	cl->q = calloc(cl->n, sizeof(*cl->q));
	for (unsigned i = 0; cl->q && i < cl->n; i++)
		cl->q[i].kick_fd = -1;
	if (!cl->q || !cl->scratch)
		r = -ENOMEM;
	for (unsigned i = 0; !r && i < cl->n; i++)
		r = vp_eventfd_new(&cl->q[i].kick_fd);
	if (r)
		vp_err_set(e, r, "%s", strerror(-r));
	if (!r && !l->d->forward)
		r = vp_forward_new(&l->d->forward, e);
	if (!r)
		r = make_port(cl, e);
	if (!r) {
		snprintf(act, sizeof(act), "%s.driver", l->conf.name);
		r = vp_peer_new(&cl->peer, l->d, cl->name, act, &l->conf.side[VP_SIDE_DRIVER], &peer_ops, &vp_vdev_vu_ops, cl, e);
	}
	if (r)
		copy_stop(l);
	return r;
}

static void copy_admin(struct vp_link *l)
{
	struct copy_link *cl = l->impl;

	vp_port_set_hold(cl->port, l->up ? 0 : VP_PORT_HOLD_ADMIN);
}

static bool copy_busy(const struct vp_link *l)
{
	return ((struct copy_link *)l->impl)->slot.v != NULL;
}

static void copy_reap(struct vp_link *l)
{
	struct copy_link *cl = l->impl;
	bool broke;

	if (!cl->slot.v)
		return;
	broke = vp_vdev_check_memory(cl->slot.v) | vp_vdev_reap(cl->slot.v);
	for (unsigned i = 0; i < cl->n; i++)
		broke |= cl->q[i].b && cl->q[i].b->shadow.broken;
	if (!broke)
		return;
	update(cl);
	vp_link_event(l, "link.state", "a queue broke; see link.show");
}

static const char *copy_status(const struct vp_link *l)
{
	struct copy_link *cl = l->impl;

	if (!l->up)
		return "down";
	if (!cl)
		return "waiting";
	if (cl->slot.v && vp_vdev_broken(cl->slot.v))
		return "broken";
	if (vp_port_is_up(cl->port)) {
		for (unsigned i = 0; i < cl->n; i++)
			if (cl->q[i].given_up)
				return "partial";
		return "up";
	}
	return cl->slot.v || vp_port_is_online(cl->port) ? "partial" : "waiting";
}

/* What went to the driver VM: receive queues. */
static void stats_back(struct copy_link *cl, struct vp_relay_stats *sum)
{
	*sum = cl->past_back;
	for (unsigned i = 0; cl->slot.v && i < cl->n; i += 2)
		vp_stats_add(sum, &vp_vdev_ring(cl->slot.v, i)->rq.stats);
}

static json_t *device_json(struct copy_link *cl)
{
	uint64_t signals = cl->signals;
	json_t *o = vp_port_json(cl->port);
	unsigned taken = 0;

	for (unsigned i = 0; i < cl->n; i++) {
		signals += cl->q[i].kick ? vp_wire_count(cl->q[i].kick) : 0;
		taken += cl->q[i].given_up;
	}
	json_object_set_new(o, "signals_forwarded", json_integer((json_int_t)signals));
	json_object_set_new(o, "pool_size", json_integer((json_int_t)cl->pool_size));
	json_object_set_new(o, "queues_spoiled", json_integer((json_int_t)cl->spoiled));
	json_object_set_new(o, "queues_given_up", json_integer((json_int_t)taken));
	json_object_set_new(o, "vm", json_string(cl->l->conf.side[VP_SIDE_DEVICE].vm));
	json_object_set_new(o, "socket", json_string(cl->l->conf.side[VP_SIDE_DEVICE].socket));
	cl->att->ops->show(cl->att, o);
	return o;
}

static json_t *copy_sides(const struct vp_link *l, bool counters)
{
	struct copy_link *cl = l->impl;
	struct vp_relay_stats sent, back;
	json_t *sides = json_object(), *dev = device_json(cl), *c;

	vp_stats_side(&cl->past, cl->slot.v, &sent);
	stats_back(cl, &back);
	if (counters) {
		/* Counters of a side count what its VM sent. */
		c = vp_stats_json(&back, &sent, NULL);
		json_object_set(dev, "tx", json_object_get(c, "tx"));
		json_object_set(dev, "rx", json_object_get(c, "rx"));
		json_decref(c);
	}
	json_object_set_new(sides, "driver", counters ? vp_stats_json(&sent, &back, cl->slot.v) :
			    vp_stats_show(&l->conf.side[VP_SIDE_DRIVER], cl->peer, cl->slot.v));
	json_object_set_new(sides, "device", dev);
	return sides;
}

const struct vp_link_ops vp_link_copy_ops = {
	.start = copy_start, .stop = copy_stop, .admin_changed = copy_admin, .reap = copy_reap, .busy = copy_busy,
	.status = copy_status, .sides = copy_sides,
};
