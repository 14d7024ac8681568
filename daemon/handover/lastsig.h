/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Signal 0 of a port, raised by another process when the daemon has gone (guard.h). An attachment says
 * what that takes.
 *
 * One thread at a time. A write may block where the eventfd's other end wants it to: the caller makes
 * sure that it gets interrupted.
 */
#ifndef VP_DAEMON_PORT_LASTSIG_H
#define VP_DAEMON_PORT_LASTSIG_H

#include <stdbool.h>
#include <stdint.h>

/* Plain data, sent from process to process. Fds keep their owners; -1 = none. */
struct vp_lastsig_conf {
	int      call;               /* eventfd to write; -1: the guest cannot be told */
	int      conn;               /* local: the process's connection. It lets go before it closes its end */
	int      hold;               /* shmem: without this connection the VMM does not look at call any more */
	int      req;                /* shmem: the channel on which it is asked to unmap windows (unmap.h) */
	/*
	 * shmem: before call is written a buffer of this split ring is returned. All of it lies in one region of the
	 * VM's memory.
	 */
	int      ram;                /* the region's file; -1 = no ring */
	uint32_t num;                /* entries */
	uint64_t gpa, size, offset;  /* the region */
	uint64_t desc, avail, used;  /* guest physical */
};

#define VP_LASTSIG_NONE ((struct vp_lastsig_conf){ .call = -1, .conn = -1, .hold = -1, .req = -1, .ram = -1 })

struct vp_lastsig;

/* Nobody else uses the ring any more. 0; -ENOMEM; -EINVAL, -EFAULT: there is no such ring. */
int  vp_lastsig_new(struct vp_lastsig **out, const struct vp_lastsig_conf *c);
/* Raise it. A guest that has not handled the last signals needs no further one. */
void vp_lastsig_raise(struct vp_lastsig *s);
void vp_lastsig_free(struct vp_lastsig *s);

#endif
