/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port between a fake attachment and a fake link; the guest is the test, through the control block. Included by one
 * program each; gives static functions.
 */
#ifndef VP_TESTS_PORT_RIG_H
#define VP_TESTS_PORT_RIG_H

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
	uint64_t mapped;              /* address that MAP asked for last */
};

static __attribute__((unused)) int fake_give(void *att, const struct vp_port_window *w, uint32_t *kind,
					     uint64_t *locator, struct vp_err *e)
{
	struct fake *f = att;

	f->gives++;
	f->last_slot = (int)w->slot;
	*kind = VHP_WINDOW_FD;
	*locator = 1000 + w->serial;
	return f->give_result;
}

static __attribute__((unused)) int fake_take(void *att, unsigned slot)
{
	struct fake *f = att;

	f->takes++;
	f->last_slot = (int)slot;
	return f->take_later ? VP_LATER : 0;
}

static __attribute__((unused)) void fake_signal(void *att, unsigned i)
{
	struct fake *f = att;

	assert_int_equal(i, 0);
	f->signals++;
}

static const struct vp_port_att_ops att_ops = { fake_give, fake_take, fake_signal };

static __attribute__((unused)) void on_up(void *ctx)
{
	((struct fake *)ctx)->ups++;
}

static __attribute__((unused)) void on_down(void *ctx)
{
	((struct fake *)ctx)->downs++;
}

static __attribute__((unused)) void on_stopped(void *ctx, unsigned q, const struct vp_port_stop *s)
{
	struct fake *f = ctx;

	f->stops++;
	f->last_q = q;
	f->last = *s;
}

static __attribute__((unused)) void on_released(void *ctx)
{
	((struct fake *)ctx)->releases++;
}

static __attribute__((unused)) uint32_t on_map(void *ctx, uint64_t addr, uint64_t size, bool *covered)
{
	((struct fake *)ctx)->mapped = addr;
	*covered = size == 1;
	return addr == 0x666 ? VHP_ST_REFUSED : VHP_ST_OK;
}

static const struct vp_port_ops ops = {
	.up = on_up, .down = on_down, .queue_stopped = on_stopped, .released = on_released,
	.map = on_map,
};

static __attribute__((unused)) int setup_with(void **state, bool slow)
{
	struct fake *f = calloc(1, sizeof(*f));
	struct vp_port_conf pc = {
		.name = "test",
		.attachment = VHP_ATTACHMENT_LOCAL,
		.max_queues = 4,
		.queue_doorbell = 1,
		.slow_take = slow,
		.answer_timeout_us = 800000,
		.driver_vm = "a",
		.device_vm = "b",
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

static __attribute__((unused)) int setup(void **state)
{
	return setup_with(state, false);
}

static __attribute__((unused)) int teardown(void **state)
{
	struct fake *f = *state;

	vp_port_free(f->p);
	assert_int_equal(le32toh(f->c->state.link_reason), VHP_REASON_DAEMON);
	munmap((void *)f->c, VHP_CTRL_SIZE);
	sd_event_unref(f->event);
	free(f);
	return 0;
}

static __attribute__((unused)) void link_it(struct fake *f)
{
	vp_port_set_link(f->p, 1, VHP_MODE_FAST, 2, 0x1f, 0x0f);
}

static __attribute__((unused)) uint32_t command(struct fake *f, uint32_t op, uint64_t a, uint64_t b, uint64_t c,
						uint64_t d)
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

static __attribute__((unused)) bool answered(struct fake *f)
{
	return le32toh(f->c->state.answer.seq) == f->seq;
}

static __attribute__((unused)) uint32_t attach(struct fake *f)
{
	return command(f, VHP_CMD_ATTACH, VHP_ABI_VERSION, 0xff, 0, 0);
}

static __attribute__((unused)) uint32_t reason(struct fake *f)
{
	return le32toh(f->c->state.link_reason);
}

static __attribute__((unused)) uint32_t regions_gen(struct fake *f)
{
	return le32toh(f->c->state.regions_generation);
}

static __attribute__((unused)) int memory(struct fake *f, uint64_t addr)
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

static __attribute__((unused)) void bring_up(struct fake *f)
{
	link_it(f);
	vp_port_online(f->p, true);
	assert_int_equal(attach(f), VHP_ST_OK);
	vp_port_set_driver(f->p, VP_PORT_DRIVER_RUNS, 0x3);
	assert_int_equal(memory(f, 0x1000), 0);
}

static __attribute__((unused)) void run_for(struct fake *f, uint64_t us)
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

#endif
