/* SPDX-License-Identifier: BSD-3-Clause */
/* What may be logged about one subject: bounded for each, and none at the cost of another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/loglimit.h"
#include "base/util.h"

#define S UINT64_C(1000000)

static struct vp_log_limit l;
static uint64_t now;

static int fresh(void **state)
{
	memset(&l, 0, sizeof(l));
	now = 1000 * S;
	return 0;
}

/* How many of n lines are written. */
static unsigned say(unsigned n, int level, const char *line)
{
	unsigned ok = 0;

	while (n--)
		ok += vp_log_limit_allow(&l, level, line, now);
	return ok;
}

static void test_burst_and_rate(void **state)
{
	assert_int_equal(say(100000, VP_LOG_WARNING, "link a: x"), VP_LOG_BURST);
	now += 10 * S;
	assert_int_equal(say(100000, VP_LOG_WARNING, "link a: x"), 10 * VP_LOG_PER_S);
	/* In many small steps it comes to the same. */
	unsigned n = 0;
	for (unsigned i = 0; i < 100000; i++) {
		now += 100;
		n += say(1, VP_LOG_WARNING, "link a: x");
	}
	assert_in_range(n, 10 * VP_LOG_PER_S - 1, 10 * VP_LOG_PER_S);
	/* And it does not grow for ever. */
	now += 100000 * S;
	assert_int_equal(say(100000, VP_LOG_WARNING, "link a: x"), VP_LOG_BURST);
}

static void test_others_are_heard(void **state)
{
	say(100000, VP_LOG_ERR, "link a, driver side: x");
	assert_int_equal(say(10, VP_LOG_INFO, "link a, device side: x"), 10);
	assert_int_equal(say(10, VP_LOG_INFO, "link b: x"), 10);
	assert_int_equal(say(10, VP_LOG_INFO, "no subject"), 10);
	/* What the guard says is about links, too. */
	say(100000, VP_LOG_WARNING, "guard: link a: x");
	assert_int_equal(say(10, VP_LOG_INFO, "guard: link b: x"), 10);
}

static void test_weighty_lines_are_heard(void **state)
{
	assert_int_equal(say(100000, VP_LOG_INFO, "a: x"), VP_LOG_BURST - VP_LOG_RESERVE);
	assert_int_equal(say(100000, VP_LOG_WARNING, "a: x"), VP_LOG_RESERVE);
	assert_int_equal(say(100000, VP_LOG_DEBUG, "b: x"), VP_LOG_DEBUG_BURST);
	assert_int_equal(say(10, VP_LOG_INFO, "b: x"), 10);
}

static void test_told(void **state)
{
	uint64_t n;

	say(VP_LOG_BURST + 7, VP_LOG_WARNING, "a: x");
	say(VP_LOG_BURST + 9, VP_LOG_WARNING, "b: x");
	assert_null(vp_log_limit_untold(&l, false, now, &n));
	now += VP_LOG_TELL_US;
	assert_string_equal(vp_log_limit_untold(&l, false, now, &n), "a");
	assert_int_equal(n, 7);
	assert_string_equal(vp_log_limit_untold(&l, true, now, &n), "b");
	assert_int_equal(n, 9);
	assert_null(vp_log_limit_untold(&l, true, now, &n));
	assert_int_equal(l.n_untold, 0);
}

/* More subjects than places: all are heard, and nothing that was left out is forgotten. */
static void test_more_than_there_is_room_for(void **state)
{
	uint64_t n, left = 0, told = 0;
	char line[40];

	for (unsigned i = 0; i < 4 * VP_LOG_SUBJECTS; i++, now++) {
		snprintf(line, sizeof(line), "link %u: x", i);
		left += VP_LOG_BURST + 3 - say(VP_LOG_BURST + 3, VP_LOG_WARNING, line);
	}
	assert_int_equal(left, 3 * 4 * VP_LOG_SUBJECTS);
	while (vp_log_limit_untold(&l, true, now, &n))
		told += n;
	assert_int_equal(told, left);
}

static void test_long_names(void **state)
{
	char a[300], b[300];

	memset(a, 'a', sizeof(a));
	memcpy(a + 290, ": x", 4);
	memcpy(b, a, sizeof(b));
	b[3] = 'b';
	say(100000, VP_LOG_WARNING, a);
	assert_int_equal(say(10, VP_LOG_WARNING, b), 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_burst_and_rate, fresh),
		cmocka_unit_test_setup(test_others_are_heard, fresh),
		cmocka_unit_test_setup(test_weighty_lines_are_heard, fresh),
		cmocka_unit_test_setup(test_told, fresh),
		cmocka_unit_test_setup(test_more_than_there_is_room_for, fresh),
		cmocka_unit_test_setup(test_long_names, fresh),
	};

	return cmocka_run_group_tests_name("loglimit", tests, NULL, NULL);
}
