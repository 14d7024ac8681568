/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model of the writer: some fds came from a front-end, and nobody has looked at them. The keeper of the box may
 * be the last one to close them, and must not have to wait for anybody. Of the reader: see base/record.h.
 */
#include "handover/box.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/util.h"
#include "handover/takeover.h"
#include "sys/fds.h"

/* Closing it asks nobody: memory, and what the kernel alone has, but for sockets of other families, which linger. */
static bool harmless(int fd)
{
	enum vp_foreign_kind kind = vp_foreign_kind(fd, NULL, NULL);
	int domain = 0;
	socklen_t n = sizeof(domain);
	struct stat st;

	if (kind != VP_FOREIGN_INNER)
		return kind == VP_FOREIGN_MEMORY;
	if (fstat(fd, &st))
		return false;
	/* seccomp control: getsockopt */
	return !S_ISSOCK(st.st_mode) || (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) && domain == AF_UNIX);
}

int vp_box_make(const struct vp_rec *r, int *fd, struct vp_err *e)
{
	const int room = 1 << 22; /* as much as there is */
	int sv[2], ret;

	if (r->failed)
		return vp_err_set(e, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < r->n_fds; i++)
		if (!harmless(r->fd[i]))
			return vp_err_set(e, -EMEDIUMTYPE, "a file descriptor of its front-end is of an unusual kind");
	/* seccomp control: socketpair(arg0 == AF_UNIX) setsockopt */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return vp_err_set(e, -errno, "no socket: %s", strerror(errno));
	setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	ret = vp_takeover_send(sv[0], r, 0, e);
	if (ret == -ETIMEDOUT)
		vp_err_set(e, ret, "a socket's queue has no room for its record of %zu bytes and %u file descriptors",
			   r->n, r->n_fds);
	close(sv[0]);
	if (ret)
		close(sv[1]);
	else
		*fd = sv[1];
	return ret;
}

/* All of them by one thread: into another socket's queue, which goes with that. */
static void close_together(struct vp_rec_fds *fds)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return;
	for (unsigned at = 0, n; at < fds->n; at += n) {
		n = VP_MIN(fds->n - at, VP_SEND_FDS_MAX);
		if (vp_send_fds(sv[0], "", 1, fds->fd + at, n))
			break;
		for (unsigned i = 0; i < n; i++)
			vp_close(&fds->fd[at + i]);
	}
	close(sv[0]);
	vp_close_foreign(&sv[1]);
}

void vp_box_empty(int fd)
{
	struct vp_rec_fds fds = { 0 };
	uint8_t *bytes = NULL;
	size_t n = 0;

	vp_takeover_collect(fd, &bytes, &n, &fds);
	close_together(&fds);
	vp_rec_fds_close(&fds);
	free(bytes);
}

int vp_box_open(int fd, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds, struct vp_err *e)
{
	struct vp_err other = { 0 };
	int user = vp_takeover_check_user(fd, &other), r = vp_takeover_collect(fd, bytes, n, fds);

	if (user) {
		*e = other;
		return user;
	}
	if (r == -EPIPE && !*n)
		return vp_err_set(e, -ENODATA, "another daemon has begun to read it");
	return r ? vp_err_set(e, -EPROTO, "its record is cut short, or makes no sense") : 0;
}
