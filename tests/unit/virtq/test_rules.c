/* SPDX-License-Identifier: BSD-3-Clause */
/* Rings that break the rules, each by the name of the bug class, in both formats where it applies. */
#include "rules.h"

/* ---- indices ---- */

static void test_avail_ahead_by_more_than_size(void **state)
{
	start(16, 0);
	one_good_split(0);
	drv_set_avail_idx(&d, 16);
	assert_int_equal(fetch(VP_BURST), 16); /* the whole ring is allowed */
	assert_int_equal(vq.broken, VP_VQ_OK);
	stop();

	start(16, 0);
	drv_set_avail_idx(&d, 17);
	expect_broken(0, VP_VQ_BAD_INDEX);
	stop();
}

static void test_avail_jumps_back(void **state)
{
	start(16, 0);
	one_good_split(0);
	drv_set_avail_idx(&d, 5);
	assert_int_equal(fetch(VP_BURST), 5);
	vp_vq_advance(&vq, b, 5);
	drv_set_avail_idx(&d, 4);
	expect_broken(0, VP_VQ_BAD_INDEX);
	stop();
}

static void test_avail_wraps_at_65535(void **state)
{
	uint32_t lap;
	struct vp_vq_conf c;

	start(4, 0);
	one_good_split(0);
	drv_put16(&m, d.device + 2, 65534); /* resumed */
	c = drv_conf(&d, 65534);
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	drv_set_avail_idx(&d, 65534);
	for (lap = 65534; lap < 65536 + 10; lap++) {
		struct vp_used u = { .slots = 1 };

		assert_int_equal(fetch(VP_BURST), 0);
		drv_set_avail(&d, (uint16_t)lap, 0);
		assert_int_equal(fetch(VP_BURST), 1);
		vp_vq_advance(&vq, b, 1);
		vp_vq_complete(&vq, &u, 1);
		assert_int_equal(drv_get16(&m, d.device + 2), (uint16_t)(lap + 1));
		assert_int_equal(vp_vq_base(&vq), (uint16_t)(lap + 1));
	}
	assert_int_equal(vq.broken, VP_VQ_OK);
	stop();
}

/* ---- descriptor ids and chains ---- */

static void test_head_out_of_range(void **state)
{
	static const uint16_t bad[] = { 16, 17, 0x7fff, 0x8000, 0xffff };
	unsigned i;

	for (i = 0; i < VP_ARRAY_SIZE(bad); i++) {
		start(16, 0);
		one_good_split(0);
		drv_set_avail(&d, 0, 0);
		drv_set_avail(&d, 1, bad[i]);
		drv_set_avail(&d, 2, 0);
		expect_broken(1, VP_VQ_BAD_DESC);
		stop();
	}
}

static void test_next_out_of_range(void **state)
{
	static const uint16_t bad[] = { 16, 0x8000, 0xffff };
	unsigned i;

	for (i = 0; i < VP_ARRAY_SIZE(bad); i++) {
		start(16, 0);
		drv_set_desc(&d, 3, DATA, 100, D_NEXT, bad[i]);
		drv_set_avail(&d, 0, 3);
		expect_broken(0, VP_VQ_BAD_DESC);
		stop();
	}
}

static void test_circular_chain(void **state)
{
	/* to itself, a ring of two, a ring of all; of zero-length descriptors too */
	unsigned len, i;

	for (len = 0; len < 2; len++) {
		start(16, 0);
		drv_set_desc(&d, 3, DATA, len, D_NEXT, 3);
		drv_set_avail(&d, 0, 3);
		expect_broken(0, VP_VQ_BAD_CHAIN);
		stop();
		start(16, 0);
		drv_set_desc(&d, 3, DATA, len, D_NEXT, 4);
		drv_set_desc(&d, 4, DATA, len, D_NEXT, 3);
		drv_set_avail(&d, 0, 3);
		expect_broken(0, VP_VQ_BAD_CHAIN);
		stop();
		start(16, 0);
		for (i = 0; i < 16; i++)
			drv_set_desc(&d, i, DATA, len, D_NEXT, (uint16_t)((i + 1) % 16));
		drv_set_avail(&d, 0, 3);
		expect_broken(0, VP_VQ_BAD_CHAIN);
		stop();
		start(1, 0);
		drv_set_desc(&d, 0, DATA, len, D_NEXT, 0);
		drv_set_avail(&d, 0, 0);
		expect_broken(0, VP_VQ_BAD_CHAIN);
		stop();
	}
}

static void test_chain_of_whole_ring(void **state)
{
	unsigned i;

	start(16, 0);
	for (i = 0; i < 16; i++)
		drv_set_desc(&d, i, DATA + 256 * i, 10 + i, i < 15 ? D_NEXT : 0, (uint16_t)(i + 1));
	drv_set_avail(&d, 0, 0);
	assert_int_equal(fetch(VP_BURST), 1);
	check_burst();
	assert_int_equal(b->chain[0].nout, 16);
	assert_int_equal(b->chain[0].out_len, 16 * 10 + 120);
	stop();
}

static void test_packed_chain_longer_than_ring(void **state)
{
	unsigned i;

	start(5, F_PACKED);
	for (i = 0; i < 5; i++)
		drv_set_pdesc(&d, i, DATA, 10, 7, D_AVAIL | D_NEXT);
	expect_broken(0, VP_VQ_BAD_CHAIN);
	stop();

	/* All of the ring, starting in its middle: allowed, and its id is the last one's. */
	start(5, F_PACKED);
	vq.last_avail = 3;
	for (i = 0; i < 5; i++)
		drv_set_pdesc(&d, (3 + i) % 5, DATA + 64 * i, 10, (uint16_t)(40 + i),
			      (uint16_t)((i < 2 ? D_AVAIL : D_USED) | (i < 4 ? D_NEXT : 0)));
	assert_int_equal(fetch(VP_BURST), 1);
	check_burst();
	assert_int_equal(b->chain[0].id, 44);
	assert_int_equal(b->chain[0].slots, 5);
	vp_vq_advance(&vq, b, 1);
	assert_int_equal(vq.last_avail, 3);
	assert_false(vq.avail_wrap);
	stop();
}

static void test_packed_wrap_mismatch(void **state)
{
	unsigned flags, lap;

	/* Only AVAIL = counter and USED = other is available. */
	for (lap = 0; lap < 2; lap++) {
		start(8, F_PACKED);
		vq.avail_wrap = !lap;
		for (flags = 0; flags < 4; flags++) {
			uint16_t f = (uint16_t)((flags & 1 ? D_AVAIL : 0) | (flags & 2 ? D_USED : 0));
			bool avail = lap ? flags == 2 : flags == 1;

			drv_set_pdesc(&d, 0, DATA, 10, 0, f);
			assert_int_equal(vp_vq_has_avail(&vq), avail);
			assert_int_equal(fetch(1), avail);
		}
		stop();
	}
	/* Every slot available under both laps' view at once is impossible: a lap ends the burst. */
	start(4, F_PACKED);
	for (flags = 0; flags < 4; flags++)
		drv_set_pdesc(&d, flags, DATA, 10, (uint16_t)flags, D_AVAIL);
	assert_int_equal(fetch(VP_BURST), 4);
	vp_vq_advance(&vq, b, 4);
	assert_int_equal(fetch(VP_BURST), 0);
	assert_int_equal(vq.broken, VP_VQ_OK);
	stop();
}

/* Two chains of the ring's length one behind the other would need more slots than there are. */
static void test_packed_more_than_a_lap(void **state)
{
	unsigned i;

	start(4, F_PACKED);
	/* [0] single, [1] chain of 4 that runs over its own head */
	drv_set_pdesc(&d, 0, DATA, 10, 0, D_AVAIL | D_NEXT);
	for (i = 1; i < 4; i++)
		drv_set_pdesc(&d, i, DATA, 10, 1, D_AVAIL | D_NEXT);
	drv_set_pdesc(&d, 0, DATA, 10, 0, D_AVAIL);
	assert_true(fetch(VP_BURST) <= 1);
	check_burst();
	assert_int_not_equal(vq.broken, VP_VQ_OK);
	stop();
}

/* ---- indirect tables ---- */

static void test_indirect_lengths(void **state)
{
	static const uint32_t bad[] = { 0, 1, 8, 15, 17, 24, 31, 16 * 32769, 0xfffffff0, 0xffffffff };
	unsigned f, i;

	BOTH(f) {
		for (i = 0; i < VP_ARRAY_SIZE(bad); i++) {
			start(16, formats[f] | F_INDIRECT);
			table_desc(0, DATA, 100, 0, 0);
			offer(0, TABLE, 16, D_INDIRECT);
			offer(1, TABLE, bad[i], D_INDIRECT);
			expect_broken(1, VP_VQ_BAD_INDIRECT);
			stop();
		}
	}
}

static void test_indirect_not_negotiated(void **state)
{
	unsigned f;

	BOTH(f) {
		start(16, formats[f]);
		table_desc(0, DATA, 100, 0, 0);
		offer(0, TABLE, 16, D_INDIRECT);
		expect_broken(0, VP_VQ_BAD_INDIRECT);
		stop();
	}
}

static void test_indirect_nested(void **state)
{
	unsigned f;

	BOTH(f) {
		start(16, formats[f] | F_INDIRECT);
		table_desc(0, TABLE, 16, D_INDIRECT, 0);
		offer(0, TABLE, 16, D_INDIRECT);
		expect_broken(0, VP_VQ_BAD_INDIRECT);
		stop();
		start(16, formats[f] | F_INDIRECT);
		table_desc(0, DATA, 16, D_NEXT, 1);
		table_desc(1, TABLE, 16, D_INDIRECT, 0);
		offer(0, TABLE, 32, D_INDIRECT);
		expect_broken(0, VP_VQ_BAD_INDIRECT);
		stop();
	}
}

static void test_indirect_and_next(void **state)
{
	unsigned f;

	BOTH(f) {
		start(16, formats[f] | F_INDIRECT);
		table_desc(0, DATA, 16, 0, 0);
		offer(0, TABLE, 16, D_INDIRECT | D_NEXT);
		expect_broken(0, VP_VQ_BAD_INDIRECT);
		stop();
	}
	/* In a packed ring a chain may not end in a table either (2.8.7: NEXT and INDIRECT never mix). */
	start(16, F_PACKED | F_INDIRECT);
	table_desc(0, DATA, 16, 0, 0);
	drv_set_pdesc(&d, 1, TABLE, 16, 0, D_AVAIL | D_INDIRECT);
	drv_set_pdesc(&d, 0, DATA, 16, 0, D_AVAIL | D_NEXT);
	expect_broken(0, VP_VQ_BAD_INDIRECT);
	stop();
}

static void test_indirect_next_outside_and_loop(void **state)
{
	start(16, F_INDIRECT);
	table_desc(0, DATA, 16, D_NEXT, 2);
	table_desc(2, DATA, 16, 0, 0); /* exists in memory, not in the table */
	offer(0, TABLE, 32, D_INDIRECT);
	expect_broken(0, VP_VQ_BAD_INDIRECT);
	stop();
	start(16, F_INDIRECT);
	table_desc(0, DATA, 16, D_NEXT, 1);
	table_desc(1, DATA, 0, D_NEXT, 0);
	offer(0, TABLE, 32, D_INDIRECT);
	expect_broken(0, VP_VQ_BAD_CHAIN);
	stop();
}

static void test_indirect_table_unmapped(void **state)
{
	static const uint64_t where[] = { MEM, MEM - 16, UINT64_MAX - 15, UINT64_MAX - 31, 1ull << 63, 0 };
	struct drv_region r = { 0x1000, MEM - 0x1000, 0x1000 };
	unsigned f, i;

	BOTH(f) {
		for (i = 0; i < VP_ARRAY_SIZE(where); i++) {
			start_on(&r, 1, 16, formats[f] | F_INDIRECT);
			/* a table of 2 of which at most the first half exists */
			if (where[i] == MEM - 16) {
				uint64_t w[2] = { DATA, f ? 100 : 100 | (uint64_t)D_NEXT << 32 | 1ull << 48 };

				memcpy(drv_ptr(&m, MEM - 16), w, 16);
			}
			offer(0, where[i], 32, D_INDIRECT);
			assert_int_equal(fetch(VP_BURST), 0);
			assert_true(vq.broken == VP_VQ_BAD_ADDR || vq.broken == VP_VQ_BAD_INDIRECT);
			stop();
		}
	}
}

static void test_indirect_crosses_regions_unaligned(void **state)
{
	/* Neighbours in guest addresses, strangers in the file; the border is 8 bytes into descriptor 1. */
	uint64_t base = 0x300000;
	struct drv_region r[] = { { 0, base, 0 }, { base, 0x100000, 0x500000 } };
	unsigned f, i;

	BOTH(f) {
		uint64_t table = base - 24, w[6];

		start_on(r, 2, 16, formats[f] | F_INDIRECT);
		for (i = 0; i < 3; i++) {
			w[2 * i] = DATA + 4096 * i;
			w[2 * i + 1] = f ? 100 + i : (100 + i) | (i < 2 ? (uint64_t)D_NEXT << 32 : 0) |
				       (uint64_t)(i + 1) << 48;
		}
		for (i = 0; i < 48; i++)
			*drv_ptr(&m, table + i) = ((uint8_t *)w)[i];
		offer(0, table, 48, D_INDIRECT);
		assert_int_equal(fetch(VP_BURST), 1);
		check_burst();
		assert_int_equal(b->chain[0].nout, 3);
		for (i = 0; i < 3; i++) {
			assert_int_equal(b->seg[i].addr, DATA + 4096 * i);
			assert_int_equal(b->seg[i].len, 100 + i);
		}
		stop();
	}
}

/* The longest chain that there is, and one descriptor more. */
static void test_indirect_huge(void **state)
{
	unsigned f, i, k;

	BOTH(f) {
		for (k = 0; k < 4; k++) {
			unsigned extra = k & 1, max = k & 2 ? VP_CHAIN_DESCS : VP_BURST_DESCS, n = max + extra;

			start(2048, formats[f] | F_INDIRECT);
			vq.long_chains = k & 2;
			for (i = 0; i < n; i++)
				table_desc(i, DATA + 16 * i, 16, i + 1 < n ? D_NEXT : 0, (uint16_t)(i + 1));
			offer(0, TABLE, 16 * n, D_INDIRECT);
			if (extra) {
				expect_broken(0, VP_VQ_TOO_LONG);
			} else {
				assert_int_equal(fetch(VP_BURST), 1);
				check_burst();
				assert_int_equal(b->chain[0].nout, max);
			}
			stop();
		}
	}
}

/* virtio 1.3, 2.7.5.3.1: a chain in an indirect table is no longer than the queue, either. */
static void test_indirect_longer_than_the_queue(void **state)
{
	unsigned f, i, n;

	BOTH(f) {
		for (n = 16; n <= 17; n++) {
			start(16, formats[f] | F_INDIRECT);
			for (i = 0; i < n; i++)
				table_desc(i, DATA + 16 * i, i & 1 ? 16 : 0, i + 1 < n ? D_NEXT : 0, (uint16_t)(i + 1));
			offer(0, TABLE, 16 * n, D_INDIRECT);
			if (n > 16) {
				expect_broken(0, VP_VQ_BAD_CHAIN);
			} else {
				assert_int_equal(fetch(VP_BURST), 1);
				check_burst();
			}
			stop();
		}
	}
	/* A table may be longer than the chain in it. */
	start(16, F_INDIRECT);
	table_desc(0, DATA, 16, D_NEXT, 39);
	table_desc(39, DATA + 16, 16, 0, 0);
	offer(0, TABLE, 16 * 40, D_INDIRECT);
	assert_int_equal(fetch(VP_BURST), 1);
	assert_int_equal(b->chain[0].out_len, 32);
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_avail_ahead_by_more_than_size),
		cmocka_unit_test(test_avail_jumps_back),
		cmocka_unit_test(test_avail_wraps_at_65535),
		cmocka_unit_test(test_head_out_of_range),
		cmocka_unit_test(test_next_out_of_range),
		cmocka_unit_test(test_circular_chain),
		cmocka_unit_test(test_chain_of_whole_ring),
		cmocka_unit_test(test_packed_chain_longer_than_ring),
		cmocka_unit_test(test_packed_wrap_mismatch),
		cmocka_unit_test(test_packed_more_than_a_lap),
		cmocka_unit_test(test_indirect_lengths),
		cmocka_unit_test(test_indirect_not_negotiated),
		cmocka_unit_test(test_indirect_nested),
		cmocka_unit_test(test_indirect_and_next),
		cmocka_unit_test(test_indirect_next_outside_and_loop),
		cmocka_unit_test(test_indirect_table_unmapped),
		cmocka_unit_test(test_indirect_crosses_regions_unaligned),
		cmocka_unit_test(test_indirect_huge),
		cmocka_unit_test(test_indirect_longer_than_the_queue),
	};

	return run_with_hints(tests, sizeof(tests) / sizeof(tests[0]));
}
