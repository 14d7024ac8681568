/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client of QEMU's machine protocol (QMP, docs/interop/qmp-spec.rst). It is asynchronous, and
 * connects again and again. Answers come in the order of the commands. Main thread only; nothing
 * blocks.
 */
#ifndef VP_DAEMON_QMP_H
#define VP_DAEMON_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/record.h"

struct vp_qmp;

struct vp_qmp_ops {
	/* Connected and ready for commands. */
	void (*up)(void *ctx);
	/* The connection is lost. The commands in flight have been completed with an error before. */
	void (*down)(void *ctx);
	/* data is borrowed, may be NULL. */
	void (*event)(void *ctx, const char *name, json_t *data);
	/* May a process of this user serve this socket? */
	bool (*allowed)(void *ctx, uid_t uid);
	/*
	 * ? Something that vp_qmp_save() writes is about to change, but for what only says when and why the next try
	 * to connect is made.
	 */
	void (*touch)(void *ctx);
};

/* Exactly one of ret (borrowed) and err is not NULL. Called once for each command that was accepted. */
typedef void (*vp_qmp_done)(void *arg, json_t *ret, const char *err);

/*
 * path and name (for messages) are not owned. Starts to connect; with mode, which is that of the file, it makes the
 * socket instead and QEMU connects.
 */
int  vp_qmp_new(struct vp_qmp **out, sd_event *event, const char *path, mode_t mode, const char *name,
		const struct vp_qmp_ops *ops, void *ctx, struct vp_err *e);
/* Commands in flight are completed with an error first. down is not called. To the others NULL is one that is down. */
void vp_qmp_free(struct vp_qmp *q);
/* Instead, where another daemon has it, or will have it: nobody hears of that, and no command is completed. */
void vp_qmp_leave(struct vp_qmp *q);

bool vp_qmp_is_up(const struct vp_qmp *q);
/* Why it is not connected; "" when it is. */
const char *vp_qmp_why(const struct vp_qmp *q);

/*
 * Send command (it outlives the connection) with args (stolen, may be NULL). fd goes along when it is not -1, and stays
 * the caller's. done may be NULL. -ENOTCONN, -EBUSY (too many in flight), -ENOMEM: done is not called then,
 * and args is released.
 */
int  vp_qmp_call(struct vp_qmp *q, const char *command, json_t *args, int fd, vp_qmp_done done, void *arg);

/*
 * The connection for another daemon to go on with (docs/handover.md), with what is half read and the commands that are
 * under way. save: who gives a command a number of its own. restore: makes the client as vp_qmp_new() does, without a
 * word to anybody; who finds the command of a number: false, there is none.
 */
typedef uint64_t (*vp_qmp_number)(void *ctx, vp_qmp_done done, void *arg);
typedef bool (*vp_qmp_find)(void *ctx, uint64_t number, vp_qmp_done *done, void **arg);
void vp_qmp_save(const struct vp_qmp *q, vp_qmp_number number, struct vp_rec *r);
int  vp_qmp_restore(struct vp_qmp **out, sd_event *event, const char *path, const char *name,
		    const struct vp_qmp_ops *ops, void *ctx, const struct vp_rec_in *in, vp_qmp_find find,
		    struct vp_err *e);

#endif
