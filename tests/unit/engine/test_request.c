/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests: contents both ways, order, device sides that go and come, room, and the in-flight account. */
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

static unsigned answers(void)
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

static unsigned run(void)
{
	unsigned n, total = 0;

	while ((n = vp_reqq_run(t.q, t.s)))
		total += n;
	return total;
}

/* ---- contents, both ways, whatever the device says of lengths --------------------- */

static void mixed(uint64_t drv, uint64_t dev, uint64_t area, bool comes_and_goes)
{
	uint64_t seed = 88172645463325252ull, cookie = 0, done = 0;

	setup(64, drv, dev, area);
	serve();
	n_holds = 0;
	while (done < 150) {
		for (unsigned i = (unsigned)(drv_rand(&seed) % 5); i; i--) {
			uint32_t len = 2 + (uint32_t)(drv_rand(&seed) % (drv_rand(&seed) & 3 ? 300 : 4000));

			if (ask(cookie, 1 + (unsigned)(drv_rand(&seed) % 3), (unsigned)(drv_rand(&seed) % 9), len,
				drv & F_INDIRECT && drv_rand(&seed) & 1) < 0)
				break;
			cookie++;
		}
		vp_reqq_run(t.q, t.s);
		device_takes(NULL, 1 + (unsigned)(drv_rand(&seed) % 20));
		for (unsigned i = (unsigned)(drv_rand(&seed) % 6); i && n_holds; i--) {
			unsigned k = (unsigned)(drv_rand(&seed) % n_holds);

			device_returns(k,
				       drv_rand(&seed) & 1 ? holds[k].in_len
							   : (uint32_t)(drv_rand(&seed) % (holds[k].in_len + 1)),
				       (uint32_t)(drv_rand(&seed) % 3	? holds[k].in_len
						  : drv_rand(&seed) & 1 ? 0
									: 0xffffffffu));
		}
		if (comes_and_goes && !(drv_rand(&seed) % 16)) {
			vp_reqq_end(t.q, true);
			n_holds = 0;
			vp_zero(vp_gptr_add(t.c.pool, t.c.data.off), t.c.data.size);
			serve();
		}
		if (drv_rand(&seed) & 1)
			vp_reqq_run(t.q, t.s);
		done += answers();
		assert_false(t.rq.vq.broken);
		assert_false(t.q->shadow.broken);
	}
	teardown();
}

static const uint64_t drv_formats[] = { 0, F_EVENT_IDX, F_INDIRECT, F_PACKED, F_PACKED | F_EVENT_IDX | F_INDIRECT };
static const uint64_t dev_formats[] = { 0, F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX };

static void each(void (*fn)(uint64_t drv, uint64_t dev))
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(drv_formats); i++)
		for (unsigned k = 0; k < VP_ARRAY_SIZE(dev_formats); k++)
			fn(drv_formats[i] | F_VERSION_1, dev_formats[k] | F_VERSION_1);
}

static void mixed_large(uint64_t drv, uint64_t dev)
{
	mixed(drv, dev, 1 << 20, false);
}

static void mixed_small(uint64_t drv, uint64_t dev)
{
	mixed(drv, dev, 56 << 10, false);
}

/* With headers, the rest of each part begins at a multiple of a block, and no header is in two pieces. */
static void test_payloads_are_aligned(void **state)
{
	const uint64_t data = RIG_POOL_ADDR + vp_copyq_ring_bytes();

	out_head = 51;
	in_head = 108;
	setup(64, F_VERSION_1, F_VERSION_1, 1 << 20);
	serve();
	n_holds = 0;
	for (uint64_t i = 0; i < 12; i++)
		assert_true(ask(i, 1 + i % 3, 1 + i / 3 % 2, 200 + (uint32_t)i * 333, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, 12), 12);
	for (unsigned i = 0; i < 12; i++) {
		const struct vp_chain *c = &t.burst.chain[i];
		const struct vp_seg *sg = &t.burst.seg[c->seg];

		assert_int_equal((sg[0].addr + out_head - data) % VP_REQ_BLOCK, 0);
		assert_true(sg[0].len >= out_head);
		assert_int_equal((sg[c->nout].addr + in_head - data) % VP_REQ_BLOCK, 0);
		assert_true(sg[c->nout].len >= in_head);
	}
	while (n_holds)
		device_returns(n_holds / 2, holds[n_holds / 2].in_len, 0);
	run();
	assert_int_equal(answers(), 12);
	teardown();
	/* And whatever comes, in little room. */
	mixed(F_INDIRECT | F_VERSION_1, F_EVENT_IDX | F_VERSION_1, 56 << 10, false);
	mixed(F_PACKED | F_VERSION_1, F_VERSION_1, 128 << 10, true);
	out_head = in_head = 0;
}

static void mixed_lost(uint64_t drv, uint64_t dev)
{
	mixed(drv, dev, 128 << 10, true);
}

static void test_there_and_back(void **state)
{
	each(mixed_large);
}

static void test_little_room(void **state)
{
	each(mixed_small);
}

static void test_device_comes_and_goes(void **state)
{
	each(mixed_lost);
}

/* ---- who comes next gets what is open, in order, once ------------------------------ */

static void regive(uint64_t drv, uint64_t dev)
{
	uint64_t order[VP_BURST];
	unsigned n;

	setup(64, drv, dev, 256 << 10);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 10; i++)
		assert_true(ask(i, 1, 2, 100 + i, false) >= 0);
	run();
	assert_int_equal(device_takes(order, VP_BURST), 10);
	device_returns(7, 1000, 1000);
	device_returns(2, 1000, 1000);
	vp_reqq_end(t.q, true);
	assert_int_equal(answers(), 2);
	assert_int_equal(vp_reqq_outstanding(t.q), 8);
	/* Nobody there: more come, and wait in the driver's ring. */
	for (unsigned i = 10; i < 14; i++)
		assert_true(ask(i, 1, 2, 100 + i, false) >= 0);
	assert_int_equal(vp_reqq_run(t.q, t.s), 0);
	for (unsigned lap = 0; lap < 3; lap++) {
		n_holds = 0;
		vp_zero(vp_gptr_add(t.c.pool, t.c.data.off), t.c.data.size);
		serve();
		run();
		n = device_takes(order, VP_BURST);
		assert_int_equal(n, 12);
		for (unsigned i = 0, c = 0; i < n; i++, c++) {
			c += c == 2 || c == 7;
			assert_int_equal(order[i], c);
		}
		if (lap < 2)
			vp_reqq_end(t.q, true);
	}
	while (n_holds)
		device_returns(n_holds - 1, 1000, 1000);
	run();
	assert_int_equal(answers(), 12);
	assert_int_equal(vp_reqq_outstanding(t.q), 0);
	teardown();
}

static void test_open_requests_are_given_again(void **state)
{
	each(regive);
}

/* The hostile side's pool is not what the next one is given. */
static void test_what_the_last_one_wrote_is_not_given_again(void **state)
{
	setup(64, F_VERSION_1, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	assert_true(ask(5, 2, 2, 500, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	vp_reqq_end(t.q, true);
	for (uint64_t i = 0; i < t.c.data.size; i++)
		vp_st8(t.c.pool, t.c.data.off + i, 0x5a);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1); /* checks contents */
	teardown();
}

/* ---- room --------------------------------------------------------------------------- */

static void test_too_big_breaks_and_says_how_much(void **state)
{
	setup(64, F_VERSION_1 | F_INDIRECT, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	assert_true(ask(1, 1, 7, 8000, true) >= 0); /* 64,196 bytes: fits, alone */
	run();
	assert_false(t.rq.vq.broken);
	assert_true(ask(2, 1, 8, 8000, true) >= 0);
	run();
	assert_int_equal(t.rq.vq.broken, VP_VQ_TOO_LONG);
	assert_true(t.q->too_big > 64 << 10);
	teardown();
}

static void test_fragments_are_used(void **state)
{
	setup(64, F_VERSION_1 | F_INDIRECT, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	/* The pool full of 15 requests of 4 KiB; every second one comes back. */
	for (unsigned i = 0; i < 15; i++)
		assert_true(ask(i, 1, 1, 2000, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 15);
	for (unsigned i = 0; i < 7; i++)
		device_returns(1 + i, 4000, 4000);
	run();
	assert_int_equal(answers(), 7);
	/* It fits no single hole. */
	assert_true(ask(100, 1, 8, 2000, true) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	assert_true(holds[n_holds - 1].nseg > 1);
	device_returns(n_holds - 1, 100000, 1);
	run();
	assert_int_equal(answers(), 1);
	teardown();
}

static void test_what_does_not_fit_now_waits(void **state)
{
	setup(64, F_VERSION_1 | F_INDIRECT, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	assert_true(ask(1, 1, 4, 8000, true) >= 0);
	assert_true(ask(2, 1, 4, 8000, true) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	assert_false(t.rq.vq.broken);
	assert_false(vp_reqq_arm(t.q)); /* nothing to do before something comes back */
	device_returns(0, 100000, 0);
	assert_true(vp_reqq_arm(t.q));
	run();
	assert_int_equal(answers(), 1);
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	teardown();
}

/* ---- zeroes that are spared ------------------------------------------------------------- */

/* A device side that has told the full length of 16 requests that it fills; then one more, in its hands. */
static void full_lengths(uint64_t cookie)
{
	setup(64, F_VERSION_1, F_VERSION_1, 64 << 10);
	vp_reqq_free(t.q);
	t.c.fills = true;
	for (unsigned i = 0; i < 4; i++)
		t.c.fill_op |= (uint32_t)byte_of(cookie, i) << 8 * i;
	make_queue(NULL);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 16; i++) {
		assert_true(ask(cookie, 1, 2, 700, false) >= 0);
		run();
		assert_int_equal(device_takes(NULL, VP_BURST), 1); /* zeroed */
		device_returns(0, 1421, 1420 + (i & 1));	   /* with the status, or without */
		run();
		assert_int_equal(answers(), 1);
	}
	t.raw = true;
	assert_true(ask(cookie, 1, 2, 700, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	/* What the last one left. */
	assert_int_equal(vp_ld8(holds[0].seg[0].p, 0), byte_of(~cookie, 0));
	t.raw = false;
}

static void test_a_short_answer_is_asked_for_again(void **state)
{
	full_lengths(5);
	device_returns(0, 10, 10);
	run();
	assert_int_equal(answers(), 0);
	assert_int_equal(device_takes(NULL, VP_BURST), 1); /* zeroed */
	assert_int_equal(t.q->regiven, 1);
	device_returns(0, 20, 20);
	run();
	assert_int_equal(answers(), 1);
	/* It is not trusted any more. */
	assert_true(ask(5, 1, 2, 700, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	device_returns(0, 0, 0);
	run();
	assert_int_equal(answers(), 1);
	teardown();
}

static void test_a_failed_answer_has_only_its_status(void **state)
{
	struct hold h;
	unsigned seen = 0;
	uint32_t len;
	uint16_t id;

	full_lengths(5);
	h = holds[0];
	vp_st8(h.seg[h.nseg - 1].p, h.seg[h.nseg - 1].len - 1, 3);
	device_returns(0, 0, 1421);
	run();
	assert_true(drv_get_used(&t.d, &id, &len));
	for (unsigned i = 1; i < jobs[id].nb; i++)
		for (uint32_t k = 0; k < jobs[id].b[i].len; k++, seen++)
			assert_int_equal(*drv_ptr(&t.m, jobs[id].b[i].addr + k), seen == 1420 ? 3 : 0);
	assert_int_equal(seen, 1421);
	teardown();
}

static void test_other_requests_are_zeroed(void **state)
{
	full_lengths(5);
	vp_st8(holds[0].seg[holds[0].nseg - 1].p, holds[0].seg[holds[0].nseg - 1].len - 1, 0); /* done */
	device_returns(0, 1420, 1421);
	run();
	assert_int_equal(answers(), 1);
	assert_true(ask(6, 1, 2, 700, false) >= 0); /* another first word */
	assert_true(ask(5, 1, 1, 300, false) >= 0); /* a short one */
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 2);
	teardown();
}

static void test_a_new_device_side_is_not_trusted(void **state)
{
	full_lengths(5);
	vp_reqq_end(t.q, true);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1); /* zeroed */
	device_returns(0, 5, 0);
	run();
	assert_int_equal(answers(), 1);
	teardown();
}

/* ---- calls ---------------------------------------------------------------------------------- */

static void test_one_call_for_all_that_came(void **state)
{
	uint64_t n;

	setup(64, F_VERSION_1 | F_INDIRECT, F_VERSION_1, 8 << 20);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 12; i++)
		assert_true(ask(i, 1, 8, 8000, true) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 12);
	RIG_MUST(read(t.call, &n, sizeof(n)) < 0);
	while (n_holds)
		device_returns(0, 10, 10);
	/* 128 KiB a run, a call for each 512 KiB, and at the end. */
	run();
	RIG_MUST(read(t.call, &n, sizeof(n)) == sizeof(n));
	assert_int_equal(n, 2);
	assert_int_equal(answers(), 12);
	/* What the last run owes is paid when the device side goes. */
	for (unsigned i = 0; i < 4; i++)
		assert_true(ask(i, 1, 8, 8000, true) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 4);
	while (n_holds)
		device_returns(0, 10, 10);
	vp_reqq_run(t.q, t.s);
	RIG_MUST(read(t.call, &n, sizeof(n)) < 0);
	assert_true(vp_reqq_end(t.q, true));
	assert_int_equal(answers(), 4);
	teardown();
}

/* ---- a device side that breaks the rules ------------------------------------------------ */

static void test_returned_twice(void **state)
{
	setup(64, F_VERSION_1, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	assert_true(ask(1, 1, 1, 100, false) >= 0);
	assert_true(ask(2, 1, 1, 200, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 2);
	holds[n_holds] = holds[0];
	n_holds++;
	device_returns(0, 100, 100);
	device_returns(1, 100, 100); /* the same again */
	run();
	assert_true(t.q->shadow.broken);
	assert_false(t.rq.vq.broken);
	assert_int_equal(answers(), 1);
	/* The next one gets the other. */
	vp_reqq_end(t.q, true);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1);
	device_returns(0, 1000, 0xffffffff);
	run();
	assert_int_equal(answers(), 1);
	teardown();
}

/* ---- the driver stops its ring ------------------------------------------------------------ */

static void stop_in_order(uint64_t drv, uint64_t dev)
{
	unsigned failed;
	uint32_t base;

	setup(64, drv, dev, 64 << 10);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 6; i++)
		assert_true(ask(i, 1, 1, 100 + i, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 6);
	device_returns(0, 1000, 1000);
	device_returns(0, 1000, 1000);
	vp_reqq_end(t.q, true);
	assert_int_equal(answers(), 2);
	vp_reqq_stop(t.q, true, &failed);
	assert_int_equal(failed, 0);
	base = vp_vq_base(&t.rq.vq);
	assert_int_equal(base & 0x7fff, drv & F_PACKED ? 4 : 2); /* of two descriptors each */
	teardown();
}

static void test_stop_rewinds(void **state)
{
	each(stop_in_order);
}

static void test_stop_with_a_hole_fails_the_rest(void **state)
{
	uint32_t len;
	uint16_t id;
	unsigned failed;

	setup(64, F_VERSION_1, F_VERSION_1, 64 << 10);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 3; i++)
		assert_true(ask(i, 1, 1, 100 + i, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 3);
	device_returns(1, 1000, 1000);
	vp_reqq_end(t.q, true);
	assert_int_equal(answers(), 1);
	vp_reqq_stop(t.q, true, &failed);
	assert_int_equal(failed, 2);
	while (drv_get_used(&t.d, &id, &len)) {
		const struct drv_buf *b = &jobs[id].b[jobs[id].nb - 1];

		assert_int_equal(*drv_ptr(&t.m, b->addr + b->len - 1), 1);
		assert_int_equal(*drv_ptr(&t.m, b->addr + b->len - 2), GUARD);
	}
	assert_int_equal(vp_vq_base(&t.rq.vq), 3);
	teardown();
}

/* ---- the in-flight account -------------------------------------------------------------------- */

/* As a new daemon does it; the front-end says where the used index was, or (packed) nothing of use. */
static void reopen(vp_gptr mem, struct vp_inflight_saved *saved)
{
	bool packed = t.rq.vq.packed;
	struct vp_vq_conf vc = drv_conf(&t.d, packed ? 0x80008000 : 0);
	struct vp_err e = { 0 };

	assert_int_equal(vp_vq_start(&t.rq.vq, &vc, &e), 0);
	if (!packed)
		t.rq.vq.last_avail = t.rq.vq.avail_seen = t.rq.vq.used_idx;
	assert_int_equal(vp_inflight_open(&t.c.inflight, saved, mem, &t.rq.vq), 0);
}

/* What a completion looks like when the daemon was killed in it: behind the ring's update, or before it. */
static void undo_completion(uint64_t *area, const uint64_t *before, bool seen)
{
	uint8_t *now = (uint8_t *)area;
	const uint8_t *was = (const uint8_t *)before;
	uint16_t used, entry;

	if (!t.rq.vq.packed) {
		memcpy(now + 14, was + 14, 2);
		return;
	}
	memcpy(now + 14, was + 14, 2);
	memcpy(now + 18, was + 18, 2);
	now[21] = was[21];
	memcpy(&entry, now + 12, 2);
	now[32 + 32 * entry] = 1;
	memcpy(&used, was + 18, 2);
	/* Available again, as if the driver had not been told. */
	if (!seen)
		vp_st16(t.rq.vq.desc, 16 * (size_t)used + 14, was[21] ? VP_PACKED_AVAIL : VP_PACKED_USED);
}

static void inflight_survives(uint64_t drv)
{
	static uint64_t area[8192], before[8192];
	struct vp_inflight_saved saved = { 0 };
	uint64_t order[VP_BURST];
	vp_gptr mem = vp_gptr_from_map(area);

	memset(area, 0, sizeof(area));
	setup(64, F_VERSION_1 | drv, F_VERSION_1, 128 << 10);
	vp_reqq_free(t.q);
	assert_int_equal(vp_inflight_open(&t.c.inflight, &saved, mem, &t.rq.vq), 0);
	assert_int_equal(saved.n, 0);
	make_queue(&saved);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 8; i++)
		assert_true(ask(i, 1, 2, 100 + i, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 8);
	device_returns(5, 1000, 1000);
	run();
	memcpy(before, area, sizeof(area));
	device_returns(1, 1000, 1000);
	run();
	assert_int_equal(answers(), 2);
	/* Killed between a completion and the account: it is struck off, for the ring shows that it was made. */
	undo_completion(area, before, true);
	vp_reqq_free(t.q);
	vp_inflight_saved_free(&saved);
	reopen(mem, &saved);
	assert_int_equal(saved.n, 6);
	make_queue(&saved);
	assert_true(ask(20, 1, 2, 300, false) >= 0);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(order, VP_BURST), 7);
	for (unsigned i = 0, c = 0; i < 6; i++, c++) {
		c += c == 1 || c == 5;
		assert_int_equal(order[i], c);
	}
	assert_int_equal(order[6], 20);
	while (n_holds)
		device_returns(0, 1000, 1000);
	run();
	assert_int_equal(answers(), 7);
	vp_inflight_saved_free(&saved);
	reopen(mem, &saved);
	assert_int_equal(saved.n, 0);
	vp_inflight_saved_free(&saved);
	teardown();
}

static void test_inflight_survives_the_daemon(void **state)
{
	inflight_survives(0);
	inflight_survives(F_PACKED);
	inflight_survives(F_PACKED | F_EVENT_IDX);
}

/* Packed: a ring as full as it can be, lap after lap, killed at any moment; and in a completion that nobody saw. */
static void test_inflight_packed_laps(void **state)
{
	static uint64_t area[8192], before[8192];
	struct vp_inflight_saved saved = { 0 };
	vp_gptr mem = vp_gptr_from_map(area);
	unsigned asked = 0, open = 0, lap;
	uint64_t order[VP_BURST];

	memset(area, 0, sizeof(area));
	setup(16, F_VERSION_1 | F_PACKED, F_VERSION_1, 128 << 10);
	vp_reqq_free(t.q);
	reopen(mem, &saved);
	make_queue(&saved);
	for (lap = 0; lap < 60; lap++) {
		unsigned n;

		n_holds = 0;
		serve();
		for (; open < 5; open++)
			assert_true(ask(asked++, 1, 2, 100, false) >= 0);
		run();
		/* The oldest first, whatever came between; all of them, and none twice. */
		n = device_takes(order, VP_BURST);
		assert_int_equal(n, 5);
		for (unsigned i = 1; i < n; i++)
			assert_true(order[i] > order[i - 1]);
		memcpy(before, area, sizeof(area));
		device_returns(lap % 5, 1000, 1000);
		run();
		assert_int_equal(answers(), 1);
		open--;
		if (lap % 3 == 1)
			undo_completion(area, before, true);
		vp_reqq_free(t.q);
		vp_inflight_saved_free(&saved);
		reopen(mem, &saved);
		assert_int_equal(saved.n, 4);
		make_queue(&saved);
	}
	vp_reqq_free(t.q);
	vp_inflight_saved_free(&saved);
	/* Not seen by the driver: open still. */
	reopen(mem, &saved);
	make_queue(&saved);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(order, VP_BURST), 4);
	memcpy(before, area, sizeof(area));
	device_returns(2, 1000, 1000);
	run();
	undo_completion(area, before, false);
	vp_reqq_free(t.q);
	vp_inflight_saved_free(&saved);
	reopen(mem, &saved);
	assert_int_equal(saved.n, 4);
	vp_inflight_saved_free(&saved);
	make_queue(NULL);
	teardown();
}

/* Whatever stands in it, nothing outside the account is touched, and the queue goes on or says that it cannot. */
static void test_inflight_made_up(void **state)
{
	static uint64_t area[8192];
	struct vp_inflight_saved saved = { 0 };
	vp_gptr mem = vp_gptr_from_map(area);
	unsigned refused = 0, taken = 0;
	struct vp_vq_conf vc;
	struct vp_err e = { 0 };
	uint32_t x = 1;

	setup(16, F_VERSION_1 | F_PACKED, F_VERSION_1, 128 << 10);
	vp_reqq_free(t.q);
	for (unsigned k = 0; k < 2000; k++) {
		uint8_t *b = (uint8_t *)area;

		memset(area, 0, sizeof(area));
		memset(b + 576, 0xa5, sizeof(area) - 576);
		for (unsigned i = 12; i < 32 + 16 * 32; i++) {
			x = x * 1664525 + 1013904223;
			/* Mostly small numbers: they come further. */
			b[i] = x >> 31 ? (uint8_t)(x >> 24 & (x >> 23 & 1 ? 0xff : 0xf)) : 0;
		}
		b[8] = 1;
		b[10] = 16;
		vc = drv_conf(&t.d, 0x80008000);
		assert_int_equal(vp_vq_start(&t.rq.vq, &vc, &e), 0);
		if (vp_inflight_open(&t.c.inflight, &saved, mem, &t.rq.vq)) {
			refused++;
		} else {
			taken++;
			make_queue(&saved);
			n_holds = 0;
			serve();
			for (unsigned i = 0; i < 4; i++)
				vp_reqq_run(t.q, t.s);
			vp_reqq_free(t.q);
			vp_inflight_saved_free(&saved);
		}
		for (unsigned i = 576; i < sizeof(area); i++)
			assert_int_equal(b[i], 0xa5);
	}
	assert_true(refused > 100 && taken > 100);
	make_queue(NULL);
	teardown();
}

/* The driver makes slots available again that it has not got back, and its VMM has written a list into the account that leads out of it. */
static void test_inflight_more_than_the_ring_holds(void **state)
{
	static uint64_t area[8192];
	struct vp_inflight_saved saved = { 0 };
	uint8_t *b = (uint8_t *)area;

	memset(area, 0, sizeof(area));
	setup(8, F_VERSION_1 | F_PACKED, F_VERSION_1, 128 << 10);
	vp_reqq_free(t.q);
	b[8] = 1;                       /* version */
	b[10] = 8;                      /* entries */
	b[20] = b[21] = 1;              /* wrap counters */
	b[12] = b[14] = 1;              /* the free list begins at 1 */
	b[32] = 1;                      /* entry 0 is a request of one descriptor, */
	b[34] = b[35] = 0xff;           /* behind which comes 65535 */
	b[38] = 1;
	b[52] = 16;
	area[(32 + 24) / 8] = RIG_DATA;
	reopen(vp_gptr_from_map(area), &saved);
	assert_int_equal(saved.n, 1);
	make_queue(&saved);
	serve();
	for (unsigned i = 1; i < 1 + 2 * 8; i++) {
		uint64_t flags = i / 8 ? VP_PACKED_USED : VP_PACKED_AVAIL;

		vp_st64(t.rq.vq.desc, 16 * (size_t)(i % 8), RIG_DATA + i * PLACE);
		vp_st64(t.rq.vq.desc, 16 * (size_t)(i % 8) + 8, 16 | (uint64_t)(i % 8) << 32 | flags << 48);
		if (i % 8 == 7)
			for (unsigned k = 0; k < 4; k++)
				vp_reqq_run(t.q, t.s);
	}
	assert_int_equal(t.rq.vq.broken, VP_VQ_BAD_CHAIN);
	assert_int_equal(vp_reqq_outstanding(t.q), 8);
	for (unsigned i = 320; i < sizeof(area); i++)
		assert_int_equal(b[i], 0);
	vp_reqq_free(t.q);
	vp_inflight_saved_free(&saved);
	make_queue(NULL);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_little_room),
		cmocka_unit_test(test_payloads_are_aligned),
		cmocka_unit_test(test_device_comes_and_goes),
		cmocka_unit_test(test_open_requests_are_given_again),
		cmocka_unit_test(test_what_the_last_one_wrote_is_not_given_again),
		cmocka_unit_test(test_too_big_breaks_and_says_how_much),
		cmocka_unit_test(test_fragments_are_used),
		cmocka_unit_test(test_what_does_not_fit_now_waits),
		cmocka_unit_test(test_a_short_answer_is_asked_for_again),
		cmocka_unit_test(test_a_failed_answer_has_only_its_status),
		cmocka_unit_test(test_other_requests_are_zeroed),
		cmocka_unit_test(test_a_new_device_side_is_not_trusted),
		cmocka_unit_test(test_one_call_for_all_that_came),
		cmocka_unit_test(test_returned_twice),
		cmocka_unit_test(test_stop_rewinds),
		cmocka_unit_test(test_stop_with_a_hole_fails_the_rest),
		cmocka_unit_test(test_inflight_survives_the_daemon),
		cmocka_unit_test(test_inflight_packed_laps),
		cmocka_unit_test(test_inflight_made_up),
		cmocka_unit_test(test_inflight_more_than_the_ring_holds),
	};

	return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
