/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests that a device side which has gone had taken from the driver's ring, or could have taken, and has not given
 * back, where nobody keeps an account of them. A split ring shows which they are if the device side gave everything
 * back in the order in which the driver made it available: they lie between what was returned and what is available.
 * How far back the two halves of the ring can be compared, they have to agree.
 *
 * Where the order was another one, FUSE requests tell it themselves: a driver keeps what it asks in memory until it
 * has the answer, and an answer has the request's number. So an open request is one whose answer has another number.
 * Those that the driver holds for returned may lie in memory that it uses for something else by now: nothing is written
 * into them, and unless all that is open has been found, nothing is written at all. With a vIOMMU, or grants, that is
 * not looked for: what an old descriptor names may be another's by now.
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

/*
 * They fail, as FUSE requests: those that were available when this began. Returns how many; *call: the driver wants a
 * call. -ENODATA: neither ring nor requests tell which they are, nothing was changed; -ENOMEM.
 */
int vp_leftover_fail(struct vp_virtq *vq, struct vp_burst *b, bool *call);

/*
 * The answer -EIO to a FUSE request: its header is at the driver's address ask, the first buffer for the answer at
 * answer, of so many bytes. How many bytes were written: 0 if there is no room, as for a request without an answer.
 */
uint32_t vp_fuse_fail(struct vp_virtq *vq, uint64_t ask, uint32_t ask_len, uint64_t answer, uint32_t answer_len);

#endif
