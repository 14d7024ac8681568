/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fds that outlive this process. The service manager keeps them (sd_notify(3), FDSTORE=1;
 * FileDescriptorStoreMax= of the unit). It hands them to the next daemon among its activation sockets,
 * under their names. Without a service manager that keeps fds, nothing is stored and nothing is found:
 * every caller must be able to start anew.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_KEEP_H
#define VP_DAEMON_KEEP_H

#include "sys/activation.h"

/* Names in the store: "keep.LINK.WHAT". */
#define VP_FDSTORE_PREFIX "keep."

/*
 * Where there is no service manager, somebody else may keep them (handover/holder.h): as FDSTORE=1 and FDSTOREREMOVE=1,
 * name is all of "keep.LINK.WHAT". 0 or -errno. NULL: the service manager does.
 */
struct vp_fdstore_ops {
	int  (*put)(const char *name, int fd);
	void (*drop)(const char *name);
};
void vp_fdstore_use(const struct vp_fdstore_ops *ops);
/* Is there anybody who keeps fds? Of a service manager it is not known whether it keeps any for us. */
bool vp_fdstore_there(void);

/*
 * Keep fd as LINK's WHAT. It stays the caller's. A failure is logged: what is not kept is lost with
 * this process.
 */
void vp_fdstore_put(const char *link, const char *what, int fd);
/* What the daemon before us had kept. The caller owns it from now on. -1 = nothing. */
int  vp_fdstore_take(struct vp_activation *a, const char *link, const char *what);
/* Keep it no longer. */
void vp_fdstore_drop(const char *link, const char *what);
/* The name of each link that has a WHAT, in what the daemon before us had kept: the next one behind *at, from 0. */
bool vp_fdstore_next(const struct vp_activation *a, const char *what, unsigned *at, char *link, unsigned size);
/* As vp_fdstore_put(); says nothing, but 0 or -errno. -ENOTCONN: there is nobody who keeps fds. */
int  vp_fdstore_try(const char *link, const char *what, int fd);
/* Drop and close what nobody took: its link is no longer configured. */
void vp_fdstore_rest(struct vp_activation *a);

#endif
