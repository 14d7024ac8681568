/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes a capture file of one Ethernet interface in pcapng format, with times in nanoseconds. Write errors are those
 * of the stream: the caller looks at ferror().
 */
#ifndef VP_CAPFILE_PCAPNG_H
#define VP_CAPFILE_PCAPNG_H

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct vp_pcapng_interface {
	const char *application;
	const char *name, *description;
	const char *filter;      /* NULL = none */
	uint32_t    snaplen;
};

enum {
	VP_PCAPNG_IN = 1,        /* the interface received it */
	VP_PCAPNG_OUT = 2,
	VP_PCAPNG_NO_CSUM = 1 << 9,   /* its checksum is still to be filled in */
	VP_PCAPNG_GSO = 1 << 11,      /* it is still to be cut into segments */
};

struct vp_pcapng_packet {
	uint64_t    ns;
	const void *data;
	uint32_t    len, caplen;
	uint32_t    flags;       /* VP_PCAPNG_* */
	bool        has_queue;
	uint32_t    queue;
	uint64_t    lost;        /* packets between the last one and this that the capture has not got */
	const char *comment;     /* NULL = none */
};

struct vp_pcapng_stats {
	uint64_t start_ns, end_ns;
	uint64_t received;       /* packets, with those that the capture has not got, */
	uint64_t dropped;        /* of which these are */
	uint64_t accepted;       /* by the filter */
};

/* What an offload header (in the byte order of this machine) says: flags of the packet, and for people. */
uint32_t vp_pcapng_offload_flags(const struct virtio_net_hdr *h);
/* As snprintf(); "" when there is nothing to say. */
int vp_pcapng_offload_note(char *buf, size_t size, const struct virtio_net_hdr *h);

void vp_pcapng_begin(FILE *f, const struct vp_pcapng_interface *i);
void vp_pcapng_packet(FILE *f, const struct vp_pcapng_packet *p);
void vp_pcapng_end(FILE *f, const struct vp_pcapng_stats *s);

#endif
