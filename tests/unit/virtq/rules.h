/* SPDX-License-Identifier: BSD-3-Clause */
/* One scripted driver and the queue under test: what the tests of rules and of buffers share. */
#ifndef VP_TEST_VIRTQ_RULES_H
#define VP_TEST_VIRTQ_RULES_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"

#define MEM   (16u << 20)
#define DATA  0x100000u /* buffers, behind the rings */
#define TABLE 0x80000u  /* indirect tables */

static struct drv_mem m;
static struct drv d;
static struct vp_virtq vq;
static struct vp_burst *b;

static inline void start_on(const struct drv_region *r, unsigned n, uint16_t size, uint64_t features)
{
	struct vp_vq_conf c;

	drv_mem_init(&m, MEM, r, n);
	drv_init(&d, &m, size, features, 0x1000);
	c = drv_conf(&d, features & F_PACKED ? 0x80008000 : 0);
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	b = calloc(1, sizeof(*b));
}

static inline void start(uint16_t size, uint64_t features)
{
	start_on(NULL, 0, size, features);
}

static inline void stop(void)
{
	free(b);
	drv_free(&d);
	drv_mem_free(&m);
}

static enum vp_access hint;

/* Every test runs with both: the hint changes the speed, never the result. */
static inline unsigned fetch(unsigned max)
{
	return hint == VP_WRITE ? vp_vq_fetch_dir(&vq, b, max, VP_WRITE) : vp_vq_fetch(&vq, b, max);
}

/* What a burst must be whatever the driver wrote. */
static inline void check_burst(void)
{
	unsigned i, j;

	for (i = 0; i < b->n; i++) {
		const struct vp_chain *c = &b->chain[i];
		uint64_t out = 0, in = 0;

		assert_true(c->seg + c->nout + c->nin <= b->nseg);
		for (j = 0; j < (unsigned)c->nout + c->nin; j++) {
			assert_true(drv_seg_ok(&m, &b->seg[c->seg + j]));
			*(j < c->nout ? &out : &in) += b->seg[c->seg + j].len;
		}
		assert_int_equal(out, c->out_len);
		assert_int_equal(in, c->in_len);
	}
}

/* The queue gives `good` chains, is broken for this reason, and stays so. */
static inline void expect_broken(unsigned good, enum vp_vq_broken why)
{
	assert_int_equal(fetch(VP_BURST), good);
	check_burst();
	assert_int_equal(vq.broken, why);
	vp_vq_advance(&vq, b, good);
	assert_int_equal(fetch(VP_BURST), 0);
	assert_false(vp_vq_has_avail(&vq));
	assert_false(vp_vq_enable_kicks(&vq));
	vp_vq_break(&vq, VP_VQ_BAD_CALL);
	assert_int_equal(vq.broken, why); /* the first reason is kept */
}

static inline void one_good_split(uint16_t i)
{
	drv_set_desc(&d, i, DATA, 100, 0, 0);
}

static inline void table_desc(unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	uint8_t *p = drv_ptr(&m, TABLE + 16ull * i);
	uint64_t w = d.packed ? len | (uint64_t)flags << 48 : len | (uint64_t)flags << 32 | (uint64_t)next << 48;

	memcpy(p, &addr, 8);
	memcpy(p + 8, &w, 8);
}

static inline void offer(unsigned slot, uint64_t addr, uint32_t len, uint16_t flags)
{
	if (d.packed) {
		drv_set_pdesc(&d, slot, addr, len, (uint16_t)slot, flags | D_AVAIL);
	} else {
		drv_set_desc(&d, slot, addr, len, flags, (uint16_t)(slot + 1));
		drv_set_avail(&d, (uint16_t)slot, (uint16_t)slot);
	}
}

static const uint64_t formats[] = { 0, F_PACKED };
#define BOTH(f) for ((f) = 0; (f) < 2; (f)++)

/* Run all tests with either hint. */
static inline int run_with_hints(const struct CMUnitTest *tests, size_t n)
{
	int bad = _cmocka_run_group_tests("hint: readable", tests, n, NULL, NULL);

	hint = VP_WRITE;
	return bad + _cmocka_run_group_tests("hint: writable", tests, n, NULL, NULL);
}

#endif
