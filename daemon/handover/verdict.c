/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover/verdict.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define BYTES 4096

struct vp_verdict {
	int       fd;
	uint32_t *word;
};

static int map(struct vp_verdict **out, int fd)
{
	struct vp_verdict *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	v->fd = fd;
	/* seccomp control: mmap(arg2 & PROT_EXEC == 0) munmap; guard: mmap(arg2 & PROT_EXEC == 0) munmap */
	v->word = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v->word == MAP_FAILED) {
		r = -errno;
		free(v);
		return r;
	}
	*out = v;
	return 0;
}

int vp_verdict_new(struct vp_verdict **out)
{
	/* seccomp control: memfd_create ftruncate fcntl */
	int fd = memfd_create("vhost-pci verdict", MFD_CLOEXEC | MFD_ALLOW_SEALING), r = 0;

	if (fd < 0 || ftruncate(fd, BYTES) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		r = -errno;
	if (!r)
		r = map(out, fd);
	if (r)
		vp_close(&fd);
	return r;
}

int vp_verdict_map(struct vp_verdict **out, int fd)
{
	/* seccomp control: fstat newfstatat; guard: fstat newfstatat fcntl */
	int seals = fcntl(fd, F_GET_SEALS), own, r;
	struct stat st;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) < 0 || st.st_size < BYTES)
		return -EINVAL;
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return -errno;
	r = map(out, own);
	if (r)
		vp_close(&own);
	return r;
}

void vp_verdict_free(struct vp_verdict *v)
{
	if (!v)
		return;
	munmap(v->word, BYTES);
	vp_close(&v->fd);
	free(v);
}

int vp_verdict_fd(const struct vp_verdict *v)
{
	return v->fd;
}

static enum vp_verdict_is decide(struct vp_verdict *v, enum vp_verdict_is for_whom)
{
	uint32_t is = VP_VERDICT_OPEN;

	/* Whoever finds it decided finds all that the other one had done before. */
	if (__atomic_compare_exchange_n(v->word, &is, (uint32_t)for_whom, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return for_whom;
	return is == VP_VERDICT_NEW ? VP_VERDICT_NEW : VP_VERDICT_OLD;
}

enum vp_verdict_is vp_verdict_for_new(struct vp_verdict *v)
{
	return decide(v, VP_VERDICT_NEW);
}

enum vp_verdict_is vp_verdict_for_old(struct vp_verdict *v)
{
	return decide(v, VP_VERDICT_OLD);
}

enum vp_verdict_is vp_verdict_look(const struct vp_verdict *v)
{
	return (enum vp_verdict_is)__atomic_load_n(v->word, __ATOMIC_ACQUIRE);
}
