/* SPDX-License-Identifier: BSD-3-Clause */
#include "virtq/drvq.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#define F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define F_USED  (1u << VRING_PACKED_DESC_F_USED)

uint64_t vp_drvq_layout(uint16_t size, bool packed, uint64_t *driver, uint64_t *device)
{
	uint64_t desc = 16 * (uint64_t)size;
	uint64_t drv = packed ? 4 : 6 + 2 * (uint64_t)size, dev = packed ? 4 : 6 + 8 * (uint64_t)size;

	/* Lines of their own: each area has one writer. */
	*driver = vp_align_up(desc, VP_CACHELINE);
	*device = vp_align_up(*driver + drv, VP_CACHELINE);
	return vp_align_up(*device + dev, VP_CACHELINE);
}

int vp_drvq_init(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem)
{
	bool packed = features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint64_t driver, device, bytes;
	uint64_t off;
	unsigned i;

	if (!size || size > 32768 || (!packed && !vp_is_pow2(size)))
		return -EINVAL;
	bytes = vp_drvq_layout(size, packed, &driver, &device);
	for (off = 0; off < bytes; off += 8)
		vp_st64(mem, off, 0);
	*q = (struct vp_drvq){
		.desc = mem, .driver = vp_gptr_add(mem, driver), .device = vp_gptr_add(mem, device),
		.size = size, .packed = packed,
		.event_idx = features & VP_BIT(VIRTIO_RING_F_EVENT_IDX),
		.in_order = features & VP_BIT(VIRTIO_F_IN_ORDER),
		.num_free = size, .avail_wrap = true, .used_wrap = true,
	};
	q->id = calloc(size, sizeof(*q->id));
	if (!q->id)
		return -ENOMEM;
	for (i = 0; i < size; i++)
		q->id[i].next = (uint16_t)(i + 1);
	return 0;
}

void vp_drvq_lend(struct vp_drvq *q, struct vp_drvq_id *ids)
{
	memcpy(ids, q->id, q->size * sizeof(*ids));
	vp_drvq_fini(q);
	q->id = ids;
	q->lent = true;
}

void vp_drvq_fini(struct vp_drvq *q)
{
	if (!q->lent)
		free(q->id);
	q->id = NULL;
}

static uint16_t id_take(struct vp_drvq *q)
{
	uint16_t id = q->free_id;

	q->free_id = q->id[id].next;
	return id;
}

static void id_give(struct vp_drvq *q, uint16_t id)
{
	q->id[id].next = q->free_id;
	q->free_id = id;
}

static void put_desc(struct vp_drvq *q, uint16_t at, const struct vp_drvq_buf *b, uint16_t flags, uint16_t next)
{
	vp_st64(q->desc, 16 * (size_t)at, b->addr);
	vp_st64(q->desc, 16 * (size_t)at + 8, b->len | (uint64_t)flags << 32 | (uint64_t)next << 48);
}

static uint16_t write_flag(const struct vp_drvq_buf *b)
{
	return b->write ? VRING_DESC_F_WRITE : 0;
}

/* The rest of a chain whose first descriptor is in the ring already, as yet unpublished. */
static void add_rest_split(struct vp_drvq *q, uint16_t head, const struct vp_drvq_buf *b, unsigned n)
{
	uint16_t at = head, next;
	unsigned i;

	for (i = 0; i + 1 < n; i++, at = next) {
		next = id_take(q);
		put_desc(q, at, &b[i], write_flag(&b[i]) | VRING_DESC_F_NEXT, next);
		q->id[at].next_desc = next;
	}
	put_desc(q, at, &b[i], write_flag(&b[i]), 0);
}

static void add_rest_packed(struct vp_drvq *q, uint16_t id, const struct vp_drvq_buf *b, unsigned n, uint16_t first,
			    bool first_wrap)
{
	uint64_t flags = (first_wrap ? F_AVAIL : F_USED) | write_flag(&b[0]) | VRING_DESC_F_NEXT;
	uint64_t word = b[0].len | (uint64_t)id << 32 | flags << 48;
	unsigned i;

	if (q->head_slot == first)
		q->head_word = word;
	else
		vp_st64(q->desc, 16 * (size_t)first + 8, word);
	for (i = 1; i < n; i++) {
		flags = (q->avail_wrap ? F_AVAIL : F_USED) | write_flag(&b[i]) | (i + 1 < n ? VRING_DESC_F_NEXT : 0);
		vp_st64(q->desc, 16 * (size_t)q->avail, b[i].addr);
		vp_st64(q->desc, 16 * (size_t)q->avail + 8, b[i].len | (uint64_t)id << 32 | flags << 48);
		if (++q->avail == q->size) {
			q->avail = 0;
			q->avail_wrap = !q->avail_wrap;
		}
		q->added++;
	}
}

int vp_drvq_add(struct vp_drvq *q, const struct vp_drvq_buf *b, unsigned n)
{
	uint16_t id, first = q->avail;
	bool first_wrap = q->avail_wrap;

	if (!n || n > VP_DRVQ_MAX_BUFS || q->num_free < n || q->broken)
		return -ENOSPC;
	id = vp_drvq_add_one(q, b[0].addr, b[0].len, b[0].write);
	if (n == 1)
		return id;
	if (q->packed)
		add_rest_packed(q, id, b, n, first, first_wrap);
	else
		add_rest_split(q, id, b, n);
	q->num_free = (uint16_t)(q->num_free - (n - 1));
	q->id[id].ndesc = (uint16_t)n;
	for (unsigned i = 1; i < n; i++)
		q->id[id].in_len += b[i].write ? b[i].len : 0;
	return id;
}

void vp_drvq_publish(struct vp_drvq *q)
{
	if (!q->packed) {
		/* Pairs with the device's acquire of the index. */
		vp_st16_release(q->driver, 2, q->avail);
	} else if (q->head_pending) {
		/* Pairs with the device's acquire of the flags. */
		vp_st64_release(q->desc, 16 * (size_t)q->head_slot + 8, q->head_word);
		q->head_pending = false;
	}
}

bool vp_drvq_need_kick(struct vp_drvq *q)
{
	/* What was published before the look at the event field. Pairs with the device's barrier. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vp_drvq_need_kick_fenced(q);
}

bool vp_drvq_need_kick_fenced(struct vp_drvq *q)
{
	uint16_t n = q->added, old, event, flags;
	uint32_t w;

	if (!n)
		return false;
	q->added = 0;
	if (!q->packed) {
		if (!q->event_idx)
			return !(vp_ld16(q->device, 0) & VRING_USED_F_NO_NOTIFY);
		event = vp_ld16(q->device, 4 + 8 * (size_t)q->size);
		return vring_need_event(event, q->avail, (uint16_t)(q->avail - n));
	}
	w = vp_ld32(q->device, 0);
	flags = (w >> 16) & 3;
	if (flags == VRING_PACKED_EVENT_FLAG_DISABLE)
		return false;
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !q->event_idx)
		return true;
	event = w & 0x7fff;
	if (!!(w & 0x8000) != q->avail_wrap)
		event = (uint16_t)(event - q->size);
	old = (uint16_t)(q->avail - n);
	return vring_need_event(event, q->avail, old);
}

/* Chain `id` is over: its descriptors and id are free again. */
static void retire(struct vp_drvq *q, uint16_t id)
{
	struct vp_drvq_id *s = &q->id[id];

	q->num_free = (uint16_t)(q->num_free + s->ndesc);
	q->outstanding--;
	if (q->in_order)
		q->oldest = s->next;
	if (!q->packed) {
		uint16_t at = id;

		for (unsigned n = s->ndesc; n > 1; n--) {
			at = q->id[at].next_desc;
			id_give(q, at);
		}
	}
	s->ndesc = 0;
	id_give(q, id);
}

/* Split: used entries beyond q->used, or -EIO when there are more than can be. Loads the index only when it has to. */
static int split_used(struct vp_drvq *q)
{
	unsigned n = (uint16_t)(q->used_seen - q->used);

	if (!n) {
		/* Pairs with the device's release of its index. */
		q->used_seen = vp_ld16_acquire(q->device, 2);
		n = (uint16_t)(q->used_seen - q->used);
	}
	return n > q->outstanding ? -EIO : (int)n;
}

/* Look at the used entry that comes next: 1, 0 none, -EIO. */
static int load_used(struct vp_drvq *q, uint32_t *id, uint32_t *len)
{
	if (!q->packed) {
		size_t at = 4 + 8 * (size_t)(q->used & (q->size - 1));
		int n = split_used(q);

		if (n <= 0)
			return n;
		*id = vp_ld32(q->device, at);
		*len = vp_ld32(q->device, at + 4);
	} else {
		uint64_t w = vp_ld64_acquire(q->desc, 16 * (size_t)q->used + 8);
		unsigned f = (unsigned)(w >> 48) & (F_AVAIL | F_USED);

		if (!q->outstanding || f != (q->used_wrap ? F_AVAIL | F_USED : 0))
			return 0;
		*id = (uint16_t)(w >> 32);
		*len = (uint32_t)w;
	}
	return 1;
}

/*
 * Go on behind chain id: one used entry (split, where a batch skips those of its members), or its descriptors (packed).
 */
static void pass(struct vp_drvq *q, uint16_t id)
{
	unsigned s;

	if (!q->packed) {
		q->used++;
		return;
	}
	s = q->used + q->id[id].ndesc;
	if (s >= q->size) {
		s -= q->size;
		q->used_wrap = !q->used_wrap;
	}
	q->used = (uint16_t)s;
}

/* IN_ORDER: how many of the oldest chains end with id; 0 = it is none of them. */
static unsigned in_order_batch(const struct vp_drvq *q, uint16_t id)
{
	unsigned n;
	uint16_t i = q->oldest;

	for (n = 1; n <= q->outstanding; n++, i = q->id[i].next)
		if (i == id)
			return n;
	return 0;
}

int vp_drvq_get(struct vp_drvq *q, uint16_t *id, uint32_t *len)
{
	uint32_t uid, ulen;

	if (q->broken)
		return -EIO;
	if (!q->batch) {
		int r = load_used(q, &uid, &ulen);

		if (r <= 0) {
			q->broken = r < 0;
			return r;
		}
		if (uid >= q->size || !q->id[uid].ndesc)
			goto bad;
		q->batch = 1;
		if (q->in_order) {
			/* One entry may stand for all chains up to its own (2.7.9, 2.8.18). */
			q->batch = (uint16_t)in_order_batch(q, (uint16_t)uid);
			if (!q->batch || (!q->packed && q->batch > (uint16_t)(q->used_seen - q->used)))
				goto bad;
		}
		q->batch_id = (uint16_t)uid;
		q->batch_len = ulen;
	}
	*id = q->batch > 1 ? q->oldest : q->batch_id;
	/* The chains before the last of a batch were used whole. */
	*len = q->batch > 1 ? q->id[*id].in_len : VP_MIN(q->batch_len, q->id[*id].in_len);
	q->batch--;
	pass(q, *id);
	retire(q, *id);
	return 1;
bad:
	q->broken = true;
	return -EIO;
}

/* Bursts of single descriptors, without IN_ORDER. What is not of this kind stays for vp_drvq_get(). */
static unsigned get_split(struct vp_drvq *q, struct vp_drvq_used *u, unsigned max)
{
	const unsigned size = q->size, mask = size - 1;
	unsigned n = (uint16_t)(q->used_seen - q->used), i;

	if (n < max) {
		/* Pairs with the device's release of its index. */
		q->used_seen = vp_ld16_acquire(q->device, 2);
		n = (uint16_t)(q->used_seen - q->used);
	}
	if (n > q->outstanding)
		return 0;
	n = VP_MIN(n, max);
	for (i = 0; i < n; i++) {
		const size_t at = 4 + 8 * (size_t)((q->used + i) & mask);
		const uint32_t id = vp_ld32(q->device, at), len = vp_ld32(q->device, at + 4);
		struct vp_drvq_id *s;

		if (vp_unlikely(id >= size))
			break;
		s = &q->id[id];
		if (vp_unlikely(s->ndesc != 1))
			break;
		u[i] = (struct vp_drvq_used){ VP_MIN(len, s->in_len), (uint16_t)id, s->tag };
		s->ndesc = 0;
		s->next = q->free_id;
		q->free_id = (uint16_t)id;
	}
	q->used = (uint16_t)(q->used + i);
	return i;
}

static unsigned get_packed(struct vp_drvq *q, struct vp_drvq_used *u, unsigned max)
{
	const uint64_t look = (uint64_t)(F_AVAIL | F_USED) << 48;
	struct vp_drvq_id *const ids = q->id;
	const unsigned size = q->size;
	const vp_gptr desc = q->desc;
	uint64_t want = q->used_wrap ? look : 0;
	uint16_t free_id = q->free_id;
	unsigned at = q->used, i;

	max = VP_MIN(max, q->outstanding);
	for (i = 0; i < max; i++) {
		/* Pairs with the device's release of the flags. */
		const uint64_t w = vp_ld64_acquire(desc, 16 * (size_t)at + 8);
		const uint16_t id = (uint16_t)(w >> 32);
		struct vp_drvq_id *s;

		if ((w & look) != want || vp_unlikely(id >= size))
			break;
		s = &ids[id];
		if (vp_unlikely(s->ndesc != 1))
			break;
		u[i] = (struct vp_drvq_used){ VP_MIN((uint32_t)w, s->in_len), id, s->tag };
		s->ndesc = 0;
		s->next = free_id;
		free_id = id;
		if (vp_unlikely(++at == size)) {
			at = 0;
			want ^= look;
		}
	}
	q->used = (uint16_t)at;
	q->used_wrap = want != 0;
	q->free_id = free_id;
	return i;
}

unsigned vp_drvq_get_burst(struct vp_drvq *q, struct vp_drvq_used *u, unsigned max)
{
	unsigned n = 0;

	if (vp_unlikely(q->broken))
		return 0;
	while (n < max) {
		if (vp_likely(!q->in_order)) {
			unsigned k = q->packed ? get_packed(q, u + n, max - n) : get_split(q, u + n, max - n);

			q->num_free = (uint16_t)(q->num_free + k);
			q->outstanding = (uint16_t)(q->outstanding - k);
			n += k;
			if (n == max)
				break;
		}
		/* None, or one of the other kinds. */
		if (vp_drvq_get(q, &u[n].id, &u[n].len) <= 0)
			break;
		u[n].tag = q->id[u[n].id].tag;
		n++;
	}
	return n;
}

bool vp_drvq_enable_calls(struct vp_drvq *q)
{
	uint32_t id, len;

	if (q->broken)
		return false;
	if (q->packed && q->event_idx) {
		vp_st16(q->driver, 0, (uint16_t)(q->used | (q->used_wrap ? 0x8000 : 0)));
		vp_st16_release(q->driver, 2, VRING_PACKED_EVENT_FLAG_DESC);
	} else if (q->packed) {
		vp_st16(q->driver, 2, VRING_PACKED_EVENT_FLAG_ENABLE);
	} else if (q->event_idx) {
		vp_st16(q->driver, 4 + 2 * (size_t)q->size, q->used);
	} else {
		vp_st16(q->driver, 0, 0);
	}
	/* The request before the look. Pairs with the device's barrier between index and event field. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* An index that cannot be is found out by the next vp_drvq_get(). */
	return q->batch || load_used(q, &id, &len);
}

void vp_drvq_disable_calls(struct vp_drvq *q)
{
	if (q->packed)
		vp_st16(q->driver, 2, VRING_PACKED_EVENT_FLAG_DISABLE);
	else if (!q->event_idx)
		vp_st16(q->driver, 0, VRING_AVAIL_F_NO_INTERRUPT);
	/* Split with EVENT_IDX: a used_event that is left behind asks for nothing. */
}
