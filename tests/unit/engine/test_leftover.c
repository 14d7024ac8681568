/* SPDX-License-Identifier: BSD-3-Clause */
/* What a back-end that has gone left in a split ring: which requests they are, and that they fail. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "base/util.h"
#include "engine/leftover.h"
#include "rig.h"

#define SIZE  16u
#define NO_ANSWER 0xdd
#define PLACE 0x1000u /* of each request: header, and 64 bytes further the answer */

static struct {
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq, gone; /* ours, and the back-end's */
	struct vp_burst b;
} t;

/* What becomes of what the back-end left. */
static int fails(void)
{
	bool call;
	int n = vp_leftover_fail(&t.vq, &t.b, &call);

	assert_int_equal(call, n > 0 && !t.vq.broken);
	return n;
}

static void start(struct vp_virtq *vq, uint32_t base)
{
	struct vp_vq_conf c = drv_conf(&t.d, base);
	struct vp_err e = { 0 };

	c.long_chains = true;
	RIG_MUST(!vp_vq_start(vq, &c, &e));
}

static uint64_t first_place = 0x10000;

static void begin_large(unsigned size, uint64_t bytes, uint64_t features)
{
	t.b.slow = true;
	drv_mem_init(&t.m, bytes, NULL, 0);
	drv_init(&t.d, &t.m, size, F_VERSION_1 | features, 0);
	start(&t.gone, t.d.packed ? 0x80008000u : 0);
}

static void begin(uint64_t features)
{
	begin_large(SIZE, 4 << 20, features);
}

static void end(void)
{
	drv_free(&t.d);
	drv_mem_free(&t.m);
}

static uint64_t place(int id)
{
	return first_place + PLACE * (uint64_t)id;
}

/* Requests are as FUSE has them, with their length, and the back-end writes answers. Else the ring alone tells. */
static bool fuse;
static uint64_t unique;

/* A FUSE request with room for an answer of so many bytes; 0: it wants none. Its header has the number 1000 + id. */
static int ask(uint32_t header, uint32_t room)
{
	struct drv_buf b[2] = { { 0, header, false }, { 0, room, true } };
	int id = t.d.free_head;

	b[0].addr = place(id);
	b[1].addr = b[0].addr + 64;
	memset(drv_ptr(&t.m, b[0].addr), 0xee, 128);
	drv_put64(&t.m, b[0].addr + 8, fuse ? ++unique : 1000 + (uint64_t)id);
	if (fuse)
		memcpy(drv_ptr(&t.m, b[0].addr), &header, 4);
	if (!room)
		*(uint8_t *)drv_ptr(&t.m, b[1].addr + 16) = NO_ANSWER;
	RIG_MUST(drv_add(&t.d, b, room ? 2 : 1, 0) == id);
	drv_publish(&t.d);
	return id;
}

static void reap(void)
{
	uint16_t id;
	uint32_t len;

	while (drv_get_used(&t.d, &id, &len))
		;
}

/* What a back-end writes. */
static void answer(int id)
{
	uint8_t *h = drv_ptr(&t.m, place(id) + 64);
	const uint32_t len = 16;

	if (h[16] == NO_ANSWER)
		return;
	memcpy(h, &len, 4);
	memset(h + 4, 0, 4);
	memcpy(h + 8, drv_ptr(&t.m, place(id) + 8), 8);
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

/* It answers and returns this one, whatever its turn, and the driver takes it. */
static void serve(int id)
{
	struct vp_used u = { .id = (uint16_t)id, .len = 16, .slots = 1 };

	answer(id);
	vp_vq_complete(&t.gone, &u, 1);
	reap();
}

static void next(void)
{
	give(0);
	vp_vq_advance(&t.gone, &t.b, 1);
}

static void failed(int id, uint32_t room)
{
	const uint8_t *h = drv_ptr(&t.m, place(id) + 64);
	uint32_t len, want = room >= 16 ? 16 : 0;
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
	assert_memory_equal(h + 8, drv_ptr(&t.m, place(id) + 8), 8);
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
			assert_int_equal(fails(), open);
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
	assert_int_equal(fails(), 1);
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
	assert_int_equal(fails(), -ENODATA);
	end();
}

/* What comes when they have failed is for the next one. */
static void test_later_ones_stay(void **state)
{
	begin(0);
	for (unsigned i = 0; i < 3; i++)
		ask(40, 16);
	start(&t.vq, 0);
	assert_int_equal(vp_leftover_count(&t.vq), 3);
	assert_int_equal(fails(), 3);
	assert_int_equal(vp_vq_base(&t.vq), 3);
	ask(40, 16);
	assert_int_equal(vp_vq_fetch(&t.vq, &t.b, 8), 1);
	end();
}

/* ---- FUSE requests, served in any order --------------------------------------------------------------------- */

/* At every place of the ring: of five requests the back-end has returned those in the mask. */
static void test_fuse_out_of_order(void **state)
{
	fuse = true;
	for (unsigned before = 0; before < 3 * SIZE; before++) {
		for (unsigned mask = 0; mask < 32; mask++) {
			unsigned left = 5;
			int id[5];

			begin(0);
			for (unsigned i = 0; i < before; i++) {
				serve(ask(40, 16));
			}
			for (unsigned i = 0; i < 5; i++)
				id[i] = ask(40, i == 3 ? 64 : 16);
			for (unsigned i = 0; i < 5; i++) {
				if (!(mask >> i & 1))
					continue;
				serve(id[i]);
				left--;
			}
			start(&t.vq, before + 5 - left);
			assert_int_equal(fails(), left);
			for (unsigned i = 0; i < 5; i++)
				if (!(mask >> i & 1))
					failed(id[i], 64);
			assert_int_equal(vp_vq_base(&t.vq), before + 5);
			assert_int_equal(t.vq.used_idx, before + 5);
			end();
		}
	}
}

/* One that waits while so many others pass that it does not show any more: on ids that are used again at once. */
static void test_fuse_one_waits(void **state)
{
	fuse = true;
	for (unsigned others = 0; others < 4 * SIZE; others++) {
		int id;

		begin(0);
		id = ask(40, 16);
		for (unsigned i = 0; i < others; i++)
			serve(ask(40, 16));
		start(&t.vq, others);
		assert_int_equal(fails(), 1);
		failed(id, 16);
		end();
	}
}

/* The largest ring, whose every request is served out of turn, and all of which are open in the end. */
static void test_fuse_large_ring(void **state)
{
	enum { LARGE = 32768, OPEN = 1000 };
	int id[OPEN];

	fuse = true;
	first_place = 4 << 20;
	begin_large(LARGE, first_place + LARGE * (uint64_t)PLACE, 0);
	for (unsigned i = 0; i < LARGE + 100; i += 2) {
		int one = ask(40, 16), other = ask(40, 16);

		serve(other);
		serve(one);
	}
	for (unsigned i = 0; i < OPEN; i++)
		id[i] = ask(40, 16);
	serve(id[OPEN - 1]);
	start(&t.vq, (uint16_t)(LARGE + 100 + 1));
	assert_int_equal(fails(), OPEN - 1);
	for (unsigned i = 0; i < OPEN - 1; i++)
		failed(id[i], 16);
	end();
	first_place = 0x10000;
}

/* It has written the answer and was gone before it returned the request. */
static void test_fuse_answered(void **state)
{
	int id[3];

	fuse = true;
	begin(0);
	for (unsigned i = 0; i < 3; i++)
		id[i] = ask(40, 16);
	serve(id[1]);
	answer(id[2]);
	start(&t.vq, 1);
	assert_int_equal(fails(), 2);
	failed(id[0], 16);
	failed(id[2], 16);
	end();
}

/* Requests that want no answer: what the ring shows tells. */
static void test_fuse_forget(void **state)
{
	int id[3];

	fuse = true;
	for (unsigned before = 0; before < 3 * SIZE; before++) {
		begin(0);
		for (unsigned i = 0; i < before; i++)
			serve(ask(48, 0));
		for (unsigned i = 0; i < 3; i++)
			id[i] = ask(48, 0);
		serve(id[1]);
		start(&t.vq, before + 1);
		assert_int_equal(fails(), 2);
		failed(id[0], 0);
		failed(id[2], 0);
		end();
	}
}

/* What has been returned is the driver's: not a byte of it is written, whatever its memory looks like by now. */
static void test_fuse_returned_ones_stay(void **state)
{
	int old, id;

	fuse = true;
	begin(0);
	old = ask(40, 16);
	id = ask(40, 16);
	serve(old);
	/* As if it was never answered. */
	memset(drv_ptr(&t.m, place(old) + 64), 0x77, 16);
	start(&t.vq, 1);
	assert_int_equal(fails(), 1);
	failed(id, 16);
	assert_int_equal(*(uint8_t *)drv_ptr(&t.m, place(old) + 64), 0x77);
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
	assert_int_equal(fails(), 1);
	assert_int_equal(t.vq.broken, VP_VQ_BAD_DESC);
	end();
}

/* Each head of a large ring begins a chain that is too long: the search sees all of them fail, and gives up in time. */
static void test_fuse_long_chains(void **state)
{
	enum { LARGE = 32768 };
	struct timespec from, to;

	fuse = true;
	begin_large(LARGE, 8 << 20, 0);
	for (unsigned i = 0; i < LARGE; i++)
		drv_set_desc(&t.d, i, first_place, 1, VRING_DESC_F_NEXT, (uint16_t)((i + 1) % LARGE));
	drv_set_avail_idx(&t.d, 2);
	start(&t.vq, 0);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
	fails();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
	assert_int_equal(t.vq.broken, VP_VQ_TOO_LONG);
	/* Without an end to it some seconds. */
	assert_true((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 < 1000);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_order),	cmocka_unit_test(test_short_header),
		cmocka_unit_test(test_out_of_order),	cmocka_unit_test(test_later_ones_stay),
		cmocka_unit_test(test_packed),		cmocka_unit_test(test_nonsense),
		cmocka_unit_test(test_fuse_out_of_order), cmocka_unit_test(test_fuse_one_waits),
		cmocka_unit_test(test_fuse_large_ring),
		cmocka_unit_test(test_fuse_answered),	cmocka_unit_test(test_fuse_forget),
		cmocka_unit_test(test_fuse_returned_ones_stay),
		cmocka_unit_test(test_fuse_long_chains),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
