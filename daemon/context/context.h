/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The daemon as a whole: what main() builds and everything else may reach. The pointers lead to things
 * of the rooms above, which are opaque here. One per process; main thread only.
 */
#ifndef VP_DAEMON_DAEMON_H
#define VP_DAEMON_DAEMON_H

#include <dirent.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <systemd/sd-event.h>

#include "conf/conf.h"
#include "sys/activation.h"

struct vp_control;
struct vp_scrapes;
struct worker_pool;
struct vp_links;
struct vp_forward;
struct vp_audit;
struct vp_begin;
struct vp_guard;
struct vp_source;
struct vp_upgrade;

struct vp_options {
	struct vp_conf_paths paths;
	const char *threads;  /* as written; override the files */
	const char *cpus;
	const char *user;
	int         log_level;
	bool        check_config;
	unsigned    hold;       /* seconds without a daemon, 0 = nobody keeps fds for the next one (holder.h) */
	int         take_over;  /* socket to the daemon before us, -1 = there is none */
};

struct vp_daemon {
	sd_event             *event;
	struct vp_options     opt;
	struct vp_conf       *conf;     /* what the files say; links added at run time are not in it */
	struct worker_pool   *workers;
	struct vp_source     *attention;  /* of workers */
	struct vp_links      *links;
	struct vp_forward    *forward;  /* made with the first port */
	struct vp_control    *control;
	struct vp_scrapes    *scrapes;
	struct vp_activation  activation;
	struct vp_audit      *audit;
	struct vp_guard      *guard;
	struct vp_upgrade    *upgrade;  /* while a successor starts */
	struct vp_begin      *begin;    /* while the links of the start are made */
	sd_event_source      *keep_timer; /* link/keep.h */
	bool                  keep_waits; /* it is on */
	void                (*on_event)(void *arg, const char *event, json_t *data);  /* events.h */
	void                 *on_event_arg;
	const struct ucred   *actor;       /* the control client that is being served; NULL = nobody asked */
	DIR                  *fd_dir;      /* /proc/self/fd, opened while that could be done */
	uint64_t              started_us;  /* CLOCK_MONOTONIC */
	unsigned              reloads, upgrades;
	int                   spare_fd;    /* given up when fds run out */
	uint64_t              last_shed_us;
	bool                  stopping;
	bool                  reload_late;  /* asked for while begin was there */
};

/* "keep.LINK.WHAT" */
_Static_assert(VP_ACTIVATION_NAME_MAX >= VP_CONF_NAME_MAX + 16, "a link's name has room in the name of an fd");

/* Ask the loop to end; used by SIGTERM. */
void vp_daemon_stop(struct vp_daemon *d);

/*
 * accept() said EMFILE. Take one waiting connection with the fd kept in reserve and close it, so that
 * the listening socket lfd does not stay readable for ever. what is for the log.
 */
void vp_daemon_shed(struct vp_daemon *d, int lfd, const char *what);

#endif
