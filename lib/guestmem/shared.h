/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory of ours that a guest has as well: a port's control block, a pool. The guest can write every byte of it at any
 * time, but none of its pages can go: it is a memfd that we made and sealed. (Memory of others: map.h.) One thread at a
 * time.
 */
#ifndef VP_GUESTMEM_SHARED_H
#define VP_GUESTMEM_SHARED_H

#include "guestmem/access.h"

/* All zero: none. */
struct vp_shared {
	vp_gptr  p;     /* its first byte */
	uint64_t size;
};

/* [off, off + size) of fd, which stays the caller's. 0; -EINVAL: the file is smaller; -errno of mmap(). */
int vp_shared_map(struct vp_shared *m, int fd, uint64_t off, uint64_t size);
/* The same bytes of address space show [0, size) of another file. After an error it is as it was. */
int vp_shared_replace(struct vp_shared *m, int fd);
/* These pages go, and come back as zeroes. off and size are multiples of 4096. */
void vp_shared_scrub(const struct vp_shared *m, uint64_t off, uint64_t size);
void vp_shared_unmap(struct vp_shared *m);

#endif
