/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/begin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "link/link.h"
#include "sys/timer.h"

#define SLICE_US 500u	/* one link at least is made, then no further one after that */
#define PAUSE_US 20000u /* between two slices at most, whatever goes on on links that are there */

struct vp_begin {
	struct vp_daemon *d;
	sd_event_source *idle;	/* runs when nothing else has to */
	sd_event_source *timer; /* runs when something else always has to */
	unsigned next;		/* of d->conf's links */
	void (*done)(void *arg);
	void *arg;
};

static uint64_t clock_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void make(struct vp_begin *b)
{
	const struct vp_conf_link *c = &b->d->conf->links[b->next++];
	struct vp_err e = { 0 };
	int r = 0;

	/* It may go on from the daemon before (keep.h). */
	if (!vp_link_find(b->d->links, c->name))
		r = vp_link_add(b->d->links, c, VP_ORIGIN_FILE, &e);
	if (r)
		vp_log(VP_LOG_ERR, "link %s: %s", c->name, e.code ? e.msg : strerror(-r));
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg);

static void slice(struct vp_begin *b)
{
	uint64_t end = clock_us() + SLICE_US;

	while (b->next < b->d->conf->n_links) {
		make(b);
		if (clock_us() >= end)
			break;
	}
	if (b->next < b->d->conf->n_links) {
		vp_timer_in(b->d->event, &b->timer, PAUSE_US, on_time, b, "start");
		return;
	}
	vp_timer_end(&b->timer);
	sd_event_source_set_enabled(b->idle, SD_EVENT_OFF);
	/* It may be freed now. */
	b->done(b->arg);
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg)
{
	slice(arg);
	return 0;
}

static int on_idle(sd_event_source *s, void *arg)
{
	slice(arg);
	return 0;
}

int vp_begin_new(struct vp_begin **out, struct vp_daemon *d, void (*done)(void *arg), void *arg, struct vp_err *e)
{
	struct vp_begin *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return vp_err_set(e, -ENOMEM, "out of memory");
	*b = (struct vp_begin){ .d = d, .done = done, .arg = arg };
	r = sd_event_add_defer(d->event, &b->idle, on_idle, b);
	if (r >= 0)
		r = sd_event_source_set_priority(b->idle, SD_EVENT_PRIORITY_IDLE);
	if (r >= 0)
		r = sd_event_source_set_enabled(b->idle, SD_EVENT_ON);
	if (r < 0) {
		vp_begin_free(b);
		return vp_err_set(e, r, "links cannot be made: %s", strerror(-r));
	}
	*out = b;
	return 0;
}

void vp_begin_free(struct vp_begin *b)
{
	if (!b)
		return;
	sd_event_source_disable_unref(b->idle);
	vp_timer_end(&b->timer);
	free(b);
}
