/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the guest can write every byte of the control block at any time. Nothing
 * is ever read back from it but the command (ctrl.c, one copy); the page is
 * written from a private copy, and only where that has changed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "port/priv.h"
#include "port/record.h"

static void put_header(struct vp_port *p)
{
	struct vhp_abi_header h = {
		.abi_version = htole32(VHP_ABI_VERSION),
		.header_size = htole32(sizeof(h)),
		.state_offset = htole32(VHP_CTRL_STATE_OFF),
		.state_size = htole32(VHP_CTRL_STATE_SIZE),
		.command_offset = htole32(VHP_CTRL_COMMAND_OFF),
		.command_size = htole32(VHP_CTRL_COMMAND_SIZE),
		.pool_offset = htole64(p->conf.pool_size ? VHP_CTRL_POOL_OFF : 0),
		.pool_size = htole64(p->conf.pool_size),
		.attachment = htole32(p->conf.attachment),
		.max_queues = htole32(p->conf.max_queues),
		.nsignals = htole32(p->conf.nsignals),
		.doorbell = htole32(p->conf.doorbell),
	};

	memcpy(h.name, p->conf.name, sizeof(h.name));
	vp_copy_out(p->ctrl.mem.p, &h, sizeof(h));
	/*
	 * The magic last: who finds it finds the rest. Pairs with the guest's read barrier behind its look at the
	 * magic.
	 */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	vp_st64(p->ctrl.mem.p, 0, VHP_MAGIC_LE64);
}

/*
 * The last process's page is a torn read to the guest until the first commit, which finds it blank, as put_changes()
 * expects.
 */
static void blank_state(struct vp_port *p)
{
	port_ctrl_begin(&p->ctrl, p->generation);
	for (size_t i = 8; i < sizeof(p->st); i += 8)
		port_ctrl_put64(&p->ctrl, i, 0);
}

int port_page_make(struct vp_port *p, struct vp_err *e)
{
	char name[64];
	uint64_t size = VHP_CTRL_SIZE;
	int r;

	if (p->conf.pool_size)
		size = VHP_CTRL_POOL_OFF + vp_align_up(p->conf.pool_size, 4096);
	if (p->conf.pow2)
		while (!vp_is_pow2(size))
			size += size & -size;
	p->mem_size = size;
	/* seccomp control: memfd_create ftruncate fcntl */
	/* Else made, and sealed, by these lines in an earlier process. */
	if (!p->conf.kept) {
		snprintf(name, sizeof(name), "vhost-pci:%.31s", p->conf.name);
		p->memfd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (p->memfd < 0)
			return vp_err_set(e, -errno, "control memory: %m");
		/* The guest's VMM has this fd: it must not be able to take the pages away from us. */
		if (ftruncate(p->memfd, (off_t)size) < 0 ||
		    fcntl(p->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
			return vp_err_set(e, -errno, "control memory of %llu bytes: %m", (unsigned long long)size);
	}
	r = port_ctrl_map(&p->ctrl, p->memfd);
	if (r)
		return vp_err_set(e, r, "control memory cannot be mapped: %s", strerror(-r));
	r = port_record_make(p, e);
	if (r)
		return r;
	if (p->silent)
		return 0;
	if (p->conf.kept)
		blank_state(p);
	p->st.abi_version = htole32(VHP_ABI_VERSION);
	port_ctrl_put32(&p->ctrl, offsetof(struct vhp_abi_state, abi_version), VHP_ABI_VERSION);
	put_header(p);
	return 0;
}

void port_page_free(struct vp_port *p)
{
	port_ctrl_unmap(&p->ctrl);
	vp_close(&p->memfd);
	port_record_free(p);
}

void port_touch_regions(struct vp_port *p)
{
	if (p->regions_dirty)
		return;
	p->regions_dirty = true;
	p->st.regions_generation = htole32(le32toh(p->st.regions_generation) + 1);
}

#define EXTENTS 4u

struct extent {
	size_t from, to;
};

/* What of the page is ever written. */
static void extents(const struct vp_port *p, struct extent x[EXTENTS])
{
	/* Word 0 is generation and abi_version, which are not written here. */
	x[0] = (struct extent){ 8, offsetof(struct vhp_abi_state, reserved2) };
	x[1] = (struct extent){ offsetof(struct vhp_abi_state, queues),
				offsetof(struct vhp_abi_state, queues[p->conf.max_queues]) };
	x[2] = (struct extent){ offsetof(struct vhp_abi_state, windows),
				offsetof(struct vhp_abi_state, windows[p->used_windows]) };
	x[3] = (struct extent){ offsetof(struct vhp_abi_state, regions),
				offsetof(struct vhp_abi_state, regions[p->used_regions]) };
}

bool port_page_used(const struct vp_port *p, size_t at, size_t len)
{
	struct extent x[EXTENTS];

	extents(p, x);
	for (unsigned i = 0; i < EXTENTS; i++)
		if (at < x[i].to && x[i].from < at + len)
			return true;
	return false;
}

static bool has_changed(const struct vp_port *p)
{
	struct extent x[EXTENTS];

	extents(p, x);
	for (unsigned i = 0; i < EXTENTS; i++)
		if (memcmp((const char *)&p->st + x[i].from, (const char *)&p->pub + x[i].from, x[i].to - x[i].from))
			return true;
	return false;
}

static void put_changes(struct vp_port *p)
{
	const uint64_t *want = (const uint64_t *)&p->st;
	uint64_t *have = (uint64_t *)&p->pub;
	struct extent x[EXTENTS];

	extents(p, x);
	for (unsigned e = 0; e < EXTENTS; e++) {
		for (size_t i = x[e].from / 8; i < x[e].to / 8; i++) {
			if (want[i] == have[i])
				continue;
			have[i] = want[i];
			port_ctrl_put64(&p->ctrl, 8 * i, le64toh(want[i]));
		}
	}
}

void port_begin_untold(struct vp_port *p)
{
	p->depth++;
}

static void tell(struct vp_port *p)
{
	if (p->ops->touch)
		p->ops->touch(p->ctx);
}

void vp_port_begin(struct vp_port *p)
{
	if (!p->depth++)
		tell(p);
}

static void publish(struct vp_port *p)
{
	p->regions_dirty = false;
	if (p->gone || p->silent)
		return;
	if (!p->touched && !has_changed(p))
		return;
	p->touched = false;
	p->n_updates++;
	port_record_save(p);
	p->generation += 2;
	port_ctrl_begin(&p->ctrl, p->generation);
	put_changes(p);
	port_ctrl_commit(&p->ctrl);
	if (p->online && p->aops)
		p->aops->signal(p->att, 0);
}

void port_page_again(struct vp_port *p)
{
	p->generation = (VP_MAX(p->generation, p->record->generation) + 3) & ~1u;
	blank_state(p);
	memset((char *)&p->pub + 8, 0, sizeof(p->pub) - 8);
	p->touched = true;
	publish(p);
}

void vp_port_touch(struct vp_port *p)
{
	if (!p->depth)
		tell(p);
	p->touched = true;
	/* Not by a commit: whoever hears of that asks the attachment again, which is what calls this. */
	if (!p->depth)
		publish(p);
}

void vp_port_commit(struct vp_port *p)
{
	if (--p->depth)
		return;
	publish(p);
	if (p->ops->changed)
		p->ops->changed(p->ctx);
}
