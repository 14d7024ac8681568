/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The links of the configuration, when the daemon starts. Each takes a while, for its sockets are files, and there may
 * be thousands: they are made from the event loop, a few at a time, and whoever connects to one that is there is served
 * in between. Nobody can ask for anything else meanwhile: the control socket comes when all links are there.
 */
#ifndef VP_DAEMON_BEGIN_H
#define VP_DAEMON_BEGIN_H

#include "base/err.h"

struct vp_begin;
struct vp_daemon;

/*
 * d->links has at most links of the daemon before (keep.h). d->conf stays as it is until done(arg) is called, once,
 * from the event loop; it may free *out, which is the caller's. A link that cannot be made is logged and does not keep
 * the others down.
 */
int vp_begin_new(struct vp_begin **out, struct vp_daemon *d, void (*done)(void *arg), void *arg, struct vp_err *e);
/* Stops, when not all are there yet. NULL is allowed. */
void vp_begin_free(struct vp_begin *b);

#endif
