/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One virtio device as its front-end sees it: features, config space,
 * memory and rings, kept in step with the messages of a vhost-user session.
 * A device exists from the moment a front-end connects until it is gone.
 *
 * Rings are used by data threads. The rule: the owner publishes a ring that is
 * usable; before anything about it changes, ops->withdraw() makes sure that no thread
 * uses it any more (unpublish and grace period). From then until ops->offer() the ring
 * belongs to the main thread.
 *
 * Everything here is called by the main thread.
 */
#ifndef VP_DAEMON_VDEV_H
#define VP_DAEMON_VDEV_H

#include "base/record.h"
#include "conf/conf.h"
#include "device/device.h"
#include "engine/inflight.h"
#include "engine/queue.h"
#include "vhostuser/backend.h"

struct vp_vdev;

/* Why a ring that the driver started is not usable yet. */
enum vp_vdev_wait {
	VP_VDEV_WAIT_NONE,
	VP_VDEV_WAIT_START,   /* its areas are not in the IOTLB yet */
	VP_VDEV_WAIT_REBIND,  /* they were invalidated while it ran */
};

struct vp_vdev_ring {
	struct vp_queue rq;
	int      kick_fd;     /* eventfd, owned; -1 = the driver does not kick: poll */
	unsigned kick_serial, call_serial;  /* change with kick_fd and rq.call_fd; never 0 once the ring is usable */
	bool     usable;      /* rq.vq is set up; a data thread may have it */
	bool     enabled;     /* SET_VRING_ENABLE */
	bool     reported;    /* its breaking was logged */
	bool     recovers;    /* it waits, and where it was is in its line still (vp_vdev_recover()) */
	enum vp_vdev_wait wait;
	unsigned starts;
	/* What an earlier daemon had taken and not given back, oldest first; and the account of what we take. */
	struct vp_inflight inflight;
	struct vp_inflight_saved saved;
	char     error[160];  /* why it could not be started or broke; "" = fine */
};

struct vp_vdev_ops {
	/* Optional. What vp_vdev_save() writes is about to change, by other than a message of the session. */
	void (*touch)(void *ctx);
	/* Return with rings [first, first + n) out of every other thread's hands. */
	void (*withdraw)(void *ctx, unsigned first, unsigned n);
	/* Rings became usable or changed their enabled flag; put to use what fits. */
	void (*offer)(void *ctx, unsigned first, unsigned n);
	/*
	 * Optional. The ring is to be stopped, before withdraw(), alone or (RESET_DEVICE) with
	 * others. 0, or VP_LATER while someone outside this process still uses it:
	 * vp_vdev_ring_stopped() follows for each.
	 */
	int (*stop)(void *ctx, unsigned q);
	/*
	 * Optional. All that is written from now on is to be logged. 0: it is; VP_LATER while someone outside this
	 * process still writes: vp_vdev_logged() follows.
	 */
	int (*logged)(void *ctx);
	/* Optional. The memory table was replaced (vp_vdev_memory()). */
	void (*memory)(void *ctx);
	/*
	 * Optional. The vIOMMU takes [iova, last] back, or (remap) maps some of it elsewhere than from iova to uva on,
	 * or for less than reading and writing. Before anything of that is done here. 0, or VP_LATER while someone
	 * outside this process can reach it: vp_vdev_revoked() follows.
	 */
	int (*revoke)(void *ctx, uint64_t iova, uint64_t last, bool remap, uint64_t uva);
	/* The session's fds to poll changed. */
	void (*events_changed)(void *ctx);
	struct vu_backend *(*session)(void *ctx);
	/* Optional. Rings that stopped at a vIOMMU miss may go on. */
	void (*translated)(void *ctx);
	/* Optional. The driver wrote [off, off + len) of the config space; all is VP_DEVICE_CONFIG_MAX bytes. */
	void (*config_written)(void *ctx, uint32_t off, uint32_t len, const uint8_t *all);
	/* An eventfd that makes the main thread call vp_vdev_reap(); any thread writes it. */
	int (*attention_fd)(void *ctx);
};

/* What the device offers, from the link's configuration and, but for net, the profile of its back-end. */
void vp_vdev_backend_cfg(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p,
			 struct vu_backend_cfg *cfg);

/* name for messages; name, conf and profile are not owned. ctx is the slot that the device will be in. */
int vp_vdev_new(struct vp_vdev **out, const char *name, const struct vp_conf_link *conf, unsigned side,
		const struct vp_profile *profile, const struct vp_vdev_ops *ops, void *ctx);
/* Withdraws all rings first. */
void vp_vdev_free(struct vp_vdev *v);

/*
 * The device for another daemon to go on with (docs/handover.md), but for what data threads change. It notes in the
 * session where its rings are, so the session is saved after it. A device whose rings stop for a reset is not at rest.
 */
bool vp_vdev_at_rest(const struct vp_vdev *v);
/* iotlb: with what is known of its vIOMMU. Without, the reader asks again for all of it. */
void vp_vdev_save(struct vp_vdev *v, struct vp_rec *r, bool iotlb);
/* Into a new device, whose session was restored before. Nothing is offered to the owner, who looks at all of it. */
int  vp_vdev_restore(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e);
/* And what data threads change: it comes last, while none runs on either side. The rings are published by then. */
void vp_vdev_save_hot(const struct vp_vdev *v, struct vp_rec *r);
int  vp_vdev_restore_hot(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e);

/* Where its rings are, data threads write there from now on, a line for each (virtq/place.h). Not owned. */
void vp_vdev_set_places(struct vp_vdev *v, struct vp_place *lines);
/*
 * vp_vdev_restore_hot() for a daemon whose predecessor ended anywhere: the lines, n of them, are as that one left them,
 * and so are other, those of the other side. While no data thread runs. A ring whose translation has to be asked for
 * is recovered when that comes. Nothing is written to a line before vp_vdev_places_begin(), so that who is killed
 * meanwhile is followed by one who does the same again.
 */
int  vp_vdev_recover(struct vp_vdev *v, const struct vp_place *other, unsigned n, struct vp_err *e);
/* Does a ring wait for that? */
bool vp_vdev_recovers(const struct vp_vdev *v);
/*
 * The lines of rings that were recovered are in use from now on, those of rings that send or that do not. Of all
 * devices first the receivers', for which there may be something in a sender's.
 */
void vp_vdev_places_begin(struct vp_vdev *v, bool send);
/* The same of one ring, which data threads drop packets from; behind vp_vdev_restore_hot(). */
int  vp_vdev_recover_ring(struct vp_vdev *v, unsigned q, const struct vp_place *own, struct vp_err *e);

extern const struct vu_backend_ops vp_vdev_vu_ops;  /* their ctx is found by vp_vdev_ctx */
/* The sessions' ctx is a pointer to a slot that holds the device: the device comes and goes, the slot stays. */
struct vp_vdev_slot {
	struct vp_vdev *v;
};

/* The limits of queue q are those of the link's configuration, also while it runs. */
void vp_vdev_set_rates(struct vp_vdev *v, unsigned q);
unsigned vp_vdev_rings(const struct vp_vdev *v);
/* Its virtio ID. */
unsigned vp_vdev_type(const struct vp_vdev *v);
enum vp_device_use vp_vdev_use(const struct vp_vdev *v, unsigned q);
struct vp_vdev_ring *vp_vdev_ring(struct vp_vdev *v, unsigned q);
uint64_t vp_vdev_features(const struct vp_vdev *v);
unsigned vp_vdev_regions(const struct vp_vdev *v);
/* NULL = none. Valid until the next message. */
const struct vp_memtab *vp_vdev_memory(const struct vp_vdev *v);
/*
 * The ring was used by someone else and is the main thread's again: go on at base, or, where that is not known, at the
 * used index (-ENODATA for a packed ring, which does not tell). After an error the ring is broken.
 */
int vp_vdev_ring_resume(struct vp_vdev *v, unsigned q, bool base_known, uint32_t base, struct vp_err *e);
/*
 * As ring_resume() without a base, where the one who used it kept the account of open requests: the ring goes on behind
 * what is open, which is counted in ring->saved.n.
 */
int vp_vdev_ring_reopen(struct vp_vdev *v, unsigned q, struct vp_err *e);
/* Where that account lies, made if the front-end did not bring one. fd stays the device's. */
struct vp_vdev_inflight {
	int fd;
	uint64_t offset, size; /* whole pages */
	unsigned queues, entries;
};
/* 0, or -errno: the device side cannot be given it. */
int vp_vdev_inflight(struct vp_vdev *v, struct vp_vdev_inflight *out, struct vp_err *e);
/* Where ring q's account is, which is set up; VP_GPTR_NULL: it can have none. */
vp_gptr vp_vdev_inflight_at(const struct vp_vdev *v, unsigned q);
/*
 * Completes ops->stop(). An error ends the session: the caller sees to that (vp_peer_kick_out()). Never from a callback
 * of the session.
 */
int vp_vdev_ring_stopped(struct vp_vdev *v, unsigned q, struct vp_err *e);
/* Completes ops->logged(), as the function above does ops->stop(). */
int vp_vdev_logged(struct vp_vdev *v, struct vp_err *e);
/* The profile's config space is another one: tells the front-end when it can be told, one message at a time. */
void vp_vdev_config_changed(struct vp_vdev *v);
bool vp_vdev_logging(const struct vp_vdev *v);

/* Queue pairs whose receive ring can take packets now. */
unsigned vp_vdev_active_pairs(const struct vp_vdev *v);

/* What its vIOMMU looks like; false when it has none. */
struct vp_iotlb_stats;
bool vp_vdev_iommu_stats(const struct vp_vdev *v, struct vp_iotlb_stats *s);

/*
 * The mapping of its vIOMMU around iova, for reading and writing, as far as it is known: whole pages, in one region of
 * the memory table. 0; -EAGAIN: the front-end was asked, ops->translated() follows; -EFAULT: it is not mapped, or not
 * for both. Any time but inside data threads.
 */
struct vp_vdev_mapping {
	uint64_t iova, size, uva;
};
int vp_vdev_mapping(struct vp_vdev *v, uint64_t iova, struct vp_vdev_mapping *out);
/* Completes ops->revoke(). An error ends the session. Never from a callback of the session. */
int vp_vdev_revoked(struct vp_vdev *v, struct vp_err *e);

/* Send vIOMMU misses. Look for rings that broke since the last time; one log line for each. True when there was one. */
bool vp_vdev_reap(struct vp_vdev *v);

/* Memory whose file was truncated: break the rings of this device. True when there was some. */
bool vp_vdev_check_memory(struct vp_vdev *v);

/* Is a started ring broken? */
bool vp_vdev_broken(const struct vp_vdev *v);

/* Front-ends send kick and call fds; only eventfds are taken. */
bool vp_is_eventfd(int fd);

/* Link status bit of the config space; tells the front-end when it can be told. */
void vp_vdev_set_carrier(struct vp_vdev *v, bool up);

#endif
