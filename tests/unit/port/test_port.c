/* SPDX-License-Identifier: BSD-3-Clause */
/* A port between a fake attachment and a fake link; the guest is this test, through the control block. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "port/port.h"

struct fake {
	sd_event *event;
	struct vp_port *p;
	volatile struct vhp_abi_control *c;
	int give_result;              /* what give answers */
	unsigned gives, takes, signals, ups, downs, stops, releases;
	int last_slot;
	bool take_later;
	struct vp_port_stop last;
	unsigned last_q;
	uint32_t seq;
};

static int fake_give(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e)
{
	struct fake *f = att;

	f->gives++;
	f->last_slot = (int)w->slot;
	*kind = VHP_WINDOW_FD;
	*locator = 1000 + w->serial;
	return f->give_result;
}

static int fake_take(void *att, unsigned slot)
{
	struct fake *f = att;

	f->takes++;
	f->last_slot = (int)slot;
	return f->take_later ? VP_LATER : 0;
}

static void fake_signal(void *att, unsigned i)
{
	struct fake *f = att;

	assert_int_equal(i, 0);
	f->signals++;
}

static const struct vp_port_att_ops att_ops = { fake_give, fake_take, fake_signal };

static void on_up(void *ctx)
{
	((struct fake *)ctx)->ups++;
}

static void on_down(void *ctx)
{
	((struct fake *)ctx)->downs++;
}

static void on_stopped(void *ctx, unsigned q, const struct vp_port_stop *s)
{
	struct fake *f = ctx;

	f->stops++;
	f->last_q = q;
	f->last = *s;
}

static void on_released(void *ctx)
{
	((struct fake *)ctx)->releases++;
}

static const struct vp_port_ops ops = { .up = on_up, .down = on_down, .queue_stopped = on_stopped, .released = on_released };

static int setup_with(void **state, bool slow)
{
	struct fake *f = calloc(1, sizeof(*f));
	struct vp_port_conf pc = {
		.name = "test", .attachment = VHP_ATTACHMENT_LOCAL, .max_queues = 4, .queue_doorbell = 1, .slow_take = slow,
		.answer_timeout_us = 800000, .driver_vm = "a", .device_vm = "b",
	};
	struct vp_err e;

	assert_int_equal(sd_event_new(&f->event), 0);
	assert_int_equal(vp_port_new(&f->p, f->event, &pc, &ops, f, &e), 0);
	vp_port_set_attachment(f->p, &att_ops, f);
	f->c = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vp_port_memfd(f->p, NULL), 0);
	assert_ptr_not_equal(f->c, MAP_FAILED);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false);
}

static int teardown(void **state)
{
	struct fake *f = *state;

	vp_port_free(f->p);
	assert_int_equal(le32toh(f->c->state.link_reason), VHP_REASON_DAEMON);
	munmap((void *)f->c, VHP_CTRL_SIZE);
	sd_event_unref(f->event);
	free(f);
	return 0;
}

static void link_it(struct fake *f)
{
	vp_port_set_link(f->p, 1, VHP_MODE_FAST, 2, 0x1f, 0x0f);
}

static uint32_t command(struct fake *f, uint32_t op, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	volatile struct vhp_abi_command *m = &f->c->command;

	m->args[0] = htole64(a);
	m->args[1] = htole64(b);
	m->args[2] = htole64(c);
	m->args[3] = htole64(d);
	m->opcode = htole32(op);
	__atomic_store_n(&m->seq, htole32(++f->seq), __ATOMIC_RELEASE);
	vp_port_command(f->p);
	return le32toh(f->c->state.answer.status);
}

static bool answered(struct fake *f)
{
	return le32toh(f->c->state.answer.seq) == f->seq;
}

static uint32_t attach(struct fake *f)
{
	return command(f, VHP_CMD_ATTACH, VHP_ABI_VERSION, 0xff, 0, 0);
}

static uint32_t reason(struct fake *f)
{
	return le32toh(f->c->state.link_reason);
}

static uint32_t regions_gen(struct fake *f)
{
	return le32toh(f->c->state.regions_generation);
}

static int memory(struct fake *f, uint64_t addr)
{
	struct vp_port_region r = { .addr = addr, .size = 0x200000, .flags = 3 };
	struct vp_err e = { 0 };
	int ret;

	r.fd = memfd_create("driver", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(r.fd, 0x200000), 0);
	ret = vp_port_set_memory(f->p, &r, 1, &e);
	close(r.fd);
	return ret;
}

static void bring_up(struct fake *f)
{
	link_it(f);
	vp_port_online(f->p, true);
	assert_int_equal(attach(f), VHP_ST_OK);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 0x3);
	assert_int_equal(memory(f, 0x1000), 0);
}

static void run_for(struct fake *f, uint64_t us)
{
	uint64_t end, now;

	sd_event_now(f->event, CLOCK_MONOTONIC, &now);
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	end = (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000 + us;
	do {
		sd_event_run(f->event, 5000);
		clock_gettime(CLOCK_MONOTONIC, &ts);
		now = (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
	} while (now < end);
}

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
	assert_int_equal(command(f, VHP_CMD_MAP, 0, 1, 0, 0), VHP_ST_UNKNOWN);
	assert_int_equal(command(f, ~0u, 0, 0, 0, 0), VHP_ST_UNKNOWN);
	assert_int_equal(attach(f), VHP_ST_OK);
	/* The same seq again is not executed again. */
	f->signals = 0;
	vp_port_command(f->p);
	assert_int_equal(f->signals, 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f) + 1, 0, 0, 0), VHP_ST_INVALID);
	assert_int_equal(command(f, VHP_CMD_SYNC, regions_gen(f), 0, 0, 0), VHP_ST_OK);
}

static void test_runs(void **state)
{
	struct fake *f = *state;
	struct vp_port_ring r = { .desc = 0x1000, .avail = 0x2000, .used = 0x3000, .size = 64, .base = 5, .enabled = true };

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
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0, 1, 9, 4), VHP_ST_INVALID);
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
	struct vp_port_region r[3] = { { .size = 0x200000, .flags = 3 }, { .addr = 1ull << 32, .size = 0x200000, .flags = 3 },
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
		T(test_header), T(test_reasons), T(test_epoch), T(test_write_only), T(test_commands), T(test_runs),
		T(test_falls_gently), T(test_cut),
		T(test_sync), T(test_next_run_waits), T(test_revived), T(test_lent_memory), T(test_cancelled_give), T(test_detach_waits), T(test_offline), T(test_bad_memory), T(test_goodbye), T(test_kept_by_another_version),
		cmocka_unit_test_setup_teardown(test_slow_take, setup_slow, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
