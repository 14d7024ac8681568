/* SPDX-License-Identifier: BSD-3-Clause */
#include "control/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/cycles.h"
#include "base/util.h"
#include "conf/policy.h"
#include "conf/types.h"
#include "context/context.h"
#include "front/stats.h"
#include "link/link.h"
#include "threads/worker.h"

#define LOOK_EVERY 16  /* objects, between looks at the clock */

enum kind { OF_DAEMON, OF_THREAD, OF_VM, OF_LINK };
enum type { COUNTER, GAUGE, INFO };

/* One metric being written. */
struct out {
	struct vp_daemon *d;
	struct vp_text   *t;
	char              head[96];   /* its name as a sample has it, and "{" */
	size_t            head_n;
	uint64_t          now;
};

struct family {
	const char *name, *help;
	enum type   type;
	enum kind   kind;
	/* Its samples for one object. */
	void (*daemon)(struct out *o);
	void (*thread)(struct out *o, unsigned i, const struct worker_info *w);
	void (*vm)(struct out *o, const struct vp_conf_vm *vm);
	void (*link)(struct out *o, struct vp_link *l);
	bool counts;  /* has samples of those links only that are not silent */
};

static const char *const side_label[VP_SIDES] = { ",side=\"driver\"", ",side=\"device\"" };

/* ---- samples ------------------------------------------------------------------------------- */

static void begin(struct out *o, const char *labels, const char *more)
{
	vp_text_room(o->t, 320);
	vp_text_add(o->t, o->head, o->head_n);
	vp_text_str(o->t, labels);
	vp_text_str(o->t, more);
	vp_text_add(o->t, "} ", 2);
}

static void sample(struct out *o, const char *labels, const char *more, uint64_t v)
{
	begin(o, labels, more);
	vp_text_u64(o->t, v);
	vp_text_add(o->t, "\n", 1);
}

static void seconds(struct out *o, const char *labels, const char *more, uint64_t us)
{
	begin(o, labels, more);
	vp_text_seconds(o->t, us);
	vp_text_add(o->t, "\n", 1);
}

/* Names need no escape: vp_conf_name_ok(). */
static const char *link_labels(struct vp_link *l)
{
	if (!l->labels && asprintf(&l->labels, "link=\"%s\"", l->conf.name) < 0)
		l->labels = NULL;
	return l->labels ? l->labels : "link=\"\"";
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static void build_info(struct out *o)
{
	sample(o, "version=\"" VP_VERSION "\"", "", 1);
}

static void uptime(struct out *o)
{
	seconds(o, "", "", o->now - o->d->started_us);
}

static void links(struct out *o)
{
	sample(o, "", "", vp_links_count(o->d->links));
}

static void reloads(struct out *o)
{
	sample(o, "", "", o->d->reloads);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void thread_label(char label[32], unsigned i)
{
	snprintf(label, 32, "thread=\"vp-data-%u\"", i);
}

static void thread_busy(struct out *o, unsigned i, const struct worker_info *w)
{
	char label[32];

	thread_label(label, i);
	seconds(o, label, "", w->busy_us);
}

static void thread_cpu(struct out *o, unsigned i, const struct worker_info *w)
{
	struct timespec ts = { 0 };
	char label[32];

	if (!i && !clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts))
		seconds(o, "thread=\"main\"", "", (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000);
	thread_label(label, i);
	seconds(o, label, "", w->cpu_us);
}

static void thread_sleeps(struct out *o, unsigned i, const struct worker_info *w)
{
	char label[32];

	thread_label(label, i);
	sample(o, label, "", w->sleeps);
}

static void thread_jobs(struct out *o, unsigned i, const struct worker_info *w)
{
	char label[32];

	thread_label(label, i);
	sample(o, label, "", w->jobs);
}

/* ---- VMs --------------------------------------------------------------------------------------- */

/* Put together by hand, as all that is written for each of thousands. */
static void vm_sample(struct out *o, const struct vp_conf_vm *vm, const char *more, uint64_t v)
{
	char label[VP_CONF_NAME_MAX + 8] = "vm=\"";
	size_t n = strlen(vm->name);

	memcpy(label + 4, vm->name, n);
	memcpy(label + 4 + n, "\"", 2);
	sample(o, label, more, v);
}

static void vm_mapped(struct out *o, const struct vp_conf_vm *vm)
{
	vm_sample(o, vm, "", vp_memory_used(vm->name).bytes);
}

static void vm_memory_limit(struct out *o, const struct vp_conf_vm *vm)
{
	vm_sample(o, vm, "", vp_memory_limit(vm->name));
}

static void vm_limit(struct out *o, const struct vp_conf_vm *vm)
{
	const struct { const char *label; uint64_t v; } limits[] = {
		{ ",limit=\"MaxLinks\"", vm->max_links }, { ",limit=\"MaxQueues\"", vm->max_queues },
		{ ",limit=\"MaxPool\"", vm->max_pool }, { ",limit=\"PacketsPerSecond\"", vm->pps },
	};

	for (unsigned i = 0; i < VP_ARRAY_SIZE(limits); i++)
		if (limits[i].v)
			vm_sample(o, vm, limits[i].label, limits[i].v);
}

/* ---- links ---------------------------------------------------------------------------------------- */

static void link_info(struct out *o, struct vp_link *l)
{
	if (!l->info &&
	    asprintf(&l->info, ",type=\"%s\",mode=\"%s\",driver_vm=\"%s\",device_vm=\"%s\",endpoint=\"%s\"",
		     vp_type_name(l->conf.device_type), vp_mode_name(l->decision.mode), l->conf.side[VP_SIDE_DRIVER].vm,
		     l->conf.side[VP_SIDE_DEVICE].vm, vp_endpoint_name(l->conf.endpoint)) < 0)
		l->info = NULL;
	sample(o, link_labels(l), l->info ? l->info : "", 1);
}

/* The first of the families of links that change. */
static void link_up(struct out *o, struct vp_link *l)
{
	struct vp_queue_stats s;

	vp_link_look(l);
	sample(o, link_labels(l), "", l->state == VP_LINK_UP);
	l->silent = true;
	for (unsigned side = 0; side < VP_SIDES; side++) {
		l->silent &= !l->ops->vdev(l, side) && !l->wakes[side];
		if (!l->silent || !l->ops->sent(l, side, &s))
			continue;
		for (size_t i = 0; i < sizeof(s) / sizeof(uint64_t); i++)
			l->silent &= !((const uint64_t *)&s)[i];
	}
}

/* States that it was in. */
static void link_state(struct out *o, struct vp_link *l)
{
	static const char *const label[VP_LINK_STATES] = {
		[VP_LINK_WAITING] = ",state=\"waiting\"", [VP_LINK_PARTIAL] = ",state=\"partial\"",
		[VP_LINK_UP] = ",state=\"up\"",		  [VP_LINK_DOWN] = ",state=\"down\"",
		[VP_LINK_BROKEN] = ",state=\"broken\"",
	};

	for (unsigned s = 0; s < VP_LINK_STATES; s++) {
		uint64_t us = vp_link_state_us(l, s, o->now);

		if (us)
			seconds(o, link_labels(l), label[s], us);
	}
}

/*
 * Counters of a side: one number of what its VM has sent. A side has them from the moment when there is something to
 * count, or somebody who might send.
 */
#define LINK_COUNTER(name, member) \
	static void name(struct out *o, struct vp_link *l) \
	{ \
		struct vp_queue_stats s; \
		for (unsigned side = 0; side < VP_SIDES; side++) \
			if (l->ops->sent(l, side, &s) && (s.member || l->ops->vdev(l, side))) \
				sample(o, link_labels(l), side_label[side], s.member); \
	}

LINK_COUNTER(link_packets, packets)
LINK_COUNTER(link_bytes, bytes)
LINK_COUNTER(link_calls, calls)
LINK_COUNTER(link_bursts, bursts)

static void link_busy(struct out *o, struct vp_link *l)
{
	struct vp_queue_stats s;

	for (unsigned side = 0; side < VP_SIDES; side++)
		if (l->ops->sent(l, side, &s) && (s.busy_cycles || l->ops->vdev(l, side)))
			seconds(o, link_labels(l), side_label[side],
				(uint64_t)((double)s.busy_cycles * 1e6 / (double)vp_cycles_hz()));
}

static void link_wakes(struct out *o, struct vp_link *l)
{
	for (unsigned side = 0; side < VP_SIDES; side++) {
		uint64_t n = __atomic_load_n(&l->wakes[side], __ATOMIC_RELAXED);

		if (n || l->ops->vdev(l, side))
			sample(o, link_labels(l), side_label[side], n);
	}
}

static void handovers(struct out *o, struct vp_link *l)
{
	if (l->ops->handovers)
		sample(o, link_labels(l), "", l->ops->handovers(l));
}

/* The device VM's word, of links whose packets nobody here sees. */
#define LINK_REPORTED(name, member) \
	static void name(struct out *o, struct vp_link *l) \
	{ \
		struct vp_link_reported r; \
		for (unsigned side = 0; l->ops->reported && side < VP_SIDES; side++) \
			if (l->ops->reported(l, side, &r)) \
				sample(o, link_labels(l), side_label[side], r.member); \
	}

LINK_REPORTED(reported_packets, packets)
LINK_REPORTED(reported_bytes, bytes)
LINK_REPORTED(reported_drops, dropped)

static void drops(struct out *o, struct vp_link *l, const char *more, const struct vp_queue_stats *s, bool all)
{
	char text[112];

	for (unsigned i = 0; i < VP_DROP_MAX; i++) {
		if (!all && !s->drops[i])
			continue;
		snprintf(text, sizeof(text), "%s,reason=\"%s\"", more, vp_drop_str(i));
		sample(o, link_labels(l), text, s->drops[i]);
	}
}

static void link_drops(struct out *o, struct vp_link *l)
{
	struct vp_queue_stats s;

	for (unsigned side = 0; side < VP_SIDES; side++)
		if (l->ops->sent(l, side, &s))
			drops(o, l, side_label[side], &s, l->ops->vdev(l, side) != NULL);
}

/* ---- queues of connected front-ends ------------------------------------------------------------------ */

struct queue {
	struct vp_vdev_ring  *ring;
	struct vp_queue_stats stats;
	bool                  sends;  /* what its driver makes available comes from it: has counters */
	char                  more[64];
};

static void each_queue(struct out *o, struct vp_link *l,
		       void (*fn)(struct out *o, struct vp_link *l, const struct queue *q))
{
	struct queue q;

	for (unsigned side = 0; side < VP_SIDES; side++) {
		struct vp_vdev *v = l->ops->vdev(l, side);

		for (unsigned i = 0; v && i < vp_vdev_rings(v); i++) {
			memset(&q.stats, 0, sizeof(q.stats));
			q.ring = vp_vdev_ring(v, i);
			q.sends = vp_vdev_use(v, i) != VP_QUEUE_RECEIVES && l->decision.mode != VP_MODE_FAST &&
				l->decision.mode != VP_MODE_GRANT;
			if (q.sends)
				vp_stats_add(&q.stats, &q.ring->rq.stats);
			snprintf(q.more, sizeof(q.more), "%s,queue=\"%u\"", side_label[side], i);
			fn(o, l, &q);
		}
	}
}

#define QUEUE_COUNTER(name, member) \
	static void name##_one(struct out *o, struct vp_link *l, const struct queue *q) \
	{ \
		if (q->sends) \
			sample(o, link_labels(l), q->more, q->stats.member); \
	} \
	static void name(struct out *o, struct vp_link *l) \
	{ \
		each_queue(o, l, name##_one); \
	}

QUEUE_COUNTER(queue_packets, packets)
QUEUE_COUNTER(queue_bytes, bytes)
QUEUE_COUNTER(queue_calls, calls)

static void queue_drops_one(struct out *o, struct vp_link *l, const struct queue *q)
{
	if (q->sends)
		drops(o, l, q->more, &q->stats, false);
}

static void queue_drops(struct out *o, struct vp_link *l)
{
	each_queue(o, l, queue_drops_one);
}

static void queue_broken_one(struct out *o, struct vp_link *l, const struct queue *q)
{
	sample(o, link_labels(l), q->more, q->ring->error[0] != 0);
}

static void queue_broken(struct out *o, struct vp_link *l)
{
	each_queue(o, l, queue_broken_one);
}

static void queue_depth_one(struct out *o, struct vp_link *l, const struct queue *q)
{
	int n = q->ring->usable ? vp_vq_depth(&q->ring->rq.vq) : -1;

	if (n >= 0)
		sample(o, link_labels(l), q->more, (uint64_t)n);
}

static void queue_depth(struct out *o, struct vp_link *l)
{
	each_queue(o, l, queue_depth_one);
}

static void queue_size_one(struct out *o, struct vp_link *l, const struct queue *q)
{
	if (q->ring->usable)
		sample(o, link_labels(l), q->more, q->ring->rq.vq.size);
}

static void queue_size(struct out *o, struct vp_link *l)
{
	each_queue(o, l, queue_size_one);
}

/* ---- the list ------------------------------------------------------------------------------------------- */

static const struct family families[] = {
	{ "vhost_pci_build", "The daemon that runs", INFO, OF_DAEMON, .daemon = build_info },
	{ "vhost_pci_uptime_seconds", "Seconds since the daemon started", GAUGE, OF_DAEMON, .daemon = uptime },
	{ "vhost_pci_links", "Links that there are", GAUGE, OF_DAEMON, .daemon = links },
	{ "vhost_pci_reloads", "Configurations that came into force since the start", COUNTER, OF_DAEMON,
	  .daemon = reloads },
	{ "vhost_pci_thread_busy_seconds", "Time in rounds that moved something", COUNTER, OF_THREAD,
	  .thread = thread_busy },
	{ "vhost_pci_thread_cpu_seconds", "Processor time, polling and all", COUNTER, OF_THREAD, .thread = thread_cpu },
	{ "vhost_pci_thread_sleeps", "Times that the thread went to sleep", COUNTER, OF_THREAD,
	  .thread = thread_sleeps },
	{ "vhost_pci_thread_jobs", "Queues that the thread serves", GAUGE, OF_THREAD, .thread = thread_jobs },
	{ "vhost_pci_vm_memory_mapped_bytes", "Memory of the VM that is mapped, over all its links", GAUGE, OF_VM,
	  .vm = vm_mapped },
	{ "vhost_pci_vm_memory_limit_bytes", "The most that may be mapped: MaxMemory=", GAUGE, OF_VM,
	  .vm = vm_memory_limit },
	{ "vhost_pci_vm_limit", "Other limits that are set for the VM, by the name of the key", GAUGE, OF_VM,
	  .vm = vm_limit },
	{ "vhost_pci_link", "The link's configuration as it is in force", INFO, OF_LINK, .link = link_info },
	{ "vhost_pci_link_up", "1 while the link is up", GAUGE, OF_LINK, .link = link_up },
	{ "vhost_pci_link_state_seconds", "Time in each state", COUNTER, OF_LINK, .link = link_state },
	{ "vhost_pci_link_handovers", "Queues that were given into the hands of the device VM, each time", COUNTER,
	  OF_LINK, .link = handovers },
	{ "vhost_pci_link_packets", "Packets from this side that arrived", COUNTER, OF_LINK, .link = link_packets,
	  true },
	{ "vhost_pci_link_bytes", "Their bytes, without the virtio-net header", COUNTER, OF_LINK, .link = link_bytes,
	  true },
	{ "vhost_pci_link_drops", "Packets from this side that were dropped", COUNTER, OF_LINK, .link = link_drops,
	  true },
	{ "vhost_pci_link_calls", "Notifications that were sent to drivers", COUNTER, OF_LINK, .link = link_calls,
	  true },
	{ "vhost_pci_link_kicks", "Notifications of this side's driver that were seen", COUNTER, OF_LINK,
	  .link = link_wakes, true },
	{ "vhost_pci_link_bursts", "Runs that moved or dropped something", COUNTER, OF_LINK, .link = link_bursts,
	  true },
	{ "vhost_pci_link_busy_seconds", "Time of data threads in these runs", COUNTER, OF_LINK, .link = link_busy,
	  true },
	{ "vhost_pci_link_reported_packets", "Packets of this side that the device VM of a fast link says it has moved",
	  COUNTER, OF_LINK, .link = reported_packets },
	{ "vhost_pci_link_reported_bytes", "Their bytes, by its word", COUNTER, OF_LINK, .link = reported_bytes },
	{ "vhost_pci_link_reported_drops", "Packets of this side that it says it has dropped", COUNTER, OF_LINK,
	  .link = reported_drops },
	{ "vhost_pci_queue_packets", "Packets from this queue that arrived", COUNTER, OF_LINK, .link = queue_packets,
	  true },
	{ "vhost_pci_queue_bytes", "Their bytes, without the virtio-net header", COUNTER, OF_LINK, .link = queue_bytes,
	  true },
	{ "vhost_pci_queue_drops", "Packets from this queue that were dropped", COUNTER, OF_LINK, .link = queue_drops,
	  true },
	{ "vhost_pci_queue_calls", "Notifications that were sent to drivers", COUNTER, OF_LINK, .link = queue_calls,
	  true },
	{ "vhost_pci_queue_broken", "1: the queue broke the rules of virtio and is stopped", GAUGE, OF_LINK,
	  .link = queue_broken, true },
	{ "vhost_pci_queue_depth", "Buffers that the driver has made available and not got back", GAUGE, OF_LINK,
	  .link = queue_depth, true },
	{ "vhost_pci_queue_size", "Size of the ring", GAUGE, OF_LINK, .link = queue_size, true },
};

static void family_begin(struct out *o, const struct family *f, bool openmetrics)
{
	static const char *const types[] = { [COUNTER] = "counter", [GAUGE] = "gauge", [INFO] = "info" };
	static const char *const suffix[] = { [COUNTER] = "_total", [GAUGE] = "", [INFO] = "_info" };
	char text[400];

	o->head_n = (size_t)snprintf(o->head, sizeof(o->head), "%s%s{", f->name, suffix[f->type]);
	/* In Prometheus's own format a metric has the name of its samples, and there is no type "info". */
	if (openmetrics)
		snprintf(text, sizeof(text), "# TYPE %s %s\n# HELP %s %s.\n", f->name, types[f->type], f->name,
			 f->help);
	else
		snprintf(text, sizeof(text), "# HELP %s%s %s.\n# TYPE %s%s %s\n", f->name, suffix[f->type], f->help,
			 f->name, suffix[f->type], f->type == INFO ? "gauge" : types[f->type]);
	vp_text_str(o->t, text);
}

static void head_again(struct out *o, const struct family *f)
{
	struct vp_text none = { 0 }, *t = o->t;

	o->t = &none;
	family_begin(o, f, true);
	vp_text_free(&none);
	o->t = t;
}

struct bound {
	size_t   max;
	uint64_t until;   /* vp_cycles() */
};

static bool enough(const struct out *o, const struct bound *b, unsigned i)
{
	return o->t->failed || o->t->n >= b->max || (!(i % LOOK_EVERY) && (int64_t)(vp_cycles() - b->until) >= 0);
}

static const char *name_at(struct vp_daemon *d, enum kind kind, unsigned i)
{
	if (kind == OF_LINK)
		return i < vp_links_count(d->links) ? vp_links_at(d->links, i)->conf.name : NULL;
	return i < d->conf->n_vms ? d->conf->vms[i].name : NULL;
}

/* The first object behind the last one that was written: they are sorted, and some may have come or gone. */
static unsigned resume(struct vp_daemon *d, enum kind kind, const struct vp_metrics_at *at)
{
	unsigned lo = 0, hi = kind == OF_LINK ? vp_links_count(d->links) : d->conf->n_vms;
	const char *same = at->index < hi ? name_at(d, kind, at->index) : NULL;

	if (same && !strcmp(same, at->after))
		return at->index + 1;
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (strcmp(name_at(d, kind, mid), at->after) <= 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Links or VMs, from where it ended last. True: that was all. */
static bool objects(struct out *o, const struct family *f, struct vp_metrics_at *at, const struct bound *b)
{
	unsigned i = at->inside ? resume(o->d, f->kind, at) : 0;
	const char *name;

	for (; (name = name_at(o->d, f->kind, i)); i++) {
		struct vp_link *l = f->kind == OF_LINK ? vp_links_at(o->d->links, i) : NULL;

		if (l && !(f->counts && l->silent))
			f->link(o, l);
		else if (!l)
			f->vm(o, &o->d->conf->vms[i]);
		if (!enough(o, b, i))
			continue;
		at->inside = true;
		at->index = i;
		memcpy(at->after, name, strlen(name) + 1);
		return false;
	}
	at->inside = false;
	return true;
}

static bool family(struct out *o, const struct family *f, struct vp_metrics_at *at, const struct bound *b)
{
	struct worker_info w;

	if (at->inside)
		head_again(o, f);
	else
		family_begin(o, f, at->openmetrics);
	if (f->kind == OF_LINK || f->kind == OF_VM)
		return objects(o, f, at, b);
	if (f->kind == OF_DAEMON)
		f->daemon(o);
	for (unsigned i = 0; f->kind == OF_THREAD && i < worker_pool_size(o->d->workers); i++) {
		worker_pool_info(o->d->workers, i, &w);
		f->thread(o, i, &w);
	}
	return true;
}

bool vp_metrics_write(struct vp_daemon *d, struct vp_metrics_at *at, struct vp_text *t, size_t max, unsigned us)
{
	const struct bound b = { .max = max, .until = vp_cycles() + vp_cycles_hz() / 1000000 * us };
	struct out o = { .d = d, .t = t };

	sd_event_now(d->event, CLOCK_MONOTONIC, &o.now);
	while (at->family < VP_ARRAY_SIZE(families)) {
		if (!family(&o, &families[at->family], at, &b))
			return false;
		at->family++;
		if (enough(&o, &b, 0))
			return false;
	}
	if (at->openmetrics)
		vp_text_str(t, "# EOF\n");
	return true;
}
