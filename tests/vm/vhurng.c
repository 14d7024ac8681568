// SPDX-License-Identifier: BSD-3-Clause
/*
 * A program for a device VM: a vhost-user back-end of an entropy device (virtio 1.3, 5.4), a type of which vhost-pci
 * knows nothing. It shows that any back-end with ordinary queues will do: written from the vhost-user specification and
 * virtio 1.3, 2.7, with no feature but VERSION_1 and no protocol feature but REPLY_ACK.
 *
 *   vhurng SOCKET SEED      listens there, serves one connection, ends with it
 *
 * The bytes are a pattern: 64-bit words that count up from SEED, so that a driver VM can see that all are new and in
 * order.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { GET_FEATURES = 1, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD, SET_VRING_NUM,
       SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
       GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE };

#define REPLY_ACK (1u << 3)
#define NEED_REPLY 8u
#define REGIONS	   8

static struct {
	struct { uint32_t request, flags, size; } h;
	union {
		uint64_t u64;
		struct { uint32_t index, num; } state;
		struct { uint32_t index, flags; uint64_t desc, used, avail, log; } addr;
		struct { uint32_t n, pad; struct { uint64_t gpa, size, uva, offset; } r[REGIONS]; } mem;
	} p;
} __attribute__((packed)) m;

static struct { uint64_t gpa, size, uva; uint8_t *at; } reg[REGIONS];
static unsigned nreg;
static int sock, fds[REGIONS], nfds, kick = -1, call = -1;
static struct { uint16_t flags, idx, ring[]; } volatile *avail;
static struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[]; } volatile *used;
static struct { uint64_t addr; uint32_t len; uint16_t flags, next; } volatile *desc;
static uint16_t size, next;
static int runs;
static uint64_t counter, features;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* By guest physical address, or by the front-end's. */
static void *at(uint64_t addr, uint64_t len, int user)
{
	for (unsigned i = 0; i < nreg; i++) {
		uint64_t off = addr - (user ? reg[i].uva : reg[i].gpa);

		if (off < reg[i].size && len <= reg[i].size - off)
			return reg[i].at + off;
	}
	fprintf(stderr, "0x%llx is in no region\n", (unsigned long long)addr);
	exit(1);
}

static int receive(void)
{
	char anc[CMSG_SPACE(sizeof(fds))];
	struct iovec v = { &m, sizeof(m.h) };
	struct msghdr msg = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = anc, .msg_controllen = sizeof(anc) };
	ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_WAITALL);
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (n <= 0)
		return 0;
	nfds = c ? (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
	if (c)
		memcpy(fds, CMSG_DATA(c), nfds * sizeof(int));
	if (m.h.size > sizeof(m.p) || (m.h.size && recv(sock, &m.p, m.h.size, MSG_WAITALL) != (ssize_t)m.h.size))
		die("message");
	return 1;
}

static void answer(uint32_t bytes)
{
	m.h.flags = 1 | 4;
	m.h.size = bytes;
	if (send(sock, &m, sizeof(m.h) + bytes, MSG_NOSIGNAL) < 0)
		die("send");
}

static void memory(void)
{
	for (unsigned i = 0; i < nreg; i++)
		munmap(reg[i].at, reg[i].size);
	for (nreg = 0; nreg < m.p.mem.n; nreg++) {
		void *p = mmap(NULL, m.p.mem.r[nreg].size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[nreg],
			       (off_t)m.p.mem.r[nreg].offset);

		if (p == MAP_FAILED)
			die("mmap");
		reg[nreg].gpa = m.p.mem.r[nreg].gpa;
		reg[nreg].uva = m.p.mem.r[nreg].uva;
		reg[nreg].size = m.p.mem.r[nreg].size;
		reg[nreg].at = p;
		close(fds[nreg]);
	}
}

static void serve(void)
{
	int any = 0;

	while (runs && __atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE) != next) {
		uint16_t id = avail->ring[next++ % size], i = id;
		uint32_t done = 0;

		for (;;) {
			uint8_t *p = at(desc[i].addr, desc[i].len, 0);

			for (uint32_t k = 0; desc[i].flags & 2 && k + 8 <= desc[i].len; k += 8, counter++, done += 8)
				memcpy(p + k, &counter, 8);
			if (!(desc[i].flags & 1))
				break;
			i = desc[i].next;
		}
		used->ring[used->idx % size].id = id;
		used->ring[used->idx % size].len = done;
		__atomic_store_n(&used->idx, (uint16_t)(used->idx + 1), __ATOMIC_RELEASE);
		any = 1;
	}
	if (any && call >= 0 && write(call, &(uint64_t){ 1 }, 8) < 0)
		die("call");
}

static void take(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = nfds ? fds[0] : -1;
}

/* 0, or bytes of its answer. */
static uint32_t handle(void)
{
	switch (m.h.request) {
	case GET_FEATURES:
		m.p.u64 = 1ull << 32 | 1ull << 30;
		return 8;
	case SET_FEATURES:
		features = m.p.u64;
		break;
	case GET_PROTOCOL_FEATURES:
		m.p.u64 = REPLY_ACK;
		return 8;
	case SET_MEM_TABLE:
		memory();
		break;
	case SET_VRING_NUM:
		size = (uint16_t)m.p.state.num;
		break;
	case SET_VRING_BASE:
		next = (uint16_t)m.p.state.num;
		break;
	case SET_VRING_ADDR:
		desc = at(m.p.addr.desc, 16u * size, 1);
		avail = at(m.p.addr.avail, 4 + 2u * size, 1);
		used = at(m.p.addr.used, 4 + 8u * size, 1);
		break;
	case SET_VRING_KICK:
		take(&kick);
		runs = !(features >> 30 & 1);
		break;
	case SET_VRING_CALL:
		take(&call);
		break;
	case SET_VRING_ERR:
		if (nfds)
			close(fds[0]);
		break;
	case SET_VRING_ENABLE:
		runs = (int)m.p.state.num;
		break;
	case GET_VRING_BASE:
		runs = 0;
		m.p.state.num = next;
		return 8;
	case SET_OWNER:
	case SET_PROTOCOL_FEATURES:
		break;
	default:
		fprintf(stderr, "request %u\n", m.h.request);
		return m.h.flags & NEED_REPLY ? (m.p.u64 = 1, 8) : 0;
	}
	return m.h.flags & NEED_REPLY ? (m.p.u64 = 0, 8) : 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int l = socket(AF_UNIX, SOCK_STREAM, 0);
	uint64_t n;

	if (argc != 3 || strlen(argv[1]) >= sizeof(a.sun_path))
		return 2;
	strcpy(a.sun_path, argv[1]);
	counter = strtoull(argv[2], NULL, 0);
	unlink(a.sun_path);
	if (bind(l, (struct sockaddr *)&a, sizeof(a)) || listen(l, 1) || (sock = accept(l, NULL, NULL)) < 0)
		die(argv[1]);
	for (;;) {
		struct pollfd p[2] = { { .fd = sock, .events = POLLIN }, { .fd = runs ? kick : -1, .events = POLLIN } };
		uint32_t bytes;

		if (poll(p, 2, -1) < 0)
			die("poll");
		if (p[1].revents && read(kick, &n, 8) < 0 && errno != EAGAIN)
			die("kick");
		if (p[0].revents) {
			if (!receive())
				return 0;
			bytes = handle();
			if (bytes)
				answer(bytes);
		}
		serve();
	}
}
