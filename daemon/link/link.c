/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context/audit.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "context/events.h"
#include "conf/types.h"
#include "device/device.h"
#include "engine/queue.h"
#include "front/vdev.h"
#include "link/capture.h"
#include "link/keep.h"
#include "sys/log_sink.h"
#include "sys/sock.h"

struct vp_links {
	struct vp_daemon *d;
	struct vp_link  **v;  /* sorted by name */
	unsigned          n, cap;
};

static const struct vp_link_ops *const mode_ops[VP_MODE_COUNT] = {
	[VP_MODE_RELAY] = &vp_link_relay_ops,
	[VP_MODE_FAST] = &vp_link_fast_ops,
	[VP_MODE_COPY] = &vp_link_copy_ops,
	[VP_MODE_GRANT] = &vp_link_grant_ops,
};

static struct vp_links *all_links;

static const char *vm_of(const char *link, const char *side)
{
	struct vp_link *l = all_links ? vp_link_find(all_links, link) : NULL;

	return l ? l->conf.side[strcmp(side, "driver") ? VP_SIDE_DEVICE : VP_SIDE_DRIVER].vm : NULL;
}

int vp_links_new(struct vp_links **out, struct vp_daemon *d)
{
	*out = calloc(1, sizeof(**out));
	if (!*out)
		return -ENOMEM;
	(*out)->d = d;
	all_links = *out;
	vp_log_sink_vms(vm_of);
	return 0;
}

void vp_links_free(struct vp_links *ls)
{
	if (!ls)
		return;
	while (ls->n)
		vp_link_remove(ls, ls->v[ls->n - 1]);
	vp_log_sink_vms(NULL);
	all_links = NULL;
	free(ls->v);
	free(ls);
}

unsigned vp_links_count(const struct vp_links *ls)
{
	return ls->n;
}

struct vp_link *vp_links_at(struct vp_links *ls, unsigned i)
{
	return i < ls->n ? ls->v[i] : NULL;
}

/* Index of the first link whose name is not before name. */
static unsigned place(const struct vp_links *ls, const char *name)
{
	unsigned lo = 0, hi = ls->n;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (strcmp(ls->v[mid]->conf.name, name) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct vp_link *vp_link_find(struct vp_links *ls, const char *name)
{
	unsigned i = place(ls, name);

	return i < ls->n && !strcmp(ls->v[i]->conf.name, name) ? ls->v[i] : NULL;
}

static bool is_port(const struct vp_conf_link *c, const char *vm)
{
	return c->endpoint == VP_ENDPOINT_PORT && !strcmp(c->side[VP_SIDE_DEVICE].vm, vm);
}

/* Is vm the device VM of a port, or will it be when all links are made? */
static bool has_port(const struct vp_links *ls, const char *vm)
{
	const struct vp_conf *c = ls->d->conf;

	for (unsigned i = 0; i < ls->n; i++)
		if (is_port(&ls->v[i]->conf, vm))
			return true;
	for (unsigned i = 0; i < c->n_links; i++)
		if (is_port(&c->links[i], vm))
			return true;
	return false;
}

void vp_link_backend_cfg(const struct vp_link *l, unsigned side, const struct vp_profile *p, struct vu_backend_cfg *cfg)
{
	vp_vdev_backend_cfg(&l->conf, side, p, cfg);
	if (has_port(l->d->links, l->conf.side[side].vm))
		cfg->pf &= ~VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS);
}

static int check_new(struct vp_links *ls, const struct vp_conf_link *conf, const char **rule, struct vp_err *e)
{
	const struct vp_conf *c = ls->d->conf;
	const struct vp_conf_link **all;
	int r = 0;

	all = calloc(ls->n + 1, sizeof(*all));
	if (!all)
		return vp_err_set(e, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < ls->n && !r; i++) {
		all[i] = &ls->v[i]->conf;
		r = vp_conf_links_clash(&ls->v[i]->conf, conf, e);
	}
	if (!r)
		r = vp_policy_limits(c, all, ls->n, conf, rule, e);
	free(all);
	return r;
}

static int refused(const struct vp_policy_decision *dec, struct vp_err *e)
{
	return vp_err_set(e, -EACCES, "refused by rule %s: %s", dec->rule, dec->why);
}

/* Into the registry, and start it. */
static int start(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin,
		 const struct vp_policy_decision *dec, const struct vp_rec_in *heir, struct vp_err *e)
{
	struct vp_link *l;
	unsigned at;
	int r;

	if (ls->n == ls->cap) {
		unsigned cap = ls->cap ? 2 * ls->cap : 16;
		struct vp_link **v = realloc(ls->v, cap * sizeof(*v));

		if (!v)
			return vp_err_set(e, -ENOMEM, "out of memory");
		ls->v = v;
		ls->cap = cap;
	}
	l = calloc(1, sizeof(*l));
	if (!l)
		return vp_err_set(e, -ENOMEM, "out of memory");
	l->d = ls->d;
	l->conf = *conf;
	l->origin = origin;
	l->up = !conf->start_down;
	l->decision = *dec;
	sd_event_now(ls->d->event, CLOCK_MONOTONIC, &l->since_us);
	l->ops = mode_ops[dec->mode];
	l->state_us = l->since_us;
	l->state = l->up ? VP_LINK_WAITING : VP_LINK_DOWN;
	l->heir = heir;
	r = l->ops->start(l, e);
	l->heir = NULL;
	if (r) {
		vp_keep_free(l);
		free(l);
		return r;
	}
	at = place(ls, conf->name);
	memmove(&ls->v[at + 1], &ls->v[at], (ls->n - at) * sizeof(*ls->v));
	ls->v[at] = l;
	ls->n++;
	return 0;
}

static int add(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin,
	       const struct vp_policy_decision *dec, const char **rule, struct vp_err *e)
{
	int r;

	*rule = dec->rule;
	if (!dec->allowed)
		return refused(dec, e);
	r = check_new(ls, conf, rule, e);
	if (!r)
		r = start(ls, conf, origin, dec, NULL, e);
	if (r)
		return r;
	vp_log(VP_LOG_DEBUG, "link %s: added, mode %s (%s)", conf->name, vp_mode_name(dec->mode), dec->rule);
	vp_link_event(vp_link_find(ls, conf->name), "link.added", NULL);
	return 0;
}

int vp_link_start_again(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin,
			const struct vp_policy_decision *dec, const struct vp_rec_in *in, struct vp_err *e)
{
	if (vp_link_find(ls, conf->name))
		return vp_err_set(e, -EEXIST, "it is there twice");
	return start(ls, conf, origin, dec, in, e);
}

int vp_link_add(struct vp_links *ls, const struct vp_conf_link *conf, enum vp_link_origin origin, struct vp_err *e)
{
	struct vp_policy_decision dec;
	const char *rule = NULL;
	int r;

	vp_policy_decide(ls->d->conf, conf, &dec);
	r = add(ls, conf, origin, &dec, &rule, e);
	if (r)
		vp_log(VP_LOG_NOTICE, "link %s: %s", conf->name, e->code ? e->msg : strerror(-r));
	/* Not by policy: a name or socket that is taken, or one that cannot be opened. */
	if (r && r != -EDQUOT && dec.allowed)
		rule = NULL;
	vp_audit_link(ls->d, "link.add", conf, &dec, rule, r, e);
	return r;
}

void vp_link_remove(struct vp_links *ls, struct vp_link *l)
{
	unsigned at = place(ls, l->conf.name);

	l->ops->stop(l);
	vp_keep_free(l);
	vp_captures_end(l, "the link was removed");
	vp_event_tell(ls->d, "link.removed", json_pack("{s:s}", "link", l->conf.name));
	vp_log(VP_LOG_DEBUG, "link %s: removed", l->conf.name);
	memmove(&ls->v[at], &ls->v[at + 1], (ls->n - at - 1) * sizeof(*ls->v));
	ls->n--;
	free(l->brief);
	free(l->shape);
	free(l->labels);
	free(l->info);
	free(l->given);
	free(l);
}

void vp_link_set_up(struct vp_link *l, bool up)
{
	if (l->up == up)
		return;
	l->up = up;
	l->ops->admin_changed(l);
	vp_log(VP_LOG_INFO, "link %s: set %s", l->conf.name, up ? "up" : "down");
	vp_link_event(l, "link.state", up ? "set up" : "set down");
}

void vp_links_reap(struct vp_links *ls)
{
	for (unsigned i = 0; i < ls->n; i++)
		if (ls->v[i]->ops->busy(ls->v[i]))
			ls->v[i]->ops->reap(ls->v[i]);
}

/* ---- what is told about a link --------------------------------------------- */

static json_t *maybe_string(const char *s)
{
	return *s ? json_string(s) : json_null();
}

static const char *const state_words[VP_LINK_STATES] = {
	[VP_LINK_WAITING] = "waiting", [VP_LINK_PARTIAL] = "partial", [VP_LINK_UP] = "up", [VP_LINK_DOWN] = "down",
	[VP_LINK_BROKEN] = "broken",
};

const char *vp_link_state_str(enum vp_link_state s)
{
	return state_words[s];
}

const char *vp_link_look(struct vp_link *l)
{
	const char *word = l->ops->status(l);
	enum vp_link_state old = l->state;
	uint64_t now = 0;

	if (!strcmp(word, state_words[old]))
		return word;
	sd_event_now(l->d->event, CLOCK_MONOTONIC, &now);
	l->state_sum[old] += now - l->state_us;
	l->state_us = now;
	for (unsigned s = 0; s < VP_LINK_STATES; s++)
		if (!strcmp(word, state_words[s]))
			l->state = s;
	if (l->state == VP_LINK_UP || old == VP_LINK_UP)
		vp_log(VP_LOG_INFO, "link %s: %s", l->conf.name, l->state == VP_LINK_UP ? "up" : "no longer up");
	return word;
}

uint64_t vp_link_state_us(const struct vp_link *l, enum vp_link_state s, uint64_t now)
{
	return l->state_sum[s] + (s == l->state && now > l->state_us ? now - l->state_us : 0);
}

void vp_link_event(struct vp_link *l, const char *event, const char *why)
{
	vp_event_tell(l->d, event,
			 json_pack("{s:s,s:s,s:b,s:o}", "link", l->conf.name, "status", vp_link_look(l), "up", l->up,
				   "why", maybe_string(why ? why : "")));
}

json_t *vp_link_brief(struct vp_link *l)
{
	return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:b,s:s}", "name", l->conf.name, "type",
			 vp_type_name(l->conf.device_type), "mode", vp_mode_name(l->decision.mode), "driver_vm",
			 l->conf.side[VP_SIDE_DRIVER].vm, "device_vm", l->conf.side[VP_SIDE_DEVICE].vm, "endpoint",
			 vp_endpoint_name(l->conf.endpoint), "up", l->up, "status", vp_link_look(l));
}

static void brief_make(struct vp_link *l)
{
	const struct {
		const char *key, *value;
	} m[] = {
		{ "{\"name\":", l->conf.name },
		{ ",\"type\":", vp_type_name(l->conf.device_type) },
		{ ",\"mode\":", vp_mode_name(l->decision.mode) },
		{ ",\"driver_vm\":", l->conf.side[VP_SIDE_DRIVER].vm },
		{ ",\"device_vm\":", l->conf.side[VP_SIDE_DEVICE].vm },
		{ ",\"endpoint\":", vp_endpoint_name(l->conf.endpoint) },
	};
	struct vp_text t = { 0 };

	for (unsigned i = 0; i < VP_ARRAY_SIZE(m); i++) {
		vp_text_str(&t, m[i].key);
		vp_text_json(&t, m[i].value);
	}
	if (t.failed)
		vp_text_free(&t);
	l->brief = t.s;
	l->brief_n = t.n;
}

void vp_link_brief_text(struct vp_link *l, struct vp_text *t)
{
	if (!l->brief)
		brief_make(l);
	if (!l->brief)
		t->failed = true;
	vp_text_add(t, l->brief, l->brief_n);
	vp_text_str(t, l->up ? ",\"up\":true,\"status\":\"" : ",\"up\":false,\"status\":\"");
	vp_text_str(t, vp_link_look(l));
	vp_text_str(t, "\"}");
}

/* Whose word the counters are. */
static const char *counted_by(const struct vp_link *l)
{
	struct vp_link_reported r;
	struct vp_queue_stats s;

	if (l->ops->sent(l, VP_SIDE_DRIVER, &s))
		return "daemon";
	return l->ops->reported && l->ops->reported(l, VP_SIDE_DRIVER, &r) ? "device-vm" : "nobody";
}

/* The device VM's word alone, null = it has said nothing. */
static json_t *reported_json(const struct vp_link *l)
{
	json_t *o = json_object();
	struct vp_link_reported r;

	for (unsigned s = 0; s < VP_SIDES; s++) {
		if (!l->ops->reported || !l->ops->reported(l, s, &r)) {
			json_decref(o);
			return json_null();
		}
		json_object_set_new(o, vp_side_name(s),
				    json_pack("{s:I,s:I,s:I}", "packets", (json_int_t)r.packets, "bytes",
					      (json_int_t)r.bytes, "dropped", (json_int_t)r.dropped));
	}
	return o;
}

json_t *vp_link_detail(struct vp_link *l)
{
	json_t *o = vp_link_brief(l);
	char offloads[64];

	json_object_set_new(o, "origin", json_string(l->origin == VP_ORIGIN_FILE ? "file" : "runtime"));
	json_object_set_new(o, "queue_pairs", json_integer(l->conf.pairs));
	json_object_set_new(o, "migratable", json_boolean(vp_conf_link_migrates(&l->conf, l->decision.mode)));
	json_object_set_new(o, "kept", json_boolean(vp_keep_good(l)));
	json_object_set_new(o, "virtqueues", json_integer(vp_type_queues(&l->conf)));
	json_object_set_new(o, "mtu", l->conf.mtu ? json_integer(l->conf.mtu) : json_null());
	json_object_set_new(o, "packets_per_second", l->conf.pps ? json_integer(l->conf.pps) : json_null());
	json_object_set_new(o, "bits_per_second", l->conf.bps ? json_integer((json_int_t)l->conf.bps) : json_null());
	json_object_set_new(o, "description", maybe_string(l->conf.description));
	json_object_set_new(o, "offloads", json_string(vp_offloads_str(l->conf.offloads, offloads, sizeof(offloads))));
	json_object_set_new(o, "policy", json_pack("{s:s,s:s,s:s,s:s,s:b}", "asked", vp_mode_name(l->conf.mode), "mode",
						   vp_mode_name(l->decision.mode), "rule", l->decision.rule, "why",
						   l->decision.why, "allowed", l->decision.allowed));
	json_object_set_new(o, "config", vp_link_config(l));
	json_object_set_new(o, "counted_by", json_string(counted_by(l)));
	json_object_set_new(o, "reported", reported_json(l));
	json_object_set_new(o, "sides", l->ops->sides(l, false));
	return o;
}

json_t *vp_link_stats(struct vp_link *l)
{
	json_t *o = json_pack("{s:s,s:s,s:s,s:o}", "name", l->conf.name, "status", vp_link_look(l), "counted_by",
			      counted_by(l), "sides", l->ops->sides(l, true));

	json_object_set_new(o, "reported", reported_json(l));
	return o;
}
