/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The shmem attachment as a record, for the daemon that goes on with it (docs/handover.md). Its device goes on: where
 * signals are in its rings, and what its VMM was asked and has not answered. Threat model: base/record.h. Memory is
 * mapped and rings are set up with the checks that the VMM's messages get.
 */
#include "attach/shmem_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "conf/policy.h"

enum tag {
	/* of a session's owner */
	TAG_REGION = 1, TAG_RING, TAG_REQUEST, TAG_UNMAPPED,
	/* of the second part */
	TAG_SHMEM, TAG_SIG0,
	/* of a region */
	TAG_PLACE = 32, TAG_FILE,
	/* of a ring */
	TAG_STATE = 64, TAG_KICK, TAG_CALL,
};

struct place_rec {
	uint64_t gpa, size, uva, offset;
};

enum { R_STARTED = 1, R_ENABLED = 2, R_LIVE = 4 };

struct ring_hot {
	uint16_t last_avail, used_idx, broken, pad;
};

struct request_rec {
	uint32_t slot, map, mine, pad;
	uint64_t asked_ns;
};

struct shmem_rec {
	uint64_t n_starts, n_maps, n_unmaps, n_failed, map_ns, unmap_ns;
	uint32_t started, mapped, nsig, stuck;
	struct extent ext[VHP_MAX_WINDOWS];
};

/* ---- writing ------------------------------------------------------------------------------- */

bool vp_shmem_at_rest(struct vp_attach *a)
{
	return vp_peer_at_rest(((struct shmem *)a)->peer);
}

void vp_shmem_save(struct vp_attach *a, struct vp_rec *r)
{
	vp_rec_begin(r, VP_LINK_REC_PEER);
	vp_peer_save(((struct shmem *)a)->peer, r);
	vp_rec_end(r);
}

static void save_memory(const struct shmem *s, struct vp_rec *r)
{
	for (unsigned i = 0; s->tab && i < s->tab->n; i++) {
		const struct vp_region *g = &s->tab->r[i];
		const struct place_rec p = { g->gpa, g->size, g->uva, g->offset };

		vp_rec_begin(r, TAG_REGION);
		vp_rec_put(r, TAG_PLACE, &p, sizeof(p));
		/* Not all of it needs to be mapped. */
		if (g->map)
			vp_rec_fd(r, TAG_FILE, VP_REC_FD_FILE, g->map->fd);
		vp_rec_end(r);
	}
	vp_rec_str(r, TAG_UNMAPPED, s->unmapped);
}

void vp_shmem_save_device(void *ctx, struct vp_rec *r)
{
	struct shmem *s = ctx;
	const struct request *q;

	save_memory(s, r);
	for (unsigned i = 0; i < s->nsig; i++) {
		const struct sring *g = &s->ring[i];
		const uint32_t flags = (g->started ? R_STARTED : 0) | (g->enabled ? R_ENABLED : 0) |
				       (g->live ? R_LIVE : 0);

		/* Where it is is told later: here it is at its start, so that the record does not change meanwhile. */
		if (g->live)
			vu_backend_note_base(vp_shmem_session(s), i, 0);
		vp_rec_begin(r, TAG_RING);
		vp_rec_put(r, TAG_STATE, &flags, sizeof(flags));
		vp_rec_fd(r, TAG_KICK, VP_REC_FD_EVENTFD, g->kick_fd);
		vp_rec_fd(r, TAG_CALL, VP_REC_FD_EVENTFD, g->call_fd);
		vp_rec_end(r);
	}
	for (unsigned i = 0; (q = vu_backend_pending(vp_shmem_session(s), i)); i++) {
		const struct request_rec qr = {
			.slot = q->slot, .map = q->map, .mine = q->epoch == s->epoch && s->started,
			.asked_ns = q->asked_ns,
		};

		vp_rec_put(r, TAG_REQUEST, &qr, sizeof(qr));
	}
}

void vp_shmem_save_hot(struct vp_attach *a, struct vp_rec *r)
{
	struct shmem *s = (struct shmem *)a;
	struct shmem_rec h = {
		.n_starts = s->n_starts, .n_maps = s->n_maps, .n_unmaps = s->n_unmaps, .n_failed = s->n_failed,
		.map_ns = s->map_ns, .unmap_ns = s->unmap_ns,
		.started = s->started, .mapped = s->mapped, .nsig = s->nsig, .stuck = s->stuck,
	};

	memcpy(h.ext, s->ext, sizeof(h.ext));
	vp_rec_put(r, TAG_SHMEM, &h, sizeof(h));
	vp_rec_fd(r, TAG_SIG0, VP_REC_FD_EVENTFD, s->sig0);
	for (unsigned i = 0; i < s->nsig; i++) {
		const struct vp_virtq *vq = &s->ring[i].vq;
		const struct ring_hot p = {
			.last_avail = vq->last_avail, .used_idx = vq->used_idx, .broken = vq->broken,
		};

		vp_rec_put(r, TAG_RING, &p, sizeof(p));
	}
}

/* ---- reading ------------------------------------------------------------------------------- */

int vp_shmem_restore(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in peer;

	return vp_rec_find(in, VP_LINK_REC_PEER, &peer) ?
		       vp_peer_restore(((struct shmem *)a)->peer, &peer, e) :
		       vp_err_set(e, -EPROTO, "the record of its device side is malformed");
}

static int load_region(struct shmem *s, const struct vp_rec_in *in, struct vp_region_desc *d, struct vp_err *e)
{
	struct place_rec p;
	int fd = -1, r;

	if (vp_rec_get(in, TAG_PLACE, &p, sizeof(p)))
		return vp_err_set(e, -EPROTO, "the record of a memory region is malformed");
	*d = (struct vp_region_desc){ .gpa = p.gpa, .size = p.size, .uva = p.uva, .offset = p.offset };
	r = vp_rec_take(in, TAG_FILE, VP_REC_FD_FILE, &fd, e);
	/* One that cannot be mapped any more shows when a ring lies in it. */
	if (!r && fd >= 0)
		vp_memory_map_again(&d->map, s->c.link->side[VP_SIDE_DEVICE].vm, fd, p.offset, p.size, NULL);
	vp_close(&fd);
	return r;
}

static int load_memory(struct shmem *s, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_region_desc d[VU_MAX_TABLE_REGIONS] = { 0 };
	struct vp_rec_in rest = *in, body;
	unsigned tag, n = 0;
	int r = 0;

	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_REGION)
			continue;
		if (n == VP_ARRAY_SIZE(d))
			r = vp_err_set(e, -EPROTO, "the record has more than %u memory regions", n);
		else
			r = load_region(s, &body, &d[n++], e);
	}
	if (!r && n)
		r = vp_memtab_build(&s->tab, d, n, e);
	while (n)
		vp_map_unref(d[--n].map);
	return r;
}

static int load_ring(struct shmem *s, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	const struct vu_ring *vr = vu_backend_ring(vp_shmem_session(s), i);
	struct sring *g = &s->ring[i];
	uint32_t flags;
	int r;

	if (vp_rec_get(in, TAG_STATE, &flags, sizeof(flags)) || !vr || (flags & R_LIVE && !vr->started))
		return vp_err_set(e, -EPROTO, "the record of queue %u is malformed", i);
	r = vp_rec_take(in, TAG_KICK, VP_REC_FD_EVENTFD, &g->kick_fd, e);
	if (!r)
		r = vp_rec_take(in, TAG_CALL, VP_REC_FD_EVENTFD, &g->call_fd, e);
	if (r)
		return r;
	g->started = flags & R_STARTED;
	g->enabled = flags & R_ENABLED;
	/* No thread of the forwarder knows of it yet. */
	return flags & R_LIVE ? vp_shmem_ring_bind(s, i, vr, e) : 0;
}

static int load_request(struct shmem *s, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct request_rec qr;
	struct request *q;

	if (vp_rec_get_this(in, &qr, sizeof(qr)) || qr.slot > VHP_MAX_WINDOWS)
		return vp_err_set(e, -EPROTO, "the record of a request is malformed");
	q = malloc(sizeof(*q));
	if (!q)
		return vp_err_set(e, -ENOMEM, "out of memory");
	*q = (struct request){
		.s = s, .epoch = s->epoch - !qr.mine, .slot = qr.slot, .map = qr.map, .asked_ns = qr.asked_ns,
	};
	if (vu_backend_await(vp_shmem_session(s), i, vp_shmem_request_done, q)) {
		free(q);
		return vp_err_set(e, -EPROTO, "the record of its requests has too many");
	}
	vp_shmem_request_await(q);
	return 0;
}

int vp_shmem_restore_device(void *ctx, const struct vp_rec_in *in, struct vp_err *e)
{
	struct shmem *s = ctx;
	struct vp_rec_in rest = *in, body;
	unsigned tag, rings = 0, requests = 0;
	int r = load_memory(s, in, e);

	if (!r && vp_rec_text(in, TAG_UNMAPPED, s->unmapped, sizeof(s->unmapped)))
		r = vp_err_set(e, -EPROTO, "the record of its memory is malformed");
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_RING)
			r = rings < s->nsig ? load_ring(s, rings++, &body, e) :
			    vp_err_set(e, -EPROTO, "the record of its queues has too many");
		else if (tag == TAG_REQUEST)
			r = load_request(s, requests++, &body, e);
	return r;
}

static void load_place(struct shmem *s, unsigned i, const struct ring_hot *p)
{
	struct sring *g = &s->ring[i];

	if (!g->live)
		return;
	g->vq.last_avail = g->vq.avail_seen = p->last_avail;
	g->vq.used_idx = p->used_idx;
	vu_backend_note_base(vp_shmem_session(s), i, vp_vq_base(&g->vq));
	if (p->broken && p->broken < VP_VQ_BROKEN_MAX)
		vp_vq_break(&g->vq, (enum vp_vq_broken)p->broken);
}

static bool extents_ok(const struct shmem *s, const struct extent *x)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (x[i].len && !vp_range_inside(x[i].off, x[i].len, 0, s->c.link->aperture - VHP_CTRL_SIZE))
			return false;
	return true;
}

int vp_shmem_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct shmem *s = (struct shmem *)a;
	struct vp_rec_in rest = *in, body;
	struct shmem_rec h;
	unsigned tag, i = 0;
	int r;

	if (vp_rec_get(in, TAG_SHMEM, &h, sizeof(h)) || h.nsig != s->nsig || !extents_ok(s, h.ext) ||
	    (h.started && !vp_shmem_session(s)))
		return vp_err_set(e, -EPROTO, "the record of its attachment is malformed");
	s->n_starts = h.n_starts;
	s->n_maps = h.n_maps;
	s->n_unmaps = h.n_unmaps;
	s->n_failed = h.n_failed;
	s->map_ns = h.map_ns;
	s->unmap_ns = h.unmap_ns;
	s->started = h.started;
	s->mapped = h.mapped;
	s->stuck = h.stuck;
	memcpy(s->ext, h.ext, sizeof(s->ext));
	r = vp_rec_take(in, TAG_SIG0, VP_REC_FD_EVENTFD, &s->sig0, e);
	if (!r && s->sig0 < 0)
		r = vp_err_set(e, -EPROTO, "the record of its attachment lacks an eventfd");
	while (!r && vp_rec_next(&rest, &tag, &body)) {
		struct ring_hot p;

		if (tag != TAG_RING)
			continue;
		if (i >= s->nsig || vp_rec_get_this(&body, &p, sizeof(p)))
			return vp_err_set(e, -EPROTO, "the record of its queues is malformed");
		load_place(s, i++, &p);
	}
	if (!r && s->started)
		vp_shmem_watch_bell(s);
	return r;
}

int vp_shmem_recover(struct vp_attach *a, struct vp_err *e)
{
	struct shmem *s = (struct shmem *)a;

	for (unsigned i = 0; i < s->nsig; i++) {
		struct vp_virtq *vq = &s->ring[i].vq;

		if (!s->ring[i].live || vq->broken)
			continue;
		/* Each buffer that was taken was returned at once. */
		vq->used_idx = vq->last_avail = vq->avail_seen = vp_ld16(vq->device, 2);
		vu_backend_note_base(vp_shmem_session(s), i, vp_vq_base(vq));
	}
	return 0;
}
