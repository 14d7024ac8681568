/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device as a record, for the daemon that goes on with it (docs/handover.md). Threat model: base/record.h. Memory is
 * mapped and rings are set up with the checks that a front-end's messages get.
 */
#include "front/vdev_priv.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"

enum tag {
	TAG_DEVICE = 1, TAG_REGION, TAG_LOG, TAG_IOTLB, TAG_RING,
	/* of a region, of the log, and of the in-flight area */
	TAG_PLACE = 32, TAG_FILE,
	/* of a ring */
	TAG_STATE = 64, TAG_KICK, TAG_CALL, TAG_ERROR,
	/* of a ring, what data threads change */
	TAG_PLACE_OF, TAG_STATS, TAG_ACCOUNT,
	/* the account of open requests, and the area that was made for the front-end to keep it in */
	TAG_INFLIGHT = 128, TAG_INFLIGHT_MADE, TAG_INFLIGHT_STATE,
};

struct device_rec {
	uint64_t features;
	uint32_t status, carrier, carrier_told, config_stale, looked_shared, rings;
	uint8_t  written[VP_DEVICE_CONFIG_MAX];
	uint8_t  wrote[VP_DEVICE_CONFIG_MAX / 8];
};

struct place_rec {
	uint64_t gpa, size, uva, offset;
};

struct inflight_rec {
	uint32_t own, queues, entries, pad;
};

enum { R_SET_UP = 1, R_ENABLED = 2, R_WAITS = 4, R_BROKEN = 8 };

struct ring_rec {
	uint32_t flags, starts, kick_serial, call_serial;
};

struct ring_hot {
	uint32_t broken;
	uint16_t last_avail, used_idx;
	uint16_t avail_wrap, used_wrap, has_place, pad;
	uint64_t own_due, bytes_due;
};

/* ---- writing ------------------------------------------------------------------------------- */

static void save_map(struct vp_rec *r, unsigned tag, const struct vp_map *m, const struct place_rec *p)
{
	vp_rec_begin(r, tag);
	vp_rec_put(r, TAG_PLACE, p, sizeof(*p));
	vp_rec_fd(r, TAG_FILE, VP_REC_FD_FILE, m->fd);
	vp_rec_end(r);
}

/* One that waits to go on has its place; one that waits to start has not, and that is in the session. */
static bool has_place(const struct vp_vdev_ring *v)
{
	return v->usable || v->wait == VP_VDEV_WAIT_REBIND;
}

static void save_ring(const struct vp_vdev_ring *v, struct vp_rec *r)
{
	const struct ring_rec s = {
		.flags = (has_place(v) ? R_SET_UP : 0) | (v->enabled ? R_ENABLED : 0) | (v->wait ? R_WAITS : 0) |
			 (has_place(v) && v->reported ? R_BROKEN : 0),
		.starts = v->starts, .kick_serial = v->kick_serial, .call_serial = v->call_serial,
	};

	vp_rec_begin(r, TAG_RING);
	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	vp_rec_fd(r, TAG_KICK, VP_REC_FD_EVENTFD, v->kick_fd);
	vp_rec_fd(r, TAG_CALL, VP_REC_FD_EVENTFD, v->rq.call_fd);
	vp_rec_str(r, TAG_ERROR, v->error);
	vp_rec_end(r);
}

void vp_vdev_save_hot(const struct vp_vdev *v, struct vp_rec *r)
{
	for (unsigned q = 0; q < v->n; q++) {
		const struct vp_queue *rq = &v->ring[q].rq;
		const struct ring_hot s = {
			.broken = has_place(&v->ring[q]) ? rq->vq.broken : 0,
			.last_avail = rq->vq.last_avail, .used_idx = rq->vq.used_idx,
			.avail_wrap = rq->vq.avail_wrap, .used_wrap = rq->vq.used_wrap,
			.has_place = has_place(&v->ring[q]),
			.own_due = rq->own.due, .bytes_due = rq->bytes.due,
		};

		vp_rec_begin(r, TAG_RING);
		vp_rec_put(r, TAG_PLACE_OF, &s, sizeof(s));
		vp_rec_put(r, TAG_STATS, &rq->stats, sizeof(rq->stats));
		if (v->ring[q].inflight.on) {
			vp_rec_begin(r, TAG_ACCOUNT);
			vp_inflight_save(&v->ring[q].inflight, &v->ring[q].saved, 0, v->ring[q].saved.n, 0, r);
			vp_rec_end(r);
		}
		vp_rec_end(r);
	}
}

static void save_inflight(const struct vp_vdev *v, struct vp_rec *r)
{
	const struct inflight_rec s = {
		.own = v->inflight_own, .queues = v->inflight_queues, .entries = v->inflight_size,
	};

	vp_rec_fd(r, TAG_INFLIGHT_MADE, VP_REC_FD_FILE, v->inflight_fd);
	if (!v->inflight)
		return;
	vp_rec_put(r, TAG_INFLIGHT_STATE, &s, sizeof(s));
	save_map(r, TAG_INFLIGHT, v->inflight,
		 &(struct place_rec){ .size = v->inflight_bytes, .offset = v->inflight_off });
}

bool vp_vdev_at_rest(const struct vp_vdev *v)
{
	return !v->resetting;
}

void vp_vdev_save(struct vp_vdev *v, struct vp_rec *r, bool iotlb)
{
	struct vu_backend *b = v->ops->session(v->ctx);
	struct device_rec s = {
		.features = v->features, .status = v->status, .carrier = v->carrier, .carrier_told = v->carrier_told,
		/* Nobody will hear whether the last one was taken. */
		.config_stale = v->config_stale || v->config_telling, .looked_shared = v->looked_shared, .rings = v->n,
	};

	memcpy(s.written, v->written, sizeof(s.written));
	memcpy(s.wrote, v->wrote, sizeof(s.wrote));
	vp_rec_put(r, TAG_DEVICE, &s, sizeof(s));
	for (unsigned i = 0; v->tab && i < v->tab->n; i++) {
		const struct vp_region *g = &v->tab->r[i];

		save_map(r, TAG_REGION, g->map, &(struct place_rec){ g->gpa, g->size, g->uva, g->offset });
	}
	if (v->log.map)
		save_map(r, TAG_LOG, v->log.map,
			 &(struct place_rec){ .size = v->log.map->size, .uva = v->log.pages, .offset = v->log_offset });
	save_inflight(v, r);
	if (v->iotlb && iotlb)
		vp_iotlb_save(v->iotlb, TAG_IOTLB, r);
	for (unsigned q = 0; q < v->n; q++) {
		struct vp_vdev_ring *ring = &v->ring[q];

		/*
		 * Where a ring is that runs is told later (vp_vdev_save_hot()): here it is at its start, so that the
		 * record does not change while nothing but packets comes.
		 */
		if (has_place(ring))
			vu_backend_note_base(b, q, ring->reported ? vp_vq_base(&ring->rq.vq) :
					     ring->rq.vq.packed ? 0x80008000u : 0);
		save_ring(ring, r);
	}
}

/* ---- reading ------------------------------------------------------------------------------- */

static int load_map(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_map **map, struct place_rec *p,
		    struct vp_err *e)
{
	int fd, r;

	if (vp_rec_get(in, TAG_PLACE, p, sizeof(*p)))
		return vp_err_set(e, -EPROTO, "the record of a memory region is malformed");
	r = vp_rec_take(in, TAG_FILE, VP_REC_FD_FILE, &fd, e);
	if (!r && fd < 0)
		r = vp_err_set(e, -EPROTO, "the record of a memory region has no file");
	if (!r)
		r = vp_memory_map_again(map, v->conf->side[v->side].vm, fd, p->offset, p->size, e);
	vp_close(&fd);
	return r;
}

static int load_memory(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_region_desc *d = calloc(VP_MEMTAB_MAX, sizeof(*d));
	struct vp_rec_in rest = *in, body;
	struct place_rec p;
	unsigned tag, n = 0;
	int r = d ? 0 : vp_err_set(e, -ENOMEM, "out of memory");

	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_REGION)
			continue;
		if (n == VP_MEMTAB_MAX) {
			r = vp_err_set(e, -EPROTO, "the record has more than %d memory regions", VP_MEMTAB_MAX);
			break;
		}
		r = load_map(v, &body, &d[n].map, &p, e);
		d[n].gpa = p.gpa;
		d[n].size = p.size;
		d[n].uva = p.uva;
		d[n].offset = p.offset;
		n += !r;
	}
	if (!r && n)
		r = vp_memtab_build(&v->tab, d, n, e);
	while (n)
		vp_map_unref(d[--n].map);
	free(d);
	if (!r && vp_rec_find(in, TAG_LOG, &body)) {
		r = load_map(v, &body, &v->log.map, &p, e);
		v->log_offset = p.offset;
		/* As vp_vdev_on_log(): never more bits than bytes for them. */
		v->log.pages = r ? 0 : VP_MIN(p.uva, p.size > UINT64_MAX / 8 ? UINT64_MAX : p.size * 8);
	}
	return r;
}

static int load_inflight(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in body;
	struct inflight_rec s;
	struct place_rec p;
	int fd = -1, r = vp_rec_take(in, TAG_INFLIGHT_MADE, VP_REC_FD_FILE, &v->inflight_fd, e);

	if (r || !vp_rec_find(in, TAG_INFLIGHT, &body))
		return r;
	if (vp_rec_get(in, TAG_INFLIGHT_STATE, &s, sizeof(s)) || vp_rec_get(&body, TAG_PLACE, &p, sizeof(p)) ||
	    s.entries > UINT16_MAX || p.offset & 63)
		return vp_err_set(e, -EPROTO, "the record of an in-flight area is malformed");
	r = vp_rec_take(&body, TAG_FILE, VP_REC_FD_FILE, &fd, e);
	if (!r && fd < 0)
		r = vp_err_set(e, -EPROTO, "the record of an in-flight area has no file");
	if (!r)
		r = vp_vdev_inflight_take(v, fd, p.offset, p.size, s.queues, s.entries, true, e);
	v->inflight_own = s.own;
	vp_close(&fd);
	return r;
}

/* Its account, where the daemon before left off: not opened, which writes to it. */
static int load_account(struct vp_vdev *v, unsigned q, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_vdev_ring *ring = &v->ring[q];
	struct vp_rec_in body;
	int r;

	if (!vp_rec_find(in, TAG_ACCOUNT, &body))
		return 0;
	r = vp_inflight_restore(&ring->inflight, &ring->saved, vp_vdev_inflight_at(v, q), &ring->rq.vq, &body);
	return r ? vp_err_set(e, r, "the record of what queue %u has open is malformed", q) : 0;
}

static int load_ring(struct vp_vdev *v, unsigned q, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_vdev_ring *ring = &v->ring[q];
	struct vp_err why = { 0 };
	struct ring_rec s;
	int r = vp_rec_get(in, TAG_STATE, &s, sizeof(s));

	if (!r)
		r = vp_rec_text(in, TAG_ERROR, ring->error, sizeof(ring->error));
	if (r)
		return vp_err_set(e, -EPROTO, "the record of queue %u is malformed", q);
	r = vp_rec_take(in, TAG_KICK, VP_REC_FD_EVENTFD, &ring->kick_fd, e);
	if (!r)
		r = vp_rec_take(in, TAG_CALL, VP_REC_FD_EVENTFD, &ring->rq.call_fd, e);
	if (r)
		return r;
	/* A broken one stays where it is: its place is in the session, and why it broke in its error. */
	if (vu_ring_of(v, q)->started && s.flags & (R_SET_UP | R_WAITS) && !(s.flags & R_BROKEN)) {
		r = s.flags & R_SET_UP ? vp_vdev_ring_inherit(v, q, &why) : vp_vdev_ring_start(v, q, &why);
		if (r)
			return vp_err_set(e, r, "queue %u cannot go on: %.200s", q, why.msg);
	}
	ring->starts = s.starts;
	ring->enabled = s.flags & R_ENABLED;
	ring->kick_serial = VP_MAX(s.kick_serial, 1);
	ring->call_serial = VP_MAX(s.call_serial, 1);
	return 0;
}

static int load_hot(struct vp_vdev *v, unsigned q, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_vdev_ring *ring = &v->ring[q];
	struct vp_virtq *vq = &ring->rq.vq;
	struct ring_hot s;

	if (vp_rec_get(in, TAG_PLACE_OF, &s, sizeof(s)) || s.broken >= VP_VQ_BROKEN_MAX ||
	    vp_rec_get(in, TAG_STATS, &ring->rq.stats, sizeof(ring->rq.stats)) ||
	    ((ring->usable || ring->wait) && vq->packed && (s.last_avail >= vq->size || s.used_idx >= vq->size)))
		return vp_err_set(e, -EPROTO, "the record of where queue %u is is malformed", q);
	ring->rq.own.due = s.own_due;
	ring->rq.bytes.due = s.bytes_due;
	/* A broken one, or one that has not begun: the session knows. */
	if (!s.has_place || (!ring->usable && !ring->wait))
		return 0;
	vq->packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	vq->last_avail = vq->avail_seen = s.last_avail;
	vq->used_idx = s.used_idx;
	vq->avail_wrap = s.avail_wrap;
	vq->used_wrap = s.used_wrap;
	/* Also for one whose translation is not known here. */
	vu_backend_note_base(v->ops->session(v->ctx), q, vp_vq_base(vq));
	if (s.broken)
		vp_vq_break(vq, s.broken);
	return load_account(v, q, in, e);
}

int vp_vdev_restore_hot(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag, q = 0;
	int r = 0;

	while (!r && vp_rec_next(&rest, &tag, &body))
		r = q < v->n ? load_hot(v, q++, &body, e) :
		    vp_err_set(e, -EPROTO, "the record of where its queues are has too many");
	return !r && q != v->n ? vp_err_set(e, -EPROTO, "the record of where its queues are lacks some") : r;
}

int vp_vdev_restore(struct vp_vdev *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct device_rec s;
	unsigned tag, q = 0;
	int r;

	if (vp_rec_get(in, TAG_DEVICE, &s, sizeof(s)) || s.rings > v->n)
		return vp_err_set(e, -EPROTO, "the record of a device is malformed");
	if (vp_vdev_iommu_set(v, s.features & VP_BIT(VIRTIO_F_ACCESS_PLATFORM)))
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->features = s.features;
	v->status = (uint8_t)s.status;
	v->carrier = s.carrier;
	v->carrier_told = s.carrier_told;
	v->config_stale = s.config_stale;
	v->looked_shared = s.looked_shared;
	memcpy(v->written, s.written, sizeof(v->written));
	memcpy(v->wrote, s.wrote, sizeof(v->wrote));
	r = load_memory(v, in, e);
	if (!r)
		r = load_inflight(v, in, e);
	if (!r && v->iotlb && vp_rec_find(in, TAG_IOTLB, &body) && vp_iotlb_restore(v->iotlb, v->tab, &body))
		r = vp_err_set(e, -EPROTO, "the record of an IOTLB is malformed");
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_RING)
			r = q < v->n ? load_ring(v, q++, &body, e) :
			    vp_err_set(e, -EPROTO, "the record of a device has too many rings");
	return r;
}
