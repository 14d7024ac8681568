/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may be joined to whom, and how. The one place where the daemon decides:
 * nothing else looks at trust groups. Default deny: `fast` exposes all memory
 * of the driver VM and needs both VMs in one trust group, whatever a link asks.
 *
 * Pure functions of the configuration; main thread.
 */
#ifndef VP_DAEMON_POLICY_H
#define VP_DAEMON_POLICY_H

#include "conf.h"

struct vp_policy_decision {
	bool        allowed;
	uint32_t    mode;      /* enum vp_mode in effect (never auto when allowed) */
	const char *rule;      /* short, stable identifier of the rule that decided */
	char        why[240];  /* one sentence; when refused, with the way out */
};

/*
 * Decide about one link; c supplies its VMs (a VM that is not in c shares no
 * trust group with anyone).
 */
void vp_policy_decide(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d);

/* May a process with this uid be the VMM of vm? self = the daemon's own uid. */
bool vp_policy_user_ok(const struct vp_conf_vm *vm, uid_t uid, uid_t self);

/* Every link of c, and the limits of each VM; problems go to rep. */
void vp_policy_check(const struct vp_conf *c, struct vp_conf_report *rep);

/*
 * Would vm stay within its limits with l added to links[0..n)? -EDQUOT with a message.
 * Links with l's own name do not count.
 */
int vp_policy_limits(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n,
		     const struct vp_conf_link *l, struct vp_err *e);

#endif
