/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver side of a virtqueue, split or packed (virtio 1.3, 2.7 and 2.8), in memory that
 * the *device* can write: the shadow rings of copy mode.
 *
 * Security model: whoever processes the ring is hostile. What we wrote into descriptors and available ring
 * is never read back; everything needed to give a buffer back to its owner is kept here. From
 * shared memory only used entries and event fields are loaded, each once: an id that is out of
 * range or not outstanding breaks the queue; a length is cut to what was offered for writing.
 *
 * One thread at a time. Adding and collecting allocate nothing.
 */
#ifndef VP_VIRTQ_DRVQ_H
#define VP_VIRTQ_DRVQ_H

#include "guestmem/access.h"

/* A buffer id's private state; chains of an id are ndesc descriptors. */
struct vp_drvq_id {
	uint32_t in_len;     /* bytes offered for writing */
	uint16_t next_desc;  /* split: the chain's second descriptor */
	uint16_t ndesc;      /* 0 = not outstanding */
	uint16_t next;       /* free list, or the one added after it (IN_ORDER) */
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
	struct vp_drvq_id *id;   /* [size] */
};

struct vp_drvq_buf {
	uint64_t addr;  /* as the device finds it through regions[] */
	uint32_t len;
	bool     write; /* the device may write it; behind all others */
};

#define VP_DRVQ_MAX_BUFS 2

/* Bytes of ring memory for a queue, and where the areas start in it (offsets; the memory is 64-byte aligned). */
uint64_t vp_drvq_layout(uint16_t size, bool packed, uint64_t *driver, uint64_t *device);

/*
 * Make an empty ring in mem (vp_drvq_layout() bytes; cleared here). features decide the format.
 * -EINVAL: size; -ENOMEM.
 */
int vp_drvq_init(struct vp_drvq *q, uint16_t size, uint64_t features, vp_gptr mem);
void vp_drvq_fini(struct vp_drvq *q);

/*
 * Add one chain of n (1 or 2) buffers; its id, or -ENOSPC. Invisible to the device until vp_drvq_publish().
 */
int vp_drvq_add(struct vp_drvq *q, const struct vp_drvq_buf *b, unsigned n);
void vp_drvq_publish(struct vp_drvq *q);
/* After publish: does the device want to be notified? */
bool vp_drvq_need_kick(struct vp_drvq *q);

/* The next chain that the device gave back: 1, its id and bytes written (cut to what was offered); 0 none; -EIO: broken. */
int vp_drvq_get(struct vp_drvq *q, uint16_t *id, uint32_t *len);

/* Ask for calls; true: something is there already. */
bool vp_drvq_enable_calls(struct vp_drvq *q);
void vp_drvq_disable_calls(struct vp_drvq *q);

#endif
