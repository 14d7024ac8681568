/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device side of a virtqueue, split or packed (virtio 1.3, sections 2.7 and 2.8), in bursts.
 *
 * Security model: the rings lie in the memory of a driver that may be hostile. Each ring field is
 * loaded once. What we need to remember (our indices, the ids that we return) is kept here and never
 * read back. Chains are bounded by the queue size, in the ring and in indirect tables alike. Every
 * (address, length) is translated before a pointer is formed. A ring that breaks the rules is *broken*:
 * it stays so until it is set up again, and harms nobody else. A fetch looks at a bounded number of
 * descriptors, with bytes in them or without: each takes time.
 *
 * A virtqueue belongs to one thread at a time. Nothing here allocates, takes a lock or makes a system
 * call.
 */
#ifndef VP_VIRTQ_VIRTQ_H
#define VP_VIRTQ_VIRTQ_H

#include "guestmem/memtab.h"
#include "virtq/place.h"

#define VP_VQ_MAX_SIZE   32768 /* virtio 1.3, 2.7: the largest queue size */
#define VP_BURST         64    /* chains per burst at most */
/*
 * What a burst holds at most: descriptors (with bytes in them or without), pieces (a descriptor has
 * several where a region, or a vIOMMU's mapping, ends in it), and readable bytes in chains off the fast
 * path. The burst ends with the chain that reaches the bound on bytes. A longer chain breaks its queue,
 * as with DPDK's vhost. Linux's driver makes 19 descriptors of a packet (47 at most), DPDK's makes 8.
 */
#define VP_BURST_DESCS   256
/*
 * Of a request queue (long_chains) a chain that comes first in a burst may have more: a disk's driver makes as many
 * segments of a request as the device's seg_max says, and a chain has at most the queue's size.
 */
#define VP_CHAIN_DESCS   1024
#define VP_BURST_BYTES   (128u << 10)

/* One contiguous piece of a descriptor chain. */
struct vp_seg {
	vp_gptr  p;
	uint64_t addr; /* as the driver named it: for the dirty log */
	uint32_t len;  /* bytes, > 0 */
};

/* One descriptor chain: device-readable segments, then device-writable ones. */
struct vp_chain {
	uint32_t out_len; /* bytes, sum over the readable segments */
	uint32_t in_len;  /* bytes, sum over the writable ones */
	uint16_t nout;    /* device-readable segments */
	uint16_t nin;     /* device-writable segments, behind them */
	uint16_t slots;   /* ring slots that it takes (packed), 1 (split) */
	uint16_t id;      /* to return in vp_used */
	uint32_t seg;     /* index of its first segment in the burst */
};

struct vp_burst {
	unsigned        n, nseg;
	unsigned        empty; /* descriptors with nothing in them: with nseg, what counts against VP_BURST_DESCS */
	bool            more;  /* it ended because it had enough, not because the ring had no more */
	/* some chain was off the fast path: only then the three others are not 0. True or all 0 at first */
	bool            slow;
	uint64_t        bytes; /* readable, in chains off the fast path */
	struct vp_chain chain[VP_BURST];
	/* Chains of one descriptor that the fast path takes always find room. */
	struct vp_seg   seg[VP_CHAIN_DESCS + VP_BURST];
};

/* A chain of the usual kind: one descriptor has all of it. */
struct vp_plain {
	vp_gptr  p;
	uint64_t addr; /* as the driver named it */
	uint32_t len;  /* bytes, > 0 */
	uint16_t id;   /* to return in vp_used */
};

/* What the driver gets back for a chain. */
struct vp_used {
	uint32_t len;   /* bytes written into the writable segments */
	uint16_t id;
	uint16_t slots;
};

/* Why a queue broke; vp_vq_broken_str() says it in words. */
enum vp_vq_broken {
	VP_VQ_OK = 0,
	VP_VQ_BAD_INDEX,       /* available index ahead by more than the queue size */
	VP_VQ_BAD_DESC,        /* descriptor index or id outside the table */
	VP_VQ_BAD_CHAIN,       /* chain loops, or is longer than the queue or table */
	VP_VQ_BAD_INDIRECT,    /* indirect table empty, odd-sized, too long, nested or chained */
	VP_VQ_BAD_ORDER,       /* device-readable descriptor behind a device-writable one */
	VP_VQ_BAD_ADDR,        /* buffer outside the driver VM's memory */
	VP_VQ_TOO_LONG,        /* chain of 4 GiB or more, or of too many pieces */
	VP_VQ_BAD_RING,        /* ring areas unmapped, misaligned or straddling regions */
	VP_VQ_LOST_MEMORY,     /* the memory's file was truncated */
	VP_VQ_BAD_CALL,        /* its call notifier does not take notifications */
	VP_VQ_BAD_BUFFER,      /* a buffer of the wrong direction for this queue */
	VP_VQ_LOST_REQUESTS,   /* a back-end took requests and was not heard of again */
	VP_VQ_BROKEN_MAX
};

struct vp_virtq {
	/* set at start, read in the data path */
	vp_gptr  desc;          /* descriptor table / descriptor ring */
	vp_gptr  driver;        /* available ring / driver event suppression */
	vp_gptr  device;        /* used ring / device event suppression */
	uint16_t size;
	bool     packed;
	bool     event_idx;
	bool     in_order;
	bool     indirect;
	bool     out_only;      /* all buffers are device-readable: a transmit queue */
	bool     long_chains;   /* VP_CHAIN_DESCS: a request queue */
	uint8_t  broken;        /* enum vp_vq_broken */
	/* our place in the ring */
	uint16_t last_avail;    /* split: free running; packed: slot */
	uint16_t avail_seen;    /* split: the driver's index when last loaded */
	uint16_t used_idx;      /* split: free running; packed: slot */
	uint16_t signalled;     /* used_idx when the driver was last notified */
	bool     avail_wrap;    /* packed wrap counters */
	bool     used_wrap;
	bool     signalled_wrap;
	bool     signalled_valid;
	bool     kicks_on;      /* we asked for notifications */
	bool     stalled;       /* the last fetch ended at a miss: what is available waits for an update */
	struct vp_place *place; /* its line in memory that outlives us, NULL = none (place.h) */
	struct vp_xlate xl;
	/* rarely used */
	const struct vp_dirty_log *log;  /* NULL = not logging */
	uint64_t log_addr;               /* guest physical address of the device area */
	bool     log_ring;
	uint64_t desc_addr, driver_addr, device_addr; /* guest physical or IOVA */
};

/* How to start a queue. Addresses are what the translator takes (GPA, or IOVA with a vIOMMU). */
struct vp_vq_conf {
	uint16_t size;      /* split: a power of two; packed: 1 to 32768 */
	uint32_t base;      /* as VHOST_USER_SET_VRING_BASE: split 16 bit; packed 2 x (15 bit + wrap) */
	uint64_t features;  /* negotiated virtio feature bits */
	bool     out_only;  /* all buffers are device-readable, as in a network device's transmit queue */
	bool     long_chains; /* a request queue */
	uint64_t desc, driver, device;
	const struct vp_memtab *tab;   /* not owned; outlives the queue or is replaced by vp_vq_rebind() */
	struct vp_iommu *iommu;        /* or NULL */
	bool     grows;     /* memory that tab has not may come: as a vIOMMU's miss (vp_xlate.grows) */
};

/* Sizes in bytes of the three areas, by format. */
uint64_t vp_vq_desc_bytes(uint16_t size);
uint64_t vp_vq_driver_bytes(uint16_t size, bool packed);
uint64_t vp_vq_device_bytes(uint16_t size, bool packed);

/*
 * Start a queue: validates, translates, reads where the used index stands.
 * 0; -EINVAL (size, alignment), -EFAULT (area not mapped), -EAGAIN (IOTLB miss sent).
 */
int vp_vq_start(struct vp_virtq *vq, const struct vp_vq_conf *c, struct vp_err *e);

/* The same ring after its memory moved: translate the areas again. As vp_vq_start(). */
int vp_vq_rebind(struct vp_virtq *vq, const struct vp_memtab *tab, struct vp_iommu *iommu,
		 struct vp_err *e);

/* Where we are, encoded as VHOST_USER_GET_VRING_BASE answers it. */
uint32_t vp_vq_base(const struct vp_virtq *vq);

/*
 * For a ring that somebody else has served: has it taken chains, or could it have taken chains, that it
 * has not given back? Packed rings do not tell: true.
 */
bool vp_vq_unfinished(const struct vp_virtq *vq);

void vp_vq_break(struct vp_virtq *vq, enum vp_vq_broken why);
const char *vp_vq_broken_str(enum vp_vq_broken why);

/*
 * Dirty logging on or off (NULL). log_addr: the guest physical address of a logged used ring; with a
 * vIOMMU it is looked up.
 */
void vp_vq_set_log(struct vp_virtq *vq, const struct vp_dirty_log *log, bool ring, uint64_t ring_addr);
/* Mark [off, off + len) of the device area (split: the used ring), if that is logged. */
void vp_vq_log_device(struct vp_virtq *vq, uint64_t off, uint64_t len);
/* Mark all of a ring that the device writes. */
void vp_vq_log_ring(struct vp_virtq *vq);

/*
 * Load up to max (<= VP_BURST) available chains into b without consuming them: the next call returns
 * the same ones unless vp_vq_advance() came between. Returns their number, 0 = none available.
 *
 * A queue that turns out broken returns the chains before the offence first, and 0 from then on (see
 * vq->broken). A vIOMMU miss ends the burst in the same way, without breaking the queue. So do chains
 * that are much work (VP_BURST_DESCS, VP_BURST_BYTES): at least one is returned, and b->more says that
 * others may follow.
 */
VP_INLINE unsigned vp_vq_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max);

/*
 * The same with a hint (a constant): the direction that this queue's buffers usually have. Faster for
 * those, right for all.
 */
VP_INLINE unsigned vp_vq_fetch_dir(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				   enum vp_access hint);

/*
 * For queues that are busy. Takes only chains of one descriptor, in the direction of the hint (a
 * constant), whose buffer lies in one region. Returns their number. It
 * ends before the first chain of another kind, which is left to vp_vq_fetch().
 */
VP_INLINE unsigned vp_vq_fetch_plain(struct vp_virtq *vq, struct vp_plain *p, unsigned max, enum vp_access hint);

/* Consume n of those. */
static inline void vp_vq_advance_plain(struct vp_virtq *vq, unsigned n);

/* Give n of them back; nothing was written into them. */
VP_INLINE void vp_vq_complete_plain(struct vp_virtq *vq, const struct vp_plain *p, unsigned n);

/* Consume the first n chains of the last fetch; they must be completed later, in any order. */
static inline void vp_vq_advance(struct vp_virtq *vq, const struct vp_burst *b, unsigned n);

/* Give n chains back; they become visible to the driver together. */
static inline void vp_vq_complete(struct vp_virtq *vq, const struct vp_used *u, unsigned n);

/*
 * The same in steps, for a queue that has a line (place.h), n > 0: note what is to be given back (of the ring, so many
 * slots in all); write it, so that the driver sees nothing yet; show it.
 */
struct vp_shown {
	uint64_t head;   /* packed */
	uint16_t first;  /* packed: slot of head; split: the used index before */
	uint16_t n;
};
static inline void vp_vq_note(struct vp_virtq *vq, const struct vp_used *u, unsigned n, unsigned slots);
static inline struct vp_shown vp_vq_write(struct vp_virtq *vq, const struct vp_used *u, unsigned n);
static inline void vp_vq_show(struct vp_virtq *vq, struct vp_shown s);

/*
 * A hint: so many slots will be written soon. Their lines come near without their other owners, so that what is written
 * behind them in the program does not wait for them.
 */
static inline void vp_vq_own(const struct vp_virtq *vq, unsigned slots);

/* Where the used index is, and where it will be behind chains of so many slots: a position (place.h). */
static inline uint16_t vp_vq_pos(const struct vp_virtq *vq)
{
	return vq->packed && vq->used_wrap ? vq->used_idx | 0x8000u : vq->used_idx;
}
static inline uint16_t vp_vq_pos_behind(const struct vp_virtq *vq, unsigned slots);
/* The position of the next chain that is taken. */
static inline uint16_t vp_vq_avail_pos(const struct vp_virtq *vq)
{
	return vq->packed && vq->avail_wrap ? vq->last_avail | 0x8000u : vq->last_avail;
}

/* Does the driver want to be notified of what was completed since the last time this said yes? */
bool vp_vq_need_call(struct vp_virtq *vq);
/* The same without its fence, for callers that look at several queues after one (__ATOMIC_SEQ_CST) fence. */
bool vp_vq_need_call_fenced(struct vp_virtq *vq);

/*
 * Buffers that the driver has made available and not got back, at most vq->size. -1: nobody knows, because a packed
 * ring has no indices. Any thread, while the ring is set up: a figure to show.
 */
int vp_vq_depth(const struct vp_virtq *vq);

/* Ask the driver for kicks; true when chains are available already (look again, do not sleep). */
bool vp_vq_enable_kicks(struct vp_virtq *vq);
void vp_vq_disable_kicks(struct vp_virtq *vq);

/* Cheap look: something to fetch? */
static inline bool vp_vq_has_avail(struct vp_virtq *vq);

/* The state in which a fetch begins: nothing fetched, and all that it may look at. */
VP_INLINE void vp_burst_clear(struct vp_burst *b)
{
	b->n = 0;
	b->nseg = 0;
	if (vp_unlikely(b->slow)) {
		b->empty = 0;
		b->bytes = 0;
		b->more = false;
		b->slow = false;
	}
}

/* The descriptors, and pieces of them, that the fetch into b looked at. */
VP_INLINE unsigned vp_burst_looked(const struct vp_burst *b)
{
	return b->nseg + b->empty;
}

/* The slots that n chains take, from number `first` on: only a chain off the fast path takes several. */
VP_INLINE unsigned vp_burst_slots(const struct vp_burst *b, unsigned first, unsigned n)
{
	unsigned i, slots = 0;

	if (vp_likely(!b->slow))
		return n;
	for (i = 0; i < n; i++)
		slots += b->chain[first + i].slots;
	return slots;
}

/* The same of chains that are given back. */
VP_INLINE unsigned vp_used_slots(const struct vp_used *u, unsigned n)
{
	unsigned i, slots = 0;

	for (i = 0; i < n; i++)
		slots += u[i].slots;
	return slots;
}

#include "virtq/split.h"
#include "virtq/packed.h"

VP_INLINE unsigned vp_vq_fetch_dir(struct vp_virtq *vq, struct vp_burst *b, unsigned max,
				   enum vp_access hint)
{
	vp_burst_clear(b);
	if (vp_unlikely(vq->broken))
		return 0;
	vq->stalled = false;
	vp_xlate_sync(&vq->xl);
	return vq->packed ? vp_packed_fetch(vq, b, max, hint) : vp_split_fetch(vq, b, max, hint);
}

VP_INLINE unsigned vp_vq_fetch(struct vp_virtq *vq, struct vp_burst *b, unsigned max)
{
	return vp_vq_fetch_dir(vq, b, max, VP_READ);
}

static inline void vp_vq_advance(struct vp_virtq *vq, const struct vp_burst *b, unsigned n)
{
	if (vq->packed)
		vp_packed_advance(vq, b, n);
	else
		vq->last_avail = (uint16_t)(vq->last_avail + n);
}

static inline void vp_vq_complete(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	if (!n)
		return;
	if (vq->packed)
		vp_packed_complete(vq, u, n);
	else
		vp_split_show(vq, vp_split_write(vq, u, n));
}

static inline void vp_vq_note(struct vp_virtq *vq, const struct vp_used *u, unsigned n, unsigned slots)
{
	if (vq->packed)
		vp_packed_note(vq->place, u, n, slots);
}

static inline void vp_vq_own(const struct vp_virtq *vq, unsigned slots)
{
	const unsigned per_line = VP_CACHELINE / 16;

	if (!vq->packed)
		return;
	for (unsigned i = 0; i < slots; i += per_line) {
		const unsigned slot = vq->used_idx + i;

		vp_prefetchw(vq->desc, 16 * (size_t)(slot < vq->size ? slot : slot - vq->size));
	}
}

static inline struct vp_shown vp_vq_write(struct vp_virtq *vq, const struct vp_used *u, unsigned n)
{
	return vq->packed ? vp_packed_write(vq, u, n) : vp_split_write(vq, u, n);
}

static inline void vp_vq_show(struct vp_virtq *vq, struct vp_shown s)
{
	if (vq->packed)
		vp_packed_show(vq, s);
	else
		vp_split_show(vq, s);
}

static inline uint16_t vp_vq_pos_behind(const struct vp_virtq *vq, unsigned slots)
{
	uint16_t slot = vq->used_idx;
	bool wrap = vq->used_wrap;

	if (!vq->packed)
		return (uint16_t)(slot + slots);
	vp_packed_step(vq->size, &slot, &wrap, slots);
	return wrap ? slot | 0x8000u : slot;
}

VP_INLINE unsigned vp_vq_fetch_plain(struct vp_virtq *vq, struct vp_plain *p, unsigned max, enum vp_access hint)
{
	if (vp_unlikely(vq->broken))
		return 0;
	vq->stalled = false;
	vp_xlate_sync(&vq->xl);
	return vq->packed ? vp_packed_fetch_plain(vq, p, max, hint) : vp_split_fetch_plain(vq, p, max, hint);
}

static inline void vp_vq_advance_plain(struct vp_virtq *vq, unsigned n)
{
	if (vq->packed)
		vp_packed_step(vq->size, &vq->last_avail, &vq->avail_wrap, n);
	else
		vq->last_avail = (uint16_t)(vq->last_avail + n);
}

VP_INLINE void vp_vq_complete_plain(struct vp_virtq *vq, const struct vp_plain *p, unsigned n)
{
	struct vp_used u[VP_BURST];
	unsigned i;

	if (vp_likely(vq->packed && !vq->log)) {
		vp_packed_complete_plain(vq, p, n);
		return;
	}
	for (i = 0; i < n; i++)
		u[i] = (struct vp_used){ .len = 0, .id = p[i].id, .slots = 1 };
	vp_vq_complete(vq, u, n);
}

/*
 * The next buffer that the driver offers for writing comes near, if it is easily found: its descriptor, and its first
 * two lines without their other owners. A hint for times when there is nothing to do: an answer to the next packet then
 * waits for none of them. Nothing is consumed, and what is loaded here is loaded again when it counts.
 */
static inline void vp_vq_near(struct vp_virtq *vq)
{
	vp_gptr at = VP_GPTR_NULL;

	if (vp_unlikely(vq->broken))
		return;
	vp_xlate_sync(&vq->xl);
	if (vq->packed ? vp_packed_near(vq, &at) : vp_split_near(vq, &at)) {
		vp_prefetchw(at, 0);
		vp_prefetchw(at, VP_CACHELINE);
	}
}

static inline bool vp_vq_has_avail(struct vp_virtq *vq)
{
	if (vp_unlikely(vq->broken))
		return false;
	return vq->packed ? vp_packed_has_avail(vq) : vp_split_has_avail(vq);
}

#endif
