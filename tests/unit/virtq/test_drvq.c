/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver side of shadow rings: laps against the device side (virtq.h), notifications, and devices
 * that lie about what they used.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"
#include "virtq/drvq.h"

#define MEM  (4u << 20)
#define RING 0x10000u

struct rig {
	struct drv_mem  m;
	struct vp_drvq  q;
	struct vp_virtq vq;
	uint64_t desc, driver, device;
	struct vp_burst b;
	struct { bool out; uint32_t in; uint64_t cookie; } chain[32768]; /* by id */
};

static struct rig r;

static void rig_new(uint16_t size, uint64_t features)
{
	struct vp_vq_conf c = { .size = size, .base = features & F_PACKED ? 0x80008000 : 0, .features = features };
	struct vp_err e = { 0 };
	uint64_t driver, device;

	memset(&r, 0, sizeof(r));
	drv_mem_init(&r.m, MEM, NULL, 0);
	memset(r.m.p, 0xff, MEM);
	assert_int_equal(vp_drvq_init(&r.q, size, features, vp_gptr_add(r.m.tab->r[0].host, RING)), 0);
	assert_true(vp_drvq_layout(size, features & F_PACKED, &driver, &device) <= MEM - RING);
	c.desc = r.desc = RING;
	c.driver = r.driver = RING + driver;
	c.device = r.device = RING + device;
	c.tab = r.m.tab;
	assert_int_equal(vp_vq_start(&r.vq, &c, &e), 0);
}

static void rig_free(void)
{
	vp_drvq_fini(&r.q);
	drv_mem_free(&r.m);
}

/* One chain of one or two buffers; -ENOSPC when full. */
static int add(uint64_t x, uint64_t cookie)
{
	bool two = x & 1, w0 = !two && x & 2, w1 = x & 4;
	struct vp_drvq_buf b[2] = {
		{ 0x200000 + (cookie & 0xffff), 1 + (uint32_t)(x >> 8) % 5000, w0 },
		{ 0x300000 + (cookie & 0xffff), 1 + (uint32_t)(x >> 24) % 5000, w1 },
	};
	int id = vp_drvq_add(&r.q, b, two ? 2 : 1);

	if (id < 0)
		return id;
	assert_true(id < r.q.size);
	assert_false(r.chain[id].out);
	r.chain[id].out = true;
	r.chain[id].in = (w0 ? b[0].len : 0) + (two && w1 ? b[1].len : 0);
	r.chain[id].cookie = cookie;
	return id;
}

static const uint64_t features[] = {
	0, F_EVENT_IDX, F_IN_ORDER, F_IN_ORDER | F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX,
	F_PACKED | F_IN_ORDER, F_PACKED | F_IN_ORDER | F_EVENT_IDX,
};

/* What the device holds. */
static struct { struct vp_used u; uint64_t cookie; } held[32768];

static void take(unsigned *n_held, uint64_t *next)
{
	unsigned n = vp_vq_fetch(&r.vq, &r.b, VP_BURST), i;

	for (i = 0; i < n; i++) {
		const struct vp_chain *c = &r.b.chain[i];

		/* The first buffer's address carries the order in which chains were added. */
		assert_int_equal(r.b.seg[c->seg].addr & 0xffff, *next & 0xffff);
		assert_int_equal(r.chain[c->id].cookie, *next);
		assert_int_equal(c->in_len, r.chain[c->id].in);
		held[*n_held].u = (struct vp_used){ .id = c->id, .slots = c->slots };
		held[(*n_held)++].cookie = *next;
		++*next;
	}
	vp_vq_advance(&r.vq, &r.b, n);
	assert_false(r.vq.broken);
}

static void laps(uint16_t size, uint64_t f)
{
	uint64_t seed = 88172645463325252u + size, added = 0, next = 0, returned = 0, expect = 0;
	unsigned n_held = 0, i;
	uint32_t len;
	uint16_t id;
	int ret;

	rig_new(size, f);
	while (returned < 20u * size + 2000) {
		uint64_t x = drv_rand(&seed);

		for (i = x % 8; i; i--) {
			uint64_t y = drv_rand(&seed);

			if (add(size == 1 ? y & ~1ull : y, added) < 0)
				break;
			added++;
		}
		vp_drvq_publish(&r.q);
		take(&n_held, &next);
		for (i = (x >> 8) % 9; i && n_held; i--) {
			unsigned k = f & F_IN_ORDER ? 0 : (unsigned)(drv_rand(&seed) % n_held);
			struct vp_used u = held[k].u;

			/* Now and then more than there was room for. */
			u.len = r.chain[u.id].in ? (uint32_t)(drv_rand(&seed) % (2 * r.chain[u.id].in)) : 7 * (i & 1);
			vp_vq_complete(&r.vq, &u, 1);
			memmove(&held[k], &held[k + 1], (n_held - k - 1) * sizeof(held[0]));
			n_held--;
		}
		while ((ret = vp_drvq_get(&r.q, &id, &len)) == 1) {
			assert_true(r.chain[id].out);
			assert_true(len <= r.chain[id].in);
			if (f & F_IN_ORDER)
				assert_int_equal(r.chain[id].cookie, expect++);
			r.chain[id].out = false;
			returned++;
		}
		assert_int_equal(ret, 0);
		assert_int_equal(r.q.outstanding, added - returned);
	}
	rig_free();
}

static void test_laps(void **state)
{
	static const uint16_t split[] = { 1, 2, 4, 64, 256, 1024 }, packed[] = { 1, 2, 3, 7, 64, 100, 256, 1023 };
	unsigned i, k;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++)
		for (k = 0; k < (features[i] & F_PACKED ? VP_ARRAY_SIZE(packed) : VP_ARRAY_SIZE(split)); k++)
			laps(features[i] & F_PACKED ? packed[k] : split[k], features[i]);
}

/* Runs of single buffers, now and then another chain between them; returned in bursts and told apart by their tags. */
static void runs(uint16_t size, uint64_t f)
{
	static struct { bool out; uint32_t in; } tagged[512];
	uint64_t seed = 88172645463325252u + size, returned = 0;
	uint16_t order[512], unused[512];
	unsigned n_held = 0, n_unused = 0, added = 0, published = 0, taken = 0, i;
	struct vp_drvq_used u[VP_BURST];

	rig_new(size, f);
	memset(tagged, 0, sizeof(tagged));
	while (n_unused < VP_ARRAY_SIZE(unused)) {
		unused[n_unused] = (uint16_t)n_unused;
		n_unused++;
	}
	while (returned < 20u * size + 2000) {
		uint64_t x = drv_rand(&seed);
		const bool write = x & 1, two = x & 2;
		struct vp_drvq_run run;
		unsigned n;

		if (x & 4 && r.q.num_free >= 2) {
			const struct vp_drvq_buf b[2] = { { 0x200000 + added % 512, 5, false }, { 0x300000, 7, true } };
			const uint16_t tag = unused[--n_unused];
			int id = vp_drvq_add(&r.q, b, two ? 2 : 1);

			assert_true(id >= 0);
			vp_drvq_set_tag(&r.q, (uint16_t)id, tag);
			tagged[tag].out = true;
			tagged[tag].in = two ? 7 : 0;
			order[added++ % 512] = tag;
		}
		n = VP_MIN((unsigned)(x >> 3) % 40, r.q.num_free);
		run = vp_drvq_run_begin(&r.q, n, write);
		for (i = 0; i < n; i++) {
			const uint32_t len = 1 + (uint32_t)(drv_rand(&seed) % 5000);
			const uint16_t tag = unused[--n_unused];

			vp_drvq_run_put(&run, 0x200000 + added % 512, len, tag);
			tagged[tag].out = true;
			tagged[tag].in = write ? len : 0;
			order[added++ % 512] = tag;
		}
		vp_drvq_run_end(&run);
		/* Nothing is seen of what was not published. */
		if (x & 64) {
			vp_drvq_publish(&r.q);
			published = added;
		}
		n = vp_vq_fetch(&r.vq, &r.b, VP_BURST);
		for (i = 0; i < n; i++) {
			const struct vp_chain *c = &r.b.chain[i];

			assert_int_equal(r.b.seg[c->seg].addr, 0x200000 + taken % 512);
			assert_int_equal(c->in_len, tagged[order[taken++ % 512]].in);
			held[n_held++].u = (struct vp_used){ .len = c->in_len, .id = c->id, .slots = c->slots };
		}
		assert_true(taken <= published);
		vp_vq_advance(&r.vq, &r.b, n);
		assert_false(r.vq.broken);
		for (i = (x >> 8) % 50; i && n_held; i--) {
			unsigned k = f & F_IN_ORDER ? 0 : (unsigned)(drv_rand(&seed) % n_held);

			vp_vq_complete(&r.vq, &held[k].u, 1);
			memmove(&held[k], &held[k + 1], (n_held - k - 1) * sizeof(held[0]));
			n_held--;
		}
		n = vp_drvq_get_burst(&r.q, u, VP_BURST);
		for (i = 0; i < n; i++) {
			assert_true(u[i].tag < VP_ARRAY_SIZE(tagged) && tagged[u[i].tag].out);
			assert_int_equal(u[i].len, tagged[u[i].tag].in);
			tagged[u[i].tag].out = false;
			unused[n_unused++] = u[i].tag;
		}
		returned += n;
		assert_false(r.q.broken);
	}
	rig_free();
}

static void test_runs(void **state)
{
	static const uint16_t sizes[] = { 1, 2, 7, 32, 256 };

	for (unsigned i = 0; i < VP_ARRAY_SIZE(sizes); i++)
		for (unsigned k = 0; k < VP_ARRAY_SIZE(features); k++)
			if (features[k] & F_PACKED || vp_is_pow2(sizes[i]))
				runs(sizes[i], features[k]);
}

static void test_sizes(void **state)
{
	static uint8_t mem[16 * 4] __attribute__((aligned(64)));
	struct vp_drvq q;
	vp_gptr g = vp_gptr_from_map(mem);

	assert_int_equal(vp_drvq_init(&q, 0, 0, g), -EINVAL);
	assert_int_equal(vp_drvq_init(&q, 3, 0, g), -EINVAL);
	assert_int_equal(vp_drvq_init(&q, 0, F_PACKED, g), -EINVAL);
	assert_int_equal(vp_drvq_init(&q, 40000, F_PACKED, g), -EINVAL);
}

/* A device that was promised a kick gets one; one that has kicks off gets none. */
static void test_notifications(void **state)
{
	uint64_t seed = 362436069;
	unsigned i, k, n;
	uint32_t len;
	uint16_t id;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++) {
		unsigned n_held = 0;
		uint64_t next = 0, added = 0;

		rig_new(64, features[i]);
		for (k = 0; k < 3000; k++) {
			bool armed = drv_rand(&seed) & 1, calls = drv_rand(&seed) & 1, kicked;

			take(&n_held, &next);
			if (armed)
				assert_false(vp_vq_enable_kicks(&r.vq));
			else
				vp_vq_disable_kicks(&r.vq);
			for (n = 1 + drv_rand(&seed) % 3; n && add(drv_rand(&seed), added) >= 0; n--)
				added++;
			vp_drvq_publish(&r.q);
			kicked = vp_drvq_need_kick(&r.q);
			if (armed && added > next)
				assert_true(kicked);
			if (!armed && !(features[i] & F_EVENT_IDX))
				assert_false(kicked);
			assert_false(vp_drvq_need_kick(&r.q)); /* nothing new */
			take(&n_held, &next);
			while (vp_drvq_get(&r.q, &id, &len) == 1)
				r.chain[id].out = false;
			/* The other direction. */
			if (calls)
				assert_false(vp_drvq_enable_calls(&r.q));
			else
				vp_drvq_disable_calls(&r.q);
			n = n_held ? 1 + (unsigned)(drv_rand(&seed) % n_held) : 0;
			for (unsigned j = 0; j < n; j++)
				vp_vq_complete(&r.vq, &held[j].u, 1);
			memmove(held, &held[n], (n_held - n) * sizeof(held[0]));
			n_held -= n;
			kicked = vp_vq_need_call(&r.vq);
			if (calls && n)
				assert_true(kicked);
			if (!calls && !(features[i] & F_EVENT_IDX))
				assert_false(kicked);
			if (n)
				assert_true(vp_drvq_enable_calls(&r.q)); /* something is there: do not sleep */
		}
		rig_free();
	}
}

/* ---- IN_ORDER devices that use one entry for many chains (2.7.9, 2.8.18) ---- */

static void put_used(unsigned at, bool wrap, uint32_t id, uint32_t len)
{
	if (r.q.packed) {
		drv_put64(&r.m, r.desc + 16ull * at + 8, len | (uint64_t)id << 32 |
			  (uint64_t)(wrap ? D_AVAIL | D_USED : 0) << 48);
	} else {
		uint8_t *p = drv_ptr(&r.m, r.device + 4 + 8ull * (at & (r.q.size - 1u)));

		memcpy(p, &id, 4);
		memcpy(p + 4, &len, 4);
	}
}

static void test_in_order_batches(void **state)
{
	uint64_t seed = 521288629, f;
	unsigned fi, lap;

	for (fi = 0; fi < 2; fi++) {
		unsigned at = 0;
		bool wrap = true;

		f = F_IN_ORDER | (fi ? F_PACKED : 0);
		rig_new(16, f);
		for (lap = 0; lap < 20000; lap++) {
			unsigned n = 1 + (unsigned)(drv_rand(&seed) % 5), i, slots = 0;
			uint32_t len, last_len;
			int ids[5];
			uint16_t id;

			for (i = 0; i < n; i++) {
				uint64_t x = drv_rand(&seed);

				ids[i] = add(x, 0);
				assert_true(ids[i] >= 0);
				slots += x & 1 ? 2 : 1;
			}
			vp_drvq_publish(&r.q);
			last_len = r.chain[ids[n - 1]].in / 2;
			put_used(at, wrap, (uint32_t)ids[n - 1], last_len);
			at += fi ? slots : n;
			if (fi && at >= 16) {
				at -= 16;
				wrap = !wrap;
			}
			if (!fi)
				drv_put16(&r.m, r.device + 2, (uint16_t)at);
			for (i = 0; i < n; i++) {
				assert_int_equal(vp_drvq_get(&r.q, &id, &len), 1);
				assert_int_equal(id, ids[i]);
				assert_int_equal(len, i + 1 < n ? r.chain[id].in : last_len);
				r.chain[id].out = false;
			}
			assert_int_equal(vp_drvq_get(&r.q, &id, &len), 0);
		}
		rig_free();
	}
}

/* ---- hostile devices ---- */

static void expect_broken(void)
{
	uint32_t len;
	uint16_t id;
	struct vp_drvq_buf b = { 0x200000, 64, false };

	assert_int_equal(vp_drvq_get(&r.q, &id, &len), -EIO);
	assert_true(r.q.broken);
	assert_int_equal(vp_drvq_get(&r.q, &id, &len), -EIO);
	assert_int_equal(vp_drvq_add(&r.q, &b, 1), -ENOSPC);
	assert_false(vp_drvq_enable_calls(&r.q));
}

static void lie(uint64_t f, uint32_t id, uint16_t idx)
{
	rig_new(16, f);
	assert_int_equal(add(4, 0), 0);
	vp_drvq_publish(&r.q);
	put_used(0, true, id, 0);
	if (!(f & F_PACKED))
		drv_put16(&r.m, r.device + 2, idx);
	expect_broken();
	rig_free();
}

static void test_bad_ids(void **state)
{
	unsigned i;
	uint32_t id;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++) {
		for (id = 1; id < 20; id++)
			lie(features[i], id, 1); /* free ids, then none at all */
		lie(features[i], 0xffff, 1);
		if (!(features[i] & F_PACKED))
			lie(features[i], 0x10000, 1); /* 0 in its lower half */
	}
}

static void test_bad_index(void **state)
{
	uint32_t idx;

	for (idx = 2; idx < 65536; idx += idx < 100 ? 1 : 999)
		lie(F_EVENT_IDX, 0, (uint16_t)idx);
	lie(0, 0, 0xffff);
}

static void test_same_id_twice(void **state)
{
	unsigned i;
	uint32_t len;
	uint16_t id;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++) {
		rig_new(16, features[i]);
		assert_int_equal(add(0, 0), 0);
		assert_int_equal(add(0, 1), 1);
		vp_drvq_publish(&r.q);
		put_used(0, true, 0, 0);
		put_used(1, true, 0, 0);
		if (!r.q.packed)
			drv_put16(&r.m, r.device + 2, 2);
		assert_int_equal(vp_drvq_get(&r.q, &id, &len), 1);
		assert_int_equal(id, 0);
		expect_broken();
		rig_free();
	}
}

static void test_lengths_are_cut(void **state)
{
	struct vp_drvq_buf b = { 0x200000, 100, true };
	unsigned i;
	uint32_t len;
	uint16_t id;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++) {
		rig_new(16, features[i]);
		assert_int_equal(vp_drvq_add(&r.q, &b, 1), 0);
		vp_drvq_publish(&r.q);
		put_used(0, true, 0, UINT32_MAX);
		if (!r.q.packed)
			drv_put16(&r.m, r.device + 2, 1);
		assert_int_equal(vp_drvq_get(&r.q, &id, &len), 1);
		assert_int_equal(len, 100);
		rig_free();
	}
}

/* The device overwrites all that we wrote, and everything else that it can: what we know stays what it was. */
static void test_our_fields_are_not_read_back(void **state)
{
	unsigned i, k;
	uint32_t len;
	uint16_t id;

	for (i = 0; i < VP_ARRAY_SIZE(features); i++) {
		uint64_t driver, device, bytes = vp_drvq_layout(64, features[i] & F_PACKED, &driver, &device);

		rig_new(64, features[i]);
		for (k = 0; k < 500; k++) {
			unsigned n = 0, j;
			int ids[20];

			while (n < 20) {
				ids[n] = add(n, 0);
				assert_true(ids[n++] >= 0);
			}
			vp_drvq_publish(&r.q);
			memset(drv_ptr(&r.m, RING), 0x5a, bytes - (r.q.packed ? 0 : bytes - device));
			for (j = 0; j < n; j++) {
				put_used(r.q.used, r.q.used_wrap, (uint32_t)ids[j], 1);
				if (!r.q.packed)
					drv_put16(&r.m, r.device + 2, (uint16_t)(r.q.used + 1));
				assert_int_equal(vp_drvq_get(&r.q, &id, &len), 1);
				assert_int_equal(id, ids[j]);
				r.chain[id].out = false;
			}
			assert_int_equal(r.q.num_free, 64);
		}
		rig_free();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_laps),
		cmocka_unit_test(test_runs),
		cmocka_unit_test(test_notifications),
		cmocka_unit_test(test_in_order_batches),
		cmocka_unit_test(test_bad_ids),
		cmocka_unit_test(test_bad_index),
		cmocka_unit_test(test_same_id_twice),
		cmocka_unit_test(test_lengths_are_cut),
		cmocka_unit_test(test_our_fields_are_not_read_back),
	};

	return cmocka_run_group_tests_name("drvq", tests, NULL, NULL);
}
