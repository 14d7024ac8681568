/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fds that a service manager gave us when it started us, by name: listening sockets, and what the
 * daemon before us had kept (fdstore.h). Main thread only.
 */
#ifndef VP_DAEMON_ACTIVATION_H
#define VP_DAEMON_ACTIVATION_H

#define VP_ACTIVATION_NAME_MAX 80  /* with the terminating zero */

/* Each fd is in here until somebody takes it; -1 = taken. */
struct vp_activation {
	unsigned n;
	struct {
		int  fd;
		char name[VP_ACTIVATION_NAME_MAX];
	} *s;
};

/* The fd called name, the caller's from now on; -1 when there is none. */
int vp_activation_take(struct vp_activation *a, const char *name);

#endif
