/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The methods of the control socket (docs/control-api.md), one function each,
 * and the table that names them. Parameters are checked against the table: a
 * missing, unknown or mistyped one is refused before the function runs.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control.h"
#include "context/audit.h"
#include "base/capring.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "conf/types.h"
#include "device/device.h"
#include "handover/guard.h"
#include "link/capture.h"
#include "link/grant.h"
#include "link/link.h"
#include "sandbox/isolate.h"
#include "control/reload.h"
#include "control/request.h"
#include "control/upgrade.h"
#include "threads/worker.h"
#include "vhostuser/codec.h"

struct call {
	struct vp_daemon *d;
	struct vp_client *client;
	json_t           *params;  /* NULL = none */
	const char       *name;    /* params.name when the method takes a link */
	struct vp_link   *link;    /* found for methods with WANT_LINK */
	bool              forget;  /* params.forget of link.profile */
	const char       *binary;  /* params.binary of daemon.upgrade, NULL = left out */
	enum vp_reload    reload;  /* params.replug of daemon.reload */
	bool              drop;    /* params.drop of link.grant */
	uint64_t          address, size;  /* of link.grant; size 0 = left out */
	const char       *level;   /* params.level of daemon.log-level, NULL = left out */
	long long         snaplen, buffer; /* of link.capture, 0 = left out */
	struct vp_text   *text;    /* for an answer that is written, not built */
};

static int no_such_link(struct vp_err *e, const char *name)
{
	return vp_err_set(e, -ENOENT, "there is no link %.64s; vhost-pcictl list shows those there are", name);
}

static int do_version(struct call *c, json_t **result, struct vp_err *e)
{
	*result = json_pack("{s:s,s:i,s:i,s:s}", "version", VP_VERSION, "protocol", VP_CONTROL_VERSION, "pid",
			    (int)getpid(), "metrics_socket", c->d->conf->daemon.metrics_socket);
	return 0;
}

static int count_fds(DIR *d)
{
	int n = 0;

	if (!d)
		return -1;
	rewinddir(d);
	while (readdir(d))
		n++;
	return n - 3;  /* ".", ".." and the directory itself */
}

static json_t *isolation(void)
{
	json_t *a = json_array();

	for (unsigned s = 1; s < VP_STAGES; s++) {
		bool on;
		const char *what = vp_isolate_state(s, &on);

		json_array_append_new(a, json_pack("{s:i,s:s,s:b,s:s}", "stage", (int)s, "name",
						   vp_isolate_stage_name(s), "in_force", on, "what", what));
	}
	return a;
}

static int do_daemon_show(struct call *c, json_t **result, struct vp_err *e)
{
	const struct vp_conf_daemon *conf = &c->d->conf->daemon;
	json_t *threads = json_array();
	uint64_t now = 0;

	for (unsigned i = 0; i < worker_pool_size(c->d->workers); i++) {
		struct worker_info w;

		worker_pool_info(c->d->workers, i, &w);
		json_array_append_new(threads,
				      json_pack("{s:i,s:i,s:i,s:i,s:b,s:I,s:I,s:I,s:I}", "tid", w.tid, "cpu", w.cpu,
						"jobs", (int)w.jobs, "moved", (int)w.moved, "awake", w.awake, "rounds",
						(json_int_t)w.rounds, "sleeps", (json_int_t)w.sleeps, "busy_us",
						(json_int_t)w.busy_us, "cpu_us", (json_int_t)w.cpu_us));
	}
	sd_event_now(c->d->event, CLOCK_MONOTONIC, &now);
	*result = json_pack("{s:s,s:i,s:o,s:i,s:i,s:i,s:i,s:I,s:s,s:s,s:s,s:o,s:o}", "version", VP_VERSION, "pid",
			    (int)getpid(), "guard_pid",
			    vp_guard_pid(c->d->guard) ? json_integer(vp_guard_pid(c->d->guard)) : json_null(), "links",
			    (int)vp_links_count(c->d->links), "open_fds", count_fds(c->d->fd_dir), "reloads",
			    (int)c->d->reloads, "upgrades", (int)c->d->upgrades, "uptime_s",
			    (json_int_t)((now - c->d->started_us) / 1000000), "runtime_dir", conf->runtime_dir,
			    "control_socket", conf->control_socket, "metrics_socket", conf->metrics_socket, "threads",
			    threads, "isolation", isolation());
	return 0;
}

static int do_daemon_reload(struct call *c, json_t **result, struct vp_err *e)
{
	return vp_daemon_reload(c->d, c->reload, result, e);
}

static int do_daemon_upgrade(struct call *c, json_t **result, struct vp_err *e)
{
	int r = vp_upgrade_begin(c->d, c->binary ? c->binary : "", e);

	vp_audit_action(c->d, "daemon.upgrade", "", r, e);
	if (!r)
		vp_client_later(c->client);
	return r;
}

/* The level of --log-level, as it is or from now on. */
static int do_log_level(struct call *c, json_t **result, struct vp_err *e)
{
	int was = vp_log_level(), level = c->level ? vp_log_level_of(c->level) : was;

	if (level < 0)
		return vp_err_set(e, -EINVAL, "%.40s is not a log level; use error, warning, notice, info or debug",
				  c->level);
	if (c->level) {
		vp_audit_action(c->d, "daemon.log-level", "", 0, e);
		vp_log_set_level(level);
		vp_log(VP_LOG_NOTICE, "log level: %s, was %s", vp_log_level_str(level), vp_log_level_str(was));
	}
	*result = json_pack("{s:s}", "level", vp_log_level_str(level));
	return 0;
}

static int do_link_list(struct call *c, json_t **result, struct vp_err *e)
{
	unsigned n = vp_links_count(c->d->links);

	/* Thousands of links are normal, and monitoring asks often: nothing is built to be printed and thrown away. */
	vp_text_room(c->text, 32 + (size_t)n * 176);
	vp_text_str(c->text, "{\"links\":[");
	for (unsigned i = 0; i < n; i++) {
		if (i)
			vp_text_add(c->text, ",", 1);
		vp_link_brief_text(vp_links_at(c->d->links, i), c->text);
	}
	vp_text_str(c->text, "]}");
	return 0;
}

static int do_link_show(struct call *c, json_t **result, struct vp_err *e)
{
	*result = vp_link_detail(c->link);
	return 0;
}

static int do_link_stats(struct call *c, json_t **result, struct vp_err *e)
{
	json_t *a = json_array();
	uint64_t now = 0;

	if (c->name) {
		struct vp_link *l = vp_link_find(c->d->links, c->name);

		if (!l) {
			json_decref(a);
			return no_such_link(e, c->name);
		}
		json_array_append_new(a, vp_link_stats(l));
	} else {
		for (unsigned i = 0; i < vp_links_count(c->d->links); i++)
			json_array_append_new(a, vp_link_stats(vp_links_at(c->d->links, i)));
	}
	sd_event_now(c->d->event, CLOCK_MONOTONIC, &now);
	*result = json_pack("{s:I,s:o}", "time_us", (json_int_t)now, "links", a);
	return 0;
}

static int link_from_params(struct call *c, struct vp_conf_link *l, struct vp_err *e)
{
	int r = vp_conf_link_init(l, c->name, e);

	if (!r)
		r = vp_link_config_read(l, json_object_get(c->params, "config"), e);
	if (!r)
		r = vp_conf_finish_link(l, c->d->conf, e);
	return r;
}

static int do_link_add(struct call *c, json_t **result, struct vp_err *e)
{
	struct vp_conf_link l;
	int r = link_from_params(c, &l, e);

	for (unsigned s = 0; s < VP_SIDES && !r; s++)
		if (!strcmp(l.side[s].socket, c->d->conf->daemon.control_socket) ||
		    !strcmp(l.side[s].socket, c->d->conf->daemon.metrics_socket))
			r = vp_err_set(e, -EADDRINUSE,
				       "%s is the daemon's own socket; set another Socket=", l.side[s].socket);
	if (!r)
		r = vp_link_add(c->d->links, &l, VP_ORIGIN_RUNTIME, e);
	if (!r) {
		struct vp_link *link = vp_link_find(c->d->links, l.name);

		link->given = json_dumps(json_object_get(c->params, "config"), JSON_COMPACT);
		*result = vp_link_detail(link);
	}
	return r;
}

/* Packets, or of other devices requests, from now on until the client goes. Its file goes with the answer. */
static int do_link_capture(struct call *c, json_t **result, struct vp_err *e)
{
	long long snaplen = c->snaplen ? c->snaplen : VP_CAPTURE_SNAPLEN;
	long long buffer = c->buffer ? c->buffer : VP_CAPTURE_BUFFER;
	struct vp_capture_info info;
	/* What is too large by far is too large. */
	int r = vp_client_capture(c->client, c->link, (uint32_t)VP_MIN(snaplen, UINT32_MAX),
				  (uint32_t)VP_MIN(buffer, UINT32_MAX), &info, e);

	vp_audit_action(c->d, "link.capture", c->link->conf.name, r, e);
	if (r)
		return r;
	vp_log(VP_LOG_NOTICE, "link %s: captured by a client of the control socket", c->link->conf.name);
	*result = json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:i}", "name", c->link->conf.name, "type",
			    vp_type_name(c->link->conf.device_type), "mode", vp_mode_name(c->link->decision.mode),
			    "driver_vm", c->link->conf.side[VP_SIDE_DRIVER].vm, "device_vm",
			    c->link->conf.side[VP_SIDE_DEVICE].vm, "rings", (int)info.rings, "ring_size",
			    (int)info.ring_size, "format", VP_CAPRING_FORMAT);
	return 0;
}

static int do_link_remove(struct call *c, json_t **result, struct vp_err *e)
{
	vp_log(VP_LOG_INFO, "link %s: removed on request", c->link->conf.name);
	vp_audit_action(c->d, "link.remove", c->link->conf.name, 0, e);
	vp_link_remove(c->d->links, c->link);
	return 0;
}

static int do_link_up(struct call *c, json_t **result, struct vp_err *e)
{
	vp_audit_action(c->d, "link.up", c->link->conf.name, 0, e);
	vp_link_set_up(c->link, true);
	*result = vp_link_brief(c->link);
	return 0;
}

static int do_link_down(struct call *c, json_t **result, struct vp_err *e)
{
	vp_audit_action(c->d, "link.down", c->link->conf.name, 0, e);
	vp_link_set_up(c->link, false);
	*result = vp_link_brief(c->link);
	return 0;
}

static json_t *profile_json(struct vp_link *l)
{
	const struct vp_profile *p = l->ops->profile ? l->ops->profile(l, false) : NULL;
	char hex[2 * VP_DEVICE_CONFIG_MAX + 1] = "", names[400];

	if (!p || !vp_device_of(&l->conf)->waits)
		return NULL;
	for (unsigned i = 0; i < p->config_size; i++)
		snprintf(hex + 2 * i, 3, "%02x", p->config[i]);
	return json_pack("{s:s,s:s,s:b,s:b,s:s,s:i,s:s}", "name", l->conf.name, "type",
			 vp_type_name(l->conf.device_type), "known", p->known, "learned", p->known && !p->written,
			 "features", vu_features_str(l->conf.device_type, p->features, names, sizeof(names)), "queues",
			 (int)p->queues, "config", hex);
}

/* What is known of the back-end of a link, and (forget) that it is asked anew. */
static int do_link_profile(struct call *c, json_t **result, struct vp_err *e)
{
	struct vp_conf_link conf = c->link->conf;
	enum vp_link_origin origin = c->link->origin;

	*result = profile_json(c->link);
	if (!*result)
		return vp_err_set(e, -EINVAL,
				  "link %s has no profile of a back-end: its configuration says all that its driver VM "
				  "is offered",
				  conf.name);
	if (!c->forget)
		return 0;
	json_decref(*result);
	*result = NULL;
	if (c->link->ops->busy(c->link))
		return vp_err_set(e, -EBUSY,
				  "the driver VM of link %s is connected and relies on its profile; stop it first",
				  conf.name);
	vp_audit_action(c->d, "link.profile.forget", conf.name, 0, e);
	c->link->ops->profile(c->link, true);
	conf.start_down = !c->link->up;
	vp_link_remove(c->d->links, c->link);
	if (vp_link_add(c->d->links, &conf, origin, e))
		return e->code ? e->code : -EINVAL;
	*result = profile_json(vp_link_find(c->d->links, conf.name));
	return 0;
}

/* What the driver VM of a link grants; grant it in its name, or drop it. */
static int do_link_grant(struct call *c, json_t **result, struct vp_err *e)
{
	struct vp_grants *g = c->link->ops->grants ? c->link->ops->grants(c->link) : NULL;
	int r = 0;

	if (!g)
		return vp_err_set(e, -EINVAL, "link %s is in mode %s; grants are for Mode=grant", c->link->conf.name,
				  vp_mode_name(c->link->decision.mode));
	if (c->drop && c->size)
		return vp_err_set(e, -EINVAL, "link.grant: drop, or address and size, not both");
	if (c->size)
		r = vp_grants_give(g, c->address, c->size, "the administrator", e);
	if (c->drop)
		vp_grants_drop(g, "the administrator");
	if (c->drop || c->size)
		vp_audit_action(c->d, c->drop ? "link.grant.drop" : "link.grant", c->link->conf.name, r, e);
	if (!r)
		*result = vp_grants_json(g);
	return r;
}

/* Every rule's say, with the lines that set what it looked at. *refused: the first that does not allow it (static). */
static json_t *explain(struct vp_daemon *d, const struct vp_conf_link *conf, const struct vp_policy_step **refused)
{
	static struct vp_policy_step steps[VP_POLICY_STEPS];
	const struct vp_conf_link **all = calloc(vp_links_count(d->links) + 1, sizeof(*all));
	json_t *rules = json_array();
	unsigned n = 0;

	for (unsigned i = 0; all && i < vp_links_count(d->links); i++)
		all[n++] = &vp_links_at(d->links, i)->conf;
	n = vp_policy_steps(d->conf, all, n, conf, steps);
	for (unsigned i = 0; i < n; i++) {
		if (!steps[i].allowed && !*refused)
			*refused = &steps[i];
		json_array_append_new(rules,
				      json_pack("{s:s,s:b,s:s,s:o}", "rule", steps[i].rule, "allowed", steps[i].allowed,
						"why", steps[i].why, "where", vp_audit_where(d->conf, &steps[i])));
	}
	free(all);
	return rules;
}

/* What policy says of a link: of one that exists, or of one that would be added. */
static int do_policy_explain(struct call *c, json_t **result, struct vp_err *e)
{
	struct vp_link *l = vp_link_find(c->d->links, c->name);
	struct vp_policy_decision d;
	struct vp_conf_link conf;
	const struct vp_conf_vm *vm[VP_SIDES];
	const struct vp_policy_step *refused = NULL;
	json_t *vms = json_object(), *rules;
	int r;

	if (json_object_get(c->params, "config")) {
		r = link_from_params(c, &conf, e);
		if (r)
			goto fail;
	} else if (l) {
		conf = l->conf;
	} else {
		r = no_such_link(e, c->name);
		goto fail;
	}
	vp_policy_decide(c->d->conf, &conf, &d);
	rules = explain(c->d, &conf, &refused);
	for (unsigned s = 0; s < VP_SIDES; s++) {
		vm[s] = vp_conf_vm_find(c->d->conf, conf.side[s].vm);
		json_object_set_new(vms, vp_side_name(s),
				    json_pack("{s:s,s:o}", "vm", conf.side[s].vm, "trust_group",
					      vm[s] && *vm[s]->trust_group ? json_string(vm[s]->trust_group)
									   : json_null()));
	}
	*result = json_pack("{s:s,s:s,s:s,s:b,s:s,s:s,s:s,s:o,s:o}", "name", conf.name, "asked",
			    vp_mode_name(conf.mode), "endpoint", vp_endpoint_name(conf.endpoint), "allowed", !refused,
			    "mode", vp_mode_name(d.mode), "rule", refused ? refused->rule : d.rule, "why",
			    refused ? refused->why : d.why, "vms", vms, "rules", rules);
	return 0;
fail:
	json_decref(vms);
	return r;
}

static int do_subscribe(struct call *c, json_t **result, struct vp_err *e)
{
	vp_client_subscribe(c->client);
	return 0;
}

enum { NO_NAME, MAY_NAME, WANT_NAME, WANT_LINK };
enum { NO_CONFIG, MAY_CONFIG, WANT_CONFIG };

static const struct method {
	const char *name;
	int       (*fn)(struct call *c, json_t **result, struct vp_err *e);
	int         takes_name, takes_config;
} methods[] = {
	{ "daemon.version", do_version },
	{ "daemon.show", do_daemon_show },
	{ "daemon.reload", do_daemon_reload },
	{ "daemon.upgrade", do_daemon_upgrade },
	{ "daemon.log-level", do_log_level },
	{ "link.list", do_link_list },
	{ "link.show", do_link_show, WANT_LINK },
	{ "link.stats", do_link_stats, MAY_NAME },
	{ "link.add", do_link_add, WANT_NAME, WANT_CONFIG },
	{ "link.capture", do_link_capture, WANT_LINK },
	{ "link.remove", do_link_remove, WANT_LINK },
	{ "link.up", do_link_up, WANT_LINK },
	{ "link.down", do_link_down, WANT_LINK },
	{ "link.profile", do_link_profile, WANT_LINK },
	{ "link.grant", do_link_grant, WANT_LINK },
	{ "policy.explain", do_policy_explain, WANT_NAME, MAY_CONFIG },
	{ "events.subscribe", do_subscribe },
};

static int check_params(struct call *c, const struct method *m, struct vp_err *e)
{
	json_t *v, *config = NULL;
	const char *k;

	json_object_foreach(c->params, k, v) {
		if (!strcmp(k, "name") && m->takes_name != NO_NAME) {
			c->name = json_string_value(v);
			if (!c->name)
				return vp_err_set(e, -EINVAL, "%s: name must be a string", m->name);
		} else if (!strcmp(k, "forget") && m->fn == do_link_profile) {
			c->forget = json_is_true(v);
			if (!json_is_boolean(v))
				return vp_err_set(e, -EINVAL, "%s: forget must be true or false", m->name);
		} else if (!strcmp(k, "binary") && m->fn == do_daemon_upgrade) {
			c->binary = json_string_value(v);
			if (!c->binary || *c->binary != '/')
				return vp_err_set(e, -EINVAL, "%s: binary must be an absolute path", m->name);
		} else if ((!strcmp(k, "snaplen") || !strcmp(k, "buffer")) && m->fn == do_link_capture) {
			*(k[0] == 's' ? &c->snaplen : &c->buffer) = json_integer_value(v);
			if (json_integer_value(v) <= 0)
				return vp_err_set(e, -EINVAL, "%s: %.10s must be a number of bytes", m->name, k);
		} else if (!strcmp(k, "drop") && m->fn == do_link_grant) {
			c->drop = json_is_true(v);
			if (!json_is_boolean(v))
				return vp_err_set(e, -EINVAL, "%s: drop must be true or false", m->name);
		} else if ((!strcmp(k, "address") || !strcmp(k, "size")) && m->fn == do_link_grant) {
			*(*k == 'a' ? &c->address : &c->size) = (uint64_t)json_integer_value(v);
			if (!json_is_integer(v) || json_integer_value(v) < (*k == 's'))
				return vp_err_set(e, -EINVAL, "%s: %s must be a number of bytes", m->name, k);
		} else if (!strcmp(k, "replug") && m->fn == do_daemon_reload) {
			const char *how = json_string_value(v);

			if (!how || (strcmp(how, "ask") && strcmp(how, "yes") && strcmp(how, "keep")))
				return vp_err_set(e, -EINVAL, "%s: replug must be ask, yes or keep", m->name);
			c->reload = *how == 'a' ? VP_RELOAD_ASK : *how == 'y' ? VP_RELOAD_ALL : VP_RELOAD_GENTLY;
		} else if (!strcmp(k, "level") && m->fn == do_log_level) {
			c->level = json_string_value(v);
			if (!c->level)
				return vp_err_set(e, -EINVAL, "%s: level must be a string", m->name);
		} else if (!strcmp(k, "config") && m->takes_config != NO_CONFIG) {
			config = v;
			if (!json_is_object(v))
				return vp_err_set(e, -EINVAL, "%s: config must be an object of sections", m->name);
		} else {
			return vp_err_set(e, -EINVAL, "%s does not take a parameter %.60s", m->name, k);
		}
	}
	if (!c->name && (m->takes_name == WANT_NAME || m->takes_name == WANT_LINK))
		return vp_err_set(e, -EINVAL, "%s needs the parameter name", m->name);
	if (m->fn == do_link_grant && !json_object_get(c->params, "address") != !json_object_get(c->params, "size"))
		return vp_err_set(e, -EINVAL, "%s: address and size go together", m->name);
	if (!config && m->takes_config == WANT_CONFIG)
		return vp_err_set(e, -EINVAL, "%s needs the parameter config", m->name);
	if (m->takes_name == WANT_LINK) {
		c->link = vp_link_find(c->d->links, c->name);
		if (!c->link)
			return no_such_link(e, c->name);
	}
	return 0;
}

int vp_control_call(struct vp_daemon *d, struct vp_client *cl, const char *method, json_t *params, json_t **result,
		    struct vp_text *text, struct vp_err *e)
{
	struct call c = { .d = d, .client = cl, .params = params, .text = text };

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		int r;

		if (strcmp(methods[i].name, method))
			continue;
		r = check_params(&c, &methods[i], e);
		return r ? r : methods[i].fn(&c, result, e);
	}
	return vp_err_set(e, -ENOSYS, "there is no method %.60s; docs/control-api.md lists them", method);
}
