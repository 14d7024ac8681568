/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver side of a virtqueue, split or packed (virtio 1.3, 2.7 and 2.8), in memory that the
 * *device* can write: the shadow rings of copy mode.
 *
 * Security model: the process at the other side of the ring is hostile. We never read back what we
 * wrote into descriptors and the available ring. Everything that is needed to give a buffer back to its
 * owner is kept here. From shared memory only used entries and event fields are loaded, each once. An
 * id that is out of range or not outstanding breaks the queue. A length is cut to what was offered for
 * writing.
 *
 * One thread at a time. Adding and collecting allocate nothing.
 */
#ifndef VP_VIRTQ_DRVQ_H
#define VP_VIRTQ_DRVQ_H

#include <linux/virtio_ring.h>

#include "base/record.h"
#include "guestmem/access.h"

/* A buffer id's private state; chains of an id are ndesc descriptors. */
struct vp_drvq_id {
	uint32_t in_len;     /* bytes offered for writing */
	uint16_t next_desc;  /* split: the descriptor behind this one in its chain */
	uint16_t ndesc;      /* 0 = not outstanding */
	uint16_t next;       /* free list, or the one added after it (IN_ORDER) */
	uint16_t tag;        /* the owner's, for whatever it is that it keeps beside the chain */
};

struct vp_drvq {
	vp_gptr  desc, driver, device;
	uint16_t size;
	bool     packed, event_idx, in_order, broken;
	uint16_t num_free;       /* descriptors */
	uint16_t free_id;        /* split: head descriptors are ids; packed: ids */
	uint16_t oldest, newest; /* IN_ORDER: ends of the list of outstanding ids; valid when outstanding > 0 */
	uint16_t outstanding;
	uint16_t avail, used;    /* split: free running; packed: slots */
	uint16_t used_seen;      /* split: the device's index when last loaded */
	bool     avail_wrap, used_wrap;
	uint16_t kicked;         /* avail when the device was last notified */
	uint16_t added;          /* descriptors (packed) or chains (split) since then */
	uint16_t batch;          /* IN_ORDER: ids left of a batch that one used entry completed */
	uint16_t batch_id;       /* its last id */
	uint32_t batch_len;
	/* packed: the head that publish() makes available last */
	uint16_t head_slot;
	uint64_t head_word;
	bool     head_pending;
	bool     lent;           /* id is not ours */
	struct vp_drvq_id *id;   /* [size] */
};

/* Where a queue is, beside its ids: what the next process must know of it (vp_drvq_recover()). */
struct vp_drvq_at {
	uint64_t head_word;
	uint32_t batch_len;
	uint16_t num_free, free_id, outstanding, avail, used, batch, batch_id, head_slot;
	bool     avail_wrap, used_wrap, head_pending;
};

struct vp_drvq_buf {
	uint64_t addr;  /* as the device finds it through regions[] */
	uint32_t len;
	bool     write; /* the device may write it; behind all others */
};

#define VP_DRVQ_MAX_BUFS 32

/* Bytes of ring memory for a queue, and where the areas start in it (offsets; the memory is 64-byte aligned). */
uint64_t vp_drvq_layout(uint16_t size, bool packed, uint64_t *driver, uint64_t *device);

/*
 * Make an empty ring in mem (vp_drvq_layout() bytes, cleared here). features decide the format.
 * -EINVAL: size; -ENOMEM.
 */
int vp_drvq_init(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem);
void vp_drvq_fini(struct vp_drvq *q);

/*
 * For another process that has the same memory (docs/handover.md), while nobody works with q. There the ring goes on
 * where it is; nothing is written. size and features are what vp_drvq_init() was told. -EPROTO: the record is
 * malformed, or of another ring; -ENOMEM.
 */
void vp_drvq_save(const struct vp_drvq *q, struct vp_rec *r);
int  vp_drvq_restore(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, const struct vp_rec_in *in);

/*
 * From now on its ids lie in [size] of *ids, which may outlive this process. They stay the caller's, and are not what
 * they were before.
 */
void vp_drvq_lend(struct vp_drvq *q, struct vp_drvq_id *ids);

/* What is added and not published is part of it. */
VP_INLINE struct vp_drvq_at vp_drvq_where(const struct vp_drvq *q)
{
	return (struct vp_drvq_at){
		.head_word = q->head_word, .batch_len = q->batch_len, .num_free = q->num_free, .free_id = q->free_id,
		.outstanding = q->outstanding, .avail = q->avail, .used = q->used, .batch = q->batch,
		.batch_id = q->batch_id, .head_slot = q->head_slot, .avail_wrap = q->avail_wrap,
		.used_wrap = q->used_wrap, .head_pending = q->head_pending,
	};
}

/*
 * For a queue whose process has ended anywhere: it goes on from *at. ids are as they were left, while something was
 * added to *at, or collected, but not both; all chains have one descriptor. Tags of the chains that are out are numbers
 * modulo a power of two, mask + 1, from `first` on, and in the order of the chains. -EPROTO: that is not so; -ENOMEM.
 */
int vp_drvq_recover(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, struct vp_drvq_id *ids,
		    const struct vp_drvq_at *at, uint32_t first, uint32_t mask);
/* And then: what was added up to *at is published, if it was not, and the rest is taken out of the ring. */
void vp_drvq_go_on(struct vp_drvq *q);

/*
 * For a process that comes when the one that worked with q was killed anywhere, and that has written down which chains
 * were out. The ring's memory is as it was left. begin: where the ring was, behind all that counts as added and taken
 * back (split: indices; packed: slots with the wrap counter in bit 15). claim, for each chain that is out: its
 * descriptors (split), or its id alone (packed). end: what is added is shown, if it was not, and what is not added
 * cannot be seen. head_word: of the first chain of the last burst (packed), which begins at slot head_slot; pending
 * false: none. Without IN_ORDER. -EPROTO: they contradict each other; -ENOMEM. vp_drvq_fini() after any of them.
 */
int  vp_drvq_recover_begin(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem, uint16_t avail,
			   uint16_t used);
int  vp_drvq_recover_claim(struct vp_drvq *q, const uint16_t *desc, unsigned n, uint32_t in_len, uint16_t tag);
int  vp_drvq_recover_end(struct vp_drvq *q, bool pending, uint16_t head_slot, uint64_t head_word);

/* The place of the next chain that is added, and of the next one that comes back, as above. */
static inline uint16_t vp_drvq_avail_pos(const struct vp_drvq *q)
{
	return q->packed && q->avail_wrap ? q->avail | 0x8000u : q->avail;
}
static inline uint16_t vp_drvq_used_pos(const struct vp_drvq *q)
{
	return q->packed && q->used_wrap ? q->used | 0x8000u : q->used;
}

/* The descriptors of a chain that is out (split: n of them; packed: its id), into desc. */
static inline void vp_drvq_chain(const struct vp_drvq *q, uint16_t id, uint16_t *desc)
{
	unsigned n = q->packed ? 1 : q->id[id].ndesc;

	for (unsigned i = 0; i < n; i++) {
		desc[i] = id;
		id = q->id[id].next_desc;
	}
}

/*
 * Add one chain of n (1 to VP_DRVQ_MAX_BUFS) buffers. Returns its id, or -ENOSPC. The device does not
 * see it until vp_drvq_publish().
 */
int vp_drvq_add(struct vp_drvq *q, const struct vp_drvq_buf *b, unsigned n);
void vp_drvq_publish(struct vp_drvq *q);
/* After publish: does the device want to be notified? */
bool vp_drvq_need_kick(struct vp_drvq *q);
/* The same without its fence, for callers that look at several queues after one (__ATOMIC_SEQ_CST) fence. */
bool vp_drvq_need_kick_fenced(struct vp_drvq *q);

/*
 * The next chain that the device gave back. 1: its id and the bytes written, cut to what was offered.
 * 0: none. -EIO: broken.
 */
int vp_drvq_get(struct vp_drvq *q, uint16_t *id, uint32_t *len);

/*
 * Up to max of those at once. Their number; fewer when there are no more, or when the queue turned out
 * broken.
 */
struct vp_drvq_used {
	uint32_t len;
	uint16_t id;
	uint16_t tag;
};
unsigned vp_drvq_get_burst(struct vp_drvq *q, struct vp_drvq_used *u, unsigned max);

/* The owner's tag of an outstanding chain, for vp_drvq_used. */
VP_INLINE void vp_drvq_set_tag(struct vp_drvq *q, uint16_t id, uint16_t tag)
{
	q->id[id].tag = tag;
}

/*
 * vp_drvq_add() of one buffer, inline. The caller has checked that num_free > 0 and that the queue is
 * not broken.
 */
VP_INLINE uint16_t vp_drvq_add_one(struct vp_drvq *q, uint64_t addr, uint32_t len, bool write)
{
	uint64_t flags = write ? VRING_DESC_F_WRITE : 0;
	const uint16_t id = q->free_id;
	struct vp_drvq_id *s = &q->id[id];

	q->free_id = s->next;
	s->ndesc = 1;
	s->in_len = write ? len : 0;
	if (q->packed) {
		uint64_t word;

		flags |= q->avail_wrap ? 1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED;
		word = len | (uint64_t)id << 32 | flags << 48;
		vp_st64(q->desc, 16 * (size_t)q->avail, addr);
		if (vp_likely(q->head_pending)) {
			vp_st64(q->desc, 16 * (size_t)q->avail + 8, word);
		} else {
			/* The device stops at the first slot that is not available: keep that one for last. */
			q->head_pending = true;
			q->head_slot = q->avail;
			q->head_word = word;
		}
		if (vp_unlikely(++q->avail == q->size)) {
			q->avail = 0;
			q->avail_wrap = !q->avail_wrap;
		}
	} else {
		vp_st64(q->desc, 16 * (size_t)id, addr);
		vp_st64(q->desc, 16 * (size_t)id + 8, len | flags << 32);
		vp_st16(q->driver, 4 + 2 * (size_t)(q->avail & (q->size - 1)), id);
		q->avail++;
	}
	q->added++;
	q->num_free--;
	q->outstanding++;
	if (vp_unlikely(q->in_order)) {
		/* Given back oldest first, so that the newest is outstanding while any is. */
		if (q->outstanding > 1)
			q->id[q->newest].next = id;
		else
			q->oldest = id;
		q->newest = id;
	}
	return id;
}

/*
 * vp_drvq_add_one() for several buffers in one direction, with everything in registers: begin, put each
 * with its tag, end. The caller does nothing else to the queue in between. It has checked that num_free
 * is at least their number, and that the queue is not broken.
 */
struct vp_drvq_run {
	struct vp_drvq    *q;
	struct vp_drvq_id *ids;
	vp_gptr  desc;
	uint64_t flags;
	unsigned at, size, n;
	uint16_t id;
	bool     write, plain; /* plain: packed, without IN_ORDER */
};

#define VP_DRVQ_WORD_AVAIL (UINT64_C(1) << (48 + VRING_PACKED_DESC_F_AVAIL))
#define VP_DRVQ_WORD_USED  (UINT64_C(1) << (48 + VRING_PACKED_DESC_F_USED))

/* n: the most that will be put; a hint. */
VP_INLINE struct vp_drvq_run vp_drvq_run_begin(struct vp_drvq *q, unsigned n, bool write)
{
	/* The device had these lines last, and the stores would wait for them one after the other. */
	for (unsigned i = 0; q->packed && i < n && q->avail + i < q->size; i += VP_CACHELINE / 16)
		vp_prefetchw(q->desc, 16 * (size_t)(q->avail + i));
	return (struct vp_drvq_run){
		.q = q,
		.ids = q->id,
		.desc = q->desc,
		.at = q->avail,
		.size = q->size,
		.id = q->free_id,
		.write = write,
		.flags = (q->avail_wrap ? VP_DRVQ_WORD_AVAIL : VP_DRVQ_WORD_USED) |
			 (write ? (uint64_t)VRING_DESC_F_WRITE << 48 : 0),
		.plain = q->packed && !q->in_order && !q->head_pending,
	};
}

VP_INLINE void vp_drvq_run_put(struct vp_drvq_run *r, uint64_t addr, uint32_t len, uint16_t tag)
{
	const uint64_t word = len | (uint64_t)r->id << 32 | r->flags;
	struct vp_drvq_id *s = &r->ids[r->id];

	if (vp_unlikely(!r->plain)) {
		vp_drvq_set_tag(r->q, vp_drvq_add_one(r->q, addr, len, r->write), tag);
		return;
	}
	s->in_len = r->write ? len : 0;
	s->ndesc = 1;
	s->tag = tag;
	vp_st64(r->desc, 16 * (size_t)r->at, addr);
	if (vp_likely(r->n++))
		vp_st64(r->desc, 16 * (size_t)r->at + 8, word);
	else
		r->q->head_word = word; /* kept for last, as in vp_drvq_add_one() */
	if (vp_unlikely(++r->at == r->size)) {
		r->at = 0;
		r->flags ^= VP_DRVQ_WORD_AVAIL | VP_DRVQ_WORD_USED;
	}
	r->id = s->next;
}

VP_INLINE void vp_drvq_run_end(const struct vp_drvq_run *r)
{
	struct vp_drvq *q = r->q;

	if (!r->plain || !r->n)
		return;
	q->head_pending = true;
	q->head_slot = q->avail;
	q->free_id = r->id;
	q->avail = (uint16_t)r->at;
	q->avail_wrap = r->flags & VP_DRVQ_WORD_AVAIL;
	q->added = (uint16_t)(q->added + r->n);
	q->num_free = (uint16_t)(q->num_free - r->n);
	q->outstanding = (uint16_t)(q->outstanding + r->n);
}

/* Ask for calls. True: something is there already. */
bool vp_drvq_enable_calls(struct vp_drvq *q);
void vp_drvq_disable_calls(struct vp_drvq *q);

#endif
