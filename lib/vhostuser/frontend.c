/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The front-end's side. The back-end may be a program that we did not write and
 * do not trust with more than the memory it was given: its answers are checked
 * like requests are, and each wait has a deadline.
 */
#include "vhostuser/frontend.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "base/util.h"

struct vu_frontend {
	struct vu_conn main, req;
	unsigned int timeout_ms;
	uint64_t offered, pf;
	vu_frontend_req handler;
	void *handler_ctx;
	struct vu_mem_region regions[VU_MAX_MEM_SLOTS];
	unsigned int nregions, max_slots;
};

#define PF_SPOKEN (VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_LOG_SHMFD) | VP_BIT(VU_PF_RARP) | VP_BIT(VU_PF_REPLY_ACK) | \
		VP_BIT(VU_PF_MTU) | VP_BIT(VU_PF_BACKEND_REQ) | VP_BIT(VU_PF_CONFIG) | \
		VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(VU_PF_INFLIGHT_SHMFD) | VP_BIT(VU_PF_RESET_DEVICE) | \
		VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) | VP_BIT(VU_PF_STATUS) | VP_BIT(VU_PF_SHMEM) | \
		VP_BIT(VU_PF_DEVICE_STATE))

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * UINT64_C(1000) + ts.tv_nsec / 1000000;
}

struct vu_frontend *vu_frontend_new(int fd, unsigned int timeout_ms, struct vp_err *e)
{
	struct vu_frontend *f = calloc(1, sizeof(*f));

	if (!f) {
		vp_err_set(e, -ENOMEM, "out of memory for a vhost-user front-end");
		vp_close(&fd);
		return NULL;
	}
	vu_conn_init(&f->main, fd, VU_FROM_FRONTEND, true);
	vu_conn_init(&f->req, -1, VU_FROM_BACKEND, false);
	f->timeout_ms = timeout_ms;
	return f;
}

struct vu_frontend *vu_frontend_connect(const char *path, unsigned int timeout_ms, struct vp_err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	uint64_t end = now_ms() + timeout_ms;
	int fd;

	if (strlen(path) >= sizeof(sa.sun_path)) {
		vp_err_set(e, -ENAMETOOLONG, "socket path %s is longer than %zu bytes", path, sizeof(sa.sun_path) - 1);
		return NULL;
	}
	strcpy(sa.sun_path, path);
	for (;;) {
		struct timespec nap = { .tv_nsec = 20000000 };
		int err;

		/* SOCK_NONBLOCK: a full backlog must not hold us beyond the deadline. */
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0) {
			vp_err_set(e, -errno, "cannot make a socket: %s", strerror(errno));
			return NULL;
		}
		if (!connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
			return vu_frontend_new(fd, timeout_ms, e);
		err = errno;
		close(fd);
		if ((err != ENOENT && err != ECONNREFUSED && err != EAGAIN && err != EINTR) || now_ms() >= end) {
			vp_err_set(e, -err, "cannot connect to the vhost-user back-end at %s: %s", path, strerror(err));
			return NULL;
		}
		nanosleep(&nap, NULL);
	}
}

void vu_frontend_destroy(struct vu_frontend *f)
{
	if (!f)
		return;
	vu_conn_close(&f->main);
	vu_conn_close(&f->req);
	free(f);
}

int vu_frontend_fd(const struct vu_frontend *f)
{
	return f->main.fd;
}

uint64_t vu_frontend_pf(const struct vu_frontend *f)
{
	return f->pf;
}

unsigned int vu_frontend_timeout_ms(const struct vu_frontend *f)
{
	return f->timeout_ms;
}

static bool has_pf(const struct vu_frontend *f, unsigned int bit)
{
	return f->pf >> bit & 1;
}

/* --- requests of the back-end --- */

void vu_frontend_on_request(struct vu_frontend *f, vu_frontend_req handler, void *ctx)
{
	f->handler = handler;
	f->handler_ctx = ctx;
}

int vu_frontend_req_fd(const struct vu_frontend *f)
{
	return f->req.fd;
}

int vu_frontend_serve(struct vu_frontend *f, struct vp_err *e)
{
	int rc = 0, i;

	if (f->req.fd < 0)
		return vp_err_set(e, -ENOTCONN, "there is no channel for requests of the back-end");
	rc = vu_conn_flush(&f->req, e);
	for (i = 0; !rc && i < 64; i++) {
		struct vu_msg *m = &f->req.rx;
		bool need;
		int res;

		rc = vu_conn_recv(&f->req, e);
		if (rc <= 0)
			break;
		need = has_pf(f, VU_PF_REPLY_ACK) && m->hdr.flags & VU_FLAG_NEED_REPLY;
		rc = vu_msg_check(VU_FROM_BACKEND, m, f->req.rx_nfds, f->pf, VU_ST_OWNED, e);
		if (rc == -EBADMSG || rc == -EBADF)
			break;
		res = rc ? rc : f->handler ? f->handler(f->handler_ctx, m->hdr.request, &m->p, m->hdr.size,
						       &f->req.rx_fds[0]) : -ENOSYS;
		rc = 0;
		if (need) {
			m->hdr.flags = VU_FLAG_VERSION | VU_FLAG_REPLY;
			m->hdr.size = sizeof(m->p.u64);
			m->p.u64 = res < 0;
			rc = vu_conn_send(&f->req, m, NULL, 0, e);
		}
		vu_conn_next(&f->req);
	}
	if (rc < 0)
		vu_conn_close(&f->req);
	return VP_MIN(rc, 0);
}

/* --- one request --- */

static int wait_io(struct vu_frontend *f, uint64_t end, const char *name, struct vp_err *e)
{
	for (;;) {
		struct pollfd p[2] = {
			{ .fd = f->main.fd, .events = POLLIN | (vu_conn_want_write(&f->main) ? POLLOUT : 0) },
			{ .fd = f->req.fd, .events = POLLIN },
		};
		uint64_t now = now_ms();
		int n;

		if (now >= end)
			return vp_err_set(e, -ETIMEDOUT, "the back-end did not answer %s within %u ms", name,
					  f->timeout_ms);
		n = poll(p, 2, VP_MIN(end - now, 60000));
		if (n < 0 && errno != EINTR)
			return vp_err_set(e, -errno, "poll: %s", strerror(errno));
		if (n <= 0)
			continue;
		/* Its loss shows on the main channel, or does not matter. */
		if (p[1].revents)
			vu_frontend_serve(f, NULL);
		if (p[0].revents)
			return 0;
	}
}

int vu_frontend_call(struct vu_frontend *f, const struct vu_msg *req, const int *fds, unsigned int nfds,
		     struct vu_msg *reply, int *rfd, struct vp_err *e)
{
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_FRONTEND, req->hdr.request);
	uint64_t end = now_ms() + f->timeout_ms;
	struct vu_msg *m = &f->main.rx;
	struct vu_hdr *h;
	struct vu_msg out;
	bool answer;
	char nb[24];
	const char *name = vu_msg_name(VU_FROM_FRONTEND, req->hdr.request, nb, sizeof(nb));
	int rc;

	if (rfd)
		*rfd = -1;
	if (f->main.fd < 0)
		return vp_err_set(e, -ENOTCONN, "%s: the connection to the back-end is closed", name);
	if (req->hdr.size > VU_MAX_PAYLOAD)
		return vp_err_set(e, -EINVAL, "%s cannot have %u bytes of payload", name, req->hdr.size);
	memcpy(&out, req, offsetof(struct vu_msg, p) + req->hdr.size);
	h = &out.hdr;
	answer = info && info->reply == VU_REPLY_ALWAYS;
	h->flags = VU_FLAG_VERSION;
	/* IOTLB_MSG: some back-ends answer only when asked to. */
	if ((!answer && has_pf(f, VU_PF_REPLY_ACK)) || h->request == VU_IOTLB_MSG) {
		h->flags |= VU_FLAG_NEED_REPLY;
		answer = true;
	}
	rc = vu_conn_send(&f->main, &out, fds, nfds, e);
	while (!rc && vu_conn_want_write(&f->main)) {
		rc = wait_io(f, end, name, e);
		if (!rc)
			rc = vu_conn_flush(&f->main, e);
	}
	if (rc || !answer)
		goto out;
	for (;;) {
		rc = vu_conn_recv(&f->main, e);
		if (rc)
			break;
		rc = wait_io(f, end, name, e);
		if (rc)
			break;
	}
	if (rc < 0)
		goto out;
	rc = vu_reply_check(VU_FROM_FRONTEND, h->request, m, f->main.rx_nfds, e);
	if (rc)
		goto out;
	if (reply)
		*reply = *m;
	if (rfd && f->main.rx_nfds) {
		*rfd = f->main.rx_fds[0];
		f->main.rx_fds[0] = -1;
	}
	if ((!info || info->reply == VU_REPLY_ACK || h->request == VU_IOTLB_MSG) && m->p.u64)
		rc = vp_err_set(e, -EREMOTEIO, "the back-end refused %s (%llu)", name, (unsigned long long)m->p.u64);
	vu_conn_next(&f->main);
	return rc;
out:
	if (rc)
		vu_conn_close(&f->main);
	return rc;
}

static int call_u64(struct vu_frontend *f, uint32_t id, uint64_t v, const int *fd, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = id, .size = 8 }, .p.u64 = v };

	return vu_frontend_call(f, &m, fd, fd ? 1 : 0, NULL, NULL, e);
}

static int call_empty(struct vu_frontend *f, uint32_t id, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = id } };

	return vu_frontend_call(f, &m, NULL, 0, NULL, NULL, e);
}

static int get_u64(struct vu_frontend *f, uint32_t id, uint64_t *v, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = id } }, r;
	int rc = vu_frontend_call(f, &m, NULL, 0, &r, NULL, e);

	if (!rc)
		*v = r.p.u64;
	return rc;
}

static int need_pf(struct vu_frontend *f, unsigned int bit, const char *what, struct vp_err *e)
{
	if (has_pf(f, bit))
		return 0;
	return vp_err_set(e, -EOPNOTSUPP, "%s: the back-end does not have protocol feature %s", what, vu_pf_name(bit));
}

/* --- negotiation --- */

static int make_req_channel(struct vu_frontend *f, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_BACKEND_REQ_FD } };
	int sv[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return vp_err_set(e, -errno, "cannot make a socket pair: %s", strerror(errno));
	vu_conn_close(&f->req);
	vu_conn_init(&f->req, sv[0], VU_FROM_BACKEND, false);
	rc = vu_frontend_call(f, &m, &sv[1], 1, NULL, NULL, e);
	close(sv[1]);
	return rc;
}

int vu_frontend_negotiate(struct vu_frontend *f, uint64_t pf, uint64_t *offered, struct vp_err *e)
{
	uint64_t have = 0;
	int rc;

	rc = call_empty(f, VU_SET_OWNER, e);
	if (!rc)
		rc = get_u64(f, VU_GET_FEATURES, &f->offered, e);
	if (rc)
		return rc;
	if (offered)
		*offered = f->offered & ~VP_BIT(VU_F_PROTOCOL_FEATURES);
	if (!(f->offered >> VU_F_PROTOCOL_FEATURES & 1))
		return 0;
	rc = get_u64(f, VU_GET_PROTOCOL_FEATURES, &have, e);
	if (rc)
		return rc;
	have &= pf & PF_SPOKEN;
	rc = call_u64(f, VU_SET_PROTOCOL_FEATURES, have, NULL, e);
	if (rc)
		return rc;
	f->pf = have;
	return has_pf(f, VU_PF_BACKEND_REQ) ? make_req_channel(f, e) : 0;
}

int vu_frontend_set_features(struct vu_frontend *f, uint64_t features, struct vp_err *e)
{
	char names[128];

	features |= f->offered & VP_BIT(VU_F_PROTOCOL_FEATURES);
	if (features & ~f->offered)
		return vp_err_set(e, -EINVAL, "the back-end does not offer %s",
				  vu_features_str(1, features & ~f->offered, names, sizeof(names)));
	return call_u64(f, VU_SET_FEATURES, features, NULL, e);
}

int vu_frontend_queue_num(struct vu_frontend *f, unsigned int fallback, unsigned int *n, struct vp_err *e)
{
	uint64_t v = fallback;
	int rc = has_pf(f, VU_PF_MQ) ? get_u64(f, VU_GET_QUEUE_NUM, &v, e) : 0;

	*n = VP_MIN(v, VU_MAX_QUEUES);
	return rc;
}

/* --- memory --- */

static int mem_one(struct vu_frontend *f, uint32_t id, const struct vu_mem_region *r, const int *fd, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = id, .size = sizeof(m.p.mem_single) }, .p.mem_single.region = *r };

	return vu_frontend_call(f, &m, fd, fd ? 1 : 0, NULL, NULL, e);
}

static bool has_region(const struct vu_mem_region *t, unsigned int n, const struct vu_mem_region *r)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		if (!memcmp(&t[i], r, sizeof(*r)))
			return true;
	return false;
}

static int set_slots(struct vu_frontend *f, const struct vu_mem_region *r, const int *fds, unsigned int n,
		     struct vp_err *e)
{
	unsigned int i;
	uint64_t v;
	int rc;

	if (!f->max_slots) {
		rc = get_u64(f, VU_GET_MAX_MEM_SLOTS, &v, e);
		if (rc)
			return rc;
		f->max_slots = VP_MIN(v, VU_MAX_MEM_SLOTS);
	}
	if (n > f->max_slots)
		return vp_err_set(e, -E2BIG, "%u memory regions, the back-end takes %u", n, f->max_slots);
	for (i = 0; i < f->nregions;) {
		if (has_region(r, n, &f->regions[i])) {
			i++;
			continue;
		}
		rc = mem_one(f, VU_REM_MEM_REG, &f->regions[i], NULL, e);
		if (rc)
			return rc;
		f->nregions--;
		memmove(&f->regions[i], &f->regions[i + 1], (f->nregions - i) * sizeof(f->regions[0]));
	}
	for (i = 0; i < n; i++) {
		if (has_region(f->regions, f->nregions, &r[i]))
			continue;
		rc = mem_one(f, VU_ADD_MEM_REG, &r[i], &fds[i], e);
		if (rc)
			return rc;
		f->regions[f->nregions++] = r[i];
	}
	return 0;
}

int vu_frontend_set_mem(struct vu_frontend *f, const struct vu_mem_region *r, const int *fds, unsigned int n,
			struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_MEM_TABLE } };

	if (has_pf(f, VU_PF_CONFIGURE_MEM_SLOTS))
		return set_slots(f, r, fds, n, e);
	if (n > VU_MAX_TABLE_REGIONS)
		return vp_err_set(e, -E2BIG, "%u memory regions, the back-end takes %u", n, VU_MAX_TABLE_REGIONS);
	m.hdr.size = 8 + n * sizeof(*r);
	m.p.mem.nregions = n;
	memcpy(m.p.mem.regions, r, n * sizeof(*r));
	return vu_frontend_call(f, &m, fds, n, NULL, NULL, e);
}

/* --- rings --- */

static int ring_fd(struct vu_frontend *f, uint32_t id, unsigned int q, int fd, struct vp_err *e)
{
	return call_u64(f, id, q | (fd < 0 ? VU_VRING_NOFD : 0), fd < 0 ? NULL : &fd, e);
}

static int ring_state(struct vu_frontend *f, uint32_t id, unsigned int q, uint32_t num, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = id, .size = 8 }, .p.state = { .index = q, .num = num } };

	return vu_frontend_call(f, &m, NULL, 0, NULL, NULL, e);
}

int vu_frontend_start_ring(struct vu_frontend *f, unsigned int q, const struct vu_frontend_ring *r, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_VRING_ADDR, .size = sizeof(m.p.addr) },
			    .p.addr = { .index = q, .flags = r->log ? 1u << VHOST_VRING_F_LOG : 0,
					.desc_user_addr = r->desc, .avail_user_addr = r->avail,
					.used_user_addr = r->used, .log_guest_addr = r->log_addr } };
	int rc;

	if (q >= VU_MAX_QUEUES)
		return vp_err_set(e, -EINVAL, "ring %u: at most %u are possible", q, VU_MAX_QUEUES);
	rc = ring_state(f, VU_SET_VRING_NUM, q, r->num, e);
	if (!rc)
		rc = ring_state(f, VU_SET_VRING_BASE, q, r->base, e);
	if (!rc)
		rc = vu_frontend_call(f, &m, NULL, 0, NULL, NULL, e);
	if (!rc)
		rc = ring_fd(f, VU_SET_VRING_CALL, q, r->call_fd, e);
	if (!rc && r->err_fd >= 0)
		rc = ring_fd(f, VU_SET_VRING_ERR, q, r->err_fd, e);
	if (!rc)
		rc = ring_fd(f, VU_SET_VRING_KICK, q, r->kick_fd, e);
	return rc;
}

int vu_frontend_set_call(struct vu_frontend *f, unsigned int q, int call_fd, struct vp_err *e)
{
	return ring_fd(f, VU_SET_VRING_CALL, q, call_fd, e);
}

int vu_frontend_enable(struct vu_frontend *f, unsigned int q, bool on, struct vp_err *e)
{
	/* Without protocol features a ring is enabled as soon as it starts. */
	if (!(f->offered >> VU_F_PROTOCOL_FEATURES & 1))
		return on ? 0 : vp_err_set(e, -EOPNOTSUPP, "the back-end cannot disable rings");
	return ring_state(f, VU_SET_VRING_ENABLE, q, on, e);
}

int vu_frontend_stop_ring(struct vu_frontend *f, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_GET_VRING_BASE, .size = 8 }, .p.state.index = q }, r;
	int rc = vu_frontend_call(f, &m, NULL, 0, &r, NULL, e);

	if (rc)
		return rc;
	if (r.p.state.index != q) {
		vu_conn_close(&f->main);
		return vp_err_set(e, -EBADMSG, "GET_VRING_BASE of ring %u was answered for ring %u", q,
				  r.p.state.index);
	}
	*base = r.p.state.num;
	return 0;
}

/* --- the rest --- */

int vu_frontend_get_config(struct vu_frontend *f, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_GET_CONFIG, .size = VU_CONFIG_HDR_SIZE + len },
			    .p.config = { .offset = off, .size = len } }, r;
	int rc = need_pf(f, VU_PF_CONFIG, "GET_CONFIG", e);

	if (!rc && len > VU_MAX_CONFIG)
		rc = vp_err_set(e, -EINVAL, "GET_CONFIG of %u bytes, at most %u are possible", len, VU_MAX_CONFIG);
	if (!rc)
		rc = vu_frontend_call(f, &m, NULL, 0, &r, NULL, e);
	if (rc)
		return rc;
	if (r.hdr.size != VU_CONFIG_HDR_SIZE + len)
		return vp_err_set(e, -EREMOTEIO, "the back-end refused GET_CONFIG of %u bytes at %u", len, off);
	memcpy(buf, r.p.config.data, len);
	return 0;
}

int vu_frontend_set_config(struct vu_frontend *f, uint32_t off, uint32_t len, const uint8_t *buf, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_CONFIG, .size = VU_CONFIG_HDR_SIZE + len },
			    .p.config = { .offset = off, .size = len } };
	int rc = need_pf(f, VU_PF_CONFIG, "SET_CONFIG", e);

	if (!rc && len > VU_MAX_CONFIG)
		rc = vp_err_set(e, -EINVAL, "SET_CONFIG of %u bytes, at most %u are possible", len, VU_MAX_CONFIG);
	if (rc)
		return rc;
	memcpy(m.p.config.data, buf, len);
	return vu_frontend_call(f, &m, NULL, 0, NULL, NULL, e);
}

int vu_frontend_inflight_size(struct vu_frontend *f, unsigned int queues, unsigned int entries, uint64_t *size,
			      struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_GET_INFLIGHT_FD, .size = sizeof(m.p.inflight) },
			    .p.inflight = { .num_queues = (uint16_t)queues, .queue_size = (uint16_t)entries } }, r;
	int fd = -1, rc = need_pf(f, VU_PF_INFLIGHT_SHMFD, "GET_INFLIGHT_FD", e);

	if (rc)
		return rc;
	rc = vu_frontend_call(f, &m, NULL, 0, &r, &fd, e);
	vp_close(&fd);
	if (rc)
		return rc;
	if (!r.p.inflight.mmap_size)
		return vp_err_set(e, -EREMOTEIO, "the back-end refused GET_INFLIGHT_FD for %u queues of %u entries",
				  queues, entries);
	*size = r.p.inflight.mmap_size;
	return 0;
}

int vu_frontend_set_inflight(struct vu_frontend *f, unsigned int queues, unsigned int entries, int fd, uint64_t offset,
			     uint64_t size, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_INFLIGHT_FD, .size = sizeof(m.p.inflight) },
			    .p.inflight = { .mmap_size = size, .mmap_offset = offset, .num_queues = (uint16_t)queues,
					    .queue_size = (uint16_t)entries } };
	int rc = need_pf(f, VU_PF_INFLIGHT_SHMFD, "SET_INFLIGHT_FD", e);

	return rc ? rc : vu_frontend_call(f, &m, &fd, 1, NULL, NULL, e);
}

int vu_frontend_set_status(struct vu_frontend *f, uint8_t status, struct vp_err *e)
{
	int rc = need_pf(f, VU_PF_STATUS, "SET_STATUS", e);

	return rc ? rc : call_u64(f, VU_SET_STATUS, status, NULL, e);
}

int vu_frontend_get_status(struct vu_frontend *f, uint8_t *status, struct vp_err *e)
{
	uint64_t v = 0;
	int rc = need_pf(f, VU_PF_STATUS, "GET_STATUS", e);

	if (!rc)
		rc = get_u64(f, VU_GET_STATUS, &v, e);
	*status = v;
	return rc;
}

int vu_frontend_set_mtu(struct vu_frontend *f, uint16_t mtu, struct vp_err *e)
{
	int rc = need_pf(f, VU_PF_MTU, "NET_SET_MTU", e);

	return rc ? rc : call_u64(f, VU_NET_SET_MTU, mtu, NULL, e);
}

int vu_frontend_reset_device(struct vu_frontend *f, struct vp_err *e)
{
	int rc = need_pf(f, VU_PF_RESET_DEVICE, "RESET_DEVICE", e);

	return rc ? rc : call_empty(f, VU_RESET_DEVICE, e);
}

int vu_frontend_set_log(struct vu_frontend *f, int fd, uint64_t size, uint64_t offset, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_LOG_BASE, .size = sizeof(m.p.log) },
			    .p.log = { .mmap_size = size, .mmap_offset = offset } };
	int rc = need_pf(f, VU_PF_LOG_SHMFD, "SET_LOG_BASE", e);

	return rc ? rc : vu_frontend_call(f, &m, &fd, 1, NULL, NULL, e);
}

int vu_frontend_iotlb(struct vu_frontend *f, const struct vhost_iotlb_msg *iotlb, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_IOTLB_MSG, .size = sizeof(m.p.iotlb) }, .p.iotlb = *iotlb };

	return vu_frontend_call(f, &m, NULL, 0, NULL, NULL, e);
}
