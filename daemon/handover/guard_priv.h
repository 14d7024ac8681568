/* SPDX-License-Identifier: BSD-3-Clause */
/* What the daemon and its guard say to each other. For guard.c (the daemon's side) and guard_process.c only. */
#ifndef VP_DAEMON_GUARD_PRIV_H
#define VP_DAEMON_GUARD_PRIV_H

#include <stdint.h>

#include "conf/conf.h"
#include "handover/lastsig.h"

/*
 * A data path that hears of it lets go at once; the time is for one that gets no CPU. As long as the next daemon would
 * wait (port/life.c).
 */
#define GUARD_PATIENCE_MS 3000u

/* The guard's end of the socket, and the only fd of the daemon's that it begins with but for the log. */
#define GUARD_SOCK_FD 3

enum guard_op { GUARD_TAKE = 1, GUARD_DROP, GUARD_SEE_OFF, GUARD_LEAVE, GUARD_BORN, GUARD_HEIR };

/* The VMM that is asked to unmap answers within milliseconds. */
#define GUARD_UNMAP_MS 2000u

/* What a ward consists of, in this order; all but GUARD_MEM and GUARD_RECORD may be missing. CLAIM: guard.h. */
enum {
	GUARD_DRIVER, GUARD_MEM, GUARD_RECORD, GUARD_CALL, GUARD_CONN, GUARD_HOLD, GUARD_REQ, GUARD_RAM, GUARD_LINE,
	GUARD_CLAIM, GUARD_FDS
};

/*
 * One packet of a SEQPACKET socket. TAKE comes with the fds of the mask, BORN and HEIR with that of a verdict. The
 * guard sends one byte, when it is ready, and a guard_answer to each TAKE with GUARD_CLAIM.
 */
struct guard_msg {
	uint32_t op, fds;
	uint64_t id;
	char     name[32];
	struct vp_lastsig_conf signal;  /* but for its fds */
};

struct guard_answer {
	uint64_t id;
	uint64_t got;    /* the ward is this guard's */
};

/* guard_process.c: all that the process does, from behind fork() to its end. */
_Noreturn void vp_guard_main(const struct vp_conf_daemon *c);

#endif
