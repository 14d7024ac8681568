/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket's lines: what is accepted, what is refused with which word, how answers look. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control/request.h"

static int parse(const char *line, struct vp_request *r)
{
	struct vp_err e = { 0 };
	int ret = vp_request_parse(r, line, strlen(line), &e);

	if (ret)
		assert_true(e.code == ret && e.msg[0]);
	return ret;
}

static void test_good(void **state)
{
	struct vp_request r;

	assert_int_equal(parse("{\"version\":1,\"id\":7,\"method\":\"link.list\"}", &r), 0);
	assert_string_equal(r.method, "link.list");
	assert_null(r.params);
	assert_int_equal(json_integer_value(r.id), 7);
	vp_request_free(&r);
	assert_int_equal(parse(" {\"method\":\"a\",\"params\":{\"x\":1},\"version\":1,\"id\":\"q\"} ", &r), 0);
	assert_string_equal(json_string_value(r.id), "q");
	assert_non_null(r.params);
	vp_request_free(&r);
	assert_int_equal(parse("{\"version\":1,\"method\":\"a\"}", &r), 0);
	assert_null(r.id);
	vp_request_free(&r);
}

static void test_bad(void **state)
{
	static const struct {
		const char *line;
		int code;
	} t[] = {
		{ "", -EBADMSG }, { "{", -EBADMSG }, { "[]", -EBADMSG }, { "5", -EBADMSG }, { "{} {}", -EBADMSG },
		{ "{}", -EINVAL }, { "{\"version\":\"1\",\"method\":\"a\"}", -EINVAL },
		{ "{\"version\":1.0,\"method\":\"a\"}", -EINVAL },
		{ "{\"version\":2,\"method\":\"a\"}", -EPROTONOSUPPORT },
		{ "{\"version\":99999999999,\"method\":\"a\"}", -EPROTONOSUPPORT },
		{ "{\"version\":1}", -EINVAL }, { "{\"version\":1,\"method\":5}", -EINVAL },
		{ "{\"version\":1,\"method\":\"a\",\"params\":null}", -EINVAL },
		{ "{\"version\":1,\"method\":\"a\",\"id\":{}}", -EINVAL },
		{ "{\"version\":1,\"method\":\"a\",\"id\":1,\"extra\":1}", -EINVAL },
		{ "{\"version\":1,\"method\":\"a\",\"method\":\"b\"}", -EBADMSG },
	};

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct vp_request r;

		assert_int_equal(parse(t[i].line, &r), t[i].code);
		vp_request_free(&r);
	}
}

static void test_too_long(void **state)
{
	char *line = calloc(1, VP_REQUEST_MAX_LINE + 2);
	struct vp_request r;
	struct vp_err e;

	memset(line, ' ', VP_REQUEST_MAX_LINE + 1);
	assert_int_equal(vp_request_parse(&r, line, VP_REQUEST_MAX_LINE + 1, &e), -EBADMSG);
	vp_request_free(&r);
	free(line);
}

static void test_answers(void **state)
{
	struct vp_request r;
	struct vp_err e;
	size_t len;
	char *s;

	assert_int_equal(parse("{\"version\":1,\"id\":7,\"method\":\"m\"}", &r), 0);
	s = vp_reply_ok(&r, json_pack("{s:i}", "x", 1), &len);
	assert_string_equal(s, "{\"version\":1,\"id\":7,\"result\":{\"x\":1}}\n");
	assert_int_equal(len, strlen(s));
	free(s);
	s = vp_reply_ok(&r, NULL, &len);
	assert_string_equal(s, "{\"version\":1,\"id\":7,\"result\":{}}\n");
	free(s);
	/* What the client sent may come back in a message, cut anywhere: still valid JSON. */
	vp_err_set(&e, -ENOENT, "no \xc3");
	s = vp_reply_error(&r, &e, &len);
	assert_string_equal(s, "{\"version\":1,\"id\":7,\"error\":{\"code\":\"not-found\",\"message\":\"no ?\"}}\n");
	free(s);
	vp_request_free(&r);
	s = vp_event_line("link.added", 1769860800123456, json_object(), &len);
	assert_string_equal(s, "{\"version\":1,\"event\":\"link.added\",\"time_us\":1769860800123456,\"data\":{}}\n");
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_too_long),
		cmocka_unit_test(test_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
