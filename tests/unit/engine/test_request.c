/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests: contents both ways, order, device sides that go and come, room. */
#include "request_rig.h"

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
			vp_reqq_end(t.q, true, NULL);
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
	vp_reqq_end(t.q, true, NULL);
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
			vp_reqq_end(t.q, true, NULL);
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
	vp_reqq_end(t.q, true, NULL);
	for (uint64_t i = 0; i < t.c.data.size; i++)
		vp_st8(t.c.pool, t.c.data.off + i, 0x5a);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(NULL, VP_BURST), 1); /* checks contents */
	teardown();
}

/* Requests that may not be done twice fail, but for those that the last one did not take, by its own word. */
static void test_what_it_never_had_waits(void **state)
{
	const uint32_t base = 2;

	for (unsigned known = 0; known < 2; known++) {
		uint16_t id;
		uint32_t len;
		unsigned n = 0;

		setup(64, F_VERSION_1, F_VERSION_1, 64 << 10);
		t.q->c.once = true;
		serve();
		n_holds = 0;
		for (unsigned i = 0; i < 5; i++)
			assert_true(ask(i, 1, 1, 100, false) >= 0);
		run();
		assert_int_equal(device_takes(NULL, 2), 2);
		device_returns(1, 100, 100);
		assert_true(vp_reqq_end(t.q, true, known ? &base : NULL));
		while (drv_get_used(&t.d, &id, &len))
			n++;
		assert_int_equal(n, known ? 2 : 5);
		assert_int_equal(t.q->failed, known ? 1 : 4);
		n_holds = 0;
		serve();
		run();
		assert_int_equal(device_takes(NULL, VP_BURST), known ? 3 : 0);
		teardown();
	}
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
	vp_reqq_end(t.q, true, NULL);
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
	assert_true(vp_reqq_end(t.q, true, NULL));
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
	vp_reqq_end(t.q, true, NULL);
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
	vp_reqq_end(t.q, true, NULL);
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
	vp_reqq_end(t.q, true, NULL);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_little_room),
		cmocka_unit_test(test_payloads_are_aligned),
		cmocka_unit_test(test_device_comes_and_goes),
		cmocka_unit_test(test_open_requests_are_given_again),
		cmocka_unit_test(test_what_the_last_one_wrote_is_not_given_again),
		cmocka_unit_test(test_what_it_never_had_waits),
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
	};

	return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
