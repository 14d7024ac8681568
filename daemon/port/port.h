/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vhost-pci port as the device VM sees it (docs/spec.md): control block,
 * state, commands, queue runs, windows and regions. It knows neither how it reaches the
 * device VM (that is the attachment's business, shmem.c, ivshmem.c, local.c) nor
 * where rings and memory come from (that is its owner's, the link).
 *
 *      owner (link)  --- vp_port_set_*, vp_port_queue_* -->  port  --- vp_port_att_ops -->  attachment
 *                    <------------ vp_port_ops -----------         <--- vp_port_online, _given, ...
 *
 * Main thread only. Nothing blocks: what takes time is answered with VP_LATER and completed
 * by a callback. Every wait for a guest is bounded by answer_timeout_us, then the
 * guest is cut (spec, "Life cycle", 7).
 *
 * Callbacks to the owner come from inside the attachment's calls, timers and the owner's own calls
 * where said; an owner may call any vp_port_ function from them except vp_port_free().
 */
#ifndef VP_DAEMON_PORT_H
#define VP_DAEMON_PORT_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/record.h"
#include "vhost-pci/abi.h"

struct vp_port;

struct vp_port_conf {
	char     name[32];            /* for people; may lack the terminating zero */
	uint32_t attachment;          /* VHP_ATTACHMENT_* */
	uint32_t max_queues;          /* 1 .. VHP_MAX_QUEUES */
	uint32_t nsignals;            /* to the guest; 0 = 1 + max_queues */
	uint32_t doorbell;            /* header.doorbell */
	uint32_t queue_doorbell;      /* queues[q].doorbell = this + q */
	uint64_t pool_size;           /* bytes behind the control block in the same memfd, 0 = none */
	bool     pow2;                /* the memfd's size must be a power of two (ivshmem) */
	bool     whole_files;         /* a window is a whole file (ivshmem), else the part that is needed */
	bool     unsealed_ok;         /* memory that its owner can truncate may be passed on (local) */
	bool     slow_take;           /* DETACH is answered after TAKE_MAX even if windows are still going (ivshmem) */
	uint64_t answer_timeout_us;   /* 0 = 1 s */
	bool     count;               /* the guest is asked for its counters */
	const char *driver_vm, *device_vm; /* names, outlive the port; NULL = unknown */
	/*
	 * The port of an earlier process: its memory and its record (vp_port_record_fd()), the port's from now on; a
	 * new port unless kept is set.
	 */
	bool     kept;
	int      kept_memfd, kept_state;
	bool     silent;              /* kept, and nothing is written to it before vp_port_go_on() */
};

/* ---- towards the attachment ------------------------------------------------------------------ */

struct vp_port_window {
	unsigned slot;
	uint32_t serial;
	int      fd;                  /* the port's, valid until the window was taken */
	uint64_t offset, size;        /* in the fd; multiples of 4 KiB */
	const char *what;             /* for messages: "window 0 of port x" */
};

struct vp_port_att_ops {
	/*
	 * Bring a window to the device VM. *locator is filled before it returns. 0: it is there; VP_LATER:
	 * vp_port_window_given() follows; -errno with a sentence.
	 */
	int  (*give)(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e);
	/* Take it away again; only after it was given. 0: gone; VP_LATER: vp_port_window_taken() follows. */
	int  (*take)(void *att, unsigned slot);
	/* Raise signal i to the guest. */
	void (*signal)(void *att, unsigned i);
};

void vp_port_set_attachment(struct vp_port *p, const struct vp_port_att_ops *ops, void *att);
/*
 * The device VM is there (its guest may talk to the port), or it is gone: then all windows are gone with it and
 * nothing is taken, runs end, and the port is not attached. Reads the command page when it comes online.
 */
void vp_port_online(struct vp_port *p, bool online);
/* The guest was reset: as its DETACH, without an answer. */
void vp_port_guest_reset(struct vp_port *p);
/* Signal 0 from the guest: look at the command page. */
void vp_port_command(struct vp_port *p);
/* result 0 or -errno; why (may be NULL) is shown to the administrator. */
void vp_port_window_given(struct vp_port *p, unsigned slot, int result, const char *why);
void vp_port_window_taken(struct vp_port *p, unsigned slot);
/* A window that was given does not work after all (its BAR got no address): takes READY back. */
void vp_port_window_failed(struct vp_port *p, unsigned slot, const char *why);
/*
 * What may have kept windows from being given has gone: they are tried again now, not in 3 s. From the event loop;
 * calls back later.
 */
void vp_port_windows_retry(struct vp_port *p);
/* From now on queue q's kicks come as this signal, its calls leave by this doorbell. */
void vp_port_set_wire(struct vp_port *p, unsigned q, uint32_t kick_signal, uint32_t doorbell);

/* The control memfd and its size; both the port's. */
int vp_port_memfd(const struct vp_port *p, uint64_t *size);
/* What a later process needs to know of this port beside its memory; the port's, and nobody else's to see. */
int vp_port_record_fd(const struct vp_port *p);
/* A word for the attachment that outlives this process as well; 0 at first. Valid as long as the port. */
uint32_t *vp_port_attachment_word(struct vp_port *p);
/*
 * For who takes windows back when this process has gone: the VMM is about to be asked to map [off, off + len) of
 * region 1 (len 0: it has it no more), and to unmap it; it has stopped the device, and nothing is mapped.
 */
void vp_port_record_map(struct vp_port *p, unsigned slot, uint64_t off, uint64_t len);
void vp_port_record_unmapping(struct vp_port *p, unsigned slot);
void vp_port_record_no_maps(struct vp_port *p);
/* It is the port of an earlier process. */
bool vp_port_was_kept(const struct vp_port *p);
/*
 * False for a while after a port was taken over with queues that the device VM was processing: until its guest has let
 * go of them, or its time to do so is over. Till then the owner must not touch the driver VM's rings.
 */
bool vp_port_is_settled(const struct vp_port *p);
/* Where the pool lies in it; 0 bytes when there is none. */
uint64_t vp_port_pool(const struct vp_port *p, uint64_t *size);

/* ---- towards the owner ----------------------------------------------------------------------- */

struct vp_port_stop {
	bool     base_known;
	uint32_t base;                /* as VHOST_SET_VRING_BASE encodes it */
	bool     broken;              /* the guest found the ring malformed */
	bool     lost;                /* the run ended without the guest's word (cut, reset, link down) */
};

struct vp_port_backend {
	uint64_t features;
	uint32_t queues, config_size;
	const uint8_t *config;
};

struct vp_port_ops {
	/* The link came up: hand over queues with vp_port_queue_run(), before it returns. */
	void (*up)(void *ctx);
	/*
	 * Optional. What the data path says that it is: 0, or VHP_ST_FEATURES with the missing bits in *missing, or
	 * VHP_ST_PROFILE. Without it BACKEND is answered with OK.
	 */
	uint32_t (*backend)(void *ctx, const struct vp_port_backend *b, uint64_t *missing);
	/*
	 * Where vp_port_set_maps() was told so. The guest needs [addr, addr + size), of VHP_MAP_MAX bytes at most; the
	 * link is up. VHP_ST_OK, with *covered when regions have it, else a change follows; VHP_ST_REFUSED;
	 * VHP_ST_LIMIT, and a change follows.
	 */
	uint32_t (*map)(void *ctx, uint64_t addr, uint64_t size, bool *covered);
	/* ? The guest does not need it any more. */
	void (*unmap)(void *ctx, uint64_t addr, uint64_t size);
	/* The link went down; each run has been reported by queue_stopped before. */
	void (*down)(void *ctx);
	/* Run of q is over. Once for each vp_port_queue_run() that succeeded. */
	void (*queue_stopped)(void *ctx, unsigned q, const struct vp_port_stop *s);
	/* vp_port_is_settled() has become true. */
	void (*settled)(void *ctx);
	/* ? What vp_port_queue_await() was told to wait for has happened, for one queue or more. */
	void (*released)(void *ctx);
	/*
	 * ? Something may look different now, by vp_port_is_up() or another function below; at the end of every
	 * vp_port_commit().
	 */
	void (*changed)(void *ctx);
	/*
	 * ? Something that vp_port_save() or vp_port_save_hot() writes is about to change, or what the guest sees. Not
	 * for a guest's counters: who asks for their answer may ask again.
	 */
	void (*touch)(void *ctx);
};

/* name for messages. The memfd exists and its header is complete when this returns. */
int vp_port_new(struct vp_port **out, sd_event *event, const struct vp_port_conf *conf, const struct vp_port_ops *ops,
		void *ctx, struct vp_err *e);

/*
 * The daemon ends, the guest does not: who takes the port over will know of queues that are in the guest's hands now,
 * though they are about to be taken from it without an answer. Before the driver side is closed. NULL is allowed.
 */
void vp_port_leave(struct vp_port *p);
/*
 * Tell the guest that the daemon goes away: link down, reason "daemon", no queues; it stays attached if it had queues
 * when vp_port_leave() was called. The page does not change any more. Before the attachment is freed. NULL is allowed.
 */
void vp_port_goodbye(struct vp_port *p);
/*
 * It ends here only: another daemon has it, or will have it. Its page does not change any more, and the attachment is
 * not called. Instead of leave() and goodbye().
 */
void vp_port_abandon(struct vp_port *p);
/* After the attachment was freed. Takes nothing, calls nobody. */
void vp_port_free(struct vp_port *p);

/* The link's constants. required is what ATTACH must support. Before anything else. */
void vp_port_set_link(struct vp_port *p, uint32_t device_type, uint32_t mode, uint32_t nqueues,
		      uint64_t offered, uint64_t required);

/*
 * The mode to be shown; logged: the driver VM's VMM has what is written to its memory logged, and that is why it is not
 * the link's own.
 */
void vp_port_set_mode(struct vp_port *p, uint32_t mode, bool logged);

enum vp_port_hold {
	VP_PORT_HOLD_POLICY = 1,
	VP_PORT_HOLD_ADMIN = 2,
	VP_PORT_HOLD_PROTOCOL = 4,
	VP_PORT_HOLD_PROFILE = 8,
	VP_PORT_HOLD_GRANT = 16
};
/* Reasons of the owner's why the link must be down; a mask. */
void vp_port_set_hold(struct vp_port *p, unsigned hold);

enum vp_port_driver { VP_PORT_NO_DRIVER, VP_PORT_DRIVER_IDLE, VP_PORT_DRIVER_RUNS };
/* From NO_DRIVER to another state counts an epoch. features: negotiated, 0 while unknown. */
void vp_port_set_driver(struct vp_port *p, enum vp_port_driver d, uint64_t features);

/* Config space of the served device, at most VHP_CONFIG_MAX bytes. */
void vp_port_set_config(struct vp_port *p, const void *config, unsigned size);

/* The driver VM has written [off, off + len) of its config space; all is VHP_CONFIG_MAX bytes. */
void vp_port_set_written(struct vp_port *p, uint32_t off, uint32_t len, const uint8_t *all);

struct vp_port_region {
	uint64_t addr, size;          /* link addresses; size > 0 */
	uint64_t offset;              /* of addr in fd */
	int      fd;                  /* stays the caller's, -1 = in the pool */
	uint32_t flags;               /* VHP_REGION_* */
	/*
	 * A window of its own has just these bytes. When it is added while the link is up, the link stays up, and the
	 * region is not shown before its window is there (vp_port_shows()). late: that goes for a window that is
	 * replaced, too. win_size: the window is [win_offset, win_offset + win_size) of the file, which the region lies
	 * in; 0 = it is the region. Until that one is there, a window that is a part of it and has the region will do.
	 */
	bool     own, late;
	uint64_t win_offset, win_size;
};
/*
 * All memory of the link, sorted by addr, n may be 0. Windows are made and withdrawn as needed. -EINVAL: not
 * sorted or not in pages; -E2BIG: more than VHP_MAX_REGIONS (also published as reason "limit"); -ENOMEM. After an error
 * the port has no memory.
 */
int vp_port_set_memory(struct vp_port *p, const struct vp_port_region *r, unsigned n, struct vp_err *e);

/* Regions that are shown to the guest, and whose windows are there, cover [addr, addr + size). */
bool vp_port_shows(const struct vp_port *p, uint64_t addr, uint64_t size);
/* The same by one region alone. */
bool vp_port_shows_whole(const struct vp_port *p, uint64_t addr, uint64_t size);
/* Some window is on its way out: the device VM may still reach what it shows. The end of each is a change. */
bool vp_port_windows_leaving(const struct vp_port *p);
/* The device VM's VMM has some window, or was asked for one; the pool is none. */
bool vp_port_windows_out(const struct vp_port *p);

/* What regions with VHP_REGION_INFLIGHT have room for. Before vp_port_set_memory() that has one. */
void vp_port_set_inflight(struct vp_port *p, unsigned queues, unsigned entries);
/* The attached data path keeps the account of open requests, and has been given the place for it. */
bool vp_port_keeps_account(const struct vp_port *p);

/* Its guest may ask for memory that no region has (ops->map). */
void vp_port_set_maps(struct vp_port *p, bool on);
/* What it asked for has its answer, by regions or (MAP again) by VHP_ST_REFUSED. */
void vp_port_maps_changed(struct vp_port *p);

/* Does fd's file reach that VM through one of its ports: a control block, a pool, or another VM's memory? */
bool vp_port_lends(const char *vm, int fd);

struct vp_port_ring {
	uint64_t desc, avail, used;   /* link addresses */
	uint32_t size, base;
	bool     enabled;
};
/*
 * May a run of q begin, as far as the last one is concerned? 0: yes. VP_LATER: that ended without the guest's
 * word, and the guest may be in a burst of it: `released` (or `down`) follows when it has let go, or it is cut.
 */
int vp_port_queue_await(struct vp_port *p, unsigned q);
/* The same question, and nobody waits for the answer. */
bool vp_port_queue_lingers(const struct vp_port *p, unsigned q);
/* Has the queue, or it was taken from it without its word: it lingers, or was cut off and not heard of since. */
bool vp_port_queue_at_work(const struct vp_port *p, unsigned q);
/* Start a run. -ENOTCONN while the link is down, -EBUSY while the last run goes on or was not let go of, -ERANGE. */
int vp_port_queue_run(struct vp_port *p, unsigned q, const struct vp_port_ring *r);
void vp_port_queue_enable(struct vp_port *p, unsigned q, bool enabled);
/* 0: q does not run; VP_LATER: queue_stopped follows within the time bound, never from inside this call. */
int vp_port_queue_stop(struct vp_port *p, unsigned q);
bool vp_port_queue_running(const struct vp_port *p, unsigned q);
/* Some queue is in the guest's hands, or was taken from it without its word and may still be. */
bool vp_port_in_guests_hands(const struct vp_port *p);
/* End a run at once, without asking (the driver VM is gone). Calls queue_stopped. */
void vp_port_queue_end(struct vp_port *p, unsigned q);

/* Several changes as one update of the page. Nests. */
void vp_port_begin(struct vp_port *p);
void vp_port_commit(struct vp_port *p);
/*
 * Something that is not in the page has changed (an eventfd was replaced): a new generation and signal 0 all the same.
 */
void vp_port_touch(struct vp_port *p);

/* ---- for another daemon ---------------------------------------------------------------------- */

/*
 * The port for another daemon to go on with (docs/handover.md). at_rest: nothing waits for the attachment, or
 * (on_their_way) only windows do, and what waits for these. save: its memory; hot: all else. There
 * vp_port_record_memory() finds the memory before the port is made, which is silent then. It has its own regions, as
 * vp_port_set_memory() was told, when restore_hot() follows; from go_on() on it may speak. anew, before that: the
 * daemon before ended anywhere (link/keep.h), perhaps in the middle of an update: the page is written anew, as it was.
 */
bool vp_port_at_rest(const struct vp_port *p, bool on_their_way);
void vp_port_save(struct vp_port *p, struct vp_rec *r);
void vp_port_save_hot(struct vp_port *p, struct vp_rec *r);
int  vp_port_record_memory(const struct vp_rec_in *in, struct vp_port_conf *pc, struct vp_err *e);
int  vp_port_restore_hot(struct vp_port *p, const struct vp_rec_in *in, struct vp_err *e);
void vp_port_anew(struct vp_port *p);
void vp_port_go_on(struct vp_port *p);
/* The file of a window that was restored, still the port's; -1: there is none. */
int  vp_port_window_fd(const struct vp_port *p, unsigned slot);
bool vp_port_is_silent(const struct vp_port *p);

/* ---- to look at ------------------------------------------------------------------------------ */

/* Features 0..63 that the attached data path supports; 0 while there is none. */
uint64_t vp_port_path(const struct vp_port *p);
bool vp_port_attached(const struct vp_port *p);
bool vp_port_is_up(const struct vp_port *p);
bool vp_port_is_online(const struct vp_port *p);
uint32_t vp_port_reason(const struct vp_port *p);
const char *vp_port_reason_str(uint32_t reason);
uint32_t vp_port_queue_runs(const struct vp_port *p, unsigned q);
/* What the guest says it has moved so far, by VHP_COUNT_*; false: it has said nothing. */
bool vp_port_counted(const struct vp_port *p, uint64_t counted[VHP_COUNTS]);
/* New reference. */
json_t *vp_port_json(const struct vp_port *p);

#endif
