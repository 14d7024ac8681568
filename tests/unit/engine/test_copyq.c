/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine between a driver and a device side: contents, order, back-pressure, and what the pool holds. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "rig.h"

static struct rig r;

static void send_frames(unsigned n, uint32_t len, uint8_t fill)
{
	for (unsigned i = 0; i < n; i++) {
		struct drv_buf b = { RIG_DATA + (r.d.avail % 256) * 0x800ull + (r.d.packed ? r.d.slot * 0x800ull : 0),
				     12 + len, false };
		uint8_t *p = drv_ptr(&r.m, b.addr);

		memset(p, 0, 12);
		memset(p + 12, fill, len);
		assert_true(drv_add(&r.d, &b, 1, 0) >= 0);
	}
	drv_publish(&r.d);
}

static unsigned driver_gets_back(void)
{
	unsigned n = 0;
	uint32_t len;
	uint16_t id;

	while (drv_get_used(&r.d, &id, &len)) {
		assert_int_equal(len, 0);
		n++;
	}
	return n;
}

static void early(uint64_t drv, uint64_t dev)
{
	struct rig_conf c = { RIG_TX, 64, drv, dev, 0 };
	unsigned i, k, n;

	rig_new(&r, &c);
	for (k = 0; k < 100; k++) {
		uint32_t len = 60 + k * 13;

		send_frames(20, len, (uint8_t)k);
		rig_run(&r);
		assert_int_equal(driver_gets_back(), 20); /* before the device VM has looked */
		/* The sender changes its mind too late. */
		memset(drv_ptr(&r.m, RIG_DATA), 0xff, 0x800 * 256);
		n = vp_vq_fetch(&r.dev, &r.burst, VP_BURST);
		assert_int_equal(n, 20);
		for (i = 0; i < n; i++) {
			struct vp_used u = { 0, r.burst.chain[i].id, r.burst.chain[i].slots };
			const struct vp_seg *sg = &r.burst.seg[r.burst.chain[i].seg];

			assert_int_equal(sg->len, 12 + len);
			for (uint32_t at = 0; at < len; at++)
				assert_int_equal(vp_ld8(sg->p, 12 + at), k);
			vp_vq_advance(&r.dev, &(struct vp_burst){ .chain = { r.burst.chain[i] } }, 1);
			vp_vq_complete(&r.dev, &u, 1);
		}
	}
	assert_int_equal(r.rq.stats.packets, 2000);
	assert_true(r.rq.stats.busy_cycles > 0);
	rig_free(&r);
}

static void test_transmit_completes_early(void **state)
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(rig_drv_formats); i++)
		for (unsigned k = 0; k < 4; k++)
			early(rig_drv_formats[i] | F_VERSION_1, rig_dev_formats[k] | F_VERSION_1);
}

/* A device VM that returns nothing: the ring of the driver fills up, nothing is lost, and it goes on afterwards. */
static void backpressure(uint64_t drv, uint64_t dev)
{
	struct rig_conf c = { RIG_TX, 256, drv, dev, 8192 };
	unsigned n, sent = 0, got = 0, round = 0;

	rig_new(&r, &c);
	while (sent < 200) {
		send_frames(10, 500, 7);
		sent += 10;
		rig_run(&r);
	}
	n = driver_gets_back();
	assert_int_equal(n, 16); /* 512 bytes each in 8192 */
	assert_true(r.b->blocked);
	/* Blocked: nothing to do, the driver need not kick, the device VM has to call. */
	assert_false(vp_copyq_arm(r.b));
	rig_raised(r.kick);
	while (got < 200 && round++ < 1000) {
		unsigned k = vp_vq_fetch(&r.dev, &r.burst, 5);
		struct vp_used u[5];

		for (unsigned i = 0; i < k; i++)
			u[i] = (struct vp_used){ 0, r.burst.chain[i].id, r.burst.chain[i].slots };
		vp_vq_advance(&r.dev, &r.burst, k);
		vp_vq_complete(&r.dev, u, k);
		if (k && !got)
			assert_true(vp_vq_need_call(&r.dev));
		got += k;
		vp_copyq_disarm(r.b);
		rig_run(&r);
		n += driver_gets_back();
	}
	assert_int_equal(got, 200);
	assert_int_equal(n, 200);
	rig_free(&r);
}

static void test_back_pressure(void **state)
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(rig_drv_formats); i++)
		for (unsigned k = 0; k < 4; k++)
			backpressure(rig_drv_formats[i] | F_VERSION_1, rig_dev_formats[k] | F_VERSION_1);
}

static void test_runts_and_giants(void **state)
{
	struct rig_conf c = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 1 << 20 };
	struct drv_buf runt = { RIG_DATA, 12 + 13, false }, giant = { RIG_DATA, 12 + 65558, false };

	rig_new(&r, &c);
	drv_add(&r.d, &runt, 1, 0);
	drv_add(&r.d, &giant, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(driver_gets_back(), 2);
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_PACKET], 1);
	assert_int_equal(r.rq.stats.drops[VP_DROP_TOO_BIG], 1);
	assert_int_equal(vp_vq_fetch(&r.dev, &r.burst, 1), 0);
	assert_false(r.rq.vq.broken);
	rig_free(&r);
}

static void test_wrong_direction(void **state)
{
	struct drv_buf w = { RIG_DATA, 100, true }, rd = { RIG_DATA, 100, false };
	struct rig_conf tx = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 0 },
			rx = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };

	rig_new(&r, &tx);
	drv_add(&r.d, &w, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(r.rq.vq.broken, VP_VQ_BAD_BUFFER);
	rig_free(&r);
	rig_new(&r, &rx);
	drv_add(&r.d, &rd, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(r.rq.vq.broken, VP_VQ_BAD_BUFFER);
	assert_int_equal(vp_vq_fetch(&r.dev, &r.burst, 1), 0);
	rig_free(&r);
}

static void test_rate(void **state)
{
	struct rig_conf c = { RIG_TX, 256, F_VERSION_1, F_VERSION_1, 0 };

	rig_new(&r, &c);
	r.rq.own.rate = 1000;
	send_frames(200, 60, 1);
	rig_run(&r);
	assert_int_equal(driver_gets_back(), 200);
	assert_true(r.rq.stats.packets >= 64 && r.rq.stats.packets < 100);
	assert_int_equal(r.rq.stats.packets + r.rq.stats.drops[VP_DROP_RATE], 200);
	rig_free(&r);
}

/* The pool holds what was handed over and nothing else. */
static void test_nothing_else_in_the_pool(void **state)
{
	struct rig_conf c = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 0 };
	uint64_t i, fives = 0;

	rig_new(&r, &c);
	memset(drv_ptr(&r.m, RIG_DATA), 0xa5, RIG_MEM - RIG_DATA);
	for (i = 0; i < 20; i++) {
		struct drv_buf b = { RIG_DATA + i * 4096 + 100, 12 + 60 + (uint32_t)i, false };

		memset(drv_ptr(&r.m, b.addr), 0x55, b.len);
		drv_add(&r.d, &b, 1, 0);
	}
	drv_publish(&r.d);
	rig_run(&r);
	for (i = 0; i < r.pool.size; i++) {
		assert_int_not_equal(r.pool.p[i], 0xa5);
		fives += i >= r.b->c.data.off && r.pool.p[i] == 0x55;
	}
	assert_int_equal(fives, 20 * 72 + 190);
	rig_free(&r);
}

static void test_bad_setup(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	struct vp_copyq_conf bc;
	struct vp_copyq *b;
	struct vp_err e = { 0 };

	rig_new(&r, &c);
	bc = r.b->c;
	bc.ring.size = 64;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	bc = r.b->c;
	bc.data.size = 0;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	bc = r.b->c;
	bc.data.off += 8;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_setup), cmocka_unit_test(test_transmit_completes_early),
		cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_runts_and_giants),
		cmocka_unit_test(test_wrong_direction), cmocka_unit_test(test_rate),
		cmocka_unit_test(test_nothing_else_in_the_pool),
	};

	return cmocka_run_group_tests_name("copyq", tests, NULL, NULL);
}
