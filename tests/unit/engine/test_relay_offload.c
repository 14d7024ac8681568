/* SPDX-License-Identifier: BSD-3-Clause */
/* The relay and offloads: segments that pass, segments that are cut, checksums that are completed. */
#include "relay_rig.h"

#include "../net/pktcheck.h"

/* A TCPv4 segment of 54 bytes of headers and n of payload, its checksum left to be completed. */
static void tcp4(unsigned n)
{
	static const uint8_t hdr[54] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6,
					 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 1,
					 0x50, 0x18, 1, 0, 0, 0, 0, 0 };
	unsigned i, s;
	uint8_t ph[4] = { 0, 6, (uint8_t)((20 + n) >> 8), (uint8_t)(20 + n) };

	memcpy(pkt, hdr, 54);
	pkt[16] = (uint8_t)((40 + n) >> 8);
	pkt[17] = (uint8_t)(40 + n);
	s = ~pc_sum(0, pkt + 14, 20) & 0xffff;
	pkt[24] = (uint8_t)(s >> 8);
	pkt[25] = (uint8_t)s;
	s = pc_sum(pc_sum(0, pkt + 26, 8), ph, 4);
	pkt[50] = (uint8_t)(s >> 8);
	pkt[51] = (uint8_t)s;
	for (i = 0; i < n; i++)
		pkt[54 + i] = payload(3, i);
}

static const struct virtio_net_hdr tso = { .flags = 1, .gso_type = 1, .hdr_len = 54, .gso_size = 1400,
					   .csum_start = 34, .csum_offset = 16 };

static void test_tso_passes(void **state)
{
	static uint8_t sent[65000];
	struct virtio_net_hdr h;
	unsigned f;

	for (f = 0; f < 2; f++) { /* one large buffer, or many small ones */
		start(MODERN | F(CSUM) | F(HOST_TSO4), MODERN | F(GUEST_CSUM) | F(GUEST_TSO4) | (f ? F(MRG_RXBUF) : 0));
		tcp4(64000);
		memcpy(sent, pkt, 64054);
		assert_true(send_one(&tso, sent, 64054) >= 0);
		if (f)
			while (b.held < 60)
				recv_post(1526);
		else
			recv_post(65562);
		assert_int_equal(run(), 1);
		assert_int_equal(receive(&h), 64054);
		assert_memory_equal(pkt, sent, 64054);
		assert_int_equal(h.gso_type, 1);
		assert_int_equal(h.gso_size, 1400);
		assert_int_equal(h.flags, 1);
		assert_int_equal(a.q.stats.gso, 1);
		assert_int_equal(a.q.stats.cut, 0);
		stop();
	}
}

static void test_tso_is_cut(void **state)
{
	/* Whatever is missing: TSO4 itself, the checksum, ECN. */
	static const uint64_t fb[] = { MODERN, MODERN | F(GUEST_CSUM), MODERN | F(GUEST_CSUM) | F(GUEST_TSO6),
				       MODERN | F(MRG_RXBUF), 0, MODERN | F_PACKED };
	static uint8_t sent[65000];
	unsigned i, n, mrg;

	for (i = 0; i < VP_ARRAY_SIZE(fb); i++) {
		unsigned done = 0;
		struct virtio_net_hdr h;
		struct pc_pkt k;
		int len;

		mrg = !!(fb[i] & F(MRG_RXBUF));
		start(MODERN | F(CSUM) | F(HOST_TSO4), fb[i]);
		tcp4(30000);
		memcpy(sent, pkt, 30054);
		/* a packet before and one behind it keep their places */
		assert_true(send_one(&plain, sent, 60) >= 0);
		assert_true(send_one(&tso, sent, 30054) >= 0);
		assert_true(send_one(&plain, sent, 61) >= 0);
		for (n = 0; n < 60; n++)
			recv_post(mrg ? 800 : 1600);
		while (run())
			;
		assert_int_equal(receive(&h), 60);
		while (done < 30000) {
			const char *bad;

			len = receive(&h);
			assert_true(len > 54);
			bad = pc_parse(pkt, (size_t)len, &k);
			if (bad)
				fail_msg("%s", bad);
			assert_int_equal(h.flags, 0);
			assert_int_equal(h.gso_type, 0);
			assert_int_equal(k.seq, 0x100 + done);
			assert_memory_equal(pkt + 54, sent + 54 + done, len - 54);
			done += (unsigned)len - 54;
		}
		assert_int_equal(receive(&h), 61);
		assert_int_equal(a.q.stats.cut, 1);
		assert_int_equal(a.q.stats.gso, 0);
		assert_int_equal(drops(), 0);
		assert_int_equal(reclaim(), 3);
		stop();
	}
}

/* More receive buffers, or more segments, than a burst has: all of them or none, and nobody else is disturbed. */
static void test_tso_needs_many_buffers(void **state)
{
	static const uint64_t formats[] = { 0, F_PACKED, F_IN_ORDER, F_PACKED | F_INDIRECT };
	static uint8_t sent[66000];
	struct virtio_net_hdr h, small = tso;

	small.gso_size = 600;
	for (unsigned f = 0; f < 2 * VP_ARRAY_SIZE(formats); f++) {
		bool cut = f & 1; /* else it crosses whole, over 107 buffers */
		unsigned pieces[20], n, done = 0, lens = cut ? 700 : 612;

		start(MODERN | F(CSUM) | F(HOST_TSO4) | formats[f / 2],
		      MODERN | F(MRG_RXBUF) | formats[f / 2] | (cut ? 0 : F(GUEST_CSUM) | F(GUEST_TSO4)));
		tcp4(64000);
		memcpy(sent, pkt, 64054);
		for (n = 0; n < 20; n++)
			pieces[n] = n < 19 ? 3000 : 64054 + 12 - 19 * 3000;
		assert_true(send_one(&plain, sent, 60) >= 0);
		assert_true(send_pieces(&small, sent, 64054, pieces, 20) >= 0);
		assert_true(send_one(&plain, sent, 61) >= 0);
		for (n = 0; n < 100; n++)
			recv_post(lens);
		/* The one before it goes; it waits, whole, for the rest. */
		assert_int_equal(run(), 1);
		assert_int_equal(run(), 0);
		assert_int_equal(receive(&h), 60);
		assert_int_equal(receive(&h), -1);
		while (b.held < 120)
			recv_post(lens);
		while (run())
			;
		while (done < 64000) {
			int len = receive(&h);

			assert_int_equal(len, cut ? VP_MIN(654, 54 + 64000 - done) : 64054);
			assert_int_equal(h.gso_type, cut ? 0 : 1);
			assert_memory_equal(pkt + 54, sent + 54 + done, len - 54);
			done += (unsigned)len - 54;
		}
		assert_int_equal(receive(&h), 61);
		assert_int_equal(receive(&h), -1);
		assert_int_equal(drops(), 0);
		assert_int_equal(reclaim(), 3);
		stop();
	}
	/* The whole ring is too small for it: dropped, and the next one goes. */
	start(MODERN | F(CSUM) | F(HOST_TSO4), MODERN | F(MRG_RXBUF) | F(GUEST_CSUM) | F(GUEST_TSO4));
	assert_true(send_one(&tso, sent, 64054) >= 0);
	assert_true(send_one(&plain, sent, 60) >= 0);
	while (recv_post(400) >= 0)
		;
	while (run())
		;
	assert_int_equal(a.q.stats.drops[VP_DROP_TOO_BIG], 1);
	assert_int_equal(receive(&h), 60);
	assert_int_equal(reclaim(), 2);
	stop();
}

static void test_checksum_completed(void **state)
{
	static const struct virtio_net_hdr need = { .flags = 1, .csum_start = 34, .csum_offset = 16 };
	struct virtio_net_hdr h;
	struct pc_pkt k;
	unsigned f;
	static uint8_t sent[600];

	for (f = 0; f < 2; f++) {
		start(MODERN | F(CSUM), MODERN | (f ? F(GUEST_CSUM) : 0));
		tcp4(500);
		memcpy(sent, pkt, 554);
		assert_true(send_one(&need, sent, 554) >= 0);
		recv_post(2000);
		assert_int_equal(run(), 1);
		assert_int_equal(receive(&h), 554);
		if (f) {
			assert_int_equal(h.flags, 1);
			assert_memory_equal(pkt, sent, 554);
		} else {
			assert_int_equal(h.flags, 0);
			assert_null(pc_parse(pkt, 554, &k));
		}
		assert_int_equal(a.q.stats.summed, !f);
		stop();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tso_passes),
		cmocka_unit_test(test_tso_is_cut),
		cmocka_unit_test(test_tso_needs_many_buffers),
		cmocka_unit_test(test_checksum_completed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
