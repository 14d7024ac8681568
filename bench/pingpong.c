/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The least that a round trip between two CPUs can take: two threads that bounce one cache line (spin), or
 * wake each other by eventfds (eventfd). Nothing is carried; with "message", 64 bytes are
 * written by one side and read by the other, each way, in two further lines. With "ring" the message is found as in a
 * split virtqueue: an index, an entry, a descriptor, the bytes, one line after the other there, an index with its entry
 * and the bytes back.
 *
 *   pingpong CPU_A CPU_B spin|message|ring|eventfd COUNT
 *
 * Prints one JSON object with cycles (vp_cycles() ticks) of the 50th, 99th and 99.9th percentile.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cycles.h"
#include "base/util.h"

static struct {
	uint64_t ping __attribute__((aligned(VP_CACHELINE)));
	uint64_t pong __attribute__((aligned(VP_CACHELINE)));
} line;
static int fd_ping, fd_pong, cpu_b;
static bool by_fd, message, ring;
static struct {
	uint64_t at __attribute__((aligned(VP_CACHELINE))); /* where the next line is */
} entry[2], desc[2];
static uint8_t body[2][128] __attribute__((aligned(VP_CACHELINE))); /* a packet and its header, as a driver lays them */
static __thread uint8_t mine[128];
static uint64_t count;

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		perror("pingpong: sched_setaffinity");
}

static void send(uint64_t *word, int fd, uint64_t v)
{
	uint64_t one = 1;

	if (message)
		memset(body[word == &line.pong], (int)v, 76);
	if (ring) {
		unsigned way = word == &line.pong;

		/* What differs each time is an offset of nothing: the reader must wait for it all the same. */
		if (!way)
			__atomic_store_n(&desc[way].at, v >> 62, __ATOMIC_RELAXED);
		__atomic_store_n(&entry[way].at, v >> 62, __ATOMIC_RELAXED);
	}

	if (!by_fd)
		__atomic_store_n(word, v, __ATOMIC_RELEASE);
	else if (write(fd, &one, sizeof(one)) < 0)
		exit(1);
}

static void await(uint64_t *word, int fd, uint64_t v)
{
	uint64_t x;

	if (by_fd) {
		if (read(fd, &x, sizeof(x)) < 0)
			exit(1);
		return;
	}
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != v)
		;
	if (message) {
		unsigned way = word == &line.pong;
		uint64_t at = 0;

		if (ring)
			at = __atomic_load_n(&(&entry[way])->at, __ATOMIC_RELAXED);
		if (ring && !way)
			at = __atomic_load_n((uint64_t *)((char *)&desc[way].at + at), __ATOMIC_RELAXED);
		memcpy(mine, body[way] + at, 76);
		__asm__ volatile("" ::: "memory");
	}
}

static void *answerer(void *arg)
{
	pin(cpu_b);
	for (uint64_t i = 1; i <= count; i++) {
		await(&line.ping, fd_ping, i);
		send(&line.pong, fd_pong, i);
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	uint64_t *t, i;
	pthread_t th;

	if (argc != 5 || !(count = strtoull(argv[4], NULL, 10)) || count > 10000000) {
		fprintf(stderr, "usage: pingpong CPU_A CPU_B spin|message|ring|eventfd COUNT\n");
		return 2;
	}
	cpu_b = atoi(argv[2]);
	by_fd = !strcmp(argv[3], "eventfd");
	ring = !strcmp(argv[3], "ring");
	message = ring || !strcmp(argv[3], "message");
	fd_ping = eventfd(0, 0);
	fd_pong = eventfd(0, 0);
	t = calloc(count, sizeof(*t));
	if (!t || fd_ping < 0 || fd_pong < 0 || pthread_create(&th, NULL, answerer, NULL))
		return 1;
	pin(atoi(argv[1]));
	for (i = 1; i <= count; i++) {
		uint64_t t0 = vp_cycles();

		send(&line.ping, fd_ping, i);
		await(&line.pong, fd_pong, i);
		t[i - 1] = vp_cycles() - t0;
	}
	pthread_join(th, NULL);
	qsort(t, count, sizeof(*t), by_value);
	printf("{\"count\": %llu, \"hz\": %llu, \"p50\": %llu, \"p99\": %llu, \"p999\": %llu, \"min\": %llu}\n",
	       (unsigned long long)count, (unsigned long long)vp_cycles_hz(), (unsigned long long)t[count / 2],
	       (unsigned long long)t[count * 99 / 100], (unsigned long long)t[count * 999 / 1000],
	       (unsigned long long)t[0]);
	return 0;
}
