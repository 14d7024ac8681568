/* SPDX-License-Identifier: BSD-3-Clause */
/* Split and packed rings: what a burst may hold, and buffers that break the rules of virtio. */
#include "rules.h"

/* ---- what a burst may hold ---- */

/* Descriptors with nothing in them count, and a fetch looks at a bounded number of them. */
static void test_empty_descriptors_are_bounded(void **state)
{
	static const unsigned len[] = { 1, 100, 128, 200, VP_BURST_DESCS, VP_BURST_DESCS + 1, 2048 };
	unsigned f, i, k, n, got, bytes;

	BOTH(f) {
		for (k = 0; k < 2 * VP_ARRAY_SIZE(len); k++) {
			n = len[k / 2];
			bytes = k & 1 ? 16 : 0; /* nothing in any of them, or something in the last */
			start(2048, formats[f] | F_INDIRECT);
			for (i = 0; i < n; i++)
				table_desc(i, DATA, i + 1 < n ? 0 : bytes, i + 1 < n ? D_NEXT : 0, (uint16_t)(i + 1));
			for (i = 0; i < 32; i++)
				offer(i, TABLE, 16 * n, D_INDIRECT);
			if (n > VP_BURST_DESCS) {
				expect_broken(0, VP_VQ_TOO_LONG);
				stop();
				continue;
			}
			for (got = 0; got < 32; got += i) {
				i = fetch(32);
				assert_int_equal(i, VP_MIN(32 - got, VP_BURST_DESCS / n));
				assert_int_equal(b->more, got + i < 32);
				assert_true(vp_burst_looked(b) <= VP_BURST_DESCS);
				vp_vq_advance(&vq, b, i);
			}
			assert_int_equal(fetch(32), 0);
			assert_int_equal(vq.broken, VP_VQ_OK);
			stop();
		}
	}
}

/* Chains of large pieces: a burst that could not be copied in one run is not walked for nothing. */
static void test_burst_of_many_bytes(void **state)
{
	unsigned f, i, k, got;

	BOTH(f) {
		start(16, formats[f] | F_INDIRECT);
		table_desc(0, DATA, 50000, D_NEXT, 1);
		table_desc(1, DATA, 10000, 0, 0);
		for (k = 0; k < 7; k++)
			offer(k, TABLE, 32, D_INDIRECT);
		for (got = 0; got < 7; got += i) {
			i = fetch(32);
			assert_int_equal(i, VP_MIN(3, 7 - got));
			vp_vq_advance(&vq, b, i);
		}
		stop();
	}
}

/* Several long chains: those that do not fit the burst come with the next one. */
static void test_burst_is_full(void **state)
{
	unsigned f, i, k, got;

	BOTH(f) {
		start(512, formats[f] | F_INDIRECT);
		for (i = 0; i < 100; i++)
			table_desc(i, DATA + 16 * i, 16, i + 1 < 100 ? D_NEXT : 0, (uint16_t)(i + 1));
		for (k = 0; k < 5; k++)
			offer(k, TABLE, 16 * 100, D_INDIRECT);
		for (got = 0; got < 5; got += k) {
			k = fetch(VP_BURST);
			assert_int_equal(k, got == 4 ? 1 : 2);
			assert_int_equal(b->more, got < 4);
			check_burst();
			vp_vq_advance(&vq, b, k);
		}
		assert_int_equal(vq.broken, VP_VQ_OK);
		assert_int_equal(fetch(VP_BURST), 0);
		stop();
	}
}

/* ---- buffers ---- */

static void test_zero_length(void **state)
{
	unsigned f;

	BOTH(f) {
		start(16, formats[f] | F_INDIRECT);
		offer(0, DATA, 0, 0);            /* nothing at all */
		offer(1, UINT64_MAX, 0, D_WRITE); /* of length zero, its address does not matter */
		table_desc(0, DATA, 0, D_NEXT, 1);
		table_desc(1, DATA + 8, 8, D_NEXT, 2);
		table_desc(2, DATA + 64, 0, D_NEXT | D_WRITE, 3);
		table_desc(3, DATA + 64, 9, D_WRITE, 0);
		offer(2, TABLE, 64, D_INDIRECT);
		assert_int_equal(fetch(VP_BURST), 3);
		check_burst();
		assert_int_equal(b->chain[0].nout + b->chain[0].nin, 0);
		assert_int_equal(b->chain[1].nout + b->chain[1].nin, 0);
		assert_int_equal(b->chain[2].nout, 1);
		assert_int_equal(b->chain[2].nin, 1);
		assert_int_equal(b->chain[2].out_len, 8);
		assert_int_equal(b->chain[2].in_len, 9);
		assert_int_equal(b->chain[2].id, 2);
		stop();
	}
}

static void test_writable_before_readable(void **state)
{
	start(16, F_INDIRECT);
	table_desc(0, DATA, 8, D_WRITE | D_NEXT, 1);
	table_desc(1, DATA, 8, 0, 0);
	offer(0, TABLE, 32, D_INDIRECT);
	expect_broken(0, VP_VQ_BAD_ORDER);
	stop();
	start(16, F_PACKED | F_INDIRECT);
	table_desc(0, DATA, 8, D_WRITE, 1);
	table_desc(1, DATA, 8, 0, 0);
	offer(0, TABLE, 32, D_INDIRECT);
	expect_broken(0, VP_VQ_BAD_ORDER);
	stop();
	/* DPDK's driver leaves WRITE in packed tables that it sends: a transmit queue does not mind. */
	start(16, F_PACKED | F_INDIRECT);
	vq.out_only = true;
	table_desc(0, DATA, 8, D_WRITE, 1);
	table_desc(1, DATA + 64, 16, 0, 0);
	table_desc(2, DATA + 128, 16, D_WRITE, 0);
	offer(0, TABLE, 48, D_INDIRECT);
	assert_int_equal(fetch(VP_BURST), 1);
	assert_int_equal(vq.broken, VP_VQ_OK);
	assert_int_equal(b->chain[0].nout, 3);
	assert_int_equal(b->chain[0].nin, 0);
	assert_int_equal(b->chain[0].out_len, 40);
	stop();
	start(16, 0);
	drv_set_desc(&d, 0, DATA, 8, D_WRITE | D_NEXT, 1);
	drv_set_desc(&d, 1, DATA, 8, 0, 0);
	drv_set_avail(&d, 0, 0);
	expect_broken(0, VP_VQ_BAD_ORDER);
	stop();
	start(16, F_PACKED);
	drv_set_pdesc(&d, 1, DATA, 8, 0, D_AVAIL);
	drv_set_pdesc(&d, 0, DATA, 8, 0, D_AVAIL | D_WRITE | D_NEXT);
	expect_broken(0, VP_VQ_BAD_ORDER);
	stop();
}

static void test_bad_addresses(void **state)
{
	static const struct { uint64_t addr; uint32_t len; bool ok; } c[] = {
		{ MEM - 1, 1, true }, { MEM - 1, 2, false }, { MEM, 1, false }, { MEM - 100, 100, true },
		{ 0, MEM, true }, { 0, MEM + 1, false }, { 0, UINT32_MAX, false }, { MEM - 4096, UINT32_MAX, false },
		{ UINT64_MAX, 1, false }, { UINT64_MAX, 2, false }, { UINT64_MAX - 9, 10, false },
		{ UINT64_MAX - 9, 11, false }, { UINT64_MAX - 0xffff, UINT32_MAX, false },
		{ 1ull << 63, 1, false }, { 1ull << 32, 1, false },
		{ (1ull << 32) + DATA, 8, false }, /* right only in its lower half */
	};
	unsigned f, i, w;

	BOTH(f) {
		for (w = 0; w < 2; w++) {
			for (i = 0; i < VP_ARRAY_SIZE(c); i++) {
				start(16, formats[f]);
				offer(0, DATA, 64, w ? D_WRITE : 0); /* warms the window */
				offer(1, c[i].addr, c[i].len, w ? D_WRITE : 0);
				if (c[i].ok) {
					assert_int_equal(fetch(VP_BURST), 2);
					check_burst();
					assert_int_equal(vq.broken, VP_VQ_OK);
				} else {
					expect_broken(1, VP_VQ_BAD_ADDR);
				}
				stop();
			}
		}
	}
}

static void test_total_near_4gib(void **state)
{
	/* 256 x 16 MiB = 2^32: one byte less is allowed in one chain, 2^32 is not. */
	unsigned f, i, over;

	BOTH(f) {
		for (over = 0; over < 2; over++) {
			start(256, formats[f] | F_INDIRECT);
			for (i = 0; i < 256; i++)
				table_desc(i, 0, i < 255 || over ? MEM : MEM - 1, i < 255 ? D_NEXT : 0,
					   (uint16_t)(i + 1));
			offer(0, TABLE, 16 * 256, D_INDIRECT);
			if (over) {
				expect_broken(0, VP_VQ_TOO_LONG);
			} else {
				assert_int_equal(fetch(VP_BURST), 1);
				assert_true(b->chain[0].out_len == UINT32_MAX);
				check_burst();
			}
			stop();
		}
	}
}

/* A buffer that crosses region borders is split, not rejected; a hole is an error. */
static void test_buffer_crosses_regions(void **state)
{
	struct drv_region r[] = {
		{ 0x200000, 0x1000, 0x800000 }, { 0, 0x200000, 0 }, { 0x201000, 0x2000, 0x400000 },
		{ 0x203000, 0x1000, 0x402000 }, { 0x205000, 0x1000, 0x600000 },
	};
	unsigned f, w, i;

	BOTH(f) {
		for (w = 0; w < 2; w++) {
			uint16_t fl = w ? D_WRITE : 0;

			start_on(r, 5, 16, formats[f]);
			offer(0, 0x1ff800, 0x4800, fl);
			offer(1, 0x1fffff, 2, fl);
			offer(2, 0x203fff, 1, fl);
			offer(3, 0x203fff, 2, fl); /* into the hole at 0x204000 */
			assert_int_equal(fetch(VP_BURST), 3);
			check_burst();
			assert_int_equal(vq.broken, VP_VQ_BAD_ADDR);
			assert_int_equal(b->chain[0].nout + b->chain[0].nin, 4);
			assert_int_equal(w ? b->chain[0].in_len : b->chain[0].out_len, 0x4800);
			for (i = 0; i < 4; i++)
				assert_int_equal(b->seg[i].addr,
						 ((uint64_t[]){ 0x1ff800, 0x200000, 0x201000, 0x203000 })[i]);
			assert_int_equal(b->chain[1].nout + b->chain[1].nin, 2);
			assert_int_equal(b->chain[2].nout + b->chain[2].nin, 1);
			stop();
		}
	}
}

/* Memory at the very end of the address space and at its start: no buffer goes round. */
static void test_buffer_wraps_around(void **state)
{
	struct drv_region r[] = { { 0, 0x800000, 0 }, { UINT64_MAX - 0xfff, 0x1000, 0x800000 } };
	unsigned f, w;

	BOTH(f) {
		for (w = 0; w < 2; w++) {
			start_on(r, 2, 16, formats[f] | F_INDIRECT);
			offer(0, UINT64_MAX - 15, 16, w ? D_WRITE : 0);
			offer(1, UINT64_MAX - 15, 17, w ? D_WRITE : 0);
			expect_broken(1, VP_VQ_BAD_ADDR);
			stop();
		}
		start_on(r, 2, 16, formats[f] | F_INDIRECT);
		offer(0, UINT64_MAX - 15, 32, D_INDIRECT);
		expect_broken(0, VP_VQ_BAD_INDIRECT);
		stop();
	}
}

/* A region that may only be read is refused for writing, in a packed ring's descriptor area too. */
static void test_read_only_region(void **state)
{
	struct vp_region_desc rd[2] = { { .gpa = 0, .size = 0x400000 }, { .gpa = 0x400000, .size = 0x1000 } };
	struct vp_memtab *tab;
	struct vp_vq_conf c;
	unsigned f;

	BOTH(f) {
		start(16, formats[f]);
		assert_int_equal(vp_map_new(&rd[0].map, m.fd, 0, 0x400000, 0, NULL), 0);
		assert_int_equal(vp_map_new(&rd[1].map, m.fd, 0x400000, 0x1000, VP_MAP_READONLY, NULL), 0);
		assert_int_equal(vp_memtab_build(&tab, rd, 2, NULL), 0);
		assert_int_equal(vp_vq_rebind(&vq, tab, NULL, NULL), 0);
		vp_memtab_free(m.tab);
		m.tab = tab;
		offer(0, 0x400000, 16, 0);
		offer(1, 0x400000, 16, D_WRITE);
		expect_broken(1, VP_VQ_BAD_ADDR);
		c = drv_conf(&d, f ? 0x80008000 : 0);
		c.tab = tab;
		c.device = 0x400000;
		assert_int_equal(vp_vq_start(&vq, &c, NULL), -EFAULT);
		c = drv_conf(&d, f ? 0x80008000 : 0);
		c.tab = tab;
		c.desc = 0x400000;
		assert_int_equal(vp_vq_start(&vq, &c, NULL), f ? -EFAULT : 0);
		vp_map_unref(rd[0].map);
		vp_map_unref(rd[1].map);
		stop();
	}
}

/*
 * Each field is used as it was when it was loaded: fetching again after the driver's change is safe and sees the
 * change.
 */
static void test_peek_again(void **state)
{
	unsigned f;

	BOTH(f) {
		start(16, formats[f]);
		offer(0, DATA, 64, 0);
		assert_int_equal(fetch(1), 1);
		assert_int_equal(fetch(1), 1); /* not consumed */
		offer(0, MEM, 64, 0);
		if (!f)
			drv_set_avail_idx(&d, 1);
		assert_int_equal(b->seg[0].addr, DATA); /* what was fetched stays what it was */
		expect_broken(0, VP_VQ_BAD_ADDR);
		stop();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty_descriptors_are_bounded),
		cmocka_unit_test(test_burst_of_many_bytes),
		cmocka_unit_test(test_burst_is_full),
		cmocka_unit_test(test_zero_length),
		cmocka_unit_test(test_writable_before_readable),
		cmocka_unit_test(test_bad_addresses),
		cmocka_unit_test(test_total_near_4gib),
		cmocka_unit_test(test_buffer_crosses_regions),
		cmocka_unit_test(test_buffer_wraps_around),
		cmocka_unit_test(test_read_only_region),
		cmocka_unit_test(test_peek_again),
	};

	return run_with_hints(tests, sizeof(tests) / sizeof(tests[0]));
}
