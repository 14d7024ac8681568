/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doubles for the agent's tests: a port whose control block lies in plain memory and whose
 * windows are memfds, with the few reflexes of a daemon; and a data path that writes down what
 * it is told.
 */
#ifndef TEST_AGENT_DOUBLE_H
#define TEST_AGENT_DOUBLE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "agent.h"
#include "datapath.h"
#include "port.h"

#define BIT(n) (UINT64_C(1) << (n))
#define F_V1 BIT(32)

struct sent {
	uint32_t opcode;
	uint64_t args[VHP_CMD_NARGS];
};

struct fake_port {
	struct port port;
	struct vhp_abi_control *c;
	int win_fd[VHP_MAX_WINDOWS];	/* -1: VHP_IOC_WINDOW says -EAGAIN */
	int kick[VHP_MAX_SIGNALS], call[VHP_MAX_SIGNALS];	/* as attached, -1 none */
	struct sent sent[256];
	unsigned int nsent;
	uint32_t attach_status;		/* what ATTACH is answered */
	uint32_t backend_status;	/* what BACKEND is answered */
	int command_rc;			/* -errno for all commands, 0 = answer */
	bool mute_stop;			/* QUEUE_STOPPED is answered but the queue stays as it is */
	unsigned int windows_given;
};

void fake_init(struct fake_port *f, unsigned int queues);
void fake_free(struct fake_port *f);
/* Around changes of the state page. */
struct vhp_abi_state *fake_begin(struct fake_port *f);
void fake_end(struct fake_port *f);
/* A window of size bytes in slot (fd: to be used and not closed, -1: make one), with a new serial; READY. */
void fake_window(struct fake_port *f, unsigned int slot, uint64_t size, int fd);
/* Append a region. */
void fake_region(struct fake_port *f, uint64_t addr, uint64_t size, unsigned int window, uint64_t offset);
/* Queue q: rings of n entries at link address at (desc, avail, used in one page each), a new run. */
void fake_queue(struct fake_port *f, unsigned int q, uint64_t at, uint32_t n, uint32_t base);
/* A net link of n queues with one window of 1 MiB at link address 64 KiB, up and started; call after fake_init. */
void fake_up(struct fake_port *f, unsigned int n);
/* Number of commands with this opcode; *last (may be NULL) gets the last one. */
unsigned int fake_count(const struct fake_port *f, uint32_t opcode, struct sent *last);

struct fake_dp {
	struct datapath dp;
	struct datapath_ops ops;
	bool ready, carrier, needs_map;
	uint64_t features[2];
	unsigned int max_queues;
	int fail_start, fail_stop, fail_mem;	/* -errno of the next such call */
	bool running[VHP_MAX_QUEUES], enabled[VHP_MAX_QUEUES];
	struct dp_queue q[VHP_MAX_QUEUES];
	uint32_t base[VHP_MAX_QUEUES];		/* what stop says */
	const struct memmap *mem;
	uint64_t configured[2];
	unsigned int starts, stops, mems, resets, configs;
	uint64_t broken[2];			/* reported by the next handle */
	bool lost;				/* the next handle says so */
	struct dp_desc desc;			/* what it says that it is, once describe is in ops */
	bool changed;
	unsigned int describes, sets;
	uint32_t set_off, set_len;
	uint8_t set_byte;
};

void fake_dp_init(struct fake_dp *d);
/* It serves any device, and describes itself as d->desc. */
void fake_dp_any(struct fake_dp *d);

#endif
