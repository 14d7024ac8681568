/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-fs (virtio 1.3, 5.11): queue 0 is the high priority queue, the others carry FUSE requests. QEMU provides the
 * config space itself; for VMMs that ask, it is the link's Tag= and number of queues. The back-end holds open files and
 * locks: a new one does not know them.
 */
#include <linux/virtio_fs.h>
#include <linux/virtio_ids.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

#define CONFIG_SIZE 40u /* tag, number of request queues */

static enum vp_device_use fs_use(unsigned q)
{
	return VP_QUEUE_ASKS;
}

static uint64_t fs_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	return 0; /* the notification queue is nobody's yet */
}

static uint64_t fs_pf(const struct vp_conf_link *l)
{
	return VP_BIT(VU_PF_MQ);
}

static unsigned fs_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			  uint8_t *buf)
{
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	memcpy(buf, l->tag[0] ? (const uint8_t *)l->tag : p->config, 36);
	vp_config_put(buf, 36, 4, l->pairs);
	return CONFIG_SIZE;
}

static unsigned fs_wanted(const struct vp_conf_link *l)
{
	return 0;
}

const struct vp_device vp_device_fs = {
	.id = VIRTIO_ID_FS,
	.name = "fs",
	.waits = true,
	.once = true,
	.fail_status = -1,
	.fuse = true,
	.left = VP_LEFT_FAILS,
	.use = fs_use,
	.offered = fs_offered,
	.pf = fs_pf,
	.config = fs_config,
	.wanted = fs_wanted,
};
