/* SPDX-License-Identifier: BSD-3-Clause */
#include "policy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

/* Modes whose engine is in this build. Adding one here is all that policy needs to know. */
static const uint32_t modes_built = 1u << VP_MODE_RELAY | 1u << VP_MODE_FAST | 1u << VP_MODE_COPY;

static void __attribute__((format(printf, 5, 6)))
decide(struct vp_policy_decision *d, bool allowed, unsigned mode, const char *rule, const char *fmt, ...)
{
	va_list ap;

	d->allowed = allowed;
	d->mode = mode;
	d->rule = rule;
	va_start(ap, fmt);
	vsnprintf(d->why, sizeof(d->why), fmt, ap);
	va_end(ap);
}

static const char *group_of(const struct vp_conf *c, const char *vm)
{
	const struct vp_conf_vm *v = vp_conf_vm_find(c, vm);

	return v ? v->trust_group : "";
}

static void decide_port(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d)
{
	const char *drv = l->side[VP_SIDE_DRIVER].vm, *dev = l->side[VP_SIDE_DEVICE].vm;
	const char *a = group_of(c, drv), *b = group_of(c, dev);
	bool same = *a && !strcmp(a, b);

	switch (l->mode) {
	case VP_MODE_RELAY:
		decide(d, false, VP_MODE_RELAY, "relay-needs-virtio-net",
		       "Mode=relay joins two virtio-net devices but the device side is a port; set Endpoint=virtio-net or Mode=auto");
		break;
	case VP_MODE_FAST:
		if (same)
			decide(d, true, VP_MODE_FAST, "fast-same-group", "%.60s and %.60s are both in trust group %s", drv, dev, a);
		else
			decide(d, false, VP_MODE_FAST, "fast-needs-one-trust-group",
			       "Mode=fast would show all memory of %.40s to %.40s, which is not in its trust group; use Mode=copy, or one TrustGroup= for both",
			       drv, dev);
		break;
	case VP_MODE_COPY:
		decide(d, true, VP_MODE_COPY, "copy-asked", "Mode=copy is always allowed");
		break;
	default:
		if (same)
			decide(d, true, VP_MODE_FAST, "auto-same-group", "%.60s and %.60s are both in trust group %s", drv, dev, a);
		else
			decide(d, true, VP_MODE_COPY, "auto-across-groups", "%.60s and %.60s are not in one trust group", drv, dev);
	}
}

void vp_policy_decide(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d)
{
	if (l->endpoint == VP_ENDPOINT_PORT)
		decide_port(c, l, d);
	else if (l->mode == VP_MODE_AUTO)
		decide(d, true, VP_MODE_RELAY, "auto-virtio-net", "the device side is an ordinary virtio-net device");
	else if (l->mode == VP_MODE_RELAY)
		decide(d, true, VP_MODE_RELAY, "relay-asked", "Mode=relay is always allowed between virtio-net devices");
	else
		decide(d, false, l->mode, "virtio-net-is-relayed",
		       "Mode=%s needs a vhost-pci port on the device side; set Endpoint=port, or Mode=relay", vp_mode_name(l->mode));

	if (d->allowed && !(modes_built & (1u << d->mode)))
		decide(d, false, d->mode, "mode-not-built",
		       "this build has no %s mode; use Endpoint=virtio-net, which is relayed", vp_mode_name(d->mode));
}

bool vp_policy_user_ok(const struct vp_conf_vm *vm, uid_t uid, uid_t self)
{
	if (uid == 0 || uid == self)
		return true;
	for (unsigned i = 0; vm && i < vm->n_users; i++)
		if (vm->users[i] == uid)
			return true;
	return false;
}

/* What links take from a VM. */
struct use {
	uint32_t links, pairs;
	uint64_t pool;
};

/* What l takes from vm: a link between a VM and itself counts twice. */
static void add_use(const struct vp_conf *c, const struct vp_conf_link *l, const char *vm, struct use *u)
{
	struct vp_policy_decision d;

	for (unsigned s = 0; s < VP_SIDES; s++) {
		if (strcmp(l->side[s].vm, vm))
			continue;
		u->links += 1;
		u->pairs += l->pairs;
		vp_policy_decide(c, l, &d);
		if (d.allowed && d.mode == VP_MODE_COPY)
			u->pool += vp_conf_link_pool(l);
	}
}

static bool has_limits(const struct vp_conf_vm *vm)
{
	return vm->max_links || vm->max_queues || vm->max_pool;
}

static int check_use(const struct vp_conf_vm *vm, const struct use *u, struct vp_err *e)
{
	if (vm->max_links && u->links > vm->max_links)
		return vp_err_set(e, -EDQUOT, "VM %s would have %u links but MaxLinks=%u; raise it in %s.vm", vm->name, u->links,
				  vm->max_links, vm->name);
	if (vm->max_queues && u->pairs > vm->max_queues)
		return vp_err_set(e, -EDQUOT, "VM %s would have %u queue pairs but MaxQueues=%u; raise it in %s.vm", vm->name,
				  u->pairs, vm->max_queues, vm->name);
	if (vm->max_pool && u->pool > vm->max_pool)
		return vp_err_set(e, -EDQUOT, "VM %s would have pools of %llu MiB but MaxPool=%lluM; raise it in %s.vm, or lower PoolSize=",
				  vm->name, (unsigned long long)u->pool >> 20, (unsigned long long)vm->max_pool >> 20, vm->name);
	return 0;
}

int vp_policy_limits(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n,
		     const struct vp_conf_link *l, struct vp_err *e)
{
	for (unsigned s = 0; s < VP_SIDES; s++) {
		const struct vp_conf_vm *vm = vp_conf_vm_find(c, l->side[s].vm);
		struct use u = { 0 };
		int r;

		if (!vm || !has_limits(vm))
			continue;
		add_use(c, l, vm->name, &u);
		for (unsigned i = 0; i < n; i++)
			if (strcmp(links[i]->name, l->name))
				add_use(c, links[i], vm->name, &u);
		r = check_use(vm, &u, e);
		if (r)
			return r;
	}
	return 0;
}

void vp_policy_check(const struct vp_conf *c, struct vp_conf_report *rep)
{
	struct vp_policy_decision d;
	struct vp_err e;

	for (unsigned i = 0; i < c->n_links; i++) {
		vp_policy_decide(c, &c->links[i], &d);
		if (!d.allowed)
			vp_conf_error(rep, "%s.link: refused by rule %s: %s", c->links[i].name, d.rule, d.why);
	}
	for (unsigned v = 0; v < c->n_vms; v++) {
		const struct vp_conf_vm *vm = &c->vms[v];
		struct use u = { 0 };

		if (!has_limits(vm))
			continue;
		for (unsigned i = 0; i < c->n_links; i++)
			add_use(c, &c->links[i], vm->name, &u);
		if (check_use(vm, &u, &e))
			vp_conf_error(rep, "%s.vm: %s", vm->name, e.msg);
	}
}
