/* SPDX-License-Identifier: BSD-3-Clause */
/* fds that are closed, replaced and kept open elsewhere while an epoll set has them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/util.h"
#include "base/watch.h"

static int epfd;

static void hit(int fd)
{
	const uint64_t one = 1;

	assert_int_equal(write(fd, &one, 8), 8);
}

/* Data of the only event there is; 0 = none. */
static uint64_t said(void)
{
	struct epoll_event ev[4];
	int n = epoll_wait(epfd, ev, 4, 0);

	assert_in_range(n, 0, 1);
	return n ? ev[0].data.u64 : 0;
}

static int make(int *theirs)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_true(fd >= 0);
	*theirs = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return fd;
}

/*
 * Closed first, and the other end has it still: that is nobody's any more once the watch has ended.
 */
static void test_closed_first(void **state)
{
	struct vp_watch *w;
	int theirs, fd = make(&theirs);

	assert_int_equal(vp_watch_add(&w, epfd, fd, EPOLLIN | EPOLLET, 7), 0);
	close(fd);
	hit(theirs);
	assert_int_equal(said(), 7);
	vp_watch_end(&w);
	assert_null(w);
	hit(theirs);
	assert_int_equal(said(), 0);
	close(theirs);
}

/* Somebody else has got its number: he is watched on. */
static void test_number_used_again(void **state)
{
	struct vp_watch *old, *neighbour;
	int theirs, theirs2, fd = make(&theirs), fd2, same;

	assert_int_equal(vp_watch_add(&old, epfd, fd, EPOLLIN | EPOLLET, 7), 0);
	fd2 = make(&theirs2);
	same = dup2(fd2, fd);
	assert_int_equal(same, fd);
	assert_int_equal(vp_watch_add(&neighbour, epfd, same, EPOLLIN | EPOLLET, 8), 0);
	vp_watch_end(&old);
	hit(theirs);
	assert_int_equal(said(), 0);
	hit(theirs2);
	assert_int_equal(said(), 8);
	vp_watch_end(&neighbour);
	close(fd);
	close(fd2);
	close(theirs);
	close(theirs2);
}

/* The same file twice, as when a VMM gives one eventfd to two queues. */
static void test_twice(void **state)
{
	struct vp_watch *a, *b;
	int theirs, fd = make(&theirs);

	assert_int_equal(vp_watch_add(&a, epfd, fd, EPOLLIN | EPOLLET, 1), 0);
	assert_int_equal(vp_watch_add(&b, epfd, fd, EPOLLIN | EPOLLET, 2), 0);
	vp_watch_end(&a);
	hit(fd);
	assert_int_equal(said(), 2);
	vp_watch_end(&b);
	vp_watch_end(&b);
	close(fd);
	close(theirs);
}

static void test_refused(void **state)
{
	int before = dup(0), after, file = open("/proc/self/stat", O_RDONLY);
	struct vp_watch *w = (void *)1;

	assert_int_equal(vp_watch_add(&w, epfd, -1, EPOLLIN, 0), -EBADF);
	assert_null(w);
	assert_int_equal(vp_watch_add(&w, epfd, file, EPOLLIN, 0), -EPERM);
	assert_null(w);
	close(file);
	close(before);
	after = dup(0);
	assert_int_equal(after, before);  /* nothing was left open */
	close(after);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_closed_first),
		cmocka_unit_test(test_number_used_again),
		cmocka_unit_test(test_twice),
		cmocka_unit_test(test_refused),
	};

	epfd = epoll_create1(EPOLL_CLOEXEC);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
