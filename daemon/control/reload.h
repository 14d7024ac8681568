/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration files come into force: at the start, and again on SIGHUP or a client's request. Main thread only.
 */
#ifndef VP_DAEMON_RELOAD_H
#define VP_DAEMON_RELOAD_H

#include "context/context.h"

/* Read the files; d->opt overrides them. As vp_conf_load(). */
int vp_daemon_load_conf(struct vp_daemon *d, struct vp_conf **out, struct vp_conf_report *rep);

/*
 * Read the files again and apply the differences. An invalid configuration changes nothing: -EINVAL,
 * with the first problem in e and all of them in the log. *changed (may be NULL) counts links
 * added, removed and replaced.
 */
int vp_daemon_reload(struct vp_daemon *d, unsigned *changed, struct vp_err *e);

#endif
