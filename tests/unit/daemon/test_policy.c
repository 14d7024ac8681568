/* SPDX-License-Identifier: BSD-3-Clause */
/* Policy: default deny across trust groups, whatever a link asks for. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "conf/policy.h"
#include "threads/rates.h"

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
		{ "blue1", "red" },	{ "blue1", "loner1" }, { "loner1", "loner2" },
		{ "ghost1", "ghost2" }, { "blue1", "ghost" },
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

static void test_grant_needs_both(void **state)
{
	struct vp_conf_link l = make("x", "blue1", "red", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	struct vp_policy_decision d;

	l.attachment = VP_ATTACH_SHMEM;
	for (unsigned i = 0; i < 4; i++) {
		vms[0].allow_grant = i & 1;
		vms[4].allow_grant = i & 2;
		vp_policy_decide(&conf, &l, &d);
		assert_int_equal(d.allowed, i == 3);
		assert_string_equal(d.rule, i == 3 ? "grant-allowed" : "grant-not-allowed");
	}
	/* A process keeps what it was given. */
	l.attachment = VP_ATTACH_LOCAL;
	vp_policy_decide(&conf, &l, &d);
	assert_string_equal(d.rule, "grant-local-needs-one-trust-group");
	assert_false(d.allowed);
	l.endpoint = VP_ENDPOINT_VHOST_USER;
	vp_policy_decide(&conf, &l, &d);
	assert_string_equal(d.rule, "grant-needs-a-port");
	assert_false(d.allowed);
	/* Auto never comes to it, and no packet could be counted. */
	l = make("x", "blue1", "red", VP_MODE_AUTO, VP_ENDPOINT_PORT);
	vp_policy_decide(&conf, &l, &d);
	assert_int_equal(d.mode, VP_MODE_COPY);
	l = make("x", "blue1", "blue2", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	vp_policy_decide(&conf, &l, &d);
	assert_string_equal(d.rule, "grant-same-group");
	l.pps = 1000;
	vp_policy_decide(&conf, &l, &d);
	assert_string_equal(d.rule, "grant-has-no-rate-limit");
	assert_false(d.allowed);
	vms[0].allow_grant = vms[4].allow_grant = false;
}

/* VMMs that would wait for one another: a to b, b to c, and then c to a, or a to a. */
static void test_grants_form_no_circle(void **state)
{
	struct vp_conf_link links[] = {
		make("ab", "blue1", "blue2", VP_MODE_GRANT, VP_ENDPOINT_PORT),
		make("bc", "blue2", "blue3", VP_MODE_GRANT, VP_ENDPOINT_PORT),
		make("ca", "blue3", "blue1", VP_MODE_FAST, VP_ENDPOINT_PORT),
	};
	const struct vp_conf_link *all[] = { &links[0], &links[1], &links[2] };
	struct vp_conf_vm three[] = {
		{ .name = "blue1", .trust_group = "blue" },
		{ .name = "blue2", .trust_group = "blue" },
		{ .name = "blue3", .trust_group = "blue" },
	};
	struct vp_conf c = { .vms = three, .n_vms = 3 };
	struct vp_conf_link l = make("new", "blue3", "blue1", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	const char *rule = NULL;
	struct vp_err e = { 0 };

	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), -EDQUOT);
	assert_string_equal(rule, "grant-circle");
	assert_non_null(strstr(e.msg, "bc"));
	/* The link that it replaces does not count. */
	l = make("bc", "blue2", "blue1", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), -EDQUOT);
	l = make("ab", "blue3", "blue1", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), 0);
	l = make("new", "blue1", "blue3", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), 0);
	l = make("new", "blue1", "blue1", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), -EDQUOT);
	/* Links of other modes wait for nobody. */
	links[1].mode = VP_MODE_COPY;
	l = make("new", "blue3", "blue1", VP_MODE_GRANT, VP_ENDPOINT_PORT);
	assert_int_equal(vp_policy_limits(&c, all, 3, &l, &rule, &e), 0);
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
	struct vp_conf_link a = make("a", "red", "blue1", VP_MODE_AUTO, 0),
			    b = make("b", "blue1", "red", VP_MODE_AUTO, 0);
	struct vp_conf_link c = make("c", "red", "blue1", VP_MODE_AUTO, 0),
			    self = make("s", "red", "red", VP_MODE_AUTO, 0);
	const struct vp_conf_link *have[] = { &a, &b };
	const char *rule = "";
	struct vp_err e;

	assert_int_equal(vp_policy_limits(&conf, have, 1, &b, NULL, &e), 0);
	assert_int_equal(vp_policy_limits(&conf, have, 2, &c, &rule, &e), -EDQUOT);
	assert_non_null(strstr(e.msg, "MaxLinks=2"));
	assert_string_equal(rule, "vm-max-links");
	/* A link does not compete with itself. */
	assert_int_equal(vp_policy_limits(&conf, have, 2, &a, NULL, &e), 0);
	/* A link from a VM to itself counts twice. */
	assert_int_equal(vp_policy_limits(&conf, have, 0, &self, NULL, &e), 0);
	assert_int_equal(vp_policy_limits(&conf, have, 1, &self, NULL, &e), -EDQUOT);
	b.pairs = 5;
	assert_int_equal(vp_policy_limits(&conf, have, 1, &b, &rule, &e), -EDQUOT);
	assert_string_equal(rule, "vm-max-queues");
	assert_non_null(strstr(e.msg, "MaxQueues=5"));
}

/* A limit that nobody could hold is not accepted: in fast mode no packet passes the daemon. */
static void test_rate_is_held_or_refused(void **state)
{
	struct vp_conf_link l = make("x", "blue1", "blue2", VP_MODE_FAST, VP_ENDPOINT_PORT);
	struct vp_policy_decision d;

	for (unsigned who = 0; who < 3; who++) {
		vms[0].pps = who == 0 ? 1000 : 0;
		vms[1].pps = who == 1 ? 1000 : 0;
		l.pps = who == 2 ? 1000 : 0;
		l.mode = VP_MODE_FAST;
		vp_policy_decide(&conf, &l, &d);
		assert_false(d.allowed);
		assert_string_equal(d.rule, "fast-has-no-rate-limit");
		l.mode = VP_MODE_AUTO;
		vp_policy_decide(&conf, &l, &d);
		assert_true(d.allowed);
		assert_int_equal(d.mode, VP_MODE_COPY);
		assert_string_equal(d.rule, "auto-rate-limited");
	}
	l.pps = 0;
	vp_policy_decide(&conf, &l, &d);
	assert_int_equal(d.mode, VP_MODE_FAST);
}

/* Each rule that was asked is told, with the settings it looked at. */
static void test_steps(void **state)
{
	struct vp_conf_link a = make("a", "red", "blue1", VP_MODE_AUTO, VP_ENDPOINT_PORT);
	const struct vp_conf_link *have[] = { &a, &a, &a };
	struct vp_conf_link b = make("b", "red", "blue1", VP_MODE_AUTO, VP_ENDPOINT_PORT);
	struct vp_policy_step s[VP_POLICY_STEPS];
	unsigned n = vp_policy_steps(&conf, have, 3, &b, s);
	unsigned i;

	assert_string_equal(s[0].rule, "auto-across-groups");
	assert_true(s[0].allowed);
	for (i = 0; i < n && strcmp(s[i].rule, "vm-max-links"); i++)
		;
	assert_true(i < n);
	assert_false(s[i].allowed);
	assert_int_equal(s[i].n_by, 1);
	assert_string_equal(s[i].by[0].name, "red");
	assert_string_equal(s[i].by[0].key, "MaxLinks");
}

static unsigned run_bucket(struct vp_queue *q, unsigned n_queues, uint64_t hz, uint64_t *now, unsigned seconds)
{
	unsigned passed = 0;

	for (unsigned ms = 0; ms < 1000 * seconds; ms++) {
		*now += hz / 1000;
		for (unsigned i = 0; i < n_queues; i++)
			passed += vp_queue_allow(&q[i], *now, hz, 32);
	}
	return passed;
}

/*
 * A counter that has less than two ticks for a packet (25 MHz on arm64): the limit is kept all the same, own and
 * shared.
 */
static void test_rate_by_a_slow_clock(void **state)
{
	static const struct {
		uint64_t hz, rate;
	} c[] = {
		{ 25000000, 15000000 }, { 25000000, 24000000 },	  { 19200000, 14880952 }, { 1000000, 3000000 },
		{ 25000000, 999 },	{ 5000000000, 15000000 }, { 5000000000, 1 },
	};

	for (unsigned i = 0; i < 2 * VP_ARRAY_SIZE(c); i++) {
		const uint64_t hz = c[i / 2].hz, rate = c[i / 2].rate;
		struct vp_bucket b = { .rate = i & 1 ? rate : 0 };
		struct vp_queue q = { .shared = &b, .own.rate = i & 1 ? 0 : rate };
		/* Near where the due time wraps around, and asked again after a few ticks each time. */
		uint64_t start = (UINT64_C(1) << 48) - hz / 2, step = VP_MAX(hz / 4000000, 1), passed = 0;
		uint64_t burst = VP_MAX(rate / 100, 64);

		passed = vp_queue_allow(&q, start, hz, (unsigned)burst);
		assert_int_equal(passed, burst);
		for (uint64_t t = start; t < start + hz; t += step) {
			unsigned n = vp_queue_allow(&q, t, hz, 32);

			/* Half is given back: that must not round, either. */
			vp_queue_give_back(&q, hz, n / 2);
			passed += n - n / 2;
		}
		assert_in_range(passed - burst, rate - rate / 1000 - 1, rate + rate / 1000 + 1);
	}
}

/* What packets cost beyond one each is owed, within bounds, and until it is paid nothing passes. */
static void test_rate_debt(void **state)
{
	uint64_t hz = 25000000, now = hz;

	for (unsigned i = 0; i < 2; i++) {
		struct vp_bucket b = { .rate = i ? 100000 : 0 };
		struct vp_queue q = { .shared = &b, .own.rate = i ? 0 : 100000 };

		assert_false(vp_queue_owes(&q, now, hz));
		assert_int_equal(vp_queue_allow(&q, now, hz, 2000), 1000);
		assert_int_equal(vp_queue_allow(&q, now, hz, 1), 0);
		assert_false(vp_queue_owes(&q, now, hz)); /* used up is not in debt */
		vp_queue_charge(&q, now, hz, 500);
		assert_true(vp_queue_owes(&q, now, hz));
		assert_true(vp_queue_owes(&q, now + hz / 200 - 1, hz));
		assert_int_equal(vp_queue_allow(&q, now + hz / 201, hz, 1), 0);
		assert_false(vp_queue_owes(&q, now + hz / 200, hz));
		assert_int_equal(vp_queue_allow(&q, now + hz / 200 + hz / 1000, hz, 2000), 100);
		/* However much it was: no longer than a hundredth of a second. */
		now += hz;
		for (unsigned k = 0; k < 100; k++)
			vp_queue_charge(&q, now, hz, 100000);
		assert_true(vp_queue_owes(&q, now + hz / 101, hz));
		assert_false(vp_queue_owes(&q, now + hz / 100, hz));
		assert_int_equal(vp_queue_allow(&q, now + hz / 100 + hz / 1000, hz, 2000), 100);
		now += hz;
	}
	/* 32 descriptors are free for each packet. */
	assert_int_equal(vp_queue_extra(32, 32 * 19), 0);
	assert_int_equal(vp_queue_extra(1, 1024), 31);
}

/* All that a VM sends shares one limit, however many queues; giving back is not losing. */
static void test_shared_bucket(void **state)
{
	struct vp_bucket b = { .rate = 5000 };
	struct vp_queue q[3] = { { .shared = &b }, { .shared = &b }, { .shared = &b, .own.rate = 100 } };
	uint64_t now = 1000, hz = 2600000000u;
	unsigned n;

	assert_true(vp_queue_limited(&q[0]));
	n = run_bucket(q, 3, hz, &now, 4);
	assert_in_range(n, 4 * 4900, 4 * 5100 + 64);
	/* The own limit still holds within the shared one. */
	n = run_bucket(&q[2], 1, hz, &now, 4);
	assert_in_range(n, 390, 464);
	/* However seldom and at whatever distance it is asked, no part of a token is lost. */
	b.rate = 0;
	for (unsigned rate = 900; rate <= 1800; rate += 900) {
		q[2] = (struct vp_queue){ .own.rate = rate };
		n = 0;
		for (unsigned i = 0; i < 2000; i++)
			n += vp_queue_allow(&q[2], now += hz / 1000 + hz / 16000, hz, 32);
		assert_in_range(n, rate * 21 / 10, rate * 22 / 10 + 64);
	}
	b.rate = 5000;
	/* What is given back can be taken again. */
	run_bucket(q, 2, hz, &now, 1);
	n = vp_queue_allow(&q[0], now += hz, hz, 32);
	assert_int_equal(n, 32);
	vp_queue_give_back(&q[0], hz, n);
	assert_int_equal(vp_queue_allow(&q[0], now, hz, 32) + vp_queue_allow(&q[1], now, hz, 32), 64);
	assert_int_equal(vp_queue_allow(&q[0], now, hz, 32), 0);
	/* No limit any more; a limit again, with an old clock. */
	b.rate = 0;
	assert_false(vp_queue_limited(&q[0]));
	assert_int_equal(vp_queue_allow(&q[0], now, hz, 32), 32);
	b.rate = 10;
	b.due = now + (UINT64_C(1) << 60);
	assert_int_equal(vp_queue_allow(&q[0], now, hz, 32), 32);
}

static void test_rates_follow_the_configuration(void **state)
{
	struct vp_bucket *b = vp_rate_of("blue1");

	assert_ptr_equal(b, vp_rate_of("blue1"));
	assert_ptr_not_equal(b, vp_rate_of("blue2"));
	vms[0].pps = 77;
	vp_rate_apply(&conf);
	assert_int_equal(b->rate, 77);
	vms[0].pps = 0;
	vp_rate_apply(&conf);
	assert_int_equal(b->rate, 0);
}

static int map_one(const char *vm, int fd, uint64_t size, const struct vp_map_use *instead, struct vp_map **out,
		   struct vp_err *e)
{
	return vp_memory_map(out, vm, fd, 0, size, instead, e);
}

static int sparse(uint64_t size)
{
	int fd = memfd_create("sparse", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static void test_max_memory(void **state)
{
	struct vp_map_use first = { 0 };
	struct vp_map *a, *b;
	struct vp_err e = { 0 };
	int fd = sparse(64 << 20);

	vms[2].max_memory = 100 << 20;
	vp_memory_totals(0, 0);
	vp_memory_apply(&conf);
	assert_int_equal(map_one("loner1", fd, 64 << 20, NULL, &a, &e), 0);
	first = vp_memory_used("loner1");
	assert_true(first.maps == 1 && first.bytes == 64 << 20);
	assert_int_equal(map_one("loner1", fd, 64 << 20, NULL, &b, &e), -EDQUOT);
	assert_non_null(strstr(e.msg, "MaxMemory=100M; raise it in loner1.vm"));
	assert_int_equal(map_one("loner1", fd, UINT64_MAX, NULL, &b, &e), -EDQUOT);
	/* In place of the first, it is not too much; nor for another VM. */
	assert_int_equal(map_one("loner1", fd, 64 << 20, &first, &b, &e), 0);
	vp_map_unref(b);
	assert_int_equal(map_one("loner2", fd, 64 << 20, NULL, &b, &e), 0);
	vp_map_unref(b);
	/* A limit that came down holds for what comes. */
	vms[2].max_memory = 32 << 20;
	vp_memory_apply(&conf);
	assert_int_equal(map_one("loner1", fd, 4096, NULL, &b, &e), -EDQUOT);
	vp_map_unref(a);
	assert_int_equal(map_one("loner1", fd, 4096, NULL, &b, &e), 0);
	vp_map_unref(b);
	assert_int_equal(vp_memory_used("loner1").maps, 0);
	vms[2].max_memory = 0;
	close(fd);
}

/* Four of five VMs take what they can get: the fifth has its share, of mappings and of address space. */
static void test_shares(void **state)
{
	static struct vp_map *m[4][256];
	static const char *const greedy[] = { "blue1", "blue2", "loner1", "loner2" };
	unsigned n[4] = { 0 }, sum = 0, k;
	struct vp_map *mine[10];
	struct vp_err e = { 0 };
	int fd = sparse(UINT64_C(1) << 40);

	for (unsigned bytes = 0; bytes < 2; bytes++) {
		uint64_t size = bytes ? UINT64_C(1) << 30 : 4096;

		/* 100 mappings, or 100 GiB. */
		vp_memory_totals(bytes ? 10000 : 100, bytes ? UINT64_C(100) << 30 : UINT64_C(1) << 45);
		vp_memory_apply(&conf);
		sum = 0;
		for (unsigned v = 0; v < 4; v++) {
			for (n[v] = 0; n[v] < 256 && !map_one(greedy[v], fd, size, NULL, &m[v][n[v]], &e); n[v]++)
				;
			assert_int_equal(e.code, -ENOSPC);
			assert_non_null(strstr(e.msg, greedy[v]));
			assert_true(n[v] >= 10);
			sum += n[v];
		}
		assert_true(n[0] > 10 && sum <= 90);
		for (k = 0; k < 10; k++)
			assert_int_equal(map_one("red", fd, size, NULL, &mine[k], &e), 0);
		while (k--)
			vp_map_unref(mine[k]);
		for (unsigned v = 0; v < 4; v++)
			while (n[v])
				vp_map_unref(m[v][--n[v]]);
	}
	vp_memory_totals(0, 0);
	close(fd);
}

static void test_memory_from(void **state)
{
	struct vp_map *m;
	struct vp_err e = { 0 };
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	vp_memory_totals(0, 0);
	vp_memory_apply(&conf);
	assert_int_equal(map_one("red", zero, 4096, NULL, &m, &e), -EMEDIUMTYPE);
	assert_non_null(strstr(e.msg, "name it in MemoryFrom= of red.vm"));
	snprintf(vms[4].memory_from, sizeof(vms[4].memory_from), "/nowhere /dev/zero /dev");
	vp_memory_apply(&conf);
	assert_int_equal(map_one("red", zero, 4096, NULL, &m, &e), 0);
	vp_map_unref(m);
	assert_int_equal(map_one("loner1", zero, 4096, NULL, &m, &e), -EMEDIUMTYPE);
	if (fd >= 0 && !ftruncate(fd, 4096) && fcntl(fd, F_GET_SEALS) < 0) {
		assert_int_equal(map_one("red", fd, 4096, NULL, &m, &e), -EMEDIUMTYPE);
		assert_non_null(strstr(e.msg, "MemoryFrom= of red.vm"));
		assert_non_null(getcwd(vms[4].memory_from, sizeof(vms[4].memory_from)));
		vp_memory_apply(&conf);
		assert_int_equal(map_one("red", fd, 4096, NULL, &m, &e), 0);
		vp_map_unref(m);
		assert_int_equal(map_one("red", zero, 4096, NULL, &m, &e), -EMEDIUMTYPE);
	}
	vms[4].memory_from[0] = 0;
	vp_memory_totals(0, 0);
	vp_close(&fd);
	close(zero);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fast_needs_one_group),
		cmocka_unit_test(test_grant_needs_both),
		cmocka_unit_test(test_grants_form_no_circle),
		cmocka_unit_test(test_auto),
		cmocka_unit_test(test_endpoint_and_mode_fit),
		cmocka_unit_test(test_users),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_rate_is_held_or_refused),
		cmocka_unit_test(test_steps),
		cmocka_unit_test(test_rate_by_a_slow_clock),
		cmocka_unit_test(test_rate_debt),
		cmocka_unit_test(test_shared_bucket),
		cmocka_unit_test(test_rates_follow_the_configuration),
		cmocka_unit_test(test_max_memory),
		cmocka_unit_test(test_shares),
		cmocka_unit_test(test_memory_from),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
