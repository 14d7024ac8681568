/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/view.h"

#include <stdlib.h>

#include "base/util.h"
#include "engine/relay.h"

/* ---- data threads ---------------------------------------------------------------------------- */

static unsigned view_run(struct vp_work *w, struct vp_scratch *s, unsigned *trouble)
{
	struct vp_view *v = vp_container_of(w, struct vp_view, work);
	unsigned done = 0;

	for (unsigned i = 0; i < v->n; i++) {
		struct vp_queue *q = v->src[i].rq;

		done += vp_relay_run(q, v->src[i].drop ? NULL : v->dst, s);
		*trouble += vp_unlikely(q->vq.broken);
	}
	*trouble += v->dst && vp_unlikely(v->dst->vq.broken);
	return done;
}

static enum worker_next view_arm(struct vp_work *w)
{
	struct vp_view *v = vp_container_of(w, struct vp_view, work);
	bool more = false, later = false;

	for (unsigned i = 0; i < v->n; i++) {
		struct vp_virtq *vq = &v->src[i].rq->vq;

		if (vq->broken || vq->stalled)
			continue; /* who waits for a vIOMMU is woken by vp_lanes_poke() */
		if (vp_unlikely(vp_queue_must_wait(v->src[i].rq))) {
			later = true;
			continue;
		}
		more |= vp_vq_enable_kicks(vq) || (v->src[i].kick_fd < 0 && !v->lazy);
	}
	return more ? WORKER_AGAIN : later ? WORKER_LATER : WORKER_SLEEP;
}

static void view_disarm(struct vp_work *w)
{
	struct vp_view *v = vp_container_of(w, struct vp_view, work);

	for (unsigned i = 0; i < v->n; i++)
		if (!v->src[i].rq->vq.broken)
			vp_vq_disable_kicks(&v->src[i].rq->vq);
}

/* ---- main thread ------------------------------------------------------------------------------- */

static void view_free(struct vp_work *w)
{
	free(vp_container_of(w, struct vp_view, work));
}

static const struct vp_work_ops view_ops = {
	.run = view_run, .arm = view_arm, .disarm = view_disarm, .free = view_free
};

struct vp_view *vp_view_new(unsigned sources)
{
	struct vp_view *v = calloc(1, sizeof(*v) + sources * sizeof(v->src[0]));

	if (v)
		v->work.ops = &view_ops;
	return v;
}

void vp_view_publish(struct vp_lanes *ls, unsigned i, struct vp_view *v)
{
	/* Receivers are looked at when there is something to send: their kicks are never needed. */
	if (v->dst && !v->dst->vq.broken)
		vp_vq_disable_kicks(&v->dst->vq);
	for (unsigned k = 0; k < v->n; k++)
		if (v->src[k].kick_fd >= 0 && vp_lane_watch(ls, i, v->src[k].kick_fd))
			v->src[k].kick_fd = -1;  /* cannot be waited for: poll */
	vp_lane_publish(ls, i, &v->work);
}

struct vp_view *vp_view_of(const struct vp_lanes *ls, unsigned i)
{
	struct vp_work *w = vp_lane_work(ls, i);

	return w ? vp_container_of(w, struct vp_view, work) : NULL;
}

bool vp_view_uses(const struct vp_view *v, const struct vp_queue *q)
{
	if (v->dst == q)
		return true;
	for (unsigned i = 0; i < v->n; i++)
		if (v->src[i].rq == q)
			return true;
	return false;
}

bool vp_view_same(const struct vp_view *a, const struct vp_view *b)
{
	if (!a || !b)
		return a == b;
	if (a->dst != b->dst || a->n != b->n)
		return false;
	for (unsigned i = 0; i < a->n; i++)
		if (a->src[i].rq != b->src[i].rq || a->src[i].drop != b->src[i].drop ||
		    a->src[i].kick_fd != b->src[i].kick_fd)
			return false;
	return true;
}
