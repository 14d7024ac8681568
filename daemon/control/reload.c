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
};

static void report(void *arg, const char *msg)
{
	struct first *f = arg;

	if (!f->n++)
		snprintf(f->msg, sizeof(f->msg), "%.230s", msg);
	vp_log(VP_LOG_ERR, "%s", msg);
}

/* Settings that are fixed when the daemon starts. */
static void warn_fixed(const struct vp_conf_daemon *a, const struct vp_conf_daemon *b)
{
	if (a->threads != b->threads || a->busy_poll_us != b->busy_poll_us || a->n_cpus != b->n_cpus ||
	    memcmp(a->cpus, b->cpus, sizeof(a->cpus)) || strcmp(a->runtime_dir, b->runtime_dir) ||
	    strcmp(a->control_socket, b->control_socket) || strcmp(a->control_group, b->control_group) ||
	    strcmp(a->metrics_socket, b->metrics_socket) || strcmp(a->metrics_group, b->metrics_group) ||
	    strcmp(a->socket_dirs, b->socket_dirs) || strcmp(a->user, b->user) || strcmp(a->audit_log, b->audit_log) ||
	    a->require != b->require || a->no_filter != b->no_filter)
		vp_log(VP_LOG_WARNING, "reload: threads, CPUs, polling, directories, user, isolation, the control "
				       "socket and that of the metrics change only at a restart");
}

int vp_daemon_reload(struct vp_daemon *d, unsigned *changed, struct vp_err *e)
{
	struct first f = { .n = 0 };
	struct vp_conf_report rep = { .fn = report, .arg = &f };
	struct vp_conf *next, *old = d->conf;
	uint64_t now = 0;
	unsigned n;
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
	warn_fixed(&old->daemon, &next->daemon);
	/* Sockets that exist stay where they are. */
	memcpy(next->daemon.runtime_dir, old->daemon.runtime_dir, sizeof(old->daemon.runtime_dir));
	memcpy(next->daemon.control_socket, old->daemon.control_socket, sizeof(old->daemon.control_socket));
	memcpy(next->daemon.metrics_socket, old->daemon.metrics_socket, sizeof(old->daemon.metrics_socket));
	d->conf = next;
	vp_rate_apply(next);
	vp_memory_apply(next);
	vp_audit_reopen(d->audit);
	n = vp_links_apply(d->links, next, &rep);
	vp_conf_free(old);
	d->reloads++;
	if (changed)
		*changed = n;
	vp_log(VP_LOG_INFO, "reloaded: %u link%s changed, %u in all", n, n == 1 ? "" : "s", vp_links_count(d->links));
	vp_event_tell(d, "daemon.reloaded", json_pack("{s:i}", "changed", (int)n));
	if (rep.errors)
		r = vp_err_set(e, -EINVAL, "applied, but not all: %.200s", f.msg);
out:
	vp_audit_action(d, "daemon.reload", "", r, e);
	sd_notifyf(0, "READY=1\nSTATUS=%u links%s", vp_links_count(d->links), r ? ", last reload had errors" : "");
	return r;
}
