/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vp_metrics_write(): both bounds of a piece, that of time and that of size, and that the pieces are the whole answer.
 * An answer for thousands of VMs takes less time than any limit that a busy machine could be held to. So the bound of
 * time is looked at with no time at all: a piece ends where the clock is looked at.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "context/context.h"
#include "control/metrics.h"
#include "link/link.h"
#include "threads/worker.h"

#define VMS         1000
#define FAMILIES_VM 3
#define AT_ONCE     16  /* objects, between looks at the clock */

static struct vp_conf conf;
static struct vp_daemon d = { .conf = &conf };

static int setup(void **state)
{
	struct worker_pool_conf c = { .threads = 1 };

	conf.n_vms = VMS;
	conf.vms = calloc(VMS, sizeof(*conf.vms));
	assert_non_null(conf.vms);
	for (unsigned i = 0; i < VMS; i++) {
		snprintf(conf.vms[i].name, sizeof(conf.vms[i].name), "vm%04u", i);
		conf.vms[i].max_links = 7;
	}
	assert_true(sd_event_new(&d.event) >= 0);
	assert_int_equal(worker_pool_new(&d.workers, &c, NULL), 0);
	return vp_links_new(&d.links, &d);
}

static int teardown(void **state)
{
	vp_links_free(d.links);
	worker_pool_free(d.workers);
	sd_event_unref(d.event);
	free(conf.vms);
	return 0;
}

static unsigned samples(const char *s, const char *what)
{
	unsigned n = 0;

	while ((s = strstr(s, what))) {
		n++;
		s += strlen(what);
	}
	return n;
}

/* The answer in pieces; returns how many there were. *most: samples of VMs in one of them, *longest: its bytes. */
static unsigned pieces(size_t max, unsigned us, unsigned *most, size_t *longest)
{
	struct vp_metrics_at at = { .openmetrics = true };
	unsigned n = 0, all = 0, limits = 0;
	bool end;

	*most = 0;
	*longest = 0;
	do {
		struct vp_text t = { 0 };
		unsigned here;

		end = vp_metrics_write(&d, &at, &t, max, us);
		assert_false(t.failed);
		vp_text_add(&t, "", 1);
		here = samples(t.s, "{vm=\"");
		all += here;
		limits += samples(t.s, "limit=\"MaxLinks\"} 7\n");
		if (here > *most)
			*most = here;
		if (t.n > *longest)
			*longest = t.n;
		assert_int_equal(end, t.n >= 7 && !strcmp(t.s + t.n - 7, "# EOF\n"));
		vp_text_free(&t);
		n++;
	} while (!end);
	assert_int_equal(limits, VMS);
	assert_int_equal(all, FAMILIES_VM * VMS);
	return n;
}

static void test_time(void **state)
{
	unsigned most, n;
	size_t longest;

	n = pieces(1 << 30, 0, &most, &longest);
	assert_true(most <= AT_ONCE);
	assert_true(n >= FAMILIES_VM * VMS / AT_ONCE);
}

static void test_size(void **state)
{
	unsigned most, n;
	size_t longest;

	n = pieces(8192, 1000000000, &most, &longest);
	assert_true(longest < 8192 + 1024);
	assert_true(n > 10);
}

/* With enough of both it is one piece: the counts above are the bounds' doing. */
static void test_neither(void **state)
{
	unsigned most;
	size_t longest;

	assert_int_equal(pieces(1 << 30, 1000000000, &most, &longest), 1);
	assert_int_equal(most, FAMILIES_VM * VMS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_time),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_neither),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
