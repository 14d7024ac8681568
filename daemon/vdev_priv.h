/* SPDX-License-Identifier: BSD-3-Clause */
/* What vdev.c and vdev_iommu.c share. */
#ifndef VP_DAEMON_VDEV_PRIV_H
#define VP_DAEMON_VDEV_PRIV_H

#include "guestmem/iotlb.h"
#include "vdev.h"

struct vp_vdev {
	const char                *name;
	const struct vp_conf_link *conf;
	const struct vp_device    *dev;
	const struct vp_profile   *profile;   /* NULL for net */
	unsigned                   side;
	const struct vp_vdev_ops  *ops;
	void                      *ctx;
	uint32_t                   life;      /* differs from every other device's */
	uint64_t                   features;  /* acknowledged, with bits 26 and 30 as they were sent */
	uint8_t                    status;
	bool                       carrier;
	struct vp_memtab          *tab;       /* NULL = no memory yet */
	struct vp_iotlb           *iotlb;     /* NULL = addresses are guest physical */
	bool                       unsent;    /* some miss could not be asked for, */
	bool                       unsent_said;
	bool                       resend;    /* but now it might */
	struct vp_dirty_log        log;       /* log.map NULL = none */
	uint8_t                    written[VP_DEVICE_CONFIG_MAX]; /* by the driver, where a bit of wrote says so */
	uint8_t                    wrote[VP_DEVICE_CONFIG_MAX / 8];
	bool                       config_telling, config_stale;
	int                        inflight_fd;  /* the area that we made for the front-end, -1 = none */
	struct vp_map             *inflight;     /* the one that it gave us, NULL = none */
	unsigned                   inflight_queues, inflight_size;
	unsigned                   n;
	struct vp_vdev_ring        ring[];
};

/* A waiting ring tries to start, or to go on. 0 also when it waits still. */
int vp_vdev_ring_retry(struct vp_vdev *v, unsigned q, struct vp_err *e);

/* vdev_inflight.c */
int vp_vdev_get_inflight(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e);
int vp_vdev_set_inflight(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e);
/* Ring q has just been set up: find what is open, and go on behind it. */
int vp_vdev_inflight_start(struct vp_vdev *v, unsigned q, struct vp_err *e);
void vp_vdev_inflight_free(struct vp_vdev *v);

/* vdev_iommu.c: no ring runs. */
int vp_vdev_iommu_set(struct vp_vdev *v, bool on);
int vp_vdev_on_iotlb(void *ctx, const struct vhost_iotlb_msg *m, struct vp_err *e);
/* Ask the front-end for what data threads missed. */
void vp_vdev_iommu_poll(struct vp_vdev *v);
/* The request channel may be another one, or have room again. */
void vp_vdev_iommu_events(struct vp_vdev *v);

#endif
