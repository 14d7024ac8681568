/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests that a device side which has gone had taken from the driver's ring, or could have taken, and has not given
 * back, where nobody keeps an account of them. A split ring shows which they are if the device side gave everything
 * back in the order in which the driver made it available: they lie between what was returned and what is available.
 * How far back the two halves of the ring can be compared, they have to agree.
 *
 * Security model: that of virtq.h. A driver that writes nonsense into its ring gets wrong answers, or a broken ring.
 */
#ifndef VP_ENGINE_LEFTOVER_H
#define VP_ENGINE_LEFTOVER_H

#include "engine/queue.h"

/*
 * How many there are. vq: set up at what was returned. -ENODATA: the ring does not tell which they are, because it is
 * packed, or the order was another one.
 */
int vp_leftover_count(const struct vp_virtq *vq);

/* The first n of them fail, as FUSE requests. True: the driver wants a call. */
bool vp_leftover_fail(struct vp_virtq *vq, unsigned n, struct vp_burst *b);

/*
 * The answer -EIO to a FUSE request: its header is at the driver's address ask, the first buffer for the answer at
 * answer, of so many bytes. How many bytes were written: 0 if there is no room, as for a request without an answer.
 */
uint32_t vp_fuse_fail(struct vp_virtq *vq, uint64_t ask, uint32_t ask_len, uint64_t answer, uint32_t answer_len);

#endif
