/* SPDX-License-Identifier: BSD-3-Clause */
#include "statepage/state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define READ_TIMEOUT_NS 100000000u

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int vp_state_header_check(const void *ctrl, struct vp_err *e)
{
	struct vhp_abi_header h;

	memcpy(&h, ctrl, sizeof(h));
	if (memcmp(h.magic, VHP_MAGIC, sizeof(h.magic)))
		return vp_err_set(e, -ENODEV, "no vhost-pci port here: the control block does not start with %s",
				  VHP_MAGIC);
	if (le32toh(h.abi_version) != VHP_ABI_VERSION)
		return vp_err_set(
			e, -EPROTO,
			"the daemon speaks vhost-pci ABI %u.%u, this program %u.%u: install matching versions",
			VHP_ABI_VER_MAJOR(le32toh(h.abi_version)), VHP_ABI_VER_MINOR(le32toh(h.abi_version)),
			VHP_ABI_MAJOR, VHP_ABI_MINOR);
	if (le32toh(h.state_offset) != VHP_CTRL_STATE_OFF || le32toh(h.state_size) != VHP_CTRL_STATE_SIZE ||
	    le32toh(h.header_size) != sizeof(h) || le32toh(h.command_offset) != VHP_CTRL_COMMAND_OFF ||
	    le32toh(h.command_size) != VHP_CTRL_COMMAND_SIZE || !h.max_queues ||
	    (h.pool_size && le64toh(h.pool_offset) != VHP_CTRL_POOL_OFF) ||
	    le32toh(h.max_queues) > VHP_MAX_QUEUES || le32toh(h.nsignals) < 1 + le32toh(h.max_queues))
		return vp_err_set(e, -EPROTO, "the port's header is not laid out as ABI %u.%u says", VHP_ABI_MAJOR,
				  VHP_ABI_MINOR);
	return 0;
}

/* Clamps what is only used as a loop bound here; vp_state_read() rejects it afterwards. */
static void copy_state(const struct vhp_abi_state *p, struct vp_state *o)
{
	unsigned i;

	o->abi_version = le32toh(p->abi_version);
	o->flags = le32toh(p->flags);
	o->link_status = le32toh(p->link_status);
	o->link_reason = le32toh(p->link_reason);
	o->mode = le32toh(p->mode);
	o->link_epoch = le64toh(p->link_epoch);
	o->device_type = le32toh(p->device_type);
	o->max_queues = le32toh(p->max_queues);
	o->nqueues = le32toh(p->nqueues);
	o->nregions = le32toh(p->nregions);
	o->nwindows = le32toh(p->nwindows);
	o->config_size = le32toh(p->config_size);
	o->config_generation = le32toh(p->config_generation);
	o->regions_generation = le32toh(p->regions_generation);
	for (i = 0; i < 2; i++) {
		o->features[i] = le64toh(p->features[i]);
		o->required_features[i] = le64toh(p->required_features[i]);
		o->offered_features[i] = le64toh(p->offered_features[i]);
	}
	o->answer_seq = le32toh(p->answer.seq);
	o->answer_opcode = le32toh(p->answer.opcode);
	o->answer_status = le32toh(p->answer.status);
	for (i = 0; i < VP_ARRAY_SIZE(o->answer_value); i++)
		o->answer_value[i] = le64toh(p->answer.value[i]);
	memcpy(o->config, p->config, sizeof(o->config));
	o->set_generation = le32toh(p->set_generation);
	o->set_offset = le32toh(p->set_offset);
	o->set_size = le32toh(p->set_size);
	o->inflight_queues = le32toh(p->inflight_queues);
	o->inflight_entries = le32toh(p->inflight_entries);
	memcpy(o->set_config, p->set_config, sizeof(o->set_config));
	for (i = 0; i < VP_MIN(o->nqueues, VHP_MAX_QUEUES); i++) {
		const struct vhp_abi_queue *q = &p->queues[i];

		o->queues[i] = (struct vp_state_queue){
			.desc = le64toh(q->desc_addr),
			.avail = le64toh(q->avail_addr),
			.used = le64toh(q->used_addr),
			.size = le32toh(q->size),
			.base = le32toh(q->base),
			.flags = le32toh(q->flags),
			.run = le32toh(q->run),
			.kick_signal = le32toh(q->kick_signal),
			.doorbell = le32toh(q->doorbell),
		};
	}
	for (i = 0; i < VP_MIN(o->nwindows, VHP_MAX_WINDOWS); i++) {
		const struct vhp_abi_window *w = &p->windows[i];

		o->windows[i] = (struct vp_state_window){
			.size = le64toh(w->size), .locator = le64toh(w->locator), .serial = le32toh(w->serial),
			.kind = le32toh(w->kind), .flags = le32toh(w->flags),
		};
	}
	for (i = 0; i < VP_MIN(o->nregions, VHP_MAX_REGIONS); i++) {
		const struct vhp_abi_region *r = &p->regions[i];

		o->regions[i] = (struct vp_state_region){
			.addr = le64toh(r->addr), .size = le64toh(r->size), .offset = le64toh(r->offset),
			.window = le32toh(r->window), .flags = le32toh(r->flags),
		};
	}
}

static int check_queues(const struct vp_state *s, struct vp_err *e)
{
	unsigned i;

	for (i = 0; i < s->nqueues; i++) {
		const struct vp_state_queue *q = &s->queues[i];

		/*
		 * Size and addresses come from the driver VM: they are checked where the ring is set up, and break only
		 * that.
		 */
		if (q->flags & VHP_QUEUE_STOP && !(q->flags & VHP_QUEUE_STARTED))
			return vp_err_set(e, -EPROTO, "state page: queue %u is to stop but was not started", i);
		if (q->flags & VHP_QUEUE_STARTED && !q->run)
			return vp_err_set(e, -EPROTO, "state page: queue %u is started as run 0", i);
	}
	return 0;
}

static int check_regions(const struct vp_state *s, struct vp_err *e)
{
	unsigned i;

	for (i = 0; i < s->nwindows; i++) {
		const struct vp_state_window *w = &s->windows[i];

		if (w->kind != VHP_WINDOW_NONE && (!w->size || w->size & 4095 || !w->serial))
			return vp_err_set(e, -EPROTO, "state page: window %u has size 0x%llx and serial %u", i,
					  (unsigned long long)w->size, w->serial);
	}
	for (i = 0; i < s->nregions; i++) {
		const struct vp_state_region *r = &s->regions[i];
		uint64_t end;

		if (!r->size || vp_add_overflow(r->addr, r->size, &end))
			return vp_err_set(e, -EPROTO, "state page: region %u at 0x%llx is empty or wraps around", i,
					  (unsigned long long)r->addr);
		if (r->window >= s->nwindows || s->windows[r->window].kind == VHP_WINDOW_NONE)
			return vp_err_set(e, -EPROTO, "state page: region %u lies in window %u, which is not there", i,
					  r->window);
		if (!vp_range_inside(r->offset, r->size, 0, s->windows[r->window].size))
			return vp_err_set(e, -EPROTO, "state page: region %u leaves its window %u", i, r->window);
		if (i && r->addr - s->regions[i - 1].addr < s->regions[i - 1].size)
			return vp_err_set(e, -EPROTO, "state page: regions %u and %u overlap", i - 1, i);
		if (i && r->addr < s->regions[i - 1].addr)
			return vp_err_set(e, -EPROTO, "state page: regions %u and %u are not sorted", i - 1, i);
	}
	return 0;
}

int vp_state_read(const void *ctrl, struct vp_state *out, struct vp_err *e)
{
	const struct vhp_abi_state *p = &((const struct vhp_abi_control *)ctrl)->state;
	uint64_t until = 0;
	uint32_t g;
	int ret;

	for (;;) {
		/* Pairs with the daemon's release of the even value. */
		g = le32toh(__atomic_load_n(&p->generation, __ATOMIC_ACQUIRE));
		if (!(g & 1)) {
			copy_state(p, out);
			/* The copy before the second look. Pairs with the daemon's fence behind the odd value. */
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			if (le32toh(__atomic_load_n(&p->generation, __ATOMIC_RELAXED)) == g)
				break;
		}
		if (!until)
			until = now_ns() + READ_TIMEOUT_NS;
		else if (now_ns() > until)
			return vp_err_set(e, -EAGAIN,
					  "the daemon has been writing the state page for more than 100 ms");
	}
	out->generation = g;
	if (out->abi_version != VHP_ABI_VERSION)
		ret = vp_err_set(e, -EPROTO,
				 "the daemon speaks vhost-pci ABI %u.%u, this program %u.%u: install matching versions",
				 VHP_ABI_VER_MAJOR(out->abi_version), VHP_ABI_VER_MINOR(out->abi_version),
				 VHP_ABI_MAJOR, VHP_ABI_MINOR);
	else if (out->max_queues > VHP_MAX_QUEUES || out->nqueues > out->max_queues ||
		 out->nwindows > VHP_MAX_WINDOWS || out->nregions > VHP_MAX_REGIONS ||
		 out->config_size > VHP_CONFIG_MAX || out->set_size > VHP_CONFIG_MAX ||
		 out->set_offset > VHP_CONFIG_MAX - out->set_size)
		ret = vp_err_set(e, -EPROTO,
				 "state page: %u queues of %u, %u windows, %u regions, %u bytes of config space are "
				 "beyond the limits",
				 out->nqueues, out->max_queues, out->nwindows, out->nregions, out->config_size);
	else
		ret = check_queues(out, e);
	if (!ret)
		ret = check_regions(out, e);
	if (ret) {
		out->link_status = VHP_LINK_DOWN;
		out->nqueues = out->nwindows = out->nregions = out->config_size = 0;
	}
	return ret;
}

const struct vp_state_region *vp_state_region_find(const struct vp_state *s, uint64_t addr,
						 uint64_t len, uint32_t need, uint64_t *offset)
{
	unsigned lo = 0, hi = s->nregions;
	const struct vp_state_region *r;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (s->regions[mid].addr <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo)
		return NULL;
	r = &s->regions[lo - 1];
	if (!vp_range_inside(addr, len, r->addr, r->size) || (r->flags & need) != need)
		return NULL;
	*offset = r->offset + (addr - r->addr);
	return r;
}

const char *vp_state_reason_str(uint32_t reason)
{
	static const char *const str[] = {
		[VHP_REASON_NONE] = "none",
		[VHP_REASON_NO_LINK] = "no link configured for this port",
		[VHP_REASON_NOT_ATTACHED] = "no data path attached",
		[VHP_REASON_NO_DRIVER] = "the driver VM is not there",
		[VHP_REASON_NOT_READY] = "the driver VM's driver does not run",
		[VHP_REASON_WINDOW] = "a window is missing",
		[VHP_REASON_FEATURES] = "the data path lacks features",
		[VHP_REASON_POLICY] = "refused by policy",
		[VHP_REASON_ADMIN] = "taken down by the administrator",
		[VHP_REASON_TIMEOUT] = "this guest did not answer in time",
		[VHP_REASON_PROTOCOL] = "the driver VM's front-end broke the protocol",
		[VHP_REASON_DAEMON] = "the daemon is going away",
		[VHP_REASON_LIMIT] = "more regions, windows or queues than the ABI carries",
		[VHP_REASON_PROFILE] = "what the back-end has is not known, or does not fit the link's profile",
		[VHP_REASON_GRANT] = "the driver VM has granted nothing",
	};

	static __thread char number[24];

	if (reason < VP_ARRAY_SIZE(str))
		return str[reason];
	snprintf(number, sizeof(number), "reason %u", reason);
	return number;
}

const char *vp_state_mode_str(uint32_t mode)
{
	static const char *const str[] = { "none", "fast", "grant", "copy" };

	return mode < VP_ARRAY_SIZE(str) ? str[mode] : "unknown";
}

const char *vp_state_status_str(uint32_t status)
{
	static const char *const str[] = {
		[VHP_ST_OK] = "ok", [VHP_ST_UNKNOWN] = "unknown command", [VHP_ST_INVALID] = "argument out of range",
		[VHP_ST_VERSION] = "ABI version not served", [VHP_ST_FEATURES] = "required features are missing",
		[VHP_ST_DEVICE_TYPE] = "the link serves another device type",
		[VHP_ST_NOT_ATTACHED] = "not attached", [VHP_ST_STALE] = "names a run that is over",
		[VHP_ST_POLICY] = "refused by policy", [VHP_ST_LIMIT] = "too many or too often",
		[VHP_ST_PROFILE] = "does not fit the link's profile",
		[VHP_ST_REFUSED] = "the driver VM does not give that memory",
	};

	return status < VP_ARRAY_SIZE(str) ? str[status] : "unknown";
}
