/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A view: an immutable list of rings that a lane works on with the relay. It takes what the drivers of its sources send
 * to its receiver; without a receiver, as with an unplugged cable, it drains them and counts what they sent.
 */
#ifndef VP_DAEMON_LINK_VIEW_H
#define VP_DAEMON_LINK_VIEW_H

#include "link/lane.h"

struct vp_view {
	struct vp_work   work;
	struct vp_queue *dst;     /* NULL = nobody receives: drain and count */
	bool             lazy;    /* a driver that does not kick is not polled: nobody is in a hurry to drop */
	unsigned         n;
	struct {
		struct vp_queue *rq;
		int  kick_fd;     /* -1 = the driver does not kick: never sleep */
		bool drop;        /* ring disabled: take and discard */
	} src[];
};

/* Room for so many sources, none there yet. It is freed when it was withdrawn, or by free(). NULL: no memory. */
struct vp_view *vp_view_new(unsigned sources);
/* Lane i has a job and no work, and may wait for as many fds as v has sources. */
void vp_view_publish(struct vp_lanes *ls, unsigned i, struct vp_view *v);
/* The view that lane i works on, NULL = none: its work is a view, if it has any. */
struct vp_view *vp_view_of(const struct vp_lanes *ls, unsigned i);

bool vp_view_uses(const struct vp_view *v, const struct vp_queue *q);
/* Either may be NULL. */
bool vp_view_same(const struct vp_view *a, const struct vp_view *b);

#endif
