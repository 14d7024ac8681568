/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An fd in an epoll set. epoll keeps an item for as long as the *file* is open anywhere, and the
 * other end of an eventfd or a socket has it open, too. So an fd that is closed before it is taken
 * out of the set leaves an item behind that nobody can take out any more, and whoever gets its
 * number next is taken out in its place. Both cannot happen here: a set only ever gets a duplicate
 * that is nobody else's, and loses it before that is closed. When and by whom the fd itself is
 * closed or replaced does not matter.
 *
 * This is the only place that calls epoll_ctl(), as daemon/sys/source.h is for sd-event
 * (tests/unit/base/check_sources.py).
 */
#ifndef VP_BASE_WATCH_H
#define VP_BASE_WATCH_H

#include <stdint.h>

struct vp_watch;   /* NULL = nothing is watched */

/*
 * From now on the set says data (of struct epoll_event, data.u64) when events (EPOLL*) come. fd
 * stays the caller's. -errno: -EPERM it cannot be waited for, -EBADF, -EMFILE, -ENOSPC, -ENOMEM;
 * *out is NULL then. The set has to outlive the watch.
 */
int  vp_watch_add(struct vp_watch **out, int epfd, int fd, uint32_t events, uint64_t data);
/*
 * Not any more; what a thread has from epoll_wait() already may still say data. *w becomes NULL,
 * and may have been.
 */
void vp_watch_end(struct vp_watch **w);


#endif
