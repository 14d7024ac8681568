/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/util.h"

struct vp_source {
	sd_event_source *io;
	int              fd;   /* our own duplicate */
};

int vp_source_add(struct vp_source **out, sd_event *ev, int fd, uint32_t events, sd_event_io_handler_t fn, void *arg)
{
	struct vp_source *s = calloc(1, sizeof(*s));
	int r;

	*out = NULL;
	if (!s)
		return -ENOMEM;
	/* seccomp control: fcntl close */
	s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	r = s->fd < 0 ? -errno : sd_event_add_io(ev, &s->io, s->fd, events, fn, arg);
	if (r < 0) {
		vp_close(&s->fd);
		free(s);
		return r;
	}
	*out = s;
	return 0;
}

int vp_source_events(struct vp_source *s, uint32_t events)
{
	return sd_event_source_set_io_events(s->io, events);
}

int vp_source_priority(struct vp_source *s, int64_t priority)
{
	return sd_event_source_set_priority(s->io, priority);
}

void vp_source_limit(struct vp_source *s, uint64_t interval_us, unsigned burst)
{
	sd_event_source_set_ratelimit(s->io, interval_us, burst);
}

void vp_source_enable(struct vp_source *s, bool on)
{
	sd_event_source_set_enabled(s->io, on ? SD_EVENT_ON : SD_EVENT_OFF);
}

void vp_source_end(struct vp_source **s)
{
	if (!*s)
		return;
	sd_event_source_disable_unref((*s)->io);
	vp_close(&(*s)->fd);
	free(*s);
	*s = NULL;
}
