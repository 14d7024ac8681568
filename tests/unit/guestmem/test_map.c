/* SPDX-License-Identifier: BSD-3-Clause */
/* Mappings: ranges, limits, and files that are truncated under us. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../virtq/driver.h"

static int memfd(uint64_t size, unsigned flags, int seals)
{
	int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);

	if (fd < 0)
		return -1;
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static unsigned open_fds(void)
{
	unsigned n = 0;
	int fd;

	for (fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int try_map(int fd, uint64_t off, uint64_t size)
{
	struct vp_map *m = (struct vp_map *)1;
	struct vp_err e = { 0 };
	int ret = vp_map_new(&m, fd, off, size, 0, &e);

	assert_int_equal(!ret, m != NULL);
	assert_int_equal(!ret, !e.msg[0]);
	vp_map_unref(m);
	return ret;
}

static void test_ranges(void **state)
{
	unsigned before = open_fds();
	int fd = memfd(0x10000, 0, 0), ev = eventfd(0, EFD_CLOEXEC), p[2];

	assert_int_equal(try_map(fd, 0, 0x10000), 0);
	assert_int_equal(try_map(fd, 0, 0x10001), -EINVAL);
	assert_int_equal(try_map(fd, 1, 0x10000), -EINVAL);
	assert_int_equal(try_map(fd, 0xffff, 1), 0);
	assert_int_equal(try_map(fd, 0x10000, 1), -EINVAL);
	assert_int_equal(try_map(fd, 0, 0), -EINVAL);
	assert_int_equal(try_map(fd, 0x1001, 7), 0);
	/* offset + size that wraps, or that no file can have */
	assert_int_equal(try_map(fd, UINT64_MAX, 1), -EINVAL);
	assert_int_equal(try_map(fd, UINT64_MAX - 0xfff, 0x2000), -EINVAL);
	assert_int_equal(try_map(fd, 0x8000, UINT64_MAX - 0x7fff), -EINVAL);
	assert_int_equal(try_map(fd, 0, UINT64_MAX), -EINVAL);
	assert_int_equal(try_map(fd, 1ull << 63, 1), -EINVAL);
	assert_int_equal(try_map(fd, INT64_MAX - 0xfff, 0x1000), -EINVAL);
	/* what is no memory at all */
	assert_int_equal(try_map(-1, 0, 1), -EBADF);
	assert_true(try_map(ev, 0, 4096) < 0);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(try_map(p[0], 0, 4096), -EINVAL);
	close(p[0]);
	close(p[1]);
	close(ev);
	close(fd);
	assert_int_equal(open_fds(), before);
}

/* Only memory that the kernel alone provides: others may keep the pages of other files waiting. */
static void test_kinds(void **state)
{
	int fd, dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	struct vp_map *m;
	struct vp_err e = { 0 };

	/* POSIX shared memory, that is, a file on tmpfs with a name. */
	fd = shm_open("/vhost-pci-test-kinds", O_RDWR | O_CREAT, 0600);
	shm_unlink("/vhost-pci-test-kinds");
	assert_int_equal(ftruncate(fd, 0x1000), 0);
	assert_int_equal(try_map(fd, 0, 0x1000), 0);
	close(fd);
	assert_int_equal(vp_map_new(&m, zero, 0, 0x1000, 0, &e), -EMEDIUMTYPE);
	assert_non_null(strstr(e.msg, "device"));
	assert_int_equal(vp_map_new(&m, dir, 0, 0x1000, 0, &e), fcntl(dir, F_GET_SEALS) < 0 ? -EMEDIUMTYPE : -EINVAL);

	fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 0x1000) || fcntl(fd, F_GET_SEALS) >= 0) {
		print_message("no file system but tmpfs here: not tested\n");
	} else {
		assert_int_equal(vp_map_new(&m, fd, 0, 0x1000, 0, &e), -EMEDIUMTYPE);
		assert_non_null(strstr(e.msg, "neither on tmpfs nor on hugetlbfs"));
		assert_int_equal(vp_map_new(&m, fd, 0, 0x1000, VP_MAP_VOUCHED, &e), 0);
		vp_map_unref(m);
	}
	vp_close(&fd);
	close(zero);
	close(dir);
}

/* Whoever registers its own mapping of the memory with userfaultfd waits for its handler; we do not. */
static void test_userfaultfd_of_another_mapping(void **state)
{
	int fd = memfd(0x2000, 0, 0), ufd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { .len = 0x2000 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct vp_map *m;
	void *p = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	reg.range.start = (uintptr_t)p;
	if (ufd < 0 || ioctl(ufd, UFFDIO_API, &api) || ioctl(ufd, UFFDIO_REGISTER, &reg)) {
		print_message("no userfaultfd for shared memory here: not tested\n");
	} else {
		assert_int_equal(vp_map_new(&m, fd, 0, 0x2000, 0, NULL), 0);
		alarm(10);  /* nobody serves ufd */
		assert_int_equal(vp_ld8(m->host, 0), 0);
		vp_st8(m->host, 0x1000, 1);
		alarm(0);
		vp_map_unref(m);
	}
	vp_close(&ufd);
	munmap(p, 0x2000);
	close(fd);
}

static void test_charge(void **state)
{
	struct vp_map_use u = { 0 };
	struct vp_region_desc d[2] = { { .gpa = 0, .size = 0x1000 }, { .gpa = 0x10000, .size = 0x3000 } };
	struct vp_memtab *t, *t2;
	int fd = memfd(0x4000, 0, 0);

	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(vp_map_new(&d[i].map, fd, 0, d[i].size, 0, NULL), 0);
		vp_map_charge(d[i].map, &u);
	}
	assert_true(u.maps == 2 && u.bytes == 0x4000);
	assert_int_equal(vp_memtab_build(&t, d, 2, NULL), 0);
	assert_int_equal(vp_memtab_build(&t2, d, 1, NULL), 0);
	vp_map_unref(d[0].map);
	vp_map_unref(d[1].map);
	/* The first is in both tables. */
	assert_true(vp_memtab_use(t).maps == 1 && vp_memtab_use(t).bytes == 0x3000 && vp_memtab_use(NULL).maps == 0);
	vp_memtab_free(t);
	assert_true(u.maps == 1 && u.bytes == 0x1000);
	vp_memtab_free(t2);
	assert_true(!u.maps && !u.bytes);
	close(fd);
}

static void test_contents(void **state)
{
	int fd = memfd(0x10000, 0, 0);
	struct vp_map *m, *ro;
	uint8_t c;

	assert_int_equal(vp_map_new(&m, fd, 0x1003, 0x2000, 0, NULL), 0);
	assert_int_equal(vp_map_new(&ro, fd, 0x1003, 0x2000, VP_MAP_READONLY, NULL), 0);
	assert_int_equal(m->size, 0x2000);
	assert_true(m->writable && !ro->writable && !m->sealed);
	close(fd); /* ours is a duplicate */
	vp_st8(m->host, 0, 77);
	assert_int_equal(vp_ld8(ro->host, 0), 77);
	assert_int_equal(pread(m->fd, &c, 1, 0x1003), 1);
	assert_int_equal(c, 77);
	vp_map_unref(m);
	vp_map_unref(ro);
	vp_map_unref(NULL);

	fd = memfd(0x1000, 0, F_SEAL_SHRINK);
	assert_int_equal(vp_map_new(&m, fd, 0, 0x1000, VP_MAP_POPULATE, NULL), 0);
	assert_true(m->sealed);
	vp_map_unref(m);
	close(fd);
	fd = memfd(0x1000, 0, F_SEAL_GROW);
	assert_int_equal(vp_map_new(&m, fd, 0, 0x1000, 0, NULL), 0);
	assert_false(m->sealed);
	vp_map_unref(m);
	close(fd);
	/* a file that may not be written */
	fd = memfd(0x1000, 0, F_SEAL_WRITE);
	assert_true(try_map(fd, 0, 0x1000) < 0);
	assert_int_equal(vp_map_new(&m, fd, 0, 0x1000, VP_MAP_READONLY, NULL), 0);
	vp_map_unref(m);
	close(fd);
}

static void test_limit(void **state)
{
	static struct vp_map *m[VP_MAP_MAX];
	struct vp_map *more;
	struct vp_err e = { 0 };
	int i, fd = memfd(0x1000, 0, 0), base = (int)open_fds();

	/* Each holds a descriptor: the process's own limit may come first. */
	for (i = 0; i < VP_MAP_MAX; i++)
		if (vp_map_new(&m[i], fd, 0, 0x1000, 0, &e))
			break;
	if (i == VP_MAP_MAX) {
		assert_int_equal(vp_map_new(&more, fd, 0, 0x1000, 0, &e), -ENOSPC);
		assert_null(more);
	} else {
		assert_int_equal(e.code, -EMFILE);
	}
	assert_true(e.msg[0]);
	while (i--)
		vp_map_unref(m[i]);
	assert_int_equal(open_fds(), base);
	assert_int_equal(try_map(fd, 0, 0x1000), 0); /* the places are free again */
	close(fd);
}

static void truncated(int fd, uint64_t size, uint64_t page)
{
	unsigned lost = vp_map_lost_count();
	struct vp_map *a, *b;
	struct vp_region_desc d = { .gpa = 0, .size = size };
	struct vp_memtab *t;
	uint64_t i;

	assert_int_equal(vp_map_new(&a, fd, 0, size, 0, NULL), 0);
	assert_int_equal(vp_map_new(&b, fd, 0, page, 0, NULL), 0);
	assert_int_equal(a->page_size, page);
	d.map = a;
	assert_int_equal(vp_memtab_build(&t, &d, 1, NULL), 0);
	vp_st32(a->host, size - 4, 0x12345678);
	assert_false(vp_map_lost(a) || vp_memtab_lost(t));
	assert_int_equal(ftruncate(fd, (off_t)page), 0);

	/* Beyond the end: survived, reads zero, writes go nowhere, the mapping is marked. */
	assert_int_equal(vp_ld32(a->host, size - 4), 0);
	assert_true(vp_map_lost(a) && vp_memtab_lost(t));
	assert_int_equal(vp_map_lost_count(), lost + 1);
	for (i = 0; i < size; i += page)
		vp_st64(a->host, i, 0xffff);
	assert_int_equal(vp_ld64(a->host, size - page), 0xffff);
	/* A mapping of what is left lives on, and the file got none of our writes. */
	assert_false(vp_map_lost(b));
	assert_int_equal(vp_ld64(b->host, 0), 0);
	vp_memtab_free(t);
	vp_map_unref(a);
	vp_map_unref(b);
}

static void truncated_hugetlb(void)
{
	uint64_t size = 2 << 21;
	int fd = memfd(size, MFD_HUGETLB | (21u << 26), 0);
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED) {
		print_message("no huge pages of 2 MiB here: not tested\n");
		vp_close(&fd);
		return;
	}
	munmap(p, size);
	truncated(fd, size, 1 << 21);
	close(fd);
}

/* The ring itself goes: the queue goes on reading harmless memory, its owner sees it. */
static void truncated_ring(void)
{
	struct vp_region_desc rd = { .gpa = 0, .size = 0x100000 };
	struct vp_vq_conf c = { .size = 16, .desc = 0x10000, .driver = 0x20000, .device = 0x30000 };
	struct vp_burst *b = calloc(1, sizeof(*b));
	int fd = memfd(0x100000, 0, 0);
	struct vp_memtab *t;
	struct vp_virtq vq;

	assert_int_equal(vp_map_new(&rd.map, fd, 0, rd.size, 0, NULL), 0);
	assert_int_equal(vp_memtab_build(&t, &rd, 1, NULL), 0);
	c.tab = t;
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	vp_st16(t->r[0].host, 0x20002, 1);
	vp_st64(t->r[0].host, 0x10008, 100); /* desc 0: address 0, length 100 */
	assert_int_equal(vp_vq_fetch(&vq, b, 8), 1);
	assert_int_equal(ftruncate(fd, 0), 0);
	vp_vq_advance(&vq, b, 1);
	vp_vq_complete(&vq, &(struct vp_used){ .len = 0, .slots = 1 }, 1);
	assert_true(vp_vq_fetch(&vq, b, 8) <= 16);
	assert_true(vp_memtab_lost(t));
	vp_memtab_free(t);
	vp_map_unref(rd.map);
	close(fd);
	free(b);
}

/* One test for all: cmocka puts its own SIGBUS handler in place before each. */
static void test_truncated(void **state)
{
	long page = sysconf(_SC_PAGESIZE);
	int fd = memfd(0x10000, 0, 0);

	assert_int_equal(vp_map_guard_faults(), 0);
	assert_int_equal(vp_map_guard_faults(), 0);
	truncated(fd, 0x10000, (uint64_t)page);
	close(fd);
	truncated_hugetlb();
	truncated_ring();
}

static void previous(int sig, siginfo_t *si, void *uc)
{
	_exit(42);
}

/* A fault elsewhere is the previous handler's; without one it ends the process. */
static void test_other_faults(void **state)
{
	int with, status;

	for (with = 0; with < 2; with++) {
		pid_t pid = fork();

		if (!pid) {
			struct sigaction sa = { .sa_sigaction = previous, .sa_flags = SA_SIGINFO };
			int fd = memfd(0x1000, 0, 0);
			volatile uint8_t *p = mmap(NULL, 0x1000, PROT_READ, MAP_SHARED, fd, 0);

			if (with)
				sigaction(SIGBUS, &sa, NULL);
			else
				signal(SIGBUS, SIG_DFL);
			if (vp_map_guard_faults() || ftruncate(fd, 0))
				_exit(1);
			(void)p[0];
			_exit(2); /* swallowed */
		}
		assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
		if (with)
			assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
		else
			assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_userfaultfd_of_another_mapping),
		cmocka_unit_test(test_charge),
		cmocka_unit_test(test_contents),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_other_faults), /* before the guard is in place in this process */
		cmocka_unit_test(test_truncated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
