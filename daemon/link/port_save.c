/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Port links as records, for the daemon that goes on with them (docs/handover.md). Queues stay in the hands that they
 * are in: the device VM is not asked for anything, and sees nothing. Threat model: base/record.h.
 */
#include "link/grant.h"
#include "link/port_link.h"

#include <errno.h>
#include <string.h>

#include "context/context.h"
#include "base/util.h"
#include "front/carrier.h"
#include "threads/worker.h"
#include "virtq/place.h"

/* Beside VP_LINK_REC_SIDE and the tags of port_link.h. */
enum tag {
	TAG_PORT = 16, TAG_PROFILE, TAG_MODE, TAG_ATTACHMENT,
	/* of the second part */
	TAG_LINK, TAG_MISFIT, TAG_QUEUE, TAG_STATE, TAG_MODE_NOW, TAG_ALL,
	/* of a box: the ward's line, and its other end */
	TAG_LINE, TAG_LINE_END,
};

struct link_rec {
	uint64_t signals, spoiled;
	struct vp_queue_stats past, past_back;
};

enum {
	Q_HANDED = 1, Q_TAKEN = 2, Q_SPOILED = 4, Q_GIVEN_UP = 8, Q_GONE = 16, Q_COPIED = 32, Q_WAITS = 64,
	Q_COPIED_INSTEAD = 128,
};

struct profile_rec {
	uint64_t features;
	uint32_t known, queues, config_size, pad;
	uint8_t  config[VP_DEVICE_CONFIG_MAX];
};

/* ---- writing ------------------------------------------------------------------------------- */

/* Its queue is in another mode than the link's, for a time. */
static bool elsewhere(const struct vp_plink *pl, unsigned i)
{
	return pl->q[i].m != pl->m;
}

/* Its ring has broken, and the device side lets go of it soon. */
static bool breaks(const struct vp_plink *pl, unsigned i)
{
	return pl->slot.v && pl->q[i].handed && vp_vdev_ring(pl->slot.v, i)->rq.vq.broken;
}

bool vp_plink_at_rest(const struct vp_link *l)
{
	const struct vp_plink *pl = l->impl;

	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].stop_owed || pl->q[i].draining || breaks(pl, i))
			return false;
	return !pl->log_owed && !pl->down_owed && (!pl->peer || vp_peer_at_rest(pl->peer)) &&
	       (!pl->slot.v || vp_vdev_at_rest(pl->slot.v)) &&
	       vp_port_at_rest(pl->port, pl->att->ops->windows_on_their_way) &&
	       (!pl->att->ops->at_rest || pl->att->ops->at_rest(pl->att));
}

void vp_plink_save(struct vp_link *l, struct vp_rec *r)
{
	struct vp_plink *pl = l->impl;
	struct profile_rec p = {
		.features = pl->profile.features, .known = pl->profile.known, .queues = pl->profile.queues,
		.config_size = pl->profile.config_size,
	};

	memcpy(p.config, pl->profile.config, sizeof(p.config));
	vp_rec_put(r, TAG_PROFILE, &p, sizeof(p));
	vp_rec_begin(r, TAG_PORT);
	vp_port_save(pl->port, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_MODE);
	if (pl->m->save)
		pl->m->save(pl, r);
	vp_rec_end(r);
	if (pl->peer) {
		vp_rec_begin(r, VP_LINK_REC_SIDE + VP_SIDE_DRIVER);
		vp_rec_begin(r, VP_LINK_REC_PEER);
		vp_peer_save(pl->peer, r);
		vp_rec_end(r);
		vp_rec_end(r);
	}
	vp_rec_begin(r, VP_LINK_REC_SIDE + VP_SIDE_DEVICE);
	if (pl->att->ops->save)
		pl->att->ops->save(pl->att, r);
	vp_rec_end(r);
}

static void save_queue(struct vp_plink *pl, unsigned i, struct vp_rec *r)
{
	const struct vp_plink_queue *q = &pl->q[i];
	const uint32_t flags = (q->handed ? Q_HANDED : 0) | (q->taken ? Q_TAKEN : 0) | (q->spoiled ? Q_SPOILED : 0) |
			       (q->given_up ? Q_GIVEN_UP : 0) | (q->gone ? Q_GONE : 0) |
			       (elsewhere(pl, i) ? Q_COPIED : 0) | (q->waits ? Q_WAITS : 0) |
			       (q->copied ? Q_COPIED_INSTEAD : 0);

	vp_rec_begin(r, TAG_QUEUE);
	vp_rec_put(r, TAG_STATE, &flags, sizeof(flags));
	vp_rec_begin(r, TAG_MODE);
	pl->m->save_queue(pl, i, r);
	vp_rec_end(r);
	if (elsewhere(pl, i)) {
		vp_rec_begin(r, TAG_MODE_NOW);
		q->m->save_queue(pl, i, r);
		vp_rec_end(r);
	}
	vp_rec_end(r);
}

void vp_plink_save_hot(struct vp_link *l, struct vp_rec *r)
{
	struct vp_plink *pl = l->impl;
	const struct link_rec s = {
		.signals = pl->signals + pl->m->signals(pl), .spoiled = pl->spoiled, .past = pl->past,
		.past_back = pl->past_back,
	};

	vp_rec_put(r, TAG_LINK, &s, sizeof(s));
	vp_rec_str(r, TAG_MISFIT, pl->misfit);
	vp_rec_begin(r, VP_LINK_REC_SIDE + VP_SIDE_DRIVER);
	if (pl->slot.v)
		vp_vdev_save_hot(pl->slot.v, r);
	vp_rec_end(r);
	if (pl->m->save_all) {
		vp_rec_begin(r, TAG_ALL);
		pl->m->save_all(pl, r);
		vp_rec_end(r);
	}
	vp_rec_begin(r, TAG_PORT);
	vp_port_save_hot(pl->port, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_ATTACHMENT);
	pl->att->ops->save_hot(pl->att, r);
	vp_rec_end(r);
	for (unsigned i = 0; i < pl->n; i++)
		save_queue(pl, i, r);
}

/* ---- reading ------------------------------------------------------------------------------- */

int vp_plink_heir_port(const struct vp_plink *pl, struct vp_port_conf *pc, struct vp_err *e)
{
	struct vp_rec_in port;

	return vp_rec_find(pl->l->heir, TAG_PORT, &port) ?
		       vp_port_record_memory(&port, pc, e) :
		       vp_err_set(e, -EPROTO, "its record lacks that of its port");
}

int vp_plink_heir_profile(struct vp_plink *pl, struct vp_err *e)
{
	struct vp_profile *to = &pl->profile;
	struct profile_rec p;

	if (vp_rec_get(pl->l->heir, TAG_PROFILE, &p, sizeof(p)) || p.config_size > VP_DEVICE_CONFIG_MAX)
		return vp_err_set(e, -EPROTO, "the record of its profile is malformed");
	if (to->written)
		return 0;
	*to = (struct vp_profile){
		.known = p.known, .features = p.features, .queues = p.queues, .config_size = p.config_size,
	};
	memcpy(to->config, p.config, sizeof(to->config));
	return 0;
}

bool vp_plink_heir_mode(const struct vp_plink *pl, struct vp_rec_in *mode)
{
	return pl->l->heir && vp_rec_find(pl->l->heir, TAG_MODE, mode);
}

int vp_plink_record_channel(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e)
{
	struct vp_rec_in mode;

	*fd = -1;
	return vp_rec_find(in, TAG_MODE, &mode) ? vp_grants_record_socket(&mode, fd, ours, e) : 0;
}

int vp_plink_restore(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_plink *pl = l->impl;
	struct vp_rec_in side, peer;
	int r = 0;

	pl->quiet++;
	if (vp_rec_find(in, VP_LINK_REC_SIDE + VP_SIDE_DEVICE, &side) && pl->att->ops->restore)
		r = pl->att->ops->restore(pl->att, &side, e);
	if (!r && vp_rec_find(in, VP_LINK_REC_SIDE + VP_SIDE_DRIVER, &side)) {
		if (!vp_rec_find(&side, VP_LINK_REC_PEER, &peer) || !pl->peer)
			r = vp_err_set(e, -EPROTO, "the record of its driver side is malformed");
		else
			r = vp_peer_restore(pl->peer, &peer, e);
	}
	pl->quiet--;
	return r;
}

static int load_queue(struct vp_plink *pl, unsigned i, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_plink_queue *q = &pl->q[i];
	struct vp_rec_in mode, now;
	uint32_t flags;
	int r;

	if (vp_rec_get(in, TAG_STATE, &flags, sizeof(flags)) || !vp_rec_find(in, TAG_MODE, &mode) ||
	    (flags & Q_HANDED && !pl->slot.v) ||
	    (flags & Q_COPIED && (!pl->copy || pl->m == &vp_plink_copy || !vp_rec_find(in, TAG_MODE_NOW, &now))))
		return vp_err_set(e, -EPROTO, "the record of queue %u is malformed", i);
	q->taken = flags & Q_TAKEN;
	q->spoiled = flags & Q_SPOILED;
	q->given_up = flags & Q_GIVEN_UP;
	q->gone = flags & Q_GONE;
	q->waits = flags & Q_WAITS;
	q->copied = flags & Q_COPIED_INSTEAD;
	q->m = flags & Q_COPIED ? &vp_plink_copy : pl->m;
	q->handed = flags & Q_HANDED;
	/* Wires and lanes follow when that daemon has gone. */
	q->rewire = q->handed;
	r = pl->m->restore_queue(pl, i, &mode, e);
	return !r && elsewhere(pl, i) ? q->m->restore_queue(pl, i, &now, e) : r;
}

static int restore_all(struct vp_plink *pl, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in body;
	int r;

	if (!vp_rec_find(in, TAG_ALL, &body))
		return vp_err_set(e, -EPROTO, "the record of its mode is missing");
	pl->quiet++;
	r = pl->m->restore_all(pl, &body, e);
	pl->quiet--;
	return r;
}

static int load_hot(struct vp_plink *pl, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct link_rec s;
	unsigned tag, i = 0;
	int r = 0;

	if (vp_rec_get(in, TAG_LINK, &s, sizeof(s)) || vp_rec_text(in, TAG_MISFIT, pl->misfit, sizeof(pl->misfit)))
		return vp_err_set(e, -EPROTO, "the record of what it does is malformed");
	pl->signals = s.signals;
	pl->spoiled = s.spoiled;
	pl->past = s.past;
	pl->past_back = s.past_back;
	if (pl->slot.v && !vp_rec_find(in, VP_LINK_REC_SIDE + VP_SIDE_DRIVER, &body))
		return vp_err_set(e, -EPROTO, "the record of its driver side's queues is missing");
	if (pl->slot.v)
		r = vp_vdev_restore_hot(pl->slot.v, &body, e);
	if (!r && pl->m->restore_all)
		r = restore_all(pl, in, e);
	if (!r)
		r = vp_rec_find(in, TAG_PORT, &body) ? vp_port_restore_hot(pl->port, &body, e) :
		    vp_err_set(e, -EPROTO, "the record of its port is missing");
	if (!r)
		r = vp_rec_find(in, TAG_ATTACHMENT, &body) ? pl->att->ops->restore_hot(pl->att, &body, e) :
		    vp_err_set(e, -EPROTO, "the record of its attachment is missing");
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_QUEUE)
			r = i < pl->n ? load_queue(pl, i++, &body, e) :
			    vp_err_set(e, -EPROTO, "the record of its queues has too many");
	return !r && i != pl->n ? vp_err_set(e, -EPROTO, "the record of its queues lacks some") : r;
}

int vp_plink_restore_hot(struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_plink *pl = l->impl;
	int r = load_hot(pl, in, e);

	/* From now on until that daemon's guard hears of the verdict both have it. */
	if (!r)
		vp_plink_guard_update(pl);
	return r;
}

/* ---- for a daemon that comes when this one has ended anywhere (keep.h) ----------------------- */

int vp_plink_can_keep(const struct vp_link *l, struct vp_err *e)
{
	const struct vp_plink *pl = l->impl;

	for (unsigned i = 0; i < pl->n; i++)
		if (elsewhere(pl, i))
			return vp_err_set(e, -EOPNOTSUPP, "a queue of it is copied for now");
	return pl->m->can_keep ? pl->m->can_keep(pl, e) : 0;
}

void vp_plink_save_kept(struct vp_link *l, struct vp_rec *r)
{
	struct vp_plink *pl = l->impl;

	pl->keeps = true;
	vp_plink_save_hot(l, r);
	pl->keeps = false;
	if (!pl->guarded)
		return;
	vp_rec_fd(r, TAG_LINE, VP_REC_FD_SOCKET, pl->line[0]);
	vp_rec_fd(r, TAG_LINE_END, VP_REC_FD_SOCKET, pl->line[1]);
}

/* Those that data threads drop packets from are where their lines say, the others where they were when saved. */
static int recover_rings(struct vp_plink *pl, const struct vp_place *old, unsigned n, struct vp_err *e)
{
	int r = 0;

	for (unsigned i = 0; !r && pl->slot.v && i < pl->n && i < n; i++) {
		struct vp_vdev_ring *ring = vp_vdev_ring(pl->slot.v, i);

		if (pl->q[i].handed || !vp_plink_drops(pl, i) || !ring->usable || ring->rq.vq.broken)
			continue;
		r = vp_vdev_recover_ring(pl->slot.v, i, &old[i], e);
		if (!r)
			worker_call(pl->l->d->workers, &ring->rq);
	}
	return r;
}

int vp_plink_recover(struct vp_link *l, const struct vp_place *old, unsigned n, const struct vp_rec_in *kept,
		     struct vp_err *e)
{
	struct vp_plink *pl = l->impl;
	int end = -1, r;

	if (!kept)
		return vp_err_set(e, -EPROTO, "its record is malformed");
	pl->recovers = true;
	vp_port_anew(pl->port);
	r = vp_rec_take(kept, TAG_LINE, VP_REC_FD_SOCKET, &pl->claim, e);
	if (!r)
		r = vp_rec_take(kept, TAG_LINE_END, VP_REC_FD_SOCKET, &end, e);
	if (!r)
		r = load_hot(pl, kept, e);
	if (!r && pl->att->ops->recover)
		r = pl->att->ops->recover(pl->att, e);
	if (!r)
		r = recover_rings(pl, old, n, e);
	/* Last: until then the guard before sees to it. */
	if (!r)
		vp_plink_guard_update(pl);
	if (!r && pl->claim >= 0 && !pl->guarded)
		r = vp_err_set(e, -ESTALE, "the guard of the daemon before has parted its VMs");
	vp_close(&pl->claim);
	vp_close(&end);
	return r;
}

void vp_plink_go_on(struct vp_link *l)
{
	struct vp_plink *pl = l->impl;

	pl->recovers = false;
	pl->quiet++;
	/* What was published while nothing was known of the device VM. */
	vp_plink_withdraw(pl, 0, pl->n);
	vp_port_go_on(pl->port);
	/* Now, for what of it may be shown depends on what other ports show. */
	if (pl->slot.v && pl->m->memory)
		pl->m->memory(pl);
	pl->att->ops->go_on(pl->att);
	vp_plink_update(pl);
	/* Who asked the driver VM's VMM for something does not hear its answer. */
	if (pl->m->grants)
		vp_grants_translated(pl->m->grants(pl));
	vp_port_command(pl->port);
	/* It knows what is so, and asks the driver VM's VMM for it when that is connected. */
	vp_carrier_set(pl->carrier, l->up && vp_port_attached(pl->port));
	pl->quiet--;
	vp_plink_remember(pl);
}
