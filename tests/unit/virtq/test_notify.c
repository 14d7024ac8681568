/* SPDX-License-Identifier: BSD-3-Clause */
/* Notifications of a ring, both ways, against a brute-force model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"

#define MEM   (16u << 20)
#define DATA  0x200000u

static const uint64_t formats[] = { 0, F_PACKED };
#define BOTH(f) for ((f) = 0; (f) < 2; (f)++)

static uint32_t first_base(bool packed)
{
	return packed ? 0x80008000 : 0;
}

/*
 * The model counts positions without wrapping: completed from `asked` to `now`, and the driver wants
 * a call when position `want` is among them.
 */
static void calls_model(uint16_t size, uint64_t features, uint64_t seed)
{
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	struct drv_buf buf = { DATA, 64, false };
	uint64_t now = 0, asked = 0, want = 0;
	enum { ON, OFF, EVENT } how = ON;
	unsigned step, n, i, yes = 0, no = 0;
	bool first = true;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_init(&d, &m, size, features, 0x1000);
	c = drv_conf(&d, first_base(d.packed));
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	for (step = 0; step < 6000; step++) {
		uint64_t seen = now;
		uint16_t id;
		uint32_t len;
		bool expect;

		while (drv_get_used(&d, &id, &len))
			;
		if (d.event_idx && drv_rand(&seed) % 4) {
			/* somewhere from the next one on, less than a lap ahead */
			how = EVENT;
			want = seen + drv_rand(&seed) % size;
			if (d.packed)
				*(uint32_t *)drv_ptr(&m, d.driver) = (uint32_t)(want % size) |
					(want / size % 2 ? 0 : 0x8000u) | 2u << 16;
			else
				drv_put16(&m, d.driver + 4 + 2ull * size, (uint16_t)want);
		} else if (!d.event_idx || d.packed) {
			how = drv_rand(&seed) % 2 ? ON : OFF;
			if (d.packed)
				*(uint32_t *)drv_ptr(&m, d.driver) = how == OFF ? 1u << 16 : 0;
			else
				drv_put16(&m, d.driver, how == OFF);
		} else if (how != EVENT) {
			/* With EVENT_IDX the flag of a split ring means nothing (2.7.7.1). */
			how = EVENT;
			want = seen;
			drv_put16(&m, d.driver, 1);
			drv_put16(&m, d.driver + 4 + 2ull * size, (uint16_t)want);
		}
		for (n = 1 + drv_rand(&seed) % VP_MIN(size, VP_BURST), i = 0; i < n; i++)
			if (drv_add(&d, &buf, 1, 0) < 0)
				break;
		drv_publish(&d);
		n = vp_vq_fetch(&vq, b, VP_BURST);
		vp_vq_advance(&vq, b, n);
		for (i = 0; i < n; i++) {
			struct vp_used u = { .id = b->chain[i].id, .slots = 1 };

			vp_vq_complete(&vq, &u, 1);
			now++;
			if (i + 1 < n && drv_rand(&seed) % 3)
				continue;
			expect = how == ON || (how == EVENT && want >= asked && want < now);
			/* Nothing to compare with the first time: a call too many does no harm. */
			if (first && how != OFF)
				expect = true;
			assert_int_equal(vp_vq_need_call(&vq), expect);
			expect ? yes++ : no++;
			first = false;
			asked = now;
		}
	}
	assert_true(yes > 100 && (no > 100 || size == 1));
	drv_free(&d);
	drv_mem_free(&m);
	free(b);
}

static void test_need_call(void **state)
{
	static const uint16_t sizes[] = { 1, 2, 3, 5, 8, 64, 127, 256 };
	unsigned f, e, i;

	BOTH(f)
		for (e = 0; e < 2; e++)
			for (i = 0; i < VP_ARRAY_SIZE(sizes); i++)
				if (f || !(sizes[i] & (sizes[i] - 1)))
					calls_model(sizes[i], formats[f] | (e ? F_EVENT_IDX : 0), 5 + i);
}

static void kicks(uint16_t size, uint64_t features, uint64_t seed)
{
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	struct drv_buf buf = { DATA, 64, false };
	unsigned step, n, i;
	uint16_t armed = 0;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_init(&d, &m, size, features, 0x1000);
	c = drv_conf(&d, first_base(d.packed));
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	for (step = 0; step < 12000; step++) {
		bool on = drv_rand(&seed) % 2;
		unsigned adds = (unsigned)(drv_rand(&seed) % 4);
		uint16_t id;
		uint32_t len;

		if (on) {
			assert_false(vp_vq_enable_kicks(&vq)); /* all has been taken */
			armed = vq.last_avail;
		} else {
			vp_vq_disable_kicks(&vq);
		}
		for (n = 0, i = 0; i < adds; i++)
			n += drv_add(&d, &buf, 1, 0) >= 0;
		drv_publish(&d);
		if (n && on) {
			/* The first after enabling is announced, however many come with it ... */
			assert_true(drv_kick_needed(&d));
			vp_vq_disable_kicks(&vq);
			assert_true(vp_vq_enable_kicks(&vq)); /* "look again": there is something */
			armed = vq.last_avail;
		} else if (n) {
			/* ... and none while they are off, but EVENT_IDX of a split ring cannot take back its event. */
			bool left = !d.packed && d.event_idx && (uint16_t)(armed - vq.last_avail) < n;

			assert_int_equal(drv_kick_needed(&d), left);
		}
		assert_int_equal(vp_vq_fetch(&vq, b, VP_BURST), n);
		vp_vq_advance(&vq, b, n);
		for (i = 0; i < n; i++) {
			struct vp_used u = { .id = b->chain[i].id, .slots = 1 };

			vp_vq_complete(&vq, &u, 1);
		}
		while (drv_get_used(&d, &id, &len))
			;
	}
	drv_free(&d);
	drv_mem_free(&m);
	free(b);
}

static void test_kicks(void **state)
{
	static const uint16_t sizes[] = { 4, 5, 8, 64, 127, 256 };
	unsigned f, e, i;

	BOTH(f)
		for (e = 0; e < 2; e++)
			for (i = 0; i < VP_ARRAY_SIZE(sizes); i++)
				if (f || !(sizes[i] & (sizes[i] - 1)))
					kicks(sizes[i], formats[f] | (e ? F_EVENT_IDX : 0), 5 + i);
}

/* A ring is set up with notifications on (its memory is zeroed): the first request to be left alone must count. */
static void test_kicks_off_from_the_start(void **state)
{
	struct drv_buf buf = { DATA, 64, false };
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	unsigned f;

	drv_mem_init(&m, MEM, NULL, 0);
	BOTH(f) {
		drv_init(&d, &m, 8, formats[f], 0x1000);
		c = drv_conf(&d, first_base(f));
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		vp_vq_disable_kicks(&vq);
		drv_add(&d, &buf, 1, 0);
		drv_publish(&d);
		assert_false(drv_kick_needed(&d));
		drv_free(&d);
	}
	drv_mem_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_need_call),
		cmocka_unit_test(test_kicks),
		cmocka_unit_test(test_kicks_off_from_the_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
