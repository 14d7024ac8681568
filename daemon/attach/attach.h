/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an attachment is to a link: signals that can be wired, and something to show. Its
 * port reaches it through struct vp_port_att_ops. Main thread only.
 */
#ifndef VP_DAEMON_ATTACH_H
#define VP_DAEMON_ATTACH_H

#include <jansson.h>

#include "conf/conf.h"
#include "sys/fds.h"
#include "threads/forward.h"
#include "handover/lastsig.h"
#include "port/port.h"

struct vp_daemon;
struct vp_attach;

struct vp_attach_conf {
	struct vp_daemon          *d;
	struct vp_forward         *f;
	const struct vp_conf_link *link;
	const char                *name;       /* "link a, device side": for messages; not owned */
	uint64_t                   who;        /* the device VM, for base/blame.h */
	/* Fds and places of signals changed: wire them anew. */
	void                     (*wires_changed)(void *ctx);
	/* A process has gone from the port (which is offline), and may not have let go of the windows that it had. */
	void                     (*gone)(void *ctx);
	void                      *ctx;
};

struct vp_attach_ops {
	void (*free)(struct vp_attach *a);
	/* Have writes to src raise signal i to the guest. -ENOTCONN while there is no guest. */
	int  (*wire)(struct vp_attach *a, unsigned i, int src, struct vp_wire **out);
	/* Becomes readable when the guest raises signal i; stays the attachment's, never read; -1 = none now. */
	int  (*call_fd)(struct vp_attach *a, unsigned i);
	/* Adds what there is to say to o. */
	void (*show)(struct vp_attach *a, json_t *o);
	/*
	 * Optional. An eventfd of the attachment's: writing it raises signal i to the guest. -1 = none now. Valid until wires_changed.
	 * The other end shares the file: a write may block (threads with a supervisor only).
	 */
	int  (*signal_fd)(struct vp_attach *a, unsigned i);
	/* What it takes to raise signal 0 when this process has gone; *c is VP_LASTSIG_NONE before. Valid until wires_changed. */
	void (*last_signal)(struct vp_attach *a, struct vp_lastsig_conf *c);
	/*
	 * Optional, straight-through signals: from now on kick and call are the driver VM's own eventfds of queue q (-1 = none any
	 * more); they stay the caller's. Only to be called when they are others than the last time. VP_ATTACH_KICK: kicks
	 * reach the guest without a wire. Calls change over whenever the guest can be told of it: a wire from call_fd() is needed all the same,
	 * and costs nothing when it is not used.
	 */
	unsigned (*direct)(struct vp_attach *a, unsigned q, int kick, int call);
	/*
	 * Optional. A run has ended, and the device side has not returned all of its requests: it may do them after it has said that it
	 * stopped, and return them in the next run. So it is to be gone before that begins.
	 */
	void (*unclean)(struct vp_attach *a);
};
#define VP_ATTACH_KICK 1u

struct vp_attach {
	const struct vp_attach_ops *ops;
};

/* Fill pc with what the attachment asks of its port. Then make the port, then the attachment. */
void vp_local_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_shmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_ivshmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_hostdev_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);

/* Listens; the port is told when somebody is there. The port outlives the attachment. */
int vp_local_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_shmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_ivshmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
/* Endpoint=vhost-user: connects, or listens. */
int vp_hostdev_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);

#endif
