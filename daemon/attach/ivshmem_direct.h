/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls of an ivshmem port that go straight to the driver VM. A driver VM's call eventfd becomes a
 * doorbell of the device VM's: (peer, vector) of a peer that nobody is. QEMU (7.2 and 11.1) takes new
 * peers at run time and must never be told that one has gone. So a doorbell that was given out stays
 * for the life of the device. When they are used up, calls are forwarded until the device is plugged
 * anew.
 *
 * Kicks cannot go straight through: a device's own vectors are fixed when it is made.
 *
 * Main thread only; nothing blocks.
 */
#ifndef VP_DAEMON_IVDIRECT_H
#define VP_DAEMON_IVDIRECT_H

#include <stdint.h>
#include <systemd/sd-event.h>

#include "port/port.h"

struct vp_ivdirect;

/*
 * vm (its name) and name (for messages) are not owned. first_peer: ids from here up are free. nsig:
 * vectors of the device. default_doorbell + q is queue q's doorbell when it has no other.
 */
int  vp_ivdirect_new(struct vp_ivdirect **out, sd_event *event, const char *vm, const char *name, struct vp_port *p,
		     unsigned first_peer, unsigned nsig, uint32_t default_doorbell);
void vp_ivdirect_free(struct vp_ivdirect *x);

/*
 * The handshake is complete; sock stays the caller's. Or (-1) the device has gone, and its doorbells
 * with it.
 */
void vp_ivdirect_device(struct vp_ivdirect *x, int sock, bool fresh);
/*
 * From now on queue q's calls go to this eventfd (stays the caller's); -1 = none. The page changes when
 * QEMU has the doorbell.
 */
void vp_ivdirect_set(struct vp_ivdirect *x, unsigned q, int call);
/* Queues whose calls go straight through now; *used: doorbells given out. */
unsigned vp_ivdirect_count(const struct vp_ivdirect *x, unsigned *used);

/* For another daemon (docs/handover.md): the doorbells go on, and so do those that QEMU has not read yet. */
void vp_ivdirect_save(const struct vp_ivdirect *x, struct vp_rec *r);
/* sock: as in vp_ivdirect_device(). */
int  vp_ivdirect_restore(struct vp_ivdirect *x, int sock, const struct vp_rec_in *in, struct vp_err *e);

#endif
