/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Captures, as the engines see them: a queue whose `tap` is set has its packets, or its requests, copied into the rings
 * of the captures that hang there (base/capring.h), one ring for each thread. An engine looks at `tap` once for a burst
 * and does nothing else when it is NULL.
 *
 * A packet is copied from the sender's buffers, once it is known what became of it and before they are given back. So
 * the bytes are read a second time: a sender that changes them meanwhile deceives who looks, and nobody else.
 *
 * The main thread changes the list: vp_tap structures are published by a pointer of each queue, and stay until no
 * thread can be in one any more (a grace period). Nothing here waits, allocates or makes a system call, but for the
 * clock on machines whose vDSO has none.
 */
#ifndef VP_ENGINE_TAP_H
#define VP_ENGINE_TAP_H

#include "base/capring.h"
#include "engine/queue.h"

struct vp_tap {
	struct vp_tap *next;             /* read by data threads */
	uint32_t       snaplen;          /* bytes of a packet at most */
	unsigned       n;                /* threads that have a ring */
	struct vp_capring_writer *ring;  /* [n] */
};

/* Which ring is the calling thread's: 0 the main thread's, 1 + i data thread i's. */
void vp_tap_thread(unsigned i);

/* The time to give to the functions below. */
uint64_t vp_tap_now(void);

/* A packet of q's: n pieces, of which the first hdr_len bytes are its offload header. why: -1 = it has arrived. */
void vp_tap_packet(const struct vp_queue *q, const struct vp_seg *sg, unsigned n, unsigned hdr_len, int why,
		   uint64_t ns);
/*
 * Chains [from, to) of a burst that a driver sent, before they are given back. Chain i was dropped for why[i] where bit
 * i of `lost` is set.
 */
void vp_tap_burst(const struct vp_queue *q, const struct vp_burst *b, unsigned from, unsigned to, uint64_t lost,
		  const uint8_t *why);
/* All of them were dropped. */
void vp_tap_dropped(const struct vp_queue *q, const struct vp_burst *b, unsigned n, enum vp_drop why);

/* A request of q's was answered: all but `r` of the record is filled in. ns: now. */
void vp_tap_request(const struct vp_queue *q, const struct vp_cap_request *rec, uint64_t ns);

#endif
