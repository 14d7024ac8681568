/* SPDX-License-Identifier: BSD-3-Clause */
/* The IOTLB against a table of pages, and with readers that run while the writer changes it. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "guestmem/iotlb.h"

#define PAGES 256u
#define PAGE  4096ull
#define IOVA  0x100000000ull
#define UVA   0x7f0000000000ull

static struct vp_memtab *tab;
static struct vp_map *map;
static unsigned woken;

static void wake(void *arg)
{
	woken++;
}

static int setup(void **state)
{
	struct vp_region_desc d = { .gpa = 0x40000000, .size = PAGES * PAGE, .uva = UVA };
	int fd = memfd_create("iotlb", 0);

	if (fd < 0 || ftruncate(fd, PAGES * PAGE) || vp_map_new(&map, fd, 0, PAGES * PAGE, 0, NULL))
		return -1;
	close(fd);
	d.map = map;
	return vp_memtab_build(&tab, &d, 1, NULL);
}

static int teardown(void **state)
{
	vp_memtab_free(tab);
	vp_map_unref(map);
	return 0;
}

/* An update that answers misses for all of perm. */
static int map_pages(struct vp_iotlb *t, const struct vp_memtab *tb, uint64_t iova, uint64_t size, uint64_t uaddr,
		     unsigned perm)
{
	return vp_iotlb_update(t, tb, iova, size, uaddr, perm, perm);
}

struct page {
	bool     mapped;
	unsigned to, perm;
};

static void check_all(struct vp_iotlb *t, const struct page *model)
{
	struct vp_xlate x = { .grows = false };
	unsigned i;

	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	for (i = 0; i < PAGES; i++) {
		for (unsigned acc = VP_READ; acc <= VP_WRITE; acc++) {
			uint64_t span, want = UVA + model[i].to * PAGE + 5;
			bool ok = model[i].mapped && (model[i].perm & (1u << acc));
			vp_gptr host;
			int ret = vp_xlate_piece(&x, IOVA + i * PAGE + 5, 100, (enum vp_access)acc, &host, &span);

			assert_int_equal(ret, ok ? 0 : -EAGAIN);
			if (!ok)
				continue;
			assert_int_equal(vp_gptr_addr(host), vp_gptr_addr(map->host) + (want - UVA));
			assert_int_equal(span, 100);
		}
	}
}

static void test_model(void **state)
{
	struct page model[PAGES] = { 0 };
	struct vp_iotlb *t;
	unsigned round, i;

	srandom(1);
	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	for (round = 0; round < 3000; round++) {
		unsigned first = (unsigned)random() % PAGES, n = 1 + (unsigned)random() % 8;

		n = VP_MIN(n, PAGES - first);
		if (random() % 3) {
			unsigned to = (unsigned)random() % (PAGES - n + 1), perm = 1 + (unsigned)random() % 3;

			assert_int_equal(map_pages(t, tab, IOVA + first * PAGE, n * PAGE, UVA + to * PAGE, perm), 0);
			for (i = 0; i < n; i++)
				model[first + i] = (struct page){ true, to + i, perm };
		} else {
			vp_iotlb_invalidate(t, IOVA + first * PAGE, n * PAGE);
			for (i = 0; i < n; i++)
				model[first + i].mapped = false;
		}
		if (round % 50 == 0)
			check_all(t, model);
	}
	vp_iotlb_invalidate(t, 0, UINT64_MAX);
	memset(model, 0, sizeof(model));
	check_all(t, model);
	vp_iotlb_free(t);
}

/* Neighbours that continue each other become one entry; permission or place apart keeps them two. */
static void test_merge(void **state)
{
	struct vp_iotlb_stats s;
	struct vp_iotlb *t;
	unsigned i;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	for (i = 0; i < PAGES; i++)
		assert_int_equal(map_pages(t, tab, IOVA + (i ^ 1) * PAGE, PAGE, UVA + (i ^ 1) * PAGE, 3), 0);
	vp_iotlb_stats(t, &s);
	assert_int_equal(s.entries, 1);
	assert_int_equal(map_pages(t, tab, IOVA + 7 * PAGE, PAGE, UVA + 7 * PAGE, 1), 0);
	vp_iotlb_stats(t, &s);
	assert_int_equal(s.entries, 3);
	vp_iotlb_free(t);
}

static void test_bad_updates(void **state)
{
	struct vp_iotlb *t;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	assert_int_equal(map_pages(t, tab, IOVA, 0, UVA, 3), -EINVAL);
	assert_int_equal(map_pages(t, tab, UINT64_MAX - 10, PAGE, UVA, 3), -EINVAL);
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UINT64_MAX - 10, 3), -EINVAL);
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UVA - PAGE, 3), -EFAULT);
	assert_int_equal(map_pages(t, tab, IOVA, 2 * PAGE, UVA + (PAGES - 1) * PAGE, 3), -EFAULT);
	assert_int_equal(map_pages(t, NULL, IOVA, PAGE, UVA, 3), -EFAULT);
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UVA, 0), -EINVAL);
	vp_iotlb_free(t);
}

/* A miss is noted once, handed out once, and can be noted again when it was answered, invalidated or given up. */
static void test_misses(void **state)
{
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	enum vp_access acc;
	uint64_t iova, span;
	vp_gptr host;
	unsigned i;

	woken = 0;
	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	for (i = 0; i < 5; i++)
		assert_int_equal(vp_xlate_piece(&x, IOVA + 100, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(woken, 1);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
	assert_int_equal(iova, IOVA);
	assert_int_equal(acc, VP_WRITE);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 0);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 100, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 0); /* asked already */
	vp_iotlb_forget_misses(t);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 100, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UVA, 3), 0);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 100, 8, VP_WRITE, &host, &span), 0);
	/* A hostile ring can name any number of pages: the notes are bounded. */
	for (i = 1; i < 1000; i++)
		assert_int_equal(vp_xlate_piece(&x, IOVA + i * PAGE, 8, VP_READ, &host, &span), -EAGAIN);
	for (i = 0; vp_iotlb_next_miss(t, &iova, &acc); i++)
		;
	assert_int_equal(i, VP_IOTLB_MISSES);
	vp_iotlb_free(t);
}

/* An answer with less than was asked for: accesses wait for the front-end's word, and fail from then on. */
static void test_deny(void **state)
{
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	enum vp_access acc;
	uint64_t iova, span;
	vp_gptr host;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	assert_int_equal(vp_xlate_piece(&x, IOVA + 2 * PAGE, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
	assert_int_equal(map_pages(t, tab, IOVA, 8 * PAGE, UVA, 1), 0);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 2 * PAGE, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 0);
	assert_true(vp_iotlb_answered(t, IOVA + 2 * PAGE + 5, VP_WRITE));
	assert_int_equal(vp_xlate_piece(&x, IOVA + 2 * PAGE, 8, VP_WRITE, &host, &span), -EFAULT);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 2 * PAGE + 8, 8, VP_READ, &host, &span), 0);
	assert_int_equal(vp_gptr_addr(host), vp_gptr_addr(map->host) + 2 * PAGE + 8);
	/* That page only. */
	assert_int_equal(vp_xlate_piece(&x, IOVA + 3 * PAGE, 8, VP_WRITE, &host, &span), -EAGAIN);
	assert_int_equal(vp_xlate_piece(&x, IOVA + PAGE, 8, VP_READ, &host, &span), 0);
	/* A second answer that grants it. */
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
	assert_int_equal(map_pages(t, tab, IOVA + 3 * PAGE, PAGE, UVA + 3 * PAGE, 1), 0);
	assert_int_equal(map_pages(t, tab, IOVA + 3 * PAGE, PAGE, UVA + 3 * PAGE, 3), 0);
	assert_false(vp_iotlb_answered(t, iova, acc));
	assert_int_equal(vp_xlate_piece(&x, IOVA + 3 * PAGE, 8, VP_WRITE, &host, &span), 0);
	assert_int_equal(map_pages(t, tab, IOVA + 2 * PAGE, PAGE, UVA + 2 * PAGE, 3), 0);
	assert_int_equal(vp_xlate_piece(&x, IOVA + 2 * PAGE, 8, VP_WRITE, &host, &span), 0);
	vp_iotlb_free(t);
}

/* Pages that are not to be had take no room among the notes. */
static void test_refusals(void **state)
{
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	enum vp_access acc;
	uint64_t iova, span;
	vp_gptr host;
	unsigned i;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	for (i = 0; i < 3 * VP_IOTLB_MISSES; i++) {
		assert_int_equal(vp_xlate_piece(&x, IOVA + i * PAGE, 8, VP_WRITE, &host, &span), -EAGAIN);
		assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
		assert_int_equal(iova, IOVA + i * PAGE);
		vp_iotlb_refuse(t, iova, acc);
		assert_int_equal(vp_xlate_piece(&x, IOVA + i * PAGE, 8, VP_WRITE, &host, &span), -EFAULT);
	}
	vp_iotlb_free(t);
}

static int access_to(struct vp_xlate *x, unsigned page, enum vp_access acc)
{
	uint64_t span;
	vp_gptr host;

	return vp_xlate_piece(x, IOVA + page * PAGE + 16, 8, acc, &host, &span);
}

/* An update says read and write; kept is what was asked for, and what was known. */
static void test_proven(void **state)
{
	const unsigned r = 1u << VP_READ, w = 1u << VP_WRITE;
	struct vp_iotlb_stats s;
	enum vp_access acc;
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	uint64_t iova;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	assert_int_equal(vp_iotlb_update(t, tab, IOVA, 8 * PAGE, UVA, 3, r), 0);
	assert_int_equal(access_to(&x, 3, VP_READ), 0);
	assert_int_equal(access_to(&x, 3, VP_WRITE), -EAGAIN);
	/* Of the page that is written the reading stays known, and the other way round. */
	assert_int_equal(vp_iotlb_update(t, tab, IOVA + 3 * PAGE, PAGE, UVA + 3 * PAGE, 3, w), 0);
	assert_int_equal(access_to(&x, 3, VP_READ), 0);
	assert_int_equal(access_to(&x, 3, VP_WRITE), 0);
	assert_int_equal(vp_iotlb_update(t, tab, IOVA, 8 * PAGE, UVA, 3, r), 0);
	assert_int_equal(access_to(&x, 3, VP_WRITE), 0);
	assert_int_equal(access_to(&x, 2, VP_WRITE), -EAGAIN);
	vp_iotlb_stats(t, &s);
	assert_int_equal(s.entries, 3);
	/* A refusal takes nothing of what is known. */
	vp_iotlb_refuse(t, IOVA + 2 * PAGE, VP_WRITE);
	assert_int_equal(access_to(&x, 2, VP_READ), 0);
	assert_int_equal(access_to(&x, 2, VP_WRITE), -EFAULT);
	vp_iotlb_refuse(t, IOVA + 3 * PAGE, VP_WRITE);
	assert_int_equal(access_to(&x, 3, VP_WRITE), 0);
	/* Where nothing was known, either access is a question of its own. */
	vp_iotlb_refuse(t, IOVA + 20 * PAGE, VP_WRITE);
	assert_int_equal(access_to(&x, 20, VP_WRITE), -EFAULT);
	assert_int_equal(access_to(&x, 20, VP_READ), -EAGAIN);
	/* All written: one range again. */
	assert_int_equal(vp_iotlb_update(t, tab, IOVA, 8 * PAGE, UVA, 3, w), 0);
	vp_iotlb_stats(t, &s);
	assert_int_equal(s.entries, 2);
	/* It leads elsewhere: what was known is of the old place. */
	assert_int_equal(vp_iotlb_update(t, tab, IOVA, 8 * PAGE, UVA + PAGE, 3, r), 0);
	assert_int_equal(access_to(&x, 3, VP_WRITE), -EAGAIN);
	/* An answer that comes before its update. */
	vp_iotlb_forget_misses(t);
	assert_int_equal(access_to(&x, 5, VP_WRITE), -EAGAIN);
	assert_int_equal(vp_iotlb_next_miss(t, &iova, &acc), 1);
	assert_false(vp_iotlb_answered(t, iova, acc));
	assert_int_equal(vp_iotlb_granted(t, IOVA, 8 * PAGE), w);
	assert_int_equal(vp_iotlb_granted(t, IOVA, 5 * PAGE), 0);
	vp_iotlb_invalidate(t, IOVA, 8 * PAGE);
	assert_int_equal(vp_iotlb_granted(t, IOVA, 8 * PAGE), 0);
	vp_iotlb_free(t);
}

/*
 * Nothing known is lost or invented, in whatever pieces; very many pieces are forgotten, never
 * more.
 */
static void test_proven_model(void **state)
{
	unsigned known[PAGES] = { 0 }, round, i;
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };

	srandom(3);
	assert_int_equal(vp_iotlb_new(&t, NULL, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	for (round = 0; round < 3000; round++) {
		unsigned first = (unsigned)random() % PAGES, add = (unsigned)random() % 4;
		unsigned n = 1 + (unsigned)random() % (round % 20 ? 6 : PAGES);

		n = VP_MIN(n, PAGES - first);
		if (random() % 8 == 0) {
			vp_iotlb_invalidate(t, IOVA + first * PAGE, n * PAGE);
			memset(known + first, 0, n * sizeof(known[0]));
			continue;
		}
		assert_int_equal(vp_iotlb_update(t, tab, IOVA + first * PAGE, n * PAGE, UVA + first * PAGE, 3, add), 0);
		for (i = 0; i < PAGES; i++) {
			unsigned want = known[i] | (i >= first && i < first + n ? add : 0), has = 0;

			vp_xlate_flush(&x);
			for (unsigned acc = VP_READ; acc <= VP_WRITE; acc++)
				has |= access_to(&x, i, (enum vp_access)acc) ? 0 : 1u << acc;
			vp_iotlb_forget_misses(t);
			assert_int_equal(has & ~want, 0);
			if (has != want)
				assert_true(n > 64 && i >= first && i < first + n && has == add);
			known[i] = has;
		}
	}
	/* Every other page, and then all of them. */
	for (i = 0; i < PAGES; i += 2)
		assert_int_equal(vp_iotlb_update(t, tab, IOVA + i * PAGE, PAGE, UVA + i * PAGE, 3, 1u << VP_WRITE), 0);
	assert_int_equal(vp_iotlb_update(t, tab, IOVA, PAGES * PAGE, UVA, 3, 1u << VP_READ), 0);
	for (i = 0; i < PAGES; i++)
		assert_int_equal(access_to(&x, i, VP_READ), 0);
	vp_iotlb_free(t);
}

/* An invalidation inside an entry leaves two, and there is an end to that, too. */
static void test_split_full(void **state)
{
	const uint64_t n = VP_IOTLB_MAX - 1000;
	struct vp_iotlb_stats s;
	struct vp_iotlb *t;
	uint64_t i;

	assert_int_equal(vp_iotlb_new(&t, NULL, NULL), 0);
	for (i = 0; i < n; i++)
		assert_int_equal(map_pages(t, tab, IOVA + 4 * i * PAGE, 3 * PAGE, UVA, 3), 0);
	for (i = 0; i < n; i++) {
		vp_iotlb_invalidate(t, IOVA + (4 * i + 1) * PAGE, PAGE);
		vp_iotlb_stats(t, &s);
		assert_true(s.entries <= VP_IOTLB_MAX);
	}
	assert_true(s.entries > VP_IOTLB_MAX / 2);
	vp_iotlb_free(t);
}

struct reader {
	struct vp_iotlb *t;
	unsigned faults;
	bool stop;
};

static void *reads(void *arg)
{
	struct reader *r = arg;
	struct vp_xlate x = { .grows = false };
	uint64_t span;
	vp_gptr host;

	vp_xlate_init(&x, tab, vp_iotlb_iommu(r->t));
	while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED))
		if (vp_xlate_piece(&x, IOVA, 8, VP_WRITE, &host, &span) == -EFAULT)
			__atomic_fetch_add(&r->faults, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* A reader that looks all the time asks once, whether the answer is a refusal or grants less. */
static void test_asked_once(void **state)
{
	struct reader r = { 0 };
	enum vp_access acc;
	pthread_t reader;
	uint64_t iova;
	unsigned i, before;

	assert_int_equal(vp_iotlb_new(&r.t, NULL, NULL), 0);
	assert_int_equal(pthread_create(&reader, NULL, reads, &r), 0);
	for (i = 0; i < 20000; i++) {
		while (!vp_iotlb_next_miss(r.t, &iova, &acc))
			;
		if (i & 1) {
			vp_iotlb_refuse(r.t, iova, acc);
		} else {
			assert_int_equal(map_pages(r.t, tab, IOVA, 4 * PAGE, UVA, 1), 0);
			assert_true(vp_iotlb_answered(r.t, iova, acc));
		}
		before = __atomic_load_n(&r.faults, __ATOMIC_RELAXED);
		while (__atomic_load_n(&r.faults, __ATOMIC_RELAXED) < before + 2)
			;
		assert_int_equal(vp_iotlb_next_miss(r.t, &iova, &acc), 0);
		vp_iotlb_invalidate(r.t, IOVA, 4 * PAGE);
	}
	r.stop = true;
	pthread_join(reader, NULL);
	vp_iotlb_free(r.t);
}

/* Updates that take something away, and those that do not. */
static void test_changes(void **state)
{
	struct vp_iotlb *t;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	assert_false(vp_iotlb_changes(t, tab, IOVA, PAGE, UVA, 3));
	assert_int_equal(map_pages(t, tab, IOVA + PAGE, 4 * PAGE, UVA + PAGE, 1), 0);
	assert_false(vp_iotlb_changes(t, tab, IOVA, 8 * PAGE, UVA, 1));
	assert_false(vp_iotlb_changes(t, tab, IOVA + 2 * PAGE, PAGE, UVA + 2 * PAGE, 3));
	assert_true(vp_iotlb_changes(t, tab, IOVA + 2 * PAGE, PAGE, UVA + 2 * PAGE, 2));
	assert_true(vp_iotlb_changes(t, tab, IOVA + 2 * PAGE, PAGE, UVA + 3 * PAGE, 1));
	assert_true(vp_iotlb_changes(t, tab, IOVA, 2 * PAGE, UVA + PAGE, 1));
	assert_false(vp_iotlb_changes(t, tab, IOVA + 5 * PAGE, PAGE, UVA, 1));
	assert_false(vp_iotlb_changes(t, tab, IOVA + 2 * PAGE, 0, UVA, 1)); /* refused anyway */
	vp_iotlb_refuse(t, IOVA + 9 * PAGE, VP_WRITE);
	assert_false(vp_iotlb_changes(t, tab, IOVA + 9 * PAGE, PAGE, UVA, 3));
	vp_iotlb_free(t);
}

/* What a reader remembered from before an invalidation is not used in its next burst. */
static void test_sync(void **state)
{
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	uint64_t span;
	vp_gptr host;

	assert_int_equal(vp_iotlb_new(&t, wake, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UVA, 3), 0);
	assert_int_equal(vp_xlate_piece(&x, IOVA, 8, VP_READ, &host, &span), 0);
	assert_true(x.hot[VP_READ]->size != 0);
	vp_iotlb_invalidate(t, IOVA, 1);
	vp_xlate_sync(&x);
	assert_true(x.hot[VP_READ]->size == 0);
	assert_true(x.hot[VP_WRITE]->size == 0);
	vp_iotlb_free(t);
}

static bool stop_readers;

/* Every page maps to itself whenever it is mapped: any other answer is a torn one. */
static void *reader(void *arg)
{
	struct vp_xlate x = { .grows = false };
	unsigned long wrong = 0;
	unsigned i = 0;

	vp_xlate_init(&x, tab, vp_iotlb_iommu(arg));
	while (!__atomic_load_n(&stop_readers, __ATOMIC_RELAXED)) {
		uint64_t span;
		vp_gptr host;

		i = (i * 1103515245u + 12345u);
		vp_xlate_sync(&x);
		if (!vp_xlate_piece(&x, IOVA + (i >> 8) % PAGES * PAGE, 64, VP_READ, &host, &span))
			wrong += vp_gptr_addr(host) != vp_gptr_addr(map->host) + (i >> 8) % PAGES * PAGE;
	}
	return (void *)wrong;
}

static void test_readers(void **state)
{
	struct vp_iotlb *t;
	pthread_t th[2];
	unsigned i;
	void *wrong;

	stop_readers = false;
	assert_int_equal(vp_iotlb_new(&t, NULL, NULL), 0);
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&th[i], NULL, reader, t), 0);
	srandom(2);
	for (i = 0; i < 100000; i++) {
		uint64_t page = (uint64_t)random() % PAGES;

		if (random() % 2)
			map_pages(t, tab, IOVA + page * PAGE, PAGE, UVA + page * PAGE, 3);
		else
			vp_iotlb_invalidate(t, IOVA + page * PAGE, PAGE);
	}
	__atomic_store_n(&stop_readers, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++) {
		pthread_join(th[i], &wrong);
		assert_ptr_equal(wrong, NULL);
	}
	vp_iotlb_free(t);
}

/* More entries than there is room for: old ones go, nothing else happens. */
static void test_full(void **state)
{
	struct vp_iotlb_stats s;
	struct vp_iotlb *t;
	uint64_t i;

	assert_int_equal(vp_iotlb_new(&t, NULL, NULL), 0);
	for (i = 0; i < VP_IOTLB_MAX + 5000; i++)
		assert_int_equal(map_pages(t, tab, IOVA + 2 * i * PAGE, PAGE, UVA, 3), 0);
	vp_iotlb_stats(t, &s);
	assert_true(s.entries <= VP_IOTLB_MAX);
	assert_true(s.entries > VP_IOTLB_MAX / 2);
	vp_iotlb_free(t);
}

/*
 * What was written where an entry has gone since: invalidated, it is the guest's affair; forgotten for want of room,
 * any page of the memory is dirty.
 */
static void test_dirty_log(void **state)
{
	uint64_t first = 0x40000000 / PAGE, size = (first + PAGES + 4096 * 8) / (4096 * 8) * 4096;
	struct vp_dirty_log log = { .pages = size * 8 };
	struct vp_iotlb *t;
	struct vp_xlate x = { .grows = false };
	uint64_t i;
	int fd = memfd_create("log", 0);

	assert_false(fd < 0 || ftruncate(fd, (off_t)size) || vp_map_new(&log.map, fd, 0, size, 0, NULL));
	close(fd);
	assert_int_equal(vp_iotlb_new(&t, NULL, NULL), 0);
	vp_xlate_init(&x, tab, vp_iotlb_iommu(t));
	assert_int_equal(map_pages(t, tab, IOVA, PAGE, UVA, 3), 0);
	vp_iotlb_invalidate(t, IOVA, PAGE);
	vp_dirty_log_mark_xlate(&log, &x, IOVA, 16);
	for (i = 0; i < size; i++)
		assert_int_equal(vp_ld8(log.map->host, i), 0);
	for (i = 0; i < VP_IOTLB_MAX + 10; i++)
		assert_int_equal(map_pages(t, tab, IOVA + 2 * i * PAGE, PAGE, UVA, 3), 0);
	vp_dirty_log_mark_xlate(&log, &x, IOVA, 16);
	for (i = 0; i < size * 8; i++)
		assert_int_equal(vp_ld8(log.map->host, i / 8) >> i % 8 & 1, i >= first && i < first + PAGES);
	vp_iotlb_free(t);
	vp_map_unref(log.map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),	    cmocka_unit_test(test_merge),
		cmocka_unit_test(test_bad_updates), cmocka_unit_test(test_misses),
		cmocka_unit_test(test_sync),	    cmocka_unit_test(test_readers),
		cmocka_unit_test(test_full),	    cmocka_unit_test(test_dirty_log),
		cmocka_unit_test(test_deny),	    cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_asked_once),  cmocka_unit_test(test_changes),
		cmocka_unit_test(test_proven),	    cmocka_unit_test(test_proven_model),
		cmocka_unit_test(test_split_full),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
