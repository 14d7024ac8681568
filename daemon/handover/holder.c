/* SPDX-License-Identifier: BSD-3-Clause */
/* The holder: the daemon's side, see holder.h. */
#include "handover/holder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "handover/holder_priv.h"
#include "sys/fds.h"
#include "sys/fdstore.h"
#include "sys/log_sink.h"
#include "sys/sock.h"
#include "sys/source.h"

#define WAIT_MS 5000 /* for all that it has */
#define SAY_MS  1000

static struct {
	int sock;
	struct vp_source *io;
} me = { .sock = -1 };

static void gone(const char *why)
{
	vp_log(VP_LOG_ERR,
	       "the holder %s: when this daemon ends, VMMs have to connect again; stop the daemon and start it to have "
	       "another holder",
	       why);
	vp_holder_end();
}

static int say(const struct hold_msg *m, int fd)
{
	struct pollfd p = { .fd = me.sock, .events = POLLOUT };
	int r;

	if (me.sock < 0)
		return -ENOTCONN;
	/* It has nothing else to do, and will have read what is there in a moment. Somebody may have stopped it. */
	while ((r = vp_send_fds(me.sock, m, sizeof(*m), &fd, fd >= 0)) == -EAGAIN && poll(&p, 1, SAY_MS) == 1)
		;
	if (r == -EAGAIN)
		gone("takes no messages");
	return r;
}

static int put(const char *name, int fd)
{
	struct hold_msg m = { .op = HOLD_PUT };

	snprintf(m.name, sizeof(m.name), "%s", name);
	return say(&m, fd);
}

static void drop(const char *name)
{
	struct hold_msg m = { .op = HOLD_DROP };

	snprintf(m.name, sizeof(m.name), "%s", name);
	say(&m, -1);
}

static const struct vp_fdstore_ops ops = { .put = put, .drop = drop };

static void ours(int sock)
{
	me.sock = sock;
	vp_fdstore_use(&ops);
}

/* ---- one that is there ------------------------------------------------------------------------ */

/* A packet, and the fd that may come with it. */
static int hear(int sock, struct hold_msg *m, int *fd)
{
	union {
		char buf[CMSG_SPACE(VP_FOREIGN_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec io = { m, sizeof(*m) };
	struct msghdr h = {
		.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = ctl.buf,
		.msg_controllen = sizeof(ctl.buf),
	};
	struct pollfd p = { .fd = sock, .events = POLLIN };
	struct cmsghdr *cm;

	*fd = -1;
	if (poll(&p, 1, WAIT_MS) != 1 || recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof(*m))
		return -ECONNRESET;
	m->name[sizeof(m->name) - 1] = 0;
	cm = CMSG_FIRSTHDR(&h);
	if (cm && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(cm), sizeof(*fd));
	return 0;
}

/* 0: it is ours. -ENOENT: there is none any more. -EBUSY: it is another daemon's. -EPERM: another user's. */
static int find(int sock, const char *path, struct vp_activation *a, struct vp_err *e)
{
	struct ucred cred;
	struct hold_msg m;
	int fd, r;

	if (vp_sock_peer(sock, &cred) || (cred.uid && cred.uid != geteuid()))
		return vp_err_set(e, -EPERM,
				  "%s: it belongs to user %d, who is neither root nor the daemon's user; remove it",
				  path, (int)cred.uid);
	while (!(r = hear(sock, &m, &fd))) {
		if (m.op == HOLD_GIVE && fd >= 0) {
			if (vp_activation_add(a, m.name, fd, true))
				vp_close_foreign(&fd);
			continue;
		}
		vp_close_foreign(&fd);
		if (m.op == HOLD_BUSY)
			return vp_err_set(e, -EBUSY,
					  "%s: another daemon runs with this runtime directory; stop it, or use "
					  "another --runtime-dir",
					  path);
		if (m.op == HOLD_YOURS) {
			ours(sock);
			return 0;
		}
	}
	return -ENOENT;
}

/* ---- one that is made ------------------------------------------------------------------------- */

static int make(const struct vp_conf_daemon *c, const struct sockaddr_un *at, unsigned seconds)
{
	int sv[2] = { -1, -1 }, lfd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), r = 0;
	pid_t pid = -1;

	unlink(at->sun_path);
	if (lfd < 0 || bind(lfd, (const struct sockaddr *)at, sizeof(*at)) || chmod(at->sun_path, 0600) ||
	    listen(lfd, 4) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		r = -errno;
	if (!r)
		pid = fork();
	if (!pid) {
		/* Out of each other's way first. */
		int d = fcntl(sv[1], F_DUPFD, 16), l = fcntl(lfd, F_DUPFD, 16);

		/* Nothing of the daemon's but its log. */
		vp_log_sink_forked();
		if (dup2(d, HOLD_DAEMON_FD) < 0 || dup2(l, HOLD_LISTEN_FD) < 0 ||
		    syscall(SYS_close_range, HOLD_LISTEN_FD + 1, ~0u, 0))
			_exit(1);
		vp_holder_main(c, at->sun_path, seconds);
	}
	if (!r && pid < 0)
		r = -errno;
	vp_close(&lfd);
	vp_close(&sv[1]);
	if (r)
		vp_close(&sv[0]);
	else
		ours(sv[0]);
	return r;
}

int vp_holder_start(const struct vp_conf_daemon *c, unsigned seconds, struct vp_activation *a, struct vp_err *e)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct hold_msg m = { .op = seconds ? HOLD_TIME : HOLD_END, .seconds = seconds };
	int sock, r;

	if ((size_t)snprintf(at.sun_path, sizeof(at.sun_path), "%s/hold.sock", c->runtime_dir) >= sizeof(at.sun_path))
		return seconds ? vp_err_set(e, -ENAMETOOLONG,
					    "%s/hold.sock: longer than a UNIX socket's path may be; "
					    "use a shorter runtime directory",
					    c->runtime_dir)
			       : 0;
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return vp_err_set(e, -errno, "cannot make a socket: %s", strerror(errno));
	r = connect(sock, (const struct sockaddr *)&at, sizeof(at)) ? -ENOENT : find(sock, at.sun_path, a, e);
	if (r)
		close(sock);
	if (!r && !seconds) {
		vp_log(VP_LOG_WARNING,
		       "the daemon before kept its links (--hold); this one was started without that option, and their "
		       "VMMs connect again");
		/* What is in there may linger (base/foreign.h): the holder closes it last. */
		for (unsigned i = 0; i < a->n; i++)
			if (!strncmp(a->s[i].name, VP_FDSTORE_PREFIX, strlen(VP_FDSTORE_PREFIX)))
				vp_close(&a->s[i].fd);
	}
	if (!r)
		say(&m, -1);
	if (!r && !seconds) {
		struct pollfd p = { .fd = me.sock, .events = POLLIN };

		poll(&p, 1, WAIT_MS);
		vp_holder_end();
	}
	if (r != -ENOENT)
		return r;
	if (!seconds)
		return 0;
	r = make(c, &at, seconds);
	return r ? vp_err_set(e, r, "--hold: cannot start the process that keeps sessions: %s: %s", at.sun_path,
			      strerror(-r))
		 : 0;
}

static int on_death(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	gone("has gone");
	return 0;
}

int vp_holder_watch(sd_event *event, struct vp_err *e)
{
	int r = me.sock < 0 ? 0 : vp_source_add(&me.io, event, me.sock, 0, on_death, NULL);

	return r < 0 ? vp_err_set(e, r, "cannot watch the holder: %s", strerror(-r)) : 0;
}

void vp_holder_end(void)
{
	if (me.sock < 0)
		return;
	vp_source_end(&me.io);
	vp_close(&me.sock);
	vp_fdstore_use(NULL);
}

int vp_holder_fd(void)
{
	return me.sock;
}

int vp_holder_adopt(sd_event *event, int fd, struct vp_err *e)
{
	ours(fd);
	return vp_holder_watch(event, e);
}
