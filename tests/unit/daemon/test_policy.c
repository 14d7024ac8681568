/* SPDX-License-Identifier: BSD-3-Clause */
/* Policy: default deny across trust groups, whatever a link asks for. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "policy.h"

static struct vp_conf_vm vms[] = {
	{ .name = "blue1", .trust_group = "blue" },
	{ .name = "blue2", .trust_group = "blue", .users = { 100, 200 }, .n_users = 2 },
	{ .name = "loner1" },
	{ .name = "loner2" },
	{ .name = "red", .trust_group = "red", .max_links = 2, .max_queues = 5 },
};
static struct vp_conf conf = { .vms = vms, .n_vms = 5 };

static struct vp_conf_link make(const char *name, const char *a, const char *b, unsigned mode, unsigned endpoint)
{
	struct vp_conf_link l;

	vp_conf_link_init(&l, name, NULL);
	strcpy(l.side[VP_SIDE_DRIVER].vm, a);
	strcpy(l.side[VP_SIDE_DEVICE].vm, b);
	l.mode = mode;
	l.endpoint = endpoint;
	return l;
}

static void test_fast_needs_one_group(void **state)
{
	static const char *const pairs[][2] = {
		{ "blue1", "red" }, { "blue1", "loner1" }, { "loner1", "loner2" }, { "ghost1", "ghost2" }, { "blue1", "ghost" },
	};
	struct vp_policy_decision d;

	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		struct vp_conf_link l = make("x", pairs[i][0], pairs[i][1], VP_MODE_FAST, VP_ENDPOINT_PORT);

		vp_policy_decide(&conf, &l, &d);
		assert_false(d.allowed);
		assert_string_equal(d.rule, "fast-needs-one-trust-group");
		/* Neither may auto come to it. */
		l.mode = VP_MODE_AUTO;
		vp_policy_decide(&conf, &l, &d);
		assert_true(d.mode != VP_MODE_FAST);
	}
}

static void test_auto(void **state)
{
	struct vp_conf_link l = make("x", "blue1", "blue2", VP_MODE_AUTO, VP_ENDPOINT_PORT);
	struct vp_policy_decision d;

	vp_policy_decide(&conf, &l, &d);
	assert_int_equal(d.mode, VP_MODE_FAST);
	l = make("x", "blue1", "red", VP_MODE_AUTO, VP_ENDPOINT_PORT);
	vp_policy_decide(&conf, &l, &d);
	assert_int_equal(d.mode, VP_MODE_COPY);
	l = make("x", "blue1", "red", VP_MODE_AUTO, VP_ENDPOINT_VIRTIO_NET);
	vp_policy_decide(&conf, &l, &d);
	assert_true(d.allowed);
	assert_int_equal(d.mode, VP_MODE_RELAY);
}

static void test_endpoint_and_mode_fit(void **state)
{
	struct vp_policy_decision d;
	struct vp_conf_link l = make("x", "blue1", "blue2", VP_MODE_FAST, VP_ENDPOINT_VIRTIO_NET);

	vp_policy_decide(&conf, &l, &d);
	assert_false(d.allowed);
	assert_string_equal(d.rule, "virtio-net-is-relayed");
	l = make("x", "blue1", "blue2", VP_MODE_COPY, VP_ENDPOINT_VIRTIO_NET);
	vp_policy_decide(&conf, &l, &d);
	assert_false(d.allowed);
	l = make("x", "blue1", "blue2", VP_MODE_RELAY, VP_ENDPOINT_PORT);
	vp_policy_decide(&conf, &l, &d);
	assert_false(d.allowed);
	assert_string_equal(d.rule, "relay-needs-virtio-net");
	assert_true(strlen(d.why) > 20);
}

static void test_users(void **state)
{
	assert_true(vp_policy_user_ok(&vms[0], 0, 5));
	assert_true(vp_policy_user_ok(&vms[0], 5, 5));
	assert_false(vp_policy_user_ok(&vms[0], 100, 5));
	assert_true(vp_policy_user_ok(&vms[1], 100, 5));
	assert_true(vp_policy_user_ok(&vms[1], 200, 5));
	assert_false(vp_policy_user_ok(&vms[1], 300, 5));
	assert_false(vp_policy_user_ok(NULL, 100, 5));
}

static void test_limits(void **state)
{
	struct vp_conf_link a = make("a", "red", "blue1", VP_MODE_AUTO, 0), b = make("b", "blue1", "red", VP_MODE_AUTO, 0);
	struct vp_conf_link c = make("c", "red", "blue1", VP_MODE_AUTO, 0), self = make("s", "red", "red", VP_MODE_AUTO, 0);
	const struct vp_conf_link *have[] = { &a, &b };
	struct vp_err e;

	assert_int_equal(vp_policy_limits(&conf, have, 1, &b, &e), 0);
	assert_int_equal(vp_policy_limits(&conf, have, 2, &c, &e), -EDQUOT);
	assert_non_null(strstr(e.msg, "MaxLinks=2"));
	/* A link does not compete with itself. */
	assert_int_equal(vp_policy_limits(&conf, have, 2, &a, &e), 0);
	/* A link from a VM to itself counts twice. */
	assert_int_equal(vp_policy_limits(&conf, have, 0, &self, &e), 0);
	assert_int_equal(vp_policy_limits(&conf, have, 1, &self, &e), -EDQUOT);
	b.pairs = 5;
	assert_int_equal(vp_policy_limits(&conf, have, 1, &b, &e), -EDQUOT);
	assert_non_null(strstr(e.msg, "MaxQueues=5"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fast_needs_one_group), cmocka_unit_test(test_auto),
		cmocka_unit_test(test_endpoint_and_mode_fit), cmocka_unit_test(test_users), cmocka_unit_test(test_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
