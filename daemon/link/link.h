/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Links: the registry, their administrative state, and the seam behind which
 * each mode does its work (relay_link.c; port_link.c with fast.c, copy.c). Main thread only.
 */
#ifndef VP_DAEMON_LINK_H
#define VP_DAEMON_LINK_H

#include <jansson.h>

#include "base/record.h"
#include "base/text.h"
#include "conf/conf.h"
#include "conf/policy.h"
#include "vhostuser/backend.h"

struct vp_daemon;
struct vp_profile;
struct vp_link;
struct vp_links;

/* What a link's status may be, and its word. */
enum vp_link_state { VP_LINK_WAITING, VP_LINK_PARTIAL, VP_LINK_UP, VP_LINK_DOWN, VP_LINK_BROKEN, VP_LINK_STATES };

struct vp_capture;
struct vp_grants;
struct vp_keep;
struct vp_place;
struct vp_queue_stats;
struct vp_tap;
struct vp_vdev;

enum vp_link_origin { VP_ORIGIN_FILE, VP_ORIGIN_RUNTIME };

struct vp_link_reported {
	uint64_t packets, bytes, dropped;
};

/* What a mode implements. Each is called with the link's own data in l->impl. */
struct vp_link_ops {
	/* Make l->impl, open the sockets. Errors have a message; nothing is left behind. */
	int  (*start)(struct vp_link *l, struct vp_err *e);
	/* End sessions, close sockets, free l->impl. */
	void (*stop)(struct vp_link *l);
	/* l->up has changed. */
	void (*admin_changed)(struct vp_link *l);
	/*
	 * l->conf gets those values of next that may change in place (VP_EFFECTS_IN_PLACE), and the link goes by them.
	 * again: front-ends have to connect again for that. An error has a message; all the rest holds.
	 */
	int  (*alter)(struct vp_link *l, const struct vp_conf_link *next, bool again, struct vp_err *e);
	/* ? Is a PCI device of a VM's plugged into it, which dies when the link ends? */
	bool (*plugged)(const struct vp_link *l);
	/* A data thread asked for attention: look for broken queues and lost memory. */
	void (*reap)(struct vp_link *l);
	/* Does anything need reap() at all? */
	bool (*busy)(const struct vp_link *l);
	/* One word for tables ("up", "waiting", "half", "down") and what show and stats add. */
	const char *(*status)(const struct vp_link *l);
	json_t *(*sides)(const struct vp_link *l, bool counters);
	/* What this side's VM has sent so far. False: nobody here sees it. */
	bool (*sent)(const struct vp_link *l, unsigned side, struct vp_queue_stats *sum);
	/*
	 * ? What the device VM says this side's VM has sent so far, where nobody here sees it: packets, bytes and, by
	 * no reason of ours, dropped ones. False: it has said nothing.
	 */
	bool (*reported)(const struct vp_link *l, unsigned side, struct vp_link_reported *r);
	/* ? How often queues of it were given into the device VM's hands. */
	uint64_t (*handovers)(const struct vp_link *l);
	/* Its device while a front-end is connected, else NULL. */
	struct vp_vdev *(*vdev)(const struct vp_link *l, unsigned side);
	/* ? What its driver VM grants (grant.h); NULL = it is not of grant mode. */
	struct vp_grants *(*grants)(const struct vp_link *l);
	/* NULL: it has none. What is known of the device side's back-end, NULL = nothing; forget: not any more. */
	const struct vp_profile *(*profile)(struct vp_link *l, bool forget);
	/*
	 * For another daemon to go on with (docs/handover.md), but for what data threads change. at_rest: false while a
	 * message waits for its answer, which comes soon. restore: what start() has made goes on as the record says; *e
	 * names what is wrong with it.
	 */
	bool (*at_rest)(const struct vp_link *l);
	void (*save)(struct vp_link *l, struct vp_rec *r);
	int (*restore)(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e);
	/* What data threads change, while none runs; all else is as it was saved. */
	void (*save_hot)(struct vp_link *l, struct vp_rec *r);
	int (*restore_hot)(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e);
	/*
	 * ? For a daemon that comes when this one has ended anywhere (keep.h): 0, or why not, in words. save_kept (may
	 * be NULL): what is to be known there beside what save() writes and the lines say, while data threads run.
	 * recover: in the place of restore_hot(); old: the lines of both sides' rings, n of each; kept: what
	 * save_kept() wrote, or NULL. With save_kept, go_on() follows, or stop() with l->leaving, where that failed.
	 */
	int (*can_keep)(const struct vp_link *l, struct vp_err *e);
	void (*save_kept)(struct vp_link *l, struct vp_rec *r);
	int (*recover)(struct vp_link *l, const struct vp_place *old, unsigned n, const struct vp_rec_in *kept,
		       struct vp_err *e);
	/* ? From now on it is ours: what others see may be touched. Before data threads run. */
	void (*go_on)(struct vp_link *l);
};

struct vp_link {
	struct vp_daemon          *d;
	struct vp_conf_link        conf;
	struct vp_policy_decision  decision;
	enum vp_link_origin        origin;
	bool                       up;     /* administrative */
	bool                       leaving; /* it ends here only: another process has, or will have, its sockets */
	struct vp_keep            *keep;   /* keep.h; NULL = nobody keeps it */
	uint64_t                   since_us;
	const struct vp_link_ops  *ops;
	void                      *impl;
	const struct vp_rec_in    *heir;        /* while it starts again: what save() has written; else NULL */
	char                      *given;       /* of a runtime link: the config of link.add, as JSON; NULL = lost */
	enum vp_link_state         state;       /* when last looked at */
	uint64_t                   state_us;    /* since when, CLOCK_MONOTONIC */
	uint64_t                   state_sum[VP_LINK_STATES]; /* microseconds in each, up to state_us */
	/* data threads add: notifications by that side's driver that woke one, or were seen */
	uint64_t                   wakes[VP_SIDES];
	char                      *brief;       /* the part of link.list that never changes; NULL = not asked for yet */
	size_t                     brief_n;
	char                      *shape;       /* link_save.c: conf as text; NULL = not asked for since it changed */
	/* of metrics: link="NAME", and all that say what it is; NULL = not asked for yet */
	char                      *labels;
	char                      *info;
	/* nobody has ever sent anything here: no counters to write, in this scrape */
	bool                       silent;
	struct vp_capture         *captures;    /* capture.h */
	struct vp_tap             *taps;        /* theirs, read by data threads */
};

extern const struct vp_link_ops vp_link_relay_ops;
extern const struct vp_link_ops vp_link_fast_ops;
extern const struct vp_link_ops vp_link_copy_ops;
extern const struct vp_link_ops vp_link_grant_ops;

/*
 * As vp_vdev_backend_cfg(), with what depends on other links: a VM that has a port as well gets its memory table
 * whole, at most 8 regions. With CONFIGURE_MEM_SLOTS QEMU (7.2 and 11.1) does not survive a reset during which a port's
 * windows leave it.
 */
void vp_link_backend_cfg(const struct vp_link *l, unsigned side, const struct vp_profile *p,
			 struct vu_backend_cfg *cfg);

int vp_links_new(struct vp_links **out, struct vp_daemon *d);
void vp_links_free(struct vp_links *ls);  /* removes them all */

/*
 * conf is finished (vp_conf_finish_link). -EACCES: policy; -EEXIST: name or socket; -EDQUOT: a limit; else the
 * socket's.
 */
int vp_link_add(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin, struct vp_err *e);
/* The sections and keys of a .link file, as JSON, into l. */
int vp_link_config_read(struct vp_conf_link *l, json_t *config, struct vp_err *e);
/*
 * One that another daemon had added with that decision: neither held against others, nor told to anybody. in: what its
 * ops->save() has written.
 */
int vp_link_start_again(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin,
			const struct vp_policy_decision *dec, const struct vp_rec_in *in, struct vp_err *e);
void vp_link_remove(struct vp_links *ls, struct vp_link *l);
struct vp_link *vp_link_find(struct vp_links *ls, const char *name);
void vp_link_set_up(struct vp_link *l, bool up);

/* Sorted by name. Valid until the next add or remove. */
unsigned vp_links_count(const struct vp_links *ls);
struct vp_link *vp_links_at(struct vp_links *ls, unsigned i);

/*
 * Bring the links in line with c: remove, replace, add the file-born ones. Those added at run time are decided anew: in
 * the same mode they go on, in another one they are set up anew, and what policy or limits do not allow any more is
 * removed, and reported. Where a limit has not room for all, c's own links come first, then the others by name.
 * Problems of single links (a socket that cannot be opened) are reported and do not stop the rest. gently: links whose
 * ports would have to be plugged anew are left as they run, and the log says so. Number of links touched.
 *
 * *done (NULL = not wanted) gets their names in arrays: {"added", "removed", "anew", "altered", "kept"}; kept are those
 * that gently left.
 */
unsigned vp_links_apply(struct vp_links *ls, const struct vp_conf *c, bool gently, json_t **done,
			struct vp_conf_report *rep);
/* -EBUSY: vp_links_apply() would end a port that is plugged; *e names the link, the key and the way out. */
int vp_links_apply_check(struct vp_links *ls, const struct vp_conf *c, struct vp_err *e);

/*
 * Hand-over (docs/handover.md). can: may all links be handed over? -EOPNOTSUPP: how one was added at run time is not
 * known any more, -EBUSY: one is not at rest; *e names it. save: all of them, in a record that is the same for as long
 * as nothing but packets comes. hot: what data threads change, while none runs.
 */
int  vp_links_can_hand_over(struct vp_links *ls, struct vp_err *e);
void vp_links_save(struct vp_links *ls, struct vp_rec *r);
void vp_link_save(struct vp_link *l, struct vp_rec *r); /* as if it were the only one */
void vp_links_save_hot(struct vp_links *ls, struct vp_rec *r);
/*
 * There, with the configuration that was just read: links that it still describes as they are go on. The others stay
 * away; vp_links_apply() sets them up anew when the daemon before has ended.
 */
int  vp_links_restore(struct vp_links *ls, struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e);
/*
 * The next link in what vp_links_save() wrote, whether it was restored or not, as it was configured; of a build with
 * another struct vp_conf_link its name only. False: there is none.
 */
bool vp_links_record_next(struct vp_rec_in *rest, struct vp_conf_link *was);
/*
 * The others' sockets listen no more, whoever has them yet (link/keep.h), and their files go: those links may be made
 * anew. For when the daemon before does not go on.
 */
void vp_links_end_rest(struct vp_links *ls, const struct vp_rec_in *in);
int  vp_links_restore_hot(struct vp_links *ls, const struct vp_rec_in *in, struct vp_err *e);
void vp_links_go_on(struct vp_links *ls);
/* In what ops->save() writes: a side (the first, + 1 for the second), and in that VP_LINK_REC_PEER. */
enum { VP_LINK_REC_SIDE = 1 };

/* Called when data threads want attention. */
void vp_links_reap(struct vp_links *ls);

/* "link.state" to subscribers, with the link's present status and why. */
void vp_link_event(struct vp_link *l, const char *event, const char *why);

/*
 * Look at the status; a change is accounted, and, when it is one between up and anything else, logged. Its word. Who
 * changes what a status depends on calls it; who asks for it, too, so that no change is missed for long.
 */
const char *vp_link_look(struct vp_link *l);
const char *vp_link_state_str(enum vp_link_state s);
/* Microseconds in this state so far, with the time up to now. */
uint64_t vp_link_state_us(const struct vp_link *l, enum vp_link_state s, uint64_t now);

/* As JSON text, the same as vp_link_brief(). */
void vp_link_brief_text(struct vp_link *l, struct vp_text *t);
/* For link.list (brief), link.show and link.stats. */
json_t *vp_link_brief(struct vp_link *l);
json_t *vp_link_detail(struct vp_link *l);
/* Its configuration, of which a VMM's arguments are made: sections and keys of a .link file. */
json_t *vp_link_config(const struct vp_link *l);
json_t *vp_link_stats(struct vp_link *l);

#endif
