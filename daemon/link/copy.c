/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The port link, copy mode: the device VM sees a pool of ours with shadow rings and bounce buffers, and our
 * data threads copy between them and the driver VM's rings (engine/copyq.h). Not a byte of the driver VM's memory
 * is ever mapped for the device VM.
 *
 * Threat model: both VMs are hostile. What a device VM does to its shadow rings ends its run of that queue (it may
 * attach again); the driver VM's ring stays whole, and is ours to drain meanwhile. The pool belongs to one link, and is
 * emptied whenever the driver VM goes. A kick is raised by a data thread, on an eventfd that the device VM's VMM or
 * process shares: one that blocks is interrupted by the threads' supervisor and ends the run, too.
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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "engine/copyq.h"
#include "engine/request.h"
#include "guestmem/shared.h"
#include "link/keep.h"
#include "link/port_link.h"
#include "threads/rates.h"

/* Between the driver VM and us: ring formats, logging, translation. */
#define RING_BITS \
	(VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | \
	 VP_BIT(VIRTIO_F_IN_ORDER))
#define OURS (RING_BITS | VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM) | VP_BIT(VU_F_PROTOCOL_FEATURES))
/* Of those, what shadow rings have when the data path supports it. */
#define SHADOW_BITS (VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_RING_F_EVENT_IDX))

struct copy_queue {
	struct vp_plink_work work;
	struct vp_copyq *b;         /* net: while the device VM has the queue */
	struct vp_reqq   *r;         /* others: from the first time that it had it until the driver's ring stops */
	/* its part of the pool holds what the last driver VM left, and the guest may still be at work on it */
	bool              stale;
	bool              straight;  /* the data thread raises the attachment's own fd */
	int               kick_fd;   /* else: eventfd of ours that becomes signal 1 + q */
	struct vp_wire   *kick;
};

struct copy {
	struct vp_plink   *pl;
	struct copy_queue *q;
	/* the pool */
	struct vp_shared   pool;
	uint64_t           pool_size, pool_addr, area;
	int                own_fd;   /* the pool's memfd when it is not the port's, else -1 */
	bool               shown;    /* the device VM has it */
};

/* Of its record. */
enum tag { TAG_POOL = 1, TAG_PACKETS, TAG_REQUESTS, TAG_STALE };

static struct copy *copy_of(struct vp_plink *pl)
{
	return pl->copy;
}

/* A fast link, whose queues are copied only while the driver VM migrates; or a grant link. */
static bool beside_memory(const struct vp_plink *pl)
{
	return pl->m != &vp_plink_copy;
}

/* ---- data threads ----------------------------------------------------------------------------- */

static struct copy_queue *queue_of(struct vp_work *w)
{
	return vp_container_of(w, struct copy_queue, work.work);
}

static unsigned packet_run(struct vp_work *w, struct vp_scratch *s, unsigned *trouble)
{
	struct vp_copyq *b = queue_of(w)->b;
	unsigned n = vp_copyq_run(b, s);

	*trouble = b->shadow.broken || b->c.rq->vq.broken;
	return n;
}

static enum worker_next packet_arm(struct vp_work *w)
{
	struct vp_copyq *b = queue_of(w)->b;

	/* A driver without a kick fd expects to be polled. */
	if (vp_copyq_arm(b) || (!queue_of(w)->work.kicked && !b->blocked && !b->shadow.broken && !b->c.rq->vq.broken))
		return WORKER_AGAIN;
	return vp_copyq_held(b) ? WORKER_LATER : WORKER_SLEEP;
}

static void packet_disarm(struct vp_work *w)
{
	vp_copyq_disarm(queue_of(w)->b);
}

static const struct vp_work_ops packet_ops = { .run = packet_run, .arm = packet_arm, .disarm = packet_disarm };

static unsigned request_run(struct vp_work *w, struct vp_scratch *s, unsigned *trouble)
{
	struct vp_reqq *r = queue_of(w)->r;
	unsigned n = vp_reqq_run(r, s);

	w->open = r->moved || !n ? vp_reqq_outstanding(r) : 0;
	/* Also when a queue that is to be stopped has no more to do: somebody waits for that. */
	*trouble = r->shadow.broken || r->c.rq->vq.broken ||
		   (!__atomic_load_n(&r->open, __ATOMIC_RELAXED) && !vp_reqq_outstanding(r));
	return n;
}

static enum worker_next request_arm(struct vp_work *w)
{
	struct vp_reqq *r = queue_of(w)->r;

	if (vp_reqq_arm(r) || (!queue_of(w)->work.kicked && !r->blocked && !r->shadow.broken && !r->c.rq->vq.broken))
		return WORKER_AGAIN;
	return WORKER_SLEEP;
}

static void request_disarm(struct vp_work *w)
{
	vp_reqq_disarm(queue_of(w)->r);
}

static const struct vp_work_ops request_ops = { .run = request_run, .arm = request_arm, .disarm = request_disarm };

/* ---- the pool ------------------------------------------------------------------------------------ */

/*
 * Layout: all rings, then what device VMs read (transmit queues), then what they write (receive queues). Requests are
 * both: one area for each queue.
 */
static uint64_t rings_size(const struct copy *cl)
{
	return cl->pl->n * vp_copyq_ring_bytes();
}

static struct vp_copyq_area ring_area(const struct copy *cl, unsigned i)
{
	return (struct vp_copyq_area){ i * vp_copyq_ring_bytes(), vp_copyq_ring_bytes() };
}

static struct vp_copyq_area data_area(const struct copy *cl, unsigned i)
{
	if (cl->pl->dev->waits)
		return (struct vp_copyq_area){ rings_size(cl) + i * cl->area, cl->area };
	return (struct vp_copyq_area){ rings_size(cl) + (i & 1 ? i / 2 : cl->pl->n / 2 + i / 2) * cl->area, cl->area };
}

/* Its run ends. Whatever the device side has not returned by now, it may return in the next one. */
static void look_for_open(struct vp_plink *pl, struct copy_queue *q)
{
	if (q->r && pl->att->ops->unclean && vp_reqq_away(q->r))
		pl->att->ops->unclean(pl->att);
}

static void queue_scrub(struct copy *cl, unsigned i)
{
	struct vp_copyq_area ring = ring_area(cl, i), data = data_area(cl, i);

	vp_shared_scrub(&cl->pool, ring.off, ring.size);
	vp_shared_scrub(&cl->pool, data.off, data.size);
	cl->q[i].stale = false;
}

/* Emptied under its hands a ring looks broken, and a back-end may end for that. */
static void pool_tidy(struct vp_plink *pl)
{
	struct copy *cl = copy_of(pl);

	for (unsigned i = 0; cl && cl->pool.size && i < pl->n; i++)
		if (cl->q[i].stale && !vp_port_queue_lingers(pl->port, i))
			queue_scrub(cl, i);
}

/*
 * What the last driver VM left is nobody's, once the guest has let go of it: at the latest before the queue's next run.
 */
static void pool_scrub(struct vp_plink *pl)
{
	struct copy *cl = copy_of(pl);

	/* It has not gone: the next daemon has it, and the pool with what is on its way. */
	if (pl->l->leaving)
		return;
	for (unsigned i = 0; i < pl->n; i++) {
		look_for_open(pl, &cl->q[i]);
		vp_reqq_free(cl->q[i].r);
		cl->q[i].r = NULL;
		cl->q[i].stale = true;
	}
	pool_tidy(pl);
}

static int pool_file(uint64_t size, int *fd, struct vp_err *e)
{
	/* seccomp control: memfd_create ftruncate fcntl */
	*fd = memfd_create("vhost-pci pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0 || ftruncate(*fd, (off_t)size) < 0 ||
	    fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return vp_err_set(e, -errno, "pool of %llu bytes: %m", (unsigned long long)size);
	return 0;
}

/* Link addresses: where the pool lies behind a control block; never 0, aligned like the file. */
static int pool_publish(struct vp_plink *pl, struct vp_err *e)
{
	struct copy *cl = copy_of(pl);
	uint64_t half = cl->area * (pl->dev->waits ? pl->n : pl->n / 2);
	struct vp_port_region r[3];

	r[0] = (struct vp_port_region){ .addr = cl->pool_addr, .size = rings_size(cl),
					.flags = VHP_REGION_READ | VHP_REGION_WRITE };
	r[1] = (struct vp_port_region){ .offset = rings_size(cl), .size = half, .flags = VHP_REGION_READ };
	r[2] = (struct vp_port_region){ .offset = rings_size(cl) + half, .size = half, .flags = VHP_REGION_WRITE };
	if (pl->dev->waits)
		r[1].flags |= VHP_REGION_WRITE;
	for (unsigned i = 0; i < 3; i++) {
		r[i].addr = cl->pool_addr + r[i].offset;
		r[i].fd = cl->own_fd;
	}
	return vp_port_set_memory(cl->pl->port, r, pl->dev->waits ? 2 : 3, e);
}

bool vp_plink_pool_region(struct vp_plink *pl, uint64_t from, struct vp_port_region *r)
{
	struct copy *cl = copy_of(pl);

	cl->shown = from <= cl->pool_addr;
	*r = (struct vp_port_region){ .addr = cl->pool_addr, .size = vp_align_up(cl->pool_size, 4096), .fd = cl->own_fd,
				      .flags = VHP_REGION_READ | VHP_REGION_WRITE };
	return cl->shown;
}

bool vp_plink_pool_there(const struct vp_plink *pl)
{
	const struct copy *cl = pl->copy;

	return cl->shown && vp_port_shows_whole(pl->port, cl->pool_addr, vp_align_up(cl->pool_size, 4096));
}

static int pool_make(struct vp_plink *pl, struct vp_err *e)
{
	struct copy *cl = copy_of(pl);
	struct vp_rec_in heir;
	uint64_t off, size;
	int fd, r;

	cl->pool_size = vp_conf_link_pool(&cl->pl->l->conf);
	cl->area = cl->pool_size > rings_size(cl) ? (cl->pool_size - rings_size(cl)) / cl->pl->n & ~UINT64_C(4095) : 0;
	if (cl->area < VP_POOL_DATA_MIN)
		return vp_err_set(e, -EINVAL,
				  "PoolSize= leaves %llu KiB for each of %u queues, which need %u; raise it",
				  (unsigned long long)cl->area >> 10, cl->pl->n, VP_POOL_DATA_MIN >> 10);
	if (cl->area > UINT32_MAX - 63)
		cl->area = 1u << 31;
	fd = vp_port_memfd(cl->pl->port, &size);
	off = vp_port_pool(cl->pl->port, &size);
	if (!size) {
		off = 0;
		/*
		 * An attachment that shows no more than the control block of the port's file: it is given as a window.
		 */
		r = vp_plink_heir_mode(pl, &heir) ? vp_rec_take(&heir, TAG_POOL, VP_REC_FD_FILE, &cl->own_fd, e) :
		    pool_file(cl->pool_size, &cl->own_fd, e);
		if (r)
			return r;
		fd = cl->own_fd;
	}
	r = vp_shared_map(&cl->pool, fd, off, cl->pool_size);
	if (r)
		return vp_err_set(e, r, "pool of %llu bytes cannot be mapped: %s", (unsigned long long)cl->pool_size,
				  strerror(-r));
	/* That of an earlier process holds what its driver VM left. */
	if (vp_port_was_kept(pl->port) && !vp_port_is_silent(pl->port))
		vp_shared_scrub(&cl->pool, 0, cl->pool_size);
	cl->shown = !beside_memory(pl);
	cl->pool_addr = beside_memory(pl) ? VP_PLINK_POOL_ADDR : VHP_CTRL_POOL_OFF;
	return beside_memory(pl) ? 0 : pool_publish(pl, e);
}

/*
 * Who had the pool may keep it mapped, and may still be writing what the last run asked for: what comes next has
 * another one. Queues are in nobody's hands. When there is no memory the old one stays.
 */
static void pool_fresh(struct vp_plink *pl)
{
	struct copy *cl = copy_of(pl);
	struct vp_err e = { 0 };
	int old = cl->own_fd, fd = -1, r;

	if (old < 0 || !cl->pool.size)
		return;
	r = pool_file(cl->pool_size, &fd, &e);
	if (!r) {
		r = vp_shared_replace(&cl->pool, fd);
		if (r)
			vp_err_set(&e, r, "it cannot be mapped: %s", strerror(-r));
	}
	if (!r) {
		cl->own_fd = fd;
		fd = old;
		if (!beside_memory(pl))
			r = pool_publish(pl, &e);
		else if (pl->slot.v)
			pl->m->memory(pl);
	}
	if (r)
		vp_log(VP_LOG_WARNING, "%s: no other pool for the next back-end: %s", pl->dev_name, e.msg);
	vp_close(&fd);
}

/* ---- signals ----------------------------------------------------------------------------------------- */

static void copy_unwire(struct vp_plink *pl, unsigned i)
{
	vp_plink_unwire(pl, &copy_of(pl)->q[i].kick);
}

/* The lane is not published: the data thread's fd may change. */
static void copy_wire(struct vp_plink *pl, unsigned i)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	int fd = pl->att->ops->signal_fd ? pl->att->ops->signal_fd(pl->att, 1 + i) : -1, r;

	copy_unwire(pl, i);
	q->straight = fd >= 0;
	*(q->b ? &q->b->c.kick_fd : &q->r->kick_fd) = fd >= 0 ? fd : q->kick_fd;
	if (fd >= 0)
		return;
	r = pl->att->ops->wire(pl->att, 1 + i, q->kick_fd, &q->kick);
	if (r && r != -ENOTCONN)
		vp_log(VP_LOG_WARNING, "%s: queue %u: its kicks cannot be forwarded: %s", pl->name, i, strerror(-r));
}

/* ---- from hand to hand -------------------------------------------------------------------------------- */

static struct vp_reqq_conf request_conf(struct vp_plink *pl, unsigned i)
{
	struct copy *cl = copy_of(pl);
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);

	return (struct vp_reqq_conf){
		.rq = &r->rq,
		.pool = cl->pool.p,
		.pool_addr = cl->pool_addr,
		.ring = ring_area(cl, i),
		.data = data_area(cl, i),
		.trust_len = pl->dev->trust_len,
		.once = pl->dev->once,
		.fail_status = pl->dev->fail_status,
		.fuse = pl->dev->fuse,
		.fills = pl->dev->fills,
		.fill_op = pl->dev->fill_op,
		/* What is not aligned a back-end copies before it does direct I/O on it, which would fail otherwise. */
		.out_head = pl->att->ops->pages ? pl->dev->out_head : 0,
		.inflight = r->inflight,
		.saved = &r->saved,
		.keep = vp_keep_engine(pl->l, i),
	};
}

/* Requests: the record of what is open was made when the first device side came. */
static int request_begin(struct vp_plink *pl, unsigned i, struct vp_port_ring *pr, struct vp_err *e)
{
	struct copy *cl = copy_of(pl);
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct copy_queue *q = &cl->q[i];
	struct vp_copyq_area data = data_area(cl, i);
	struct vp_reqq_conf rc = request_conf(pl, i);
	int ret = q->r ? 0 : vp_reqq_new(&q->r, &rc, e);

	if (ret)
		return ret;
	r->saved.n = 0; /* they are the engine's now */
	vp_shared_scrub(&cl->pool, data.off, data.size);
	ret = vp_reqq_begin(q->r, vp_plink_features(pl), q->kick_fd, vp_blame_id(pl->l->conf.side[VP_SIDE_DEVICE].vm),
			    e);
	if (ret)
		return ret;
	pr->desc = q->r->desc_addr;
	pr->avail = q->r->avail_addr;
	pr->used = q->r->used_addr;
	pr->size = q->r->size;
	pr->base = vp_reqq_base(q->r);
	return 0;
}

static struct vp_copyq_conf packet_conf(struct vp_plink *pl, unsigned i)
{
	struct copy *cl = copy_of(pl);

	return (struct vp_copyq_conf){
		.rq = &vp_vdev_ring(pl->slot.v, i)->rq, .features = vp_plink_features(pl), .pool = cl->pool.p,
		.pool_addr = cl->pool_addr, .ring = ring_area(cl, i), .data = data_area(cl, i), .early = i & 1,
		.kick_fd = cl->q[i].kick_fd, .kick_who = vp_blame_id(pl->l->conf.side[VP_SIDE_DEVICE].vm),
		.kept = vp_keep_engine(pl->l, i),
	};
}

/* Packets per second hold in each direction. */
static void packet_rates(struct vp_plink *pl, unsigned i)
{
	struct vp_queue *rq = &vp_vdev_ring(pl->slot.v, i)->rq;

	if (i & 1)
		return;
	rq->shared = vp_rate_of(pl->l->conf.side[VP_SIDE_DEVICE].vm);
	if (pl->l->conf.bps)
		rq->bytes.rate = VP_MAX(pl->l->conf.bps / 8 / pl->l->conf.pairs, 1);
	if (pl->l->conf.pps)
		rq->own.rate = VP_MAX(pl->l->conf.pps / pl->l->conf.pairs, 1);
}

static void work_set(struct vp_plink *pl, unsigned i)
{
	struct copy_queue *q = &copy_of(pl)->q[i];

	q->work.work.ops = pl->dev->waits ? &request_ops : &packet_ops;
	pl->q[i].work = &q->work;
}

static int copy_begin(struct vp_plink *pl, unsigned i, struct vp_port_ring *pr)
{
	struct copy *cl = copy_of(pl);
	struct copy_queue *q = &cl->q[i];
	struct vp_copyq_conf bc;
	struct vp_err e = { 0 };
	int ret;

	if (!cl->shown) {
		vp_log(VP_LOG_WARNING, "%s: queue %u rests: the memory of the driver VM leaves no place for the pool",
		       pl->name, i);
		return -E2BIG;
	}
	if (beside_memory(pl) && !vp_plink_pool_there(pl)) {
		pl->q[i].waits = true;
		return VP_LATER;
	}
	if (q->stale)
		queue_scrub(cl, i);
	work_set(pl, i);
	vp_keep_touch(pl->l);
	if (pl->dev->waits) {
		ret = request_begin(pl, i, pr, &e);
		if (ret)
			vp_log(VP_LOG_WARNING, "%s: queue %u: %s", pl->name, i, e.msg);
		return ret;
	}
	packet_rates(pl, i);
	bc = packet_conf(pl, i);
	ret = vp_copyq_new(&q->b, &bc, &e);
	if (ret) {
		vp_log(VP_LOG_WARNING, "%s: queue %u: %s", pl->name, i, e.msg);
		return ret;
	}
	pr->desc = q->b->desc_addr;
	pr->avail = q->b->avail_addr;
	pr->used = q->b->used_addr;
	pr->size = q->b->shadow.size;
	pr->base = vp_copyq_base(q->b);
	return 0;
}

/* The driver's ring is ours again, at an exact place. */
static void copy_end(struct vp_plink *pl, unsigned i, const struct vp_port_stop *s, bool alive)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	struct vp_vdev_ring *r = alive ? vp_vdev_ring(pl->slot.v, i) : NULL;
	bool called = false;

	copy_unwire(pl, i);
	/* What is kept of the queue does not hold any more. */
	vp_keep_touch(pl->l);
	/* A ring that waits for its translation cannot be written to. */
	if (q->b && s && alive)
		called = vp_copyq_stop(q->b, r->usable);
	look_for_open(pl, q);
	if (q->r && !alive) {
		vp_reqq_free(q->r);
		q->r = NULL;
	} else if (q->r) {
		called = vp_reqq_end(q->r, r->usable, s && s->base_known ? &s->base : NULL);
	}
	if (called)
		worker_call(pl->l->d->workers, &r->rq);
	vp_copyq_free(q->b);
	q->b = NULL;
	if (q->r && q->r->too_big && r->rq.vq.broken)
		vp_log(VP_LOG_WARNING,
		       "%s: queue %u: a request of %llu bytes does not fit the %llu bytes of the pool that each of %u "
		       "queues has; raise PoolSize=",
		       pl->name, i, (unsigned long long)q->r->too_big, (unsigned long long)copy_of(pl)->area, pl->n);
	if (s && s->broken && alive)
		vp_log(VP_LOG_WARNING, "%s: queue %u: the device VM found its shadow ring malformed", pl->name, i);
}

static void copy_open(struct vp_plink *pl, unsigned i, bool open)
{
	struct copy_queue *q = &copy_of(pl)->q[i];

	if (q->b)
		vp_copyq_set_open(q->b, open);
	else
		vp_reqq_set_open(q->r, open);
}

static bool copy_drained(struct vp_plink *pl, unsigned i)
{
	const struct copy_queue *q = &copy_of(pl)->q[i];

	return !q->r || q->r->shadow.broken || q->r->c.rq->vq.broken || !vp_reqq_outstanding(q->r);
}

/* The driver's ring stops: its index says what is open, or the account of its VMM does. */
static void copy_finish(struct vp_plink *pl, unsigned i)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	unsigned failed = 0;

	if (!q->r)
		return;
	if ((r->usable || r->wait == VP_VDEV_WAIT_REBIND) && vp_reqq_stop(q->r, r->usable, &failed))
		worker_call(pl->l->d->workers, &r->rq);
	if (failed)
		vp_log(VP_LOG_WARNING,
		       "%s: queue %u: stopped with %u requests that no back-end has answered; they have failed",
		       pl->name, i, failed);
	vp_reqq_free(q->r);
	q->r = NULL;
}

static bool copy_broken(const struct vp_plink *pl, unsigned i)
{
	const struct copy_queue *q = &pl->copy->q[i];

	return q->b ? q->b->shadow.broken : q->r->shadow.broken;
}

/* ---- making ------------------------------------------------------------------------------------------- */

static int copy_init(struct vp_plink *pl, struct vp_err *e)
{
	struct copy *cl = calloc(1, sizeof(*cl));
	int r;

	if (!cl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	pl->copy = cl;
	cl->pl = pl;
	cl->own_fd = -1;
	cl->q = calloc(pl->n, sizeof(*cl->q));
	for (unsigned i = 0; cl->q && i < pl->n; i++)
		cl->q[i].kick_fd = -1;
	r = cl->q ? 0 : -ENOMEM;
	for (unsigned i = 0; !r && i < pl->n; i++)
		r = vp_eventfd_new(&cl->q[i].kick_fd);
	return r ? vp_err_set(e, r, "%s", strerror(-r)) : pool_make(pl, e);
}

static void copy_fini(struct vp_plink *pl)
{
	struct copy *cl = copy_of(pl);

	for (unsigned i = 0; cl && cl->q && i < pl->n; i++) {
		copy_unwire(pl, i);
		vp_copyq_free(cl->q[i].b);
		vp_reqq_free(cl->q[i].r);
		vp_close(&cl->q[i].kick_fd);
	}
	if (!cl)
		return;
	vp_shared_unmap(&cl->pool);
	vp_close(&cl->own_fd);
	free(cl->q);
	free(cl);
	pl->copy = NULL;
}

static uint64_t copy_signals(struct vp_plink *pl)
{
	uint64_t n = 0;

	for (unsigned i = 0; pl->copy && i < pl->n; i++)
		n += vp_plink_wire_count(pl->copy->q[i].kick);
	return n;
}

/* ---- for another daemon ------------------------------------------------------------------------------- */

static void copy_save(struct vp_plink *pl, struct vp_rec *r)
{
	vp_rec_fd(r, TAG_POOL, VP_REC_FD_FILE, copy_of(pl)->own_fd);
}

static void copy_save_queue(struct vp_plink *pl, unsigned i, struct vp_rec *r)
{
	struct copy_queue *q = &copy_of(pl)->q[i];

	vp_rec_u64(r, TAG_STALE, q->stale);
	/* A data thread is at work there, and writes down what it does. */
	if ((!q->b && !q->r) || (pl->keeps && q->b))
		return;
	vp_rec_begin(r, q->b ? TAG_PACKETS : TAG_REQUESTS);
	if (q->b)
		vp_copyq_save(q->b, r);
	else if (pl->keeps)
		vp_reqq_save_kept(q->r, r);
	else
		vp_reqq_save(q->r, r);
	vp_rec_end(r);
}

static int packets_restore(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_copyq_conf bc;

	packet_rates(pl, i);
	bc = packet_conf(pl, i);
	return vp_copyq_restore(&copy_of(pl)->q[i].b, &bc, in, e);
}

/* The daemon before ended anywhere. */
static int packets_recover(struct vp_plink *pl, unsigned i, struct vp_err *e)
{
	struct vp_copyq_conf bc;
	int r = vp_keep_engine_load(pl->l, i);

	if (r)
		return vp_err_set(e, r, "queue %u: nothing is known of where it was", i);
	packet_rates(pl, i);
	bc = packet_conf(pl, i);
	r = vp_copyq_recover(&copy_of(pl)->q[i].b, &bc, e);
	if (!r)
		vu_backend_note_base(vp_peer_session(pl->peer), i, vp_vq_base(&bc.rq->vq));
	return r;
}

/* They are the engine's. */
static void requests_taken_over(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);

	r->inflight = copy_of(pl)->q[i].r->c.inflight;
	r->saved.n = 0;
}

static int requests_restore(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	struct vp_reqq_conf rc = request_conf(pl, i);
	int ret = vp_reqq_restore(&q->r, &rc, q->kick_fd, vp_blame_id(pl->l->conf.side[VP_SIDE_DEVICE].vm), in, e);

	if (!ret)
		requests_taken_over(pl, i);
	return ret;
}

/* As packets_recover(). */
static int requests_recover(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	struct vp_vdev_ring *ring = vp_vdev_ring(pl->slot.v, i);
	struct vp_reqq_conf rc = request_conf(pl, i);
	int r = vp_keep_engine_load(pl->l, i);

	if (r)
		return vp_err_set(e, r, "queue %u: nothing is known of where it was", i);
	rc.inflight.mem = vp_vdev_inflight_at(pl->slot.v, i);
	r = vp_reqq_recover(&q->r, &rc, vp_plink_features(pl), q->kick_fd,
			    vp_blame_id(pl->l->conf.side[VP_SIDE_DEVICE].vm), in, e);
	if (r)
		return r;
	requests_taken_over(pl, i);
	vu_backend_note_base(vp_peer_session(pl->peer), i, vp_vq_base(&ring->rq.vq));
	worker_call(pl->l->d->workers, &ring->rq);
	return 0;
}

static int copy_restore_queue(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct copy_queue *q = &copy_of(pl)->q[i];
	const unsigned tag = pl->dev->waits ? TAG_REQUESTS : TAG_PACKETS;
	struct vp_rec_in body;
	bool there = vp_rec_find(in, tag, &body), handed = pl->q[i].handed;
	int r;

	q->stale = vp_rec_num(in, TAG_STALE, 0);
	if (pl->recovers && handed && !pl->dev->waits) {
		work_set(pl, i);
		return packets_recover(pl, i, e);
	}
	/* What waits for a device side is kept; of a ring that broke nothing can be given back any more. */
	if (!handed && (!there || !pl->dev->waits || !pl->slot.v || !vp_vdev_ring(pl->slot.v, i)->rq.vq.size))
		return 0;
	work_set(pl, i);
	if (!there)
		return vp_err_set(e, -EPROTO, "the record of queue %u is malformed", i);
	if (pl->recovers)
		r = requests_recover(pl, i, &body, e);
	else
		r = pl->dev->waits ? requests_restore(pl, i, &body, e) : packets_restore(pl, i, &body, e);
	if (!r && handed && pl->dev->waits && !q->r->served)
		r = vp_err_set(e, -EPROTO, "the record of queue %u is malformed", i);
	/* What it raised may be on its way still. */
	if (!r)
		vp_eventfd_raise(q->kick_fd);
	return r;
}

static size_t copy_engine(const struct vp_plink *pl)
{
	return vp_align_up(pl->dev->waits ? vp_reqq_keep_bytes() : vp_copyq_kept_bytes(), 4096);
}

static int copy_can_keep(const struct vp_plink *pl, struct vp_err *e)
{
	if (pl->slot.v && vp_vdev_features(pl->slot.v) & VP_BIT(VIRTIO_F_ACCESS_PLATFORM))
		return vp_err_set(e, -EOPNOTSUPP, "its driver VM has a vIOMMU");
	return 0;
}

static void copy_show(struct vp_plink *pl, json_t *o)
{
	struct copy *cl = copy_of(pl);
	uint64_t signals = pl->signals + copy_signals(pl);
	uint64_t open = 0, again = 0, failed = 0;
	unsigned straight = 0;

	for (unsigned i = 0; i < pl->n; i++) {
		straight += (cl->q[i].b || cl->q[i].r) && cl->q[i].straight;
		open += cl->q[i].r ? vp_reqq_outstanding(cl->q[i].r) : 0;
		again += cl->q[i].r ? cl->q[i].r->regiven : 0;
		failed += cl->q[i].r ? cl->q[i].r->failed : 0;
	}
	if (pl->dev->waits) {
		json_object_set_new(o, "requests_open", json_integer((json_int_t)open));
		json_object_set_new(o, "requests_given_again", json_integer((json_int_t)again));
		json_object_set_new(o, "requests_failed", json_integer((json_int_t)failed));
	}
	json_object_set_new(o, "signals_forwarded", json_integer((json_int_t)signals));
	json_object_set_new(o, "kicks_direct", json_integer((json_int_t)straight));
	json_object_set_new(o, "pool_size", json_integer((json_int_t)cl->pool_size));
	json_object_set_new(o, "queues_spoiled", json_integer((json_int_t)pl->spoiled));
}

const struct vp_plink_mode vp_plink_copy = {
	.mode = VHP_MODE_COPY,
	.size = sizeof(struct vp_plink),
	.not_the_paths = OURS,
	.path_bits = SHADOW_BITS,
	.lanes = true,
	.keeps = true,
	.engine = copy_engine,
	.can_keep = copy_can_keep,
	.init = copy_init,
	.fini = copy_fini,
	.gone = pool_scrub,
	.tidy = pool_tidy,
	.fresh = pool_fresh,
	.begin = copy_begin,
	.end = copy_end,
	.open = copy_open,
	.broken = copy_broken,
	.wire = copy_wire,
	.show = copy_show,
	.drained = copy_drained,
	.finish = copy_finish,
	.signals = copy_signals,
	.save = copy_save,
	.save_queue = copy_save_queue,
	.restore_queue = copy_restore_queue,
};

uint64_t vp_plink_pool_in_port(const struct vp_link *l)
{
	/*
	 * Over shmem only the control block of the port's file is mapped, and a back-end on the host gets none of it:
	 * the pool is a window.
	 */
	bool apart = l->conf.attachment == VP_ATTACH_SHMEM || l->conf.attachment == VP_ATTACH_HOSTDEV;

	return apart ? 0 : vp_conf_link_pool(&l->conf);
}

static int copy_start(struct vp_link *l, struct vp_err *e)
{
	return vp_plink_start(l, &vp_plink_copy, vp_plink_pool_in_port(l), e);
}

const struct vp_link_ops vp_link_copy_ops = VP_PLINK_OPS(copy_start);
