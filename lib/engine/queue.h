/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver's virtqueue as a data thread works on it, whichever engine serves it: its ring, its
 * counters, its rate limits, and how its driver is notified.
 *
 * One thread at a time uses a given queue and scratch, except for the counters and what says otherwise.
 */
#ifndef VP_ENGINE_QUEUE_H
#define VP_ENGINE_QUEUE_H

#include "virtq/virtq.h"

struct vp_tap;

#define VP_QUEUE_BURST       32 /* chains that an engine takes from a queue in one run, at most */
#define VP_PACKET_DESCS      32 /* descriptors that count as a packet; Linux makes up to 19 of one */

/* Why a packet did not arrive. Counted per sender queue. */
enum vp_drop {
	VP_DROP_NO_PEER,     /* the receiving side is absent, down, or its queue is broken */
	VP_DROP_NO_BUFFER,   /* the receiver offered no buffers for too long */
	VP_DROP_TOO_BIG,     /* larger than the receiver's buffer (or than 64 KiB) */
	VP_DROP_BAD_HEADER,  /* offload header does not fit the packet or the negotiation */
	VP_DROP_BAD_PACKET,  /* shorter than header + Ethernet header, or cannot be cut as asked */
	VP_DROP_RATE,        /* over the configured packets per second */
	VP_DROP_MAX
};
const char *vp_drop_str(enum vp_drop d);

/* Written by the data thread only; read by others with relaxed loads. */
struct vp_queue_stats {
	uint64_t packets;    /* delivered */
	uint64_t bytes;      /* delivered, without the virtio-net header */
	uint64_t gso;        /* of the packets, large segments that crossed unsegmented */
	uint64_t cut;        /* large segments cut in software */
	uint64_t summed;     /* checksums completed in software */
	uint64_t drops[VP_DROP_MAX];
	uint64_t calls;      /* notifications sent to the sender and to the receiver */
	uint64_t bursts;     /* runs that moved or dropped something */
	uint64_t busy_cycles; /* spent in those (vp_cycles() ticks) */
};

/*
 * A rate limit for any number of queues on any threads, in packets per second. It is the time up to
 * which packets have been let pass; each packet moves it on. A hundredth of a second's worth (at least
 * 64) may come at once.
 */
struct vp_bucket {
	uint64_t rate;  /* packets per second, 0 = no limit; any thread may change it */
	uint64_t due;   /* vp_cycles() in 65536ths, modulo 2^64: a slow counter has few ticks for a packet */
};

/* One virtqueue of a driver. */
struct vp_queue {
	struct vp_virtq vq;
	uint64_t features;   /* negotiated with its driver */
	int      call_fd;    /* eventfd, -1 = the driver polls; owned by whoever set it */
	struct vp_queue_stats stats; /* of a sender queue */
	/* sender queue, private to the engine */
	uint64_t blocked_since;      /* vp_cycles(), 0 = not waiting for buffers */
	struct vp_bucket own;        /* rate limit of this queue */
	struct vp_bucket bytes;      /* of bytes: what is above waits */
	uint64_t who;                /* whose driver it is, for base/blame.h; 0 = nobody's */
	struct vp_bucket *shared;    /* a second limit that holds for several queues together, NULL = none */
	/* captures that want what passes here (tap.h), NULL = none; any thread may change the pointer */
	struct vp_tap *tap;
	uint16_t tap_queue;          /* what they call this queue, */
	uint8_t  tap_side;           /* and whose VM sends on it */
};

/* Working space of a data thread: bursts and a packet being reworked. About 330 KiB, reused for every queue. */
struct vp_scratch {
	struct vp_burst src, dst;
	struct vp_used  used_src[VP_BURST], used_dst[VP_BURST];
	uint64_t        hz;             /* vp_cycles_hz() */
	uint64_t        call_seq;       /* odd while in the system call that notifies a driver */
	uint8_t         why[VP_BURST];  /* enum vp_drop of chains of src that were dropped, for captures */
	uint8_t         pkt[65536 + 256];
	uint8_t         seg[65536 + 256];
};

/* NULL when out of memory. free() it. */
struct vp_scratch *vp_scratch_new(void);

/* Does a capture want what passes through q? (tap.h) */
static inline bool vp_queue_tapped(const struct vp_queue *q)
{
	return __atomic_load_n(&q->tap, __ATOMIC_RELAXED) != NULL;
}

/* Does any limit hold for what src sends? */
static inline bool vp_queue_limited(const struct vp_queue *src)
{
	return __atomic_load_n(&src->own.rate, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&src->bytes.rate, __ATOMIC_RELAXED) ||
	       (src->shared && __atomic_load_n(&src->shared->rate, __ATOMIC_RELAXED));
}

/*
 * n bytes of src were delivered, a large segment with all of its own. They are owed to the limit of bytes: while
 * something is owed, vp_queue_owes(), and vp_queue_allow() lets none pass. So nothing is dropped for it, and the driver
 * waits.
 */
void vp_queue_spend(struct vp_queue *src, uint64_t now, uint64_t hz, uint64_t n);

/* How many of n packets src's limits let pass now (vp_cycles() at hz). Those not used are given back. */
unsigned vp_queue_allow(struct vp_queue *src, uint64_t now, uint64_t hz, unsigned n);
void vp_queue_give_back(struct vp_queue *src, uint64_t hz, unsigned n);

/*
 * Packets of src that were let pass or dropped cost as much work as `more` others: src owes those to
 * its limits. While it owes something, look at nothing of src; that lasts no longer than for a burst's
 * worth of time.
 */
void vp_queue_charge(struct vp_queue *src, uint64_t now, uint64_t hz, unsigned more);
bool vp_queue_owes(const struct vp_queue *src, uint64_t now, uint64_t hz);

/*
 * Is something owed now? For a caller that is about to sleep until there is work: time ends it, not a
 * notification.
 */
bool vp_queue_must_wait(const struct vp_queue *src);

/*
 * The cost of n packets for which `looked` descriptors were looked at, in packets beyond n; 32
 * descriptors are free for each.
 */
static inline unsigned vp_queue_extra(unsigned n, unsigned looked)
{
	return looked > VP_PACKET_DESCS * n ? (looked - VP_PACKET_DESCS * n) / VP_PACKET_DESCS : 0;
}

/*
 * Notify q's driver through its call fd. 0, or -errno: the queue is broken then.
 *
 * A hostile front-end can make the write block: O_NONBLOCK belongs to the shared open file, not to us.
 * That never happens with an honest one, so the fast path only counts. A supervisor that sees the same
 * odd s->call_seq twice sends the thread a signal (handled, without SA_RESTART), and the interrupted
 * queue is broken. A driver that does it again and again is held off (base/blame.h): its queues are
 * broken before the write.
 */
int vp_queue_call(struct vp_queue *q, struct vp_scratch *s);

/*
 * The same write to any eventfd that `who` can make block: 0 also when it is full, as good as raised; -EIO:
 * interrupted, held off, no eventfd.
 */
int vp_notify(int fd, uint64_t who, struct vp_scratch *s);

#endif
