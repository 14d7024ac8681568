/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside of a port; for files of this directory only. */
#ifndef VP_DAEMON_PORT_PRIV_H
#define VP_DAEMON_PORT_PRIV_H

#include <sys/types.h>

#include "base/util.h"
#include "port/ctrl.h"
#include "port/port.h"
#include "sys/slow.h"

#define PORT_SYNC_US     1000000u   /* how long a removed window, or a queue's next run, waits for SYNC */
/*
 * How long DETACH waits for windows where answering before they are gone is harmless. Short: while the guest
 * unplugs the port itself, its PCI hot-plug lock keeps our windows from leaving until the answer is there.
 */
#define PORT_TAKE_MAX_US 250000u
#define PORT_RETRY_US    3000000u   /* a window that could not be given is tried again */

enum win_state {
	WIN_FREE,
	WIN_GIVING,     /* entry published, the attachment is at work */
	WIN_READY,
	WIN_REVOKING,   /* no region names it any more, waits for SYNC or its deadline */
	WIN_TAKING,     /* entry gone, the attachment is at work */
	WIN_FAILED,     /* cannot be given, see error; tried again at its deadline */
};

struct port_win {
	enum win_state state;
	bool     cancel;        /* GIVING: to be taken as soon as it was given */
	bool     truncatable;
	bool     dead;          /* READY once, failed later: taken before it is tried again */
	int      fd;
	dev_t    dev;
	ino_t    ino;
	uint64_t offset, size;  /* in the file */
	uint64_t locator;
	uint32_t serial, kind;
	uint32_t gen;           /* REVOKING: SYNC of this generation releases it */
	uint64_t deadline;      /* 0 = none */
	bool     used;          /* scratch of port_windows_update() */
	char     error[200];
};

struct port_region {
	struct vp_port_region r; /* fd is ours */
	dev_t    dev;
	ino_t    ino;
	uint64_t file_size;
	bool     truncatable;
};

struct port_queue {
	bool     running, stopping;
	uint64_t deadline;
	struct vp_slow slow;    /* stopping */
	uint32_t run;
	/* The last run ended without the guest's word, which may still be at work on it. */
	bool     lingers;
	uint32_t gen;           /* SYNC of this generation: it has let go */
	uint64_t await;         /* the next run is wanted: it must have by then; 0 = nobody waits */
};

struct vp_port {
	struct vp_port               *next;         /* all ports of this process */
	sd_event                     *event;
	struct vp_port_conf           conf;
	const struct vp_port_ops     *ops;
	void                         *ctx;
	const struct vp_port_att_ops *aops;
	void                         *att;
	/* the page: truth is st; pub is what the page was given */
	int                           memfd;
	uint64_t                      mem_size;
	struct port_ctrl              ctrl;
	struct port_record             *record;
	int                           recordfd;
	uint32_t                      generation;
	unsigned                      depth;
	bool                          regions_dirty, touched;
	struct vhp_abi_state           st, pub;
	unsigned                      used_windows, used_regions; /* entries behind these are zero in both */
	/* life */
	bool                          online, attached, up, logged, updating, again;
	bool                          falling;      /* up, and waiting for the guest to stop its queues */
	bool                          cut, bad_features, limit;
	unsigned                      hold;
	enum vp_port_driver           driver;
	/* since when the driver's queues run, the link is up; 0 = not */
	uint64_t                      driver_us, up_us;
	uint64_t                      offered, required, features;
	uint64_t                      path[2];      /* what the data path supports */
	uint32_t                      device_type, nqueues;
	struct port_queue             q[VHP_MAX_QUEUES];
	/* windows */
	struct port_win               win[VHP_MAX_WINDOWS];
	uint32_t                      serial;
	struct port_region           *mem;
	unsigned                      n_mem;
	unsigned                      n_unready;    /* windows that regions need and that are not there */
	unsigned                      inflight_queues, inflight_entries;
	bool                          keeps;        /* the data path has an account of open requests */
	bool                          maps;         /* MAP is served */
	/* commands */
	uint32_t                      answered;
	uint8_t                       told[VHP_CONFIG_MAX]; /* by CONFIG, */
	uint32_t                      n_told;       /* that many bytes from the start */
	bool                          busy;         /* a command waits for windows to be taken */
	struct vhp_abi_command         cmd;          /* it, private copy */
	uint64_t                      busy_deadline;
	bool                          was_running;  /* in the process before us */
	bool                          left_running; /* for the process behind us */
	bool                          gone;         /* goodbye was said */
	bool                          silent;       /* the page is still another daemon's */
	bool                          anew;         /* it may be half written */
	uint64_t                      settle_deadline; /* 0 = settled */
	sd_event_source              *timer;
	/* the guest's word on what it has moved: VHP_COUNT_*, of all attachments; of this one, as told last */
	uint64_t                      counted[VHP_COUNTS], told_counts[VHP_COUNTS];
	bool                          has_counted;
	/* statistics */
	uint64_t                      n_commands, n_refused, n_cuts, n_attaches, n_updates;
};

/* record.c: counters that must go on counting in a later process */
int  port_record_make(struct vp_port *p, struct vp_err *e);
void port_record_save(struct vp_port *p);
/* Goodbye was said, the page is as it stays. */
void port_record_left(struct vp_port *p);
void port_record_free(struct vp_port *p);

/* page.c */
int  port_page_make(struct vp_port *p, struct vp_err *e);
void port_page_free(struct vp_port *p);
void port_touch_regions(struct vp_port *p);
/* May there be anything but zeroes in these bytes of st or pub? Most of a page is never written. */
bool port_page_used(const struct vp_port *p, size_t at, size_t len);
/* As vp_port_begin(), for what need not be told to ops->touch. */
void port_begin_untold(struct vp_port *p);
/* Every word of the page, behind whatever was under way. */
void port_page_again(struct vp_port *p);

/* window.c */
/* Bring windows and regions in line with memory, attachment and driver. Within begin/commit. */
void port_windows_update(struct vp_port *p);
/* All windows away at once (detach, cut); they may need the attachment's time. */
void port_windows_withdraw(struct vp_port *p);
/* All windows went with the device VM. */
void port_windows_lost(struct vp_port *p);
bool port_windows_going(const struct vp_port *p);
void port_windows_sync(struct vp_port *p, uint32_t gen);
void port_windows_timer(struct vp_port *p, uint64_t now);
uint64_t port_windows_deadline(const struct vp_port *p);
void port_mem_free(struct vp_port *p);

/* port.c */
/* Does this file reach that VM through one of its ports: a control block, a pool, or another VM's memory? */
bool port_lends(const char *vm, dev_t dev, ino_t ino);

/* runs.c */
struct vhp_abi_queue *port_queue_entry(struct vp_port *p, unsigned q);
void port_queue_flags(struct vp_port *p, unsigned q, uint32_t set, uint32_t clear);
/* As vp_port_queue_stop(). An earlier request stands, if its time is not the longer one. */
int  port_stop_within(struct vp_port *p, unsigned q, uint64_t us);
void port_end_run(struct vp_port *p, unsigned q, const struct vp_port_stop *s);
void port_end_all_runs(struct vp_port *p);
/* The guest is at work on no queue any more (gen NULL), or on none that lingers since generation *gen. */
bool port_let_go(struct vp_port *p, const uint32_t *gen);

/* life.c */
uint64_t port_now(struct vp_port *p);
void port_arm(struct vp_port *p);
void port_evaluate(struct vp_port *p);
void port_detach(struct vp_port *p);
void port_settle(struct vp_port *p);
void port_show_status(struct vp_port *p);

/* command.c */
/* What the command that is busy waited for has happened. */
void port_command_done(struct vp_port *p);

#endif
