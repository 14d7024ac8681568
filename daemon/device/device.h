/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What differs between virtio device types: one table, one file a type. Session, rings, port and modes
 * know no type and ask here (docs/spec.md, "Device types").
 *
 * Pure functions of the configuration and of a profile. Main thread, but any thread may call `use`.
 */
#ifndef VP_DAEMON_DEVICE_H
#define VP_DAEMON_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"
#include "conf/conf.h"

#define VP_DEVICE_CONFIG_MAX 256 /* bytes of config space */

/* Which way a virtqueue's buffers go. */
enum vp_device_use {
	VP_QUEUE_SENDS,	   /* the driver sends: buffers are device-readable */
	VP_QUEUE_RECEIVES, /* the driver receives: device-writable */
	VP_QUEUE_ASKS,	   /* requests: both */
};

/*
 * Fast mode: what becomes of requests that a back-end which has gone may have taken, when it kept no account of them
 * but the ring tells which they are (engine/leftover.h).
 */
enum vp_device_left {
	VP_LEFT_BREAKS, /* nobody knows what was done of them, or how to say that they failed: the queue breaks */
	VP_LEFT_FAILS,	/* by a FUSE header */
	VP_LEFT_AGAIN,	/* they may be given to the next back-end */
};

/*
 * What the driver VM is told of a back-end: written in the link file, or learned from the first
 * back-end that came. Until it is known, the driver VM's VMM cannot be answered.
 */
struct vp_profile {
	bool known;
	bool written;	   /* by the administrator: never learned */
	uint64_t features; /* of the device type (VP_DEVICE_BITS) */
	uint32_t queues;   /* that the back-end has; 0 = it did not say */
	uint32_t config_size;
	uint8_t config[VP_DEVICE_CONFIG_MAX];
};

/* Feature bits that belong to the device type (virtio 1.3, 2.2): not those of rings and transport. */
#define VP_DEVICE_BITS (((UINT64_C(1) << 24) - 1) | ~((UINT64_C(1) << 50) - 1))

struct vp_device {
	uint32_t id; /* virtio ID; 0: any other, see vp_conf_link.device_type */
	const char *name;
	bool waits;	 /* requests wait while nobody serves; else what the driver sends is dropped and counted */
	bool trust_len;	 /* copy mode: as much is copied back as the device says that it wrote */
	bool inflight;	 /* the VMM is offered an account of what is open (INFLIGHT_SHMFD); requests can be repeated */
	bool once;	 /* what is open when a back-end goes may not be given to another one: it fails */
	bool fuse;	 /* by a FUSE header */
	enum vp_device_left left;
	bool carrier;	 /* the config space says whether the link is up */
	int fail_status; /* last byte of a request that has failed; -1 = there is none */
	/*
	 * copy mode: a request that begins with the 32 bits fill_op fills all that is writable, and may be done again
	 */
	bool fills;
	uint32_t fill_op;
	/*
	 * copy mode: bytes of the header before what is read; what follows it is aligned where the device side can do
	 * direct I/O on it
	 */
	uint16_t out_head;
	uint64_t not_the_paths; /* offered features that the data path need not have */

	enum vp_device_use (*use)(unsigned q);
	/* Device features that the driver VM is offered, with those of rings if they depend on the type. */
	uint64_t (*offered)(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p);
	/* Protocol features beyond the common ones. */
	uint64_t (*pf)(const struct vp_conf_link *l);
	/*
	 * The config space, zero-padded to VP_DEVICE_CONFIG_MAX. Returns how many bytes mean something
	 * to a data path. up: whether the link is up, for types with a carrier.
	 */
	unsigned (*config)(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			   uint8_t *buf);
	/* May the driver write these bytes? NULL: none. */
	bool (*writable)(uint32_t off, uint32_t len);
	/* The bytes of config space that the daemon asks a back-end for. */
	unsigned (*wanted)(const struct vp_conf_link *l);
	/*
	 * What the link file says goes into *p (zeroed); p->known if that is enough. NULL: the type is
	 * always known.
	 */
	void (*written)(const struct vp_conf_link *l, struct vp_profile *p);
	/*
	 * Does a back-end fit? `come` is what it has; *p is known (or learned from it now). -EINVAL
	 * with a sentence that names what does not fit. NULL: any back-end with the features, queues
	 * and bytes fits.
	 */
	int (*fits)(const struct vp_conf_link *l, const struct vp_profile *p, const struct vp_profile *come,
		    struct vp_err *e);
};

extern const struct vp_device vp_device_net, vp_device_blk, vp_device_fs, vp_device_scsi, vp_device_vsock,
	vp_device_any;

const struct vp_device *vp_device_of(const struct vp_conf_link *l);

/* What the link file says. */
void vp_profile_written(const struct vp_conf_link *l, struct vp_profile *p);
/*
 * May a back-end that has `come` serve a link whose profile is p? 0. -EPERM: the features in *missing
 * are missing. -EINVAL: something else is. The sentence names it.
 */
int vp_profile_fits(const struct vp_conf_link *l, const struct vp_profile *p, const struct vp_profile *come,
		    uint64_t *missing, struct vp_err *e);
/* Take over what may change while a link runs (a disk's size). True: tell the driver VM. */
bool vp_profile_refresh(struct vp_profile *p, const struct vp_profile *come);

/*
 * The text of a profile that is kept, and back. write: returns bytes, at most size. read: -EINVAL: not
 * such a text, or of another type.
 */
unsigned vp_profile_write(const struct vp_conf_link *l, const struct vp_profile *p, char *buf, unsigned size);
int vp_profile_read(const struct vp_conf_link *l, const char *text, struct vp_profile *p);

/* Little-endian fields in a config space. */
VP_INLINE void vp_config_put(uint8_t *buf, unsigned off, unsigned len, uint64_t v)
{
	for (unsigned i = 0; i < len; i++)
		buf[off + i] = (uint8_t)(v >> 8 * i);
}

VP_INLINE uint64_t vp_config_get(const uint8_t *buf, unsigned off, unsigned len)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < len; i++)
		v |= (uint64_t)buf[off + i] << 8 * i;
	return v;
}

#endif
