/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Security model: see offload.h. Everything parsed here is a private copy of
 * what a hostile sender wrote. Each offset is compared with the packet's
 * length before the byte behind it is read, and no length of the sender's
 * (hdr_len, the IP total length, the UDP length) decides what is read.
 */
#include "net/offload.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

enum {
	ETH_LEN = 14, VLAN_LEN = 4, IP4_LEN = 20, IP6_LEN = 40, TCP_LEN = 20, UDP_LEN = 8,
	ETHERTYPE_IP4 = 0x0800, ETHERTYPE_IP6 = 0x86dd,
	ETHERTYPE_VLAN = 0x8100, ETHERTYPE_QINQ = 0x88a8, ETHERTYPE_QINQ_OLD = 0x9100,
	PROTO_HOPOPTS = 0, PROTO_TCP = 6, PROTO_UDP = 17, PROTO_ROUTING = 43, PROTO_DSTOPTS = 60,
	TCP_SEQ = 4, TCP_DOFF = 12, TCP_FLAGS = 13, TCP_CSUM = 16, UDP_CSUM = 6,
	TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80,
};

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v);
}

/*
 * Ones' complement sum (RFC 1071) of n bytes, in memory order: the order of the
 * bytes within a word does not matter until fold() stores the result. Additions
 * of 32 bits into 64 cannot overflow below 2^32 words. A packet has fewer.
 */
static uint64_t sum_bytes(const uint8_t *p, uint32_t n)
{
	uint64_t sum = 0;
	uint32_t i, w, words = n / 4;
	uint8_t tail[4] = { 0 };

	for (i = 0; i < words; i++) {
		memcpy(&w, p + 4 * (size_t)i, 4);
		sum += w;
	}
	memcpy(tail, p + 4 * (size_t)words, n % 4);
	memcpy(&w, tail, 4);
	return sum + w;
}

/* The 16 bits to store with memcpy(), in memory order. */
static uint16_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put_csum(uint8_t *p, uint64_t sum, bool zero_ok)
{
	uint16_t c = fold(sum);

	/* In UDP, zero says "no checksum" (RFC 768); all ones is the same number otherwise. */
	if (!c && !zero_ok)
		c = 0xffff;
	memcpy(p, &c, 2);
}

/*
 * hdr_len is a hint that nobody may rely on (virtio 1.2, 5.1.6.2.2), but to a driver it must not be
 * less than the headers (5.1.6.4.1), and Linux' tap refuses what is more than the packet. What fits
 * stays as it is.
 */
static uint16_t hdr_len_hint(const struct virtio_net_hdr *h, uint32_t len, bool tcp)
{
	uint32_t headers = (uint32_t)le16toh(h->csum_start) + (tcp ? TCP_LEN : UDP_LEN);
	uint32_t hint = VP_MAX(le16toh(h->hdr_len), headers);

	return htole16((uint16_t)VP_MIN(VP_MIN(hint, len), UINT16_MAX));
}

int vp_net_hdr_check(struct virtio_net_hdr *h, uint32_t len, uint64_t src_features)
{
	uint8_t type = h->gso_type;
	uint64_t need;

	h->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
	if (vp_likely(!h->flags && type == VIRTIO_NET_HDR_GSO_NONE)) {
		/* Fields without a meaning do not travel to another VM. */
		memset(h, 0, sizeof(*h));
		return 0;
	}
	if (!h->flags || !(src_features & VP_BIT(VIRTIO_NET_F_CSUM)))
		return -EINVAL;
	if ((uint32_t)le16toh(h->csum_start) + le16toh(h->csum_offset) + 2 > len)
		return -EINVAL;

	switch (type) {
	case VIRTIO_NET_HDR_GSO_NONE:
		h->hdr_len = 0;
		h->gso_size = 0;
		return 0;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		need = VP_BIT(VIRTIO_NET_F_HOST_TSO4);
		break;
	case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
		need = VP_BIT(VIRTIO_NET_F_HOST_TSO4) | VP_BIT(VIRTIO_NET_F_HOST_ECN);
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		need = VP_BIT(VIRTIO_NET_F_HOST_TSO6);
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
		need = VP_BIT(VIRTIO_NET_F_HOST_TSO6) | VP_BIT(VIRTIO_NET_F_HOST_ECN);
		break;
	case VIRTIO_NET_HDR_GSO_UDP:
		need = VP_BIT(VIRTIO_NET_F_HOST_UFO);
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		need = VP_BIT(VIRTIO_NET_F_HOST_USO);
		break;
	default:
		return -EINVAL;
	}
	if ((src_features & need) != need || !h->gso_size)
		return -EINVAL;
	h->hdr_len = hdr_len_hint(h, len, type != VIRTIO_NET_HDR_GSO_UDP && type != VIRTIO_NET_HDR_GSO_UDP_L4);
	return 0;
}

bool vp_net_hdr_accepted(const struct virtio_net_hdr *h, uint64_t dst_features)
{
	uint64_t need = 0;

	if (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
		need |= VP_BIT(VIRTIO_NET_F_GUEST_CSUM);
	if (h->gso_type & VIRTIO_NET_HDR_GSO_ECN)
		need |= VP_BIT(VIRTIO_NET_F_GUEST_ECN);
	switch (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE:
		break;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		need |= VP_BIT(VIRTIO_NET_F_GUEST_TSO4);
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		need |= VP_BIT(VIRTIO_NET_F_GUEST_TSO6);
		break;
	case VIRTIO_NET_HDR_GSO_UDP:
		need |= VP_BIT(VIRTIO_NET_F_GUEST_UFO);
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		/* The header does not tell IPv4 from IPv6. */
		need |= VP_BIT(VIRTIO_NET_F_GUEST_USO4) | VP_BIT(VIRTIO_NET_F_GUEST_USO6);
		break;
	default:
		return false;
	}
	return (dst_features & need) == need;
}

int vp_net_hdr_check_in(struct virtio_net_hdr *h, uint32_t len, uint64_t dst_features)
{
	static const uint8_t pair[][2] = { /* what lets the driver receive it, what would let it send it */
		{ VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CSUM }, { VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4 },
		{ VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6 }, { VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_HOST_ECN },
		{ VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_UFO },
	};
	const uint64_t uso = VP_BIT(VIRTIO_NET_F_GUEST_USO4) | VP_BIT(VIRTIO_NET_F_GUEST_USO6);
	const uint8_t flags = h->flags;
	uint64_t sent = (dst_features & uso) == uso ? VP_BIT(VIRTIO_NET_F_HOST_USO) : 0;
	unsigned i;

	for (i = 0; i < VP_ARRAY_SIZE(pair); i++)
		if (dst_features & VP_BIT(pair[i][0]))
			sent |= VP_BIT(pair[i][1]);
	if (vp_net_hdr_check(h, len, sent))
		return -EINVAL;
	/*
	 * Back-ends that say so leave the checksum out, negotiated or not; without the flag the packet would be dropped
	 * as damaged.
	 */
	if (flags & VIRTIO_NET_HDR_F_DATA_VALID && !h->flags)
		h->flags = VIRTIO_NET_HDR_F_DATA_VALID;
	return 0;
}

int vp_net_csum_complete(uint8_t *pkt, uint32_t len, uint16_t csum_start, uint16_t csum_offset)
{
	if ((uint32_t)csum_start + csum_offset + 2 > len)
		return -EINVAL;
	/* The field holds the pseudo header's sum already (5.1.6.2), so it is summed like the rest. */
	put_csum(pkt + csum_start + csum_offset, sum_bytes(pkt + csum_start, len - csum_start), false);
	return 0;
}

/* Offset of the header behind Ethernet and its tags, or 0; *type its EtherType. */
static uint32_t parse_ether(const uint8_t *p, uint32_t len, uint16_t *type)
{
	uint32_t off = ETH_LEN;

	if (len < ETH_LEN)
		return 0;
	*type = get16(p + 12);
	while (*type == ETHERTYPE_VLAN || *type == ETHERTYPE_QINQ || *type == ETHERTYPE_QINQ_OLD) {
		if (len - off < VLAN_LEN || off > VP_GSO_HDR_MAX)
			return 0;
		*type = get16(p + off + 2);
		off += VLAN_LEN;
	}
	return off;
}

/* Offset of what follows the IPv4 header at off, or 0. */
static uint32_t parse_ip4(const uint8_t *p, uint32_t len, uint32_t off, uint8_t *proto)
{
	uint32_t ihl;

	if (len - off < IP4_LEN || p[off] >> 4 != 4)
		return 0;
	ihl = 4 * (p[off] & 15u);
	if (ihl < IP4_LEN || len - off < ihl)
		return 0;
	/* A fragment (MF or an offset) is not a whole segment. */
	if (get16(p + off + 6) & 0x3fff)
		return 0;
	*proto = p[off + 9];
	return off + ihl;
}

/* The same for IPv6 and the extension headers that may stand in front of TCP or UDP. */
static uint32_t parse_ip6(const uint8_t *p, uint32_t len, uint32_t off, uint8_t *proto)
{
	if (len - off < IP6_LEN || p[off] >> 4 != 6)
		return 0;
	*proto = p[off + 6];
	off += IP6_LEN;
	while (*proto == PROTO_HOPOPTS || *proto == PROTO_ROUTING || *proto == PROTO_DSTOPTS) {
		uint32_t ext;

		if (len - off < 8 || off > VP_GSO_HDR_MAX)
			return 0;
		/* On its way, the pseudo header's destination is not the one in the IP header. */
		if (*proto == PROTO_ROUTING && p[off + 3])
			return 0;
		ext = 8 * (p[off + 1] + 1u);
		if (len - off < ext)
			return 0;
		*proto = p[off];
		off += ext;
	}
	return off;
}

int vp_gso_init(struct vp_gso *g, const uint8_t *pkt, uint32_t len, const struct virtio_net_hdr *h)
{
	uint32_t l3, l4, l4_len, mss = le16toh(h->gso_size);
	uint8_t proto = 0, type = h->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
	bool ecn = h->gso_type & VIRTIO_NET_HDR_GSO_ECN, tcp = true, ipv6;
	uint16_t ethertype;

	switch (type) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
	case VIRTIO_NET_HDR_GSO_TCPV6:
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		if (ecn)
			return -EINVAL;
		tcp = false;
		break;
	case VIRTIO_NET_HDR_GSO_UDP:
		return -EOPNOTSUPP;
	default:
		return -EINVAL;
	}
	if (!(h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || mss < (tcp ? VP_GSO_TCP_MSS_MIN : 1))
		return -EINVAL;

	l3 = parse_ether(pkt, len, &ethertype);
	if (!l3)
		return -EINVAL;
	ipv6 = ethertype == ETHERTYPE_IP6;
	if (!ipv6 && ethertype != ETHERTYPE_IP4)
		return -EINVAL;
	if ((type == VIRTIO_NET_HDR_GSO_TCPV4 && ipv6) || (type == VIRTIO_NET_HDR_GSO_TCPV6 && !ipv6))
		return -EINVAL;
	l4 = ipv6 ? parse_ip6(pkt, len, l3, &proto) : parse_ip4(pkt, len, l3, &proto);
	if (!l4 || proto != (tcp ? PROTO_TCP : PROTO_UDP))
		return -EINVAL;
	if (len - l4 < (tcp ? TCP_LEN : UDP_LEN))
		return -EINVAL;
	l4_len = tcp ? 4 * (pkt[l4 + TCP_DOFF] >> 4) : UDP_LEN;
	/* At least one byte of payload: a packet without any is no segment to cut. */
	if (l4_len < (tcp ? TCP_LEN : UDP_LEN) || len - l4 <= l4_len || l4 + l4_len > VP_GSO_HDR_MAX)
		return -EINVAL;
	/* Anything else asks for the checksum of another (an inner) header. */
	if (le16toh(h->csum_start) != l4 || le16toh(h->csum_offset) != (tcp ? TCP_CSUM : UDP_CSUM))
		return -EINVAL;
	/* The largest segment must fit the IP length field (IPv6 counts from behind its header). */
	if (l4 + l4_len + VP_MIN(mss, len - l4 - l4_len) - l3 - (ipv6 ? IP6_LEN : 0) > UINT16_MAX)
		return -EINVAL;

	if (len - l4 - l4_len > mss * VP_GSO_SEGS_MAX)
		return -EINVAL;

	*g = (struct vp_gso){
		.pkt = pkt, .len = len, .hdr_len = l4 + l4_len, .mss = mss,
		.l3_off = (uint16_t)l3, .l4_off = (uint16_t)l4,
		.gso_type = type, .ecn = ecn, .ipv6 = ipv6,
		.seq = tcp ? get32(pkt + l4 + TCP_SEQ) : 0,
		.ip_id = ipv6 ? 0 : get16(pkt + l3 + 4),
	};
	return 0;
}

static void finish_ip(const struct vp_gso *g, uint8_t *out, uint32_t total)
{
	uint8_t *ip = out + g->l3_off;

	if (g->ipv6) {
		put16(ip + 4, total - g->l3_off - IP6_LEN);
		return;
	}
	put16(ip + 2, total - g->l3_off);
	put16(ip + 4, (uint16_t)(g->ip_id + g->index));
	put16(ip + 10, 0);
	put_csum(ip + 10, sum_bytes(ip, g->l4_off - g->l3_off), true);
}

/* Pseudo header (RFC 9293 3.1, RFC 8200 8.1) from the addresses, never from the sender's partial sum. */
static void finish_l4(const struct vp_gso *g, uint8_t *out, uint32_t total, bool tcp)
{
	uint8_t *ip = out + g->l3_off, *l4 = out + g->l4_off;
	uint32_t l4_total = total - g->l4_off;
	uint8_t rest[8] = { 0 };
	uint64_t sum;

	sum = g->ipv6 ? sum_bytes(ip + 8, 32) : sum_bytes(ip + 12, 8);
	put32(rest, l4_total);
	rest[7] = tcp ? PROTO_TCP : PROTO_UDP;
	sum += sum_bytes(rest, sizeof(rest));
	put16(l4 + (tcp ? TCP_CSUM : UDP_CSUM), 0);
	sum += sum_bytes(l4, l4_total);
	put_csum(l4 + (tcp ? TCP_CSUM : UDP_CSUM), sum, tcp);
}

uint32_t vp_gso_next(struct vp_gso *g, uint8_t *out)
{
	bool tcp = g->gso_type != VIRTIO_NET_HDR_GSO_UDP_L4;
	uint32_t left = g->len - g->hdr_len - g->done;
	uint32_t n = VP_MIN(g->mss, left), total = g->hdr_len + n;
	uint8_t *l4 = out + g->l4_off;

	if (!left)
		return 0;
	memcpy(out, g->pkt, g->hdr_len);
	memcpy(out + g->hdr_len, g->pkt + g->hdr_len + g->done, n);
	if (tcp) {
		put32(l4 + TCP_SEQ, g->seq + g->done);
		if (n < left)
			l4[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
		/* RFC 3168 6.1.2: CWR stands once, on the first packet after the window was cut. */
		if (g->done)
			l4[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
	} else {
		put16(l4 + 4, total - g->l4_off);
	}
	finish_ip(g, out, total);
	finish_l4(g, out, total, tcp);
	g->done += n;
	g->index++;
	return total;
}
