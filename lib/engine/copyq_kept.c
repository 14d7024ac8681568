/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine in memory that outlives the process (docs/handover.md): its tables lie there, and where it is is
 * written down at the end of each step. Security model: see copyq.h. No other VM has this memory. What is found there
 * is a daemon's of ours; whatever it says, no index of it leads out of a table, an area or a ring.
 *
 * Where the engine is lies there twice. A step writes the half that is not in force, and everything that nobody sees
 * yet: packets, descriptors, the list of what the driver gets. Then one store puts that half in force. Then the device
 * VM and the driver see it. So a step that is cut off has either not happened, and what it did to the tables is found
 * by what was in force before; or it has, and what was not shown yet is shown.
 */
#include <errno.h>
#include <string.h>

#include "engine/copyq_priv.h"

#define MAGIC 0x76706371u

struct snapshot {
	uint32_t head, tail, pend_head, pend_tail, order;
	uint32_t data_head, data_used, segs_head, segs_used;
	/* entries of given[] that the driver gets; when it has them, the next step may be writing others there */
	uint32_t given;
	uint16_t avail, from, used; /* of the driver's ring: positions; `from`: without these entries */
	struct vp_drvq_at shadow;
} __attribute__((aligned(128)));
_Static_assert(sizeof(struct snapshot) == 128, "two lines");

struct vp_copyq_kept {
	uint32_t magic, in_force; /* of snap[] */
	uint32_t size, slots;	  /* of the shadow ring, and of slot[] */
	uint64_t features;
	uint8_t early, packed; /* packed: the driver's ring */
	struct snapshot snap[2];
	struct vp_copyq_slot slot[VP_COPYQ_RING_MAX];
	struct vp_drvq_id id[VP_COPYQ_RING_MAX];
	uint16_t pend[VP_COPYQ_RING_MAX];
	struct vp_used given[VP_COPYQ_RING_MAX + VP_BURST];
	struct vp_copyq_seg seg[VP_COPYQ_SEGS_MAX + 1];
};

size_t vp_copyq_kept_bytes(void)
{
	return vp_align_up(sizeof(struct vp_copyq_kept), 4096);
}

void vp_copyq_kept_tables(struct vp_copyq *b)
{
	b->kept = b->c.kept;
	b->slot = b->kept->slot;
	b->pend = b->kept->pend;
	b->given = b->kept->given;
	b->seg = b->kept->seg;
}

/* ---- writing --------------------------------------------------------------------------- */

/* n entries of given[] go back with it. */
static void note(struct vp_copyq *b, unsigned n)
{
	struct vp_copyq_kept *k = b->kept;
	const struct vp_virtq *vq = &b->c.rq->vq;
	const unsigned slots = vq->packed ? vp_used_slots(b->given, n) : n;

	k->snap[!k->in_force] = (struct snapshot){
		.head = b->head,
		.tail = b->tail,
		.pend_head = b->pend_head,
		.pend_tail = b->pend_tail,
		.order = b->order,
		.data_head = b->data.head,
		.data_used = b->data.used,
		.segs_head = b->segs.head,
		.segs_used = b->segs.used,
		.given = n,
		.avail = vp_vq_avail_pos(vq),
		.from = vp_vq_pos(vq),
		.used = vp_vq_pos_behind(vq, slots),
		.shadow = vp_drvq_where(&b->shadow),
	};
}

static void put_in_force(struct vp_copyq_kept *k)
{
	VP_PLACE_ORDER();
	k->in_force = !k->in_force;
	VP_PLACE_ORDER();
}

void vp_copyq_kept_begin(struct vp_copyq *b)
{
	struct vp_copyq_kept *k = b->kept;

	k->magic = 0;
	VP_PLACE_ORDER();
	if (b->shadow.id != k->id)
		vp_drvq_lend(&b->shadow, k->id);
	k->size = b->shadow.size;
	k->slots = b->mask + 1;
	k->features = b->c.features;
	k->early = b->c.early;
	k->packed = b->c.rq->vq.packed;
	k->in_force &= 1;
	note(b, 0);
	put_in_force(k);
	k->magic = MAGIC;
}

void vp_copyq_settle(struct vp_copyq *b, unsigned n)
{
	struct vp_virtq *vq = &b->c.rq->vq;

	vp_place_point(VP_POINT_COPY_ALL);
	note(b, n);
	vp_place_point(VP_POINT_COPY_NOTED);
	put_in_force(b->kept);
	vp_place_point(VP_POINT_COPY_COUNTS);
	vp_drvq_publish(&b->shadow);
	vp_place_point(VP_POINT_COPY_SHOWN);
	if (!n)
		return;
	vp_vq_show(vq, vp_vq_write(vq, b->given, n));
	vp_place_point(VP_POINT_COPY_GIVEN);
}

/* ---- reading --------------------------------------------------------------------------- */

/* What became of each slot the tables do not say: a step that does not count may have changed that. */
static bool states(struct vp_copyq *b)
{
	const uint32_t n = b->head - b->tail;

	if (n > b->mask + 1 || b->pend_head - b->pend_tail > n || b->order - b->tail > n)
		return false;
	for (uint32_t i = b->tail; i != b->head; i++)
		b->slot[i & b->mask].state =
			b->in_order && !b->c.early && b->head - i <= b->head - b->order ? VP_COPYQ_BACK : VP_COPYQ_DONE;
	for (uint32_t i = b->pend_tail; i != b->pend_head; i++) {
		const uint16_t at = b->pend[i & b->mask];

		if (at > b->mask || ((at - b->tail) & b->mask) >= n)
			return false;
		b->slot[at].state = VP_COPYQ_BACK;
	}
	for (unsigned i = 0; i < b->shadow.size; i++) {
		const struct vp_drvq_id *id = &b->shadow.id[i];

		if (!id->ndesc)
			continue;
		if (id->tag > b->mask || ((id->tag - b->tail) & b->mask) >= n)
			return false;
		b->slot[id->tag].state = VP_COPYQ_AWAY;
	}
	return true;
}

/* An early queue's `order` is of no use, and stays 0. */
static void where_it_was(struct vp_copyq *b, const struct snapshot *s)
{
	b->head = s->head;
	b->tail = s->tail;
	b->pend_head = s->pend_head;
	b->pend_tail = s->pend_tail;
	b->order = b->in_order && !b->c.early ? s->order : s->head;
	b->data.head = s->data_head;
	b->data.used = s->data_used;
	b->segs.head = s->segs_head;
	b->segs.used = s->segs_used;
	b->again = b->pend_head != b->pend_tail;
	b->anew = true;
}

/* The driver's ring, when all else is in order. */
static int driver_ring(struct vp_copyq *b, const struct snapshot *s)
{
	if (s->given > b->mask + 1 + VP_BURST)
		return -EPROTO;
	return vp_place_finish(&b->c.rq->vq, s->from, s->used, s->avail, b->given, s->given);
}

int vp_copyq_kept_recover(struct vp_copyq *b, uint16_t size, vp_gptr mem)
{
	struct vp_copyq_kept *k = b->kept;
	const struct snapshot *s = &k->snap[k->in_force & 1];
	int r;

	if (k->magic != MAGIC || k->size != size || k->slots != b->mask + 1 || k->early != b->c.early ||
	    k->packed != b->c.rq->vq.packed)
		return -EPROTO;
	r = vp_drvq_recover(&b->shadow, size, b->c.features, mem, k->id, &s->shadow, s->tail, b->mask);
	if (r)
		return r;
	where_it_was(b, s);
	if (!states(b) || !vp_copyq_sound(b))
		return -EPROTO;
	r = driver_ring(b, s);
	if (!r)
		vp_drvq_go_on(&b->shadow);
	return r;
}

uint64_t vp_copyq_kept_features(const struct vp_copyq_kept *k)
{
	return k->features;
}
