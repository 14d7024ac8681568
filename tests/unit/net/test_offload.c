/* SPDX-License-Identifier: BSD-3-Clause */
/* The offload header and what software does for a receiver that did not negotiate it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "net/offload.h"
#include "pktcheck.h"

#ifndef VIRTIO_NET_F_HOST_USO
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO   56
#endif
#define UDP_L4 5 /* VIRTIO_NET_HDR_GSO_UDP_L4 */
#define ECN    VIRTIO_NET_HDR_GSO_ECN

#define F(x)     VP_BIT(VIRTIO_NET_F_##x)
#define HOST_ALL (F(CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F(HOST_ECN) | F(HOST_UFO) | F(HOST_USO))
#define GUEST_ALL (F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_TSO6) | F(GUEST_ECN) | F(GUEST_UFO) | \
		   F(GUEST_USO4) | F(GUEST_USO6))

struct shape {
	bool     ipv6, tcp;
	unsigned tags, l3_extra, l4_extra, payload;
	unsigned flags, ip_id;
	uint32_t seq;
};

static uint8_t pkt[70000], seg[70000], got[70000];

/* A large segment as a driver would send it: the checksum field holds the pseudo header's sum. */
static uint32_t build(const struct shape *s, struct virtio_net_hdr *h, unsigned mss)
{
	uint8_t *p = pkt, *l3, *l4;
	unsigned i, proto = s->tcp ? 6 : 17, l4_hdr = s->tcp ? 20 + s->l4_extra : 8, ps, ext;
	uint8_t ph[4];

	memset(pkt, 0, sizeof(pkt));
	for (i = 0; i < 12; i++)
		*p++ = (uint8_t)(2 + i);
	for (i = 0; i < s->tags; i++) {
		*p++ = i + 1 == s->tags ? 0x81 : 0x88;
		*p++ = i + 1 == s->tags ? 0x00 : 0xa8;
		*p++ = 0x20;
		*p++ = (uint8_t)(7 + i);
	}
	*p++ = s->ipv6 ? 0x86 : 0x08;
	*p++ = s->ipv6 ? 0xdd : 0x00;
	l3 = p;
	if (s->ipv6) {
		uint8_t *next = l3 + 6;

		p[0] = 0x60;
		p[7] = 64;
		for (i = 0; i < 32; i++)
			p[8 + i] = (uint8_t)(i * 37 + 0x20);
		p += 40;
		/* l3_extra bytes of extension headers: hop-by-hop, then destination options. */
		for (ext = 0; ext < s->l3_extra;) {
			unsigned n = ext ? s->l3_extra - ext : 8;

			*next = ext ? 60 : 0;
			next = p;
			p[1] = (uint8_t)(n / 8 - 1);
			p[2] = 1; /* PadN */
			p[3] = (uint8_t)(n - 4);
			p += n;
			ext += n;
		}
		*next = (uint8_t)proto;
		ps = pc_sum(0, l3 + 8, 32);
	} else {
		p[0] = (uint8_t)(0x40 | (20 + s->l3_extra) / 4);
		p[4] = (uint8_t)(s->ip_id >> 8);
		p[5] = (uint8_t)s->ip_id;
		p[6] = 0x40;
		p[8] = 64;
		p[9] = (uint8_t)proto;
		p[10] = 0xde;
		p[11] = 0xad;
		for (i = 0; i < 8; i++)
			p[12 + i] = (uint8_t)(10 + 3 * i);
		memset(p + 20, 1, s->l3_extra); /* NOP options */
		p += 20 + s->l3_extra;
		ps = pc_sum(0, l3 + 12, 8);
	}
	l4 = p;
	l4[0] = 0x30;
	l4[1] = 0x39;
	l4[3] = 80;
	if (s->tcp) {
		l4[4] = (uint8_t)(s->seq >> 24);
		l4[5] = (uint8_t)(s->seq >> 16);
		l4[6] = (uint8_t)(s->seq >> 8);
		l4[7] = (uint8_t)s->seq;
		l4[8] = 0x77;
		l4[12] = (uint8_t)(l4_hdr / 4 << 4);
		l4[13] = (uint8_t)s->flags;
		l4[14] = 0x10;
		memset(l4 + 20, 1, s->l4_extra);
	} else {
		l4[4] = (uint8_t)((8 + s->payload) >> 8);
		l4[5] = (uint8_t)(8 + s->payload);
	}
	p += l4_hdr;
	for (i = 0; i < s->payload; i++)
		*p++ = (uint8_t)(i * 31 + (i >> 8) + 5);
	ph[0] = 0;
	ph[1] = (uint8_t)proto;
	ph[2] = (uint8_t)((l4_hdr + s->payload) >> 8);
	ph[3] = (uint8_t)(l4_hdr + s->payload);
	ps = pc_sum(ps, ph, 4);
	l4[s->tcp ? 16 : 6] = (uint8_t)(ps >> 8);
	l4[s->tcp ? 17 : 7] = (uint8_t)ps;
	if (s->ipv6) {
		l3[4] = (uint8_t)((p - l3 - 40) >> 8);
		l3[5] = (uint8_t)(p - l3 - 40);
	} else {
		l3[2] = (uint8_t)((p - l3) >> 8);
		l3[3] = (uint8_t)(p - l3);
		l3[10] = l3[11] = 0;
		ps = ~pc_sum(0, l3, 20 + s->l3_extra) & 0xffff;
		l3[10] = (uint8_t)(ps >> 8);
		l3[11] = (uint8_t)ps;
	}
	*h = (struct virtio_net_hdr){
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = !s->tcp ? UDP_L4 : s->ipv6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4,
		.hdr_len = (uint16_t)(l4 + l4_hdr - pkt),
		.gso_size = (uint16_t)mss,
		.csum_start = (uint16_t)(l4 - pkt),
		.csum_offset = s->tcp ? 16 : 6,
	};
	return (uint32_t)(p - pkt);
}

static void cut_and_compare(const struct shape *s, unsigned mss, bool ecn)
{
	struct virtio_net_hdr h;
	uint32_t len = build(s, &h, mss), n, done = 0, hdr;
	unsigned i = 0, count = (s->payload + mss - 1) / mss;
	struct pc_pkt k;
	struct vp_gso g;
	size_t j;

	if (ecn)
		h.gso_type |= ECN;
	assert_int_equal(vp_net_hdr_check(&h, len, HOST_ALL), 0);
	hdr = h.hdr_len;
	assert_int_equal(vp_gso_init(&g, pkt, len, &h), 0);
	assert_int_equal(g.hdr_len, hdr);
	memset(seg, 0xee, sizeof(seg));
	while ((n = vp_gso_next(&g, seg))) {
		const char *bad = pc_parse(seg, n, &k);
		uint32_t want = VP_MIN(mss, s->payload - done);

		if (bad)
			fail_msg("segment %u of %u: %s (ipv6 %d tcp %d tags %u extra %u/%u payload %u mss %u)", i,
				 count, bad, s->ipv6, s->tcp, s->tags, s->l3_extra, s->l4_extra, s->payload, mss);
		assert_int_equal(k.ipv6, s->ipv6);
		assert_int_equal(k.tcp, s->tcp);
		assert_int_equal(k.payload, hdr);
		assert_int_equal(n - hdr, want);
		assert_int_equal(seg[n], 0xee); /* nothing behind the segment */
		memcpy(got + done, seg + hdr, want);
		if (!s->ipv6)
			assert_int_equal(k.ip_id, (s->ip_id + i) & 0xffff);
		if (s->tcp) {
			unsigned flags = s->flags;

			if (i + 1 < count)
				flags &= ~0x09u;
			if (i)
				flags &= ~0x80u;
			assert_int_equal(k.seq, s->seq + done);
			assert_int_equal(k.flags, flags);
		}
		/* Headers differ from the original only in what has to change. */
		for (j = 0; j < hdr; j++) {
			size_t l3 = k.l3, l4 = k.l4;
			bool may = s->ipv6 ? j == l3 + 4 || j == l3 + 5
					   : (j >= l3 + 2 && j < l3 + 6) || j == l3 + 10 || j == l3 + 11;

			if (s->tcp)
				may |= (j >= l4 + 4 && j < l4 + 8) || j == l4 + 13 || j == l4 + 16 || j == l4 + 17;
			else
				may |= j >= l4 + 4;
			if (!may)
				assert_int_equal(seg[j], pkt[j]);
		}
		done += want;
		i++;
		memset(seg, 0xee, n);
	}
	assert_int_equal(i, count);
	assert_int_equal(done, s->payload);
	assert_memory_equal(got, pkt + hdr, done);
	assert_int_equal(vp_gso_next(&g, seg), 0);
}

static void test_segments(void **state)
{
	static const unsigned l3_extra4[] = { 0, 4, 40 }, l3_extra6[] = { 0, 8, 40 }, l4_extra[] = { 0, 12, 40 };
	static const struct { unsigned payload, mss; } sizes[] = {
		{ 1, 8 }, { 7, 8 }, { 1280, 8 }, { 1, 1448 }, { 1447, 1448 }, { 1448, 1448 }, { 1449, 1448 },
		{ 9001, 536 }, { 65000, 1448 }, { 65000, 8948 },
	};
	static const unsigned flags[] = { 0x10, 0x18, 0x11, 0x19, 0x98, 0xd9, 0xff };
	unsigned v, t, tags, a, b, c;

	for (v = 0; v < 2; v++)
	for (t = 0; t < 2; t++)
	for (tags = 0; tags < 3; tags++)
	for (a = 0; a < 3; a++)
	for (b = 0; b < (t ? 3 : 1); b++)
	for (c = 0; c < VP_ARRAY_SIZE(sizes); c++) {
		struct shape s = {
			.ipv6 = v, .tcp = t, .tags = tags, .l3_extra = v ? l3_extra6[a] : l3_extra4[a],
			.l4_extra = t ? l4_extra[b] : 0, .payload = sizes[c].payload,
			.flags = flags[(a + b + c) % VP_ARRAY_SIZE(flags)], .ip_id = 0xfffe - a,
			.seq = 0xfffffff0u - b,
		};

		cut_and_compare(&s, sizes[c].mss, t && (a & 1));
	}
}

/* Over many sizes some checksum folds to zero, which UDP must send as all ones. */
static void test_udp_zero_checksum(void **state)
{
	struct shape s = { .tcp = false, .payload = 2 };
	struct virtio_net_hdr h;
	struct vp_gso g;
	struct pc_pkt k;
	uint32_t len, n;
	unsigned v, seen = 0;

	for (v = 0; v < 65536; v++) {
		len = build(&s, &h, 2);
		pkt[len - 2] = (uint8_t)(v >> 8);
		pkt[len - 1] = (uint8_t)v;
		assert_int_equal(vp_gso_init(&g, pkt, len, &h), 0);
		n = vp_gso_next(&g, seg);
		assert_null(pc_parse(seg, n, &k));
		seen += pc_be16(seg + k.l4 + 6) == 0xffff;
		assert_int_equal(vp_net_csum_complete(pkt, len, h.csum_start, h.csum_offset), 0);
		assert_null(pc_parse(pkt, len, &k));
		assert_memory_equal(pkt + k.l4, seg + k.l4, 10);
	}
	assert_true(seen > 0);
}

static void test_csum_complete(void **state)
{
	struct virtio_net_hdr h;
	struct pc_pkt k;
	unsigned payload, v, t;

	for (payload = 0; payload < 300; payload++)
	for (v = 0; v < 2; v++)
	for (t = 0; t < 2; t++) {
		struct shape s = { .ipv6 = v, .tcp = t, .payload = payload, .tags = payload % 2 };
		uint32_t len = build(&s, &h, 100);

		memset(pkt + len, 0xa5, 8);
		if (payload)
			assert_string_equal(pc_parse(pkt, len, &k), "transport checksum");
		assert_int_equal(vp_net_csum_complete(pkt, len, h.csum_start, h.csum_offset), 0);
		assert_null(pc_parse(pkt, len, &k));
		assert_int_equal(pkt[len], 0xa5);
	}
	/* A large packet: no carry is lost. */
	memset(pkt, 0xff, 65550);
	assert_int_equal(vp_net_csum_complete(pkt, 65550, 0, 2), 0);
	assert_int_equal(pc_be16(pkt + 2), 0xffff); /* ~0xffff is 0, written as all ones */
}

static void test_csum_bounds(void **state)
{
	uint8_t *p = malloc(64);

	memset(p, 0, 64);
	assert_int_equal(vp_net_csum_complete(p, 64, 34, 28), 0); /* the last two bytes */
	assert_int_equal(vp_net_csum_complete(p, 64, 34, 29), -EINVAL);
	assert_int_equal(vp_net_csum_complete(p, 64, 62, 0), 0);
	assert_int_equal(vp_net_csum_complete(p, 64, 63, 0), -EINVAL);
	assert_int_equal(vp_net_csum_complete(p, 64, 64, 0), -EINVAL);
	assert_int_equal(vp_net_csum_complete(p, 64, 65535, 65535), -EINVAL); /* no 16-bit wrap */
	assert_int_equal(vp_net_csum_complete(p, 64, 65535, 1), -EINVAL);
	assert_int_equal(vp_net_csum_complete(p, 1, 0, 0), -EINVAL);
	assert_int_equal(vp_net_csum_complete(p, 0, 0, 0), -EINVAL);
	free(p);
}

static void test_hdr_check_bounds(void **state)
{
	struct virtio_net_hdr good = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
				       .hdr_len = 54, .gso_size = 1448, .csum_start = 34, .csum_offset = 16 }, h;

#define CHECK(want, len, features, change) do { h = good; change; \
		assert_int_equal(vp_net_hdr_check(&h, len, features), want); } while (0)
	CHECK(0, 3000, HOST_ALL, );
	CHECK(-EINVAL, 3000, HOST_ALL, h.csum_start = 2983);
	CHECK(0, 3000, HOST_ALL, h.csum_start = 2982);
	CHECK(-EINVAL, 3000, HOST_ALL, h.csum_start = 65535; h.csum_offset = 65535);
	CHECK(-EINVAL, 3000, HOST_ALL, h.csum_start = 65530; h.csum_offset = 4);
	CHECK(-EINVAL, 3000, HOST_ALL, h.csum_offset = 2965);
	/* A hint: what cannot be becomes what can. */
	CHECK(0, 3000, HOST_ALL, h.hdr_len = 3001);
	assert_int_equal(h.hdr_len, 3000);
	CHECK(0, 3000, HOST_ALL, h.hdr_len = 0);
	assert_int_equal(h.hdr_len, 54);
	CHECK(0, 3000, HOST_ALL, h.hdr_len = 66);
	assert_int_equal(h.hdr_len, 66);
	CHECK(0, 60, HOST_ALL, h.hdr_len = 0xffff; h.csum_start = 44; h.csum_offset = 6);
	assert_int_equal(h.hdr_len, 60);
	CHECK(0, 3000, HOST_ALL, h.hdr_len = 3000);
	CHECK(-EINVAL, 3000, HOST_ALL, h.gso_size = 0);
	CHECK(-EINVAL, 3000, HOST_ALL, h.flags = 0);
	CHECK(-EINVAL, 3000, HOST_ALL, h.flags = VIRTIO_NET_HDR_F_DATA_VALID);
	CHECK(-EINVAL, 0, HOST_ALL, );
	CHECK(0, 10, HOST_ALL, h.gso_type = 0; h.flags = 0; h.hdr_len = 11);
	assert_int_equal(h.hdr_len, 0);
	CHECK(-EINVAL, 10, HOST_ALL, h.gso_type = 0; h.hdr_len = 0);
	CHECK(0, 100, HOST_ALL, h.gso_type = 0; h.gso_size = 0);
#undef CHECK
}

static void test_hdr_check_negotiated(void **state)
{
	static const struct { uint8_t type; uint64_t need; } types[] = {
		{ VIRTIO_NET_HDR_GSO_NONE, F(CSUM) },
		{ VIRTIO_NET_HDR_GSO_TCPV4, F(CSUM) | F(HOST_TSO4) },
		{ VIRTIO_NET_HDR_GSO_TCPV4 | ECN, F(CSUM) | F(HOST_TSO4) | F(HOST_ECN) },
		{ VIRTIO_NET_HDR_GSO_TCPV6, F(CSUM) | F(HOST_TSO6) },
		{ VIRTIO_NET_HDR_GSO_TCPV6 | ECN, F(CSUM) | F(HOST_TSO6) | F(HOST_ECN) },
		{ VIRTIO_NET_HDR_GSO_UDP, F(CSUM) | F(HOST_UFO) },
		{ UDP_L4, F(CSUM) | F(HOST_USO) },
	};
	unsigned t, bit, i;

	for (t = 0; t < 256; t++) {
		uint64_t need = 0;
		struct virtio_net_hdr h;

		for (i = 0; i < VP_ARRAY_SIZE(types); i++)
			if (types[i].type == t)
				need = types[i].need;
		h = (struct virtio_net_hdr){ .flags = 1, .gso_type = (uint8_t)t, .gso_size = 100, .csum_start = 34,
					     .csum_offset = 16 };
		if (!need) {
			/* Unknown, and ECN on what is not TCP. */
			assert_int_equal(vp_net_hdr_check(&h, 1000, UINT64_MAX), -EINVAL);
			continue;
		}
		assert_int_equal(vp_net_hdr_check(&h, 1000, need), 0);
		for (bit = 0; bit < 64; bit++) {
			if (!(need & VP_BIT(bit)))
				continue;
			h = (struct virtio_net_hdr){ .flags = 1, .gso_type = (uint8_t)t, .gso_size = 100,
						     .csum_start = 34, .csum_offset = 16 };
			assert_int_equal(vp_net_hdr_check(&h, 1000, ~VP_BIT(bit)), -EINVAL);
		}
	}
}

/* Flags of the device alone and fields without a meaning do not reach the other VM. */
static void test_hdr_check_clears(void **state)
{
	static const struct virtio_net_hdr zero;
	struct virtio_net_hdr h;

	h = (struct virtio_net_hdr){ .flags = 0xfe, .hdr_len = 3, .gso_size = 4, .csum_start = 0xffff,
				     .csum_offset = 0xffff };
	assert_int_equal(vp_net_hdr_check(&h, 1000, HOST_ALL), 0);
	assert_memory_equal(&h, &zero, sizeof(h));
	h = (struct virtio_net_hdr){ .flags = 0xff, .csum_start = 34, .csum_offset = 16, .gso_size = 9 };
	assert_int_equal(vp_net_hdr_check(&h, 1000, HOST_ALL), 0);
	assert_int_equal(h.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
	assert_int_equal(h.gso_size, 0);
	assert_int_equal(h.csum_start, 34);
	assert_int_equal(h.csum_offset, 16);
	h = (struct virtio_net_hdr){ 0 };
	assert_int_equal(vp_net_hdr_check(&h, 60, 0), 0);
}

static void test_hdr_accepted(void **state)
{
	static const struct { uint8_t flags, type; uint64_t need; } c[] = {
		{ 0, 0, 0 },
		{ 1, 0, F(GUEST_CSUM) },
		{ 1, VIRTIO_NET_HDR_GSO_TCPV4, F(GUEST_CSUM) | F(GUEST_TSO4) },
		{ 1, VIRTIO_NET_HDR_GSO_TCPV4 | ECN, F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_ECN) },
		{ 1, VIRTIO_NET_HDR_GSO_TCPV6, F(GUEST_CSUM) | F(GUEST_TSO6) },
		{ 1, VIRTIO_NET_HDR_GSO_TCPV6 | ECN, F(GUEST_CSUM) | F(GUEST_TSO6) | F(GUEST_ECN) },
		{ 1, VIRTIO_NET_HDR_GSO_UDP, F(GUEST_CSUM) | F(GUEST_UFO) },
		{ 1, UDP_L4, F(GUEST_CSUM) | F(GUEST_USO4) | F(GUEST_USO6) },
	};
	unsigned i, bit;

	for (i = 0; i < VP_ARRAY_SIZE(c); i++) {
		struct virtio_net_hdr h = { .flags = c[i].flags, .gso_type = c[i].type };

		assert_true(vp_net_hdr_accepted(&h, c[i].need));
		assert_true(vp_net_hdr_accepted(&h, GUEST_ALL));
		/* The driver-to-device bits grant nothing in this direction. */
		if (c[i].need)
			assert_false(vp_net_hdr_accepted(&h, HOST_ALL));
		for (bit = 0; bit < 64; bit++)
			if (c[i].need & VP_BIT(bit))
				assert_false(vp_net_hdr_accepted(&h, ~VP_BIT(bit)));
	}
	assert_false(vp_net_hdr_accepted(&(struct virtio_net_hdr){ .flags = 1, .gso_type = 2 }, UINT64_MAX));
}

static int init_with(uint32_t len, struct virtio_net_hdr *h)
{
	/* An exact allocation, so that AddressSanitizer sees one byte too many. */
	uint8_t *p = malloc(len ? len : 1);
	struct vp_gso g;
	int ret;

	memcpy(p, pkt, len);
	ret = vp_gso_init(&g, p, len, h);
	if (!ret) {
		uint8_t *out = malloc(g.hdr_len + g.mss);

		assert_true(g.hdr_len <= VP_GSO_HDR_MAX);
		while (vp_gso_next(&g, out))
			;
		free(out);
	}
	free(p);
	return ret;
}

/* What a packet may be cut into is bounded: mss 1 made 32,000 segments of one. */
static void test_gso_too_many_segments(void **state)
{
	static const struct { bool tcp; unsigned payload, mss; int ret; } c[] = {
		{ true, 7, 7, -EINVAL }, { true, 8, 8, 0 }, { true, 3000, 1, -EINVAL }, { false, 160, 1, 0 },
		{ false, 161, 1, -EINVAL }, { true, 8 * 160, 8, 0 }, { true, 8 * 160 + 1, 8, -EINVAL },
		{ true, 65495, 410, 0 }, { true, 65000, 406, -EINVAL }, { false, 65000, 406, -EINVAL },
	};
	struct virtio_net_hdr h;

	for (unsigned i = 0; i < 2 * VP_ARRAY_SIZE(c); i++) {
		struct shape s = { .ipv6 = i & 1, .tcp = c[i / 2].tcp, .payload = c[i / 2].payload };
		uint32_t len = build(&s, &h, c[i / 2].mss);

		assert_int_equal(init_with(len, &h), c[i / 2].ret);
	}
}

static void test_gso_rejects(void **state)
{
	struct shape v4 = { .tcp = true, .payload = 3000 }, v6 = { .tcp = true, .ipv6 = true, .payload = 3000 };
	struct shape u4 = { .payload = 3000 }, s;
	struct virtio_net_hdr h;
	uint32_t len, n;

#define REJECT(shape, change) do { len = build(&(shape), &h, 1000); assert_int_equal(init_with(len, &h), 0); \
		change; assert_int_equal(init_with(len, &h), -EINVAL); } while (0)
	REJECT(v4, h.gso_size = 0);
	REJECT(v4, h.flags = 0);
	REJECT(v4, h.gso_type = VIRTIO_NET_HDR_GSO_NONE);
	REJECT(v4, h.gso_type = VIRTIO_NET_HDR_GSO_TCPV6);
	REJECT(v4, h.gso_type = UDP_L4);
	REJECT(v6, h.gso_type = VIRTIO_NET_HDR_GSO_TCPV4);
	REJECT(u4, h.gso_type = VIRTIO_NET_HDR_GSO_TCPV4);
	REJECT(u4, h.gso_type = UDP_L4 | ECN);
	REJECT(v4, h.csum_start++);
	REJECT(v4, h.csum_offset++);
	REJECT(v4, pkt[12] = 0x86);         /* an EtherType that is not IP */
	REJECT(v4, pkt[14] = 0x55);         /* version 5 */
	REJECT(v4, pkt[14] = 0x44);         /* header of 16 bytes */
	REJECT(v4, pkt[14] = 0x4f);         /* options that swallow the TCP header */
	REJECT(v4, pkt[20] = 0x20);         /* more fragments */
	REJECT(v4, pkt[21] = 1);            /* a later fragment */
	REJECT(v4, pkt[23] = 17);
	REJECT(v4, pkt[34 + 12] = 0x40);    /* TCP header of 16 bytes */
	REJECT(v4, len = 54);               /* no payload */
	REJECT(v4, len = 53);
	REJECT(v6, pkt[14] = 0x40);
	REJECT(v6, pkt[20] = 44);           /* fragment header */
	REJECT(v6, pkt[20] = 51);           /* authentication header */
	REJECT(v6, pkt[20] = 59);           /* no next header */
	REJECT(v6, pkt[20] = 0);            /* extension headers that lead nowhere */
	REJECT(v6, pkt[20] = 43; pkt[57] = 1); /* routing header with hops left */
#undef REJECT
	len = build(&v4, &h, 1000);
	h.gso_type = VIRTIO_NET_HDR_GSO_UDP;
	assert_int_equal(init_with(len, &h), -EOPNOTSUPP);

	/* A segment must fit the IP length field. */
	s = (struct shape){ .tcp = true, .payload = 65535 - 40 };
	len = build(&s, &h, 65535);
	assert_int_equal(init_with(len, &h), 0);
	s.payload++;
	len = build(&s, &h, 65535);
	assert_int_equal(init_with(len, &h), -EINVAL);
	s = (struct shape){ .ipv6 = true, .tcp = true, .payload = 65535 - 20 };
	len = build(&s, &h, 65535);
	assert_int_equal(init_with(len, &h), 0);
	s.payload++;
	len = build(&s, &h, 65535);
	assert_int_equal(init_with(len, &h), -EINVAL);

	/* Cut off anywhere in the headers: rejected, and nothing behind the end is read. */
	s = (struct shape){ .ipv6 = true, .tcp = true, .tags = 2, .l3_extra = 40, .l4_extra = 12, .payload = 9 };
	len = build(&s, &h, 8);
	for (n = 0; n <= h.hdr_len; n++)
		assert_int_equal(init_with(n, &h), -EINVAL);
	assert_int_equal(init_with(n, &h), 0);

	s = (struct shape){ .tcp = true, .tags = 1, .l3_extra = 40, .l4_extra = 40, .payload = 9 };
	len = build(&s, &h, 8);
	for (n = 0; n <= h.hdr_len; n++)
		assert_int_equal(init_with(n, &h), -EINVAL);
	assert_int_equal(init_with(n, &h), 0);

	/* Headers that go on and on: rejected beyond VP_GSO_HDR_MAX. */
	s = (struct shape){ .tcp = true, .tags = 54, .payload = 99 };
	len = build(&s, &h, 10);
	assert_int_equal(init_with(len, &h), -EINVAL);
	s = (struct shape){ .tcp = true, .ipv6 = true, .l3_extra = 264, .payload = 99 };
	len = build(&s, &h, 10);
	assert_int_equal(init_with(len, &h), -EINVAL);
}

/* hdr_len is the sender's word and decides nothing. */
static void test_gso_ignores_hdr_len(void **state)
{
	struct shape s = { .tcp = true, .payload = 3000 };
	struct virtio_net_hdr h;
	struct vp_gso g;
	uint32_t len = build(&s, &h, 1000);

	h.hdr_len = 0;
	assert_int_equal(vp_gso_init(&g, pkt, len, &h), 0);
	assert_int_equal(g.hdr_len, 54);
	h.hdr_len = 2000;
	assert_int_equal(vp_gso_init(&g, pkt, len, &h), 0);
	assert_int_equal(g.hdr_len, 54);
}

static void test_hdr_len_by_features(void **state)
{
	assert_int_equal(vp_net_hdr_len(0), 10);
	assert_int_equal(vp_net_hdr_len(F(CSUM)), 10);
	assert_int_equal(vp_net_hdr_len(F(MRG_RXBUF)), 12);
	assert_int_equal(vp_net_hdr_len(VP_BIT(VIRTIO_F_VERSION_1)), 12);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_segments),
		cmocka_unit_test(test_udp_zero_checksum),
		cmocka_unit_test(test_csum_complete),
		cmocka_unit_test(test_csum_bounds),
		cmocka_unit_test(test_hdr_check_bounds),
		cmocka_unit_test(test_hdr_check_negotiated),
		cmocka_unit_test(test_hdr_check_clears),
		cmocka_unit_test(test_hdr_accepted),
		cmocka_unit_test(test_gso_too_many_segments),
		cmocka_unit_test(test_gso_rejects),
		cmocka_unit_test(test_gso_ignores_hdr_len),
		cmocka_unit_test(test_hdr_len_by_features),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
