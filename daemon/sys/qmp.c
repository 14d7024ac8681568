/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the other end is the device VM's VMM, which its guest may have taken over. Lines are
 * bounded, JSON is parsed by jansson with its own depth limit, answers are matched to commands by order and
 * id, and what does not fit ends the connection.
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

#include "base/log.h"
#include "base/util.h"
#include "sys/fds.h"
#include "sys/sock.h"
#include "sys/source.h"
#include "sys/timer.h"

#define QMP_LINE_MAX  (4u << 20)
#define QMP_INFLIGHT  64
#define RETRY_MIN_US  100000u
#define RETRY_MAX_US  2000000u

struct call {
	json_int_t  id;
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
	int                      fd;
	struct vp_source        *io;
	sd_event_source         *timer, *defer;
	uint32_t                 retry_us;
	char                    *buf;
	size_t                   len, cap;
	struct call              call[QMP_INFLIGHT];  /* a ring: head, n */
	unsigned                 head, n;
	json_int_t               next_id;
	bool                     logged;
	char                     why[160];
};

static void disconnect(struct vp_qmp *q, const char *why);

static void complete(struct vp_qmp *q, json_t *ret, const char *err)
{
	struct call c = q->call[q->head];

	q->head = (q->head + 1) % QMP_INFLIGHT;
	q->n--;
	if (c.done)
		c.done(c.arg, ret, err);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *arg);

static void retry_later(struct vp_qmp *q)
{
	vp_timer_in(q->event, &q->timer, q->retry_us, on_retry, q, q->name);
	q->retry_us = VP_MIN(2 * q->retry_us, RETRY_MAX_US);
}

static void disconnect(struct vp_qmp *q, const char *why)
{
	bool was_up = q->state == QMP_UP;

	snprintf(q->why, sizeof(q->why), "%s", why);
	q->state = QMP_DOWN;
	vp_source_end(&q->io);
	vp_close(&q->fd);
	q->len = 0;
	while (q->n)
		complete(q, NULL, "the QMP connection was lost");
	if (was_up) {
		vp_log(VP_LOG_INFO, "%s: QMP %s: %s", q->name, q->path, why);
		q->retry_us = RETRY_MIN_US;
		q->ops->down(q->ctx);
	} else if (!q->logged) {
		vp_log(VP_LOG_NOTICE, "%s: QMP %s: %s; trying again until it works", q->name, q->path, why);
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

	if (q->state != QMP_UP && q->state != QMP_CAPS) {
		json_decref(args);
		return -ENOTCONN;
	}
	if (q->n == QMP_INFLIGHT) {
		json_decref(args);
		return -EBUSY;
	}
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
		/* A few hundred bytes that do not fit: it has stopped reading. The caller is told now, the rest from the loop. */
		if (!q->defer)
			sd_event_add_defer(q->event, &q->defer, on_lost, q);
		else
			sd_event_source_set_enabled(q->defer, SD_EVENT_ONESHOT);
		return -ENOTCONN;
	}
	q->call[(q->head + q->n++) % QMP_INFLIGHT] = (struct call){ q->next_id, done, arg };
	return 0;
}

static void caps_done(void *arg, json_t *ret, const char *err)
{
	struct vp_qmp *q = arg;

	if (!ret || q->state != QMP_CAPS)
		return;
	q->state = QMP_UP;
	q->why[0] = 0;
	q->retry_us = RETRY_MIN_US;
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

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_qmp *q = arg;
	ssize_t n;
	char *nl;

	fd = q->fd;  /* until the connection is lost in the middle of this */
	if (q->cap - q->len < 4096) {
		char *b = q->cap < QMP_LINE_MAX ? realloc(q->buf, q->cap ? 2 * q->cap : 16384) : NULL;

		if (!b) {
			disconnect(q, "it sends endless lines");
			return 0;
		}
		q->buf = b;
		q->cap = q->cap ? 2 * q->cap : 16384;
	}
	n = recv(fd, q->buf + q->len, q->cap - q->len, MSG_DONTWAIT);
	if (n <= 0) {
		if (!n || (errno != EAGAIN && errno != EINTR))
			disconnect(q, n ? strerror(errno) : "closed; QMP serves one client at a time, give the daemon a -qmp of its own");
		return 0;
	}
	q->len += (size_t)n;
	while (q->fd == fd && (nl = memchr(q->buf, '\n', q->len))) {
		size_t used = (size_t)(nl - q->buf) + 1;
		int r = on_line(q, q->buf, used - 1);

		if (q->fd != fd)
			break;
		if (r) {
			disconnect(q, "what it says is not QMP");
			break;
		}
		memmove(q->buf, q->buf + used, q->len - used);
		q->len -= used;
	}
	return 0;
}

static int on_retry(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_qmp *q = arg;
	struct vp_err e = { 0 };
	struct ucred cred = { 0 };
	int r = vp_sock_connect(q->path, &q->fd, &e);

	if (r) {
		q->fd = -1;
		disconnect(q, e.code ? e.msg : strerror(-r));
		return 0;
	}
	/* Memory of other VMs will go through here. */
	if (vp_sock_peer(q->fd, &cred) || !q->ops->allowed(q->ctx, cred.uid)) {
		disconnect(q, "served by a user who may not run this VM; add it to User= of the VM");
		return 0;
	}
	q->state = QMP_GREETING;
	r = vp_source_add(&q->io, q->event, q->fd, EPOLLIN, on_io, q);
	if (r < 0)
		disconnect(q, strerror(-r));
	else
		vp_source_limit(q->io, 100000, 1000);
	return 0;
}

int vp_qmp_new(struct vp_qmp **out, sd_event *event, const char *path, const char *name, const struct vp_qmp_ops *ops,
	       void *ctx, struct vp_err *e)
{
	struct vp_qmp *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", name);
	*q = (struct vp_qmp){
		.event = event, .path = path, .name = name, .ops = ops, .ctx = ctx, .fd = -1, .retry_us = RETRY_MIN_US,
		.why = "not connected yet",
	};
	r = vp_timer_in(event, &q->timer, 0, on_retry, q, name);
	if (r < 0) {
		free(q);
		return vp_err_set(e, r, "%s: QMP: %s", name, strerror(-r));
	}
	*out = q;
	return 0;
}

void vp_qmp_free(struct vp_qmp *q)
{
	if (!q)
		return;
	q->state = QMP_DOWN;
	while (q->n)
		complete(q, NULL, "the link is being taken away");
	vp_source_end(&q->io);
	sd_event_source_disable_unref(q->timer);
	sd_event_source_disable_unref(q->defer);
	vp_close(&q->fd);
	free(q->buf);
	free(q);
}

bool vp_qmp_is_up(const struct vp_qmp *q)
{
	return q->state == QMP_UP;
}

const char *vp_qmp_why(const struct vp_qmp *q)
{
	return q->why;
}
