/* SPDX-License-Identifier: BSD-3-Clause */
/* Links as records, for the daemon that goes on with them (docs/handover.md). Threat model: base/record.h. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "front/peer.h"
#include "handover/takeover.h"
#include "link/link.h"
#include "link/port_link.h"
#include "sys/sock.h"

enum tag { TAG_LINK = 1, TAG_NAME, TAG_STATE, TAG_CONF, TAG_SHAPE, TAG_GIVEN, TAG_IMPL, TAG_WAKES };

struct link_rec {
	uint32_t mode, runtime, up, state;
	uint64_t since_us, state_us;
	uint64_t state_sum[VP_LINK_STATES];
	uint32_t plugged, pad;
};

int vp_links_can_hand_over(struct vp_links *ls, struct vp_err *e)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(ls, i)); i++)
		if (l->origin == VP_ORIGIN_RUNTIME && !l->given)
			return vp_err_set(e, -EOPNOTSUPP,
					  "link %s cannot be handed over: it was added at run time, and how is not "
					  "known any more; remove it and add it again",
					  l->conf.name);
	for (unsigned i = 0; (l = vp_links_at(ls, i)); i++)
		if (!l->ops->at_rest(l))
			return vp_err_set(e, -EBUSY, "link %s is not at rest: it waits for an answer of its VM",
					  l->conf.name);
	return 0;
}

/* How a link is configured, for builds whose struct vp_conf_link is another one. */
static char *shape(const struct vp_link *l)
{
	json_t *o = vp_link_config(l);
	char *s = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);

	json_decref(o);
	return s;
}

/* Keys that a running link takes. */
#define RUNNING (1u << VP_EFFECT_LIVE | 1u << VP_EFFECT_POLICY)

/* Without them. */
static struct vp_conf_link normal(const struct vp_conf_link *c)
{
	static const struct vp_conf_link none;
	struct vp_conf_link n = *c;

	vp_conf_take(VP_CONF_LINK, &n, &none, RUNNING);
	n.start_down = false;
	return n;
}

void vp_link_save(struct vp_link *l, struct vp_rec *r)
{
	struct link_rec s = {
		.mode = l->decision.mode, .runtime = l->origin == VP_ORIGIN_RUNTIME, .up = l->up, .state = l->state,
		.since_us = l->since_us, .state_us = l->state_us, .plugged = l->ops->plugged && l->ops->plugged(l),
	};

	/* Kept, for it is written again while traffic stands still. */
	if (!l->shape)
		l->shape = shape(l);
	memcpy(s.state_sum, l->state_sum, sizeof(s.state_sum));
	vp_rec_begin(r, TAG_LINK);
	vp_rec_str(r, TAG_NAME, l->conf.name);
	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	vp_rec_put(r, TAG_CONF, &l->conf, sizeof(l->conf));
	vp_rec_str(r, TAG_SHAPE, l->shape ? l->shape : "");
	if (s.runtime)
		vp_rec_str(r, TAG_GIVEN, l->given);
	vp_rec_begin(r, TAG_IMPL);
	l->ops->save(l, r);
	vp_rec_end(r);
	vp_rec_end(r);
}

void vp_links_save(struct vp_links *ls, struct vp_rec *r)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(ls, i)); i++)
		vp_link_save(l, r);
}

void vp_links_save_hot(struct vp_links *ls, struct vp_rec *r)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(ls, i)); i++) {
		vp_rec_begin(r, TAG_LINK);
		vp_rec_str(r, TAG_NAME, l->conf.name);
		vp_rec_put(r, TAG_WAKES, l->wakes, sizeof(l->wakes));
		vp_rec_begin(r, TAG_IMPL);
		l->ops->save_hot(l, r);
		vp_rec_end(r);
		vp_rec_end(r);
	}
}

/* The configuration of a link that was added at run time, as it was given then. */
static int given_conf(struct vp_daemon *d, const char *name, const struct vp_rec_in *given, struct vp_conf_link *c,
		      struct vp_err *e)
{
	json_t *o = json_loadb((const char *)given->p, given->n, 0, NULL);
	int r = json_is_object(o) ? 0 : vp_err_set(e, -EPROTO, "its configuration is no JSON");

	if (!r)
		r = vp_conf_link_init(c, name, e);
	if (!r)
		r = vp_link_config_read(c, o, e);
	if (!r)
		r = vp_conf_finish_link(c, d->conf, e);
	json_decref(o);
	return r;
}

/* What a running link can change it has as it was: the link changes it when it runs here (apply.c). */
static bool same_conf(struct vp_link *l, const struct vp_rec_in *in)
{
	struct vp_conf_link was, now = normal(&l->conf);
	struct vp_rec_in conf;
	char *text;
	bool same;

	if (!vp_rec_find(in, TAG_CONF, &conf))
		return false;
	if (conf.n == sizeof(was)) {
		memcpy(&was, conf.p, sizeof(was));
		vp_conf_take(VP_CONF_LINK, &l->conf, &was, RUNNING);
		was = normal(&was);
		return !memcmp(&was, &now, sizeof(was));
	}
	text = shape(l);
	same = text && vp_rec_find(in, TAG_SHAPE, &conf) && conf.n == strlen(text) && !memcmp(conf.p, text, conf.n);
	free(text);
	return same;
}

/* As it would be now; NULL: there is none any more, or it is another one. */
static int conf_now(struct vp_links *ls, struct vp_daemon *d, const struct vp_rec_in *in, const struct link_rec *s,
		    struct vp_link *probe, const char *name, bool *same, struct vp_err *e)
{
	const struct vp_conf_link *file = vp_conf_link_find(d->conf, name);
	struct vp_rec_in given;
	int r;

	*same = false;
	if (file) {
		probe->conf = *file;
		probe->origin = VP_ORIGIN_FILE;
	} else if (s->runtime && vp_rec_find(in, TAG_GIVEN, &given)) {
		r = given_conf(d, name, &given, &probe->conf, e);
		if (r)
			return r;
		probe->origin = VP_ORIGIN_RUNTIME;
		probe->given = strndup((const char *)given.p, given.n);
	} else {
		return 0;
	}
	vp_policy_decide(d->conf, &probe->conf, &probe->decision);
	*same = probe->decision.allowed && probe->decision.mode == s->mode && same_conf(probe, in);
	return 0;
}

/* The listening sockets, to where the link looks for them when it starts. */
static int adopt_sockets(struct vp_daemon *d, const char *name, const struct vp_rec_in *impl, struct vp_err *e)
{
	struct vp_rec_in side, peer;
	char text[VP_ACTIVATION_NAME_MAX];
	bool ours;
	int fd, r = 0;

	for (unsigned s = 0; !r && s < VP_SIDES; s++) {
		if (!vp_rec_find(impl, VP_LINK_REC_SIDE + s, &side) || !vp_rec_find(&side, VP_LINK_REC_PEER, &peer))
			continue;
		r = vp_peer_record_socket(&peer, &fd, &ours, e);
		snprintf(text, sizeof(text), "%s.%s", name, vp_side_name(s));
		if (!r && fd >= 0)
			r = vp_activation_add(&d->activation, text, fd, ours);
	}
	return r;
}

static int link_restore(struct vp_links *ls, struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_link probe = { .d = d }, *l;
	char name[VP_CONF_NAME_MAX];
	struct vp_rec_in impl;
	struct vp_err why = { 0 };
	struct link_rec s;
	bool same;
	int r;

	if (vp_rec_text(in, TAG_NAME, name, sizeof(name)) || !*name || vp_rec_get(in, TAG_STATE, &s, sizeof(s)) ||
	    s.state >= VP_LINK_STATES || !vp_rec_find(in, TAG_IMPL, &impl))
		return vp_err_set(e, -EPROTO, "the record of link %.63s is malformed, or of another version", name);
	r = conf_now(ls, d, in, &s, &probe, name, &same, &why);
	/* As a reload without --yes, this ends no device of a running VM that is wanted still. */
	if (!r && !same && s.plugged && *probe.conf.name) {
		free(probe.given);
		return vp_err_set(e, -EBUSY,
				  "link %s: its configuration has changed, and its device in VM %s may have to be "
				  "plugged anew for that; run vhost-pcictl reload first, which says so",
				  name, probe.conf.side[VP_SIDE_DEVICE].vm);
	}
	if (r || !same) {
		vp_log(VP_LOG_NOTICE, "link %s: it is not handed over, for %s", name,
		       r ? why.msg : "its configuration has changed");
		free(probe.given);
		return 0;
	}
	probe.conf.start_down = !s.up;
	r = adopt_sockets(d, name, &impl, &why);
	if (!r)
		r = vp_link_start_again(ls, &probe.conf, probe.origin, &probe.decision, &impl, &why);
	if (r) {
		free(probe.given);
		return vp_err_set(e, r, "link %s: %.200s", name, why.msg);
	}
	l = vp_link_find(ls, name);
	l->given = probe.given;
	l->conf.start_down = false;
	l->since_us = s.since_us;
	r = l->ops->restore ? l->ops->restore(l, &impl, &why) : -EOPNOTSUPP;
	if (r)
		return vp_err_set(e, r, "link %s: %.200s", name, why.code ? why.msg : strerror(-r));
	/* Last: what came up on the way did not come up now. */
	l->state = s.state;
	l->state_us = s.state_us;
	memcpy(l->state_sum, s.state_sum, sizeof(l->state_sum));
	return 0;
}

int vp_links_restore(struct vp_links *ls, struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag;
	int r = 0;

	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_LINK)
			continue;
		r = link_restore(ls, d, &body, e);
		if (!r)
			vp_takeover_point();
	}
	return !r && rest.n ? vp_err_set(e, -EPROTO, "the record of the links is cut short") : r;
}

bool vp_links_record_next(struct vp_rec_in *rest, struct vp_conf_link *was)
{
	struct vp_rec_in body, conf;
	unsigned tag;

	while (vp_rec_next(rest, &tag, &body)) {
		memset(was, 0, sizeof(*was));
		if (tag != TAG_LINK)
			continue;
		if (vp_rec_find(&body, TAG_CONF, &conf) && conf.n == sizeof(*was))
			memcpy(was, conf.p, sizeof(*was));
		if (!vp_rec_text(&body, TAG_NAME, was->name, sizeof(was->name)))
			return true;
	}
	return false;
}

/* A listening socket of a link that is not gone on with: its path is free at once. */
static void end_listening(int fd, bool ours, const char *path)
{
	/* seccomp control: shutdown */
	if (ours)
		shutdown(fd, SHUT_RDWR);
	vp_close(&fd);
	if (ours && *path)
		vp_sock_forget(path);
}

void vp_links_end_rest(struct vp_links *ls, const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in, body, impl, side, peer, conf;
	char name[VP_CONF_NAME_MAX];
	struct vp_conf_link was;
	struct vp_err e;
	unsigned tag;
	bool ours;
	int fd;

	while (vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_LINK || vp_rec_text(&body, TAG_NAME, name, sizeof(name)) || vp_link_find(ls, name) ||
		    !vp_rec_find(&body, TAG_IMPL, &impl))
			continue;
		memset(&was, 0, sizeof(was));
		if (vp_rec_find(&body, TAG_CONF, &conf) && conf.n == sizeof(was))
			memcpy(&was, conf.p, sizeof(was));
		for (unsigned s = 0; s < VP_SIDES; s++) {
			char *path = was.side[s].socket;

			path[sizeof(was.side[s].socket) - 1] = 0;
			if (!vp_rec_find(&impl, VP_LINK_REC_SIDE + s, &side) ||
			    !vp_rec_find(&side, VP_LINK_REC_PEER, &peer) ||
			    vp_peer_record_socket(&peer, &fd, &ours, &e) || fd < 0)
				continue;
			end_listening(fd, ours, path);
		}
		was.grant_socket[sizeof(was.grant_socket) - 1] = 0;
		if (was.mode == VP_MODE_GRANT && !vp_plink_record_channel(&impl, &fd, &ours, &e) && fd >= 0)
			end_listening(fd, ours, was.grant_socket);
	}
}

int vp_links_restore_hot(struct vp_links *ls, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body, impl;
	char name[VP_CONF_NAME_MAX];
	struct vp_err why = { 0 };
	struct vp_link *l;
	unsigned tag;
	int r = 0;

	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (vp_rec_text(&body, TAG_NAME, name, sizeof(name)) || !vp_rec_find(&body, TAG_IMPL, &impl))
			return vp_err_set(e, -EPROTO, "the record of what links do is malformed");
		/* One that is not handed over. */
		l = vp_link_find(ls, name);
		if (!l)
			continue;
		if (vp_rec_get(&body, TAG_WAKES, l->wakes, sizeof(l->wakes)) || l->ops->restore_hot(l, &impl, &why))
			return vp_err_set(e, -EPROTO, "link %s: %.200s", name, why.msg);
	}
	return !r && rest.n ? vp_err_set(e, -EPROTO, "the record of what links do is cut short") : r;
}

void vp_links_go_on(struct vp_links *ls)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(ls, i)); i++)
		if (l->ops->go_on)
			l->ops->go_on(l);
}
