/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vhost-pci port as the agent sees it: the operations of /dev/vhost-pciN (include/vhost-pci/uapi.h)
 * behind a small table, so that tests can put a double in their place, and a private, checked
 * copy of the state page (docs/spec.md, "State").
 *
 * Threads: one. Errors: 0 or -errno; -ENODEV always means that the port is gone (unplugged).
 */
#ifndef VHP_AGENT_PORT_H
#define VHP_AGENT_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "statepage/state.h"
#include "vhost-pci/abi.h"
#include "vhost-pci/uapi.h"

struct port;

struct port_window {
	int fd;			/* the receiver's to close */
	uint64_t size;		/* bytes */
	uint64_t align;		/* largest page size that a mapping can use, bytes */
};

struct port_ops {
	/* -ENOENT, -ESTALE (read the state again), -EAGAIN (an event tells when to try again) */
	int (*window)(struct port *p, uint32_t slot, uint32_t serial, struct port_window *out);
	/* fd -1 takes the eventfd away. The port keeps its own reference to fd. */
	int (*set_kick)(struct port *p, uint32_t signal, int fd);
	int (*set_call)(struct port *p, uint32_t signal, int fd);
	/* 0 once answered; look at c->status then. -ETIMEDOUT when the daemon did not answer. */
	int (*command)(struct port *p, struct vhp_ioc_command *c);
	/* VHP_EV_* since the last call; -EAGAIN when nothing happened. Never blocks. */
	int (*event)(struct port *p, uint32_t *flags);
	/* Gives up the port; the struct is freed. */
	void (*close)(struct port *p);
};

struct port {
	const struct port_ops *ops;
	int fd;				/* for poll; -1: none */
	bool owner;			/* may attach; else only an observer */
	const void *ctrl;		/* the control block, VHP_CTRL_SIZE bytes, read-only */
	struct vhp_ioc_info info;
	char what[64];			/* "/dev/vhost-pci0", for messages */
};

/*
 * Open a port: a path, or "auto" for the first port that is free, or a port's name. owner:
 * false only observes. -ENOENT (no such port), -EBUSY (somebody else owns it), -ENODEV, ...
 */
int port_open(const char *which, bool owner, struct port **out, struct vp_err *e);
void port_close(struct port *p);

/*
 * Copy the state. -EAGAIN: no consistent copy within 100 ms, *s is not usable, try at the next
 * event. -EPROTO: the state contradicts itself, *e says where; the caller takes the link as down.
 * -ENODEV: the port is gone.
 */
int port_read_state(struct port *p, struct vp_state *s, struct vp_err *e);

/* One command with up to 4 arguments. Returns -errno, or the answer's VHP_ST_* (>= 0). value may be NULL. */
int port_command(struct port *p, uint32_t opcode, const uint64_t args[4], unsigned int timeout_ms,
		 uint64_t value[6]);
/* The same with all arguments that there can be. */
int port_command_all(struct port *p, uint32_t opcode, const uint64_t args[VHP_CMD_NARGS], unsigned int timeout_ms,
		     uint64_t value[6]);

#endif
