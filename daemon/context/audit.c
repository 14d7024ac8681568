/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: part of a line comes from clients (names that policy refused). jansson escapes it, so
 * nothing that they send can look like another line. A client's requests are bounded (control.c), and a
 * VMM's are reported once a second (peer.c): nobody can fill the disk at will.
 */
#include "context/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "sys/log_sink.h"

struct vp_audit {
	int  fd;      /* -1 = the daemon's log */
	char path[VP_CONF_SOCKET_MAX];
	bool failing;
};

static int open_file(const char *path)
{
	/* seccomp control: openat */
	return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0640);
}

int vp_audit_new(struct vp_audit **out, const char *path, struct vp_err *e)
{
	struct vp_audit *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return vp_err_set(e, -ENOMEM, "out of memory");
	a->fd = -1;
	memcpy(a->path, path, strlen(path));
	if (*path) {
		a->fd = open_file(path);
		if (a->fd < 0) {
			r = vp_err_set(
				e, -errno,
				"AuditLog=%s cannot be opened: %s; make its directory, writable for the daemon's user",
				path, strerror(errno));
			free(a);
			return r;
		}
	}
	*out = a;
	return 0;
}

void vp_audit_reopen(struct vp_audit *a)
{
	int fd;

	if (!a || !*a->path)
		return;
	fd = open_file(a->path);
	if (fd < 0) {
		vp_log(VP_LOG_ERR, "audit log %s: cannot be opened anew: %s; the old file stays in use", a->path,
		       strerror(errno));
		return;
	}
	vp_close(&a->fd);
	a->fd = fd;
	a->failing = false;
}

void vp_audit_free(struct vp_audit *a)
{
	if (!a)
		return;
	vp_close(&a->fd);
	free(a);
}

static void journal_fields(const json_t *o, char *buf, size_t size)
{
	static const char *const keys[][2] = {
		{ "link", "LINK" }, { "rule", "RULE" }, { "vm", "VM" }, { "driver_vm", "VM" }, { "device_vm", "VM" },
	};
	size_t n = 0;

	buf[0] = 0;
	for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		const char *v = json_string_value(json_object_get(o, keys[i][0]));

		if (v && *v && n < size)
			n += (size_t)snprintf(buf + n, size - n, "%s=%.63s\n", keys[i][1], v);
	}
	if (n >= size)
		buf[0] = 0;
}

/* Steals o. */
static void put(struct vp_audit *a, json_t *o)
{
	char *s = o ? json_dumps(o, JSON_COMPACT) : NULL, *line = NULL, fields[4 * VP_CONF_NAME_MAX + 64];
	int n = -1;

	journal_fields(o, fields, sizeof(fields));
	json_decref(o);
	if (!s || !a)
		goto out;
	if (a->fd < 0) {
		vp_log_sink_long(VP_LOG_NOTICE, "audit: ", s, fields);
		goto out;
	}
	n = asprintf(&line, "%s\n", s);
	/* One write: lines stay whole, whoever else appends. */
	/* seccomp control: write */
	if (n < 0 || write(a->fd, line, (size_t)n) != n) {
		if (!a->failing)
			vp_log(VP_LOG_ERR, "audit log %s: %s; decisions go to this log until a reload", a->path,
			       n < 0 ? "out of memory" : strerror(errno));
		a->failing = true;
	}
	if (a->failing)
		vp_log_sink_long(VP_LOG_NOTICE, "audit: ", s, fields);
	if (n >= 0)
		free(line);
out:
	free(s);
}

static json_t *head(struct vp_daemon *d, const char *action, const char *link)
{
	struct timespec ts;
	char text[40], out[64];
	struct tm tm;
	json_t *who;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out, sizeof(out), "%s.%03uZ", text, (unsigned)(ts.tv_nsec / 1000000) % 1000);
	/* A reload on a signal, and the start, are the configuration's doing. */
	who = d->actor ? json_pack("{s:s,s:I,s:I}", "by", "control", "uid", (json_int_t)d->actor->uid, "pid",
				   (json_int_t)d->actor->pid)
		       : json_pack("{s:s}", "by", "configuration");
	return json_pack("{s:s,s:o,s:s,s:s}", "time", out, "who", who, "action", action, "link", link);
}

/* Messages may quote what a client sent, cut at any byte: mend to ASCII for jansson. */
static void set_text(json_t *o, const char *key, const char *text)
{
	char buf[300];

	snprintf(buf, sizeof(buf), "%s", text);
	for (char *p = buf; *p; p++)
		if ((signed char)*p < 0)
			*p = '?';
	json_object_set_new(o, key, json_string(buf));
}

json_t *vp_audit_where(const struct vp_conf *c, const struct vp_policy_step *s)
{
	json_t *a = json_array();
	char where[1100];

	for (unsigned i = 0; i < s->n_by; i++)
		if (vp_conf_where(c, s->by[i].kind, s->by[i].name, s->by[i].section, s->by[i].key, where,
				  sizeof(where)))
			json_array_append_new(a, json_string(where));
	return a;
}

void vp_audit_link(struct vp_daemon *d, const char *action, const struct vp_conf_link *l,
		   const struct vp_policy_decision *dec, const char *rule, int r, const struct vp_err *e)
{
	struct vp_policy_step steps[VP_POLICY_STEPS];
	json_t *o = head(d, action, l->name);
	unsigned n;

	if (!o)
		return;
	json_object_set_new(o, "driver_vm", json_string(l->side[VP_SIDE_DRIVER].vm));
	json_object_set_new(o, "device_vm", json_string(l->side[VP_SIDE_DEVICE].vm));
	json_object_set_new(o, "allowed", json_boolean(!r));
	json_object_set_new(o, "mode", json_string(vp_mode_name(dec->mode)));
	json_object_set_new(o, "rule", rule ? json_string(rule) : json_null());
	n = vp_policy_steps(d->conf, NULL, 0, l, steps);
	for (unsigned i = 0; rule && i < n; i++)
		if (!strcmp(steps[i].rule, rule)) {
			json_object_set_new(o, "where", vp_audit_where(d->conf, &steps[i]));
			break;
		}
	set_text(o, "why", r && e->code ? e->msg : r ? strerror(-r) : dec->why);
	put(d->audit, o);
}

void vp_audit_action(struct vp_daemon *d, const char *action, const char *link, int r, const struct vp_err *e)
{
	json_t *o = head(d, action, link);

	if (!o)
		return;
	json_object_set_new(o, "allowed", json_boolean(!r));
	json_object_set_new(o, "rule", json_string(d->actor ? "control-socket" : "signal"));
	if (r)
		set_text(o, "why", e->code ? e->msg : strerror(-r));
	put(d->audit, o);
}

void vp_audit_vmm(struct vp_daemon *d, const char *what, const char *vm, const struct ucred *cred)
{
	json_t *o = head(d, "vmm.connect", what);

	if (!o)
		return;
	json_object_set_new(o, "who",
			    json_pack("{s:s,s:I,s:I}", "by", "vmm", "uid", (json_int_t)cred->uid, "pid",
				      (json_int_t)cred->pid));
	json_object_set_new(o, "vm", json_string(vm));
	json_object_set_new(o, "allowed", json_false());
	json_object_set_new(o, "rule", json_string("vm-user"));
	put(d->audit, o);
}
