/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver VM with a vIOMMU (VIRTIO_F_ACCESS_PLATFORM acknowledged): ring and buffer addresses are IOVAs.
 *
 * Threat model: IOTLB messages come from the front-end; vp_iotlb_update() checks them against the region table. A guest
 * can name any number of unmapped addresses: misses are bounded, and one that the front-end
 * answers with an error breaks the queue that asked.
 *
 * An update says more than it knows (vp_iotlb_update()): it proves what the oldest miss without an
 * answer asked for, when that lies inside it. Front-ends answer in order, and an answer is there
 * before the update that goes with the next miss, so answers are read before an update is looked
 * at. Of an update that no miss asked for reading is kept.
 *
 * While no ring runs QEMU does not say what its vIOMMU takes back, so nothing is kept over that
 * time (findings/qemu-viommu-silent-while-stopped.sh).
 *
 * A ring whose areas are not translated (yet, or any more) waits, withdrawn, and goes on with the update that
 * brings them. An invalidation, and an update that takes something away, is acknowledged after a grace period: no data
 * thread then uses what it took away.
 */
#include <errno.h>
#include <linux/vhost_types.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <urcu/urcu-qsbr.h>

#include "base/log.h"
#include "front/vdev_priv.h"

/* From any thread: the main thread looks at the misses when it looks for broken queues. */
static void wake(void *arg)
{
	struct vp_vdev *v = arg;
	uint64_t one = 1;

	if (write(v->ops->attention_fd(v->ctx), &one, sizeof(one)) < 0)
		return; /* full: it will look anyway */
}

int vp_vdev_iommu_set(struct vp_vdev *v, bool on)
{
	if (on == (v->iotlb != NULL))
		return 0;
	if (on)
		return vp_iotlb_new(&v->iotlb, wake, v);
	vp_iotlb_free(v->iotlb); /* features only change while no ring runs */
	v->iotlb = NULL;
	return 0;
}

bool vp_vdev_in_use(const struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].usable || v->ring[q].wait != VP_VDEV_WAIT_NONE)
			return true;
	return false;
}

void vp_vdev_iommu_idle(struct vp_vdev *v)
{
	if (!v->iotlb || vp_vdev_in_use(v))
		return;
	vp_iotlb_clear(v->iotlb);
	vp_iotlb_forget_misses(v->iotlb);
	v->run++; /* answers that are still to come are about another time */
}

/* Does [iova, iova + size) touch one of the ring's areas? */
static bool ring_touched(const struct vp_virtq *vq, uint64_t iova, uint64_t size)
{
	const uint64_t area[3][2] = {
		{ vq->desc_addr, vp_vq_desc_bytes(vq->size) },
		{ vq->driver_addr, vp_vq_driver_bytes(vq->size, vq->packed) },
		{ vq->device_addr, vp_vq_device_bytes(vq->size, vq->packed) },
	};
	uint64_t last = iova + size - 1;

	if (last < iova)
		last = UINT64_MAX;
	for (unsigned i = 0; i < 3; i++)
		if (area[i][0] <= last && area[i][0] + area[i][1] - 1 >= iova)
			return true;
	return false;
}

static void invalidate(struct vp_vdev *v, uint64_t iova, uint64_t size)
{
	for (unsigned q = 0; q < v->n; q++) {
		struct vp_vdev_ring *r = &v->ring[q];

		if (!r->usable || !ring_touched(&r->rq.vq, iova, size))
			continue;
		v->ops->withdraw(v->ctx, q, 1);
		r->usable = false;
		r->wait = VP_VDEV_WAIT_REBIND;
		v->ops->offer(v->ctx, q, 1);
	}
	vp_iotlb_invalidate(v->iotlb, iova, size);
	urcu_qsbr_synchronize_rcu();
}

/* Rings that wait for a translation try again, those that run and those that do not yet. */
static void retry_rings(struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++) {
		struct vp_err e = { 0 };

		if (v->ring[q].wait)
			vp_vdev_ring_retry(v, q, &e);
	}
	if (v->ops->translated)
		v->ops->translated(v->ctx);
}

struct asked {
	struct vp_vdev_slot *slot;
	uint64_t iova;           /* of the page */
	enum vp_access acc;
	uint32_t life, run;      /* of the device that asked */
	struct asked *next;      /* asked later */
};

/* Permissions that an update of [iova, iova + size) proves. */
static unsigned proven(struct vp_vdev *v, uint64_t iova, uint64_t size)
{
	const struct asked *a;
	unsigned perm;

	if (v->asked)
		vu_backend_req_ready(v->ops->session(v->ctx));
	a = v->asked;
	perm = vp_iotlb_granted(v->iotlb, iova, size);
	if (a && a->run == v->run && (a->iova | 4095) >= iova && a->iova - VP_MIN(iova, a->iova) < size)
		perm |= 1u << a->acc;
	return perm ? perm : 1u << VP_READ;
}

/* Do what m says. sure: the permissions that an update proves. */
static int apply(struct vp_vdev *v, const struct vhost_iotlb_msg *m, unsigned sure, struct vp_err *e)
{
	unsigned perm = (m->perm & VHOST_ACCESS_RO ? 1u << VP_READ : 0) |
			(m->perm & VHOST_ACCESS_WO ? 1u << VP_WRITE : 0);
	int ret;

	switch (m->type) {
	case VHOST_IOTLB_UPDATE:
		if (vp_iotlb_changes(v->iotlb, v->tab, m->iova, m->size, m->uaddr, perm))
			invalidate(v, m->iova, m->size);
		ret = vp_iotlb_update(v->iotlb, v->tab, m->iova, m->size, m->uaddr, perm, sure);
		if (ret)
			return vp_err_set(e, ret,
					  "IOTLB update of 0x%llx (0x%llx bytes) does not lie inside one memory region",
					  (unsigned long long)m->iova, (unsigned long long)m->size);
		retry_rings(v);
		return 0;
	case VHOST_IOTLB_INVALIDATE:
		invalidate(v, m->iova, m->size);
		retry_rings(v); /* asks for the areas of rings that are still in use */
		return 0;
	default:
		return vp_err_set(e, -EINVAL, "IOTLB message of type %u; expected update or invalidate", m->type);
	}
}

int vp_vdev_on_iotlb(void *ctx, const struct vhost_iotlb_msg *m, struct vp_err *e)
{
	struct vp_vdev *v = ((struct vp_vdev_slot *)ctx)->v;
	bool update = m->type == VHOST_IOTLB_UPDATE;
	unsigned sure;
	uint64_t last;

	if (!v->iotlb)
		return vp_err_set(e, -EINVAL, "IOTLB message without VIRTIO_F_ACCESS_PLATFORM");
	/* Before anything else is read: it goes by what was asked when the message came. */
	sure = update ? proven(v, m->iova, m->size) : 0;
	if (!v->ops->revoke || !m->size)
		return apply(v, m, sure, e);
	if (vp_add_overflow(m->iova, m->size - 1, &last))
		last = UINT64_MAX;
	if (v->ops->revoke(v->ctx, m->iova, last, update && m->perm == VHOST_ACCESS_RW, m->uaddr) != VP_LATER)
		return apply(v, m, sure, e);
	v->owed = *m;
	v->owed_sure = sure;
	return VP_LATER;
}

int vp_vdev_revoked(struct vp_vdev *v, struct vp_err *e)
{
	struct vhost_iotlb_msg m = v->owed;
	struct vp_err why = { 0 };

	v->owed.type = 0;
	return vu_backend_done(v->ops->session(v->ctx), v->iotlb ? apply(v, &m, v->owed_sure, &why) : 0, e);
}

int vp_vdev_mapping(struct vp_vdev *v, uint64_t iova, struct vp_vdev_mapping *out)
{
	struct vp_iommu *mmu = iommu_of(v);
	struct vp_window w, r;
	uint64_t gpa, span, from, to, uva;
	const struct vp_region *g;
	int ret;

	if (!mmu || !v->tab)
		return -EFAULT;
	/* Writing first: it is what is refused where one of them is. */
	ret = mmu->translate(mmu, iova, 1, VP_WRITE, &w);
	if (!ret)
		ret = mmu->translate(mmu, iova, 1, VP_READ, &r);
	if (ret)
		return ret;
	/* One entry has both; its edges may lie inside pages. */
	from = vp_align_up(VP_MAX(w.start, r.start), 4096);
	to = (VP_MIN(w.start + (w.size - 1), r.start + (r.size - 1)) + 1) & ~UINT64_C(4095);
	if (from > iova || to <= iova || mmu->gpa(mmu, from, &gpa, &span) || span < to - from)
		return -EFAULT;
	g = &v->tab->r[vp_memtab_find(v->tab, gpa)];
	uva = g->uva + (gpa - g->gpa);
	if ((uva | (g->offset + (gpa - g->gpa))) & 4095 || gpa - g->gpa >= g->size ||
	    to - from > g->size - (gpa - g->gpa))
		return -EFAULT;
	*out = (struct vp_vdev_mapping){ .iova = from, .size = to - from, .uva = uva };
	return 0;
}

/* A later miss for the same: this answer says how it was before. */
static bool asked_again(const struct vp_vdev *v, const struct asked *a)
{
	for (const struct asked *b = v->asked; b; b = b->next)
		if (b->iova == a->iova && b->acc == a->acc)
			return true;
	return false;
}

static void answered(void *arg, int result)
{
	struct asked *a = arg;
	struct vp_vdev *v = a->slot->v;
	const char *what = a->acc == VP_WRITE ? "writing" : "reading";

	if (!v || v->life != a->life)
		goto out;
	/* Answers come in the order of the questions. */
	v->asked = a->next;
	if (!v->asked)
		v->asked_end = &v->asked;
	if (!v->iotlb || v->run != a->run)
		goto out;
	if (result == -EREMOTEIO && !asked_again(v, a)) {
		vp_log(VP_LOG_WARNING, "%s: its vIOMMU does not map 0x%llx for %s", v->name,
		       (unsigned long long)a->iova, what);
		vp_iotlb_refuse(v->iotlb, a->iova, a->acc);
		retry_rings(v);
	} else if (!result && !asked_again(v, a) && vp_iotlb_answered(v->iotlb, a->iova, a->acc)) {
		vp_log(VP_LOG_WARNING, "%s: its vIOMMU maps 0x%llx, but not for %s", v->name,
		       (unsigned long long)a->iova, what);
		vu_backend_iotlb_access_fail(v->ops->session(v->ctx), a->iova,
					     a->acc == VP_WRITE ? VHOST_ACCESS_WO : VHOST_ACCESS_RO, NULL, NULL);
		retry_rings(v);
	}
	if (result && result != -EREMOTEIO)
		v->unsent = true; /* the channel went, and the question with it */
	else if (v->unsent)
		vp_vdev_iommu_events(v);
out:
	free(a);
}

/* As vu_backend_iotlb_miss(). */
static int ask(struct vp_vdev *v, uint64_t iova, enum vp_access acc)
{
	struct asked *a = malloc(sizeof(*a)), **at;
	int ret;

	if (!a)
		return -ENOMEM;
	*a = (struct asked){ v->ctx, iova, acc, v->life, v->run, NULL };
	/* Before it is sent: without REPLY_ACK it counts as answered at once. */
	*(v->asked ? v->asked_end : &v->asked) = a;
	v->asked_end = &a->next;
	ret = vu_backend_iotlb_miss(v->ops->session(v->ctx), iova,
				    acc == VP_WRITE ? VHOST_ACCESS_WO : VHOST_ACCESS_RO, answered, a);
	if (!ret)
		return 0;
	/* The last; when the channel was lost, those before it are gone. */
	for (at = &v->asked; *at != a; at = &(*at)->next)
		;
	*at = NULL;
	v->asked_end = at;
	free(a);
	return ret;
}

void vp_vdev_iommu_events(struct vp_vdev *v)
{
	if (!v->iotlb || !v->unsent)
		return;
	v->resend = true;
	wake(v);
}

void vp_vdev_iommu_poll(struct vp_vdev *v)
{
	enum vp_access acc;
	uint64_t iova;

	if (!v->iotlb)
		return;
	/*
	 * What a process before this one had asked is answered first, and brings updates of its own. They would prove
	 * what we ask for meanwhile.
	 */
	if (vu_backend_stale(v->ops->session(v->ctx))) {
		v->unsent = true;
		return;
	}
	if (v->resend && vu_backend_has_req(v->ops->session(v->ctx))) {
		v->unsent = v->resend = false;
		vp_iotlb_forget_misses(v->iotlb);
		retry_rings(v);
	}
	while (vp_iotlb_next_miss(v->iotlb, &iova, &acc)) {
		int ret = ask(v, iova, acc);

		if (!ret)
			continue;
		/*
		 * It counts as asked, or data threads would find it again at once, and again. See
		 * vp_vdev_iommu_events().
		 */
		if (!v->unsent_said)
			vp_log(VP_LOG_WARNING, "%s: a vIOMMU miss cannot be sent: %s; its queue waits", v->name,
			       ret == -ENOTCONN ? "the front-end has set no request channel" : strerror(-ret));
		v->unsent = v->unsent_said = true;
	}
}
