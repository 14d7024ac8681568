/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What this machine's memcpy does with packets: the roofline of anything that copies them.
 *
 * Reads lines "SIZE BUFFERS MS [TO [CPU]]" and answers each with cycles (vp_cycles() ticks) and nanoseconds per copy.
 * Source and destination are rings of BUFFERS and TO (default: the same) packet buffers, spaced as a driver's are: 1 =
 * everything in the first-level cache, 512 = the rings that the relay is measured with. One copy per packet, nothing
 * else. With CPU a thread there writes every packet anew before it is copied, so that its lines have to come from
 * another core, as a sender's do: bursts of 32 are handed over by one counter each way, and only the copying is
 * counted.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/cycles.h"
#include "base/util.h"

#define STRIDE 2304u  /* a DPDK packet buffer with its header: 2048 + 128 + 128 */
#define HUGE_STRIDE 9216u

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static char *ring(size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1,
		       0);

	if (p == MAP_FAILED)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED) {
		perror("copyroof: memory");
		exit(1);
	}
	memset(p, 1, size);
	return p;
}

static void measure(char *src, char *dst, unsigned size, unsigned buffers, unsigned to, unsigned ms)
{
	size_t stride = size + 256 > STRIDE ? HUGE_STRIDE : STRIDE;
	uint64_t end = now_ns() + (uint64_t)ms * 1000000, c0, c1, t0, t1, n = 0;
	/* A variable length, as in any real copy: the library's memcpy, not the compiler's. */
	volatile size_t len = size;
	unsigned i = 0, j = 0;

	c0 = vp_cycles();
	t0 = now_ns();
	do {
		for (unsigned k = 0; k < 512; k++) {
			memcpy(dst + 128 + j * stride, src + 128 + i * stride, len);
			__asm__ volatile("" ::: "memory");
			if (++i >= buffers)
				i = 0;
			if (++j >= to)
				j = 0;
		}
		n += 512;
		t1 = now_ns();
	} while (t1 < end);
	c1 = vp_cycles();
	printf("{\"cycles\": %.2f, \"ns\": %.3f}\n", (double)(c1 - c0) / (double)n, (double)(t1 - t0) / (double)n);
	fflush(stdout);
}

/* ---- from another core ---- */

#define BURST 32

static struct {
	uint64_t written __attribute__((aligned(VP_CACHELINE))); /* bursts */
	uint64_t copied __attribute__((aligned(VP_CACHELINE)));
	char *src;
	size_t stride, len;
	unsigned bursts;
	int cpu;
	bool over;
} hand;

static void *writer(void *arg)
{
	cpu_set_t set;
	uint64_t n = 0;

	CPU_ZERO(&set);
	CPU_SET((unsigned)hand.cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		perror("copyroof: sched_setaffinity");
	while (!__atomic_load_n(&hand.over, __ATOMIC_RELAXED)) {
		char *p = hand.src + 128 + n % hand.bursts * BURST * hand.stride;

		/* Pairs with the release of the copying side: its reads are over. */
		if (n - __atomic_load_n(&hand.copied, __ATOMIC_ACQUIRE) >= hand.bursts)
			continue;
		for (unsigned i = 0; i < BURST; i++, p += hand.stride)
			memset(p, (int)n, hand.len);
		__atomic_store_n(&hand.written, ++n, __ATOMIC_RELEASE);
	}
	return arg;
}

static int measure_handed(char *src, char *dst, unsigned size, unsigned buffers, unsigned to, unsigned ms, int cpu)
{
	size_t stride = size + 256 > STRIDE ? HUGE_STRIDE : STRIDE;
	uint64_t t0 = now_ns(), busy = 0, n = 0;
	volatile size_t len = size;
	unsigned j = 0;
	pthread_t th;

	hand.written = hand.copied = 0;
	hand.src = src;
	hand.stride = stride;
	hand.len = size;
	hand.bursts = buffers / BURST;
	hand.cpu = cpu;
	hand.over = false;
	if (pthread_create(&th, NULL, writer, NULL))
		return -1;
	while (!n || now_ns() - t0 < (uint64_t)ms * 1000000) {
		const char *p = src + 128 + n % hand.bursts * BURST * stride;
		uint64_t c0;

		if (__atomic_load_n(&hand.written, __ATOMIC_ACQUIRE) == n)
			continue;
		c0 = vp_cycles();
		for (unsigned i = 0; i < BURST; i++, p += stride) {
			memcpy(dst + 128 + j * stride, p, len);
			__asm__ volatile("" ::: "memory");
			if (++j >= to)
				j = 0;
		}
		busy += vp_cycles() - c0;
		__atomic_store_n(&hand.copied, ++n, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&hand.over, true, __ATOMIC_RELAXED);
	pthread_join(th, NULL);
	printf("{\"cycles\": %.2f, \"ns\": %.3f}\n", (double)busy / (double)(n * BURST),
	       (double)ms * 1000000.0 / (double)(n * BURST));
	fflush(stdout);
	return 0;
}

int main(void)
{
	size_t bytes = (((size_t)HUGE_STRIDE * 2048) | ((2u << 20) - 1)) + 1;
	char line[128], *src = ring(bytes), *dst = ring(bytes);
	unsigned size, buffers, to, ms;
	int cpu;

	while (fgets(line, sizeof(line), stdin)) {
		const unsigned max = 2048;
		int n = sscanf(line, "%u %u %u %u %d", &size, &buffers, &ms, &to, &cpu);

		if (n == 3)
			to = buffers;
		if (n < 3 || size < 1 || size > 9000 || buffers < 1 || to < 1 || buffers > max || to > max ||
		    ms > 60000) {
			fprintf(stderr, "copyroof: a line is SIZE BUFFERS MS [TO [CPU]]\n");
			return 2;
		}
		if (n == 5 && (buffers < BURST || cpu < 0 || measure_handed(src, dst, size, buffers, to, ms, cpu)))
			return 2;
		if (n < 5)
			measure(src, dst, size, buffers, to, ms);
	}
	return 0;
}
