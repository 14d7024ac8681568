/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/fds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/foreign.h"

int vp_eventfd_new(int *fd)
{
	/* seccomp control: eventfd2 */
	*fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *fd < 0 ? -errno : 0;
}

void vp_eventfd_raise(int fd)
{
	const uint64_t one = 1;

	/* seccomp control: write; signal: write; data: write */
	if (write(fd, &one, sizeof(one)) < 0)
		return;  /* full: raised already */
}

uint64_t vp_eventfd_id(int fd)
{
	static const char key[] = "eventfd-id:";
	char path[40], text[512], *at;
	ssize_t n;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	/* seccomp control: openat read close */
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return 0;
	n = read(info, text, sizeof(text) - 1);
	close(info);
	text[n < 0 ? 0 : n] = 0;
	at = strstr(text, key);
	/* They count from 0. */
	return at ? 1 + strtoull(at + sizeof(key) - 1, NULL, 10) : 0;
}

void vp_fds_close_but(DIR *own, int keep)
{
	struct dirent *f;

	if (!own)
		return;
	rewinddir(own);
	while ((f = readdir(own))) {
		int fd = atoi(f->d_name);

		/* seccomp control: getdents64 lseek close */
		if (fd > 2 && fd != keep && fd != dirfd(own))
			close(fd);
	}
}

ssize_t vp_recv_plain(int sock, void *buf, size_t len)
{
	union {
		char buf[CMSG_SPACE(VP_FOREIGN_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec io = { buf, len };
	struct msghdr h = {
		.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf),
	};
	bool any = false;
	/* seccomp control: recvmsg */
	ssize_t n = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return -errno;
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(&h); cm; cm = CMSG_NXTHDR(&h, cm)) {
		size_t fds = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		any = true;
		for (size_t i = 0; i < fds; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
			vp_close_foreign(&fd);
		}
	}
	return any || h.msg_flags & MSG_CTRUNC ? -EBADMSG : n;
}

int vp_send_fds(int sock, const void *buf, size_t len, const int *fds, unsigned n)
{
	char ctl[CMSG_SPACE(VP_SEND_FDS_MAX * sizeof(int))] = { 0 };
	struct iovec io = { (void *)(uintptr_t)buf, len };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	ssize_t sent;

	if (n > VP_SEND_FDS_MAX)
		return -EINVAL;
	if (n) {
		struct cmsghdr *cm;

		h.msg_control = ctl;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
		cm = CMSG_FIRSTHDR(&h);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, n * sizeof(int));
	}
	/* seccomp control: sendmsg recvfrom */
	/* seccomp control: sendmsg */
	sent = sendmsg(sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent < 0)
		return -errno;
	return (size_t)sent == len ? 0 : -EPIPE;
}
