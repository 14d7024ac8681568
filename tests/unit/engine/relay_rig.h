/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Two drivers and the relay between them: a sends, b receives. What is posted, sent and taken is checked byte by byte.
 * Included by one program each; gives static functions.
 */
#ifndef VP_TESTS_RELAY_RIG_H
#define VP_TESTS_RELAY_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/relay.h"
#include "net/offload.h"
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

static __attribute__((unused)) void side_init(struct side *s, uint64_t features)
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

static __attribute__((unused)) void side_free(struct side *s)
{
	drv_free(&s->d);
	drv_mem_free(&s->m);
}

static __attribute__((unused)) void start(uint64_t fa, uint64_t fb)
{
	side_init(&a, fa);
	side_init(&b, fb);
	scratch = vp_scratch_new();
}

static __attribute__((unused)) void stop(void)
{
	side_free(&a);
	side_free(&b);
	free(scratch);
}

/* Post a chain with pieces of these lengths, a gap of FILL around each. Its id or -1. */
static __attribute__((unused)) int post(struct side *s, const unsigned *len, unsigned n, bool write)
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

static __attribute__((unused)) uint8_t payload(uint64_t number, unsigned i)
{
	return i < 8 ? (uint8_t)(number >> 8 * i) : (uint8_t)(number * 31 + i * 7);
}

/* Send header h and plen bytes at p, in n pieces of these lengths (their sum is header + plen). */
static __attribute__((unused)) int send_pieces(const struct virtio_net_hdr *h, const uint8_t *p, unsigned plen,
					       const unsigned *len, unsigned n)
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

static __attribute__((unused)) int send_one(const struct virtio_net_hdr *h, const uint8_t *p, unsigned plen)
{
	unsigned len = vp_net_hdr_len(a.q.features) + plen;

	return send_pieces(h, p, plen, &len, 1);
}

static __attribute__((unused)) int recv_post(unsigned len)
{
	int id = post(&b, &len, 1, true);

	drv_publish(&b.d);
	return id;
}

static __attribute__((unused)) unsigned run(void)
{
	a.q.blocked_since = 0;
	return vp_relay_run(&a.q, &b.q, scratch);
}

/* Take back what was sent; how many. */
static __attribute__((unused)) unsigned reclaim(void)
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
static __attribute__((unused)) unsigned take_chain(uint8_t *to, bool *any)
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
static __attribute__((unused)) int receive(struct virtio_net_hdr *h)
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

static __attribute__((unused)) uint64_t drops(void)
{
	uint64_t n = 0;
	unsigned i;

	for (i = 0; i < VP_DROP_MAX; i++)
		n += a.q.stats.drops[i];
	return n;
}

static const struct virtio_net_hdr __attribute__((unused)) plain;

#endif
