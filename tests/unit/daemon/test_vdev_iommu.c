/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * When a vIOMMU takes something away, the answer waits for the data threads: one that is in a burst has looked its
 * addresses up already, and goes on using them to the burst's end.
 */
#include <errno.h>
#include <linux/vhost_types.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include <urcu/urcu-qsbr.h>

#include "front/vdev_priv.h"

#define PAGE  4096ull
#define PAGES 16u
#define UVA   0x7f0000000000ull
#define IOVA  0x100000000ull
#define HELD  100000 /* us that a burst lasts; the answer of a daemon that does not wait takes less */

static struct vp_map *map;
static struct vp_vdev dev;
static struct vp_vdev_slot slot = { &dev };

static void wake(void *arg)
{
}

/* vdev.c's; no ring waits here. */
int vp_vdev_ring_retry(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	return 0;
}

static const struct vp_vdev_ops ops = { 0 };

static int setup(void **state)
{
	struct vp_region_desc d = { .gpa = 0x40000000, .size = PAGES * PAGE, .uva = UVA };
	int fd = memfd_create("vdev_iommu", 0);

	if (fd < 0 || ftruncate(fd, PAGES * PAGE) || vp_map_new(&map, fd, 0, PAGES * PAGE, 0, NULL))
		return -1;
	close(fd);
	d.map = map;
	dev = (struct vp_vdev){ .name = "test", .ops = &ops, .ctx = &slot };
	return vp_memtab_build(&dev.tab, &d, 1, NULL) || vp_iotlb_new(&dev.iotlb, wake, NULL);
}

static int teardown(void **state)
{
	vp_iotlb_free(dev.iotlb);
	vp_memtab_free(dev.tab);
	vp_map_unref(map);
	return 0;
}

/* A data thread with one burst. */
struct burst {
	pthread_t thread;
	pthread_barrier_t begun;
	bool hold; /* until this is cleared, not for a time */
	bool over;
	int ret;
};

static void *burst(void *arg)
{
	struct burst *b = arg;
	struct vp_xlate x = { .grows = false };
	uint64_t span;
	vp_gptr host;

	urcu_qsbr_register_thread();
	vp_xlate_init(&x, dev.tab, vp_iotlb_iommu(dev.iotlb));
	vp_xlate_sync(&x);
	b->ret = vp_xlate_piece(&x, IOVA, PAGE, VP_WRITE, &host, &span);
	pthread_barrier_wait(&b->begun);
	if (!b->hold)
		usleep(HELD);
	while (__atomic_load_n(&b->hold, __ATOMIC_ACQUIRE))
		usleep(100);
	if (!b->ret)
		vp_st32(host, 0, 1);
	__atomic_store_n(&b->over, true, __ATOMIC_RELEASE);
	urcu_qsbr_unregister_thread(); /* the burst ends */
	return NULL;
}

static void begin(struct burst *b, bool hold)
{
	*b = (struct burst){ .hold = hold };
	assert_int_equal(pthread_barrier_init(&b->begun, NULL, 2), 0);
	assert_int_equal(pthread_create(&b->thread, NULL, burst, b), 0);
	pthread_barrier_wait(&b->begun);
}

static bool is_over(struct burst *b)
{
	return __atomic_load_n(&b->over, __ATOMIC_ACQUIRE);
}

static int end(struct burst *b)
{
	__atomic_store_n(&b->hold, false, __ATOMIC_RELEASE);
	pthread_join(b->thread, NULL);
	pthread_barrier_destroy(&b->begun);
	return b->ret;
}

static void message(uint8_t type, uint64_t iova, unsigned page, uint8_t perm)
{
	struct vhost_iotlb_msg m = {
		.type = type, .iova = iova, .size = PAGE, .uaddr = UVA + page * PAGE, .perm = perm
	};
	struct vp_err e = { 0 };

	assert_int_equal(vp_vdev_on_iotlb(&slot, &m, &e), 0);
}

/* Writing there was asked for and granted: the next update proves it. */
static void granted(uint64_t iova)
{
	enum vp_access acc;
	struct vp_xlate x = { .grows = false };
	uint64_t span;
	vp_gptr host;

	vp_xlate_init(&x, dev.tab, vp_iotlb_iommu(dev.iotlb));
	if (vp_xlate_piece(&x, iova, 8, VP_WRITE, &host, &span) == -EAGAIN &&
	    vp_iotlb_next_miss(dev.iotlb, &iova, &acc))
		vp_iotlb_answered(dev.iotlb, iova, acc);
}

/* What takes a page away that a burst uses, or one beside it, is not answered before the burst ends. */
static void test_answer_waits_for_bursts(void **state)
{
	static const struct {
		uint8_t type;
		uint64_t iova;
		unsigned page;
		uint8_t perm;
	} taken[] = {
		{ VHOST_IOTLB_INVALIDATE, IOVA, 0, 0 },
		{ VHOST_IOTLB_INVALIDATE, IOVA + PAGE, 0, 0 },
		{ VHOST_IOTLB_UPDATE, IOVA, 5, VHOST_ACCESS_RW },
		{ VHOST_IOTLB_UPDATE, IOVA, 1, VHOST_ACCESS_RO },
	};

	for (unsigned i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
		struct burst b;
		bool waited;

		granted(IOVA);
		message(VHOST_IOTLB_UPDATE, IOVA, 1, VHOST_ACCESS_RW);
		message(VHOST_IOTLB_UPDATE, IOVA + PAGE, 2, VHOST_ACCESS_RW);
		begin(&b, false);
		message(taken[i].type, taken[i].iova, taken[i].page, taken[i].perm);
		waited = is_over(&b);
		assert_int_equal(end(&b), 0);
		assert_true(waited);
	}
}

/* A page that nobody had yet is answered at once: a driver VM waits for that with every miss. */
static void test_new_pages_do_not_wait(void **state)
{
	struct burst b;

	granted(IOVA);
	message(VHOST_IOTLB_UPDATE, IOVA, 1, VHOST_ACCESS_RW);
	begin(&b, true);
	message(VHOST_IOTLB_UPDATE, IOVA + 3 * PAGE, 3, VHOST_ACCESS_RW);
	message(VHOST_IOTLB_UPDATE, IOVA, 1, VHOST_ACCESS_RW);
	assert_int_equal(end(&b), 0); /* not reached by a daemon that waits */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_answer_waits_for_bursts),
		cmocka_unit_test(test_new_pages_do_not_wait),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
