/* SPDX-License-Identifier: BSD-3-Clause */
/* The relay between two driver sides: what arrives, what is dropped, and what nobody may touch. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "engine/relay.h"
#include "net/offload.h"
#include "../net/pktcheck.h"
#include "../virtq/driver.h"

#define F(x)   VP_BIT(VIRTIO_NET_F_##x)
#define MEM    (32u << 20)
#define DATA   0x400000u
#define TABLE  0x100000u
#define SIZE   128u
#define FILL   0xee
#define MODERN F_VERSION_1

struct side {
	struct drv_mem m;
	struct drv d;
	struct vp_queue q;
	struct {
		bool busy;
		unsigned n;
		struct drv_buf b[40];
	} out[SIZE];
	unsigned held;
	uint16_t ids[SIZE], first; /* in the order in which they were posted */
};

static unsigned cell_size = 0x18000; /* buffer space of one chain in flight */
static struct side a, b; /* sender, receiver */
static struct vp_scratch *scratch;
static uint8_t *before;
static uint64_t seed = 1;

static void side_init(struct side *s, uint64_t features)
{
	struct vp_vq_conf c;

	memset(s, 0, sizeof(*s));
	drv_mem_init(&s->m, MEM, NULL, 0);
	drv_init(&s->d, &s->m, SIZE, features, 0x1000);
	memset(s->m.p + DATA, FILL, MEM - DATA);
	c = drv_conf(&s->d, features & F_PACKED ? 0x80008000 : 0);
	assert_int_equal(vp_vq_start(&s->q.vq, &c, NULL), 0);
	s->q.features = features;
	s->q.call_fd = -1;
}

static void side_free(struct side *s)
{
	drv_free(&s->d);
	drv_mem_free(&s->m);
}

static void start(uint64_t fa, uint64_t fb)
{
	side_init(&a, fa);
	side_init(&b, fb);
	scratch = vp_scratch_new();
}

static void stop(void)
{
	side_free(&a);
	side_free(&b);
	free(scratch);
}

/* Post a chain with pieces of these lengths, a gap of FILL around each. Its id or -1. */
static int post(struct side *s, const unsigned *len, unsigned n, bool write)
{
	unsigned cell, i, off = 64;
	struct drv_buf bufs[40];
	int id;

	if (s->d.num_free < n || (s->d.packed && !s->d.n_ids))
		return -1;
	cell = s->d.packed ? s->d.ids[s->d.n_ids - 1] : s->d.free_head;
	for (i = 0; i < n; i++) {
		bufs[i] = (struct drv_buf){ DATA + (uint64_t)cell_size * cell + off, len[i], write };
		off += len[i] + 32;
	}
	assert_true(off <= cell_size && DATA + (cell + 1ull) * cell_size <= MEM);
	if (write)
		memset(drv_ptr(&s->m, DATA + (uint64_t)cell_size * cell), FILL, cell_size);
	id = drv_add(&s->d, bufs, n, s->d.features & F_INDIRECT && n > 1 ? TABLE + 16ull * 40 * cell : 0);
	assert_int_equal(id, cell);
	s->out[id].busy = true;
	s->out[id].n = n;
	memcpy(s->out[id].b, bufs, sizeof(bufs[0]) * n);
	s->held++;
	return id;
}

static uint8_t payload(uint64_t number, unsigned i)
{
	return i < 8 ? (uint8_t)(number >> 8 * i) : (uint8_t)(number * 31 + i * 7);
}

/* Send header h and plen bytes at p, in n pieces of these lengths (their sum is header + plen). */
static int send_pieces(const struct virtio_net_hdr *h, const uint8_t *p, unsigned plen, const unsigned *len, unsigned n)
{
	unsigned hlen = vp_net_hdr_len(a.q.features), i, j, k = 0;
	int id = post(&a, len, n, false);

	if (id < 0)
		return id;
	for (i = 0; i < n; i++)
		for (j = 0; j < len[i]; j++, k++)
			*drv_ptr(&a.m, a.out[id].b[i].addr + j) =
				k < sizeof(*h) ? ((const uint8_t *)h)[k] : k < hlen ? 0x5c : p[k - hlen];
	assert_int_equal(k, hlen + plen);
	drv_publish(&a.d);
	return id;
}

static int send_one(const struct virtio_net_hdr *h, const uint8_t *p, unsigned plen)
{
	unsigned len = vp_net_hdr_len(a.q.features) + plen;

	return send_pieces(h, p, plen, &len, 1);
}

static int recv_post(unsigned len)
{
	int id = post(&b, &len, 1, true);

	drv_publish(&b.d);
	return id;
}

static unsigned run(void)
{
	a.q.blocked_since = 0;
	return vp_relay_run(&a.q, &b.q, scratch);
}

/* Take back what was sent; how many. */
static unsigned reclaim(void)
{
	unsigned n = 0;
	uint16_t id;
	uint32_t len;

	while (drv_get_used(&a.d, &id, &len)) {
		assert_int_equal(len, 0); /* nothing is written to a readable buffer */
		assert_true(a.out[id].busy);
		a.out[id].busy = false;
		a.held--;
		n++;
	}
	return n;
}

static uint8_t pkt[70000];

/* One used chain into to; checks that nothing outside [buffers, used length) was touched. */
static unsigned take_chain(uint8_t *to, bool *any)
{
	unsigned i, j, k = 0, at;
	bool bad = false;
	uint16_t id;
	uint32_t len;
	uint8_t *cell;

	*any = drv_get_used(&b.d, &id, &len);
	if (!*any)
		return 0;
	assert_true(b.out[id].busy);
	b.out[id].busy = false;
	b.held--;
	cell = drv_ptr(&b.m, DATA + (uint64_t)cell_size * id);
	for (i = at = 0; i < b.out[id].n; i++) {
		unsigned off = (unsigned)(b.out[id].b[i].addr - (DATA + (uint64_t)cell_size * id));

		for (; at < off; at++)
			bad |= cell[at] != FILL;
		for (j = 0; j < b.out[id].b[i].len && k < len; j++)
			to[k++] = cell[at++];
	}
	assert_int_equal(k, len); /* the used length is not larger than the buffer */
	for (; at < cell_size; at++)
		bad |= cell[at] != FILL;
	assert_false(bad);
	return len;
}

/* The next packet that arrived: its length (without header) into pkt, or -1. */
static int receive(struct virtio_net_hdr *h)
{
	unsigned hlen = vp_net_hdr_len(b.q.features), got, chains = 1;
	static uint8_t buf[70000];
	bool any;

	got = take_chain(buf, &any);
	if (!any)
		return -1;
	assert_true(got >= hlen);
	memcpy(h, buf, sizeof(*h));
	if (hlen == 12) {
		chains = buf[10] | buf[11] << 8;
		assert_true(chains >= 1 && (chains == 1 || b.q.features & F(MRG_RXBUF)));
	}
	while (--chains) {
		got += take_chain(buf + got, &any);
		assert_true(any); /* all of a packet becomes visible together */
	}
	memcpy(pkt, buf + hlen, got - hlen);
	return (int)(got - hlen);
}

static uint64_t drops(void)
{
	uint64_t n = 0;
	unsigned i;

	for (i = 0; i < VP_DROP_MAX; i++)
		n += a.q.stats.drops[i];
	return n;
}

/* ---- many random packets ---- */

static void transfer(uint64_t fa, uint64_t fb, unsigned count)
{
	static const struct virtio_net_hdr plain;
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
		0, MODERN, MODERN | F(MRG_RXBUF), MODERN | F(MRG_RXBUF) | F_PACKED, MODERN | F_PACKED | F_INDIRECT,
		F(MRG_RXBUF) | F_INDIRECT, MODERN | F_INDIRECT | F_EVENT_IDX, MODERN | F(MRG_RXBUF) | F_PACKED | F_IN_ORDER,
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

static const struct virtio_net_hdr plain;

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
		{ .flags = 1, .gso_type = 4, .gso_size = 100, .csum_start = 34, .csum_offset = 16 }, /* not negotiated */
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

/* ---- offloads ---- */

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
		cmocka_unit_test(test_tso_passes),
		cmocka_unit_test(test_tso_is_cut), cmocka_unit_test(test_tso_needs_many_buffers),
		cmocka_unit_test(test_checksum_completed),
		cmocka_unit_test(test_no_peer),
		cmocka_unit_test(test_patience),
		cmocka_unit_test(test_buffer_too_small),
		cmocka_unit_test(test_wrong_direction),
		cmocka_unit_test(test_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
