/* SPDX-License-Identifier: BSD-3-Clause */
/* Rings that break the rules, each by the name of the bug class, in both formats where it applies. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"

#define MEM   (16u << 20)
#define DATA  0x100000u /* buffers, behind the rings */
#define TABLE 0x80000u  /* indirect tables */

static struct drv_mem m;
static struct drv d;
static struct vp_virtq vq;
static struct vp_burst *b;

static void start_on(const struct drv_region *r, unsigned n, uint16_t size, uint64_t features)
{
	struct vp_vq_conf c;

	drv_mem_init(&m, MEM, r, n);
	drv_init(&d, &m, size, features, 0x1000);
	c = drv_conf(&d, features & F_PACKED ? 0x80008000 : 0);
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	b = malloc(sizeof(*b));
}

static void start(uint16_t size, uint64_t features)
{
	start_on(NULL, 0, size, features);
}

static void stop(void)
{
	free(b);
	drv_free(&d);
	drv_mem_free(&m);
}

static enum vp_access hint;

/* Every test runs with both: the hint changes the speed, never the result. */
static unsigned fetch(unsigned max)
{
	return hint == VP_WRITE ? vp_vq_fetch_dir(&vq, b, max, VP_WRITE) : vp_vq_fetch(&vq, b, max);
}

/* What a burst must be whatever the driver wrote. */
static void check_burst(void)
{
	unsigned i, j;

	for (i = 0; i < b->n; i++) {
		const struct vp_chain *c = &b->chain[i];
		uint64_t out = 0, in = 0;

		assert_true(c->seg + c->nout + c->nin <= b->nseg);
		for (j = 0; j < (unsigned)c->nout + c->nin; j++) {
			assert_true(drv_seg_ok(&m, &b->seg[c->seg + j]));
			*(j < c->nout ? &out : &in) += b->seg[c->seg + j].len;
		}
		assert_int_equal(out, c->out_len);
		assert_int_equal(in, c->in_len);
	}
}

/* The queue gives `good` chains, is broken for this reason, and stays so. */
static void expect_broken(unsigned good, enum vp_vq_broken why)
{
	assert_int_equal(fetch(VP_BURST), good);
	check_burst();
	assert_int_equal(vq.broken, why);
	vp_vq_advance(&vq, b, good);
	assert_int_equal(fetch(VP_BURST), 0);
	assert_false(vp_vq_has_avail(&vq));
	assert_false(vp_vq_enable_kicks(&vq));
	vp_vq_break(&vq, VP_VQ_BAD_CALL);
	assert_int_equal(vq.broken, why); /* the first reason is kept */
}

static void one_good_split(uint16_t i)
{
	drv_set_desc(&d, i, DATA, 100, 0, 0);
}

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

static void table_desc(unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	uint8_t *p = drv_ptr(&m, TABLE + 16ull * i);
	uint64_t w = d.packed ? len | (uint64_t)flags << 48 : len | (uint64_t)flags << 32 | (uint64_t)next << 48;

	memcpy(p, &addr, 8);
	memcpy(p + 8, &w, 8);
}

static void offer(unsigned slot, uint64_t addr, uint32_t len, uint16_t flags)
{
	if (d.packed) {
		drv_set_pdesc(&d, slot, addr, len, (uint16_t)slot, flags | D_AVAIL);
	} else {
		drv_set_desc(&d, slot, addr, len, flags, (uint16_t)(slot + 1));
		drv_set_avail(&d, (uint16_t)slot, (uint16_t)slot);
	}
}

static const uint64_t formats[] = { 0, F_PACKED };
#define BOTH(f) for ((f) = 0; (f) < 2; (f)++)

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
	unsigned f, i, extra;

	BOTH(f) {
		for (extra = 0; extra < 2; extra++) {
			unsigned n = VP_BURST_DESCS + extra;

			start(2048, formats[f] | F_INDIRECT);
			for (i = 0; i < n; i++)
				table_desc(i, DATA + 16 * i, 16, i + 1 < n ? D_NEXT : 0, (uint16_t)(i + 1));
			offer(0, TABLE, 16 * n, D_INDIRECT);
			if (extra) {
				expect_broken(0, VP_VQ_TOO_LONG);
			} else {
				assert_int_equal(fetch(VP_BURST), 1);
				check_burst();
				assert_int_equal(b->chain[0].nout, VP_BURST_DESCS);
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
				assert_int_equal(b->seg[i].addr, ((uint64_t[]){ 0x1ff800, 0x200000, 0x201000, 0x203000 })[i]);
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

/* Each field is used as it was when it was loaded: fetching again after the driver's change is safe and sees the change. */
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
		cmocka_unit_test(test_indirect_huge), cmocka_unit_test(test_indirect_longer_than_the_queue),
		cmocka_unit_test(test_empty_descriptors_are_bounded), cmocka_unit_test(test_burst_of_many_bytes),
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

	int bad = cmocka_run_group_tests_name("hint: readable", tests, NULL, NULL);

	hint = VP_WRITE;
	return bad + cmocka_run_group_tests_name("hint: writable", tests, NULL, NULL);
}
