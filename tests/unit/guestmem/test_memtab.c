/* SPDX-License-Identifier: BSD-3-Clause */
/* Region tables and translation against a brute-force model. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../virtq/driver.h"

static struct vp_map *whole;
static struct drv_mem mem;

#define FILE_SIZE (8u << 20)

static int setup(void **state)
{
	drv_mem_init(&mem, FILE_SIZE, NULL, 0);
	whole = vp_map_ref(mem.tab->r[0].map);
	return 0;
}

static int teardown(void **state)
{
	vp_map_unref(whole);
	drv_mem_free(&mem);
	return 0;
}

static int build1(uint64_t gpa, uint64_t size, uint64_t uva, struct vp_map *map)
{
	struct vp_region_desc d = { .gpa = gpa, .size = size, .uva = uva, .map = map };
	struct vp_memtab *t = (struct vp_memtab *)1;
	struct vp_err e = { 0 };
	int ret = vp_memtab_build(&t, &d, 1, &e);

	assert_int_equal(!ret, t != NULL);
	assert_int_equal(!ret, !e.msg[0]);
	assert_int_equal(e.code, ret);
	vp_memtab_free(t);
	return ret;
}

static void test_rejects(void **state)
{
	assert_int_equal(build1(0x1000, 0x1000, 0x1000, NULL), 0);
	assert_int_equal(build1(0x1000, 0, 0x1000, NULL), -EINVAL);
	assert_int_equal(build1(UINT64_MAX - 0xfff, 0x1000, 0, NULL), 0); /* ends with the address space */
	assert_int_equal(build1(UINT64_MAX - 0xffe, 0x1000, 0, NULL), -EINVAL);
	assert_int_equal(build1(0x1000, UINT64_MAX, 0, NULL), -EINVAL);
	assert_int_equal(build1(0, UINT64_MAX, 0, NULL), 0);
	assert_int_equal(build1(0, 0x1000, UINT64_MAX - 0xffe, NULL), -EINVAL);
	assert_int_equal(build1(0, FILE_SIZE, 0, whole), 0);
	assert_int_equal(build1(0, FILE_SIZE + 1, 0, whole), -EINVAL); /* announced larger than it is */
}

static void test_overlap(void **state)
{
	struct vp_region_desc d[3] = {
		{ .gpa = 0x3000, .size = 0x1000 }, { .gpa = 0x1000, .size = 0x1000 }, { .gpa = 0x2000, .size = 0x1000 },
	};
	struct vp_memtab *t;
	unsigned i;

	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), 0);
	for (i = 0; i < 3; i++)
		assert_int_equal(t->r[i].gpa, 0x1000 * (i + 1)); /* any order in, sorted out */
	vp_memtab_free(t);
	d[2].size = 0x1001;
	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), -EINVAL);
	d[2] = (struct vp_region_desc){ .gpa = 0x3000, .size = 0x1000 };
	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), -EINVAL);
	d[2] = (struct vp_region_desc){ .gpa = 0x3fff, .size = 1 };
	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), -EINVAL);
	d[2] = (struct vp_region_desc){ .gpa = 0, .size = UINT64_MAX };
	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), -EINVAL);
	d[2] = (struct vp_region_desc){ .gpa = 0, .size = 0x1000 };
	assert_int_equal(vp_memtab_build(&t, d, 3, NULL), 0);
	vp_memtab_free(t);
}

static void test_too_many(void **state)
{
	struct vp_region_desc d[VP_MEMTAB_MAX + 1] = { 0 };
	struct vp_memtab *t;
	unsigned i;

	for (i = 0; i < VP_ARRAY_SIZE(d); i++)
		d[i] = (struct vp_region_desc){ .gpa = i * 0x1000, .size = 0x1000 };
	assert_int_equal(vp_memtab_build(&t, d, VP_MEMTAB_MAX + 1, NULL), -E2BIG);
	assert_null(t);
	assert_int_equal(vp_memtab_build(&t, d, VP_MEMTAB_MAX, NULL), 0);
	vp_memtab_free(t);
	assert_int_equal(vp_memtab_build(&t, NULL, 0, NULL), 0);
	assert_int_equal(vp_memtab_find(t, 0), -1);
	vp_memtab_free(t);
	vp_memtab_free(NULL);
}

/* A map is held by the tables that use it, and only by them. */
static void test_references(void **state)
{
	struct vp_region_desc d = { .gpa = 0, .size = 0x1000 };
	struct vp_memtab *a, *b;
	uint8_t *p;

	assert_int_equal(vp_map_new(&d.map, mem.fd, 0, 0x1000, 0, NULL), 0);
	assert_int_equal(vp_memtab_build(&a, &d, 1, NULL), 0);
	assert_int_equal(vp_memtab_build(&b, &d, 1, NULL), 0);
	p = (uint8_t *)vp_gptr_addr(d.map->host);
	vp_map_unref(d.map);
	vp_memtab_free(a);
	p[0] = 42; /* still there */
	assert_int_equal(mem.p[0], 42);
	vp_memtab_free(b);
}

/* The model: a list that is searched from one end to the other, and one byte at a time for pieces. */
static int model_find(const struct vp_region_desc *d, unsigned n, uint64_t gpa)
{
	unsigned i;

	for (i = 0; i < n; i++)
		if (gpa >= d[i].gpa && gpa - d[i].gpa < d[i].size)
			return (int)i;
	return -1;
}

/* The window that the fast path goes by is one region, mapped and allowed for this direction. */
static void check_window(const struct vp_xlate *x, const struct vp_region_desc *d, unsigned n, enum vp_access acc)
{
	const struct vp_window *w = x->hot[acc];
	int m;

	if (!w->size)
		return;
	m = model_find(d, n, w->start);
	assert_true(m >= 0 && d[m].map && w->start == d[m].gpa && w->size == d[m].size);
	assert_true(w->host.p == d[m].map->host.p);
	assert_true(acc == VP_READ || d[m].map->writable);
}

/* The same of the window that the table names for addr. True: it is the right one, and holds len bytes from there. */
static bool check_named(struct vp_xlate *x, uint64_t addr, uint32_t len, const struct vp_region_desc *d, unsigned n,
			enum vp_access acc)
{
	const struct vp_window *w = x->hot[acc];
	int m = model_find(d, n, addr);

	if (!vp_xlate_window(x->direct, &w, addr, len, acc))
		return false;
	assert_true(len && m >= 0 && d[m].map && w->start == d[m].gpa && w->size == d[m].size);
	assert_true(len <= d[m].size - (addr - d[m].gpa));
	x->hot[acc] = w;
	check_window(x, d, n, acc);
	return true;
}

static void random_table(uint64_t *seed, unsigned n)
{
	struct vp_region_desc *d = calloc(n ? n : 1, sizeof(*d));
	uint64_t base = drv_rand(seed) % 3 ? 0 : UINT64_MAX - 0x3ffffff, at = base;
	struct vp_xlate x = { .grows = false };
	struct vp_memtab *t;
	unsigned i, k, right = 0, missed = 0;

	for (i = 0; i < n; i++) {
		at += drv_rand(seed) % 2 ? drv_rand(seed) % 0x8000 : 0; /* often without a gap */
		d[i] = (struct vp_region_desc){ .gpa = at, .size = 1 + drv_rand(seed) % 0x4000,
						.uva = 0x100000000 + at * 3 };
		at += d[i].size;
		switch (drv_rand(seed) % 8) {
		case 0: /* translated, not mapped */
			break;
		case 1:
			assert_int_equal(vp_map_new(&d[i].map, mem.fd, drv_rand(seed) % (FILE_SIZE / 2), d[i].size,
						    VP_MAP_READONLY, NULL), 0);
			break;
		default:
			assert_int_equal(vp_map_new(&d[i].map, mem.fd, drv_rand(seed) % (FILE_SIZE / 2), d[i].size,
						    0, NULL), 0);
		}
	}
	for (i = 0; i < n; i++) { /* shuffle */
		unsigned j = i + (unsigned)(drv_rand(seed) % (n - i));
		struct vp_region_desc tmp = d[i];

		d[i] = d[j];
		d[j] = tmp;
	}
	assert_int_equal(vp_memtab_build(&t, d, n, NULL), 0);
	assert_int_equal(t->n, n);
	vp_xlate_init(&x, t, NULL);
	for (k = 0; k < 3000; k++) {
		uint64_t addr = base + drv_rand(seed) % (at - base + 0x1000), len, span, gpa;
		enum vp_access acc = drv_rand(seed) % 2;
		vp_gptr host;
		int m, f, ret;

		if (n && drv_rand(seed) % 2) { /* at an edge */
			i = (unsigned)(drv_rand(seed) % n);
			addr = d[i].gpa + (drv_rand(seed) % 2 ? d[i].size : 0) - 1 + drv_rand(seed) % 3;
		}
		len = drv_rand(seed) % 16 ? 1 + drv_rand(seed) % 0x5000 : UINT64_MAX - drv_rand(seed) % 4;
		m = model_find(d, n, addr);
		f = vp_memtab_find(t, addr);
		assert_int_equal(m < 0, f < 0);
		if (f >= 0)
			assert_int_equal(t->r[f].gpa, d[m].gpa);

		ret = vp_xlate_piece(&x, addr, len, acc, &host, &span);
		if (m < 0 || !d[m].map || (acc == VP_WRITE && !d[m].map->writable)) {
			assert_int_equal(ret, -EFAULT);
		} else {
			assert_int_equal(ret, 0);
			assert_true(vp_gptr_addr(host) == vp_gptr_addr(d[m].map->host) + (addr - d[m].gpa));
			assert_true(span == VP_MIN(len, d[m].size - (addr - d[m].gpa)));
		}
		check_window(&x, d, n, VP_READ);
		check_window(&x, d, n, VP_WRITE);
		check_named(&x, addr, (uint32_t)len, d, n, acc);
		if (!ret) {
			right++;
			missed += !check_named(&x, addr, 1, d, n, acc);
		}
		/* user addresses: within one region or not at all */
		ret = vp_memtab_uva_to_gpa(t, m < 0 ? addr : d[m].uva + (addr - d[m].gpa), len, &gpa);
		if (m >= 0 && len <= d[m].size - (addr - d[m].gpa))
			assert_true(!ret); /* regions may share user addresses; the first one found answers */
		if (!ret) {
			f = vp_memtab_find(t, gpa);
			assert_true(f >= 0 && len <= t->r[f].size - (gpa - t->r[f].gpa));
		}
	}
	/* Regions of many sizes: the index leaves few of them to the slow way. */
	assert_true(missed <= right / 10);
	vp_memtab_free(t);
	for (i = 0; i < n; i++)
		vp_map_unref(d[i].map);
	free(d);
}

/* A table with one writable map behind all regions: which addresses within three bytes of a border are named? */
static unsigned borders_missed(const struct vp_region_desc *d, unsigned n)
{
	struct vp_xlate x = { .grows = false };
	struct vp_memtab *t;
	unsigned missed = 0;

	assert_int_equal(vp_memtab_build(&t, d, n, NULL), 0);
	vp_xlate_init(&x, t, NULL);
	for (unsigned i = 0; i < n; i++) {
		for (int k = 0; k < 12; k++) {
			const uint64_t addr = d[i].gpa + (k < 6 ? 0 : d[i].size) + (uint64_t)(k % 6 - 3);

			for (uint32_t len = 1; len < 5; len++) {
				const int m = model_find(d, n, addr);
				const bool inside = m >= 0 && len <= d[m].size - (addr - d[m].gpa);

				missed += check_named(&x, addr, len, d, n, k & 1) != inside;
			}
		}
	}
	vp_memtab_free(t);
	return missed;
}

/* Layouts as virtual machines have them: the index names every address, and the slow way is for none. */
static void test_usual_layouts(void **state)
{
	struct vp_region_desc d[VP_MEMTAB_MAX] = { 0 }, low[3] = {
		{ .gpa = 0, .size = 0xa0000, .map = whole },
		{ .gpa = 0xc0000, .size = 0x700000, .map = whole },
		{ .gpa = UINT64_C(0x100000000), .size = 0x800000, .map = whole },
	};

	assert_int_equal(borders_missed(low, 1), 0);
	assert_int_equal(borders_missed(low, 2), 0);
	assert_int_equal(borders_missed(low, 3), 0);
	for (unsigned hole = 0; hole < 2; hole++) {
		for (unsigned i = 0; i < VP_MEMTAB_MAX; i++) /* memory modules of one size */
			d[i] = (struct vp_region_desc){ .gpa = 0x40000000 + (uint64_t)i * (0x200000u << hole),
							.size = 0x200000, .map = whole };
		assert_int_equal(borders_missed(d, VP_MEMTAB_MAX), 0);
		assert_int_equal(borders_missed(d, 65), 0);
	}
}

/* Of three regions in a granule the smallest is left to the slow way, which finds it. */
static void test_three_in_a_granule(void **state)
{
	struct vp_region_desc d[] = {
		{ .gpa = 0x1000, .size = 0x3000, .map = whole },
		{ .gpa = 0x4000, .size = 0x1000, .map = whole },
		{ .gpa = 0x5000, .size = 0x2000, .map = whole },
		{ .gpa = UINT64_C(1) << 40, .size = 0x1000, .map = whole },
	};
	struct vp_xlate x = { .grows = false };
	struct vp_memtab *t;
	uint64_t span;
	vp_gptr g;

	assert_int_equal(vp_memtab_build(&t, d, VP_ARRAY_SIZE(d), NULL), 0);
	vp_xlate_init(&x, t, NULL);
	for (unsigned i = 0; i < VP_ARRAY_SIZE(d); i++) {
		assert_int_equal(check_named(&x, d[i].gpa, 0x1000, d, VP_ARRAY_SIZE(d), VP_READ), i != 1);
		assert_int_equal(vp_xlate_piece(&x, d[i].gpa + 1, 0x10000, VP_READ, &g, &span), 0);
		assert_int_equal(span, d[i].size - 1);
		check_window(&x, d, VP_ARRAY_SIZE(d), VP_READ);
	}
	assert_int_equal(vp_xlate_piece(&x, 0x7000, 1, VP_READ, &g, &span), -EFAULT);
	vp_memtab_free(t);
}

static void test_random_tables(void **state)
{
	static const unsigned sizes[] = { 0, 1, 2, 3, 7, 8, 64, 100, 508, 509 };
	uint64_t seed = 12345;
	unsigned i, k;

	for (i = 0; i < VP_ARRAY_SIZE(sizes); i++)
		for (k = 0; k < 8; k++)
			random_table(&seed, sizes[i]);
}

/* Neighbours in guest addresses that are not neighbours in this process. */
static void test_not_contiguous(void **state)
{
	struct drv_region r[] = { { 0, 0x10000, 0x40000 }, { 0x10000, 0x10000, 0 }, { 0x20000, 0x10000, 0x200000 } };
	struct drv_mem m;
	struct vp_xlate x = { .grows = false };
	uint8_t in[0x30000], out[0x30000];
	uint64_t span;
	vp_gptr g;
	unsigned i;

	drv_mem_init(&m, FILE_SIZE, r, 3);
	vp_xlate_init(&x, m.tab, NULL);
	for (i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(i * 7 + (i >> 8));
	assert_int_equal(vp_xlate_copy_out(&x, 0, out, sizeof(out)), 0);
	for (i = 0; i < sizeof(out); i += 111)
		assert_int_equal(*drv_ptr(&m, i), out[i]);
	assert_int_equal(vp_xlate_copy_in(&x, in, 0, sizeof(in)), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(vp_xlate_copy_in(&x, in, 1, sizeof(in)), -EFAULT);
	assert_int_equal(vp_xlate_copy_out(&x, UINT64_MAX - 1, out, 16), -EFAULT);
	assert_int_equal(vp_xlate_copy_in(&x, in, 0x1ffff, 2), 0);
	assert_memory_equal(in, out + 0x1ffff, 2);

	assert_int_equal(vp_xlate_piece(&x, 0xffff, 2, VP_READ, &g, &span), 0);
	assert_int_equal(span, 1);
	assert_int_equal(vp_xlate_contig(&x, 0, 0x10000, VP_READ, &g), 0);
	assert_true(vp_gptr_addr(g) == vp_gptr_addr(m.tab->r[0].host));
	assert_int_equal(vp_xlate_contig(&x, 1, 0x10000, VP_READ, &g), -EFAULT);
	assert_int_equal(vp_xlate_contig(&x, 0x1fffe, 4, VP_WRITE, &g), -EFAULT);
	assert_int_equal(vp_xlate_contig(&x, 0x2ffff, 1, VP_WRITE, &g), 0);
	assert_int_equal(vp_xlate_contig(&x, 0x2ffff, 2, VP_WRITE, &g), -EFAULT);
	drv_mem_free(&m);
}

/* What was warm in the old table is not used with the new one. */
static void test_window_forgotten(void **state)
{
	struct drv_region small = { 0, 0x1000, 0 };
	struct drv_mem a, b;
	struct vp_xlate x = { .grows = false };
	vp_gptr g;
	uint64_t span;

	drv_mem_init(&a, 0x100000, NULL, 0);
	drv_mem_init(&b, 0x100000, &small, 1);
	vp_xlate_init(&x, a.tab, NULL);
	assert_int_equal(vp_xlate_piece(&x, 0x2000, 1, VP_WRITE, &g, &span), 0);
	assert_true(x.hot[VP_WRITE]->size && !x.hot[VP_READ]->size); /* directions are apart */
	vp_xlate_init(&x, b.tab, NULL);
	assert_true(!x.hot[VP_WRITE]->size);
	assert_int_equal(vp_xlate_piece(&x, 0x2000, 1, VP_WRITE, &g, &span), -EFAULT);
	vp_xlate_init(&x, NULL, NULL);
	assert_int_equal(vp_xlate_piece(&x, 0, 1, VP_READ, &g, &span), -EFAULT);
	drv_mem_free(&a);
	drv_mem_free(&b);
}

static void test_dirty_log(void **state)
{
	uint64_t seed = 99, pages = 3001; /* not a multiple of 8 */
	struct drv_mem lm;
	struct vp_dirty_log log;
	unsigned k, i;

	drv_mem_init(&lm, 4096, NULL, 0);
	log = (struct vp_dirty_log){ .map = lm.tab->r[0].map, .pages = pages };
	for (k = 0; k < 3000; k++) {
		uint64_t gpa = drv_rand(&seed) % (3200 << 12), len = drv_rand(&seed) % 0x6000;

		if (!(drv_rand(&seed) % 8))
			gpa &= ~0xfffull;
		if (!(drv_rand(&seed) % 8))
			len = drv_rand(&seed) % 3;
		if (!(drv_rand(&seed) % 50))
			len = UINT32_MAX;
		memset(lm.p, 0, 4096);
		vp_dirty_log_mark(&log, gpa, len);
		for (i = 0; i < 4096 * 8; i++) {
			uint64_t start = (uint64_t)i << 12;
			bool want = i < pages && len && start < gpa + len && gpa < start + 4096;

			assert_int_equal(lm.p[i / 8] >> i % 8 & 1, want);
		}
	}
	/* bits of others stay, and addresses far outside do nothing */
	memset(lm.p, 0x55, 4096);
	vp_dirty_log_mark(&log, 0, 4096 * 2);
	assert_int_equal(lm.p[0], 0x57);
	vp_dirty_log_mark(&log, 1ull << 62, 4096);
	vp_dirty_log_mark(&log, UINT64_MAX - 4095, 4096);
	vp_dirty_log_mark(&log, UINT64_MAX, 1);
	for (i = 1; i < 4096; i++)
		assert_int_equal(lm.p[i], 0x55);
	drv_mem_free(&lm);
}

static int gpa_is_gone(struct vp_iommu *iommu, uint64_t iova, uint64_t *gpa, uint64_t *span)
{
	return -EFAULT;
}

/*
 * A translation was forgotten: any page may be the one, but only where there is memory; the bitmap may be for far more.
 */
static void test_dirty_log_of_what_was_forgotten(void **state)
{
	static const struct drv_region parts[] = { { 3 << 12, 201 << 12, 0 }, { 5000 << 12, 64 << 12, 201 << 12 } };
	struct vp_iommu iommu = { .gpa = gpa_is_gone };
	struct vp_dirty_log log;
	struct drv_mem m, lm;
	struct vp_xlate x = { .grows = false };

	drv_mem_init(&m, 265 << 12, parts, 2);
	drv_mem_init(&lm, 4096, NULL, 0);
	log = (struct vp_dirty_log){ .map = lm.tab->r[0].map, .pages = 4096 * 8 };
	vp_xlate_init(&x, m.tab, &iommu);
	vp_dirty_log_mark_xlate(&log, &x, 0x7000, 100);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(lm.p[i], 0);  /* invalidated since: the guest's own business */
	iommu.forgets = true;
	vp_dirty_log_mark_xlate(&log, &x, 0x7000, 100);
	for (unsigned i = 0; i < 4096 * 8; i++)
		assert_int_equal(lm.p[i / 8] >> i % 8 & 1, (i >= 3 && i < 204) || (i >= 5000 && i < 5064));
	/* A bitmap that is too small for it. */
	memset(lm.p, 0, 4096);
	log.pages = 100;
	vp_dirty_log_mark_xlate(&log, &x, 0x7000, 100);
	for (unsigned i = 0; i < 4096 * 8; i++)
		assert_int_equal(lm.p[i / 8] >> i % 8 & 1, i >= 3 && i < 100);
	drv_mem_free(&lm);
	drv_mem_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rejects),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_references),
		cmocka_unit_test(test_usual_layouts),
		cmocka_unit_test(test_three_in_a_granule),
		cmocka_unit_test(test_random_tables),
		cmocka_unit_test(test_not_contiguous),
		cmocka_unit_test(test_window_forgotten),
		cmocka_unit_test(test_dirty_log), cmocka_unit_test(test_dirty_log_of_what_was_forgotten),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
