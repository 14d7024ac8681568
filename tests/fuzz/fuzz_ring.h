/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Input: size, features, base, number of bytes for the ring area; then the ring
 * area, then the other memory, both cut to size. Every region is an allocation
 * of its own, so that AddressSanitizer sees one byte too far.
 *
 *   0x0000 ring area (read-write)      0x4000 tables and buffers, its neighbour
 *   0x6000 hole                        0x8000 read-only buffers
 */
#ifndef VP_FUZZ_RING_H
#define VP_FUZZ_RING_H

#include <stdlib.h>
#include <string.h>

#include "virtq/virtq.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)
#define RING_BYTES 0x4000u
#define DATA_BYTES 0x2000u
#define RO_BYTES   0x1000u

static struct vp_map maps[3];
static struct vp_memtab *tab;
static struct vp_burst burst;

static void fuzz_map(unsigned i, uint32_t size, bool writable)
{
	maps[i] = (struct vp_map){ .host = vp_gptr_from_map(aligned_alloc(64, size)), .size = size,
				   .writable = writable, .refs = 1 << 20, .page_size = 4096, .fd = -1 };
}

static void fuzz_setup(void)
{
	struct vp_region_desc d[3] = {
		{ .gpa = 0, .size = RING_BYTES, .map = &maps[0] },
		{ .gpa = 0x4000, .size = DATA_BYTES, .map = &maps[1] },
		{ .gpa = 0x8000, .size = RO_BYTES, .map = &maps[2] },
	};

	fuzz_map(0, RING_BYTES, true);
	fuzz_map(1, DATA_BYTES, true);
	fuzz_map(2, RO_BYTES, false);
	REQUIRE(!vp_memtab_build(&tab, d, 3, NULL));
}

static void fuzz_check_seg(const struct vp_seg *s, bool write)
{
	int i = vp_memtab_find(tab, s->addr);

	REQUIRE(i >= 0 && s->len && s->len <= tab->r[i].size - (s->addr - tab->r[i].gpa));
	REQUIRE(vp_gptr_addr(s->p) == vp_gptr_addr(tab->r[i].host) + (s->addr - tab->r[i].gpa));
	REQUIRE(!write || tab->r[i].map->writable);
	if (write && s->addr >= 0x4000) { /* not into the rings: the input stays what it is */
		vp_st8(s->p, 0, 1);
		vp_st8(s->p, s->len - 1, 1);
	} else {
		(void)vp_ld8(s->p, 0);
		(void)vp_ld8(s->p, s->len - 1);
	}
}

static void fuzz_check_burst(const struct vp_virtq *vq, unsigned n, unsigned max)
{
	unsigned i, j, slots = 0;

	REQUIRE(n == burst.n && n <= max && n <= vq->size);
	/* What it looked at is bounded, with bytes in it or without. */
	REQUIRE(vp_burst_looked(&burst) <= VP_BURST_DESCS + VP_BURST && (n || !burst.more));
	for (i = 0; i < n; i++) {
		const struct vp_chain *c = &burst.chain[i];
		uint64_t out = 0, in = 0;

		REQUIRE(c->seg + c->nout + c->nin <= burst.nseg);
		for (j = 0; j < (unsigned)c->nout + c->nin; j++) {
			const struct vp_seg *s = &burst.seg[c->seg + j];

			fuzz_check_seg(s, j >= c->nout);
			*(j < c->nout ? &out : &in) += s->len;
		}
		REQUIRE(out == c->out_len && in == c->in_len);
		REQUIRE(c->slots >= 1);
		REQUIRE(vq->packed || (c->slots == 1 && c->id < vq->size));
		slots += c->slots;
	}
	REQUIRE(slots <= vq->size);
}

static int fuzz_ring(const uint8_t *data, size_t size, bool packed)
{
	static uint8_t before[RO_BYTES];
	struct vp_vq_conf c = { .desc = 0, .tab = tab };
	struct vp_used used[VP_BURST];
	struct vp_virtq vq;
	unsigned round, i, n, max, was;
	size_t ring;

	if (size < 8)
		return 0;
	if (!tab) {
		fuzz_setup();
		c.tab = tab;
	}
	/* sizes up to 256, the split ones powers of two */
	c.size = packed ? (uint16_t)(data[0] + 1) : (uint16_t)(1u << data[0] % 9);
	c.features = (data[1] & 1 ? VP_BIT(28) : 0) | (data[1] & 2 ? VP_BIT(29) : 0) |
		     (data[1] & 4 ? VP_BIT(35) : 0) | (packed ? VP_BIT(34) : 0);
	memcpy(&c.base, data + 2, 4);
	if (packed)
		c.base = (c.base & 0x80008000) | (c.base & 0x7fff) % c.size |
			 ((c.base >> 16 & 0x7fff) % c.size) << 16;
	c.driver = 0x1000;
	c.device = 0x2000;
	max = 1 + data[1] / 8;
	ring = VP_MIN((size_t)(data[6] | data[7] << 8), size - 8);
	data += 8;
	size -= 8;

	memset((void *)vp_gptr_addr(maps[0].host), 0, RING_BYTES);
	memset((void *)vp_gptr_addr(maps[1].host), 0, DATA_BYTES);
	memcpy((void *)vp_gptr_addr(maps[0].host), data, VP_MIN(ring, RING_BYTES));
	memcpy((void *)vp_gptr_addr(maps[1].host), data + ring, VP_MIN(size - ring, DATA_BYTES));
	memset(before, 0x5a, sizeof(before));
	memcpy((void *)vp_gptr_addr(maps[2].host), before, RO_BYTES);

	REQUIRE(!vp_vq_start(&vq, &c, NULL));
	/* Split: start where the input's available index says that there is something. */
	if (!packed && (c.base & 1)) {
		vq.last_avail = (uint16_t)(vp_ld16(maps[0].host, 0x1002) - (c.base >> 16) % (c.size + 2u));
		vq.avail_seen = vq.last_avail;
	}
	for (round = 0; round < 8; round++) {
		n = round & 1 ? vp_vq_fetch_dir(&vq, &burst, max, VP_WRITE) : vp_vq_fetch(&vq, &burst, max);
		was = vq.broken;
		fuzz_check_burst(&vq, n, max);
		REQUIRE(was < VP_VQ_BROKEN_MAX);
		for (i = 0; i < n; i++)
			used[i] = (struct vp_used){ .id = burst.chain[i].id, .len = burst.chain[i].in_len,
						    .slots = burst.chain[i].slots };
		vp_vq_advance(&vq, &burst, n);
		vp_vq_complete(&vq, used, n);
		(void)vp_vq_need_call(&vq);
		REQUIRE(!vp_vq_enable_kicks(&vq) || !vq.broken);
		vp_vq_disable_kicks(&vq);
		if (was) {
			REQUIRE(!vp_vq_fetch(&vq, &burst, max) && vq.broken == was);
			break;
		}
		if (packed)
			REQUIRE(vq.last_avail < vq.size && vq.used_idx < vq.size);
	}
	REQUIRE(!memcmp((void *)vp_gptr_addr(maps[2].host), before, RO_BYTES));
	return 0;
}

#endif
