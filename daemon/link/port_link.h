/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Inside of port links. What all have in common: port_link.c, start and end, the port and its attachment, events;
 * port_hands.c, whose hands a queue is in; port_driver.c, the driver side's session; port_lane.c, what data threads do;
 * port_profile.c, what is known of the back-end; port_guard.c, what the guard is told; port_show.c, what is shown;
 * port_save.c, all of it for another daemon.
 * fast.c and copy.c have what differs, grant.c what grant mode adds to fast. For these files only.
 *
 * A queue that the driver VM has started is in one of two hands:
 *   - the device VM's, while the port's link is up: a run of the port (vp_port_queue_run());
 *   - ours otherwise: transmit queues are drained and counted as dropped, receive queues rest,
 *     as with an unplugged cable. The driver VM boots and runs without the device VM.
 * It goes from hand to hand with its ring index, when the port comes up or goes down. A stop by the
 * driver VM's front-end is answered when the device VM has let go, or was cut.
 *
 * Main thread, except for the operations of a work (lane.h).
 */
#ifndef VP_DAEMON_LINK_PORT_H
#define VP_DAEMON_LINK_PORT_H

#include "link/lane.h"
#include "link/link.h"
#include "device/device.h"
#include "front/peer.h"
#include "attach/attach.h"
#include "threads/forward.h"
#include "port/port.h"
#include "sys/slow.h"
#include "front/stats.h"
#include "front/vdev.h"

struct vp_plink;
struct vp_grants;
struct copy;

/* What a mode adds. Those marked ? may be NULL. */
struct vp_plink_mode {
	uint32_t mode;            /* VHP_MODE_* */
	size_t   size;            /* of its own structure, which begins with a struct vp_plink */
	/* features between the driver VM and us: a data path need not support them, and works without */
	uint64_t not_the_paths;
	uint64_t path_bits;       /* of these, what it works with where it supports them */
	bool     direct;          /* attachments may be given the driver VM's eventfds */
	bool     keeps;           /* its links outlive the daemon (keep.h) */
	size_t (*engine)(const struct vp_plink *pl); /* ? bytes of that that it wants for each queue */
	bool     lanes;           /* its queues are worked on by our data threads while the device VM has them */

	/* The port is there, its attachment not yet; inside an update of the page. */
	int  (*init)(struct vp_plink *pl, struct vp_err *e);
	/* After session, port runs and attachment have gone. Also after a part of init(), but not without. */
	void (*fini)(struct vp_plink *pl);

	/* ? Narrow what the driver VM is offered. */
	void (*profile)(const struct vp_conf_link *c, struct vu_backend_cfg *cfg);
	/* ? The driver VM's memory table was replaced, or (pl->closing) is going. */
	void (*memory)(struct vp_plink *pl);
	/* ? The front-end has gone, with all that it had. */
	void (*gone)(struct vp_plink *pl);
	/* ? The port has changed: the guest may have let go of something. */
	void (*tidy)(struct vp_plink *pl);
	/* ? Rings of the driver VM may have started or stopped. Inside an update of the page. */
	void (*rings)(struct vp_plink *pl);
	/*
	 * ? Queue i is in nobody's hands, and its front-end is to be told that it has stopped. VP_LATER: the device VM
	 * can still reach the ring; vp_plink_answer_stop() follows.
	 */
	int  (*leave)(struct vp_plink *pl, unsigned i);
	/* ? What the driver VM grants. */
	struct vp_grants *(*grants)(struct vp_plink *pl);
	/* ? A process was the device side and has gone: what it had may still be mapped there. */
	void (*fresh)(struct vp_plink *pl);

	/*
	 * Queue i is nobody's and goes to the device VM: fill *pr but for `enabled`, and, with lanes, set its work. An
	 * error leaves it with us for good; VP_LATER for now, until vp_plink_update().
	 */
	int  (*begin)(struct vp_plink *pl, unsigned i, struct vp_port_ring *pr);
	/*
	 * Its run is over (s NULL: it never began), no data thread has it: no signals any more. alive: the driver's
	 * ring can be gone on with.
	 */
	void (*end)(struct vp_plink *pl, unsigned i, const struct vp_port_stop *s, bool alive);
	/* ? While the device VM has it: process new buffers, or only return what is there. */
	void (*open)(struct vp_plink *pl, unsigned i, bool open);
	/* ? Its end of the queue is broken, by what it did there: the queue is taken from it. */
	bool (*broken)(const struct vp_plink *pl, unsigned i);
	/*
	 * Signals: the device VM has the queue, and its signals or the driver VM's fds may be other ones than before.
	 * Lanes are not published.
	 */
	void (*wire)(struct vp_plink *pl, unsigned i);
	void (*show)(struct vp_plink *pl, json_t *o);
	/* Signals that its wires have passed. */
	uint64_t (*signals)(struct vp_plink *pl);

	/*
	 * ? For another daemon (port_save.c): what init() is to find there (vp_plink_heir_mode()), and a queue, whoever
	 * has it. restore_queue: the driver's ring, the port and its attachment are there; nothing is written, and what
	 * `begin` sets is set if q->handed. A queue that is in another mode for now is saved by both.
	 */
	void (*save)(struct vp_plink *pl, struct vp_rec *r);
	/* ? What else there is that is no queue's. restore_all: the driver's device is there, its port is not yet. */
	void (*save_all)(struct vp_plink *pl, struct vp_rec *r);
	int  (*restore_all)(struct vp_plink *pl, const struct vp_rec_in *in, struct vp_err *e);
	void (*save_queue)(struct vp_plink *pl, unsigned i, struct vp_rec *r);
	int  (*restore_queue)(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e);
	/*
	 * ? Could another daemon go on with it if this one ended anywhere? save_queue is called with pl->keeps then,
	 * restore_queue with pl->recovers: where a queue is that data threads have is in vp_keep_engine().
	 */
	int  (*can_keep)(const struct vp_plink *pl, struct vp_err *e);

	/*
	 * ? Requests of a queue that is to be stopped and takes no new ones: all are answered. Attention is asked for
	 * when that becomes true.
	 */
	bool (*drained)(struct vp_plink *pl, unsigned i);
	/* ? The driver's ring is in nobody's hands and is about to be stopped, or was: nothing of it is kept. */
	void (*finish)(struct vp_plink *pl, unsigned i);
};

/* What a data thread works on while the device VM has the queue. */
struct vp_plink_work {
	struct vp_work work;  /* first */
	/* there is a kick fd to wait for, else the driver expects to be polled; set before it is published */
	bool kicked;
};

struct vp_plink_queue {
	struct vp_plink_work *work;  /* the mode's; with lanes, while handed */
	const struct vp_plink_mode *m; /* in which it was handed over last: the link's, or copy (mode_now()) */
	bool handed;      /* the device VM has it */
	bool stop_owed;   /* the front-end waits for GET_VRING_BASE's answer */
	bool taken;       /* it is asked to stop, because the driver disabled the queue, or to go on in another mode */
	bool spoiled;     /* its end was broken by the device VM: being taken from it */
	bool given_up;    /* by the data path, or taken from it: not handed over again while it is attached */
	bool rewire;      /* its fds may have changed */
	bool draining;    /* the stop that is owed waits for requests that are under way */
	bool gone;        /* it has stopped for good, whether its front-end was told or not */
	bool waits;       /* grant mode: for the windows of its ring, or of the pool */
	bool copied;      /* grant mode: until its ring stops it is copied: windows are of no use for it */
};

struct vp_plink {
	struct vp_vdev_slot   slot;     /* first: ctx of the session's callbacks */
	const struct vp_plink_mode *m;
	const struct vp_device *dev;
	struct vp_link       *l;
	struct vp_peer       *peer;
	struct vp_port       *port;
	struct vp_attach     *att;
	struct vp_carrier    *carrier;  /* NULL = the driver VM's is not ours to set */
	char                  name[VP_CONF_NAME_MAX + 24], dev_name[VP_CONF_NAME_MAX + 24];
	unsigned              n;        /* queues */
	struct vp_plink_queue *q;
	/* copy.c; of a fast link too, if its driver VM may migrate, and of one with Grant=viommu; else NULL */
	struct copy          *copy;
	bool                  log_owed; /* the front-end waits until all that is written is logged */
	struct vp_lanes      *lanes;    /* n of them, while a front-end is connected */
	bool                  inited, closing, in_update, again;
	bool                  reoffer;    /* what a driver VM is offered changes when its session has ended */
	bool                  ungranted;  /* grant mode: the link is down for want of a grant */
	uint64_t              guard_id; /* port_guard.c; 0 = none yet */
	bool                  guarded, guards_driver, guard_stale, leaving;
	int                   line[2];  /* of the ward (guard.h); -1 = none */
	int                   claim;    /* that of the daemon before, while this one goes on with the link; -1 = none */
	bool                  recovers; /* from a box: the daemon before ended anywhere */
	bool                  keeps;    /* what is saved is for a box: data threads are at work meanwhile */
	const char           *said;     /* status in the last event, and whether the device side was there */
	bool                  said_online;
	/* no events for what changes now: one is to follow, or nobody may know of the link */
	unsigned              quiet;
	uint64_t              signals;  /* of wires that have gone */
	uint64_t              spoiled;  /* queues, that often */
	uint64_t              call_who; /* who can make its call eventfds block (base/blame.h) */
	struct vp_queue_stats past, past_back;
	struct vp_profile     profile;
	char                  misfit[256]; /* why the last back-end that came does not fit, "" = it does */
	sd_event_source      *drain_timer, *down_timer;
	struct vp_slow        drain_slow;
	/* the link is down for its administrator, and for its queues when their requests have been answered */
	bool                  down_owed;
};

/* The driver VM's memory, NULL = there is none, or it is going. */
static inline const struct vp_memtab *vp_plink_memory(const struct vp_plink *pl)
{
	return pl->closing || !pl->slot.v ? NULL : vp_vdev_memory(pl->slot.v);
}

/* Is what the driver sends on queue i taken and dropped while nobody serves? */
static inline bool vp_plink_drops(const struct vp_plink *pl, unsigned i)
{
	return !pl->dev->waits && pl->dev->use(i) == VP_QUEUE_SENDS;
}

/* May what the driver makes available on queue i go to the device VM, which has the queue? */
static inline bool vp_plink_takes(const struct vp_plink *pl, unsigned i)
{
	return vp_vdev_ring(pl->slot.v, i)->enabled && !pl->q[i].stop_owed && !pl->q[i].taken && !pl->down_owed;
}

/*
 * The link's operations; start is the mode's own and calls vp_plink_start(). pool: bytes of the port's own memory, 0 =
 * none.
 */
int vp_plink_start(struct vp_link *l, const struct vp_plink_mode *m, uint64_t pool, struct vp_err *e);
void vp_plink_stop(struct vp_link *l);
void vp_plink_admin(struct vp_link *l);
bool vp_plink_busy(const struct vp_link *l);
void vp_plink_reap(struct vp_link *l);
const char *vp_plink_status(const struct vp_link *l);
json_t *vp_plink_sides(const struct vp_link *l, bool counters);
bool vp_plink_sent(const struct vp_link *l, unsigned side, struct vp_queue_stats *sum);
bool vp_plink_reported(const struct vp_link *l, unsigned side, struct vp_link_reported *r);
uint64_t vp_plink_handovers(const struct vp_link *l);
struct vp_vdev *vp_plink_vdev(const struct vp_link *l, unsigned side);
const struct vp_profile *vp_plink_profile(struct vp_link *l, bool forget);
struct vp_grants *vp_plink_grants(const struct vp_link *l);
/* port_alter.c */
int vp_plink_alter(struct vp_link *l, const struct vp_conf_link *next, bool again, struct vp_err *e);
bool vp_plink_plugged(const struct vp_link *l);

/* port_save.c: the link's operations for another daemon. */
bool vp_plink_at_rest(const struct vp_link *l);
void vp_plink_save(struct vp_link *l, struct vp_rec *r);
int  vp_plink_restore(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e);
void vp_plink_save_hot(struct vp_link *l, struct vp_rec *r);
int  vp_plink_restore_hot(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e);
void vp_plink_go_on(struct vp_link *l);
int  vp_plink_can_keep(const struct vp_link *l, struct vp_err *e);
void vp_plink_save_kept(struct vp_link *l, struct vp_rec *r);
int  vp_plink_recover(struct vp_link *l, const struct vp_place *old, unsigned n, const struct vp_rec_in *kept,
		      struct vp_err *e);
/* Of a record of a grant link, the listening socket of its channel, -1 = none; ours: its file is the link's. */
int  vp_plink_record_channel(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e);
/* While the link starts with l->heir: what it is to begin with. */
int  vp_plink_heir_port(const struct vp_plink *pl, struct vp_port_conf *pc, struct vp_err *e);
int  vp_plink_heir_profile(struct vp_plink *pl, struct vp_err *e);
bool vp_plink_heir_mode(const struct vp_plink *pl, struct vp_rec_in *mode);

#define VP_PLINK_OPS(start_fn) { \
	.start = start_fn, .stop = vp_plink_stop, .admin_changed = vp_plink_admin, .reap = vp_plink_reap, \
	.busy = vp_plink_busy, .status = vp_plink_status, .sides = vp_plink_sides, \
	.profile = vp_plink_profile, .sent = vp_plink_sent, .reported = vp_plink_reported, .vdev = vp_plink_vdev, \
	.grants = vp_plink_grants, .handovers = vp_plink_handovers, .alter = vp_plink_alter, \
	.plugged = vp_plink_plugged, \
	.at_rest = vp_plink_at_rest, .save = vp_plink_save, .restore = vp_plink_restore, \
	.save_hot = vp_plink_save_hot, .restore_hot = vp_plink_restore_hot, .go_on = vp_plink_go_on, \
	.can_keep = vp_plink_can_keep, .save_kept = vp_plink_save_kept, .recover = vp_plink_recover, \
}

/*
 * copy.c. A fast link's queues are in this mode while what is written to the driver VM's memory is logged: the daemon
 * writes it then. So is a queue of a grant link whose buffers are mapped too briefly for windows. The pool lies beside
 * that memory.
 */
extern const struct vp_plink_mode vp_plink_copy;
/* Bytes of the pool that belong to the port's own memory. */
uint64_t vp_plink_pool_in_port(const struct vp_link *l);
/* The pool of a fast or grant link as one region, which begins at from or above; else false. */
bool vp_plink_pool_region(struct vp_plink *pl, uint64_t from, struct vp_port_region *r);
/* It is there: the device VM has it, and can be given a queue. */
bool vp_plink_pool_there(const struct vp_plink *pl);
/* The link address where such a pool lies. */
#define VP_PLINK_POOL_ADDR (UINT64_C(1) << 52)

/*
 * port_link.c. An event with this reason; vp_plink_changed(), of vp_port_ops: one where the link's status is another
 * than was said last.
 */
void vp_plink_say(struct vp_plink *pl, const char *why);
/* The present status has been said, or needs not to be. */
void vp_plink_remember(struct vp_plink *pl);
void vp_plink_changed(void *ctx);

/* port_hands.c */
extern const struct vp_port_ops vp_plink_port_ops;
/* Something of what is saved of either side is about to change. ctx: the link. */
void vp_plink_touch(void *ctx);
/* Bring port, lanes and wires in line with the rings there are. */
void vp_plink_update(struct vp_plink *pl);
/* The device VM's fds are other ones. ctx: the link. */
void vp_plink_wires_changed(void *ctx);
/* All that is written is to be logged: as logged() of vp_vdev_ops. */
int  vp_plink_logged(struct vp_plink *pl);
/* The driver VM's VMM stops queue i: as stop() of vp_vdev_ops. */
int  vp_plink_stop_queue(struct vp_plink *pl, unsigned i);
/*
 * Requests of queues that are to be stopped have been answered, or (all) have had their time: now the device VM is
 * asked to stop.
 */
void vp_plink_drained(struct vp_plink *pl, bool all);
/*
 * The administrator takes the link down: where the device side's state is to be saved, what is under way is answered
 * first, for so long as a queue's stop waits for it. Or has taken it up again.
 */
void vp_plink_down(struct vp_plink *pl);
/* Replace *w by a wire to (src, dst), or by none when one of them is -1. What the old one has passed is counted. */
void vp_plink_wire(struct vp_plink *pl, struct vp_wire **w, int src, int dst, const char *what);
void vp_plink_unwire(struct vp_plink *pl, struct vp_wire **w);
uint64_t vp_plink_wire_count(const struct vp_wire *w);

/* The stop of queue i that is owed, its front-end waits for, is answered. */
void vp_plink_answer_stop(struct vp_plink *pl, unsigned i);

/* port_lane.c. For all queues, while a front-end is connected. make: -ENOMEM. */
int  vp_plink_lanes_make(struct vp_plink *pl);
void vp_plink_lanes_free(struct vp_plink *pl);
/*
 * Have data threads do what there is to do of queue i in its present hands: it is worked on, or drained. Nothing, where
 * that is nothing.
 */
void vp_plink_publish(struct vp_plink *pl, unsigned i);
/* Queues [first, first + n) are in no data thread's hands when it returns. */
void vp_plink_withdraw(struct vp_plink *pl, unsigned first, unsigned n);

/* port_profile.c. The data path says what it is: VHP_ST_*; *missing: features. */
uint32_t vp_plink_backend(struct vp_plink *pl, const struct vp_port_backend *b, uint64_t *missing);
/* Publish what is known of the back-end: features and config space. Inside an update of the page. */
void vp_plink_publish_profile(struct vp_plink *pl);
/* Why the link must be down may have changed. */
void vp_plink_set_hold(struct vp_plink *pl);
/* port_driver.c: it has become known. */
int vp_plink_open_driver_side(struct vp_plink *pl, struct vp_err *e);
/* Features that the data path works with; there is a front-end. */
uint64_t vp_plink_features(const struct vp_plink *pl);
/* What the driver VM's VMM is offered. */
void vp_plink_offer(struct vp_plink *pl, struct vu_backend_cfg *cfg);

/* port_guard.c. Have the guard know what it must, after anything that this depends on has changed. */
void vp_plink_guard_update(struct vp_plink *pl);
/* The link is being taken away: what the guard knows stays as it is, until nothing writes to the port any more. */
void vp_plink_guard_leave(struct vp_plink *pl);
void vp_plink_guard_left(struct vp_plink *pl);

#endif
