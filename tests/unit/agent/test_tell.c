// SPDX-License-Identifier: BSD-3-Clause
/* What the agent tells the daemon beside the life of queues: what its back-end is, what it has counted. */
#include "fixture.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static void disk(void)
{
	struct vhp_abi_state *s = fake_begin(&f);

	s->device_type = htole32(2);
	s->config_size = htole32(120);
	fake_end(&f);
	fake_dp_any(&d);
	d.desc = (struct dp_desc){ .features = { F_V1 | BIT(9) }, .queues = 1, .config_size = 120 };
	for (unsigned int i = 0; i < 120; i++)
		d.desc.config[i] = (uint8_t)(i + 1);
}

static void test_back_end_is_described_before_attach(void **state)
{
	struct sent c;

	disk();
	go();
	/* 104 bytes and the rest, what it is, and only then. */
	assert_int_equal(fake_count(&f, VHP_CMD_CONFIG, &c), 2);
	assert_int_equal(c.args[VHP_CONFIG_OFFSET], 104);
	assert_int_equal(c.args[VHP_CONFIG_SIZE], 16);
	assert_memory_equal(&c.args[VHP_CONFIG_DATA], d.desc.config + 104, 16);
	assert_int_equal(fake_count(&f, VHP_CMD_BACKEND, &c), 1);
	assert_true(c.args[VHP_BACKEND_FEATURES0] == (F_V1 | BIT(9)));
	assert_int_equal(c.args[VHP_BACKEND_QUEUES], 1);
	assert_int_equal(c.args[VHP_BACKEND_CONFIG], 120);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	assert_int_equal(f.sent[f.nsent - 1].opcode, VHP_CMD_ATTACH);
	/* Its config space changes; it goes, and another one comes. */
	d.changed = true;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_BACKEND, NULL), 2);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	d.lost = true;
	agent_handle(a, NULL, 0);
	d.ready = true;
	a->attach_ms = 0;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_BACKEND, NULL), 3);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
}

static void test_refused_back_end_does_not_attach(void **state)
{
	disk();
	f.backend_status = VHP_ST_PROFILE;
	go();
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_BACKEND, NULL), 1); /* and not all the time */
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 0);
	assert_true(agent_timeout(a) > 0);
	a->describe_ms = 0;
	f.backend_status = VHP_ST_OK;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
}

static void test_net_is_not_described(void **state)
{
	fake_dp_any(&d);
	up(2);
	assert_int_equal(fake_count(&f, VHP_CMD_BACKEND, NULL), 0);
}

static void test_what_the_driver_writes_reaches_each_back_end(void **state)
{
	struct vhp_abi_state *s;

	disk();
	go();
	assert_int_equal(d.sets, 0);
	s = fake_begin(&f);
	s->set_generation = htole32(1);
	s->set_offset = htole32(32);
	s->set_size = htole32(1);
	s->set_config[32] = 0x5a;
	fake_end(&f);
	go();
	go();
	assert_int_equal(d.sets, 1);
	assert_true(d.set_off == 32 && d.set_len == 1 && d.set_byte == 0x5a);
	d.lost = true;
	agent_handle(a, NULL, 0);
	d.ready = true;
	a->attach_ms = 0;
	go();
	go();
	assert_int_equal(d.sets, 2);
}

static bool keeps_account(struct datapath *dp)
{
	return true;
}

/* The in-flight area is no memory: it is shown to a data path apart, and whether that uses it is told. */
static void test_account_of_open_requests(void **state)
{
	struct vhp_abi_state *s;
	struct sent c;

	disk();
	fake_up(&f, 1);
	fake_window(&f, 1, 64 << 10, -1);
	fake_region(&f, UINT64_C(1) << 63, 64 << 10, 1, 0);
	s = fake_begin(&f);
	s->device_type = htole32(2);
	s->regions[1].flags = htole32(VHP_REGION_INFLIGHT);
	s->inflight_queues = htole32(1);
	s->inflight_entries = htole32(128);
	fake_end(&f);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, &c), 1);
	assert_int_equal(c.args[VHP_ATTACH_FLAGS], 0);
	assert_non_null(d.mem);
	assert_int_equal(d.mem->nregions, 1);
	assert_int_equal(d.mem->inflight.size, 64 << 10);
	assert_int_equal(d.mem->inflight.win->slot, 1);
	assert_int_equal(d.mem->inflight_queues, 1);
	assert_int_equal(d.mem->inflight_entries, 128);
	d.ops.keeps_account = keeps_account;
	d.lost = true;
	agent_handle(a, NULL, 0);
	d.ready = true;
	a->attach_ms = 0;
	go();
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, &c), 2);
	assert_int_equal(c.args[VHP_ATTACH_FLAGS], VHP_ATTACH_F_INFLIGHT);
}

static struct dp_counters moved;

static bool counters(struct datapath *dp, struct dp_counters *c)
{
	*c = moved;
	return true;
}

/* What has been moved since ATTACH is told where it is asked for, when it has changed, once a second at most. */
static void test_counters(void **state)
{
	struct sent c;

	d.ops.counters = counters;
	moved = (struct dp_counters){ { 100, 5000, 1, 200, 9000, 2 } };
	fake_up(&f, 2);
	go();
	moved.n[0] += 7;
	moved.n[4] += 60;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, NULL), 0); /* nobody asks */
	fake_begin(&f)->flags |= htole32(VHP_STATE_COUNT);
	fake_end(&f);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, &c), 1);
	assert_int_equal(c.args[VHP_COUNT_FROM_PACKETS], 7);
	assert_int_equal(c.args[VHP_COUNT_FROM_BYTES], 0);
	assert_int_equal(c.args[VHP_COUNT_TO_PACKETS], 0);
	assert_int_equal(c.args[VHP_COUNT_TO_BYTES], 60);
	moved.n[0]++;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, NULL), 1); /* too soon */
	assert_in_range(agent_timeout(a), 1, 1100);
	a->count_ms = 0;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, &c), 2);
	assert_int_equal(c.args[VHP_COUNT_FROM_PACKETS], 8);
	a->count_ms = 0;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, NULL), 2); /* nothing new */
	/* The interface was made anew. */
	moved = (struct dp_counters){ { 3 } };
	a->count_ms = 0;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_COUNTERS, &c), 3);
	assert_int_equal(c.args[VHP_COUNT_FROM_PACKETS], 3);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(back_end_is_described_before_attach),
		T(refused_back_end_does_not_attach),
		T(net_is_not_described),
		T(what_the_driver_writes_reaches_each_back_end),
		T(account_of_open_requests),
		T(counters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
