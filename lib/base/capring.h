/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A capture's ring: what one thread of the daemon has seen, on its way to the process that reads it. One writer, one
 * reader, in memory that both have mapped; nobody waits. Without room a record is dropped, and counted.
 *
 * Security model: the reader may be hostile, and may write every byte of the ring at any time. The writer loads its
 * tail and nothing else, bounds what it loaded, and never reads back what it wrote: a reader harms its own capture.
 *
 * The memory is a file of rings one behind the other, each a page of struct vp_capring, then `size` bytes of records.
 * A record does not wrap: in front of the end there may be one of type VP_CAP_FILL.
 */
#ifndef VP_BASE_CAPRING_H
#define VP_BASE_CAPRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VP_CAPRING_FORMAT 1 /* changes with what is below */
#define VP_CAPRING_PAGE 4096u /* in front of the records */
#define VP_CAPRING_MIN  (128u << 10) /* bytes of records: room for the largest */

struct vp_capring {
	/* the writer's */
	uint64_t head;      /* bytes so far */
	uint64_t seen;      /* records that there were, with those that were dropped */
	uint64_t dropped;
	uint8_t  pad[104];
	/* the reader's */
	uint64_t tail;
};

enum vp_cap_type { VP_CAP_FILL, VP_CAP_PACKET, VP_CAP_REQUEST };

/* What each record begins with. */
struct vp_cap_rec {
	uint32_t bytes;     /* of the record, a multiple of 8 */
	uint16_t type;      /* enum vp_cap_type */
	uint16_t queue;     /* virtqueue */
	uint64_t ns;        /* time of day, since 1970 */
	uint32_t lost;      /* records of this ring that were dropped right before this one */
	uint32_t side;      /* whose VM sent it: 0 driver, 1 device */
};

/* The packet as its sender's VM handed it over, behind its offload header: caplen bytes follow. */
struct vp_cap_packet {
	struct vp_cap_rec r;
	uint32_t len, caplen;
	uint8_t  flags, gso_type;   /* struct virtio_net_hdr's, as the others */
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
	uint16_t why;               /* 0 delivered, else 1 + enum vp_drop */
	uint32_t reserved;
};

#define VP_CAP_HEAD 32u
/* A request that has been answered. */
struct vp_cap_request {
	struct vp_cap_rec r;
	uint64_t latency_ns;        /* since it was taken; 0: it was taken before the trace began */
	uint32_t out_len, in_len;   /* bytes that its device side may read, may write */
	uint32_t used;              /* that it says it has written */
	uint8_t  status;            /* last byte of the writable part */
	uint8_t  failed;            /* answered by the daemon in its place */
	uint8_t  has_status;
	uint8_t  head_len;
	uint8_t  head[VP_CAP_HEAD]; /* the first bytes of the readable part, as taken */
};

/* The writer's own memory. One thread at a time; zeroed, then vp_capring_init(). */
struct vp_capring_writer {
	struct vp_capring *ring;
	uint8_t  *data;
	uint32_t  size;
	uint64_t  head, seen, dropped;
	uint32_t  lost;             /* since the last record */
};

/* mem: VP_CAPRING_PAGE + size bytes, all zero; size: a power of two, at least VP_CAPRING_MIN. */
void vp_capring_init(struct vp_capring_writer *w, void *mem, uint32_t size);
/*
 * Room for a record of that many bytes, rounded up to 8, at most size / 2: its first fields but `side` and `queue` are
 * set. NULL: there is none, and it counts as dropped. vp_capring_publish() makes it, and those before it, visible.
 */
void *vp_capring_add(struct vp_capring_writer *w, enum vp_cap_type type, uint32_t bytes, uint64_t ns);
void vp_capring_publish(struct vp_capring_writer *w);

/* The reader's. */
struct vp_capring_reader {
	struct vp_capring *ring;
	const uint8_t *data;
	uint32_t size;
	uint64_t tail, head;        /* head: as loaded last */
};

void vp_capring_open(struct vp_capring_reader *r, void *mem, uint32_t size);
/* Look how far the writer is. True: there is something that was not there before. */
bool vp_capring_look(struct vp_capring_reader *r);
/* The first record up to where vp_capring_look() saw the writer; valid until vp_capring_next(). NULL: none. */
const struct vp_cap_rec *vp_capring_first(struct vp_capring_reader *r);
void vp_capring_next(struct vp_capring_reader *r);
uint64_t vp_capring_dropped(const struct vp_capring_reader *r, uint64_t *seen);

#endif
