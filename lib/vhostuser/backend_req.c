/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests of the back-end ("Back-end communication"). Nothing here waits: the
 * front-end may itself be waiting for our answer on the main channel before it
 * looks at this one. Threat model: see backend.h; answers are as untrusted as
 * requests, and a front-end may never answer (VU_MAX_REQS bounds what is kept).
 */
#include "vhostuser/backend_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/util.h"

static struct vu_req pop(struct vu_backend *b)
{
	struct vu_req r = b->reqs[b->req_head];

	b->req_head = (b->req_head + 1) % VU_MAX_REQS;
	b->req_len--;
	return r;
}

/* So many more of both, in the journal, which is at nothing then. */
static void count(struct vu_backend *b, uint32_t asked, uint32_t heard)
{
	struct vu_journal *j = b->cfg.journal;
	struct vu_journal_state s;

	if (!j)
		return;
	s = vu_journal_get(j);
	vu_journal_set(j, (struct vu_journal_state){ VU_DOING_NOTHING, s.asked + asked, s.heard + heard });
}

static void complete(struct vu_backend *b, int result)
{
	struct vu_req r = pop(b);

	if (result)
		b->stat.reqs_failed++;
	if (r.done)
		r.done(r.arg, result);
	/* Who waits for the last answer to another process may ask now. */
	else if (r.heir && !b->dead && b->ops->events_changed && !vu_backend_stale(b))
		b->ops->events_changed(b->ctx);
}

void vu_req_channel_close(struct vu_backend *b, const char *why)
{
	if (b->req.fd >= 0 || b->req_len)
		vu_touch(b);
	if (b->req.fd >= 0) {
		snprintf(b->stat.req_error, sizeof(b->stat.req_error), "%s", why);
		b->req_serial++;
	}
	/* Closed first: a request made from a completion gets -ENOTCONN. */
	vu_conn_close(&b->req);
	count(b, 0, b->req_len);
	while (b->req_len)
		complete(b, -ECANCELED);
}

int vu_req_channel_set(struct vu_backend *b, int *fd, struct vp_err *e)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	/* seccomp control: getsockopt */
	if (getsockopt(*fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) || domain != AF_UNIX ||
	    getsockopt(*fd, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_STREAM)
		return vp_err_set(e, -ENOTSOCK,
				  "the file descriptor of SET_BACKEND_REQ_FD is not a UNIX stream socket");
	vu_req_channel_close(b, "the front-end replaced it");
	vu_conn_init(&b->req, *fd, VU_FROM_BACKEND, true);
	b->req_serial++;
	b->stat.req_error[0] = '\0';
	*fd = -1;
	return 0;
}

bool vu_backend_has_req(const struct vu_backend *b)
{
	return b->req.fd >= 0;
}

int vu_backend_req_fd(const struct vu_backend *b)
{
	return b->req.fd;
}

unsigned int vu_backend_req_serial(const struct vu_backend *b)
{
	return b->req_serial;
}

short vu_backend_req_events(const struct vu_backend *b)
{
	if (b->req.fd < 0)
		return 0;
	return POLLIN | (vu_conn_want_write(&b->req) ? POLLOUT : 0);
}

/* The answer to a miss, all of it: nothing but the journal has to know. 1: heard; else as vu_conn_peek(). */
static int hear(struct vu_backend *b)
{
	struct vu_journal *j = b->cfg.journal;
	uint8_t raw[VU_HDR_SIZE + sizeof(uint64_t)];
	struct vp_err e = { 0 };
	struct vu_msg m;
	int rc = vu_conn_peek(&b->req, sizeof(uint64_t), &m);

	if (rc != 1)
		return rc;
	if (!b->req_len || m.hdr.request != VU_BE_IOTLB_MSG ||
	    vu_reply_check(VU_FROM_BACKEND, b->reqs[b->req_head].request, &m, 0, &e))
		return -1;
	vu_journal_begin(j, VU_DOING_HEAR);
	if (vu_journal_recv(j, b->req.fd, raw, sizeof(raw)) != (ssize_t)sizeof(raw)) {
		vu_req_channel_close(b, "somebody else reads it, too");
		vu_events_update(b);
		return 0;
	}
	vu_at(VU_AT_HEARD);
	count(b, 0, 1);
	complete(b, m.p.u64 ? -EREMOTEIO : 0);
	return 1;
}

void vu_backend_req_ready(struct vu_backend *b)
{
	struct vp_err e = { 0 };
	int rc = 1, i;

	if (b->dead || b->req.fd < 0)
		return;
	for (i = 0; b->cfg.journal && rc == 1 && i < VU_MAX_REQS; i++) {
		rc = hear(b);
		if (b->req.fd < 0)
			return;
	}
	if (b->cfg.journal && rc >= 0) {
		vu_events_update(b);
		return;
	}
	vu_touch(b);
	rc = vu_conn_flush(&b->req, &e);
	for (i = 0; !rc && i < VU_MAX_REQS; i++) {
		uint64_t v;

		rc = vu_conn_recv(&b->req, &e);
		if (rc <= 0)
			break;
		if (!b->req_len)
			rc = vp_err_set(&e, -EBADMSG, "the front-end answered a request that was not made");
		else
			rc = vu_reply_check(VU_FROM_BACKEND, b->reqs[b->req_head].request, &b->req.rx,
					    b->req.rx_nfds, &e);
		v = b->req.rx.p.u64;
		vu_conn_next(&b->req);
		if (rc)
			break;
		count(b, 0, 1);
		complete(b, v ? -EREMOTEIO : 0);
		if (b->req.fd < 0)
			return;
	}
	if (rc < 0) {
		vp_log(VP_LOG_NOTICE, "%s: request channel closed: %s", b->cfg.name, e.msg);
		vu_req_channel_close(b, e.msg);
	}
	vu_events_update(b);
}

/* A miss that will be answered: as vu_conn_send(), and only the journal has to know. */
static int send_miss(struct vu_backend *b, const struct vu_msg *m, struct vp_err *e)
{
	uint8_t raw[VU_HDR_SIZE + sizeof(m->p.iotlb)];
	struct vu_journal *j = b->cfg.journal;
	ssize_t n;

	memcpy(raw, &m->hdr, VU_HDR_SIZE);
	memcpy(raw + VU_HDR_SIZE, &m->p.iotlb, sizeof(m->p.iotlb));
	vu_journal_begin(j, VU_DOING_ASK);
	n = vu_journal_send(j, b->req.fd, raw, sizeof(raw));
	if (n == (ssize_t)sizeof(raw)) {
		vu_at(VU_AT_ASKED);
		return 0;
	}
	vu_touch(b);
	if (n == -EAGAIN)
		return vu_conn_send(&b->req, m, NULL, 0, e); /* it waits */
	return vp_err_set(e, n < 0 ? (int)n : -EIO, "cannot send IOTLB_MSG: %s",
			  n < 0 ? strerror((int)-n) : "the socket took half of it");
}

static int request(struct vu_backend *b, uint32_t id, const void *payload, uint32_t size, int fd, bool need_answer,
		   vu_req_done done, void *arg)
{
	bool ack = vu_has(b->pf, VU_PF_REPLY_ACK);
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_BACKEND, id);
	struct vp_err e = { 0 };
	struct vu_msg m;
	int rc;

	if (b->dead || b->req.fd < 0)
		return -ENOTCONN;
	if (!vu_has(b->pf, info->pf) || (need_answer && !ack) || (fd >= 0 && !vu_has(b->pf, VU_PF_BACKEND_SEND_FD)))
		return -EOPNOTSUPP;
	if (ack && b->req_len == VU_MAX_REQS)
		return -EBUSY;
	m.hdr = (struct vu_hdr){ .request = id, .size = size,
				 .flags = VU_FLAG_VERSION | (ack ? VU_FLAG_NEED_REPLY : 0) };
	if (size)
		memcpy(&m.p, payload, size);
	if (b->cfg.journal && ack && id == VU_BE_IOTLB_MSG && !vu_conn_want_write(&b->req)) {
		rc = send_miss(b, &m, &e);
	} else {
		vu_touch(b);
		rc = vu_conn_send(&b->req, &m, &fd, fd >= 0, &e);
	}
	if (ack)
		count(b, !rc, 0);
	if (rc) {
		/* Not enough room is the caller's to retry; anything else has lost the channel. */
		if (rc != -ENOBUFS && rc != -ENOMEM && rc != -EMFILE) {
			vu_req_channel_close(b, e.msg);
			vu_events_update(b);
			rc = -ENOTCONN;
		}
		return rc;
	}
	b->stat.reqs++;
	if (ack)
		b->reqs[(b->req_head + b->req_len++) % VU_MAX_REQS] =
			(struct vu_req){ .request = id, .done = done, .arg = arg };
	else if (done)
		done(arg, 0);
	vu_events_update(b);
	return 0;
}

int vu_backend_shmem_map(struct vu_backend *b, uint8_t shmid, int fd, uint64_t fd_offset, uint64_t shm_offset,
			 uint64_t len, uint64_t flags, vu_req_done done, void *arg)
{
	struct vu_shmem_map map = { .shmid = shmid, .fd_offset = fd_offset, .shm_offset = shm_offset,
				    .len = len, .flags = flags };

	if (fd < 0)
		return -EBADF;
	return request(b, VU_BE_SHMEM_MAP, &map, sizeof(map), fd, true, done, arg);
}

int vu_backend_shmem_unmap(struct vu_backend *b, uint8_t shmid, uint64_t shm_offset, uint64_t len,
			   vu_req_done done, void *arg)
{
	struct vu_shmem_map map = { .shmid = shmid, .shm_offset = shm_offset, .len = len };

	return request(b, VU_BE_SHMEM_UNMAP, &map, sizeof(map), -1, true, done, arg);
}

static int iotlb_request(struct vu_backend *b, uint64_t iova, uint8_t perm, uint8_t type, vu_req_done done, void *arg)
{
	struct vhost_iotlb_msg m;

	if (!vu_has(b->acked, VIRTIO_F_ACCESS_PLATFORM))
		return -EOPNOTSUPP;
	memset(&m, 0, sizeof(m)); /* the padding is sent too */
	m.iova = iova;
	m.perm = perm;
	m.type = type;
	return request(b, VU_BE_IOTLB_MSG, &m, sizeof(m), -1, false, done, arg);
}

int vu_backend_iotlb_miss(struct vu_backend *b, uint64_t iova, uint8_t perm, vu_req_done done, void *arg)
{
	return iotlb_request(b, iova, perm, VHOST_IOTLB_MISS, done, arg);
}

int vu_backend_iotlb_access_fail(struct vu_backend *b, uint64_t iova, uint8_t perm, vu_req_done done, void *arg)
{
	return iotlb_request(b, iova, perm, VHOST_IOTLB_ACCESS_FAIL, done, arg);
}

int vu_backend_config_change(struct vu_backend *b, vu_req_done done, void *arg)
{
	return request(b, VU_BE_CONFIG_CHANGE, NULL, 0, -1, false, done, arg);
}
