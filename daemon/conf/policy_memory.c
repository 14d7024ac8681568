/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which memory of a VM may be mapped, and how much of it.
 *
 * Threat model: a VMM can make memory of any size out of nothing (a sparse file), name it many times,
 * and send files whose server does not answer. All VMs share address space, mappings and descriptors. A
 * VM that takes all it can must not keep another from adding memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/foreign.h"
#include "guestmem/memtab.h"
#include "conf/policy.h"

/* A table that replaces another is mapped beside it. */
#define MAPS_SPARE  (VP_MEMTAB_MAX + 3)
#define MAPS_SHARE  (VP_MEMTAB_MAX + 1)      /* that is enough for a VM: its table, and a dirty log */
#define BYTES_TOTAL (UINT64_C(64) << 40)     /* half of what a process has */

static struct share {
	char              vm[VP_CONF_NAME_MAX];
	struct vp_map_use use;
	uint64_t          max;
	char              from[VP_CONF_DIRS_MAX];
	struct share     *next;
	struct share     *chain;  /* of those with the same hash */
} *shares;
static struct share *by_name[1024];  /* thousands of VMs are normal, and metrics ask for each */
static unsigned n_shares, maps_total;
static uint64_t bytes_total;

static void totals_find(void)
{
	struct rlimit rl = { .rlim_cur = 1024 };

	/* seccomp control: getrlimit prlimit64(arg2 == 0) */
	getrlimit(RLIMIT_NOFILE, &rl);
	/* Each has a descriptor; the other half is for connections, rings and ports, which the configuration bounds. */
	maps_total = (unsigned)VP_MIN(rl.rlim_cur / 2, (rlim_t)(VP_MAP_MAX - MAPS_SPARE));
	bytes_total = BYTES_TOTAL;
}

static struct share **chain_of(const char *vm)
{
	uint32_t h = 2166136261u;

	for (; *vm; vm++)
		h = (h ^ (unsigned char)*vm) * 16777619u;
	return &by_name[h % VP_ARRAY_SIZE(by_name)];
}

static struct share *share_of(const char *vm)
{
	struct share *s;

	for (s = *chain_of(vm); s; s = s->chain)
		if (!strcmp(s->vm, vm))
			return s;
	return NULL;
}

/* *at is its place in shares. */
static void share_free(struct share **at)
{
	struct share *s = *at, **p = chain_of(s->vm);

	while (*p != s)
		p = &(*p)->chain;
	*p = s->chain;
	*at = s->next;
	n_shares--;
	free(s);
}

static struct share *share_make(const char *vm)
{
	struct share *s = share_of(vm);

	if (s)
		return s;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	snprintf(s->vm, sizeof(s->vm), "%s", vm);
	s->max = VP_CONF_MAX_MEMORY;
	s->next = shares;
	shares = s;
	s->chain = *chain_of(vm);
	*chain_of(vm) = s;
	n_shares++;
	return s;
}

/* A VM that is not configured any more keeps its share while something of it is mapped. */
static void forget_gone(const struct vp_conf *c)
{
	struct share **at = &shares, *s;

	while ((s = *at)) {
		if (s->use.maps || vp_conf_vm_find(c, s->vm)) {
			at = &s->next;
			continue;
		}
		share_free(at);
	}
}

void vp_memory_apply(const struct vp_conf *c)
{
	forget_gone(c);
	for (unsigned i = 0; i < c->n_vms; i++) {
		struct share *s = share_make(c->vms[i].name);

		if (!s)
			continue;
		s->max = c->vms[i].max_memory ? c->vms[i].max_memory : VP_CONF_MAX_MEMORY;
		memcpy(s->from, c->vms[i].memory_from, sizeof(s->from));
	}
}

uint64_t vp_memory_limit(const char *vm)
{
	const struct share *s = share_of(vm);

	return s ? s->max : VP_CONF_MAX_MEMORY;
}

struct vp_map_use vp_memory_used(const char *vm)
{
	const struct share *s = share_of(vm);

	return s ? s->use : (struct vp_map_use){ 0 };
}

void vp_memory_totals(unsigned maps, uint64_t bytes)
{
	while (shares)
		share_free(&shares);
	maps_total = maps;
	bytes_total = bytes;
}

/* ---- which files -------------------------------------------------------------------------- */

/* Of guest/module: where the daemon runs in a device VM, a back-end of its agent. */
static bool is_window(int fd)
{
	char path[40], target[40];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = 0;
	return !strcmp(target, "anon_inode:[vhost-pci-window]");
}

/* Is it a file on the same file system as one of the paths, the device itself, or a window of that port? */
static bool named(const struct share *s, int fd)
{
	char copy[VP_CONF_DIRS_MAX], *at = NULL, *path;
	uint64_t dev, rdev;
	enum vp_foreign_kind kind = vp_foreign_kind(fd, &dev, &rdev);
	struct stat st;

	if (!s->from[0] || kind == VP_FOREIGN_MEMORY || (kind == VP_FOREIGN_INNER && !is_window(fd)))
		return false;
	memcpy(copy, s->from, sizeof(copy));
	for (path = strtok_r(copy, " ", &at); path; path = strtok_r(NULL, " ", &at)) {
		/* seccomp control: newfstatat stat */
		if (kind == VP_FOREIGN_INNER && !strncmp(path, "/dev/vhost-pci", 14))
			return true;
		if (kind == VP_FOREIGN_INNER || stat(path, &st))
			continue;
		if (kind == VP_FOREIGN_DEVICE ? (S_ISCHR(st.st_mode) && st.st_rdev == rdev) : st.st_dev == dev)
			return true;
	}
	return false;
}

/* ---- how much ----------------------------------------------------------------------------- */

/*
 * May a VM that has `used` of a total take n more? Up to its share always. Beyond it, it may take what
 * is left when the others' shares are put aside, and an eighth for VMs that are not known yet.
 */
static bool room(uint64_t used, uint64_t n, uint64_t share, uint64_t total, uint64_t taken, uint64_t kept)
{
	if (n <= share && used <= share - n)
		return true;
	total -= total / 8;
	return taken <= total && kept <= total - taken && n <= total - taken - kept;
}

static int check_room(const struct share *s, uint64_t size, const struct vp_map_use *instead, struct vp_err *e)
{
	struct vp_map_use mine = { .bytes = s->use.bytes - instead->bytes, .maps = s->use.maps - instead->maps };
	struct vp_map_use taken = mine, kept = { 0 };
	/* Half of it in equal parts, half for who needs more. */
	unsigned share = VP_MIN(maps_total / 2 / n_shares, (unsigned)MAPS_SHARE);
	uint64_t even = bytes_total / 2 / n_shares;

	if (size > s->max || mine.bytes > s->max - size)
		return vp_err_set(
			e, -EDQUOT,
			"VM %.63s would have %llu MiB of memory mapped but MaxMemory=%lluM; raise it in %.63s.vm",
			s->vm, (unsigned long long)((mine.bytes + size) >> 20), (unsigned long long)s->max >> 20,
			s->vm);
	/* Within its own share nobody else's has to be counted. */
	if (mine.maps < share && mine.bytes <= VP_MIN(even, s->max) && size <= VP_MIN(even, s->max) - mine.bytes)
		return 0;
	for (const struct share *o = shares; o; o = o->next) {
		uint64_t theirs = VP_MIN(even, o->max);

		if (o == s)
			continue;
		taken.maps += o->use.maps;
		taken.bytes += o->use.bytes;
		kept.maps += o->use.maps < share ? share - o->use.maps : 0;
		kept.bytes += o->use.bytes < theirs ? theirs - o->use.bytes : 0;
	}
	if (!room(mine.maps, 1, share, maps_total, taken.maps, kept.maps))
		return vp_err_set(e, -ENOSPC,
				  "VM %.63s has %u memory regions mapped, its share is %u of %u, and the rest is kept "
				  "for other VMs; give it fewer regions, or raise LimitNOFILE=",
				  s->vm, mine.maps, share, maps_total);
	if (!room(mine.bytes, size, VP_MIN(even, s->max), bytes_total, taken.bytes, kept.bytes))
		return vp_err_set(e, -ENOSPC,
				  "VM %.63s would have %llu GiB of memory mapped, its share is %llu GiB, and the rest "
				  "is kept for other VMs; lower their MaxMemory=",
				  s->vm, (unsigned long long)((mine.bytes + size) >> 30),
				  (unsigned long long)VP_MIN(even, s->max) >> 30);
	return 0;
}

static int map_it(struct vp_map **out, const char *vm, int fd, uint64_t offset, uint64_t size,
		  const struct vp_map_use *instead, unsigned flags, struct vp_err *e)
{
	const struct vp_map_use none = { 0 };
	struct share *s = share_make(vm);
	struct vp_err why = { 0 };
	int r;

	*out = NULL;
	if (!s)
		return vp_err_set(e, -ENOMEM, "memory region: out of memory");
	if (!maps_total)
		totals_find();
	r = check_room(s, size, instead ? instead : &none, e);
	if (r)
		return r;
	r = vp_map_new(out, fd, offset, size, flags | (named(s, fd) ? VP_MAP_VOUCHED : 0), &why);
	if (r == -EMEDIUMTYPE)
		return vp_err_set(e, r, "%.160s, or name it in MemoryFrom= of %.63s.vm", why.msg, vm);
	if (r)
		return vp_err_set(e, r, "%s", why.msg);
	vp_map_charge(*out, &s->use);
	return 0;
}

int vp_memory_map(struct vp_map **out, const char *vm, int fd, uint64_t offset, uint64_t size,
		  const struct vp_map_use *instead, struct vp_err *e)
{
	return map_it(out, vm, fd, offset, size, instead, 0, e);
}

int vp_memory_map_again(struct vp_map **out, const char *vm, int fd, uint64_t offset, uint64_t size, struct vp_err *e)
{
	return map_it(out, vm, fd, offset, size, NULL, VP_MAP_AGAIN, e);
}
