/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine with both ends rewriting what they can while it works. Meant for AddressSanitizer. The parts of
 * the driver's memory that it never offers for writing stay as they were, the parts that it never offers
 * at all are not seen in the pool, and the engine never writes outside either.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "../unit/engine/rig.h"

#define READABLE 0x200000u  /* offered for reading only */
#define WRITABLE 0x400000u
#define SECRET   0x800000u  /* never offered; up to the end of memory */
#define GUARD    0xa7

struct run {
	struct rig r;
	enum rig_kind kind;
	volatile bool stop;
};

/* Descriptors that name memory of the right kind, in every disorder. */
static void *bad_driver(void *arg)
{
	struct run *t = arg;
	struct drv *d = &t->r.d;
	uint64_t seed = 2463534242u;

	while (!t->stop) {
		uint64_t x = drv_rand(&seed), y = drv_rand(&seed), link = (x >> 32) % d->size, flags;
		/* A slot keeps its direction, so that the halves of a descriptor fit however they meet. */
		unsigned slot = (unsigned)(x >> 16) % d->size;
		bool write = t->kind == RIG_RX;
		uint64_t at = d->desc + 16ull * slot, addr = (write ? WRITABLE : READABLE) + (y & 0xfffff);
		uint32_t len = (uint32_t)(y >> 24) % ((y >> 60) ? 2000 : 70000);

		if (!(x >> 56)) /* seldom not even in the table */
			link += 60;
		flags = (write ? D_WRITE : 0) | ((x >> 48) % 8 ? 0 : D_NEXT);
		if (d->packed)
			flags |= (x >> 52 & 1 ? D_AVAIL : 0) | (x >> 53 & 1 ? D_USED : 0);
		switch (x % 6) {
		case 0: case 1: case 2:
			drv_put64(&t->r.m, at, addr);
			drv_put64(&t->r.m, at + 8,
				  d->packed ? len | link << 32 | flags << 48 : len | flags << 32 | link << 48);
			break;
		case 3:
			drv_put16(&t->r.m, d->driver + 4 + 2ull * (d->packed ? 0 : slot),
				  (uint16_t)((y >> 8) % (d->size + (y & 0xff ? 0 : 1))));
			break;
		case 4:
			/* An attacker can see about where the engine is, and seldom goes too far. */
			if (!d->packed && ((uint16_t)(drv_get16(&t->r.m, d->driver + 2) -
			    __atomic_load_n(&t->r.rq.vq.last_avail, __ATOMIC_RELAXED)) < d->size || !(y & 0xffff)))
				drv_set_avail_idx(d, (uint16_t)(drv_get16(&t->r.m, d->driver + 2) + 1));
			break;
		default:
			drv_put16(&t->r.m, d->driver, (uint16_t)y);
		}
	}
	return NULL;
}

/* Nothing that the device VM makes up looks like a secret. */
static uint64_t no_secret(uint64_t v)
{
	for (unsigned i = 0; i < 64; i += 8)
		if ((uint8_t)(v >> i) == GUARD)
			v ^= UINT64_C(1) << i;
	return v;
}

static void *bad_device(void *arg)
{
	struct run *t = arg;
	struct vp_copyq *b = t->r.b;
	uint64_t seed = 88172645463325252ull, ring = vp_copyq_ring_bytes();

	while (!t->stop) {
		uint64_t x = drv_rand(&seed), y = drv_rand(&seed);
		uint64_t used = b->used_addr - RIG_POOL_ADDR, desc = b->desc_addr - RIG_POOL_ADDR;
		uint8_t *p = t->r.pool.p;
		unsigned slot = (unsigned)(x >> 8) % b->shadow.size;

		switch (x % 5) {
		case 0: /* anything anywhere, seldom */
			if (y & 0x3f)
				break;
			__atomic_store_n((uint64_t *)(p + (y >> 8) % (ring / 8) * 8), no_secret(drv_rand(&seed)),
					 __ATOMIC_RELAXED);
			break;
		case 1:
			__atomic_store_n((uint64_t *)(p + (y >> 8) % (t->r.pool.size / 8) * 8),
					 no_secret(drv_rand(&seed)), __ATOMIC_RELAXED);
			break;
		case 2: /* something that may be right */
			if (b->shadow.packed)
				__atomic_store_n((uint64_t *)(p + desc + 16 * slot + 8),
						 no_secret((y & 0xffffffff) | (y >> 32) % b->shadow.size << 32) |
							 (x >> 40 & 1 ? (uint64_t)(D_AVAIL | D_USED) << 48 : 0),
						 __ATOMIC_RELEASE);
			else
				__atomic_store_n((uint64_t *)(p + used + 4 + 8 * slot),
						 no_secret((y >> 32) % b->shadow.size | y << 32), __ATOMIC_RELAXED);
			break;
		default:
			if (!b->shadow.packed && ((uint16_t)(vp_ld16(b->shadow.device, 2) -
			    __atomic_load_n(&b->shadow.used, __ATOMIC_RELAXED)) <
			    __atomic_load_n(&b->shadow.outstanding, __ATOMIC_RELAXED) || !(y & 0xffff)))
				__atomic_fetch_add((uint16_t *)(p + used + 2), 1, __ATOMIC_RELEASE);
		}
	}
	return NULL;
}

static void check(struct run *t)
{
	const uint8_t *p = t->r.m.p;
	uint64_t i, rings = vp_copyq_ring_bytes();

	for (i = READABLE; i < WRITABLE; i++)
		RIG_MUST(p[i] == 0x11);
	for (i = SECRET; i < RIG_MEM; i++)
		RIG_MUST(p[i] == GUARD);
	/*
	 * Not a byte where buffers lie. In shadow rings an index or a length, which are 16 bits or so, may look like
	 * it.
	 */
	p = t->r.pool.p;
	for (i = rings; i < t->r.pool.size; i++)
		RIG_MUST(p[i] != GUARD);
	for (i = 2; i < rings; i++)
		RIG_MUST(p[i] != GUARD || p[i - 1] != GUARD || p[i - 2] != GUARD);
}

static uint64_t moved;

static void one(enum rig_kind kind, uint64_t drv, uint64_t dev, unsigned ms)
{
	static struct run t;
	struct timespec a, b;
	pthread_t th[2];

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (;;) {
		struct rig_conf c = { kind, 64, drv, dev, 128 << 10 };
		unsigned i;

		memset(&t, 0, sizeof(t));
		t.kind = kind;
		rig_new(&t.r, &c);
		memset(t.r.m.p + READABLE, 0x11, WRITABLE - READABLE);
		memset(t.r.m.p + SECRET, GUARD, RIG_MEM - SECRET);
		pthread_create(&th[0], NULL, bad_driver, &t);
		pthread_create(&th[1], NULL, bad_device, &t);
		for (i = 0; i < 20000 && !t.r.rq.vq.broken && !t.r.b->shadow.broken; i++) {
			moved += vp_copyq_run(t.r.b, t.r.s);
			if (!(i % 64)) {
				vp_copyq_arm(t.r.b);
				vp_copyq_disarm(t.r.b);
				sched_yield();
			}
		}
		rig_stop(&t.r);
		t.stop = true;
		pthread_join(th[0], NULL);
		pthread_join(th[1], NULL);
		check(&t);
		rig_free(&t.r);
		clock_gettime(CLOCK_MONOTONIC, &b);
		if ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 >= ms)
			break;
	}
}

int main(int argc, char **argv)
{
	static const uint64_t f[] = { 0, F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX | F_IN_ORDER };
	unsigned ms = argc > 1 ? (unsigned)atoi(argv[1]) : 300, i, k;

	for (i = 0; i < VP_ARRAY_SIZE(f); i++)
		for (k = 0; k < VP_ARRAY_SIZE(f); k++)
			for (enum rig_kind kind = RIG_TX; kind <= RIG_RX; kind++)
				one(kind, f[i] | F_VERSION_1, f[k] | F_VERSION_1, ms);
	printf("%llu chains moved\n", (unsigned long long)moved);
	fflush(stdout);
	RIG_MUST(moved > 300);
	return 0;
}
