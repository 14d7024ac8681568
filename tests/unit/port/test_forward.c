/* SPDX-License-Identifier: BSD-3-Clause */
/* The signal forwarder with honest and hostile eventfds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../clock_ahead.h"
#include "base/blame.h"
#include "threads/forward.h"

static bool raised(int fd, int ms)
{
	struct pollfd p = { fd, POLLIN, 0 };
	uint64_t n;

	return poll(&p, 1, ms) == 1 && read(fd, &n, 8) == 8;
}

static void hit(int fd)
{
	const uint64_t one = 1;

	assert_int_equal(write(fd, &one, 8), 8);
}

static void test_passes(void **state)
{
	struct vp_forward *f;
	struct vp_wire *w;
	int a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK);

	assert_int_equal(vp_forward_new(&f, NULL), 0);
	assert_int_equal(vp_wire_new(&w, f, a, b, 0), 0);
	assert_false(raised(b, 50));
	for (int i = 0; i < 1000; i++) {
		hit(a);
		assert_true(raised(b, 1000));
	}
	assert_int_equal(vp_wire_count(w), 1000);
	vp_wire_free(w);
	hit(a);
	assert_false(raised(b, 50));
	/* What was raised before the wire existed is passed on when it comes. */
	assert_int_equal(vp_wire_new(&w, f, a, b, 0), 0);
	assert_true(raised(b, 1000));
	vp_wire_free(w);
	vp_forward_free(f);
	close(a);
	close(b);
}

static void count(void *arg)
{
	__atomic_fetch_add((int *)arg, 1, __ATOMIC_SEQ_CST);
}

static void test_function(void **state)
{
	struct vp_forward *f;
	struct vp_wire *w;
	int a = eventfd(0, EFD_NONBLOCK), n = 0;

	assert_int_equal(vp_forward_new(&f, NULL), 0);
	for (int i = 0; i < 500; i++) {
		int before;

		assert_int_equal(vp_wire_new_fn(&w, f, a, count, &n), 0);
		hit(a);
		vp_wire_free(w);
		before = __atomic_load_n(&n, __ATOMIC_SEQ_CST);
		hit(a);
		usleep(100);
		assert_int_equal(__atomic_load_n(&n, __ATOMIC_SEQ_CST), before);
	}
	vp_forward_free(f);
	close(a);
}

/* A full eventfd that blocks: that wire is given up within a second or so, the other one works on. */
static void test_blocking_target(void **state)
{
	const uint64_t full = UINT64_MAX - 1;
	struct vp_forward *f;
	struct vp_wire *bad, *good;
	int a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, 0), c = eventfd(0, EFD_NONBLOCK), d = eventfd(0, EFD_NONBLOCK);

	assert_int_equal(write(b, &full, 8), 8);
	assert_int_equal(vp_forward_new(&f, NULL), 0);
	assert_int_equal(vp_wire_new(&bad, f, a, b, 7), 0);
	assert_int_equal(vp_wire_new(&good, f, c, d, 0), 0);
	hit(a);
	usleep(50000);
	hit(c);
	assert_true(raised(d, 3000));
	assert_true(vp_wire_dead(bad));
	assert_false(vp_wire_dead(good));
	for (int i = 0; i < 100; i++) {
		hit(a);
		hit(c);
		assert_true(raised(d, 500));
	}
	/* Once more; from then on its owner is held off, and nobody waits for it. */
	for (int i = 0; i < 10; i++) {
		bool slow = i == 0;

		vp_wire_free(bad);
		assert_int_equal(vp_wire_new(&bad, f, a, b, 7), 0);
		hit(a);
		for (int k = 0; !vp_wire_dead(bad) && k < (slow ? 3000 : 400); k++)
			usleep(1000);
		assert_true(vp_wire_dead(bad));
		hit(c);
		assert_true(raised(d, 400));
	}
	assert_true(vp_blame_held(7) && !vp_blame_held(8) && !vp_blame_held(0));
	vp_blame_forget();
	vp_wire_free(bad);
	vp_wire_free(good);
	vp_forward_free(f);
	close(a);
	close(b);
	close(c);
	close(d);
}

/* The same while the machine's clock is set back by an hour; and nobody waits for that thread when it is to end. */
static void test_clock_set_back(void **state)
{
	const uint64_t full = UINT64_MAX - 1;
	struct vp_forward *f;
	struct vp_wire *bad;
	int a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, 0);

	assert_int_equal(write(b, &full, 8), 8);
	clock_ahead = 3600;
	alarm(20);
	assert_int_equal(vp_forward_new(&f, NULL), 0);
	assert_int_equal(vp_wire_new(&bad, f, a, b, 7), 0);
	hit(a);
	for (int k = 0; !vp_wire_dead(bad) && k < 5000; k++)
		usleep(1000);
	assert_true(vp_wire_dead(bad));
	vp_wire_free(bad);
	/* In the write again, and this time the supervisor ends first. */
	assert_int_equal(vp_wire_new(&bad, f, a, b, 8), 0);
	hit(a);
	usleep(50000);
	vp_wire_free(bad);
	vp_forward_free(f);
	alarm(0);
	clock_ahead = 0;
	vp_blame_forget();
	close(a);
	close(b);
}

static void test_refused(void **state)
{
	struct vp_forward *f;
	struct vp_wire *w;

	assert_int_equal(vp_forward_new(&f, NULL), 0);
	assert_int_equal(vp_wire_new(&w, f, -1, -1, 0), -EBADF);
	assert_null(w);
	vp_wire_free(NULL);
	vp_forward_free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_passes), cmocka_unit_test(test_function), cmocka_unit_test(test_blocking_target),
		cmocka_unit_test(test_clock_set_back), cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
