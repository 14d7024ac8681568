/* SPDX-License-Identifier: BSD-3-Clause */
/* The windows of a port: given, taken, revoked under SYNC; memory that is not passed on. Rig: rig.h. */
#include "rig.h"

static void test_sync(void **state)
{
	struct fake *f = *state;
	uint32_t before;

	bring_up(f);
	before = regions_gen(f);
	assert_int_equal(vp_port_set_memory(f->p, NULL, 0, NULL), 0);
	assert_true(regions_gen(f) != before);
	assert_int_equal(le32toh(f->c->state.nregions), 0);
	assert_int_equal(le32toh(f->c->state.windows[0].kind), VHP_WINDOW_FD);
	/* An older generation is not a promise about this one. */
	assert_int_equal(command(f, VHP_CMD_SYNC, before, 0, 0, 0), VHP_ST_OK);
	assert_int_equal(f->takes, 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f), 0, 0, 0), VHP_ST_OK);
	assert_int_equal(f->takes, 1);
	assert_int_equal(le32toh(f->c->state.windows[0].kind), 0);
}

static void test_revived(void **state)
{
	struct fake *f = *state;
	struct vp_port_region r = { .addr = 0, .size = 0x200000, .flags = 3 };
	uint32_t serial;

	bring_up(f);
	r.fd = memfd_create("driver", 0);
	assert_int_equal(ftruncate(r.fd, 0x200000), 0);
	/* Unsealed and not to be sealed: this port refuses it, as it should for a VM. */
	assert_int_equal(vp_port_set_memory(f->p, &r, 1, NULL), 0);
	assert_int_equal(reason(f), VHP_REASON_WINDOW);
	close(r.fd);
	r.fd = memfd_create("driver", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(r.fd, 0x200000), 0);
	assert_int_equal(vp_port_set_memory(f->p, &r, 1, NULL), 0);
	assert_true(vp_port_is_up(f->p));
	assert_true(fcntl(r.fd, F_GET_SEALS) & F_SEAL_SHRINK);
	serial = le32toh(f->c->state.windows[le32toh(f->c->state.regions[0].window)].serial);
	f->gives = f->takes = 0;
	assert_int_equal(vp_port_set_memory(f->p, NULL, 0, NULL), 0);
	assert_false(vp_port_is_up(f->p));
	assert_int_equal(vp_port_set_memory(f->p, &r, 1, NULL), 0);
	assert_true(vp_port_is_up(f->p));
	assert_int_equal(f->gives + f->takes, 0);
	assert_int_equal(le32toh(f->c->state.windows[le32toh(f->c->state.regions[0].window)].serial), serial);
	close(r.fd);
}

/* A VM that serves another one has its memory and the port's control block in its own table: neither is passed on. */
static void test_lent_memory(void **state)
{
	struct fake *f = *state;
	const struct vp_port_conf pc = {
		.name = "other way", .attachment = VHP_ATTACHMENT_LOCAL, .max_queues = 4, .queue_doorbell = 1,
		.driver_vm = "b", .device_vm = "a",
	};
	struct vp_port_region r[3] = { { .size = 0x200000, .flags = 3 },
				       { .addr = 1ull << 32, .size = 0x200000, .flags = 3 },
				       { .addr = 2ull << 32, .size = VHP_CTRL_SIZE, .flags = 3 } };
	struct fake g = *f;
	struct vp_err e;

	assert_int_equal(vp_port_new(&g.p, f->event, &pc, &ops, &g, &e), 0);
	vp_port_set_attachment(g.p, &att_ops, &g);
	g.c = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vp_port_memfd(g.p, NULL), 0);
	assert_ptr_not_equal(g.c, MAP_FAILED);
	bring_up(f);
	bring_up(&g);
	for (int i = 0; i < 2; i++) {
		r[i].fd = memfd_create(i ? "a" : "b", MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(r[i].fd, 0x200000), 0);
	}
	r[2].fd = vp_port_memfd(f->p, NULL);
	assert_int_equal(vp_port_set_memory(f->p, &r[1], 1, &e), 0);
	assert_int_equal(vp_port_set_memory(g.p, r, 3, &e), 0);
	assert_int_equal(le32toh(g.c->state.nregions), 1);
	assert_int_equal(le64toh(g.c->state.regions[0].addr), 0);
	/* What the first port no longer lends is anybody's. */
	assert_int_equal(vp_port_set_memory(f->p, NULL, 0, NULL), 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f), 0, 0, 0), VHP_ST_OK);
	assert_int_equal(vp_port_set_memory(g.p, r, 2, &e), 0);
	assert_int_equal(le32toh(g.c->state.nregions), 2);
	munmap((void *)g.c, VHP_CTRL_SIZE);
	vp_port_free(g.p);
	close(r[0].fd);
	close(r[1].fd);
}

static void test_cancelled_give(void **state)
{
	struct fake *f = *state;

	f->give_result = VP_LATER;
	bring_up(f);
	assert_int_equal(vp_port_set_memory(f->p, NULL, 0, NULL), 0);
	assert_int_equal(f->takes, 0);
	assert_int_equal(le32toh(f->c->state.windows[0].kind), 0);
	vp_port_window_given(f->p, 0, 0, NULL);
	assert_int_equal(f->takes, 1);
	assert_int_equal(le32toh(f->c->state.nwindows), 0);
}

static void test_detach_waits(void **state)
{
	struct fake *f = *state;

	bring_up(f);
	f->take_later = true;
	command(f, VHP_CMD_DETACH, 0, 0, 0, 0);
	assert_false(answered(f));
	assert_int_equal(f->takes, 1);
	assert_int_equal(f->downs, 1);
	vp_port_window_taken(f->p, 0);
	assert_true(answered(f));
	assert_int_equal(le32toh(f->c->state.answer.status), VHP_ST_OK);
	/* Nothing is given until the next ATTACH, whatever the driver VM does. */
	f->gives = 0;
	vp_port_set_driver(f->p, VP_PORT_NO_DRIVER, 0);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 0);
	assert_int_equal(memory(f, 0), 0);
	assert_int_equal(f->gives, 0);
	assert_int_equal(attach(f), VHP_ST_OK);
	assert_int_equal(f->gives, 1);
	/* ATTACH while attached: another data path. */
	attach(f);
	assert_false(answered(f));
	vp_port_window_taken(f->p, (unsigned)f->last_slot);
	assert_true(answered(f));
	assert_true(vp_port_is_up(f->p));
	assert_int_equal(f->ups, 3);
}

static int setup_slow(void **state)
{
	return setup_with(state, true);
}

static void test_slow_take(void **state)
{
	struct fake *f = *state;

	bring_up(f);
	f->take_later = true;
	command(f, VHP_CMD_DETACH, 0, 0, 0, 0);
	run_for(f, 100000);
	assert_false(answered(f));
	run_for(f, 300000);
	assert_true(answered(f));
	/* The old one is still going; the new one gets another slot. */
	assert_int_equal(attach(f), VHP_ST_OK);
	assert_int_equal(f->last_slot, 1);
	assert_true(vp_port_is_up(f->p));
	vp_port_window_taken(f->p, 0);
	assert_true(vp_port_is_up(f->p));
}

static void test_bad_memory(void **state)
{
	struct fake *f = *state;
	struct vp_port_region r[2] = { { .addr = 0x1000, .size = 0x2000 }, { .addr = 0x2000, .size = 0x1000 } };
	struct vp_err e = { 0 };

	bring_up(f);
	r[0].fd = r[1].fd = memfd_create("m", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(r[0].fd, 0x10000), 0);
	assert_int_equal(vp_port_set_memory(f->p, r, 2, &e), -EINVAL);
	r[0].addr = 0x800;
	assert_int_equal(vp_port_set_memory(f->p, r, 1, &e), -EINVAL);
	r[0].addr = UINT64_MAX - 0xfff;
	assert_int_equal(vp_port_set_memory(f->p, r, 1, &e), -EINVAL);
	r[0].addr = 0x1000;
	r[0].offset = 0xf000;
	assert_int_equal(vp_port_set_memory(f->p, r, 1, &e), -EINVAL);
	assert_int_equal(vp_port_set_memory(f->p, r, VHP_MAX_REGIONS + 1, &e), -E2BIG);
	assert_int_equal(reason(f), VHP_REASON_LIMIT);
	close(r[0].fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_sync),
		T(test_revived),
		T(test_lent_memory),
		T(test_cancelled_give),
		T(test_detach_waits),
		cmocka_unit_test_setup_teardown(test_slow_take, setup_slow, teardown),
		T(test_bad_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
