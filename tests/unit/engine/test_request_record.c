/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine for requests as a record. Records that say anything are refused, or harm their queue alone. */
#include "request_rig.h"

/* What a record makes runs, its device side goes, and all of it is freed. False: it is refused. */
static bool goes_on(const uint8_t *p, size_t n, const struct vp_virtq *vq)
{
	const struct vp_rec_in in = { .p = p, .n = n };
	struct vp_err e = { 0 };
	struct vp_reqq *q;

	t.rq.vq = *vq;
	if (vp_reqq_restore(&q, &t.c, t.kick, 0, &in, &e))
		return false;
	for (unsigned i = 0; i < 4; i++)
		vp_reqq_run(q, t.s);
	vp_reqq_end(q, true, NULL);
	vp_reqq_free(q);
	return true;
}

/* Each byte of a record in turn is another one. */
static void test_any_byte(void **state)
{
	struct vp_virtq vq;
	struct vp_rec r = { 0 };

	setup(16, F_VERSION_1, F_VERSION_1, 256 << 10);
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 5; i++)
		assert_true(ask(i, 1, i % 3, 300, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, 3), 3);
	device_returns(1, 16, 16);
	/* One without a byte came back as soon as it was taken. */
	assert_true(ask(5, 1, 0, 0, false) >= 0);
	assert_int_equal(vp_reqq_run(t.q, t.s), 2);
	vp_reqq_save(t.q, &r);
	assert_false(r.failed);
	vq = t.rq.vq;
	assert_true(goes_on(r.p, r.n, &vq));
	for (size_t at = 0; at < r.n; at++) {
		const uint8_t was = r.p[at], put[] = { 0, 1, 0x7f, 0xff, was ^ 1, was ^ 0x80 };

		for (unsigned k = 0; k < VP_ARRAY_SIZE(put); k++) {
			r.p[at] = put[k];
			goes_on(r.p, r.n, &vq);
		}
		r.p[at] = was;
	}
	assert_true(goes_on(r.p, r.n, &vq));
	vp_rec_free(&r);
	t.rq.vq = vq;
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_any_byte) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
