/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover/starter.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/util.h"
#include "sys/fds.h"
#include "sys/log_sink.h"

#define STARTER_SOCK_FD 3   /* the starter's end; and, in the new daemon, its end of the socket to the old one */
#define WAIT_MS         5000

enum op { RUN = 1, KILL };

/* One packet each way. The answer to RUN comes with an fd, unless code is not 0. */
struct ask {
	uint32_t op, serial;
	char     path[PATH_MAX];
};
struct answer {
	int32_t  code, pid;
	uint32_t serial;  /* of the RUN */
	char    msg[200];
};

static struct {
	int      sock;
	pid_t    pid;
	uint32_t serial;
} me = { .sock = -1 };

/* ---- the process ------------------------------------------------------------------------------- */

/* It ends with the daemon, and by nothing else: what ends all of a service's processes ends the daemon, too. */
static const int ignored[] = { SIGINT, SIGHUP, SIGTERM };

static char own[PATH_MAX];
static const char *allowed;
static char **args;
static int running = -1;  /* pidfd of what was started last */

static bool on_list(const char *path)
{
	char copy[VP_CONF_DIRS_MAX], *s = copy, *w;

	if (!strcmp(path, own))
		return true;
	snprintf(copy, sizeof(copy), "%s", allowed);
	while ((w = strsep(&s, " ")))
		if (*w && !strcmp(w, path))
			return true;
	return false;
}

static int check_file(const char *path, struct vp_err *e)
{
	struct stat st;

	if (!on_list(path))
		return vp_err_set(e, -EACCES,
				  "%.80s may not be started: it is neither %.60s nor named in UpgradeBinaries= when "
				  "the daemon started",
				  path, own);
	if (stat(path, &st))
		return vp_err_set(e, -errno, "%.150s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || (st.st_uid && st.st_uid != geteuid()) || st.st_mode & (S_IWGRP | S_IWOTH))
		return vp_err_set(e, -EACCES,
				  "%.100s may not be started: it must be a file of root's that nobody else may write",
				  path);
	return 0;
}

/* In the new process. Its parent ends at once: it is to be nobody's child but init's. */
static _Noreturn void become(const char *path, int sock)
{
	char **v, option[] = "--take-over", number[] = "3";
	sigset_t none;
	unsigned n = 0;

	while (args[n])
		n++;
	v = calloc(n + 3, sizeof(*v));
	/* The daemon may itself have been started here. */
	for (unsigned i = n = 0; v && args[i]; i++)
		if (!strcmp(args[i], option) && args[i + 1])
			i++;
		else
			v[n++] = args[i];
	if (!v || dup2(sock, STARTER_SOCK_FD) < 0 || syscall(SYS_close_range, STARTER_SOCK_FD + 1, ~0u, 0))
		_exit(126);
	v[n] = option;
	v[n + 1] = number;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (unsigned i = 0; i < VP_ARRAY_SIZE(ignored); i++)
		signal(ignored[i], SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	execv(path, v);
	fprintf(stderr, "<3>starter: %s: %s\n", path, strerror(errno));
	_exit(127);
}

/* Its process. A process in between, which ends, gives it to init. */
static pid_t launch(const char *path, int sock)
{
	pid_t pid = -1, between;
	int p[2];

	if (pipe(p))
		return -1;
	between = fork();
	if (!between) {
		pid = fork();
		if (!pid)
			become(path, sock);
		_exit(write(p[1], &pid, sizeof(pid)) != sizeof(pid));
	}
	close(p[1]);
	if (between < 0 || read(p[0], &pid, sizeof(pid)) != sizeof(pid))
		pid = -1;
	close(p[0]);
	if (between > 0)
		waitpid(between, NULL, 0);
	return pid;
}

static void run(int sock, const struct ask *m)
{
	const char *path = *m->path ? m->path : own;
	struct answer a = { .serial = m->serial };
	struct vp_err e = { 0 };
	int sv[2] = { -1, -1 };

	a.code = check_file(path, &e);
	if (!a.code && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		a.code = vp_err_set(&e, -errno, "no socket: %s", strerror(errno));
	if (!a.code) {
		a.pid = launch(path, sv[1]);
		if (a.pid <= 0)
			a.code = vp_err_set(&e, -EAGAIN, "cannot make a process: %s", strerror(errno));
		vp_close(&running);
		/* By its number alone it might be another one by the time that it is to be ended. */
		running = a.code ? -1 : (int)syscall(SYS_pidfd_open, a.pid, 0);
	}
	snprintf(a.msg, sizeof(a.msg), "%.190s", e.msg);
	vp_send_fds(sock, &a, sizeof(a), &sv[0], !a.code);
	vp_close(&sv[0]);
	vp_close(&sv[1]);
}

static _Noreturn void starter_main(void)
{
	struct ask m;
	ssize_t n;

	prctl(PR_SET_NAME, "vhost-pci-start");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	unsetenv("WATCHDOG_PID");
	for (unsigned i = 0; i < VP_ARRAY_SIZE(ignored); i++)
		signal(ignored[i], SIG_IGN);
	while ((n = recv(STARTER_SOCK_FD, &m, sizeof(m), 0)) > 0) {
		if ((size_t)n != sizeof(m) || !memchr(m.path, 0, sizeof(m.path)))
			continue;
		if (m.op == RUN)
			run(STARTER_SOCK_FD, &m);
		else if (m.op == KILL && running >= 0)
			syscall(SYS_pidfd_send_signal, running, SIGKILL, NULL, 0);
	}
	_exit(0);
}

/* ---- the daemon -------------------------------------------------------------------------------- */

int vp_starter_start(const struct vp_conf_daemon *c, char **argv, struct vp_err *e)
{
	ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);
	int sv[2];

	own[n < 0 ? 0 : n] = 0;
	allowed = c->upgrade_binaries;
	args = argv;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return vp_err_set(e, -errno, "cannot make a socket: %s", strerror(errno));
	me.pid = fork();
	if (!me.pid) {
		vp_log_sink_forked();
		if (dup2(sv[1], STARTER_SOCK_FD) < 0 || syscall(SYS_close_range, STARTER_SOCK_FD + 1, ~0u, 0))
			_exit(1);
		starter_main();
	}
	close(sv[1]);
	me.sock = sv[0];
	return me.pid < 0 ? vp_err_set(e, -errno, "cannot start the process that starts the next daemon: %s",
				       strerror(errno)) : 0;
}

void vp_starter_end(void)
{
	vp_close(&me.sock);
	me.pid = 0;
}

/* The answer, with the one fd that may come with it. */
static int hear(struct answer *a, int *fd)
{
	union {
		char buf[CMSG_SPACE(VP_FOREIGN_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec io = { a, sizeof(*a) };
	struct msghdr h = {
		.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf),
	};
	struct pollfd p = { .fd = me.sock, .events = POLLIN };
	struct cmsghdr *cm;

	/* seccomp control: poll recvmsg */
	if (poll(&p, 1, WAIT_MS) != 1)
		return -ETIMEDOUT;
	if (recvmsg(me.sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof(*a))
		return -ECHILD;
	a->msg[sizeof(a->msg) - 1] = 0;
	cm = CMSG_FIRSTHDR(&h);
	if (cm && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(cm), sizeof(*fd));
	return 0;
}

int vp_starter_run(const char *path, pid_t *pid, int *sock, struct vp_err *e)
{
	struct ask m = { .op = RUN, .serial = ++me.serial };
	struct answer a = { 0 };
	int r;

	*sock = -1;
	if (strlen(path) >= sizeof(m.path))
		return vp_err_set(e, -ENAMETOOLONG, "the program's path is too long");
	memcpy(m.path, path, strlen(path));
	r = me.sock < 0 ? -ECHILD : vp_send_fds(me.sock, &m, sizeof(m), NULL, 0);
	/* One that had come too late is nobody's: what was started then ends with its socket. */
	while (!r && a.serial != m.serial) {
		vp_close(sock);
		r = hear(&a, sock);
	}
	if (r == -ETIMEDOUT)
		return vp_err_set(e, r, "the process that starts the next daemon did not answer in %u s; try again",
				  WAIT_MS / 1000);
	if (r)
		return vp_err_set(e, r, "the process that starts the next daemon has gone; restart the daemon");
	if (a.code || *sock < 0)
		return vp_err_set(e, a.code ? a.code : -ECHILD, "%s", a.msg);
	*pid = a.pid;
	return 0;
}

void vp_starter_kill(void)
{
	struct ask m = { .op = KILL };

	if (me.sock >= 0)
		vp_send_fds(me.sock, &m, sizeof(m), NULL, 0);
}

pid_t vp_starter_pid(void)
{
	return me.pid;
}
