/* SPDX-License-Identifier: BSD-3-Clause */
/* vmtool: what a migration of the guest must not harm. Memory that is kept hot, and datagrams there and back. */
#include "vmtool.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

static uint64_t noise(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ x << 17;
}

/* Every word of page @n in its round @r follows from both. */
static uint64_t page_seed(uint64_t n, uint64_t r)
{
	return (n << 32 | r) * 0x9e3779b97f4a7c15ull + 1;
}

/*
 * Rewrite @mib MiB of memory page after page until @stop exists; before a page is written, what was written to it last
 * has to be there. At most @pps pages a second, that a migration can keep up.
 */
int hot(unsigned long mib, const char *stop, double pps)
{
	unsigned long pages = mib * 256, done = 0, bad = 0, lost = 0;
	uint64_t *m = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double start = now(), longest = 0, last = start, t;

	if (m == MAP_FAILED)
		return die("mmap");
	for (uint64_t r = 0; access(stop, F_OK); r++) {
		for (uint64_t n = 0; n < pages; n++) {
			uint64_t *p = m + n * WORDS, x = page_seed(n, r - 1), wrong = 0;

			for (int i = 0; r && i < WORDS; i++, x = noise(x))
				wrong |= p[i] ^ x;
			bad += wrong != 0;
			/* Another page's, or an earlier round's. */
			lost += wrong != 0 && r && p[0] == page_seed(n, r - 2);
			x = page_seed(n, r);
			for (int i = 0; i < WORDS; i++, x = noise(x))
				p[i] = x;
			done++;
			t = now();
			if (t - last > longest)
				longest = t - last;
			last = t;
			while (now() < start + (double)done / pps) {
				usleep(1000);
				last = now();
			}
		}
	}
	printf("pages=%lu rounds=%lu bad=%lu old=%lu longest_ms=%.1f\n", done, done / pages, bad, lost, longest * 1e3);
	return bad != 0;
}

static int udp_socket(struct sockaddr_in *a, const char *host, int port)
{
	int s = socket(AF_INET, SOCK_DGRAM, 0), big = 8 << 20;

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	if (host)
		inet_pton(AF_INET, host, &a->sin_addr);
	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof(big));
	return s;
}

/* Send back whatever comes, for @secs seconds. */
int uecho(int port, double secs)
{
	static unsigned char p[65536];
	struct sockaddr_in a, from;
	int s = udp_socket(&a, NULL, port);
	double end = now() + secs;
	unsigned long n = 0;

	if (bind(s, (void *)&a, sizeof(a)) < 0)
		return die("bind");
	while (now() < end) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		socklen_t l = sizeof(from);
		ssize_t r;

		if (poll(&pf, 1, 100) <= 0)
			continue;
		r = recvfrom(s, p, sizeof(p), 0, (void *)&from, &l);
		if (r > 0 && sendto(s, p, (size_t)r, 0, (void *)&from, l) == r)
			n++;
	}
	printf("echoed=%lu\n", n);
	return 0;
}

/*
 * Send @pps datagrams of @size bytes a second to an echo for @secs seconds. What comes back has to be what was sent,
 * and once. gap_ms is the longest time without an answer, and worst_ms the longest that one took; the second longest
 * gap says what the machine does anyway.
 */
int ugap(const char *host, int port, double secs, double pps, size_t size)
{
	struct sockaddr_in a;
	static uint64_t p[8192], got[8192];
	unsigned long sent = 0, back = 0, bad = 0, doubled = 0, reordered = 0, most = (unsigned long)(secs * pps) + 1;
	unsigned char *seen = calloc(1, most);
	double *at = calloc(most, sizeof(*at)), start = now(), last = 0, gap = 0, second = 0, worst = 0, t;
	int s = udp_socket(&a, host, port);
	uint64_t high = 0;

	if (!seen || !at || size < 16 || size > sizeof(p))
		return 2;
	size &= ~(size_t)7;
	if (connect(s, (void *)&a, sizeof(a)) < 0)
		return die("connect");
	while ((t = now()) < start + secs + 2) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		uint64_t x;
		ssize_t r;

		if (t < start + secs && sent < most && t >= start + (double)sent / pps) {
			x = page_seed(sent, 77);
			p[0] = sent;
			for (size_t i = 1; i < size / 8; i++, x = noise(x))
				p[i] = x;
			at[sent++] = t;
			/* Nobody may be there for a while. */
			if (send(s, p, size, 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
				return die("send");
		}
		if (poll(&pf, 1, 1) <= 0)
			continue;
		while ((r = recv(s, got, sizeof(got), MSG_DONTWAIT)) > 0) {
			bool wrong = r != (ssize_t)size || got[0] >= sent;

			t = now();
			x = wrong ? 0 : page_seed(got[0], 77);
			for (size_t i = 1; !wrong && i < size / 8; i++, x = noise(x))
				wrong = got[i] != x;
			if (wrong) {
				bad++;
				continue;
			}
			doubled += seen[got[0]]++ != 0;
			reordered += got[0] < high;
			high = got[0] > high ? got[0] : high;
			back++;
			if (t - at[got[0]] > worst)
				worst = t - at[got[0]];
			if (last && t - last > gap) {
				second = gap;
				gap = t - last;
			} else if (last && t - last > second) {
				second = t - last;
			}
			last = t;
		}
	}
	printf("sent=%lu back=%lu lost=%ld bad=%lu doubled=%lu reordered=%lu gap_ms=%.1f second_ms=%.1f "
	       "worst_ms=%.1f\n",
	       sent, back, (long)(sent - back + doubled), bad, doubled, reordered, gap * 1e3, second * 1e3,
	       worst * 1e3);
	return bad || doubled;
}
