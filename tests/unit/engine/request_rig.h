/* SPDX-License-Identifier: BSD-3-Clause */
/* A driver, the copy engine for requests, and a device side: what the tests of the engine share. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/request.h"
#include "rig.h"
#define PLACE 0x20000u /* driver memory for a request */
#define GUARD 0xee

static struct {
	struct drv_mem m, pool;
	struct drv d;
	struct vp_queue rq;
	struct vp_reqq *q;
	struct vp_scratch *s;
	struct vp_virtq dev;
	struct vp_burst burst;
	int call, kick;
	uint64_t dev_features;
	struct vp_reqq_conf c;
	bool raw; /* what the device side may write need not be zeroes */
} t;

struct job {
	bool out;
	uint64_t cookie, base;
	uint32_t out_len, in_len, written, told;
	unsigned nb;
	struct drv_buf b[40];
};
static struct job jobs[1024]; /* by the driver's id */
static uint64_t places[64];
static unsigned n_places;

static uint8_t byte_of(uint64_t cookie, uint32_t at)
{
	return (uint8_t)(1 + (cookie * 167 + at * 13 + (at >> 8)) % 255);
}

static void serve(void)
{
	struct vp_err e = { 0 };
	struct vp_vq_conf vc;

	RIG_MUST(!vp_reqq_begin(t.q, t.dev_features, t.kick, 0, &e));
	vc = (struct vp_vq_conf){
		.size = t.q->size,
		.base = vp_reqq_base(t.q),
		.features = t.dev_features,
		.desc = t.q->desc_addr,
		.driver = t.q->avail_addr,
		.device = t.q->used_addr,
		.tab = t.pool.tab,
	};
	RIG_MUST(!vp_vq_start(&t.dev, &vc, &e));
}

static void make_queue(struct vp_inflight_saved *saved)
{
	struct vp_err e = { 0 };

	t.c.saved = saved;
	if (vp_reqq_new(&t.q, &t.c, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		abort();
	}
}

static uint16_t out_head, in_head; /* of the queues that setup() makes */

static void setup(uint16_t size, uint64_t drv, uint64_t dev, uint64_t area)
{
	uint64_t rb = vp_copyq_ring_bytes();
	struct drv_region pr = { RIG_POOL_ADDR, vp_align_up(rb + area, 4096), 0 };
	struct vp_vq_conf vc;
	struct vp_err e = { 0 };

	memset(&t, 0, sizeof(t));
	memset(jobs, 0, sizeof(jobs));
	n_places = 0;
	drv_mem_init(&t.m, RIG_MEM, NULL, 0);
	drv_mem_init(&t.pool, pr.size, &pr, 1);
	drv_init(&t.d, &t.m, size, drv, RIG_RING);
	vc = drv_conf(&t.d, drv & F_PACKED ? 0x80008000 : 0);
	RIG_MUST(!vp_vq_start(&t.rq.vq, &vc, &e));
	t.rq.features = drv;
	t.dev_features = dev;
	t.call = t.rq.call_fd = eventfd(0, EFD_NONBLOCK);
	t.kick = eventfd(0, EFD_NONBLOCK);
	t.s = vp_scratch_new();
	t.c = (struct vp_reqq_conf){
		.rq = &t.rq,
		.pool = t.pool.tab->r[0].host,
		.pool_addr = RIG_POOL_ADDR,
		.ring = { 0, rb },
		.data = { rb, area },
		.fail_status = 1,
		.out_head = out_head,
		.in_head = in_head,
	};
	make_queue(NULL);
	for (unsigned i = 0; i < 64; i++)
		places[n_places++] = RIG_DATA + (63 - i) * PLACE;
}

static void teardown(void)
{
	vp_reqq_free(t.q);
	free(t.s);
	drv_free(&t.d);
	drv_mem_free(&t.m);
	drv_mem_free(&t.pool);
	close(t.call);
	close(t.kick);
}

/* A request of nout and nin pieces of about len bytes each; its id, or -1. */
static int ask(uint64_t cookie, unsigned nout, unsigned nin, uint32_t len, bool indirect)
{
	struct job j = { .cookie = cookie };
	uint64_t at;
	int id;

	if (!n_places)
		return -1;
	at = j.base = places[n_places - 1];
	memset(drv_ptr(&t.m, at), GUARD, PLACE);
	for (unsigned i = 0; i < nout + nin; i++) {
		uint32_t n = len + i * 7;

		j.b[j.nb++] = (struct drv_buf){ at, n, i >= nout };
		for (uint32_t k = 0; i < nout && k < n; k++)
			*drv_ptr(&t.m, at + k) = byte_of(cookie, j.out_len + k);
		*(i < nout ? &j.out_len : &j.in_len) += n;
		at += n + (i & 1 ? 32 : 0); /* adjacent or not */
	}
	assert_true(at <= j.base + PLACE);
	id = drv_add(&t.d, j.b, j.nb, indirect ? RIG_TABLE + (j.base - RIG_DATA) / PLACE * 1024 : 0);
	if (id < 0)
		return -1;
	n_places--;
	assert_false(jobs[id].out);
	jobs[id] = j;
	jobs[id].out = true;
	drv_publish(&t.d);
	return id;
}

static void answered(uint16_t id, uint32_t len)
{
	struct job *j = &jobs[id];
	uint64_t at = j->base;
	uint32_t pos = 0;

	assert_true(j->out);
	j->out = false;
	assert_int_equal(len, VP_MIN(j->told, j->in_len));
	for (unsigned i = 0; i < j->nb; i++) {
		for (; at < j->b[i].addr; at++)
			assert_int_equal(*drv_ptr(&t.m, at), GUARD);
		at += j->b[i].len;
		for (uint32_t k = 0; j->b[i].write && k < j->b[i].len; k++, pos++)
			assert_int_equal(*drv_ptr(&t.m, j->b[i].addr + k),
					 pos < j->written ? byte_of(~j->cookie, pos) : 0);
	}
	for (; at < j->base + PLACE; at++)
		assert_int_equal(*drv_ptr(&t.m, at), GUARD);
	places[n_places++] = j->base;
}

static inline unsigned answers(void)
{
	unsigned n = 0;
	uint32_t len;
	uint16_t id;

	for (; drv_get_used(&t.d, &id, &len); n++)
		answered(id, len);
	return n;
}

static struct hold {
	struct vp_used u;
	unsigned id; /* of jobs[] */
	struct vp_seg seg[16];
	unsigned nseg;
	uint32_t in_len;
} holds[1024];
static unsigned n_holds;

static unsigned job_by_cookie(uint64_t cookie)
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(jobs); i++)
		if (jobs[i].out && jobs[i].cookie == cookie)
			return i;
	fprintf(stderr, "no request %llu is out\n", (unsigned long long)cookie);
	abort();
}

/* Everything that is there; each is checked against the request that its first bytes name, or that `expect` says. */
static unsigned device_takes(uint64_t *order, unsigned max)
{
	unsigned n = vp_vq_fetch(&t.dev, &t.burst, max);

	assert_false(t.dev.broken);
	for (unsigned i = 0; i < n; i++) {
		const struct vp_chain *c = &t.burst.chain[i];
		const struct vp_seg *sg = &t.burst.seg[c->seg];
		struct hold *h = &holds[n_holds++];
		uint64_t cookie = ~UINT64_C(0);
		uint32_t pos = 0;

		for (unsigned k = 0; k < VP_ARRAY_SIZE(jobs) && cookie == ~UINT64_C(0); k++)
			if (jobs[k].out && jobs[k].out_len == c->out_len && jobs[k].in_len == c->in_len &&
			    byte_of(jobs[k].cookie, 0) == vp_ld8(sg->p, 0) &&
			    byte_of(jobs[k].cookie, 1) == vp_ld8(sg->p, 1))
				cookie = jobs[k].cookie;
		*h = (struct hold){ .u = { 0, c->id, c->slots }, .id = job_by_cookie(cookie), .in_len = c->in_len };
		for (unsigned k = 0; k < c->nout; pos += sg[k++].len)
			for (uint32_t b = 0; b < sg[k].len; b++)
				assert_int_equal(vp_ld8(sg[k].p, b), byte_of(cookie, pos + b));
		for (unsigned k = c->nout; k < c->nout + c->nin; k++) {
			/* Nothing of anybody else's. */
			for (uint32_t b = 0; b < sg[k].len && !t.raw; b++)
				assert_int_equal(vp_ld8(sg[k].p, b), 0);
			h->seg[h->nseg++] = sg[k];
		}
		if (order)
			order[i] = cookie;
	}
	vp_vq_advance(&t.dev, &t.burst, n);
	return n;
}

/* Hold k goes back: `write` bytes of the answer, said to be `told`. */
static void device_returns(unsigned k, uint32_t write, uint32_t told)
{
	struct hold h = holds[k];
	uint32_t pos = 0;

	memmove(&holds[k], &holds[k + 1], (n_holds - k - 1) * sizeof(holds[0]));
	n_holds--;
	write = VP_MIN(write, h.in_len);
	for (unsigned i = 0; i < h.nseg; i++)
		for (uint32_t b = 0; b < h.seg[i].len && pos < write; b++, pos++)
			vp_st8(h.seg[i].p, b, byte_of(~jobs[h.id].cookie, pos));
	jobs[h.id].written = write;
	jobs[h.id].told = h.u.len = told;
	vp_vq_complete(&t.dev, &h.u, 1);
}

static inline unsigned run(void)
{
	unsigned n, total = 0;

	while ((n = vp_reqq_run(t.q, t.s)))
		total += n;
	return total;
}
