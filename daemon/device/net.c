/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-net (virtio 1.3, 5.1). Receive queues are the even ones, transmit queues the odd ones; the control queue is
 * the VMM's. Config space and features are the link's: a back-end has no say. What is sent while nobody is there is
 * lost, as with an unplugged cable.
 */
#include <endian.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"
#include "vhostuser/proto.h"

static enum vp_device_use net_use(unsigned q)
{
	return q & 1 ? VP_QUEUE_SENDS : VP_QUEUE_RECEIVES;
}

static uint64_t offload_features(uint32_t o)
{
	static const struct {
		uint32_t offload;
		uint64_t bits;
	} map[] = {
		{ VP_OFFLOAD_CSUM, VP_BIT(VIRTIO_NET_F_CSUM) | VP_BIT(VIRTIO_NET_F_GUEST_CSUM) },
		{ VP_OFFLOAD_TSO4, VP_BIT(VIRTIO_NET_F_HOST_TSO4) | VP_BIT(VIRTIO_NET_F_GUEST_TSO4) },
		{ VP_OFFLOAD_TSO6, VP_BIT(VIRTIO_NET_F_HOST_TSO6) | VP_BIT(VIRTIO_NET_F_GUEST_TSO6) },
		{ VP_OFFLOAD_ECN, VP_BIT(VIRTIO_NET_F_HOST_ECN) | VP_BIT(VIRTIO_NET_F_GUEST_ECN) },
		{ VP_OFFLOAD_MRGBUF, VP_BIT(VIRTIO_NET_F_MRG_RXBUF) },
	};
	uint64_t f = 0;

	for (size_t i = 0; i < VP_ARRAY_SIZE(map); i++)
		if (o & map[i].offload)
			f |= map[i].bits;
	return f;
}

static uint64_t net_offered(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p)
{
	uint64_t f = VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_F_IN_ORDER) | VP_BIT(VIRTIO_F_ANY_LAYOUT) |
		     VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_STATUS) |
		     offload_features(l->offloads);

	/*
	 * Both need the control queue, which is the front-end's own (virtio 1.2, 5.1.3.1). Offloads= sees to those that
	 * it names.
	 */
	if (l->pairs > 1)
		f |= VP_BIT(VIRTIO_NET_F_MQ);
	if (l->mtu)
		f |= VP_BIT(VIRTIO_NET_F_MTU);
	if (l->side[side].has_mac)
		f |= VP_BIT(VIRTIO_NET_F_MAC);
	return f;
}

/*
 * The answer to GET_QUEUE_NUM: QEMU compares its pairs with it, Cloud Hypervisor its queues; the
 * larger number serves both. With one pair nobody needs to ask (without MQ both assume one).
 */
static uint64_t net_pf(const struct vp_conf_link *l)
{
	return (l->pairs > 1 ? VP_BIT(VU_PF_MQ) : 0) | VP_BIT(VU_PF_MTU) | VP_BIT(VU_PF_RESET_DEVICE);
}

static unsigned net_config(const struct vp_conf_link *l, unsigned side, const struct vp_profile *p, bool up,
			   uint8_t *buf)
{
	struct virtio_net_config c = {
		.status = htole16(up ? VIRTIO_NET_S_LINK_UP : 0),
		.max_virtqueue_pairs = htole16((uint16_t)l->pairs),
		.mtu = htole16((uint16_t)l->mtu),
		.speed = htole32(UINT32_MAX), /* unknown */
		.duplex = 0xff,
	};

	memcpy(c.mac, l->side[side].mac, sizeof(c.mac));
	memset(buf, 0, VP_DEVICE_CONFIG_MAX);
	memcpy(buf, &c, sizeof(c));
	return offsetof(struct virtio_net_config, speed);
}

static unsigned net_wanted(const struct vp_conf_link *l)
{
	return 0;
}

const struct vp_device vp_device_net = {
	.id = VIRTIO_ID_NET,
	.name = "net",
	.trust_len = true,
	.carrier = true,
	.fail_status = -1,
	.not_the_paths = VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) | VP_BIT(VIRTIO_NET_F_MTU) |
			 VP_BIT(VIRTIO_NET_F_MQ) | VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) |
			 VP_BIT(VIRTIO_F_ANY_LAYOUT),
	.use = net_use,
	.offered = net_offered,
	.pf = net_pf,
	.config = net_config,
	.wanted = net_wanted,
};
