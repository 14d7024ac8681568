/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A box: a record with its fds in the receive queue of a UNIX socket (docs/handover.md). Whoever has the socket keeps
 * all of them open. It is filled once, and empty when it has been read. Main thread.
 */
#ifndef VP_DAEMON_BOX_H
#define VP_DAEMON_BOX_H

#include "base/err.h"
#include "base/record.h"

/*
 * A box with that record; *fd is the caller's. -EMEDIUMTYPE: an fd of the record is not one that can be closed at once
 * by whoever has the box last, so it must not be in one. -errno: it has no room, there are no fds.
 */
int vp_box_make(const struct vp_rec *r, int *fd, struct vp_err *e);
/* Empty it. 0: bytes and fds are the caller's; also after an error, as far as they came. -EPERM: another user's. */
int vp_box_open(int fd, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds, struct vp_err *e);
/* Nothing is in it any more: who has it last closes an empty socket, and what was in it is closed as foreign.h says. */
void vp_box_empty(int fd);

#endif
