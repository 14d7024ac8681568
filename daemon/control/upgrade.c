/* SPDX-License-Identifier: BSD-3-Clause */
#include "control/upgrade.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "context/audit.h"
#include "context/context.h"
#include "control/control.h"
#include "control/scrape.h"
#include "handover/starter.h"
#include "handover/takeover.h"
#include "link/link.h"
#include "sys/log_sink.h"
#include "sys/source.h"
#include "sys/timer.h"
#include "threads/rates.h"
#include "threads/worker.h"

#define START_US    30000000u /* until the successor says HELLO */
#define REST_US     2000000u  /* until everything is at rest */
#define AGAIN_US    2000u
#define PATIENCE_MS 3000      /* for the take-over itself: nothing runs meanwhile */

enum tag { TAG_DAEMON = 1, TAG_RATES, TAG_LINKS, TAG_CONTROL, TAG_SCRAPES };

struct daemon_rec {
	uint64_t started_us, paused_us;
	uint32_t reloads, upgrades;
	int32_t  log_level, pad;
};

struct vp_upgrade {
	struct vp_daemon  *d;
	int                sock;
	pid_t              pid;
	struct vp_source  *io;
	sd_event_source   *timer;
	bool               hello;     /* it has come */
	uint64_t           until_us;  /* at rest by then */
	struct vp_takeover_hello who;
};

static uint64_t now_us(struct vp_daemon *d)
{
	uint64_t t = 0;

	sd_event_now(d->event, CLOCK_MONOTONIC, &t);
	return t;
}

static uint64_t clock_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

void vp_upgrade_end(struct vp_daemon *d)
{
	struct vp_upgrade *u = d->upgrade;

	if (!u)
		return;
	vp_starter_kill();
	vp_source_end(&u->io);
	vp_timer_end(&u->timer);
	vp_close(&u->sock);
	free(u);
	d->upgrade = NULL;
}

static void give_up(struct vp_upgrade *u, const struct vp_err *e)
{
	struct vp_daemon *d = u->d;

	vp_log(VP_LOG_ERR, "upgrade: %s; this daemon goes on", e->msg);
	vp_upgrade_end(d);
	if (d->control)
		vp_control_answer(d->control, NULL, e);
}

static int at_rest(struct vp_daemon *d, struct vp_err *e)
{
	int r = vp_links_can_hand_over(d->links, e);

	if (!r && !vp_scrapes_at_rest(d->scrapes))
		r = vp_err_set(e, -EBUSY, "a client reads metrics and does not come to the end");
	return r;
}

static void save(struct vp_daemon *d, uint64_t paused_us, struct vp_rec *r)
{
	const struct daemon_rec s = {
		.started_us = d->started_us, .paused_us = paused_us, .reloads = d->reloads, .upgrades = d->upgrades,
		.log_level = vp_log_level(),
	};

	vp_rec_put(r, TAG_DAEMON, &s, sizeof(s));
	vp_rec_begin(r, TAG_RATES);
	vp_rate_save(r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_CONTROL);
	vp_control_save(d->control, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_SCRAPES);
	vp_scrapes_save(d->scrapes, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_LINKS);
	vp_links_save(d->links, r);
	vp_rec_end(r);
}

/* Another process is the daemon now. Nothing here may be touched any more, not even to be closed in order. */
static _Noreturn void leave(struct vp_upgrade *u)
{
	vp_log(VP_LOG_INFO, "upgrade: pid %d, version %s, has taken over", (int)u->pid, u->who.build);
	/* seccomp control: sendmsg */
	sd_notifyf(0, "MAINPID=%d", (int)u->pid);
	vp_log_sink_end();
	_exit(EXIT_SUCCESS);
}

static void hand_over(struct vp_upgrade *u)
{
	int64_t deadline = vp_takeover_ms() + PATIENCE_MS;
	struct vp_daemon *d = u->d;
	struct vp_err e = { 0 };
	struct vp_rec rec = { 0 };
	int r = 0;

	worker_pool_pause(d->workers);
	save(d, clock_us(), &rec);
	if (rec.failed)
		r = vp_err_set(&e, -ENOMEM, "out of memory");
	if (!r)
		r = vp_takeover_send(u->sock, &rec, deadline, &e);
	/* Also after an error: it has to be sure that the successor cannot take over any more. */
	r = vp_takeover_wait(u->sock, deadline, &e);
	if (!r)
		leave(u);
	worker_pool_resume(d->workers);
	vp_rec_free(&rec);
	give_up(u, &e);
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg);

static void try_hand_over(struct vp_upgrade *u)
{
	struct vp_err e = { 0 };
	int r = at_rest(u->d, &e);

	if (!r)
		hand_over(u);
	else if (r != -EBUSY || now_us(u->d) >= u->until_us)
		give_up(u, &e);
	else
		vp_timer_in(u->d->event, &u->timer, AGAIN_US, on_time, u, "upgrade");
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_upgrade *u = arg;
	struct vp_err e;

	if (u->hello) {
		try_hand_over(u);
		return 0;
	}
	vp_err_set(&e, -ETIMEDOUT, "the new daemon was not ready in %u s", START_US / 1000000);
	give_up(u, &e);
	return 0;
}

static int on_successor(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_upgrade *u = arg;
	struct vp_err e = { 0 };
	int r;

	if (u->hello) {
		vp_err_set(&e, -ECHILD, "the new daemon ended before it took over");
		give_up(u, &e);
		return 0;
	}
	r = vp_takeover_hello(u->sock, &u->who, &e);
	if (r == -EAGAIN)
		return 0;
	if (!r && u->who.version < VP_RECORD_VERSION)
		r = vp_err_set(&e, -EPROTONOSUPPORT,
			       "version %s reads records up to version %u, those here are of version %u: going back to "
			       "it takes a restart",
			       u->who.build, u->who.version, VP_RECORD_VERSION);
	if (r) {
		give_up(u, &e);
		return 0;
	}
	u->hello = true;
	u->until_us = now_us(u->d) + REST_US;
	try_hand_over(u);
	return 0;
}

int vp_upgrade_begin(struct vp_daemon *d, const char *path, struct vp_err *e)
{
	struct vp_upgrade *u;
	int r;

	if (d->upgrade)
		return vp_err_set(e, -EBUSY, "an upgrade is going on already; wait for its end");
	r = vp_links_can_hand_over(d->links, e);
	/* What is not at rest will be, by the time when the successor is ready. */
	if (r && r != -EBUSY)
		return r;
	u = calloc(1, sizeof(*u));
	if (!u)
		return vp_err_set(e, -ENOMEM, "out of memory");
	u->d = d;
	u->sock = -1;
	memset(e, 0, sizeof(*e));
	r = vp_starter_run(path, &u->pid, &u->sock, e);
	if (r) {
		free(u);
		return r;
	}
	d->upgrade = u;
	r = vp_source_add(&u->io, d->event, u->sock, EPOLLIN, on_successor, u);
	if (r >= 0)
		r = vp_timer_in(d->event, &u->timer, START_US, on_time, u, "upgrade");
	if (r < 0) {
		vp_upgrade_end(d);
		return vp_err_set(e, r, "the new daemon cannot be waited for: %s", strerror(-r));
	}
	vp_log(VP_LOG_INFO, "upgrade: pid %d starts", (int)u->pid);
	return 0;
}

/* ---- the successor ------------------------------------------------------------------------------- */

struct vp_taken {
	uint8_t           *bytes;
	size_t             n;
	struct vp_rec_fds  fds;
	struct daemon_rec  daemon;
};

static void taken_free(struct vp_taken *t)
{
	vp_rec_fds_close(&t->fds);
	free(t->bytes);
	free(t);
}

static bool part(struct vp_taken *t, unsigned tag, struct vp_rec_in *in)
{
	const struct vp_rec_in all = { t->bytes, t->n, &t->fds };

	return vp_rec_find(&all, tag, in);
}

int vp_upgrade_receive(struct vp_taken **out, struct vp_daemon *d, struct vp_err *e)
{
	struct vp_taken *t = calloc(1, sizeof(*t));
	struct vp_rec_in in;
	int r;

	if (!t)
		return vp_err_set(e, -ENOMEM, "out of memory");
	*out = t;
	vp_takeover_points();
	r = vp_takeover_receive(d->opt.take_over, &t->bytes, &t->n, &t->fds, e);
	if (r)
		return r;
	in = (struct vp_rec_in){ t->bytes, t->n, &t->fds };
	if (vp_rec_get(&in, TAG_DAEMON, &t->daemon, sizeof(t->daemon)))
		return vp_err_set(e, -EPROTO, "the records lack that of the daemon, or are of another version");
	d->started_us = t->daemon.started_us;
	d->reloads = t->daemon.reloads;
	d->upgrades = t->daemon.upgrades + 1;
	if (t->daemon.log_level >= VP_LOG_ERR && t->daemon.log_level <= VP_LOG_DEBUG)
		vp_log_set_level(t->daemon.log_level);
	if (!part(t, TAG_CONTROL, &in))
		return vp_err_set(e, -EPROTO, "the records lack that of the control socket");
	r = vp_control_record_socket(d, &in, e);
	if (!r && part(t, TAG_SCRAPES, &in))
		r = vp_scrapes_record_socket(d, &in, e);
	return r;
}

int vp_upgrade_links(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e)
{
	struct vp_rec_in in;

	if (part(t, TAG_RATES, &in))
		vp_rate_restore(&in);
	if (!part(t, TAG_LINKS, &in))
		return vp_err_set(e, -EPROTO, "the records lack that of the links");
	return vp_links_restore(d->links, d, &in, e);
}

int vp_upgrade_control(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e)
{
	struct vp_rec_in in;
	int r = 0;

	vp_takeover_point();
	if (part(t, TAG_CONTROL, &in))
		r = vp_control_restore(d->control, &in, e);
	if (!r && part(t, TAG_SCRAPES, &in))
		r = vp_scrapes_restore(d->scrapes, &in, e);
	return r;
}

int vp_upgrade_commit(struct vp_taken *t, struct vp_daemon *d)
{
	int r = vp_takeover_done(d->opt.take_over);
	uint64_t us;

	if (r)
		return r;
	worker_pool_resume(d->workers);
	us = clock_us() - t->daemon.paused_us;
	vp_log(VP_LOG_INFO, "upgrade: taken over, %u links, in %llu us", vp_links_count(d->links),
	       (unsigned long long)us);
	/* Its end is the sign that the sockets of links that changed are free. */
	taken_free(t);
	vp_takeover_await_end(d->opt.take_over, 2000);
	vp_close(&d->opt.take_over);
	vp_audit_action(d, "daemon.upgrade", "", 0, NULL);
	vp_control_answer(d->control,
			  json_pack("{s:s,s:i,s:I,s:i}", "version", VP_VERSION, "pid", (int)getpid(), "stall_us",
				    (json_int_t)us, "links", (int)vp_links_count(d->links)),
			  NULL);
	return 0;
}
