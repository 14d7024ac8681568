/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What this machine's memcpy does with packets: the roofline of anything that copies them.
 *
 * Reads lines "SIZE BUFFERS MS [TO]" and answers each with cycles (vp_cycles() ticks) and nanoseconds per copy.
 * Source and destination are rings of BUFFERS and TO (default: the same) packet buffers, spaced as a driver's are: 1 =
 * everything in the first-level cache, 512 = the rings that the relay is measured with. One copy per packet, nothing else.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/cycles.h"

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
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);

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

int main(void)
{
	size_t bytes = (((size_t)HUGE_STRIDE * 2048) | ((2u << 20) - 1)) + 1;
	char line[128], *src = ring(bytes), *dst = ring(bytes);
	unsigned size, buffers, to, ms;

	while (fgets(line, sizeof(line), stdin)) {
		const unsigned max = 2048;
		int n = sscanf(line, "%u %u %u %u", &size, &buffers, &ms, &to);

		if (n == 3)
			to = buffers;
		if (n < 3 || size < 1 || size > 9000 || buffers < 1 || to < 1 || buffers > max || to > max || ms > 60000) {
			fprintf(stderr, "copyroof: a line is SIZE BUFFERS MS [TO]\n");
			return 2;
		}
		measure(src, dst, size, buffers, to, ms);
	}
	return 0;
}
