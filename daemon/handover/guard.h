/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard: a small process beside the daemon, which outlives it for a moment.
 *
 * In fast mode a device VM works in a driver VM's rings. A stock VMM that loses its vhost-user
 * connection goes to work on them itself: QEMU empties the transmit queue, because the link is down.
 * Both at once break it ("id N is not a head!"). So the driver VM's connection must not end before the
 * device VM has let go of the rings, not even when the daemon is killed, crashes, or takes the link
 * away.
 *
 * For each such port (a ward) the guard has a duplicate of that connection, and what it needs to tell
 * the guest. When the daemon has gone, or asks for it, the guard tells the guest, and waits for its word (3
 * s at most). Over shmem it then has the device VM's VMM unmap the windows (unmap.h; 2 s at most). Only then it closes
 * the connection.
 *
 * Where somebody keeps the link for the next daemon (link/keep.h), a ward has a line: a socket with one byte in it,
 * whose other end is in the link's box, and with the daemon. When the daemon has gone the guard waits until nobody has
 * that other end any more: no daemon has come, or none that goes on with the link. Whoever reads the byte has the ward:
 * this guard, which sees it off then, or that of the next daemon.
 *
 * The guard never touches the driver VM's memory, and reads nothing from the driver VM's connection. Main thread
 * only.
 */
#ifndef VP_DAEMON_GUARD_H
#define VP_DAEMON_GUARD_H

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "conf/conf.h"
#include "handover/lastsig.h"
#include "handover/verdict.h"
#include "sys/activation.h"

struct vp_guard;

struct vp_guard_ward {
	uint64_t    id;
	const char *name;    /* for messages, at most 31 characters are used */
	int         driver;  /* connection of the driver VM's front-end; -1: it has gone, there are windows yet */
	int         memfd, recordfd;  /* vp_port_memfd(), vp_port_record_fd() */
	int         line;    /* -1 = nobody keeps the link */
	int         claim;   /* the line of the guard of the daemon before, which may have the ward; -1 = none has */
	struct vp_lastsig_conf signal;
};

/* A line: [0] is for the guard and, as a claim, in the box, [1] keeps it up. -errno. */
int  vp_guard_line(int line[2]);

/*
 * Make the process. Call it while this is the only thread, after the daemon has given up files
 * (isolate.h, stage 4) and before it gives up system calls: the guard gives up its own.
 */
int  vp_guard_start(struct vp_guard **out, const struct vp_conf_daemon *c, struct vp_err *e);
/* Watch for the death of the guard, from the event loop. */
int  vp_guard_watch(struct vp_guard *g, sd_event *event, struct vp_err *e);
/*
 * The daemon ends, and hands over what is still in its care. Returns when the guard has seen to all of
 * it, 6 s at most. Call it after everything that writes to ports. NULL is allowed.
 */
void vp_guard_free(struct vp_guard *g);

/* A number for a ward; never 0. */
uint64_t vp_guard_id(struct vp_guard *g);
/*
 * Guard a ward from now on, or with other fds than before. The fds are duplicated and stay the
 * caller's. -errno, which was logged; -EPIPE: there is no guard any more. With a claim: -ESTALE, the guard before sees
 * it off; or nobody can say.
 */
int  vp_guard_take(struct vp_guard *g, const struct vp_guard_ward *w);
/* The ward's guest has nothing of the driver VM's any more: forget the ward. */
void vp_guard_drop(struct vp_guard *g, uint64_t id);
/* The daemon has done its part for the ward: see it off. */
void vp_guard_see_off(struct vp_guard *g, uint64_t id);

/* Another daemon's guard has all wards: forget them, and end when this daemon does. */
void vp_guard_leave(struct vp_guard *g);
/* Some ward is left to the next daemon: vp_guard_free() does not wait for the guard. */
void vp_guard_lasts(struct vp_guard *g);
/*
 * A hand-over (docs/handover.md): the guards of both daemons have the same wards for a moment, and the verdict says
 * whose they are when a daemon has gone. born: this one is the successor; before vp_guard_take(). heir: this one has a
 * successor, which can decide from now on; the last one counts. NULL for g is allowed.
 */
int vp_guard_born(struct vp_guard *g, const struct vp_verdict *v);
int vp_guard_heir(struct vp_guard *g, const struct vp_verdict *v);

/* For daemon.show; 0 when the guard is gone. */
pid_t vp_guard_pid(const struct vp_guard *g);

/*
 * Where a service manager keeps fds (sys/fdstore.h), the next daemon may have the same ports, and may
 * start before the last daemon's guard is done. It waits for that here, 9 s at most.
 */
void vp_guard_await_last(struct vp_activation *a);
/* There is a port that the next daemon may have. */
void vp_guard_keep(struct vp_guard *g);
/*
 * The same, where the port was handed over (docs/handover.md), with another guard. keep_heir() when the daemon before
 * has ended.
 */
void vp_guard_keep_later(struct vp_guard *g);
void vp_guard_keep_heir(struct vp_guard *g);

#endif
