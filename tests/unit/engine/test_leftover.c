/* SPDX-License-Identifier: BSD-3-Clause */
/* What a back-end that has gone left in a split ring: which requests they are, and that they fail. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/util.h"
#include "engine/leftover.h"
#include "rig.h"

#define SIZE  16u
#define PLACE 0x1000u /* of each request: header, and 64 bytes further the answer */

static struct {
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq, gone; /* ours, and the back-end's */
	struct vp_burst b;
} t;

static void start(struct vp_virtq *vq, uint32_t base)
{
	struct vp_vq_conf c = drv_conf(&t.d, base);
	struct vp_err e = { 0 };

	c.long_chains = true;
	RIG_MUST(!vp_vq_start(vq, &c, &e));
}

static void begin(uint64_t features)
{
	t.b.slow = true;
	drv_mem_init(&t.m, 4 << 20, NULL, 0);
	drv_init(&t.d, &t.m, SIZE, F_VERSION_1 | features, 0);
	start(&t.gone, t.d.packed ? 0x80008000u : 0);
}

static void end(void)
{
	drv_free(&t.d);
	drv_mem_free(&t.m);
}

static uint64_t place(int id)
{
	return 0x10000 + PLACE * (uint64_t)id;
}

/* A FUSE request with room for an answer of so many bytes; 0: it wants none. Its header has the number 1000 + id. */
static int ask(uint32_t header, uint32_t answer)
{
	struct drv_buf b[2] = { { 0, header, false }, { 0, answer, true } };
	int id = t.d.free_head;

	b[0].addr = place(id);
	b[1].addr = b[0].addr + 64;
	memset(drv_ptr(&t.m, b[0].addr), 0xee, 128);
	drv_put64(&t.m, b[0].addr + 8, 1000 + (uint64_t)id);
	RIG_MUST(drv_add(&t.d, b, answer ? 2 : 1, 0) == id);
	drv_publish(&t.d);
	return id;
}

/* The back-end returns the i-th of those that it fetches now, and none before it. */
static void give(unsigned i)
{
	struct vp_used u;
	unsigned n = vp_vq_fetch(&t.gone, &t.b, i + 1);

	assert_int_equal(n, i + 1);
	u = (struct vp_used){ .id = t.b.chain[i].id, .slots = t.b.chain[i].slots };
	vp_vq_complete(&t.gone, &u, 1);
}

static void next(void)
{
	give(0);
	vp_vq_advance(&t.gone, &t.b, 1);
}

static void reap(void)
{
	uint16_t id;
	uint32_t len;

	while (drv_get_used(&t.d, &id, &len))
		;
}

static void failed(int id, uint32_t answer)
{
	const uint8_t *h = drv_ptr(&t.m, place(id) + 64);
	uint64_t unique = 1000 + (uint64_t)id;
	uint32_t len, want = answer >= 16 ? 16 : 0;
	int32_t error;
	uint16_t got;

	assert_true(drv_get_used(&t.d, &got, &len));
	assert_int_equal(got, id);
	assert_int_equal(len, want);
	if (!want) {
		assert_int_equal(h[0], 0xee);
		return;
	}
	memcpy(&len, h, 4);
	memcpy(&error, h + 4, 4);
	assert_int_equal(len, 16);
	assert_int_equal(error, -EIO);
	assert_memory_equal(h + 8, &unique, 8);
	assert_int_equal(h[16], 0xee);
}

/* At every place of the ring, with every number of them; the ids are the same ones again and again. */
static void test_in_order(void **state)
{
	static const uint32_t rooms[] = { 16, 0, 64, 15 };

	for (unsigned before = 0; before < 3 * SIZE; before++) {
		for (unsigned open = 0; open <= SIZE / 2; open++) {
			int id[SIZE];

			begin(before & 1 ? F_EVENT_IDX : 0);
			for (unsigned i = 0; i < before; i++) {
				ask(40, 16);
				next();
				reap();
			}
			for (unsigned i = 0; i < open; i++)
				id[i] = ask(40, rooms[i % 4]);
			start(&t.vq, before);
			assert_int_equal(vp_leftover_count(&t.vq), open);
			assert_int_equal(vp_leftover_fail(&t.vq, open, &t.b), open > 0);
			for (unsigned i = 0; i < open; i++)
				failed(id[i], rooms[i % 4]);
			assert_int_equal(vp_vq_base(&t.vq), before + open);
			assert_int_equal(vp_leftover_count(&t.vq), 0);
			end();
		}
	}
}

/* A header that is too short to have a number. */
static void test_short_header(void **state)
{
	uint16_t id;
	uint32_t len;

	begin(0);
	ask(15, 64);
	start(&t.vq, 0);
	assert_true(vp_leftover_fail(&t.vq, 1, &t.b));
	assert_true(drv_get_used(&t.d, &id, &len));
	assert_int_equal(len, 0);
	end();
}

/* The oldest is still open, a later one was returned: nobody knows which the others are. */
static void test_out_of_order(void **state)
{
	begin(0);
	for (unsigned i = 0; i < 5; i++)
		ask(40, 16);
	give(2);
	start(&t.vq, 1);
	assert_int_equal(vp_leftover_count(&t.vq), -ENODATA);
	end();
}

/* Not more of them fail than the back-end may have had: the rest is for the next one. */
static void test_later_ones_stay(void **state)
{
	begin(0);
	for (unsigned i = 0; i < 3; i++)
		ask(40, 16);
	start(&t.vq, 0);
	assert_int_equal(vp_leftover_count(&t.vq), 3);
	ask(40, 16);
	assert_true(vp_leftover_fail(&t.vq, 3, &t.b));
	assert_int_equal(vp_vq_base(&t.vq), 3);
	assert_int_equal(vp_vq_fetch(&t.vq, &t.b, 8), 1);
	end();
}

static void test_packed(void **state)
{
	begin(F_PACKED);
	start(&t.vq, 0x80008000u);
	assert_int_equal(vp_leftover_count(&t.vq), -ENODATA);
	end();
}

/* Indices further apart than the ring is long, and a head outside it. */
static void test_nonsense(void **state)
{
	begin(0);
	start(&t.vq, 0);
	drv_set_avail_idx(&t.d, SIZE + 1);
	assert_int_equal(vp_leftover_count(&t.vq), -ENODATA);
	drv_set_avail(&t.d, 0, SIZE);
	assert_int_equal(vp_leftover_count(&t.vq), 1);
	assert_false(vp_leftover_fail(&t.vq, 1, &t.b));
	assert_int_equal(t.vq.broken, VP_VQ_BAD_DESC);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_order),	cmocka_unit_test(test_short_header),
		cmocka_unit_test(test_out_of_order),	cmocka_unit_test(test_later_ones_stay),
		cmocka_unit_test(test_packed),		cmocka_unit_test(test_nonsense),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
