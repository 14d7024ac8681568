/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A configuration comes into force on links that run. What a changed key costs its link is in the table of keys
 * (conf/keys.c, enum vp_conf_effect): nothing, a reconnect of its front-ends, or a link that is made anew.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/audit.h"
#include "context/context.h"
#include "link/link.h"
#include "sys/sock.h"

/* What apply() does, and has done: of each kind an object whose keys are the links' names. */
struct work {
	struct vp_links       *ls;
	const struct vp_conf  *c;
	struct vp_conf_report *rep;
	bool                   gently;
	json_t                *added, *removed, *anew, *altered, *kept;
};

static void note(json_t *kind, const char *name)
{
	json_object_set_new(kind, name, json_true());
}

/* What becomes of a link, and the first of the settings that ask for as much. */
struct change {
	enum vp_conf_effect       effect;
	bool                      any;  /* is there a change at all? */
	char                      by[120];
	struct vp_policy_decision now;  /* of the link as it is wanted */
};

/* l becomes want, under c. State= only matters at creation. */
static void change_of(const struct vp_link *l, const struct vp_conf_link *want, const struct vp_conf *c,
		      struct change *ch)
{
	struct vp_conf_link rest = l->conf;
	enum vp_conf_effect effect;
	const char *key, *section;
	unsigned i = 0;

	*ch = (struct change){ .effect = VP_EFFECT_LIVE };
	rest.start_down = want->start_down;
	while ((key = vp_conf_changed(VP_CONF_LINK, &rest, want, &i, &effect, &section))) {
		if (!ch->any || effect > ch->effect) {
			ch->effect = effect;
			snprintf(ch->by, sizeof(ch->by), "[%s] %s=", section, key);
		}
		ch->any = true;
	}
	vp_conf_take(VP_CONF_LINK, &rest, want, ~0u);
	/* No key has it: no key can say that it is harmless. */
	if (memcmp(&rest, want, sizeof(rest))) {
		*ch = (struct change){ .effect = VP_EFFECT_ANEW, .any = true };
		snprintf(ch->by, sizeof(ch->by), "the configuration");
	}
	vp_policy_decide(c, want, &ch->now);
	if (ch->now.allowed && ch->now.mode == l->decision.mode)
		return;
	if (ch->effect < VP_EFFECT_ANEW)
		snprintf(ch->by, sizeof(ch->by), "the mode (%s, which becomes %s by rule %s)",
			 vp_mode_name(l->decision.mode), vp_mode_name(ch->now.mode), ch->now.rule);
	ch->effect = VP_EFFECT_ANEW;
	ch->any = true;
}

/* What l is to be: what its file says now, or what it is. NULL: it goes. */
static const struct vp_conf_link *wanted(const struct vp_link *l, const struct vp_conf *c)
{
	const struct vp_conf_link *want = vp_conf_link_find(c, l->conf.name);

	return want || l->origin == VP_ORIGIN_FILE ? want : &l->conf;
}

static bool ends_port(const struct vp_link *l, const struct change *ch)
{
	return ch->effect == VP_EFFECT_ANEW && l->ops->plugged && l->ops->plugged(l);
}

/* May it run on as it is? Not where policy gives it less now. */
static bool may_run_on(const struct vp_link *l, const struct vp_conf *c)
{
	struct vp_policy_decision d;

	vp_policy_decide(c, &l->conf, &d);
	return d.allowed && (d.mode == l->decision.mode || l->decision.mode == VP_MODE_COPY);
}

static bool left(const struct work *w, const struct vp_link *l, const struct change *ch)
{
	if (!w->gently || !ends_port(l, ch) || !may_run_on(l, w->c))
		return false;
	note(w->kept, l->conf.name);
	vp_log(VP_LOG_WARNING,
	       "link %s: it goes on as it was: %s changed, and for that its device in VM %s would have to be plugged "
	       "anew; to have it so, run vhost-pcictl reload --yes",
	       l->conf.name, ch->by, l->conf.side[VP_SIDE_DEVICE].vm);
	return true;
}

int vp_links_apply_check(struct vp_links *ls, const struct vp_conf *c, struct vp_err *e)
{
	const struct vp_link *first = NULL;
	struct change ch, by = { 0 };
	unsigned n = 0;

	for (unsigned i = 0; i < vp_links_count(ls); i++) {
		const struct vp_link *l = vp_links_at(ls, i);
		const struct vp_conf_link *want = wanted(l, c);

		if (!want)
			continue;
		change_of(l, want, c, &ch);
		if (!ch.now.allowed || !ends_port(l, &ch) || n++)
			continue;
		first = l;
		by = ch;
	}
	if (!n)
		return 0;
	return vp_err_set(e, -EBUSY,
			  "nothing was applied: %s of link %s changed, and its device in VM %s has to be plugged anew "
			  "for that%s; --yes does it, --keep leaves %s",
			  by.by, first->conf.name, first->conf.side[VP_SIDE_DEVICE].vm,
			  n > 1 ? " (and further links are like that)" : "",
			  n > 1 ? "them as they run" : "it as it runs");
}

/* May a runtime link stay, next to all[0..n)? *d is its decision under c. */
static int may_stay(const struct vp_conf *c, const struct vp_conf_link *const *all, unsigned n,
		    const struct vp_conf_link *conf, struct vp_policy_decision *d, const char **rule, struct vp_err *e)
{
	vp_policy_decide(c, conf, d);
	*rule = NULL;
	for (unsigned s = 0; s < VP_SIDES; s++)
		if (!vp_conf_vm_find(c, conf->side[s].vm))
			return vp_err_set(e, -ENOENT, "VM %s is not configured any more", conf->side[s].vm);
	*rule = d->rule;
	if (!d->allowed)
		return vp_err_set(e, -EACCES, "refused by rule %s: %s", d->rule, d->why);
	return vp_policy_limits(c, all, n, conf, rule, e);
}

/*
 * Away with the runtime links that c does not allow. All of c's own links have room together, that was checked when it
 * was loaded: they come first, then the runtime links by name, as long as there is room. Those whose mode is another
 * one now keep their old decision, and run, until restart_runtime().
 */
static unsigned refuse_runtime(const struct work *w)
{
	struct vp_links *ls = w->ls;
	const struct vp_conf *c = w->c;
	/* Without memory for it each is still held against the policy and, alone, against the limits. */
	const struct vp_conf_link **all = calloc(c->n_links + vp_links_count(ls) + 1, sizeof(*all));
	unsigned n = 0, touched = 0;

	for (unsigned i = 0; all && i < c->n_links; i++)
		all[n++] = &c->links[i];
	for (unsigned i = 0; i < vp_links_count(ls); i++) {
		struct vp_link *l = vp_links_at(ls, i);
		struct vp_policy_decision d;
		struct vp_err e = { 0 };
		const char *rule;
		int r;

		if (l->origin != VP_ORIGIN_RUNTIME || vp_conf_link_find(c, l->conf.name))
			continue;
		r = may_stay(c, all, n, &l->conf, &d, &rule, &e);
		if (!r) {
			if (all)
				all[n++] = &l->conf;
			if (d.mode == l->decision.mode)
				l->decision = d;
			continue;
		}
		vp_conf_error(w->rep, "link %s, added at run time, is removed: %s", l->conf.name, e.msg);
		note(w->removed, l->conf.name);
		vp_audit_link(l->d, "link.keep", &l->conf, &d, rule, r, &e);
		vp_link_remove(ls, l);
		touched++;
		i--;  /* the next one is here now */
	}
	free(all);
	return touched;
}

/* Nobody else has the link's configuration, and what an operator has set down stays down. */
static void restart(const struct work *w, struct vp_link *l)
{
	struct vp_conf_link conf = l->conf;
	struct vp_err e = { 0 };
	char *given = l->given;

	conf.start_down = !l->up;
	l->given = NULL;
	vp_log(VP_LOG_INFO, "link %s: its policy changed, set up anew", conf.name);
	vp_link_remove(w->ls, l);
	if (!vp_link_add(w->ls, &conf, VP_ORIGIN_RUNTIME, &e)) {
		vp_link_find(w->ls, conf.name)->given = given;
		note(w->anew, conf.name);
		return;
	}
	free(given);
	note(w->removed, conf.name);
	vp_conf_error(w->rep, "link %s, added at run time, is removed: %s", conf.name, e.msg);
}

/* Those that c allows, but in another mode than they run in. */
static unsigned restart_runtime(const struct work *w)
{
	struct vp_links *ls = w->ls;
	unsigned touched = 0;

	/* From the end: one that cannot be set up anew is gone. */
	for (unsigned i = vp_links_count(ls); i-- > 0;) {
		struct vp_link *l = vp_links_at(ls, i);
		struct change ch;

		if (l->origin != VP_ORIGIN_RUNTIME)
			continue;
		change_of(l, &l->conf, w->c, &ch);
		if (ch.effect < VP_EFFECT_ANEW || left(w, l, &ch))
			continue;
		restart(w, l);
		touched++;
	}
	return touched;
}

/* It is want's from now on, and runs on. */
static void alter(const struct work *w, struct vp_link *l, const struct vp_conf_link *want, const struct change *ch)
{
	struct vp_err e = { 0 };
	int r;

	free(l->shape);
	l->shape = NULL;
	l->origin = VP_ORIGIN_FILE;
	l->decision = ch->now;
	l->conf.start_down = want->start_down;
	if (!ch->any)
		return;
	note(w->altered, l->conf.name);
	r = l->ops->alter(l, want, ch->effect == VP_EFFECT_AGAIN, &e);
	if (r)
		vp_conf_error(w->rep, "link %s: %s", l->conf.name, e.code ? e.msg : strerror(-r));
	vp_log(VP_LOG_INFO, "link %s: %s changed%s", l->conf.name, ch->by,
	       ch->effect == VP_EFFECT_AGAIN ? "; its front-ends have to connect again" : "");
}

/*
 * Away with file-born links that are gone or have to be made anew. Others become what their files say; links that were
 * added at run time become those of a file of their name.
 */
static unsigned remove_changed(const struct work *w)
{
	struct vp_links *ls = w->ls;
	const struct vp_conf *c = w->c;
	unsigned touched = 0;

	for (unsigned i = vp_links_count(ls); i-- > 0;) {
		struct vp_link *l = vp_links_at(ls, i);
		const struct vp_conf_link *want = vp_conf_link_find(c, l->conf.name);
		struct change ch = { 0 };

		if (!want && l->origin == VP_ORIGIN_RUNTIME)
			continue;
		if (want)
			change_of(l, want, c, &ch);
		if (want && ch.effect < VP_EFFECT_ANEW) {
			alter(w, l, want, &ch);
			touched += ch.any;
			continue;
		}
		if (want && left(w, l, &ch))
			continue;
		note(want ? w->anew : w->removed, l->conf.name);
		vp_log(VP_LOG_INFO, "link %s: %s%s", l->conf.name, want ? ch.by : "",
		       want ? " changed, set up anew" : "no longer configured, removed");
		vp_link_remove(ls, l);
		touched += !want;
	}
	return touched;
}

/* Other users may run a VM now, or none any more: its sockets' files say so, too. The number of links that concerns. */
static unsigned reopen_sockets(const struct work *w)
{
	unsigned touched = 0;

	for (unsigned i = 0; i < vp_links_count(w->ls); i++) {
		const struct vp_conf_link *l = &vp_links_at(w->ls, i)->conf;
		bool any = false;

		for (unsigned s = 0; s < VP_SIDES; s++) {
			mode_t mode = vp_conf_socket_file_mode(w->c, l->side[s].vm);
			const char *qmp = s == VP_SIDE_DRIVER ? l->driver_qmp : l->qmp;
			unsigned qmp_mode = s == VP_SIDE_DRIVER ? l->driver_qmp_mode : l->qmp_mode;

			if (l->side[s].socket_mode == VP_SOCKET_SERVER)
				any |= vp_sock_set_mode(l->side[s].socket, mode);
			if (*qmp && qmp_mode == VP_SOCKET_SERVER)
				any |= vp_sock_set_mode(qmp, mode);
			if (s == VP_SIDE_DRIVER && *l->grant_socket)
				any |= vp_sock_set_mode(l->grant_socket, mode);
		}
		if (any)
			note(w->altered, l->name);
		touched += any;
	}
	return touched;
}

static unsigned apply(const struct work *w)
{
	unsigned touched = 0;
	struct vp_err e;

	/* First away with what may not be or is different, so that names, sockets and limits are free. */
	touched += refuse_runtime(w);
	touched += remove_changed(w);
	touched += reopen_sockets(w);
	for (unsigned i = 0; i < w->c->n_links; i++) {
		const struct vp_conf_link *l = &w->c->links[i];

		if (vp_link_find(w->ls, l->name))
			continue;
		touched++;
		memset(&e, 0, sizeof(e));
		if (!json_object_get(w->anew, l->name))
			note(w->added, l->name);
		if (vp_link_add(w->ls, l, VP_ORIGIN_FILE, &e))
			vp_conf_error(w->rep, "link %s: %s", l->name, e.msg);
	}
	touched += restart_runtime(w);
	return touched;
}

/* The keys of o, which is consumed. */
static json_t *names(json_t *o)
{
	json_t *out = json_array(), *v;
	const char *key;

	json_object_foreach(o, key, v)
		json_array_append_new(out, json_string(key));
	json_decref(o);
	return out;
}

unsigned vp_links_apply(struct vp_links *ls, const struct vp_conf *c, bool gently, json_t **done,
			struct vp_conf_report *rep)
{
	struct work w = {
		.ls = ls, .c = c, .gently = gently, .rep = rep, .added = json_object(), .removed = json_object(),
		.anew = json_object(), .altered = json_object(), .kept = json_object(),
	};
	unsigned n = apply(&w);
	json_t *all = json_pack("{s:o,s:o,s:o,s:o,s:o}", "added", names(w.added), "removed", names(w.removed), "anew",
				names(w.anew), "altered", names(w.altered), "kept", names(w.kept));

	if (done)
		*done = all;
	else
		json_decref(all);
	return n;
}
