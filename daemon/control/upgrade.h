/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An upgrade without a restart (docs/handover.md): a successor is started, and takes over all sockets, sessions and
 * rings as they are. Until it has, this daemon can go on. Main thread.
 */
#ifndef VP_DAEMON_UPGRADE_H
#define VP_DAEMON_UPGRADE_H

#include <stdint.h>

#include "base/err.h"

struct vp_daemon;

/*
 * Start the program at path ("" = our own file) as successor. 0: it starts; who asked is answered later
 * (vp_control_answer()), by it or, when it cannot, by us. -EOPNOTSUPP: see vp_links_can_hand_over(); -EBUSY: a
 * successor starts already. Nothing has happened then.
 */
int vp_upgrade_begin(struct vp_daemon *d, const char *path, struct vp_err *e);
/* The daemon ends: no successor any more. */
void vp_upgrade_end(struct vp_daemon *d);

/* The successor, with its threads started and paused. Get the first part of the records. */
struct vp_taken;
int  vp_upgrade_receive(struct vp_taken **out, struct vp_daemon *d, struct vp_err *e);
/* Its links, into d->links, which has none. */
int  vp_upgrade_links(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e);
/* Get the second part: from here on everything stands still. What the links do, and the sockets of the control. */
int  vp_upgrade_rest(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e);
int  vp_upgrade_control(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e);
/*
 * From here on we are the daemon, and threads run. -ECANCELED: the other one goes on. t is freed, with the fds that
 * nobody wanted. For how long everything stood still.
 */
int  vp_upgrade_commit(struct vp_taken *t, struct vp_daemon *d, uint64_t *stall_us);
/* Who asked for it hears that it is done, and how many links that have changed cannot be set up. */
void vp_upgrade_answer(struct vp_daemon *d, uint64_t stall_us, unsigned failed);

#endif
