/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libvhostpci against a scripted daemon on the local attachment (include/vhost-pci/local.h): greetings that go wrong,
 * refusals, silence, state pages that make no sense, windows that come late or never. After each case no fd is left.
 */
#include "scripted.h"

static void open_fails(int want, const char *what)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p = (void *)1;

	assert_int_equal(vhp_open(&p, d.path, NULL, &e), want);
	assert_null(p);
	assert_int_equal(e.code, want);
	if (!strstr(e.msg, what))
		fail_msg("\"%s\" does not say \"%s\"", e.msg, what);
}

/* ---- cases ------------------------------------------------------------------------------------ */

static void test_greetings(void **state)
{
	static const struct {
		enum greeting g;
		int want;
		const char *what;
	} t[] = {
		{ NOTHING, -ETIMEDOUT, "greeting" },	 { CLOSES, -ENODEV, "closed" },
		{ HALF, -EPROTO, "incomplete" },	 { OTHER_VERSION, -EPROTO, "version" },
		{ NO_FD, -EPROTO, "greeting" },		 { SMALL, -EPROTO, "too small" },
		{ NO_HELLO, -EPROTO, "control memory" }, { REFUSES, -EACCES, "refuses" },
		{ NFDS_WRONG, -EPROTO, "incomplete" },
	};

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		daemon_start(t[i].g);
		open_fails(t[i].want, t[i].what);
		daemon_end();
	}
	/* More fds than there are signals, and fds of messages that have none: closed. */
	daemon_start(SURPLUS_FDS);
	vhp_close(opened());
	assert_int_equal(d.opcode, VHP_CMD_DETACH);
	daemon_end();
}

static void test_header(void **state)
{
	daemon_start(WELL);
	d.c->header.magic[0] = 'X';
	open_fails(-ENODEV, "VHOSTPCI");
	daemon_end();
	daemon_start(WELL);
	d.c->header.abi_version = 0x70000;
	open_fails(-EPROTO, "ABI 7.0");
	daemon_end();
}

static void test_arguments(void **state)
{
	struct vhp_params params = { .size = 3 };
	struct vhp_error e = { 0 };
	struct vhp_port *p;
	char path[200];

	assert_int_equal(vhp_open(&p, "unix:/nowhere", &params, &e), -EINVAL);
	assert_int_equal(vhp_open(&p, "unix:/nowhere", NULL, NULL), -ENOENT);
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	memcpy(path, "unix:", 5);
	assert_int_equal(vhp_open(&p, path, NULL, &e), -ENAMETOOLONG);
	assert_true(vhp_open(&p, "/dev/null/vhost-pci0", NULL, &e) < 0);
	vhp_close(NULL);
}

static void test_attach_refused(void **state)
{
	static const struct {
		uint32_t status;
		int want;
		const char *what;
	} t[] = {
		{ VHP_ST_FEATURES, -EOPNOTSUPP, "0x70003" },
		{ VHP_ST_VERSION, -EPROTO, "ABI 7.3" },
		{ VHP_ST_DEVICE_TYPE, -EOPNOTSUPP, "458755" },
		{ VHP_ST_POLICY, -EACCES, "policy" },
		{ 99, -EACCES, "unknown" },
	};

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		daemon_start(WELL);
		d.status = t[i].status;
		d.value = 0x70003;
		open_fails(t[i].want, t[i].what);
		daemon_end();
	}
}

static void test_cut_in_a_command(void **state)
{
	daemon_start(WELL);
	d.hangs_up = true;
	open_fails(-ENODEV, "closed");
	daemon_end();
}

static void test_port_goes(void **state)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	daemon_start(WELL);
	p = opened();
	assert_int_equal(vhp_update(p, &e), 0);
	shutdown(d.sock, SHUT_RDWR);
	assert_int_equal(vhp_update(p, &e), -ENODEV);
	assert_int_equal(vhp_update(p, &e), -ENODEV); /* for good */
	/* Nobody answers DETACH, and nobody waits for the answer. */
	vhp_close(p);
	daemon_end();
}

/* A link with nothing in its queues, over the pool. */
static void link_up(void)
{
	begin();
	d.c->state.link_status = VHP_LINK_UP;
	d.c->state.link_reason = VHP_REASON_NONE;
	d.c->state.mode = VHP_MODE_COPY;
	d.c->state.link_epoch = 7;
	d.c->state.nwindows = d.c->state.nregions = 1;
	d.c->state.windows[0] = (struct vhp_abi_window){ .size = 0x10000,
							 .locator = VHP_CTRL_POOL_OFF,
							 .serial = 1,
							 .kind = VHP_WINDOW_POOL,
							 .flags = VHP_WINDOW_READY };
	d.c->state.regions[0] = (struct vhp_abi_region){ .addr = 0x200000,
							 .size = 0x10000,
							 .flags = VHP_REGION_READ | VHP_REGION_WRITE };
	d.c->state.regions_generation++;
	d.c->state.features[0] = 1ull << 32;
	d.c->state.config_size = 12;
	memcpy(d.c->state.config, "\x02\x00\x00\x00\x00\x05\x01\x00\x01\x00\xdc\x05", 12);
	d.c->state.offered_features[0] = 1ull << 3;
	commit();
}

static void set_queue(unsigned q, uint64_t desc, uint32_t size, uint32_t flags, uint32_t run)
{
	begin();
	d.c->state.nqueues = 2;
	d.c->state.queues[q] = (struct vhp_abi_queue){
		.desc_addr = desc,
		.avail_addr = 0x204000,
		.used_addr = 0x206000,
		.size = size,
		.flags = flags,
		.run = run,
		.kick_signal = 1 + q,
		.doorbell = 1 + q,
	};
	commit();
}

static void test_state_pages(void **state)
{
	struct vhp_port_info info;
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	daemon_start(WELL);
	p = opened();
	assert_int_equal(vhp_update(p, &e), 0);
	vhp_port_info(p, &info);
	assert_string_equal(info.name, "scripted");
	assert_string_equal(info.reason, "the driver VM is not there");
	link_up();
	assert_int_equal(vhp_update(p, &e), 1);
	assert_int_equal(d.opcode, VHP_CMD_SYNC);
	assert_int_equal(d.arg[0], 1);
	vhp_port_info(p, &info);
	assert_true(info.up && info.epoch == 7 && info.mac[5] == 5 && info.mtu == 1500 && info.regions == 1 &&
		    info.max_pairs == 1);
	assert_string_equal(info.mode, "copy");

	/* What makes no sense is a link that is down, and says so; the next good page brings it back. */
	begin();
	d.c->state.regions[0].size = 0x20000;
	commit();
	assert_int_equal(vhp_update(p, &e), -EPROTO);
	vhp_port_info(p, &info);
	assert_false(info.up);
	link_up();
	assert_int_equal(vhp_update(p, &e), 1);

	/* Half written: as it was, until it is whole. */
	begin();
	assert_int_equal(vhp_update(p, &e), 1);
	commit();
	assert_int_equal(vhp_update(p, &e), 1);

	/* A writer that is late with the answer to a stop has cut us: attached again, without being asked. */
	begin();
	d.c->state.flags = 0;
	d.c->state.link_status = VHP_LINK_DOWN;
	d.c->state.link_reason = VHP_REASON_TIMEOUT;
	commit();
	d.opcode = 0;
	assert_int_equal(vhp_update(p, &e), 0);
	assert_int_equal(d.opcode, VHP_CMD_ATTACH);
	assert_true(d.c->state.flags & VHP_STATE_ATTACHED);
	vhp_close(p);
	daemon_end();
}

/* One daemon goes, another takes the port over. */
static void test_daemon_restarts(void **state)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	daemon_start(WELL);
	p = opened();
	link_up();
	assert_int_equal(vhp_update(p, &e), 1);
	begin();
	d.c->state.link_status = VHP_LINK_DOWN;
	d.c->state.link_reason = VHP_REASON_DAEMON;
	d.c->state.nregions = 0;
	d.c->state.regions_generation++;
	commit();
	d.opcode = 0;
	assert_int_equal(vhp_update(p, &e), 0);
	assert_int_equal(d.opcode, VHP_CMD_SYNC);
	assert_int_equal(d.arg[0], d.c->state.regions_generation);
	/* Nobody is there to be asked. */
	begin();
	d.c->state.flags = 0;
	commit();
	d.opcode = 0;
	assert_int_equal(vhp_update(p, &e), 0);
	assert_int_equal(d.opcode, 0);
	begin();
	d.c->state.link_reason = VHP_REASON_NOT_ATTACHED;
	commit();
	assert_int_equal(vhp_update(p, &e), 0);
	assert_int_equal(d.opcode, VHP_CMD_ATTACH);
	vhp_close(p);
	daemon_end();
}

static void test_queues(void **state)
{
	struct vhp_counters c;
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	daemon_start(WELL);
	p = opened();
	link_up();
	set_queue(1, 0x200000, 256, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED, 1);
	assert_int_equal(vhp_update(p, &e), 1);
	/* To be stopped: answered with where it stood. */
	set_queue(1, 0x200000, 256, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED | VHP_QUEUE_STOP, 1);
	assert_int_equal(vhp_update(p, &e), 1);
	assert_int_equal(d.opcode, VHP_CMD_QUEUE_STOPPED);
	assert_true(d.arg[0] == 1 && d.arg[1] == 1 && d.arg[2] == 0 && d.arg[3] == 0);
	/* Rings that the driver VM made up: size, place. That queue is reported broken, the link stays. */
	for (unsigned k = 0; k < 3; k++) {
		d.opcode = 0;
		set_queue(1,
			  k == 0   ? 0x200000
			  : k == 1 ? 0x1000
				   : 0x200008,
			  k == 0 ? 100 : 256, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED, 2 + k);
		assert_int_equal(vhp_update(p, &e), 1);
		assert_int_equal(d.opcode, VHP_CMD_QUEUE_STOPPED);
		assert_int_equal(d.arg[1], 2 + k);
		assert_true(d.arg[3] & VHP_STOPPED_F_BROKEN);
	}
	/* A started one whose memory goes: broken too, and not looked at any more. */
	set_queue(1, 0x200000, 256, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED, 9);
	assert_int_equal(vhp_update(p, &e), 1);
	begin();
	d.c->state.regions[0].addr = 0x900000;
	d.c->state.regions_generation++;
	commit();
	assert_int_equal(vhp_update(p, &e), 1);
	assert_int_equal(vhp_pair_info(p, 0, &c), 0);
	assert_non_null(c.recv_broken);
	/* Ended by the daemon's refusal to answer: closing does not hang for ever. */
	vhp_close(p);
	assert_int_equal(d.opcode, VHP_CMD_DETACH);
	daemon_end();
}

static void test_windows(void **state)
{
	int fd = memfd_create("window", 0), other = memfd_create("short", 0);
	struct vhp_port_info info;
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	assert_int_equal(ftruncate(fd, 0x30000) | ftruncate(other, 0x1000), 0);
	daemon_start(WELL);
	p = opened();
	link_up();
	begin();
	d.c->state.windows[0].kind = VHP_WINDOW_FD;
	d.c->state.windows[0].locator = 5;
	commit();
	assert_int_equal(vhp_update(p, &e), 0); /* its fd is on its way */
	vhp_port_info(p, &info);
	assert_string_equal(info.reason, "a window is missing");
	say(VHP_LOCAL_WINDOW_GONE, 4, 0, 0, 0, 0, NULL, 0); /* never there */
	say(VHP_LOCAL_WINDOW, 4, 0, 0x1000, 0, 0, NULL, 0);   /* without its fd */
	assert_int_equal(vhp_update(p, &e), 0);
	say(VHP_LOCAL_WINDOW, 5, 0x10000, 0x10000, 0, 0, &fd, 1);
	assert_int_equal(vhp_update(p, &e), 1);
	/* Another one in its slot, whose memory is shorter than it is said to be. */
	begin();
	d.c->state.windows[0].locator = 6;
	d.c->state.windows[0].serial = 2;
	d.c->state.regions_generation++;
	commit();
	say(VHP_LOCAL_WINDOW, 6, 0, 0x10000, 0, 0, &other, 1);
	assert_true(vhp_update(p, &e) < 0);
	vhp_port_info(p, &info);
	assert_false(info.up);
	/* A kind that this attachment does not have. */
	begin();
	d.c->state.windows[0].kind = VHP_WINDOW_SHMEM;
	d.c->state.windows[0].serial = 3;
	d.c->state.regions_generation++;
	commit();
	assert_int_equal(vhp_update(p, &e), -EPROTO);
	link_up();
	assert_int_equal(vhp_update(p, &e), 1);
	say(VHP_LOCAL_WINDOW_GONE, 5, 0, 0, 0, 0, NULL, 0);
	say(VHP_LOCAL_DOORBELLS, 1, 1, 0, 0, 0, NULL, 0); /* nobody hears it any more */
	assert_int_equal(vhp_update(p, &e), 1);
	/* A message that breaks off. */
	d.greeting = HALF;
	say(VHP_LOCAL_READY, 0, 0, 0, 0, 0, NULL, 0);
	shutdown(d.sock, SHUT_WR);
	assert_int_equal(vhp_update(p, &e), -ENODEV);
	vhp_close(p);
	daemon_end();
	close(fd);
	close(other);
}

int main(void)
{
	const struct CMUnitTest t[] = {
		cmocka_unit_test(test_greetings),	 cmocka_unit_test(test_header),
		cmocka_unit_test(test_arguments),	 cmocka_unit_test(test_attach_refused),
		cmocka_unit_test(test_cut_in_a_command), cmocka_unit_test(test_port_goes),
		cmocka_unit_test(test_state_pages),	 cmocka_unit_test(test_daemon_restarts),
		cmocka_unit_test(test_queues),		 cmocka_unit_test(test_windows),
	};

	return cmocka_run_group_tests(t, NULL, NULL);
}
