/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engines as records. Records that say anything are refused, or harm their queue alone. */
#include <linux/virtio_net.h>

#include "engine/copyq.h"
#include "request_rig.h"

static struct vp_virtq vq; /* the driver's queue, as it was */

/* The driver's queue is where it can be: what is given back lies in its ring. */
static void check_queue(void)
{
	assert_true(!t.rq.vq.packed || (t.rq.vq.used_idx < t.rq.vq.size && t.rq.vq.last_avail < t.rq.vq.size));
}

/* ---- for requests ------------------------------------------------------------------ */

static uint64_t account[1024], account_was[1024];

/* What a record makes runs, its device side goes, and all of it is freed. False: it is refused. */
static bool requests_go_on(const struct vp_rec_in *in)
{
	struct vp_inflight_saved saved = { 0 };
	struct vp_reqq_conf c = t.c;
	struct vp_err e = { 0 };
	struct vp_reqq *q;
	bool ok;

	t.rq.vq = vq;
	memcpy(account, account_was, sizeof(account));
	c.inflight = (struct vp_inflight){ .mem = vp_gptr_from_map(account) };
	c.saved = t.c.saved ? &saved : NULL;
	ok = !vp_reqq_restore(&q, &c, t.kick, 0, in, &e);
	if (ok) {
		for (unsigned i = 0; i < 4; i++)
			vp_reqq_run(q, t.s);
		check_queue();
		vp_reqq_end(q, true, NULL);
		vp_reqq_free(q);
		check_queue();
	}
	vp_inflight_saved_free(&saved);
	return ok;
}

/* Each byte of a record in turn is another one. */
static void any_byte(struct vp_rec *r, bool (*goes_on)(const struct vp_rec_in *in))
{
	const struct vp_rec_in in = { .p = r->p, .n = r->n };

	assert_false(r->failed);
	vq = t.rq.vq;
	assert_true(goes_on(&in));
	for (size_t at = 0; at < r->n; at++) {
		const uint8_t was = r->p[at], put[] = { 0, 1, 0x7f, 0xff, was ^ 1, was ^ 0x80 };

		for (unsigned k = 0; k < VP_ARRAY_SIZE(put); k++) {
			r->p[at] = put[k];
			goes_on(&in);
		}
		r->p[at] = was;
	}
	assert_true(goes_on(&in));
	vp_rec_free(r);
	t.rq.vq = vq;
}

static void requests(uint64_t drv, uint64_t dev, bool accounts)
{
	struct vp_inflight_saved saved = { 0 };
	struct vp_rec r = { 0 };

	memset(account, 0, sizeof(account));
	setup(16, F_VERSION_1 | drv, F_VERSION_1 | dev, 256 << 10);
	if (accounts) {
		vp_reqq_free(t.q);
		assert_int_equal(vp_inflight_open(&t.c.inflight, &saved, vp_gptr_from_map(account), &t.rq.vq), 0);
		make_queue(&saved);
	}
	serve();
	n_holds = 0;
	for (unsigned i = 0; i < 5; i++)
		assert_true(ask(i, 1, i % 3, 300, false) >= 0);
	run();
	assert_int_equal(device_takes(NULL, 3), 3);
	device_returns(1, 16, 16);
	/* One without a byte came back as soon as it was taken. */
	assert_true(ask(5, 1, 0, 0, false) >= 0);
	assert_int_equal(answers(), 0);
	assert_int_equal(vp_reqq_run(t.q, t.s), 2);
	vp_reqq_save(t.q, &r);
	memcpy(account_was, account, sizeof(account));
	any_byte(&r, requests_go_on);
	teardown();
	vp_inflight_saved_free(&saved);
}

static void test_requests(void **state)
{
	for (unsigned i = 0; i < 8; i++)
		requests(i & 1 ? F_PACKED : 0, i & 2 ? F_PACKED : 0, i & 4);
}

/* ---- for packets ------------------------------------------------------------------- */

static struct vp_copyq_conf copy;
static vp_gptr head; /* of the packet that is back, all of whose buffers are there when its record goes on */

static bool packets_go_on(const struct vp_rec_in *in)
{
	struct vp_err e = { 0 };
	struct vp_copyq *b;

	t.rq.vq = vq;
	if (!vp_gptr_is_null(head))
		vp_st16(head, 10, 2);
	if (vp_copyq_restore(&b, &copy, in, &e))
		return false;
	for (unsigned i = 0; i < 4; i++)
		vp_copyq_run(b, t.s);
	check_queue();
	vp_copyq_stop(b, true);
	vp_copyq_free(b);
	check_queue();
	return true;
}

static void packets(uint64_t drv, uint64_t dev, bool early)
{
	struct vp_vq_conf vc;
	struct vp_copyq *b;
	struct vp_rec r = { 0 };
	struct vp_err e = { 0 };

	head = VP_GPTR_NULL;
	setup(16, F_VERSION_1 | drv, 0, 64 << 10);
	t.rq.features |= VP_BIT(VIRTIO_NET_F_MRG_RXBUF);
	copy = (struct vp_copyq_conf){ .rq = &t.rq, .features = F_VERSION_1 | dev, .pool = t.c.pool,
				       .pool_addr = t.c.pool_addr, .ring = t.c.ring, .data = t.c.data, .early = early,
				       .kick_fd = t.kick };
	assert_int_equal(vp_copyq_new(&b, &copy, &e), 0);
	vc = (struct vp_vq_conf){ .size = b->shadow.size, .base = vp_copyq_base(b), .features = copy.features,
				  .desc = b->desc_addr, .driver = b->avail_addr, .device = b->used_addr,
				  .tab = t.pool.tab };
	assert_int_equal(vp_vq_start(&t.dev, &vc, &e), 0);
	for (unsigned i = 0; i < 5; i++)
		assert_true(ask(i, early ? 1 + i % 2 : 0, early ? 0 : 1 + i % 2, 200, false) >= 0);
	vp_copyq_run(b, t.s);
	assert_int_equal(vp_vq_fetch(&t.dev, &t.burst, 2), 2);
	for (unsigned i = 0; i < 2; i++) {
		const struct vp_chain *c = &t.burst.chain[i];

		/* The first of four that are one packet: what is back waits for the others. */
		if (c->nin && !i)
			head = t.burst.seg[c->seg].p;
		if (c->nin)
			vp_st16(t.burst.seg[c->seg].p, 10, 4);
		vp_vq_complete(&t.dev, &(struct vp_used){ .id = c->id, .slots = c->slots, .len = c->in_len }, 1);
	}
	vp_copyq_run(b, t.s);
	vp_copyq_save(b, &r);
	any_byte(&r, packets_go_on);
	vp_copyq_stop(b, true);
	vp_copyq_free(b);
	teardown();
}

static void test_packets(void **state)
{
	for (unsigned i = 0; i < 8; i++)
		packets(i & 1 ? F_PACKED : 0, i & 2 ? F_PACKED : 0, i & 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_packets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
