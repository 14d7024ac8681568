/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: clients are local processes. Those that get past the file mode and the credential check
 * may still be buggy or hostile. All of this is bounded: the number of clients, the length of a line,
 * the bytes that wait for a client, its requests in flight. No client can make the daemon wait. An
 * unprivileged client is told why, and its connection is closed.
 */
#include "control/control.h"

#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "context/events.h"
#include "control/request.h"
#include "link/capture.h"
#include "sys/fds.h"
#include "sys/sock.h"
#include "sys/source.h"

#define VP_STR1(x) #x
#define VP_STR(x)  VP_STR1(x)

struct vp_client {
	struct vp_control *ctl;
	struct vp_source  *io;
	int                fd;
	struct ucred       cred;
	uint64_t           tokens_us;  /* time up to which requests have been let pass */
	bool               subscribed;
	bool               closing;  /* send what waits, then close */
	char              *later;    /* the id of a request that is answered later, as JSON; NULL = there is none */
	char              *in;
	size_t             in_len, in_cap;
	char              *out;
	size_t             out_off, out_len, out_cap;
	struct vp_capture *capture;      /* NULL = it has none */
	int                send_fd;      /* to go with the first byte that waits, -1 = none; the capture's */
	struct vp_client  *next;
};

struct vp_control {
	struct vp_daemon *d;
	struct vp_source *io;
	int               fd;
	char              path[VP_CONF_SOCKET_MAX];
	bool              unlink_path;
	bool              has_group;
	gid_t             gid;
	unsigned          n_clients;
	uint64_t          last_refusal_us;
	struct vp_client *clients;
};

static void client_free(struct vp_client *cl)
{
	struct vp_client **p;

	for (p = &cl->ctl->clients; *p && *p != cl; p = &(*p)->next)
		;
	if (*p)
		*p = cl->next;
	cl->ctl->n_clients--;
	vp_capture_stop(cl->capture);
	vp_source_end(&cl->io);
	vp_close_foreign(&cl->fd);
	free(cl->in);
	free(cl->out);
	free(cl->later);
	free(cl);
}

static size_t out_waiting(const struct vp_client *cl)
{
	return cl->out_len - cl->out_off;
}

/* What to wait for, given what is queued: a client that does not read is not read from either. */
static int client_rearm(struct vp_client *cl)
{
	uint32_t ev = 0;

	if (out_waiting(cl))
		ev |= EPOLLOUT;
	if (!cl->closing && !cl->later && out_waiting(cl) < VP_CONTROL_OUT_PAUSE)
		ev |= EPOLLIN;
	return vp_source_events(cl->io, ev);
}

static int client_flush(struct vp_client *cl)
{
	if (cl->send_fd >= 0 && out_waiting(cl)) {
		/* Of our own making, and nothing was in its way. */
		int r = vp_send_fds(cl->fd, cl->out, 1, &cl->send_fd, 1);

		if (r)
			return r == -EAGAIN ? 0 : r;
		cl->send_fd = -1;
		cl->out_off = 1;
	}
	while (out_waiting(cl)) {
		/* seccomp control: sendto */
		ssize_t n = send(cl->fd, cl->out + cl->out_off, out_waiting(cl), MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		cl->out_off += n;
	}
	if (cl->out_cap > 65536) {
		free(cl->out);
		cl->out = NULL;
		cl->out_cap = 0;
	}
	cl->out_off = cl->out_len = 0;
	return cl->closing ? -ESHUTDOWN : 0;
}

/* Queue a line (stolen). -ENOBUFS: too much waits already. */
static int client_put(struct vp_client *cl, char *line, size_t len)
{
	int r = 0;

	if (!line)
		return -ENOMEM;
	if (out_waiting(cl) && out_waiting(cl) + len > VP_CONTROL_OUT_MAX) {
		r = -ENOBUFS;
		goto out;
	}
	if (!out_waiting(cl)) {
		free(cl->out);
		cl->out = line;
		cl->out_off = 0;
		cl->out_len = cl->out_cap = len;
		return 0;
	}
	if (cl->out_off) {
		memmove(cl->out, cl->out + cl->out_off, out_waiting(cl));
		cl->out_len -= cl->out_off;
		cl->out_off = 0;
	}
	if (cl->out_len + len > cl->out_cap) {
		size_t cap = VP_MAX(cl->out_len + len, 2 * cl->out_cap);
		char *p = realloc(cl->out, cap);

		if (!p) {
			r = -ENOMEM;
			goto out;
		}
		cl->out = p;
		cl->out_cap = cap;
	}
	memcpy(cl->out + cl->out_len, line, len);
	cl->out_len += len;
out:
	free(line);
	return r;
}

/* A second's worth of VP_CONTROL_BURST may come at once, then one each 1/VP_CONTROL_RATE s. */
static bool too_fast(struct vp_client *cl)
{
	const uint64_t cost = 1000000 / VP_CONTROL_RATE, burst = VP_CONTROL_BURST * cost;
	uint64_t now = 0;

	sd_event_now(cl->ctl->d->event, CLOCK_MONOTONIC, &now);
	if (now - cl->tokens_us > burst)
		cl->tokens_us = now - burst;
	if (now - cl->tokens_us < cost)
		return true;
	cl->tokens_us += cost;
	return false;
}

/* Tell why, and let that be the last. */
static int client_dismiss(struct vp_client *cl, int code, const char *why)
{
	struct vp_request none = { 0 };
	struct vp_err e;
	size_t n = 0;
	char *answer;

	vp_err_set(&e, code, "%s", why);
	answer = vp_reply_error(&none, &e, &n);
	cl->closing = true;
	return client_put(cl, answer, n);
}

static int client_line(struct vp_client *cl, const char *line, size_t len)
{
	struct vp_request req;
	struct vp_err e = { 0 };
	struct vp_text text = { 0 };
	json_t *result = NULL;
	size_t n = 0;
	char *answer;
	int r;

	r = vp_request_parse(&req, line, len, &e);
	cl->ctl->d->actor = &cl->cred;
	if (!r)
		r = vp_control_call(cl->ctl->d, cl, req.method, req.params, &result, &text, &e);
	cl->ctl->d->actor = NULL;
	if (cl->later) {
		free(cl->later);
		cl->later = req.id ? json_dumps(req.id, JSON_ENCODE_ANY | JSON_COMPACT) : strdup("null");
		vp_request_free(&req);
		return cl->later ? 0 : -ENOMEM;
	}
	if (r && !e.code)
		vp_err_set(&e, r, "%s", strerror(-r));
	if (r)
		answer = vp_reply_error(&req, &e, &n);
	else if (text.n)
		answer = vp_reply_text(&req, &text, &n);
	else
		answer = vp_reply_ok(&req, result, &n);
	vp_text_free(&text);
	vp_request_free(&req);
	return client_put(cl, answer, n);
}

/* Serve whole lines in the buffer, as long as the client reads its answers. */
static int client_lines(struct vp_client *cl)
{
	size_t done = 0;
	int r = 0;

	while (!r && !cl->closing && !cl->later && out_waiting(cl) < VP_CONTROL_OUT_PAUSE) {
		char *nl = cl->in_len > done ? memchr(cl->in + done, '\n', cl->in_len - done) : NULL;

		if (!nl)
			break;
		if (nl > cl->in + done && too_fast(cl)) {
			vp_log(VP_LOG_WARNING,
			       "control: pid %d of user %u sent more than %d requests a second; cut off",
			       (int)cl->cred.pid, cl->cred.uid, VP_CONTROL_RATE);
			r = client_dismiss(
				cl, -EDQUOT,
				"more than " VP_STR(
					VP_CONTROL_RATE) " requests a second; send fewer, or wait between them");
		} else if (nl > cl->in + done)
			r = client_line(cl, cl->in + done, nl - (cl->in + done));
		done = nl + 1 - cl->in;
		if (!r)
			r = client_flush(cl);
	}
	cl->in_len -= done;
	if (done && cl->in_len)
		memmove(cl->in, cl->in + done, cl->in_len);
	if (!r && cl->in_len > VP_REQUEST_MAX_LINE && !memchr(cl->in, '\n', cl->in_len)) {
		cl->in_len = 0;
		r = client_dismiss(cl, -EBADMSG, "the request is longer than " VP_STR(VP_REQUEST_MAX_LINE) " bytes");
	}
	if (!r && !cl->in_len) {
		free(cl->in);
		cl->in = NULL;
		cl->in_cap = 0;
	}
	return r;
}

static int client_read(struct vp_client *cl)
{
	ssize_t n;

	if (cl->in_cap - cl->in_len < 4096) {
		size_t cap = cl->in_cap ? 2 * cl->in_cap : 4096;
		char *p;

		if (cap > 4 * VP_REQUEST_MAX_LINE)
			return -ENOBUFS;
		p = realloc(cl->in, cap);
		if (!p)
			return -ENOMEM;
		cl->in = p;
		cl->in_cap = cap;
	}
	n = vp_recv_plain(cl->fd, cl->in + cl->in_len, cl->in_cap - cl->in_len);
	if (n == 0)
		return -ECONNRESET;
	if (n < 0)
		return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
	cl->in_len += n;
	return 0;
}

static int on_client(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_client *cl = arg;
	int r = 0;

	if (revents & EPOLLOUT)
		r = client_flush(cl);
	if (!r && revents & EPOLLIN)
		r = client_read(cl);
	else if (!r && revents & (EPOLLHUP | EPOLLERR))
		r = -ECONNRESET;
	if (!r && cl->in_len)
		r = client_lines(cl);
	if (!r)
		r = client_flush(cl);
	if (!r)
		r = client_rearm(cl);
	if (r) {
		if (r == -ENOBUFS)
			vp_log(VP_LOG_WARNING, "control: a client did not read its answers; cut off");
		client_free(cl);
	}
	return 0;
}

static bool in_group(int fd, gid_t gid)
{
	gid_t groups[256];
	socklen_t len = sizeof(groups);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len))
		return false;
	for (size_t i = 0; i < len / sizeof(gid_t); i++)
		if (groups[i] == gid)
			return true;
	return false;
}

bool vp_control_peer_ok(int fd, const gid_t *groups, unsigned n, struct ucred *cred)
{
	if (vp_sock_peer(fd, cred))
		return false;
	for (unsigned i = 0; i < n; i++)
		if (groups[i] != (gid_t)-1 && (cred->gid == groups[i] || in_group(fd, groups[i])))
			return true;
	return cred->uid == 0 || cred->uid == geteuid();
}

static int refuse(struct vp_control *c, int fd, int code, const char *why)
{
	struct vp_request none = { 0 };
	struct vp_err e;
	size_t n = 0;
	char *line;
	uint64_t now = 0;

	vp_err_set(&e, code, "%s", why);
	line = vp_reply_error(&none, &e, &n);
	if (line)
		(void)!send(fd, line, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	free(line);
	vp_close_foreign(&fd);
	/* One line a second at most: who is refused must not fill the log. */
	sd_event_now(c->d->event, CLOCK_MONOTONIC, &now);
	if (now - c->last_refusal_us > 1000000) {
		c->last_refusal_us = now;
		vp_log(VP_LOG_WARNING, "control: refused a client: %s", why);
	}
	return 0;
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct vp_control *c = arg;
	struct vp_client *cl;
	struct ucred cred;
	/* seccomp control: accept4 */
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(c->d, lfd, "the control socket");
		return 0;
	}
	if (!vp_control_peer_ok(fd, &c->gid, c->has_group, &cred))
		return refuse(c, fd, -EACCES,
			      "only root, the daemon's user and the group of [Control] Group= may connect");
	if (c->n_clients >= VP_CONTROL_MAX_CLIENTS)
		return refuse(c, fd, -EMFILE, "too many control clients; close one and try again");
	cl = calloc(1, sizeof(*cl));
	if (!cl) {
		vp_close_foreign(&fd);
		return 0;
	}
	cl->ctl = c;
	cl->fd = fd;
	cl->send_fd = -1;
	cl->cred = cred;
	cl->next = c->clients;
	c->clients = cl;
	c->n_clients++;
	if (vp_source_add(&cl->io, c->d->event, fd, EPOLLIN, on_client, cl) < 0)
		client_free(cl);
	return 0;
}

/* Tell subscribers. Steals data. */
static void on_event(void *arg, const char *event, json_t *data)
{
	struct vp_control *c = arg;
	struct vp_client *cl;
	struct timespec ts;
	bool any = false;
	size_t len = 0;
	char *line;

	for (cl = c->clients; cl; cl = cl->next)
		any |= cl->subscribed;
	if (!any) {
		json_decref(data);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	line = vp_event_line(event, (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000, data, &len);
	for (cl = line ? c->clients : NULL; cl; cl = cl->next) {
		if (!cl->subscribed || cl->closing)
			continue;
		/* Not freed here: the client may be the one whose request is being served. */
		if (client_put(cl, strndup(line, len), len)) {
			cl->closing = true;
			cl->subscribed = false;
			/* seccomp control: shutdown */
			shutdown(cl->fd, SHUT_RDWR);
			vp_log(VP_LOG_WARNING, "control: a subscriber did not read its events; cut off");
		}
		client_rearm(cl);
	}
	free(line);
}

int vp_control_new(struct vp_control **out, struct vp_daemon *d, int fd, bool ours, const char *path,
		   const char *group, struct vp_err *e)
{
	struct vp_control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->d = d;
	c->fd = fd;
	c->unlink_path = ours;
	memcpy(c->path, path, strlen(path));
	if (*group) {
		struct group *g = getgrnam(group);

		c->has_group = g != NULL;
		c->gid = g ? g->gr_gid : 0;
	}
	if (fd < 0) {
		r = vp_sock_listen(path, c->has_group ? 0660 : 0600, &c->fd, e);
		if (r)
			goto fail;
		c->unlink_path = true;
		/* seccomp control: lchown fchownat */
		if (c->has_group && lchown(path, -1, c->gid)) {
			r = vp_err_set(e, -errno, "%s: cannot give it to group %s: %s", path, group, strerror(errno));
			goto fail;
		}
	}
	r = vp_source_add(&c->io, d->event, c->fd, EPOLLIN, on_accept, c);
	if (r < 0) {
		vp_err_set(e, r, "%s: cannot wait for clients: %s", path, strerror(-r));
		goto fail;
	}
	vp_event_listen(d, on_event, c);
	*out = c;
	return 0;
fail:
	vp_control_free(c);
	return r;
}

void vp_control_free(struct vp_control *c)
{
	if (!c)
		return;
	vp_event_listen(c->d, NULL, NULL);
	while (c->clients)
		client_free(c->clients);
	vp_source_end(&c->io);
	if (c->unlink_path)
		unlink(c->path);
	vp_close(&c->fd);
	free(c);
}

void vp_client_subscribe(struct vp_client *cl)
{
	cl->subscribed = true;
}

/* Its link has gone. Not freed here: this may happen while its request is being served. */
static void on_capture_end(void *ctx, const char *link, const char *why)
{
	struct vp_client *cl = ctx;
	struct timespec ts;
	size_t len = 0;
	char *line;

	clock_gettime(CLOCK_REALTIME, &ts);
	line = vp_event_line("capture.ended", (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000,
			     json_pack("{s:s,s:s}", "link", link, "why", why), &len);
	if (client_put(cl, line, len))
		cl->closing = true;
	client_rearm(cl);
}

int vp_client_capture(struct vp_client *cl, struct vp_link *l, uint32_t snaplen, uint32_t buffer,
		      struct vp_capture_info *info, struct vp_err *e)
{
	int r;

	if (cl->capture)
		return vp_err_set(e, -EBUSY, "this connection has a capture already; use one connection for each");
	if (out_waiting(cl))
		return vp_err_set(e, -EBUSY, "read the answers to your earlier requests first");
	r = vp_capture_start(&cl->capture, l, snaplen, buffer, on_capture_end, cl, e);
	if (r)
		return r;
	vp_capture_info(cl->capture, info);
	cl->send_fd = info->fd;
	return 0;
}
/* ---- answers that come later ------------------------------------------------------------------ */

void vp_client_later(struct vp_client *cl)
{
	cl->later = strdup("");
}

static int answer_later(struct vp_client *cl, json_t *result, const struct vp_err *e)
{
	struct vp_request req = { .id = json_loads(cl->later, JSON_DECODE_ANY, NULL) };
	size_t n = 0;
	char *line = e ? vp_reply_error(&req, e, &n) : vp_reply_ok(&req, json_incref(result), &n);
	int r;

	json_decref(req.id);
	free(cl->later);
	cl->later = NULL;
	r = client_put(cl, line, n);
	if (!r)
		r = client_flush(cl);
	if (!r)
		r = client_lines(cl);
	return r ? r : client_rearm(cl);
}

void vp_control_answer(struct vp_control *c, json_t *result, const struct vp_err *e)
{
	struct vp_client *next;

	for (struct vp_client *cl = c->clients; cl; cl = next) {
		next = cl->next;
		if (cl->later && answer_later(cl, result, e))
			client_free(cl);
	}
	json_decref(result);
}

/* ---- for another daemon ------------------------------------------------------------------------ */

enum tag { TAG_PATH = 1, TAG_LISTENS, TAG_OURS, TAG_CLIENT, TAG_STATE = 16, TAG_SOCKET, TAG_IN, TAG_OUT, TAG_LATER };

struct client_rec {
	uint64_t tokens_us;
	uint32_t pid, uid, gid, subscribed;
};

static void client_save(const struct vp_client *cl, struct vp_rec *r)
{
	const struct client_rec s = {
		.tokens_us = cl->tokens_us, .pid = (uint32_t)cl->cred.pid, .uid = cl->cred.uid, .gid = cl->cred.gid,
		.subscribed = cl->subscribed,
	};

	/* A capture ends with the daemon that it began in. */
	if (cl->closing || cl->capture)
		return;
	vp_rec_begin(r, TAG_CLIENT);
	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	vp_rec_fd(r, TAG_SOCKET, VP_REC_FD_SOCKET, cl->fd);
	vp_rec_put(r, TAG_IN, cl->in, cl->in_len);
	vp_rec_put(r, TAG_OUT, cl->out + cl->out_off, out_waiting(cl));
	if (cl->later)
		vp_rec_str(r, TAG_LATER, cl->later);
	vp_rec_end(r);
}

void vp_control_save(struct vp_control *c, struct vp_rec *r)
{
	unsigned n = 0;

	vp_rec_str(r, TAG_PATH, c->path);
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, c->fd);
	vp_rec_u64(r, TAG_OURS, c->unlink_path);
	/* The list begins with the newest: from the other end, it is so there, too. */
	for (struct vp_client *cl = c->clients; cl; cl = cl->next)
		n++;
	while (n) {
		struct vp_client *cl = c->clients;

		for (unsigned i = --n; i; i--)
			cl = cl->next;
		client_save(cl, r);
	}
}

int vp_control_record_socket(struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e)
{
	char path[VP_CONF_SOCKET_MAX];
	int fd, r = vp_rec_text(in, TAG_PATH, path, sizeof(path));

	if (r)
		return vp_err_set(e, r, "the record of the control socket is malformed");
	if (strcmp(path, d->conf->daemon.control_socket))
		return vp_err_set(e, -EINVAL,
				  "the control socket is %.80s, and %.80s by the files: that changes by a restart only",
				  path, d->conf->daemon.control_socket);
	r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &fd, e);
	if (!r && fd < 0)
		return vp_err_set(e, -EPROTO, "the record of the control socket has no socket");
	return r ? r : vp_activation_add(&d->activation, "control", fd, vp_rec_num(in, TAG_OURS, 0));
}

static int copy_bytes(char **to, size_t *n, size_t *cap, const struct vp_rec_in *in, unsigned tag)
{
	struct vp_rec_in b;

	if (!vp_rec_find(in, tag, &b) || !b.n)
		return 0;
	*to = malloc(b.n);
	if (!*to)
		return -ENOMEM;
	memcpy(*to, b.p, b.n);
	*n = *cap = b.n;
	return 0;
}

static int client_restore(struct vp_control *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_client *cl = calloc(1, sizeof(*cl));
	char later[VP_REQUEST_MAX_LINE / 16];
	struct client_rec s;
	int r;

	if (!cl)
		return vp_err_set(e, -ENOMEM, "out of memory");
	cl->ctl = c;
	cl->fd = -1;
	cl->next = c->clients;
	c->clients = cl;
	c->n_clients++;
	if (vp_rec_get(in, TAG_STATE, &s, sizeof(s)) || vp_rec_text(in, TAG_LATER, later, sizeof(later)))
		return vp_err_set(e, -EPROTO, "the record of a control client is malformed");
	cl->cred = (struct ucred){ (pid_t)s.pid, s.uid, s.gid };
	cl->tokens_us = s.tokens_us;
	cl->subscribed = s.subscribed;
	cl->later = *later ? strdup(later) : NULL;
	r = vp_rec_take(in, TAG_SOCKET, VP_REC_FD_SOCKET, &cl->fd, e);
	if (!r && cl->fd < 0)
		r = vp_err_set(e, -EPROTO, "the record of a control client has no socket");
	if (!r && (copy_bytes(&cl->in, &cl->in_len, &cl->in_cap, in, TAG_IN) ||
		   copy_bytes(&cl->out, &cl->out_len, &cl->out_cap, in, TAG_OUT)))
		r = vp_err_set(e, -ENOMEM, "out of memory");
	if (!r && vp_source_add(&cl->io, c->d->event, cl->fd, EPOLLIN, on_client, cl) < 0)
		r = vp_err_set(e, -ENOMEM, "a control client cannot be watched");
	return r ? r : client_rearm(cl);
}

int vp_control_restore(struct vp_control *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag;
	int r = 0;

	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_CLIENT)
			r = c->n_clients < VP_CONTROL_MAX_CLIENTS ? client_restore(c, &body, e) : 0;
	return r;
}
