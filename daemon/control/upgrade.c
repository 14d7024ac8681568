/* SPDX-License-Identifier: BSD-3-Clause */
#include "control/upgrade.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "control/control.h"
#include "control/scrape.h"
#include "handover/guard.h"
#include "handover/holder.h"
#include "handover/starter.h"
#include "handover/takeover.h"
#include "link/keep.h"
#include "link/link.h"
#include "sys/fds.h"
#include "sys/log_sink.h"
#include "sys/source.h"
#include "sys/timer.h"
#include "threads/forward.h"
#include "threads/rates.h"
#include "threads/worker.h"

#define START_US    30000000u /* until the successor says HELLO */
#define REST_US     2000000u  /* until everything is at rest */
#define AGAIN_US    2000u
#define PATIENCE_MS 3000      /* for the take-over itself: nothing runs meanwhile */

#define TRIES       3         /* with VMMs that speak in between; then everything stands still from the start */

/* The first part has the links; the second all else, and what data threads have changed. */
enum tag {
	TAG_DAEMON = 1, TAG_RATES, TAG_LINKS, TAG_CONTROL, TAG_SCRAPES, TAG_HOT, TAG_VERDICT, TAG_HOLDER,
};

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
	bool               hello;     /* it has come, and the first part was sent */
	bool               ready;     /* that was read */
	bool               early;     /* everything stands still from before the first part on */
	unsigned           tries;
	struct vp_rec      first;
	uint64_t           paused_us; /* 0 = not */
	uint64_t           until_us;  /* at rest by then */
	char              *path;
	struct vp_verdict *verdict;   /* of this successor */
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

/* The successor ends, this daemon goes on. */
static void drop_successor(struct vp_upgrade *u)
{
	vp_starter_kill();
	vp_source_end(&u->io);
	vp_timer_end(&u->timer);
	vp_close(&u->sock);
	vp_rec_free(&u->first);
	if (u->verdict)
		vp_verdict_for_old(u->verdict);
	vp_verdict_free(u->verdict);
	u->verdict = NULL;
	u->hello = u->ready = false;
	if (u->paused_us) {
		vp_forward_resume(u->d->forward);
		worker_pool_resume(u->d->workers);
	}
	u->paused_us = 0;
}

void vp_upgrade_end(struct vp_daemon *d)
{
	if (!d->upgrade)
		return;
	drop_successor(d->upgrade);
	free(d->upgrade->path);
	free(d->upgrade);
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

static void save_first(struct vp_daemon *d, struct vp_rec *r)
{
	vp_rec_begin(r, TAG_LINKS);
	vp_links_save(d->links, r);
	vp_rec_end(r);
	vp_rec_fd(r, TAG_HOLDER, VP_REC_FD_SOCKET, vp_holder_fd());
}

static void save_second(struct vp_daemon *d, uint64_t paused_us, const struct vp_verdict *v, struct vp_rec *r)
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
	vp_rec_begin(r, TAG_HOT);
	vp_links_save_hot(d->links, r);
	vp_rec_end(r);
	vp_rec_fd(r, TAG_VERDICT, VP_REC_FD_FILE, vp_verdict_fd(v));
}

/* A signal to end that the loop has not seen yet. */
static bool told_to_stop(void)
{
	sigset_t set;

	/* seccomp control: rt_sigpending */
	return !sigpending(&set) && (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT));
}

/* Another process is the daemon now. Nothing here may be touched any more, not even to be closed in order. */
static _Noreturn void leave(struct vp_upgrade *u)
{
	vp_log(VP_LOG_INFO, "upgrade: pid %d, version %s, has taken over", (int)u->pid, u->who.build);
	/* Who has told this process to stop means the daemon. */
	if (told_to_stop())
		vp_takeover_stop(u->sock);
	/* seccomp control: sendmsg */
	sd_notifyf(0, "MAINPID=%d", (int)u->pid);
	/* Its own guard has them. */
	vp_guard_leave(u->d->guard);
	vp_log_sink_end();
	/* The end of u->sock says that nobody listens here any more: it comes last. */
	vp_fds_close_but(u->d->fd_dir, u->sock);
	_exit(EXIT_SUCCESS);
}

static void stand_still(struct vp_upgrade *u)
{
	if (u->paused_us)
		return;
	u->paused_us = clock_us();
	worker_pool_pause(u->d->workers);
	vp_forward_pause(u->d->forward);
}

/* Traffic stands still until then at most. */
static int64_t deadline_of(const struct vp_upgrade *u)
{
	return (int64_t)(u->paused_us / 1000) + PATIENCE_MS;
}

/* Is what was sent first still so? */
static bool unchanged(struct vp_upgrade *u)
{
	struct vp_rec now = { 0 };
	bool same;

	save_first(u->d, &now);
	same = !now.failed && now.n == u->first.n && now.n_fds == u->first.n_fds &&
	       !memcmp(now.p, u->first.p, now.n) && !memcmp(now.fd, u->first.fd, now.n_fds * sizeof(*now.fd));
	vp_rec_free(&now);
	return same;
}

static int start(struct vp_upgrade *u, struct vp_err *e);

/* Some VMM has spoken since: what the successor has made is out of date. */
static void try_again(struct vp_upgrade *u)
{
	struct vp_err e = { 0 };

	vp_log(VP_LOG_DEBUG, "upgrade: a link has changed since the successor was told of it; once more");
	drop_successor(u);
	u->early = ++u->tries >= TRIES;
	if (start(u, &e))
		give_up(u, &e);
}

/* The successor has the first part, and nothing runs any more. */
static void hand_over(struct vp_upgrade *u)
{
	struct vp_err e = { 0 };
	struct vp_rec rec = { 0 };
	int64_t deadline;
	int r = 0;

	if (told_to_stop()) {
		vp_err_set(&e, -ECANCELED, "this daemon is to stop");
		give_up(u, &e);
		return;
	}
	stand_still(u);
	deadline = deadline_of(u);
	if (!u->early && !unchanged(u)) {
		try_again(u);
		return;
	}
	/* Before the successor can decide. One that does not know would part the VMs when this daemon has gone. */
	r = vp_guard_heir(u->d->guard, u->verdict);
	if (r) {
		vp_err_set(&e, r, "the guard (pid %d) takes no messages, look at that process",
			   (int)vp_guard_pid(u->d->guard));
		give_up(u, &e);
		return;
	}
	/* Whoever starts when the successor has ended must not go on with what is so now. */
	vp_keeps_disown(u->d, true);
	save_second(u->d, u->paused_us, u->verdict, &rec);
	if (rec.failed)
		vp_err_set(&e, -ENOMEM, "out of memory");
	else
		vp_takeover_send(u->sock, &rec, deadline, &e);
	/* Also after an error: it has to be sure that the successor cannot take over any more. */
	r = vp_takeover_wait(u->sock, u->verdict, deadline, &e);
	if (!r)
		leave(u);
	vp_rec_free(&rec);
	vp_keeps_disown(u->d, false);
	give_up(u, &e);
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg);

static void tell_first(struct vp_upgrade *u)
{
	struct vp_err e = { 0 };

	if (u->early)
		stand_still(u);
	save_first(u->d, &u->first);
	if (u->first.failed)
		vp_err_set(&e, -ENOMEM, "out of memory");
	else
		vp_takeover_send(u->sock, &u->first, u->early ? deadline_of(u) : vp_takeover_ms() + PATIENCE_MS, &e);
	if (e.code) {
		give_up(u, &e);
		return;
	}
	u->hello = true;
	vp_timer_in(u->d->event, &u->timer, START_US, on_time, u, "upgrade");
	/* Nothing may be heard of anybody, or it would not be told. */
	if (u->early) {
		int r = -EAGAIN;

		while (r == -EAGAIN && vp_takeover_ms() < deadline_of(u)) {
			r = vp_takeover_ready(u->sock, &e);
			if (r == -EAGAIN)
				vp_takeover_pause(u->sock, deadline_of(u));
		}
		if (r == -EAGAIN)
			vp_err_set(&e, -ETIMEDOUT, "the new daemon did not take over in time");
		if (r)
			give_up(u, &e);
		else
			hand_over(u);
	}
}

static void go_on(struct vp_upgrade *u)
{
	struct vp_err e = { 0 };
	int r = at_rest(u->d, &e);

	if (!r && u->ready)
		hand_over(u);
	else if (!r)
		tell_first(u);
	else if (r != -EBUSY || now_us(u->d) >= u->until_us)
		give_up(u, &e);
	else
		vp_timer_in(u->d->event, &u->timer, AGAIN_US, on_time, u, "upgrade");
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_upgrade *u = arg;
	struct vp_err e;

	if (u->until_us) {
		go_on(u);
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

	/* While it waits for us it has nothing to say. */
	if (u->until_us && (u->ready || !u->hello)) {
		vp_err_set(&e, -ECHILD, "the new daemon ended before it took over");
		give_up(u, &e);
		return 0;
	}
	r = u->hello ? vp_takeover_ready(u->sock, &e) : vp_takeover_hello(u->sock, &u->who, &e);
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
	u->ready = u->hello;
	u->until_us = now_us(u->d) + REST_US;
	go_on(u);
	return 0;
}

static int start(struct vp_upgrade *u, struct vp_err *e)
{
	struct vp_daemon *d = u->d;
	int r = vp_starter_run(u->path, &u->pid, &u->sock, e);

	if (r)
		return r;
	u->until_us = 0;
	r = vp_verdict_new(&u->verdict);
	if (r)
		return vp_err_set(e, r, "the new daemon cannot be told that it goes on: %s", strerror(-r));
	r = vp_source_add(&u->io, d->event, u->sock, EPOLLIN, on_successor, u);
	if (r >= 0)
		r = vp_timer_in(d->event, &u->timer, START_US, on_time, u, "upgrade");
	if (r < 0)
		return vp_err_set(e, r, "the new daemon cannot be waited for: %s", strerror(-r));
	vp_log(VP_LOG_INFO, "upgrade: pid %d starts", (int)u->pid);
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
	if (u)
		u->path = strdup(path);
	if (!u || !u->path) {
		free(u);
		return vp_err_set(e, -ENOMEM, "out of memory");
	}
	u->d = d;
	u->sock = -1;
	d->upgrade = u;
	memset(e, 0, sizeof(*e));
	r = start(u, e);
	if (r)
		vp_upgrade_end(d);
	return r;
}

/* ---- the successor ------------------------------------------------------------------------------- */

struct part {
	uint8_t           *bytes;
	size_t             n;
	struct vp_rec_fds  fds;
};

struct vp_taken {
	struct part       first, second;
	struct daemon_rec daemon;
	struct vp_verdict *verdict;   /* NULL: the daemon before knows none */
};

static void part_free(struct part *p)
{
	vp_rec_fds_close(&p->fds);
	free(p->bytes);
}

static bool find(struct part *p, unsigned tag, struct vp_rec_in *in)
{
	const struct vp_rec_in all = { p->bytes, p->n, &p->fds };

	return vp_rec_find(&all, tag, in);
}

static int receive(struct vp_daemon *d, bool first, struct part *p, struct vp_err *e)
{
	return vp_takeover_receive(d->opt.take_over, first, &p->bytes, &p->n, &p->fds, e);
}

int vp_upgrade_receive(struct vp_taken **out, struct vp_daemon *d, struct vp_err *e)
{
	struct vp_taken *t = calloc(1, sizeof(*t));

	if (!t)
		return vp_err_set(e, -ENOMEM, "out of memory");
	*out = t;
	vp_takeover_points();
	return receive(d, true, &t->first, e);
}

int vp_upgrade_links(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e)
{
	const struct vp_rec_in all = { t->first.bytes, t->first.n, &t->first.fds };
	struct vp_rec_in in;
	int fd, r = vp_rec_take(&all, TAG_HOLDER, VP_REC_FD_SOCKET, &fd, e);

	/* Links look for who keeps them when they are made. */
	if (!r && fd >= 0)
		r = vp_holder_adopt(d->event, fd, e);
	if (r)
		return r;
	if (!find(&t->first, TAG_LINKS, &in))
		return vp_err_set(e, -EPROTO, "the records lack that of the links");
	return vp_links_restore(d->links, d, &in, e);
}

/* From here on our guard takes what the other one's has. */
static int take_verdict(struct vp_taken *t, struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e)
{
	int fd, r = vp_rec_take(in, TAG_VERDICT, VP_REC_FD_FILE, &fd, e);

	if (r || fd < 0)
		return r;
	r = vp_verdict_map(&t->verdict, fd);
	vp_close(&fd);
	if (r)
		return vp_err_set(e, -EPROTO, "the record of the verdict is none: %s", strerror(-r));
	r = vp_guard_born(d->guard, t->verdict);
	return r ? vp_err_set(e, r, "its guard takes no messages: %s", strerror(-r)) : 0;
}

int vp_upgrade_rest(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e)
{
	struct part *p = &t->second;
	struct vp_rec_in in;
	int r = receive(d, false, p, e);

	if (r)
		return r;
	in = (struct vp_rec_in){ p->bytes, p->n, &p->fds };
	if (vp_rec_get(&in, TAG_DAEMON, &t->daemon, sizeof(t->daemon)))
		return vp_err_set(e, -EPROTO, "the records lack that of the daemon, or are of another version");
	d->started_us = t->daemon.started_us;
	d->reloads = t->daemon.reloads;
	d->upgrades = t->daemon.upgrades + 1;
	if (t->daemon.log_level >= VP_LOG_ERR && t->daemon.log_level <= VP_LOG_DEBUG)
		vp_log_set_level(t->daemon.log_level);
	if (!find(p, TAG_HOT, &in))
		return vp_err_set(e, -EPROTO, "the records lack what the links do");
	r = take_verdict(t, d, &(const struct vp_rec_in){ p->bytes, p->n, &p->fds }, e);
	if (!r)
		r = vp_links_restore_hot(d->links, &in, e);
	if (!r && find(p, TAG_RATES, &in))
		vp_rate_restore(&in);
	if (!r && !find(p, TAG_CONTROL, &in))
		return vp_err_set(e, -EPROTO, "the records lack that of the control socket");
	if (!r)
		r = vp_control_record_socket(d, &in, e);
	if (!r && find(p, TAG_SCRAPES, &in))
		r = vp_scrapes_record_socket(d, &in, e);
	return r;
}

int vp_upgrade_control(struct vp_taken *t, struct vp_daemon *d, struct vp_err *e)
{
	struct vp_rec_in in;
	int r = 0;

	vp_takeover_point();
	if (find(&t->second, TAG_CONTROL, &in))
		r = vp_control_restore(d->control, &in, e);
	if (!r && find(&t->second, TAG_SCRAPES, &in))
		r = vp_scrapes_restore(d->scrapes, &in, e);
	return r;
}

int vp_upgrade_commit(struct vp_taken *t, struct vp_daemon *d, uint64_t *stall_us)
{
	int r = vp_takeover_done(d->opt.take_over, t->verdict);
	struct vp_rec_in links;
	bool stop;

	if (r)
		return r;
	vp_takeover_behind();
	vp_links_go_on(d->links);
	worker_pool_resume(d->workers);
	vp_takeover_behind();
	*stall_us = clock_us() - t->daemon.paused_us;
	vp_log(VP_LOG_INFO, "upgrade: taken over, %u links, in %llu us", vp_links_count(d->links),
	       (unsigned long long)*stall_us);
	part_free(&t->second);
	if (find(&t->first, TAG_LINKS, &links))
		vp_links_end_rest(d->links, &links);
	vp_rec_fds_close(&t->first.fds);
	vp_verdict_free(t->verdict);
	/* Sockets of links that changed are free when neither process has them any more. */
	stop = vp_takeover_await_end(d->opt.take_over, 2000);
	/* Now it is we whom the service manager listens to. */
	vp_guard_keep_heir(d->guard);
	if (find(&t->first, TAG_LINKS, &links))
		vp_keeps_inherit(d, &links);
	part_free(&t->first);
	free(t);
	for (unsigned i = 0; i < 2000 && vp_foreign_closing(); i++)
		usleep(1000);
	vp_close(&d->opt.take_over);
	if (stop) {
		vp_log(VP_LOG_INFO, "stopping: the daemon before was told to while it handed over");
		vp_daemon_stop(d);
	}
	return 0;
}

void vp_upgrade_answer(struct vp_daemon *d, uint64_t stall_us, unsigned failed)
{
	vp_control_answer(d->control,
			  json_pack("{s:s,s:i,s:I,s:i,s:i}", "version", VP_VERSION, "pid", (int)getpid(), "stall_us",
				    (json_int_t)stall_us, "links", (int)vp_links_count(d->links), "failed",
				    (int)failed),
			  NULL);
}
