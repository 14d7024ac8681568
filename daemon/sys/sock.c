/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/sock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"

static int fill(struct sockaddr_un *a, const char *path, struct vp_err *e)
{
	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(a->sun_path))
		return vp_err_set(e, -ENAMETOOLONG,
				  "%.60s...: longer than a UNIX socket's path may be; use a shorter one", path);
	memcpy(a->sun_path, path, strlen(path));
	return 0;
}

bool vp_sock_hung_up(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	/* seccomp control: poll; guard: poll */
	return poll(&p, 1, 0) == 1 && p.revents & (POLLHUP | POLLERR | POLLRDHUP | POLLNVAL);
}

int vp_sock_mkdir(const char *path)
{
	char dir[256];
	size_t n = strlen(path);

	if (n >= sizeof(dir))
		return -ENAMETOOLONG;
	for (size_t i = 1; i < n; i++) {
		if (path[i] != '/')
			continue;
		memcpy(dir, path, i);
		dir[i] = 0;
		/* seccomp control: mkdir mkdirat */
		if (mkdir(dir, 0755) && errno != EEXIST)
			return -errno;
	}
	return 0;
}

/* Remove a socket file that its listener left behind; refuse to touch anything else. */
static int clear_stale(const struct sockaddr_un *a, struct vp_err *e)
{
	struct stat st;
	int fd, r = 0;

	if (lstat(a->sun_path, &st))
		return errno == ENOENT ? 0 : vp_err_set(e, -errno, "%s: %s", a->sun_path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return vp_err_set(e, -EEXIST, "%s exists and is not a socket; remove it or choose another path",
				  a->sun_path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return vp_err_set(e, -errno, "cannot make a socket: %s", strerror(errno));
	if (!connect(fd, (const struct sockaddr *)a, sizeof(*a)) || errno != ECONNREFUSED)
		r = vp_err_set(e, -EADDRINUSE, "%s: another process listens there; stop it or choose another path",
			       a->sun_path);
	close(fd);
	/* seccomp control: unlink unlinkat */
	if (!r && unlink(a->sun_path) && errno != ENOENT)
		r = vp_err_set(e, -errno, "%s: cannot remove the stale socket: %s", a->sun_path, strerror(errno));
	return r;
}

void vp_sock_forget(const char *path)
{
	struct sockaddr_un a;
	struct vp_err e;

	if (!fill(&a, path, &e))
		clear_stale(&a, &e);
}

int vp_sock_listen(const char *path, mode_t mode, int *out, struct vp_err *e)
{
	struct sockaddr_un a;
	int fd = -1, r;

	r = fill(&a, path, e);
	if (r)
		return r;
	r = vp_sock_mkdir(path);
	if (r)
		return vp_err_set(e, r, "%s: cannot make its directory: %s%s", path, strerror(-r),
				  r == -EACCES ? "; name it in SocketDirectories= of vhost-pci.conf" : "");
	r = clear_stale(&a, e);
	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return vp_err_set(e, -errno, "cannot make a socket: %s; raise the limit of open files",
				  strerror(errno));
	/* seccomp control: socket(arg0 == AF_UNIX) fchmod bind chmod fchmodat listen */
	/* Mode before bind: fchmod on a UNIX socket sets what bind creates, so the file is never open to others. */
	if (fchmod(fd, mode) || bind(fd, (struct sockaddr *)&a, sizeof(a))) {
		/* Landlock says EACCES as file modes do; which it is cannot be told. */
		r = vp_err_set(e, -errno, "%s: cannot bind: %s%s", path, strerror(errno),
			       errno == EACCES ? "; name its directory in SocketDirectories= of vhost-pci.conf, "
						 "writable for the daemon's user"
					       : "");
		goto fail;
	}
	if (chmod(a.sun_path, mode) || listen(fd, 128)) {
		r = vp_err_set(e, -errno, "%s: cannot listen: %s", a.sun_path, strerror(errno));
		unlink(a.sun_path);
		goto fail;
	}
	*out = fd;
	return 0;
fail:
	vp_close(&fd);
	return r;
}

bool vp_sock_set_mode(const char *path, mode_t mode)
{
	struct stat st;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 0777) == mode)
		return false;
	return !chmod(path, mode);
}

int vp_sock_connect(const char *path, int *out, struct vp_err *e)
{
	struct sockaddr_un a;
	int fd, r;

	r = fill(&a, path, e);
	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return vp_err_set(e, -errno, "cannot make a socket: %s; raise the limit of open files",
				  strerror(errno));
	/* seccomp control: connect */
	if (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
		r = vp_err_set(e, -errno, "%s: cannot connect: %s", path, strerror(errno));
		vp_close(&fd);
		return r;
	}
	*out = fd;
	return 0;
}

int vp_sock_peer(int fd, struct ucred *cred)
{
	socklen_t len = sizeof(*cred);

	/* seccomp control: getsockopt */
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cred, &len) ? -errno : 0;
}
