/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mappings of memory that other processes own, and survival of their files.
 *
 * A front-end hands us a file descriptor; it can truncate the file afterwards,
 * and any access beyond the new end raises SIGBUS. Seals (F_SEAL_SHRINK) rule
 * that out; where a front-end sends an unsealed file (hugetlbfs, POSIX shared
 * memory) the fault handler here replaces the lost pages by zeroes private to
 * us and marks the mapping, so that a data thread finishes its burst on
 * harmless memory and the owner breaks the link.
 */
#ifndef VP_GUESTMEM_MAP_H
#define VP_GUESTMEM_MAP_H

#include "base/err.h"
#include "guestmem/access.h"

struct vp_map {
	vp_gptr  host;       /* first byte that was asked for */
	uint64_t size;       /* bytes usable from host */
	uint64_t page_size;  /* of the backing file: 4096, 2 MiB, 1 GiB */
	bool     sealed;     /* the file cannot shrink */
	bool     writable;
	/* private */
	int      refs;
	int      slot;
	bool     lost;
	void    *base;
	size_t   base_len;
	int      fd;
};

#define VP_MAP_READONLY 1u
#define VP_MAP_POPULATE 2u

/*
 * Map [offset, offset + size) of fd shared and (unless VP_MAP_READONLY)
 * writable. The fd is duplicated and stays the caller's. Checks that the range
 * lies inside the file and does not wrap. At most VP_MAP_MAX live at a time.
 * Returns 0 and a mapping with one reference, or -errno with e filled:
 * -EINVAL bad range, -ENOSPC too many mappings, else mmap's.
 * Main thread only.
 */
int vp_map_new(struct vp_map **out, int fd, uint64_t offset, uint64_t size,
	       unsigned flags, struct vp_err *e);

#define VP_MAP_MAX 4096

struct vp_map *vp_map_ref(struct vp_map *m);

/* Drop a reference; the last unmaps. The caller has waited for a grace period. NULL is allowed. */
void vp_map_unref(struct vp_map *m);

/* The backing file was truncated under us (any thread). Never becomes false again. */
bool vp_map_lost(const struct vp_map *m);

/*
 * Install the SIGBUS handler, once per process, before any peer memory is
 * touched. Faults outside our mappings go to the previous handler. A library
 * in somebody else's process need not call it (faults then are the process's).
 */
int vp_map_guard_faults(void);

/* How many mappings have been lost so far, cheap enough to poll once per loop. */
unsigned vp_map_lost_count(void);

#endif
