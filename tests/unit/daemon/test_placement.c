/* SPDX-License-Identifier: BSD-3-Clause */
/* Placement of jobs on data threads: loads are simulated, and moved until nothing moves any more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "threads/placement.h"

#define JOBS 256

/* A job's load is what it would take of a thread that it has for itself; a full thread gives each its share. */
struct host {
	unsigned       threads, n, moves;
	unsigned       want[JOBS];
	struct vp_load v[JOBS];
};

static void look(struct host *h)
{
	unsigned sum[64] = { 0 };

	for (unsigned i = 0; i < h->n; i++)
		sum[h->v[i].thread] += h->want[i];
	for (unsigned i = 0; i < h->n; i++) {
		unsigned all = sum[h->v[i].thread];

		h->v[i].load = all > VP_LOAD_FULL ? h->want[i] * VP_LOAD_FULL / all : h->want[i];
	}
}

/* Until it rests; the load that is wanted of the busiest thread then. */
static unsigned settle(struct host *h)
{
	unsigned sum[64] = { 0 }, most = 0, to;

	for (h->moves = 0; h->moves < 2 * JOBS; h->moves++) {
		int k;

		look(h);
		k = vp_placement_pick(h->v, h->n, h->threads, &to);
		if (k < 0)
			break;
		assert_true(to < h->threads && to != h->v[k].thread);
		h->v[k].thread = to;
	}
	assert_true(h->moves < 2 * JOBS);
	for (unsigned i = 0; i < h->n; i++)
		sum[h->v[i].thread] += h->want[i];
	for (unsigned t = 0; t < h->threads; t++)
		most = VP_MAX(most, sum[t]);
	return most;
}

static struct host *host(unsigned threads, unsigned n)
{
	struct host *h = calloc(1, sizeof(*h));

	assert_non_null(h);
	h->threads = threads;
	h->n = n;
	for (unsigned i = 0; i < n; i++)
		h->v[i] = (struct vp_load){ .thread = i % threads, .may = true };
	return h;
}

static void test_two_heavy_ones_part(void **state)
{
	struct host *h = host(2, 4);

	/* Placed in turn: both that are heavy came to thread 0. */
	h->want[0] = 900;
	h->want[2] = 900;
	h->want[1] = 10;
	assert_true(settle(h) <= 910);
	assert_int_equal(h->moves, 1);
	assert_int_not_equal(h->v[0].thread, h->v[2].thread);
	free(h);
}

static void test_what_gains_nothing_stays(void **state)
{
	struct host *h = host(2, 2);

	/* One that fills a thread alone gains nothing elsewhere. */
	h->want[0] = 1000;
	assert_int_equal(settle(h), 1000);
	assert_int_equal(h->moves, 0);
	/* Room enough where it is. */
	h->v[1].thread = 0;
	h->want[0] = h->want[1] = 240;
	settle(h);
	assert_int_equal(h->moves, 0);
	/* It may not: it has just moved. */
	h->want[0] = h->want[1] = 900;
	h->v[0].may = h->v[1].may = false;
	settle(h);
	assert_int_equal(h->moves, 0);
	h->v[1].may = true;
	settle(h);
	assert_int_equal(h->moves, 1);
	assert_int_equal(h->v[1].thread, 1);
	free(h);
}

/* However loads lie, the busiest thread ends within a fifth of a thread and one job of an even share. */
static void test_ends_even(void **state)
{
	srand(1);
	for (unsigned round = 0; round < 2000; round++) {
		struct host *h = host(2 + (unsigned)rand() % 15, 1 + (unsigned)rand() % JOBS);
		unsigned all = 0, largest = 0, most;

		for (unsigned i = 0; i < h->n; i++) {
			unsigned cap = 900 * h->threads / h->n;

			/* Together they fit; some do next to nothing, and all may lie on one thread. */
			h->want[i] = rand() % 3 ? (unsigned)rand() % (VP_MIN(cap, 900) + 1) : 0;
			if (round % 2)
				h->v[i].thread = 0;
			all += h->want[i];
			largest = VP_MAX(largest, h->want[i]);
		}
		most = settle(h);
		if (most > VP_LOAD_FULL / 2)
			assert_true(most <= all / h->threads + VP_LOAD_FULL / 5 + largest);
		free(h);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_two_heavy_ones_part),
					    cmocka_unit_test(test_what_gains_nothing_stays),
					    cmocka_unit_test(test_ends_even) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
