/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fds that a service manager gave us when it started us, by name: listening sockets, and what the
 * daemon before us had kept (fdstore.h). Main thread only.
 */
#ifndef VP_DAEMON_ACTIVATION_H
#define VP_DAEMON_ACTIVATION_H

#include <stdbool.h>

#define VP_ACTIVATION_NAME_MAX 80  /* with the terminating zero */

/* Each fd is in here until somebody takes it; -1 = taken. */
struct vp_activation {
	unsigned n;
	struct {
		int  fd;
		bool ours;  /* of an earlier daemon of ours that made it: its file goes when we end */
		char name[VP_ACTIVATION_NAME_MAX];
	} *s;
};

/* The fd called name, the caller's from now on; -1 when there is none. */
int vp_activation_take(struct vp_activation *a, const char *name);
/* The same; *ours says whether a daemon of ours made it. */
int vp_activation_take_ours(struct vp_activation *a, const char *name, bool *ours);
/* Add one, which a is the owner of. -ENOMEM. */
int vp_activation_add(struct vp_activation *a, const char *name, int fd, bool ours);

#endif
