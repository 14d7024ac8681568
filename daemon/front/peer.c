/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: anyone who can reach the socket may connect, in floods, and
 * never say a word. A connection costs nothing before its credentials have
 * passed; one session and one waiting connection exist at most.
 */
#include "front/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#include "context/audit.h"
#include "base/blame.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "conf/policy.h"
#include "sys/sock.h"
#include "sys/source.h"
#include "sys/timer.h"

#define RETRY_MIN_US   100000u
#define RETRY_MAX_US   3000000u
#define HOLD_US        2000000u  /* how long a second connection waits for the first to die */
#define LOG_EVERY_US   1000000u
#define BRIEF_US       1000000u  /* a session that did not last so long and set nothing up */
#define SECOND_EVERY_US 60000000u /* a VMM that connects again and again to a socket that is taken */

struct vp_peer {
	bool                closing_said;  /* that it left without sending memory; once */
	struct vp_daemon           *d;
	const char                 *name;
	const struct vp_conf_side  *conf;
	const struct vp_peer_ops   *ops;
	const struct vu_backend_ops *vu_ops;
	void                       *ctx;
	int                         lfd;
	bool                        unlink_path;
	struct vp_source           *listen_io;
	sd_event_source            *timer;     /* reconnect, or the waiting connection's end */
	int                         held_fd;   /* second connection, waiting */
	int                         past_fd;   /* of a session that is over, see ops->hold() */
	struct ucred                held_cred;
	uint32_t                    retry_us;
	bool                        retry_logged;
	uint64_t                    last_log_us, last_second_us;
	uint64_t                    n_second;  /* refused since that was said */
	struct vu_backend          *vu;
	struct vp_source           *vu_io, *req_io;
	unsigned                    req_seen;  /* vu_backend_req_serial() of the channel of req_io */
	sd_event_source            *defer;
	bool                        leaving;
	uint64_t                    begun_us, brief_said_us;
	unsigned                    n_brief, n_brief_untold;  /* brief sessions in a row; since that was said */
	unsigned                    queues;    /* that its link has, as the session is told */
	char                        kick_why[120];
	struct vp_peer_info         info;
};

static void session_end(struct vp_peer *p, const char *why, bool quiet);
static int session_begin(struct vp_peer *p, int fd, const struct ucred *cred);

static void touch(struct vp_peer *p)
{
	if (p->ops->touch)
		p->ops->touch(p->ctx);
}

static uint64_t now_us(struct vp_peer *p)
{
	uint64_t t = 0;

	sd_event_now(p->d->event, CLOCK_MONOTONIC, &t);
	return t;
}

/* One line a second and peer at most, for messages that a stranger can cause. */
static bool may_log(struct vp_peer *p)
{
	uint64_t t = now_us(p);

	if (t - p->last_log_us < LOG_EVERY_US)
		return false;
	p->last_log_us = t;
	return true;
}

static uint32_t epoll_mask(short events)
{
	return (events & POLLIN ? EPOLLIN : 0) | (events & POLLOUT ? EPOLLOUT : 0);
}

static int arm_timer(struct vp_peer *p, uint64_t in_us, sd_event_time_handler_t fn)
{
	vp_timer_end(&p->timer); /* it may be the other function's */
	return vp_timer_in(p->d->event, &p->timer, in_us, fn, p, p->name);
}

/* ---- client mode: connect, and try again --------------------------------- */

static int on_retry(sd_event_source *s, uint64_t usec, void *arg);

static void retry_later(struct vp_peer *p)
{
	arm_timer(p, p->retry_us, on_retry);
	p->retry_us = VP_MIN(2 * p->retry_us, RETRY_MAX_US);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_peer *p = arg;
	struct ucred cred = { 0 };
	struct vp_err e = { 0 };
	int fd = -1, r;

	touch(p);
	r = vp_sock_connect(p->conf->socket, &fd, &e);
	if (!r)
		r = vp_sock_peer(fd, &cred);
	if (!r && !vp_policy_user_ok(vp_conf_vm_find(p->d->conf, p->conf->vm), cred.uid, geteuid())) {
		vp_close_foreign(&fd);
		r = vp_err_set(&e, -EACCES, "%s: belongs to user %u, who may not serve VM %s; add it to User= in %s.vm",
			       p->conf->socket, cred.uid, p->conf->vm, p->conf->vm);
	}
	if (!r)
		r = session_begin(p, fd, &cred);
	if (r) {
		/* Said once, and again when it is something else. */
		if (e.code && (vp_err_is_new(&e, p->info.last, sizeof(p->info.last)) || !p->retry_logged))
			vp_log(VP_LOG_NOTICE, "%s: %s; trying again until it works", p->name, e.msg);
		p->retry_logged = true;
		retry_later(p);
		return 0;
	}
	p->retry_us = RETRY_MIN_US;
	p->retry_logged = false;
	return 0;
}

/* ---- server mode --------------------------------------------------------- */

/* The session's front-end is gone, only its hang-up has not been handled yet. */
static bool session_dead(struct vp_peer *p)
{
	return vp_sock_hung_up(vu_backend_fd(p->vu));
}

static int on_hold_end(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_peer *p = arg;

	if (p->held_fd < 0)
		return 0;
	touch(p);
	p->info.refused++;
	p->n_second++;
	if (!p->last_second_us || now_us(p) - p->last_second_us >= SECOND_EVERY_US) {
		vp_log(VP_LOG_WARNING,
		       "%s: refused a second front-end (pid %d, %llu times since this was last said) while pid %d is "
		       "connected; stop one of them",
		       p->name, (int)p->held_cred.pid, (unsigned long long)p->n_second, (int)p->info.pid);
		p->last_second_us = now_us(p);
		p->n_second = 0;
	}
	vp_close_foreign(&p->held_fd);
	return 0;
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct vp_peer *p = arg;
	struct ucred cred;
	int fd;

	/* seccomp control: accept4 */
	fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(p->d, lfd, p->name);
		return 0;
	}
	if (vp_sock_peer(fd, &cred) ||
	    !vp_policy_user_ok(vp_conf_vm_find(p->d->conf, p->conf->vm), cred.uid, geteuid())) {
		p->info.refused++;
		if (may_log(p)) {
			vp_log(VP_LOG_WARNING,
			       "%s: refused pid %d of user %u, who may not run VM %s; add it to User= in %s.vm",
			       p->name, (int)cred.pid, cred.uid, p->conf->vm, p->conf->vm);
			vp_audit_vmm(p->d, p->name, p->conf->vm, &cred);
		}
		vp_close_foreign(&fd);
		return 0;
	}
	/* Not for a stranger, who may come all the time. */
	touch(p);
	if (p->vu && session_dead(p))
		session_end(p, "the front-end went away", false);
	if (!p->vu) {
		session_begin(p, fd, &cred);
		return 0;
	}
	if (p->held_fd >= 0) {
		p->info.refused++;
		if (may_log(p))
			vp_log(VP_LOG_WARNING,
			       "%s: refused a further front-end (pid %d): pid %d is connected and pid %d waits",
			       p->name, (int)cred.pid, (int)p->info.pid, (int)p->held_cred.pid);
		vp_close_foreign(&fd);
		return 0;
	}
	if (arm_timer(p, HOLD_US, on_hold_end) < 0) {
		vp_close_foreign(&fd);
		return 0;
	}
	p->held_fd = fd;
	p->held_cred = cred;
	return 0;
}

/* After a session: serve who waits, or connect again. */
static int on_next(sd_event_source *s, void *arg)
{
	struct vp_peer *p = arg;
	int fd = p->held_fd;

	touch(p);
	if (p->kick_why[0] && p->vu)
		session_end(p, p->kick_why, false);
	p->kick_why[0] = 0;
	if (p->vu)
		return 0;
	if (fd >= 0) {
		p->held_fd = -1;
		session_begin(p, fd, &p->held_cred);
	} else if (p->conf->socket_mode == VP_SOCKET_CLIENT) {
		retry_later(p);
	}
	return 0;
}

static void run_next(struct vp_peer *p)
{
	if (p->defer)
		sd_event_source_set_enabled(p->defer, SD_EVENT_ONESHOT);
	else
		vp_event_added(sd_event_add_defer(p->d->event, &p->defer, on_next, p), p->name, "deferred call");
}

/* ---- session -------------------------------------------------------------- */

static uint64_t who(const struct vp_peer *p)
{
	return vp_blame_id(p->conf->vm);
}

static bool too_many_pending(const struct vp_peer *p)
{
	return vp_foreign_pending(who(p)) >= VP_FOREIGN_PENDING_MAX;
}

/* The second brief session in a row, and those after it: what is said of each is for who looks for it. */
static bool in_flood(const struct vp_peer *p)
{
	return p->n_brief >= 2;
}

/* QEMU with more queues than the link has comes back at once after each time that it found that out. */
static void note_brief(struct vp_peer *p)
{
	uint64_t t = now_us(p);

	if (vu_backend_negotiated(p->vu) || t - p->begun_us >= BRIEF_US) {
		p->n_brief = 0;
		return;
	}
	p->n_brief++;
	p->n_brief_untold++;
	if (!in_flood(p) || (p->brief_said_us && t - p->brief_said_us < SECOND_EVERY_US))
		return;
	vp_log(VP_LOG_WARNING,
	       "%s: a front-end comes and leaves at once, again and again (%u times since this was last said); QEMU "
	       "does that when its queues= or num-queues= is more than the link has: %u here (Queues= of a network's "
	       "link counts pairs); vhost-pcictl generate prints what fits",
	       p->name, p->n_brief_untold, p->queues);
	p->brief_said_us = t;
	p->n_brief_untold = 0;
}

static int on_vu(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_peer *p = arg;
	struct vp_err e = { 0 };
	int r = 0;

	/* Else the session says so itself, where it has to. */
	if (!vu_backend_journaled(p->vu) || revents & ~(uint32_t)EPOLLIN)
		touch(p);
	vp_foreign_from(who(p));
	if (revents & EPOLLOUT)
		r = vu_backend_writable(p->vu, &e);
	if (!r && revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		r = vu_backend_readable(p->vu, &e);
	if (!r && too_many_pending(p))
		r = vp_err_set(&e, -EBADF,
			       "it sends files that cannot be closed, for whoever serves them does not answer");
	if (r == -ECONNRESET && !p->closing_said && vu_backend_no_memory(p->vu)) {
		p->closing_said = true;
		vp_log(VP_LOG_WARNING,
		       "%s: the front-end left without sending any memory; QEMU does that when its memory is not "
		       "shared: -object memory-backend-memfd,id=m,size=...,share=on -machine memory-backend=m",
		       p->name);
	}
	if (r == -ECONNRESET)
		note_brief(p);
	if (r)
		session_end(p, r == -ECONNRESET ? "the front-end went away" : e.msg, r == -ECONNRESET);
	else
		vp_peer_rearm(p);
	vp_foreign_from(0);  /* what strangers and control clients bring is not its fault */
	return 0;
}

static int on_req(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_peer *p = arg;

	if (!vu_backend_journaled(p->vu))
		touch(p);
	vp_foreign_from(who(p));
	vu_backend_req_ready(p->vu);
	vp_peer_rearm(p);
	vp_foreign_from(0);
	return 0;
}

void vp_peer_rearm(struct vp_peer *p)
{
	unsigned serial;
	uint32_t mask;

	if (!p->vu || !p->vu_io)
		return;
	vp_source_events(p->vu_io, epoll_mask(vu_backend_events(p->vu)));
	/* Not by its number: two channels later that is the same again. */
	serial = vu_backend_req_serial(p->vu);
	if (serial != p->req_seen)
		vp_source_end(&p->req_io);
	p->req_seen = serial;
	if (!vu_backend_has_req(p->vu))
		return;
	mask = epoll_mask(vu_backend_req_events(p->vu));
	if (p->req_io)
		vp_source_events(p->req_io, mask);
	else if (vp_source_add(&p->req_io, p->d->event, vu_backend_req_fd(p->vu), mask, on_req, p) < 0)
		vp_log(VP_LOG_ERR, "%s: the request channel cannot be watched", p->name);
}

static int session_begin(struct vp_peer *p, int fd, const struct ucred *cred)
{
	struct vu_backend_cfg cfg = { 0 };
	struct vp_err e = { 0 };
	int r;

	r = too_many_pending(p) ? vp_err_set(&e, -EBUSY,
					     "VM %.63s has sent files that cannot be closed yet, for whoever serves "
					     "them does not answer; end that",
					     p->conf->vm)
				: p->ops->open(p->ctx, &cfg, &e);
	cfg.name = p->name;
	if (r) {
		vp_close_foreign(&fd);
		goto fail;
	}
	p->vu = vu_backend_new(fd, &cfg, p->vu_ops, p->ctx, &e);
	if (!p->vu) {
		r = e.code ? e.code : -ENOMEM;
		p->ops->closed(p->ctx, "no session");
		goto fail;
	}
	p->req_seen = 0;
	r = vp_source_add(&p->vu_io, p->d->event, fd, epoll_mask(vu_backend_events(p->vu)), on_vu, p);
	if (r < 0) {
		session_end(p, "out of memory", false);
		return r;
	}
	p->info.state = VP_PEER_CONNECTED;
	p->info.sessions++;
	p->info.pid = cred->pid;
	p->info.uid = cred->uid;
	p->begun_us = now_us(p);
	p->queues = cfg.max_queues;
	vp_log(in_flood(p) ? VP_LOG_DEBUG : VP_LOG_INFO, "%s: front-end connected (pid %d, user %u)", p->name,
	       (int)cred->pid, cred->uid);
	p->ops->opened(p->ctx);
	return 0;
fail:
	snprintf(p->info.last, sizeof(p->info.last), "%.150s", e.code ? e.msg : strerror(-r));
	if (may_log(p))
		vp_log(VP_LOG_ERR, "%s: cannot serve a front-end: %s", p->name, p->info.last);
	if (p->conf->socket_mode == VP_SOCKET_CLIENT)
		return r;
	return 0;
}

static void session_end(struct vp_peer *p, const char *why, bool quiet)
{
	if (!p->vu)
		return;
	snprintf(p->info.last, sizeof(p->info.last), "%.150s", why);
	vp_log(p->leaving || (in_flood(p) && quiet) ? VP_LOG_DEBUG : quiet ? VP_LOG_INFO : VP_LOG_WARNING,
	       "%s: session with pid %d ended: %s", p->name, (int)p->info.pid, p->info.last);
	vp_foreign_from(who(p));
	p->ops->closing(p->ctx);
	vp_source_end(&p->vu_io);
	vp_source_end(&p->req_io);
	if (p->ops->hold && !session_dead(p) && p->ops->hold(p->ctx)) {
		vp_close_foreign(&p->past_fd);
		/* seccomp control: fcntl */
		p->past_fd = fcntl(vu_backend_fd(p->vu), F_DUPFD_CLOEXEC, 3);
	}
	vu_backend_destroy(p->vu);
	p->vu = NULL;
	p->info.state = VP_PEER_WAITING;
	p->info.pid = 0;
	p->ops->closed(p->ctx, p->info.last);
	vp_foreign_from(0);
	run_next(p);
}

void vp_peer_kick_out(struct vp_peer *p, const char *why)
{
	if (!p->vu)
		return;
	snprintf(p->kick_why, sizeof(p->kick_why), "%s", why);
	run_next(p);
}

void vp_peer_let_go(struct vp_peer *p)
{
	if (p)
		vp_close_foreign(&p->past_fd);
}

struct vu_backend *vp_peer_session(const struct vp_peer *p)
{
	return p->vu;
}

void vp_peer_get_info(const struct vp_peer *p, struct vp_peer_info *i)
{
	*i = p ? p->info : (struct vp_peer_info){ .state = VP_PEER_WAITING };
}

static int start_listening(struct vp_peer *p, const char *activation, struct vp_err *e)
{
	int r;

	p->lfd = vp_activation_take_ours(&p->d->activation, activation, &p->unlink_path);
	if (p->lfd < 0) {
		r = vp_sock_listen(p->conf->socket, vp_conf_socket_file_mode(p->d->conf, p->conf->vm), &p->lfd, e);
		if (r)
			return r;
		p->unlink_path = true;
	}
	r = vp_source_add(&p->listen_io, p->d->event, p->lfd, EPOLLIN, on_accept, p);
	return r < 0 ? vp_err_set(e, r, "%s: cannot wait for connections: %s", p->conf->socket, strerror(-r)) : 0;
}

int vp_peer_new(struct vp_peer **out, struct vp_daemon *d, const char *name, const char *activation,
		const struct vp_conf_side *conf, const struct vp_peer_ops *ops, const struct vu_backend_ops *vu_ops,
		void *ctx, struct vp_err *e)
{
	struct vp_peer *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", name);
	*p = (struct vp_peer){
		.d = d, .name = name, .conf = conf, .ops = ops, .vu_ops = vu_ops, .ctx = ctx,
		.lfd = -1, .held_fd = -1, .past_fd = -1, .retry_us = RETRY_MIN_US,
	};
	if (conf->socket_mode == VP_SOCKET_CLIENT)
		r = arm_timer(p, 0, on_retry);
	else
		r = start_listening(p, activation, e);
	if (r < 0) {
		vp_peer_free(p);
		return r;
	}
	*out = p;
	return 0;
}

void vp_peer_leave(struct vp_peer *p)
{
	if (!p)
		return;
	p->leaving = true;
	p->unlink_path = false;
	vp_peer_free(p);
}

void vp_peer_free(struct vp_peer *p)
{
	if (!p)
		return;
	session_end(p, "the link is being taken away", true);
	vp_source_end(&p->listen_io);
	sd_event_source_disable_unref(p->timer);
	sd_event_source_disable_unref(p->defer);
	if (p->unlink_path)
		unlink(p->conf->socket);
	vp_close_foreign(&p->lfd);
	vp_close_foreign(&p->held_fd);
	vp_close_foreign(&p->past_fd);
	free(p);
}

/* ---- for another daemon ---------------------------------------------------------------------- */

enum tag { TAG_PEER = 1, TAG_LISTENS, TAG_LAST, TAG_SESSION, TAG_OWNER, TAG_WAITS };

struct peer_rec {
	uint64_t sessions, refused, n_second;
	uint32_t pid, uid, ours, closing_said;
	uint32_t held_pid, held_uid, held_gid, pad;
};

bool vp_peer_at_rest(const struct vp_peer *p)
{
	return (!p->vu || vu_backend_at_rest(p->vu)) && !p->kick_why[0] && p->past_fd < 0;
}

void vp_peer_save(struct vp_peer *p, struct vp_rec *r)
{
	const struct peer_rec s = {
		.sessions = p->info.sessions, .refused = p->info.refused, .n_second = p->n_second,
		.pid = (uint32_t)p->info.pid, .uid = p->info.uid, .ours = p->unlink_path,
		.closing_said = p->closing_said, .held_pid = (uint32_t)p->held_cred.pid, .held_uid = p->held_cred.uid,
		.held_gid = p->held_cred.gid,
	};

	vp_rec_put(r, TAG_PEER, &s, sizeof(s));
	vp_rec_str(r, TAG_LAST, p->info.last);
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, p->lfd);
	vp_rec_fd(r, TAG_WAITS, VP_REC_FD_SOCKET, p->held_fd);
	if (!p->vu)
		return;
	vp_rec_begin(r, TAG_OWNER);
	p->ops->save(p->ctx, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_SESSION);
	vu_backend_save(p->vu, r);
	vp_rec_end(r);
}

int vp_peer_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e)
{
	struct peer_rec s;

	if (vp_rec_get(in, TAG_PEER, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of a socket is malformed");
	*ours = s.ours;
	return vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, fd, e);
}

static int session_restore(struct vp_peer *p, const struct vp_rec_in *session, const struct vp_rec_in *owner,
			   struct vp_err *e)
{
	struct vu_backend_cfg cfg = { 0 };
	int r = p->ops->open(p->ctx, &cfg, e);

	if (r)
		return r;
	cfg.name = p->name;
	p->vu = vu_backend_restore(session, &cfg, p->vu_ops, p->ctx, e);
	if (!p->vu) {
		p->ops->closed(p->ctx, "no session");
		return e->code ? e->code : -ENOMEM;
	}
	p->req_seen = 0;
	r = vp_source_add(&p->vu_io, p->d->event, vu_backend_fd(p->vu), epoll_mask(vu_backend_events(p->vu)), on_vu, p);
	if (r < 0)
		return vp_err_set(e, r, "its connection cannot be watched: %s", strerror(-r));
	p->info.state = VP_PEER_CONNECTED;
	vp_peer_rearm(p);
	return p->ops->restore(p->ctx, owner, e);
}

int vp_peer_restore(struct vp_peer *p, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in session, owner;
	struct peer_rec s;
	int r;

	if (vp_rec_get(in, TAG_PEER, &s, sizeof(s)) ||
	    vp_rec_text(in, TAG_LAST, p->info.last, sizeof(p->info.last)))
		return vp_err_set(e, -EPROTO, "the record of a socket is malformed");
	p->info.sessions = s.sessions;
	p->info.refused = s.refused;
	p->info.pid = (pid_t)s.pid;
	p->info.uid = s.uid;
	p->n_second = s.n_second;
	p->closing_said = s.closing_said;
	r = vp_rec_take(in, TAG_WAITS, VP_REC_FD_SOCKET, &p->held_fd, e);
	if (r)
		return r;
	if (p->held_fd >= 0) {
		p->held_cred = (struct ucred){ (pid_t)s.held_pid, s.held_uid, s.held_gid };
		arm_timer(p, HOLD_US, on_hold_end);
	}
	if (!vp_rec_find(in, TAG_SESSION, &session)) {
		/* Between two sessions: who waits is served soon. */
		if (p->held_fd >= 0)
			run_next(p);
		return 0;
	}
	if (!vp_rec_find(in, TAG_OWNER, &owner))
		return vp_err_set(e, -EPROTO, "the record of a session lacks its device");
	/* It is connected: nothing is to be tried. */
	if (p->conf->socket_mode == VP_SOCKET_CLIENT)
		vp_timer_end(&p->timer);
	return session_restore(p, &session, &owner, e);
}
