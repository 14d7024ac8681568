/* SPDX-License-Identifier: BSD-3-Clause */
/* What the guest asks of its port: the command page. Threat model: port.c. */
#include "port/port.h"

#include <endian.h>
#include <linux/virtio_config.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "port/priv.h"

static uint64_t arg(const struct vp_port *p, unsigned i)
{
	return le64toh(p->cmd.args[i]);
}

static void answer(struct vp_port *p, uint32_t status, uint64_t v0, uint64_t v1)
{
	struct vhp_abi_answer *a = &p->st.answer;

	memset(a, 0, sizeof(*a));
	a->seq = p->cmd.seq;
	a->opcode = p->cmd.opcode;
	a->status = htole32(status);
	a->value[0] = htole64(v0);
	a->value[1] = htole64(v1);
	p->answered = le32toh(p->cmd.seq);
	p->busy = false;
	p->n_refused += status != VHP_ST_OK;
}

static void attach(struct vp_port *p)
{
	uint32_t abi = (uint32_t)arg(p, VHP_ATTACH_ABI);
	uint64_t f0 = arg(p, VHP_ATTACH_FEATURES0), f1 = arg(p, VHP_ATTACH_FEATURES1);
	uint64_t type = arg(p, VHP_ATTACH_TYPE);

	/* Major 0: the minor has to be the same as well. */
	if (abi != VHP_ABI_VERSION) {
		answer(p, VHP_ST_VERSION, VHP_ABI_VERSION, 0);
		return;
	}
	if (type && type != p->device_type) {
		answer(p, VHP_ST_DEVICE_TYPE, p->device_type, 0);
		return;
	}
	if (p->hold & VP_PORT_HOLD_POLICY) {
		answer(p, VHP_ST_POLICY, 0, 0);
		return;
	}
	if (p->hold & VP_PORT_HOLD_PROFILE) {
		answer(p, VHP_ST_PROFILE, 0, 0);
		return;
	}
	p->cut = false;
	p->bad_features = p->required & ~f0;
	if (p->bad_features) {
		vp_log(VP_LOG_NOTICE,
		       "port %.32s: the data path lacks required features 0x%llx; narrow the link's profile",
		       p->conf.name, (unsigned long long)(p->required & ~f0));
		answer(p, VHP_ST_FEATURES, p->required & ~f0, 0);
		return;
	}
	p->path[0] = f0;
	p->path[1] = f1;
	p->keeps = arg(p, VHP_ATTACH_FLAGS) & VHP_ATTACH_F_INFLIGHT;
	p->attached = true;
	memset(p->told_counts, 0, sizeof(p->told_counts));
	p->n_attaches++;
	answer(p, VHP_ST_OK, 0, 0);
}

void port_command_done(struct vp_port *p)
{
	if (le32toh(p->cmd.opcode) == VHP_CMD_ATTACH) {
		attach(p);
		p->again = true;
		if (!p->updating)
			port_evaluate(p);
	} else {
		answer(p, VHP_ST_OK, 0, 0);
	}
	port_show_status(p);
}

/* DETACH, or an ATTACH that replaces the data path: all has to be withdrawn before the rest. */
static void detach_then(struct vp_port *p)
{
	port_detach(p);
	/*
	 * Only now: the owner, told that the link is down, may have had everything evaluated with the windows still
	 * there.
	 */
	p->busy = true;
	p->busy_deadline = p->conf.slow_take ? port_now(p) + PORT_TAKE_MAX_US : 0;
	port_evaluate(p);  /* finishes the command when nothing has to be waited for */
}

static void queue_stopped(struct vp_port *p)
{
	uint64_t q = arg(p, VHP_STOPPED_QUEUE), run = arg(p, VHP_STOPPED_RUN), base = arg(p, VHP_STOPPED_BASE);
	uint64_t flags = arg(p, VHP_STOPPED_FLAGS);
	struct vp_port_stop s = { .base = (uint32_t)base, .broken = flags & VHP_STOPPED_F_BROKEN };
	uint32_t size;

	if (!p->attached) {
		answer(p, VHP_ST_NOT_ATTACHED, 0, 0);
		return;
	}
	if (q >= p->nqueues || flags & ~(VHP_STOPPED_F_BROKEN | VHP_STOPPED_F_NO_BASE | VHP_STOPPED_F_REFUSED)) {
		answer(p, VHP_ST_INVALID, 0, 0);
		return;
	}
	if (!p->q[q].running || run != p->q[q].run) {
		answer(p, VHP_ST_STALE, 0, 0);
		return;
	}
	s.base_known = !(flags & VHP_STOPPED_F_NO_BASE) && (!s.broken || flags & VHP_STOPPED_F_REFUSED);
	size = le32toh(port_queue_entry(p, (unsigned)q)->size);
	if (s.base_known &&
	    (p->features & VP_BIT(VIRTIO_F_RING_PACKED) ?
		     base >> 32 || (base & 0x7fff) >= size || (base >> 16 & 0x7fff) >= size : base >> 16)) {
		answer(p, VHP_ST_INVALID, 0, 0);
		return;
	}
	port_end_run(p, (unsigned)q, &s);
	answer(p, VHP_ST_OK, 0, 0);
}

static void sync_regions(struct vp_port *p)
{
	uint32_t gen = (uint32_t)arg(p, VHP_SYNC_REGIONS);

	/* Of the future: a guest that made it up. */
	if ((int32_t)(le32toh(p->st.regions_generation) - gen) < 0) {
		answer(p, VHP_ST_INVALID, 0, 0);
		return;
	}
	port_windows_sync(p, gen);
	answer(p, VHP_ST_OK, 0, 0);
	if (port_let_go(p, &gen) && p->ops->released)
		p->ops->released(p->ctx);
	port_evaluate(p);
}

/* In parts, from the start on; a part at 0 begins anew. */
static void tell_config(struct vp_port *p)
{
	uint64_t off = arg(p, VHP_CONFIG_OFFSET), size = arg(p, VHP_CONFIG_SIZE);

	if (!off)
		p->n_told = 0;
	if (off != p->n_told || !size || size > VHP_CONFIG_PART || off + size > VHP_CONFIG_MAX) {
		answer(p, VHP_ST_INVALID, 0, 0);
		return;
	}
	memcpy(p->told + off, &p->cmd.args[VHP_CONFIG_DATA], size);
	p->n_told = (uint32_t)(off + size);
	answer(p, VHP_ST_OK, 0, 0);
}

static void tell_backend(struct vp_port *p)
{
	struct vp_port_backend b = {
		.features = arg(p, VHP_BACKEND_FEATURES0), .queues = (uint32_t)arg(p, VHP_BACKEND_QUEUES),
		.config_size = (uint32_t)arg(p, VHP_BACKEND_CONFIG), .config = p->told,
	};
	uint64_t type = arg(p, VHP_BACKEND_TYPE), missing = 0;
	uint32_t status;

	if (type && type != p->device_type) {
		answer(p, VHP_ST_DEVICE_TYPE, p->device_type, 0);
		return;
	}
	if (arg(p, VHP_BACKEND_QUEUES) > UINT16_MAX || arg(p, VHP_BACKEND_CONFIG) > p->n_told) {
		answer(p, VHP_ST_INVALID, 0, 0);
		return;
	}
	status = p->ops->backend ? p->ops->backend(p->ctx, &b, &missing) : VHP_ST_OK;
	answer(p, status, missing, 0);
	port_evaluate(p);
}

/* Any number may come. One that shrinks has begun anew; a sum stays one that JSON has. */
static void counters(struct vp_port *p)
{
	if (!p->attached) {
		answer(p, VHP_ST_NOT_ATTACHED, 0, 0);
		return;
	}
	for (unsigned i = 0; i < VHP_COUNTS; i++) {
		uint64_t now = arg(p, i), more = now >= p->told_counts[i] ? now - p->told_counts[i] : now;

		p->counted[i] += VP_MIN(more, INT64_MAX - p->counted[i]);
		p->told_counts[i] = now;
	}
	p->has_counted = true;
	answer(p, VHP_ST_OK, 0, 0);
}

static bool range_ok(const struct vp_port *p, uint64_t *end)
{
	return arg(p, VHP_MAP_SIZE) && !vp_add_overflow(arg(p, VHP_MAP_ADDR), arg(p, VHP_MAP_SIZE) - 1, end);
}

static void map(struct vp_port *p)
{
	uint64_t addr = arg(p, VHP_MAP_ADDR), size = arg(p, VHP_MAP_SIZE), access = arg(p, VHP_MAP_ACCESS), end;
	uint32_t status = VHP_ST_REFUSED;
	bool covered = false;

	if (!p->attached)
		status = VHP_ST_NOT_ATTACHED;
	else if (!range_ok(p, &end) || !access || access & ~(uint64_t)(VHP_REGION_READ | VHP_REGION_WRITE))
		status = VHP_ST_INVALID;
	else if (size > VHP_MAP_MAX)
		status = VHP_ST_LIMIT;
	else if (p->maps && p->up)
		status = p->ops->map(p->ctx, addr, size, &covered);
	else if (p->maps)
		status = VHP_ST_LIMIT;  /* the link comes up first, which is a change */
	answer(p, status, covered, 0);
}

static void unmap(struct vp_port *p)
{
	uint64_t end;

	if (!p->attached) {
		answer(p, VHP_ST_NOT_ATTACHED, 0, 0);
	} else if (!range_ok(p, &end)) {
		answer(p, VHP_ST_INVALID, 0, 0);
	} else {
		if (p->maps && p->ops->unmap)
			p->ops->unmap(p->ctx, arg(p, VHP_MAP_ADDR), arg(p, VHP_MAP_SIZE));
		answer(p, VHP_ST_OK, 0, 0);
	}
}

static void execute(struct vp_port *p)
{
	p->n_commands++;
	switch (le32toh(p->cmd.opcode)) {
	case VHP_CMD_ATTACH:
		if (p->attached) {
			detach_then(p);
		} else {
			attach(p);
			port_evaluate(p);
		}
		break;
	case VHP_CMD_DETACH:
		p->cut = p->bad_features = false;
		detach_then(p);
		break;
	case VHP_CMD_QUEUE_STOPPED:
		queue_stopped(p);
		break;
	case VHP_CMD_SYNC:
		sync_regions(p);
		break;
	case VHP_CMD_MAP:
		map(p);
		break;
	case VHP_CMD_UNMAP:
		unmap(p);
		break;
	case VHP_CMD_CONFIG:
		tell_config(p);
		break;
	case VHP_CMD_BACKEND:
		tell_backend(p);
		break;
	case VHP_CMD_COUNTERS:
		counters(p);
		break;
	default:
		answer(p, VHP_ST_UNKNOWN, 0, 0);
	}
}

void vp_port_command(struct vp_port *p)
{
	if (!p->online || p->busy || !port_ctrl_command(&p->ctrl, p->answered, &p->cmd))
		return;
	/* COUNTERS comes every second, and nothing is wrong with doing it twice. */
	if (le32toh(p->cmd.opcode) == VHP_CMD_COUNTERS && !p->falling)
		port_begin_untold(p);
	else
		vp_port_begin(p);
	/* Who attaches, or detaches, has let go of what it had. */
	if (le32toh(p->cmd.opcode) == VHP_CMD_ATTACH || le32toh(p->cmd.opcode) == VHP_CMD_DETACH)
		port_settle(p);
	execute(p);
	if (p->falling)
		port_evaluate(p);
	port_show_status(p);
	vp_port_commit(p);
}
