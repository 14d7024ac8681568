/* SPDX-License-Identifier: BSD-3-Clause */
#include "guestmem/shared.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static void *base_of(const struct vp_shared *m)
{
	return (void *)vp_gptr_addr(m->p);
}

int vp_shared_map(struct vp_shared *m, int fd, uint64_t off, uint64_t size)
{
	struct stat st;
	void *p;

	/*
	 * seccomp control: newfstatat fstat mmap(arg2 & PROT_EXEC == 0) munmap; guard: newfstatat fstat mmap(arg2 &
	 * PROT_EXEC == 0) munmap
	 */
	if (fstat(fd, &st))
		return -errno;
	if (st.st_size < 0 || off + size > (uint64_t)st.st_size)
		return -EINVAL;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -errno;
	*m = (struct vp_shared){ vp_gptr_from_map(p), size };
	return 0;
}

int vp_shared_replace(struct vp_shared *m, int fd)
{
	return mmap(base_of(m), m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? -errno
													      : 0;
}

void vp_shared_scrub(const struct vp_shared *m, uint64_t off, uint64_t size)
{
	char *at = (char *)base_of(m) + off;

	/* seccomp control: madvise */
	if (madvise(at, size, MADV_REMOVE))
		memset(at, 0, size);
}

void vp_shared_unmap(struct vp_shared *m)
{
	if (!vp_gptr_is_null(m->p))
		munmap(base_of(m), m->size);
	*m = (struct vp_shared){ VP_GPTR_NULL, 0 };
}
