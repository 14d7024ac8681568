/* SPDX-License-Identifier: BSD-3-Clause */
/* The ring of a capture: what is written is read, in order and whole; what finds no room is counted. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/capring.h"

#define SIZE VP_CAPRING_MIN

struct rig {
	uint8_t *mem;
	struct vp_capring_writer w;
	struct vp_capring_reader r;
};

static int setup(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));

	g->mem = aligned_alloc(4096, VP_CAPRING_PAGE + SIZE);
	memset(g->mem, 0, VP_CAPRING_PAGE + SIZE);
	vp_capring_init(&g->w, g->mem, SIZE);
	vp_capring_open(&g->r, g->mem, SIZE);
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;

	free(g->mem);
	free(g);
	return 0;
}

/* A record of n bytes that says which one it is. */
static bool put(struct vp_capring_writer *w, uint32_t i, uint32_t n)
{
	uint8_t *p = vp_capring_add(w, VP_CAP_PACKET, n, i);

	if (p)
		memset(p + sizeof(struct vp_cap_rec), (int)(i & 0xff), n - sizeof(struct vp_cap_rec));
	vp_capring_publish(w);
	return p != NULL;
}

/* The next record is number i, of n bytes. */
static void want(struct vp_capring_reader *r, uint32_t i, uint32_t n, uint32_t lost)
{
	const struct vp_cap_rec *rec;
	const uint8_t *b;

	vp_capring_look(r);
	rec = vp_capring_first(r);
	assert_non_null(rec);
	assert_int_equal(rec->ns, i);
	assert_int_equal(rec->lost, lost);
	assert_true(rec->bytes >= n && rec->bytes < n + 8);
	b = (const uint8_t *)rec;
	for (uint32_t k = sizeof(*rec); k < n; k++)
		assert_int_equal(b[k], i & 0xff);
	vp_capring_next(r);
}

/* Of every size, many times around. */
static void test_around(void **state)
{
	struct rig *g = *state;

	for (uint32_t i = 0, n = sizeof(struct vp_cap_rec); i < 20000; i++, n = n < 3000 ? n + 13 : 24) {
		assert_true(put(&g->w, i, n));
		want(&g->r, i, n, 0);
	}
	assert_false(vp_capring_look(&g->r));
	assert_null(vp_capring_first(&g->r));
}

static void test_nobody_reads(void **state)
{
	struct rig *g = *state;
	uint32_t fit = 0, i;
	uint64_t seen;

	while (put(&g->w, fit, 1000))
		fit++;
	assert_in_range(fit, SIZE / 1000 - 2, SIZE / 1000);
	for (i = 0; i < 9; i++)
		assert_false(put(&g->w, 0, 1000));
	assert_int_equal(vp_capring_dropped(&g->r, &seen), 10);
	assert_int_equal(seen, fit + 10);
	for (i = 0; i < fit; i++)
		want(&g->r, i, 1000, 0);
	/* The next one says how many are missing in front of it. */
	assert_true(put(&g->w, fit, 1000));
	assert_true(put(&g->w, fit + 1, 1000));
	want(&g->r, fit, 1000, 10);
	want(&g->r, fit + 1, 1000, 0);
}

/* One that could never be written. */
static void test_too_large(void **state)
{
	struct rig *g = *state;

	assert_null(vp_capring_add(&g->w, VP_CAP_PACKET, SIZE / 2 + 8, 0));
	assert_non_null(vp_capring_add(&g->w, VP_CAP_PACKET, SIZE / 2, 0));
}

/* A reader that writes nonsense into its part, and into all the rest: the writer stays inside. */
static void test_hostile_reader(void **state)
{
	static const uint64_t tails[] = { 1, 7, 8, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63, SIZE, 2 * SIZE,
					  12345 };
	struct rig *g = *state;
	uint8_t *guarded = aligned_alloc(4096, VP_CAPRING_PAGE + SIZE + 4096);

	memset(guarded, 0, VP_CAPRING_PAGE + SIZE);
	memset(guarded + VP_CAPRING_PAGE + SIZE, 0x5a, 4096);
	vp_capring_init(&g->w, guarded, SIZE);
	for (unsigned i = 0; i < 100000; i++) {
		struct vp_capring *ring = (struct vp_capring *)guarded;

		ring->tail = tails[i % 9] + (i % 3 ? 0 : g->w.head);
		ring->head = i * 77;
		guarded[VP_CAPRING_PAGE + i % SIZE] ^= 0xff;
		put(&g->w, i, 24 + i % 2000);
	}
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(guarded[VP_CAPRING_PAGE + SIZE + i], 0x5a);
	free(guarded);
}

/* A writer that writes nonsense: the reader ends, and reads nothing outside. */
static void test_nonsense_is_not_followed(void **state)
{
	static const uint32_t bytes[] = { 0, 4, 12, SIZE + 8, UINT32_MAX & ~7u, 1u << 31 };
	struct rig *g = *state;

	for (unsigned i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
		assert_true(put(&g->w, i, 64));
		*(uint32_t *)(g->w.data + ((g->w.head - 64) & (SIZE - 1))) = bytes[i];
		vp_capring_look(&g->r);
		assert_null(vp_capring_first(&g->r));
		assert_true(put(&g->w, i, 64));
		want(&g->r, i, 64, 0);
	}
}

#define MANY 300000u

static void *write_many(void *arg)
{
	struct rig *g = arg;

	for (uint32_t i = 0; i < MANY; i++)
		put(&g->w, i, 24 + i % 200);
	return NULL;
}

/* Two threads: no record is torn or out of order, and those that are missing are counted. */
static void test_two_threads(void **state)
{
	struct rig *g = *state;
	uint64_t got = 0, lost = 0, seen, dropped;
	int64_t last = -1;
	pthread_t t;
	bool end = false;

	assert_int_equal(pthread_create(&t, NULL, write_many, g), 0);
	while (!end) {
		const struct vp_cap_rec *rec;

		vp_capring_dropped(&g->r, &seen);
		end = seen == MANY;
		vp_capring_look(&g->r);
		while ((rec = vp_capring_first(&g->r))) {
			const uint8_t *b = (const uint8_t *)rec;

			assert_true((int64_t)rec->ns > last);
			assert_int_equal((int64_t)rec->ns - last - 1, rec->lost);
			last = (int64_t)rec->ns;
			for (uint32_t k = sizeof(*rec); k < 24 + rec->ns % 200; k++)
				assert_int_equal(b[k], rec->ns & 0xff);
			lost += rec->lost;
			got++;
			vp_capring_next(&g->r);
		}
	}
	pthread_join(t, NULL);
	vp_capring_look(&g->r);
	for (; vp_capring_first(&g->r); vp_capring_next(&g->r)) {
		lost += vp_capring_first(&g->r)->lost;
		got++;
	}
	dropped = vp_capring_dropped(&g->r, &seen);
	assert_int_equal(seen, MANY);
	assert_int_equal(got + dropped, MANY);
	assert_true(lost <= dropped);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_around, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nobody_reads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_large, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_reader, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nonsense_is_not_followed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_two_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
