/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading and writing messages without blocking. Threat model: see codec.h;
 * this file must keep every fd accounted for, whatever arrives in whatever
 * pieces, and must never wait.
 */
#include "vhostuser/codec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/foreign.h"
#include "base/util.h"

void vu_conn_init(struct vu_conn *c, int fd, enum vu_dir rx_dir, bool rx_replies)
{
	unsigned int i;

	memset(c, 0, sizeof(*c));
	c->fd = fd;
	c->rx_dir = rx_dir;
	c->rx_replies = rx_replies;
	for (i = 0; i < VU_MAX_FDS; i++)
		c->rx_fds[i] = -1;
}

void vu_conn_next(struct vu_conn *c)
{
	unsigned int i;

	for (i = 0; i < c->rx_nfds; i++)
		vp_close_foreign(&c->rx_fds[i]);
	c->rx_nfds = 0;
	c->rx_have = 0;
}

static void out_drop(struct vu_conn *c)
{
	struct vu_out *o = &c->out[c->out_head];
	unsigned int i;

	for (i = 0; i < o->nfds; i++)
		vp_close(&o->fds[i]);
	free(o->msg);
	memset(o, 0, sizeof(*o));
	c->out_head = (c->out_head + 1) % VU_OUTQ;
	c->out_len--;
}

void vu_conn_close(struct vu_conn *c)
{
	vu_conn_next(c);
	while (c->out_len)
		out_drop(c);
	vp_close_foreign(&c->fd);  /* a request channel came from the peer */
}

/*
 * Take over the fds of one recvmsg. All that the kernel installed are closed or
 * kept here: none is left for it to throw away, which may take as long as a peer likes (base/foreign.h).
 */
static int collect_fds(struct vu_conn *c, struct msghdr *mh, struct vp_err *e)
{
	struct cmsghdr *cm;
	int rc = 0;

	for (cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
		size_t n, i;

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
			if (c->rx_nfds < VU_MAX_FDS) {
				c->rx_fds[c->rx_nfds++] = fd;
			} else {
				vp_close_foreign(&fd);
				rc = -EBADF;
			}
		}
	}
	if (mh->msg_flags & MSG_CTRUNC)
		rc = -EBADF;
	if (rc)
		vp_err_set(e, rc,
			   "a message carries more than %u file descriptors (or more than this process may open)",
			   VU_MAX_FDS);
	return rc;
}

/* The header is complete: does it announce something that can be read at all? */
static int check_header(struct vu_conn *c, struct vp_err *e)
{
	const struct vu_hdr *h = &c->rx.hdr;
	const struct vu_msg_info *info = vu_msg_info(c->rx_dir, h->request);
	uint32_t max = VU_MAX_PAYLOAD;
	char nb[24];

	/* A known message is refused before its surplus bytes have been waited for. */
	if (info)
		max = c->rx_replies ? VP_MAX(info->rmax, 8) : info->max;
	if ((h->flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION)
		return vp_err_set(e, -EBADMSG, "message %u has protocol version %u, expected %u: no vhost-user peer?",
				  h->request, h->flags & VU_FLAG_VERSION_MASK, VU_FLAG_VERSION);
	if (h->size > max)
		return vp_err_set(e, -EBADMSG, "%s announces %u bytes of payload, expected %s%u",
				  vu_msg_name(c->rx_dir, h->request, nb, sizeof(nb)), h->size,
				  info && info->min == max ? "" : "at most ", max);
	memset(&c->rx.p, 0, sizeof(c->rx.p));
	return 0;
}

static int closed(struct vu_conn *c, struct vp_err *e)
{
	const char *who = c->rx_replies == (c->rx_dir == VU_FROM_FRONTEND) ? "back-end" : "front-end";
	char nb[24];

	if (!c->rx_have)
		return vp_err_set(e, -ECONNRESET, "the %s closed the connection", who);
	if (c->rx_have < VU_HDR_SIZE)
		return vp_err_set(e, -ECONNRESET, "the %s closed the connection within a header (%zu of %u bytes)",
				  who, c->rx_have, VU_HDR_SIZE);
	return vp_err_set(e, -ECONNRESET, "the %s closed the connection within %s (%zu of %u bytes)", who,
			  vu_msg_name(c->rx_dir, c->rx.hdr.request, nb, sizeof(nb)), c->rx_have,
			  VU_HDR_SIZE + c->rx.hdr.size);
}

int vu_conn_recv(struct vu_conn *c, struct vp_err *e)
{
	for (;;) {
		union {
			char buf[CMSG_SPACE(VP_FOREIGN_FDS_MAX * sizeof(int))];
			struct cmsghdr align;
		} ctl;
		struct iovec iov;
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1,
				     .msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf) };
		ssize_t n;
		int rc;

		if (c->rx_have < VU_HDR_SIZE) {
			iov.iov_base = (char *)&c->rx.hdr + c->rx_have;
			iov.iov_len = VU_HDR_SIZE - c->rx_have;
		} else {
			iov.iov_base = c->rx.p.bytes + (c->rx_have - VU_HDR_SIZE);
			iov.iov_len = VU_HDR_SIZE + c->rx.hdr.size - c->rx_have;
			if (!iov.iov_len)
				return 1;
		}
		/* seccomp control: recvmsg close */
		n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				return 0;
			if (errno == ECONNRESET || errno == EPIPE)
				return closed(c, e);
			return vp_err_set(e, -errno, "cannot read from the vhost-user socket: %s", strerror(errno));
		}
		rc = collect_fds(c, &mh, e);
		if (rc)
			return rc;
		if (!n)
			return closed(c, e);
		c->rx_have += n;
		if (c->rx_have == VU_HDR_SIZE) {
			rc = check_header(c, e);
			if (rc)
				return rc;
		}
	}
}

int vu_conn_peek(const struct vu_conn *c, size_t payload, struct vu_msg *m)
{
	struct iovec v[2] = { { &m->hdr, VU_HDR_SIZE }, { m->p.bytes, payload } };
	struct msghdr h = { .msg_iov = v, .msg_iovlen = 2 };
	ssize_t n;

	if (c->rx_have || c->out_len)
		return -1;
	do {
		n = recvmsg(c->fd, &h, MSG_PEEK | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
	return (size_t)n == VU_HDR_SIZE + payload && m->hdr.size == payload && !(h.msg_flags & MSG_CTRUNC) ? 1 : -1;
}

/* One sendmsg from offset off; the fds go with the first byte. Bytes sent, 0 = would block, or -errno. */
static ssize_t send_some(int sock, const struct vu_msg *m, size_t off, const int *fds, unsigned int nfds)
{
	union {
		char buf[CMSG_SPACE(VU_MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov[2];
	struct msghdr mh = { .msg_iov = iov };
	size_t poff = off > VU_HDR_SIZE ? off - VU_HDR_SIZE : 0;
	ssize_t n;

	/* The header has 12 bytes, the payload is aligned to 8: they are not adjacent in memory. */
	if (off < VU_HDR_SIZE) {
		iov[mh.msg_iovlen].iov_base = (char *)&m->hdr + off;
		iov[mh.msg_iovlen++].iov_len = VU_HDR_SIZE - off;
	}
	if (m->hdr.size > poff) {
		iov[mh.msg_iovlen].iov_base = (char *)m->p.bytes + poff;
		iov[mh.msg_iovlen++].iov_len = m->hdr.size - poff;
	}
	if (!off && nfds) {
		struct cmsghdr *cm;

		memset(&ctl, 0, sizeof(ctl));
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, nfds * sizeof(int));
	}
	do {
		/* seccomp control: sendmsg */
		n = sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
	return n;
}

static int send_failed(const struct vu_conn *c, int code, const struct vu_msg *m, struct vp_err *e)
{
	char nb[24];

	return vp_err_set(e, code == -EPIPE ? -ECONNRESET : code, "cannot send %s: %s",
			  vu_msg_name(c->rx_dir, m->hdr.request, nb, sizeof(nb)),
			  code == -EPIPE ? "the peer closed the connection" : strerror(-code));
}

static int enqueue(struct vu_conn *c, const struct vu_msg *m, size_t off, const int *fds, unsigned int nfds,
		   struct vp_err *e)
{
	struct vu_out *o = &c->out[(c->out_head + c->out_len) % VU_OUTQ];
	size_t bytes = offsetof(struct vu_msg, p) + m->hdr.size;

	memset(o, 0, sizeof(*o));
	o->msg = malloc(bytes);
	if (!o->msg)
		return vp_err_set(e, -ENOMEM, "out of memory for a vhost-user message");
	memcpy(o->msg, m, bytes);
	o->off = off;
	o->len = VU_HDR_SIZE + m->hdr.size;
	for (; !off && o->nfds < nfds; o->nfds++) {
		/* seccomp control: fcntl */
		o->fds[o->nfds] = fcntl(fds[o->nfds], F_DUPFD_CLOEXEC, 3);
		if (o->fds[o->nfds] < 0) {
			int rc = vp_err_set(e, -errno, "cannot duplicate a file descriptor to send: %s",
					    strerror(errno));

			while (o->nfds)
				vp_close(&o->fds[--o->nfds]);
			free(o->msg);
			memset(o, 0, sizeof(*o));
			return rc;
		}
	}
	c->out_len++;
	return 0;
}

int vu_conn_send(struct vu_conn *c, const struct vu_msg *m, const int *fds, unsigned int nfds,
		 struct vp_err *e)
{
	size_t len = VU_HDR_SIZE + m->hdr.size;
	ssize_t n = 0;
	char nb[24];

	if (m->hdr.size > VU_MAX_PAYLOAD || nfds > VU_MAX_FDS)
		return vp_err_set(e, -EINVAL, "a message of %u bytes and %u fds cannot be sent", m->hdr.size, nfds);
	if (c->fd < 0)
		return vp_err_set(e, -ENOTCONN, "the vhost-user connection is closed");
	if (c->out_len == VU_OUTQ)
		return vp_err_set(e, -ENOBUFS, "the peer does not read its socket: %u messages wait, %s did not fit",
				  VU_OUTQ, vu_msg_name(c->rx_dir, m->hdr.request, nb, sizeof(nb)));
	if (!c->out_len) {
		n = send_some(c->fd, m, 0, fds, nfds);
		if (n < 0)
			return send_failed(c, n, m, e);
		if ((size_t)n == len)
			return 0;
	}
	return enqueue(c, m, n, fds, nfds, e);
}

int vu_conn_flush(struct vu_conn *c, struct vp_err *e)
{
	while (c->out_len) {
		struct vu_out *o = &c->out[c->out_head];
		ssize_t n = send_some(c->fd, o->msg, o->off, o->fds, o->nfds);

		if (n < 0)
			return send_failed(c, n, o->msg, e);
		if (!n)
			return 0;
		o->off += n;
		if (o->off == o->len)
			out_drop(c);
	}
	return 0;
}
