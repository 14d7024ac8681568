/* SPDX-License-Identifier: BSD-3-Clause */
/* Lanes: what is published runs, what was withdrawn does not, and the main thread hears of trouble once. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cycles.h"
#include "base/util.h"
#include "link/lane.h"
#include "sys/fds.h"

#define LANES 4

struct thing {
	struct vp_work work; /* first */
	unsigned runs, trouble, freed;
	unsigned work_us; /* each run takes so long, and has done something; 0: it has nothing to do */
	int      tid;     /* of its last run */
};

static struct thing things[LANES];
static struct worker_pool *pool;
static struct vp_lanes *lanes;

static unsigned thing_run(struct vp_work *w, struct vp_scratch *s, unsigned *trouble)
{
	struct thing *t = (struct thing *)w;
	unsigned us = __atomic_load_n(&t->work_us, __ATOMIC_RELAXED);

	__atomic_fetch_add(&t->runs, 1, __ATOMIC_RELAXED);
	*trouble = __atomic_load_n(&t->trouble, __ATOMIC_RELAXED);
	__atomic_store_n(&t->tid, (int)gettid(), __ATOMIC_RELAXED);
	for (uint64_t end = vp_cycles() + vp_cycles_hz() / 1000000 * us; us && vp_cycles() < end;)
		vp_relax();
	return us > 0;
}

static enum worker_next thing_arm(struct vp_work *w)
{
	return WORKER_SLEEP;
}

static void thing_disarm(struct vp_work *w)
{
}

static void thing_free(struct vp_work *w)
{
	((struct thing *)w)->freed++;
}

static const struct vp_work_ops ops = {
	.run = thing_run, .arm = thing_arm, .disarm = thing_disarm, .free = thing_free
};

static int setup(void **state)
{
	struct worker_pool_conf c = { .threads = 2 };

	assert_int_equal(worker_pool_new(&pool, &c, NULL), 0);
	lanes = vp_lanes_new(pool, LANES, 1);
	assert_non_null(lanes);
	for (unsigned i = 0; i < LANES; i++) {
		things[i] = (struct thing){ .work.ops = &ops };
		assert_int_equal(vp_lane_add(lanes, i, false, NULL), 0);
	}
	return 0;
}

static int teardown(void **state)
{
	vp_lanes_free(lanes);
	worker_pool_free(pool);
	return 0;
}

static unsigned runs(unsigned i)
{
	return __atomic_load_n(&things[i].runs, __ATOMIC_RELAXED);
}

/* Until it has run more than n times. */
static void wait_run(unsigned i, unsigned n)
{
	while (runs(i) <= n)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static bool attention(int ms)
{
	struct pollfd p = { .fd = worker_attention_fd(pool), .events = POLLIN };
	uint64_t n;

	return poll(&p, 1, ms) == 1 && read(p.fd, &n, sizeof(n)) == sizeof(n);
}

static void test_withdrawn_is_left_alone(void **state)
{
	unsigned n[LANES], i;

	for (i = 0; i < LANES; i++) {
		assert_null(vp_lane_work(lanes, i));
		vp_lane_publish(lanes, i, &things[i].work);
		assert_ptr_equal(vp_lane_work(lanes, i), &things[i].work);
	}
	for (i = 0; i < LANES; i++)
		wait_run(i, 0);
	vp_lane_withdraw(lanes, 1);
	vp_lane_withdraw(lanes, 2);
	assert_null(vp_lane_work(lanes, 1));
	vp_lanes_sync(lanes);
	for (i = 0; i < LANES; i++) {
		n[i] = runs(i);
		assert_int_equal(things[i].freed, i == 1 || i == 2);
	}
	vp_lanes_poke(lanes);
	wait_run(0, n[0]);
	wait_run(3, n[3]);
	assert_int_equal(runs(1), n[1]);
	assert_int_equal(runs(2), n[2]);
	/* Nothing is owed any more. */
	vp_lanes_sync(lanes);
	assert_int_equal(things[1].freed, 1);
	vp_lane_publish(lanes, 1, &things[2].work);
	wait_run(2, n[2]);
}

static void test_trouble_is_told_once(void **state)
{
	vp_lane_publish(lanes, 0, &things[0].work);
	wait_run(0, 0);
	__atomic_store_n(&things[0].trouble, 1, __ATOMIC_RELAXED);
	vp_lanes_poke(lanes);
	assert_true(attention(10000));
	for (unsigned i = 0; i < 3; i++) {
		unsigned n = runs(0);

		vp_lanes_poke(lanes);
		wait_run(0, n);
	}
	assert_false(attention(0));
	__atomic_store_n(&things[0].trouble, 2, __ATOMIC_RELAXED);
	vp_lanes_poke(lanes);
	assert_true(attention(10000));
	/* Who comes next has not been told of. */
	vp_lane_withdraw(lanes, 0);
	vp_lanes_sync(lanes);
	vp_lane_publish(lanes, 0, &things[0].work);
	assert_true(attention(10000));
}

static void test_signalled_runs(void **state)
{
	int fd = -1;
	unsigned n;

	assert_int_equal(vp_eventfd_new(&fd), 0);
	assert_int_equal(vp_lane_watch(lanes, 0, fd), 0);
	assert_int_not_equal(vp_lane_watch(lanes, 0, fd), 0); /* room for one */
	vp_lane_publish(lanes, 0, &things[0].work);
	wait_run(0, 0);
	n = runs(0);
	vp_eventfd_raise(fd);
	wait_run(0, n);
	/* With the work goes the watch: there is room again. */
	vp_lane_withdraw(lanes, 0);
	vp_lanes_sync(lanes);
	assert_int_equal(vp_lane_watch(lanes, 0, fd), 0);
	vp_lane_publish(lanes, 0, &things[0].work);
	close(fd);
}

/* Two that have always something to do came to one thread: one of them moves, with what it waits for. */
static void test_full_thread_is_relieved(void **state)
{
	struct worker_info info;
	unsigned n;
	int fd = -1;

	assert_int_equal(vp_eventfd_new(&fd), 0);
	for (unsigned i = 0; i < LANES; i++) {
		things[i].work_us = i % 2 ? 0 : 100;
		assert_int_equal(vp_lane_watch(lanes, i, fd), 0);
		vp_lane_publish(lanes, i, &things[i].work);
		wait_run(i, 0);
	}
	assert_int_equal(things[0].tid, things[2].tid);
	while (__atomic_load_n(&things[0].tid, __ATOMIC_RELAXED) == __atomic_load_n(&things[2].tid, __ATOMIC_RELAXED)) {
		assert_true(attention(30000));
		vp_lanes_place(pool);
		/* Who has moved runs there. */
		for (unsigned i = 0; i < LANES; i += 2)
			wait_run(i, runs(i) + 1);
	}
	worker_pool_info(pool, 0, &info);
	assert_int_equal(info.jobs, 1);
	worker_pool_info(pool, 1, &info);
	assert_int_equal(info.jobs, 3);
	assert_int_equal(info.moved, 1);
	/* It is even now. */
	for (unsigned i = 0; i < 3; i++) {
		assert_true(attention(30000));
		vp_lanes_place(pool);
	}
	worker_pool_info(pool, 0, &info);
	assert_int_equal(info.moved, 0);
	/* Asleep, each wakes up where it is. */
	for (unsigned i = 0; i < LANES; i++)
		__atomic_store_n(&things[i].work_us, 0, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < LANES; i++) {
		do
			worker_pool_info(pool, 0, &info);
		while (info.awake);
		do
			worker_pool_info(pool, 1, &info);
		while (info.awake);
		n = runs(i);
		vp_eventfd_raise(fd);
		wait_run(i, n);
	}
	close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = { T(test_withdrawn_is_left_alone), T(test_trouble_is_told_once),
					    T(test_signalled_runs), T(test_full_thread_is_relieved) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
