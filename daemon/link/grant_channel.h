/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The channel on which a driver VM says what it grants: a socket of ours, the other end of a virtio-serial port in the
 * driver VM. Lines of text, at most 256 bytes each:
 *
 *   to the driver VM    grant?          it is asked
 *                       ok              it has granted that
 *                       error TEXT      it has not, and why
 *   from the driver VM  grant swiotlb 0xADDRESS 0xBYTES
 *                       refuse TEXT     it grants nothing, and why
 *
 * Threat model: the driver VM writes what it likes, at any speed, or reads nothing: lines are bounded in length and in
 * number, what does not fit into the socket is lost, and a connection that breaks a bound is closed. Main thread only.
 */
#ifndef VP_DAEMON_LINK_GRANT_CHANNEL_H
#define VP_DAEMON_LINK_GRANT_CHANNEL_H

#include <jansson.h>

#include "base/err.h"
#include "base/record.h"
#include "conf/conf.h"

struct vp_daemon;
struct vp_grant_channel;

struct vp_grant_channel_ops {
	/* A grant in link addresses and bytes. 0, or -errno with a sentence that is told to the driver VM. */
	int  (*grant)(void *ctx, uint64_t addr, uint64_t size, struct vp_err *e);
	void (*refuse)(void *ctx, const char *why);
	/* Is a grant wanted now? A driver VM that connects is asked then. */
	bool (*wants)(void *ctx);
	/* Something of what is saved is about to change, or is about to be said. */
	void (*touch)(void *ctx);
};

/* Listens at link->grant_socket. link outlives it. */
int  vp_grant_channel_new(struct vp_grant_channel **out, struct vp_daemon *d, const struct vp_conf_link *link,
			  const struct vp_grant_channel_ops *ops, void *ctx, struct vp_err *e);
void vp_grant_channel_free(struct vp_grant_channel *c);  /* NULL is allowed */
/* Before that: another daemon has it, or will have it. The socket's file stays. NULL is allowed. */
void vp_grant_channel_leave(struct vp_grant_channel *c);
/*
 * For another daemon: the listening socket, which vp_grant_channel_new() takes there when it was adopted; and all else.
 */
void vp_grant_channel_save(const struct vp_grant_channel *c, struct vp_rec *r);
int  vp_grant_channel_adopt(struct vp_daemon *d, const struct vp_conf_link *link, const struct vp_rec_in *in,
			    struct vp_err *e);
/* The listening socket of that record, -1 = none; ours: its file is the link's. 0 or -EPROTO. */
int  vp_grant_channel_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e);
void vp_grant_channel_save_hot(const struct vp_grant_channel *c, struct vp_rec *r);
int  vp_grant_channel_restore_hot(struct vp_grant_channel *c, const struct vp_rec_in *in, struct vp_err *e);
/* Ask the driver VM, if it is there. */
void vp_grant_channel_ask(struct vp_grant_channel *c);
/* New reference; null for NULL. */
json_t *vp_grant_channel_json(const struct vp_grant_channel *c);

#endif
