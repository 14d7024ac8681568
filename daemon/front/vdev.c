/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the front-end may be taken over by its guest. The session has
 * checked the form of its messages; here the values that name memory are
 * checked: regions against their files and each other, ring addresses against
 * the regions, notifiers for being eventfds. What fails is answered with an error and named in the log;
 * a ring that loses its memory is broken, nothing else is.
 */
#include "front/vdev_priv.h"

#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"
#include "threads/rates.h"

/* ---- what is offered ------------------------------------------------------ */

/* Of rings and transport, whatever the device. */
static uint64_t ring_features(const struct vp_device *dev, const struct vp_conf_link *l)
{
	uint64_t f = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) |
		     VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM);

	return f | (dev->waits && l->packed ? VP_BIT(VIRTIO_F_RING_PACKED) : 0);
}

void vp_vdev_backend_cfg(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, struct vu_backend_cfg *cfg)
{
	const struct vp_device *dev = vp_device_of(l);

	*cfg = (struct vu_backend_cfg){
		.max_queues = dev->queues(l),
		.max_ring_size = VP_VQ_MAX_SIZE,
		.max_mem_slots = VU_MAX_MEM_SLOTS,
		.msgs_per_sec = 200000,
	};
	cfg->features = ring_features(dev, l) | dev->offered(l, side, p);
	cfg->pf = VP_BIT(VU_PF_LOG_SHMFD) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_BACKEND_REQ) |
		  VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) |
		  VP_BIT(VU_PF_STATUS) | dev->pf(l);
}

/* ---- rings ---------------------------------------------------------------- */

bool vp_is_eventfd(int fd)
{
	char path[40], target[40];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = 0;
	return !strcmp(target, "anon_inode:[eventfd]");
}

static bool log_all(const struct vp_vdev *v)
{
	return v->features & VP_BIT(VHOST_F_LOG_ALL) && v->log.map;
}

void vp_vdev_ring_set_log(struct vp_vdev *v, unsigned q)
{
	const struct vu_ring *vr = vu_ring_of(v, q);

	if (v->ring[q].usable)
		vp_vq_set_log(&v->ring[q].rq.vq, log_all(v) ? &v->log : NULL, vr->log, vr->log_addr);
}

int vp_vdev_ring_addrs(struct vp_vdev *v, const struct vu_ring *vr, bool packed, struct vp_vq_conf *c, struct vp_err *e)
{
	if (!v->tab)
		return vp_err_set(e, -EFAULT, "the ring was started before any memory was announced");
	if (v->iotlb) {
		/* IOVAs as they are. */
		c->desc = vr->desc;
		c->driver = vr->avail;
		c->device = vr->used;
		return 0;
	}
	if (vp_memtab_uva_to_gpa(v->tab, vr->desc, vp_vq_desc_bytes(c->size), &c->desc))
		return vp_err_set(e, -EFAULT, "the descriptor area does not lie inside one memory region");
	if (vp_memtab_uva_to_gpa(v->tab, vr->avail, vp_vq_driver_bytes(c->size, packed), &c->driver))
		return vp_err_set(e, -EFAULT, "the driver (available) area does not lie inside one memory region");
	if (vp_memtab_uva_to_gpa(v->tab, vr->used, vp_vq_device_bytes(c->size, packed), &c->device))
		return vp_err_set(e, -EFAULT, "the device (used) area does not lie inside one memory region");
	return 0;
}

static int take_eventfd(struct vp_vdev *v, unsigned q, enum vu_ring_change which, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	bool kick = which == VU_RING_KICK;
	int *slot = kick ? &r->kick_fd : &r->rq.call_fd;
	int fd = vu_backend_take_fd(v->ops->session(v->ctx), q, which);

	if (fd >= 0 && !vp_is_eventfd(fd)) {
		vp_close_foreign(&fd);
		return vp_err_set(e, -EINVAL, "queue %u: its %s fd is not an eventfd", q, kick ? "kick" : "call");
	}
	vp_close(slot);
	*slot = fd;
	(*(kick ? &r->kick_serial : &r->call_serial))++;
	return 0;
}

void vp_vdev_ring_failed(struct vp_vdev *v, unsigned q, const char *why)
{
	snprintf(v->ring[q].error, sizeof(v->ring[q].error), "%.150s", why);
	vp_log(VP_LOG_WARNING, "%s: queue %u: %s; it stays stopped until the driver sets it up again", v->name, q, why);
}

static int ring_take_fds(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	int ret = take_eventfd(v, q, VU_RING_KICK, e);

	if (!ret && vu_ring_of(v, q)->call_fd >= 0)
		ret = take_eventfd(v, q, VU_RING_CALL, e);
	return ret;
}

/* As the half of a ring's base that says what was used. */
static uint32_t used_place(const struct vp_virtq *vq)
{
	return vq->packed && vq->used_wrap ? vq->used_idx | 0x8000u : vq->used_idx;
}

/*
 * A guest that starts a ring has written it. When the files of its memory are all empty, then its VMM keeps to itself what the guest
 * writes: the link comes up, and nothing ever arrives. Before the first look at the memory, which would fill a page.
 */
static void say_not_shared(struct vp_vdev *v, unsigned q)
{
	if (v->looked_shared || !v->tab || !v->tab->n)
		return;
	v->looked_shared = true;
	for (unsigned i = 0; i < v->tab->n; i++)
		if (!v->tab->r[i].map || !vp_map_untouched(v->tab->r[i].map))
			return;
	vp_log(VP_LOG_WARNING, "%s: queue %u starts, but the memory that the VMM has sent is all empty: what its guest writes is not shared. Give it share=on: -object memory-backend-memfd,id=m,size=...,share=on",
	       v->name, q);
}

static int ring_start(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	const struct vu_ring *vr = vu_ring_of(v, q);
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_vq_conf c = {
		.size = (uint16_t)vr->num, .base = vr->base, .features = v->features,
		.out_only = v->dev->use(q) == VP_QUEUE_SENDS,
		.tab = v->tab, .iommu = iommu_of(v),
	};
	bool packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	int ret;

	ret = vp_vdev_ring_addrs(v, vr, packed, &c, e);
	if (!ret)
		say_not_shared(v, q);
	if (!ret)
		ret = vp_vq_start(&r->rq.vq, &c, e);
	/*
	 * What was taken and not returned is in nobody's hands: a back-end that stops returns
	 * everything, so it was lost with one that did not, and is handled again. Of front-ends
	 * that lost their connection, QEMU says where the used index was just then, and a device VM
	 * that outlives a daemon has gone on since; Cloud Hypervisor says where the driver is.
	 */
	if (!ret && (uint16_t)c.base != used_place(&r->rq.vq)) {
		c.base = used_place(&r->rq.vq) * (packed ? 0x10001u : 1u);
		ret = vp_vq_start(&r->rq.vq, &c, e);
	}
	if (ret == -EAGAIN) {
		r->wait = VP_VDEV_WAIT_START;
		return 0;
	}
	r->wait = VP_VDEV_WAIT_NONE;
	if (!ret)
		ret = vp_vdev_inflight_start(v, q, e);
	if (ret) {
		if (!e->code)
			vp_err_set(e, ret, "cannot be started: %s", strerror(-ret));
		vp_vdev_ring_failed(v, q, e->msg);
		return ret;
	}
	r->rq.features = v->features;
	r->rq.blocked_since = 0;
	r->usable = true;
	r->enabled = vr->enabled;
	r->reported = false;
	r->error[0] = 0;
	r->starts++;
	vp_vdev_ring_set_log(v, q);
	vp_log(VP_LOG_DEBUG, "%s: queue %u started: %s ring of %u at index %u%s", v->name, q, packed ? "packed" : "split",
	       vr->num, c.base & (packed ? 0x7fff : 0xffff), vr->enabled ? "" : ", disabled");
	return 0;
}

int vp_vdev_ring_retry(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	int ret;

	if (r->wait == VP_VDEV_WAIT_START) {
		ret = ring_start(v, q, e);
	} else {
		ret = vp_vq_rebind(&r->rq.vq, v->tab, iommu_of(v), e);
		if (ret == -EAGAIN)
			return 0;
		r->wait = VP_VDEV_WAIT_NONE;
		r->usable = true;
		vp_vdev_ring_set_log(v, q); /* what was said while it waited */
		if (ret) {
			vp_vq_break(&r->rq.vq, VP_VQ_BAD_RING);
			r->reported = true;
			vp_vdev_ring_failed(v, q, e->code ? e->msg : strerror(-ret));
		}
	}
	if (r->usable)
		v->ops->offer(v->ctx, q, 1);
	return ret;
}

static void ring_release(struct vp_vdev *v, unsigned q)
{
	struct vp_vdev_ring *r = &v->ring[q];

	r->usable = false;
	r->enabled = false;
	r->wait = VP_VDEV_WAIT_NONE;
	r->error[0] = 0;
	vp_close(&r->kick_fd);
	vp_vdev_iommu_idle(v);
}

static bool ring_has_base(const struct vp_vdev *v, unsigned q)
{
	return v->ring[q].usable || v->ring[q].wait == VP_VDEV_WAIT_REBIND;
}

/*
 * The front-end asks for the config space anew. Nothing is sent to a device that is suspended,
 * which it is while no ring runs (vhost-user, "Suspended device state"), nor while its rings stop
 * for a reset: the first ring that runs makes up for it.
 */
static void tell_carrier(struct vp_vdev *v)
{
	struct vu_backend *vu = v->ops->session(v->ctx);

	if (v->carrier == v->carrier_told || v->resetting || !vp_vdev_in_use(v) || !vu_backend_has_req(vu))
		return;
	v->carrier_told = v->carrier;
	vu_backend_config_change(vu, NULL, NULL);
}

static int on_ring_changed(void *ctx, unsigned q, unsigned what, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	struct vp_vdev_ring *r = &v->ring[q];
	const struct vu_ring *vr = vu_ring_of(v, q);
	int ret = 0;

	v->ops->withdraw(v->ctx, q, 1);
	if (what & VU_RING_STARTED) {
		vp_vdev_iommu_idle(v);
		/* A ring that cannot be used is the ring's trouble, not the session's: it is reported as broken. */
		ret = ring_take_fds(v, q, e);
		if (ret)
			vp_vdev_ring_failed(v, q, e->msg);
		else
			ret = ring_start(v, q, e);
	} else {
		if (what & VU_RING_KICK && (r->usable || r->wait))
			ret = take_eventfd(v, q, VU_RING_KICK, e);
		if (!ret && what & VU_RING_CALL && (r->usable || r->wait))
			ret = take_eventfd(v, q, VU_RING_CALL, e);
		if (what & VU_RING_LOG)
			vp_vdev_ring_set_log(v, q);
	}
	r->enabled = vr->enabled;
	v->ops->offer(v->ctx, q, 1);
	tell_carrier(v);
	return ret;
}

static int on_ring_stop(void *ctx, unsigned q, uint32_t *base, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	if (v->ops->stop && v->ops->stop(v->ctx, q) == VP_LATER)
		return VP_LATER;
	v->ops->withdraw(v->ctx, q, 1);
	if (ring_has_base(v, q))
		*base = vp_vq_base(&v->ring[q].rq.vq);
	ring_release(v, q);
	v->ops->offer(v->ctx, q, 1);  /* the partner may need another queue now */
	return 0;
}

/* All rings are the main thread's, or nobody's. */
static void reset_now(struct vp_vdev *v)
{
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++)
		ring_release(v, q);
	v->status = 0;
	v->ops->offer(v->ctx, 0, v->n);
}

int vp_vdev_ring_stopped(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	uint32_t base = vu_ring_of(v, q)->base;
	bool reset = v->resetting;

	v->ops->withdraw(v->ctx, q, 1);
	if (ring_has_base(v, q))
		base = vp_vq_base(&v->ring[q].rq.vq);
	ring_release(v, q);
	v->ops->offer(v->ctx, q, 1);
	if (reset && --v->resetting)
		return 0;
	if (reset) {
		reset_now(v);
		return vu_backend_done(v->ops->session(v->ctx), 0, e);
	}
	return vu_backend_ring_stopped(v->ops->session(v->ctx), q, base, e);
}

int vp_vdev_ring_resume(struct vp_vdev *v, unsigned q, bool base_known, uint32_t base, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_virtq *vq = &r->rq.vq;
	struct vp_vq_conf c = {
		.size = vq->size, .base = base, .features = v->features, .out_only = vq->out_only,
		.tab = v->tab, .iommu = iommu_of(v),
		.desc = vq->desc_addr, .driver = vq->driver_addr, .device = vq->device_addr,
	};
	int ret = 0;

	if (!r->usable || vq->broken)
		return 0;
	if (!base_known && vq->packed)
		ret = vp_err_set(e, -ENODATA, "the device VM left a packed ring without saying where");
	if (!ret)
		ret = vp_vq_start(vq, &c, e);
	if (!ret && !base_known) {
		c.base = vq->used_idx;  /* what was not returned is handled again */
		ret = vp_vq_start(vq, &c, e);
	}
	vp_vdev_ring_set_log(v, q);
	if (ret) {
		vp_vq_break(vq, VP_VQ_BAD_RING);
		r->reported = true;
		vp_vdev_ring_failed(v, q, e->code ? e->msg : strerror(-ret));
	}
	return ret;
}

const struct vp_memtab *vp_vdev_memory(const struct vp_vdev *v)
{
	return v->tab;
}

static int on_reset(void *ctx, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	for (unsigned q = 0; v->ops->stop && q < v->n; q++)
		v->resetting += v->ops->stop(v->ctx, q) == VP_LATER;
	if (v->resetting)
		return VP_LATER;
	reset_now(v);
	return 0;
}

static int on_features(void *ctx, uint64_t features, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	bool relog = (features ^ v->features) & VP_BIT(VHOST_F_LOG_ALL);

	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].usable && (features ^ v->features) & ~VP_BIT(VHOST_F_LOG_ALL))
			return vp_err_set(e, -EBUSY, "features cannot change while queue %u runs; stop it first", q);
	if (vp_vdev_iommu_set(v, features & VP_BIT(VIRTIO_F_ACCESS_PLATFORM)))
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->features = features;
	if (!relog)
		return 0;
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++)
		vp_vdev_ring_set_log(v, q);
	v->ops->offer(v->ctx, 0, v->n);
	return 0;
}

/* ---- config space and the rest --------------------------------------------- */

static int on_get_config(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	uint8_t c[VP_DEVICE_CONFIG_MAX];

	v->dev->config(v->conf, v->side, v->profile, v->carrier, c);
	v->carrier_told = v->carrier;
	for (unsigned i = 0; i < sizeof(c); i++)
		if (v->wrote[i / 8] >> i % 8 & 1)
			c[i] = v->written[i];
	memset(buf, 0, len);
	if (off < sizeof(c))
		memcpy(buf, c + off, VP_MIN(len, sizeof(c) - off));
	return 0;
}

static int on_set_config(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	/* A migrated VM brings what it saw last; what is so is the back-end's to say. */
	if (flags == VU_CONFIG_MIGRATION)
		return 0;
	if (!len)
		return 0;
	if (len > VP_DEVICE_CONFIG_MAX || off > VP_DEVICE_CONFIG_MAX - len || !v->dev->writable || !v->dev->writable(off, len))
		return vp_err_set(e, -EINVAL, "SET_CONFIG: the driver may not write %u bytes at %u of this device", len, off);
	for (unsigned i = off; i < off + len; i++) {
		v->written[i] = buf[i - off];
		v->wrote[i / 8] |= (uint8_t)(1u << i % 8);
	}
	if (v->ops->config_written)
		v->ops->config_written(v->ctx, off, len, v->written);
	return 0;
}

static int on_status(void *ctx, uint8_t status, struct vp_err *e)
{
	vdev_of(ctx)->status = status;
	return 0;
}

static int on_mtu(void *ctx, uint64_t mtu, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	if (v->conf->mtu && mtu > v->conf->mtu)
		return vp_err_set(e, -EINVAL, "MTU %llu is larger than the link's MTU=%u", (unsigned long long)mtu, v->conf->mtu);
	return 0;
}

static void on_events_changed(void *ctx)
{
	struct vp_vdev *v = vdev_of(ctx);

	if (!v)
		return;
	v->ops->events_changed(v->ctx);
	vp_vdev_iommu_events(v);
}

const struct vu_backend_ops vp_vdev_vu_ops = {
	.set_features = on_features,
	.mem_table = vp_vdev_on_mem_table,
	.mem_add = vp_vdev_on_mem_add,
	.mem_remove = vp_vdev_on_mem_remove,
	.ring_changed = on_ring_changed,
	.ring_stop = on_ring_stop,
	.reset = on_reset,
	.get_config = on_get_config,
	.set_config = on_set_config,
	.get_inflight = vp_vdev_get_inflight,
	.set_inflight = vp_vdev_set_inflight,
	.set_status = on_status,
	.set_mtu = on_mtu,
	.set_log = vp_vdev_on_log,
	.iotlb = vp_vdev_on_iotlb,
	.events_changed = on_events_changed,
};

static uint32_t lives;

int vp_vdev_new(struct vp_vdev **out, const char *name, const struct vp_conf_link *conf, unsigned side,
		const struct vp_profile *profile, const struct vp_vdev_ops *ops, void *ctx)
{
	unsigned n = vp_device_queues(conf);
	struct vp_vdev *v = aligned_alloc(VP_CACHELINE, vp_align_up(sizeof(*v) + n * sizeof(v->ring[0]), VP_CACHELINE));

	if (!v)
		return -ENOMEM;
	memset(v, 0, sizeof(*v) + n * sizeof(v->ring[0]));
	v->name = name;
	v->conf = conf;
	v->dev = vp_device_of(conf);
	v->profile = profile;
	v->inflight_fd = -1;
	v->side = side;
	v->ops = ops;
	v->ctx = ctx;
	v->life = ++lives;
	v->n = n;
	for (unsigned q = 0; q < n; q++) {
		v->ring[q].kick_fd = -1;
		v->ring[q].rq.call_fd = -1;
		v->ring[q].rq.who = vp_blame_id(conf->side[side].vm);
		v->ring[q].kick_serial = v->ring[q].call_serial = 1;
		if (v->dev->use(q) != VP_QUEUE_SENDS)
			continue;
		v->ring[q].rq.shared = vp_rate_of(conf->side[side].vm);
		v->ring[q].rq.bytes.rate = conf->bps ? VP_MAX(conf->bps / 8 / conf->pairs, 1) : 0;
		v->ring[q].rq.own.rate = conf->pps ? VP_MAX(conf->pps / conf->pairs, 1) : 0;
	}
	*out = v;
	return 0;
}

void vp_vdev_free(struct vp_vdev *v)
{
	if (!v)
		return;
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++) {
		ring_release(v, q);
		vp_close(&v->ring[q].rq.call_fd);
	}
	vp_iotlb_free(v->iotlb);
	vp_memtab_free(v->tab);
	vp_map_unref(v->log.map);
	vp_vdev_inflight_free(v);
	free(v);
}

unsigned vp_vdev_rings(const struct vp_vdev *v)
{
	return v->n;
}

unsigned vp_vdev_type(const struct vp_vdev *v)
{
	return v->conf->device_type;
}

enum vp_device_use vp_vdev_use(const struct vp_vdev *v, unsigned q)
{
	return v->dev->use(q);
}

struct vp_vdev_ring *vp_vdev_ring(struct vp_vdev *v, unsigned q)
{
	return &v->ring[q];
}

uint64_t vp_vdev_features(const struct vp_vdev *v)
{
	return v->features;
}

unsigned vp_vdev_regions(const struct vp_vdev *v)
{
	return v->tab ? v->tab->n : 0;
}

bool vp_vdev_logging(const struct vp_vdev *v)
{
	return log_all(v);
}

unsigned vp_vdev_active_pairs(const struct vp_vdev *v)
{
	unsigned n = 0;

	while (2 * n < v->n && v->ring[2 * n].usable && v->ring[2 * n].enabled)
		n++;
	return n;
}

bool vp_vdev_reap(struct vp_vdev *v)
{
	bool any = false;

	vp_vdev_iommu_poll(v);
	for (unsigned q = 0; q < v->n; q++) {
		struct vp_vdev_ring *r = &v->ring[q];
		/* Written by a data thread; only ever goes from 0 to a reason while published. */
		uint8_t why = __atomic_load_n(&r->rq.vq.broken, __ATOMIC_RELAXED);

		if (!r->usable || !why || r->reported)
			continue;
		r->reported = true;
		vp_vdev_ring_failed(v, q, vp_vq_broken_str(why));
		any = true;
	}
	return any;
}

bool vp_vdev_iommu_stats(const struct vp_vdev *v, struct vp_iotlb_stats *s)
{
	if (v->iotlb)
		vp_iotlb_stats(v->iotlb, s);
	return v->iotlb != NULL;
}

bool vp_vdev_check_memory(struct vp_vdev *v)
{
	bool any = false;

	/* Of a dirty log's, marks have been lost: the pages that they were for would not be migrated again. */
	if (!vp_memtab_lost(v->tab) && !(v->log.map && vp_map_lost(v->log.map)))
		return false;
	for (unsigned q = 0; q < v->n; q++)
		any |= v->ring[q].usable && !v->ring[q].reported;
	if (!any)
		return false;
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].usable)
			vp_vq_break(&v->ring[q].rq.vq, VP_VQ_LOST_MEMORY);
	v->ops->offer(v->ctx, 0, v->n);
	return true;
}

bool vp_vdev_broken(const struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].error[0])
			return true;
	return false;
}

void vp_vdev_set_carrier(struct vp_vdev *v, bool up)
{
	v->carrier = up;
	tell_carrier(v);
}

/* The front-end has taken the last message: one more if the config space has changed again meanwhile. */
static void on_config_told(void *arg, int result)
{
	struct vp_vdev *v = vdev_of(arg);

	if (!v || !v->config_telling)
		return;
	v->config_telling = false;
	if (!result && v->config_stale)
		vp_vdev_config_changed(v);
}

void vp_vdev_config_changed(struct vp_vdev *v)
{
	struct vu_backend *b = v->ops->session(v->ctx);

	v->config_stale = v->config_telling;
	if (v->config_telling || !b || !vu_backend_has_req(b))
		return;
	/* Before the call: it may be answered from inside. */
	v->config_telling = true;
	if (vu_backend_config_change(b, on_config_told, v->ctx))
		v->config_telling = false;
}
