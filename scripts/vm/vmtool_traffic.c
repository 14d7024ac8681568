/* SPDX-License-Identifier: BSD-3-Clause */
/* vmtool: traffic over TCP and UDP, every byte of it checked. */
#include "vmtool.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define BLK 65536
static unsigned char blk[BLK];

/*
 * Every block of the stream is the same noise with the block's number in front: loss, repetition and change all show.
 */
static void make_block(void)
{
	uint64_t x = 0x9e3779b97f4a7c15ull;

	for (size_t i = 0; i < BLK; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(blk + i, &x, 8);
	}
}

static int tcp_listen(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, (void *)&a, sizeof(a)) < 0 || listen(s, 4) < 0)
		return -1;
	return s;
}

static int tcp_connect(const char *host, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	double end = now() + 60;
	int s;

	inet_pton(AF_INET, host, &a.sin_addr);
	do {
		s = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(s, (void *)&a, sizeof(a)) == 0)
			return s;
		close(s);
		usleep(50000);
	} while (now() < end);
	return -1;
}

int rx(int port)
{
	static unsigned char buf[BLK];
	uint64_t total = 0, bad = 0, num = 0;
	size_t have = 0;
	double start, secs;
	ssize_t r;
	int l = tcp_listen(port), s;

	if (l < 0)
		return die("listen");
	s = accept(l, NULL, NULL);
	if (s < 0)
		return die("accept");
	make_block();
	start = now();
	while ((r = read(s, buf + have, BLK - have)) > 0) {
		total += (uint64_t)r;
		have += (size_t)r;
		if (have < BLK)
			continue;
		if (memcmp(buf, &num, 8) || memcmp(buf + 8, blk + 8, BLK - 8))
			bad++;
		num++;
		have = 0;
	}
	secs = now() - start;
	if (have > 8 && (memcmp(buf, &num, 8) || memcmp(buf + 8, blk + 8, have - 8)))
		bad++;
	printf("bytes=%llu secs=%.3f mbps=%.1f bad=%llu err=%d\n", (unsigned long long)total, secs,
	       (double)total * 8 / 1e6 / (secs > 0 ? secs : 1e-9), (unsigned long long)bad, r < 0 ? errno : 0);
	return bad || r < 0;
}

int tx(const char *host, int port, const char *amount)
{
	double secs = 0, rate = 0, start;
	uint64_t limit = UINT64_MAX, total = 0, num = 0;
	int s = tcp_connect(host, port);
	const char *at = strchr(amount, '@');

	if (s < 0)
		return die("connect");
	if (!strncmp(amount, "secs=", 5))
		secs = atof(amount + 5);
	else if (!strncmp(amount, "mib=", 4))
		limit = (uint64_t)(atof(amount + 4) * 1048576);
	else
		return 2;
	if (at)
		rate = atof(at + 1) * 1048576;
	make_block();
	start = now();
	while (total < limit && (secs == 0 || now() - start < secs)) {
		size_t off = 0;

		memcpy(blk, &num, 8);
		num++;
		while (off < BLK) {
			ssize_t r = write(s, blk + off, BLK - off);

			if (r < 0)
				return die("write");
			off += (size_t)r;
		}
		total += BLK;
		while (rate > 0 && now() < start + (double)total / rate)
			usleep(1000);
	}
	shutdown(s, SHUT_WR);
	/* The receiver closes when it has read everything. */
	if (read(s, blk, 1) < 0)
		return die("close");
	secs = now() - start;
	printf("bytes=%llu secs=%.3f mbps=%.1f\n", (unsigned long long)total, secs, (double)total * 8 / 1e6 / secs);
	return 0;
}

/*
 * A file of noise, another one each time. (Reading as much from /dev/urandom takes an emulated guest a quarter of a
 * minute.)
 */
int fill(const char *path, unsigned long mib)
{
	int f = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644), u = open("/dev/urandom", O_RDONLY);
	uint64_t x;

	if (f < 0 || u < 0 || read(u, &x, 8) != 8)
		return die(path);
	x |= 1;
	for (unsigned long n = 0; n < mib * 16; n++) {
		for (size_t i = 0; i < BLK; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(blk + i, &x, 8);
		}
		if (write(f, blk, BLK) != BLK)
			return die("write");
	}
	return 0;
}

int recvfile(int port, const char *path)
{
	static char buf[1 << 18];
	int l = tcp_listen(port), s, f = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	ssize_t r;

	if (l < 0 || f < 0)
		return die("recvfile");
	s = accept(l, NULL, NULL);
	while ((r = read(s, buf, sizeof(buf))) > 0)
		if (write(f, buf, (size_t)r) != r)
			return die("write");
	return r < 0 ? die("read") : 0;
}

/* The file's own pages go into the packets: what the device reads is wherever the file lies. */
int sendfile_(const char *host, int port, const char *path)
{
	int s = tcp_connect(host, port), f = open(path, O_RDONLY);
	ssize_t r;
	char c;

	if (s < 0 || f < 0)
		return die("sendfile");
	while ((r = sendfile(s, f, NULL, 1 << 20)) > 0)
		;
	if (r < 0)
		return die("sendfile");
	shutdown(s, SHUT_WR);
	return read(s, &c, 1) < 0 ? die("close") : 0;
}

/* UDP: every datagram carries its number and a checksum over the rest of itself. */
static uint32_t sum32(const unsigned char *p, size_t n)
{
	uint32_t a = 1, b = 0;

	for (size_t i = 0; i < n; i++) {
		a = (a + p[i]) % 65521;
		b = (b + a) % 65521;
	}
	return b << 16 | a;
}

int utx(const char *host, int port, unsigned long count, size_t size, double pps)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	static unsigned char p[65536];
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	double start = now();

	if (size < 16 || size > 65000)
		return 2;
	inet_pton(AF_INET, host, &a.sin_addr);
	make_block();
	memcpy(p, blk, size);
	for (unsigned long i = 0; i < count; i++) {
		uint32_t seq = (uint32_t)i, c;

		memcpy(p + 4, &seq, 4);
		c = sum32(p + 4, size - 4);
		memcpy(p, &c, 4);
		if (sendto(s, p, size, 0, (void *)&a, sizeof(a)) < 0 && errno != ENOBUFS)
			return die("sendto");
		while (pps > 0 && now() < start + (double)(i + 1) / pps)
			usleep(200);
	}
	printf("sent=%lu secs=%.3f\n", count, now() - start);
	return 0;
}

static volatile sig_atomic_t over;

static void on_int(int sig)
{
	over = sig;
}

/* Ends after @count datagrams or @secs seconds, or at SIGINT. */
int urx(int port, unsigned long count, double secs)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	static unsigned char p[65536];
	unsigned long got = 0, bad = 0, reord = 0;
	int64_t last = -1;
	int s = socket(AF_INET, SOCK_DGRAM, 0), big = 8 << 20;
	double end = now() + secs;

	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof(big));
	if (bind(s, (void *)&a, sizeof(a)) < 0)
		return die("bind");
	signal(SIGINT, on_int);
	while (got < count && now() < end && !over) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		uint32_t seq, c;
		ssize_t r;

		if (poll(&pf, 1, 100) <= 0)
			continue;
		r = recv(s, p, sizeof(p), 0);
		if (r < 16)
			continue;
		got++;
		memcpy(&c, p, 4);
		memcpy(&seq, p + 4, 4);
		if (c != sum32(p + 4, (size_t)r - 4)) {
			bad++;
			continue;
		}
		if ((int64_t)seq <= last)
			reord++;
		else
			last = seq;
	}
	printf("got=%lu lost=%lu reordered=%lu bad=%lu\n", got, count > got ? count - got : 0, reord, bad);
	return bad != 0;
}
