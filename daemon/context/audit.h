/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The audit log: one line of JSON for each decision, either appended to the file of AuditLog= or, as
 * "audit: {...}" at level notice, in the daemon's log (the journal, under systemd).
 *
 *   {"time":"2026-01-31T12:00:00.123Z","who":{"by":"control","uid":0,"pid":77},"action":"link.add","link":"web",
 *    "allowed":false,"mode":"fast","rule":"fast-needs-one-trust-group","where":["/etc/vhost-pci/web.vm:2"],"why":"..."}
 *
 * who.by is "control" (a client of the control socket), "configuration" (files, at start or reload) or "vmm" (a
 * front-end that wants to serve a VM). Main thread.
 */
#ifndef VP_DAEMON_AUDIT_H
#define VP_DAEMON_AUDIT_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "base/err.h"
#include "conf/conf.h"
#include "conf/policy.h"

struct vp_daemon;

struct vp_audit;

/* path "" = the daemon's log. A file that cannot be opened is an error. */
int vp_audit_new(struct vp_audit **out, const char *path, struct vp_err *e);
/*
 * Open the file anew (it may have been rotated). When that fails, the log says so and the old one
 * stays. NULL is allowed.
 */
void vp_audit_reopen(struct vp_audit *a);
void vp_audit_free(struct vp_audit *a);

/*
 * A link is added, or refused (r != 0, by rule; NULL = not by policy, e says why). link.keep: the link
 * ran, and a reload refuses it. Who asks is d->actor, or the configuration when that is unset.
 */
void vp_audit_link(struct vp_daemon *d, const char *action, const struct vp_conf_link *l,
		   const struct vp_policy_decision *dec, const char *rule, int r, const struct vp_err *e);
/*
 * Anything else that a control client does to a link: link.remove, link.capture, link.up, link.down, daemon.reload
 * (link "").
 */
void vp_audit_action(struct vp_daemon *d, const char *action, const char *link, int r, const struct vp_err *e);
/* A process wanted to be the VMM of this VM, and may not. */
void vp_audit_vmm(struct vp_daemon *d, const char *what, const char *vm, const struct ucred *cred);

/* The places of the settings that a step looked at: ["path:line", ...]. */
json_t *vp_audit_where(const struct vp_conf *c, const struct vp_policy_step *s);

#endif
