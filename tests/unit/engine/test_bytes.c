/* SPDX-License-Identifier: BSD-3-Clause */
/* BitsPerSecond=: what is delivered is owed, and nothing passes while something is owed. The clock is a number here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>

#include "engine/queue.h"

#define HZ UINT64_C(2000000000)

/* Bytes that pass in `s` seconds when `size` at a time are there always, looked at every `us`. */
static uint64_t passed(uint64_t rate, uint64_t size, unsigned n, uint64_t start, unsigned s, unsigned us)
{
	struct vp_queue q = { .bytes.rate = rate };
	uint64_t sum = 0;

	for (uint64_t t = 0; t < s * HZ; t += HZ / 1000000 * us) {
		unsigned k = vp_queue_allow(&q, start + t, HZ, n);

		assert_true(k == 0 || k == n);
		assert_int_equal(k == 0, vp_queue_owes(&q, start + t, HZ));
		vp_queue_spend(&q, start + t, HZ, k * size);
		sum += k * size;
	}
	return sum;
}

static void holds(void **state)
{
	static const struct { uint64_t rate, size; unsigned n, us; } c[] = {
		{ 1000, 60, 1, 1000 },                  /* 8 kbit/s */
		{ 125000, 1500, 32, 100 },              /* 1 Mbit/s */
		{ 125000, 65536, 1, 100 },              /* in large segments */
		{ 125000000, 65536, 16, 10 },           /* 1 Gbit/s */
		{ 12500000000, 65536, 32, 1 },          /* 100 Gbit/s */
		{ 125000000000, 65536, 64, 1 },         /* 1 Tbit/s */
	};
	static const uint64_t starts[] = { 1, HZ, (UINT64_C(1) << 48) - HZ, UINT64_MAX - HZ };

	for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++)
		for (unsigned k = 0; k < 4; k++) {
			unsigned s = c[i].us == 1 ? 1 : 4;
			uint64_t sum = passed(c[i].rate, c[i].size, c[i].n, starts[k], s, c[i].us);
			uint64_t most = c[i].rate * s + c[i].rate / 100 + 65536 + c[i].n * c[i].size;

			if (sum > most)
				fail_msg("case %u from %llu: %llu of %llu", i, (unsigned long long)starts[k],
					 (unsigned long long)sum, (unsigned long long)most);
			if (c[i].rate < 100000000000) /* more than is offered here */
				assert_true(sum >= c[i].rate * s - c[i].rate * s / 50 - c[i].n * c[i].size);
		}
}

/* A 64 KiB segment is paid for as its bytes, not as a packet. */
static void segment(void **state)
{
	struct vp_queue q = { .bytes.rate = 1000000 };
	uint64_t t = 10 * HZ;

	assert_int_equal(vp_queue_allow(&q, t, HZ, 32), 32);
	vp_queue_spend(&q, t, HZ, 65536);  /* comes at once after a pause */
	assert_false(vp_queue_owes(&q, t, HZ));
	vp_queue_spend(&q, t, HZ, 65536);
	assert_true(vp_queue_owes(&q, t + HZ / 1000 * 65, HZ));
	assert_int_equal(vp_queue_allow(&q, t + HZ / 1000 * 65, HZ, 32), 0);
	assert_false(vp_queue_owes(&q, t + HZ / 1000 * 66, HZ));
	assert_int_equal(vp_queue_allow(&q, t + HZ / 1000 * 66, HZ, 32), 32);
}

/* What is owed is paid in two seconds, however much it is; without a limit nothing is. */
static void bounds(void **state)
{
	struct vp_queue q = { .bytes.rate = 1000 }, free_one = { .bytes.rate = 0 };
	uint64_t t = 10 * HZ;

	vp_queue_spend(&q, t, HZ, UINT64_C(1) << 30);
	assert_true(vp_queue_owes(&q, t + HZ, HZ));
	assert_false(vp_queue_owes(&q, t + 2 * HZ + 1, HZ));
	vp_queue_spend(&free_one, t, HZ, UINT64_C(1) << 30);
	assert_false(vp_queue_owes(&free_one, t, HZ));
	assert_false(vp_queue_limited(&free_one));
	assert_true(vp_queue_limited(&q));
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(holds), cmocka_unit_test(segment),
					    cmocka_unit_test(bounds) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
