/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a later process must know of a port so that its guest, which lives on, sees one port: counters that go on
 * counting, the last command that was answered (so that it is not executed twice), and whether queues were in the
 * guest's hands. It lies in a memfd of its own, which only daemons and their guards ever have: nothing is read back
 * from memory that the guest can write.
 */
#ifndef VP_DAEMON_PORT_RECORD_H
#define VP_DAEMON_PORT_RECORD_H

#include <stdint.h>

#include "vhost-pci/abi.h"

#define PORT_RECORD_VERSION 3u

/* What a VMM was asked to map for the device VM (shmem). */
struct port_record_map {
	uint64_t off, len;       /* in region 1; len 0 = nothing */
	uint64_t unmapping;      /* it was asked to unmap it, and has not answered */
};

struct port_record {
	uint32_t version;
	uint32_t running;        /* some queue was in the guest's hands */
	uint64_t mem_size;       /* of the port's memory */
	uint64_t link_epoch;
	uint32_t generation;     /* of the state page: even, and no reader has seen a higher one */
	uint32_t regions_generation, config_generation;
	uint32_t serial, answered;
	uint32_t attachment_word;
	uint32_t left;           /* the daemon has said goodbye: nothing of the page changes any more by its hand */
	uint32_t run[VHP_MAX_QUEUES];
	struct port_record_map map[VHP_MAX_WINDOWS];
};

/* recordfd stays the caller's. NULL: errno, EINVAL where the file is smaller than a record. */
struct port_record *port_record_map(int recordfd);
/* NULL is allowed. */
void port_record_unmap(struct port_record *k);

#endif
