/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From link addresses to memory of this process or of a vhost-user back-end: the windows that
 * are held, and regions[] merged where neighbours continue each other (docs/spec.md, "Windows
 * and regions"). A table never changes once built: a new one is built from the old one and the new state,
 * the data path is switched over, then the old one is freed. Windows are shared between
 * tables by reference count.
 *
 * Nothing of this reads or writes window memory, so revocation (SIGBUS) cannot hit it. One data path does
 * (dp_vhostscsi.c), by mappings of its own.
 */
#ifndef VHP_AGENT_MEMMAP_H
#define VHP_AGENT_MEMMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "port.h"

struct mm_window {
	unsigned int refs;
	uint32_t slot, serial;
	int fd;
	uint64_t size;		/* bytes */
	void *map;		/* NULL: not mapped here */
	uint64_t uva;		/* address of byte 0: the mapping, or a number that was never used before */
};

struct mm_region {
	uint64_t addr, size;	/* link addresses */
	uint64_t offset;	/* in the window */
	struct mm_window *win;
};

struct memmap {
	uint32_t generation;	/* regions_generation that it was built from */
	unsigned int pending;	/* windows that could not be had yet; their regions are missing */
	unsigned int nregions;
	struct mm_region r[VHP_MAX_REGIONS];
	/* The in-flight area, which is in no region above; inflight.win NULL: there is none. */
	struct mm_region inflight;
	uint32_t inflight_queues, inflight_entries;
};

/*
 * Build a table for s, taking over windows of old (may be NULL; it stays valid). map: map the windows into this process
 * (for vhost-net). -ENODEV, -ESTALE (read the state again), or what mmap says.
 */
int memmap_build(struct port *p, const struct vp_state *s, const struct memmap *old, bool map,
		 struct memmap **out, struct vp_err *e);
void memmap_free(struct memmap *m);

/* The region that holds all of [addr, addr + len), or NULL. *uva gets addr's user address. */
const struct mm_region *memmap_find(const struct memmap *m, uint64_t addr, uint64_t len, uint64_t *uva);

struct mm_ring {
	uint64_t desc, avail, used;	/* user addresses */
};

/*
 * Check size and alignment of a ring and translate its three areas. -EINVAL: malformed, -EFAULT: not within
 * the regions; *e says what. (docs/spec.md, "queues[]"; virtio 1.2, 2.7 and 2.8)
 */
int memmap_ring(const struct memmap *m, const struct vp_state_queue *q, bool packed, struct mm_ring *out,
		struct vp_err *e);

#endif
