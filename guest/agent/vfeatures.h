/* SPDX-License-Identifier: BSD-3-Clause */
/* Virtio feature bits: names for people, and which of them do not concern a data path. */
#ifndef VHP_AGENT_FEATURES_H
#define VHP_AGENT_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#include "base/util.h"

/* Newer than some headers that this is built with. */
#define VP_NET_F_GUEST_USO4	54
#define VP_NET_F_GUEST_USO6	55
#define VP_NET_F_HOST_USO	56

/*
 * Bits that a data path for net devices need not know of, because the driver VM's VMM and the
 * daemon provide them: configuration space, control queue, status. ACCESS_PLATFORM is among
 * them: link addresses are opaque here, whoever translated them. RING_RESET is not: no data
 * path hears of it, since QEMU tells no vhost-user back-end (findings/qemu-ring-reset-untold.sh).
 */
#define VP_NET_NEUTRAL	(VP_BIT(VIRTIO_NET_F_MTU) | VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) | \
			 VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_CTRL_RX) | \
			 VP_BIT(VIRTIO_NET_F_CTRL_VLAN) | VP_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) | \
			 VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | VP_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | \
			 VP_BIT(VIRTIO_NET_F_STANDBY) | VP_BIT(VIRTIO_NET_F_SPEED_DUPLEX) | \
			 VP_BIT(VIRTIO_F_ACCESS_PLATFORM))

/* The same for any device. */
#define VP_ANY_NEUTRAL	VP_BIT(VIRTIO_F_ACCESS_PLATFORM)

VP_INLINE bool vp_has(const uint64_t f[2], unsigned int bit)
{
	return f[bit / 64] >> (bit % 64) & 1;
}

/* 12 bytes with VERSION_1 or MRG_RXBUF, else 10 (virtio 1.2, 5.1.6.1 "Legacy Interface"). */
VP_INLINE int vp_net_hdr_len(const uint64_t f[2])
{
	return vp_has(f, VIRTIO_F_VERSION_1) || vp_has(f, VIRTIO_NET_F_MRG_RXBUF) ? 12 : 10;
}

/* "CSUM GUEST_CSUM MRG_RXBUF VERSION_1", unknown bits as numbers; net names only for device type 1. Returns buf. */
const char *features_names(const uint64_t f[2], uint32_t device_type, char *buf, size_t len);

#endif
