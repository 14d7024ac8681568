/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every message with the right and the wrong size and number of fds, cut at
 * every byte, in the wrong state and without its feature. The expected values
 * are stated here a second time, from the specification.
 */
#include "peer.h"

#include <sys/socket.h>

static const struct expect {
	uint32_t id;
	uint16_t min, max;          /* payload */
	uint8_t fd_min, fd_max;
	int pf;
	bool early;                 /* allowed before SET_OWNER */
	bool served;
} msgs[] = {
	{ 1, 0, 0, 0, 0, -1, true, true },    { 2, 8, 8, 0, 0, -1, true, true },
	{ 3, 0, 0, 0, 0, -1, true, true },    { 4, 0, 0, 0, 0, -1, true, true },
	{ 5, 8, 264, 0, 8, -1, false, true }, { 6, 16, 16, 1, 1, 1, false, true },
	{ 7, 0, 8, 1, 1, -1, false, true },   { 8, 8, 8, 0, 0, -1, false, true },
	{ 9, 40, 40, 0, 0, -1, false, true }, { 10, 8, 8, 0, 0, -1, false, true },
	{ 11, 8, 8, 0, 0, -1, false, true },  { 12, 8, 8, 0, 1, -1, false, true },
	{ 13, 8, 8, 0, 1, -1, false, true },  { 14, 8, 8, 0, 1, -1, false, true },
	{ 15, 0, 0, 0, 0, -1, true, true },   { 16, 8, 8, 0, 0, -1, true, true },
	{ 17, 0, 0, 0, 0, -1, true, true },   { 18, 8, 8, 0, 0, -1, false, true },
	{ 19, 8, 8, 0, 0, 2, false, true },   { 20, 8, 8, 0, 0, 4, true, true },
	{ 21, 0, 0, 1, 1, 5, true, true },    { 22, 32, 32, 0, 0, -1, false, true },
	{ 23, 8, 8, 0, 0, 6, false, false },  { 24, 12, 268, 0, 0, 9, true, true },
	{ 25, 12, 268, 0, 0, 9, false, true }, { 26, 0, 4096, 0, 0, 7, false, false },
	{ 27, 8, 8, 0, 0, 7, false, false },  { 28, 0, 0, 0, 0, 8, false, false },
	{ 29, 0, 0, 0, 0, 8, false, false },  { 30, 0, 0, 0, 0, 8, false, false },
	{ 31, 20, 24, 0, 0, 12, false, true }, { 32, 20, 24, 1, 1, 12, false, true },
	{ 33, 0, 8, 0, 1, -1, true, false },  { 34, 0, 0, 0, 0, 13, false, true },
	{ 35, 8, 8, 0, 0, 14, false, false }, { 36, 0, 0, 0, 0, 15, true, true },
	{ 37, 40, 40, 1, 1, 15, false, true }, { 38, 40, 40, 0, 1, 15, false, true },
	{ 39, 8, 8, 0, 0, 16, true, true },   { 40, 0, 0, 0, 0, 16, true, true },
	{ 41, 16, 16, 0, 0, 18, true, false }, { 42, 8, 8, 1, 1, 19, false, false },
	{ 43, 0, 0, 0, 0, 19, false, false }, { 44, 0, 0, 0, 0, 22, true, true },
};

static void test_table(void **state)
{
	unsigned int i;

	for (i = 0; i < VP_ARRAY_SIZE(msgs); i++) {
		const struct vu_msg_info *m = vu_msg_info(VU_FROM_FRONTEND, msgs[i].id);

		assert_non_null(m);
		assert_int_equal(m->min, msgs[i].min);
		assert_int_equal(m->max, msgs[i].max);
		assert_int_equal(m->fd_min, msgs[i].fd_min);
		assert_int_equal(m->fd_max, msgs[i].fd_max);
		assert_int_equal(m->pf, msgs[i].pf);
		assert_int_equal(!!(m->states & VU_ST_NEW), msgs[i].early);
		assert_int_equal(!(m->flags & VU_MI_NEVER), msgs[i].served);
	}
	assert_int_equal(i, VU_FE_MSG_END - 1);
	assert_null(vu_msg_info(VU_FROM_FRONTEND, 0));
	assert_null(vu_msg_info(VU_FROM_FRONTEND, VU_FE_MSG_END));
	assert_null(vu_msg_info(VU_FROM_FRONTEND, UINT32_MAX));
	assert_null(vu_msg_info(VU_FROM_BACKEND, 0));
	assert_null(vu_msg_info(VU_FROM_BACKEND, VU_BE_MSG_END));
}

/* Fresh session, one message, the verdict; no fd may be left over. */
static int verdict(const struct expect *m, uint32_t size, unsigned int nfds, uint32_t count, struct vp_err *err)
{
	unsigned int before = count_fds();
	uint8_t payload[VU_MAX_PAYLOAD] = { 0 };
	struct peer p;
	int rc;

	peer_up(&p, ALL_F, ALL_PF);
	memcpy(payload + (m->id == VU_GET_CONFIG || m->id == VU_SET_CONFIG ? 4 : 0), &count, sizeof(count));
	peer_send(&p, m->id, 0, size ? payload : NULL, size, nfds);
	rc = peer_run(&p);
	*err = p.err;
	peer_close(&p);
	assert_int_equal(count_fds(), before);
	return rc;
}

static bool variable(uint32_t id)
{
	return id == VU_SET_MEM_TABLE || id == VU_GET_CONFIG || id == VU_SET_CONFIG || id == VU_CREATE_CRYPTO_SESSION;
}

static void test_sizes_and_fds(void **state)
{
	unsigned int i;

	for (i = 0; i < VP_ARRAY_SIZE(msgs); i++) {
		const struct expect *m = &msgs[i];
		struct vp_err e;
		int rc;

		if (m->min) {
			rc = verdict(m, m->min - 1, m->fd_min, 0, &e);
			assert_int_equal(rc, -EBADMSG);
			assert_non_null(strstr(e.msg, vu_msg_info(VU_FROM_FRONTEND, m->id)->name));
			assert_non_null(strstr(e.msg, "expected"));
		}
		if (m->max < VU_MAX_PAYLOAD) {
			rc = verdict(m, m->max + 1, m->fd_min, 0, &e);
			assert_int_equal(rc, -EBADMSG);
			assert_non_null(strstr(e.msg, vu_msg_info(VU_FROM_FRONTEND, m->id)->name));
		}
		if (m->fd_min) {
			rc = verdict(m, m->min, 0, 0, &e);
			assert_int_equal(rc, -EBADF);
			assert_non_null(strstr(e.msg, vu_msg_info(VU_FROM_FRONTEND, m->id)->name));
		}
		rc = verdict(m, m->min, m->fd_max + 1, 0, &e);
		assert_int_equal(rc, -EBADF);
		/* Far too many: the kernel cuts them off. */
		rc = verdict(m, m->min, 40, 0, &e);
		assert_int_equal(rc, -EBADF);
		if (!variable(m->id)) {
			rc = verdict(m, m->min, m->fd_min, 0, &e);
			assert_int_not_equal(rc, -EBADMSG);
		}
	}
}

/* The count inside disagrees with the size. */
static void test_counts(void **state)
{
	const struct expect table = { VU_SET_MEM_TABLE }, get = { VU_GET_CONFIG }, set = { VU_SET_CONFIG };
	struct vp_err e;

	assert_int_equal(verdict(&table, 8 + 32, 2, 2, &e), -EBADMSG);
	assert_int_equal(verdict(&table, 8 + 64, 1, 1, &e), -EBADMSG);
	assert_int_equal(verdict(&table, 8 + 64, 1, 2, &e), -EBADF);
	assert_int_equal(verdict(&table, 8 + 64, 2, 2, &e), 0);
	assert_int_equal(verdict(&table, 8, 0, 0, &e), 0);
	assert_int_equal(verdict(&table, 264, 8, 8, &e), 0);
	/* The kernel cuts off the ninth: it must not pass for the right number. */
	assert_int_equal(verdict(&table, 264, 9, 8, &e), -EBADF);
	assert_int_equal(verdict(&table, 264, 8, 9, &e), -EBADMSG);
	assert_int_equal(verdict(&table, 264, 8, UINT32_MAX, &e), -EBADMSG);
	assert_int_equal(verdict(&get, 12, 0, 1, &e), -EBADMSG);
	assert_int_equal(verdict(&get, 12 + 8, 0, 8, &e), 0);
	assert_int_equal(verdict(&get, 12 + 8, 0, UINT32_MAX, &e), -EBADMSG);
	assert_int_equal(verdict(&set, 12 + 8, 0, 9, &e), -EBADMSG);
	assert_int_equal(verdict(&set, 268, 0, 256, &e), 0);
}

/* Cut after every byte: half a message then silence does not block, and then the end is clean. */
static void test_cut_everywhere(void **state)
{
	unsigned int i, before = count_fds();

	for (i = 0; i < VP_ARRAY_SIZE(msgs); i++) {
		const struct expect *m = &msgs[i];
		uint8_t buf[VU_HDR_SIZE + 264] = { 0 };
		struct vu_hdr h = { .request = m->id, .flags = VU_FLAG_VERSION, .size = m->min };
		unsigned int cut, len = VU_HDR_SIZE + m->min;

		memcpy(buf, &h, sizeof(h));
		for (cut = 0; cut < len; cut++) {
			struct peer p;
			unsigned int calls;

			peer_up(&p, ALL_F, ALL_PF);
			calls = p.calls;
			if (cut) {
				/* The fd comes with the first byte, as it does on a real socket. */
				char ctl[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
				struct iovec iov = { buf, cut };
				struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl,
						     .msg_controllen = sizeof(ctl) };
				struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);

				cm->cmsg_level = SOL_SOCKET;
				cm->cmsg_type = SCM_RIGHTS;
				cm->cmsg_len = CMSG_LEN(sizeof(int));
				memcpy(CMSG_DATA(cm), &p.fd, sizeof(int));
				assert_int_equal(sendmsg(p.fd, &mh, 0), cut);
			}
			assert_int_equal(peer_run(&p), 0);
			assert_int_equal(vu_backend_readable(p.b, &p.err), 0);
			/* The session holds a copy of our end when it got one, so say good-bye in full. */
			shutdown(p.fd, SHUT_RDWR);
			assert_int_equal(vu_backend_readable(p.b, &p.err), -ECONNRESET);
			assert_int_equal(p.calls, calls);
			assert_int_equal(vu_backend_readable(p.b, &p.err), -ENOTCONN);
			peer_close(&p);
		}
	}
	assert_int_equal(count_fds(), before);
}

/* One byte at a time, with a poll in between, must give the same as at once. */
static void test_byte_by_byte(void **state)
{
	struct vu_hdr h = { .request = VU_SET_VRING_NUM, .flags = VU_FLAG_VERSION, .size = 8 };
	struct vhost_vring_state s = { .index = 1, .num = 512 };
	uint8_t buf[20];
	struct peer p;
	unsigned int i;

	memcpy(buf, &h, 12);
	memcpy(buf + 12, &s, 8);
	peer_up(&p, ALL_F, ALL_PF);
	for (i = 0; i < sizeof(buf); i++) {
		assert_int_equal(vu_backend_ring(p.b, 1)->num, 0);
		assert_int_equal(send(p.fd, buf + i, 1, 0), 1);
		assert_int_equal(peer_run(&p), 0);
	}
	assert_int_equal(vu_backend_ring(p.b, 1)->num, 512);
	peer_close(&p);
}

/* fds that trickle in with each byte of one message are bounded. */
static void test_fd_trickle(void **state)
{
	unsigned int before = count_fds(), i;
	struct vu_hdr h = { .request = VU_SET_VRING_NUM, .flags = VU_FLAG_VERSION, .size = 8 };
	struct peer p;
	int rc = 0;

	peer_up(&p, ALL_F, ALL_PF);
	for (i = 0; i < sizeof(h) && !rc; i++) {
		char ctl[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
		struct iovec iov = { (char *)&h + i, 1 };
		struct msghdr mh = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl)
		};
		struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
		int zero = 0;

		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cm), &zero, sizeof(int));
		assert_int_equal(sendmsg(p.fd, &mh, 0), 1);
		rc = peer_run(&p);
	}
	assert_int_equal(rc, -EBADF);
	assert_int_equal(i, VU_MAX_FDS + 1);
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_state_and_feature(void **state)
{
	unsigned int i, before = count_fds();

	for (i = 0; i < VP_ARRAY_SIZE(msgs); i++) {
		const struct expect *m = &msgs[i];
		struct vu_msg msg = { .hdr = { .request = m->id, .flags = VU_FLAG_VERSION, .size = m->min } };
		struct vp_err e = { 0 };
		int rc = vu_msg_check(VU_FROM_FRONTEND, &msg, m->fd_min, ~UINT64_C(0), VU_ST_NEW, &e);

		assert_int_equal(rc, !m->served ? -EOPNOTSUPP : m->early ? 0 : -EPROTO);
		if (rc == -EPROTO)
			assert_non_null(strstr(e.msg, "before SET_OWNER"));
		msg.hdr.size = m->max + 1;
		assert_int_equal(vu_msg_check(VU_FROM_FRONTEND, &msg, m->fd_min, ~UINT64_C(0), VU_ST_OWNED, &e),
				 -EBADMSG);
		msg.hdr.size = m->min;
		if (m->pf < 0)
			continue;
		rc = vu_msg_check(VU_FROM_FRONTEND, &msg, m->fd_min, ~VP_BIT(m->pf), VU_ST_OWNED, &e);
		assert_int_equal(rc, -EOPNOTSUPP);
		assert_non_null(strstr(e.msg, vu_pf_name(m->pf)));
	}
	assert_int_equal(count_fds(), before);
}

static void test_header(void **state)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_OWNER, .flags = 2 } };
	struct vp_err e;
	struct peer p;

	assert_int_equal(vu_msg_check(VU_FROM_FRONTEND, &m, 0, 0, VU_ST_NEW, &e), -EBADMSG);
	m.hdr.flags = VU_FLAG_VERSION | VU_FLAG_REPLY;
	assert_int_equal(vu_msg_check(VU_FROM_FRONTEND, &m, 0, 0, VU_ST_NEW, &e), -EBADMSG);
	m.hdr.flags = VU_FLAG_VERSION;
	assert_int_equal(vu_msg_check(VU_FROM_FRONTEND, &m, 0, 0, VU_ST_NEW, &e), 0);

	/* Not a vhost-user peer at all. */
	peer_open(&p, ALL_F, ALL_PF, 0);
	assert_int_equal(send(p.fd, "GET / HTTP/1.1\r\n", 16, 0), 16);
	assert_int_equal(peer_run(&p), -EBADMSG);
	peer_close(&p);
	/* A huge size is refused before a byte of it came. */
	peer_open(&p, ALL_F, ALL_PF, 0);
	peer_send(&p, VU_SET_MEM_TABLE, 0, NULL, UINT32_MAX, 0);
	assert_int_equal(peer_run(&p), -EBADMSG);
	assert_non_null(strstr(p.err.msg, "SET_MEM_TABLE announces 4294967295 bytes"));
	peer_close(&p);
	peer_open(&p, ALL_F, ALL_PF, 0);
	peer_send(&p, 1000, 0, NULL, VU_MAX_PAYLOAD + 1, 0);
	assert_int_equal(peer_run(&p), -EBADMSG);
	peer_close(&p);
}

/* A peer that never reads: what we send is queued, bounded, and arrives whole with its fds when it does read. */
static void test_send_queue(void **state)
{
	unsigned int before = count_fds(), sent = 0, got = 0;
	struct vu_conn tx, rx;
	struct vu_msg m = { .hdr = {
				    .request = VU_GET_CONFIG, .flags = VU_FLAG_VERSION | VU_FLAG_REPLY, .size = 268 } };
	struct vp_err e;
	int sv[2], small = 4096, rc, fd = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	vu_conn_init(&tx, sv[0], VU_FROM_FRONTEND, false);
	vu_conn_init(&rx, sv[1], VU_FROM_FRONTEND, true);
	do {
		m.p.config.offset = sent;
		rc = vu_conn_send(&tx, &m, &fd, 1, &e);
		sent += !rc;
	} while (!rc && sent < 10000);
	assert_int_equal(rc, -ENOBUFS);
	assert_non_null(strstr(e.msg, "does not read"));
	assert_int_equal(tx.out_len, VU_OUTQ);
	while (got < sent) {
		assert_int_equal(vu_conn_flush(&tx, &e), 0);
		assert_int_equal(vu_conn_recv(&rx, &e), 1);
		assert_int_equal(rx.rx.p.config.offset, got);
		assert_int_equal(rx.rx_nfds, 1);
		vu_conn_next(&rx);
		got++;
	}
	assert_false(vu_conn_want_write(&tx));
	/* And closing with a full queue leaks nothing. */
	while (!vu_conn_send(&tx, &m, &fd, 1, &e))
		;
	vu_conn_close(&tx);
	vu_conn_close(&rx);
	assert_int_equal(count_fds(), before);
}

static void test_names(void **state)
{
	char buf[64];

	assert_string_equal(vu_features_str(1, VP_BIT(0) | VP_BIT(15) | VP_BIT(32) | VP_BIT(45), buf, sizeof(buf)),
			    "CSUM MRG_RXBUF VERSION_1 bit45");
	assert_string_equal(vu_features_str(1, 0, buf, sizeof(buf)), "");
	assert_string_equal(vu_features_str(1, VP_BIT(0) | VP_BIT(15) | VP_BIT(32), buf, 15), "CSUM MRG_RXBUF");
	assert_string_equal(vu_features_str(1, VP_BIT(0) | VP_BIT(15) | VP_BIT(32), buf, 14), "CSUM");
	assert_string_equal(vu_features_str(2, VP_BIT(0), buf, sizeof(buf)), "bit0");
	assert_string_equal(vu_pf_str(VP_BIT(22) | VP_BIT(3) | VP_BIT(63), buf, sizeof(buf)), "REPLY_ACK SHMEM bit63");
	assert_null(vu_pf_name(64));
	assert_null(vu_feature_name(1, 64));
	vu_features_str(1, ~UINT64_C(0), buf, sizeof(buf));
	vu_pf_str(~UINT64_C(0), buf, 1);
	assert_string_equal(buf, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table), cmocka_unit_test(test_sizes_and_fds), cmocka_unit_test(test_counts),
		cmocka_unit_test(test_cut_everywhere), cmocka_unit_test(test_byte_by_byte),
		cmocka_unit_test(test_fd_trickle), cmocka_unit_test(test_state_and_feature),
		cmocka_unit_test(test_header), cmocka_unit_test(test_send_queue), cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
