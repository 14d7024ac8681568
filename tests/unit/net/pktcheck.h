/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A second opinion on packets: byte-wise checksums and a parser that share no
 * code with lib/net. Used by the unit tests and by the fuzz target.
 */
#ifndef VP_TESTS_PKTCHECK_H
#define VP_TESTS_PKTCHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline unsigned pc_be16(const uint8_t *p)
{
	return p[0] * 256u + p[1];
}

/* Ones' complement sum, two bytes at a time, carry added back at once. */
static inline unsigned pc_sum(unsigned s, const uint8_t *p, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		s += i % 2 ? p[i] : p[i] * 256u;
		if (s > 0xffff)
			s -= 0xffff;
	}
	return s;
}

struct pc_pkt {
	bool     ipv6, tcp;
	size_t   l3, l4, payload, len;
	unsigned ip_id;
	uint32_t seq;
	uint8_t  flags;
};

/* NULL when the packet is complete and right (lengths, both checksums), else what is wrong. */
static inline const char *pc_parse(const uint8_t *p, size_t len, struct pc_pkt *k)
{
	size_t off = 12;
	unsigned type, proto, s, l4len;
	uint8_t tail[4];

	k->len = len;
	if (len < 14)
		return "short frame";
	while ((type = pc_be16(p + off)) == 0x8100 || type == 0x88a8 || type == 0x9100) {
		off += 4;
		if (off + 2 > len)
			return "short tag";
	}
	k->l3 = off += 2;
	if (type == 0x0800) {
		k->ipv6 = false;
		if (len < off + 20 || len < off + (p[off] & 15) * 4u)
			return "short IPv4 header";
		if (pc_be16(p + off + 2) != len - off)
			return "IPv4 total length";
		if (pc_sum(0, p + off, (p[off] & 15) * 4u) != 0xffff)
			return "IPv4 header checksum";
		k->ip_id = pc_be16(p + off + 4);
		proto = p[off + 9];
		s = pc_sum(0, p + off + 12, 8);
		off += (p[off] & 15) * 4u;
	} else if (type == 0x86dd) {
		k->ipv6 = true;
		k->ip_id = 0;
		if (len < off + 40)
			return "short IPv6 header";
		if (pc_be16(p + off + 4) != len - off - 40)
			return "IPv6 payload length";
		proto = p[off + 6];
		s = pc_sum(0, p + off + 8, 32);
		off += 40;
		while (proto == 0 || proto == 43 || proto == 60) {
			if (len < off + 8)
				return "short extension header";
			proto = p[off];
			off += (p[off + 1] + 1u) * 8;
			if (off > len)
				return "extension header";
		}
	} else {
		return "EtherType";
	}
	k->l4 = off;
	k->tcp = proto == 6;
	if (proto != 6 && proto != 17)
		return "protocol";
	if (len < off + (k->tcp ? 20 : 8))
		return "short transport header";
	l4len = (unsigned)(len - off);
	tail[0] = 0;
	tail[1] = (uint8_t)proto;
	tail[2] = (uint8_t)(l4len >> 8);
	tail[3] = (uint8_t)l4len;
	s = pc_sum(s, tail, 4);
	if (pc_sum(s, p + off, l4len) != 0xffff)
		return "transport checksum";
	if (k->tcp) {
		k->payload = off + (p[off + 12] >> 4) * 4u;
		k->seq = (uint32_t)pc_be16(p + off + 4) << 16 | pc_be16(p + off + 6);
		k->flags = p[off + 13];
	} else {
		if (pc_be16(p + off + 4) != l4len)
			return "UDP length";
		if (!pc_be16(p + off + 6))
			return "UDP checksum of zero";
		k->payload = off + 8;
		k->seq = 0;
		k->flags = 0;
	}
	return k->payload > len ? "transport header length" : NULL;
}

#endif
