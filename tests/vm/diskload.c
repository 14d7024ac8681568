// SPDX-License-Identifier: BSD-3-Clause
/*
 * A program for a guest whose disk is served by another VM: writes numbered sectors with direct I/O and reads them
 * back.
 *
 *   diskload FILE BYTES SEED STOP      until the file STOP is there; then every sector is read back
 *
 * FILE is a block device or a file, of which the first BYTES are used. Each write is of 512 B to 1 MiB at any sector;
 * each of its sectors says which it is, in which write it was written, and has a checksum. A sector must hold its last
 * acknowledged write. Meanwhile every third request reads. The number of requests so far is in STOP.n. Says what is
 * wrong and ends with 1; any error of a request does, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTOR	512u
#define LARGEST (1u << 20)

struct stamp {
	uint64_t sector, write, seed, sum;
};

static uint64_t state;
static uint32_t *last; /* of each sector: the write that was acknowledged last, 0 = none */
static uint8_t *buf;
static int fd;

static uint64_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* The words of a sector after its stamp follow from the stamp. */
static uint64_t fill(uint8_t *p, const struct stamp *s, int check)
{
	uint64_t x = s->sector * 0x9e3779b97f4a7c15u ^ s->write << 32 ^ s->seed, bad = 0;

	for (unsigned i = sizeof(*s); i < SECTOR; i += 8) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		if (check)
			bad |= memcmp(p + i, &x, 8) ? 1 : 0;
		else
			memcpy(p + i, &x, 8);
	}
	return bad;
}

static void make(uint64_t first, uint32_t n, uint32_t write, uint64_t seed)
{
	for (uint32_t i = 0; i < n; i++) {
		struct stamp s = { .sector = first + i, .write = write, .seed = seed };

		s.sum = s.sector ^ s.write ^ s.seed;
		memcpy(buf + i * SECTOR, &s, sizeof(s));
		fill(buf + i * SECTOR, &s, 0);
	}
}

static int right(uint64_t first, uint32_t n, uint64_t seed)
{
	for (uint32_t i = 0; i < n; i++) {
		struct stamp s;

		memcpy(&s, buf + i * SECTOR, sizeof(s));
		if (!last[first + i])
			continue;
		if (s.sector != first + i || s.write != last[first + i] || s.seed != seed ||
		    s.sum != (s.sector ^ s.write ^ s.seed) || fill(buf + i * SECTOR, &s, 1)) {
			printf("sector %llu of %llu to %llu: wanted write %u, found sector %llu of "
			       "write %llu\n",
			       (unsigned long long)(first + i), (unsigned long long)first,
			       (unsigned long long)first + n - 1, last[first + i],
			       (unsigned long long)s.sector, (unsigned long long)s.write);
			return 0;
		}
	}
	return 1;
}

static int transfer(int write, uint64_t first, uint32_t n)
{
	ssize_t len = (ssize_t)n * SECTOR,
		r = write ? pwrite(fd, buf, n * SECTOR, (off_t)(first * SECTOR))
			  : pread(fd, buf, n * SECTOR, (off_t)(first * SECTOR));

	if (r == len)
		return 1;
	printf("%s of %u sectors at %llu: %s\n", write ? "write" : "read", n,
	       (unsigned long long)first, r < 0 ? strerror(errno) : "short");
	return 0;
}

static void tell(const char *stop, uint32_t n)
{
	char path[200], text[24];
	int f, len = snprintf(text, sizeof(text), "%u\n", n);

	snprintf(path, sizeof(path), "%s.n", stop);
	f = open(path, O_WRONLY | O_CREAT, 0644);
	if (f < 0 || pwrite(f, text, (size_t)len, 0) != len)
		perror(path);
	close(f);
}

int main(int argc, char **argv)
{
	uint64_t sectors, seed;
	uint32_t n = 0, writes = 0, acked = 0;

	if (argc != 5)
		return 2;
	sectors = strtoull(argv[2], NULL, 0) / SECTOR;
	seed = strtoull(argv[3], NULL, 0);
	state = seed * 2 + 1;
	last = calloc(sectors, sizeof(*last));
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (!last || sectors < LARGEST / SECTOR || posix_memalign((void **)&buf, 4096, LARGEST) ||
	    fd < 0) {
		printf("%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	while (access(argv[4], F_OK)) {
		uint32_t len =
			1u << draw() %
				      12; /* 1 to 2,048 sectors, as many small ones as large ones */
		uint64_t first = draw() % (sectors - len + 1);
		int write = draw() % 3 > 0;

		if (write)
			make(first, len, ++writes, seed);
		if (!transfer(write, first, len))
			return 1;
		for (uint32_t i = 0; write && i < len; i++)
			last[first + i] = writes;
		acked += (uint32_t)write;
		if (!write && !right(first, len, seed))
			return 1;
		tell(argv[4], ++n);
	}
	for (uint64_t at = 0; at < sectors; at += LARGEST / SECTOR) {
		uint32_t len = sectors - at < LARGEST / SECTOR ? (uint32_t)(sectors - at)
							       : LARGEST / SECTOR;

		if (!transfer(0, at, len) || !right(at, len, seed))
			return 1;
	}
	printf("requests=%u writes=%u\n", n, acked);
	return 0;
}
