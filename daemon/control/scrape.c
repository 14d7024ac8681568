/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: as the control socket's. A client sends at most REQUEST_MAX bytes, holds at most PIECE and a few more,
 * and is read from no further once it has asked. There are MAX_CLIENTS of them: one more, and the one that has been
 * there longest is cut off. Each turn of the loop writes one piece, after everything else that waits in that turn has
 * had its own.
 */
#include "control/scrape.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/text.h"
#include "base/util.h"
#include "context/context.h"
#include "control/control.h"
#include "control/metrics.h"
#include "sys/fds.h"
#include "sys/sock.h"
#include "sys/source.h"

#define REQUEST_MAX 8192
#define MAX_CLIENTS 16
#define PIECE       (192u << 10)  /* bytes of an answer that wait for a reader */
#define PIECE_US    1000u         /* and the time that it takes to write them, at most */

struct scrape {
	struct vp_scrapes   *all;
	struct vp_source    *io;
	int                  fd;
	char                 in[REQUEST_MAX];
	size_t               in_n;
	bool                 asked, more;  /* the request is there; there is more to write */
	struct vp_metrics_at at;
	struct vp_text       out;
	size_t               sent;
	struct scrape       *next;
};

struct vp_scrapes {
	struct vp_daemon *d;
	struct vp_source *io;
	int               fd;
	char              path[VP_CONF_SOCKET_MAX];
	bool              unlink_path;
	gid_t             groups[2];
	unsigned          n;
	struct scrape    *first;  /* the newest */
};

static void scrape_free(struct scrape *s)
{
	struct scrape **p = &s->all->first;

	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	s->all->n--;
	vp_source_end(&s->io);
	vp_close_foreign(&s->fd);
	vp_text_free(&s->out);
	free(s);
}

static void answer(struct scrape *s, const char *status, const char *type, const char *text)
{
	char head[256];

	snprintf(head, sizeof(head), "HTTP/1.1 %s\r\nContent-Type: %s\r\nConnection: close\r\n\r\n", status, type);
	vp_text_str(&s->out, head);
	vp_text_str(&s->out, text);
}

/* The value of a header into buf, "" when it is not there. */
static void header(const char *request, const char *name, char *buf, size_t size)
{
	const char *line = request;

	buf[0] = 0;
	while ((line = strstr(line, "\r\n"))) {
		line += 2;
		if (strncasecmp(line, name, strlen(name)) || line[strlen(name)] != ':')
			continue;
		snprintf(buf, size, "%.*s", (int)strcspn(line + strlen(name) + 1, "\r"), line + strlen(name) + 1);
		return;
	}
}

static void serve(struct scrape *s)
{
	char accept[256], path[64];

	s->asked = true;
	if (strncmp(s->in, "GET ", 4)) {
		answer(s, "405 Method Not Allowed", "text/plain", "only GET is served here\n");
		return;
	}
	snprintf(path, sizeof(path), "%.*s", (int)strcspn(s->in + 4, " ?\r"), s->in + 4);
	if (strcmp(path, "/metrics") && strcmp(path, "/")) {
		answer(s, "404 Not Found", "text/plain", "there is only /metrics here\n");
		return;
	}
	header(s->in, "Accept", accept, sizeof(accept));
	s->at.openmetrics = strcasestr(accept, "application/openmetrics-text") || !strcasestr(accept, "text/plain");
	answer(s, "200 OK", s->at.openmetrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8" :
	       "text/plain; version=0.0.4; charset=utf-8", "");
	s->more = true;
}

static int request(struct scrape *s)
{
	ssize_t n = vp_recv_plain(s->fd, s->in + s->in_n, sizeof(s->in) - 1 - s->in_n);

	if (n <= 0)
		return n == -EAGAIN || n == -EINTR ? 0 : -ECONNRESET;
	s->in_n += (size_t)n;
	s->in[s->in_n] = 0;
	if (strlen(s->in) != s->in_n) {
		s->asked = true;
		answer(s, "400 Bad Request", "text/plain", "the request has a zero byte in it\n");
	} else if (strstr(s->in, "\r\n\r\n")) {
		serve(s);
	} else if (s->in_n == sizeof(s->in) - 1) {
		s->asked = true;
		answer(s, "431 Request Header Fields Too Large", "text/plain", "the request is too long\n");
	}
	return s->asked ? vp_source_events(s->io, EPOLLOUT) : 0;
}

/* One piece, and what of it the client takes. -ESHUTDOWN: that was the last. */
static int piece(struct scrape *s)
{
	if (s->sent == s->out.n) {
		s->out.n = s->sent = 0;
		if (s->more)
			s->more = !vp_metrics_write(s->all->d, &s->at, &s->out, PIECE, PIECE_US);
		if (s->out.failed)
			return -ENOMEM;
	}
	while (s->sent < s->out.n) {
		/* seccomp control: sendto */
		ssize_t n = send(s->fd, s->out.s + s->sent, s->out.n - s->sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		s->sent += (size_t)n;
	}
	return s->more ? 0 : -ESHUTDOWN;
}

static int on_scrape(sd_event_source *src, int fd, uint32_t revents, void *arg)
{
	struct scrape *s = arg;
	int r = 0;

	if (revents & EPOLLIN && !s->asked)
		r = request(s);
	else if (revents & EPOLLOUT)
		r = piece(s);
	else if (revents & (EPOLLHUP | EPOLLERR))
		r = -ECONNRESET;
	if (r)
		scrape_free(s);
	return 0;
}

/* Serve fd, and be its owner. Errors leave it the caller's. */
static int begin(struct vp_scrapes *a, int fd)
{
	struct scrape *s = calloc(1, sizeof(*s)), *oldest;

	if (!s)
		return -ENOMEM;
	for (oldest = a->first; oldest && oldest->next; oldest = oldest->next)
		;
	if (a->n >= MAX_CLIENTS)
		scrape_free(oldest);
	s->all = a;
	s->fd = fd;
	s->next = a->first;
	a->first = s;
	a->n++;
	if (vp_source_add(&s->io, a->d->event, fd, EPOLLIN, on_scrape, s) < 0 ||
	    vp_source_priority(s->io, SD_EVENT_PRIORITY_NORMAL + 10) < 0)
		scrape_free(s);
	return 0;
}

static int on_accept(sd_event_source *src, int lfd, uint32_t revents, void *arg)
{
	struct vp_scrapes *a = arg;
	struct ucred cred;
	/* seccomp control: accept4 */
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(a->d, lfd, "the socket of the metrics");
		return 0;
	}
	if (!vp_control_peer_ok(fd, a->groups, VP_ARRAY_SIZE(a->groups), &cred) || begin(a, fd)) {
		static const char no[] = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n"
					 "only root, the daemon's user and the groups of [Control] Group= and "
					 "[Metrics] Group= may read the metrics\n";

		(void)!send(fd, no, sizeof(no) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
		vp_close_foreign(&fd);
	}
	return 0;
}

static gid_t group_id(const char *name)
{
	struct group *g = *name ? getgrnam(name) : NULL;

	return g ? g->gr_gid : (gid_t)-1;
}

int vp_scrapes_new(struct vp_scrapes **out, struct vp_daemon *d, int fd, bool ours, struct vp_err *e)
{
	const struct vp_conf_daemon *c = &d->conf->daemon;
	struct vp_scrapes *a = calloc(1, sizeof(*a));
	gid_t owner;
	int r = 0;

	if (!a)
		return vp_err_set(e, -ENOMEM, "out of memory");
	a->d = d;
	a->fd = fd;
	a->unlink_path = ours;
	memcpy(a->path, c->metrics_socket, sizeof(a->path));
	a->groups[0] = group_id(c->control_group);
	a->groups[1] = group_id(c->metrics_group);
	owner = a->groups[1] != (gid_t)-1 ? a->groups[1] : a->groups[0];
	if (fd < 0) {
		r = vp_sock_listen(a->path, owner != (gid_t)-1 ? 0660 : 0600, &a->fd, e);
		a->unlink_path = !r;
		/* seccomp control: lchown fchownat */
		if (!r && owner != (gid_t)-1 && lchown(a->path, -1, owner))
			r = vp_err_set(e, -errno, "%s: cannot give it to its group: %s", a->path, strerror(errno));
	}
	if (!r && vp_source_add(&a->io, d->event, a->fd, EPOLLIN, on_accept, a) < 0)
		r = vp_err_set(e, -ENOMEM, "%s: cannot wait for clients", a->path);
	if (r) {
		vp_scrapes_free(a);
		return r;
	}
	*out = a;
	return 0;
}

void vp_scrapes_free(struct vp_scrapes *a)
{
	if (!a)
		return;
	while (a->first)
		scrape_free(a->first);
	vp_source_end(&a->io);
	if (a->unlink_path)
		unlink(a->path);
	vp_close(&a->fd);
	free(a);
}

/* ---- for another daemon ------------------------------------------------------------------------ */

enum tag { TAG_PATH = 1, TAG_LISTENS, TAG_OURS, TAG_CLIENT, TAG_SOCKET = 16, TAG_IN };

bool vp_scrapes_at_rest(const struct vp_scrapes *a)
{
	for (const struct scrape *s = a->first; s; s = s->next)
		if (s->asked)
			return false;
	return true;
}

void vp_scrapes_save(struct vp_scrapes *a, struct vp_rec *r)
{
	vp_rec_str(r, TAG_PATH, a->path);
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, a->fd);
	vp_rec_u64(r, TAG_OURS, a->unlink_path);
	for (struct scrape *s = a->first; s; s = s->next) {
		if (s->asked)
			continue;
		vp_rec_begin(r, TAG_CLIENT);
		vp_rec_fd(r, TAG_SOCKET, VP_REC_FD_SOCKET, s->fd);
		vp_rec_put(r, TAG_IN, s->in, s->in_n);
		vp_rec_end(r);
	}
}

int vp_scrapes_record_socket(struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e)
{
	char path[VP_CONF_SOCKET_MAX];
	int fd, r = vp_rec_text(in, TAG_PATH, path, sizeof(path));

	if (r)
		return vp_err_set(e, r, "the record of the metrics' socket is malformed");
	if (strcmp(path, d->conf->daemon.metrics_socket))
		return vp_err_set(e, -EINVAL,
				  "the socket of the metrics is %.80s, and %.80s by the files: that changes by a "
				  "restart only",
				  path, d->conf->daemon.metrics_socket);
	r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &fd, e);
	if (!r && fd < 0)
		return vp_err_set(e, -EPROTO, "the record of the metrics' socket has no socket");
	return r ? r : vp_activation_add(&d->activation, "metrics", fd, vp_rec_num(in, TAG_OURS, 0));
}

int vp_scrapes_restore(struct vp_scrapes *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body, text;
	unsigned tag;
	int r = 0, fd;

	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_CLIENT || a->n >= MAX_CLIENTS)
			continue;
		r = vp_rec_take(&body, TAG_SOCKET, VP_REC_FD_SOCKET, &fd, e);
		if (r || fd < 0)
			continue;
		if (!vp_rec_find(&body, TAG_IN, &text) || text.n >= REQUEST_MAX)
			r = vp_err_set(e, -EPROTO, "the record of a metrics client is malformed");
		if (r || begin(a, fd)) {
			vp_close(&fd);
			continue;
		}
		memcpy(a->first->in, text.p, text.n);
		a->first->in_n = text.n;
	}
	return r;
}
