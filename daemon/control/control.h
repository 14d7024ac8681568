/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control socket: accepts clients, checks who they are, reads request lines, answers, and pushes
 * events (context/events.h) to subscribers. methods.c says what the methods do. Main thread only.
 */
#ifndef VP_DAEMON_CONTROL_H
#define VP_DAEMON_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/record.h"
#include "base/text.h"

struct vp_daemon;
struct vp_control;
struct vp_client;

#define VP_CONTROL_MAX_CLIENTS 64
#define VP_CONTROL_OUT_MAX     (1u << 20)  /* bytes that may wait for a reader before it is cut off */
#define VP_CONTROL_RATE        1000        /* requests a second of one client, beyond VP_CONTROL_BURST at once */
#define VP_CONTROL_BURST       5000
#define VP_CONTROL_OUT_PAUSE   (256u << 10) /* above this, no further request of the client is read */

/*
 * Listen on path (fd < 0), or serve fd, a listening socket that somebody else made (socket activation).
 * The fd is taken over; its path is unlinked at the end if it is ours. group: members of this group may connect
 * besides root and the daemon's user; "" = none.
 */
int vp_control_new(struct vp_control **out, struct vp_daemon *d, int fd, bool ours, const char *path,
		   const char *group, struct vp_err *e);
void vp_control_free(struct vp_control *c);

/*
 * Is the process at the other end of fd root, of the daemon's user or of one of these groups ((gid_t)-1 = none)? Its
 * credentials.
 */
bool vp_control_peer_ok(int fd, const gid_t *groups, unsigned n, struct ucred *cred);

void vp_client_subscribe(struct vp_client *cl);

struct vp_link;
struct vp_capture_info;
/*
 * A capture of l that lasts as long as the client; its file goes with the answer that is being made. -EBUSY: it has one
 * already, or answers wait for it. Else as vp_capture_start().
 */
int vp_client_capture(struct vp_client *cl, struct vp_link *l, uint32_t snaplen, uint32_t buffer,
		      struct vp_capture_info *info, struct vp_err *e);

/*
 * The request that is being served is answered later, with vp_control_answer(); until then no other one of this client
 * is served. It may be gone by then.
 */
void vp_client_later(struct vp_client *cl);
/* Answer all that wait: result (stolen), or e. */
void vp_control_answer(struct vp_control *c, json_t *result, const struct vp_err *e);

/* The socket and the clients, for another daemon, and there (docs/handover.md). */
void vp_control_save(struct vp_control *c, struct vp_rec *r);
int  vp_control_record_socket(struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e);
int  vp_control_restore(struct vp_control *c, const struct vp_rec_in *in, struct vp_err *e);

/*
 * methods.c: run one method. 0 and *result (new reference or NULL), or *text when that is not empty; or -errno with e.
 */
int vp_control_call(struct vp_daemon *d, struct vp_client *cl, const char *method, json_t *params, json_t **result,
		    struct vp_text *text, struct vp_err *e);

#endif
