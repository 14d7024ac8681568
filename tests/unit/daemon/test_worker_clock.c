/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A notification that blocks is interrupted in time whatever becomes of the machine's clock: data threads and the main
 * thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../clock_ahead.h"
#include "base/blame.h"
#include "base/util.h"
#include "threads/worker.h"

#define HOUR 3600

struct job {
	struct worker_job j;
	struct vp_queue q;
	int ret; /* of the one call that it makes; 1 = not yet */
};

static unsigned run(struct worker_job *j, struct vp_scratch *s)
{
	struct job *k = vp_container_of(j, struct job, j);

	if (k->ret > 0)
		__atomic_store_n(&k->ret, vp_queue_call(&k->q, s), __ATOMIC_RELEASE);
	return 0;
}

static enum worker_next arm(struct worker_job *j)
{
	return WORKER_SLEEP;
}

static void disarm(struct worker_job *j)
{
}

static const struct worker_job_ops ops = { run, arm, disarm };

/* An eventfd whose write blocks. */
static int blocking(void)
{
	const uint64_t full = UINT64_MAX - 1;
	int fd = eventfd(0, 0);

	assert_int_equal(write(fd, &full, 8), 8);
	return fd;
}

static void test_clock_set_back(void **state)
{
	const struct worker_pool_conf c = { .threads = 1 };
	struct job k = { .j = { .ops = &ops }, .q = { .call_fd = blocking() }, .ret = 1 };
	struct vp_queue q = { .call_fd = blocking() };
	struct worker_pool *p;
	struct vp_err e;

	clock_ahead = HOUR;
	alarm(20); /* a main thread that nobody interrupts would wait for ever */
	assert_int_equal(worker_pool_new(&p, &c, &e), 0);
	assert_int_equal(worker_job_add(p, &k.j, NULL), 0);
	worker_poke(&k.j);
	for (int i = 0; i < 5000 && __atomic_load_n(&k.ret, __ATOMIC_ACQUIRE) > 0; i++)
		usleep(1000);
	assert_int_equal(k.ret, -EIO);
	worker_call(p, &q);
	assert_int_not_equal(q.vq.broken, 0);
	worker_job_retire(p, &k.j);
	worker_jobs_reap(p);
	worker_pool_free(p);
	alarm(0);
	vp_blame_forget();
	close(k.q.call_fd);
	close(q.call_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_clock_set_back) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
