/* SPDX-License-Identifier: BSD-3-Clause */
/* vp_err_set(): the code comes back, the sentence is kept and always ends. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

static void test_code_and_sentence(void **state)
{
	struct vp_err e;

	assert_int_equal(vp_err_set(&e, -EINVAL, "queue %u", 3u), -EINVAL);
	assert_int_equal(e.code, -EINVAL);
	assert_string_equal(e.msg, "queue 3");
}

static void test_too_long(void **state)
{
	struct vp_err e;

	memset(&e, 'x', sizeof(e));
	vp_err_set(&e, -EINVAL, "%1000u", 3u);
	assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_code_and_sentence),
		cmocka_unit_test(test_too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
