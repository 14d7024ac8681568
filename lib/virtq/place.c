/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the lines are a daemon's of ours, that ended anywhere, or was taken over before; the ring is its
 * driver's, who may write what he likes at any time. Positions and counts are held against the ring's size. What the
 * ring says decides only what is written into the same ring.
 */
#include "virtq/place.h"

#include <errno.h>
#include <signal.h>

#include "virtq/virtq.h"

unsigned vp_place_crash_at, vp_place_crash_n;

bool vp_place_crash_due(void)
{
	return vp_place_crash_n <= 1 || !vp_place_crash_n--;
}

void vp_place_crash(void)
{
	/* seccomp all: tgkill */
	raise(SIGKILL);
}

void vp_place_reset(struct vp_place *p, const struct vp_virtq *vq)
{
	*p = (struct vp_place){ .pos = vp_vq_pos(vq), .receiver = p->receiver };
}

/* ---- split ----------------------------------------------------------------------------------- */

static int split_recover(struct vp_virtq *vq, const struct vp_place *own, const struct vp_place *as_receiver)
{
	uint16_t to = vq->used_idx;

	if (as_receiver && (uint16_t)(as_receiver->intent >> 16) == to) {
		to = (uint16_t)as_receiver->intent; /* its entries are all written */
	} else if (own->intent && (uint16_t)(own->intent >> 48) == to) {
		struct vp_used u[VP_BURST];
		unsigned n;

		to = (uint16_t)(own->intent >> 32);
		n = (uint16_t)(to - vq->used_idx);
		if (n > VP_BURST)
			return -EPROTO;
		/* What it has not got back the driver does not overwrite. */
		for (unsigned i = 0; i < n; i++)
			u[i] = (struct vp_used){
				.id = vp_ld16(vq->driver, 4 + 2 * (size_t)((vq->used_idx + i) & (vq->size - 1))),
			};
		vp_split_write(vq, u, n);
		vq->used_idx = (uint16_t)(to - n);
	}
	if ((uint16_t)(to - vq->used_idx) > vq->size)
		return -EPROTO;
	if (to != vq->used_idx) {
		const struct vp_shown s = { .first = vq->used_idx, .n = (uint16_t)(to - vq->used_idx) };

		vq->used_idx = to;
		vp_split_show(vq, s);
	}
	vq->last_avail = vq->avail_seen = to;
	return 0;
}

/* ---- packed ---------------------------------------------------------------------------------- */

static int packed_goto(struct vp_virtq *vq, uint16_t pos)
{
	if ((pos & 0x7fff) >= vq->size)
		return -EPROTO;
	vq->used_idx = vq->last_avail = pos & 0x7fff;
	vq->used_wrap = vq->avail_wrap = pos & 0x8000;
	return 0;
}

/* The chains that the line says are being given back, each with `len` bytes. */
static int noted(const struct vp_virtq *vq, const struct vp_place *own, struct vp_used *u, uint32_t len)
{
	uint16_t slot = vq->used_idx;
	bool wrap = vq->used_wrap;
	unsigned total = 0;

	if (own->how == VP_PLACE_UNKNOWN)
		return -ENODATA;
	if ((own->how != VP_PLACE_ONES && own->how != VP_PLACE_MANY) || !own->n ||
	    own->n > (own->how == VP_PLACE_ONES ? VP_PLACE_SINGLE : VP_PLACE_SLOTS))
		return -EPROTO;
	for (unsigned i = 0; i < own->n; i++) {
		unsigned slots = own->how == VP_PLACE_ONES ? 1 : own->slots[i], last;
		uint64_t w = vp_ld64(vq->desc, 16 * (size_t)slot + 8);
		unsigned f = VP_PACKED_FLAGS(w) & (VP_PACKED_AVAIL | VP_PACKED_USED);

		total += slots;
		if (!slots || total > vq->size)
			return -EPROTO;
		/* The id is in the chain's last descriptor, or already in the first one, as it is given back. */
		last = slot + slots - 1;
		if (f != (wrap ? VP_PACKED_AVAIL | VP_PACKED_USED : 0))
			w = vp_ld64(vq->desc, 16 * (size_t)(last >= vq->size ? last - vq->size : last) + 8);
		u[i] = (struct vp_used){ .len = len, .id = VP_PACKED_ID(w), .slots = (uint16_t)slots };
		vp_packed_step(vq->size, &slot, &wrap, slots);
	}
	return 0;
}

/* Does the driver still wait for the descriptor where the ring stands? */
static bool unseen(const struct vp_virtq *vq)
{
	return vp_packed_is_avail(vp_packed_load(vq->desc, vq->used_idx), vq->used_wrap);
}

static int packed_give_back(struct vp_virtq *vq, const struct vp_place *own, uint32_t len, const uint16_t *to)
{
	struct vp_used u[VP_PLACE_SINGLE];
	int r = noted(vq, own, u, len);
	unsigned n = own->n;
	uint16_t end;

	if (r)
		return r;
	/* More may have been noted since the intent, which is about the first of them. */
	while (to && n && vp_vq_pos_behind(vq, vp_used_slots(u, n)) != *to)
		n--;
	if (!n)
		return -EPROTO;
	end = vp_vq_pos_behind(vq, vp_used_slots(u, n));
	if (unseen(vq))
		vp_packed_show(vq, vp_packed_write(vq, u, n));
	return packed_goto(vq, end);
}

static int packed_recover(struct vp_virtq *vq, const struct vp_place *own, const struct vp_place *as_receiver,
			  uint32_t runt)
{
	int r = packed_goto(vq, own->pos);
	uint16_t to;

	if (r)
		return r;
	if (as_receiver) {
		to = (uint16_t)as_receiver->intent;
		if (own->pos == (uint16_t)(as_receiver->intent >> 16)) {
			if (own->how == VP_PLACE_NONE)
				return -EPROTO;
			if (unseen(vq))
				vp_packed_show(vq, (struct vp_shown){ .head = own->head, .first = vq->used_idx });
			return packed_goto(vq, to);
		}
		return own->pos == to ? 0 : -EPROTO;
	}
	if (vq->out_only) {
		/* Without an intent it was noted, and nothing was written. */
		to = (uint16_t)(own->intent >> 32);
		if (!own->intent || own->pos == to)
			return 0;
		return own->pos == (uint16_t)(own->intent >> 48) ? packed_give_back(vq, own, 0, &to) : -EPROTO;
	}
	return own->how == VP_PLACE_NONE ? 0 : packed_give_back(vq, own, runt, NULL);
}

int vp_place_recover(struct vp_virtq *vq, const struct vp_place *own, const struct vp_place *as_receiver, uint32_t runt)
{
	struct vp_place *line = vq->place;
	int r;

	vq->place = NULL; /* what is finished here is no burst of ours */
	if (as_receiver && (uint16_t)(as_receiver->intent >> 16) == (uint16_t)as_receiver->intent)
		as_receiver = NULL;
	r = vq->packed ? packed_recover(vq, own, as_receiver, runt) : split_recover(vq, own, as_receiver);
	vq->place = line;
	if (!r)
		vp_vq_log_ring(vq); /* what that daemon wrote last it may not have marked any more */
	if (!r && line)
		vp_place_reset(line, vq);
	return r;
}

/* ---- what is written down elsewhere ---------------------------------------------------------- */

static void log_again(struct vp_virtq *vq, uint16_t to)
{
	uint16_t slot = vq->used_idx;
	bool wrap = vq->used_wrap;

	for (unsigned n = 0; vq->log && n < vq->size && (slot | wrap << 15) != to; n++) {
		vp_packed_log_used(vq, slot);
		vp_packed_step(vq->size, &slot, &wrap, 1);
	}
}

static int packed_finish(struct vp_virtq *vq, uint16_t from, uint16_t to, const struct vp_used *u, unsigned n)
{
	unsigned slots = 0;
	int r = packed_goto(vq, from);

	if (r || !n)
		return r ? r : packed_goto(vq, to);
	if (!unseen(vq)) {
		log_again(vq, to);
		return packed_goto(vq, to);
	}
	for (unsigned i = 0; i < n; i++) {
		if (!u[i].slots || u[i].slots > vq->size - slots)
			return -EPROTO;
		slots += u[i].slots;
	}
	if (vp_vq_pos_behind(vq, slots) != to)
		return -EPROTO;
	vp_packed_show(vq, vp_packed_write(vq, u, n));
	return 0;
}

static int split_finish(struct vp_virtq *vq, uint16_t from, uint16_t to, const struct vp_used *u, unsigned n)
{
	struct vp_shown s = { .first = from, .n = (uint16_t)n };

	if (n > vq->size || (uint16_t)(to - from) != n)
		return -EPROTO;
	vq->used_idx = from;
	if (vp_ld16(vq->device, 2) == from)
		s = vp_split_write(vq, u, n);
	vq->used_idx = to;
	if (n)
		vp_split_show(vq, s);
	return 0;
}

int vp_place_finish(struct vp_virtq *vq, uint16_t from, uint16_t to, uint16_t avail, const struct vp_used *u,
		    unsigned n)
{
	struct vp_place *line = vq->place;
	int r;

	if (vq->packed && (avail & 0x7fff) >= vq->size)
		return -EPROTO;
	vq->place = NULL;
	r = vq->packed ? packed_finish(vq, from, to, u, n) : split_finish(vq, from, to, u, n);
	vq->place = line;
	if (r)
		return r;
	if (line)
		vp_place_reset(line, vq);
	vq->last_avail = vq->avail_seen = vq->packed ? avail & 0x7fff : avail;
	vq->avail_wrap = avail & 0x8000;
	vq->signalled_valid = false;
	return 0;
}
