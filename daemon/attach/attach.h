/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an attachment is to a link: signals that can be wired, and something to show. Its port reaches
 * it through struct vp_port_att_ops. Main thread only.
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
	bool                       heir;       /* restore_hot() follows: no sockets, no eventfds, no wires of its own */
	/* The fds and places of signals changed: wire them anew. */
	void                     (*wires_changed)(void *ctx);
	/* Something that save() or save_hot() writes is about to change, and no port's change tells that. */
	void                     (*touch)(void *ctx);
	/*
	 * A process has gone from the port, which is now offline. It may not have let go of the windows
	 * that it had.
	 */
	void                     (*gone)(void *ctx);
	void                      *ctx;
};

struct vp_attach_ops {
	void (*free)(struct vp_attach *a);
	/* From now on a write to src raises signal i to the guest. -ENOTCONN while there is no guest. */
	int  (*wire)(struct vp_attach *a, unsigned i, int src, struct vp_wire **out);
	/*
	 * An fd that becomes readable when the guest raises signal i. The attachment owns it and nobody
	 * reads it. -1 = none now.
	 */
	int  (*call_fd)(struct vp_attach *a, unsigned i);
	/* Add to o what there is to show. */
	void (*show)(struct vp_attach *a, json_t *o);
	/*
	 * Optional. An eventfd of the attachment's; a write to it raises signal i to the guest. -1 =
	 * none now. Valid until wires_changed. The other end shares the file, so a write may block: for
	 * threads with a supervisor only.
	 */
	int  (*signal_fd)(struct vp_attach *a, unsigned i);
	/*
	 * What it takes to raise signal 0 when this process has gone. *c is VP_LASTSIG_NONE before.
	 * Valid until wires_changed.
	 */
	void (*last_signal)(struct vp_attach *a, struct vp_lastsig_conf *c);
	/*
	 * Optional, straight-through signals: from now on kick and call are the driver VM's own
	 * eventfds of queue q (-1 = none any more). They stay the caller's. Call it only when they are
	 * others than the last time. VP_ATTACH_KICK: kicks reach the guest without a wire. Calls change
	 * over whenever the guest can be told of it. So a wire from call_fd() is needed all the same;
	 * it costs nothing while it is not used.
	 */
	unsigned (*direct)(struct vp_attach *a, unsigned q, int kick, int call);
	/*
	 * Optional. A run has ended, and the device side has not returned all of its requests: it may do them after it
	 * has said that it stopped, and return them in the next run. So it is to be gone before that begins.
	 */
	void (*unclean)(struct vp_attach *a);
	/*
	 * Optional. What the device side knows beyond its rings is saved when an administrator takes the link down, for
	 * which its requests have to come to an end first.
	 */
	bool (*saves)(struct vp_attach *a);
	/*
	 * Optional. QMP= or HotplugBus= have changed: l, the link's configuration, gets those values of next that may
	 * change in place, and the port goes by them. An error leaves what could not be had.
	 */
	int  (*alter)(struct vp_attach *a, struct vp_conf_link *l, const struct vp_conf_link *next, struct vp_err *e);
	/* What the device VM has of it is a PCI device, which is of no use any more once the attachment has gone. */
	bool plugged;
	/*
	 * The device side maps memory of ours as a process does. In a guest it lies in a PCI device instead: the
	 * guest's kernel has no pages of it, and direct I/O on it fails.
	 */
	bool pages;
	/*
	 * For another daemon to go on with (docs/handover.md). at_rest (may be NULL): false
	 * while somebody is to answer. save and restore (may be NULL): the record of a device side (VP_LINK_REC_PEER),
	 * while data threads run. save_hot, restore_hot: all else; the port is as it was. Until go_on() nothing is
	 * done that others see. windows_on_their_way: that may be while its VMM is still asked to give windows or take
	 * them away; the next daemon's attachment hears of the answer.
	 */
	bool (*at_rest)(struct vp_attach *a);
	void (*save)(struct vp_attach *a, struct vp_rec *r);
	int  (*restore)(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e);
	void (*save_hot)(struct vp_attach *a, struct vp_rec *r);
	int  (*restore_hot)(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e);
	void (*go_on)(struct vp_attach *a);
	bool windows_on_their_way;
	/* ? Behind restore_hot(), where the daemon before ended anywhere (link/keep.h). */
	int  (*recover)(struct vp_attach *a, struct vp_err *e);
	/* Instead of free(), where another daemon has it, or will have it: others see nothing of it. NULL: never. */
	void (*leave)(struct vp_attach *a);
};
#define VP_ATTACH_KICK 1u

struct vp_attach {
	const struct vp_attach_ops *ops;
};

/* Fill pc with what the attachment asks of its port. Afterwards make the port, then the attachment. */
void vp_local_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_shmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
/* The keeper (sys/fdstore.h) is to have nothing of that link's; nsig signals. */
void vp_ivshmem_keep_nothing(const char *link, unsigned nsig);
void vp_ivshmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);
void vp_hostdev_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc);

/* Listen, and tell the port when somebody is there. The port outlives the attachment. */
int vp_local_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_shmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
int vp_ivshmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);
/* Endpoint=vhost-user: connect, or listen. */
int vp_hostdev_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e);

#endif
