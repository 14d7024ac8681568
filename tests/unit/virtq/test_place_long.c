/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines that say where a ring is, as a process leaves them that is killed (place.h). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"

#define SIZE 8u

/*
 * A packet that takes more than a burst counts as sent before all of its burst does: the intent is about the first of
 * the chains that are noted for the whole burst in the end. These are given back, the others are sent again.
 */
static void test_noted_behind_the_intent(void **state)
{
	struct drv_buf buf = { 0x10000, 100, false };
	struct vp_place line, left;
	struct vp_virtq vq = { 0 };
	struct vp_used u[4] = { 0 };
	struct vp_err e = { 0 };
	struct vp_vq_conf c;
	struct vp_burst b = { .slow = true };
	struct drv_mem m;
	struct drv d;
	uint16_t id, ids[4];
	uint32_t len;

	drv_mem_init(&m, 1 << 20, NULL, 0);
	drv_init(&d, &m, SIZE, F_VERSION_1 | F_PACKED, 0);
	for (unsigned i = 0; i < 4; i++)
		assert_true(drv_add(&d, &buf, 1, 0) >= 0);
	c = drv_conf(&d, 0x80008000u);
	c.out_only = true;
	assert_int_equal(vp_vq_start(&vq, &c, &e), 0);
	vq.place = &line;
	line = (struct vp_place){ 0 };
	vp_place_reset(&line, &vq);
	assert_int_equal(vp_vq_fetch(&vq, &b, 4), 4);
	for (unsigned i = 0; i < 4; i++) {
		u[i] = (struct vp_used){ .id = b.chain[i].id, .slots = b.chain[i].slots };
		ids[i] = u[i].id;
	}
	vp_vq_note(&vq, u, 2, 2);
	line.intent = vp_place_intent(vp_vq_pos(&vq), vp_vq_pos_behind(&vq, 2), 0, 0);
	vp_vq_note(&vq, u, 4, 4);
	left = line;

	assert_int_equal(vp_vq_start(&vq, &c, &e), 0);
	vq.place = &line;
	assert_int_equal(vp_place_recover(&vq, &left, NULL, 0), 0);
	assert_int_equal(vp_vq_pos(&vq), 0x8000 | 2);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(drv_get_used(&d, &id, &len));
		assert_int_equal(id, ids[i]);
	}
	assert_false(drv_get_used(&d, &id, &len));
	vp_burst_clear(&b);
	assert_int_equal(vp_vq_fetch(&vq, &b, 4), 2);
	assert_int_equal(b.chain[0].id, ids[2]);
	drv_free(&d);
	drv_mem_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_noted_behind_the_intent) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
