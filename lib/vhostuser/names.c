/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of feature bits, for people. Bits 24-49 belong to all devices (virtio 1.2, section 6). */
#include "vhostuser/codec.h"

#include <stdio.h>
#include <string.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#include "base/util.h"

static const char *const common_names[64] = {
	[VIRTIO_F_NOTIFY_ON_EMPTY]    = "NOTIFY_ON_EMPTY",
	[VHOST_F_LOG_ALL]             = "LOG_ALL",
	[VIRTIO_F_ANY_LAYOUT]         = "ANY_LAYOUT",
	[VIRTIO_RING_F_INDIRECT_DESC] = "INDIRECT_DESC",
	[VIRTIO_RING_F_EVENT_IDX]     = "EVENT_IDX",
	[VU_F_PROTOCOL_FEATURES]      = "PROTOCOL_FEATURES",
	[VIRTIO_F_VERSION_1]          = "VERSION_1",
	[VIRTIO_F_ACCESS_PLATFORM]    = "ACCESS_PLATFORM",
	[VIRTIO_F_RING_PACKED]        = "RING_PACKED",
	[VIRTIO_F_IN_ORDER]           = "IN_ORDER",
	[VIRTIO_F_ORDER_PLATFORM]     = "ORDER_PLATFORM",
	[VIRTIO_F_SR_IOV]             = "SR_IOV",
	[38]                          = "NOTIFICATION_DATA",
	[39]                          = "NOTIF_CONFIG_DATA",
	[VIRTIO_F_RING_RESET]         = "RING_RESET",
};

static const char *const net_names[64] = {
	[VIRTIO_NET_F_CSUM]                = "CSUM",
	[VIRTIO_NET_F_GUEST_CSUM]          = "GUEST_CSUM",
	[VIRTIO_NET_F_CTRL_GUEST_OFFLOADS] = "CTRL_GUEST_OFFLOADS",
	[VIRTIO_NET_F_MTU]                 = "MTU",
	[VIRTIO_NET_F_MAC]                 = "MAC",
	[VIRTIO_NET_F_GSO]                 = "GSO",
	[VIRTIO_NET_F_GUEST_TSO4]          = "GUEST_TSO4",
	[VIRTIO_NET_F_GUEST_TSO6]          = "GUEST_TSO6",
	[VIRTIO_NET_F_GUEST_ECN]           = "GUEST_ECN",
	[VIRTIO_NET_F_GUEST_UFO]           = "GUEST_UFO",
	[VIRTIO_NET_F_HOST_TSO4]           = "HOST_TSO4",
	[VIRTIO_NET_F_HOST_TSO6]           = "HOST_TSO6",
	[VIRTIO_NET_F_HOST_ECN]            = "HOST_ECN",
	[VIRTIO_NET_F_HOST_UFO]            = "HOST_UFO",
	[VIRTIO_NET_F_MRG_RXBUF]           = "MRG_RXBUF",
	[VIRTIO_NET_F_STATUS]              = "STATUS",
	[VIRTIO_NET_F_CTRL_VQ]             = "CTRL_VQ",
	[VIRTIO_NET_F_CTRL_RX]             = "CTRL_RX",
	[VIRTIO_NET_F_CTRL_VLAN]           = "CTRL_VLAN",
	[VIRTIO_NET_F_CTRL_RX_EXTRA]       = "CTRL_RX_EXTRA",
	[VIRTIO_NET_F_GUEST_ANNOUNCE]      = "GUEST_ANNOUNCE",
	[VIRTIO_NET_F_MQ]                  = "MQ",
	[VIRTIO_NET_F_CTRL_MAC_ADDR]       = "CTRL_MAC_ADDR",
	[52]                               = "VQ_NOTF_COAL",
	[VIRTIO_NET_F_NOTF_COAL]           = "NOTF_COAL",
	[54]                               = "GUEST_USO4",
	[55]                               = "GUEST_USO6",
	[56]                               = "HOST_USO",
	[VIRTIO_NET_F_HASH_REPORT]         = "HASH_REPORT",
	[59]                               = "GUEST_HDRLEN",
	[VIRTIO_NET_F_RSS]                 = "RSS",
	[VIRTIO_NET_F_RSC_EXT]             = "RSC_EXT",
	[VIRTIO_NET_F_STANDBY]             = "STANDBY",
	[VIRTIO_NET_F_SPEED_DUPLEX]        = "SPEED_DUPLEX",
};

static const char *const blk_names[64] = {
	[VIRTIO_BLK_F_SIZE_MAX]     = "SIZE_MAX",
	[VIRTIO_BLK_F_SEG_MAX]      = "SEG_MAX",
	[VIRTIO_BLK_F_GEOMETRY]     = "GEOMETRY",
	[VIRTIO_BLK_F_RO]           = "RO",
	[VIRTIO_BLK_F_BLK_SIZE]     = "BLK_SIZE",
	[VIRTIO_BLK_F_FLUSH]        = "FLUSH",
	[VIRTIO_BLK_F_TOPOLOGY]     = "TOPOLOGY",
	[VIRTIO_BLK_F_CONFIG_WCE]   = "CONFIG_WCE",
	[VIRTIO_BLK_F_MQ]           = "MQ",
	[VIRTIO_BLK_F_DISCARD]      = "DISCARD",
	[VIRTIO_BLK_F_WRITE_ZEROES] = "WRITE_ZEROES",
	[16]                        = "SECURE_ERASE",
	[17]                        = "ZONED",
};

static const char *const pf_names[VU_PF_COUNT] = {
	[VU_PF_MQ]                      = "MQ",
	[VU_PF_LOG_SHMFD]               = "LOG_SHMFD",
	[VU_PF_RARP]                    = "RARP",
	[VU_PF_REPLY_ACK]               = "REPLY_ACK",
	[VU_PF_MTU]                     = "MTU",
	[VU_PF_BACKEND_REQ]             = "BACKEND_REQ",
	[VU_PF_CROSS_ENDIAN]            = "CROSS_ENDIAN",
	[VU_PF_CRYPTO_SESSION]          = "CRYPTO_SESSION",
	[VU_PF_PAGEFAULT]               = "PAGEFAULT",
	[VU_PF_CONFIG]                  = "CONFIG",
	[VU_PF_BACKEND_SEND_FD]         = "BACKEND_SEND_FD",
	[VU_PF_HOST_NOTIFIER]           = "HOST_NOTIFIER",
	[VU_PF_INFLIGHT_SHMFD]          = "INFLIGHT_SHMFD",
	[VU_PF_RESET_DEVICE]            = "RESET_DEVICE",
	[VU_PF_INBAND_NOTIFICATIONS]    = "INBAND_NOTIFICATIONS",
	[VU_PF_CONFIGURE_MEM_SLOTS]     = "CONFIGURE_MEM_SLOTS",
	[VU_PF_STATUS]                  = "STATUS",
	[VU_PF_XEN_MMAP]                = "XEN_MMAP",
	[VU_PF_SHARED_OBJECT]           = "SHARED_OBJECT",
	[VU_PF_DEVICE_STATE]            = "DEVICE_STATE",
	[VU_PF_GET_VRING_BASE_INFLIGHT] = "GET_VRING_BASE_INFLIGHT",
	[VU_PF_GPA_ADDRESSES]           = "GPA_ADDRESSES",
	[VU_PF_SHMEM]                   = "SHMEM",
};

const char *vu_feature_name(unsigned int dev, unsigned int bit)
{
	if (bit >= 64)
		return NULL;
	if (dev == VIRTIO_ID_NET && net_names[bit])
		return net_names[bit];
	if (dev == VIRTIO_ID_BLOCK && blk_names[bit])
		return blk_names[bit];
	return common_names[bit];
}

const char *vu_pf_name(unsigned int bit)
{
	return bit < VU_PF_COUNT ? pf_names[bit] : NULL;
}

static char *bits_str(uint64_t bits, bool pf, unsigned int dev, char *buf, size_t len)
{
	size_t have = 0;
	unsigned int i;

	if (!len)
		return buf;
	buf[0] = '\0';
	for (i = 0; i < 64; i++) {
		const char *name = pf ? vu_pf_name(i) : vu_feature_name(dev, i);
		char num[8];
		size_t n;

		if (!(bits & VP_BIT(i)))
			continue;
		if (!name) {
			snprintf(num, sizeof(num), "bit%u", i);
			name = num;
		}
		n = strlen(name);
		if (have + !!have + n + 1 > len)
			break;
		if (have)
			buf[have++] = ' ';
		memcpy(buf + have, name, n + 1);
		have += n;
	}
	return buf;
}

char *vu_features_str(unsigned int dev, uint64_t features, char *buf, size_t len)
{
	return bits_str(features, false, dev, buf, len);
}

char *vu_pf_str(uint64_t pf, char *buf, size_t len)
{
	return bits_str(pf, true, 0, buf, len);
}
