/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What one run of the relay, or of the copy engine, may cost, whatever the drivers do: bytes, segments, descriptors.
 * And that it goes on in the next run where this one ended.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "rig.h"
#include "base/cycles.h"
#include "engine/packet.h"
#include "engine/relay.h"
#include "net/offload.h"

#define F(x)  VP_BIT(VIRTIO_NET_F_##x)
#define SIZE  1024u
#define RING  0x1000u
#define TABLE 0x80000u
#define DATA  0x200000u
#define CELL  0x10000u

struct side {
	struct drv_mem m;
	struct drv d;
	struct vp_queue q;
};

static struct side a, b; /* sender, receiver */
static struct vp_scratch *scratch;
static struct rig rig;
static const uint64_t formats[] = { F_VERSION_1, F_VERSION_1 | F_PACKED };

static void side_init(struct side *s, uint64_t features)
{
	struct vp_vq_conf c;

	memset(s, 0, sizeof(*s));
	drv_mem_init(&s->m, 64u << 20, NULL, 0);
	drv_init(&s->d, &s->m, SIZE, features, RING);
	c = drv_conf(&s->d, features & F_PACKED ? 0x80008000 : 0);
	assert_int_equal(vp_vq_start(&s->q.vq, &c, NULL), 0);
	s->q.features = features;
	s->q.call_fd = -1;
}

static void start(uint64_t fa, uint64_t fb)
{
	side_init(&a, fa);
	side_init(&b, fb);
	scratch = vp_scratch_new();
}

static void stop(void)
{
	drv_free(&a.d);
	drv_free(&b.d);
	drv_mem_free(&a.m);
	drv_mem_free(&b.m);
	free(scratch);
}

/* n chains of len bytes in one piece. */
static void post(struct side *s, unsigned n, unsigned len, bool write)
{
	while (n--) {
		struct drv_buf buf = { DATA + (uint64_t)CELL * (s->d.num_free % 256), len, write };

		assert_true(drv_add(&s->d, &buf, 1, 0) >= 0);
	}
	drv_publish(&s->d);
}

/* n indirect tables of `entries` of len bytes, no two of which touch each other. */
static void post_tables(struct drv *d, unsigned n, unsigned entries, unsigned len, bool write, uint64_t table,
			uint64_t data)
{
	struct drv_buf buf[VP_BURST_DESCS];

	while (n--) {
		for (unsigned i = 0; i < entries; i++)
			buf[i] = (struct drv_buf){ data + i * (len + 1ull), len, write };
		assert_true(drv_add(d, buf, entries, table + 16ull * VP_BURST_DESCS * n) >= 0);
	}
	drv_publish(d);
}

/* n TSO packets of payload bytes in the cells that post() takes next. */
static void post_tso(unsigned n, unsigned payload, unsigned mss)
{
	const struct virtio_net_hdr h = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
					  .gso_size = (uint16_t)mss, .csum_start = 34, .csum_offset = 16 };
	uint8_t *p;

	while (n--) {
		p = drv_ptr(&a.m, DATA + (uint64_t)CELL * (a.d.num_free % 256));
		memcpy(p, &h, sizeof(h));
		p += 12;
		p[12] = 8;     /* IPv4 */
		p[14] = 0x45;
		p[23] = 6;     /* TCP */
		p[34 + 12] = 0x50;
		post(&a, 1, 12 + 54 + payload, false);
	}
}

static unsigned run(void)
{
	a.q.blocked_since = 0;
	return vp_relay_run(&a.q, &b.q, scratch);
}

static uint64_t drops(const struct vp_queue *q)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < VP_DROP_MAX; i++)
		n += q->stats.drops[i];
	return n;
}

/* ---- relay ------------------------------------------------------------------------------------------ */

/* Small packets: 32 in a run. Large ones: as many as make 128 KiB, fast path or not, into one buffer or several. */
static void test_bytes(void **state)
{
	static const struct { unsigned len, expect; } c[] = { { 1514, 32 }, { 9000, 15 }, { 60000, 3 }, { 65550, 2 } };

	for (unsigned i = 0; i < 4 * VP_ARRAY_SIZE(c); i++) {
		unsigned n, left = 40, len = c[i / 4].len;
		bool merge = i & 1;

		start(formats[i >> 1 & 1], formats[i >> 1 & 1] | (merge ? F(MRG_RXBUF) : 0));
		post(&a, left, 12 + len, false);
		post(&b, merge ? 1000 : 100, merge ? 4096 : 12 + len, true);
		for (; left; left -= n) {
			n = run();
			assert_in_range(n, 1, VP_MIN(c[i / 4].expect, left));
			/* Buffers that several make a packet of are looked for again once in a run. */
			if (!merge)
				assert_int_equal(n, VP_MIN(c[i / 4].expect, left));
		}
		assert_int_equal(run(), 0);
		assert_int_equal(a.q.stats.packets, 40);
		assert_int_equal(a.q.stats.bytes, 40ull * len);
		stop();
	}
}

/* A segment that is cut off costs something as well. */
static void test_segments(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		unsigned total = 0, runs = 0, n;

		start(formats[f] | F(CSUM) | F(HOST_TSO4), formats[f]);
		post(&b, 900, 1526, true);
		post_tso(6, 30000, 250); /* 120 segments each */
		while ((n = run())) {
			assert_true(n <= 2);
			total += n;
			runs++;
		}
		assert_int_equal(total, 6);
		assert_true(runs >= 3);
		assert_int_equal(a.q.stats.cut, 6);
		/* More than there may be: dropped, and nothing of it arrives. */
		post_tso(2, 30000, 180);
		post_tso(2, 30000, 1);
		while (run())
			;
		assert_int_equal(a.q.stats.cut, 6);
		assert_int_equal(a.q.stats.drops[VP_DROP_BAD_PACKET], 4);
		stop();
	}
}

/* Segments are packets to the rate limit: what they were too many is waited for, not dropped. */
static void test_segments_and_the_rate(void **state)
{
	for (unsigned shared = 0; shared < 2; shared++) {
		struct vp_bucket bucket = { .rate = shared ? 1000 : 0 };
		unsigned n = 0;

		start(F_VERSION_1 | F(CSUM) | F(HOST_TSO4), F_VERSION_1);
		a.q.own.rate = shared ? 0 : 1000;
		a.q.shared = &bucket;
		post(&b, 900, 1526, true);
		post_tso(6, 30000, 250);
		while (run() && n < 100)
			n++;
		assert_true(vp_queue_owes(&a.q, vp_cycles(), scratch->hz));
		assert_in_range(a.q.stats.packets, 1, 3);
		assert_int_equal(drops(&a.q), 0);
		stop();
	}
}

/* Descriptors with nothing in them: a run looks at a bounded number, and the rate limit at what they cost. */
static void test_empty_descriptors(void **state)
{
	for (unsigned i = 0; i < 4; i++) {
		bool limited = i & 1;
		unsigned n, total = 0;

		start(formats[i / 2] | F_INDIRECT, formats[i / 2]);
		a.q.own.rate = limited ? 1000 : 0;
		post(&b, 100, 1526, true);
		post_tables(&a.d, 60, VP_BURST_DESCS, 0, false, TABLE, DATA);
		while ((n = run())) {
			assert_int_equal(n, 1);
			total++;
		}
		if (limited)
			/* Each counts as 8 of the 64 that may come at once (and of 64 that may be owed). */
			assert_in_range(total, 8, 20);
		else
			assert_int_equal(total, 60);
		assert_int_equal(drops(&a.q), total);
		assert_int_equal(a.q.vq.broken, VP_VQ_OK);
		stop();
	}
}

/* A receiver's buffers that are so small that a packet would take too many: it does not fit. */
static void test_tiny_receive_buffers(void **state)
{
	static const struct { unsigned buf, len, arrives; } c[] = {
		{ 128, 60000, 1 }, { 100, 60000, 0 }, { 12, 5000, 1 }, { 12, 20000, 0 }, { 1526, 60000, 1 },
	};

	for (unsigned i = 0; i < 2 * VP_ARRAY_SIZE(c); i++) {
		start(formats[i & 1], formats[i & 1] | F(MRG_RXBUF));
		post(&a, 1, 12 + c[i / 2].len, false);
		post(&b, 1000, c[i / 2].buf, true);
		assert_int_equal(run(), 1);
		assert_int_equal(a.q.stats.packets, c[i / 2].arrives);
		assert_int_equal(a.q.stats.drops[VP_DROP_TOO_BIG], !c[i / 2].arrives);
		stop();
	}
	/* The same with empty descriptors in the receiver's chains, of which a burst holds one. */
	start(F_VERSION_1, F_VERSION_1 | F(MRG_RXBUF) | F_INDIRECT);
	post(&a, 2, 12 + 2000, false);
	for (unsigned i = 0; i < 60; i++) {
		struct drv_buf buf[VP_BURST_DESCS] = { { DATA, 512, true } };

		assert_true(drv_add(&b.d, buf, VP_BURST_DESCS, TABLE + 16ull * VP_BURST_DESCS * i) >= 0);
	}
	drv_publish(&b.d);
	assert_int_equal(run(), 1);
	assert_int_equal(run(), 1);
	assert_int_equal(a.q.stats.drops[VP_DROP_TOO_BIG], 2);
	stop();
}

/* Chains of many pieces at the receiver fill a burst early: packets go on with the next one, and are not held up. */
static void test_receiver_of_many_pieces(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		unsigned n, total = 0;

		start(formats[f], formats[f] | F_INDIRECT);
		post(&a, 20, 12 + 1400, false);
		post_tables(&b.d, 20, 200, 8, true, TABLE, DATA);
		while ((n = run())) {
			assert_int_equal(n, 2); /* it looks once more in a run */
			total += n;
		}
		assert_int_equal(total, 20);
		assert_int_equal(a.q.stats.packets, 20);
		stop();
	}
}

/* ---- copy engine ------------------------------------------------------------------------------------- */

static void rig_start(enum rig_kind kind, uint64_t features)
{
	struct rig_conf c = { kind, 256, features | F_VERSION_1, F_VERSION_1, 4u << 20 };

	rig_new(&rig, &c);
}

/* Driver to device: with and without the fast path, which a rate limit (never reached) goes round. */
static void test_copy_bytes_out(void **state)
{
	static const struct { unsigned len, expect; } c[] = { { 1514, 32 }, { 9000, 15 }, { 60000, 3 } };

	for (unsigned i = 0; i < 4 * VP_ARRAY_SIZE(c); i++) {
		unsigned left = 40, n;

		rig_start(RIG_TX, i & 1 ? F_PACKED : 0);
		rig.rq.own.rate = i & 2 ? 1000000 : 0;
		for (n = 0; n < left; n++)
			drv_add(&rig.d, &(struct drv_buf){ RIG_DATA + CELL * n, 12 + c[i / 4].len, false }, 1, 0);
		drv_publish(&rig.d);
		for (; left; left -= n) {
			n = vp_copyq_run(rig.b, rig.s);
			assert_int_equal(n, VP_MIN(c[i / 4].expect, left));
		}
		assert_int_equal(vp_copyq_run(rig.b, rig.s), 0);
		assert_int_equal(rig.rq.stats.packets, 40);
		rig_free(&rig);
	}
}

/* Device to driver. Returns packets of one run, behind those in which buffers are handed over. */
static unsigned copy_back(unsigned len, unsigned packets)
{
	unsigned n, done = 0;
	uint64_t before;

	while (vp_copyq_run(rig.b, rig.s))
		;
	while (done < packets && (n = vp_vq_fetch_dir(&rig.dev, &rig.burst, packets - done, VP_WRITE))) {
		for (unsigned i = 0; i < n; i++)
			vp_vq_complete(&rig.dev,
				       &(struct vp_used){ len, rig.burst.chain[i].id, rig.burst.chain[i].slots }, 1);
		vp_vq_advance(&rig.dev, &rig.burst, n);
		done += n;
	}
	assert_int_equal(done, packets);
	before = rig.rq.stats.packets + drops(&rig.rq);
	vp_copyq_run(rig.b, rig.s);
	n = (unsigned)(rig.rq.stats.packets + drops(&rig.rq) - before);
	while (vp_copyq_run(rig.b, rig.s))
		;
	return n;
}

static void test_copy_bytes_in(void **state)
{
	static const struct { unsigned len, expect; } c[] = { { 1514, 32 }, { 9000, 15 }, { 60000, 3 } };

	for (unsigned i = 0; i < 2 * VP_ARRAY_SIZE(c); i++) {
		rig_start(RIG_RX, i & 1 ? F_PACKED : 0);
		for (unsigned k = 0; k < 40; k++)
			drv_add(&rig.d, &(struct drv_buf){ RIG_DATA + CELL * k, 12 + c[i / 2].len, true }, 1, 0);
		drv_publish(&rig.d);
		assert_int_equal(copy_back(12 + c[i / 2].len, 40), c[i / 2].expect);
		assert_int_equal(rig.rq.stats.packets, 40);
		rig_free(&rig);
	}
}

/* Into chains of many pieces, each of which is looked up: 512 in a run, and behind that what is left of the chain. */
static void test_copy_pieces_in(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		rig_start(RIG_RX, F_INDIRECT | (f ? F_PACKED : 0));
		post_tables(&rig.d, 20, 200, 8, true, RIG_TABLE, RIG_DATA);
		assert_int_equal(copy_back(1600, 20), 3);
		assert_int_equal(rig.rq.stats.packets, 20);
		rig_free(&rig);
	}
	/* One packet in more than that. */
	rig_start(RIG_RX, F_INDIRECT | F(MRG_RXBUF));
	post_tables(&rig.d, 4, 200, 8, true, RIG_TABLE, RIG_DATA);
	while (vp_copyq_run(rig.b, rig.s))
		;
	assert_int_equal(vp_vq_fetch_dir(&rig.dev, &rig.burst, 4, VP_WRITE), 4);
	vp_st16(rig.burst.seg[rig.burst.chain[0].seg].p, 10, 3);
	for (unsigned i = 0; i < 3; i++)
		vp_vq_complete(&rig.dev, &(struct vp_used){ 1600, rig.burst.chain[i].id, rig.burst.chain[i].slots }, 1);
	vp_vq_advance(&rig.dev, &rig.burst, 3);
	rig_run(&rig);
	assert_int_equal(rig.rq.stats.packets, 0);
	assert_int_equal(rig.rq.stats.drops[VP_DROP_TOO_BIG], 1);
	rig_free(&rig);
}

/* Chains with nothing in them, both directions: few in a run, and they cost packets of the rate. */
static void test_copy_empty_descriptors(void **state)
{
	for (unsigned i = 0; i < 4; i++) {
		unsigned n, total = 0;

		rig_start(i & 1 ? RIG_RX : RIG_TX, F_INDIRECT | (i & 2 ? F_PACKED : 0));
		rig.rq.own.rate = i & 1 ? 0 : 1000;
		post_tables(&rig.d, 60, VP_BURST_DESCS, 0, i & 1, RIG_TABLE, RIG_DATA);
		while ((n = vp_copyq_run(rig.b, rig.s))) {
			assert_true(n <= 2); /* one that is taken, one that is given back */
			total += n;
		}
		if (!(i & 1))
			assert_in_range(total, 8, 20);
		assert_int_equal(rig.rq.vq.broken, VP_VQ_OK);
		rig_free(&rig);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_segments),
		cmocka_unit_test(test_segments_and_the_rate),
		cmocka_unit_test(test_empty_descriptors),
		cmocka_unit_test(test_tiny_receive_buffers),
		cmocka_unit_test(test_receiver_of_many_pieces),
		cmocka_unit_test(test_copy_bytes_out),
		cmocka_unit_test(test_copy_bytes_in),
		cmocka_unit_test(test_copy_pieces_in),
		cmocka_unit_test(test_copy_empty_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
