/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The session with a vhost-user back-end on the host: what it is told of features, memory and rings before and while
 * its queues run. See hostdev_session.c.
 */
#include "attach/hostdev_priv.h"

#include <linux/virtio_net.h>
#include <stdio.h>

enum { START_NUM, START_BASE, START_ADDR, START_CALL, START_KICK };
enum { SETUP_FEATURES, SETUP_INFLIGHT, SETUP_MEMORY, SETUP_MTU, SETUP_DONE };

uint32_t hostdev_queue_flags(const struct hostdev *h, unsigned q)
{
	return q < le32toh(page(h)->nqueues) ? le32toh(page(h)->queues[q].flags) : 0;
}

bool hostdev_current(const struct hostdev *h, unsigned q)
{
	return hostdev_queue_flags(h, q) & VHP_QUEUE_STARTED && le32toh(page(h)->queues[q].run) == h->s.q[q].run;
}

bool hostdev_runs(const struct hostdev *h)
{
	for (unsigned q = 0; q < h->n; q++)
		if (h->s.q[q].running)
			return true;
	return false;
}

/*
 * The driver VM's memory, region by region. DPDK keeps the mapping that it has when a new table has the same addresses
 * and sizes, so each window has user addresses of its own.
 */
static bool send_guest_memory(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);
	struct vu_msg m = { .hdr.request = VU_SET_MEM_TABLE };
	int fds[VU_MAX_TABLE_REGIONS];
	unsigned n = 0;
	char why[140];

	h->s.mem_seen = le32toh(st->regions_generation);
	for (unsigned i = 0; i < le32toh(st->nregions); i++) {
		const struct vhp_abi_region *r = &st->regions[i];
		uint32_t slot = le32toh(r->window);

		if (le32toh(r->flags) & VHP_REGION_INFLIGHT)
			continue;
		if (n == VU_MAX_TABLE_REGIONS || h->win[slot].fd < 0) {
			snprintf(why, sizeof(why),
				 "the driver VM's memory has more than %u regions; give that VM its memory in fewer "
				 "pieces",
				 VU_MAX_TABLE_REGIONS);
			hostdev_drop(h, true, n == VU_MAX_TABLE_REGIONS ? why : "a window is missing");
			return false;
		}
		fds[n] = h->win[slot].fd;
		m.p.mem.regions[n++] = (struct vu_mem_region){
			.gpa = le64toh(r->addr), .uva = h->win[slot].uva + le64toh(r->offset), .size = le64toh(r->size),
			.mmap_offset = h->win[slot].offset + le64toh(r->offset),
		};
	}
	m.p.mem.nregions = n;
	m.hdr.size = 8 + n * (uint32_t)sizeof(m.p.mem.regions[0]);
	return hostdev_send_fds(h, &m, fds, n);
}

/*
 * Where it keeps the account of open requests: what is open there it gives to itself again. True: nothing to send, too.
 */
static bool send_inflight(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);
	struct vu_msg m = { .hdr = { .request = VU_SET_INFLIGHT_FD, .size = sizeof(m.p.inflight) } };

	for (unsigned i = 0; has_pf(h, VU_PF_INFLIGHT_SHMFD) && i < le32toh(st->nregions); i++) {
		const struct vhp_abi_region *r = &st->regions[i];
		const struct hostdev_window *w = &h->win[le32toh(r->window)];

		if (!(le32toh(r->flags) & VHP_REGION_INFLIGHT) || w->fd < 0)
			continue;
		m.p.inflight = (struct vu_inflight){
			.mmap_size = le64toh(r->size),
			.mmap_offset = w->offset + le64toh(r->offset),
			.num_queues = (uint16_t)le32toh(st->inflight_queues),
			.queue_size = (uint16_t)le32toh(st->inflight_entries),
		};
		return hostdev_send(h, &m, &w->fd);
	}
	return true;
}

/* The pool: one file, whose regions follow each other. */
static bool send_memory(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);
	const struct vhp_abi_region *r = st->regions;
	struct vu_msg m = { .hdr = { .request = VU_SET_MEM_TABLE, .size = 8 + sizeof(m.p.mem.regions[0]) },
			    .p.mem.nregions = 1 };
	struct vu_mem_region *mr = &m.p.mem.regions[0];
	uint32_t n = le32toh(st->nregions), slot = n ? le32toh(r[0].window) : VHP_MAX_WINDOWS;

	if (slot >= VHP_MAX_WINDOWS || h->win[slot].fd < 0) {
		hostdev_drop(h, true, "there is no pool to give it");
		return false;
	}
	mr->gpa = mr->uva = le64toh(r[0].addr);
	mr->mmap_offset = h->win[slot].offset + le64toh(r[0].offset);
	for (unsigned i = 0; i < n; i++)
		mr->size += le64toh(r[i].size);
	return hostdev_send(h, &m, &h->win[slot].fd);
}

bool hostdev_step_setup(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);
	struct hostdev_session *s = &h->s;
	uint64_t f = le64toh(st->features[0]), epoch = le64toh(st->link_epoch);
	unsigned mtu = st->config[10] | st->config[11] << 8;

	if (s->set_up && (s->features != f || s->epoch != epoch)) {
		if (hostdev_runs(h))
			return false;
		s->set_up = false;
		s->setup = SETUP_FEATURES;
	}
	if (s->set_up)
		return false;
	switch (s->setup++) {
	case SETUP_FEATURES:
		s->features = f;
		s->epoch = epoch;
		return hostdev_send_u64(h, VU_SET_FEATURES,
					(f & s->offered & ~(OURS | VP_BIT(VIRTIO_F_ACCESS_PLATFORM))) |
						(s->offered & VP_BIT(VU_F_PROTOCOL_FEATURES)),
					NULL);
	case SETUP_INFLIGHT:
		return send_inflight(h);
	case SETUP_MEMORY:
		return is_fast(h) ? send_guest_memory(h) : send_memory(h);
	case SETUP_MTU:
		return is_net(h) && mtu && has_pf(h, VU_PF_MTU) && f & s->offered & VP_BIT(VIRTIO_NET_F_MTU) ?
		       hostdev_send_u64(h, VU_NET_SET_MTU, mtu, NULL) : true;
	default:
		s->set_up = true;
		return true;
	}
}

static bool send_call(struct hostdev *h, unsigned q)
{
	h->s.q[q].call_moved = false;
	return hostdev_send_u64(h, VU_SET_VRING_CALL, q, h->drv_call[q] >= 0 ? &h->drv_call[q] : &h->bell[q]);
}

static bool send_kick(struct hostdev *h, unsigned q)
{
	h->s.q[q].kick_moved = false;
	return hostdev_send_u64(h, VU_SET_VRING_KICK, q, h->drv_kick[q] >= 0 ? &h->drv_kick[q] : &h->sig[q]);
}

/* A ring's address as the back-end was told it: the daemon has seen that each area lies in one region. */
static uint64_t user_addr(const struct hostdev *h, uint64_t addr)
{
	const struct vhp_abi_state *st = page(h);

	for (unsigned i = 0; is_fast(h) && i < le32toh(st->nregions); i++) {
		const struct vhp_abi_region *r = &st->regions[i];

		if (addr - le64toh(r->addr) < le64toh(r->size))
			return h->win[le32toh(r->window)].uva + le64toh(r->offset) + (addr - le64toh(r->addr));
	}
	return addr;
}

static bool start_message(struct hostdev *h, unsigned q, unsigned step)
{
	const struct vhp_abi_queue *e = &page(h)->queues[q];
	struct vu_msg m = { .hdr = { .request = VU_SET_VRING_ADDR, .size = sizeof(m.p.addr) },
			    .p.addr = { .index = q, .desc_user_addr = user_addr(h, le64toh(e->desc_addr)),
					.avail_user_addr = user_addr(h, le64toh(e->avail_addr)),
					.used_user_addr = user_addr(h, le64toh(e->used_addr)) } };

	switch (step) {
	case START_NUM:
		return hostdev_send_ring(h, VU_SET_VRING_NUM, q, le32toh(e->size));
	case START_BASE:
		return hostdev_send_ring(h, VU_SET_VRING_BASE, q, le32toh(e->base));
	case START_ADDR:
		return hostdev_send(h, &m, NULL);
	case START_CALL:
		return send_call(h, q);
	default:
		return send_kick(h, q);
	}
}

bool hostdev_step_start(struct hostdev *h, unsigned q)
{
	struct hostdev_queue *hq = &h->s.q[q];
	uint32_t flags = hostdev_queue_flags(h, q), run = le32toh(page(h)->queues[q].run);
	bool on = flags & VHP_QUEUE_ENABLED;

	if (!hq->running) {
		if (!(flags & VHP_QUEUE_STARTED) || flags & VHP_QUEUE_STOP || hq->given_up == run)
			return false;
		hq->running = h->s.ran = true;
		hostdev_state_forget(h);
		hq->enabled = false;
		hq->run = run;
		hq->step = 0;
	}
	if (hq->step < HOSTDEV_START_DONE)
		return start_message(h, q, hq->step++);
	if (!hostdev_current(h, q))
		return false;
	if (hq->call_moved)
		return send_call(h, q);
	if (hq->kick_moved)
		return send_kick(h, q);
	if (hq->enabled == on)
		return false;
	hq->enabled = on;
	h->s.queue = q;
	/* Without protocol features a ring is enabled as soon as it starts. */
	return h->s.offered >> VU_F_PROTOCOL_FEATURES & 1 ? hostdev_send_ring(h, VU_SET_VRING_ENABLE, q, on) : true;
}

bool hostdev_step_memory(struct hostdev *h)
{
	return is_fast(h) && h->s.set_up && h->s.mem_seen != le32toh(page(h)->regions_generation) &&
	       send_guest_memory(h);
}
