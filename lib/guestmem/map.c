/* SPDX-License-Identifier: BSD-3-Clause */
#include "guestmem/map.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/foreign.h"

/*
 * Live mappings, for the fault handler: a slot is published by storing its
 * length last and withdrawn by clearing it first. Written under map_lock.
 */
struct map_slot {
	uintptr_t      base;
	size_t         len;
	struct vp_map *map;
};

static struct map_slot map_slots[VP_MAP_MAX];
static int map_slots_used; /* slots [0, used) may be live */
static int map_slots_free; /* none before this one is free */
static pthread_mutex_t map_lock = PTHREAD_MUTEX_INITIALIZER;
unsigned vp_map_lost_total;
static struct sigaction map_old_action;
static bool map_guarded;

static int slot_take(struct vp_map *m)
{
	int i, ret = -ENOSPC;

	pthread_mutex_lock(&map_lock);
	for (i = map_slots_free; i < VP_MAP_MAX; i++) {
		if (map_slots[i].map)
			continue;
		map_slots[i].map = m;
		map_slots[i].base = (uintptr_t)m->base;
		/* Pairs with the acquire in map_fault(). */
		__atomic_store_n(&map_slots[i].len, m->base_len, __ATOMIC_RELEASE);
		if (i >= map_slots_used)
			__atomic_store_n(&map_slots_used, i + 1, __ATOMIC_RELEASE);
		map_slots_free = i + 1;
		ret = i;
		break;
	}
	pthread_mutex_unlock(&map_lock);
	return ret;
}

static void slot_release(int i)
{
	pthread_mutex_lock(&map_lock);
	__atomic_store_n(&map_slots[i].len, 0, __ATOMIC_RELEASE);
	map_slots[i].map = NULL;
	map_slots_free = VP_MIN(map_slots_free, i);
	pthread_mutex_unlock(&map_lock);
}

/* Only async-signal-safe work: mmap() is a bare system call. */
static void map_fault(int sig, siginfo_t *si, void *uc)
{
	uintptr_t addr = (uintptr_t)si->si_addr;
	int i, n = __atomic_load_n(&map_slots_used, __ATOMIC_ACQUIRE);

	for (i = 0; i < n; i++) {
		size_t len = __atomic_load_n(&map_slots[i].len, __ATOMIC_ACQUIRE);
		struct vp_map *m;

		if (!len || addr - map_slots[i].base >= len)
			continue;
		m = map_slots[i].map;
		/* seccomp all: mmap(arg2 & PROT_EXEC == 0) */
		if (mmap((void *)map_slots[i].base, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
			break;
		__atomic_store_n(&m->lost, true, __ATOMIC_RELEASE);
		__atomic_fetch_add(&vp_map_lost_total, 1, __ATOMIC_RELEASE);
		return;
	}
	/* Not ours: whoever was there before; by default the process ends with the true address. */
	if (map_old_action.sa_flags & SA_SIGINFO) {
		map_old_action.sa_sigaction(sig, si, uc);
	} else if (map_old_action.sa_handler != SIG_DFL && map_old_action.sa_handler != SIG_IGN) {
		map_old_action.sa_handler(sig);
	} else {
		signal(sig, SIG_DFL);
		raise(sig);
	}
}

int vp_map_guard_faults(void)
{
	struct sigaction sa = { .sa_sigaction = map_fault, .sa_flags = SA_SIGINFO };

	if (map_guarded)
		return 0;
	sigemptyset(&sa.sa_mask);
	if (sigaction(SIGBUS, &sa, &map_old_action) < 0)
		return -errno;
	map_guarded = true;
	return 0;
}

bool vp_map_lost(const struct vp_map *m)
{
	return __atomic_load_n(m->within ? &m->within->lost : &m->lost, __ATOMIC_ACQUIRE);
}

static uint64_t backing_page_size(int fd)
{
	struct statfs sfs;

	/* seccomp control: fstatfs */
	if (fstatfs(fd, &sfs) == 0 && sfs.f_type == HUGETLBFS_MAGIC && sfs.f_bsize > 0)
		return (uint64_t)sfs.f_bsize;
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Before any call that would ask the file's server. */
static int check_kind(int fd, unsigned flags, struct vp_err *e)
{
	if (fcntl(fd, F_GETFD) < 0)
		return vp_err_set(e, -errno, "memory region: the file descriptor is not usable: %m");
	switch (flags & VP_MAP_VOUCHED ? VP_FOREIGN_MEMORY : vp_foreign_kind(fd, NULL, NULL)) {
	case VP_FOREIGN_FILE:
		return vp_err_set(e, -EMEDIUMTYPE,
				  "memory region: its file is neither on tmpfs nor on hugetlbfs, so its server could "
				  "keep its pages waiting for ever; use memory-backend-memfd");
	case VP_FOREIGN_DEVICE:
		return vp_err_set(e, -EMEDIUMTYPE,
				  "memory region: it is a device, whose driver could keep its pages waiting for ever; "
				  "use memory-backend-memfd");
	case VP_FOREIGN_INNER:
		return vp_err_set(e, -EINVAL,
				  "memory region: the file descriptor is neither a file nor a memory device");
	default:
		return 0;
	}
}

int vp_map_new(struct vp_map **out, int fd, uint64_t offset, uint64_t size, unsigned flags,
	       struct vp_err *e)
{
	struct vp_map *m;
	uint64_t end, head;
	struct stat st;
	int seals, ret, prot = PROT_READ | (flags & VP_MAP_READONLY ? 0 : PROT_WRITE);

	*out = NULL;
	if (!size || vp_add_overflow(offset, size, &end) || end > INT64_MAX)
		return vp_err_set(e, -EINVAL, "memory region: offset 0x%llx + size 0x%llx is not a valid range",
				  (unsigned long long)offset, (unsigned long long)size);
	ret = check_kind(fd, flags, e);
	if (ret)
		return ret;
	/* seccomp control: fstat newfstatat fcntl mmap(arg2 & PROT_EXEC == 0) madvise munmap */
	if (fstat(fd, &st) < 0)
		return vp_err_set(e, -errno, "memory region: the file descriptor is not usable: %m");
	/* Anonymous inodes (a port's windows) have no type at all. */
	if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode) && (st.st_mode & S_IFMT))
		return vp_err_set(e, -EINVAL,
				  "memory region: the file descriptor is neither a file nor a memory device");
	if (S_ISREG(st.st_mode) && end > (uint64_t)st.st_size && !(flags & VP_MAP_AGAIN))
		return vp_err_set(e, -EINVAL,
				  "memory region: offset 0x%llx + size 0x%llx goes beyond the file of 0x%llx bytes",
				  (unsigned long long)offset, (unsigned long long)size,
				  (unsigned long long)st.st_size);

	m = calloc(1, sizeof(*m));
	if (!m)
		return vp_err_set(e, -ENOMEM, "memory region: out of memory");
	m->fd = -1;
	m->refs = 1;
	m->size = size;
	m->writable = !(flags & VP_MAP_READONLY);
	m->page_size = backing_page_size(fd);
	seals = fcntl(fd, F_GET_SEALS);
	m->sealed = seals >= 0 && (seals & F_SEAL_SHRINK);

	/* mmap() wants the offset, and munmap() of huge pages the length, in whole pages. */
	head = offset & (m->page_size - 1);
	m->base_len = vp_align_up(head + size, m->page_size);
	m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (m->fd < 0) {
		ret = vp_err_set(e, -errno, "memory region: cannot duplicate its file descriptor: %m");
		goto fail;
	}
	m->base = mmap(NULL, m->base_len, prot,
		       MAP_SHARED | MAP_NORESERVE | (flags & VP_MAP_POPULATE ? MAP_POPULATE : 0),
		       fd, (off_t)(offset - head));
	if (m->base == MAP_FAILED) {
		ret = vp_err_set(e, -errno, "memory region: cannot map 0x%llx bytes at offset 0x%llx: %m",
				 (unsigned long long)m->base_len, (unsigned long long)(offset - head));
		goto fail;
	}
	madvise(m->base, m->base_len, MADV_DONTDUMP);
	m->host = vp_gptr_from_map((char *)m->base + head);
	m->slot = slot_take(m);
	if (m->slot < 0) {
		munmap(m->base, m->base_len);
		ret = vp_err_set(e, -ENOSPC, "memory region: more than %d mappings are live", VP_MAP_MAX);
		goto fail;
	}
	*out = m;
	return 0;
fail:
	vp_close(&m->fd);
	free(m);
	return ret;
}

int vp_map_within(struct vp_map **out, struct vp_map *parent, uint64_t offset, uint64_t size, struct vp_err *e)
{
	struct vp_map *m;

	*out = NULL;
	if (!size || offset > parent->size || size > parent->size - offset)
		return vp_err_set(e, -EINVAL,
				  "memory region: offset 0x%llx + size 0x%llx goes beyond its window of 0x%llx bytes",
				  (unsigned long long)offset, (unsigned long long)size,
				  (unsigned long long)parent->size);
	m = calloc(1, sizeof(*m));
	if (!m)
		return vp_err_set(e, -ENOMEM, "memory region: out of memory");
	m->refs = 1;
	m->host = vp_gptr_add(parent->host, offset);
	m->size = size;
	m->page_size = parent->page_size;
	m->sealed = parent->sealed;
	m->writable = parent->writable;
	m->fd = -1;
	m->slot = -1;
	m->within = vp_map_ref(parent);
	*out = m;
	return 0;
}

void vp_map_charge(struct vp_map *m, struct vp_map_use *u)
{
	m->use = u;
	u->maps++;
	u->bytes += m->base_len;
}

struct vp_map *vp_map_ref(struct vp_map *m)
{
	if (m)
		__atomic_fetch_add(&m->refs, 1, __ATOMIC_RELAXED);
	return m;
}

void vp_map_unref(struct vp_map *m)
{
	if (!m || __atomic_sub_fetch(&m->refs, 1, __ATOMIC_ACQ_REL))
		return;
	if (m->within) {
		vp_map_unref(m->within);
		free(m);
		return;
	}
	if (m->use) {
		m->use->maps--;
		m->use->bytes -= m->base_len;
	}
	slot_release(m->slot);
	vp_foreign_free(m->base, m->base_len, &m->fd);
	free(m);
}

bool vp_map_untouched(const struct vp_map *m)
{
	struct stat st;

	/* seccomp control: fstat newfstatat */
	return !fstat(m->fd, &st) && st.st_size > 0 && st.st_blocks == 0;
}
