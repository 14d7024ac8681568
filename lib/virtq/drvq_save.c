/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver's side of a ring as a record (docs/handover.md). Threat model: base/record.h. Whatever the record says, no
 * index of it leads out of the ring, and no descriptor is free twice. The same holds for what a process left that ended
 * anywhere.
 */
#include "virtq/drvq.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum tag { TAG_RING = 1, TAG_IDS };

enum { F_PACKED = 1, F_EVENT_IDX = 2, F_IN_ORDER = 4, F_BROKEN = 8, F_AVAIL_WRAP = 16, F_USED_WRAP = 32 };

struct ring_rec {
	uint32_t flags, batch_len;
	uint16_t size, num_free, free_id, oldest, newest, outstanding;
	uint16_t avail, used, used_seen, kicked, added, batch, batch_id, pad;
};

/* Of each: struct vp_drvq_id, whose layout is that of the record. */
_Static_assert(sizeof(struct vp_drvq_id) == 12, "ids are written as they are");

void vp_drvq_save(const struct vp_drvq *q, struct vp_rec *r)
{
	const struct ring_rec s = {
		.flags = (q->packed ? F_PACKED : 0) | (q->event_idx ? F_EVENT_IDX : 0) |
			 (q->in_order ? F_IN_ORDER : 0) | (q->broken ? F_BROKEN : 0) |
			 (q->avail_wrap ? F_AVAIL_WRAP : 0) | (q->used_wrap ? F_USED_WRAP : 0),
		.batch_len = q->batch_len, .size = q->size, .num_free = q->num_free, .free_id = q->free_id,
		.oldest = q->oldest, .newest = q->newest, .outstanding = q->outstanding, .avail = q->avail,
		.used = q->used, .used_seen = q->used_seen, .kicked = q->kicked, .added = q->added, .batch = q->batch,
		.batch_id = q->batch_id,
	};

	vp_rec_put(r, TAG_RING, &s, sizeof(s));
	vp_rec_put(r, TAG_IDS, q->id, q->size * sizeof(*q->id));
}

/* n ids from `at` on, of the list that `next` makes: all of them others, and none of them seen before. */
static bool list_ok(const struct vp_drvq *q, uint16_t at, unsigned n, uint8_t *seen)
{
	for (; n; n--, at = q->id[at].next) {
		if (at >= q->size || seen[at])
			return false;
		seen[at] = 1;
	}
	return true;
}

static bool ids_ok(const struct vp_drvq *q, uint8_t *seen)
{
	unsigned chains = 0, descs = 0;

	/* Descriptors are ids (split), or each chain has one id (packed). */
	if (!list_ok(q, q->free_id, q->packed ? q->size - q->outstanding : q->num_free, seen))
		return false;
	for (unsigned i = 0; i < q->size; i++) {
		uint16_t at = (uint16_t)i;

		if (!q->id[i].ndesc)
			continue;
		if (seen[i])
			return false;
		seen[i] = 1;
		chains++;
		descs += q->id[i].ndesc;
		for (unsigned n = q->packed ? 1 : q->id[i].ndesc; n > 1; n--) {
			at = q->id[at].next_desc;
			if (at >= q->size || seen[at] || q->id[at].ndesc)
				return false;
			seen[at] = 1;
		}
	}
	return chains == q->outstanding && descs + q->num_free == q->size;
}

/* The chains that are out, oldest first. */
static bool order_ok(const struct vp_drvq *q)
{
	uint16_t at = q->oldest;

	for (unsigned n = q->in_order ? q->outstanding : 0; n; n--, at = q->id[at].next)
		if (at >= q->size || !q->id[at].ndesc || (n == 1 && at != q->newest))
			return false;
	return true;
}

static bool place_ok(const struct vp_drvq *q)
{
	return q->outstanding <= q->size && q->num_free <= q->size && q->batch <= q->outstanding &&
	       (!q->batch || (q->batch_id < q->size && q->id[q->batch_id].ndesc)) &&
	       (!q->packed || (q->avail < q->size && q->used < q->size));
}

int vp_drvq_restore(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, const struct vp_rec_in *in)
{
	bool packed = features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint64_t driver, device;
	struct vp_rec_in ids;
	struct ring_rec s;
	uint8_t *seen;
	bool ok;

	if (vp_rec_get(in, TAG_RING, &s, sizeof(s)) || s.size != size || !size || !(s.flags & F_PACKED) == packed ||
	    !vp_rec_find(in, TAG_IDS, &ids) || ids.n != size * sizeof(*q->id))
		return -EPROTO;
	vp_drvq_layout(size, packed, &driver, &device);
	*q = (struct vp_drvq){
		.desc = mem, .driver = vp_gptr_add(mem, driver), .device = vp_gptr_add(mem, device), .size = size,
		.packed = packed, .event_idx = s.flags & F_EVENT_IDX, .in_order = s.flags & F_IN_ORDER,
		.broken = s.flags & F_BROKEN, .num_free = s.num_free, .free_id = s.free_id, .oldest = s.oldest,
		.newest = s.newest, .outstanding = s.outstanding, .avail = s.avail, .used = s.used,
		.used_seen = s.used_seen, .avail_wrap = s.flags & F_AVAIL_WRAP, .used_wrap = s.flags & F_USED_WRAP,
		.kicked = s.kicked, .added = s.added, .batch = s.batch, .batch_id = s.batch_id,
		.batch_len = s.batch_len,
	};
	q->id = malloc(size * sizeof(*q->id));
	seen = calloc(size, 1);
	if (!q->id || !seen) {
		free(seen);
		vp_drvq_fini(q);
		return -ENOMEM;
	}
	memcpy(q->id, ids.p, ids.n);
	/* A broken one is not worked with any more. */
	ok = q->broken || (place_ok(q) && ids_ok(q, seen) && order_ok(q));
	free(seen);
	if (ok)
		return 0;
	vp_drvq_fini(q);
	return -EPROTO;
}

/* ---- for a process that comes after one that ended anywhere -------------------------------------- */

/*
 * Who is out: all that are not free. To collect puts ids in front of the free list, to add takes them from there, and
 * neither changes a link of what was in it before.
 */
static bool who_is_out(struct vp_drvq *q)
{
	uint8_t *seen = calloc(q->size, 1);
	bool ok = seen && list_ok(q, q->free_id, q->num_free, seen);

	for (unsigned i = 0; ok && i < q->size; i++)
		q->id[i].ndesc = !seen[i];
	free(seen);
	return ok;
}

/* In the order in which they were added; the list of them may be torn. */
static bool put_in_order(struct vp_drvq *q, uint32_t first, uint32_t mask)
{
	uint16_t *at = calloc(mask + 1, sizeof(*at)); /* id + 1 */
	bool ok = at;

	for (unsigned i = 0; ok && i < q->size; i++) {
		const struct vp_drvq_id *id = &q->id[i];

		if (!id->ndesc)
			continue;
		ok = id->tag <= mask && !at[(id->tag - first) & mask];
		if (ok)
			at[(id->tag - first) & mask] = (uint16_t)(i + 1);
	}
	for (uint32_t k = 0, n = 0; ok && q->in_order && k <= mask; k++) {
		if (!at[k])
			continue;
		if (n++)
			q->id[q->newest].next = at[k] - 1;
		else
			q->oldest = at[k] - 1;
		q->newest = at[k] - 1;
	}
	free(at);
	return ok;
}

int vp_drvq_recover(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, struct vp_drvq_id *ids,
		    const struct vp_drvq_at *at, uint32_t first, uint32_t mask)
{
	bool packed = features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint64_t driver, device;

	vp_drvq_layout(size, packed, &driver, &device);
	*q = (struct vp_drvq){
		.desc = mem, .driver = vp_gptr_add(mem, driver), .device = vp_gptr_add(mem, device), .size = size,
		.packed = packed, .event_idx = features & VP_BIT(VIRTIO_RING_F_EVENT_IDX),
		.in_order = features & VP_BIT(VIRTIO_F_IN_ORDER), .num_free = at->num_free, .free_id = at->free_id,
		.outstanding = at->outstanding, .avail = at->avail, .used = at->used, .used_seen = at->used,
		.avail_wrap = at->avail_wrap, .used_wrap = at->used_wrap, .batch = at->batch,
		.batch_id = at->batch_id, .batch_len = at->batch_len, .head_slot = at->head_slot,
		.head_word = at->head_word, .head_pending = at->head_pending, .id = ids, .lent = true,
		/* Whether the device was notified of what it last got is not known. */
		.added = at->outstanding,
	};
	if (q->outstanding + q->num_free != size || (packed && (q->avail >= size || q->head_slot >= size)) ||
	    !who_is_out(q) || !place_ok(q) || !put_in_order(q, first, mask))
		return -EPROTO;
	return 0;
}

/* What is in free slots was not published: behind what will be, the device would take it for its own. */
static void clear_free(struct vp_drvq *q)
{
	uint16_t slot = q->avail;
	bool wrap = q->avail_wrap;

	for (unsigned n = q->num_free; n; n--) {
		vp_st64(q->desc, 16 * (size_t)slot + 8,
			wrap ? 0 : VP_DRVQ_WORD_AVAIL | VP_DRVQ_WORD_USED);
		if (++slot == q->size) {
			slot = 0;
			wrap = !wrap;
		}
	}
}

void vp_drvq_go_on(struct vp_drvq *q)
{
	if (q->packed)
		clear_free(q);
	/* The device may have had it, and have returned it. */
	if (q->packed && q->head_pending &&
	    !((vp_ld64(q->desc, 16 * (size_t)q->head_slot + 8) ^ q->head_word) & VP_DRVQ_WORD_AVAIL))
		q->head_pending = false;
	vp_drvq_publish(q);
}
