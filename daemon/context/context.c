/* SPDX-License-Identifier: BSD-3-Clause */
#include "context/context.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"

void vp_daemon_stop(struct vp_daemon *d)
{
	d->stopping = true;
	sd_notify(0, "STOPPING=1");
	sd_event_exit(d->event, 0);
}

void vp_daemon_shed(struct vp_daemon *d, int lfd, const char *what)
{
	uint64_t now = 0;
	int fd;

	vp_close(&d->spare_fd);
	/* seccomp control: accept4 openat */
	fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	vp_close_foreign(&fd);
	d->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sd_event_now(d->event, CLOCK_MONOTONIC, &now);
	if (now - d->last_shed_us < 1000000)
		return;
	d->last_shed_us = now;
	vp_log(VP_LOG_ERR, "%s: refused a connection, out of file descriptors; raise LimitNOFILE=", what);
}
