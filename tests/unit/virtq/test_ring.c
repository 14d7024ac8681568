/* SPDX-License-Identifier: BSD-3-Clause */
/* Setting rings up, thousands of laps against the driver side, the dirty log. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "driver.h"

#define MEM   (16u << 20)
#define DATA  0x200000u
#define TABLE 0x180000u

static const uint64_t formats[] = { 0, F_PACKED };
#define BOTH(f) for ((f) = 0; (f) < 2; (f)++)

static uint32_t first_base(bool packed)
{
	return packed ? 0x80008000 : 0;
}

/* ---- setting up ---- */

static int try_size(struct drv_mem *m, uint16_t size, uint64_t features)
{
	struct vp_vq_conf c = { .size = size, .base = first_base(features & F_PACKED), .features = features,
				.desc = 0, .driver = 0x100000, .device = 0x180000, .tab = m->tab };
	struct vp_virtq vq;
	struct vp_err e = { 0 };
	int ret = vp_vq_start(&vq, &c, &e);

	assert_int_equal(!ret, !e.msg[0]); /* an error comes with a sentence */
	return ret;
}

static void test_queue_sizes(void **state)
{
	struct drv_mem m;
	unsigned size;

	drv_mem_init(&m, MEM, NULL, 0);
	for (size = 0; size < 65536; size++) {
		bool pow2 = size && !(size & (size - 1)), small = size && size <= 32768;

		assert_int_equal(try_size(&m, (uint16_t)size, 0), pow2 && small ? 0 : -EINVAL);
		assert_int_equal(try_size(&m, (uint16_t)size, F_PACKED), small ? 0 : -EINVAL);
	}
	drv_mem_free(&m);
}

static void test_area_bytes(void **state)
{
	assert_int_equal(vp_vq_desc_bytes(32768), 524288);
	assert_int_equal(vp_vq_driver_bytes(256, false), 4 + 512 + 2);
	assert_int_equal(vp_vq_device_bytes(256, false), 4 + 2048 + 2);
	assert_int_equal(vp_vq_driver_bytes(256, true), 4);
	assert_int_equal(vp_vq_device_bytes(32768, true), 4);
}

static int start_at(struct drv_mem *m, uint64_t features, uint64_t desc, uint64_t driver, uint64_t device)
{
	struct vp_vq_conf c = { .size = 256, .base = first_base(features & F_PACKED), .features = features,
				.desc = desc, .driver = driver, .device = device, .tab = m->tab };
	struct vp_virtq vq;
	struct vp_err e = { 0 };
	int ret = vp_vq_start(&vq, &c, &e);

	assert_int_equal(!ret, !e.msg[0]);
	return ret;
}

static void test_ring_unaligned(void **state)
{
	struct drv_mem m;
	unsigned f, i;

	drv_mem_init(&m, MEM, NULL, 0);
	BOTH(f) {
		for (i = 1; i < 32; i++) {
			assert_int_equal(start_at(&m, formats[f], 0x1000 + i, 0x4000, 0x8000), i % 16 ? -EINVAL : 0);
			assert_int_equal(start_at(&m, formats[f], 0x1000, 0x4000 + i, 0x8000),
					 i % (f ? 4 : 2) ? -EINVAL : 0);
			assert_int_equal(start_at(&m, formats[f], 0x1000, 0x4000, 0x8000 + i), i % 4 ? -EINVAL : 0);
		}
	}
	drv_mem_free(&m);
}

/* A region that lies crooked in its file: an aligned guest address is unaligned here. No atomic access may do that. */
static void test_ring_unaligned_in_host(void **state)
{
	struct drv_region r[] = { { 0x10000, 0x10000, 0x20001 }, { 0x40000, 0x10000, 0x40008 } };
	struct drv_mem m;
	unsigned f;

	drv_mem_init(&m, MEM, r, 2);
	BOTH(f) {
		assert_int_equal(start_at(&m, formats[f], 0x10000, 0x44000, 0x48000), -EINVAL);
		assert_int_equal(start_at(&m, formats[f], 0x40000, 0x10000, 0x48000), -EINVAL);
		assert_int_equal(start_at(&m, formats[f], 0x40000, 0x44000, 0x10000), -EINVAL);
	}
	drv_mem_free(&m);
}

static void test_ring_unmapped_and_wrapping(void **state)
{
	struct drv_region r = { 0x1000, MEM - 0x1000, 0x1000 };
	struct drv_mem m;
	unsigned f, i;
	static const uint64_t bad[] = { 0, 0xff0, MEM, MEM - 16, MEM + 0x1000, 1ull << 40, UINT64_MAX - 15,
					UINT64_MAX - 0xfff, 1ull << 63 };

	drv_mem_init(&m, MEM, &r, 1);
	BOTH(f) {
		for (i = 0; i < VP_ARRAY_SIZE(bad); i++) {
			uint64_t b = bad[i] & ~15ull;

			assert_int_equal(start_at(&m, formats[f], b, 0x4000, 0x8000), -EFAULT);
			if (f && b == MEM - 16)
				continue; /* 4 bytes fit */
			assert_int_equal(start_at(&m, formats[f], 0x1000, b, 0x8000), -EFAULT);
			assert_int_equal(start_at(&m, formats[f], 0x1000, 0x4000, b), -EFAULT);
		}
		/* Up to the last byte is fine, one further is not. */
		assert_int_equal(start_at(&m, formats[f], MEM - 4096, 0x4000, 0x8000), 0);
		assert_int_equal(start_at(&m, formats[f], MEM - 4096 + 16, 0x4000, 0x8000), -EFAULT);
	}
	/* 256 entries: 518 bytes of available ring, 2054 of used ring. */
	assert_int_equal(start_at(&m, 0, 0x1000, MEM - 518, 0x8000), 0);
	assert_int_equal(start_at(&m, 0, 0x1000, MEM - 516, 0x8000), -EFAULT);
	assert_int_equal(start_at(&m, 0, 0x1000, 0x4000, MEM - 2056), 0);
	assert_int_equal(start_at(&m, 0, 0x1000, 0x4000, MEM - 2052), -EFAULT);
	drv_mem_free(&m);
}

static void test_ring_straddles_regions(void **state)
{
	/* neighbours in guest addresses only, then neighbours nowhere */
	struct drv_region r[] = { { 0, 0x100000, 0 },
				  { 0x100000, 0x100000, 0x800000 },
				  { 0x300000, 0x1000, 0x300000 } };
	struct drv_mem m;
	unsigned f;

	drv_mem_init(&m, MEM, r, 3);
	BOTH(f) {
		assert_int_equal(start_at(&m, formats[f], 0x100000 - 4096, 0x4000, 0x8000), 0);
		assert_int_equal(start_at(&m, formats[f], 0x100000 - 2048, 0x4000, 0x8000), -EFAULT);
		assert_int_equal(start_at(&m, formats[f], 0x300000, 0x4000, 0x8000), 0);
		assert_int_equal(start_at(&m, formats[f], 0x2ff000, 0x4000, 0x8000), -EFAULT);
	}
	assert_int_equal(start_at(&m, 0, 0x1000, 0x100000 - 256, 0x8000), -EFAULT);
	assert_int_equal(start_at(&m, 0, 0x1000, 0x4000, 0x100000 - 1024), -EFAULT);
	drv_mem_free(&m);
}

/* ---- base ---- */

static void test_base_round_trip(void **state)
{
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	uint32_t a, u, w;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_init(&d, &m, 256, 0, 0);
	for (a = 0; a < 65536; a++) {
		c = drv_conf(&d, a);
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		assert_int_equal(vp_vq_base(&vq), a);
	}
	drv_free(&d);
	drv_init(&d, &m, 5, F_PACKED, 0);
	for (a = 0; a < 8; a++)
	for (u = 0; u < 8; u++)
	for (w = 0; w < 4; w++) {
		uint32_t base = a | (w & 1) << 15 | u << 16 | (w & 2) << 30;

		c = drv_conf(&d, base);
		/* Nothing outside the ring. */
		if (a >= 5 || u >= 5) {
			assert_int_equal(vp_vq_start(&vq, &c, NULL), -EINVAL);
			continue;
		}
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		assert_int_equal(vq.last_avail, a);
		assert_int_equal(vq.avail_wrap, w & 1);
		if (!(base >> 16)) {
			/* A front-end that sends 16 bits means both indices (DPDK's virtio-user). */
			assert_int_equal(vq.used_idx, a);
			assert_int_equal(vq.used_wrap, w & 1);
			continue;
		}
		assert_int_equal(vq.used_idx, u);
		assert_int_equal(vq.used_wrap, w >> 1);
		assert_int_equal(vp_vq_base(&vq), base);
	}
	drv_free(&d);
	drv_mem_free(&m);
}

/* ---- laps ---- */

struct out {
	uint64_t cookie;
	unsigned len;
	bool     write, busy;
};

/*
 * Random chains there and back. Every buffer carries its number; the device checks it, answers
 * into the writable part, completes in its own order, stops and resumes now and then.
 */
static void laps(uint16_t size, uint64_t features, unsigned chains, uint64_t seed)
{
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	struct out *out = calloc(65536, sizeof(*out));
	struct vp_used *hold = calloc(65536, sizeof(*hold));
	unsigned held = 0, added = 0, got = 0, i, k, n, max_bufs = VP_MIN(size, 6);
	uint16_t order[65536 / 16], order_head = 0, order_tail = 0;
	bool in_order = features & F_IN_ORDER;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_init(&d, &m, size, features, 0x1000);
	c = drv_conf(&d, first_base(d.packed));
	assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
	while (got < chains) {
		uint16_t id;
		uint32_t len;

		/* driver: add some */
		for (k = drv_rand(&seed) % 8; k && added < chains; k--) {
			struct drv_buf bufs[6];
			uint64_t cookie = added * 0x9e3779b97f4a7c15ull;
			int slot;

			n = 1 + drv_rand(&seed) % max_bufs;
			/* Each free slot of DATA belongs to one chain in flight: 4 KiB for each id. */
			if (!d.num_free || (d.packed && !d.n_ids))
				break;
			slot = d.packed ? d.ids[d.n_ids - 1] : d.free_head;
			for (i = 0; i < n; i++)
				bufs[i] = (struct drv_buf){ DATA + 4096ull * slot + 512 * i, 8 + i, i && i >= n / 2 };
			memcpy(drv_ptr(&m, bufs[0].addr), &cookie, 8);
			slot = drv_add(&d, bufs, n, (features & F_INDIRECT) && (n > 1 || !(added % 5)) ?
				       TABLE + 96ull * (unsigned)slot : 0);
			if (slot < 0)
				break;
			assert_false(out[slot].busy);
			out[slot] = (struct out){ .cookie = cookie, .busy = true, .write = n > 1 };
			order[order_head++ % VP_ARRAY_SIZE(order)] = (uint16_t)slot;
			added++;
		}
		drv_publish(&d);

		/* device: take some, hold them, give some back */
		n = vp_vq_fetch(&vq, b, 1 + (unsigned)(drv_rand(&seed) % VP_BURST));
		assert_int_equal(vq.broken, VP_VQ_OK);
		if (n)
			n = 1 + drv_rand(&seed) % n; /* consume a part only */
		for (i = 0; i < n; i++) {
			const struct vp_chain *ch = &b->chain[i];
			uint64_t cookie;

			assert_true(ch->nout >= 1 && drv_seg_ok(&m, &b->seg[ch->seg]));
			vp_copy_in(&cookie, b->seg[ch->seg].p, 8);
			assert_true(out[ch->id].busy && out[ch->id].cookie == cookie);
			assert_int_equal(!!ch->nin, out[ch->id].write);
			len = 0;
			if (ch->nin) {
				const struct vp_seg *s = &b->seg[ch->seg + ch->nout];

				vp_copy_out(s->p, &cookie, 8);
				len = s->len;
			}
			out[ch->id].len = len;
			hold[held++] = (struct vp_used){ .id = ch->id, .len = len, .slots = ch->slots };
		}
		vp_vq_advance(&vq, b, n);
		while (held && drv_rand(&seed) % 4) {
			unsigned give = 1 + (unsigned)(drv_rand(&seed) % VP_MIN(held, VP_BURST));

			if (!in_order)
				for (i = 0; i < give; i++) {
					unsigned j = i + (unsigned)(drv_rand(&seed) % (held - i));
					struct vp_used t = hold[i];

					hold[i] = hold[j];
					hold[j] = t;
				}
			vp_vq_complete(&vq, hold, give);
			held -= give;
			memmove(hold, hold + give, held * sizeof(*hold));
		}

		/* driver: collect */
		for (k = drv_rand(&seed) % 12; k && drv_get_used(&d, &id, &len); k--) {
			assert_true(out[id].busy);
			assert_int_equal(out[id].len, len);
			out[id].busy = false;
			if (in_order)
				assert_int_equal(id, order[order_tail++ % VP_ARRAY_SIZE(order)]);
			got++;
		}

		/* now and then the device stops with nothing held, and another one takes over */
		if (!(drv_rand(&seed) % 64)) {
			uint32_t base;

			while (held) {
				unsigned give = VP_MIN(held, VP_BURST);

				vp_vq_complete(&vq, hold, give);
				held -= give;
				memmove(hold, hold + give, held * sizeof(*hold));
			}
			base = vp_vq_base(&vq);
			c = drv_conf(&d, base);
			assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
			assert_int_equal(vp_vq_base(&vq), base);
		}
	}
	assert_int_equal(got, chains);
	assert_int_equal(d.num_free, size);
	drv_free(&d);
	drv_mem_free(&m);
	free(hold);
	free(out);
	free(b);
}

static void test_laps(void **state)
{
	static const uint16_t split[] = { 1, 2, 8, 256, 1024 }, packed[] = { 1, 2, 3, 5, 7, 64, 255, 256, 1000 };
	uint64_t extra;
	unsigned i;

	for (extra = 0; extra < 4; extra++) {
		uint64_t f = (extra & 1 ? F_INDIRECT : 0) | (extra & 2 ? F_IN_ORDER : 0);

		for (i = 0; i < VP_ARRAY_SIZE(split); i++)
			laps(split[i], f, extra || i % 2 ? 5000 : 70000, 11 + i); /* some beyond 65535 */
		for (i = 0; i < VP_ARRAY_SIZE(packed); i++)
			laps(packed[i], f | F_PACKED, packed[i] < 100 ? 5000 : 20000, 77 + i);
	}
}

/* ---- dirty log ---- */

static bool bit(const uint8_t *log, uint64_t gpa)
{
	return log[gpa >> 15] >> (gpa >> 12 & 7) & 1;
}

static void test_dirty_used_ring(void **state)
{
	uint8_t *bits;
	struct vp_dirty_log log;
	struct drv_buf buf = { DATA, 64, true };
	struct drv_mem m, lm;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	unsigned f, step, i, n;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_mem_init(&lm, 4096, NULL, 0);
	bits = lm.p;
	log = (struct vp_dirty_log){ .map = lm.tab->r[0].map, .pages = MEM >> 12 };
	BOTH(f) {
		uint64_t other = 0x900000; /* the address for the log need not be the ring's */

		drv_init(&d, &m, 1024, formats[f], 0x1000);
		c = drv_conf(&d, first_base(f));
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		memset(bits, 0, 4096);
		vp_vq_set_log(&vq, &log, true, f ? d.device : other);
		for (step = 0; step < 3000; step++) {
			struct vp_used u[3];
			uint16_t id, first = f ? vq.used_idx : vq.used_idx & 1023;
			uint32_t len;

			memset(bits, 0, 512);
			for (i = 0; i < 3; i++)
				assert_true(drv_add(&d, &buf, 1, 0) >= 0);
			drv_publish(&d);
			n = vp_vq_fetch(&vq, b, 3);
			assert_int_equal(n, 3);
			vp_vq_advance(&vq, b, 3);
			for (i = 0; i < 3; i++)
				u[i] = (struct vp_used){ .id = b->chain[i].id, .len = 64, .slots = 1 };
			for (i = 0; i < 512; i++)
				assert_int_equal(bits[i], 0); /* fetching writes nothing */
			vp_vq_complete(&vq, u, 3);
			for (i = 0; i < 3; i++) {
				unsigned slot = (first + i) % 1024;

				assert_true(bit(bits, f ? d.desc + 16ull * slot : other + 4 + 8ull * slot));
				assert_true(bit(bits, f ? d.desc + 16ull * slot : other + 4 + 8ull * slot + 7));
			}
			if (!f)
				assert_true(bit(bits, other)); /* the index */
			while (drv_get_used(&d, &id, &len))
				;
		}
		vp_vq_set_log(&vq, NULL, false, 0);
		memset(bits, 0, 512);
		for (i = 0; i < 1; i++)
			drv_add(&d, &buf, 1, 0);
		drv_publish(&d);
		n = vp_vq_fetch(&vq, b, 3);
		vp_vq_advance(&vq, b, n);
		vp_vq_complete(&vq, &(struct vp_used){ .id = b->chain[0].id, .slots = 1 }, 1);
		for (i = 0; i < 512; i++)
			assert_int_equal(bits[i], 0);
		drv_free(&d);
	}
	drv_mem_free(&m);
	drv_mem_free(&lm);
	free(b);
}

/* What the device writes to be kicked is memory of the driver VM as well. */
static void test_dirty_kick_fields(void **state)
{
	struct vp_dirty_log log;
	struct drv_mem m, lm;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	unsigned f, e;

	drv_mem_init(&m, MEM, NULL, 0);
	drv_mem_init(&lm, 4096, NULL, 0);
	log = (struct vp_dirty_log){ .map = lm.tab->r[0].map, .pages = MEM >> 12 };
	BOTH(f) {
		for (e = 0; e < 2; e++) {
			uint64_t field;

			drv_init(&d, &m, 1024, formats[f] | (e ? F_EVENT_IDX : 0), 0x1000);
			field = f || !e ? d.device : d.device + 4 + 8 * 1024;
			c = drv_conf(&d, first_base(f));
			assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
			vp_vq_set_log(&vq, &log, true, d.device);
			memset(lm.p, 0, 4096);
			vp_vq_enable_kicks(&vq);
			assert_true(bit(lm.p, field));
			memset(lm.p, 0, 4096);
			vp_vq_disable_kicks(&vq);
			if (f || !e)
				assert_true(bit(lm.p, field));
			drv_free(&d);
		}
	}
	drv_mem_free(&m);
	drv_mem_free(&lm);
}

/* ---- memory that moves, a vIOMMU in front ---- */

static void test_rebind(void **state)
{
	struct drv_region r[] = { { 0, 0x800000, 0x800000 } };
	struct drv_buf buf = { DATA, 64, false };
	struct drv_mem m, m2;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	unsigned f;

	BOTH(f) {
		drv_mem_init(&m, MEM, NULL, 0);
		drv_mem_init(&m2, MEM, r, 1);
		drv_init(&d, &m, 8, formats[f], 0x1000);
		c = drv_conf(&d, first_base(f));
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		drv_add(&d, &buf, 1, 0);
		drv_add(&d, &buf, 1, 0);
		drv_publish(&d);
		assert_int_equal(vp_vq_fetch(&vq, b, 1), 1);
		vp_vq_advance(&vq, b, 1);
		/* The same contents elsewhere; nothing of the old place may be used any more. */
		memcpy(m2.p + 0x800000, m.p, 0x800000);
		assert_int_equal(vp_vq_rebind(&vq, m2.tab, NULL, NULL), 0);
		memset(m.p, 0xff, MEM);
		assert_int_equal(vp_vq_fetch(&vq, b, 8), 1);
		assert_true(drv_seg_ok(&m2, &b->seg[b->chain[0].seg]));
		assert_int_equal(vq.broken, VP_VQ_OK);
		drv_free(&d);
		drv_mem_free(&m);
		drv_mem_free(&m2);
	}
	free(b);
}

struct fake_iommu {
	struct vp_iommu base;
	struct drv_mem *m;
	uint64_t miss;    /* this page is not there yet */
	unsigned calls;
};

/* IOVA = GPA + 1 TiB in pages of 4 KiB. */
static int fake_translate(struct vp_iommu *iommu, uint64_t iova, uint64_t len, enum vp_access acc,
			  struct vp_window *w)
{
	struct fake_iommu *f = (struct fake_iommu *)iommu;
	uint64_t gpa = iova - (1ull << 40);

	f->calls++;
	if (gpa >= MEM)
		return -EFAULT;
	if (gpa >> 12 == f->miss >> 12)
		return -EAGAIN;
	w->start = iova & ~4095ull;
	w->size = 4096;
	w->host = vp_gptr_add(f->m->tab->r[0].host, gpa & ~4095ull);
	return 0;
}

static void test_iommu(void **state)
{
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	struct vp_burst *b = calloc(1, sizeof(*b));
	struct fake_iommu io = { .base = { fake_translate }, .m = &m, .miss = MEM };
	struct drv_buf good = { (1ull << 40) + DATA, 64, false }, late = { (1ull << 40) + 0x400000 - 8, 16, false };
	struct drv_buf bad = { DATA, 64, false };
	unsigned f;

	drv_mem_init(&m, MEM, NULL, 0);
	BOTH(f) {
		drv_init(&d, &m, 300 - 44 * !f, formats[f], 0x1000);
		c = drv_conf(&d, first_base(f));
		c.iommu = &io.base;
		c.desc += 1ull << 40;
		c.driver += 1ull << 40;
		c.device += 1ull << 40;
		io.miss = 0x1000;
		assert_int_equal(vp_vq_start(&vq, &c, NULL), -EAGAIN);
		io.miss = 0x400000; /* the second half of `late` */
		/* an area over several pages, neighbours in the host */
		assert_int_equal(vp_vq_start(&vq, &c, NULL), 0);
		drv_add(&d, &good, 1, 0);
		drv_add(&d, &late, 1, 0);
		drv_add(&d, &good, 1, 0);
		drv_publish(&d);
		assert_int_equal(vp_vq_fetch(&vq, b, 8), 1); /* a miss ends the burst, and is no offence */
		assert_int_equal(vq.broken, VP_VQ_OK);
		vp_vq_advance(&vq, b, 1);
		assert_int_equal(vp_vq_fetch(&vq, b, 8), 0);
		io.miss = MEM;
		assert_int_equal(vp_vq_fetch(&vq, b, 8), 2);
		assert_int_equal(b->chain[0].nout, 2);
		vp_vq_advance(&vq, b, 2);
		/* A guest physical address is no IOVA. */
		drv_add(&d, &bad, 1, 0);
		drv_publish(&d);
		assert_int_equal(vp_vq_fetch(&vq, b, 8), 0);
		assert_int_equal(vq.broken, VP_VQ_BAD_ADDR);
		drv_free(&d);
	}
	drv_mem_free(&m);
	free(b);
}

/* What vp_vq_near() would bring near: 0 = nothing. It consumes nothing, and nothing breaks. */
static uint64_t near_addr(const struct drv_mem *m, struct vp_virtq *vq)
{
	const uint16_t last = vq->last_avail, used = vq->used_idx;
	vp_gptr at = VP_GPTR_NULL;
	bool found;

	vp_vq_near(vq);
	found = vq->packed ? vp_packed_near(vq, &at) : vp_split_near(vq, &at);
	assert_int_equal(vq->broken, VP_VQ_OK);
	assert_int_equal(vq->last_avail, last);
	assert_int_equal(vq->used_idx, used);
	return found ? vp_gptr_addr(at) - vp_gptr_addr(m->tab->r[0].host) : 0;
}

static void test_near(void **state)
{
	/* The last one ends outside the memory. */
	const uint64_t addr[] = { DATA, DATA + 4096, DATA + 64, MEM - 64 };
	struct vp_err e = { 0 };
	struct vp_vq_conf c;
	struct vp_burst b = { 0 };
	struct vp_virtq vq;
	struct drv_mem m;
	struct drv d;
	unsigned f, i;

	BOTH(f) {
		drv_mem_init(&m, MEM, NULL, 0);
		drv_init(&d, &m, 4, formats[f], 0x1000);
		c = drv_conf(&d, first_base(f));
		assert_int_equal(vp_vq_start(&vq, &c, &e), 0);
		assert_int_equal(near_addr(&m, &vq), 0); /* nothing is offered */
		for (i = 0; i < VP_ARRAY_SIZE(addr); i++) {
			struct drv_buf buf = { addr[i], 512, true };
			struct vp_used u = { .len = 512, .slots = 1 };
			uint16_t id;
			uint32_t len;

			assert_true(drv_add(&d, &buf, 1, 0) >= 0);
			drv_publish(&d);
			assert_int_equal(near_addr(&m, &vq), i < 3 ? addr[i] : 0);
			if (i >= 3)
				break;
			/* What comes behind finds the same chain. */
			assert_int_equal(vp_vq_fetch_dir(&vq, &b, 64, VP_WRITE), 1);
			assert_int_equal(b.seg[0].addr, addr[i]);
			u.id = b.chain[0].id;
			vp_vq_advance(&vq, &b, 1);
			assert_int_equal(near_addr(&m, &vq), 0);
			vp_vq_complete(&vq, &u, 1);
			assert_true(drv_get_used(&d, &id, &len));
		}
		vp_vq_break(&vq, VP_VQ_BAD_DESC);
		vp_vq_near(&vq); /* looks at nothing */
		drv_free(&d);
		drv_mem_free(&m);
	}
}

static void test_broken_strings(void **state)
{
	unsigned i, j;

	for (i = 0; i < VP_VQ_BROKEN_MAX; i++)
		for (j = 0; j < i; j++)
			assert_string_not_equal(vp_vq_broken_str(i), vp_vq_broken_str(j));
	assert_non_null(vp_vq_broken_str(VP_VQ_BROKEN_MAX));
	assert_non_null(vp_vq_broken_str(9999));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_queue_sizes),
		cmocka_unit_test(test_area_bytes),
		cmocka_unit_test(test_ring_unaligned),
		cmocka_unit_test(test_ring_unaligned_in_host),
		cmocka_unit_test(test_ring_unmapped_and_wrapping),
		cmocka_unit_test(test_ring_straddles_regions),
		cmocka_unit_test(test_base_round_trip),
		cmocka_unit_test(test_laps),
		cmocka_unit_test(test_dirty_used_ring),
		cmocka_unit_test(test_dirty_kick_fields),
		cmocka_unit_test(test_rebind),
		cmocka_unit_test(test_iommu),
		cmocka_unit_test(test_near),
		cmocka_unit_test(test_broken_strings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
