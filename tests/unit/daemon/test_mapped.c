/* SPDX-License-Identifier: BSD-3-Clause */
/* link/mapped.h: ranges and pieces against a plain list of pages. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "link/mapped.h"

#define PAGE  UINT64_C(4096)
#define IOVA  UINT64_C(0x4000000000)
#define UVA   UINT64_C(0x7f0000000000)
#define PAGES 128u

static struct vp_mapped m;
static struct vp_memtab *tab;
static uint64_t page[PAGES]; /* uva that it leads to, 0 = not there */

static int setup(void **state)
{
	struct vp_region_desc d = { .gpa = 0x100000000, .size = 2 * PAGES * PAGE, .uva = UVA, .offset = 0x10000 };
	int fd = memfd_create("mapped", 0);

	if (fd < 0 || ftruncate(fd, 0x10000 + 2 * PAGES * PAGE) ||
	    vp_map_new(&d.map, fd, 0x10000, 2 * PAGES * PAGE, 0, NULL) || vp_memtab_build(&tab, &d, 1, NULL))
		return -1;
	close(fd);
	vp_map_unref(d.map);
	memset(page, 0, sizeof(page));
	vp_mapped_clear(&m);
	return 0;
}

static int teardown(void **state)
{
	vp_memtab_free(tab);
	return 0;
}

static uint64_t at(unsigned p)
{
	return IOVA + p * PAGE;
}

/* All that can be asked agrees with page[], and windows have just the bytes that are named. */
static void check(void)
{
	struct vp_port_region r[VP_MAPPED_MAX];
	bool used[2 * PAGES] = { false };
	unsigned n = vp_mapped_regions(&m, tab, r), seen = 0;
	uint64_t miss;

	for (unsigned i = 0; i < n; i++) {
		uint64_t uva = UVA + r[i].offset - 0x10000;

		assert_true(!i || r[i - 1].addr + r[i - 1].size <= r[i].addr);
		assert_true(r[i].own && r[i].late && r[i].flags == (VHP_REGION_READ | VHP_REGION_WRITE));
		assert_true(vp_range_inside(r[i].offset, r[i].size, r[i].win_offset, r[i].win_size));
		for (uint64_t o = 0; o < r[i].size; o += PAGE) {
			assert_int_equal(page[(r[i].addr + o - IOVA) / PAGE], uva + o);
			used[(uva + o - UVA) / PAGE] = true;
			seen++;
		}
	}
	for (unsigned p = 0; p < PAGES; p++) {
		seen -= page[p] != 0;
		assert_int_equal(vp_mapped_has(&m, at(p), PAGE, &miss), page[p] != 0);
		assert_int_equal(vp_mapped_hit(&m, at(p), at(p) + PAGE - 1), page[p] != 0);
	}
	assert_int_equal(seen, 0);
	for (unsigned i = 0; i < n; i++)
		for (uint64_t o = 0; o < r[i].win_size; o += PAGE)
			assert_true(used[(r[i].win_offset + o - 0x10000) / PAGE]);
	for (unsigned i = 1; i < m.n_pieces; i++)
		assert_true(m.piece[i - 1].uva + m.piece[i - 1].size <= m.piece[i].uva);
}

static int add(unsigned p, unsigned n, unsigned to)
{
	int ret = vp_mapped_add(&m, at(p), n * PAGE, UVA + to * PAGE);

	for (unsigned i = 0; !ret && i < n; i++)
		page[p + i] = UVA + (to + i) * PAGE;
	return ret;
}

static void cut(unsigned p, unsigned n)
{
	vp_mapped_cut(&m, at(p), at(p + n) - 1);
	for (unsigned i = 0; i < n; i++)
		page[p + i] = 0;
}

static void test_neighbours(void **state)
{
	uint64_t miss;

	assert_int_equal(add(4, 2, 10), 0);
	assert_int_equal(add(6, 2, 12), 0);
	assert_int_equal(m.n, 1);
	assert_int_equal(m.n_pieces, 2); /* what has a window keeps it */
	check();
	assert_int_equal(add(5, 2, 11), 0);
	assert_int_equal(add(2, 8, 8), 0);
	check();
	assert_false(vp_mapped_has(&m, at(2), 9 * PAGE, &miss));
	assert_int_equal(miss, at(10));
	vp_mapped_together(&m, at(3), 4 * PAGE);
	check();
	assert_true(m.n_pieces < 4);
	/* Elsewhere. */
	assert_int_equal(add(9, 1, 99), -EEXIST);
	assert_true(vp_mapped_differs(&m, at(9), at(9), UVA));
	assert_false(vp_mapped_differs(&m, at(0), at(9), UVA + 6 * PAGE));
	assert_int_equal(vp_mapped_add(&m, at(20) + 1, PAGE, UVA), -EINVAL);
	assert_int_equal(vp_mapped_add(&m, at(20), 0, UVA), -EINVAL);
	assert_int_equal(vp_mapped_add(&m, UINT64_MAX - 4095, 2 * PAGE, UVA), -EINVAL);
	check();
}

/* The same memory at two addresses: it stays until both have gone. */
static void test_twice(void **state)
{
	assert_int_equal(add(0, 4, 0), 0);
	assert_int_equal(add(10, 4, 2), 0);
	check();
	assert_int_equal(m.n_pieces, 2);
	assert_true(vp_mapped_shares(&m, at(10), PAGE, at(0), at(1) - 1));
	cut(0, 4);
	check();
	cut(10, 4);
	check();
	assert_int_equal(m.n_pieces, 0);
}

static void test_shares(void **state)
{
	assert_int_equal(add(0, 4, 0), 0);
	assert_int_equal(add(4, 4, 4), 0);
	assert_false(vp_mapped_shares(&m, at(0), 100, at(4), at(8) - 1));
	assert_true(vp_mapped_shares(&m, at(3), 100, at(0), at(1) - 1));
	vp_mapped_together(&m, at(3), 2 * PAGE);
	assert_true(vp_mapped_shares(&m, at(0), 100, at(7), at(8) - 1));
}

/* What is not in the table any more goes. */
static void test_memory_that_went(void **state)
{
	struct vp_port_region r[VP_MAPPED_MAX];

	assert_int_equal(add(0, 4, 0), 0);
	assert_int_equal(vp_mapped_add(&m, at(10), PAGE, UVA + 100 * PAGES * PAGE), 0);
	check();
	assert_int_equal(m.n, 1);
	assert_int_equal(vp_mapped_regions(&m, tab, r), 1);
}

static void test_many(void **state)
{
	int ret = 0;
	unsigned n;

	for (n = 0; !ret; n++)
		ret = vp_mapped_add(&m, at(2 * n), PAGE, UVA + ((uint64_t)n * 7919 % 4096) * PAGE);
	assert_int_equal(ret, -ENOSPC);
	assert_in_range(n, 400, VP_MAPPED_MAX);
	assert_true(m.n <= VP_MAPPED_MAX && m.n_pieces <= VP_MAPPED_MAX);
	vp_mapped_cut(&m, 0, UINT64_MAX);
	assert_int_equal(m.n + m.n_pieces, 0);
	/* Neighbours, one after another: never many pieces. */
	for (n = 0; n < 4000; n++) {
		assert_int_equal(vp_mapped_add(&m, at(n), PAGE, UVA + n * PAGE), 0);
		assert_true(m.n_pieces <= VP_MAPPED_JOIN + 2);
	}
}

static void test_random(void **state)
{
	srandom(14);
	for (unsigned i = 0; i < 20000; i++) {
		unsigned p = (unsigned)random() % (PAGES - 8), n = 1 + (unsigned)random() % 8;

		if (random() % 3)
			add(p, n, random() % 2 ? p : (unsigned)random() % (2 * PAGES - 8));
		else
			cut(p, n);
		if (!(random() % 16))
			vp_mapped_together(&m, at(p), n * PAGE);
		check();
	}
}

int main(void)
{
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_neighbours), T(test_twice), T(test_shares), T(test_memory_that_went), T(test_many),
		T(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
