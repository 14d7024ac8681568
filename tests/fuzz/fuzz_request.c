/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine for requests, driven from both sides at once. Input: kind, ring formats, size; then steps of 12
 * bytes: a store into the driver's rings and tables, into the pool or into the in-flight account, a call of the engine,
 * a device side that goes and another one that comes, another process that goes on with it, or something that an honest
 * driver or device would do. Memory as in fuzz_copyq.c.
 *
 *   driver VM: 0x0000 rings and tables (read-write)    0x8000 buffers    0x10000 read-only buffers
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "engine/request.h"

#define REQUIRE(x)               \
	do {                     \
		if (!(x))        \
			abort(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RING_BYTES 0x8000u
#define DATA_BYTES 0x4000u
#define RO_BYTES   0x1000u
#define AREA	   0x4000u
#define POOL_ADDR  0x40000000u
#define ACCOUNT	   (32 + 32 * 256)

static struct vp_map maps[4];
static struct vp_memtab *tab, *pool_tab;
static struct vp_drvq drv;  /* the honest driver */
static struct vp_virtq dev; /* the honest device */
static struct vp_burst burst;
static struct vp_scratch *scratch;
static uint8_t *mem[3], *pool, *account;
static uint64_t pool_bytes;
static int kick_fd, call_fd;
static uint64_t dev_features;

static void setup(void)
{
	static const uint32_t bytes[3] = { RING_BYTES, DATA_BYTES, RO_BYTES };
	struct vp_region_desc d[3];

	for (unsigned i = 0; i < 3; i++) {
		mem[i] = aligned_alloc(64, bytes[i]);
		maps[i] = (struct vp_map){ .host = vp_gptr_from_map(mem[i]),
					   .size = bytes[i],
					   .writable = i < 2,
					   .refs = 1 << 20,
					   .page_size = 4096,
					   .fd = -1 };
		d[i] = (struct vp_region_desc){ .gpa = i * 0x8000u, .size = bytes[i], .map = &maps[i] };
	}
	REQUIRE(!vp_memtab_build(&tab, d, 3, NULL));
	pool_bytes = vp_copyq_ring_bytes() + AREA;
	pool = aligned_alloc(64, pool_bytes);
	account = aligned_alloc(64, vp_align_up(ACCOUNT, 64));
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
	REQUIRE(pool && account && scratch && kick_fd >= 0 && call_fd >= 0);
}

static uint64_t features(uint8_t f)
{
	return VP_BIT(32) | (f & 1 ? VP_BIT(34) : 0) | (f & 2 ? VP_BIT(29) : 0) | (f & 8 ? VP_BIT(28) : 0);
}

/* A chain of up to 6 pieces, nout of them readable. */
static void driver_posts(uint32_t at, unsigned nout, unsigned nin, uint32_t len)
{
	struct vp_drvq_buf buf[6];
	unsigned n = 0;

	for (; n < nout + nin; n++) {
		buf[n] = (struct vp_drvq_buf){ at % (0x10000 + RO_BYTES), 1 + (len + n * 37) % 3000, n >= nout };
		at += buf[n].len;
	}
	if (n)
		vp_drvq_add(&drv, buf, n);
	vp_drvq_publish(&drv);
}

static void device_returns(unsigned n, uint64_t v)
{
	n = vp_vq_fetch(&dev, &burst, n);
	for (unsigned i = 0; i < n; i++) {
		const struct vp_chain *c = &burst.chain[i];
		const struct vp_seg *sg = &burst.seg[c->seg + c->nout];
		struct vp_used u = { v & 1 ? (uint32_t)(v >> 8) : c->in_len, c->id, c->slots };

		if (c->nin)
			vp_st8(sg->p, 0, (uint8_t)v);
		vp_vq_complete(&dev, &u, 1);
	}
	vp_vq_advance(&dev, &burst, n);
}

static void serve(struct vp_reqq *q)
{
	struct vp_vq_conf vc;

	REQUIRE(!vp_reqq_begin(q, dev_features, kick_fd, 0, NULL));
	vc = (struct vp_vq_conf){ .size = q->size,
				  .base = vp_reqq_base(q),
				  .features = dev_features,
				  .desc = q->desc_addr,
				  .driver = q->avail_addr,
				  .device = q->used_addr,
				  .tab = pool_tab };
	REQUIRE(!vp_vq_start(&dev, &vc, NULL));
}

static void check(const struct vp_reqq *q)
{
	unsigned out = 0, blocks = 0;

	for (uint16_t i = q->first; i != q->n; i = q->req[i].next) {
		REQUIRE(q->req[i].state != VP_REQ_FREE && ++out <= q->n);
		for (unsigned k = 0; k < q->req[i].nruns; k++)
			blocks += q->req[i].run[k].n;
	}
	REQUIRE(out == q->out && blocks + q->blocks.free == q->blocks.n);
	REQUIRE(q->pend_head - q->pend_tail <= q->n);
}

/* Another process goes on with it: whatever either VM has made of it so far. */
static struct vp_reqq *hand_over(struct vp_reqq *q)
{
	static struct vp_inflight_saved other;
	struct vp_inflight_saved *was = q->c.saved;
	struct vp_reqq_conf c = q->c;
	struct vp_rec r = { 0 };
	struct vp_reqq *next;

	vp_reqq_save(q, &r);
	REQUIRE(!r.failed);
	c.inflight = (struct vp_inflight){ .mem = vp_gptr_from_map(account) };
	c.saved = was ? &other : NULL;
	REQUIRE(!vp_reqq_restore(&next, &c, kick_fd, 0, &(struct vp_rec_in){ .p = r.p, .n = r.n }, NULL));
	vp_reqq_free(q);
	vp_rec_free(&r);
	if (was) {
		vp_inflight_saved_free(was);
		*was = other;
		other = (struct vp_inflight_saved){ 0 };
		next->c.saved = was;
	}
	return next;
}

static void step(struct vp_reqq **at_q, const uint8_t *s)
{
	struct vp_reqq *q = *at_q;
	struct vp_drvq_used u[VP_BURST];
	uint32_t at = s[1] | (uint32_t)s[2] << 8;
	uint32_t base;
	uint64_t v;

	memcpy(&v, s + 4, 8);
	base = (uint32_t)v;
	switch (s[0] % 12) {
	case 0:
		memcpy(mem[0] + at % (RING_BYTES / 8) * 8, &v, 8);
		break;
	case 1:
		memcpy(mem[0] + at % (RING_BYTES / 2) * 2, &v, 2);
		break;
	case 2:
	case 3:
		at = s[3] & 1 ? at % (uint32_t)(pool_bytes - 8)
			      : (uint32_t)((s[3] & 2   ? q->used_addr
					    : s[3] & 4 ? q->avail_addr
						       : q->desc_addr) -
					   POOL_ADDR) +
					s[1];
		memcpy(pool + at, &v, s[0] % 12 == 2 ? 8 : 2);
		break;
	case 4:
		memcpy(account + at % (ACCOUNT - 8), &v, 8);
		break;
	case 5:
		if (s[3] & 0x80) {
			q = *at_q = hand_over(q);
			break;
		}
		if (vp_reqq_arm(q))
			vp_reqq_disarm(q);
		vp_reqq_set_open(q, s[1] & 3);
		vp_xlate_flush(&q->c.rq->vq.xl);
		break;
	case 6:
		vp_reqq_end(q, s[1] & 1, s[1] & 2 ? &base : NULL);
		serve(q);
		break;
	case 7:
	case 8:
		driver_posts(at, s[3] & 3, s[3] >> 2 & 3, (uint32_t)v);
		break;
	case 9:
		device_returns(1 + s[1] % 16, v);
		break;
	case 10:
		vp_drvq_get_burst(&drv, u, VP_BURST);
		break;
	default:
		vp_reqq_run(q, scratch);
	}
	check(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vp_queue rq = { .call_fd = call_fd };
	struct vp_reqq_conf c = { .rq = &rq, .pool_addr = POOL_ADDR, .fail_status = -1 };
	struct vp_vq_conf vc = { .desc = 0 };
	struct vp_inflight_saved saved = { 0 };
	struct vp_reqq *q;
	unsigned failed;

	if (!tab)
		setup();
	if (size < 4)
		return 0;
	memset(mem[0], 0, RING_BYTES);
	memset(mem[1], 0x22, DATA_BYTES);
	memset(mem[2], 0x33, RO_BYTES);
	memset(pool, 0, pool_bytes);
	memset(account, 0, ACCOUNT);
	vc.features = rq.features = features(data[1]);
	vc.size = (uint16_t)(data[1] & 1 ? 1u + data[3] % 200u : 1u << data[3] % 9);
	vc.base = data[1] & 1 ? 0x80008000 : 0;
	vp_drvq_layout(vc.size, data[1] & 1, &vc.driver, &vc.device);
	REQUIRE(!vp_drvq_init(&drv, vc.size, vc.features, vp_gptr_from_map(mem[0])));
	vc.tab = tab;
	if (vp_vq_start(&rq.vq, &vc, NULL))
		goto out;
	if (data[0] & 1) {
		/* An account that the front-end has made up. */
		memset(account, data[2], data[0] & 2 ? ACCOUNT : 0);
		account[8] = 1;
		account[9] = 0;
		if (!vp_inflight_open(&c.inflight, &saved, vp_gptr_from_map(account), &rq.vq))
			c.saved = &saved;
	}
	dev_features = features(data[2]);
	c.pool = vp_gptr_from_map(pool);
	c.ring = (struct vp_copyq_area){ 0, vp_copyq_ring_bytes() };
	c.data = (struct vp_copyq_area){ c.ring.size, AREA };
	c.trust_len = data[0] & 4;
	c.once = data[0] & 8;
	c.fuse = data[0] & 16;
	c.fail_status = data[0] & 32 ? 1 : -1;
	REQUIRE(!vp_reqq_new(&q, &c, NULL));
	serve(q);
	data += 4;
	size -= 4;
	for (; size >= 12; data += 12, size -= 12)
		step(&q, data);
	vp_reqq_run(q, scratch);
	vp_reqq_end(q, data[-1] & 1, NULL);
	check(q);
	vp_reqq_stop(q, data[-1] & 2, &failed);
	check(q);
	vp_reqq_free(q);
	for (unsigned i = 0; i < RO_BYTES; i++)
		REQUIRE(mem[2][i] == 0x33);
out:
	vp_inflight_saved_free(&saved);
	vp_drvq_fini(&drv);
	return 0;
}
