/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What real front-ends send, message by message, as data. QEMU 7.2 and 11.1 (two queue pairs, MTU, MSI-X, up to the
 * firmware's use of the first pair) and DPDK 22.11 virtio-user (packed) were captured, what follows the firmware is by
 * QEMU's order of calls, and so are packed bases; Cloud Hypervisor is by its documented order with need_reply on all.
 */
#include "peer.h"

#include <sys/socket.h>

enum expect { SILENT, ACK, VALUE, BASE };

struct step {
	uint32_t id;
	uint32_t flags;             /* beyond the version */
	enum expect expect;
	uint64_t v;                 /* payload: u64, or index in the low and num in the high half */
	unsigned int nfds;
};

#define NR VU_FLAG_NEED_REPLY
#define IN(index, num) ((uint64_t)(num) << 32 | (index))
#define RING_72(q, last)                                                                            \
	{ VU_SET_VRING_NUM, 0, SILENT, IN(q, 256) }, { VU_SET_VRING_BASE, 0, SILENT, IN(q, last) }, \
		{ VU_SET_VRING_ADDR, 0, SILENT, q }, { VU_SET_VRING_KICK, 0, SILENT, q, 1 },        \
	{                                                                                           \
		VU_SET_VRING_CALL, 0, SILENT, q, 1                                                  \
	}

#define PF_QEMU (ALL_PF & ~(VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_INFLIGHT_SHMFD) | VP_BIT(VU_PF_SHMEM)))
#define PF_DPDK (VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_STATUS))
#define F_ACK   (VP_BIT(32) | VP_BIT(30))
#define F_DPDK  (VP_BIT(15) | VP_BIT(28) | VP_BIT(30) | VP_BIT(32) | VP_BIT(34))

static const struct step qemu72[] = {
	{ VU_GET_FEATURES, 0, VALUE },
	{ VU_GET_PROTOCOL_FEATURES, 0, VALUE },
	{ VU_SET_PROTOCOL_FEATURES, 0, SILENT, PF_QEMU },
	{ VU_GET_QUEUE_NUM, 0, VALUE },
	{ VU_GET_MAX_MEM_SLOTS, 0, VALUE },
	{ VU_SET_BACKEND_REQ_FD, NR, ACK, 0, 1 },
	{ VU_SET_OWNER, 0, SILENT },
	{ VU_GET_FEATURES, 0, VALUE },
	{ VU_SET_VRING_CALL, 0, SILENT, 0, 1 },
	{ VU_SET_VRING_ERR, 0, SILENT, 0, 1 },
	{ VU_SET_VRING_CALL, 0, SILENT, 1, 1 },
	{ VU_SET_VRING_ERR, 0, SILENT, 1, 1 },
	{ VU_GET_FEATURES, 0, VALUE },
	{ VU_GET_PROTOCOL_FEATURES, 0, VALUE },
	{ VU_SET_PROTOCOL_FEATURES, 0, SILENT, PF_QEMU },
	{ VU_GET_MAX_MEM_SLOTS, 0, VALUE },
	{ VU_GET_FEATURES, 0, VALUE },
	{ VU_SET_VRING_CALL, 0, SILENT, 2, 1 },
	{ VU_SET_VRING_ERR, 0, SILENT, 2, 1 },
	{ VU_SET_VRING_CALL, 0, SILENT, 3, 1 },
	{ VU_SET_VRING_ERR, 0, SILENT, 3, 1 },
	/* Enabled long before the features are acknowledged. */
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(0, 1) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(1, 1) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(2, 0) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(3, 0) },
	{ VU_NET_SET_MTU, NR, ACK, 1500 },
	{ VU_SET_FEATURES, 0, SILENT, F_ACK },
	{ VU_GET_STATUS, 0, VALUE },
	{ VU_SET_STATUS, 0, SILENT, 8 },
	{ VU_ADD_MEM_REG, NR, ACK, 0, 1 },
	RING_72(0, 0),
	RING_72(1, 0),
	{ VU_GET_STATUS, 0, VALUE },
	{ VU_SET_STATUS, 0, SILENT, 15 },
	/* The driver resets the device, then starts it again. */
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(0, 0) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(1, 0) },
	{ VU_GET_VRING_BASE, 0, BASE, 0 },
	{ VU_GET_VRING_BASE, 0, BASE, 1 },
	{ VU_REM_MEM_REG, NR, ACK, 0 },
	{ VU_SET_FEATURES, 0, SILENT, F_ACK },
	{ VU_ADD_MEM_REG, NR, ACK, 0, 1 },
	RING_72(0, 0),
	RING_72(1, 0),
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(0, 1) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(1, 1) },
	/* The second pair joins while the first runs. */
	{ VU_SET_FEATURES, 0, SILENT, F_ACK },
	RING_72(2, 0),
	RING_72(3, 0),
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(2, 1) },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(3, 1) },
	/* Migration begins: logging on. */
	{ VU_SET_LOG_BASE, 0, VALUE, 4096, 1 },
	{ VU_SET_FEATURES, 0, SILENT, F_ACK | VP_BIT(VHOST_F_LOG_ALL) },
};

#define RING_111(q, last) { VU_SET_VRING_NUM, 0, SILENT, IN(q, 256) }, { VU_SET_VRING_BASE, 0, SILENT, IN(q, last) }, \
	{ VU_SET_VRING_ADDR, 0, SILENT, q }, { VU_SET_VRING_KICK, NR, ACK, q, 1 }, { VU_SET_VRING_CALL, NR, ACK, q, 1 }
#define CALL_ERR(q) { VU_SET_VRING_CALL, NR, ACK, q, 1 }, { VU_SET_VRING_ERR, NR, ACK, q, 1 }
#define ENABLE_111(q, on) { VU_SET_VRING_ENABLE, NR, ACK, IN(q, on) }

static const struct step qemu111[] = {
	{ VU_GET_FEATURES, 0, VALUE }, { VU_GET_PROTOCOL_FEATURES, 0, VALUE },
	{ VU_SET_PROTOCOL_FEATURES, 0, SILENT, PF_QEMU }, { VU_GET_QUEUE_NUM, 0, VALUE },
	{ VU_GET_MAX_MEM_SLOTS, 0, VALUE }, { VU_SET_BACKEND_REQ_FD, NR, ACK, 0, 1 }, { VU_SET_OWNER, 0, SILENT },
	{ VU_GET_FEATURES, 0, VALUE }, CALL_ERR(0), CALL_ERR(1), { VU_GET_FEATURES, 0, VALUE },
	{ VU_GET_PROTOCOL_FEATURES, 0, VALUE }, { VU_SET_PROTOCOL_FEATURES, 0, SILENT, PF_QEMU },
	{ VU_GET_MAX_MEM_SLOTS, 0, VALUE }, { VU_GET_FEATURES, 0, VALUE }, CALL_ERR(2), CALL_ERR(3),
	/* The machine's reset, twice, before any feature was acknowledged. */
	{ VU_RESET_DEVICE, 0, SILENT }, ENABLE_111(0, 1), ENABLE_111(1, 1), ENABLE_111(2, 0), ENABLE_111(3, 0),
	{ VU_RESET_DEVICE, 0, SILENT }, ENABLE_111(0, 1), ENABLE_111(1, 1), ENABLE_111(2, 0), ENABLE_111(3, 0),
	{ VU_NET_SET_MTU, NR, ACK, 1500 }, ENABLE_111(0, 1), ENABLE_111(1, 1), { VU_SET_FEATURES, 0, SILENT, F_DPDK },
	{ VU_GET_STATUS, 0, VALUE }, { VU_SET_STATUS, 0, SILENT, 8 }, { VU_ADD_MEM_REG, NR, ACK, 0, 1 },
	RING_111(0, 0x80008000), RING_111(1, 0x80008000), { VU_GET_STATUS, 0, VALUE }, { VU_SET_STATUS, 0, SILENT, 15 },
	/* Shut down. */
	{ VU_GET_VRING_BASE, 0, BASE, 0 }, { VU_GET_VRING_BASE, 0, BASE, 1 }, { VU_SET_STATUS, 0, SILENT, 0 },
};

static const struct step cloud_hypervisor[] = {
	{ VU_SET_OWNER, 0, SILENT },
	{ VU_GET_FEATURES, 0, VALUE },
	{ VU_GET_PROTOCOL_FEATURES, 0, VALUE },
	{ VU_SET_PROTOCOL_FEATURES, 0, SILENT, ALL_PF },
	{ VU_GET_QUEUE_NUM, NR, VALUE },
	{ VU_SET_FEATURES, NR, ACK, F_ACK },
	{ VU_SET_MEM_TABLE, NR, ACK, 2, 2 },
	{ VU_GET_INFLIGHT_FD, NR, VALUE, 0 },
	{ VU_SET_INFLIGHT_FD, NR, ACK, 0, 1 },
	{ VU_SET_VRING_NUM, NR, ACK, IN(0, 256) },
	{ VU_SET_VRING_ADDR, NR, ACK, 0 },
	{ VU_SET_VRING_BASE, NR, ACK, IN(0, 0) },
	{ VU_SET_VRING_CALL, NR, ACK, 0, 1 },
	{ VU_SET_VRING_KICK, NR, ACK, 0, 1 },
	{ VU_SET_VRING_NUM, NR, ACK, IN(1, 256) },
	{ VU_SET_VRING_ADDR, NR, ACK, 1 },
	{ VU_SET_VRING_BASE, NR, ACK, IN(1, 0) },
	{ VU_SET_VRING_CALL, NR, ACK, 1, 1 },
	{ VU_SET_VRING_KICK, NR, ACK, 1, 1 },
	{ VU_SET_BACKEND_REQ_FD, NR, ACK, 0, 1 },
	{ VU_SET_VRING_ENABLE, NR, ACK, IN(0, 1) },
	{ VU_SET_VRING_ENABLE, NR, ACK, IN(1, 1) },
	{ VU_SET_LOG_BASE, NR, VALUE, 4096, 1 },
	{ VU_SET_VRING_ENABLE, NR, ACK, IN(0, 0) },
	{ VU_SET_VRING_ENABLE, NR, ACK, IN(1, 0) },
	{ VU_GET_VRING_BASE, NR, BASE, 0 },
	{ VU_GET_VRING_BASE, NR, BASE, 1 },
};

static const struct step dpdk[] = {
	{ VU_SET_OWNER, 0, SILENT }, { VU_GET_FEATURES, 0, VALUE }, { VU_GET_PROTOCOL_FEATURES, 0, VALUE },
	{ VU_SET_PROTOCOL_FEATURES, 0, SILENT, PF_DPDK },
	{ VU_SET_VRING_CALL, 0, SILENT, 0, 1 }, { VU_SET_VRING_CALL, 0, SILENT, 1, 1 },
	{ VU_SET_FEATURES, 0, SILENT, F_DPDK }, { VU_SET_STATUS, NR, ACK, 11 }, { VU_GET_STATUS, 0, VALUE },
	{ VU_GET_STATUS, 0, VALUE }, { VU_SET_MEM_TABLE, NR, ACK, 1, 1 },
	/* Only the lower half of a packed base, with the wrap counter. */
	{ VU_SET_VRING_NUM, 0, SILENT, IN(0, 256) }, { VU_SET_VRING_BASE, 0, SILENT, IN(0, 32768) },
	{ VU_SET_VRING_ADDR, 0, SILENT, 0 }, { VU_SET_VRING_KICK, 0, SILENT, 0, 1 },
	{ VU_SET_VRING_NUM, 0, SILENT, IN(1, 256) }, { VU_SET_VRING_BASE, 0, SILENT, IN(1, 32768) },
	{ VU_SET_VRING_ADDR, 0, SILENT, 1 }, { VU_SET_VRING_KICK, 0, SILENT, 1, 1 },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(0, 1) }, { VU_SET_VRING_ENABLE, 0, SILENT, IN(1, 1) },
	{ VU_SET_STATUS, NR, ACK, 15 },
	{ VU_SET_VRING_ENABLE, 0, SILENT, IN(0, 0) }, { VU_SET_VRING_ENABLE, 0, SILENT, IN(1, 0) },
	{ VU_GET_VRING_BASE, 0, BASE, 0 }, { VU_GET_VRING_BASE, 0, BASE, 1 },
};

static uint32_t payload(const struct step *s, union vu_payload *p)
{
	unsigned int i;

	memset(p, 0, sizeof(*p));
	p->u64 = s->v;
	switch (s->id) {
	case VU_SET_VRING_ADDR:
		p->addr = (struct vhost_vring_addr){ .index = s->v, .desc_user_addr = 0x1000, .avail_user_addr = 0x2000,
						     .used_user_addr = 0x3000 };
		return sizeof(p->addr);
	case VU_SET_MEM_TABLE:
		p->mem.nregions = s->v;
		for (i = 0; i < s->v; i++)
			p->mem.regions[i] = (struct vu_mem_region){ i * 4096, 4096, 0x100000 + i * 4096, 0 };
		return 8 + 32 * s->v;
	case VU_ADD_MEM_REG:
	case VU_REM_MEM_REG:
		p->u64 = 0;
		p->mem_single.region = (struct vu_mem_region){ s->v * 4096, 4096, 0x100000 + s->v * 4096, 0 };
		return sizeof(p->mem_single);
	case VU_SET_LOG_BASE:
		return sizeof(p->log);
	case VU_GET_INFLIGHT_FD:
	case VU_SET_INFLIGHT_FD:
		p->inflight.num_queues = 2;
		p->inflight.queue_size = 256;
		return sizeof(p->inflight);
	}
	return vu_msg_info(VU_FROM_FRONTEND, s->id)->max;
}

static void play(const struct step *s, unsigned int n, unsigned int running, unsigned int enabled)
{
	unsigned int before = count_fds(), i, r = 0, en = 0;
	struct vu_backend_info info;
	union vu_payload pay;
	struct peer p;
	int sv[2];

	peer_open(&p, ALL_F, ALL_PF, 0);
	for (i = 0; i < n; i++, s++) {
		uint32_t size = payload(s, &pay);
		struct vu_msg m;

		if (s->id == VU_SET_BACKEND_REQ_FD) {
			assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
			peer_send_fds(&p, s->id, s->flags, NULL, 0, &sv[1], 1);
			close(sv[0]);
			close(sv[1]);
		} else {
			peer_send(&p, s->id, s->flags, &pay, size, s->nfds);
		}
		if (peer_run(&p))
			fail_msg("step %u (message %u): %s", i, s->id, p.err.msg);
		if (s->expect == SILENT) {
			assert_false(peer_answer(&p, &m, NULL));
			continue;
		}
		if (!peer_answer(&p, &m, NULL))
			fail_msg("step %u (message %u) was not answered", i, s->id);
		assert_int_equal(m.hdr.request, s->id);
		assert_int_equal(m.hdr.flags, VU_FLAG_VERSION | VU_FLAG_REPLY);
		if (s->expect == ACK)
			assert_true(m.hdr.size == 8 && m.p.u64 == 0);
		if (s->expect == BASE)
			assert_true(m.hdr.size == 8 && m.p.state.index == s->v);
		assert_false(peer_answer(&p, &m, NULL));
	}
	vu_backend_get_info(p.b, &info);
	if (info.refused)
		fail_msg("%s", info.refusal);
	for (i = 0; i < 4; i++) {
		const struct vu_ring *ring = vu_backend_ring(p.b, i);

		r |= ring->started << i;
		en |= ring->enabled << i;
	}
	assert_int_equal(r, running);
	assert_int_equal(en, enabled);
	if (!running)
		assert_int_equal(vu_backend_ring(p.b, 0)->kick_fd, -1);
	peer_close(&p);
	assert_int_equal(count_fds(), before);
}

static void test_qemu72(void **state)
{
	play(qemu72, VP_ARRAY_SIZE(qemu72), 15, 15);
}

static void test_qemu111(void **state)
{
	play(qemu111, VP_ARRAY_SIZE(qemu111), 0, 3);
	play(qemu111, VP_ARRAY_SIZE(qemu111) - 3, 3, 3);
}

static void test_cloud_hypervisor(void **state)
{
	play(cloud_hypervisor, VP_ARRAY_SIZE(cloud_hypervisor), 0, 0);
	play(cloud_hypervisor, VP_ARRAY_SIZE(cloud_hypervisor) - 4, 3, 3);
}

static void test_dpdk(void **state)
{
	play(dpdk, VP_ARRAY_SIZE(dpdk), 0, 0);
	play(dpdk, VP_ARRAY_SIZE(dpdk) - 5, 3, 3);
}

/* The used half of a packed base: given by QEMU, filled in for DPDK. */
static void test_packed_bases(void **state)
{
	static const struct {
		uint32_t set, is;
	} t[] = {
		{ 0x80008000, 0x80008000 }, { 0x8000, 0x80008000 }, { 0, 0 },
		{ 0x80058007, 0x80058007 }, { 7, 0x70007 },
	};
	struct vhost_vring_addr a = { 0 };
	unsigned int i;

	for (i = 0; i < VP_ARRAY_SIZE(t); i++) {
		struct peer p;

		peer_up(&p, ALL_F, ALL_PF);
		peer_state(&p, VU_SET_VRING_NUM, 0, 0, 256);
		peer_state(&p, VU_SET_VRING_BASE, 0, 0, t[i].set);
		peer_send(&p, VU_SET_VRING_ADDR, 0, &a, sizeof(a), 0);
		peer_u64(&p, VU_SET_VRING_KICK, 0, 0, 1);
		peer_expect_silence(&p);
		assert_true(vu_backend_ring(p.b, 0)->started);
		assert_int_equal(vu_backend_ring(p.b, 0)->base, t[i].is);
		peer_close(&p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qemu72), cmocka_unit_test(test_qemu111), cmocka_unit_test(test_cloud_hypervisor),
		cmocka_unit_test(test_dpdk), cmocka_unit_test(test_packed_bases),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
