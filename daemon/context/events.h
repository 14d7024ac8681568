/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Events in the daemon, told to a listener: the control socket, which passes them on to its
 * subscribers. The code that tells an event knows nothing of the listener. Main thread only.
 */
#ifndef VP_DAEMON_EVENTS_H
#define VP_DAEMON_EVENTS_H

#include <jansson.h>

#include "context/context.h"

/* From now on fn is called for each event, inside vp_event_tell(); it steals data. NULL: nobody listens. */
void vp_event_listen(struct vp_daemon *d, void (*fn)(void *arg, const char *event, json_t *data), void *arg);

/* event happened, such as "link.state". Steals data, which may be NULL when memory ran out. */
void vp_event_tell(struct vp_daemon *d, const char *event, json_t *data);

#endif
