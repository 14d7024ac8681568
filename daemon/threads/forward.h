/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Signals from one eventfd to another, by one thread of its own. A signal takes at most two system
 * calls (epoll_wait and write), fewer when several arrive together.
 *
 * Sources are watched edge-triggered and never read. So it does not matter who else reads them, or
 * whether they would block. A hostile VMM can arrange that a write to a target blocks. Such a write is
 * interrupted within a second, and the target is given up; the other wires wait that long. A peer that
 * does it again is held off (base/blame.h).
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_FORWARD_H
#define VP_DAEMON_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct vp_forward;
struct vp_wire;

/* Start the thread. */
int  vp_forward_new(struct vp_forward **out, struct vp_err *e);
/*
 * For a while no signal is passed: when pause() returns, none is, nor does any fn run. resume() follows, or this
 * process ends. A write that hangs is waited for, a second at most. NULL is allowed.
 */
void vp_forward_pause(struct vp_forward *f);
void vp_forward_resume(struct vp_forward *f);
/* Stop it, after all wires. */
void vp_forward_free(struct vp_forward *f);

/*
 * From now on a write to src (an eventfd) is followed by a write to dst, or by fn(arg) on the
 * forwarder's thread. It also happens once now if src holds a count already. The fds are duplicated and
 * stay the caller's. who: the peer of dst, for base/blame.h. -errno: -EPERM src cannot be watched.
 */
int  vp_wire_new(struct vp_wire **out, struct vp_forward *f, int src, int dst, uint64_t who);
int  vp_wire_new_fn(struct vp_wire **out, struct vp_forward *f, int src, void (*fn)(void *arg), void *arg);
/*
 * End a wire. NULL is allowed. A wire to an fd may still write once while this returns (to its own
 * duplicate). When this has returned, fn is not running and will not be called again.
 */
void vp_wire_free(struct vp_wire *w);

/* The number of signals passed so far; has the target of a wire been given up? */
uint64_t vp_wire_count(const struct vp_wire *w);
bool vp_wire_dead(const struct vp_wire *w);

#endif
