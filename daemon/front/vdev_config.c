/* SPDX-License-Identifier: BSD-3-Clause */
/* The config space of a driver VM's device, and what its front-end is told of it. Threat model: vdev.c. */
#include "front/vdev_priv.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

int vp_vdev_on_get_config(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
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

int vp_vdev_on_set_config(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);

	/* A migrated VM brings what it saw last; what is so is the back-end's to say. */
	if (flags == VU_CONFIG_MIGRATION)
		return 0;
	if (!len)
		return 0;
	if (len > VP_DEVICE_CONFIG_MAX || off > VP_DEVICE_CONFIG_MAX - len || !v->dev->writable ||
	    !v->dev->writable(off, len))
		return vp_err_set(e, -EINVAL, "SET_CONFIG: the driver may not write %u bytes at %u of this device", len,
				  off);
	for (unsigned i = off; i < off + len; i++) {
		v->written[i] = buf[i - off];
		v->wrote[i / 8] |= (uint8_t)(1u << i % 8);
	}
	if (v->ops->config_written)
		v->ops->config_written(v->ctx, off, len, v->written);
	return 0;
}

/*
 * The front-end asks for the config space anew. Nothing is sent to a device that is suspended,
 * which it is while no ring runs (vhost-user, "Suspended device state"), nor while its rings stop
 * for a reset: the first ring that runs makes up for it.
 */
void vp_vdev_tell_carrier(struct vp_vdev *v)
{
	struct vu_backend *vu = v->ops->session(v->ctx);

	if (v->config_stale)
		vp_vdev_config_changed(v);
	if (v->carrier == v->carrier_told || v->resetting || !vp_vdev_in_use(v) || !vu_backend_has_req(vu))
		return;
	v->carrier_told = v->carrier;
	vu_backend_config_change(vu, NULL, NULL);
}

void vp_vdev_set_carrier(struct vp_vdev *v, bool up)
{
	v->carrier = up;
	vp_vdev_tell_carrier(v);
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

	v->config_stale = true;
	/* As for the carrier. QEMU, too, looks at nothing that it is told while the device is suspended. */
	if (v->config_telling || v->resetting || !vp_vdev_in_use(v) || !b || !vu_backend_has_req(b))
		return;
	v->config_stale = false;
	/* Before the call: it may be answered from inside. */
	v->config_telling = true;
	if (vu_backend_config_change(b, on_config_told, v->ctx))
		v->config_telling = false;
}
