/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-scsi (virtio 1.3, 5.6): queue 0 is the control queue, 1 the event queue, the others carry commands. QEMU
 * provides the config space itself. The kernel's back-end (vhost-scsi) reports lengths of 0.
 */
#include <linux/virtio_ids.h>
#include <linux/virtio_scsi.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

#define OFF(f) offsetof(struct virtio_scsi_config, f)

static enum vp_device_use scsi_use(unsigned q)
{
	return q == 1 ? VP_QUEUE_RECEIVES : VP_QUEUE_ASKS;
}

/* QEMU 7.2 offers CHANGE itself, and acknowledges what its guest took of that. */
static uint64_t scsi_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	return VP_BIT(VIRTIO_SCSI_F_CHANGE) |
	       (l->has_features ? l->features & VP_DEVICE_BITS : VP_BIT(VIRTIO_SCSI_F_HOTPLUG));
}

static uint64_t scsi_pf(const struct vp_conf_link *l)
{
	return VP_BIT(VU_PF_MQ);
}

static unsigned scsi_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			    uint8_t *buf)
{
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	vp_config_put(buf, OFF(num_queues), 4, l->pairs);
	vp_config_put(buf, OFF(seg_max), 4, 126);
	vp_config_put(buf, OFF(max_sectors), 4, 0xffff);
	vp_config_put(buf, OFF(cmd_per_lun), 4, 128);
	vp_config_put(buf, OFF(event_info_size), 4, sizeof(struct virtio_scsi_event));
	vp_config_put(buf, OFF(sense_size), 4, VIRTIO_SCSI_SENSE_DEFAULT_SIZE);
	vp_config_put(buf, OFF(cdb_size), 4, VIRTIO_SCSI_CDB_DEFAULT_SIZE);
	vp_config_put(buf, OFF(max_target), 2, 255);
	vp_config_put(buf, OFF(max_lun), 4, 16383);
	return sizeof(struct virtio_scsi_config);
}

static bool scsi_writable(uint32_t off, uint32_t len)
{
	return (off == OFF(sense_size) || off == OFF(cdb_size)) && len == 4;
}

static unsigned scsi_wanted(const struct vp_conf_link *l)
{
	return 0;
}

const struct vp_device vp_device_scsi = {
	.id = VIRTIO_ID_SCSI,
	.name = "scsi",
	.waits = true,
	.inflight = true,
	.fail_status = -1,
	.not_the_paths = VP_BIT(VIRTIO_SCSI_F_HOTPLUG) | VP_BIT(VIRTIO_SCSI_F_CHANGE),
	.use = scsi_use,
	.offered = scsi_offered,
	.pf = scsi_pf,
	.config = scsi_config,
	.writable = scsi_writable,
	.wanted = scsi_wanted,
};
