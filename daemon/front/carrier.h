/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver VM's carrier. QEMU keeps the link state of a vhost-user network device itself, and never
 * asks the back-end for it. So a guest sees a link that is down only when somebody tells QEMU by QMP
 * (set_link). Optional: [Driver] QMP= and NIC=.
 *
 * QEMU stops a device without carrier and drops what its guest sends. So the carrier may depend on the
 * device VM only, not on whether the driver's queues run. Main thread only; nothing blocks.
 */
#ifndef VP_DAEMON_CARRIER_H
#define VP_DAEMON_CARRIER_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"

struct vp_carrier;
struct vp_conf_link;
struct vp_daemon;

/* l and name (for messages) stay the caller's and outlive it. *out is NULL when l does not ask for it. -errno. */
int vp_carrier_new(struct vp_carrier **out, struct vp_daemon *d, const struct vp_conf_link *l, const char *name,
		   struct vp_err *e);
/* NULL is allowed, here and below. The driver VM keeps the last state that QEMU was told. */
void vp_carrier_free(struct vp_carrier *c);
void vp_carrier_set(struct vp_carrier *c, bool up);
/* The front-end has connected: from now on QEMU takes the link for up. */
void vp_carrier_connected(struct vp_carrier *c);
/* New reference: null, or {up, qmp: "connected" or why not, error: QEMU's last refusal or null}. */
json_t *vp_carrier_json(const struct vp_carrier *c);

#endif
