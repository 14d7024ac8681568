/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine driven from both sides at once. Input: kind and rate limit, ring formats, size; then steps of 12
 * bytes, each a store into the driver's rings and tables, a store into the pool, a call of the engine, or something
 * that an honest driver or device would do (post a chain, return some with any header and length), which takes the lies
 * deeper. Every memory is an allocation of its own, so that AddressSanitizer sees one byte too far; the read-only
 * region must stay as it was, and memory that no region names is not there at all.
 *
 *   driver VM: 0x0000 rings and tables (read-write)    0x8000 buffers    0x10000 read-only buffers
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cycles.h"
#include "engine/copyq.h"

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RING_BYTES 0x8000u
#define DATA_BYTES 0x4000u
#define RO_BYTES   0x1000u
#define AREA       0x2000u
#define POOL_ADDR  0x40000000u
#define TABLES     0x6000u   /* indirect ones, behind the rings */
#define MAX_SEGS   9

static struct vp_map maps[4];
static struct vp_memtab *tab, *pool_tab;
static struct vp_drvq drv;   /* the honest driver */
static struct vp_virtq dev;  /* the honest device */
static struct vp_burst burst;
static struct vp_scratch *scratch;
static uint8_t *mem[3], *pool;
static uint64_t pool_bytes;
static int kick_fd, call_fd;
static uint64_t last;        /* vp_cycles() of the last step */
static uint64_t granted;     /* packets, where there is a rate limit */

static void setup(void)
{
	static const uint32_t bytes[3] = { RING_BYTES, DATA_BYTES, RO_BYTES };
	struct vp_region_desc d[3];

	for (unsigned i = 0; i < 3; i++) {
		mem[i] = aligned_alloc(64, bytes[i]);
		maps[i] = (struct vp_map){ .host = vp_gptr_from_map(mem[i]), .size = bytes[i], .writable = i < 2,
					   .refs = 1 << 20, .page_size = 4096, .fd = -1 };
		d[i] = (struct vp_region_desc){ .gpa = i * 0x8000u, .size = bytes[i], .map = &maps[i] };
	}
	REQUIRE(!vp_memtab_build(&tab, d, 3, NULL));
	pool_bytes = vp_copyq_ring_bytes() + AREA;
	pool = aligned_alloc(64, pool_bytes);
	maps[3] = (struct vp_map){ .host = vp_gptr_from_map(pool),
				   .size = pool_bytes,
				   .writable = true,
				   .refs = 1 << 20,
				   .page_size = 4096,
				   .fd = -1 };
	d[0] = (struct vp_region_desc){ .gpa = POOL_ADDR, .size = pool_bytes, .map = &maps[3] };
	REQUIRE(!vp_memtab_build(&pool_tab, d, 1, NULL));
	scratch = vp_scratch_new();
	kick_fd = eventfd(0, EFD_NONBLOCK);
	call_fd = eventfd(0, EFD_NONBLOCK);
	REQUIRE(pool && scratch && kick_fd >= 0 && call_fd >= 0);
}

static uint64_t features(uint8_t f)
{
	return VP_BIT(32) | (f & 1 ? VP_BIT(34) : 0) | (f & 2 ? VP_BIT(29) : 0) | (f & 4 ? VP_BIT(35) : 0) |
	       (f & 8 ? VP_BIT(28) : 0) | (f & 16 ? VP_BIT(15) : 0);
}

static void driver_posts(uint32_t at, uint32_t len, bool write)
{
	if (drv.num_free && !drv.broken)
		vp_drvq_add_one(&drv, at % (0x10000 + RO_BYTES), len, write);
	vp_drvq_publish(&drv);
}

/*
 * A chain of 2 to MAX_SEGS pieces with these lengths (8 of them, repeated), gap bytes apart, the first of which the
 * device may only read if so wished: descriptors of their own where two will do, else an indirect table.
 */
static void driver_posts_pieces(uint32_t at, const uint8_t *len, unsigned n, unsigned gap, bool read_first, bool write)
{
	struct vp_drvq_buf buf[MAX_SEGS];
	static unsigned turn;
	unsigned i, table;
	uint16_t id;

	for (i = 0; i < n; i++) {
		buf[i] =
			(struct vp_drvq_buf){ at % (0x10000 + RO_BYTES), len[i % 8] & 63, write && (i || !read_first) };
		at += buf[i].len + gap;
	}
	if (n == 2) {
		vp_drvq_add(&drv, buf, n);
	} else if (drv.num_free && !drv.broken) {
		table = TABLES + turn++ % 32 * 256;
		for (i = 0; i < n; i++) {
			uint64_t flags = (buf[i].write ? 2u : 0) | (i + 1 < n ? 1u : 0);
			uint64_t word[2] = { buf[i].addr, buf[i].len | flags << 32 | (uint64_t)(i + 1) << 48 };

			if (drv.packed)
				word[1] = buf[i].len | (flags & 2) << 48;
			memcpy(mem[0] + table + 16 * i, word, 16);
		}
		id = vp_drvq_add_one(&drv, table, 16 * n, false);
		if (drv.packed)
			/* VRING_DESC_F_INDIRECT, of what is about to be published */
			drv.head_word |= UINT64_C(4) << 48;
		else
			vp_st16(drv.desc, 16 * (size_t)id + 12, 4);
	}
	vp_drvq_publish(&drv);
}

/*
 * Up to n buffers, beginning with the 8 bytes of head, with this length or (0) all of it. packet: they are one, whose
 * header says how many they are.
 */
static void device_returns(unsigned n, uint64_t head, uint32_t len, bool packet)
{
	n = vp_vq_fetch_dir(&dev, &burst, n, VP_WRITE);
	for (unsigned i = 0; i < n; i++) {
		const struct vp_chain *c = &burst.chain[i];
		struct vp_used u = { len ? len : c->in_len, c->id, c->slots };
		const struct vp_seg *sg = &burst.seg[c->seg + c->nout];

		for (unsigned k = 0; c->nin && k < 12 && k < sg->len; k++)
			vp_st8(sg->p, k,
			       k < 8	 ? (uint8_t)(head >> 8 * k)
			       : k != 10 ? 0
			       : packet	 ? (uint8_t)n
					 : (uint8_t)(head >> 60));
		vp_vq_complete(&dev, &u, 1);
	}
	vp_vq_advance(&dev, &burst, n);
}

/* Another process goes on with it: whatever either VM has made of it so far. */
static struct vp_copyq *hand_over(struct vp_copyq *b)
{
	struct vp_copyq *next;
	struct vp_rec r = { 0 };

	vp_copyq_save(b, &r);
	REQUIRE(!r.failed);
	REQUIRE(!vp_copyq_restore(&next, &b->c, &(struct vp_rec_in){ .p = r.p, .n = r.n }, NULL));
	vp_copyq_free(b);
	vp_rec_free(&r);
	return next;
}

static void step(struct vp_copyq **at_b, const uint8_t *s)
{
	struct vp_copyq *b = *at_b;
	struct vp_drvq_used u[VP_BURST];
	const uint64_t now = vp_cycles();
	uint32_t at;
	uint64_t v;

	/* The clock of the rate stands still between steps. */
	b->c.rq->own.due += (now - last) << 16;
	if (now - last > scratch->hz)
		granted += (unsigned)((now - last) / scratch->hz) + 1;
	last = now;
	memcpy(&v, s + 4, 8);
	at = s[1] | (uint32_t)s[2] << 8;
	switch (s[0] % 12) {
	case 0: case 1:
		memcpy(mem[0] + at % (RING_BYTES / 8) * 8, &v, 8);
		break;
	case 2: /* 16 bits: indices, flags, ring entries */
		memcpy(mem[0] + at % (RING_BYTES / 2) * 2, &v, 2);
		break;
	case 3: /* near the start of one of the shadow ring's areas, or anywhere */
	case 4:
		at = s[3] & 1 ? at % (uint32_t)(pool_bytes - 8) :
		     (uint32_t)((s[3] & 2 ? b->used_addr : s[3] & 4 ? b->avail_addr : b->desc_addr) - POOL_ADDR) + s[1];
		memcpy(pool + at, &v, s[0] % 12 == 3 ? 8 : 2);
		break;
	case 5:
		if (vp_copyq_arm(b))
			vp_copyq_disarm(b);
		if (b->c.rq->own.rate) { /* as if time had passed */
			b->c.rq->own.due -= (scratch->hz << 16) * (s[1] % 4);
			granted += s[1] % 4;
		}
		break;
	case 6:
		if (s[3] & 0x80) {
			b = *at_b = hand_over(b);
			break;
		}
		vp_copyq_set_open(b, s[1] & 1);
		vp_xlate_flush(&b->c.rq->vq.xl);
		break;
	case 7:
		if (s[3] & 2)
			driver_posts_pieces(at, s + 4, 2 + (s[3] >> 2) % (MAX_SEGS - 1), s[3] & 64 ? 0 : 5, s[3] & 32,
					    s[3] & 1);
		else
			driver_posts(at, (uint32_t)v % 5000, s[3] & 1);
		break;
	case 8:
		device_returns(1 + s[1] % 16, v, s[3] & 1 ? (uint32_t)(v >> 32) : 0, s[3] & 2);
		break;
	case 9:
		vp_drvq_get_burst(&drv, u, VP_BURST);
		break;
	default:
		vp_copyq_run(b, scratch);
	}
	REQUIRE(vp_copyq_outstanding(b) <= b->mask + 1);
	REQUIRE(b->data.used <= b->data.size && b->segs.used <= b->segs.size);
	REQUIRE(b->shadow.outstanding <= b->shadow.size && b->shadow.num_free <= b->shadow.size);
	REQUIRE(!b->c.rq->own.rate || b->c.rq->stats.packets <= granted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vp_queue rq = { .call_fd = call_fd };
	struct vp_copyq_conf c = { .rq = &rq, .kick_fd = kick_fd, .pool_addr = POOL_ADDR };
	struct vp_vq_conf vc = { .desc = 0 };
	struct vp_copyq *b;
	unsigned i;

	if (!tab)
		setup();
	if (size < 4)
		return 0;
	memset(mem[0], 0, RING_BYTES);
	memset(mem[1], 0x22, DATA_BYTES);
	memset(mem[2], 0x33, RO_BYTES);
	memset(pool, 0, pool_bytes);
	last = vp_cycles();
	/* So slow that time grants none by itself. */
	if (data[0] & 0x80) {
		rq.own.rate = 1;
		granted = data[3] >> 5;
		rq.own.due = (last << 16) - (scratch->hz << 16) * granted;
	}
	vc.features = rq.features = features(data[1]);
	vc.size = (uint16_t)(data[1] & 1 ? 1u + data[3] % 200u : 1u << data[3] % 8);
	vc.base = data[1] & 1 ? 0x80008000 : 0;
	vp_drvq_layout(vc.size, data[1] & 1, &vc.driver, &vc.device);
	REQUIRE(!vp_drvq_init(&drv, vc.size, vc.features, vp_gptr_from_map(mem[0])));
	vc.tab = tab;
	if (vp_vq_start(&rq.vq, &vc, NULL))
		goto out;
	c.features = features(data[2]);
	c.pool = vp_gptr_from_map(pool);
	c.ring = (struct vp_copyq_area){ 0, vp_copyq_ring_bytes() };
	c.data = (struct vp_copyq_area){ c.ring.size, AREA };
	c.early = data[0] % 3 == 0;
	if (vp_copyq_new(&b, &c, NULL))
		goto out;
	vc = (struct vp_vq_conf){ .size = b->shadow.size,
				  .base = vp_copyq_base(b),
				  .features = c.features,
				  .desc = b->desc_addr,
				  .driver = b->avail_addr,
				  .device = b->used_addr,
				  .tab = pool_tab };
	REQUIRE(!vp_vq_start(&dev, &vc, NULL));
	data += 4;
	size -= 4;
	for (; size >= 12; data += 12, size -= 12)
		step(&b, data);
	vp_copyq_run(b, scratch);
	vp_copyq_stop(b, data[-1] & 1);
	REQUIRE(!vp_copyq_outstanding(b));
	vp_copyq_free(b);
	for (i = 0; i < RO_BYTES; i++)
		REQUIRE(mem[2][i] == 0x33);
out:
	vp_drvq_fini(&drv);
	return 0;
}
