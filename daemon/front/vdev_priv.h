/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of a device share: vdev.c, vdev_ring.c, vdev_config.c, vdev_memory.c, viommu.c, inflight.c. */
#ifndef VP_DAEMON_VDEV_PRIV_H
#define VP_DAEMON_VDEV_PRIV_H

#include "guestmem/iotlb.h"
#include "front/vdev.h"

struct vp_vdev {
	bool                      looked_shared;  /* say_not_shared() has looked */
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
	bool                       carrier_told; /* what the front-end knows of it */
	struct vp_memtab          *tab;       /* NULL = no memory yet */
	struct vp_iotlb           *iotlb;     /* NULL = addresses are guest physical */
	struct asked              *asked;     /* misses without an answer, oldest first (viommu.c) */
	struct asked             **asked_end;
	uint32_t                   run;       /* goes up when translations are forgotten because no ring runs */
	bool                       unsent;    /* some miss could not be asked for, */
	bool                       unsent_said;
	bool                       resend;    /* but now it might */
	struct vhost_iotlb_msg     owed;      /* waits for vp_vdev_revoked(); type 0 = none */
	unsigned                   owed_sure; /* what it proves */
	struct vp_dirty_log        log;       /* log.map NULL = none */
	uint64_t                   log_offset; /* of it, in its file */
	uint8_t                    written[VP_DEVICE_CONFIG_MAX]; /* by the driver, where a bit of wrote says so */
	uint8_t                    wrote[VP_DEVICE_CONFIG_MAX / 8];
	bool                       config_telling, config_stale;
	int                        inflight_fd;  /* the area that we made for the front-end, -1 = none */
	/* the one that it gave us, or (inflight_own) that it knows nothing of; NULL = none */
	struct vp_map             *inflight;
	bool                       inflight_own;
	uint64_t                   inflight_off, inflight_bytes;
	unsigned                   inflight_queues, inflight_size;
	struct vp_place           *places;       /* a line for each ring; NULL = nobody keeps them */
	const struct vp_place     *others;       /* of the other side's, n_others of them, while rings recover */
	unsigned                   n_others;
	unsigned                   resetting; /* rings that RESET_DEVICE still waits for */
	unsigned                   n;
	struct vp_vdev_ring        ring[];
};

static inline struct vp_vdev *vdev_of(void *ctx)
{
	return ((struct vp_vdev_slot *)ctx)->v;
}

static inline const struct vu_ring *vu_ring_of(struct vp_vdev *v, unsigned q)
{
	return vu_backend_ring(v->ops->session(v->ctx), q);
}

static inline struct vp_iommu *iommu_of(const struct vp_vdev *v)
{
	return v->iotlb ? vp_iotlb_iommu(v->iotlb) : NULL;
}

/* vdev_ring.c */
int  vp_vdev_on_ring_changed(void *ctx, unsigned q, unsigned what, struct vp_err *e);
int  vp_vdev_on_ring_stop(void *ctx, unsigned q, uint32_t *base, struct vp_err *e);
int  vp_vdev_on_reset(void *ctx, struct vp_err *e);
/* The session has all that a ring needs, and its fds are here. 0 also when it waits for its translation. */
int  vp_vdev_ring_start(struct vp_vdev *v, unsigned q, struct vp_err *e);
/*
 * The same for one that another daemon has started: it goes on when its translation comes, and its account of open
 * requests is left as it is (vp_vdev_restore_hot()).
 */
int  vp_vdev_ring_inherit(struct vp_vdev *v, unsigned q, struct vp_err *e);
void vp_vdev_ring_release(struct vp_vdev *v, unsigned q);
int vp_vdev_ring_addrs(struct vp_vdev *v, const struct vu_ring *vr, bool packed, struct vp_vq_conf *c,
		       struct vp_err *e);
void vp_vdev_ring_failed(struct vp_vdev *v, unsigned q, const char *why);
void vp_vdev_ring_set_log(struct vp_vdev *v, unsigned q);
/* Logging may have begun: 0, or VP_LATER. */
int vp_vdev_ask_logged(struct vp_vdev *v);
/* A waiting ring tries to start, or to go on. 0 also when it waits still. */
int  vp_vdev_ring_retry(struct vp_vdev *v, unsigned q, struct vp_err *e);

/* vdev_place.c: the ring has just been set up. */
void vp_vdev_place_begin(struct vp_vdev *v, unsigned q);
/* One that recovers is translated now. */
int  vp_vdev_place_recover(struct vp_vdev *v, unsigned q, struct vp_err *e);
/* One that recovers is stopped before it is translated: its base, as far as it is known. */
uint32_t vp_vdev_place_base(const struct vp_vdev *v, unsigned q, uint32_t base);

/* vdev.c: as vp_vdev_ops says. */
void vp_vdev_touch(struct vp_vdev *v);

/* vdev_config.c */
int  vp_vdev_on_get_config(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e);
int  vp_vdev_on_set_config(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e);
/*
 * The front-end asks for the config space anew. Nothing is sent to a device that is suspended,
 * which it is while no ring runs (vhost-user, "Suspended device state"), nor while its rings stop
 * for a reset: the first ring that runs makes up for it.
 */
void vp_vdev_tell_carrier(struct vp_vdev *v);

/* vdev_memory.c: struct vu_backend_ops. */
int vp_vdev_on_mem_table(void *ctx, const struct vu_mem_region *m, int *fds, unsigned n, struct vp_err *e);
int vp_vdev_on_mem_add(void *ctx, const struct vu_mem_region *m, int *fd, struct vp_err *e);
int vp_vdev_on_mem_remove(void *ctx, const struct vu_mem_region *m, struct vp_err *e);
int vp_vdev_on_log(void *ctx, int *fd, uint64_t size, uint64_t offset, struct vp_err *e);

/* inflight.c */
int vp_vdev_get_inflight(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e);
int vp_vdev_set_inflight(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e);
/*
 * The front-end's area, for that many queues of so many entries, while no ring runs. fd stays the caller's. again:
 * another daemon has it mapped.
 */
int vp_vdev_inflight_take(struct vp_vdev *v, int fd, uint64_t offset, uint64_t bytes, unsigned queues, unsigned entries,
			  bool again, struct vp_err *e);
/* Ring q has just been set up: find what is open, and go on behind it. */
int vp_vdev_inflight_start(struct vp_vdev *v, unsigned q, struct vp_err *e);
void vp_vdev_inflight_free(struct vp_vdev *v);

/* viommu.c: no ring runs. */
int vp_vdev_iommu_set(struct vp_vdev *v, bool on);
/* Some ring was started and has not stopped. */
bool vp_vdev_in_use(const struct vp_vdev *v);
/* After the stop of any ring, and before the start: if none is in use, no translation is kept. */
void vp_vdev_iommu_idle(struct vp_vdev *v);
int vp_vdev_on_iotlb(void *ctx, const struct vhost_iotlb_msg *m, struct vp_err *e);
/* Ask the front-end for what data threads missed. */
void vp_vdev_iommu_poll(struct vp_vdev *v);
/* The request channel may be another one, or have room again. */
void vp_vdev_iommu_events(struct vp_vdev *v);

#endif
