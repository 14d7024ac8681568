// SPDX-License-Identifier: BSD-3-Clause
/*
 * A program for a guest whose disk goes away: writes with direct I/O until that fails, and finds what was acknowledged.
 *
 *   diskend write DEV FIRST COUNT STATE    blocks FIRST to FIRST + COUNT - 1, round and round; STATE holds how many
 * writes were acknowledged. Ends with 0 when a write fails. diskend check DEV FIRST COUNT STATE    each block holds its
 * last acknowledged write; the one that failed may have been done or not
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 16384u

static uint64_t *buf;

static void fill(uint64_t block, uint64_t write)
{
	for (unsigned i = 0; i < BLOCK / 8; i++)
		buf[i] = block << 40 ^ write << 12 ^ i;
}

static int holds(uint64_t block, uint64_t write)
{
	for (unsigned i = 0; i < BLOCK / 8; i++)
		if (buf[i] != (block << 40 ^ write << 12 ^ i))
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	int check = argc == 6 && !strcmp(argv[1], "check"), fd, state;
	uint64_t first, count, n = 0;

	if (argc != 6)
		return 2;
	first = strtoull(argv[3], NULL, 0);
	count = strtoull(argv[4], NULL, 0);
	fd = open(argv[2], (check ? O_RDONLY : O_RDWR) | O_DIRECT);
	state = open(argv[5], O_RDWR | O_CREAT, 0644);
	if (fd < 0 || state < 0 || posix_memalign((void **)&buf, 4096, BLOCK)) {
		perror(argv[2]);
		return 1;
	}
	while (!check) {
		uint64_t block = first + n % count;

		fill(block, n);
		if (pwrite(fd, buf, BLOCK, (off_t)(block * BLOCK)) != BLOCK) {
			printf("ended after %llu writes: %s\n", (unsigned long long)n, strerror(errno));
			return 0;
		}
		n++;
		if (pwrite(state, &n, sizeof(n), 0) != sizeof(n))
			return 1;
	}
	if (pread(state, &n, sizeof(n), 0) != sizeof(n) || !n)
		return 1;
	for (uint64_t b = 0; b < count && b < n; b++) {
		uint64_t last = b + (n - 1 - b) / count * count;

		if (pread(fd, buf, BLOCK, (off_t)((first + b) * BLOCK)) != BLOCK) {
			perror(argv[2]);
			return 1;
		}
		if (holds(first + b, last) || (b == n % count && holds(first + b, n)))
			continue;
		printf("block %llu does not hold write %llu of %llu\n", (unsigned long long)(first + b),
		       (unsigned long long)last, (unsigned long long)n);
		return 1;
	}
	printf("%llu writes are there\n", (unsigned long long)n);
	return 0;
}
