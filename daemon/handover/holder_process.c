/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The holder's process, see holder.h.
 *
 * Threat model: anyone who may connect to its socket is root or the daemon's user; others are turned away. It looks
 * into none of the fds that it has. Closing one may have to wait, for a UNIX socket may have others in its queue
 * (base/foreign.h): a timer interrupts that.
 */
#include "handover/holder_priv.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "sandbox/isolate.h"

#define INTERRUPT_US 100000
#define GIVE_SECONDS 5 /* that a daemon may take to read what it is given */

struct kept {
	char name[VP_ACTIVATION_NAME_MAX];
	int fd;
};

static struct {
	struct kept *v;
	unsigned n, cap;
	uint32_t seconds;
	int daemon; /* -1 = it has gone */
} me = { .daemon = HOLD_DAEMON_FD };

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void on_alarm(int sig)
{
}

static void close_kept(int fd)
{
	static const struct itimerval on = { { 0, INTERRUPT_US }, { 0, INTERRUPT_US } }, off;

	/* seccomp holder: setitimer close */
	setitimer(ITIMER_REAL, &on, NULL);
	close(fd);
	setitimer(ITIMER_REAL, &off, NULL);
}

static void drop(const char *name)
{
	for (unsigned i = 0; i < me.n; i++)
		if (!strcmp(me.v[i].name, name)) {
			int fd = me.v[i].fd;

			me.v[i--] = me.v[--me.n];
			close_kept(fd);
		}
}

static void put(const char *name, int fd)
{
	if (me.n == me.cap) {
		struct kept *v = realloc(me.v, (me.cap + 64) * sizeof(*v));

		if (!v) {
			close_kept(fd);
			return;
		}
		me.v = v;
		me.cap += 64;
	}
	drop(name);
	memcpy(me.v[me.n].name, name, sizeof(me.v[0].name));
	me.v[me.n++].fd = fd;
}

static int send_msg(int sock, enum hold_op op, const struct kept *k)
{
	struct hold_msg m = { .op = op };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = { { 0 } };
	struct iovec io = { &m, sizeof(m) };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };

	if (k) {
		struct cmsghdr *cm;

		memcpy(m.name, k->name, sizeof(m.name));
		h.msg_control = ctl.buf;
		h.msg_controllen = sizeof(ctl.buf);
		cm = CMSG_FIRSTHDR(&h);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cm), &k->fd, sizeof(int));
	}
	/* seccomp holder: sendmsg */
	return sendmsg(sock, &h, MSG_NOSIGNAL) == sizeof(m) ? 0 : -EPIPE;
}

/* Somebody has connected: a daemon, that is to have all, if no other one has. */
static void admit(void)
{
	static const struct timeval patience = { GIVE_SECONDS, 0 };
	/* seccomp holder: accept4 getsockopt setsockopt geteuid */
	int fd = accept4(HOLD_LISTEN_FD, NULL, NULL, SOCK_CLOEXEC), r = 0;
	struct ucred cred;
	socklen_t n = sizeof(cred);

	if (fd < 0)
		return;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) || (cred.uid && cred.uid != geteuid())) {
		vp_log(VP_LOG_WARNING, "holder: turned user %d away, who is neither root nor the daemon's user",
		       (int)cred.uid);
		close(fd);
		return;
	}
	if (me.daemon >= 0) {
		send_msg(fd, HOLD_BUSY, NULL);
		close(fd);
		return;
	}
	for (unsigned i = 0; !r && i < me.n; i++)
		r = send_msg(fd, HOLD_GIVE, &me.v[i]);
	if (!r)
		r = send_msg(fd, HOLD_YOURS, NULL);
	if (r)
		close(fd);
	else
		me.daemon = fd;
}

/* A message of the daemon. False: it has gone. */
static bool obey(bool *end)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct hold_msg m;
	struct iovec io = { &m, sizeof(m) };
	/* CMSG_LEN: the padding of CMSG_SPACE would have room for one more. */
	struct msghdr h = {
		.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = CMSG_LEN(sizeof(int))
	};
	/* seccomp holder: recvmsg */
	ssize_t n = recvmsg(me.daemon, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *cm = n >= 0 ? CMSG_FIRSTHDR(&h) : NULL;
	int fd = -1;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (cm && cm->cmsg_level == SOL_SOCKET && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(cm), sizeof(fd));
	if (!n)
		return false;
	if (n != sizeof(m))
		m.op = 0;
	m.name[sizeof(m.name) - 1] = 0;
	if (m.op == HOLD_PUT && fd >= 0)
		put(m.name, fd);
	else if (fd >= 0)
		close_kept(fd);
	if (m.op == HOLD_PUT && fd < 0)
		vp_log(VP_LOG_ERR, "holder: %s did not come; raise the limit of open files", m.name);
	if (m.op == HOLD_DROP)
		drop(m.name);
	if (m.op == HOLD_TIME)
		me.seconds = m.seconds;
	*end = m.op == HOLD_END;
	return true;
}

/* While this one was stopped another one may have been made, whose socket is there now. */
static void remove_socket(const char *path, const struct stat *made)
{
	struct stat is;

	/* seccomp holder: newfstatat stat unlink unlinkat */
	if (!stat(path, &is) && is.st_dev == made->st_dev && is.st_ino == made->st_ino)
		unlink(path);
}

_Noreturn void vp_holder_main(const struct vp_conf_daemon *c, const char *path, uint32_t seconds)
{
	struct sigaction sa = { .sa_handler = on_alarm }; /* no SA_RESTART: that is the point */
	struct vp_err e = { 0 };
	int64_t until = 0;
	bool end = false;
	struct stat made;
	sigset_t set;

	me.seconds = seconds;
	/* What ends all of a terminal's, or a service's, processes ends the daemon, too. */
	sigfillset(&set);
	sigdelset(&set, SIGALRM);
	sigdelset(&set, SIGSYS);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigaction(SIGALRM, &sa, NULL);
	prctl(PR_SET_NAME, "vhost-pci-hold");
	if (stat(path, &made))
		_exit(1);
	if (vp_isolate_holder(c, &e)) {
		vp_log(VP_LOG_ERR, "holder: %s", e.msg);
		_exit(1);
	}
	while (!end) {
		struct pollfd p[2] = { { .fd = HOLD_LISTEN_FD, .events = POLLIN },
				       { .fd = me.daemon, .events = POLLIN } };
		int64_t left = until - now_ms();

		if (me.daemon < 0 && (left <= 0 || !me.n))
			break;
		/* seccomp holder: poll */
		if (poll(p, 2, me.daemon < 0 ? (int)left : -1) <= 0)
			continue;
		/* First what it has said, and that it has gone: who connects then may have it all. */
		if (me.daemon >= 0 && p[1].revents && !obey(&end)) {
			close(me.daemon);
			me.daemon = -1;
			until = now_ms() + (int64_t)me.seconds * 1000;
		} else if (p[0].revents && !(me.daemon >= 0 && p[1].revents)) {
			admit();
		}
	}
	if (me.n && !end)
		vp_log(VP_LOG_NOTICE, "holder: no daemon has come in %u s; %u links, or parts of them, end", me.seconds,
		       me.n);
	/* A daemon that waits for our end may bind what is in there. */
	for (unsigned i = 0; i < me.n; i++)
		close_kept(me.v[i].fd);
	remove_socket(path, &made);
	_exit(0);
}
