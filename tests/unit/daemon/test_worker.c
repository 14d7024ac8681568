/* SPDX-License-Identifier: BSD-3-Clause */
/* Data threads: how jobs share one, and what taking many of them off it costs. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <urcu/urcu-qsbr.h>

#include <cmocka.h>

#include "base/cycles.h"
#include "base/util.h"
#include "threads/worker.h"

#define JOBS 128 /* of a link with 64 queue pairs */

struct job {
	struct worker_job j; /* first */
	unsigned run_us;     /* what a run takes; 0 = it has no work */
	unsigned runs, gone; /* gone: runs after it was taken off */
	bool     off;
};

static bool go; /* jobs have work */

static void nap(unsigned us)
{
	nanosleep(&(struct timespec){ .tv_nsec = us * 1000L }, NULL);
}

static unsigned job_run(struct worker_job *w, struct vp_scratch *s)
{
	struct job *j = (struct job *)w;

	if (__atomic_load_n(&j->off, __ATOMIC_RELAXED))
		j->gone++;
	if (!j->run_us || !__atomic_load_n(&go, __ATOMIC_RELAXED))
		return 0;
	nap(j->run_us);
	__atomic_fetch_add(&j->runs, 1, __ATOMIC_RELAXED);
	return 1;
}

static enum worker_next job_arm(struct worker_job *j)
{
	return WORKER_SLEEP;
}

static void job_disarm(struct worker_job *j)
{
}

static const struct worker_job_ops ops = { .run = job_run, .arm = job_arm, .disarm = job_disarm };

static struct worker_pool *pool;

static void start(void)
{
	struct worker_pool_conf c = { .threads = 1, .busy_poll_us = 1000000 };

	assert_int_equal(worker_pool_new(&pool, &c, NULL), 0);
	__atomic_store_n(&go, false, __ATOMIC_RELAXED);
}

/* All jobs that were added begin in the same round. */
static void begin(void)
{
	nap(20000);
	__atomic_store_n(&go, true, __ATOMIC_RELAXED);
}

static void add(struct job *j, unsigned run_us)
{
	*j = (struct job){ .j.ops = &ops, .run_us = run_us };
	assert_int_equal(worker_job_add(pool, &j->j, NULL), 0);
	worker_poke(&j->j);
}

static unsigned runs(struct job *j)
{
	return __atomic_load_n(&j->runs, __ATOMIC_RELAXED);
}

static void await(struct job *j, unsigned n)
{
	while (runs(j) < n)
		nap(1000);
}

/*
 * A round of the thread takes 5 ms; a link with 64 queue pairs leaves within a few of them, not after two for each
 * queue.
 */
static void test_leaving_together(void **state)
{
	static struct job busy, j[JOBS];
	unsigned before, i;

	start();
	add(&busy, 5000);
	for (i = 0; i < JOBS; i++)
		add(&j[i], 0);
	begin();
	await(&busy, runs(&busy) + 3);
	before = runs(&busy);
	for (i = 0; i < JOBS; i++)
		worker_job_retire(pool, &j[i].j);
	worker_job_retire(pool, &j[0].j); /* twice is once */
	worker_jobs_reap(pool);
	assert_in_range(runs(&busy) - before, 1, 40);
	for (i = 0; i < JOBS; i++)
		__atomic_store_n(&j[i].off, true, __ATOMIC_RELAXED);
	/* Nobody runs them any more, and the others go on. */
	await(&busy, runs(&busy) + 3);
	for (i = 0; i < JOBS; i++)
		assert_int_equal(j[i].gone, 0);
	/* They can be added again. */
	for (i = 0; i < JOBS; i++)
		add(&j[i], i ? 0 : 10);
	await(&j[0], 1);
	for (i = 0; i < JOBS; i++)
		worker_job_retire(pool, &j[i].j);
	worker_job_retire(pool, &busy.j);
	worker_jobs_reap(pool);
	worker_jobs_reap(pool); /* nothing left */
	worker_pool_free(pool);
}

/* However long their runs take, jobs that always have more to do take turns. */
static void test_turns(void **state)
{
	static struct job j[3];
	unsigned i;

	start();
	for (i = 0; i < 3; i++)
		add(&j[i], i ? 100 : 2000);
	begin();
	await(&j[0], 50);
	for (i = 0; i < 3; i++)
		worker_job_retire(pool, &j[i].j);
	worker_jobs_reap(pool);
	for (i = 1; i < 3; i++)
		assert_in_range(j[i].runs, j[0].runs - 2, j[0].runs + 2);
	worker_pool_free(pool);
}

static struct {
	struct worker_job j; /* first */
	unsigned calls, arms, work, open;
} thrifty;

static unsigned thrifty_run(struct worker_job *j, struct vp_scratch *s)
{
	unsigned n = __atomic_load_n(&thrifty.work, __ATOMIC_RELAXED);

	j->open = thrifty.open;
	/* It comes when polling has begun. */
	if (__atomic_add_fetch(&thrifty.calls, 1, __ATOMIC_RELAXED) == n)
		return 1;
	return 0;
}

static enum worker_next thrifty_arm(struct worker_job *j)
{
	__atomic_fetch_add(&thrifty.arms, 1, __ATOMIC_RELEASE);
	return WORKER_SLEEP;
}

static const struct worker_job_ops thrifty_ops = { .run = thrifty_run, .arm = thrifty_arm, .disarm = job_disarm };

/* How often it looks for work after one wake, before it sleeps. */
static unsigned looks(void)
{
	unsigned arms = __atomic_load_n(&thrifty.arms, __ATOMIC_RELAXED);

	__atomic_store_n(&thrifty.calls, 0, __ATOMIC_RELAXED);
	worker_poke(&thrifty.j);
	while (__atomic_load_n(&thrifty.arms, __ATOMIC_ACQUIRE) == arms)
		nap(100);
	return __atomic_load_n(&thrifty.calls, __ATOMIC_RELAXED);
}

/*
 * A job that polls in vain sleeps at once the next time, then the next 3 times, then 7 ...; until polling finds
 * something.
 */
static void test_thrift(void **state)
{
	struct worker_pool_conf c = { .threads = 1, .busy_poll_us = 20000 };
	unsigned polls = 0;

	assert_int_equal(worker_pool_new(&pool, &c, NULL), 0);
	thrifty.j.ops = &thrifty_ops;
	thrifty.j.thrifty = true;
	assert_int_equal(worker_job_add(pool, &thrifty.j, NULL), 0);
	for (unsigned i = 1; i <= 30; i++) {
		unsigned n = looks();

		polls += n > 1;
		/* 1st, 3rd, 7th, 15th. */
		assert_int_equal(n > 1, !(i & (i + 1)));
	}
	assert_int_equal(polls, 4);
	thrifty.work = 5; /* found by polling */
	assert_true(looks() > 5);
	thrifty.work = 0;
	assert_int_equal(looks(), 1); /* what followed was in vain again, but that is all */
	assert_true(looks() > 1);
	worker_job_retire(pool, &thrifty.j);
	worker_jobs_reap(pool);
	worker_pool_free(pool);
}

/* How long it looked after the last work, in milliseconds at least. */
static unsigned looks_ms(void)
{
	uint64_t start = vp_cycles();

	looks();
	return (unsigned)((vp_cycles() - start) / (vp_cycles_hz() / 1000));
}

/* Many answers are worth a longer poll, but only while polling finds something. */
static void test_longer(void **state)
{
	struct worker_pool_conf c = { .threads = 1, .busy_poll_us = 20000 };
	unsigned least = UINT_MAX;

	assert_int_equal(worker_pool_new(&pool, &c, NULL), 0);
	memset(&thrifty, 0, sizeof(thrifty));
	thrifty.j.ops = &thrifty_ops;
	thrifty.j.thrifty = true;
	thrifty.open = 16;
	assert_int_equal(worker_job_add(pool, &thrifty.j, NULL), 0);
	/* In vain: 1st, 3rd, 7th. Whoever takes our CPU may prolong one. */
	for (unsigned i = 1; i <= 7; i++) {
		unsigned ms = looks_ms();

		if (!(i & (i + 1)))
			least = VP_MIN(least, ms);
	}
	assert_in_range(least, 20, 79);
	for (unsigned i = 8; i < 15; i++)
		looks();
	/* The 15th polls again, and finds. */
	thrifty.work = 5;
	assert_true(looks_ms() >= 80);
	worker_job_retire(pool, &thrifty.j);
	worker_jobs_reap(pool);
	worker_pool_free(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_leaving_together),
		cmocka_unit_test(test_turns),
		cmocka_unit_test(test_thrift),
		cmocka_unit_test(test_longer),
	};
	int ret;

	urcu_qsbr_register_thread();
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	urcu_qsbr_unregister_thread();
	return ret;
}
