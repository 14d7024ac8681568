/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration files come into force: at the start, and again on SIGHUP or a client's request. Main thread only.
 */
#ifndef VP_DAEMON_RELOAD_H
#define VP_DAEMON_RELOAD_H

#include "context/context.h"

/* Read the files; d->opt overrides them. As vp_conf_load(). */
int vp_daemon_load_conf(struct vp_daemon *d, struct vp_conf **out, struct vp_conf_report *rep);

/* What becomes of a link whose change would end a port that is plugged into a VM. */
enum vp_reload {
	VP_RELOAD_ASK,     /* nothing is applied at all: -EBUSY, and e names it */
	VP_RELOAD_ALL,     /* it is made anew */
	VP_RELOAD_GENTLY,  /* it goes on as it was, with a warning */
};

/*
 * Read the files again and apply the differences. An invalid configuration changes nothing: -EINVAL,
 * with the first problem in e and all of them in the log. done (may be NULL) gets the answer of daemon.reload
 * (docs/control-api.md) when all was applied.
 */
int vp_daemon_reload(struct vp_daemon *d, enum vp_reload how, json_t **done, struct vp_err *e);

#endif
