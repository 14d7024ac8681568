/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the rings of a device are, in memory that outlives this process. Threat model: virtq/place.c. */
#include <errno.h>
#include <string.h>

#include "front/vdev_priv.h"
#include "net/offload.h"
#include "virtq/place.h"

void vp_vdev_set_places(struct vp_vdev *v, struct vp_place *lines)
{
	v->places = lines;
}

void vp_vdev_place_begin(struct vp_vdev *v, unsigned q)
{
	struct vp_virtq *vq = &v->ring[q].rq.vq;

	vq->place = v->places ? &v->places[q] : NULL;
	if (vq->place)
		vp_place_reset(vq->place, vq);
}

/* The line of a ring of the other side that was about to give buffers back in this one. */
static const struct vp_place *sender_of(const struct vp_place *other, unsigned n, unsigned q)
{
	for (unsigned i = 0; i < n; i++)
		if (other[i].intent && other[i].receiver == q)
			return &other[i];
	return NULL;
}

static int recover(struct vp_vdev *v, unsigned q, const struct vp_place *own, const struct vp_place *as_receiver,
		   struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	int ret = vp_place_recover(&r->rq.vq, own, as_receiver, vp_net_hdr_len(v->features));

	if (ret)
		return vp_err_set(e, ret, "queue %u: %s", q,
				  ret == -ENODATA ? "it was in the middle of a burst that is not written down"
						  : "where it was makes no sense");
	vu_backend_note_base(v->ops->session(v->ctx), q, vp_vq_base(&r->rq.vq));
	return 0;
}

int vp_vdev_recover_ring(struct vp_vdev *v, unsigned q, const struct vp_place *own, struct vp_err *e)
{
	/* A split ring itself says where it is. */
	int ret = v->ring[q].rq.vq.packed ? 0 : vp_vdev_ring_resume(v, q, false, 0, e);

	return ret ? ret : recover(v, q, own, NULL, e);
}

int vp_vdev_place_recover(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_virtq *vq = &v->ring[q].rq.vq;
	bool sends = v->dev->use(q) == VP_QUEUE_SENDS;

	v->ring[q].recovers = false;
	if (!vq->packed)
		vq->used_idx = vp_ld16(vq->device, 2);
	return recover(v, q, &v->places[q], sends ? NULL : sender_of(v->others, v->n_others, q), e);
}

uint32_t vp_vdev_place_base(const struct vp_vdev *v, unsigned q, uint32_t base)
{
	/* A split ring has it in memory that is not to be had now; who starts it there again finds it. */
	return v->ring[q].rq.vq.packed ? v->places[q].pos * 0x10001u : base;
}

int vp_vdev_recover(struct vp_vdev *v, const struct vp_place *other, unsigned n, struct vp_err *e)
{
	v->others = other;
	v->n_others = n;
	for (unsigned q = 0; q < v->n && q < n; q++) {
		struct vp_vdev_ring *r = &v->ring[q];
		int ret;

		r->rq.vq.place = NULL;
		r->recovers = r->wait == VP_VDEV_WAIT_REBIND;
		if (!r->usable || r->rq.vq.broken)
			continue;
		ret = vp_vdev_place_recover(v, q, e);
		if (ret)
			return ret;
	}
	return 0;
}

bool vp_vdev_recovers(const struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].recovers)
			return true;
	return false;
}

void vp_vdev_places_begin(struct vp_vdev *v, bool send)
{
	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].usable && !v->ring[q].rq.vq.place && (v->dev->use(q) == VP_QUEUE_SENDS) == send)
			vp_vdev_place_begin(v, q);
}
