/* SPDX-License-Identifier: BSD-3-Clause */
/* An agent between the doubles, for the tests of its engine: each program has one. */
#ifndef TEST_AGENT_FIXTURE_H
#define TEST_AGENT_FIXTURE_H

#include "double.h"

static struct fake_port f;
static struct fake_dp d;
static struct agent *a;

static int setup(void **state)
{
	fake_init(&f, 4);
	fake_dp_init(&d);
	a = agent_new(&f.port, &d.dp);
	return !a;
}

static int teardown(void **state)
{
	agent_free(a);
	fake_free(&f);
	return 0;
}

static void go(void)
{
	assert_int_equal(agent_reconcile(a), 0);
}

static void up(unsigned int n)
{
	fake_up(&f, n);
	go();
	assert_true(a->up);
}

#endif
