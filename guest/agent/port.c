// SPDX-License-Identifier: BSD-3-Clause
/*
 * The checked copy of the state page, and commands.
 *
 * Threat model: the page is written by the host's daemon, which the guest trusts, but other
 * software of this guest can scribble over it, and the daemon may die in the middle of a
 * change. So: copy once under the seqlock, look at the copy only, and take anything that
 * contradicts itself as "link down". The port may be unplugged at any moment, which turns an
 * access to the page into SIGBUS: the copy is guarded and reports -ENODEV.
 */
#include <errno.h>
#include <endian.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "port.h"

static sigjmp_buf copy_env;
static volatile sig_atomic_t copy_armed;

static void on_sigbus(int sig)
{
	if (copy_armed)
		siglongjmp(copy_env, 1);
	/* Not ours: die of it. */
	signal(sig, SIG_DFL);
	raise(sig);
}

static void guard_install(void)
{
	struct sigaction sa = { .sa_handler = on_sigbus };

	sigemptyset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Every word once, in whatever order; the seqlock around it says whether they belong together. */
static void copy_words(void *dst, const void *src, size_t len)
{
	const uint64_t *s = src;
	uint64_t *d = dst;

	for (size_t i = 0; i < len / 8; i++)
		d[i] = __atomic_load_n(&s[i], __ATOMIC_RELAXED);
}

static uint32_t load_gen(const struct vhp_abi_state *st)
{
	return le32toh(__atomic_load_n((const uint32_t *)&st->generation, __ATOMIC_ACQUIRE));
}

/* One reading; false when the daemon wrote meanwhile. The caller has armed the guard. */
static bool copy_once(const struct vhp_abi_state *st, struct vhp_abi_state *raw)
{
	uint32_t g = load_gen(st);	/* pairs with the daemon's release of the even number */
	uint32_t nq, nw, nr;

	if (g & 1)
		return false;
	copy_words(raw, st, 0x300);
	/* Counts over the limits are reported later, from the copy. */
	nq = VP_MIN(le32toh(raw->nqueues), VHP_MAX_QUEUES);
	nw = VP_MIN(le32toh(raw->nwindows), VHP_MAX_WINDOWS);
	nr = VP_MIN(le32toh(raw->nregions), VHP_MAX_REGIONS);
	copy_words(raw->queues, st->queues, nq * sizeof(raw->queues[0]));
	copy_words(raw->windows, st->windows, nw * sizeof(raw->windows[0]));
	copy_words(raw->regions, st->regions, nr * sizeof(raw->regions[0]));
	/* The copy's loads stay before the second look; pairs with the daemon's store fence. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (load_gen(st) != g)
		return false;
	raw->generation = htole32(g);
	return true;
}

static int copy_state(struct port *p, struct vhp_abi_state *raw)
{
	const struct vhp_abi_state *st = (const void *)((const char *)p->ctrl + VHP_CTRL_STATE_OFF);
	uint64_t end = now_ms() + 100;
	int rc = -EAGAIN;

	guard_install();
	if (sigsetjmp(copy_env, 1)) {
		copy_armed = 0;
		return -ENODEV;
	}
	copy_armed = 1;
	do {
		if (copy_once(st, raw)) {
			rc = 0;
			break;
		}
	} while (now_ms() < end);
	copy_armed = 0;
	return rc;
}

static void decode(const struct vhp_abi_state *r, struct port_state *s)
{
	s->generation = le32toh(r->generation);
	s->flags = le32toh(r->flags);
	s->link_status = le32toh(r->link_status);
	s->link_reason = le32toh(r->link_reason);
	s->mode = le32toh(r->mode);
	s->epoch = le64toh(r->link_epoch);
	s->device_type = le32toh(r->device_type);
	s->max_queues = le32toh(r->max_queues);
	s->nqueues = le32toh(r->nqueues);
	s->nregions = le32toh(r->nregions);
	s->nwindows = le32toh(r->nwindows);
	s->config_size = le32toh(r->config_size);
	s->config_generation = le32toh(r->config_generation);
	s->regions_generation = le32toh(r->regions_generation);
	for (int i = 0; i < 2; i++) {
		s->features[i] = le64toh(r->features[i]);
		s->required[i] = le64toh(r->required_features[i]);
		s->offered[i] = le64toh(r->offered_features[i]);
	}
	memcpy(s->config, r->config, sizeof(s->config));
}

static void decode_tables(const struct vhp_abi_state *r, struct port_state *s)
{
	for (uint32_t i = 0; i < s->nqueues; i++) {
		const struct vhp_abi_queue *q = &r->queues[i];

		s->queues[i] = (struct port_queue){
			.desc = le64toh(q->desc_addr), .avail = le64toh(q->avail_addr),
			.used = le64toh(q->used_addr), .size = le32toh(q->size),
			.base = le32toh(q->base), .flags = le32toh(q->flags), .run = le32toh(q->run),
		};
	}
	for (uint32_t i = 0; i < s->nwindows; i++) {
		const struct vhp_abi_window *w = &r->windows[i];

		s->windows[i] = (struct port_win){
			.size = le64toh(w->size), .locator = le64toh(w->locator),
			.serial = le32toh(w->serial), .kind = le32toh(w->kind), .flags = le32toh(w->flags),
		};
	}
	for (uint32_t i = 0; i < s->nregions; i++) {
		const struct vhp_abi_region *g = &r->regions[i];

		s->regions[i] = (struct port_region){
			.addr = le64toh(g->addr), .size = le64toh(g->size), .offset = le64toh(g->offset),
			.window = le32toh(g->window), .flags = le32toh(g->flags),
		};
	}
}

static int check_regions(const struct port_state *s, struct vp_err *e)
{
	uint64_t last = 0;

	for (uint32_t i = 0; i < s->nwindows; i++) {
		const struct port_win *w = &s->windows[i];

		if (w->kind == VHP_WINDOW_NONE)
			continue;
		if (!w->size || w->size & 4095 || !w->serial)
			return vp_err_set(e, -EPROTO, "window %u has size %#llx and serial %u", i,
					  (unsigned long long)w->size, w->serial);
	}
	for (uint32_t i = 0; i < s->nregions; i++) {
		const struct port_region *g = &s->regions[i];
		uint64_t end;

		if (!g->size || vp_add_overflow(g->addr, g->size, &end))
			return vp_err_set(e, -EPROTO, "region %u is empty or wraps around", i);
		if (i && g->addr < last)
			return vp_err_set(e, -EPROTO, "region %u overlaps region %u or is out of order", i, i - 1);
		last = end;
		if (g->window >= s->nwindows || s->windows[g->window].kind == VHP_WINDOW_NONE)
			return vp_err_set(e, -EPROTO, "region %u names window %u, which is empty", i, g->window);
		if (!vp_range_inside(g->offset, g->size, 0, s->windows[g->window].size))
			return vp_err_set(e, -EPROTO, "region %u reaches beyond window %u", i, g->window);
	}
	return 0;
}

static int check_queues(const struct port_state *s, struct vp_err *e)
{
	for (uint32_t i = 0; i < s->nqueues; i++) {
		const struct port_queue *q = &s->queues[i];

		if (q->flags & VHP_QUEUE_STOP && !(q->flags & VHP_QUEUE_STARTED))
			return vp_err_set(e, -EPROTO, "queue %u is to stop but was not started", i);
		if (q->flags & VHP_QUEUE_STARTED && !q->run)
			return vp_err_set(e, -EPROTO, "queue %u is started as run 0", i);
	}
	return 0;
}

int port_read_state(struct port *p, struct port_state *s, struct vp_err *e)
{
	static struct vhp_abi_state raw;
	uint32_t version;
	int rc = copy_state(p, &raw);

	if (rc)
		return vp_err_set(e, rc, rc == -ENODEV ? "%s was unplugged" :
				  "%s: the state page is being changed without end", p->what);
	version = le32toh(raw.abi_version);
	decode(&raw, s);
	if (version != VHP_ABI_VERSION)
		return vp_err_set(e, -EPROTO, "the daemon speaks version %u.%u of the guest ABI, this agent %u.%u: "
				  "install the same release on both sides", VHP_ABI_VER_MAJOR(version),
				  VHP_ABI_VER_MINOR(version), VHP_ABI_MAJOR, VHP_ABI_MINOR);
	if (s->max_queues > VHP_MAX_QUEUES || s->max_queues > p->info.max_queues || s->nqueues > s->max_queues ||
	    s->nregions > VHP_MAX_REGIONS || s->nwindows > VHP_MAX_WINDOWS || s->config_size > VHP_CONFIG_MAX)
		return vp_err_set(e, -EPROTO, "counts over the limits: %u queues of %u, %u regions, %u windows, "
				  "%u bytes of configuration", s->nqueues, s->max_queues, s->nregions, s->nwindows,
				  s->config_size);
	decode_tables(&raw, s);
	rc = check_regions(s, e);
	return rc ? rc : check_queues(s, e);
}

int port_command(struct port *p, uint32_t opcode, const uint64_t args[4], unsigned int timeout_ms,
		 uint64_t value[6])
{
	struct vhp_ioc_command c = { .opcode = opcode, .timeout_ms = timeout_ms };
	int rc;

	memcpy(c.args, args, 4 * sizeof(args[0]));
	rc = p->ops->command(p, &c);
	if (rc)
		return rc;
	if (value)
		for (int i = 0; i < 6; i++)
			value[i] = c.value[i];
	return (int)(c.status & 0x7fffffff);
}

void port_close(struct port *p)
{
	if (p)
		p->ops->close(p);
}

const char *port_reason_name(uint32_t reason)
{
	static const char *const names[] = {
		"none", "no link is configured for this port", "not attached", "the driver VM is not there",
		"the driver VM's driver does not run", "a window is missing or being plugged",
		"features", "policy", "taken down by the administrator", "the guest did not answer in time",
		"the driver VM's front-end broke the protocol", "the daemon goes away or restarts",
		"more regions, windows or queues than the ABI carries",
	};
	static char buf[24];

	if (reason < VP_ARRAY_SIZE(names))
		return names[reason];
	snprintf(buf, sizeof(buf), "reason %u", reason);
	return buf;
}

const char *port_status_name(uint32_t status)
{
	static const char *const names[] = {
		"ok", "unknown command", "invalid argument", "version", "features", "device type",
		"not attached", "stale", "policy", "limit",
	};

	return status < VP_ARRAY_SIZE(names) ? names[status] : "unknown status";
}

const char *port_mode_name(uint32_t mode)
{
	static const char *const names[] = { "none", "fast", "grant", "copy" };

	return mode < VP_ARRAY_SIZE(names) ? names[mode] : "unknown";
}
