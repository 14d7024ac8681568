/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine between a driver and a device side: contents, order, back-pressure, and what the pool holds. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "rig.h"

static struct rig r;

static uint8_t byte_of(uint64_t cookie, uint32_t at)
{
	return (uint8_t)(cookie * 167 + at * 13 + (at >> 8));
}

/* ---- any device: data goes there and back, whole and to the right place ---- */

#define SLOT 0x4000u /* driver memory for a chain */

struct job {
	bool     out;
	uint64_t cookie;
	uint32_t out_len, in_len, written;
	unsigned nb;
	uint64_t base;
	struct drv_buf b[8];
};
static struct job jobs[32768];   /* by the driver's id */
static uint64_t places[256];     /* free places */
static unsigned n_places;

static int job_add(uint64_t *seed, uint64_t cookie)
{
	unsigned nout = (unsigned)(drv_rand(seed) % 3), nin = (unsigned)(drv_rand(seed) % 3), i;
	struct job j = { .cookie = cookie };
	bool indirect = r.d.features & F_INDIRECT && drv_rand(seed) & 1;
	uint64_t at;
	int id;

	if (!n_places)
		return -1;
	if (!nout && !nin)
		nout = 1;
	at = j.base = places[n_places - 1];
	memset(drv_ptr(&r.m, at), 0xee, SLOT);
	for (i = 0; i < nout + nin; i++) {
		uint32_t len = 1 + (uint32_t)(drv_rand(seed) % (drv_rand(seed) & 7 ? 200 : 3000));

		j.b[j.nb++] = (struct drv_buf){ at, len, i >= nout };
		if (i < nout) {
			for (uint32_t k = 0; k < len; k++)
				*drv_ptr(&r.m, at + k) = byte_of(cookie, j.out_len + k);
			j.out_len += len;
		} else {
			j.in_len += len;
		}
		at += len + drv_rand(seed) % 2 * 16; /* adjacent or not */
	}
	id = drv_add(&r.d, j.b, j.nb, indirect ? RIG_TABLE + (j.base - RIG_DATA) / SLOT * 256 : 0);
	if (id < 0)
		return -1;
	n_places--;
	assert_false(jobs[id].out);
	jobs[id] = j;
	jobs[id].out = true;
	return id;
}

static void job_done(uint16_t id, uint32_t len)
{
	struct job *j = &jobs[id];
	uint32_t pos = 0;
	uint64_t at = j->base;

	assert_true(j->out);
	j->out = false;
	assert_int_equal(len, VP_MIN(j->written, j->in_len));
	for (unsigned i = 0; i < j->nb; i++) {
		uint8_t *p = drv_ptr(&r.m, j->b[i].addr);

		for (; at < j->b[i].addr; at++)
			assert_int_equal(*drv_ptr(&r.m, at), 0xee);
		at += j->b[i].len;
		if (!j->b[i].write)
			continue;
		for (uint32_t k = 0; k < j->b[i].len; k++, pos++)
			assert_int_equal(p[k], pos < len ? byte_of(~j->cookie, pos) : 0xee);
	}
	for (; at < j->base + SLOT; at++)
		assert_int_equal(*drv_ptr(&r.m, at), 0xee);
	places[n_places++] = j->base;
}

/* What the device side holds: the cookie is in the first readable bytes, or follows from the order. */
struct hold {
	struct vp_used u;
	uint64_t cookie;
	struct vp_seg in;
	uint32_t in_len;
};
static struct hold holds[32768];
static unsigned n_holds;

static void device_take(const uint64_t *cookies, uint64_t *next)
{
	unsigned n = vp_vq_fetch(&r.dev, &r.burst, VP_BURST), i;

	assert_false(r.dev.broken);
	for (i = 0; i < n; i++) {
		const struct vp_chain *c = &r.burst.chain[i];
		const struct vp_seg *sg = &r.burst.seg[c->seg];
		uint64_t cookie = cookies[*next & 0xffff];
		struct hold *h = &holds[n_holds++];

		assert_true(c->nout <= 1 && c->nin <= 1);
		for (uint32_t k = 0; k < c->out_len; k++)
			assert_int_equal(vp_ld8(sg->p, k), byte_of(cookie, k));
		*h = (struct hold){ { 0, c->id, c->slots }, cookie, { .len = 0 }, c->in_len };
		if (c->nin)
			h->in = sg[c->nout];
		++*next;
	}
	vp_vq_advance(&r.dev, &r.burst, n);
}

static void device_return(unsigned k, uint64_t x)
{
	struct hold h = holds[k];
	uint32_t i, n;

	memmove(&holds[k], &holds[k + 1], (n_holds - k - 1) * sizeof(holds[0]));
	n_holds--;
	h.u.len = (uint32_t)(x % (2 * (uint64_t)h.in_len + 2)); /* and more than fits */
	n = VP_MIN(h.u.len, h.in_len);
	for (i = 0; i < n; i++)
		vp_st8(h.in.p, i, byte_of(~h.cookie, i));
	for (i = 0; i < r.d.size; i++)
		if (jobs[i].out && jobs[i].cookie == h.cookie)
			break;
	assert_true(i < r.d.size);
	jobs[i].written = h.u.len;
	vp_vq_complete(&r.dev, &h.u, 1);
}

static uint64_t cookies[65536];

static void there_and_back(uint64_t drv, uint64_t dev, uint64_t area)
{
	struct rig_conf c = { RIG_BOTH, 64, drv, dev, area };
	uint64_t seed = 88172645463325252ull, next = 0, added = 0, done = 0, expect = 0;
	unsigned i;
	uint32_t len;
	uint16_t id;

	rig_new(&r, &c);
	memset(jobs, 0, sizeof(jobs));
	n_holds = n_places = 0;
	for (i = 0; i < 128; i++)
		places[n_places++] = RIG_DATA + i * SLOT;
	while (done < 300) {
		for (i = (unsigned)(drv_rand(&seed) % 6); i; i--) {
			if (job_add(&seed, added) < 0)
				break;
			cookies[added & 0xffff] = added;
			added++;
		}
		drv_publish(&r.d);
		vp_copyq_run(r.b, r.s);
		device_take(cookies, &next);
		for (i = (unsigned)(drv_rand(&seed) % 7); i && n_holds; i--)
			device_return(dev & F_IN_ORDER ? 0 : (unsigned)(drv_rand(&seed) % n_holds), drv_rand(&seed));
		if (drv_rand(&seed) & 1)
			vp_copyq_run(r.b, r.s);
		while (drv_get_used(&r.d, &id, &len)) {
			if (drv & F_IN_ORDER)
				assert_int_equal(jobs[id].cookie, expect++);
			job_done(id, len);
			done++;
		}
		assert_false(r.rq.vq.broken);
		assert_false(r.b->shadow.broken);
	}
	rig_free(&r);
}

static void there_and_back_large(uint64_t drv, uint64_t dev)
{
	there_and_back(drv, dev, 0);
}

/* Areas that hold two chains or three: all arrive, one after the other. */
static void there_and_back_small(uint64_t drv, uint64_t dev)
{
	there_and_back(drv, dev, 8192);
}

static void test_there_and_back(void **state)
{
	rig_each(there_and_back_large);
}

static void test_little_room(void **state)
{
	rig_each(there_and_back_small);
}

/* ---- net transmit ---- */

static void send_frames(unsigned n, uint32_t len, uint8_t fill)
{
	for (unsigned i = 0; i < n; i++) {
		struct drv_buf b = { RIG_DATA + (r.d.avail % 256) * 0x800ull + (r.d.packed ? r.d.slot * 0x800ull : 0), 12 + len, false };
		uint8_t *p = drv_ptr(&r.m, b.addr);

		memset(p, 0, 12);
		memset(p + 12, fill, len);
		assert_true(drv_add(&r.d, &b, 1, 0) >= 0);
	}
	drv_publish(&r.d);
}

static unsigned driver_gets_back(void)
{
	unsigned n = 0;
	uint32_t len;
	uint16_t id;

	while (drv_get_used(&r.d, &id, &len)) {
		assert_int_equal(len, 0);
		n++;
	}
	return n;
}

static void early(uint64_t drv, uint64_t dev)
{
	struct rig_conf c = { RIG_TX, 64, drv, dev, 0 };
	unsigned i, k, n;

	rig_new(&r, &c);
	for (k = 0; k < 100; k++) {
		uint32_t len = 60 + k * 13;

		send_frames(20, len, (uint8_t)k);
		rig_run(&r);
		assert_int_equal(driver_gets_back(), 20); /* before the device VM has looked */
		/* The sender changes its mind too late. */
		memset(drv_ptr(&r.m, RIG_DATA), 0xff, 0x800 * 256);
		n = vp_vq_fetch(&r.dev, &r.burst, VP_BURST);
		assert_int_equal(n, 20);
		for (i = 0; i < n; i++) {
			struct vp_used u = { 0, r.burst.chain[i].id, r.burst.chain[i].slots };
			const struct vp_seg *sg = &r.burst.seg[r.burst.chain[i].seg];

			assert_int_equal(sg->len, 12 + len);
			for (uint32_t at = 0; at < len; at++)
				assert_int_equal(vp_ld8(sg->p, 12 + at), k);
			vp_vq_advance(&r.dev, &(struct vp_burst){ .chain = { r.burst.chain[i] } }, 1);
			vp_vq_complete(&r.dev, &u, 1);
		}
	}
	assert_int_equal(r.rq.stats.packets, 2000);
	assert_true(r.rq.stats.busy_cycles > 0);
	rig_free(&r);
}

static void test_transmit_completes_early(void **state)
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(rig_drv_formats); i++)
		for (unsigned k = 0; k < 4; k++)
			early(rig_drv_formats[i] | F_VERSION_1, rig_dev_formats[k] | F_VERSION_1);
}

/* A device VM that returns nothing: the ring of the driver fills up, nothing is lost, and it goes on afterwards. */
static void backpressure(uint64_t drv, uint64_t dev)
{
	struct rig_conf c = { RIG_TX, 256, drv, dev, 8192 };
	unsigned n, sent = 0, got = 0, round = 0;

	rig_new(&r, &c);
	while (sent < 200) {
		send_frames(10, 500, 7);
		sent += 10;
		rig_run(&r);
	}
	n = driver_gets_back();
	assert_int_equal(n, 16); /* 512 bytes each in 8192 */
	assert_true(r.b->blocked);
	/* Blocked: nothing to do, the driver need not kick, the device VM has to call. */
	assert_false(vp_copyq_arm(r.b));
	rig_raised(r.kick);
	while (got < 200 && round++ < 1000) {
		unsigned k = vp_vq_fetch(&r.dev, &r.burst, 5);
		struct vp_used u[5];

		for (unsigned i = 0; i < k; i++)
			u[i] = (struct vp_used){ 0, r.burst.chain[i].id, r.burst.chain[i].slots };
		vp_vq_advance(&r.dev, &r.burst, k);
		vp_vq_complete(&r.dev, u, k);
		if (k && !got)
			assert_true(vp_vq_need_call(&r.dev));
		got += k;
		vp_copyq_disarm(r.b);
		rig_run(&r);
		n += driver_gets_back();
	}
	assert_int_equal(got, 200);
	assert_int_equal(n, 200);
	rig_free(&r);
}

static void test_back_pressure(void **state)
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(rig_drv_formats); i++)
		for (unsigned k = 0; k < 4; k++)
			backpressure(rig_drv_formats[i] | F_VERSION_1, rig_dev_formats[k] | F_VERSION_1);
}

static void test_runts_and_giants(void **state)
{
	struct rig_conf c = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 1 << 20 };
	struct drv_buf runt = { RIG_DATA, 12 + 13, false }, giant = { RIG_DATA, 12 + 65558, false };

	rig_new(&r, &c);
	drv_add(&r.d, &runt, 1, 0);
	drv_add(&r.d, &giant, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(driver_gets_back(), 2);
	assert_int_equal(r.rq.stats.drops[VP_DROP_BAD_PACKET], 1);
	assert_int_equal(r.rq.stats.drops[VP_DROP_TOO_BIG], 1);
	assert_int_equal(vp_vq_fetch(&r.dev, &r.burst, 1), 0);
	assert_false(r.rq.vq.broken);
	rig_free(&r);
}

static void test_wrong_direction(void **state)
{
	struct drv_buf w = { RIG_DATA, 100, true }, rd = { RIG_DATA, 100, false };
	struct rig_conf tx = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 0 }, rx = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };

	rig_new(&r, &tx);
	drv_add(&r.d, &w, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(r.rq.vq.broken, VP_VQ_BAD_BUFFER);
	rig_free(&r);
	rig_new(&r, &rx);
	drv_add(&r.d, &rd, 1, 0);
	drv_publish(&r.d);
	rig_run(&r);
	assert_int_equal(r.rq.vq.broken, VP_VQ_BAD_BUFFER);
	assert_int_equal(vp_vq_fetch(&r.dev, &r.burst, 1), 0);
	rig_free(&r);
}

static void test_rate(void **state)
{
	struct rig_conf c = { RIG_TX, 256, F_VERSION_1, F_VERSION_1, 0 };

	rig_new(&r, &c);
	r.rq.own.rate = 1000;
	send_frames(200, 60, 1);
	rig_run(&r);
	assert_int_equal(driver_gets_back(), 200);
	assert_true(r.rq.stats.packets >= 64 && r.rq.stats.packets < 100);
	assert_int_equal(r.rq.stats.packets + r.rq.stats.drops[VP_DROP_RATE], 200);
	rig_free(&r);
}

/* The pool holds what was handed over and nothing else. */
static void test_nothing_else_in_the_pool(void **state)
{
	struct rig_conf c = { RIG_TX, 64, F_VERSION_1, F_VERSION_1, 0 };
	uint64_t i, fives = 0;

	rig_new(&r, &c);
	memset(drv_ptr(&r.m, RIG_DATA), 0xa5, RIG_MEM - RIG_DATA);
	for (i = 0; i < 20; i++) {
		struct drv_buf b = { RIG_DATA + i * 4096 + 100, 12 + 60 + (uint32_t)i, false };

		memset(drv_ptr(&r.m, b.addr), 0x55, b.len);
		drv_add(&r.d, &b, 1, 0);
	}
	drv_publish(&r.d);
	rig_run(&r);
	for (i = 0; i < r.pool.size; i++) {
		assert_int_not_equal(r.pool.p[i], 0xa5);
		fives += i >= r.b->c.out.off && r.pool.p[i] == 0x55;
	}
	assert_int_equal(fives, 20 * 72 + 190);
	rig_free(&r);
}

static void test_bad_setup(void **state)
{
	struct rig_conf c = { RIG_RX, 64, F_VERSION_1, F_VERSION_1, 0 };
	struct vp_copyq_conf bc;
	struct vp_copyq *b;
	struct vp_err e = { 0 };

	rig_new(&r, &c);
	bc = r.b->c;
	bc.ring.size = 64;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	bc = r.b->c;
	bc.in.size = 0;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	bc = r.b->c;
	bc.in.off += 8;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	bc = r.b->c;
	bc.early = true;
	assert_int_equal(vp_copyq_new(&b, &bc, &e), -EINVAL);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_setup), cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_little_room), cmocka_unit_test(test_transmit_completes_early),
		cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_runts_and_giants),
		cmocka_unit_test(test_wrong_direction), cmocka_unit_test(test_rate),
		cmocka_unit_test(test_nothing_else_in_the_pool),
	};

	return cmocka_run_group_tests_name("copyq", tests, NULL, NULL);
}
