/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine between a driver and a device side: receive queues, the end of a run, translations, and rings that
 * lie.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "rig.h"

static struct rig r;

/* ---- receive, and the end of a run ---- */

static void post(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct drv_buf b = { RIG_DATA + (uint64_t)(r.d.packed ? r.d.slot : r.d.avail) % 64 * 0x800, 1526,
				     true };

		assert_true(drv_add(&r.d, &b, 1, 0) >= 0);
	}
	drv_publish(&r.d);
}

static void fill(unsigned n, unsigned from)
{
	unsigned k = vp_vq_fetch_dir(&r.dev, &r.burst, from + n, VP_WRITE);

	assert_int_equal(k, from + n);
	for (unsigned i = from; i < k; i++) {
		struct vp_used u = { 12 + 100, r.burst.chain[i].id, r.burst.chain[i].slots };

		vp_st16(r.burst.seg[r.burst.chain[i].seg].p, 10, 1);
		vp_vq_complete(&r.dev, &u, 1);
	}
	vp_vq_advance(&r.dev, &r.burst, k);
}

/* Buffers that the device VM had and did not use are the driver's again, from the base that is told. */
static void stop_and_resume(uint64_t drv, uint64_t dev)
{
	struct rig_conf c = { RIG_RX, 64, drv, dev, 0 };
	struct vp_virtq vq;
	struct vp_vq_conf vc;
	struct vp_err e = { 0 };
	unsigned lap;

	rig_new(&r, &c);
	for (lap = 0; lap < 40; lap++) {
		uint32_t len, n = 0;
		uint16_t id;

		post(40);
		rig_run(&r);
		assert_int_equal(vp_copyq_outstanding(r.b), 40);
		fill(7, 0);
		rig_stop(&r);
		while (drv_get_used(&r.d, &id, &len)) {
			assert_int_equal(len, 112);
			n++;
		}
		assert_int_equal(n, 7);
		assert_true(rig_raised(r.call));
		/* A new device goes on from there and finds the other 33. */
		vc = drv_conf(&r.d, vp_vq_base(&r.rq.vq));
		assert_int_equal(vp_vq_start(&vq, &vc, &e), 0);
		for (n = 0; n < 33;) {
			unsigned k = vp_vq_fetch_dir(&vq, &r.burst, VP_BURST, VP_WRITE);

			assert_true(k);
			for (unsigned i = 0; i < k; i++) {
				struct vp_used u = { 1, r.burst.chain[i].id, r.burst.chain[i].slots };

				vp_vq_complete(&vq, &u, 1);
			}
			vp_vq_advance(&vq, &r.burst, k);
			n += k;
		}
		assert_int_equal(n, 33);
		assert_int_equal(vp_vq_fetch_dir(&vq, &r.burst, VP_BURST, VP_WRITE), 0);
		for (n = 0; drv_get_used(&r.d, &id, &len);)
			n++;
		assert_int_equal(n, 33);
		/* And the engine again, at that place. */
		{
			struct vp_copyq_conf bc = r.b->c;

			vc = drv_conf(&r.d, vp_vq_base(&vq));
			assert_int_equal(vp_vq_start(&r.rq.vq, &vc, &e), 0);
			vp_copyq_free(r.b);
			assert_int_equal(vp_copyq_new(&r.b, &bc, &e), 0);
			vc = (struct vp_vq_conf){
				.size = r.b->shadow.size, .base = vp_copyq_base(r.b), .features = dev,
				.desc = r.b->desc_addr, .driver = r.b->avail_addr, .device = r.b->used_addr,
				.tab = r.pool.tab,
			};
			assert_int_equal(vp_vq_start(&r.dev, &vc, &e), 0);
		}
	}
	rig_free(&r);
}

static void test_stop_and_resume(void **state)
{
	rig_each(stop_and_resume);
}

/* Completed out of order: what is left cannot be told by an index, and is completed empty. */
static void test_stop_with_holes(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		uint64_t drv = F_VERSION_1 | (f ? F_PACKED : 0);
		struct rig_conf c = { RIG_RX, 64, drv, F_VERSION_1, 0 };
		unsigned n = 0, empty = 0;
		uint32_t len;
		uint16_t id;

		rig_new(&r, &c);
		post(10);
		rig_run(&r);
		fill(2, 3);
		rig_stop(&r);
		while (drv_get_used(&r.d, &id, &len)) {
			n++;
			empty += !len;
		}
		assert_int_equal(n, 10);
		assert_int_equal(empty, 8);
		assert_int_equal(vp_vq_base(&r.rq.vq), f ? 0x800a800a : 10);
		rig_free(&r);
	}
	/* A driver that wants order has seen nothing of them yet. */
	for (unsigned f = 0; f < 2; f++) {
		uint64_t drv = F_VERSION_1 | F_IN_ORDER | (f ? F_PACKED : 0);
		struct rig_conf c = { RIG_RX, 64, drv, F_VERSION_1, 0 };
		uint32_t len;
		uint16_t id;

		rig_new(&r, &c);
		post(10);
		rig_run(&r);
		fill(2, 3);
		rig_stop(&r);
		assert_false(drv_get_used(&r.d, &id, &len));
		assert_int_equal(vp_vq_base(&r.rq.vq), f ? 0x80008000 : 0);
		rig_free(&r);
	}
}

/* A packet in several buffers becomes visible as a whole, however slowly the device side gives them back. */
static void test_merged_packets_are_whole(void **state)
{
	for (unsigned f = 0; f < 4; f++) {
		uint64_t drv = F_VERSION_1 | VP_BIT(15) | (f & 1 ? F_PACKED : 0) | (f & 2 ? F_IN_ORDER : 0);
		struct rig_conf c = { RIG_RX, 64, drv, F_VERSION_1, 0 };
		unsigned i, n;
		uint32_t len;
		uint16_t id;

		rig_new(&r, &c);
		post(20);
		rig_run(&r);
		n = vp_vq_fetch_dir(&r.dev, &r.burst, 20, VP_WRITE);
		assert_int_equal(n, 20);
		for (i = 0; i < 12; i++) {
			struct vp_used u = { 1000, r.burst.chain[i].id, r.burst.chain[i].slots };

			/* one alone, ten that belong together, one alone */
			vp_st16(r.burst.seg[r.burst.chain[i].seg].p, 10, i == 1 ? 10 : 1);
			vp_vq_complete(&r.dev, &u, 1);
			rig_run(&r);
			for (n = 0; drv_get_used(&r.d, &id, &len);)
				n++;
			assert_int_equal(n, i == 0 || i == 11 ? 1 : i == 10 ? 10 : 0);
		}
		assert_int_equal(r.rq.stats.packets, 3);
		assert_int_equal(r.rq.stats.bytes, 12 * 1000 - 3 * 12);
		/* An unfinished one at the end of the run never was: its buffer is the driver's again. */
		{
			struct vp_used u = { 1000, r.burst.chain[12].id, r.burst.chain[12].slots };

			vp_st16(r.burst.seg[r.burst.chain[12].seg].p, 10, 5);
			vp_vq_complete(&r.dev, &u, 1);
		}
		rig_stop(&r);
		assert_false(drv_get_used(&r.d, &id, &len));
		assert_int_equal(vp_vq_base(&r.rq.vq), f & 1 ? 0x800c800c : 12);
		rig_free(&r);
	}
}

/* A header that fills the first buffer, which is in pieces: nothing of the packet is left for it. */
static void test_header_fills_a_buffer(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1 | VP_BIT(15), F_VERSION_1, 0 };
	struct drv_buf b[2] = { { RIG_DATA + 100, 4, true }, { RIG_DATA + 0x1000, 8, true } };
	static const uint32_t lens[] = { 12, 112 };
	uint32_t len;
	uint16_t id;

	rig_new(&r, &c);
	assert_true(drv_add(&r.d, b, 2, 0) >= 0);
	post(1);
	rig_run(&r);
	assert_int_equal(vp_vq_fetch_dir(&r.dev, &r.burst, 2, VP_WRITE), 2);
	vp_st16(r.burst.seg[r.burst.chain[0].seg].p, 10, 2);
	for (unsigned i = 0; i < 2; i++)
		vp_vq_complete(&r.dev, &(struct vp_used){ lens[i], r.burst.chain[i].id, r.burst.chain[i].slots }, 1);
	rig_run(&r);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(drv_get_used(&r.d, &id, &len));
		assert_int_equal(len, lens[i]);
	}
	assert_int_equal(*drv_ptr(&r.m, RIG_DATA + 0x1000 + 6), 2);
	assert_false(r.rq.vq.broken || r.b->shadow.broken);
	rig_free(&r);
}

/* Packets are counted, not their buffers, and each once, though it may take several runs to come in. */
static void test_rate_counts_packets(void **state)
{
	struct rig_conf c = { RIG_RX, 256, F_VERSION_1 | VP_BIT(15), F_VERSION_1, 0 };
	uint32_t len;
	uint16_t id;
	unsigned n;

	rig_new(&r, &c);
	r.rq.own.rate = 1; /* a burst of 64, then one a second */
	post(200);
	rig_run(&r);
	rig_run(&r);
	assert_int_equal(vp_vq_fetch_dir(&r.dev, &r.burst, 64, VP_WRITE), 64);
	for (n = 0; n < 64; n++) {
		vp_st16(r.burst.seg[r.burst.chain[n].seg].p, 10, 4);
		vp_vq_complete(&r.dev, &(struct vp_used){ 1000, r.burst.chain[n].id, r.burst.chain[n].slots }, 1);
		rig_run(&r);
	}
	vp_vq_advance(&r.dev, &r.burst, 64);
	assert_int_equal(r.rq.stats.packets, 16);
	for (n = 0; drv_get_used(&r.d, &id, &len); n++)
		assert_int_equal(len, 1000);
	assert_int_equal(n, 64);
	fill(60, 0);
	while (rig_run(&r))
		;
	assert_in_range(r.rq.stats.packets, 64, 66);
	assert_true(vp_copyq_held(r.b));
	rig_free(&r);
}

static void test_closed_takes_nothing(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	uint32_t len;
	uint16_t id;

	rig_new(&r, &c);
	post(5);
	rig_run(&r);
	vp_copyq_set_open(r.b, false);
	post(5);
	rig_run(&r);
	assert_int_equal(vp_copyq_outstanding(r.b), 5);
	fill(5, 0);
	rig_run(&r);
	for (unsigned i = 0; i < 5; i++)
		assert_true(drv_get_used(&r.d, &id, &len));
	assert_int_equal(vp_copyq_outstanding(r.b), 0);
	rig_free(&r);
}

/* ---- a vIOMMU that has no translation when the buffer comes back ---- */

static bool iommu_miss;
static int translate(struct vp_iommu *i, uint64_t iova, uint64_t len, enum vp_access acc, struct vp_window *w)
{
	if (iommu_miss && iova >= RIG_DATA)
		return -EAGAIN;
	w->start = iova & ~UINT64_C(4095); /* pages */
	w->size = 4096;
	w->host = vp_gptr_add(r.m.tab->r[0].host, w->start);
	return 0;
}

/* Ten buffers that go to the device VM while all is mapped. */
static void post_behind(struct vp_iommu *io)
{
	post(10);
	iommu_miss = false;
	vp_xlate_init(&r.rq.vq.xl, r.m.tab, io);
	rig_run(&r);
}

static void test_iommu_miss_waits(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
		struct vp_iommu io = { .translate = translate };
		unsigned n;
		uint32_t len;
		uint16_t id;

		rig_new(&r, &c);
		post_behind(&io);
		assert_int_equal(vp_copyq_outstanding(r.b), 10);
		iommu_miss = true;
		vp_xlate_flush(&r.rq.vq.xl);
		fill(4, 0);
		rig_run(&r);
		assert_true(r.b->again);
		assert_false(drv_get_used(&r.d, &id, &len));
		assert_true(r.b->stalled);
		assert_false(vp_copyq_arm(r.b)); /* the answer wakes its owner */
		if (f) {
			/* Stopped meanwhile: as if it had never been used. */
			rig_stop(&r);
			assert_int_equal(vp_vq_base(&r.rq.vq), 0);
		} else {
			iommu_miss = false;
			rig_run(&r);
			for (n = 0; drv_get_used(&r.d, &id, &len); n++)
				assert_int_equal(len, 112);
			assert_int_equal(n, 4);
		}
		assert_false(r.rq.vq.broken);
		rig_free(&r);
	}
}

/* The end of a run uses nothing that it remembers from before an invalidation, which has been acknowledged by then. */
static void test_stop_after_an_invalidation(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	struct vp_iommu io = { .translate = translate };
	uint32_t len;
	uint16_t id;

	rig_new(&r, &c);
	post_behind(&io);
	fill(1, 0);
	rig_run(&r);
	assert_true(drv_get_used(&r.d, &id, &len));
	fill(1, 0); /* in the same page */
	iommu_miss = true;
	io.generation++;
	memset(drv_ptr(&r.m, RIG_DATA), 0xee, 0x1000);
	assert_false(vp_copyq_stop(r.b, true));
	for (unsigned i = 0; i < 0x1000; i++)
		assert_int_equal(*drv_ptr(&r.m, RIG_DATA + i), 0xee);
	assert_int_equal(vp_vq_base(&r.rq.vq), 1);
	rig_free(&r);
}

/* Memory that was taken away meanwhile: the driver's fault, its queue breaks, nothing is written. */
static int translate_gone(struct vp_iommu *i, uint64_t iova, uint64_t len, enum vp_access acc, struct vp_window *w)
{
	return -EFAULT;
}

static void test_memory_gone(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	struct vp_iommu io = { .translate = translate_gone };

	rig_new(&r, &c);
	post(10);
	rig_run(&r);
	vp_xlate_init(&r.rq.vq.xl, r.m.tab, &io);
	fill(1, 0);
	rig_run(&r);
	assert_int_equal(r.rq.vq.broken, VP_VQ_BAD_ADDR);
	for (unsigned i = 0; i < 0x800; i++)
		assert_int_equal(*drv_ptr(&r.m, RIG_DATA + i), 0);
	rig_stop(&r);
	rig_free(&r);
}

static void test_dirty_log(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	struct drv_mem lm;
	struct vp_dirty_log log = { .pages = 4096 * 8 };

	rig_new(&r, &c);
	drv_mem_init(&lm, 4096, NULL, 0);
	log.map = lm.tab->r[0].map;
	vp_vq_set_log(&r.rq.vq, &log, false, 0);
	post(10);
	rig_run(&r);
	fill(1, 0);
	rig_run(&r);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(lm.p[i], i == (RIG_DATA >> 12) / 8 ? 1 << ((RIG_DATA >> 12) % 8) : 0);
	vp_vq_set_log(&r.rq.vq, NULL, false, 0);
	drv_mem_free(&lm);
	rig_free(&r);
}

/* ---- a device VM that lies ---- */

static void test_bad_used_breaks_the_shadow_only(void **state)
{
	for (unsigned f = 0; f < 2; f++) {
		struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1 | (f ? F_PACKED : 0), 0 };
		struct vp_used u = { 100, 63, 1 };
		uint32_t len;
		uint16_t id;

		rig_new(&r, &c);
		post(10);
		rig_run(&r);
		vp_vq_complete(&r.dev, &u, 1);
		assert_int_equal(rig_run(&r), 0);
		assert_true(r.b->shadow.broken);
		assert_false(r.rq.vq.broken);
		assert_false(vp_copyq_arm(r.b));
		assert_false(drv_get_used(&r.d, &id, &len));
		rig_stop(&r);
		assert_int_equal(vp_vq_base(&r.rq.vq), 0); /* the driver's buffers are all there */
		rig_free(&r);
	}
}

/* Rings larger than a shadow, and of sizes that a split shadow cannot have. */
static void test_other_sizes(void **state)
{
	static const struct {
		uint16_t size; uint64_t drv, dev; uint16_t want;
	} t[] = {
		{ 4096, 0, 0, 1024 },	  { 4096, 0, F_PACKED, 1024 },
		{ 100, F_PACKED, 0, 64 }, { 100, F_PACKED, F_PACKED, 100 },
		{ 1, 0, 0, 1 },		  { 32768, F_PACKED, F_PACKED, 1024 },
	};

	for (unsigned i = 0; i < VP_ARRAY_SIZE(t); i++) {
		struct rig_conf c = { RIG_RX, t[i].size, t[i].drv | F_VERSION_1, t[i].dev | F_VERSION_1, 0 };

		rig_new(&r, &c);
		assert_int_equal(r.b->shadow.size, t[i].want);
		post(1);
		rig_run(&r);
		fill(1, 0);
		rig_run(&r);
		assert_int_equal(r.rq.stats.packets, 1);
		assert_int_equal(r.rq.stats.bytes, 100);
		rig_free(&r);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_other_sizes), cmocka_unit_test(test_rate_counts_packets),
		cmocka_unit_test(test_header_fills_a_buffer), cmocka_unit_test(test_stop_and_resume),
		cmocka_unit_test(test_stop_with_holes), cmocka_unit_test(test_merged_packets_are_whole),
		cmocka_unit_test(test_closed_takes_nothing), cmocka_unit_test(test_iommu_miss_waits),
		cmocka_unit_test(test_memory_gone), cmocka_unit_test(test_stop_after_an_invalidation),
		cmocka_unit_test(test_dirty_log), cmocka_unit_test(test_bad_used_breaks_the_shadow_only),
	};

	return cmocka_run_group_tests_name("copyq-rx", tests, NULL, NULL);
}
