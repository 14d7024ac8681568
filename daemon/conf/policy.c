/* SPDX-License-Identifier: BSD-3-Clause */
#include "conf/policy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "conf/types.h"

/* Modes whose engine is in this build. Adding one here is all that policy needs to know. */
static const uint32_t modes_built = 1u << VP_MODE_RELAY | 1u << VP_MODE_FAST | 1u << VP_MODE_COPY |
				   1u << VP_MODE_GRANT;

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

/*
 * Who has a limit of packets (or bits) per second that the link must keep: the link itself, or one of its VMs; "" =
 * nobody.
 */
static const char *rated_vm(const struct vp_conf *c, const struct vp_conf_link *l)
{
	if (l->pps || l->bps)
		return l->name;
	for (unsigned s = 0; s < VP_SIDES; s++) {
		const struct vp_conf_vm *vm = vp_conf_vm_find(c, l->side[s].vm);

		if (vm && vm->pps)
			return vm->name;
	}
	return "";
}

static bool allows_grant(const struct vp_conf *c, const char *vm)
{
	const struct vp_conf_vm *v = vp_conf_vm_find(c, vm);

	return v && v->allow_grant;
}

/* What the driver VM grants is all that the device VM can reach; never chosen by auto. */
static void decide_grant(const struct vp_conf *c, const struct vp_conf_link *l, bool same, struct vp_policy_decision *d)
{
	const char *drv = l->side[VP_SIDE_DRIVER].vm, *dev = l->side[VP_SIDE_DEVICE].vm;
	const char *not = allows_grant(c, drv) ? dev : drv;

	if (*rated_vm(c, l))
		decide(d, false, VP_MODE_GRANT, "grant-has-no-rate-limit",
		       "PacketsPerSecond= is set for %.60s, but in mode grant no packet passes the daemon; use "
		       "Mode=copy, or take it out",
		       rated_vm(c, l));
	else if (same)
		decide(d, true, VP_MODE_GRANT, "grant-same-group", "%.60s and %.60s are both in trust group %s", drv,
		       dev, group_of(c, drv));
	else if (l->attachment == VP_ATTACH_LOCAL)
		decide(d, false, VP_MODE_GRANT, "grant-local-needs-one-trust-group",
		       "a process that has a window of %.40s has its whole file, and keeps it; for %.40s, in another "
		       "trust group, use a VM with Attachment=shmem, or Mode=copy",
		       drv, dev);
	else if (allows_grant(c, drv) && allows_grant(c, dev))
		decide(d, true, VP_MODE_GRANT, "grant-allowed", "AllowGrant=yes is set for %.60s and for %.60s", drv,
		       dev);
	else
		decide(d, false, VP_MODE_GRANT, "grant-not-allowed",
		       "Mode=grant between %.40s and %.40s, which are in no common trust group, needs AllowGrant=yes "
		       "in both VMs' files; it is not in %.40s.vm",
		       drv, dev, not);
}

static void decide_port(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d)
{
	const char *drv = l->side[VP_SIDE_DRIVER].vm, *dev = l->side[VP_SIDE_DEVICE].vm;
	const char *a = group_of(c, drv), *b = group_of(c, dev);
	bool same = *a && !strcmp(a, b);
	const char *rated = rated_vm(c, l);

	switch (l->mode) {
	case VP_MODE_RELAY:
		decide(d, false, VP_MODE_RELAY, "relay-needs-virtio-net",
		       "Mode=relay joins two virtio-net devices but the device side is a port; set Endpoint=virtio-net "
		       "or Mode=auto");
		break;
	case VP_MODE_FAST:
		if (same && *rated)
			decide(d, false, VP_MODE_FAST, "fast-has-no-rate-limit",
			       "PacketsPerSecond= is set for %.60s, but in mode fast no packet passes the daemon; use "
			       "Mode=copy, or take it out",
			       rated);
		else if (same)
			decide(d, true, VP_MODE_FAST, "fast-same-group", "%.60s and %.60s are both in trust group %s",
			       drv, dev, a);
		else
			decide(d, false, VP_MODE_FAST, "fast-needs-one-trust-group",
			       "Mode=fast would show all memory of %.40s to %.40s, which is not in its trust group; "
			       "use Mode=copy, or one TrustGroup= for both",
			       drv, dev);
		break;
	case VP_MODE_COPY:
		decide(d, true, VP_MODE_COPY, "copy-asked", "Mode=copy is always allowed");
		break;
	case VP_MODE_GRANT:
		decide_grant(c, l, same, d);
		break;
	default:
		if (same && *rated)
			decide(d, true, VP_MODE_COPY, "auto-rate-limited",
			       "%.60s and %.60s are both in trust group %s, but PacketsPerSecond= is set for %.60s and "
			       "only holds where the daemon copies",
			       drv, dev, a, rated);
		else if (same)
			decide(d, true, VP_MODE_FAST, "auto-same-group", "%.60s and %.60s are both in trust group %s",
			       drv, dev, a);
		else
			decide(d, true, VP_MODE_COPY, "auto-across-groups",
			       "%.60s and %.60s are not in one trust group", drv, dev);
	}
}

/*
 * A process that maps what it is given keeps it for as long as it likes: it is given a VM's memory only where the
 * administrator asks for that by name, within a trust group.
 */
static void decide_process(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d)
{
	switch (l->mode) {
	case VP_MODE_RELAY:
		decide(d, false, VP_MODE_RELAY, "relay-needs-virtio-net",
		       "Mode=relay joins two virtio-net devices but the device side is a back-end on the host; set "
		       "Endpoint=virtio-net or Mode=auto");
		break;
	case VP_MODE_FAST:
		decide_port(c, l, d);
		break;
	case VP_MODE_GRANT:
		decide(d, false, VP_MODE_GRANT, "grant-needs-a-port",
		       "a back-end on the host that has a window of a VM's memory has its whole file, and keeps it; "
		       "use "
		       "Mode=copy, or Endpoint=port");
		break;
	case VP_MODE_COPY:
		decide(d, true, VP_MODE_COPY, "copy-asked", "Mode=copy is always allowed");
		break;
	default:
		decide(d, true, VP_MODE_COPY, "auto-vhost-user",
		       "the device side is a vhost-user back-end on the host");
	}
}

void vp_policy_decide(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d)
{
	if (l->endpoint == VP_ENDPOINT_PORT)
		decide_port(c, l, d);
	else if (l->endpoint == VP_ENDPOINT_VHOST_USER)
		decide_process(c, l, d);
	else if (l->mode == VP_MODE_AUTO)
		decide(d, true, VP_MODE_RELAY, "auto-virtio-net", "the device side is an ordinary virtio-net device");
	else if (l->mode == VP_MODE_RELAY)
		decide(d, true, VP_MODE_RELAY, "relay-asked",
		       "Mode=relay is always allowed between virtio-net devices");
	else
		decide(d, false, l->mode, "virtio-net-is-relayed",
		       "Mode=%s needs a vhost-pci port on the device side; set Endpoint=port, or Mode=relay",
		       vp_mode_name(l->mode));

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

static bool has_pool(const struct vp_conf_link *l, const struct vp_policy_decision *d)
{
	return d->allowed &&
	       (d->mode == VP_MODE_COPY || (d->mode == VP_MODE_FAST && l->migration == VP_MIGRATION_YES) ||
		(d->mode == VP_MODE_GRANT && l->grant == VP_GRANT_VIOMMU));
}

/* Found now, and not when a reload has taken the link away to make it anew. */
static void check_pool(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_conf_report *rep)
{
	const unsigned n = vp_type_queues(l);
	const uint64_t size = vp_conf_link_pool(l), need = (uint64_t)n * (VP_POOL_RING + VP_POOL_DATA_MIN);
	uint64_t fits = size;
	char where[300];

	if (size >= need)
		return;
	while (fits < need)
		fits *= 2;
	vp_conf_where(c, VP_CONF_LINK, l->name, "Device", "PoolSize", where, sizeof(where));
	vp_conf_error(rep, "%s%s: PoolSize=%lluM has no room for %u queues; write PoolSize=%lluM, or lower Queues=",
		      *where ? where : l->name, *where ? "" : ".link", (unsigned long long)size >> 20, n,
		      (unsigned long long)fits >> 20);
}

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
		if (has_pool(l, &d))
			u->pool += vp_conf_link_pool(l);
	}
}

static bool has_limits(const struct vp_conf_vm *vm)
{
	return vm->max_links || vm->max_queues || vm->max_pool || vm->pps;
}

static struct vp_policy_step *__attribute__((format(printf, 5, 6)))
step(struct vp_policy_step *steps, unsigned *n, bool allowed, const char *rule, const char *fmt, ...)
{
	struct vp_policy_step *s = &steps[(*n)++];
	va_list ap;

	s->allowed = allowed;
	s->rule = rule;
	s->n_by = 0;
	va_start(ap, fmt);
	vsnprintf(s->why, sizeof(s->why), fmt, ap);
	va_end(ap);
	return s;
}

static void by(struct vp_policy_step *s, enum vp_conf_kind kind, const char *name, const char *section, const char *key)
{
	s->by[s->n_by].kind = kind;
	s->by[s->n_by].name = name;
	s->by[s->n_by].section = section;
	s->by[s->n_by++].key = key;
}

static const char *too_much(bool ok)
{
	return ok ? "of" : "but";
}

/* Up to four steps: what one VM would use with the link there. */
static void limit_steps(const struct vp_conf_vm *vm, const struct use *u, struct vp_policy_step *steps, unsigned *n)
{
	bool ok;

	if (vm->max_links) {
		ok = u->links <= vm->max_links;
		by(step(steps, n, ok, "vm-max-links", "VM %s would have %u links %s MaxLinks=%u%s%s%s", vm->name,
			u->links, too_much(ok), vm->max_links, ok ? "" : "; raise it in ", ok ? "" : vm->name,
			ok ? "" : ".vm"),
		   VP_CONF_VM, vm->name, "VM", "MaxLinks");
	}
	if (vm->max_queues) {
		ok = u->pairs <= vm->max_queues;
		by(step(steps, n, ok, "vm-max-queues", "VM %s would have %u queue pairs %s MaxQueues=%u%s%s%s",
			vm->name, u->pairs, too_much(ok), vm->max_queues, ok ? "" : "; raise it in ",
			ok ? "" : vm->name, ok ? "" : ".vm"),
		   VP_CONF_VM, vm->name, "VM", "MaxQueues");
	}
	if (vm->max_pool) {
		ok = u->pool <= vm->max_pool;
		by(step(steps, n, ok, "vm-max-pool", "VM %s would have pools of %llu MiB %s MaxPool=%lluM%s%s%s",
			vm->name, (unsigned long long)u->pool >> 20, too_much(ok),
			(unsigned long long)vm->max_pool >> 20, ok ? "" : "; lower PoolSize=, or raise it in ",
			ok ? "" : vm->name, ok ? "" : ".vm"),
		   VP_CONF_VM, vm->name, "VM", "MaxPool");
	}
	if (vm->pps)
		by(step(steps, n, true, "vm-packets-per-second",
			"VM %s may send %u packets per second over all its links; what exceeds it is dropped or waits",
			vm->name, vm->pps),
		   VP_CONF_VM, vm->name, "VM", "PacketsPerSecond");
}

static void mode_step(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_step *steps, unsigned *n)
{
	struct vp_policy_decision d;
	struct vp_policy_step *s;

	vp_policy_decide(c, l, &d);
	s = step(steps, n, d.allowed, d.rule, "%s", d.why);
	by(s, VP_CONF_LINK, l->name, "Link", "Mode");
	by(s, VP_CONF_LINK, l->name, "Device", "Endpoint");
	if (strstr(d.rule, "rate")) {
		by(s, VP_CONF_LINK, l->name, "Net", "PacketsPerSecond");
		by(s, VP_CONF_VM, rated_vm(c, l), "VM", "PacketsPerSecond");
	} else if (l->endpoint == VP_ENDPOINT_PORT) {
		const char *key = strcmp(d.rule, "grant-allowed") && strcmp(d.rule, "grant-not-allowed") ?
			"TrustGroup" : "AllowGrant";

		by(s, VP_CONF_VM, l->side[VP_SIDE_DRIVER].vm, "VM", key);
		by(s, VP_CONF_VM, l->side[VP_SIDE_DEVICE].vm, "VM", key);
	}
}

/*
 * A VMM that waits until a window of its VM's has gone answers nobody else, so it does not let windows go itself. VMs
 * that wait for one another in a circle would wait for ever: from l's device VM no chain of grant links leads back to
 * its driver VM. The link that leads there last, or NULL.
 */
static const struct vp_conf_link *closes_circle(const struct vp_conf *c, const struct vp_conf_link *const *links,
						unsigned n, const struct vp_conf_link *l)
{
	const struct vp_conf_link *found = NULL;
	const char **todo = calloc(n + 1, sizeof(*todo));
	bool *seen = calloc(n + 1, sizeof(*seen));
	unsigned m = 0;

	if (todo && seen)
		todo[m++] = l->side[VP_SIDE_DEVICE].vm;
	for (unsigned at = 0; at < m && !found; at++)
		for (unsigned i = 0; i < n && !found; i++) {
			struct vp_policy_decision d;

			if (seen[i] || links[i]->mode != VP_MODE_GRANT || !strcmp(links[i]->name, l->name) ||
			    strcmp(links[i]->side[VP_SIDE_DRIVER].vm, todo[at]))
				continue;
			vp_policy_decide(c, links[i], &d);
			seen[i] = true;
			if (!d.allowed)
				continue;
			if (!strcmp(links[i]->side[VP_SIDE_DEVICE].vm, l->side[VP_SIDE_DRIVER].vm))
				found = links[i];
			else
				todo[m++] = links[i]->side[VP_SIDE_DEVICE].vm;
		}
	free(todo);
	free(seen);
	return found;
}

static void circle_step(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n_links,
			const struct vp_conf_link *l, struct vp_policy_step *steps, unsigned *n)
{
	const char *drv = l->side[VP_SIDE_DRIVER].vm, *dev = l->side[VP_SIDE_DEVICE].vm;
	const struct vp_conf_link *by_link;
	struct vp_policy_step *s;

	if (l->mode != VP_MODE_GRANT)
		return;
	by_link = strcmp(drv, dev) ? closes_circle(c, links, n_links, l) : l;
	if (by_link)
		s = step(steps, n, false, "grant-circle",
			 "with link %.40s, VM %.40s would take grants from %.40s, and %.40s from %.40s: each VMM would "
			 "wait for the other when grants end; use Mode=copy for one of them",
			 by_link->name, dev, drv, drv, dev);
	else
		s = step(steps, n, true, "grant-circle", "no grants lead from %.60s back to %.60s", dev, drv);
	by(s, VP_CONF_LINK, l->name, "Link", "Mode");
	if (by_link && by_link != l)
		by(s, VP_CONF_LINK, by_link->name, "Link", "Mode");
}

unsigned vp_policy_steps(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n_links,
			 const struct vp_conf_link *l, struct vp_policy_step steps[VP_POLICY_STEPS])
{
	unsigned n = 0, others = 0;
	bool ok;

	mode_step(c, l, steps, &n);
	circle_step(c, links, n_links, l, steps, &n);
	for (unsigned i = 0; i < n_links; i++)
		others += strcmp(links[i]->name, l->name) != 0;
	ok = others < c->daemon.max_links || !c->daemon.max_links;
	by(step(steps, &n, ok, "daemon-max-links", "there would be %u links %s MaxLinks=%u%s", others + 1, too_much(ok),
		c->daemon.max_links, ok ? "" : "; raise it in vhost-pci.conf"),
	   VP_CONF_DAEMON, "", "Daemon", "MaxLinks");
	for (unsigned s = 0; s < VP_SIDES; s++) {
		const struct vp_conf_vm *vm = vp_conf_vm_find(c, l->side[s].vm);
		struct use u = { 0 };

		if (!vm || !has_limits(vm) || (s && !strcmp(l->side[0].vm, l->side[1].vm)))
			continue;
		add_use(c, l, vm->name, &u);
		for (unsigned i = 0; i < n_links; i++)
			if (strcmp(links[i]->name, l->name))
				add_use(c, links[i], vm->name, &u);
		limit_steps(vm, &u, steps, &n);
	}
	return n;
}

int vp_policy_limits(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n,
		     const struct vp_conf_link *l, const char **rule, struct vp_err *e)
{
	struct vp_policy_step steps[VP_POLICY_STEPS];

	n = vp_policy_steps(c, links, n, l, steps);
	for (unsigned i = 1; i < n; i++) {
		if (steps[i].allowed)
			continue;
		if (rule)
			*rule = steps[i].rule;
		return vp_err_set(e, -EDQUOT, "refused by rule %s: %s", steps[i].rule, steps[i].why);
	}
	return 0;
}

void vp_policy_check(const struct vp_conf *c, struct vp_conf_report *rep)
{
	struct vp_policy_step steps[VP_POLICY_STEPS];
	struct vp_policy_decision d;

	const struct vp_conf_link **all = calloc(c->n_links + 1, sizeof(*all));

	for (unsigned i = 0; all && i < c->n_links; i++)
		all[i] = &c->links[i];
	for (unsigned i = 0; i < c->n_links; i++) {
		unsigned n = 0;

		vp_policy_decide(c, &c->links[i], &d);
		if (!d.allowed)
			vp_conf_error(rep, "%s.link: refused by rule %s: %s", c->links[i].name, d.rule, d.why);
		else if (has_pool(&c->links[i], &d))
			check_pool(c, &c->links[i], rep);
		if (d.allowed && all)
			circle_step(c, all, c->n_links, &c->links[i], steps, &n);
		if (n && !steps[0].allowed)
			vp_conf_error(rep, "%s.link: refused by rule %s: %s", c->links[i].name, steps[0].rule,
				      steps[0].why);
	}
	free(all);
	for (unsigned v = 0; v < c->n_vms; v++) {
		const struct vp_conf_vm *vm = &c->vms[v];
		struct use u = { 0 };
		unsigned n = 0;

		if (!has_limits(vm))
			continue;
		for (unsigned i = 0; i < c->n_links; i++)
			add_use(c, &c->links[i], vm->name, &u);
		limit_steps(vm, &u, steps, &n);
		for (unsigned i = 0; i < n; i++)
			if (!steps[i].allowed)
				vp_conf_error(rep, "%s.vm: refused by rule %s: %s", vm->name, steps[i].rule,
					      steps[i].why);
	}
}
