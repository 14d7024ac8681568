/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handing a window of memory over by remapping it against copying it out:
 * what a receiver pays until it can read the bytes, and the sender until it
 * cannot change them any more.
 *
 *   remap [RUNS] [MS]      one JSON object a line: op, size, ns of each run
 *
 * The memory is a memfd, as a VM's. A second thread of this process spins on another CPU, as a vCPU
 * would: taking a mapping away interrupts it (TLB shootdown). Ops, per window:
 *   copy-hot    memcpy from a window that was written just before (in cache when it fits)
 *   copy-cold   memcpy from a window out of a gigabyte-sized walk
 *   remap       MAP_FIXED over the previous window, then one read in each page
 *   populate    the same with MAP_POPULATE
 *   unmap       mmap, one read in each page, munmap
 *   remap-huge  as remap, from 2 MiB pages (when there are any)
 * and for windows of up to 64 KiB in batches of 32, ns per window:
 *   copy-32     32 copies
 *   remap-32    32 adjacent windows changed by one call
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define POOL (512ul << 20)
#define MAX_WINDOW (64ul << 20)
#define BATCH 32

struct ctx {
	int fd, huge_fd;
	size_t huge_pool;
	char *pool;       /* the whole file, mapped, populated */
	char *window;     /* address space for windows, aligned to 2 MiB */
	char *dst;        /* private memory that copies go to */
	size_t size, at;
};

static volatile uint64_t sink;
static volatile int stop;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "remap: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The next window's place in the pool. */
static size_t next(struct ctx *c, size_t pool, size_t span)
{
	size_t at = c->at;

	c->at = at + 2 * span + (span < HUGE ? 0 : HUGE);
	if (c->at + span > pool)
		c->at = 0;
	return at + span <= pool ? at : 0;
}

static void touch(const char *p, size_t n, size_t step)
{
	uint64_t s = 0;

	for (size_t i = 0; i < n; i += step)
		s += *(const volatile char *)(p + i);
	sink += s;
}

static void op_copy_hot(struct ctx *c)
{
	/* The sender's write is not the receiver's cost, but a line of each page keeps it honest. */
	for (size_t i = 0; i < c->size; i += PAGE)
		c->pool[i]++;
	memcpy(c->dst, c->pool, c->size);
}

static void op_copy_cold(struct ctx *c)
{
	memcpy(c->dst, c->pool + next(c, POOL, c->size), c->size);
}

static void map_at(struct ctx *c, int fd, size_t off, size_t size, int flags)
{
	if (mmap(c->window, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | flags, fd, (off_t)off) == MAP_FAILED)
		die("mmap");
}

static void op_remap(struct ctx *c)
{
	map_at(c, c->fd, next(c, POOL, c->size), c->size, 0);
	touch(c->window, c->size, PAGE);
}

static void op_populate(struct ctx *c)
{
	map_at(c, c->fd, next(c, POOL, c->size), c->size, MAP_POPULATE);
	touch(c->window, c->size, PAGE);
}

static void op_unmap(struct ctx *c)
{
	map_at(c, c->fd, next(c, POOL, c->size), c->size, 0);
	touch(c->window, c->size, PAGE);
	munmap(c->window, c->size);
}

static void op_remap_huge(struct ctx *c)
{
	map_at(c, c->huge_fd, next(c, c->huge_pool, c->size) & ~(HUGE - 1), c->size, 0);
	touch(c->window, c->size, HUGE);
}

static void op_copy_32(struct ctx *c)
{
	for (int i = 0; i < BATCH; i++)
		op_copy_cold(c);
}

static void op_remap_32(struct ctx *c)
{
	map_at(c, c->fd, next(c, POOL, BATCH * c->size), BATCH * c->size, 0);
	touch(c->window, BATCH * c->size, PAGE);
}

static const struct op {
	const char *name;
	void (*fn)(struct ctx *c);
	size_t min, max;
	unsigned windows;
} ops[] = {
	{ "copy-hot", op_copy_hot, PAGE, MAX_WINDOW, 1 },
	{ "copy-cold", op_copy_cold, PAGE, MAX_WINDOW, 1 },
	{ "remap", op_remap, PAGE, MAX_WINDOW, 1 },
	{ "populate", op_populate, PAGE, MAX_WINDOW, 1 },
	{ "unmap", op_unmap, PAGE, MAX_WINDOW, 1 },
	{ "remap-huge", op_remap_huge, HUGE, MAX_WINDOW, 1 },
	{ "copy-32", op_copy_32, PAGE, 64 * 1024, BATCH },
	{ "remap-32", op_remap_32, PAGE, 64 * 1024, BATCH },
};
#define N_OPS (sizeof(ops) / sizeof(ops[0]))

static double measure(struct ctx *c, const struct op *op, uint64_t ns)
{
	uint64_t t0, t;
	unsigned n = 0;

	op->fn(c);
	t0 = now_ns();
	do {
		op->fn(c);
		n++;
		t = now_ns();
	} while (t - t0 < ns || n < 3);
	return (double)(t - t0) / n / op->windows;
}

static void *spin(void *arg)
{
	while (!stop)
		__builtin_ia32_pause();
	return NULL;
}

static void pin(int nth)
{
	cpu_set_t all, one;
	int seen = -1;

	sched_getaffinity(0, sizeof(all), &all);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && ++seen == nth % CPU_COUNT(&all)) {
			CPU_ZERO(&one);
			CPU_SET(i, &one);
			sched_setaffinity(0, sizeof(one), &one);
			return;
		}
}

static void *spin_there(void *arg)
{
	pin(1);
	return spin(arg);
}

static void setup(struct ctx *c)
{
	char *p;

	c->fd = memfd_create("windows", MFD_CLOEXEC);
	if (c->fd < 0 || ftruncate(c->fd, POOL))
		die("memfd");
	c->pool = mmap(NULL, POOL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, c->fd, 0);
	c->dst = mmap(NULL, MAX_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	p = mmap(NULL, MAX_WINDOW + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->pool == MAP_FAILED || c->dst == MAP_FAILED || p == MAP_FAILED)
		die("mmap");
	memset(c->pool, 1, POOL);
	c->window = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	c->huge_pool = 4 * MAX_WINDOW;
	c->huge_fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	if (c->huge_fd >= 0) {
		p = ftruncate(c->huge_fd, (off_t)c->huge_pool) ? MAP_FAILED :
		    mmap(NULL, c->huge_pool, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, c->huge_fd, 0);
		if (p == MAP_FAILED) {
			close(c->huge_fd);
			c->huge_fd = -1;
		} else {
			memset(p, 1, c->huge_pool);
			munmap(p, c->huge_pool);
		}
	}
}

int main(int argc, char **argv)
{
	int runs = argc > 1 ? atoi(argv[1]) : 5, ms = argc > 2 ? atoi(argv[2]) : 20;
	double ns[N_OPS][32];
	struct ctx c = { 0 };
	pthread_t t;

	if (runs < 1 || runs > 32 || ms < 1) {
		fprintf(stderr, "usage: remap [RUNS 1-32] [MS]\n");
		return 2;
	}
	setup(&c);
	if (pthread_create(&t, NULL, spin_there, NULL))
		die("pthread_create");
	pin(0);
	for (c.size = PAGE; c.size <= MAX_WINDOW; c.size *= 2) {
		for (int r = 0; r < runs; r++)
			for (size_t o = 0; o < N_OPS; o++) {
				if (c.size < ops[o].min || c.size > ops[o].max ||
				    (ops[o].fn == op_remap_huge && c.huge_fd < 0))
					continue;
				c.at = 0;
				ns[o][r] = measure(&c, &ops[o], (uint64_t)ms * 1000000);
			}
		for (size_t o = 0; o < N_OPS; o++) {
			if (c.size < ops[o].min || c.size > ops[o].max || (ops[o].fn == op_remap_huge && c.huge_fd < 0))
				continue;
			printf("{\"op\": \"%s\", \"size\": %zu, \"ns\": [", ops[o].name, c.size);
			for (int r = 0; r < runs; r++)
				printf("%s%.1f", r ? ", " : "", ns[o][r]);
			printf("]}\n");
		}
		fflush(stdout);
	}
	stop = 1;
	pthread_join(t, NULL);
	return 0;
}
