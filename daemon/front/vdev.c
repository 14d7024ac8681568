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
#include <stdlib.h>
#include <string.h>

#include "base/blame.h"
#include "base/util.h"
#include "conf/types.h"
#include "threads/rates.h"

/* ---- what is offered ------------------------------------------------------ */

/* Of rings and transport, whatever the device. */
static uint64_t ring_features(const struct vp_device *dev, const struct vp_conf_link *l)
{
	uint64_t f = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) |
		     VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM);

	return f | (dev->waits && l->packed ? VP_BIT(VIRTIO_F_RING_PACKED) : 0);
}

void vp_vdev_backend_cfg(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p,
			 struct vu_backend_cfg *cfg)
{
	const struct vp_device *dev = vp_device_of(l);

	*cfg = (struct vu_backend_cfg){
		.max_queues = vp_type_queues(l),
		.max_ring_size = VP_VQ_MAX_SIZE,
		.max_mem_slots = VU_MAX_MEM_SLOTS,
		.msgs_per_sec = 200000,
	};
	cfg->features = ring_features(dev, l) | dev->offered(l, side, p);
	cfg->pf = VP_BIT(VU_PF_LOG_SHMFD) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_BACKEND_REQ) |
		  VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) |
		  VP_BIT(VU_PF_STATUS) | dev->pf(l);
	if (l->migration != VP_MIGRATION_NO)
		return;
	/* A VMM then refuses to migrate, and says why. */
	cfg->features &= ~VP_BIT(VHOST_F_LOG_ALL);
	cfg->pf &= ~VP_BIT(VU_PF_LOG_SHMFD);
}

/* ---- messages -------------------------------------------------------------- */

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
	return vp_vdev_ask_logged(v);
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
		return vp_err_set(e, -EINVAL, "MTU %llu is larger than the link's MTU=%u", (unsigned long long)mtu,
				  v->conf->mtu);
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

void vp_vdev_touch(struct vp_vdev *v)
{
	if (v->ops->touch)
		v->ops->touch(v->ctx);
}

static void on_touch(void *ctx)
{
	struct vp_vdev *v = vdev_of(ctx);

	if (v)
		vp_vdev_touch(v);
}

const struct vu_backend_ops vp_vdev_vu_ops = {
	.touch = on_touch,
	.set_features = on_features,
	.mem_table = vp_vdev_on_mem_table,
	.mem_add = vp_vdev_on_mem_add,
	.mem_remove = vp_vdev_on_mem_remove,
	.ring_changed = vp_vdev_on_ring_changed,
	.ring_stop = vp_vdev_on_ring_stop,
	.reset = vp_vdev_on_reset,
	.get_config = vp_vdev_on_get_config,
	.set_config = vp_vdev_on_set_config,
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
	unsigned n = vp_type_queues(conf);
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
		vp_vdev_set_rates(v, q);
	}
	*out = v;
	return 0;
}

void vp_vdev_set_rates(struct vp_vdev *v, unsigned q)
{
	const struct vp_conf_link *c = v->conf;
	struct vp_queue *rq = &v->ring[q].rq;

	__atomic_store_n(&rq->bytes.rate, c->bps ? VP_MAX(c->bps / 8 / c->pairs, 1) : 0, __ATOMIC_RELAXED);
	__atomic_store_n(&rq->own.rate, c->pps ? VP_MAX(c->pps / c->pairs, 1) : 0, __ATOMIC_RELAXED);
}

void vp_vdev_free(struct vp_vdev *v)
{
	if (!v)
		return;
	v->ops->withdraw(v->ctx, 0, v->n);
	for (unsigned q = 0; q < v->n; q++) {
		vp_vdev_ring_release(v, q);
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

const struct vp_memtab *vp_vdev_memory(const struct vp_vdev *v)
{
	return v->tab;
}

unsigned vp_vdev_active_pairs(const struct vp_vdev *v)
{
	unsigned n = 0;

	while (2 * n < v->n && v->ring[2 * n].usable && v->ring[2 * n].enabled)
		n++;
	return n;
}

bool vp_vdev_iommu_stats(const struct vp_vdev *v, struct vp_iotlb_stats *s)
{
	if (v->iotlb)
		vp_iotlb_stats(v->iotlb, s);
	return v->iotlb != NULL;
}
