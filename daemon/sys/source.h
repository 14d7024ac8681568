/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An fd that the main loop waits for. As with any epoll set (base/watch.h says what happens else),
 * what is registered is a duplicate that is nobody else's and goes with its source: the fd may be
 * closed or replaced at any time before or after. Who wants the other end to see that a socket was
 * closed has to end its source, too.
 *
 * This is the only place that adds I/O sources to sd-event. Timers: timer.h. Main thread only.
 */
#ifndef VP_DAEMON_SOURCE_H
#define VP_DAEMON_SOURCE_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

struct vp_source;   /* NULL = nothing is waited for */

/*
 * Call fn(…, a duplicate of fd, …, arg) when events (EPOLL*) come. fd stays the caller's. -errno,
 * *out is NULL then. The source may be ended, by itself as well, at any time before the loop goes.
 */
int  vp_source_add(struct vp_source **out, sd_event *ev, int fd, uint32_t events, sd_event_io_handler_t fn, void *arg);
int  vp_source_events(struct vp_source *s, uint32_t events);
/* An sd-event priority: sources of a higher number wait until the others have been served. 0 or -errno. */
int  vp_source_priority(struct vp_source *s, int64_t priority);
/* Rest when fn was called more than burst times in interval_us. */
void vp_source_limit(struct vp_source *s, uint64_t interval_us, unsigned burst);
/* Wait for it, or rest. It waits when it was added. */
void vp_source_enable(struct vp_source *s, bool on);
/* *s becomes NULL, and may have been. */
void vp_source_end(struct vp_source **s);

#endif
