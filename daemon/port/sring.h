/* SPDX-License-Identifier: BSD-3-Clause */
/* A signal to the guest of a shmem port is a returned buffer (spec, "shmem"). One thread at a time for a ring. */
#ifndef VP_DAEMON_PORT_SRING_H
#define VP_DAEMON_PORT_SRING_H

#include "virtq/virtq.h"

/*
 * Return one buffer with length 0. True: the guest wants its interrupt. False: it has not yet handled
 * the last ones, or the ring is broken.
 */
static inline bool vp_sring_return(struct vp_virtq *vq, struct vp_burst *b)
{
	struct vp_used u;

	/*
	 * What is signalled (state, or the driver VM's ring) before our look at the available ring. Pairs with the
	 * guest's fence between giving the buffer back and acting on it.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (vq->broken || !vp_vq_fetch(vq, b, 1))
		return false;
	u = (struct vp_used){ .id = b->chain[0].id, .slots = b->chain[0].slots };
	vp_vq_advance(vq, b, 1);
	vp_vq_complete(vq, &u, 1);
	return vp_vq_need_call(vq);
}

#endif
