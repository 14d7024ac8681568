/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mappings of memory that other processes own. They survive what happens to their files.
 *
 * A front-end hands us a file descriptor. It can truncate the file afterwards; any access beyond the
 * new end then raises SIGBUS. Seals (F_SEAL_SHRINK) rule that out. A front-end may also send an
 * unsealed file (one by name, POSIX shared memory). There the fault handler replaces the lost pages by
 * zeroes private to us, and marks the mapping. A data thread then finishes its burst on harmless
 * memory, and the owner breaks the link.
 *
 * No handler helps against a page that never comes. A file on FUSE is as fast as the process that
 * serves it, and a thread that touches the mapping waits in the kernel. So memory is taken from tmpfs
 * and hugetlbfs only, where a page comes from the kernel alone, unless the caller vouches for the file.
 * (userfaultfd makes pages of these wait as well, but only for accesses through the very mapping that
 * was registered, which is never ours.)
 */
#ifndef VP_GUESTMEM_MAP_H
#define VP_GUESTMEM_MAP_H

#include "base/err.h"
#include "guestmem/access.h"

/* What somebody has of all mappings: see vp_map_charge(). */
struct vp_map_use {
	uint64_t bytes;
	unsigned maps;
};

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
	struct vp_map_use *use;  /* NULL = nobody's */
	struct vp_map *within;   /* this is a part of that one, NULL = a mapping of its own */
};

#define VP_MAP_READONLY 1u
#define VP_MAP_POPULATE 2u
#define VP_MAP_VOUCHED  4u  /* whatever file it is, nobody can keep its pages waiting */
#define VP_MAP_AGAIN    8u  /* another process has it mapped: the file may be shorter by now, as under that mapping */

/*
 * Map [offset, offset + size) of fd shared and (unless VP_MAP_READONLY) writable. The fd is duplicated
 * and stays the caller's. The range must lie inside the file (unless VP_MAP_AGAIN) and must not wrap. At most
 * VP_MAP_MAX mappings live at a time. Returns 0 and a mapping with one reference, or -errno with e filled: -EINVAL
 * bad range, -EMEDIUMTYPE a file whose pages may have to wait for somebody, -ENOSPC too many mappings,
 * else mmap's. Main thread only.
 */
int vp_map_new(struct vp_map **out, int fd, uint64_t offset, uint64_t size,
	       unsigned flags, struct vp_err *e);

/*
 * A part of a mapping, as a mapping: it shares the parent's fate and holds it. 0, or -errno with e filled: -EINVAL not
 * inside, -ENOMEM. Never charged, and cannot have parts of its own.
 */
int vp_map_within(struct vp_map **out, struct vp_map *parent, uint64_t offset, uint64_t size, struct vp_err *e);

#define VP_MAP_MAX 32768  /* half of what the kernel allows a process to have (vm.max_map_count) */

/*
 * Count the mapping in u until it is unmapped. u outlives it. At most once for a mapping, right after
 * vp_map_new().
 */
void vp_map_charge(struct vp_map *m, struct vp_map_use *u);

/* Nothing was ever written into its file, as far as its file system tells. */
bool vp_map_untouched(const struct vp_map *m);

struct vp_map *vp_map_ref(struct vp_map *m);

/* Drop a reference; the last one unmaps. The caller has waited for a grace period. NULL is allowed. */
void vp_map_unref(struct vp_map *m);

/* The backing file was truncated under us. Never becomes false again. Any thread. */
bool vp_map_lost(const struct vp_map *m);

/*
 * Install the SIGBUS handler, once in a process, before any peer memory is touched. Faults outside our
 * mappings go to the previous handler. A library in somebody else's process need not call this; faults
 * are then the process's.
 */
int vp_map_guard_faults(void);

/* How many mappings have been lost so far, cheap enough to look at before each burst. */
extern unsigned vp_map_lost_total; /* atomic; the handler's */

VP_INLINE unsigned vp_map_lost_count(void)
{
	return __atomic_load_n(&vp_map_lost_total, __ATOMIC_ACQUIRE);
}

#endif
