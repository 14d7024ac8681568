/* SPDX-License-Identifier: BSD-3-Clause */
/* A port's queues in the guest's hands: runs. Threat model: port.c. */
#include "port/port.h"

#include <endian.h>
#include <errno.h>

#include "port/priv.h"

struct vhp_abi_queue *port_queue_entry(struct vp_port *p, unsigned q)
{
	return &p->st.queues[q];
}

void port_queue_flags(struct vp_port *p, unsigned q, uint32_t set, uint32_t clear)
{
	port_queue_entry(p, q)->flags = htole32((le32toh(port_queue_entry(p, q)->flags) & ~clear) | set);
}

void port_end_run(struct vp_port *p, unsigned q, const struct vp_port_stop *s)
{
	p->q[q].running = false;
	p->q[q].stopping = false;
	p->q[q].deadline = 0;
	vp_slow_end(&p->q[q].slow);
	port_queue_flags(p, q, s->broken ? VHP_QUEUE_BROKEN : 0,
			 VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_ENABLED);
	if (s->base_known)
		port_queue_entry(p, q)->base = htole32(s->base);
	/*
	 * The next run may be of the same ring: shadow rings and pool always are, the driver VM's own where only its
	 * connection was lost. A guest in the middle of a burst would take buffers of the next run for those of the
	 * last, and put what it still has into them. It says with SYNC that it has seen this update.
	 */
	if (s->lost && p->attached) {
		port_touch_regions(p);
		p->q[q].lingers = true;
		p->q[q].gen = le32toh(p->st.regions_generation);
	}
	p->ops->queue_stopped(p->ctx, q, s);
}

/*
 * The guest is at work on no queue whose run is over: it has said so (SYNC of gen), or (NULL) it has gone, detached, or
 * was cut and must attach first. Whether the owner waits for one of them.
 */
bool port_let_go(struct vp_port *p, const uint32_t *gen)
{
	bool awaited = false;

	for (unsigned q = 0; q < p->nqueues; q++) {
		if (!p->q[q].lingers || (gen && (int32_t)(*gen - p->q[q].gen) < 0))
			continue;
		awaited |= p->q[q].await != 0;
		p->q[q].lingers = false;
		p->q[q].await = 0;
	}
	return awaited;
}

bool vp_port_queue_lingers(const struct vp_port *p, unsigned q)
{
	return p->q[q].lingers;
}

bool vp_port_queue_at_work(const struct vp_port *p, unsigned q)
{
	return p->q[q].running || p->q[q].lingers || p->cut;
}

int vp_port_queue_await(struct vp_port *p, unsigned q)
{
	if (q >= p->nqueues || !p->q[q].lingers)
		return 0;
	if (!p->q[q].await) {
		p->q[q].await = port_now(p) + PORT_SYNC_US;
		port_arm(p);
	}
	return VP_LATER;
}

void port_end_all_runs(struct vp_port *p)
{
	const struct vp_port_stop lost = { .lost = true };

	for (unsigned q = 0; q < p->nqueues; q++)
		if (p->q[q].running)
			port_end_run(p, q, &lost);
}

int vp_port_queue_run(struct vp_port *p, unsigned q, const struct vp_port_ring *r)
{
	struct vhp_abi_queue *e;

	if (q >= p->nqueues)
		return -ERANGE;
	if (!vp_port_is_up(p))
		return -ENOTCONN;
	if (p->q[q].running || p->q[q].lingers)
		return -EBUSY;
	vp_port_begin(p);
	e = port_queue_entry(p, q);
	e->desc_addr = htole64(r->desc);
	e->avail_addr = htole64(r->avail);
	e->used_addr = htole64(r->used);
	e->size = htole32(r->size);
	e->base = htole32(r->base);
	if (!++p->q[q].run)
		p->q[q].run = 1;
	e->run = htole32(p->q[q].run);
	e->flags = htole32(VHP_QUEUE_STARTED | (r->enabled ? VHP_QUEUE_ENABLED : 0));
	p->q[q].running = true;
	vp_port_commit(p);
	return 0;
}

void vp_port_queue_enable(struct vp_port *p, unsigned q, bool enabled)
{
	if (q >= p->nqueues || !p->q[q].running)
		return;
	vp_port_begin(p);
	port_queue_flags(p, q, enabled ? VHP_QUEUE_ENABLED : 0, VHP_QUEUE_ENABLED);
	vp_port_commit(p);
}

/* An earlier request stands, if its time is not the longer one. */
int port_stop_within(struct vp_port *p, unsigned q, uint64_t us)
{
	uint64_t deadline = port_now(p) + us;

	if (q >= p->nqueues || !p->q[q].running)
		return 0;
	if (!p->q[q].stopping)
		vp_slow_begin(&p->q[q].slow, p->event,
			      "its guest is stopped or busy, or what serves there hangs; it is cut off in the end",
			      "port %.32s: the stop of queue %u", p->conf.name, q);
	if (!p->q[q].stopping || p->q[q].deadline > deadline) {
		vp_port_begin(p);
		p->q[q].stopping = true;
		p->q[q].deadline = deadline;
		port_queue_flags(p, q, VHP_QUEUE_STOP, 0);
		vp_port_commit(p);
		port_arm(p);
	}
	return VP_LATER;
}

int vp_port_queue_stop(struct vp_port *p, unsigned q)
{
	return port_stop_within(p, q, p->conf.answer_timeout_us);
}

bool vp_port_queue_running(const struct vp_port *p, unsigned q)
{
	return q < p->nqueues && p->q[q].running;
}

bool vp_port_in_guests_hands(const struct vp_port *p)
{
	for (unsigned q = 0; q < p->nqueues; q++)
		if (p->q[q].running || p->q[q].lingers)
			return true;
	return false;
}

void vp_port_queue_end(struct vp_port *p, unsigned q)
{
	const struct vp_port_stop lost = { .lost = true };

	if (q >= p->nqueues || !p->q[q].running)
		return;
	vp_port_begin(p);
	port_end_run(p, q, &lost);
	vp_port_commit(p);
}

void vp_port_set_wire(struct vp_port *p, unsigned q, uint32_t kick_signal, uint32_t doorbell)
{
	if (q >= VHP_MAX_QUEUES)
		return;
	vp_port_begin(p);
	port_queue_entry(p, q)->kick_signal = htole32(kick_signal);
	port_queue_entry(p, q)->doorbell = htole32(doorbell);
	vp_port_commit(p);
}
