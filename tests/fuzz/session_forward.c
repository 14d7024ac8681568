/* SPDX-License-Identifier: BSD-3-Clause */
/* The daemon's signal thread without a thread, see session_worker.c. */
#include "session.h"

#include <pthread.h>
#include <sys/epoll.h>

#define pthread_create(t, attr, fn, arg)  ((void)(fn), *(t) = 0, 0)
#define epoll_wait(fd, ev, n, ms)         epoll_wait(fd, ev, n, 0)
#include "threads/forward.c"

bool rig_forward_step(struct vp_forward *f)
{
	struct epoll_event ev[FORWARD_EVENTS];
	int n = f ? epoll_wait(f->epfd, ev, FORWARD_EVENTS, 0) : 0;

	for (int i = 0; i < n; i++) {
		struct vp_wire *w = ev[i].data.ptr;

		if (w && !w->dead)
			fire(f, w);
	}
	if (f && f->any_dead)
		bury(f);
	return n > 0;
}

int rig_forward_epfd(const struct vp_forward *f)
{
	return f ? f->epfd : -1;
}
