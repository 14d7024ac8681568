// SPDX-License-Identifier: BSD-3-Clause
/* The engine against a port and a data path that are doubles: whatever happens on the page, what is applied follows. */
#include "fixture.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

static uint64_t level(int fd)
{
	uint64_t v = 0;
	ssize_t n = read(fd, &v, sizeof(v));

	return n == (ssize_t)sizeof(v) ? v : 0;
}

static void test_up(void **state)
{
	struct sent c;

	go();
	/* attaches before there is a driver VM */
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, &c), 1);
	assert_int_equal(c.args[VHP_ATTACH_ABI], VHP_ABI_VERSION);
	assert_true(c.args[VHP_ATTACH_FEATURES0] == d.features[0]);
	assert_int_equal(c.args[VHP_ATTACH_TYPE], 1);
	assert_false(a->up);
	up(2);
	assert_true(d.running[0] && d.running[1] && d.enabled[0] && d.enabled[1] && d.carrier);
	assert_int_equal(d.q[1].base, 8);
	assert_int_equal(d.q[1].size, 256);
	assert_int_equal(d.q[0].ring.avail, d.mem->r[0].win->uva + 0x1000);
	assert_true(d.configured[0] == F_V1);
	assert_int_equal(d.configs, 1);
	/* eventfds are attached, and both sides were made to look once */
	assert_true(f.kick[1] >= 0 && f.call[1] >= 0 && f.kick[2] >= 0 && f.kick[3] < 0 && f.kick[0] < 0);
	assert_int_equal(level(f.kick[1]), 1);
	assert_int_equal(level(f.call[2]), 1);
	/* nothing new, nothing done */
	go();
	go();
	assert_int_equal(d.starts, 2);
	assert_int_equal(d.mems, 1);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	assert_int_equal(agent_timeout(a), -1);
}

static void test_stop_is_answered(void **state)
{
	struct sent c;

	up(2);
	d.base[1] = 0x1234;
	fake_begin(&f)->queues[1].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	go();
	assert_true(d.running[0] && !d.running[1]);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_QUEUE], 1);
	assert_int_equal(c.args[VHP_STOPPED_RUN], 1);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 0x1234);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
	assert_true(f.kick[2] < 0 && f.call[2] < 0);
	/* a new run goes on there */
	fake_queue(&f, 1, 0x14000, 256, 0x1234);
	go();
	assert_true(d.running[1]);
	assert_int_equal(d.q[1].base, 0x1234);
}

static void test_stop_is_answered_again(void **state)
{
	struct sent c;

	up(1);
	d.base[0] = 77;
	f.mute_stop = true;
	fake_begin(&f)->queues[0].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	go();
	go();
	/* asked again, answered the same; not started again */
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 2);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 77);
	assert_int_equal(d.starts, 1);
}

static void test_stop_of_a_run_never_seen(void **state)
{
	struct sent c;

	go();
	fake_up(&f, 1);
	fake_begin(&f)->queues[0].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	go();
	assert_int_equal(d.starts, 0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 7);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
}

static void test_missed_restart(void **state)
{
	up(1);
	/* stopped and started anew while nobody looked: flags are the same, the run is not */
	fake_queue(&f, 0, 0x18000, 64, 3);
	go();
	assert_int_equal(d.starts, 2);
	assert_int_equal(d.q[0].size, 64);
	assert_int_equal(d.q[0].base, 3);
	/* that run is over: no answer */
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 0);
}

static void link_down(uint32_t reason)
{
	struct vhp_abi_state *s = fake_begin(&f);

	s->link_status = 0;
	s->link_reason = htole32(reason);
	for (int q = 0; q < 4; q++)
		s->queues[q].flags = 0;
	s->nregions = 0;
	s->features[0] = 0;
	s->regions_generation = htole32(le32toh(s->regions_generation) + 1);
	fake_end(&f);
}

static void test_driver_vm_dies_and_comes_back(void **state)
{
	struct sent c;
	uint64_t uva;

	up(2);
	uva = d.mem->r[0].win->uva;
	link_down(VHP_REASON_NO_DRIVER);
	go();
	assert_false(d.running[0] || d.running[1] || d.carrier || a->up);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 0);
	assert_int_equal(fake_count(&f, VHP_CMD_SYNC, &c), 1);
	assert_int_equal(c.args[0], le32toh(f.c->state.regions_generation));
	assert_null(d.mem);
	fake_up(&f, 2);
	fake_begin(&f)->link_epoch = htole64(2);
	fake_end(&f);
	go();
	assert_true(d.running[0] && d.running[1] && d.carrier);
	assert_true(d.mem->r[0].win->uva != uva);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
}

static void test_epoch_missed_down(void **state)
{
	up(1);
	/* another driver VM, and the down between was missed: same layout, same numbers but the epoch */
	fake_queue(&f, 0, 0x10000, 256, 7);
	fake_begin(&f)->link_epoch = htole64(2);
	fake_end(&f);
	go();
	assert_int_equal(d.resets, 1);
	assert_int_equal(d.starts, 2);
	assert_int_equal(d.mems, 2);
}

static void test_features_change(void **state)
{
	up(1);
	fake_begin(&f)->features[0] = htole64(F_V1 | BIT(29));
	fake_end(&f);
	fake_queue(&f, 0, 0x10000, 256, 0);
	go();
	assert_true(d.configured[0] == (F_V1 | BIT(29)));
	assert_int_equal(d.starts, 2);
}

static void test_enable(void **state)
{
	up(2);
	fake_begin(&f)->queues[1].flags = htole32(VHP_QUEUE_STARTED);
	fake_end(&f);
	go();
	assert_true(d.running[1] && !d.enabled[1] && d.enabled[0]);
	fake_begin(&f)->queues[1].flags = htole32(VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	fake_end(&f);
	go();
	assert_true(d.running[1] && d.enabled[1]);
	assert_int_equal(d.starts, 2);
}

static void test_bad_ring_breaks_its_queue_only(void **state)
{
	struct sent c;

	fake_up(&f, 2);
	fake_begin(&f)->queues[0].desc_addr = htole64(0xdead0000);
	fake_end(&f);
	go();
	assert_true(!d.running[0] && d.running[1]);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_QUEUE], 0);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_BROKEN);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 1);
	/* the driver starts it anew */
	fake_queue(&f, 0, 0x10000, 256, 0);
	go();
	assert_true(d.running[0]);
}

static void test_data_path_finds_it_broken(void **state)
{
	struct sent c;

	up(2);
	d.broken[0] = BIT(1);
	agent_handle(a, NULL, 0);
	go();
	assert_true(d.running[0] && !d.running[1]);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_BROKEN);
	/* a complaint about a run that is over already, because its memory is gone, is none */
	d.broken[0] = BIT(0);
	agent_handle(a, NULL, 0);
	link_down(VHP_REASON_NO_DRIVER);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 1);
}

static void test_memory_hotplug(void **state)
{
	struct sent c;

	up(2);
	fake_window(&f, 1, 2 << 20, -1);
	fake_region(&f, 1 << 30, 2 << 20, 1, 0);
	go();
	assert_int_equal(d.mem->nregions, 2);
	assert_int_equal(d.stops, 0);
	assert_int_equal(d.starts, 2);
	assert_int_equal(f.windows_given, 2);
	/* and away again */
	fake_begin(&f)->nregions = htole32(1);
	f.c->state.regions_generation = htole32(le32toh(f.c->state.regions_generation) + 1);
	fake_end(&f);
	go();
	assert_int_equal(d.mem->nregions, 1);
	assert_int_equal(d.stops, 0);
	fake_count(&f, VHP_CMD_SYNC, &c);
	assert_int_equal(c.args[0], le32toh(f.c->state.regions_generation));
}

static void test_ring_memory_removed(void **state)
{
	struct sent c;

	fake_up(&f, 2);
	fake_window(&f, 1, 1 << 20, -1);
	fake_region(&f, 1 << 30, 1 << 20, 1, 0);
	fake_queue(&f, 1, 1 << 30, 256, 0);
	go();
	assert_true(d.running[1]);
	fake_begin(&f)->nregions = htole32(1);
	f.c->state.regions_generation = htole32(le32toh(f.c->state.regions_generation) + 1);
	fake_end(&f);
	go();
	assert_true(d.running[0] && !d.running[1]);
	fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c);
	assert_int_equal(c.args[VHP_STOPPED_QUEUE], 1);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_BROKEN);
}

static void test_window_comes_late(void **state)
{
	int fd;

	fake_up(&f, 1);
	fd = f.win_fd[0];
	f.win_fd[0] = -1;
	go();
	assert_false(a->up);
	assert_int_equal(d.starts, 0);
	assert_true(agent_timeout(a) >= 0);
	f.win_fd[0] = fd;
	go();
	assert_true(a->up && d.running[0]);
}

static void test_required_features(void **state)
{
	fake_up(&f, 1);
	fake_begin(&f)->required_features[0] = htole64(F_V1 | BIT(11));
	fake_end(&f);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 0);
	/* the profile is narrowed */
	fake_begin(&f)->required_features[0] = htole64(F_V1);
	fake_end(&f);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	assert_true(d.running[0]);
}

static void test_other_device_type(void **state)
{
	fake_up(&f, 1);
	fake_begin(&f)->device_type = htole32(2);
	fake_end(&f);
	go();
	assert_int_equal(f.nsent, 0);
	assert_int_equal(d.starts, 0);
}

/* Of a data path that is for another type nothing is told, not even what it is. */
static void test_other_device_type_is_not_described(void **state)
{
	fake_dp_any(&d);
	d.ops.device_type = 19;
	fake_begin(&f)->device_type = htole32(2);
	fake_end(&f);
	go();
	assert_int_equal(d.describes, 0);
	assert_int_equal(f.nsent, 0);
}

static void test_daemon_silent(void **state)
{
	f.command_rc = -ETIMEDOUT;
	go();
	assert_false(a->attached);
	assert_true(agent_timeout(a) > 0);
	/* not hammering */
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	f.command_rc = 0;
	a->attach_ms = 0;
	go();
	assert_true(a->attached);
}

static void test_cut(void **state)
{
	struct vhp_abi_state *s;

	up(2);
	s = fake_begin(&f);
	s->flags = 0;
	s->link_status = 0;
	s->link_reason = htole32(VHP_REASON_TIMEOUT);
	fake_end(&f);
	go();
	assert_false(a->attached || a->up || d.running[0]);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 0);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	assert_true(agent_timeout(a) > 0);
	a->attach_ms = 0;
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
}

static void test_module_detached(void **state)
{
	up(1);
	fake_begin(&f)->flags = 0;
	fake_end(&f);
	agent_port_event(a, VHP_EV_DETACHED);
	assert_false(d.running[0]);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
	assert_true(d.running[0]);
}

static void test_data_path_dies(void **state)
{
	struct sent c;

	up(2);
	d.lost = true;
	agent_handle(a, NULL, 0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 2);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_NO_BASE);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
	assert_false(a->attached);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 1);
	/* it is back, and the daemon starts new runs */
	d.ready = true;
	a->attach_ms = 0;
	fake_queue(&f, 0, 0x10000, 256, 9);
	fake_queue(&f, 1, 0x14000, 256, 9);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
	assert_true(d.running[0] && d.running[1]);
	assert_int_equal(d.q[0].base, 9);
}

static void test_data_path_dies_in_a_call(void **state)
{
	go();
	d.fail_start = -ECONNRESET;
	fake_up(&f, 2);
	go();
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
	assert_false(a->attached || a->up);
}

static void test_start_fails(void **state)
{
	struct sent c;

	go();
	d.fail_start = -EBUSY;
	fake_up(&f, 2);
	go();
	assert_true(!d.running[0] && d.running[1]);
	fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 7);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
	assert_true(f.kick[1] < 0 && f.call[1] < 0);
}

static void test_index_unknown(void **state)
{
	struct sent c;

	up(1);
	d.fail_stop = -ENODATA;
	fake_begin(&f)->queues[0].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	go();
	fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_NO_BASE);
}

static void test_invalid_page(void **state)
{
	up(2);
	d.base[0] = 55;
	fake_begin(&f)->nregions = htole32(600);
	fake_end(&f);
	go();
	assert_false(a->up || d.running[0] || d.running[1]);
	/* and the moment it is right again: the same run goes on where it was halted */
	fake_begin(&f)->nregions = htole32(1);
	fake_end(&f);
	go();
	assert_true(a->up && d.running[0]);
	assert_int_equal(d.q[0].base, 55);
}

static void test_torn_page_changes_nothing(void **state)
{
	up(1);
	fake_begin(&f);
	go();
	assert_true(d.running[0]);
	assert_true(agent_timeout(a) > 0);
	fake_end(&f);
	go();
	assert_true(d.running[0]);
}

static void test_orderly_end(void **state)
{
	struct sent c;

	up(2);
	d.base[0] = 100;
	d.base[1] = 200;
	agent_stop(a);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 2);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 200);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
	/* in this order */
	assert_int_equal(f.sent[f.nsent - 1].opcode, VHP_CMD_DETACH);
	assert_false(d.running[0] || d.carrier);
}

static void test_more_queues_than_the_data_path(void **state)
{
	d.max_queues = 2;
	up(4);
	assert_true(d.running[0] && d.running[1] && !d.running[2] && !d.running[3]);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(up),
		T(stop_is_answered),
		T(stop_is_answered_again),
		T(stop_of_a_run_never_seen),
		T(missed_restart),
		T(driver_vm_dies_and_comes_back),
		T(epoch_missed_down),
		T(features_change),
		T(enable),
		T(bad_ring_breaks_its_queue_only),
		T(data_path_finds_it_broken),
		T(memory_hotplug),
		T(ring_memory_removed),
		T(window_comes_late),
		T(required_features),
		T(other_device_type),
		T(other_device_type_is_not_described),
		T(daemon_silent),
		T(cut),
		T(module_detached),
		T(data_path_dies),
		T(data_path_dies_in_a_call),
		T(start_fails),
		T(index_unknown),
		T(invalid_page),
		T(torn_page_changes_nothing),
		T(orderly_end),
		T(more_queues_than_the_data_path),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
