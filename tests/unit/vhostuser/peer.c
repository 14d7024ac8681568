/* SPDX-License-Identifier: BSD-3-Clause */
#include "peer.h"

#include <dirent.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/foreign.h"

unsigned int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	/* What is no memory, socket or eventfd is closed a moment later. */
	while (vp_foreign_closing())
		usleep(1000);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int result(struct peer *p, bool may_later)
{
	int rc = p->fail;

	p->calls++;
	p->fail = 0;
	return rc ? rc : may_later && p->later ? VP_LATER : 0;
}

static void take(struct peer *p, int *fd)
{
	if (!p->keep)
		return;
	assert_true(*fd >= 0);
	assert_true(p->nkept < VP_ARRAY_SIZE(p->kept));
	p->kept[p->nkept++] = *fd;
	*fd = -1;
}

static int on_features(void *ctx, uint64_t features, struct vp_err *e)
{
	struct peer *p = ctx;

	p->features = features;
	return result(p, false);
}

static int on_mem_table(void *ctx, const struct vu_mem_region *r, int *fds, unsigned int n, struct vp_err *e)
{
	struct peer *p = ctx;
	unsigned int i;

	for (i = 0; i < n; i++)
		take(p, &fds[i]);
	if (!p->fail)
		p->nregions = n;
	return result(p, true);
}

static int on_mem_add(void *ctx, const struct vu_mem_region *r, int *fd, struct vp_err *e)
{
	struct peer *p = ctx;

	take(p, fd);
	p->nregions++;
	return result(p, true);
}

static int on_mem_remove(void *ctx, const struct vu_mem_region *r, struct vp_err *e)
{
	struct peer *p = ctx;

	p->nregions--;
	return result(p, true);
}

static int on_ring(void *ctx, unsigned int q, unsigned int what, struct vp_err *e)
{
	struct peer *p = ctx;

	p->ring_q = q;
	p->ring_what = what;
	p->ring_calls++;
	return result(p, false);
}

static int on_ring_stop(void *ctx, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct peer *p = ctx;

	if (p->stop_base)
		*base = p->stop_base;
	return result(p, true);
}

static int on_reset(void *ctx, struct vp_err *e)
{
	return result(ctx, true);
}

static int on_get_config(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
{
	uint32_t i;

	if (off + (uint64_t)len > 16)
		return vp_err_set(e, -EINVAL, "config space has 16 bytes");
	for (i = 0; i < len; i++)
		buf[i] = 0xa0 + off + i;
	return result(ctx, false);
}

static int on_set_config(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e)
{
	return result(ctx, false);
}

static int on_status(void *ctx, uint8_t status, struct vp_err *e)
{
	return result(ctx, false);
}

static int on_mtu(void *ctx, uint64_t mtu, struct vp_err *e)
{
	struct peer *p = ctx;

	p->mtu = mtu;
	return mtu > 9000 ? -EINVAL : result(p, false);
}

static int on_rarp(void *ctx, const uint8_t mac[6], struct vp_err *e)
{
	return result(ctx, false);
}

static int on_log(void *ctx, int *fd, uint64_t size, uint64_t offset, struct vp_err *e)
{
	struct peer *p = ctx;

	take(p, fd);
	p->log_size = size;
	return result(p, true);
}

static int on_log_fd(void *ctx, int *fd, struct vp_err *e)
{
	take(ctx, fd);
	return result(ctx, false);
}

static int on_get_inflight(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e)
{
	int rc = result(ctx, false);

	if (!rc) {
		io->mmap_size = 4096;
		*fd = 0;    /* stays ours */
	}
	return rc;
}

static int on_set_inflight(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e)
{
	take(ctx, fd);
	return result(ctx, false);
}

static int on_iotlb(void *ctx, const struct vhost_iotlb_msg *m, struct vp_err *e)
{
	struct peer *p = ctx;

	p->iotlb = *m;
	return result(p, true);
}

static int on_shmem(void *ctx, unsigned int *n, uint64_t *sizes, struct vp_err *e)
{
	*n = 2;
	sizes[0] = 65536;
	sizes[1] = 1 << 20;
	return result(ctx, false);
}

static void on_events(void *ctx)
{
	struct peer *p = ctx;

	p->events++;
}

static const struct vu_backend_ops ops = {
	.set_features = on_features, .mem_table = on_mem_table, .mem_add = on_mem_add, .mem_remove = on_mem_remove,
	.ring_changed = on_ring, .ring_stop = on_ring_stop, .reset = on_reset, .get_config = on_get_config,
	.set_config = on_set_config, .set_status = on_status, .set_mtu = on_mtu, .send_rarp = on_rarp,
	.set_log = on_log, .set_log_fd = on_log_fd, .get_inflight = on_get_inflight, .set_inflight = on_set_inflight,
	.iotlb = on_iotlb, .get_shmem_config = on_shmem, .events_changed = on_events,
};

void peer_open(struct peer *p, uint64_t features, uint64_t pf, unsigned int msgs_per_sec)
{
	struct vu_backend_cfg cfg = { .features = features, .pf = pf, .max_queues = 4, .msgs_per_sec = msgs_per_sec };
	int sv[2];

	memset(p, 0, sizeof(*p));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	p->fd = sv[0];
	p->b = vu_backend_new(sv[1], &cfg, &ops, p, &p->err);
	if (!p->b)
		fail_msg("%s", p->err.msg);
}

void peer_close(struct peer *p)
{
	vu_backend_destroy(p->b);
	p->b = NULL;
	vp_close(&p->fd);
	while (p->nkept)
		vp_close(&p->kept[--p->nkept]);
}

void peer_send_fds(struct peer *p, uint32_t id, uint32_t flags, const void *payload, uint32_t size, const int *fds,
		   unsigned int nfds)
{
	struct vu_hdr h = { .request = id, .flags = flags | VU_FLAG_VERSION, .size = size };
	char ctl[CMSG_SPACE(64 * sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov[2] = { { &h, sizeof(h) }, { (void *)payload, size } };
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = payload ? 2 : 1 };

	if (nfds) {
		struct cmsghdr *cm;

		mh.msg_control = ctl;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, nfds * sizeof(int));
	}
	assert_int_equal(sendmsg(p->fd, &mh, MSG_NOSIGNAL), sizeof(h) + (payload ? size : 0));
}

void peer_send(struct peer *p, uint32_t id, uint32_t flags, const void *payload, uint32_t size, unsigned int nfds)
{
	int ev = eventfd(0, EFD_CLOEXEC), fds[64];
	unsigned int i;

	assert_true(ev >= 0);
	for (i = 0; i < nfds; i++)
		fds[i] = ev;
	peer_send_fds(p, id, flags, payload, size, fds, nfds);
	close(ev);
}

void peer_u64(struct peer *p, uint32_t id, uint32_t flags, uint64_t v, unsigned int nfds)
{
	peer_send(p, id, flags, &v, sizeof(v), nfds);
}

void peer_state(struct peer *p, uint32_t id, uint32_t flags, uint32_t index, uint32_t num)
{
	struct vhost_vring_state s = { .index = index, .num = num };

	peer_send(p, id, flags, &s, sizeof(s), 0);
}

int peer_run(struct peer *p)
{
	for (;;) {
		struct pollfd pf = { .fd = vu_backend_fd(p->b), .events = vu_backend_events(p->b) };
		int rc;

		if (poll(&pf, 1, 0) <= 0)
			return 0;
		if (pf.revents & POLLOUT) {
			rc = vu_backend_writable(p->b, &p->err);
			if (rc)
				return rc;
		}
		if (pf.revents & (POLLIN | POLLHUP)) {
			rc = vu_backend_readable(p->b, &p->err);
			if (rc)
				return rc;
		}
	}
}

bool peer_answer(struct peer *p, struct vu_msg *m, int *fd)
{
	struct vu_conn c;
	struct vp_err e;
	int rc;

	vu_conn_init(&c, p->fd, VU_FROM_FRONTEND, true);
	rc = vu_conn_recv(&c, &e);
	if (rc < 0)
		print_message("%s\n", e.msg);
	if (rc != 1)
		return false;
	*m = c.rx;
	if (fd) {
		*fd = c.rx_nfds ? c.rx_fds[0] : -1;
		c.rx_fds[0] = -1;
	}
	vu_conn_next(&c);
	return true;
}

uint64_t peer_expect_u64(struct peer *p, uint32_t id)
{
	struct vu_msg m = { 0 };
	int rc = peer_run(p);

	if (rc)
		fail_msg("%u: %s", id, p->err.msg);
	if (!peer_answer(p, &m, NULL))
		fail_msg("message %u was not answered", id);
	assert_int_equal(m.hdr.request, id);
	assert_int_equal(m.hdr.flags, VU_FLAG_VERSION | VU_FLAG_REPLY);
	assert_int_equal(m.hdr.size, 8);
	return m.p.u64;
}

void peer_expect_silence(struct peer *p)
{
	struct vu_msg m;

	if (peer_run(p))
		fail_msg("%s", p->err.msg);
	assert_false(peer_answer(p, &m, NULL));
}

void peer_up(struct peer *p, uint64_t features, uint64_t pf)
{
	peer_open(p, features, pf, 0);
	peer_send(p, VU_SET_OWNER, 0, NULL, 0, 0);
	if (pf)
		peer_u64(p, VU_SET_PROTOCOL_FEATURES, 0, pf, 0);
	peer_u64(p, VU_SET_FEATURES, 0, features | (pf ? VP_BIT(VU_F_PROTOCOL_FEATURES) : 0), 0);
	peer_expect_silence(p);
}

void peer_ring(struct peer *p, unsigned int q)
{
	struct vhost_vring_addr a = { .index = q, .desc_user_addr = 0x1000, .avail_user_addr = 0x2000,
				      .used_user_addr = 0x3000 };

	peer_state(p, VU_SET_VRING_NUM, 0, q, 256);
	peer_state(p, VU_SET_VRING_BASE, 0, q, 7);
	peer_send(p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
	peer_u64(p, VU_SET_VRING_KICK, 0, q, 1);
	peer_expect_silence(p);
	assert_true(vu_backend_ring(p->b, q)->started);
}
