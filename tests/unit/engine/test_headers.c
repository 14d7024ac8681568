/* SPDX-License-Identifier: BSD-3-Clause */
/* Offload headers that a device VM writes: what enters the driver VM's ring, and what does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <linux/virtio_net.h>

#include "rig.h"

static struct rig r;

#define GUEST_CSUM VP_BIT(VIRTIO_NET_F_GUEST_CSUM)
#define GUEST_TSO4 VP_BIT(VIRTIO_NET_F_GUEST_TSO4)
#define GUEST_ECN  VP_BIT(VIRTIO_NET_F_GUEST_ECN)
#define MRG        VP_BIT(VIRTIO_NET_F_MRG_RXBUF)

#define CSUM  VIRTIO_NET_HDR_F_NEEDS_CSUM
#define VALID VIRTIO_NET_HDR_F_DATA_VALID
#define TCP4  VIRTIO_NET_HDR_GSO_TCPV4
#define ECN   VIRTIO_NET_HDR_GSO_ECN

#define BUF 1526u

static void post(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct drv_buf b = { RIG_DATA + (uint64_t)(r.d.packed ? r.d.slot : r.d.avail) % 64 * 0x800, BUF, true };

		memset(drv_ptr(&r.m, b.addr), 0xee, 0x800);
		assert_true(drv_add(&r.d, &b, 1, 0) >= 0);
	}
	drv_publish(&r.d);
}

/* The device VM returns its next n buffers with these lengths, the first beginning with a header. */
static void send_up(const struct virtio_net_hdr *h, unsigned claim, const uint32_t *len, unsigned n)
{
	unsigned k = vp_vq_fetch_dir(&r.dev, &r.burst, n, VP_WRITE);

	assert_int_equal(k, n);
	for (unsigned i = 0; i < n; i++) {
		const struct vp_chain *c = &r.burst.chain[i];
		struct vp_used u = { len[i], c->id, c->slots };
		vp_gptr p = r.burst.seg[c->seg].p;

		for (unsigned at = 0; at < len[i]; at++)
			vp_st8(p, at, (uint8_t)(i + at));
		if (!i && len[0] >= 12) {
			vp_copy_out(p, h, sizeof(*h));
			vp_st16(p, 10, (uint16_t)claim);
		}
		vp_vq_complete(&r.dev, &u, 1);
	}
	vp_vq_advance(&r.dev, &r.burst, k);
	rig_run(&r);
}

static const struct {
	struct virtio_net_hdr h;
	uint64_t features;
	uint32_t len;
	bool good;
	uint8_t flags; /* that arrive */
} cases[] = {
	{ { 0 }, 0, 60, true, 0 },
	{ { .hdr_len = 9999, .gso_size = 7, .csum_start = 9999 }, 0, 60, true, 0 }, /* without a meaning: gone */
	{ { .flags = CSUM, .csum_start = 34, .csum_offset = 6 }, GUEST_CSUM, 60, true, CSUM },
	{ { .flags = CSUM, .csum_start = 34, .csum_offset = 6 }, 0, 60, false, 0 },
	{ { .flags = CSUM, .csum_start = 34, .csum_offset = 24 }, GUEST_CSUM, 60, true, CSUM },
	{ { .flags = CSUM, .csum_start = 34, .csum_offset = 25 }, GUEST_CSUM, 60, false, 0 },
	{ { .flags = CSUM, .csum_start = 0xffff, .csum_offset = 0xffff }, GUEST_CSUM, 60, false, 0 },
	/* a hint */
	{ { .flags = CSUM, .hdr_len = 61, .csum_start = 34, .csum_offset = 6 }, GUEST_CSUM, 60, true, CSUM },
	{ { .flags = VALID }, GUEST_CSUM, 60, true, VALID },
	{ { .flags = VALID }, 0, 60, true, VALID }, /* as on a fast link */
	{ { .flags = VALID | CSUM, .csum_start = 34, .csum_offset = 6 }, 0, 60, false, 0 },
	{ { .flags = 0x84 }, GUEST_CSUM, 60, true, 0 }, /* flags that were not negotiated */
	{ { .flags = CSUM, .gso_type = TCP4, .gso_size = 536, .csum_start = 34, .csum_offset = 16, .hdr_len = 54 },
	  GUEST_CSUM | GUEST_TSO4,
	  1400,
	  true,
	  CSUM },
	{ { .flags = CSUM, .gso_type = TCP4, .gso_size = 0, .csum_start = 34, .csum_offset = 16, .hdr_len = 54 },
	  GUEST_CSUM | GUEST_TSO4,
	  1400,
	  false,
	  0 },
	{ { .flags = CSUM, .gso_type = TCP4, .gso_size = 536, .csum_start = 34, .csum_offset = 16, .hdr_len = 54 },
	  GUEST_CSUM,
	  1400,
	  false,
	  0 },
	{ { .flags = CSUM,
	    .gso_type = TCP4 | ECN,
	    .gso_size = 536,
	    .csum_start = 34,
	    .csum_offset = 16,
	    .hdr_len = 54 },
	  GUEST_CSUM | GUEST_TSO4,
	  1400,
	  false,
	  0 },
	{ { .flags = CSUM,
	    .gso_type = TCP4 | ECN,
	    .gso_size = 536,
	    .csum_start = 34,
	    .csum_offset = 16,
	    .hdr_len = 54 },
	  GUEST_CSUM | GUEST_TSO4 | GUEST_ECN,
	  1400,
	  true,
	  CSUM },
	{ { .flags = 0, .gso_type = TCP4, .gso_size = 536, .hdr_len = 54 }, GUEST_CSUM | GUEST_TSO4, 1400, false, 0 },
	{ { .flags = CSUM, .gso_type = 0x7f, .gso_size = 536, .csum_start = 34, .csum_offset = 16 },
	  GUEST_CSUM | GUEST_TSO4,
	  1400,
	  false,
	  0 },
};

static void one(uint64_t format, unsigned k)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1 | MRG | format | cases[k].features, F_VERSION_1, 0 };
	uint32_t len = cases[k].len + 12, got;
	struct virtio_net_hdr h;
	const uint8_t *p;
	uint16_t id;

	rig_new(&r, &c);
	post(8);
	rig_run(&r);
	send_up(&cases[k].h, 1, &len, 1);
	assert_true(drv_get_used(&r.d, &id, &got));
	p = drv_ptr(&r.m, RIG_DATA);
	assert_int_equal(got, cases[k].good ? len : 0);
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_HEADER], !cases[k].good);
	if (cases[k].good) {
		memcpy(&h, p, sizeof(h));
		assert_int_equal(h.flags, cases[k].flags);
		assert_int_equal(h.gso_type, cases[k].h.gso_type);
		if (!cases[k].h.gso_type)
			assert_int_equal(h.gso_size | h.hdr_len, 0);
		if (!(h.flags & CSUM))
			assert_int_equal(h.csum_start | h.csum_offset, 0);
		assert_int_equal(p[10] | p[11] << 8, 1);
		for (unsigned i = 12; i < len; i++)
			assert_int_equal(p[i], (uint8_t)i);
	}
	/* The queue goes on either way. */
	len = 112;
	send_up(&(struct virtio_net_hdr){ 0 }, 1, &len, 1);
	assert_true(drv_get_used(&r.d, &id, &got));
	assert_int_equal(got, 112);
	assert_false(r.rq.vq.broken || r.b->shadow.broken);
	rig_free(&r);
}

static void test_headers(void **state)
{
	static const uint64_t formats[] = { 0, F_PACKED, F_IN_ORDER, F_PACKED | F_IN_ORDER };

	for (unsigned f = 0; f < VP_ARRAY_SIZE(formats); f++)
		for (unsigned k = 0; k < VP_ARRAY_SIZE(cases); k++)
			one(formats[f], k);
}

/* The packet is what its buffers hold together; the number of buffers is counted. */
static void test_merged(void **state)
{
	const struct virtio_net_hdr far = { .flags = CSUM, .csum_start = 2900, .csum_offset = 16 };
	const uint32_t lens[3] = { BUF, BUF, 500 }, hole[3] = { BUF, 0, 500 };
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1 | MRG | GUEST_CSUM, F_VERSION_1, 0 };
	uint32_t got;
	uint16_t id;

	rig_new(&r, &c);
	post(20);
	rig_run(&r);
	send_up(&far, 3, lens, 3); /* beyond the first buffer, within the packet */
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_get_used(&r.d, &id, &got));
		assert_int_equal(got, lens[i]);
	}
	assert_int_equal(drv_ptr(&r.m, RIG_DATA)[10], 3);
	send_up(&far, 1, lens, 1); /* the same header with the first buffer alone */
	assert_true(drv_get_used(&r.d, &id, &got));
	assert_int_equal(got, 0);
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_HEADER], 1);
	send_up(&far, 3, hole, 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_get_used(&r.d, &id, &got));
		assert_int_equal(got, 0);
	}
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_PACKET], 1);
	send_up(&far, 65, lens, 1); /* more than there are in the ring */
	assert_true(drv_get_used(&r.d, &id, &got));
	assert_int_equal(got, 0);
	send_up(&far, 3, lens, 2); /* one is missing: waits */
	assert_false(drv_get_used(&r.d, &id, &got));
	send_up(&far, 0, lens + 2, 1);
	for (unsigned i = 0; i < 3; i++)
		assert_true(drv_get_used(&r.d, &id, &got));
	assert_int_equal(r.rq.stats.packets, 2);
	rig_free(&r);
}

/* Without MRG_RXBUF nothing that the device VM claims is a number of buffers; shorter than a packet is none. */
static void test_single(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	const uint32_t lens[] = { 112, 11, 12, 25, 26 };
	uint32_t got;
	uint16_t id;

	rig_new(&r, &c);
	post(20);
	rig_run(&r);
	for (unsigned i = 0; i < VP_ARRAY_SIZE(lens); i++) {
		send_up(&(struct virtio_net_hdr){ 0 }, 7, &lens[i], 1);
		assert_true(drv_get_used(&r.d, &id, &got));
		assert_int_equal(got, i == 0 || i == 4 ? lens[i] : 0);
	}
	assert_int_equal(drv_ptr(&r.m, RIG_DATA)[10], 1);
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_PACKET], 3);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_headers), cmocka_unit_test(test_merged), cmocka_unit_test(test_single),
	};

	return cmocka_run_group_tests_name("headers", tests, NULL, NULL);
}
