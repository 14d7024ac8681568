/* SPDX-License-Identifier: BSD-3-Clause */
/* The front-end against our own back-end session in a second thread, and against peers that do not behave. */
#include "peer.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "vhostuser/frontend.h"

struct side {
	struct peer p;
	pthread_t thread;
	int stop[2];
	int map_result;
};

static void on_mapped(void *arg, int result)
{
	struct side *s = arg;

	s->map_result = result;
}

/* The loop an owner would have; answers deferred messages one turn later. */
static void *serve(void *arg)
{
	struct side *s = arg;
	struct vu_backend *b = s->p.b;
	bool asked = false;
	struct vp_err e;

	for (;;) {
		struct pollfd pf[3] = { { .fd = vu_backend_fd(b), .events = vu_backend_events(b) },
					{ .fd = vu_backend_req_fd(b), .events = vu_backend_req_events(b) },
					{ .fd = s->stop[0], .events = POLLIN } };
		struct vu_backend_info info;

		poll(pf, 3, 5);
		if (pf[2].revents)
			return NULL;
		if (pf[1].revents)
			vu_backend_req_ready(b);
		if (pf[0].revents & POLLOUT && vu_backend_writable(b, &e))
			return NULL;
		if (pf[0].revents & ~POLLOUT && vu_backend_readable(b, &e))
			return NULL;
		vu_backend_get_info(b, &info);
		if (info.owed == VU_GET_VRING_BASE) {
			vu_backend_ring_stopped(b, 0, 42, &e);
		} else if (info.owed) {
			/* While the front-end waits for us, it must answer this. */
			if (!asked && vu_backend_has_req(b))
				asked = !vu_backend_shmem_map(b, 1, 0, 0, 0, 4096, 0, on_mapped, s);
			if (!asked || s->map_result <= 0)
				vu_backend_done(b, 0, &e);
		}
	}
}

static struct vu_frontend *start(struct side *s, uint64_t pf, unsigned int timeout)
{
	struct vu_frontend *f;
	struct vp_err e;

	peer_open(&s->p, ALL_F, pf, 0);
	s->map_result = 1;
	f = vu_frontend_new(s->p.fd, timeout, &e);
	s->p.fd = -1;
	assert_non_null(f);
	assert_int_equal(pipe(s->stop), 0);
	return f;
}

static void run(struct side *s)
{
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void end(struct side *s, struct vu_frontend *f)
{
	close(s->stop[1]);
	pthread_join(s->thread, NULL);
	close(s->stop[0]);
	vu_frontend_destroy(f);
	peer_close(&s->p);
}

static int requests;

static int on_request(void *ctx, uint32_t request, const union vu_payload *p, uint32_t size, int *fd)
{
	assert_int_equal(request, VU_BE_SHMEM_MAP);
	assert_int_equal(p->map.len, 4096);
	assert_true(*fd >= 0);
	requests++;
	return 0;
}

static void test_all(void **state)
{
	struct vu_mem_region r[3] = { { 0, 4096, 0x1000, 0 }, { 4096, 4096, 0x5000, 0 }, { 8192, 4096, 0x9000, 0 } };
	struct vu_frontend_ring ring = { .num = 256, .base = 3, .desc = 1, .avail = 2, .used = 3, .err_fd = -1 };
	const uint64_t acked = VP_BIT(32) | VP_BIT(33) | VP_BIT(15);
	unsigned int before = count_fds(), n;
	int fds[3] = { 0, 0, 0 };
	uint8_t cfg[8], status;
	struct vu_frontend *f;
	struct side s = { 0 };
	uint64_t offered, size;
	struct vp_err e;
	uint32_t base;

	f = start(&s, ALL_PF, 2000);
	s.p.later = 1;
	s.p.stop_base = 42;
	vu_frontend_on_request(f, on_request, NULL);
	requests = 0;
	run(&s);
#define OK(x) do { if ((x)) fail_msg("%s: %s", #x, e.msg); } while (0)
	OK(vu_frontend_negotiate(f, ~UINT64_C(0), &offered, &e));
	assert_int_equal(offered, ALL_F);
	assert_int_equal(vu_frontend_pf(f), ALL_PF);
	assert_int_equal(vu_frontend_set_features(f, VP_BIT(40), &e), -EINVAL);
	OK(vu_frontend_set_features(f, acked, &e));
	OK(vu_frontend_queue_num(f, 2, &n, &e));
	assert_int_equal(n, 4);
	OK(vu_frontend_inflight_size(f, 2, 128, &size, &e));
	assert_true(size >= 2 * 128 * 16);
	assert_int_equal(vu_frontend_inflight_size(f, 9, 128, &size, &e), -EREMOTEIO);
	assert_true(strstr(e.msg, "GET_INFLIGHT_FD for 9 queues"));
	OK(vu_frontend_set_inflight(f, 2, 128, 0, 0, size, &e));
	/* Only the differences travel. */
	OK(vu_frontend_set_mem(f, r, fds, 2, &e));
	assert_int_equal(s.p.nregions, 2);
	OK(vu_frontend_set_mem(f, r + 1, fds, 2, &e));
	assert_int_equal(s.p.nregions, 2);
	assert_int_equal(requests, 1);
	ring.kick_fd = ring.call_fd = eventfd(0, 0);
	OK(vu_frontend_start_ring(f, 0, &ring, &e));
	assert_true(vu_backend_ring(s.p.b, 0)->started);
	OK(vu_frontend_enable(f, 0, true, &e));
	assert_true(vu_backend_ring(s.p.b, 0)->enabled);
	OK(vu_frontend_set_call(f, 0, -1, &e));
	OK(vu_frontend_get_config(f, 2, 8, cfg, &e));
	assert_int_equal(cfg[0], 0xa2);
	assert_int_equal(vu_frontend_get_config(f, 12, 8, cfg, &e), -EREMOTEIO);
	OK(vu_frontend_set_config(f, 2, 8, cfg, &e));
	OK(vu_frontend_set_status(f, 7, &e));
	OK(vu_frontend_get_status(f, &status, &e));
	assert_int_equal(status, 7);
	OK(vu_frontend_set_mtu(f, 1500, &e));
	assert_int_equal(vu_frontend_set_mtu(f, 9001, &e), -EREMOTEIO);
	OK(vu_frontend_set_log(f, 0, 4096, 0, &e));
	OK(vu_frontend_iotlb(f, &(struct vhost_iotlb_msg){ .type = VHOST_IOTLB_UPDATE }, &e));
	OK(vu_frontend_stop_ring(f, 0, &base, &e));
	assert_int_equal(base, 42);
	OK(vu_frontend_reset_device(f, &e));
	close(ring.kick_fd);
	end(&s, f);
	assert_int_equal(s.map_result, 0);
	assert_int_equal(count_fds(), before);
}

static void test_plain(void **state)
{
	struct vu_mem_region r[9] = { { 0, 4096, 0x1000, 0 } };
	unsigned int before = count_fds(), n;
	int fds[9] = { 0 };
	struct vu_frontend *f;
	struct side s = { 0 };
	struct vp_err e;

	f = start(&s, 0, 2000);
	run(&s);
	OK(vu_frontend_negotiate(f, ~UINT64_C(0), NULL, &e));
	assert_int_equal(vu_frontend_pf(f), 0);
	OK(vu_frontend_set_features(f, VP_BIT(32), &e));
	OK(vu_frontend_queue_num(f, 2, &n, &e));
	assert_int_equal(n, 2);
	OK(vu_frontend_set_mem(f, r, fds, 1, &e));
	assert_int_equal(vu_frontend_set_mem(f, r, fds, 9, &e), -E2BIG);
	assert_int_equal(vu_frontend_set_mtu(f, 1500, &e), -EOPNOTSUPP);
	assert_int_equal(vu_frontend_enable(f, 0, false, &e), -EOPNOTSUPP);
	OK(vu_frontend_enable(f, 0, true, &e));
	end(&s, f);
	assert_int_equal(count_fds(), before);
}

/* Silence, a wrong answer, a close: bounded, clear, and no fd left. */
static void test_bad_backend(void **state)
{
	struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) wrong = { { VU_GET_QUEUE_NUM, 5, 8 }, 1 };
	unsigned int before = count_fds(), i;
	struct timespec t0, t1;

	for (i = 0; i < 5; i++) {
		static const int code[] = { -ETIMEDOUT, -EBADMSG, -EBADMSG, -ECONNRESET, -EBADMSG };
		struct vu_frontend *f;
		struct vp_err e;
		int sv[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		f = vu_frontend_new(sv[0], 100, &e);
		clock_gettime(CLOCK_MONOTONIC, &t0);
		wrong.h =
			(struct vu_hdr){ i == 1 ? VU_GET_QUEUE_NUM : VU_GET_FEATURES, i == 2 ? 1 : 5, i == 4 ? 4 : 8 };
		if (i == 3)
			shutdown(sv[1], SHUT_WR);
		else if (i)
			assert_int_equal(send(sv[1], &wrong, sizeof(wrong), 0), sizeof(wrong));
		assert_int_equal(vu_frontend_negotiate(f, 0, NULL, &e), code[i]);
		clock_gettime(CLOCK_MONOTONIC, &t1);
		assert_true(t1.tv_sec - t0.tv_sec < 3);
		assert_int_equal(vu_frontend_fd(f), -1);
		assert_int_equal(vu_frontend_set_features(f, 0, &e), -ENOTCONN);
		vu_frontend_destroy(f);
		close(sv[1]);
	}
	assert_null(vu_frontend_connect("/nonexistent/socket", 50, &(struct vp_err){ 0 }));
	assert_int_equal(count_fds(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all), cmocka_unit_test(test_plain), cmocka_unit_test(test_bad_backend),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
