/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One side's socket. It listens (or connects, again and again), checks who is at the other end, and
 * runs at most one vhost-user session. What the session means is the owner's business (vdev.h).
 *
 * A front-end that connects while another one is connected waits for two seconds: a VMM that was killed
 * and started again at once meets its own dying connection. After that it is refused.
 *
 * Main thread only. Nothing blocks.
 */
#ifndef VP_DAEMON_PEER_H
#define VP_DAEMON_PEER_H

#include "base/record.h"
#include "conf/conf.h"
#include "vhostuser/backend.h"

struct vp_daemon;
struct vp_peer;

struct vp_peer_ops {
	/* A front-end is there: fill cfg and make room. An error turns the front-end away. */
	int (*open)(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e);
	/* Optional. What vp_peer_save() writes is about to change, before anything else does. */
	void (*touch)(void *ctx);
	/* The session exists (vp_peer_session()). */
	void (*opened)(void *ctx);
	/* The session is over: stop everything that uses its rings and memory. The session still exists. */
	void (*closing)(void *ctx);
	/*
	 * Optional, after closing() of a session whose front-end is still there: must its connection
	 * stay open? Until vp_peer_let_go() nobody answers the front-end on it.
	 */
	bool (*hold)(void *ctx);
	/*
	 * For another daemon to go on with (docs/handover.md). save: all that the session means, before the session
	 * itself is saved. restore: after open(), in the place of opened(): the session is there as it was.
	 */
	void (*save)(void *ctx, struct vp_rec *r);
	int (*restore)(void *ctx, const struct vp_rec_in *in, struct vp_err *e);
	/* The session is gone, for this reason, in words for people: "front-end went away", ... */
	void (*closed)(void *ctx, const char *why);
};

enum vp_peer_state { VP_PEER_WAITING, VP_PEER_CONNECTED, VP_PEER_FAILED };

struct vp_peer_info {
	enum vp_peer_state state;
	char     last[160];     /* why the last session ended or the last attempt failed; "" = none yet */
	uint64_t sessions;      /* front-ends served so far */
	uint64_t refused;       /* connections refused */
	pid_t    pid;           /* of the front-end, 0 = none */
	uid_t    uid;
};

/*
 * conf and name (for messages: "link a, driver side") are not owned, and live as long as the peer.
 * vu_ops->events_changed must call vp_peer_rearm(). Failing to listen is an error with a message.
 */
int vp_peer_new(struct vp_peer **out, struct vp_daemon *d, const char *name, const char *activation,
		const struct vp_conf_side *conf, const struct vp_peer_ops *ops, const struct vu_backend_ops *vu_ops,
		void *ctx, struct vp_err *e);
/*
 * End the session (with the callbacks), close and unlink the socket. Never from inside a callback of
 * the session.
 */
void vp_peer_free(struct vp_peer *p);
/* The same, but another process has the sockets: none of them is shut down, or its file removed. */
void vp_peer_leave(struct vp_peer *p);

/*
 * The listening socket, the session and who waits, for another daemon, while no data thread runs. There vp_peer_new()
 * finds the socket among the activation sockets, and then vp_peer_restore() goes on with the session, if there was one.
 */
/* In the record of a side: that of its vp_peer. */
enum { VP_LINK_REC_PEER = 8 };
bool vp_peer_at_rest(const struct vp_peer *p);
void vp_peer_save(struct vp_peer *p, struct vp_rec *r);
int  vp_peer_restore(struct vp_peer *p, const struct vp_rec_in *in, struct vp_err *e);
/* Of a record of vp_peer_save(): the listening socket, -1 = it had none, and whether its file is ours. */
int  vp_peer_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e);

/* NULL when none. */
struct vu_backend *vp_peer_session(const struct vp_peer *p);
void vp_peer_rearm(struct vp_peer *p);
/* End the session soon (from the event loop), for this reason; safe in callbacks. */
void vp_peer_kick_out(struct vp_peer *p, const char *why);
/* Close what ops->hold() held. p may be NULL. */
void vp_peer_let_go(struct vp_peer *p);
/* p may be NULL: nobody can connect yet. */
void vp_peer_get_info(const struct vp_peer *p, struct vp_peer_info *i);

#endif
