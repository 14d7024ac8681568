/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The virtio-net offload header (virtio 1.3, 5.1.6). The functions check it against the packet that it
 * came with. They do in software what the receiver did not negotiate: complete a partial checksum, cut
 * a large segment.
 *
 * Security model: header and packet come from a hostile sender. The caller has copied both into private
 * memory, once; nothing here reads peer memory. Every offset is checked against the packet's length
 * before use.
 */
#ifndef VP_NET_OFFLOAD_H
#define VP_NET_OFFLOAD_H

#include <linux/virtio_net.h>

#include "base/err.h"
#include "base/util.h"

/* Newer than the kernel headers that the oldest supported distribution has (virtio 1.3, 5.1.3). */
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif
#ifndef VIRTIO_NET_F_GUEST_USO4
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO   56
#endif

/* Bytes of the header on the wire: 12 with VIRTIO_F_VERSION_1 or MRG_RXBUF, else 10 (legacy). */
VP_INLINE unsigned vp_net_hdr_len(uint64_t features)
{
	return features & (VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_NET_F_MRG_RXBUF)) ? 12 : 10;
}

/*
 * Is this a header that a driver with these negotiated (driver to device) features may send with a
 * packet of len bytes (header not counted)? Clears flags that only the device may set (DATA_VALID,
 * RSC_INFO). Makes hdr_len, which is only a hint, one that a receiver can have. 0, or -EINVAL:
 * csum_start + csum_offset + 2 beyond the packet, GSO type unknown or not negotiated, GSO without
 * NEEDS_CSUM, gso_size zero.
 */
int vp_net_hdr_check(struct virtio_net_hdr *h, uint32_t len, uint64_t src_features);

/* May a driver with these negotiated (GUEST_*) features get the packet as it is? */
bool vp_net_hdr_accepted(const struct virtio_net_hdr *h, uint64_t dst_features);

/*
 * The same for a header that a device hands to a driver with these negotiated (GUEST_*) features. Flags
 * and types that the driver did not ask for are errors. DATA_VALID stays: the sender could as well have
 * given the packet a right checksum. passt sets it, with no checksum in the packet, for drivers without
 * GUEST_CSUM too; virtio 1.3, 5.1.6.4.1, does not allow that, and Linux takes it.
 */
int vp_net_hdr_check_in(struct virtio_net_hdr *h, uint32_t len, uint64_t dst_features);

/* Write the checksum over [csum_start, len) to csum_start + csum_offset. 0 or -EINVAL. */
int vp_net_csum_complete(uint8_t *pkt, uint32_t len, uint16_t csum_start, uint16_t csum_offset);

/* A large segment being cut into packets of at most headers + gso_size bytes. */
struct vp_gso {
	const uint8_t *pkt;
	uint32_t len, hdr_len, mss, done;
	uint16_t l3_off, l4_off;
	uint16_t index;
	uint8_t  gso_type; /* without the ECN bit */
	bool     ecn, ipv6;
	/* the rest is private to offload.c */
	uint32_t seq;
	uint16_t ip_id;
};

/*
 * The bounds of what one packet may be cut into. A TCP segment carries at least 8 bytes (Linux's
 * TCP_MIN_GSO_SIZE). A packet becomes at most 160 segments: 64 KiB with 410 bytes each. The least path
 * MTU that Linux believes in (min_pmtu, 552) leaves 472 beside all TCP options there can be. Linux
 * sends at most 128 segments of UDP.
 */
#define VP_GSO_TCP_MSS_MIN 8u
#define VP_GSO_SEGS_MAX    160u

#define VP_GSO_HDR_MAX 256 /* Ethernet + VLAN tags + IP with options/extensions + TCP with options */

/*
 * Prepare to cut pkt as h says: TCPv4, TCPv6 (with or without ECN), UDP_L4. pkt stays the caller's
 * until the last segment. The headers are found by parsing the packet, never by trusting hdr_len. 0.
 * -EINVAL: the packet is not what h says, or would become too many segments. -EOPNOTSUPP: a type that
 * is not cut (UFO).
 */
int vp_gso_init(struct vp_gso *g, const uint8_t *pkt, uint32_t len, const struct virtio_net_hdr *h);

/*
 * Write the next segment into out (at least g->hdr_len + g->mss bytes), complete with lengths, IP id,
 * sequence number, flags and checksums. Its length, or 0 when none is left.
 */
uint32_t vp_gso_next(struct vp_gso *g, uint8_t *out);

#endif
