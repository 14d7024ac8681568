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

static void complete(struct vu_backend *b, int result)
{
	struct vu_req r = pop(b);

	if (result)
		b->stat.reqs_failed++;
	if (r.done)
		r.done(r.arg, result);
}

void vu_req_channel_close(struct vu_backend *b, const char *why)
{
	if (b->req.fd >= 0) {
		snprintf(b->stat.req_error, sizeof(b->stat.req_error), "%s", why);
		b->req_serial++;
	}
	/* Closed first: a request made from a completion gets -ENOTCONN. */
	vu_conn_close(&b->req);
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

void vu_backend_req_ready(struct vu_backend *b)
{
	struct vp_err e = { 0 };
	int rc, i;

	if (b->dead || b->req.fd < 0)
		return;
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
	rc = vu_conn_send(&b->req, &m, &fd, fd >= 0, &e);
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
