/* SPDX-License-Identifier: BSD-3-Clause */
/* A port's life and its queue runs. Rig: rig.h. */
#include "rig.h"

static void test_header(void **state)
{
	struct fake *f = *state;

	assert_memory_equal((const void *)f->c->header.magic, "VHOSTPCI", 8);
	assert_int_equal(le32toh(f->c->header.max_queues), 4);
	assert_int_equal(le32toh(f->c->header.nsignals), 5);
	/* Sealed: the guest's VMM cannot take the memory from under us. */
	assert_int_equal(ftruncate(vp_port_memfd(f->p, NULL), 0), -1);
	assert_int_equal(errno, EPERM);
}

static void test_reasons(void **state)
{
	struct fake *f = *state;

	assert_int_equal(reason(f), VHP_REASON_NO_LINK);
	link_it(f);
	assert_int_equal(reason(f), VHP_REASON_NOT_ATTACHED);
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN | VP_PORT_HOLD_POLICY);
	assert_int_equal(reason(f), VHP_REASON_POLICY);
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN);
	assert_int_equal(reason(f), VHP_REASON_ADMIN);
	vp_port_set_hold(f->p, 0);
	vp_port_online(f->p, true);
	assert_int_equal(attach(f), VHP_ST_OK);
	assert_int_equal(reason(f), VHP_REASON_NO_DRIVER);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_IDLE, 0);
	assert_int_equal(reason(f), VHP_REASON_NOT_READY);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 1);
	assert_int_equal(reason(f), VHP_REASON_WINDOW);
	f->give_result = VP_LATER;
	assert_int_equal(memory(f, 0x1000), 0);
	assert_int_equal(reason(f), VHP_REASON_WINDOW);
	assert_int_equal(le32toh(f->c->state.windows[0].flags), 0);
	assert_int_equal(f->ups, 0);
	vp_port_window_given(f->p, 0, 0, NULL);
	assert_int_equal(f->ups, 1);
	assert_int_equal(reason(f), 0);
	assert_int_equal(le32toh(f->c->state.link_status), VHP_LINK_UP);
}

static void test_epoch(void **state)
{
	struct fake *f = *state;

	link_it(f);
	for (int i = 0; i < 3; i++) {
		vp_port_set_driver(f->p, VP_PORT_DRIVER_IDLE, 0);
		vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 0);
		vp_port_set_driver(f->p, VP_PORT_NO_DRIVER, 0);
	}
	assert_int_equal(le64toh(f->c->state.link_epoch), 3);
}

/* What did not change is not written: scribbles there stay, and are never read back. */
static void test_write_only(void **state)
{
	struct fake *f = *state;
	uint32_t gen;

	bring_up(f);
	gen = le32toh(f->c->state.generation);
	assert_int_equal(gen & 1, 0);
	f->c->state.max_queues = htole32(77);
	f->c->state.queues[0].run = htole32(99);
	f->c->state.flags = 0;
	f->c->state.generation = htole32(12345);
	vp_port_set_config(f->p, "abc", 3);
	assert_int_equal(le32toh(f->c->state.max_queues), 77);
	assert_int_equal(le32toh(f->c->state.generation), gen + 2);
	assert_true(vp_port_attached(f->p));
	assert_int_equal(le32toh(f->c->state.config_generation), 1);
	/* The same again is no change at all. */
	f->signals = 0;
	vp_port_set_config(f->p, "abc", 3);
	assert_int_equal(f->signals, 0);
	assert_int_equal(le32toh(f->c->state.generation), gen + 2);
}

static void test_commands(void **state)
{
	struct fake *f = *state;

	link_it(f);
	vp_port_online(f->p, true);
	assert_int_equal(command(f, VHP_CMD_ATTACH, 0x10000, 0xff, 0, 0), VHP_ST_VERSION);
	assert_int_equal(le64toh(f->c->state.answer.value[0]), VHP_ABI_VERSION);
	assert_int_equal(command(f, VHP_CMD_ATTACH, VHP_ABI_VERSION, 0x7, 0, 0), VHP_ST_FEATURES);
	assert_int_equal(le64toh(f->c->state.answer.value[0]), 0x8);
	assert_int_equal(reason(f), VHP_REASON_FEATURES);
	assert_int_equal(command(f, VHP_CMD_ATTACH, VHP_ABI_VERSION, 0xff, 0, 2), VHP_ST_DEVICE_TYPE);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 0, 0), VHP_ST_NOT_ATTACHED);
	assert_int_equal(command(f, VHP_CMD_MAP, 0, 1, 1, 0), VHP_ST_NOT_ATTACHED);
	assert_int_equal(command(f, VHP_CMD_UNMAP, 0, 1, 0, 0), VHP_ST_NOT_ATTACHED);
	assert_int_equal(command(f, ~0u, 0, 0, 0, 0), VHP_ST_UNKNOWN);
	assert_int_equal(attach(f), VHP_ST_OK);
	/* The same seq again is not executed again. */
	f->signals = 0;
	vp_port_command(f->p);
	assert_int_equal(f->signals, 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f) + 1, 0, 0, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f), 0, 0, 0), VHP_ST_OK);
}

static void test_map(void **state)
{
	struct fake *f = *state;

	bring_up(f);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 1, 0), VHP_ST_REFUSED);
	assert_false(le32toh(f->c->state.flags) & VHP_STATE_MAP);
	vp_port_set_maps(f->p, true);
	assert_true(le32toh(f->c->state.flags) & VHP_STATE_MAP);
	assert_true(le32toh(f->c->state.flags) & VHP_STATE_ATTACHED);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 1, 0), VHP_ST_OK);
	assert_int_equal(le64toh(f->c->state.answer.value[0]), 1);
	assert_int_equal(f->mapped, 0x1000);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x2000, 0x1000, 3, 0), VHP_ST_OK);
	assert_int_equal(le64toh(f->c->state.answer.value[0]), 0);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x666, 1, 2, 0), VHP_ST_REFUSED);
	/* Not passed on: no bytes, a wrap, no access or another one, too much. */
	f->mapped = 7;
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 0, 1, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_MAP, ~0ull, 2, 1, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 0, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 4, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 1ull << 32 | 1, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, VHP_MAP_MAX + 1, 1, 0), VHP_ST_LIMIT);
	assert_int_equal(f->mapped, 7);
	assert_int_equal(command(f, VHP_CMD_MAP, 0, VHP_MAP_MAX, 1, 0), VHP_ST_OK);
	assert_int_equal(command(f, VHP_CMD_UNMAP, 0, 0, 0, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_UNMAP, 0, 4096, 0, 0), VHP_ST_OK);
	/* A link that is down has no queue that waits. */
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN);
	assert_int_equal(command(f, VHP_CMD_MAP, 0x1000, 1, 1, 0), VHP_ST_LIMIT);
}

static void test_runs(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = {
		.desc = 0x1000, .avail = 0x2000, .used = 0x3000, .size = 64, .base = 5, .enabled = true
	};

	assert_int_equal(vp_port_queue_run(f->p, 0, &r), -ERANGE);
	link_it(f);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), -ENOTCONN);
	bring_up(f);
	assert_int_equal(vp_port_queue_stop(f->p, 0), 0);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), -EBUSY);
	assert_int_equal(le32toh(f->c->state.queues[0].flags), VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	assert_int_equal(le32toh(f->c->state.queues[0].run), 1);
	vp_port_queue_enable(f->p, 0, false);
	assert_int_equal(le32toh(f->c->state.queues[0].flags), VHP_QUEUE_STARTED);
	assert_int_equal(vp_port_queue_stop(f->p, 0), VP_LATER);
	assert_int_equal(le32toh(f->c->state.queues[0].flags), VHP_QUEUE_STARTED | VHP_QUEUE_STOP);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 2, 9, 0), VHP_ST_STALE);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, UINT64_MAX, 1, 9, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 0x10000, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 9, 8), VHP_ST_INVALID);
	assert_int_equal(f->stops, 0);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 9, 0), VHP_ST_OK);
	assert_int_equal(f->stops, 1);
	assert_true(f->last.base_known && f->last.base == 9 && !f->last.broken && !f->last.lost);
	/* A second run, given up as broken. */
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	assert_int_equal(le32toh(f->c->state.queues[0].run), 2);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 2, 9, 1), VHP_ST_OK);
	assert_true(f->last.broken && !f->last.base_known);
	assert_int_equal(le32toh(f->c->state.queues[0].flags), VHP_QUEUE_BROKEN);
	assert_true(vp_port_is_up(f->p));
}

/* Down for a while: nobody touches the rings before the guest has said where it stopped. */
static void test_falls_gently(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = { .size = 64, .enabled = true };
	unsigned ups;

	bring_up(f);
	ups = f->ups;
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN);
	assert_false(vp_port_is_up(f->p));
	/* The guest sees a stop like any other, its memory in place. */
	assert_int_equal(le32toh(f->c->state.link_status), VHP_LINK_UP);
	assert_int_equal(le32toh(f->c->state.nregions), 1);
	assert_true(le32toh(f->c->state.queues[0].flags) & VHP_QUEUE_STOP);
	assert_int_equal(f->stops + f->downs, 0);
	assert_int_equal(vp_port_queue_run(f->p, 1, &r), -ENOTCONN);
	/* The reason passes before the guest has answered: first down, then up. */
	vp_port_set_hold(f->p, 0);
	assert_false(vp_port_is_up(f->p));
	assert_int_equal(f->stops + f->downs, 0);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 9, 0), VHP_ST_OK);
	assert_true(f->last.base_known && f->last.base == 9 && !f->last.lost);
	assert_int_equal(f->downs, 1);
	assert_int_equal(f->ups, ups + 1);
	assert_true(vp_port_is_up(f->p));
	/* The reason stays. */
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 2, 9, 0), VHP_ST_OK);
	assert_int_equal(le32toh(f->c->state.link_status), VHP_LINK_DOWN);
	assert_int_equal(reason(f), VHP_REASON_ADMIN);
	assert_int_equal(le32toh(f->c->state.nregions), 0);
	vp_port_set_hold(f->p, 0);
	/* The driver VM goes meanwhile: there is nothing left to wait for. */
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	vp_port_set_hold(f->p, VP_PORT_HOLD_ADMIN);
	vp_port_set_driver(f->p, VP_PORT_NO_DRIVER, 0);
	assert_true(f->last.lost);
	assert_int_equal(f->downs, 3);
}

static void test_cut(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = { .size = 64 };

	bring_up(f);
	vp_port_queue_run(f->p, 0, &r);
	vp_port_queue_run(f->p, 1, &r);
	assert_int_equal(vp_port_queue_stop(f->p, 0), VP_LATER);
	run_for(f, 20000);
	assert_int_equal(f->stops, 0);
	run_for(f, 1200000);
	assert_int_equal(f->stops, 2);
	assert_true(f->last.lost);
	assert_int_equal(f->downs, 1);
	assert_int_equal(reason(f), VHP_REASON_TIMEOUT);
	assert_int_equal(le32toh(f->c->state.flags), 0);
	assert_int_equal(f->takes, 1);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 9, 0), VHP_ST_NOT_ATTACHED);
	assert_int_equal(attach(f), VHP_ST_OK);
	assert_int_equal(f->ups, 2);
}

/* Copy mode: the rings are the same in every run, and a guest may be in a burst of one that ended without its word. */
static void test_next_run_waits(void **state)
{
	struct vp_port_ring r = { .desc = 0x1000, .avail = 0x2000, .used = 0x3000, .size = 256, .enabled = true };
	struct fake *f = *state;
	uint32_t before;

	bring_up(f);
	vp_port_set_link(f->p, 1, VHP_MODE_COPY, 2, 0x1f, 0x0f);
	for (unsigned q = 0; q < 2; q++)
		assert_int_equal(vp_port_queue_run(f->p, q, &r), 0);
	/* With its word it is over. */
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 0, 0), VHP_ST_OK);
	assert_int_equal(vp_port_queue_await(f->p, 0), 0);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	/* The driver VM goes and comes. */
	before = regions_gen(f);
	vp_port_set_driver(f->p, VP_PORT_NO_DRIVER, 0);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 0x3);
	assert_int_equal(le32toh(f->c->state.link_status), VHP_LINK_UP);
	assert_int_equal(vp_port_queue_await(f->p, 0), VP_LATER);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), -EBUSY);
	/* What it says of an earlier update is no promise about this one. */
	assert_int_equal(command(f, VHP_CMD_SYNC, before, 0, 0, 0), VHP_ST_OK);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), -EBUSY);
	assert_int_equal(f->releases, 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f), 0, 0, 0), VHP_ST_OK);
	assert_int_equal(f->releases, 1);
	assert_int_equal(vp_port_queue_await(f->p, 0), 0);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	assert_int_equal(vp_port_queue_run(f->p, 1, &r), 0);
	/* One queue alone; nobody is cut as long as nobody waits. */
	before = regions_gen(f);
	vp_port_queue_end(f->p, 1);
	assert_true(regions_gen(f) != before);
	run_for(f, 1100000);
	assert_true(vp_port_attached(f->p));
	assert_int_equal(vp_port_queue_await(f->p, 0), 0);
	assert_int_equal(vp_port_queue_await(f->p, 1), VP_LATER);
	run_for(f, 1100000);
	assert_int_equal(reason(f), VHP_REASON_TIMEOUT);
	/* Who attaches has let go. */
	assert_int_equal(vp_port_queue_await(f->p, 1), 0);
	assert_int_equal(attach(f), VHP_ST_OK);
	assert_int_equal(vp_port_queue_run(f->p, 1, &r), 0);
}

static void test_offline(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = { .size = 64 };

	bring_up(f);
	vp_port_queue_run(f->p, 0, &r);
	f->takes = 0;
	vp_port_online(f->p, false);
	assert_int_equal(f->takes, 0);
	assert_int_equal(f->stops, 1);
	assert_false(vp_port_attached(f->p));
	f->signals = 0;
	assert_int_equal(memory(f, 0), 0);
	assert_int_equal(f->signals, 0);
	attach(f);
	assert_false(answered(f));
	/* The command is still there when the guest is. */
	vp_port_online(f->p, true);
	assert_true(answered(f));
	assert_true(vp_port_is_up(f->p));
}

/* A guest with queues stays attached, so that it says SYNC to whoever waits for it; the page is as it stays. */
static void test_goodbye(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = { .size = 64 };
	uint32_t gen, flags[2];

	bring_up(f);
	assert_int_equal(vp_port_queue_run(f->p, 0, &r), 0);
	assert_true(vp_port_in_guests_hands(f->p));
	vp_port_leave(f->p);
	vp_port_set_driver(f->p, VP_PORT_NO_DRIVER, 0);
	assert_int_equal(vp_port_set_memory(f->p, NULL, 0, NULL), 0);
	/* Taken from it without its word. */
	assert_true(vp_port_in_guests_hands(f->p));
	vp_port_goodbye(f->p);
	assert_int_equal(reason(f), VHP_REASON_DAEMON);
	flags[0] = le32toh(f->c->state.flags);
	flags[1] = le32toh(f->c->state.queues[0].flags);
	assert_int_equal(flags[0], VHP_STATE_ATTACHED);
	assert_int_equal(flags[1], 0);
	gen = le32toh(f->c->state.generation);
	vp_port_online(f->p, false);
	assert_int_equal(le32toh(f->c->state.generation), gen);
}

/* What an older daemon kept is shorter. */
static void test_kept_by_another_version(void **state)
{
	struct fake *f = *state;
	struct vp_port_conf pc = {
		.name = "kept", .attachment = VHP_ATTACHMENT_LOCAL, .max_queues = 4, .queue_doorbell = 1, .kept = true,
		.kept_memfd = memfd_create("mem", 0), .kept_state = memfd_create("state", 0),
	};
	struct vp_port *p = NULL;
	struct vp_err e = { 0 };

	assert_int_equal(ftruncate(pc.kept_memfd, VHP_CTRL_SIZE), 0);
	assert_int_equal(ftruncate(pc.kept_state, 8), 0);
	assert_int_equal(vp_port_new(&p, f->event, &pc, &ops, f, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "older daemon"));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_header),
		T(test_reasons),
		T(test_epoch),
		T(test_write_only),
		T(test_commands),
		T(test_map),
		T(test_runs),
		T(test_falls_gently),
		T(test_cut),
		T(test_next_run_waits),
		T(test_offline),
		T(test_goodbye),
		T(test_kept_by_another_version),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
