/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine: one virtqueue of a driver VM, served by a device VM that is not trusted with
 * its memory. The device VM sees a shadow ring (virtq/drvq.h) and bounce buffers in a
 * pool of ours, never a byte of the driver VM's memory.
 *
 *   transmit queue: driver VM's ring --fetch, copy out--> area, shadow ring --> device VM
 *   receive queue:                   <--copy back------- area, used entries <--
 *
 * For networks. Requests of other device types, which are both, have an engine of their own (request.h).
 *
 * Security model: both ends are hostile, also together.
 *  - Towards the driver VM: everything about its ring is virtq.h's business. What it hands over for reading is
 *    copied once; what it writes afterwards reaches nobody.
 *  - Towards the device VM: it may write every byte of the pool at any time. Nothing in the pool is ever read back but
 *    used entries and event fields (drvq.h) and, once, the bytes that it returns. Where a chain came from, how much of
 * it may be written and where that lies is kept in private memory; at most min(claimed, offered) bytes are written,
 * into the chain's writable segments, each translated at that moment.
 *  - The device VM sees no more than was handed over: the areas start out as zeroes (the owner sees to it whenever the
 * driver VM changes), and each holds buffers of one queue of one driver VM only.
 *  - An offload header from the device VM is read once, checked against packet and negotiation, and written from the
 *    checked copy; num_buffers is counted, not believed. A packet with a bad header is dropped: its buffers go back
 * empty.
 *  - A queue owns its areas: who leaves buffers unanswered stops that queue and no other.
 *
 * Back-pressure: without room in shadow ring or areas, chains stay in the driver's ring.
 * Nothing here allocates after vp_copyq_new(). One thread at a time.
 */
#ifndef VP_ENGINE_COPYQ_H
#define VP_ENGINE_COPYQ_H

#include "engine/queue.h"
#include "virtq/drvq.h"

#define VP_COPYQ_RING_MAX 1024 /* entries of a shadow ring at most; a larger driver's ring is served through it */

/* A piece of the pool: bytes from its start, multiples of 64. */
struct vp_copyq_area {
	uint64_t off, size;
};

struct vp_copyq_conf {
	struct vp_queue *rq;     /* the driver's queue, started. Not owned; vq may be rebound between calls */
	/* of the shadow ring: packed and EVENT_IDX as the device VM can, the rest as negotiated */
	uint64_t features;
	vp_gptr  pool;                 /* 64-byte aligned */
	uint64_t pool_addr;            /* its link address */
	struct vp_copyq_area ring;    /* at least vp_copyq_ring_bytes() */
	struct vp_copyq_area data;    /* for the bytes of its buffers */
	/* a transmit queue: chains are given back when they have been copied; else a receive queue */
	bool     early;
	int      kick_fd;              /* eventfd that notifies the device VM, which may share it; not owned */
	uint64_t kick_who;             /* that device VM, for base/blame.h; 0 = nobody */
	/*
	 * vp_copyq_kept_bytes() of memory that outlives this process, of this queue alone, aligned to 64 bytes and at
	 * first all zeroes; NULL: nobody goes on with the engine when this process ends anywhere. Not owned.
	 */
	struct vp_copyq_kept *kept;
};

/* FIFO allocator in an area: contiguous pieces, released in the order in which they were taken. */
struct vp_copyq_fifo {
	uint32_t size, head, used;     /* used includes what was skipped at the end */
};

enum vp_copyq_state {
	VP_COPYQ_AWAY,                /* in the device VM's hands */
	VP_COPYQ_BACK,                /* returned by it, not yet given to the driver */
	VP_COPYQ_DONE,                /* the driver has it (early: had it at once); its room can be released */
};

/* A chain on its way; room is released in FIFO order. */
struct vp_copyq_slot {
	uint64_t addr;                 /* of the first writable segment */
	uint32_t take, take_seg;
	uint32_t off;                  /* in the area */
	uint32_t seg, nseg;            /* writable segments */
	uint32_t len;                  /* written by the device VM */
	uint16_t id, slots;            /* the driver's chain */
	uint8_t  state;                /* enum vp_copyq_state */
};

struct vp_copyq_seg {
	uint64_t addr;                 /* as the driver named it */
	uint32_t len;
};

struct vp_copyq {
	struct vp_copyq_conf c;
	struct vp_drvq  shadow;
	struct vp_copyq_fifo data, segs;
	uint32_t        head, tail, mask; /* of slot[], free running */
	uint16_t        hdr_len;
	bool            in_order;      /* complete in the order of arrival */
	bool            blocked;       /* waits for the device VM to return something */
	bool            again;         /* something is back that the next run can give to the driver */
	/* what is back waits for the driver VM's vIOMMU: run it again when that has answered */
	bool            stalled;
	bool            held;          /* what is back, or (early) what the driver sends, waits for the rate limit */
	bool            open;          /* takes new chains; set by other threads */
	bool            mergeable;
	bool            anew;          /* both ends are notified, whatever there is to do */
	/* Slots that are back, in the order in which the driver gets them: pend[pend_tail..pend_head) */
	uint32_t        pend_head, pend_tail;
	uint32_t        order;         /* in_order: the first slot that was not added to them */
	uint64_t        kicks;         /* notifications to the device VM */
	struct vp_copyq_kept *kept;   /* the tables below lie in it, or NULL */
	struct vp_copyq_slot *slot;   /* [mask + 1]; their number is the tag in the shadow ring */
	uint16_t       *pend;          /* [mask + 1] */
	struct vp_used *given;         /* of one run */
	struct vp_copyq_seg  *seg;    /* [segs.size] */
	uint64_t desc_addr, avail_addr, used_addr; /* of the shadow ring, link addresses */
};

/* Bytes that the largest shadow ring takes, a multiple of 4096. */
uint64_t vp_copyq_ring_bytes(void);

/*
 * -EINVAL: an area that is too small or misaligned, a ring that is not started; -ENOMEM. The shadow ring is as large as
 * the driver's, up to VP_COPYQ_RING_MAX, and starts at index 0.
 */
int vp_copyq_new(struct vp_copyq **out, const struct vp_copyq_conf *c, struct vp_err *e);
void vp_copyq_free(struct vp_copyq *b);
/*
 * For another process (docs/handover.md), while no thread works with b. There, with the driver's queue where it was,
 * the same pool and the same c but for its features: the engine goes on, and nothing was written. -EPROTO; -ENOMEM.
 */
void vp_copyq_save(const struct vp_copyq *b, struct vp_rec *r);
int  vp_copyq_restore(struct vp_copyq **out, const struct vp_copyq_conf *c, const struct vp_rec_in *in,
		      struct vp_err *e);

/*
 * For a process that comes after one that ended anywhere (docs/handover.md), with what that left in c->kept. c is as it
 * was for the other one, but for its features, and the driver's queue was just set up, anywhere. It goes on where it
 * was, what was shown to one end only is shown to both, and the first run notifies both. -EPROTO: what was left makes
 * no sense, and nothing is written; -ENOMEM.
 */
size_t vp_copyq_kept_bytes(void);
int  vp_copyq_recover(struct vp_copyq **out, const struct vp_copyq_conf *c, struct vp_err *e);

/*
 * Move what there is to move, both ways, bounded; notify both ends where they want it. How many chains
 * moved. Afterwards look at shadow.broken (the device VM's fault) and rq->vq.broken (the driver's).
 */
unsigned vp_copyq_run(struct vp_copyq *b, struct vp_scratch *s);

/*
 * Ask both ends for notifications; true: there is work. And no more of them. What waits for a translation is no work:
 * the owner runs the engine after each update of its IOTLB.
 */
bool vp_copyq_arm(struct vp_copyq *b);
void vp_copyq_disarm(struct vp_copyq *b);

/* Take new chains from the driver, or only give back (before a stop). Any thread. */
void vp_copyq_set_open(struct vp_copyq *b, bool open);

/*
 * The device VM has let go: give back what it returned, then leave the driver's ring as if the rest had never been
 * taken, or, where chains were completed out of order, complete the rest with length 0. Then vp_vq_base() is exact. The
 * engine is of no use afterwards. reachable false: the driver's ring cannot be reached now, do without (a ring
 * completed out of order breaks). True: the driver wants to be notified; that is the caller's to do, with
 * vp_queue_call() where that is supervised.
 */
bool vp_copyq_stop(struct vp_copyq *b, bool reachable);

/* Index to give to the device VM for an empty shadow ring, as VHOST_SET_VRING_BASE. */
uint32_t vp_copyq_base(const struct vp_copyq *b);

/*
 * After vp_copyq_arm(): the rate limit allows nothing now, so that it takes time, not a notification, until there is
 * work.
 */
static inline bool vp_copyq_held(const struct vp_copyq *b)
{
	return b->held;
}

/* Chains in the device VM's hands (or back and not yet released). */
static inline unsigned vp_copyq_outstanding(const struct vp_copyq *b)
{
	return b->head - b->tail;
}

#endif
