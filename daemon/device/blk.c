/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-blk (virtio 1.3, 5.2). All queues carry requests. The back-end owns the config space; the number of queues in
 * it is the link's, and the write cache byte the driver's. Reads, writes, flushes and discards may be done again as
 * long as they are unanswered, so that a restart of the back-end is a pause.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

#define CONFIG_SIZE 60u	 /* up to and with secure erase's neighbours: what back-ends of all ages answer */
#define SEG_MAX	    126u /* of a profile that is written, not learned */

#define OFF(f) offsetof(struct virtio_blk_config, f)

static enum vp_device_use blk_use(unsigned q)
{
	return VP_QUEUE_ASKS;
}

static uint64_t blk_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	uint64_t f = p->features &
		     ~(VP_BIT(VIRTIO_BLK_F_MQ) | VP_BIT(VIRTIO_BLK_F_SCSI) | VP_BIT(VIRTIO_BLK_F_BARRIER));

	return f | (l->pairs > 1 ? VP_BIT(VIRTIO_BLK_F_MQ) : 0) | (l->read_only ? VP_BIT(VIRTIO_BLK_F_RO) : 0);
}

static uint64_t blk_pf(const struct vp_conf_link *l)
{
	return VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_INFLIGHT_SHMFD);
}

static unsigned blk_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			   uint8_t *buf)
{
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	memcpy(buf, p->config, p->config_size);
	vp_config_put(buf, OFF(num_queues), 2, l->pairs);
	return CONFIG_SIZE;
}

static bool blk_writable(uint32_t off, uint32_t len)
{
	return off == OFF(wce) && len == 1;
}

static unsigned blk_wanted(const struct vp_conf_link *l)
{
	return CONFIG_SIZE;
}

static void blk_written(const struct vp_conf_link *l, struct vp_profile *p)
{
	if (!l->capacity)
		return;
	p->known = true;
	p->features = VP_BIT(VIRTIO_BLK_F_SEG_MAX) | VP_BIT(VIRTIO_BLK_F_BLK_SIZE) | VP_BIT(VIRTIO_BLK_F_FLUSH);
	p->config_size = CONFIG_SIZE;
	vp_config_put(p->config, OFF(capacity), 8, l->capacity / 512);
	vp_config_put(p->config, OFF(seg_max), 4, SEG_MAX);
	vp_config_put(p->config, OFF(blk_size), 4, l->block_size ? l->block_size : 512);
	p->config[OFF(wce)] = 1;
}

static int blk_fits(const struct vp_conf_link *l, const struct vp_profile *p, const struct vp_profile *come,
		    struct vp_err *e)
{
	uint64_t have = vp_config_get(p->config, OFF(capacity), 8), cap = vp_config_get(come->config, OFF(capacity), 8);
	uint64_t bs = vp_config_get(p->config, OFF(blk_size), 4), its = vp_config_get(come->config, OFF(blk_size), 4);
	bool ro = come->features & VP_BIT(VIRTIO_BLK_F_RO);

	if (l->capacity && cap < have)
		return vp_err_set(e, -EINVAL,
				  "its disk has %llu bytes, Capacity= says %llu; enlarge the disk, or lower Capacity=",
				  (unsigned long long)cap * 512, (unsigned long long)have * 512);
	if (bs != its && p->features & come->features & VP_BIT(VIRTIO_BLK_F_BLK_SIZE))
		return vp_err_set(
			e, -EINVAL,
			"its blocks have %llu bytes, the profile says %llu; change it, set BlockSize=, or forget the "
			"profile",
			(unsigned long long)its, (unsigned long long)bs);
	if (ro && !(p->features & VP_BIT(VIRTIO_BLK_F_RO)) && !l->read_only)
		return vp_err_set(
			e, -EINVAL,
			"its disk is read-only, the profile's is not; set ReadOnly=yes, or forget the profile");
	return 0;
}

const struct vp_device vp_device_blk = {
	.id = VIRTIO_ID_BLOCK,
	.name = "blk",
	.waits = true,
	.inflight = true,
	.fail_status = VIRTIO_BLK_S_IOERR,
	.fills = true,
	.fill_op = VIRTIO_BLK_T_IN,
	.out_head = sizeof(struct virtio_blk_outhdr),
	.not_the_paths = VP_BIT(VIRTIO_BLK_F_MQ) | VP_BIT(VIRTIO_BLK_F_RO),
	.use = blk_use,
	.offered = blk_offered,
	.pf = blk_pf,
	.config = blk_config,
	.writable = blk_writable,
	.wanted = blk_wanted,
	.written = blk_written,
	.fits = blk_fits,
};
