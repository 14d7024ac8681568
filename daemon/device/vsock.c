/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-vsock (virtio 1.3, 5.10): queue 0 receives, queue 1 sends; the event queue is the VMM's. The config space is
 * the driver VM's CID. Connections live in the back-end: a new one knows none of them, and resets them when it hears of
 * them. A packet's length is the device's word, which the drivers rely on.
 */
#include <errno.h>
#include <linux/virtio_ids.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

static enum vp_device_use vsock_use(unsigned q)
{
	return q ? VP_QUEUE_SENDS : VP_QUEUE_RECEIVES;
}

static uint64_t vsock_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	return p->features;
}

static uint64_t vsock_pf(const struct vp_conf_link *l)
{
	return VP_BIT(VU_PF_MQ);
}

static unsigned vsock_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			     uint8_t *buf)
{
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	memcpy(buf, p->config, 8);
	return 8;
}

static unsigned vsock_wanted(const struct vp_conf_link *l)
{
	return 8;
}

static void vsock_written(const struct vp_conf_link *l, struct vp_profile *p)
{
	if (!l->cid)
		return;
	p->known = true;
	p->features = l->has_features ? l->features & VP_DEVICE_BITS : 0;
	p->config_size = 8;
	vp_config_put(p->config, 0, 8, l->cid);
}

static int vsock_fits(const struct vp_conf_link *l, const struct vp_profile *p, const struct vp_profile *come,
		      struct vp_err *e)
{
	uint64_t cid = vp_config_get(p->config, 0, 8), its = vp_config_get(come->config, 0, 8);

	if (come->config_size >= 8 && cid != its)
		return vp_err_set(e, -EINVAL, "it serves CID %llu, the profile's is %llu", (unsigned long long)its,
				  (unsigned long long)cid);
	return 0;
}

const struct vp_device vp_device_vsock = {
	.id = VIRTIO_ID_VSOCK,
	.name = "vsock",
	.waits = true,
	.trust_len = true,
	.left = VP_LEFT_AGAIN,
	.fail_status = -1,
	.use = vsock_use,
	.offered = vsock_offered,
	.pf = vsock_pf,
	.config = vsock_config,
	.wanted = vsock_wanted,
	.written = vsock_written,
	.fits = vsock_fits,
};
