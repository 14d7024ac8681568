/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An fd in an epoll set. epoll keeps an item for as long as the *file* is open anywhere, and the other
 * end of an eventfd or a socket has it open, too. So an fd that is closed before it is taken out of the
 * set leaves an item behind that nobody can take out any more. Whoever gets its number next is then
 * taken out in its place.
 *
 * Neither can happen here: a set only ever gets a duplicate that nobody else has, and loses it before
 * the duplicate is closed. It does not matter when and by whom the fd itself is closed or replaced.
 *
 * This is the only place that calls epoll_ctl(), as daemon/sys/source.h is for sd-event
 * (tests/unit/base/check_sources.py).
 */
#ifndef VP_BASE_WATCH_H
#define VP_BASE_WATCH_H

#include <stdint.h>

struct vp_watch;   /* NULL = nothing is watched */

/*
 * From now on the set reports data (struct epoll_event, data.u64) when events (EPOLL*) come. fd stays
 * the caller's. -errno: -EPERM it cannot be waited for, -EBADF, -EMFILE, -ENOSPC, -ENOMEM; *out is NULL
 * then. The set has to outlive the watch.
 */
int  vp_watch_add(struct vp_watch **out, int epfd, int fd, uint32_t events, uint64_t data);
/*
 * End the watch. What a thread has from epoll_wait() already may still report data. *w becomes NULL,
 * and may have been NULL.
 */
void vp_watch_end(struct vp_watch **w);
/*
 * From now on another set reports it, with other data; what has come already it reports at once. What a thread has from
 * epoll_wait() on the first set already may still report. -errno: it stays where it is.
 */
int  vp_watch_move(struct vp_watch *w, int epfd, uint32_t events, uint64_t data);

#endif
