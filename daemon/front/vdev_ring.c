/* SPDX-License-Identifier: BSD-3-Clause */
/* The rings of a driver VM's device: how they start, stop and break. Threat model: vdev.c. */
#include "front/vdev_priv.h"

#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"

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

bool vp_vdev_logging(const struct vp_vdev *v)
{
	return v->features & VP_BIT(VHOST_F_LOG_ALL) && v->log.map;
}

void vp_vdev_ring_set_log(struct vp_vdev *v, unsigned q)
{
	const struct vu_ring *vr = vu_ring_of(v, q);

	if (v->ring[q].usable)
		vp_vq_set_log(&v->ring[q].rq.vq, vp_vdev_logging(v) ? &v->log : NULL, vr->log, vr->log_addr);
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
	vp_vdev_touch(v);
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
 * A guest that starts a ring has written it. When the files of its memory are all empty, then its VMM keeps to itself
 * what the guest writes: the link comes up, and nothing ever arrives. Before the first look at the memory, which would
 * fill a page.
 */
static void say_not_shared(struct vp_vdev *v, unsigned q)
{
	if (v->looked_shared || !v->tab || !v->tab->n)
		return;
	v->looked_shared = true;
	for (unsigned i = 0; i < v->tab->n; i++)
		if (!v->tab->r[i].map || !vp_map_untouched(v->tab->r[i].map))
			return;
	vp_log(VP_LOG_WARNING,
	       "%s: queue %u starts, but the memory that the VMM has sent is all empty: what its guest writes is not "
	       "shared. Give it share=on: -object memory-backend-memfd,id=m,size=...,share=on",
	       v->name, q);
}

static int ring_start(struct vp_vdev *v, unsigned q, bool heir, struct vp_err *e)
{
	const struct vu_ring *vr = vu_ring_of(v, q);
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_vq_conf c = {
		.size = (uint16_t)vr->num, .base = vr->base, .features = v->features,
		.out_only = v->dev->use(q) == VP_QUEUE_SENDS, .long_chains = v->dev->use(q) == VP_QUEUE_ASKS,
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
		r->wait = heir ? VP_VDEV_WAIT_REBIND : VP_VDEV_WAIT_START;
		r->rq.features = v->features;
		return 0;
	}
	r->wait = VP_VDEV_WAIT_NONE;
	if (!ret && !heir)
		ret = vp_vdev_inflight_start(v, q, e);
	if (ret) {
		if (!e->code)
			vp_err_set(e, ret, "cannot be started: %s", strerror(-ret));
		vp_vdev_ring_failed(v, q, e->msg);
		return ret;
	}
	vp_vdev_touch(v);
	vp_vdev_place_begin(v, q);
	r->rq.features = v->features;
	r->rq.blocked_since = 0;
	r->usable = true;
	r->enabled = vr->enabled;
	r->reported = false;
	r->error[0] = 0;
	r->starts++;
	vp_vdev_ring_set_log(v, q);
	vp_log(VP_LOG_DEBUG, "%s: queue %u started: %s ring of %u at index %u%s", v->name, q,
	       packed ? "packed" : "split", vr->num, c.base & (packed ? 0x7fff : 0xffff),
	       vr->enabled ? "" : ", disabled");
	return 0;
}

int vp_vdev_ring_start(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	return ring_start(v, q, false, e);
}

int vp_vdev_ring_inherit(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	return ring_start(v, q, true, e);
}

int vp_vdev_ring_retry(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	int ret;

	if (r->wait == VP_VDEV_WAIT_START) {
		ret = vp_vdev_ring_start(v, q, e);
	} else {
		ret = vp_vq_rebind(&r->rq.vq, v->tab, iommu_of(v), e);
		if (ret == -EAGAIN)
			return 0;
		r->wait = VP_VDEV_WAIT_NONE;
		r->usable = true;
		vp_vdev_ring_set_log(v, q); /* what was said while it waited */
		if (!ret && r->recovers)
			ret = vp_vdev_place_recover(v, q, e);
		r->recovers = false;
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

void vp_vdev_ring_release(struct vp_vdev *v, unsigned q)
{
	struct vp_vdev_ring *r = &v->ring[q];

	r->usable = false;
	r->enabled = false;
	r->wait = VP_VDEV_WAIT_NONE;
	r->recovers = false;
	r->error[0] = 0;
	vp_close(&r->kick_fd);
	vp_vdev_iommu_idle(v);
}

static bool ring_has_base(const struct vp_vdev *v, unsigned q)
{
	return v->ring[q].usable || v->ring[q].wait == VP_VDEV_WAIT_REBIND;
}

int vp_vdev_on_ring_changed(void *ctx, unsigned q, unsigned what, struct vp_err *e)
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
			ret = vp_vdev_ring_start(v, q, e);
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
	vp_vdev_tell_carrier(v);
	return ret;
}

int vp_vdev_on_ring_stop(void *ctx, unsigned q, uint32_t *base, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	if (v->ops->stop && v->ops->stop(v->ctx, q) == VP_LATER)
		return VP_LATER;
	v->ops->withdraw(v->ctx, q, 1);
	if (v->ring[q].recovers)
		*base = vp_vdev_place_base(v, q, *base);
	else if (ring_has_base(v, q))
		*base = vp_vq_base(&v->ring[q].rq.vq);
	vp_vdev_ring_release(v, q);
	v->ops->offer(v->ctx, q, 1);  /* the partner may need another queue now */
	return 0;
}

/* All rings are the main thread's, or nobody's. */
static void reset_now(struct vp_vdev *v)
{
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++)
		vp_vdev_ring_release(v, q);
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
	vp_vdev_ring_release(v, q);
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
		.size = vq->size,
		.base = base,
		.features = v->features,
		.out_only = vq->out_only,
		.long_chains = vq->long_chains,
		.tab = v->tab,
		.iommu = iommu_of(v),
		.desc = vq->desc_addr,
		.driver = vq->driver_addr,
		.device = vq->device_addr,
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
	if (!ret)
		vp_vdev_place_begin(v, q);
	if (ret) {
		vp_vq_break(vq, VP_VQ_BAD_RING);
		r->reported = true;
		vp_vdev_ring_failed(v, q, e->code ? e->msg : strerror(-ret));
	}
	return ret;
}

int vp_vdev_on_reset(void *ctx, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	for (unsigned q = 0; v->ops->stop && q < v->n; q++)
		v->resetting += v->ops->stop(v->ctx, q) == VP_LATER;
	if (v->resetting)
		return VP_LATER;
	reset_now(v);
	return 0;
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
