/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the other end is a VMM, which its guest may have taken over. Lines are bounded, JSON is parsed by
 * jansson with its own depth limit, answers are matched to commands by order and id, and what does not fit ends the
 * connection. Each byte is looked at once, however it comes; a turn of the loop takes in little; and what a peer may
 * send in a second is bounded over all its connections, so that it does not pay to connect anew.
 */
#include "sys/qmp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "sys/fds.h"
#include "sys/slow.h"
#include "sys/sock.h"
#include "sys/source.h"
#include "sys/timer.h"

#define QMP_LINE_MAX  (512u << 10)  /* query-pci of 500 devices */
#define QMP_TURN      16384u        /* bytes read in one turn of the loop */
#define QMP_PER_S     (1u << 20)    /* bytes a second, and at once */
#define QMP_LINE_COST 512           /* what a line costs beside its bytes */
#define QMP_INFLIGHT  256
#define RETRY_MIN_US  100000u
#define RETRY_MAX_US  2000000u
#define STEADY_US     2000000u      /* a connection that lasted so long may be tried again at once */

struct call {
	json_int_t  id;
	const char *command;   /* a literal */
	vp_qmp_done done;
	void       *arg;
};

enum state { QMP_DOWN, QMP_GREETING, QMP_CAPS, QMP_UP };

struct vp_qmp {
	sd_event                *event;
	const char              *path, *name;
	const struct vp_qmp_ops *ops;
	void                    *ctx;
	enum state               state;
	int                      fd, lfd;             /* lfd: QEMU connects to us, else -1 */
	struct vp_source        *io, *listen_io;
	sd_event_source         *timer, *defer, *pause;
	uint32_t                 retry_us;
	char                    *buf;
	size_t                   len, cap, seen;      /* seen: of buf, without a newline */
	int64_t                  budget;              /* bytes; below zero nothing is read */
	uint64_t                 refill_us, up_us;
	struct call              call[QMP_INFLIGHT];  /* a ring: head, n */
	unsigned                 head, n;
	json_int_t               next_id;
	struct vp_slow           slow;                /* of the greeting, then of the first of call */
	bool                     logged;
	char                     why[160];
};

static void disconnect(struct vp_qmp *q, const char *why);

static void touch(struct vp_qmp *q)
{
	if (q->ops->touch)
		q->ops->touch(q->ctx);
}

/* Answers come in order: each command waits for its own from when the one before it was answered. */
static void await_next(struct vp_qmp *q)
{
	if (q->n)
		vp_slow_begin(&q->slow, q->event,
			      "its QEMU is stopped or busy, look at that process; the link waits for it",
			      "%s: QMP %s: %s", q->name, q->path, q->call[q->head].command);
	else
		vp_slow_end(&q->slow);
}

static void complete(struct vp_qmp *q, json_t *ret, const char *err)
{
	struct call c = q->call[q->head];

	q->head = (q->head + 1) % QMP_INFLIGHT;
	q->n--;
	vp_slow_end(&q->slow);
	if (q->state != QMP_DOWN)
		await_next(q);
	if (c.done)
		c.done(c.arg, ret, err);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *arg);

static void retry_later(struct vp_qmp *q)
{
	if (q->lfd >= 0)
		return;
	vp_timer_in(q->event, &q->timer, q->retry_us, on_retry, q, q->name);
	q->retry_us = VP_MIN(2 * q->retry_us, RETRY_MAX_US);
}

static uint64_t now_us(const struct vp_qmp *q)
{
	uint64_t now = 0;

	sd_event_now(q->event, CLOCK_MONOTONIC, &now);
	return now;
}

static void disconnect(struct vp_qmp *q, const char *why)
{
	bool was_up = q->state == QMP_UP;

	if (q->fd >= 0)
		touch(q);
	snprintf(q->why, sizeof(q->why), "%s", why);
	q->state = QMP_DOWN;
	vp_source_end(&q->io);
	vp_slow_end(&q->slow);
	vp_close_foreign(&q->fd);
	free(q->buf);
	q->buf = NULL;
	q->len = q->cap = q->seen = 0;
	while (q->n)
		complete(q, NULL, "the QMP connection was lost");
	if (was_up) {
		vp_log(VP_LOG_INFO, "%s: QMP %s: %s", q->name, q->path, why);
		if (now_us(q) - q->up_us >= STEADY_US)
			q->retry_us = RETRY_MIN_US;
		q->ops->down(q->ctx);
	} else if (!q->logged) {
		vp_log(VP_LOG_NOTICE, "%s: QMP %s: %s%s", q->name, q->path, why,
		       q->lfd < 0 ? "; trying again until it works" : "");
		q->logged = true;
	}
	retry_later(q);
}

static int on_lost(sd_event_source *s, void *arg)
{
	struct vp_qmp *q = arg;

	if (q->fd >= 0)
		disconnect(q, "it does not read its commands");
	return 0;
}

int vp_qmp_call(struct vp_qmp *q, const char *command, json_t *args, int fd, vp_qmp_done done, void *arg)
{
	char *text = NULL;
	json_t *o;
	size_t len;
	int r = 0;

	if (!q || (q->state != QMP_UP && q->state != QMP_CAPS)) {
		json_decref(args);
		return -ENOTCONN;
	}
	if (q->n == QMP_INFLIGHT) {
		json_decref(args);
		return -EBUSY;
	}
	touch(q);
	o = json_pack("{s:s,s:I}", "execute", command, "id", ++q->next_id);
	if (args && json_object_set_new(o, "arguments", args))
		r = -ENOMEM;
	if (!r)
		text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (!text)
		return -ENOMEM;
	/* The terminating zero becomes the newline. */
	len = strlen(text) + 1;
	text[len - 1] = '\n';
	r = vp_send_fds(q->fd, text, len, &fd, fd >= 0);
	free(text);
	if (r) {
		/*
		 * A few hundred bytes that do not fit: it has stopped reading. The caller is told now, the rest from
		 * the loop.
		 */
		if (!q->defer)
			sd_event_add_defer(q->event, &q->defer, on_lost, q);
		else
			sd_event_source_set_enabled(q->defer, SD_EVENT_ONESHOT);
		return -ENOTCONN;
	}
	q->call[(q->head + q->n++) % QMP_INFLIGHT] = (struct call){ q->next_id, command, done, arg };
	if (q->n == 1)
		await_next(q);
	return 0;
}

static void caps_done(void *arg, json_t *ret, const char *err)
{
	struct vp_qmp *q = arg;

	if (!ret || q->state != QMP_CAPS)
		return;
	q->state = QMP_UP;
	q->why[0] = 0;
	q->up_us = now_us(q);
	q->logged = false;
	vp_log(VP_LOG_INFO, "%s: QMP %s: connected", q->name, q->path);
	q->ops->up(q->ctx);
}

/* 0, or -EPROTO with the connection still there. */
static int on_line(struct vp_qmp *q, const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, 0, NULL), *v;
	int r = 0;

	if (!json_is_object(o)) {
		json_decref(o);
		return -EPROTO;
	}
	if (q->state == QMP_GREETING) {
		if (!json_object_get(o, "QMP")) {
			r = -EPROTO;
		} else {
			vp_slow_end(&q->slow);
			q->state = QMP_CAPS;
			r = vp_qmp_call(q, "qmp_capabilities", NULL, -1, caps_done, q);
		}
	} else if ((v = json_object_get(o, "event"))) {
		if (q->state == QMP_UP && json_is_string(v))
			q->ops->event(q->ctx, json_string_value(v), json_object_get(o, "data"));
	} else if (q->n && json_integer_value(json_object_get(o, "id")) == q->call[q->head].id) {
		v = json_object_get(o, "return");
		if (v) {
			complete(q, v, NULL);
		} else {
			const char *desc = json_string_value(json_object_get(json_object_get(o, "error"), "desc"));

			complete(q, NULL, desc ? desc : "refused without a reason");
		}
	} else {
		r = -EPROTO;
	}
	json_decref(o);
	return r;
}

/* Lines that are whole. What is left of the last one moves to the front, once. */
static void take_lines(struct vp_qmp *q)
{
	size_t at = 0;
	char *nl;

	while ((nl = memchr(q->buf + q->seen, '\n', q->len - q->seen))) {
		size_t end = (size_t)(nl - q->buf);
		int r = on_line(q, q->buf + at, end - at);

		if (q->fd < 0)
			return; /* it disconnected, the buffer is gone */
		if (r) {
			disconnect(q, "what it says is not QMP");
			return;
		}
		at = q->seen = end + 1;
		q->budget -= QMP_LINE_COST;
	}
	memmove(q->buf, q->buf + at, q->len - at);
	q->len -= at;
	q->seen = q->len;
}

static int on_pause_over(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_qmp *q = arg;

	if (q->io)
		vp_source_enable(q->io, true);
	return 0;
}

/* May it be read now? If not, it is again when that has been earned; the socket's buffer keeps what comes meanwhile. */
static bool afford(struct vp_qmp *q)
{
	uint64_t now = now_us(q), us = VP_MIN(now - q->refill_us, 2000000u);

	q->budget = VP_MIN(q->budget + (int64_t)(us * QMP_PER_S / 1000000), (int64_t)QMP_PER_S);
	q->refill_us = now;
	if (q->budget > 0)
		return true;
	vp_source_enable(q->io, false);
	if (vp_timer_in(q->event, &q->pause, (uint64_t)-q->budget * 1000000 / QMP_PER_S + 1000, on_pause_over, q,
			q->name) < 0)
		disconnect(q, "out of memory");
	return false;
}

/* Room for another turn's bytes; 0 = the line is too long, or there is no memory. */
static size_t make_room(struct vp_qmp *q)
{
	if (q->cap - q->len < QMP_TURN && q->cap < QMP_LINE_MAX) {
		size_t cap = q->cap ? 2 * q->cap : 2 * QMP_TURN;
		char *b = realloc(q->buf, cap);

		if (!b)
			return 0;
		q->buf = b;
		q->cap = cap;
	}
	return VP_MIN(q->cap - q->len, (size_t)QMP_TURN);
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_qmp *q = arg;
	size_t room;
	ssize_t n;

	fd = q->fd;  /* until the connection is lost in the middle of this */
	if (!afford(q))
		return 0;
	room = make_room(q);
	if (!room) {
		disconnect(q, "it sends endless lines");
		return 0;
	}
	touch(q);
	n = vp_recv_plain(fd, q->buf + q->len, room);
	if (n <= 0) {
		if (!n || (n != -EAGAIN && n != -EINTR))
			disconnect(q, n == -EBADMSG ? "it sends file descriptors" :
				   n ? strerror((int)-n) :
				   q->state == QMP_UP ? "closed: its QEMU has ended" :
				   "closed; QMP serves one client at a time, give the daemon a -qmp of its own");
		return 0;
	}
	q->budget -= n;
	q->len += (size_t)n;
	take_lines(q);
	return 0;
}

static int watch(struct vp_qmp *q)
{
	int r = vp_source_add(&q->io, q->event, q->fd, EPOLLIN, on_io, q);

	if (r >= 0)
		vp_source_limit(q->io, 100000, 1000);  /* of reads that bring a byte each */
	return r;
}

/* There is a connection: who is it? */
static void greet(struct vp_qmp *q)
{
	struct ucred cred = { 0 };
	char why[120];
	int r;

	touch(q);
	/* Memory of other VMs will go through here. */
	if (vp_sock_peer(q->fd, &cred) || !q->ops->allowed(q->ctx, cred.uid)) {
		snprintf(why, sizeof(why), "user %u may not run this VM; add it to User= of the VM", cred.uid);
		disconnect(q, why);
		return;
	}
	q->state = QMP_GREETING;
	r = watch(q);
	if (r < 0)
		disconnect(q, strerror(-r));
	if (q->state == QMP_GREETING)
		vp_slow_begin(&q->slow, q->event,
			      "QMP serves one client at a time, give the daemon a -qmp of its own; or its QEMU hangs",
			      "%s: QMP %s: the greeting", q->name, q->path);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_qmp *q = arg;
	struct vp_err e = { 0 };
	int r = vp_sock_connect(q->path, &q->fd, &e);

	if (r) {
		q->fd = -1;
		disconnect(q, e.code ? e.msg : strerror(-r));
		return 0;
	}
	greet(q);
	return 0;
}

/* A QEMU that has ended is found out here, before its hang-up was handled. */
static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct vp_qmp *q = arg;
	/* seccomp control: accept4 */
	int fd = accept4(q->lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return 0;
	if (q->fd >= 0 && vp_sock_hung_up(q->fd))
		disconnect(q, "closed: its QEMU has ended");
	if (q->fd >= 0) {
		vp_close_foreign(&fd);
		return 0;
	}
	q->fd = fd;
	greet(q);
	return 0;
}

static int failed(struct vp_qmp *q, int r, struct vp_err *e)
{
	return r < 0 ? vp_err_set(e, r, "%s: QMP: %s", q->name, strerror(-r)) : 0;
}

static int listen_to(struct vp_qmp *q, struct vp_err *e)
{
	int r = vp_source_add(&q->listen_io, q->event, q->lfd, EPOLLIN, on_accept, q);

	if (r >= 0)
		vp_source_limit(q->listen_io, 1000000, 20);
	return failed(q, r, e);
}

static int start(struct vp_qmp *q, mode_t mode, struct vp_err *e)
{
	int r;

	if (!mode)
		return failed(q, vp_timer_in(q->event, &q->timer, 0, on_retry, q, q->name), e);
	r = vp_sock_listen(q->path, mode, &q->lfd, e);
	return r ? r : listen_to(q, e);
}

static struct vp_qmp *make(sd_event *event, const char *path, const char *name, const struct vp_qmp_ops *ops,
			   void *ctx, struct vp_err *e)
{
	struct vp_qmp *q = calloc(1, sizeof(*q));

	if (!q) {
		vp_err_set(e, -ENOMEM, "%s: out of memory", name);
		return NULL;
	}
	*q = (struct vp_qmp){
		.event = event,
		.path = path,
		.name = name,
		.ops = ops,
		.ctx = ctx,
		.fd = -1,
		.lfd = -1,
		.retry_us = RETRY_MIN_US,
		.why = "not connected yet",
		.budget = QMP_PER_S,
	};
	q->refill_us = now_us(q);
	return q;
}

int vp_qmp_new(struct vp_qmp **out, sd_event *event, const char *path, mode_t mode, const char *name,
	       const struct vp_qmp_ops *ops, void *ctx, struct vp_err *e)
{
	struct vp_qmp *q = make(event, path, name, ops, ctx, e);
	int r;

	if (!q)
		return -ENOMEM;
	r = start(q, mode, e);
	if (r) {
		vp_qmp_free(q);
		return r;
	}
	*out = q;
	return 0;
}

void vp_qmp_leave(struct vp_qmp *q)
{
	if (!q)
		return;
	vp_slow_end(&q->slow);
	vp_source_end(&q->io);
	vp_source_end(&q->listen_io);
	vp_close(&q->lfd);
	vp_timer_end(&q->timer);
	vp_timer_end(&q->pause);
	sd_event_source_disable_unref(q->defer);
	vp_close_foreign(&q->fd);
	free(q->buf);
	free(q);
}

void vp_qmp_free(struct vp_qmp *q)
{
	if (!q)
		return;
	q->state = QMP_DOWN;
	while (q->n)
		complete(q, NULL, "the link is being taken away");
	if (q->lfd >= 0)
		unlink(q->path);
	vp_qmp_leave(q);
}

bool vp_qmp_is_up(const struct vp_qmp *q)
{
	return q && q->state == QMP_UP;
}

const char *vp_qmp_why(const struct vp_qmp *q)
{
	return q->why;
}

/* ---- for another daemon ---------------------------------------------------------------------- */

enum tag { TAG_QMP = 1, TAG_CONN, TAG_LISTENS, TAG_READ, TAG_CALL, TAG_WHY };

struct qmp_rec {
	uint32_t state, logged, retry_us, pad;
	int64_t  budget, next_id;
	uint64_t refill_us, up_us;
};

struct call_rec {
	int64_t  id;
	uint64_t number;
};

void vp_qmp_save(const struct vp_qmp *q, vp_qmp_number number, struct vp_rec *r)
{
	const struct qmp_rec s = {
		.state = q->state, .logged = q->logged, .retry_us = q->retry_us, .budget = q->budget,
		.next_id = q->next_id, .refill_us = q->refill_us, .up_us = q->up_us,
	};

	vp_rec_put(r, TAG_QMP, &s, sizeof(s));
	vp_rec_fd(r, TAG_CONN, VP_REC_FD_SOCKET, q->fd);
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, q->lfd);
	vp_rec_put(r, TAG_READ, q->buf, q->len);
	vp_rec_str(r, TAG_WHY, q->why);
	for (unsigned i = 0; i < q->n; i++) {
		const struct call *c = &q->call[(q->head + i) % QMP_INFLIGHT];
		/* That of the greeting is ours. */
		const struct call_rec cr = {
			.id = c->id, .number = c->done && c->done != caps_done ? number(q->ctx, c->done, c->arg) : 0,
		};

		vp_rec_put(r, TAG_CALL, &cr, sizeof(cr));
	}
}

static int load_call(struct vp_qmp *q, const struct vp_rec_in *in, vp_qmp_find find)
{
	struct call *c = &q->call[q->n];
	struct call_rec s;

	if (q->n == QMP_INFLIGHT || vp_rec_get_this(in, &s, sizeof(s)))
		return -EPROTO;
	*c = (struct call){ .id = s.id, .command = "what the daemon before this one asked for" };
	if (q->state == QMP_CAPS) {
		c->done = caps_done;
		c->arg = q;
	} else if (s.number && !find(q->ctx, s.number, &c->done, &c->arg)) {
		return -EPROTO;
	}
	q->n++;
	return 0;
}

static int load(struct vp_qmp *q, const struct vp_rec_in *in, vp_qmp_find find, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct qmp_rec s;
	unsigned tag;
	int r;

	if (vp_rec_get(in, TAG_QMP, &s, sizeof(s)) || s.state > QMP_UP || s.budget > QMP_PER_S ||
	    vp_rec_text(in, TAG_WHY, q->why, sizeof(q->why)) || !vp_rec_find(in, TAG_READ, &body) ||
	    body.n > QMP_LINE_MAX)
		return vp_err_set(e, -EPROTO, "the record of its QMP connection is malformed");
	q->state = s.state;
	q->logged = s.logged;
	q->retry_us = VP_MIN(VP_MAX(s.retry_us, RETRY_MIN_US), RETRY_MAX_US);
	q->budget = s.budget;
	q->next_id = s.next_id;
	q->refill_us = s.refill_us;
	q->up_us = s.up_us;
	/* Doubled, as make_room() does. */
	for (q->cap = body.n ? 2 * QMP_TURN : 0; q->cap < body.n; q->cap *= 2)
		;
	q->buf = q->cap ? malloc(q->cap) : NULL;
	if (q->cap && !q->buf)
		return vp_err_set(e, -ENOMEM, "out of memory");
	if (body.n)
		memcpy(q->buf, body.p, body.n);
	/* No whole line is left when a turn is over. */
	q->len = q->seen = body.n;
	r = vp_rec_take(in, TAG_CONN, VP_REC_FD_SOCKET, &q->fd, e);
	if (!r)
		r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &q->lfd, e);
	if (!r && (q->fd >= 0) != (q->state != QMP_DOWN))
		r = vp_err_set(e, -EPROTO, "the record of its QMP connection is malformed");
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_CALL && load_call(q, &body, find))
			r = vp_err_set(e, -EPROTO, "the record of its QMP commands is malformed");
	return r;
}

int vp_qmp_restore(struct vp_qmp **out, sd_event *event, const char *path, const char *name,
		   const struct vp_qmp_ops *ops, void *ctx, const struct vp_rec_in *in, vp_qmp_find find,
		   struct vp_err *e)
{
	struct vp_qmp *q = make(event, path, name, ops, ctx, e);
	int r;

	if (!q)
		return -ENOMEM;
	/* The caller's from here on: if the rest fails this process ends, and says nothing to anybody. */
	*out = q;
	r = load(q, in, find, e);
	if (!r && q->lfd >= 0)
		r = listen_to(q, e);
	if (!r)
		await_next(q);
	if (!r && q->fd >= 0)
		r = failed(q, watch(q), e);
	else if (!r && q->lfd < 0)
		r = failed(q, vp_timer_in(q->event, &q->timer, q->retry_us, on_retry, q, q->name), e);
	return r;
}
