/* SPDX-License-Identifier: BSD-3-Clause */
/* The request channel: what the back-end asks of the front-end, and what comes back. */
#include "peer.h"

#include <sys/socket.h>

#define NR VU_FLAG_NEED_REPLY

static int results[300], nresults;

static void on_done(void *arg, int result)
{
	assert_true(nresults < 300);
	results[nresults++] = result;
	if (arg)
		assert_int_equal(vu_backend_config_change(arg, NULL, NULL), 0);
}

static int open_channel(struct peer *p)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	peer_send_fds(p, VU_SET_BACKEND_REQ_FD, NR, NULL, 0, &sv[1], 1);
	assert_int_equal(peer_expect_u64(p, VU_SET_BACKEND_REQ_FD), 0);
	close(sv[1]);
	nresults = 0;
	return sv[0];
}

static void answer(int fd, uint32_t id, uint64_t v)
{
	struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) a = { { id, 5, 8 }, v };

	assert_int_equal(send(fd, &a, sizeof(a), MSG_NOSIGNAL), sizeof(a));
}

static bool next_request(int fd, struct vu_msg *m, unsigned int *nfds)
{
	struct vu_conn c;
	struct vp_err e;
	int rc;

	vu_conn_init(&c, fd, VU_FROM_BACKEND, false);
	rc = vu_conn_recv(&c, &e);
	*m = c.rx;
	*nfds = c.rx_nfds;
	vu_conn_next(&c);
	return rc == 1;
}

static void test_requests(void **state)
{
	unsigned int before = count_fds(), nfds;
	struct vu_backend_info info;
	struct vu_msg m;
	struct peer p;
	int fd, i, rc;

	peer_up(&p, ALL_F, ALL_PF);
	assert_int_equal(vu_backend_config_change(p.b, on_done, NULL), -ENOTCONN);
	fd = open_channel(&p);
	assert_true(vu_backend_has_req(p.b));
	assert_int_equal(vu_backend_shmem_map(p.b, 1, 0, 4096, 8192, 65536, 1, on_done, NULL), 0);
	assert_int_equal(vu_backend_shmem_unmap(p.b, 1, 8192, 65536, on_done, NULL), 0);
	assert_int_equal(vu_backend_iotlb_miss(p.b, 0xabc000, VHOST_ACCESS_RO, on_done, p.b), 0);
	assert_true(next_request(fd, &m, &nfds));
	assert_int_equal(m.hdr.request, VU_BE_SHMEM_MAP);
	assert_int_equal(m.hdr.flags, VU_FLAG_VERSION | NR);
	assert_int_equal(nfds, 1);
	assert_int_equal(m.p.map.shmid, 1);
	assert_int_equal(m.p.map.shm_offset, 8192);
	assert_int_equal(m.p.map.fd_offset, 4096);
	assert_true(next_request(fd, &m, &nfds));
	assert_int_equal(m.hdr.request, VU_BE_SHMEM_UNMAP);
	assert_true(next_request(fd, &m, &nfds));
	assert_int_equal(m.p.iotlb.iova, 0xabc000);
	assert_int_equal(m.p.iotlb.type, VHOST_IOTLB_MISS);
	assert_int_equal(nresults, 0);
	answer(fd, VU_BE_SHMEM_MAP, 0);
	answer(fd, VU_BE_SHMEM_UNMAP, 1);
	answer(fd, VU_BE_IOTLB_MSG, 0);
	vu_backend_req_ready(p.b);
	assert_int_equal(nresults, 3);
	assert_int_equal(results[0], 0);
	assert_int_equal(results[1], -EREMOTEIO);
	assert_int_equal(results[2], 0);
	/* The completion asked for more. */
	assert_true(next_request(fd, &m, &nfds));
	assert_int_equal(m.hdr.request, VU_BE_CONFIG_CHANGE);
	/* An answer out of order loses the channel, not the session; everything unanswered fails. */
	nresults = 0;
	assert_int_equal(vu_backend_config_change(p.b, on_done, NULL), 0);
	answer(fd, VU_BE_SHMEM_MAP, 0);
	vu_backend_req_ready(p.b);
	assert_false(vu_backend_has_req(p.b));
	assert_int_equal(nresults, 1);
	assert_int_equal(results[0], -ECANCELED);
	vu_backend_get_info(p.b, &info);
	assert_non_null(strstr(info.req_error, "was expected"));
	close(fd);

	/* Answers that were not asked for; a close; a replacement; the session's end. */
	fd = open_channel(&p);
	answer(fd, VU_BE_CONFIG_CHANGE, 0);
	vu_backend_req_ready(p.b);
	assert_false(vu_backend_has_req(p.b));
	close(fd);
	fd = open_channel(&p);
	assert_int_equal(vu_backend_config_change(p.b, on_done, NULL), 0);
	close(fd);
	vu_backend_req_ready(p.b);
	assert_int_equal(nresults, 1);
	assert_int_equal(results[0], -ECANCELED);
	fd = open_channel(&p);
	assert_int_equal(vu_backend_config_change(p.b, on_done, NULL), 0);
	close(fd);
	fd = open_channel(&p);
	for (i = 0, rc = 0; !rc && i < 300; i++)
		rc = vu_backend_config_change(p.b, on_done, NULL);
	assert_int_equal(rc, -EBUSY);
	assert_int_equal(i, VU_MAX_REQS + 1);
	peer_close(&p);
	assert_int_equal(nresults, VU_MAX_REQS);
	assert_int_equal(results[5], -ECANCELED);
	close(fd);
	assert_int_equal(count_fds(), before);
}

static void test_requests_refused(void **state)
{
	unsigned int before = count_fds();
	int not_a_socket[2], fd;
	struct peer p;

	/* Without REPLY_ACK nothing can be mapped, and notices are done when sent. */
	peer_up(&p, VP_BIT(32), ALL_PF & ~VP_BIT(VU_PF_REPLY_ACK));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, not_a_socket), 0);
	peer_send_fds(&p, VU_SET_BACKEND_REQ_FD, 0, NULL, 0, &not_a_socket[1], 1);
	peer_expect_silence(&p);
	nresults = 0;
	assert_int_equal(vu_backend_shmem_map(p.b, 0, 0, 0, 0, 4096, 0, on_done, NULL), -EOPNOTSUPP);
	assert_int_equal(vu_backend_iotlb_miss(p.b, 0, 1, on_done, NULL), -EOPNOTSUPP);
	assert_int_equal(vu_backend_config_change(p.b, on_done, NULL), 0);
	assert_int_equal(nresults, 1);
	peer_close(&p);
	close(not_a_socket[0]);
	close(not_a_socket[1]);
	/* Not a socket; not a stream. */
	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_SET_BACKEND_REQ_FD, NR, NULL, 0, 1);
	assert_int_equal(peer_expect_u64(&p, VU_SET_BACKEND_REQ_FD), 1);
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	peer_send_fds(&p, VU_SET_BACKEND_REQ_FD, NR, NULL, 0, &fd, 1);
	assert_int_equal(peer_expect_u64(&p, VU_SET_BACKEND_REQ_FD), 1);
	close(fd);
	assert_false(vu_backend_has_req(p.b));
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_requests_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
