/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The relay: packets go from a transmit virtqueue of one virtio-net driver straight into a receive
 * virtqueue of another, with one copy.
 *
 * Both rings may be split or packed, with buffers of any size. A packet is spread over several receive
 * buffers when the receiver negotiated VIRTIO_NET_F_MRG_RXBUF. Offloads pass through when the receiver
 * negotiated them; otherwise the relay does them in software (lib/net/offload.h).
 *
 * Back-pressure: while the receiver has no buffers, packets wait in the sender's ring for at most
 * VP_RELAY_PATIENCE_US. Then they are dropped and counted, so a receiver that has stopped cannot stop
 * the sender. A receiver that is absent or broken is an unplugged cable: packets are dropped and
 * counted at once.
 *
 * A run is bounded in packets, bytes, descriptors (virtq.h) and segments (offload.h), whatever the two
 * drivers do, because others wait for the thread. What a packet costs beyond the usual counts against
 * the rate limit as further packets.
 *
 * One thread at a time for a given pair of queues and scratch.
 */
#ifndef VP_ENGINE_RELAY_H
#define VP_ENGINE_RELAY_H

#include "engine/queue.h"

#define VP_RELAY_PATIENCE_US 10000
/* The same for a receiver with a vIOMMU, whose VMM has to say for each buffer where it is. */
#define VP_RELAY_VIOMMU_PATIENCE_US 200000

/*
 * Move up to VP_QUEUE_BURST packets from src to dst (NULL = the receiver is absent), give the buffers
 * back, and notify the drivers that want it. Returns the number of chains taken from src (moved or
 * dropped). 0: there was nothing to do, or no buffer to do it with.
 */
unsigned vp_relay_run(struct vp_queue *src, struct vp_queue *dst,
		      struct vp_scratch *s);

#endif
