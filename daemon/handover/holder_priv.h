/* SPDX-License-Identifier: BSD-3-Clause */
/* What the daemon and its holder (holder.h) say to each other: packets, each with one fd or none. */
#ifndef VP_DAEMON_HOLDER_PRIV_H
#define VP_DAEMON_HOLDER_PRIV_H

#include <stdint.h>

#include "conf/conf.h"
#include "sys/activation.h"

enum hold_op {
	/* from the daemon */
	HOLD_PUT = 1,  /* fd, name: one with that name that is there already goes */
	HOLD_DROP,     /* name */
	HOLD_TIME,     /* seconds: for how long without a daemon */
	HOLD_END,      /* close all and end */
	/* to a daemon that has connected */
	HOLD_GIVE,     /* fd, name: all that there is, */
	HOLD_YOURS,    /* and from now on it is that daemon's */
	HOLD_BUSY,     /* it is another daemon's */
};

struct hold_msg {
	uint32_t op, seconds;
	char     name[VP_ACTIVATION_NAME_MAX];
};

/* Where the process finds its fds when it begins. */
#define HOLD_DAEMON_FD 3  /* its daemon */
#define HOLD_LISTEN_FD 4

_Noreturn void vp_holder_main(const struct vp_conf_daemon *c, const char *path, uint32_t seconds);

#endif
