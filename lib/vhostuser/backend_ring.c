/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages about rings ("Ring states" of the vhost-user specification). Threat
 * model: see backend.h. A ring starts when its size, its addresses, its kick
 * and the features are known, whatever their order, and stops by GET_VRING_BASE.
 */
#include "vhostuser/backend_priv.h"

#include <errno.h>

#include "base/foreign.h"
#include "base/util.h"

static bool any_started(const struct vu_backend *b)
{
	unsigned int i;

	for (i = 0; i < b->cfg.max_queues; i++)
		if (b->rings[i].started)
			return true;
	return false;
}

/* An error of the owner's that concerns one ring harms that ring only. */
static int tell(struct vu_backend *b, unsigned int q, unsigned int what, struct vp_err *e)
{
	int rc = b->ops->ring_changed(b->ctx, q, what, e);

	b->soft = rc < 0;
	return VP_MIN(rc, 0);
}

int vu_ring_try_start(struct vu_backend *b, unsigned int q, struct vp_err *e)
{
	struct vu_ring *r = &b->rings[q];
	bool packed = vu_has(b->acked, VIRTIO_F_RING_PACKED);
	bool was = r->enabled;
	int rc;

	if (r->started || !r->kick_set || !r->num || !r->addr_set || !b->features_set)
		return 0;
	/*
	 * A ring starts at 0 where nobody says otherwise, and a packed one with both wrap counters
	 * 1 (virtio 1.2, 2.8.1).
	 */
	if (r->base_from == VU_BASE_NONE)
		r->base = packed ? 0x80008000u : 0;
	b->soft = true;
	if (!packed && !vp_is_pow2(r->num))
		return vp_err_set(e, -EINVAL, "ring %u has %u entries; a split ring needs a power of two", q, r->num);
	if (!packed && r->base > UINT16_MAX)
		return vp_err_set(e, -EINVAL, "ring %u starts at %u; the index of a split ring has 16 bits", q,
				  r->base);
	b->soft = false;
	/* DPDK's front-end leaves the used half empty, meaning that all that was available has been used. */
	if (packed && !(r->base >> 16))
		r->base |= r->base << 16;
	/* There is no SET_VRING_ENABLE then; a reset may have disabled it since SET_FEATURES. */
	if (!vu_has(b->acked, VU_F_PROTOCOL_FEATURES))
		r->enabled = true;
	r->started = true;
	rc = tell(b, q, VU_RING_STARTED, e);
	if (rc) {
		r->started = false;
		r->enabled = was;
	}
	return rc;
}

void vu_ring_commit_stop(struct vu_backend *b, unsigned int q, uint32_t base)
{
	struct vu_ring *r = &b->rings[q];

	r->base = vu_has(b->acked, VIRTIO_F_RING_PACKED) ? base : base & UINT16_MAX;
	if (r->started)
		r->base_from = VU_BASE_STOP;
	r->started = r->stopping = false;
	r->kick_set = false;
	vp_close_foreign(&r->kick_fd);
}

void vu_rings_reset(struct vu_backend *b)
{
	unsigned int i;

	for (i = 0; i < b->cfg.max_queues; i++) {
		struct vu_ring *r = &b->rings[i];

		r->started = r->stopping = r->enabled = false;
		r->kick_set = r->addr_set = r->log = false;
		r->num = r->base = 0;
		r->base_from = VU_BASE_NONE;
		vp_close_foreign(&r->kick_fd);
	}
}

void vu_rings_close(struct vu_backend *b)
{
	unsigned int i;

	for (i = 0; i < b->cfg.max_queues; i++) {
		vp_close_foreign(&b->rings[i].kick_fd);
		vp_close_foreign(&b->rings[i].call_fd);
		vp_close_foreign(&b->rings[i].err_fd);
	}
}

const struct vu_ring *vu_backend_ring(const struct vu_backend *b, unsigned int q)
{
	return q < b->cfg.max_queues ? &b->rings[q] : NULL;
}

static int *ring_fd(struct vu_ring *r, unsigned int which)
{
	return which == VU_RING_KICK ? &r->kick_fd : which == VU_RING_CALL ? &r->call_fd : &r->err_fd;
}

int vu_backend_take_fd(struct vu_backend *b, unsigned int q, enum vu_ring_change which)
{
	int *slot, fd;

	if (q >= b->cfg.max_queues)
		return -1;
	slot = ring_fd(&b->rings[q], which);
	fd = *slot;
	*slot = -1;
	return fd;
}

static int busy(const char *name, unsigned int q, struct vp_err *e)
{
	return vp_err_set(e, -EBUSY, "%s for ring %u, which is running: GET_VRING_BASE must stop it first", name, q);
}

static int set_addr(struct vu_backend *b, unsigned int q, const struct vhost_vring_addr *a, struct vp_err *e)
{
	struct vu_ring *r = &b->rings[q];
	bool log = a->flags & (1u << VHOST_VRING_F_LOG);

	if (a->flags & ~(1u << VHOST_VRING_F_LOG))
		return vp_err_set(e, -EINVAL, "SET_VRING_ADDR for ring %u has flags 0x%x, only 0x%x is defined", q,
				  a->flags, 1u << VHOST_VRING_F_LOG);
	/* Running: front-ends send it again with the same addresses to switch logging. */
	if (r->started && (a->desc_user_addr != r->desc || a->avail_user_addr != r->avail ||
			   a->used_user_addr != r->used))
		return busy("SET_VRING_ADDR with other addresses", q, e);
	r->desc = a->desc_user_addr;
	r->avail = a->avail_user_addr;
	r->used = a->used_user_addr;
	r->addr_set = true;
	if (r->started && log == r->log && a->log_guest_addr == r->log_addr)
		return 0;
	r->log = log;
	r->log_addr = a->log_guest_addr;
	return r->started ? tell(b, q, VU_RING_LOG, e) : vu_ring_try_start(b, q, e);
}

static int set_fd(struct vu_backend *b, struct vu_msg *m, unsigned int which, const char *name, struct vp_err *e)
{
	unsigned int q = m->p.u64 & VU_VRING_IDX_MASK;
	bool nofd = m->p.u64 & VU_VRING_NOFD;
	struct vu_ring *r;
	int *slot, old, rc;

	if (m->p.u64 & ~(uint64_t)(VU_VRING_IDX_MASK | VU_VRING_NOFD))
		return vu_violation(b, e, -EINVAL, "%s has undefined bits in 0x%llx", name,
				    (unsigned long long)m->p.u64);
	if (q >= b->cfg.max_queues)
		return vu_violation(b, e, -EINVAL, "%s names ring %u, there are %u", name, q, b->cfg.max_queues);
	if (nofd != !b->main.rx_nfds)
		return vu_violation(b, e, -EBADF, "%s for ring %u %s", name, q, nofd ?
				    "says that no file descriptor is attached, but one is" :
				    "has no file descriptor attached, expected one or the no-fd flag");
	r = &b->rings[q];
	slot = ring_fd(r, which);
	old = *slot;
	*slot = nofd ? -1 : b->main.rx_fds[0];
	b->main.rx_fds[0] = -1;
	if (which == VU_RING_KICK) {
		r->kick_set = true;
		rc = r->started ? tell(b, q, VU_RING_KICK, e) : vu_ring_try_start(b, q, e);
	} else {
		if (which == VU_RING_CALL)
			r->call_set = true;
		rc = tell(b, q, which, e);
	}
	vp_close_foreign(&old);
	return rc;
}

static int get_base(struct vu_backend *b, struct vu_msg *m, struct vp_err *e)
{
	unsigned int q = m->p.state.index;
	struct vu_ring *r = &b->rings[q];
	uint32_t base = r->base;
	int rc;

	if (r->started) {
		r->stopping = true;
		rc = b->ops->ring_stop(b->ctx, q, &base, e);
		if (rc == VP_LATER)
			return VP_LATER;
		if (rc < 0) {
			/* There is no way to answer this with an error. */
			b->fatal = true;
			r->stopping = false;
			return rc;
		}
	}
	vu_ring_commit_stop(b, q, base);
	m->p.state.num = r->base;
	return VU_ANSWER;
}

static int set_enable(struct vu_backend *b, unsigned int q, uint32_t on, struct vp_err *e)
{
	struct vu_ring *r = &b->rings[q];
	int rc;

	/* Some front-ends enable rings before SET_FEATURES: having set protocol features is enough. */
	if (!vu_has(b->acked, VU_F_PROTOCOL_FEATURES) && !b->pf_set)
		return vp_err_set(e, -EPROTO, "SET_VRING_ENABLE without negotiated protocol features");
	if (on > 1)
		return vp_err_set(e, -EINVAL, "SET_VRING_ENABLE of ring %u says %u, expected 0 or 1", q, on);
	if (r->enabled == on)
		return 0;
	r->enabled = on;
	rc = tell(b, q, VU_RING_ENABLED, e);
	if (rc && on)
		r->enabled = false;
	return rc;
}

int vu_handle_ring(struct vu_backend *b, struct vu_msg *m, struct vp_err *e)
{
	unsigned int q = m->p.state.index; /* first member of every ring payload but those with fds */
	uint32_t num = m->p.state.num;
	struct vu_ring *r;

	switch (m->hdr.request) {
	case VU_SET_VRING_KICK:
		return set_fd(b, m, VU_RING_KICK, "SET_VRING_KICK", e);
	case VU_SET_VRING_CALL:
		return set_fd(b, m, VU_RING_CALL, "SET_VRING_CALL", e);
	case VU_SET_VRING_ERR:
		return set_fd(b, m, VU_RING_ERR, "SET_VRING_ERR", e);
	}
	if (q >= b->cfg.max_queues)
		return vu_violation(b, e, -EINVAL, "%s names ring %u, there are %u",
				    vu_msg_info(VU_FROM_FRONTEND, m->hdr.request)->name, q, b->cfg.max_queues);
	r = &b->rings[q];
	switch (m->hdr.request) {
	case VU_SET_VRING_NUM:
		if (r->started && num != r->num)
			return busy("SET_VRING_NUM", q, e);
		if (!num || num > b->cfg.max_ring_size)
			return vp_err_set(e, -EINVAL, "SET_VRING_NUM gives ring %u %u entries, possible are 1 to %u", q,
					  num, b->cfg.max_ring_size);
		r->num = num;
		return vu_ring_try_start(b, q, e);
	case VU_SET_VRING_BASE:
		if (r->started)
			return busy("SET_VRING_BASE", q, e);
		r->base = num;
		r->base_from = VU_BASE_SENT;
		return 0;
	case VU_SET_VRING_ADDR:
		return set_addr(b, q, &m->p.addr, e);
	case VU_GET_VRING_BASE:
		return get_base(b, m, e);
	case VU_SET_VRING_ENABLE:
		return set_enable(b, q, num, e);
	}
	return -ENOSYS;
}

/* SET_FEATURES without VHOST_USER_F_PROTOCOL_FEATURES: "the back-end must enable all rings immediately". */
static int enable_all(struct vu_backend *b, struct vp_err *e)
{
	unsigned int q;
	int rc = 0;

	for (q = 0; q < b->cfg.max_queues; q++) {
		struct vu_ring *r = &b->rings[q];
		bool was = r->enabled;
		int err;

		r->enabled = true;
		err = r->started && !was ? tell(b, q, VU_RING_ENABLED, e) : 0;
		rc = err ? err : rc;
	}
	return rc;
}

/* SET_FEATURES lives here because it is bound to the state of the rings. */
int vu_set_features(struct vu_backend *b, uint64_t v, struct vp_err *e)
{
	const uint64_t live = VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VU_F_PROTOCOL_FEATURES);
	uint64_t old = b->acked;
	char names[160];
	bool later;
	unsigned int q;
	int rc = 0;

	if (v & ~b->offered)
		return vp_err_set(e, -EINVAL, "SET_FEATURES acknowledges what was not offered: %s",
				  vu_features_str(0, v & ~b->offered, names, sizeof(names)));
	if ((v ^ old) & ~live && any_started(b))
		return vp_err_set(e, -EBUSY, "SET_FEATURES changes %s while rings run",
				  vu_features_str(0, (v ^ old) & ~live, names, sizeof(names)));
	/* The owner may look at the session from the callback: it sees the new bits. */
	b->acked = v;
	if (b->ops->set_features && (!b->features_set || v != old))
		rc = b->ops->set_features(b->ctx, v & ~VP_BIT(VU_F_PROTOCOL_FEATURES), e);
	if (rc < 0) {
		b->acked = old;
		return rc;
	}
	b->features_set = true;
	later = rc == VP_LATER;
	rc = vu_has(v, VU_F_PROTOCOL_FEATURES) ? 0 : enable_all(b, e);
	for (q = 0; q < b->cfg.max_queues; q++) {
		/* Where a ring of the other format stopped means nothing. */
		if (vu_has(v ^ old, VIRTIO_F_RING_PACKED) && b->rings[q].base_from == VU_BASE_STOP)
			b->rings[q].base_from = VU_BASE_NONE;
	}
	for (q = 0; q < b->cfg.max_queues; q++) {
		int r = vu_ring_try_start(b, q, e);

		rc = r ? r : rc;
	}
	b->soft = rc < 0; /* of a ring, not of the features */
	return later && rc >= 0 ? VP_LATER : VP_MIN(rc, 0);
}
