/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile front-end: the input is a list of actions on a back-end session,
 * among them raw bytes with fds, well-formed headers with wild contents, answers on the request channel, and
 * completions by the owner at any moment. Wrong is: a crash, a sanitizer's report, blocking, an fd left open.
 *
 * Actions: one byte what, then its operands (missing ones read as 0).
 *   0 n fds bytes[n]               raw bytes with fds
 *   1 id flags size fds bytes[size] a message (size: one byte, times 1; bit 7 of flags: 256 more)
 *   2 result                       owner completes what it deferred
 *   3 n bytes[n]                   raw bytes on the request channel
 *   4 what                         a request of the back-end
 *   5                              the front-end reads what was sent
 *   6 mode                         owner: 0 answers, 1 defers, 2 fails, 3 takes fds
 *   7                              writable
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "vhostuser/backend.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *in;
static size_t left;
static int mode, dummy_fd;
static unsigned int outstanding;

static uint8_t byte(void)
{
	if (!left)
		return 0;
	left--;
	return *in++;
}

static int result(bool may_later)
{
	return mode == 2 ? -EINVAL : mode == 1 && may_later ? VP_LATER : 0;
}

static void take(int *fd)
{
	if (mode == 3)
		vp_close(fd);
}

static int mem_table(void *c, const struct vu_mem_region *r, int *fds, unsigned int n, struct vp_err *e)
{
	volatile uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < n; i++) {
		sum += r[i].gpa;
		if (fcntl(fds[i], F_GETFD) < 0)
			abort();
		take(&fds[i]);
	}
	return result(true);
}

static int mem_add(void *c, const struct vu_mem_region *r, int *fd, struct vp_err *e)
{
	if (fcntl(*fd, F_GETFD) < 0)
		abort();
	take(fd);
	return result(true);
}

static int mem_remove(void *c, const struct vu_mem_region *r, struct vp_err *e)
{
	return result(true);
}

static struct vu_backend *session;

static int ring_changed(void *c, unsigned int q, unsigned int what, struct vp_err *e)
{
	const struct vu_ring *r = vu_backend_ring(session, q);

	if (!r || (what & VU_RING_STARTED && (!r->num || !r->addr_set || !r->kick_set)))
		abort();
	if (mode == 3)
		close(vu_backend_take_fd(session, q, VU_RING_CALL));
	return result(false);
}

static int ring_stop(void *c, unsigned int q, uint32_t *base, struct vp_err *e)
{
	if (!vu_backend_ring(session, q)->started)
		abort();
	*base += 5;
	return result(true);
}

static int reset(void *c, struct vp_err *e)
{
	return result(true);
}

static int get_config(void *c, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
{
	memset(buf, 1, len);
	return result(false);
}

static int set_config(void *c, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e)
{
	volatile uint8_t sum = 0;

	while (len)
		sum += buf[--len];
	return result(false);
}

static int u64_op(void *c, uint64_t v, struct vp_err *e)
{
	return result(false);
}

static int status(void *c, uint8_t v, struct vp_err *e)
{
	return result(false);
}

static int rarp(void *c, const uint8_t mac[6], struct vp_err *e)
{
	return result(false);
}

static int set_log(void *c, int *fd, uint64_t size, uint64_t off, struct vp_err *e)
{
	take(fd);
	return result(true);
}

static int set_log_fd(void *c, int *fd, struct vp_err *e)
{
	take(fd);
	return result(false);
}

static int get_inflight(void *c, struct vu_inflight *io, int *fd, struct vp_err *e)
{
	*fd = dummy_fd;
	return result(false);
}

static int set_inflight(void *c, const struct vu_inflight *i, int *fd, struct vp_err *e)
{
	take(fd);
	return result(false);
}

static int iotlb(void *c, const struct vhost_iotlb_msg *m, struct vp_err *e)
{
	return result(true);
}

static int shmem(void *c, unsigned int *n, uint64_t *sizes, struct vp_err *e)
{
	memset(sizes, 2, *n * sizeof(*sizes));
	return result(false);
}

static const struct vu_backend_ops ops = {
	.set_features = u64_op, .set_protocol_features = u64_op, .mem_table = mem_table, .mem_add = mem_add,
	.mem_remove = mem_remove, .ring_changed = ring_changed, .ring_stop = ring_stop, .reset = reset,
	.get_config = get_config, .set_config = set_config, .set_status = status, .set_mtu = u64_op,
	.send_rarp = rarp, .set_log = set_log, .set_log_fd = set_log_fd, .get_inflight = get_inflight,
	.set_inflight = set_inflight, .iotlb = iotlb, .get_shmem_config = shmem,
};

static void done(void *arg, int res)
{
	outstanding--;
}

static void send_bytes(int sock, const void *buf, size_t len, unsigned int nfds, int which)
{
	char ctl[CMSG_SPACE(16 * sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { (void *)buf, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	unsigned int i;

	if (nfds && len) {
		struct cmsghdr *cm;

		mh.msg_control = ctl;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		for (i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(cm) + i * sizeof(int), &which, sizeof(int));
	}
	(void)!sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void drain(int sock)
{
	struct vu_conn c;
	struct vp_err e;

	/*
	 * With fds and all: a raw read would leave them to the kernel, which is fine too, but this also tests our
	 * reader.
	 */
	vu_conn_init(&c, sock, VU_FROM_FRONTEND, true);
	while (vu_conn_recv(&c, &e) == 1)
		vu_conn_next(&c);
	vu_conn_next(&c);
}

static void start(int sock)
{
	/* Reaching the interesting states takes a negotiation; most inputs start after it. */
	struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) m;

	m.h = (struct vu_hdr){ VU_SET_OWNER, 1, 0 };
	send_bytes(sock, &m, 12, 0, 0);
	m.h = (struct vu_hdr){ VU_SET_PROTOCOL_FEATURES, 1, 8 };
	m.v = VP_BIT(0) | VP_BIT(1) | VP_BIT(2) | VP_BIT(3) | VP_BIT(4) | VP_BIT(5) | VP_BIT(9) | VP_BIT(10) |
	      VP_BIT(12) | VP_BIT(13) | VP_BIT(15) | VP_BIT(16) | VP_BIT(22);
	send_bytes(sock, &m, 20, 0, 0);
	m.h.request = VU_SET_FEATURES;
	m.v = VP_BIT(32) | VP_BIT(33) | VP_BIT(30);
	send_bytes(sock, &m, 20, 0, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vu_backend_cfg cfg = { .features = VP_BIT(32) | VP_BIT(33) | VP_BIT(34) | VP_BIT(26), .max_queues = 3,
				      .max_mem_slots = 10 };
	int sv[2], req[2] = { -1, -1 }, lowest = dup(0), rc = 0, first, again;
	struct vp_err e;

	in = data;
	left = size;
	mode = 0;
	outstanding = 0;
	dummy_fd = eventfd(0, EFD_CLOEXEC);
	first = byte();
	cfg.pf = VP_BIT(0) | VP_BIT(1) | VP_BIT(2) | VP_BIT(3) | VP_BIT(4) | VP_BIT(5) | VP_BIT(9) | VP_BIT(10) |
		 VP_BIT(12) | VP_BIT(13) | VP_BIT(15) | VP_BIT(16) | VP_BIT(22);
	if (first & 2)
		cfg.msgs_per_sec = 100000;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, req))
		abort();
	session = vu_backend_new(sv[1], &cfg, &ops, NULL, &e);
	if (!session)
		abort();
	if (!(first & 1))
		start(sv[0]);
	while (left && !rc) {
		struct { struct vu_hdr h; uint8_t p[600]; } m;
		uint8_t flags, n, nfds, id;
		size_t len, i;

		switch (byte() % 8) {
		case 0:
			n = byte();
			nfds = byte() % 12;
			len = VP_MIN((size_t)n, left);
			send_bytes(sv[0], in, len, nfds, dummy_fd);
			in += len;
			left -= len;
			break;
		case 1:
			id = byte();
			flags = byte();
			len = byte() + (flags & 0x80 ? 256 : 0);
			nfds = byte();
			m.h = (struct vu_hdr){ id % 48, (flags & 0xc) | 1, len };
			for (i = 0; i < len; i++)
				m.p[i] = byte();
			send_bytes(sv[0], &m, 12 + len, nfds % 12, nfds & 0x80 ? req[1] : dummy_fd);
			break;
		case 2:
			n = byte();
			rc = vu_backend_done(session, n & 0x80 ? -EIO : 0, &e);
			if (rc == -EINVAL)
				rc = vu_backend_ring_stopped(session, n % 4, n * 0x10001u, &e);
			if (rc == -EINVAL)
				rc = 0;
			break;
		case 3:
			n = byte();
			len = VP_MIN((size_t)n, left);
			send_bytes(req[0], in, len, 0, 0);
			in += len;
			left -= len;
			vu_backend_req_ready(session);
			break;
		case 4:
			n = byte() % 5;
			outstanding++;
			if (n == 0 ? vu_backend_shmem_map(session, n, dummy_fd, 0, 0, 4096, 0, done, NULL) :
			    n == 1 ? vu_backend_shmem_unmap(session, n, 0, 4096, done, NULL) :
			    n == 2 ? vu_backend_iotlb_miss(session, 0x1000, 3, done, NULL) :
			    n == 3 ? vu_backend_iotlb_access_fail(session, 0x1000, 3, done, NULL) :
				     vu_backend_config_change(session, done, NULL))
				outstanding--;
			break;
		case 5:
			drain(sv[0]);
			break;
		case 6:
			mode = byte() % 4;
			break;
		case 7:
			rc = vu_backend_writable(session, &e);
			break;
		}
		if (!rc)
			rc = vu_backend_readable(session, &e);
		if (rc && (!e.msg[0] || memchr(e.msg, 0, sizeof(e.msg)) == NULL))
			abort();
	}
	vu_backend_destroy(session);
	if (outstanding)
		abort();
	close(sv[0]);
	close(req[0]);
	close(req[1]);
	close(dummy_fd);
	close(lowest);
	/* Had an fd been left open below, the lowest free number would be another. */
	again = dup(0);
	if (again != lowest)
		abort();
	close(again);
	return 0;
}
