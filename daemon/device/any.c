/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Any other virtio device with ordinary queues (Type=ID). Nothing is known of its queues but that requests wait for
 * answers; config space and features are what the back-end has.
 */
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

static enum vp_device_use any_use(unsigned q)
{
	return VP_QUEUE_ASKS;
}

static uint64_t any_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	return p->features;
}

static uint64_t any_pf(const struct vp_conf_link *l)
{
	return VP_BIT(VU_PF_MQ);
}

static unsigned any_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			   uint8_t *buf)
{
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	memcpy(buf, p->config, p->config_size);
	return p->config_size;
}

/* Nobody but the back-end knows which bytes are the driver's. */
static bool any_writable(uint32_t off, uint32_t len)
{
	return true;
}

static unsigned any_wanted(const struct vp_conf_link *l)
{
	return l->config_size;
}

static void any_written(const struct vp_conf_link *l, struct vp_profile *p)
{
	if (!l->has_features || l->config_size)
		return;
	p->known = true;
	p->features = l->features & VP_DEVICE_BITS;
}

const struct vp_device vp_device_any = {
	.name = "any",
	.waits = true,
	.once = true,
	.fail_status = -1,
	.use = any_use,
	.offered = any_offered,
	.pf = any_pf,
	.config = any_config,
	.writable = any_writable,
	.wanted = any_wanted,
	.written = any_written,
};
