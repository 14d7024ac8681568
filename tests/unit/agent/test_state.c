// SPDX-License-Identifier: BSD-3-Clause
/* The checked copy of the state page; windows, regions and rings. */
#include "double.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vfeatures.h"

static struct fake_port f;
static struct vp_state s;

static int setup(void **state)
{
	fake_init(&f, 4);
	fake_up(&f, 2);
	return 0;
}

static int teardown(void **state)
{
	fake_free(&f);
	return 0;
}

static int read_it(void)
{
	struct vp_err e = { 0 };

	return port_read_state(&f.port, &s, &e);
}

static void test_reads_all(void **state)
{
	assert_int_equal(read_it(), 0);
	assert_int_equal(s.nqueues, 2);
	assert_int_equal(s.queues[1].base, 8);
	assert_int_equal(s.queues[1].desc, 0x14000);
	assert_int_equal(s.nregions, 1);
	assert_int_equal(s.regions[0].addr, 0x10000);
	assert_int_equal(s.windows[0].size, 1 << 20);
	assert_int_equal(s.link_epoch, 1);
	assert_true(s.features[0] == F_V1);
}

static void test_odd_is_no_copy(void **state)
{
	fake_begin(&f);
	assert_int_equal(read_it(), -EAGAIN);
	fake_end(&f);
	assert_int_equal(read_it(), 0);
}

static volatile bool writer_stop;

/* All bases equal the epoch in every state that is consistent. */
static void *writer(void *arg)
{
	for (uint32_t i = 2; !writer_stop; i++) {
		struct vhp_abi_state *st = &f.c->state;

		__atomic_store_n(&st->generation, htole32(le32toh(st->generation) + 1), __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		__atomic_store_n(&st->link_epoch, htole64(i), __ATOMIC_RELAXED);
		for (int q = 0; q < 4; q++)
			__atomic_store_n(&st->queues[q].base, htole32(i), __ATOMIC_RELAXED);
		__atomic_store_n(&st->generation, htole32(le32toh(st->generation) + 1), __ATOMIC_RELEASE);
		for (volatile int k = 0; k < 200; k++)
			;
	}
	return NULL;
}

static void test_never_torn(void **state)
{
	pthread_t t;
	unsigned int good = 0;

	fake_queue(&f, 3, 0x20000, 16, 0);
	f.c->state.link_epoch = 0;
	for (int q = 0; q < 4; q++)
		f.c->state.queues[q].base = 0;
	writer_stop = false;
	assert_int_equal(pthread_create(&t, NULL, writer, NULL), 0);
	for (int i = 0; i < 300000; i++) {
		if (read_it())
			continue;
		good++;
		for (int q = 0; q < 4; q++)
			if (s.queues[q].base != (uint32_t)s.link_epoch)
				fail_msg("torn: queue %d has %u, epoch %u", q, s.queues[q].base,
					 (uint32_t)s.link_epoch);
	}
	writer_stop = true;
	pthread_join(t, NULL);
	assert_true(good > 100);
}

#define REFUSES(change) do { \
	struct vhp_abi_state *st = fake_begin(&f); \
	struct vhp_abi_state keep = *st; \
	change; \
	fake_end(&f); \
	if (read_it() != -EPROTO) \
		fail_msg("accepted: " #change); \
	fake_begin(&f); \
	keep.generation = st->generation; \
	*st = keep; \
	fake_end(&f); \
	assert_int_equal(read_it(), 0); \
} while (0)

static void test_refuses_nonsense(void **state)
{
	REFUSES(st->abi_version = htole32(2));
	REFUSES(st->nqueues = htole32(5));
	REFUSES(st->max_queues = htole32(129));
	REFUSES(st->max_queues = htole32(5));
	REFUSES(st->nregions = htole32(510));
	REFUSES(st->nregions = htole32(~0u));
	REFUSES(st->nwindows = htole32(510));
	REFUSES(st->config_size = htole32(257));
	REFUSES(st->nregions = htole32(2));				/* the second one is empty */
	REFUSES(st->regions[0].size = 0);
	REFUSES(st->regions[0].addr = htole64(~UINT64_C(0) - 4096));	/* wraps */
	REFUSES(st->regions[0].window = htole32(1));
	REFUSES(st->regions[0].window = htole32(~0u));
	REFUSES(st->regions[0].offset = htole64(4096));			/* beyond the window */
	REFUSES(st->regions[0].offset = htole64(~UINT64_C(0) - 4095));
	REFUSES(st->windows[0].size = htole64(4097));
	REFUSES(st->windows[0].size = 0);
	REFUSES(st->windows[0].serial = 0);
	REFUSES(st->windows[0].kind = 0);
	REFUSES(st->queues[0].run = 0);
	REFUSES(st->queues[1].flags = htole32(VHP_QUEUE_STOP));
	/* overlapping, and out of order */
	fake_region(&f, 0x10000 + (1 << 20), 4096, 0, 0);
	REFUSES(st->regions[1].addr = htole64(0x10000 + (1 << 20) - 1));
	REFUSES(st->regions[1].addr = 0);
}

static void test_unplugged_page(void **state)
{
	int fd = memfd_create("control", MFD_CLOEXEC);
	void *m;

	assert_int_equal(ftruncate(fd, VHP_CTRL_SIZE), 0);
	m = mmap(NULL, VHP_CTRL_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(m != MAP_FAILED);
	f.port.ctrl = m;
	/* An access now raises SIGBUS, as it does when the module has revoked the page. */
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(read_it(), -ENODEV);
	assert_int_equal(read_it(), -ENODEV);
	munmap(m, VHP_CTRL_SIZE);
	close(fd);
}

/* ---- memmap ---- */

static struct memmap *build(const struct memmap *old, bool map, int want)
{
	struct vp_err e = { 0 };
	struct memmap *m = NULL;

	assert_int_equal(read_it(), 0);
	assert_int_equal(memmap_build(&f.port, &s, old, map, &m, &e), want);
	return m;
}

static void test_map_merge(void **state)
{
	struct memmap *m;
	uint64_t uva;

	/* 1 MiB at 64 KiB, split in the middle: one region again. Then one that only continues link addresses. */
	fake_begin(&f)->nregions = 0;
	fake_end(&f);
	fake_region(&f, 0x10000, 0x40000, 0, 0);
	fake_region(&f, 0x50000, 0x40000, 0, 0x40000);
	fake_region(&f, 0x90000, 0x40000, 0, 0xa0000);
	m = build(NULL, true, 0);
	assert_int_equal(m->nregions, 2);
	assert_int_equal(f.windows_given, 1);
	assert_int_equal(m->r[0].win->uva & ((2 << 20) - 1) & 4095, 0);
	assert_non_null(memmap_find(m, 0x4ff00, 0x200, &uva));
	assert_int_equal(uva, m->r[0].win->uva + 0x3ff00);
	/* contiguous link addresses, not contiguous memory */
	assert_null(memmap_find(m, 0x8ff00, 0x200, &uva));
	assert_non_null(memmap_find(m, 0x90000, 0x40000, &uva));
	assert_int_equal(uva, m->r[0].win->uva + 0xa0000);
	assert_null(memmap_find(m, 0x90000, 0x40001, &uva));
	assert_null(memmap_find(m, 0xffff, 1, &uva));
	assert_null(memmap_find(m, 0x10000, ~UINT64_C(0), &uva));
	assert_null(memmap_find(m, ~UINT64_C(0), 2, &uva));
	memmap_free(m);
}

static void test_map_is_memory(void **state)
{
	struct memmap *m = build(NULL, true, 0);
	uint64_t uva;

	assert_non_null(memmap_find(m, 0x20000, 8, &uva));
	*(uint64_t *)(uintptr_t)uva = 0x1234;
	assert_int_equal(pwrite(f.win_fd[0], "x", 1, 0x10001), 1);
	assert_int_equal(*(uint64_t *)(uintptr_t)uva, 0x7834);
	memmap_free(m);
}

static void test_map_grow_and_replace(void **state)
{
	struct memmap *m = build(NULL, false, 0), *n, *o;
	uint64_t first = m->r[0].win->uva;

	/* hot-plug: the old window is taken over */
	fake_window(&f, 1, 1 << 20, -1);
	fake_region(&f, 1 << 30, 1 << 20, 1, 0);
	n = build(m, false, 0);
	assert_int_equal(f.windows_given, 2);
	assert_int_equal(n->nregions, 2);
	assert_ptr_equal(n->r[0].win, m->r[0].win);
	memmap_free(m);
	/*
	 * a new driver VM with the same layout: other memory, other numbers, or a back-end would keep the old mapping
	 */
	fake_window(&f, 0, 1 << 20, -1);
	o = build(n, false, 0);
	assert_int_equal(f.windows_given, 3);
	assert_true(o->r[0].win->uva != first);
	assert_ptr_equal(o->r[1].win, n->r[1].win);
	memmap_free(n);
	memmap_free(o);
}

static void test_map_keeps_shape(void **state)
{
	struct memmap *m, *n;

	fake_begin(&f)->nregions = 0;
	fake_end(&f);
	fake_region(&f, 0x10000, 0x40000, 0, 0);
	m = build(NULL, false, 0);
	fake_region(&f, 0x50000, 0x40000, 0, 0x40000);
	n = build(m, false, 0);
	assert_int_equal(n->nregions, 2);
	assert_int_equal(n->r[0].size, 0x40000);
	memmap_free(m);
	memmap_free(n);
}

static void test_map_pending(void **state)
{
	struct memmap *m;
	int fd = f.win_fd[0];

	f.win_fd[0] = -1;
	m = build(NULL, false, 0);
	assert_int_equal(m->pending, 1);
	assert_int_equal(m->nregions, 0);
	memmap_free(m);
	f.win_fd[0] = fd;
	/* not READY is not ready, whatever the module says */
	fake_begin(&f)->windows[0].flags = 0;
	fake_end(&f);
	m = build(NULL, false, 0);
	assert_int_equal(m->pending, 1);
	memmap_free(m);
}

static void test_rings(void **state)
{
	struct memmap *m = build(NULL, false, 0);
	struct vp_state_queue q = s.queues[0];
	struct mm_ring r;
	struct vp_err e = { 0 };

	assert_int_equal(memmap_ring(m, &q, false, &r, &e), 0);
	assert_int_equal(r.used - r.desc, 0x2000);
	q.size = 255;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EINVAL);
	assert_int_equal(memmap_ring(m, &q, true, &r, &e), 0);
	q.size = 0;
	assert_int_equal(memmap_ring(m, &q, true, &r, &e), -EINVAL);
	q.size = 65536;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EINVAL);
	q = s.queues[0];
	q.desc += 8;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EINVAL);
	q = s.queues[0];
	q.avail += 1;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EINVAL);
	q = s.queues[0];
	q.desc = 0;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EFAULT);
	q.desc = ~UINT64_C(0) - 15;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EFAULT);
	q = s.queues[0];
	/* the last byte of the used ring is outside */
	q.used = 0x10000 + (1 << 20) - (6 + 8 * 256) + 4;
	q.used &= ~UINT64_C(3);
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), -EFAULT);
	q.used -= 4;
	assert_int_equal(memmap_ring(m, &q, false, &r, &e), 0);
	memmap_free(m);
}

static void test_names(void **state)
{
	uint64_t v[2] = { F_V1 | BIT(15) | BIT(50), BIT(1) };
	char buf[64];

	assert_string_equal(features_names(v, 1, buf, sizeof(buf)), "MRG_RXBUF VERSION_1 bit50 bit65");
	assert_string_equal(features_names(v, 2, buf, sizeof(buf)), "bit15 VERSION_1 bit50 bit65");
	v[0] = ~UINT64_C(0);
	assert_true(strlen(features_names(v, 1, buf, sizeof(buf))) < sizeof(buf));
	v[0] = v[1] = 0;
	assert_string_equal(features_names(v, 1, buf, sizeof(buf)), "none");
	assert_string_equal(vp_state_reason_str(99), "reason 99");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_reads_all, setup, teardown),
		cmocka_unit_test_setup_teardown(test_odd_is_no_copy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_torn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refuses_nonsense, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unplugged_page, setup, teardown),
		cmocka_unit_test_setup_teardown(test_map_merge, setup, teardown),
		cmocka_unit_test_setup_teardown(test_map_is_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_map_grow_and_replace, setup, teardown),
		cmocka_unit_test_setup_teardown(test_map_keeps_shape, setup, teardown),
		cmocka_unit_test_setup_teardown(test_map_pending, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rings, setup, teardown),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
