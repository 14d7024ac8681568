/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * See carrier.h. Threat model: the VMM at the other end answers what it wants, see sys/qmp.c; nothing here depends on
 * it.
 */
#include "front/carrier.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "context/context.h"
#include "conf/policy.h"
#include "sys/qmp.h"
#include "sys/timer.h"

/* When QEMU is told once more, after the front-end has connected: its own set_link may come behind ours. */
#define AGAIN_US 1000000u

struct vp_carrier {
	struct vp_daemon          *d;
	const struct vp_conf_link *l;
	const char                *name;
	struct vp_qmp             *qmp;
	sd_event_source           *timer;
	bool                       up;
	char                       error[160];
};

static void told(void *arg, json_t *ret, const char *err)
{
	struct vp_carrier *c = arg;

	/* As much of it as is kept, or a long one would be new every time. */
	if (err && strncmp(c->error, err, sizeof(c->error) - 1))
		vp_log(VP_LOG_WARNING, "%s: set_link of %s: %s", c->name, c->l->nic, err);
	snprintf(c->error, sizeof(c->error), "%s", err ? err : "");
}

static void tell(struct vp_carrier *c)
{
	/* Else when it is connected. */
	if (vp_qmp_is_up(c->qmp))
		vp_qmp_call(c->qmp, "set_link", json_pack("{s:s,s:b}", "name", c->l->nic, "up", c->up), -1, told, c);
}

static void on_up(void *ctx)
{
	tell(ctx);
}

static void on_down(void *ctx)
{
}

static void on_event(void *ctx, const char *name, json_t *data)
{
}

static bool on_allowed(void *ctx, uid_t uid)
{
	struct vp_carrier *c = ctx;

	return vp_policy_user_ok(vp_conf_vm_find(c->d->conf, c->l->side[VP_SIDE_DRIVER].vm), uid, geteuid());
}

static const struct vp_qmp_ops qmp_ops = { .up = on_up, .down = on_down, .event = on_event, .allowed = on_allowed };

static int on_again(sd_event_source *s, uint64_t usec, void *arg)
{
	tell(arg);
	return 0;
}

void vp_carrier_set(struct vp_carrier *c, bool up)
{
	if (!c || c->up == up)
		return;
	c->up = up;
	tell(c);
}

void vp_carrier_connected(struct vp_carrier *c)
{
	if (!c)
		return;
	tell(c);
	vp_timer_in(c->d->event, &c->timer, AGAIN_US, on_again, c, c->name);
}

json_t *vp_carrier_json(const struct vp_carrier *c)
{
	if (!c)
		return json_null();
	return json_pack("{s:b,s:s,s:s?}", "up", c->up, "qmp", vp_qmp_is_up(c->qmp) ? "connected" : vp_qmp_why(c->qmp),
			 "error", c->error[0] ? c->error : NULL);
}

int vp_carrier_new(struct vp_carrier **out, struct vp_daemon *d, const struct vp_conf_link *l, const char *name,
		   struct vp_err *e)
{
	struct vp_carrier *c;
	int r;

	*out = NULL;
	if (!l->nic[0])
		return 0;
	c = calloc(1, sizeof(*c));
	if (!c)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", name);
	*c = (struct vp_carrier){ .d = d, .l = l, .name = name };
	r = vp_qmp_new(&c->qmp, d->event, l->driver_qmp,
		       l->driver_qmp_mode == VP_SOCKET_SERVER ?
			       vp_conf_socket_file_mode(d->conf, l->side[VP_SIDE_DRIVER].vm) :
			       0,
		       name, &qmp_ops, c, e);
	if (r) {
		vp_carrier_free(c);
		return r;
	}
	*out = c;
	return 0;
}

void vp_carrier_free(struct vp_carrier *c)
{
	if (!c)
		return;
	vp_qmp_free(c->qmp);
	vp_timer_end(&c->timer);
	free(c);
}
