/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/grant_channel.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"
#include "context/context.h"
#include "sys/sock.h"
#include "sys/source.h"

#define LINE_MAX_BYTES 256u
#define LINES_A_SECOND 20u

struct vp_grant_channel {
	struct vp_daemon                  *d;
	const struct vp_conf_link         *link;
	const struct vp_grant_channel_ops *ops;
	void                              *ctx;
	char                               name[VP_CONF_NAME_MAX + 32];
	int                                lfd, fd;
	bool                               unlink_path, leaving;
	struct vp_source                  *listen_io, *io;
	struct ucred                       cred;
	char                               line[LINE_MAX_BYTES];
	unsigned                           n;
	uint64_t                           second_us;  /* the lines below came since then */
	unsigned                           lines;
	uint64_t                           n_conns, n_refused;
};

static void hang_up(struct vp_grant_channel *c, const char *why)
{
	if (c->fd < 0)
		return;
	if (!c->leaving) {
		c->ops->touch(c->ctx);
		vp_log(VP_LOG_INFO, "%s: the connection has ended: %s", c->name, why);
	}
	vp_source_end(&c->io);
	vp_close(&c->fd);
	c->n = 0;
}

/* What does not fit is lost: the driver VM does not read, and is asked again when it connects anew. */
static void say(struct vp_grant_channel *c, const char *word, const char *text)
{
	char out[LINE_MAX_BYTES + 16];
	int n = snprintf(out, sizeof(out), "%s%s%.240s\n", word, *text ? " " : "", text);

	/* seccomp control: sendto */
	if (c->fd >= 0 && send(c->fd, out, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN)
		hang_up(c, strerror(errno));
}

void vp_grant_channel_ask(struct vp_grant_channel *c)
{
	c->ops->touch(c->ctx);
	say(c, "grant?", "");
}

/* "0xADDRESS 0xBYTES" and nothing behind it. */
static bool two_numbers(const char *s, uint64_t *a, uint64_t *b)
{
	char *end;

	errno = 0;
	if (strncmp(s, "0x", 2) || !isxdigit((unsigned char)s[2]))
		return false;
	*a = strtoull(s, &end, 16);
	if (errno || strncmp(end, " 0x", 3) || !isxdigit((unsigned char)end[3]))
		return false;
	*b = strtoull(end + 1, &end, 16);
	return !errno && !*end;
}

static void on_line(struct vp_grant_channel *c, char *line)
{
	static const char grant[] = "grant swiotlb ", refuse[] = "refuse ";
	struct vp_err e = { 0 };
	uint64_t addr, size;

	for (char *p = line; *p; p++)
		if (iscntrl((unsigned char)*p) || (unsigned char)*p >= 0x80)
			*p = '?';
	if (!strncmp(line, refuse, sizeof(refuse) - 1)) {
		c->ops->refuse(c->ctx, line + sizeof(refuse) - 1);
	} else if (strncmp(line, grant, sizeof(grant) - 1) || !two_numbers(line + sizeof(grant) - 1, &addr, &size)) {
		say(c, "error", "expected: grant swiotlb 0xADDRESS 0xBYTES, or: refuse TEXT");
	} else if (c->ops->grant(c->ctx, addr, size, &e)) {
		vp_log(VP_LOG_NOTICE, "%s: %s", c->name, e.msg);
		say(c, "error", e.msg);
	} else {
		say(c, "ok", "");
	}
}

/* More lines than a helper has reason to send. */
static bool floods(struct vp_grant_channel *c)
{
	uint64_t now = 0;

	sd_event_now(c->d->event, CLOCK_MONOTONIC, &now);
	if (now - c->second_us > 1000000) {
		c->second_us = now;
		c->lines = 0;
	}
	return ++c->lines > LINES_A_SECOND;
}

static int on_input(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_grant_channel *c = arg;
	ssize_t got;
	char *end;

	/* Until what it says is done, and answered, and in a new record. */
	c->ops->touch(c->ctx);
	/* seccomp control: recvfrom */
	got = recv(c->fd, c->line + c->n, sizeof(c->line) - c->n, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got <= 0) {
		hang_up(c, "the VMM closed it");
		return 0;
	}
	c->n += (unsigned)got;
	while (c->fd >= 0 && (end = memchr(c->line, '\n', c->n))) {
		unsigned used = (unsigned)(end - c->line) + 1;

		*end = 0;
		if (floods(c)) {
			hang_up(c, "the driver VM sends too many lines");
			return 0;
		}
		on_line(c, c->line);
		c->n -= c->fd >= 0 ? used : c->n;
		memmove(c->line, c->line + used, c->n);
	}
	if (c->n == sizeof(c->line))
		hang_up(c, "the driver VM sent a line that is too long");
	return 0;
}

static int watch(struct vp_grant_channel *c)
{
	int r = vp_source_add(&c->io, c->d->event, c->fd, EPOLLIN, on_input, c);

	if (r >= 0)
		vp_source_limit(c->io, 100000, 100);
	return r;
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct vp_grant_channel *c = arg;
	const char *vm = c->link->side[VP_SIDE_DRIVER].vm;
	struct ucred cred;
	/* seccomp control: accept4 */
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(c->d, lfd, c->name);
		return 0;
	}
	if (vp_sock_peer(fd, &cred) || !vp_policy_user_ok(vp_conf_vm_find(c->d->conf, vm), cred.uid, geteuid())) {
		if (!c->n_refused++)
			vp_log(VP_LOG_WARNING,
			       "%s: refused pid %d of user %u, who may not run VM %s; add it to User= in %s.vm",
			       c->name, (int)cred.pid, cred.uid, vm, vm);
		close(fd);
		return 0;
	}
	c->ops->touch(c->ctx);
	/* A VMM connects anew when it was restarted: the last one counts. */
	hang_up(c, "the VMM connected anew");
	c->fd = fd;
	if (watch(c) < 0) {
		vp_close(&c->fd);
		return 0;
	}
	c->cred = cred;
	c->n_conns++;
	if (c->ops->wants(c->ctx))
		vp_grant_channel_ask(c);
	return 0;
}

#define ACT_MAX (VP_CONF_NAME_MAX + 16)

static void activation_name(const struct vp_conf_link *link, char name[ACT_MAX])
{
	snprintf(name, ACT_MAX, "%s.grant", link->name);
}

int vp_grant_channel_new(struct vp_grant_channel **out, struct vp_daemon *d, const struct vp_conf_link *link,
			 const struct vp_grant_channel_ops *ops, void *ctx, struct vp_err *e)
{
	struct vp_grant_channel *c = calloc(1, sizeof(*c));
	char act[ACT_MAX];
	int r = 0;

	*out = c;
	if (!c)
		return vp_err_set(e, -ENOMEM, "out of memory");
	c->d = d;
	c->link = link;
	c->ops = ops;
	c->ctx = ctx;
	c->fd = -1;
	snprintf(c->name, sizeof(c->name), "link %s, channel for grants", link->name);
	activation_name(link, act);
	c->lfd = vp_activation_take_ours(&d->activation, act, &c->unlink_path);
	if (c->lfd < 0) {
		r = vp_sock_listen(link->grant_socket,
				   vp_conf_socket_file_mode(d->conf, link->side[VP_SIDE_DRIVER].vm), &c->lfd, e);
		c->unlink_path = !r;
	}
	if (!r) {
		r = vp_source_add(&c->listen_io, d->event, c->lfd, EPOLLIN, on_accept, c);
		if (r < 0)
			vp_err_set(e, r, "%s: %s", link->grant_socket, strerror(-r));
	}
	if (r < 0) {
		vp_grant_channel_free(c);
		*out = NULL;
		return r;
	}
	vp_source_limit(c->listen_io, 1000000, 50);
	return 0;
}

void vp_grant_channel_leave(struct vp_grant_channel *c)
{
	if (!c)
		return;
	c->leaving = true;
	c->unlink_path = false;
}

void vp_grant_channel_free(struct vp_grant_channel *c)
{
	if (!c)
		return;
	hang_up(c, "the link ends");
	vp_source_end(&c->listen_io);
	vp_close(&c->lfd);
	/* seccomp control: unlink */
	if (c->unlink_path)
		unlink(c->link->grant_socket);
	free(c);
}

/* ---- for another daemon ---------------------------------------------------------------------- */

enum tag { TAG_CHANNEL = 1, TAG_LISTENS, TAG_CONN, TAG_LINE };

struct channel_rec {
	uint64_t n_conns, n_refused;
	uint32_t pid, uid, gid, ours;
};

void vp_grant_channel_save(const struct vp_grant_channel *c, struct vp_rec *r)
{
	const struct channel_rec s = { .ours = c->unlink_path };

	vp_rec_put(r, TAG_CHANNEL, &s, sizeof(s));
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, c->lfd);
}

int vp_grant_channel_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e)
{
	struct channel_rec s;

	if (vp_rec_get(in, TAG_CHANNEL, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of its channel for grants is malformed");
	*ours = s.ours;
	return vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, fd, e);
}

int vp_grant_channel_adopt(struct vp_daemon *d, const struct vp_conf_link *link, const struct vp_rec_in *in,
			   struct vp_err *e)
{
	char act[ACT_MAX];
	bool ours;
	int fd, r = vp_grant_channel_record_socket(in, &fd, &ours, e);

	if (r || fd < 0)
		return r;
	activation_name(link, act);
	return vp_activation_add(&d->activation, act, fd, ours);
}

void vp_grant_channel_save_hot(const struct vp_grant_channel *c, struct vp_rec *r)
{
	const struct channel_rec s = {
		.n_conns = c->n_conns, .n_refused = c->n_refused, .pid = (uint32_t)c->cred.pid, .uid = c->cred.uid,
		.gid = c->cred.gid,
	};

	vp_rec_put(r, TAG_CHANNEL, &s, sizeof(s));
	vp_rec_fd(r, TAG_CONN, VP_REC_FD_SOCKET, c->fd);
	if (c->n)
		vp_rec_put(r, TAG_LINE, c->line, c->n);
}

int vp_grant_channel_restore_hot(struct vp_grant_channel *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in line;
	struct channel_rec s;
	int r;

	if (vp_rec_get(in, TAG_CHANNEL, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of its channel for grants is malformed");
	r = vp_rec_take(in, TAG_CONN, VP_REC_FD_SOCKET, &c->fd, e);
	if (r)
		return r;
	c->n_conns = s.n_conns;
	c->n_refused = s.n_refused;
	c->cred = (struct ucred){ (pid_t)s.pid, s.uid, s.gid };
	/* One that is half read. */
	if (vp_rec_find(in, TAG_LINE, &line)) {
		if (line.n >= sizeof(c->line))
			return vp_err_set(e, -EPROTO, "the record of its channel for grants is malformed");
		memcpy(c->line, line.p, line.n);
		c->n = (unsigned)line.n;
	}
	r = c->fd >= 0 ? watch(c) : 0;
	return r < 0 ? vp_err_set(e, r, "its channel for grants cannot be watched: %s", strerror(-r)) : 0;
}

json_t *vp_grant_channel_json(const struct vp_grant_channel *c)
{
	if (!c)
		return json_null();
	return json_pack("{s:s,s:b,s:I,s:I}", "socket", c->link->grant_socket, "connected", c->fd >= 0, "connections",
			 (json_int_t)c->n_conns, "refused", (json_int_t)c->n_refused);
}
