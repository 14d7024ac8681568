/* SPDX-License-Identifier: BSD-3-Clause */
/* The relay between two driver sides: what arrives, what is dropped, and what nobody may touch. */
#include "relay_rig.h"

#include <sys/eventfd.h>
#include <unistd.h>

static uint8_t *before;
static uint64_t seed = 1;

/* ---- many random packets ---- */

static void transfer(uint64_t fa, uint64_t fb, unsigned count)
{
	unsigned hlen, sent = 0, got = 0, i;
	bool mrg = fb & F(MRG_RXBUF);
	struct { unsigned len; uint64_t number; } fifo[SIZE];
	unsigned head = 0, tail = 0;
	static uint8_t data[70000];
	uint64_t bytes = 0;
	bool look;

	start(fa, fb);
	hlen = vp_net_hdr_len(fa);
	while (got < count) {
		struct virtio_net_hdr h;
		int len;

		while (sent < count && head - tail < 40 && drv_rand(&seed) % 8) {
			unsigned plen = drv_rand(&seed) % 4 ? 14 + drv_rand(&seed) % 1500 : 14 + drv_rand(&seed) % 9000;
			unsigned piece[8], n = 1 + (unsigned)(drv_rand(&seed) % 8), left = hlen + plen;

			for (i = 0; i + 1 < n; i++) {
				piece[i] = (unsigned)(drv_rand(&seed) % (i < 3 ? 9 : 300)); /* zero, too */
				piece[i] = VP_MIN(piece[i], left);
				left -= piece[i];
			}
			piece[n - 1] = left;
			for (i = 0; i < plen; i++)
				data[i] = payload(sent, i);
			if (send_pieces(&plain, data, plen, piece, n) < 0)
				break;
			fifo[head % SIZE].len = plen;
			fifo[head++ % SIZE].number = sent++;
		}
		while (b.held < 100 && drv_rand(&seed) % 16) {
			unsigned piece[4], n = 1 + (unsigned)(drv_rand(&seed) % 4);

			/* together large enough for any packet, but when mergeable one buffer alone is not */
			for (i = 0; i < n; i++)
				piece[i] = mrg ? 12 + (unsigned)(drv_rand(&seed) % 2000) :
					   i + 1 < n ? (unsigned)(drv_rand(&seed) % 200) : 9100;
			if (post(&b, piece, n, true) < 0)
				break;
		}
		drv_publish(&b.d);
		look = !(drv_rand(&seed) % 8);
		if (look)
			memcpy(before, a.m.p + DATA, SIZE * cell_size);
		run();
		if (look) /* readable buffers, and all around them, are as they were */
			assert_memory_equal(before, a.m.p + DATA, SIZE * cell_size);
		reclaim();
		while ((len = receive(&h)) >= 0) {
			assert_true(tail < head);
			assert_int_equal(len, fifo[tail % SIZE].len);
			for (i = 0; i < (unsigned)len; i++)
				if (pkt[i] != payload(fifo[tail % SIZE].number, i))
					fail_msg("packet %u of %d bytes differs at %u", got, len, i);
			assert_int_equal(h.flags, 0);
			assert_int_equal(h.gso_type, 0);
			bytes += (unsigned)len;
			tail++;
			got++;
		}
		assert_int_equal(a.q.vq.broken, VP_VQ_OK);
		assert_int_equal(b.q.vq.broken, VP_VQ_OK);
	}
	assert_int_equal(a.q.stats.packets, count);
	assert_int_equal(a.q.stats.bytes, bytes);
	assert_int_equal(drops(), 0);
	stop();
}

static void test_all_formats(void **state)
{
	static const uint64_t sides[] = {
		0,
		MODERN,
		MODERN | F(MRG_RXBUF),
		MODERN | F(MRG_RXBUF) | F_PACKED,
		MODERN | F_PACKED | F_INDIRECT,
		F(MRG_RXBUF) | F_INDIRECT,
		MODERN | F_INDIRECT | F_EVENT_IDX,
		MODERN | F(MRG_RXBUF) | F_PACKED | F_IN_ORDER,
	};
	unsigned i, j, was = cell_size;

	cell_size = 0x3000;
	before = malloc(SIZE * cell_size);
	for (i = 0; i < VP_ARRAY_SIZE(sides); i++)
		for (j = 0; j < VP_ARRAY_SIZE(sides); j++)
			transfer(sides[i], sides[j], 120);
	free(before);
	cell_size = was;
}

/* ---- headers ---- */

static void fill(unsigned plen)
{
	unsigned i;

	for (i = 0; i < plen; i++)
		pkt[i] = payload(7, i);
}

static void test_header_over_descriptors(void **state)
{
	unsigned f, i, piece[26];
	struct virtio_net_hdr h;
	static uint8_t sent[200];

	for (f = 0; f < 2; f++) {
		unsigned hlen = f ? 12 : 10;

		start(f ? MODERN : 0, MODERN);
		for (i = 0; i < 14 + hlen; i++)
			piece[i] = 1;
		piece[13 + hlen] = 87;
		fill(100);
		memcpy(sent, pkt, 100);
		assert_true(send_pieces(&plain, sent, 100, piece, 14 + hlen) >= 0);
		recv_post(2000);
		assert_int_equal(run(), 1);
		assert_int_equal(receive(&h), 100);
		assert_memory_equal(pkt, sent, 100);
		stop();
	}
}

static void test_too_short(void **state)
{
	unsigned f, len;

	for (f = 0; f < 2; f++) {
		unsigned hlen = f ? 12 : 10, want = 0;
		struct virtio_net_hdr h;

		start(f ? MODERN : 0, MODERN);
		recv_post(2000);
		for (len = 0; len < hlen + 14; len++) {
			assert_true(post(&a, &len, 1, false) >= 0);
			drv_publish(&a.d);
			assert_int_equal(run(), 1);
			assert_int_equal(a.q.stats.drops[VP_DROP_BAD_PACKET], ++want);
			assert_int_equal(reclaim(), 1);
		}
		assert_int_equal(receive(&h), -1);
		assert_true(send_one(&plain, pkt, 14) >= 0);
		assert_int_equal(run(), 1);
		assert_int_equal(receive(&h), 14);
		assert_int_equal(a.q.vq.broken, VP_VQ_OK);
		stop();
	}
}

static void test_bad_offload_header(void **state)
{
	static const struct virtio_net_hdr bad[] = {
		{ .flags = 1, .csum_start = 99, .csum_offset = 0 },
		{ .flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff },
		{ .gso_type = 1, .gso_size = 100 },
		{ .flags = 1, .gso_type = 1, .gso_size = 0, .csum_start = 34, .csum_offset = 16 },
		/* not negotiated */
		{ .flags = 1, .gso_type = 4, .gso_size = 100, .csum_start = 34, .csum_offset = 16 },
		{ .flags = 1, .gso_type = 0x7f, .gso_size = 100, .csum_start = 34, .csum_offset = 16 },
	};
	struct virtio_net_hdr h;
	unsigned i;

	start(MODERN | F(CSUM) | F(HOST_TSO4), MODERN | F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_TSO6));
	recv_post(2000);
	for (i = 0; i < VP_ARRAY_SIZE(bad); i++) {
		assert_true(send_one(&bad[i], pkt, 100) >= 0);
		assert_int_equal(run(), 1);
		assert_int_equal(a.q.stats.drops[VP_DROP_BAD_HEADER], i + 1);
		assert_int_equal(reclaim(), 1);
	}
	assert_int_equal(receive(&h), -1);
	assert_true(send_one(&plain, pkt, 100) >= 0);
	assert_int_equal(run(), 1);
	assert_int_equal(receive(&h), 100);
	assert_int_equal(b.q.vq.broken, VP_VQ_OK);
	stop();
}

/* ---- receivers that are away, full, small or broken ---- */

static void test_no_peer(void **state)
{
	start(MODERN, MODERN);
	send_one(&plain, pkt, 60);
	send_one(&plain, pkt, 60);
	assert_int_equal(vp_relay_run(&a.q, NULL, scratch), 2);
	assert_int_equal(a.q.stats.drops[VP_DROP_NO_PEER], 2);
	assert_int_equal(reclaim(), 2);
	vp_vq_break(&b.q.vq, VP_VQ_BAD_CHAIN);
	send_one(&plain, pkt, 60);
	assert_int_equal(run(), 1);
	assert_int_equal(a.q.stats.drops[VP_DROP_NO_PEER], 3);
	assert_int_equal(reclaim(), 1);
	assert_int_equal(vp_relay_run(&a.q, NULL, scratch), 0);
	stop();
}

static void test_patience(void **state)
{
	struct virtio_net_hdr h;

	start(MODERN, MODERN);
	send_one(&plain, pkt, 60);
	assert_int_equal(vp_relay_run(&a.q, &b.q, scratch), 0);
	assert_int_equal(drops(), 0); /* it waits in the sender's ring ... */
	assert_int_equal(reclaim(), 0);
	usleep(VP_RELAY_PATIENCE_US * 2);
	assert_int_equal(vp_relay_run(&a.q, &b.q, scratch), 1);
	assert_int_equal(a.q.stats.drops[VP_DROP_NO_BUFFER], 1); /* ... but not for ever */
	assert_int_equal(reclaim(), 1);
	recv_post(2000);
	send_one(&plain, pkt, 61);
	assert_int_equal(vp_relay_run(&a.q, &b.q, scratch), 1);
	assert_int_equal(receive(&h), 61);
	stop();
}

static void test_buffer_too_small(void **state)
{
	struct virtio_net_hdr h;

	start(MODERN, MODERN);
	recv_post(12 + 100);
	send_one(&plain, pkt, 101);
	send_one(&plain, pkt, 100);
	assert_int_equal(run(), 2);
	assert_int_equal(a.q.stats.drops[VP_DROP_TOO_BIG], 1);
	assert_int_equal(receive(&h), 100);
	assert_int_equal(receive(&h), -1);
	assert_int_equal(reclaim(), 2);
	stop();
	/* larger than any packet */
	start(MODERN, MODERN | F(MRG_RXBUF));
	while (b.held < 70)
		recv_post(1600);
	send_one(&plain, pkt, 65557);
	send_one(&plain, pkt, 65558);
	assert_int_equal(run(), 2);
	assert_int_equal(a.q.stats.drops[VP_DROP_TOO_BIG], 1);
	assert_int_equal(receive(&h), 65557);
	stop();
}

static void test_wrong_direction(void **state)
{
	unsigned len = 200, tiny = 5;

	/* A readable buffer in the receive queue breaks that queue only. */
	start(MODERN, MODERN);
	assert_true(post(&b, &len, 1, false) >= 0);
	drv_publish(&b.d);
	send_one(&plain, pkt, 60);
	run();
	assert_int_equal(b.q.vq.broken, VP_VQ_BAD_BUFFER);
	assert_int_equal(a.q.vq.broken, VP_VQ_OK);
	run();
	assert_int_equal(a.q.stats.drops[VP_DROP_NO_PEER], 1);
	stop();
	/* So does one that cannot hold the header. */
	start(MODERN, MODERN);
	assert_true(post(&b, &tiny, 1, true) >= 0);
	drv_publish(&b.d);
	send_one(&plain, pkt, 60);
	run();
	assert_int_equal(b.q.vq.broken, VP_VQ_BAD_BUFFER);
	stop();
	/* A writable buffer in the transmit queue breaks the sender's. */
	start(MODERN, MODERN);
	recv_post(2000);
	assert_true(post(&a, &len, 1, true) >= 0);
	drv_publish(&a.d);
	run();
	assert_int_equal(a.q.vq.broken, VP_VQ_BAD_BUFFER);
	assert_int_equal(b.q.vq.broken, VP_VQ_OK);
	assert_int_equal(b.held, 1);
	stop();
}

static void test_calls(void **state)
{
	struct virtio_net_hdr h;
	uint64_t v;

	start(MODERN, MODERN);
	a.q.call_fd = eventfd(0, EFD_NONBLOCK);
	b.q.call_fd = eventfd(0, EFD_NONBLOCK);
	recv_post(2000);
	send_one(&plain, pkt, 60);
	assert_int_equal(run(), 1);
	assert_int_equal(read(a.q.call_fd, &v, 8), 8);
	assert_int_equal(read(b.q.call_fd, &v, 8), 8);
	assert_int_equal(receive(&h), 60);
	reclaim();
	/* not wanted */
	drv_disable_calls(&a.d);
	drv_disable_calls(&b.d);
	recv_post(2000);
	send_one(&plain, pkt, 60);
	assert_int_equal(run(), 1);
	assert_true(read(a.q.call_fd, &v, 8) < 0);
	assert_true(read(b.q.call_fd, &v, 8) < 0);
	assert_int_equal(receive(&h), 60);
	reclaim();
	/* a full counter is a pending notification, no error */
	drv_enable_calls(&b.d);
	v = UINT64_MAX - 1;
	assert_int_equal(write(b.q.call_fd, &v, 8), 8);
	recv_post(2000);
	send_one(&plain, pkt, 60);
	assert_int_equal(run(), 1);
	assert_int_equal(b.q.vq.broken, VP_VQ_OK);
	assert_int_equal(receive(&h), 60);
	/* closed under us */
	close(b.q.call_fd);
	recv_post(2000);
	send_one(&plain, pkt, 60);
	assert_int_equal(run(), 1);
	assert_int_equal(b.q.vq.broken, VP_VQ_BAD_CALL);
	assert_int_equal(a.q.vq.broken, VP_VQ_OK);
	close(a.q.call_fd);
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_formats),
		cmocka_unit_test(test_header_over_descriptors),
		cmocka_unit_test(test_too_short),
		cmocka_unit_test(test_bad_offload_header),
		cmocka_unit_test(test_no_peer),
		cmocka_unit_test(test_patience),
		cmocka_unit_test(test_buffer_too_small),
		cmocka_unit_test(test_wrong_direction),
		cmocka_unit_test(test_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
