/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packets in descriptor chains: gathering one out of a chain, spreading one over receive
 * buffers. What the relay and libvhostpci share. Lengths have been validated by virtq.h: a
 * chain holds out_len readable and in_len writable bytes.
 */
#ifndef VP_ENGINE_PACKET_H
#define VP_ENGINE_PACKET_H

#include <linux/virtio_net.h>

#include "virtq/virtq.h"

#define VP_PKT_MAX  65557u /* the largest IP packet behind an Ethernet header with two VLAN tags */
#define VP_PKT_MIN  14u    /* an Ethernet header */

/* Chains that one packet, or the segments that it is cut into, may take at the receiver; and descriptors, about. */
#define VP_PKT_CHAINS_MAX 512u
/*
 * Bytes after which a run of the relay or the copy engine ends, because others wait. What is reworked
 * counts twice.
 */
#define VP_PKT_RUN_BYTES (128u << 10)

/* A position in the segments of a chain. */
struct vp_cursor {
	const struct vp_seg *s;
	uint32_t off;
};

/*
 * Copies of a packet's size. Common small ones are inline; the C library, which knows the machine, does
 * the rest.
 */
VP_INLINE void vp_pkt_copy_peer(vp_gptr dst, vp_gptr src, uint32_t n)
{
	if (n >= 64 && n <= 128) {
		/* Two pieces that overlap: no loop, no call. */
		vp_copy_peer(dst, src, 64);
		vp_copy_peer(vp_gptr_add(dst, n - 64), vp_gptr_add(src, n - 64), 64);
	} else {
		vp_copy_peer(dst, src, n);
	}
}

VP_INLINE void vp_pkt_copy_in(void *dst, vp_gptr src, uint32_t n)
{
	if (n >= 64 && n <= 128) {
		vp_copy_in(dst, src, 64);
		vp_copy_in((char *)dst + n - 64, vp_gptr_add(src, n - 64), 64);
	} else {
		vp_copy_in(dst, src, n);
	}
}

VP_INLINE void vp_pkt_copy_out(vp_gptr dst, const void *src, uint32_t n)
{
	if (n >= 64 && n <= 128) {
		vp_copy_out(dst, src, 64);
		vp_copy_out(vp_gptr_add(dst, n - 64), (const char *)src + n - 64, 64);
	} else {
		vp_copy_out(dst, src, n);
	}
}

/*
 * Bring the next packet near while one is copied: the hardware notices a stream too late for a packet.
 * The first 128 bytes were fetched with the descriptor.
 */
VP_INLINE void vp_pkt_prefetch_rest(vp_gptr dst, vp_gptr src, uint32_t len)
{
	uint32_t off;

	len = VP_MIN(len, 2048);
	for (off = 128; off < len; off += VP_CACHELINE) {
		vp_prefetch(src, off);
		vp_prefetchw(dst, off);
	}
}

/* The same where only one side is a peer's, and the other is in our cache. */
VP_INLINE void vp_pkt_prefetch_src(vp_gptr src, uint32_t len)
{
	uint32_t off;

	len = VP_MIN(len, 2048);
	for (off = 128; off < len; off += VP_CACHELINE)
		vp_prefetch(src, off);
}

VP_INLINE void vp_pkt_prefetch_dst(vp_gptr dst, uint32_t len)
{
	uint32_t off;

	len = VP_MIN(len, 2048);
	for (off = 128; off < len; off += VP_CACHELINE)
		vp_prefetchw(dst, off);
}

/* Copy n bytes at cur into private memory and move on; the chain holds at least n more. */
void vp_pkt_gather(struct vp_cursor *cur, void *dst, uint32_t n);

/* Copy n bytes from cur (peer memory) or, when cur is NULL, from priv to the cursor d; both move on. */
void vp_pkt_scatter(struct vp_cursor *d, struct vp_cursor *cur, const void *priv, uint32_t n);

/* Mark the first len writable bytes of a chain in the dirty log. */
void vp_pkt_log(struct vp_virtq *vq, const struct vp_burst *b, const struct vp_chain *c, uint32_t len);

/* No offloads, num_buffers 1 (little-endian): the header of a plain packet, 10 or 12 bytes of it. */
extern const uint8_t vp_pkt_plain_hdr[12];

/* Lengths that the compiler knows: a call of the C library for each packet would cost more than the header does. */
VP_INLINE void vp_pkt_put_plain_hdr(vp_gptr dst, unsigned hdr_len)
{
	if (vp_likely(hdr_len == 12))
		vp_copy_out(dst, vp_pkt_plain_hdr, 12);
	else
		vp_copy_out(dst, vp_pkt_plain_hdr, 10);
}

/* The receive buffers of a burst, being filled from chain `taken` on. */
struct vp_rxfill {
	struct vp_virtq *vq;
	struct vp_burst *b;
	struct vp_used  *used;   /* VP_BURST entries; used[i] belongs to chain i */
	unsigned         taken;
	unsigned         looked;    /* descriptors that were fetched for a packet that a burst does not hold */
	unsigned         hdr_len;   /* 10 or 12 */
	bool             mergeable; /* a packet may take several chains */
	bool             direct;    /* chains were given back already, without vp_rxfill_flush() */
	/* ? Chains are about to be given back before their packet's is: it counts as sent from now on. */
	void           (*early)(struct vp_rxfill *f);
};

/*
 * Put one packet (header h, plen bytes from cur or, when NULL, from priv) into as many chains as it
 * takes. 0. -EAGAIN: there are too few chains in this burst or, when there are more than a burst holds
 * (none taken), in the ring. -EMSGSIZE: it fits no buffer, not the whole ring, or not
 * VP_PKT_CHAINS_MAX. -EIO: the queue turned out broken. On failure nothing was taken. Where a burst
 * does not hold all there is, it may leave an empty one.
 */
int vp_pkt_put(struct vp_rxfill *f, const struct virtio_net_hdr *h, struct vp_cursor *cur,
	       const void *priv, uint32_t plen);

/*
 * Does the ring hold buffers for n packets of plen bytes now? 0; otherwise as vp_pkt_put(). Nothing may
 * be taken yet. Leaves an empty burst. *chains: how many they take.
 */
int vp_rxfill_room(struct vp_rxfill *f, uint32_t plen, unsigned n, unsigned *chains);

/*
 * Fetch anew, as many chains as a burst holds. Their number; 0 also when the packets took too much
 * looking already.
 */
unsigned vp_rxfill_fetch(struct vp_rxfill *f);

/* Does the ring hold more than this burst? */
VP_INLINE bool vp_rxfill_more(const struct vp_rxfill *f)
{
	return f->b->n == VP_BURST || f->b->more;
}

/* Give the taken chains back to the driver. True when there were any since the last call. */
bool vp_rxfill_flush(struct vp_rxfill *f);

#endif
