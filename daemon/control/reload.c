/* SPDX-License-Identifier: BSD-3-Clause */
#include "control/reload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "context/audit.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/keys.h"
#include "context/events.h"
#include "link/link.h"
#include "threads/rates.h"

int vp_daemon_load_conf(struct vp_daemon *d, struct vp_conf **out, struct vp_conf_report *rep)
{
	struct vp_err e;
	int r = vp_conf_load(out, &d->opt.paths, rep);

	/* Both were checked when the options were read. */
	if (!r && d->opt.threads)
		vp_conf_key_set(VP_CONF_DAEMON, &(*out)->daemon, "Daemon", "Threads", d->opt.threads, &e);
	if (!r && d->opt.cpus)
		vp_conf_parse_cpus(&(*out)->daemon, d->opt.cpus, &e);
	if (!r && d->opt.user)
		snprintf((*out)->daemon.user, sizeof((*out)->daemon.user), "%s", d->opt.user);
	return r;
}

struct first {
	char     msg[256];
	unsigned n;
	json_t  *warnings;
};

static void report(void *arg, const char *msg)
{
	struct first *f = arg;

	if (!f->n++)
		snprintf(f->msg, sizeof(f->msg), "%.230s", msg);
	vp_log(VP_LOG_ERR, "%s", msg);
}

static void warn(void *arg, const char *msg)
{
	struct first *f = arg;

	json_array_append_new(f->warnings, json_string(msg));
	vp_log(VP_LOG_WARNING, "reload: %s", msg);
}

/* Settings that are fixed when the daemon starts: they stay as they are. */
static void keep_fixed(const struct vp_conf_daemon *old, struct vp_conf_daemon *next, struct vp_conf_report *rep)
{
	enum vp_conf_effect effect;
	const char *key, *section;
	char keys[160] = "";
	unsigned i = 0;
	size_t n = 0;

	while ((key = vp_conf_changed(VP_CONF_DAEMON, old, next, &i, &effect, &section)))
		if (effect == VP_EFFECT_START && n < sizeof(keys))
			n += (size_t)snprintf(keys + n, sizeof(keys) - n, "%s[%s] %s=", n ? ", " : "", section, key);
	if (n)
		vp_conf_warning(rep, "%s: no reload changes that; restart or upgrade the daemon", keys);
	vp_conf_take(VP_CONF_DAEMON, next, old, 1u << VP_EFFECT_START);
}

/* VMs of both whose settings are different. */
static unsigned vms_changed(const struct vp_conf *old, const struct vp_conf *next)
{
	enum vp_conf_effect effect;
	unsigned n = 0;

	for (unsigned v = 0; v < next->n_vms; v++) {
		const struct vp_conf_vm *was = vp_conf_vm_find(old, next->vms[v].name);
		const char *key, *section;
		unsigned i = 0, any = 0;

		while (was && (key = vp_conf_changed(VP_CONF_VM, was, &next->vms[v], &i, &effect, &section))) {
			vp_log(VP_LOG_INFO, "VM %s: %s= changed", was->name, key);
			any = 1;
		}
		n += any;
	}
	return n;
}

int vp_daemon_reload(struct vp_daemon *d, enum vp_reload how, json_t **done, struct vp_err *e)
{
	struct first f = { .warnings = json_array() };
	struct vp_conf_report rep = { .fn = report, .warn = warn, .arg = &f };
	struct vp_conf *next, *old = d->conf;
	uint64_t now = 0;
	json_t *answer;
	unsigned n, vms;
	int r;

	sd_event_now(d->event, CLOCK_MONOTONIC, &now);
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)now);
	r = vp_daemon_load_conf(d, &next, &rep);
	if (r) {
		vp_log(VP_LOG_ERR, "reload: the new configuration is not valid; the old one stays in force");
		vp_err_set(e, r, "the new configuration is not valid and was not applied: %.150s%s",
			   f.n ? f.msg : strerror(-r), f.n > 1 ? " (and more, see the log)" : "");
		goto out;
	}
	r = how == VP_RELOAD_ASK ? vp_links_apply_check(d->links, next, e) : 0;
	if (r) {
		vp_conf_free(next);
		goto out;
	}
	keep_fixed(&old->daemon, &next->daemon, &rep);
	vms = vms_changed(old, next);
	d->conf = next;
	vp_rate_apply(next);
	vp_memory_apply(next);
	vp_audit_reopen(d->audit);
	n = vp_links_apply(d->links, next, how == VP_RELOAD_GENTLY, &answer, &rep);
	vp_conf_free(old);
	d->reloads++;
	vp_log(VP_LOG_INFO, "reloaded: %u link%s changed, %u in all, %u VM%s changed", n, n == 1 ? "" : "s",
	       vp_links_count(d->links), vms, vms == 1 ? "" : "s");
	vp_event_tell(d, "daemon.reloaded", json_pack("{s:i}", "changed", (int)n));
	json_object_set_new(answer, "changed", json_integer(n));
	json_object_set_new(answer, "vms", json_integer(vms));
	json_object_set_new(answer, "links", json_integer(vp_links_count(d->links)));
	json_object_set(answer, "warnings", f.warnings);
	if (rep.errors)
		r = vp_err_set(e, -EINVAL, "applied, but not all: %.200s", f.msg);
	if (done && !r)
		*done = json_incref(answer);
	json_decref(answer);
out:
	json_decref(f.warnings);
	vp_audit_action(d, "daemon.reload", "", r, e);
	sd_notifyf(0, "READY=1\nSTATUS=%u links%s", vp_links_count(d->links), r ? ", last reload had errors" : "");
	return r;
}
