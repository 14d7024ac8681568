/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests: the in-flight account. */
#include "request_rig.h"

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

/*
 * The driver makes slots available again that it has not got back, and its VMM has written a list into the account that
 * leads out of it.
 */
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

/*
 * Packed: what a front-end writes beside the chains of its account, into what the last entry of each says of a next
 * one, does not become part of the record that another daemon goes on with.
 */
static void test_inflight_record_of_any_next(void **state)
{
	static uint64_t area[8192];
	struct vp_inflight_saved saved = { 0 }, theirs = { 0 };
	struct vp_inflight other = { 0 };
	struct vp_rec r = { 0 };
	struct vp_rec_in in;
	vp_gptr mem = vp_gptr_from_map(area);
	uint64_t order[VP_BURST];

	memset(area, 0, sizeof(area));
	setup(16, F_VERSION_1 | F_PACKED, F_VERSION_1, 128 << 10);
	vp_reqq_free(t.q);
	reopen(mem, &saved);
	make_queue(&saved);
	n_holds = 0;
	serve();
	for (unsigned i = 0; i < 3; i++)
		assert_true(ask(i, 1, 2, 100, false) >= 0);
	run();
	assert_int_equal(device_takes(order, VP_BURST), 3);
	/* The daemon was killed, and the front-end writes where each chain ends. */
	vp_reqq_free(t.q);
	vp_inflight_saved_free(&saved);
	for (unsigned i = 0; i < 16; i++)
		if (vp_ld8(mem, 32 + 32 * (size_t)i) == 1)
			vp_st16(mem, 32 + 32 * (size_t)vp_ld16(mem, 32 + 32 * (size_t)i + 4) + 2, 0xffff);
	reopen(mem, &saved);
	assert_int_equal(saved.n, 3);
	make_queue(&saved);
	vp_inflight_save(&t.c.inflight, &saved, 0, saved.n, 0, &r);
	in = (struct vp_rec_in){ .p = r.p, .n = r.n };
	assert_int_equal(vp_inflight_restore(&other, &theirs, mem, &t.rq.vq, &in), 0);
	assert_int_equal(theirs.n, 3);
	vp_rec_free(&r);
	vp_inflight_saved_free(&theirs);
	n_holds = 0;
	serve();
	run();
	assert_int_equal(device_takes(order, VP_BURST), 3);
	while (n_holds)
		device_returns(0, 1000, 1000);
	run();
	assert_int_equal(answers(), 3);
	vp_inflight_saved_free(&saved);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inflight_survives_the_daemon),
		cmocka_unit_test(test_inflight_packed_laps),
		cmocka_unit_test(test_inflight_made_up),
		cmocka_unit_test(test_inflight_more_than_the_ring_holds),
		cmocka_unit_test(test_inflight_record_of_any_next),
	};

	return cmocka_run_group_tests_name("request-inflight", tests, NULL, NULL);
}
