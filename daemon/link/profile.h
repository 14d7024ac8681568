/* SPDX-License-Identifier: BSD-3-Clause */
/* Learned profiles of back-ends, one small text file a link in the state directory. Main thread only. */
#ifndef VP_DAEMON_PROFILE_H
#define VP_DAEMON_PROFILE_H

#include "device/device.h"

/* *p: what the link file says or, where that is not enough, what was learned earlier; else not known. */
void vp_profile_load(const struct vp_conf_daemon *c, const struct vp_conf_link *l, struct vp_profile *p);
/* Keep it. Errors are logged: the daemon goes on with what it has in memory. */
void vp_profile_save(const struct vp_conf_daemon *c, const struct vp_conf_link *l, const struct vp_profile *p);
void vp_profile_forget(const struct vp_conf_daemon *c, const struct vp_conf_link *l);

#endif
