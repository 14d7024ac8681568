/* SPDX-License-Identifier: BSD-3-Clause */
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "util.h"

struct vp_watch {
	int epfd, fd;   /* fd: our own duplicate */
};

int vp_watch_add(struct vp_watch **out, int epfd, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };
	struct vp_watch *w = malloc(sizeof(*w));
	int r = 0;

	*out = NULL;
	if (!w)
		return -ENOMEM;
	w->epfd = epfd;
	/* seccomp control: fcntl epoll_ctl close */
	w->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (w->fd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, w->fd, &ev) < 0)
		r = -errno;
	if (r) {
		vp_close(&w->fd);
		free(w);
		return r;
	}
	*out = w;
	return 0;
}

void vp_watch_end(struct vp_watch **w)
{
	if (!*w)
		return;
	epoll_ctl((*w)->epfd, EPOLL_CTL_DEL, (*w)->fd, NULL);
	vp_close(&(*w)->fd);
	free(*w);
	*w = NULL;
}

int vp_watch_move(struct vp_watch *w, int epfd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	if (epoll_ctl(epfd, EPOLL_CTL_ADD, w->fd, &ev) < 0)
		return -errno;
	epoll_ctl(w->epfd, EPOLL_CTL_DEL, w->fd, NULL);
	w->epfd = epfd;
	return 0;
}
