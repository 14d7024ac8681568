/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The port link, fast mode and grant mode: the driver VM's virtqueues are processed by the device VM, in the driver
 * VM's memory, all of it or what was granted (grant.h). Not a byte of data passes through here, but for queues that are
 * copied for a time (copy.c).
 *
 * Signals go straight through where the attachment can arrange it (attach.h, `direct`), otherwise by the
 * forwarder. The device VM learns of new fds some time after us: until then it uses what it had. So our own
 * doorbell is always forwarded to the driver VM's call, and when the call fd changes under a running queue, the new
 * one is raised a few times: a call that went into the old one is not lost for longer than that takes.
 */
#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "engine/leftover.h"
#include "guestmem/map.h"
#include "link/grant.h"
#include "link/port_link.h"
#include "sys/timer.h"

/*
 * Not offered in fast mode: nobody logs what the device VM writes, nobody translates; and what vhost-net does not have.
 */
#define NOT_GRANT (VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_IN_ORDER))
#define NOT_FAST  (NOT_GRANT | VP_BIT(VIRTIO_F_ACCESS_PLATFORM))

struct fast_queue {
	struct vp_wire *kick, *call, *late, *late_kick;
	/* vp_vdev_ring.kick_serial and call_serial that direct() was told of; 0 = nothing */
	unsigned        kick_seen, call_seen;
	unsigned        direct;                /* VP_ATTACH_*: what it has taken over */
	bool            account;               /* who has it keeps the account of its open requests */
	bool            left;                  /* what its back-end left is to be dealt with, when that has let go */
	uint64_t        failed;                /* requests that back-ends left */
	/* taken over: its account is to be opened before anybody gets it; its call changed just before that */
	bool            reopen, moved;
	bool            again;                 /* what its driver raised last may have been lost with a daemon */
};

struct fast {
	struct vp_plink    pl;        /* first */
	struct fast_queue *q;
	int                nudge_fd;  /* eventfd of ours, wired to calls that changed lately */
	unsigned           shots;     /* of it still to come */
	struct vp_grants  *grants;    /* grant mode; else NULL */
	struct vp_port_region extra;  /* grant mode: that of the in-flight area; size 0 = none */
	sd_event_source   *timer;
};

static const uint32_t nudge_us[] = { 500000, 500000, 50000, 5000 };  /* behind each, from the last one to the first */

static struct fast *fast_of(struct vp_plink *pl)
{
	return vp_container_of(pl, struct fast, pl);
}

/* Its driver VM may migrate: while what is written to its memory is logged, its queues are copied. */
static bool may_log(const struct vp_conf_link *c)
{
	return c->mode != VP_MODE_GRANT && c->migration == VP_MIGRATION_YES;
}

/* There is a pool, for queues that are copied. */
static bool may_copy(const struct vp_conf_link *c)
{
	return may_log(c) || (c->mode == VP_MODE_GRANT && c->grant == VP_GRANT_VIOMMU);
}

static int fast_init(struct vp_plink *pl, struct vp_err *e)
{
	struct fast *f = fast_of(pl);
	int r;

	f->nudge_fd = -1;
	f->q = calloc(pl->n, sizeof(*f->q));
	r = f->q ? vp_eventfd_new(&f->nudge_fd) : -ENOMEM;
	if (r)
		return vp_err_set(e, r, "%s", strerror(-r));
	return may_copy(&pl->l->conf) ? vp_plink_copy.init(pl, e) : 0;
}

static void fast_unwire(struct vp_plink *pl, unsigned i)
{
	struct fast_queue *q = &fast_of(pl)->q[i];

	vp_plink_unwire(pl, &q->kick);
	vp_plink_unwire(pl, &q->call);
	vp_plink_unwire(pl, &q->late);
	vp_plink_unwire(pl, &q->late_kick);
	if (q->kick_seen && pl->att && pl->att->ops->direct && !pl->l->leaving)
		pl->att->ops->direct(pl->att, i, -1, -1);
	q->kick_seen = q->call_seen = q->direct = 0;
}

static void fast_fini(struct vp_plink *pl)
{
	struct fast *f = fast_of(pl);

	sd_event_source_disable_unref(f->timer);
	vp_grants_free(f->grants);
	for (unsigned i = 0; f->q && i < pl->n; i++)
		fast_unwire(pl, i);
	vp_close(&f->nudge_fd);
	free(f->q);
	vp_plink_copy.fini(pl);
}

static void profile_without(const struct vp_conf_link *c, struct vu_backend_cfg *cfg, uint64_t without)
{
	cfg->features &= ~without;
	if (!c->packed)
		cfg->features &= ~VP_BIT(VIRTIO_F_RING_PACKED);
	if (c->plain)
		cfg->features &= ~(VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VP_BIT(VIRTIO_RING_F_EVENT_IDX));
	if (!may_log(c))
		cfg->pf &= ~VP_BIT(VU_PF_LOG_SHMFD);
}

static void fast_profile(const struct vp_conf_link *c, struct vu_backend_cfg *cfg)
{
	profile_without(c, cfg, NOT_FAST & ~(may_log(c) ? VP_BIT(VHOST_F_LOG_ALL) : 0));
}

/*
 * The in-flight area: of the VMM, which keeps it for the next daemon, or ours. It is no memory that rings name, so its
 * link address is one that driver VMs do not have.
 */
#define INFLIGHT_ADDR (UINT64_C(1) << 63)

static bool inflight_region(struct vp_plink *pl, const struct vp_memtab *t, struct vp_port_region *r)
{
	const struct vp_region *last = t->n ? &t->r[t->n - 1] : NULL;
	struct vp_vdev_inflight a;
	struct vp_err e = { 0 };

	if (!pl->dev->inflight || t->n >= VHP_MAX_REGIONS || (last && last->gpa + last->size > INFLIGHT_ADDR))
		return false;
	if (vp_vdev_inflight(pl->slot.v, &a, &e)) {
		vp_log(VP_LOG_WARNING, "%s: its back-end gets no place for an account of open requests: %s", pl->name,
		       e.msg);
		return false;
	}
	vp_port_set_inflight(pl->port, a.queues, a.entries);
	*r = (struct vp_port_region){ .addr = INFLIGHT_ADDR, .size = a.size, .offset = a.offset, .fd = a.fd,
				      .flags = VHP_REGION_INFLIGHT };
	return true;
}

static void fast_memory(struct vp_plink *pl)
{
	const struct vp_memtab *t = vp_plink_memory(pl);
	struct vp_port_region *r = t ? calloc(t->n + 2, sizeof(*r)) : NULL;
	struct vp_err e = { 0 };
	unsigned n = r ? t->n : 0;

	for (unsigned i = 0; i < n; i++)
		r[i] = (struct vp_port_region){
			.addr = t->r[i].gpa, .size = t->r[i].size, .offset = t->r[i].offset, .fd = t->r[i].map->fd,
			.flags = VHP_REGION_READ | VHP_REGION_WRITE,
		};
	if (n && pl->copy && vp_plink_pool_region(pl, r[n - 1].addr + r[n - 1].size, &r[n]))
		n++;
	if (n && inflight_region(pl, t, &r[n]))
		n++;
	if (vp_port_set_memory(pl->port, r, n, &e))
		vp_log(VP_LOG_WARNING, "%s: its memory cannot be shown to the device VM: %s", pl->name, e.msg);
	free(r);
}

/* ---- from hand to hand --------------------------------------------------------------------------------- */

/* how: what its back-end did, with open requests. */
static void lost(struct vp_plink *pl, unsigned i, const char *how)
{
	vp_log(VP_LOG_WARNING,
	       "%s: queue %u: its back-end %s with open requests and keeps no account of them (no INFLIGHT_SHMFD); use "
	       "Mode=copy for a link that survives that",
	       pl->name, i, how);
	vp_vq_break(&vp_vdev_ring(pl->slot.v, i)->rq.vq, VP_VQ_LOST_REQUESTS);
	vp_vdev_reap(pl->slot.v);
}

/*
 * Its back-end has gone without a word, the guest has let go of the ring, and requests were open. Those that it may
 * have taken end as their type wants it, if the ring tells which they are.
 */
static void deal_with_left(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	struct fast *f = fast_of(pl);
	struct vp_err e = { 0 };
	struct vp_burst b;
	bool call = false;
	int n = -ENODATA;

	f->q[i].left = false;
	/* Once more: a guest that had not let go has returned others since. */
	if (!r->usable || r->rq.vq.broken || vp_vdev_ring_resume(pl->slot.v, i, false, 0, &e))
		return;
	b.slow = true;
	switch (pl->dev->left) {
	case VP_LEFT_BREAKS:
		n = -ENODATA;
		break;
	case VP_LEFT_AGAIN:
		n = vp_leftover_count(&r->rq.vq);
		break;
	case VP_LEFT_FAILS:
		n = vp_leftover_fail(&r->rq.vq, &b, &call);
		break;
	}
	if (n < 0) {
		lost(pl, i, "has gone");
		return;
	}
	if (pl->dev->left == VP_LEFT_AGAIN || !n)
		return;
	if (call)
		worker_call(pl->l->d->workers, &r->rq);
	f->q[i].failed += (unsigned)n;
	vp_log(VP_LOG_WARNING, "%s: queue %u: its back-end has gone: %d requests that it may have had have failed",
	       pl->name, i, n);
}

/* The guest may have let go. */
static void tidy_left(struct vp_plink *pl)
{
	for (unsigned i = 0; pl->slot.v && !pl->closing && i < pl->n; i++)
		if (fast_of(pl)->q[i].left && !vp_port_queue_at_work(pl->port, i))
			deal_with_left(pl, i);
}

/* The daemon before had opened its account, and nobody has had the queue since. */
static void open_again(struct vp_plink *pl, unsigned i)
{
	struct fast_queue *q = &fast_of(pl)->q[i];
	struct vp_err e = { 0 };

	if (q->reopen)
		vp_vdev_ring_reopen(pl->slot.v, i, &e);
	q->reopen = false;
}

static int fast_begin(struct vp_plink *pl, unsigned i, struct vp_port_ring *pr)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	const struct vp_virtq *vq = &r->rq.vq;
	struct fast_queue *q = &fast_of(pl)->q[i];

	open_again(pl, i);
	if (q->left)
		deal_with_left(pl, i);
	if (vq->broken)
		return -ENODATA;
	q->account = r->inflight.on && vp_port_keeps_account(pl->port);
	/* Somebody before it has left some in the account. */
	if (r->saved.n && !q->account) {
		lost(pl, i, "has gone");
		return -ENODATA;
	}
	pr->desc = vq->desc_addr;
	pr->avail = vq->driver_addr;
	pr->used = vq->device_addr;
	pr->size = vq->size;
	pr->base = vp_vq_base(vq);
	return 0;
}

/*
 * Whoever had the ring has gone without a word. Requests that it had taken may have been done or not, and in any order:
 * where some are open, nobody can go on.
 */
static bool requests_open(struct vp_plink *pl, unsigned i)
{
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);

	return pl->dev->waits && r->usable && !r->rq.vq.broken && vp_vq_unfinished(&r->rq.vq);
}

/*
 * It has said that it has stopped, with requests under way, and may do and return them later: in the ring that it is
 * given next. So it is to be gone before that. Which of them it has done its index does not tell.
 */
static void look_for_open(struct vp_plink *pl, unsigned i)
{
	const struct vp_virtq *vq = &vp_vdev_ring(pl->slot.v, i)->rq.vq;

	if (!pl->dev->waits || !pl->att->ops->unclean || vq->broken ||
	    (vq->last_avail == vq->used_idx && (!vq->packed || vq->avail_wrap == vq->used_wrap)))
		return;
	pl->att->ops->unclean(pl->att);
	lost(pl, i, "stopped");
}

static void fast_end(struct vp_plink *pl, unsigned i, const struct vp_port_stop *s, bool alive)
{
	struct vp_err e = { 0 };

	fast_unwire(pl, i);
	if (!s || !alive)
		return;
	if (fast_of(pl)->q[i].account && !s->broken) {
		vp_vdev_ring_reopen(pl->slot.v, i, &e);
		return;
	}
	if (!s->base_known && requests_open(pl, i)) {
		if (vp_port_queue_at_work(pl->port, i) && pl->dev->left != VP_LEFT_BREAKS)
			fast_of(pl)->q[i].left = true;
		else
			deal_with_left(pl, i);
		return;
	}
	vp_vdev_ring_resume(pl->slot.v, i, s->base_known, s->base, &e);
	if (!s->broken || (fast_of(pl)->grants && vp_grants_gave_up(fast_of(pl)->grants, i))) {
		look_for_open(pl, i);
		return;
	}
	vp_log(VP_LOG_WARNING, "%s: queue %u: the device VM found the ring malformed", pl->name, i);
	vp_vq_break(&vp_vdev_ring(pl->slot.v, i)->rq.vq, VP_VQ_BAD_RING);
	vp_vdev_reap(pl->slot.v);
}

/* Where the ring stands nobody can say while its back-end may be at work in it. */
static void fast_finish(struct vp_plink *pl, unsigned i)
{
	struct fast_queue *q = &fast_of(pl)->q[i];

	open_again(pl, i);
	if (q->left && vp_vdev_ring(pl->slot.v, i)->usable)
		lost(pl, i, "has gone");
	q->left = false;
}

/* ---- signals ----------------------------------------------------------------------------------------------- */

static int on_nudge(sd_event_source *s, uint64_t usec, void *arg)
{
	struct fast *f = arg;

	if (!f->shots) {
		/* Not with the last shot: the forwarder has to see that one. */
		for (unsigned i = 0; i < f->pl.n; i++) {
			vp_plink_unwire(&f->pl, &f->q[i].late);
			vp_plink_unwire(&f->pl, &f->q[i].late_kick);
		}
		return 0;
	}
	vp_eventfd_raise(f->nudge_fd);
	vp_timer_in(f->pl.l->d->event, &f->timer, nudge_us[--f->shots], on_nudge, f, f->pl.name);
	return 0;
}

static void shoot(struct fast *f)
{
	f->shots = VP_ARRAY_SIZE(nudge_us);
	vp_timer_in(f->pl.l->d->event, &f->timer, 0, on_nudge, f, f->pl.name);
}

/* What the device VM called meanwhile may have gone into the old fd. */
static void nudge(struct fast *f, unsigned i, int call)
{
	vp_plink_wire(&f->pl, &f->q[i].late, f->nudge_fd, call, "calls");
	shoot(f);
}

/* A signal that the daemon before had taken, and passed to nobody. */
static void kick_again(struct fast *f, unsigned i)
{
	struct vp_plink *pl = &f->pl;

	f->q[i].again = false;
	vp_plink_unwire(pl, &f->q[i].late_kick);
	if (!pl->att->ops->wire(pl->att, 1 + i, f->nudge_fd, &f->q[i].late_kick))
		shoot(f);
}

/* Kick of the driver VM to signal 1 + q of the port, doorbell 1 + q to the driver VM's call. */
static void fast_wire(struct vp_plink *pl, unsigned i)
{
	struct fast *f = fast_of(pl);
	struct fast_queue *q = &f->q[i];
	struct vp_vdev_ring *r = vp_vdev_ring(pl->slot.v, i);
	bool moved = q->moved || (q->call_seen && q->call_seen != r->call_serial);
	int kick = r->kick_fd;
	int ret;

	if (pl->att->ops->direct && (q->kick_seen != r->kick_serial || q->call_seen != r->call_serial))
		q->direct = pl->att->ops->direct(pl->att, i, kick, r->rq.call_fd);
	if (moved && r->rq.call_fd >= 0)
		nudge(f, i, r->rq.call_fd);
	q->kick_seen = r->kick_serial;
	q->call_seen = r->call_serial;
	q->moved = false;
	if (q->again)
		kick_again(f, i);
	vp_plink_unwire(pl, &q->kick);
	ret = kick >= 0 && !(q->direct & VP_ATTACH_KICK) ? pl->att->ops->wire(pl->att, 1 + i, kick, &q->kick) : 0;
	if (ret && ret != -ENOTCONN)
		vp_log(VP_LOG_WARNING, "%s: queue %u: its kicks cannot be forwarded: %s", pl->name, i, strerror(-ret));
	vp_plink_wire(pl, &q->call, pl->att->ops->call_fd(pl->att, 1 + i), r->rq.call_fd, "calls");
}

static uint64_t fast_signals(struct vp_plink *pl)
{
	const struct fast *f = fast_of(pl);
	uint64_t n = 0;

	for (unsigned i = 0; i < pl->n; i++)
		n += vp_plink_wire_count(f->q[i].kick) + vp_plink_wire_count(f->q[i].call) +
		     vp_plink_wire_count(f->q[i].late);
	return n;
}

static void fast_show(struct vp_plink *pl, json_t *o)
{
	struct fast *f = fast_of(pl);
	uint64_t failed = 0;

	for (unsigned i = 0; i < pl->n; i++)
		failed += f->q[i].failed;
	if (pl->dev->waits)
		json_object_set_new(o, "requests_failed", json_integer((json_int_t)failed));
	json_object_set_new(o, "signals_forwarded", json_integer((json_int_t)(pl->signals + fast_signals(pl))));
	/* An attachment with straight-through signals says how many there are. */
	json_object_set_new(o, "kicks_direct", json_integer(0));
	json_object_set_new(o, "calls_direct", json_integer(0));
	if (pl->copy)
		json_object_set_new(o, "pool_size", json_integer((json_int_t)vp_conf_link_pool(&pl->l->conf)));
}

/* The pool's part of what happens, where there is one. */
static void fast_gone(struct vp_plink *pl)
{
	if (pl->copy)
		vp_plink_copy.gone(pl);
}

static void fast_tidy(struct vp_plink *pl)
{
	tidy_left(pl);
	vp_plink_copy.tidy(pl);
}

static void fast_fresh(struct vp_plink *pl)
{
	if (pl->copy)
		vp_plink_copy.fresh(pl);
}

/* ---- for another daemon ------------------------------------------------------------------------------------ */

enum tag { TAG_QUEUE = 1 };

enum { Q_ACCOUNT = 1, Q_LEFT = 2, Q_REOPEN = 4, Q_MOVED = 8 };

struct queue_rec {
	uint32_t flags, kick_seen, call_seen, direct;
	uint64_t failed;
};

/* Files and sockets: of the pool, where there is one, and of what the driver VM grants. */
static void fast_save(struct vp_plink *pl, struct vp_rec *r)
{
	if (pl->copy)
		vp_plink_copy.save(pl, r);
	if (fast_of(pl)->grants)
		vp_grants_save(fast_of(pl)->grants, r);
}

static void fast_save_queue(struct vp_plink *pl, unsigned i, struct vp_rec *r)
{
	const struct fast_queue *q = &fast_of(pl)->q[i];
	bool account = pl->slot.v && vp_vdev_ring(pl->slot.v, i)->inflight.on;
	const struct queue_rec s = {
		.flags = (q->account ? Q_ACCOUNT : 0) | (q->left ? Q_LEFT : 0) | (q->late ? Q_MOVED : 0) |
			 (q->reopen || (account && !pl->q[i].handed) ? Q_REOPEN : 0),
		.kick_seen = q->kick_seen, .call_seen = q->call_seen, .direct = q->direct, .failed = q->failed,
	};

	vp_rec_put(r, TAG_QUEUE, &s, sizeof(s));
}

static int fast_restore_queue(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct fast_queue *q = &fast_of(pl)->q[i];
	struct queue_rec s;

	if (vp_rec_get(in, TAG_QUEUE, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of queue %u is malformed", i);
	q->account = s.flags & Q_ACCOUNT;
	q->left = s.flags & Q_LEFT;
	q->reopen = s.flags & Q_REOPEN && pl->slot.v && !pl->q[i].handed;
	q->moved = s.flags & Q_MOVED || pl->recovers;
	q->again = pl->recovers;
	q->failed = s.failed;
	/* What the device side was told it has been told: it keeps the fds that it has. */
	q->kick_seen = s.kick_seen;
	q->call_seen = s.call_seen;
	q->direct = s.direct;
	return 0;
}

static const struct vp_plink_mode fast_mode = {
	.mode = VHP_MODE_FAST, .size = sizeof(struct fast), .direct = true, .not_the_paths = VP_BIT(VHOST_F_LOG_ALL),
	.keeps = true,
	.gone = fast_gone, .tidy = fast_tidy, .fresh = fast_fresh,
	.init = fast_init, .fini = fast_fini, .profile = fast_profile, .memory = fast_memory,
	.begin = fast_begin, .end = fast_end, .finish = fast_finish, .wire = fast_wire,
	.show = fast_show, .signals = fast_signals,
	.save = fast_save, .save_queue = fast_save_queue, .restore_queue = fast_restore_queue,
};

static int fast_start(struct vp_link *l, struct vp_err *e)
{
	return vp_plink_start(l, &fast_mode, may_copy(&l->conf) ? vp_plink_pool_in_port(l) : 0, e);
}

const struct vp_link_ops vp_link_fast_ops = VP_PLINK_OPS(fast_start);

/* ---- grant mode: the same, and less of the memory --------------------------------------------------------- */

static int grant_init(struct vp_plink *pl, struct vp_err *e)
{
	int r = fast_init(pl, e);

	return r ? r : vp_grants_new(&fast_of(pl)->grants, pl, e);
}

/* The driver VM is to have its buffers where it lets devices reach them; the data path finds them by regions. */
static void grant_profile(const struct vp_conf_link *c, struct vu_backend_cfg *cfg)
{
	profile_without(c, cfg, NOT_GRANT);
}

/* The region of the in-flight area, or NULL. */
static const struct vp_port_region *extra(const struct vp_plink *pl)
{
	const struct fast *f = vp_container_of(pl, const struct fast, pl);

	return f->extra.size && vp_plink_memory(pl) ? &f->extra : NULL;
}

static void grant_rings(struct vp_plink *pl)
{
	vp_grants_update(fast_of(pl)->grants, extra(pl));
}

/* Also when the front-end has given its in-flight area. */
static void grant_memory(struct vp_plink *pl)
{
	struct fast *f = fast_of(pl);
	const struct vp_memtab *t = vp_plink_memory(pl);

	if (!t || !inflight_region(pl, t, &f->extra))
		f->extra.size = 0;
	vp_grants_memory_changed(f->grants);
	grant_rings(pl);
}

static int grant_begin(struct vp_plink *pl, unsigned i, struct vp_port_ring *pr)
{
	int r = vp_grants_may_begin(fast_of(pl)->grants, i);

	return r ? r : fast_begin(pl, i, pr);
}

static int grant_leave(struct vp_plink *pl, unsigned i)
{
	return vp_grants_leave(fast_of(pl)->grants, i, extra(pl));
}

static void grant_tidy(struct vp_plink *pl)
{
	fast_tidy(pl);
	if (fast_of(pl)->grants)
		vp_grants_tidy(fast_of(pl)->grants);
}

static void grant_save_all(struct vp_plink *pl, struct vp_rec *r)
{
	vp_grants_save_hot(fast_of(pl)->grants, r);
}

static int grant_restore_all(struct vp_plink *pl, const struct vp_rec_in *in, struct vp_err *e)
{
	return vp_grants_restore_hot(fast_of(pl)->grants, in, e);
}

static struct vp_grants *grant_grants(struct vp_plink *pl)
{
	return fast_of(pl)->grants;
}

static const struct vp_plink_mode grant_mode = {
	.mode = VHP_MODE_GRANT, .size = sizeof(struct fast), .direct = true,
	.not_the_paths = VP_BIT(VIRTIO_F_ACCESS_PLATFORM), .keeps = true,
	.gone = fast_gone, .fresh = fast_fresh,
	.init = grant_init, .fini = fast_fini, .profile = grant_profile, .memory = grant_memory, .rings = grant_rings,
	.begin = grant_begin, .end = fast_end, .finish = fast_finish, .leave = grant_leave, .tidy = grant_tidy,
	.grants = grant_grants, .wire = fast_wire, .show = fast_show, .signals = fast_signals,
	.save = fast_save, .save_all = grant_save_all, .restore_all = grant_restore_all,
	.save_queue = fast_save_queue, .restore_queue = fast_restore_queue,
};

static int grant_start(struct vp_link *l, struct vp_err *e)
{
	return vp_plink_start(l, &grant_mode, may_copy(&l->conf) ? vp_plink_pool_in_port(l) : 0, e);
}

const struct vp_link_ops vp_link_grant_ops = VP_PLINK_OPS(grant_start);
