/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the daemon and its successor say to each other on the socket between them (docs/handover.md): packets, the
 * record in pieces, with its fds.
 *
 *   successor                      daemon
 *   HELLO version, pid  ────────►  still at work
 *                       ◄────────  DATA ... END        the first part, still at work
 *   READY               ────────►  everything stands still from here on
 *                       ◄────────  DATA ... END        the second part
 *   DONE                ────────►  ends                what is behind DONE is the successor's
 *                       ◄────────  STOP                it was told to stop: so is the successor
 *   or FAILED why       ────────►  goes on
 *                       ◄────────  ABORT, and no more can be sent: the successor ends
 *
 * The verdict (verdict.h), which comes with the second part, decides: the successor gives it just before it says DONE.
 * Before that the daemon may take the way back, by giving it first. After it nothing of the old daemon touches anything
 * again. A daemon of a version without verdicts takes the way back by shutting the socket down, so that DONE cannot be
 * sent any more.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_TAKEOVER_H
#define VP_DAEMON_TAKEOVER_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/record.h"
#include "handover/verdict.h"

struct vp_takeover_hello {
	uint32_t version;  /* VP_RECORD_VERSION of the successor */
	int32_t  pid;
	char     build[64];
};

/* ---- the daemon */

/* Not blocking. 0; -EAGAIN; -errno: no successor of ours. Then it wants the first part; after READY the second. */
int vp_takeover_hello(int sock, struct vp_takeover_hello *h, struct vp_err *e);
int vp_takeover_ready(int sock, struct vp_err *e);
/* Send all of it; waits for the reader until deadline_ms (CLOCK_MONOTONIC). */
int vp_takeover_send(int sock, const struct vp_rec *r, int64_t deadline_ms, struct vp_err *e);
/* Wait for DONE: 0, and the successor has it all. Otherwise it has nothing, and cannot take it any more; e: why. */
int vp_takeover_wait(int sock, struct vp_verdict *v, int64_t deadline_ms, struct vp_err *e);
/* It has, and is to stop. */
void vp_takeover_stop(int sock);
int64_t vp_takeover_ms(void);
/* Until it has said something, or that time has come. */
void vp_takeover_pause(int sock, int64_t deadline_ms);

/* ---- the successor */

/*
 * While this is the only thread: make room for all fds that may come. The kernel waits for a grace period of its own,
 * up to 20 ms, each time when the table of a process with several threads has to grow.
 */
void vp_takeover_prepare(void);
/* Say HELLO (first), or READY, and wait for a whole part. fds and *bytes are the caller's. */
int vp_takeover_receive(int sock, bool first, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds, struct vp_err *e);
/* The other end's user is neither root nor ours: -EPERM. */
int vp_takeover_check_user(int sock, struct vp_err *e);
/* What vp_takeover_send() has sent, all of which is there already: 0; -EAGAIN, -EPIPE: there is less; -EPROTO. */
int vp_takeover_collect(int sock, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds);
/*
 * Say DONE. 0: we are the daemon now. -ECANCELED: the other one goes on. It has gone: 0. v NULL: the other one knows no
 * verdict.
 */
int vp_takeover_done(int sock, struct vp_verdict *v);
void vp_takeover_failed(int sock, const char *why);
/* Until the other one has ended, `ms` at most. True: it was told to stop, and so are we. */
bool vp_takeover_await_end(int sock, int ms);

/*
 * A test may have the successor end at a point of the take-over (VHOST_PCI_TAKEOVER_EXIT has its number, from 1), or
 * wait there for a moment (VHOST_PCI_TAKEOVER_WAIT). Those behind the verdict count from -1 down. Counts the points;
 * does nothing without that, or when nothing is taken over.
 */
void vp_takeover_points(void);
void vp_takeover_point(void);
void vp_takeover_behind(void);

#endif
