/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Windows of the ivshmem attachment. Each is an ivshmem-doorbell device of its own, which the daemon
 * plugs into the device VM behind a free pcie-root-port, and unplugs again, over QMP. QEMU gets its end
 * of the device's socket as an fd through QMP, so nothing listens anywhere. The whole handshake lies in
 * the socket before QEMU looks, because a silent server would freeze the VM.
 *
 * Main thread only; nothing blocks.
 */
#ifndef VP_DAEMON_IVWIN_H
#define VP_DAEMON_IVWIN_H

#include "conf/conf.h"
#include "port/port.h"

struct vp_attach_conf;
struct vp_ivwins;

/*
 * c is not owned. The results go to p (vp_port_window_given() and so on). c->heir: vp_ivwins_restore() follows, nobody
 * is connected to or waited for.
 */
int  vp_ivwins_new(struct vp_ivwins **out, const struct vp_attach_conf *c, struct vp_port *p, struct vp_err *e);
/*
 * l, the link's configuration, gets those values of next that may change in place. QMP is connected anew if it has to
 * be. What is plugged stays, also in a bus that HotplugBus= does not name any more.
 */
int  vp_ivwins_alter(struct vp_ivwins *w, struct vp_conf_link *l, const struct vp_conf_link *next, struct vp_err *e);
/* Ask for the removal of what is plugged, without waiting. The next daemon cleans up what remains. */
void vp_ivwins_free(struct vp_ivwins *w);
/* Instead, where another daemon has it, or will have it: what is plugged stays. NULL is allowed here and above. */
void vp_ivwins_leave(struct vp_ivwins *w);

/* As the port's give and take. */
int  vp_ivwins_give(struct vp_ivwins *w, const struct vp_port_window *req, uint64_t *locator, struct vp_err *e);
int  vp_ivwins_take(struct vp_ivwins *w, unsigned slot);
/* The port's device has gone: its windows belong to nobody any more, and are removed. */
void vp_ivwins_lost(struct vp_ivwins *w);
void vp_ivwins_show(struct vp_ivwins *w, json_t *o);

/* For another daemon (docs/handover.md): also windows that are on their way, and what QEMU was asked about them. */
void vp_ivwins_save(const struct vp_ivwins *w, struct vp_rec *r);
int  vp_ivwins_restore(struct vp_ivwins *w, const struct vp_rec_in *in, struct vp_err *e);
/*
 * Behind it, where the daemon before ended anywhere (link/keep.h): other links of the VM may have plugged windows since
 * that was written, and not all of them are gone on with. No window is given before the VM has said what it has, which
 * it is asked by go_on().
 */
void vp_ivwins_recover(struct vp_ivwins *w);
void vp_ivwins_go_on(struct vp_ivwins *w);

/* The server's side of an ivshmem handshake: one 64-bit message, an fd with it when fd >= 0. 0 or -errno (-EAGAIN). */
int  vp_ivshmem_send(int sock, int64_t value, int fd);

#endif
