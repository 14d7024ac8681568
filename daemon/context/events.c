/* SPDX-License-Identifier: BSD-3-Clause */
#include "context/events.h"

void vp_event_listen(struct vp_daemon *d, void (*fn)(void *arg, const char *event, json_t *data), void *arg)
{
	d->on_event = fn;
	d->on_event_arg = arg;
}

void vp_event_tell(struct vp_daemon *d, const char *event, json_t *data)
{
	if (d->on_event)
		d->on_event(d->on_event_arg, event, data);
	else
		json_decref(data);
}
