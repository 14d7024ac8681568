// SPDX-License-Identifier: BSD-3-Clause
/*
 * A program for guests: checked streams over AF_VSOCK, both ways at once on every connection.
 *
 *   vsockio listen PORT N BYTES        accepts N connections, ends when all have ended
 *   vsockio connect CID PORT N BYTES   opens N connections at once
 *
 * Each end of each connection sends BYTES bytes that follow from its role and the connection's number, which the
 * connecting end says first, and expects as many of the other role. Ends with 0 and a line, or with 1 and what is
 * wrong. With VSOCKIO_SLOW=1 in the environment it sends 100 bytes 50 times a second: the other end's credit lasts for
 * minutes; it says on stderr that it begins.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define MAX   256
#define CHUNK 16384

struct conn {
	int fd;
	uint32_t number;
	uint64_t sent, got, n; /* of the payload; n: to send and to get */
	uint32_t head;	       /* bytes of the number that have passed */
};

static struct conn conns[MAX];
static int slow;

static uint8_t byte_of(uint32_t number, int role, uint64_t at)
{
	return (uint8_t)((at * 2654435761u >> 13) + number * 31 + (uint32_t)role * 127);
}

static int fail(const struct conn *c, const char *what)
{
	printf("connection %u: %s after %llu sent and %llu received: %s\n", c->number, what,
	       (unsigned long long)c->sent, (unsigned long long)c->got,
	       errno ? strerror(errno) : "ended");
	return -1;
}

static int send_some(struct conn *c, int role)
{
	uint8_t buf[CHUNK];
	uint64_t len = c->n - c->sent < CHUNK ? c->n - c->sent : CHUNK;
	ssize_t r;

	if (slow) {
		if (!c->sent && write(2, "sending\n", 8) < 0)
			return fail(c, "stderr");
		usleep(20000);
		len = len < 100 ? len : 100;
	}
	for (uint64_t i = 0; i < len; i++)
		buf[i] = byte_of(c->number, role, c->sent + i);
	r = send(c->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (r < 0)
		return errno == EAGAIN ? 0 : fail(c, "send");
	c->sent += (uint64_t)r;
	return 0;
}

static int get_some(struct conn *c, int role)
{
	uint8_t buf[CHUNK];
	ssize_t r;

	errno = 0;
	if (c->head < 4) {
		r = recv(c->fd, (uint8_t *)&c->number + c->head, 4 - c->head, MSG_DONTWAIT);
		if (r > 0)
			c->head += (uint32_t)r;
		return r > 0 || (r < 0 && errno == EAGAIN) ? 0 : fail(c, "no number");
	}
	r = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);
	if (r <= 0)
		return r < 0 && errno == EAGAIN ? 0 : fail(c, "receive");
	for (ssize_t i = 0; i < r; i++)
		if (buf[i] != byte_of(c->number, !role, c->got + (uint64_t)i)) {
			errno = EBADMSG;
			return fail(c, "a wrong byte");
		}
	c->got += (uint64_t)r;
	return 0;
}

static int stream(unsigned n, int role)
{
	struct pollfd p[MAX];

	for (;;) {
		unsigned open = 0;

		for (unsigned i = 0; i < n; i++) {
			struct conn *c = &conns[i];
			short want = (c->got < c->n ? POLLIN : 0) |
				     (c->head == 4 && c->sent < c->n ? POLLOUT : 0);

			p[i] = (struct pollfd){ .fd = want ? c->fd : -1, .events = want };
			open += !!want;
		}
		if (!open)
			return 0;
		if (poll(p, n, 60000) <= 0) {
			printf("%u connections without progress for a minute\n", open);
			return -1;
		}
		for (unsigned i = 0; i < n; i++) {
			if (p[i].revents & (POLLIN | POLLHUP | POLLERR) &&
			    get_some(&conns[i], role))
				return -1;
			if (p[i].revents & POLLOUT && send_some(&conns[i], role))
				return -1;
		}
	}
}

static int opened(unsigned i, int fd, uint64_t bytes, int role)
{
	struct conn *c = &conns[i];

	*c = (struct conn){ .fd = fd, .number = i, .n = bytes };
	if (!role)
		return 0;
	c->head = 4;
	return send(fd, &c->number, 4, MSG_NOSIGNAL) == 4 ? 0 : fail(c, "its number");
}

int main(int argc, char **argv)
{
	int role = argc > 1 && !strcmp(argv[1], "connect"), s = -1;
	struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	struct timeval patience = { .tv_sec = 60 };
	unsigned n;
	uint64_t bytes;

	if (argc != 5 + role)
		return 2;
	slow = !!getenv("VSOCKIO_SLOW");
	if (role)
		a.svm_cid = (unsigned)strtoul(argv[2], NULL, 0);
	a.svm_port = (unsigned)strtoul(argv[2 + role], NULL, 0);
	n = (unsigned)strtoul(argv[3 + role], NULL, 0);
	bytes = strtoull(argv[4 + role], NULL, 0);
	if (n > MAX)
		return 2;
	if (!role) {
		s = socket(AF_VSOCK, SOCK_STREAM, 0);
		if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(s, MAX) < 0) {
			printf("listen: %s\n", strerror(errno));
			return 1;
		}
		if (write(2, "listening\n", 10) < 0)
			return 1;
	}
	for (unsigned i = 0; i < n; i++) {
		int fd = role ? socket(AF_VSOCK, SOCK_STREAM, 0) : accept(s, NULL, NULL);

		/* The default is 2 s, in which an emulated guest may not come to it. */
		if (role && fd >= 0)
			setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience,
				   sizeof(patience));
		if (fd < 0 || (role && connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)) {
			printf("connection %u: %s\n", i, strerror(errno));
			return 1;
		}
		if (opened(i, fd, bytes, role))
			return 1;
	}
	if (stream(n, role))
		return 1;
	/* The last bytes have arrived when the other end has closed, or closes. */
	for (unsigned i = 0; i < n; i++) {
		char c;

		shutdown(conns[i].fd, SHUT_WR);
		if (recv(conns[i].fd, &c, 1, 0) > 0) {
			errno = EMSGSIZE;
			fail(&conns[i], "bytes beyond the end");
			return 1;
		}
	}
	printf("connections=%u bytes=%llu\n", n, (unsigned long long)bytes);
	return 0;
}
