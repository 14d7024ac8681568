/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine: made, freed, and as a record (docs/handover.md). Security model: see copyq.h. */
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>

#include "engine/copyq_priv.h"
#include "engine/packet.h"
#include "net/offload.h"

uint64_t vp_copyq_ring_bytes(void)
{
	uint64_t driver, device;

	/* The split layout is the larger. */
	return vp_align_up(vp_drvq_layout(VP_COPYQ_RING_MAX, false, &driver, &device), 4096);
}

uint32_t vp_copyq_base(const struct vp_copyq *b)
{
	return b->shadow.packed ? 0x80008000u : 0;
}

static bool area_ok(const struct vp_copyq_area *a)
{
	return !((a->off | a->size) & 63) && a->size < UINT32_MAX;
}

/* ---- as a record --------------------------------------------------------------------- */

enum tag { TAG_ENGINE = 1, TAG_SLOTS, TAG_PENDING, TAG_SEGS, TAG_SEGS_MORE, TAG_SHADOW };

enum { F_BLOCKED = 1, F_AGAIN = 2, F_STALLED = 4, F_HELD = 8, F_OPEN = 16 };

struct engine_rec {
	uint64_t features, kicks;
	uint32_t flags, head, tail, pend_head, pend_tail, order;
	uint32_t data_head, data_used, segs_head, segs_used;
};

/* Both are written as they are. */
_Static_assert(sizeof(struct vp_copyq_slot) == 40 && sizeof(struct vp_copyq_seg) == 16, "the layout of the record");

/* Those in use end at the head; where they go round the end they begin at segs_from(), segs_first() of them. */
static uint32_t segs_from(const struct vp_copyq *b)
{
	return b->segs.head >= b->segs.used ? b->segs.head - b->segs.used : b->segs.size - b->segs.used + b->segs.head;
}

static uint32_t segs_first(const struct vp_copyq *b)
{
	return b->segs.head >= b->segs.used ? b->segs.used : b->segs.used - b->segs.head;
}

void vp_copyq_save(const struct vp_copyq *b, struct vp_rec *r)
{
	const struct engine_rec s = {
		.features = b->c.features, .kicks = b->kicks,
		.flags = (b->blocked ? F_BLOCKED : 0) | (b->again ? F_AGAIN : 0) | (b->stalled ? F_STALLED : 0) |
			 (b->held ? F_HELD : 0) | (b->open ? F_OPEN : 0),
		.head = b->head, .tail = b->tail, .pend_head = b->pend_head, .pend_tail = b->pend_tail,
		.order = b->order, .data_head = b->data.head, .data_used = b->data.used, .segs_head = b->segs.head,
		.segs_used = b->segs.used,
	};

	vp_rec_put(r, TAG_ENGINE, &s, sizeof(s));
	vp_rec_put(r, TAG_SLOTS, b->slot, (b->mask + 1) * sizeof(*b->slot));
	vp_rec_put(r, TAG_PENDING, b->pend, (b->mask + 1) * sizeof(*b->pend));
	/* Of the rest, which is nearly all, nobody knows any more: the longest record is that of the queues. */
	vp_rec_put(r, TAG_SEGS, b->seg + segs_from(b), segs_first(b) * sizeof(*b->seg));
	vp_rec_put(r, TAG_SEGS_MORE, b->seg, (b->segs.used - segs_first(b)) * sizeof(*b->seg));
	vp_rec_begin(r, TAG_SHADOW);
	vp_drvq_save(&b->shadow, r);
	vp_rec_end(r);
}

/* A slot of a receive queue: it has room for len bytes, in the pool and in its chain, which the ring can hold. */
static bool slot_ok(const struct vp_copyq *b, const struct vp_copyq_slot *sl, uint32_t len)
{
	uint64_t sum = 0;

	if (sl->slots > b->c.rq->vq.size)
		return false;
	if (sl->state > VP_COPYQ_DONE || !len)
		return sl->state <= VP_COPYQ_DONE;
	if (!vp_range_inside(sl->off, len, 0, b->data.size))
		return false;
	if (sl->nseg == 1)
		return true;
	if (!sl->nseg || !vp_range_inside(sl->seg, sl->nseg, 0, b->segs.size))
		return false;
	for (uint32_t i = 0; i < sl->nseg; i++)
		sum += b->seg[sl->seg + i].len;
	return sum >= len;
}

bool vp_copyq_sound(const struct vp_copyq *b)
{
	const uint32_t n = b->mask + 1;

	if (b->head - b->tail > n || b->pend_head - b->pend_tail > n ||
	    /* An early queue has nothing to put in order. */
	    (b->in_order && !b->c.early && b->order - b->tail > b->head - b->tail) ||
	    b->data.head > b->data.size || b->data.used > b->data.size || b->segs.head > b->segs.size ||
	    b->segs.used > b->segs.size)
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (b->pend[i] > b->mask)
			return false;
	for (uint32_t i = b->pend_tail; i != b->pend_head && !b->c.early; i++) {
		const struct vp_copyq_slot *sl = &b->slot[b->pend[i & b->mask]];

		if (!slot_ok(b, sl, sl->len))
			return false;
	}
	for (uint32_t i = b->tail; i != b->head && !b->c.early; i++) {
		const struct vp_copyq_slot *sl = &b->slot[i & b->mask];

		if (!slot_ok(b, sl, sl->state == VP_COPYQ_BACK ? sl->len : 0))
			return false;
	}
	for (unsigned i = 0; i < b->shadow.size; i++) {
		const struct vp_drvq_id *id = &b->shadow.id[i];

		if (id->ndesc && (id->tag > b->mask ||
				  (!b->c.early && !slot_ok(b, &b->slot[id->tag], id->in_len))))
			return false;
	}
	return true;
}

static bool load_array(const struct vp_rec_in *in, unsigned tag, void *to, size_t n)
{
	struct vp_rec_in body;

	if (!vp_rec_find(in, tag, &body) || body.n != n)
		return false;
	if (n)
		memcpy(to, body.p, n);
	return true;
}

static int load(struct vp_copyq *b, uint16_t size, vp_gptr mem, const struct vp_rec_in *in)
{
	struct vp_rec_in shadow;
	struct engine_rec s;
	int ret;

	if (vp_rec_get(in, TAG_ENGINE, &s, sizeof(s)) || !vp_rec_find(in, TAG_SHADOW, &shadow) ||
	    !load_array(in, TAG_SLOTS, b->slot, (b->mask + 1) * sizeof(*b->slot)) ||
	    !load_array(in, TAG_PENDING, b->pend, (b->mask + 1) * sizeof(*b->pend)) ||
	    s.segs_head > b->segs.size || s.segs_used > b->segs.size)
		return -EPROTO;
	b->segs.head = s.segs_head;
	b->segs.used = s.segs_used;
	if (!load_array(in, TAG_SEGS, b->seg + segs_from(b), segs_first(b) * sizeof(*b->seg)) ||
	    !load_array(in, TAG_SEGS_MORE, b->seg, (b->segs.used - segs_first(b)) * sizeof(*b->seg)))
		return -EPROTO;
	ret = vp_drvq_restore(&b->shadow, size, b->c.features, mem, &shadow);
	if (ret)
		return ret;
	b->kicks = s.kicks;
	b->blocked = s.flags & F_BLOCKED;
	b->again = s.flags & F_AGAIN;
	b->stalled = s.flags & F_STALLED;
	b->held = s.flags & F_HELD;
	b->open = s.flags & F_OPEN;
	b->head = s.head;
	b->tail = s.tail;
	b->pend_head = s.pend_head;
	b->pend_tail = s.pend_tail;
	b->order = s.order;
	b->data.head = s.data_head;
	b->data.used = s.data_used;
	return b->shadow.broken || vp_copyq_sound(b) ? 0 : -EPROTO;
}

/* ---- made and freed ------------------------------------------------------------------ */

/* What it begins with. */
enum from { NOTHING, RECORD, KEPT };

static int shadow_make(struct vp_copyq *b, uint16_t size, enum from from, const struct vp_rec_in *in)
{
	vp_gptr mem = vp_gptr_add(b->c.pool, b->c.ring.off);
	int ret;

	if (from == KEPT)
		return vp_copyq_kept_recover(b, size, mem);
	if (from == RECORD)
		return load(b, size, mem, in);
	ret = vp_drvq_init(&b->shadow, size, b->c.features, mem);
	if (!ret)
		vp_drvq_disable_calls(&b->shadow);
	return ret;
}

static bool tables_make(struct vp_copyq *b, unsigned slots, enum from from)
{
	if (b->c.kept) {
		vp_copyq_kept_tables(b);
		if (from == NOTHING)
			memset(b->pend, 0, slots * sizeof(*b->pend));
		return true;
	}
	b->slot = calloc(slots, sizeof(*b->slot));
	b->pend = calloc(slots, sizeof(*b->pend));
	b->seg = calloc(b->segs.size + 1, sizeof(*b->seg));
	/* One packet takes at most as many as there are slots; a burst comes on top. */
	b->given = calloc(slots + VP_BURST, sizeof(*b->given));
	return b->slot && b->pend && b->seg && b->given;
}

static int make(struct vp_copyq **out, const struct vp_copyq_conf *c, enum from from, const struct vp_rec_in *in,
		struct vp_err *e)
{
	bool packed = c->features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint16_t size = VP_MIN(c->rq->vq.size, VP_COPYQ_RING_MAX);
	uint64_t driver, device, bytes;
	struct vp_copyq *b;
	unsigned slots = 1;
	int ret;

	if (!size)
		return vp_err_set(e, -EINVAL, "the driver's ring is not started");
	/* A packed driver's ring may have any size, a split shadow may not. */
	while (!packed && !vp_is_pow2(size))
		size = (uint16_t)(size & (size - 1));
	bytes = vp_drvq_layout(size, packed, &driver, &device);
	if (!area_ok(&c->ring) || !area_ok(&c->data) || c->ring.size < bytes || !c->data.size)
		return vp_err_set(e, -EINVAL, "pool areas do not fit a ring of %u", size);
	while (slots < size)
		slots *= 2;
	b = aligned_alloc(VP_CACHELINE, vp_align_up(sizeof(*b), VP_CACHELINE));
	if (!b)
		return vp_err_set(e, -ENOMEM, "out of memory");
	*b = (struct vp_copyq){
		.c = *c, .mask = slots - 1, .open = true,
		.data.size = (uint32_t)c->data.size,
		.hdr_len = (uint16_t)vp_net_hdr_len(c->rq->features),
		.in_order = c->rq->features & VP_BIT(VIRTIO_F_IN_ORDER),
		.mergeable = !c->early && c->rq->features & VP_BIT(VIRTIO_NET_F_MRG_RXBUF),
		.desc_addr = c->pool_addr + c->ring.off,
		.avail_addr = c->pool_addr + c->ring.off + driver,
		.used_addr = c->pool_addr + c->ring.off + device,
	};
	/* Room for several chains of the longest kind besides what a full ring of two-piece buffers needs. */
	b->segs.size = !c->early ? VP_COPYQ_SEGS + VP_BURST + 2u * slots : 0;
	ret = tables_make(b, slots, from) ? shadow_make(b, size, from, in) : -ENOMEM;
	if (ret) {
		vp_copyq_free(b);
		return vp_err_set(e, ret, "shadow ring of %u: %s", size,
				  ret == -ENOMEM  ? "out of memory"
				  : ret == -EPROTO ? "its record is malformed"
						   : "invalid size");
	}
	if (b->kept)
		vp_copyq_kept_begin(b);
	*out = b;
	return 0;
}

int vp_copyq_new(struct vp_copyq **out, const struct vp_copyq_conf *c, struct vp_err *e)
{
	return make(out, c, NOTHING, NULL, e);
}

int vp_copyq_restore(struct vp_copyq **out, const struct vp_copyq_conf *c, const struct vp_rec_in *in,
		     struct vp_err *e)
{
	struct vp_copyq_conf was = *c;
	struct engine_rec s;

	if (vp_rec_get(in, TAG_ENGINE, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of a copy engine is malformed");
	was.features = s.features;
	return make(out, &was, RECORD, in, e);
}

int vp_copyq_recover(struct vp_copyq **out, const struct vp_copyq_conf *c, struct vp_err *e)
{
	struct vp_copyq_conf was = *c;

	was.features = vp_copyq_kept_features(c->kept);
	return make(out, &was, KEPT, NULL, e);
}

void vp_copyq_free(struct vp_copyq *b)
{
	if (!b)
		return;
	vp_drvq_fini(&b->shadow);
	if (!b->kept) {
		free(b->slot);
		free(b->pend);
		free(b->seg);
		free(b->given);
	}
	free(b);
}
