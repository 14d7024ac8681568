/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an attachment is to a link: signals that can be wired, and something to show. Its
 * port reaches it through struct vp_port_att_ops. Main thread only.
 */
#ifndef VP_DAEMON_ATTACH_H
#define VP_DAEMON_ATTACH_H

#include <jansson.h>

#include "conf.h"
#include "forward.h"
#include "port.h"

struct vp_daemon;
struct vp_attach;

struct vp_attach_conf {
	struct vp_daemon          *d;
	struct vp_forward         *f;
	const struct vp_conf_link *link;
	const char                *name;       /* "link a, device side": for messages; not owned */
	/* Fds and places of signals changed: wire them anew. */
	void                     (*wires_changed)(void *ctx);
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
	 * Optional, straight-through signals: kick and call are the driver VM's own eventfds (-1 = none any more) for queue q. What it
	 * takes over needs no wire: flags of VP_ATTACH_KICK and _CALL.
	 */
	unsigned (*direct)(struct vp_attach *a, unsigned q, int kick, int call);
};
#define VP_ATTACH_KICK 1u
#define VP_ATTACH_CALL 2u

struct vp_attach {
	const struct vp_attach_ops *ops;
};

/* Fill pc with what the attachment asks of its port. Then make the port, then the attachment. */
void vp_local_port_conf(const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_shmem_port_conf(const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_ivshmem_port_conf(const struct vp_conf_link *l, struct vp_port_conf *pc);

/* Listens; the port is told when somebody is there. The port outlives the attachment. */
int vp_local_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_shmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_ivshmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);

/* An eventfd of ours, non-blocking. -errno. */
int vp_eventfd_new(int *fd);
/* Raise it. */
void vp_eventfd_raise(int fd);

#endif
