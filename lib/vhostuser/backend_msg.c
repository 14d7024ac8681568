/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages that are not about one ring. Threat model: see backend.h. Size, fd
 * count, feature and state of each message were checked before it comes here.
 */
#include "vhostuser/backend_priv.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

static int answer_u64(struct vu_msg *m, uint64_t v)
{
	m->hdr.size = sizeof(v);
	m->p.u64 = v;
	return VU_ANSWER;
}

static int set_protocol_features(struct vu_backend *b, uint64_t v, struct vp_err *e)
{
	uint64_t old = b->pf;
	char names[160];
	unsigned int q;
	int rc = 0;

	if (v & ~b->cfg.pf)
		return vp_err_set(e, -EINVAL, "SET_PROTOCOL_FEATURES acknowledges what was not offered: %s",
				  vu_pf_str(v & ~b->cfg.pf, names, sizeof(names)));
	for (q = 0; q < b->cfg.max_queues && v != old; q++)
		if (b->rings[q].started)
			return vp_err_set(e, -EBUSY, "SET_PROTOCOL_FEATURES changes %s while rings run",
					  vu_pf_str(v ^ old, names, sizeof(names)));
	b->pf = v;
	if (b->ops->set_protocol_features && (!b->pf_set || v != old))
		rc = b->ops->set_protocol_features(b->ctx, v, e);
	if (rc < 0)
		b->pf = old;
	else
		b->pf_set = true;
	return VP_MIN(rc, 0);
}

static bool same_region(const struct vu_mem_region *a, const struct vu_mem_region *c)
{
	return a->gpa == c->gpa && a->uva == c->uva && a->size == c->size;
}

/* "identified by its guest address, user address and size" */
static int find_region(const struct vu_backend *b, const struct vu_mem_region *r)
{
	unsigned int i;

	for (i = 0; i < b->nregions; i++)
		if (same_region(&b->regions[i], r))
			return i;
	return -1;
}

/*
 * QEMU before 8.0 keeps a table for each queue pair and so sends every ADD_MEM_REG and REM_MEM_REG once for each: the
 * same again changes nothing and succeeds, or a second queue pair could never start.
 */
static int add_region(struct vu_backend *b, const struct vu_mem_region *r, struct vp_err *e)
{
	if (find_region(b, r) >= 0)
		return 0;
	if (b->nregions >= b->cfg.max_mem_slots)
		return vp_err_set(e, -ENOSPC, "ADD_MEM_REG beyond the %u memory slots there are", b->cfg.max_mem_slots);
	return b->ops->mem_add(b->ctx, r, &b->main.rx_fds[0], e);
}

static int remove_region(struct vu_backend *b, const struct vu_mem_region *r, struct vp_err *e)
{
	int i = find_region(b, r);
	unsigned int k;

	for (k = 0; i < 0 && k < VP_ARRAY_SIZE(b->gone); k++)
		if (r->size && same_region(&b->gone[k], r))
			return 0;
	if (i < 0)
		return vp_err_set(e, -ENOENT,
				  "REM_MEM_REG of a region that was never added (guest address 0x%llx, size 0x%llx)",
				  (unsigned long long)r->gpa, (unsigned long long)r->size);
	return b->ops->mem_remove(b->ctx, &b->regions[i], e);
}

void vu_commit(struct vu_backend *b, const struct vu_msg *m)
{
	int i;

	switch (m->hdr.request) {
	case VU_SET_MEM_TABLE:
		b->nregions = m->p.mem.nregions;
		memcpy(b->regions, m->p.mem.regions, b->nregions * sizeof(b->regions[0]));
		break;
	case VU_ADD_MEM_REG:
		if (find_region(b, &m->p.mem_single.region) < 0)
			b->regions[b->nregions++] = m->p.mem_single.region;
		break;
	case VU_REM_MEM_REG:
		i = find_region(b, &m->p.mem_single.region);
		if (i >= 0) {
			b->gone[b->next_gone++ % VP_ARRAY_SIZE(b->gone)] = b->regions[i];
			b->nregions--;
			memmove(&b->regions[i], &b->regions[i + 1], (b->nregions - i) * sizeof(b->regions[0]));
		}
		break;
	case VU_RESET_DEVICE:
		vu_rings_reset(b);
		b->status = 0;
		break;
	}
}

static int get_config(struct vu_backend *b, struct vu_msg *m, struct vp_err *e)
{
	struct vu_config *c = &m->p.config;
	int rc;

	/* What the owner does not fill must not carry the front-end's bytes back as if it were config. */
	memset(c->data, 0, sizeof(c->data));
	rc = b->ops->get_config(b->ctx, c->offset, c->size, c->data, e);
	return rc < 0 ? rc : VU_ANSWER;
}

static int set_config(struct vu_backend *b, const struct vu_config *c, struct vp_err *e)
{
	if (c->flags > VU_CONFIG_MIGRATION)
		return vp_err_set(e, -EINVAL, "SET_CONFIG has flags %u, expected 0 or 1", c->flags);
	if (!b->ops->set_config)
		return vp_err_set(e, -EPERM, "SET_CONFIG: the config space of this device is read-only");
	return b->ops->set_config(b->ctx, c->offset, c->size, c->flags, c->data, e);
}

static int set_status(struct vu_backend *b, uint64_t v, struct vp_err *e)
{
	int rc = 0;

	if (v > UINT8_MAX)
		return vp_err_set(e, -EINVAL, "SET_STATUS says 0x%llx, a status has 8 bits", (unsigned long long)v);
	if (b->ops->set_status)
		rc = b->ops->set_status(b->ctx, v, e);
	if (rc >= 0)
		b->status = v;
	return VP_MIN(rc, 0);
}

static int iotlb(struct vu_backend *b, const struct vhost_iotlb_msg *m, struct vp_err *e)
{
	if (!vu_has(b->acked, VIRTIO_F_ACCESS_PLATFORM))
		return vp_err_set(e, -EPROTO, "IOTLB_MSG without VIRTIO_F_ACCESS_PLATFORM");
	if (m->type != VHOST_IOTLB_UPDATE && m->type != VHOST_IOTLB_INVALIDATE)
		return vp_err_set(e, -EINVAL, "IOTLB_MSG of type %u, expected %u (update) or %u (invalidate)", m->type,
				  VHOST_IOTLB_UPDATE, VHOST_IOTLB_INVALIDATE);
	if (!b->ops->iotlb)
		return vp_err_set(e, -EOPNOTSUPP, "IOTLB_MSG: this device has no IOTLB");
	return b->ops->iotlb(b->ctx, m, e);
}

static int get_inflight(struct vu_backend *b, struct vu_msg *m, int *rfd, struct vp_err *e)
{
	struct vu_inflight *in = &m->p.inflight;
	int rc;

	if (!in->num_queues || in->num_queues > b->cfg.max_queues || !in->queue_size ||
	    in->queue_size > b->cfg.max_ring_size)
		return vp_err_set(e, -EINVAL, "GET_INFLIGHT_FD for %u queues of %u entries, possible are %u of %u",
				  in->num_queues, in->queue_size, b->cfg.max_queues, b->cfg.max_ring_size);
	in->mmap_size = in->mmap_offset = 0;
	rc = b->ops->get_inflight(b->ctx, in, rfd, e);
	if (rc < 0)
		*rfd = -1;
	return rc < 0 ? rc : VU_ANSWER;
}

static int set_inflight(struct vu_backend *b, const struct vu_inflight *in, struct vp_err *e)
{
	if (!in->num_queues || in->num_queues > b->cfg.max_queues || !in->queue_size ||
	    in->queue_size > b->cfg.max_ring_size)
		return vp_err_set(e, -EINVAL, "SET_INFLIGHT_FD for %u queues of %u entries, possible are %u of %u",
				  in->num_queues, in->queue_size, b->cfg.max_queues, b->cfg.max_ring_size);
	return VP_MIN(b->ops->set_inflight(b->ctx, in, &b->main.rx_fds[0], e), 0);
}

static int get_shmem_config(struct vu_backend *b, struct vu_msg *m, struct vp_err *e)
{
	struct vu_shmem_config *s = &m->p.shmem;
	unsigned int n = VU_MAX_SHMEM;
	int rc;

	memset(s, 0, sizeof(*s));
	rc = b->ops->get_shmem_config(b->ctx, &n, s->sizes, e);
	if (rc < 0)
		return rc;
	s->nregions = n = VP_MIN(n, VU_MAX_SHMEM);
	/* QEMU 11.1 was seen to be content with eight sizes, used or not. */
	m->hdr.size = 8 + 8 * VP_MAX(n, 8);
	return VU_ANSWER;
}

int vu_handle_plain(struct vu_backend *b, struct vu_msg *m, int *rfd, struct vp_err *e)
{
	const struct vu_backend_ops *ops = b->ops;
	int *fd = &b->main.rx_fds[0];
	uint8_t mac[6];

	switch (m->hdr.request) {
	case VU_GET_FEATURES:
		return answer_u64(m, b->offered);
	case VU_SET_FEATURES:
		return vu_set_features(b, m->p.u64, e);
	case VU_GET_PROTOCOL_FEATURES:
		return answer_u64(m, b->cfg.pf);
	case VU_SET_PROTOCOL_FEATURES:
		return set_protocol_features(b, m->p.u64, e);
	case VU_SET_OWNER:
		b->state = VU_ST_OWNED;
		return 0;
	case VU_RESET_OWNER:
		/*
		 * Deprecated: "It is recommended that back-ends either ignore this message, or use it to disable all
		 * rings."
		 */
		return 0;
	case VU_SET_MEM_TABLE:
		return ops->mem_table(b->ctx, m->p.mem.regions, b->main.rx_fds, m->p.mem.nregions, e);
	case VU_ADD_MEM_REG:
		return add_region(b, &m->p.mem_single.region, e);
	case VU_REM_MEM_REG:
		return remove_region(b, &m->p.mem_single.region, e);
	case VU_GET_MAX_MEM_SLOTS:
		return answer_u64(m, b->cfg.max_mem_slots);
	case VU_SET_LOG_BASE: {
		int rc = ops->set_log(b->ctx, fd, m->p.log.mmap_size, m->p.log.mmap_offset, e);

		/* Front-ends do not look at the payload of the answer: a log that is not kept must not pass for one. */
		b->fatal = rc < 0;
		return rc;
	}
	case VU_SET_LOG_FD:
		return ops->set_log_fd ? VP_MIN(ops->set_log_fd(b->ctx, fd, e), 0) : 0;
	case VU_GET_QUEUE_NUM:
		if (!vu_has(b->cfg.pf, VU_PF_MQ))
			return vu_violation(b, e, -EOPNOTSUPP,
					    "GET_QUEUE_NUM needs protocol feature MQ, which is not offered");
		return answer_u64(m, b->cfg.queue_num);
	case VU_SEND_RARP:
		memcpy(mac, m->p.bytes, sizeof(mac));
		return VP_MIN(ops->send_rarp(b->ctx, mac, e), 0);
	case VU_NET_SET_MTU:
		return VP_MIN(ops->set_mtu(b->ctx, m->p.u64, e), 0);
	case VU_SET_BACKEND_REQ_FD:
		return vu_req_channel_set(b, fd, e);
	case VU_IOTLB_MSG:
		return iotlb(b, &m->p.iotlb, e);
	case VU_GET_CONFIG:
		return get_config(b, m, e);
	case VU_SET_CONFIG:
		return VP_MIN(set_config(b, &m->p.config, e), 0);
	case VU_GET_INFLIGHT_FD:
		return get_inflight(b, m, rfd, e);
	case VU_SET_INFLIGHT_FD:
		return set_inflight(b, &m->p.inflight, e);
	case VU_RESET_DEVICE:
		return ops->reset(b->ctx, e);
	case VU_SET_STATUS:
		return set_status(b, m->p.u64, e);
	case VU_GET_STATUS:
		return answer_u64(m, b->status);
	case VU_GET_SHMEM_CONFIG:
		return get_shmem_config(b, m, e);
	}
	return vp_err_set(e, -ENOSYS, "%s is not supported", vu_msg_info(VU_FROM_FRONTEND, m->hdr.request)->name);
}
