/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the two halves of Endpoint=vhost-user know of each other: hostdev.c has the connection, the attachment and its
 * eventfds; hostdev_session.c says what the port asks for to the back-end, and what it answers to the port.
 *
 * In copy mode the back-end gets the pool, and eventfds of ours. In fast mode it gets the driver VM's memory and its
 * eventfds, as a direct connection of the two would give them, until the driver VM goes: then it is left.
 *
 * Main thread only. Nothing waits for the back-end: at most one message is under way, and its answer has a deadline.
 */
#ifndef VP_DAEMON_HOSTDEV_H
#define VP_DAEMON_HOSTDEV_H

#include <sys/socket.h>

#include "attach/attach.h"
#include "sys/slow.h"
#include "vhost-pci/abi.h"
#include "vhostuser/codec.h"

#define HOSTDEV_ANSWER_US 3000000u /* longest wait for an answer; the port waits less for a queue that is to stop */

struct hostdev_queue {
	bool     running, enabled;
	bool     kick_moved, call_moved; /* since the back-end was told, it has become another one */
	unsigned step;          /* messages of its start that were sent */
	uint32_t run;           /* that runs here, or is being started */
	uint32_t given_up;      /* stopped here, and the port knows: wait for another one; 0 = none */
};

struct hostdev_window {
	int      fd;            /* the port's; -1 = no window */
	uint64_t offset;
	/* what the back-end is told that its address is here: never one that another window had */
	uint64_t uva;
};

struct hostdev {
	struct vp_attach      a;      /* first */
	struct vp_attach_conf c;
	struct vp_port       *port;
	unsigned              n;      /* queues */
	struct vhp_abi_control *ctrl; /* mapped here and nowhere else: the back-end never gets the port's file */
	uint32_t              seq;    /* of the last command */
	/* connection */
	bool                  here;   /* a back-end is connected */
	bool                  unclean; /* and may be at work on requests of a run that is over: to be dropped */
	int                   lfd;
	struct vu_conn        main, req;
	struct vp_source     *listen_io, *io, *req_io;
	sd_event_source      *work, *again, *deadline, *later;
	struct vp_slow        slow;   /* the answer that is awaited */
	uint64_t              retry_us, again_us; /* again_us: when, of one that another daemon has left */
	bool                  retry_logged;
	uint64_t              refused_said_us;
	struct ucred          cred;
	int                  *sig, *bell; /* kicks and calls, one a queue; -1 while nobody is there */
	/*
	 * Fast mode: duplicates of the driver VM's own, -1 = none; and what carries a kick and a call of ours to them,
	 * in copy mode a kick to sig, when a run begins. That is an eventfd which nobody else has: sig and bell may
	 * have been the back-end's before, and block.
	 */
	int                  *drv_kick, *drv_call, *poke_fd;
	struct vp_wire      *(*poke)[2];
	struct hostdev_window win[VHP_MAX_WINDOWS];
	uint64_t              next_uva;
	/* session, zeroed for each connection */
	struct hostdev_session {
		unsigned hello;        /* step of the introduction */
		bool     online, described, attached, changed, set_up, waits, in_step;
		bool     ran;          /* queues, so that there is a state */
		bool     moving, saved; /* the state is under way; it is kept, and the back-end is to be left */
		uint32_t request;      /* under way, if waits */
		unsigned queue;        /* that it is about */
		uint64_t offered, its_pf, pf, features, epoch, config_us, attach_us;
		unsigned queues, setup;
		uint32_t config_size, config_wanted, set_seen, synced, mem_seen;
		uint8_t  config[VU_MAX_CONFIG];
		struct hostdev_queue q[VHP_MAX_QUEUES];
	} s;
	/* DEVICE_STATE, in hostdev_state.c: what a back-end knew when the link was taken down, for the next one */
	struct hostdev_state {
		uint8_t *data;
		size_t   size, room, at; /* at: of what is being loaded */
		uint64_t epoch;          /* of the driver VM that it is about */
		bool     kept;           /* it is whole */
		int      pipe;           /* our end, -1 = none */
		struct vp_source *io;
	} state;
	uint64_t              n_conns, n_refused, n_cuts;
	char                  last[256];
};

/* A back-end is there. */
void hostdev_session_begin(struct hostdev *h);
/*
 * Go on: the state page or the back-end has something new, or a time is over. From the event loop only. May drop the
 * back-end.
 */
void hostdev_session_run(struct hostdev *h);
/* An answer (or something unasked) is in h->main.rx. 0 or -errno: the back-end is to be dropped. */
int hostdev_session_answer(struct hostdev *h, struct vp_err *e);
/* A request of the back-end's is in h->req.rx. As above, but only its channel is closed. */
int hostdev_session_request(struct hostdev *h, struct vp_err *e);

/* The connection ends: so does what is under way. */
void hostdev_state_stop(struct hostdev *h);
/* Nobody will ask for it any more. */
void hostdev_state_forget(struct hostdev *h);

/* For the session. */
uint64_t hostdev_now(void);
/* Run it again in at most us. */
void hostdev_later(struct hostdev *h, uint64_t us);
void hostdev_drop(struct hostdev *h, bool fault, const char *why);
/* The connection waits for an answer, or not any more; or wants to write. */
void hostdev_rearm(struct hostdev *h);
/*
 * Queue q was enabled. Back-ends built on the vhost-user-backend crate (virtiofsd) take a kick that came before and do
 * nothing. Fast mode: whoever had it before may owe the driver VM a call, too.
 */
void hostdev_poke(struct hostdev *h, unsigned q);
/* The channel for its requests; *theirs is the caller's, to be sent. */
int hostdev_channel(struct hostdev *h, int *theirs);

/* hostdev_save.c: the attachment's operations for another daemon. */
bool hostdev_at_rest(struct vp_attach *a);
void hostdev_save_hot(struct vp_attach *a, struct vp_rec *r);
int  hostdev_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e);
/* For these: the listening socket, and the connection with its channel, are waited for. */
int  hostdev_listen(struct hostdev *h, struct vp_err *e);
int  hostdev_watch(struct hostdev *h, struct vp_err *e);

#endif
