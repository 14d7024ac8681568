/* SPDX-License-Identifier: BSD-3-Clause */
/* What the messages do: rings, memory, answers asked for or not, deferred answers, floods. */
#include "peer.h"

#include <poll.h>
#include <sys/socket.h>

#define NR VU_FLAG_NEED_REPLY

static void expect_end(struct peer *p, int code, const char *words)
{
	int rc = peer_run(p);

	if (rc != code || !strstr(p->err.msg, words))
		fail_msg("got %d (%s), expected %d (%s)", rc, p->err.msg, code, words);
	peer_close(p);
}

static void test_reply_ack_rule(void **state)
{
	struct peer p;

	/* Asked for, negotiated. */
	peer_up(&p, ALL_F, ALL_PF);
	peer_u64(&p, VU_NET_SET_MTU, NR, 1500, 0);
	assert_int_equal(peer_expect_u64(&p, VU_NET_SET_MTU), 0);
	assert_int_equal(p.mtu, 1500);
	/* Refused and asked for; refused and not asked for. */
	peer_u64(&p, VU_NET_SET_MTU, NR, 65000, 0);
	assert_int_not_equal(peer_expect_u64(&p, VU_NET_SET_MTU), 0);
	peer_u64(&p, VU_NET_SET_MTU, 0, 65000, 0);
	peer_expect_silence(&p);
	/* A message with an answer of its own has just that one. */
	peer_send(&p, VU_GET_FEATURES, NR, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_GET_FEATURES), ALL_F | VP_BIT(30));
	peer_expect_silence(&p);
	peer_send(&p, VU_RESET_OWNER, NR, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_RESET_OWNER), 0);
	peer_close(&p);
	/* Asked for, but not negotiated: silence. */
	peer_up(&p, ALL_F, ALL_PF & ~VP_BIT(VU_PF_REPLY_ACK));
	peer_u64(&p, VU_NET_SET_MTU, NR, 1500, 0);
	peer_expect_silence(&p);
	peer_close(&p);
	/* The message that negotiates it is not yet under the rule. */
	peer_open(&p, ALL_F, ALL_PF, 0);
	peer_u64(&p, VU_SET_PROTOCOL_FEATURES, NR, ALL_PF, 0);
	peer_expect_silence(&p);
	peer_close(&p);
}

static void test_unknown(void **state)
{
	static const uint32_t ids[] = { 0, 45, 77, 0xffffffff };
	unsigned int i;
	struct peer p;

	for (i = 0; i < VP_ARRAY_SIZE(ids); i++) {
		peer_up(&p, ALL_F, ALL_PF);
		peer_send(&p, ids[i], NR, "0123456789", 10, 3);
		assert_int_equal(peer_expect_u64(&p, ids[i]), 1);
		peer_send(&p, ids[i], 0, NULL, 0, 0);
		expect_end(&p, -ENOSYS, "unknown");
	}
}

static void test_features(void **state)
{
	struct peer p;

	peer_open(&p, ALL_F, ALL_PF, 0);
	assert_int_equal(vu_backend_offer(p.b, VP_BIT(32)), 0);
	peer_send(&p, VU_SET_OWNER, 0, NULL, 0, 0);
	peer_send(&p, VU_GET_FEATURES, 0, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_GET_FEATURES), VP_BIT(32) | VP_BIT(30));
	peer_u64(&p, VU_SET_FEATURES, 0, VP_BIT(32) | VP_BIT(15), 0);
	expect_end(&p, -EINVAL, "not offered: bit15");

	peer_up(&p, ALL_F, ALL_PF);
	assert_int_equal(vu_backend_offer(p.b, 0), -EBUSY);
	assert_int_equal(p.features, ALL_F);
	assert_int_equal(vu_backend_features(p.b), ALL_F & ~VP_BIT(VHOST_F_LOG_ALL));
	assert_true(vu_backend_log_all(p.b));
	peer_u64(&p, VU_SET_FEATURES, NR, VP_BIT(63), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 1);
	/* Running: only logging may be switched. */
	peer_ring(&p, 0);
	peer_u64(&p, VU_SET_FEATURES, NR, VP_BIT(32), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 1);
	peer_u64(&p, VU_SET_FEATURES, NR, (ALL_F | VP_BIT(30)) & ~VP_BIT(VHOST_F_LOG_ALL), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 0);
	assert_false(vu_backend_log_all(p.b));
	peer_u64(&p, VU_SET_PROTOCOL_FEATURES, NR, VP_BIT(VU_PF_REPLY_ACK), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_PROTOCOL_FEATURES), 1);
	/* The owner refuses: the old ones stay. */
	p.fail = -EPERM;
	peer_u64(&p, VU_SET_FEATURES, NR, ALL_F | VP_BIT(30), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 1);
	assert_false(vu_backend_log_all(p.b));
	peer_close(&p);

	peer_open(&p, ALL_F, VP_BIT(VU_PF_MQ), 0);
	peer_u64(&p, VU_SET_PROTOCOL_FEATURES, 0, VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_PAGEFAULT), 0);
	expect_end(&p, -EINVAL, "PAGEFAULT");
}

static void test_config_of_session(void **state)
{
	const struct vu_backend_ops none = { 0 };
	struct vu_backend_cfg cfg = { .max_queues = 1, .pf = VP_BIT(VU_PF_PAGEFAULT) };
	unsigned int before = count_fds();
	struct vp_err e;

	assert_null(vu_backend_new(dup(0), &cfg, &none, NULL, &e));
	assert_non_null(strstr(e.msg, "PAGEFAULT"));
	cfg.pf = VP_BIT(VU_PF_CONFIG);
	assert_null(vu_backend_new(dup(0), &cfg, &none, NULL, &e));
	cfg.pf = 0;
	assert_null(vu_backend_new(dup(0), &cfg, &none, NULL, &e));
	assert_int_equal(count_fds(), before);
	vu_backend_destroy(NULL);
}

static void test_ring_life(void **state)
{
	struct vhost_vring_addr a = { .index = 1, .desc_user_addr = 0x1000, .avail_user_addr = 0x2000,
				      .used_user_addr = 0x3000 };
	unsigned int before = count_fds(), calls;
	const struct vu_ring *r;
	struct vu_msg m;
	struct peer p;

	peer_up(&p, ALL_F & ~VP_BIT(VIRTIO_F_RING_PACKED), ALL_PF);
	r = vu_backend_ring(p.b, 1);
	/* In an order that nobody expects: the ring starts with whatever comes last. */
	peer_u64(&p, VU_SET_VRING_KICK, 0, 1, 1);
	peer_send(&p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
	peer_expect_silence(&p);
	assert_false(r->started);
	peer_state(&p, VU_SET_VRING_BASE, 0, 1, 65535);
	peer_state(&p, VU_SET_VRING_NUM, 0, 1, 128);
	peer_expect_silence(&p);
	assert_true(r->started);
	assert_false(r->enabled);
	assert_int_equal(p.ring_what, VU_RING_STARTED);
	assert_int_equal(p.ring_q, 1);
	peer_state(&p, VU_SET_VRING_ENABLE, NR, 1, 1);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ENABLE), 0);
	assert_true(r->enabled);
	assert_int_equal(p.ring_what, VU_RING_ENABLED);
	calls = p.ring_calls;
	peer_state(&p, VU_SET_VRING_ENABLE, 0, 1, 1);
	peer_expect_silence(&p);
	assert_int_equal(p.ring_calls, calls);

	/* While it runs. */
	peer_state(&p, VU_SET_VRING_NUM, NR, 1, 256);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_NUM), 1);
	peer_state(&p, VU_SET_VRING_BASE, NR, 1, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_BASE), 1);
	a.desc_user_addr++;
	peer_send(&p, VU_SET_VRING_ADDR, NR, &a, sizeof(a), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ADDR), 1);
	a.desc_user_addr--;
	a.flags = 1;
	a.log_guest_addr = 0x9000;
	peer_send(&p, VU_SET_VRING_ADDR, NR, &a, sizeof(a), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ADDR), 0);
	assert_int_equal(p.ring_what, VU_RING_LOG);
	assert_true(r->log && r->log_addr == 0x9000);
	a.flags = 2;
	peer_send(&p, VU_SET_VRING_ADDR, NR, &a, sizeof(a), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ADDR), 1);
	peer_u64(&p, VU_SET_VRING_KICK, 0, 1, 1);
	peer_expect_silence(&p);
	assert_int_equal(p.ring_what, VU_RING_KICK);
	peer_u64(&p, VU_SET_VRING_CALL, 0, 1, 1);
	peer_expect_silence(&p);
	assert_int_equal(p.ring_what, VU_RING_CALL);
	assert_true(r->call_fd >= 0);
	peer_u64(&p, VU_SET_VRING_CALL, 0, 1 | VU_VRING_NOFD, 0);
	peer_expect_silence(&p);
	assert_int_equal(r->call_fd, -1);
	peer_u64(&p, VU_SET_VRING_ERR, 0, 1, 1);
	peer_expect_silence(&p);
	close(vu_backend_take_fd(p.b, 1, VU_RING_ERR));
	assert_int_equal(r->err_fd, -1);

	/* The base of a split ring has 16 bits. */
	p.stop_base = 0x10005;
	peer_state(&p, VU_GET_VRING_BASE, NR, 1, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.p.state.index, 1);
	assert_int_equal(m.p.state.num, 5);
	peer_expect_silence(&p);
	assert_false(r->started);
	assert_int_equal(r->kick_fd, -1);
	assert_true(r->enabled);
	/* Again, now stopped: same answer, the owner is not asked. */
	calls = p.calls;
	peer_state(&p, VU_GET_VRING_BASE, 0, 1, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.p.state.num, 5);
	assert_int_equal(p.calls, calls);
	/* Polled ring. */
	peer_u64(&p, VU_SET_VRING_KICK, 0, 1 | VU_VRING_NOFD, 0);
	peer_expect_silence(&p);
	assert_true(r->started && r->kick_fd == -1);
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_ring_bad(void **state)
{
	struct vhost_vring_addr a = { .index = 4 };
	static const uint32_t by_state[] = { VU_SET_VRING_NUM, VU_SET_VRING_BASE, VU_GET_VRING_BASE,
					     VU_SET_VRING_ENABLE };
	static const uint32_t by_fd[] = { VU_SET_VRING_KICK, VU_SET_VRING_CALL, VU_SET_VRING_ERR };
	static const uint32_t nums[] = { 0, 32769, UINT32_MAX };
	unsigned int i, before = count_fds();
	struct peer p;

	for (i = 0; i < VP_ARRAY_SIZE(by_state); i++) {
		peer_up(&p, ALL_F, ALL_PF);
		peer_state(&p, by_state[i], NR, i % 2 ? 4 : UINT32_MAX, 1);
		expect_end(&p, -EINVAL, "there are 4");
	}
	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
	expect_end(&p, -EINVAL, "there are 4");
	for (i = 0; i < VP_ARRAY_SIZE(by_fd); i++) {
		peer_up(&p, ALL_F, ALL_PF);
		peer_u64(&p, by_fd[i], 0, 4, 1);
		expect_end(&p, -EINVAL, "there are 4");
		peer_up(&p, ALL_F, ALL_PF);
		peer_u64(&p, by_fd[i], 0, 0, 0);
		expect_end(&p, -EBADF, "no file descriptor attached");
		peer_up(&p, ALL_F, ALL_PF);
		peer_u64(&p, by_fd[i], 0, VU_VRING_NOFD, 1);
		expect_end(&p, -EBADF, "says that no file descriptor");
		peer_up(&p, ALL_F, ALL_PF);
		peer_u64(&p, by_fd[i], 0, VP_BIT(40), 1);
		expect_end(&p, -EINVAL, "undefined bits");
	}
	for (i = 0; i < VP_ARRAY_SIZE(nums); i++) {
		peer_up(&p, ALL_F, ALL_PF);
		peer_state(&p, VU_SET_VRING_NUM, NR, 0, nums[i]);
		assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_NUM), 1);
		peer_close(&p);
	}
	/* Not a power of two: fine for packed, not for split; only this ring is harmed. */
	for (i = 0; i < 2; i++) {
		uint64_t f = i ? ALL_F : ALL_F & ~VP_BIT(VIRTIO_F_RING_PACKED);

		peer_up(&p, f, ALL_PF);
		a.index = 0;
		peer_send(&p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
		peer_state(&p, VU_SET_VRING_NUM, 0, 0, 100);
		peer_u64(&p, VU_SET_VRING_KICK, 0, 0, 1);
		peer_expect_silence(&p);
		assert_int_equal(vu_backend_ring(p.b, 0)->started, i);
		peer_ring(&p, 1);
		peer_close(&p);
	}
	/* The owner cannot start it. */
	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
	peer_state(&p, VU_SET_VRING_NUM, 0, 0, 128);
	peer_expect_silence(&p);
	p.fail = -EFAULT;
	peer_u64(&p, VU_SET_VRING_KICK, 0, 0, 1);
	peer_expect_silence(&p);
	assert_false(vu_backend_ring(p.b, 0)->started);
	peer_state(&p, VU_SET_VRING_ENABLE, NR, 0, 2);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ENABLE), 1);
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_without_protocol_features(void **state)
{
	struct peer p;

	peer_up(&p, VP_BIT(32), 0);
	peer_ring(&p, 0);
	assert_true(vu_backend_ring(p.b, 0)->enabled);
	peer_state(&p, VU_SET_VRING_ENABLE, 0, 0, 0);
	expect_end(&p, -EPROTO, "without negotiated protocol features");
}

/* "upon receiving a VHOST_USER_SET_FEATURES message from the front-end without VHOST_USER_F_PROTOCOL_FEATURES set" */
static void test_features_enable_rings(void **state)
{
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_ring(&p, 0);
	assert_true(vu_backend_ring(p.b, 0)->started);
	assert_false(vu_backend_ring(p.b, 0)->enabled);
	peer_u64(&p, VU_SET_FEATURES, NR, ALL_F, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 0);
	assert_true(vu_backend_ring(p.b, 0)->enabled);
	assert_true(p.ring_q == 0 && p.ring_what == VU_RING_ENABLED);
	assert_true(vu_backend_ring(p.b, 1)->enabled);
	/* With it, SET_VRING_ENABLE counts again. */
	peer_u64(&p, VU_SET_FEATURES, NR, ALL_F | VP_BIT(VU_F_PROTOCOL_FEATURES), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_FEATURES), 0);
	peer_state(&p, VU_SET_VRING_ENABLE, NR, 1, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_VRING_ENABLE), 0);
	peer_ring(&p, 1);
	assert_false(vu_backend_ring(p.b, 1)->enabled);
	peer_close(&p);
}

static void test_packed_base(void **state)
{
	struct vu_msg m;
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_ring(&p, 0);
	p.stop_base = 0x80058003;
	peer_state(&p, VU_GET_VRING_BASE, 0, 0, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.p.state.num, 0x80058003);
	peer_close(&p);
}

/* While an answer is owed nothing else is read, and other sessions do not matter. */
static void test_later_ring(void **state)
{
	unsigned int before = count_fds();
	struct vu_msg m;
	struct vp_err e;
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_ring(&p, 0);
	p.later = 1;
	peer_state(&p, VU_GET_VRING_BASE, 0, 0, 0);
	peer_state(&p, VU_SET_VRING_NUM, 0, 0, 64);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_events(p.b), 0);
	assert_true(p.events > 0);
	assert_int_equal(vu_backend_ring(p.b, 0)->num, 256);
	assert_true(vu_backend_ring(p.b, 0)->stopping);
	assert_int_equal(vu_backend_readable(p.b, &e), 0);
	assert_int_equal(vu_backend_done(p.b, 0, &e), -EINVAL);
	assert_int_equal(vu_backend_ring_stopped(p.b, 1, 9, &e), -EINVAL);
	assert_int_equal(vu_backend_ring_stopped(p.b, 0, 9, &e), 0);
	assert_int_equal(vu_backend_ring_stopped(p.b, 0, 9, &e), -EINVAL);
	assert_int_equal(vu_backend_events(p.b), POLLIN);
	assert_int_equal(peer_run(&p), 0);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.hdr.request, VU_GET_VRING_BASE);
	assert_int_equal(m.p.state.num, 9);
	assert_int_equal(vu_backend_ring(p.b, 0)->num, 64);
	/* Gone while an answer is owed. */
	peer_ring(&p, 0);
	peer_state(&p, VU_GET_VRING_BASE, 0, 0, 0);
	peer_expect_silence(&p);
	vp_close(&p.fd);
	assert_int_equal(vu_backend_readable(p.b, &e), -ECONNRESET);
	assert_non_null(strstr(e.msg, "GET_VRING_BASE"));
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_later_rest(void **state)
{
	struct vu_mem_table t = { .nregions = 2, .regions = { { 0, 4096, 0x7000, 0 }, { 4096, 4096, 0x9000, 0 } } };
	struct vu_mem_single one = { .region = { 0x10000, 4096, 0x20000, 0 } };
	struct vhost_iotlb_msg tlb = { .iova = 1, .size = 2, .type = VHOST_IOTLB_INVALIDATE };
	struct vu_log log = { .mmap_size = 4096 };
	unsigned int before = count_fds();
	struct vu_backend_info info;
	struct vp_err e;
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	p.later = 1;
	peer_send(&p, VU_SET_MEM_TABLE, NR, &t, 8 + 64, 2);
	peer_expect_silence(&p);
	vu_backend_get_info(p.b, &info);
	assert_int_equal(info.owed, VU_SET_MEM_TABLE);
	assert_int_equal(info.nregions, 0);
	assert_int_equal(vu_backend_done(p.b, 0, &e), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_MEM_TABLE), 0);
	vu_backend_get_info(p.b, &info);
	assert_int_equal(info.nregions, 2);
	/* Not asked for: done without an answer. */
	peer_send(&p, VU_ADD_MEM_REG, 0, &one, sizeof(one), 1);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_done(p.b, 0, &e), 0);
	peer_expect_silence(&p);
	peer_send(&p, VU_REM_MEM_REG, NR, &one, sizeof(one), 0);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_done(p.b, -EIO, &e), 0);
	assert_int_equal(peer_expect_u64(&p, VU_REM_MEM_REG), 1);
	vu_backend_get_info(p.b, &info);
	assert_int_equal(info.nregions, 3);
	/* IOTLB_MSG and SET_LOG_BASE are always answered. */
	peer_send(&p, VU_IOTLB_MSG, 0, &tlb, sizeof(tlb), 0);
	peer_expect_silence(&p);
	assert_int_equal(p.iotlb.size, 2);
	assert_int_equal(vu_backend_done(p.b, 0, &e), 0);
	assert_int_equal(peer_expect_u64(&p, VU_IOTLB_MSG), 0);
	peer_send(&p, VU_SET_LOG_BASE, 0, &log, sizeof(log), 1);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_done(p.b, 0, &e), 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_LOG_BASE), 0);
	assert_int_equal(p.log_size, 4096);
	peer_send(&p, VU_RESET_DEVICE, NR, NULL, 0, 0);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_done(p.b, 0, &e), 0);
	assert_int_equal(peer_expect_u64(&p, VU_RESET_DEVICE), 0);
	/* A failure nobody asked to hear of ends the session. */
	peer_send(&p, VU_REM_MEM_REG, 0, &one, sizeof(one), 0);
	peer_expect_silence(&p);
	assert_int_equal(vu_backend_done(p.b, -EIO, &e), -EIO);
	assert_non_null(strstr(e.msg, "REM_MEM_REG failed"));
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_memory(void **state)
{
	struct vu_mem_single r = { .region = { .size = 4096 } };
	unsigned int before = count_fds(), i;
	struct vu_backend_info info;
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_GET_MAX_MEM_SLOTS, 0, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_GET_MAX_MEM_SLOTS), 509);
	p.keep = 1;
	for (i = 0; i < 509; i++) {
		r.region.gpa = i * 0x10000;
		r.region.uva = i * 0x10000 + 0x1000000;
		peer_send(&p, VU_ADD_MEM_REG, NR, &r, sizeof(r), 1);
		assert_int_equal(peer_expect_u64(&p, VU_ADD_MEM_REG), 0);
	}
	assert_int_equal(p.nkept, 509);
	assert_int_equal(p.nregions, 509);
	/*
	 * One too many, one that is not there, then one removed twice and one added twice (QEMU 7.2 with several queue
	 * pairs).
	 */
	r.region.gpa = i * 0x10000;
	peer_send(&p, VU_ADD_MEM_REG, NR, &r, sizeof(r), 1);
	assert_int_equal(peer_expect_u64(&p, VU_ADD_MEM_REG), 1);
	peer_send(&p, VU_REM_MEM_REG, NR, &r, sizeof(r), 0);
	assert_int_equal(peer_expect_u64(&p, VU_REM_MEM_REG), 1);
	r.region.gpa = 0x50000;
	r.region.uva = 0x1050000;
	r.region.mmap_offset = 77;
	peer_send(&p, VU_REM_MEM_REG, NR, &r, sizeof(r), 1);
	assert_int_equal(peer_expect_u64(&p, VU_REM_MEM_REG), 0);
	peer_send(&p, VU_REM_MEM_REG, NR, &r, sizeof(r), 1);
	assert_int_equal(peer_expect_u64(&p, VU_REM_MEM_REG), 0);
	r.region.gpa = 0;
	r.region.uva = 0x1000000;
	peer_send(&p, VU_ADD_MEM_REG, NR, &r, sizeof(r), 1);
	assert_int_equal(peer_expect_u64(&p, VU_ADD_MEM_REG), 0);
	assert_int_equal(p.nregions, 508);
	vu_backend_get_info(p.b, &info);
	assert_int_equal(info.nregions, 508);
	assert_int_equal(info.refused, 2);
	assert_non_null(strstr(info.refusal, "never added"));
	/* A table replaces all of it. */
	peer_send(&p, VU_SET_MEM_TABLE, NR, &(struct vu_mem_table){ 0 }, 8, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_MEM_TABLE), 0);
	vu_backend_get_info(p.b, &info);
	assert_int_equal(info.nregions, 0);
	p.fail = -EINVAL;
	peer_send(&p, VU_SET_MEM_TABLE, 0, &(struct vu_mem_table){ 0 }, 8, 0);
	expect_end(&p, -EINVAL, "SET_MEM_TABLE failed");
	assert_int_equal(count_fds(), before);
}

static void test_config_status_inflight(void **state)
{
	struct vu_config c = { .offset = 4, .size = 8 };
	struct vu_inflight in = { .num_queues = 2, .queue_size = 256 };
	unsigned int before = count_fds();
	struct vu_msg m;
	struct peer p;
	int fd;

	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_GET_CONFIG, 0, &c, 20, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.hdr.size, 20);
	assert_int_equal(m.p.config.data[0], 0xa4);
	assert_int_equal(m.p.config.data[7], 0xab);
	c.offset = 9;
	peer_send(&p, VU_GET_CONFIG, NR, &c, 20, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.hdr.size, 0);
	peer_expect_silence(&p);
	c.flags = 7;
	peer_send(&p, VU_SET_CONFIG, NR, &c, 20, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_CONFIG), 1);
	c.flags = 1;
	peer_send(&p, VU_SET_CONFIG, NR, &c, 20, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_CONFIG), 0);

	peer_u64(&p, VU_SET_STATUS, 0, 15, 0);
	peer_send(&p, VU_GET_STATUS, 0, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_GET_STATUS), 15);
	peer_u64(&p, VU_SET_STATUS, NR, 256, 0);
	assert_int_equal(peer_expect_u64(&p, VU_SET_STATUS), 1);

	peer_send(&p, VU_GET_INFLIGHT_FD, 0, &in, 20, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, &fd));
	assert_int_equal(m.hdr.size, 20);
	assert_int_equal(m.p.inflight.mmap_size, 4096);
	assert_true(fd >= 0);
	close(fd);
	p.fail = -ENOMEM;
	peer_send(&p, VU_GET_INFLIGHT_FD, 0, &in, 24, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, &fd));
	assert_int_equal(m.p.inflight.mmap_size, 0);
	assert_int_equal(fd, -1);
	in.num_queues = 5;
	peer_send(&p, VU_SET_INFLIGHT_FD, NR, &in, 24, 1);
	assert_int_equal(peer_expect_u64(&p, VU_SET_INFLIGHT_FD), 1);
	peer_send(&p, VU_GET_SHMEM_CONFIG, 0, NULL, 0, 0);
	peer_run(&p);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.hdr.size, 8 + 64);
	assert_int_equal(m.p.shmem.nregions, 2);
	assert_int_equal(m.p.shmem.sizes[1], 1 << 20);
	assert_int_equal(m.p.shmem.sizes[7], 0);

	/* Reset: rings stop, the status is gone. */
	peer_ring(&p, 0);
	peer_send(&p, VU_RESET_DEVICE, NR, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_RESET_DEVICE), 0);
	assert_false(vu_backend_ring(p.b, 0)->started);
	peer_send(&p, VU_GET_STATUS, 0, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_GET_STATUS), 0);
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_postcopy(void **state)
{
	struct vu_msg m;
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_POSTCOPY_ADVISE, 0, NULL, 0, 0);
	assert_int_equal(peer_run(&p), 0);
	assert_true(peer_answer(&p, &m, NULL));
	assert_int_equal(m.hdr.size, 0);
	peer_send(&p, VU_POSTCOPY_LISTEN, NR, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_POSTCOPY_LISTEN), 1);
	peer_send(&p, VU_POSTCOPY_END, 0, NULL, 0, 0);
	assert_int_equal(peer_expect_u64(&p, VU_POSTCOPY_END), 1);
	peer_send(&p, VU_POSTCOPY_LISTEN, 0, NULL, 0, 0);
	expect_end(&p, -EOPNOTSUPP, "PAGEFAULT");
}

static void test_iotlb(void **state)
{
	struct vhost_iotlb_msg m = {
		.iova = 0x1000, .size = 0x1000, .uaddr = 0x7000, .perm = 3, .type = VHOST_IOTLB_UPDATE
	};
	struct peer p;

	peer_up(&p, ALL_F, ALL_PF);
	peer_send(&p, VU_IOTLB_MSG, NR, &m, sizeof(m), 0);
	assert_int_equal(peer_expect_u64(&p, VU_IOTLB_MSG), 0);
	peer_expect_silence(&p);
	m.type = VHOST_IOTLB_BATCH_BEGIN;
	peer_send(&p, VU_IOTLB_MSG, NR, &m, sizeof(m), 0);
	assert_int_equal(peer_expect_u64(&p, VU_IOTLB_MSG), 1);
	peer_close(&p);
	peer_up(&p, VP_BIT(32), ALL_PF);
	m.type = VHOST_IOTLB_UPDATE;
	peer_send(&p, VU_IOTLB_MSG, NR, &m, sizeof(m), 0);
	assert_int_equal(peer_expect_u64(&p, VU_IOTLB_MSG), 1);
	assert_int_equal(p.iotlb.type, 0);
	peer_close(&p);
}

static void test_flood(void **state)
{
	unsigned int before = count_fds(), i;
	struct peer p;
	int rc = 0;

	peer_open(&p, ALL_F, ALL_PF, 100);
	for (i = 0; i < 1000 && !rc; i++) {
		peer_send(&p, VU_SET_OWNER, 0, NULL, 0, 0);
		rc = peer_run(&p);
	}
	assert_int_equal(rc, -EDQUOT);
	assert_in_range(i, 100, 200);
	assert_non_null(strstr(p.err.msg, "100 messages a second"));
	peer_close(&p);
	/* A front-end that asks and never reads is cut off, not waited for. */
	peer_open(&p, ALL_F, ALL_PF, 0);
	for (i = 0, rc = 0; i < 100000 && !rc; i++) {
		peer_send(&p, VU_GET_FEATURES, 0, NULL, 0, 0);
		rc = vu_backend_readable(p.b, &p.err);
	}
	assert_int_equal(rc, -ENOBUFS);
	assert_non_null(strstr(p.err.msg, "does not read"));
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reply_ack_rule),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_features),
		cmocka_unit_test(test_config_of_session),
		cmocka_unit_test(test_ring_life),
		cmocka_unit_test(test_ring_bad),
		cmocka_unit_test(test_without_protocol_features),
		cmocka_unit_test(test_features_enable_rings),
		cmocka_unit_test(test_packed_base),
		cmocka_unit_test(test_later_ring),
		cmocka_unit_test(test_later_rest),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_config_status_inflight),
		cmocka_unit_test(test_postcopy),
		cmocka_unit_test(test_iotlb),
		cmocka_unit_test(test_flood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
