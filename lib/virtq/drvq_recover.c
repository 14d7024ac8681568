/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver's side of a ring after a crash. Threat model: which chains are out comes from memory that no VM has, but the
 * process that wrote it ended anywhere; each is checked. The ring itself is the device's to write: what it says decides
 * only whether one descriptor of it is written again.
 */
#include "virtq/drvq.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>

#include "base/util.h"

#define F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define F_USED	(1u << VRING_PACKED_DESC_F_USED)

int vp_drvq_recover_begin(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, uint16_t avail,
			  uint16_t used)
{
	bool packed = features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint64_t driver, device;

	*q = (struct vp_drvq){ .desc = mem };
	if (!size || size > 32768 || (!packed && !vp_is_pow2(size)) || features & VP_BIT(VIRTIO_F_IN_ORDER) ||
	    (packed && ((avail & 0x7fff) >= size || (used & 0x7fff) >= size)))
		return -EPROTO;
	vp_drvq_layout(size, packed, &driver, &device);
	*q = (struct vp_drvq){
		.desc = mem,
		.driver = vp_gptr_add(mem, driver),
		.device = vp_gptr_add(mem, device),
		.size = size,
		.packed = packed,
		.event_idx = features & VP_BIT(VIRTIO_RING_F_EVENT_IDX),
		.num_free = size,
		.avail = packed ? avail & 0x7fff : avail,
		.avail_wrap = !packed || avail & 0x8000,
		.used = packed ? used & 0x7fff : used,
		.used_wrap = !packed || used & 0x8000,
		.used_seen = used,
	};
	q->id = calloc(size, sizeof(*q->id));
	return q->id ? 0 : -ENOMEM;
}

/* While it recovers, `next` of what is out is not 0, so that no descriptor belongs to two chains. */
int vp_drvq_recover_claim(struct vp_drvq *q, const uint16_t *desc, unsigned n, uint32_t in_len, uint16_t tag)
{
	const unsigned ids = q->packed ? 1 : n;

	if (!n || n > VP_DRVQ_MAX_BUFS || n > q->num_free)
		return -EPROTO;
	for (unsigned i = 0; i < ids; i++) {
		if (desc[i] >= q->size || q->id[desc[i]].next)
			return -EPROTO;
		q->id[desc[i]].next = 1;
		q->id[desc[i]].next_desc = i + 1 < ids ? desc[i + 1] : 0;
	}
	q->id[desc[0]].ndesc = (uint16_t)n;
	q->id[desc[0]].in_len = in_len;
	q->id[desc[0]].tag = tag;
	q->num_free = (uint16_t)(q->num_free - n);
	q->outstanding++;
	return 0;
}

static void free_ids(struct vp_drvq *q)
{
	q->free_id = q->size;
	for (unsigned i = q->size; i--;) {
		if (q->id[i].next)
			continue;
		q->id[i].next = q->free_id;
		q->free_id = (uint16_t)i;
	}
}

/* The chains that are out are all that lies between the two places. */
static bool places_ok(const struct vp_drvq *q)
{
	unsigned n;

	if (!q->packed)
		return (uint16_t)(q->avail - q->used) == q->outstanding;
	n = q->avail_wrap == q->used_wrap ? q->avail : q->avail + (unsigned)q->size;
	return n >= q->used && n - q->used == (unsigned)q->size - q->num_free;
}

int vp_drvq_recover_end(struct vp_drvq *q, bool pending, uint16_t head_slot, uint64_t head_word)
{
	if (!places_ok(q) || (pending && (!q->packed || head_slot >= q->size)))
		return -EPROTO;
	free_ids(q);
	q->head_pending = pending;
	q->head_slot = head_slot;
	q->head_word = head_word;
	/* Whether the device was notified of what it last got is not known. */
	q->added = q->packed ? q->size - q->num_free : q->outstanding;
	vp_drvq_go_on(q);
	return 0;
}
