/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The holder: a process beside a daemon that no service manager keeps fds for (sys/fdstore.h). It keeps them, for the
 * next daemon, for a bounded time behind the end of this one (docs/handover.md). It belongs to one daemon at a time.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_HOLDER_H
#define VP_DAEMON_HOLDER_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "conf/conf.h"
#include "sys/activation.h"

/*
 * Find the holder of the daemon before us, which is ours then, with all that it has (into a); or make one. While this
 * is the only thread, when it has its user, and before it gives up system calls. seconds: how long it keeps what it has
 * without a daemon; 0: no holder is wanted, and one that is there ends. -EBUSY: it belongs to another daemon that runs;
 * -EPERM: to another user; -errno: it cannot be made.
 */
int  vp_holder_start(const struct vp_conf_daemon *c, unsigned seconds, struct vp_activation *a, struct vp_err *e);
/* Its death is logged, and the daemon goes on. */
int  vp_holder_watch(sd_event *event, struct vp_err *e);
/* This daemon ends; what the holder has stays with it. */
void vp_holder_end(void);
/* The connection, for another process that is the daemon now; -1 = there is no holder. */
int  vp_holder_fd(void);
int  vp_holder_adopt(sd_event *event, int fd, struct vp_err *e);

#endif
