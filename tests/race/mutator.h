/* SPDX-License-Identifier: BSD-3-Clause */
/* A driver thread that rewrites ring memory as fast as it can, with values that get deep. */
#ifndef VP_TESTS_MUTATOR_H
#define VP_TESTS_MUTATOR_H

#include <stdio.h>
#include <stdlib.h>

#include "../unit/virtq/driver.h"

#define REQUIRE(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); abort(); } } while (0)

#define MEM      (4u << 20)
#define TABLE    0x80000u
#define DATA     0x100000u
#define READONLY 0x300000u /* mapped writable for nobody */
#define CANARY   0x380000u /* in the file, in no region */

struct run {
	struct drv_mem m;
	struct drv d;
	volatile bool stop;
	enum { ANY, SENDS, RECEIVES } role; /* of a net device's queue: more of its chains make sense */
	uint16_t pos; /* about where the device side is: an attacker can see that */
};

static uint64_t some_addr(uint64_t r)
{
	static const uint64_t base[] = { DATA, DATA, DATA, TABLE, READONLY, 0x200000 - 100, 0x280000 - 60,
					 READONLY - 40, CANARY - 8, UINT64_MAX - 100, 0x1000 };

	return base[(r >> 32) % VP_ARRAY_SIZE(base)] + (r & 0x7f) + (r & 0x80 ? r & 0xff00 : 0);
}

static uint32_t some_len(uint64_t r)
{
	switch (r % 8) {
	case 0:
		return 0;
	case 1:
		return UINT32_MAX - (r >> 8) % 64;
	case 2:
		return (uint32_t)(r >> 8) & 0xfffff;
	default:
		return (uint32_t)(r >> 8) & 0xff;
	}
}

static uint64_t some_word(const struct run *run, uint64_t r, uint32_t len)
{
	const struct drv *d = &run->d;
	uint64_t flags = 0, link = (r >> 20) % (d->size + (r & 0xf00 ? 0 : 9));

	if (!(r & 3))
		flags |= D_NEXT;
	if (r & 4)
		flags |= D_WRITE;
	if (!(r & 0x38)) {
		flags |= D_INDIRECT;
		len = 16 * ((r >> 40) % 40) + (r & 0x3c0 ? 0 : 5);
	}
	if (run->role != ANY && (r >> 48) % 32) {
		flags = run->role == RECEIVES ? D_WRITE : flags & (D_NEXT | D_INDIRECT) & -(uint64_t)!(r >> 53 & 3);
		len = run->role == RECEIVES ? 1526 : 26 + (uint32_t)(r >> 40) % 3000;
	}
	if (d->packed)
		return len | link << 32 | (flags | (r & 0x400 ? D_AVAIL : 0) | (r & 0x800 ? D_USED : 0)) << 48;
	return len | flags << 32 | link << 48;
}

/* n random writes. The device side's thread does some as well, so that a busy machine gets its share of them. */
static void hostile_steps(struct run *r, uint64_t *seed, unsigned n)
{
	struct drv *d = &r->d;

	while (n--) {
		uint64_t x = drv_rand(seed), y = drv_rand(seed);
		unsigned slot = (unsigned)(x % d->size), near = __atomic_load_n(&r->pos, __ATOMIC_RELAXED);
		uint64_t at;

		if (d->packed && !(x >> 40 & 1))
			slot = (near + (unsigned)(x & 3)) % d->size;
		at = x & 0x10000000 ? d->desc + 16ull * slot : TABLE + 16 * (x % 64);

		switch (y % 8) {
		case 0:
			drv_put64(&r->m, at, some_addr(y >> 8));
			break;
		case 1:
			drv_put64(&r->m, at, x & 0x20000000 ? some_addr(y >> 8) : TABLE);
			drv_put64(&r->m, at + 8, some_word(r, y >> 8, some_len(x >> 32)));
			break;
		case 2: case 3:
			drv_put64(&r->m, at + 8, some_word(r, y >> 8, some_len(x >> 32)));
			break;
		case 4:
			if (d->packed)
				drv_put16(&r->m, d->driver + 2 * (x & 1), (uint16_t)y);
			else
				drv_put16(&r->m, d->driver + 4 + 2 * slot, (uint16_t)((y >> 8) % (d->size + 1)));
			break;
		case 5: /* more is available, now and then more than can be */
			if (!d->packed)
				drv_put16(&r->m, d->driver + 2, (uint16_t)(drv_get16(&r->m, d->driver + 2) +
					  (y >> 8) % (y & 0xf0000000 ? 3 : d->size + 3)));
			break;
		case 6:
			if (r->role == SENDS && y & 0x10000) { /* an offload header at a place that buffers start at */
				drv_put64(&r->m, DATA + (x & 0x78),
					  y & 0x20000 ? 0 : 0x0022000000420101 ^ (y >> 40 & 5));
				break;
			}
			drv_put16(&r->m, d->driver, (uint16_t)(y >> 8));
			break;
		default: /* what the device writes, too */
			drv_put16(&r->m, d->device + 2 * (x % (d->packed ? 2 : 4 * d->size)), (uint16_t)(y >> 8));
		}
	}
}

static void *hostile(void *arg)
{
	struct run *r = arg;
	uint64_t seed = 2463534242u;

	while (!r->stop)
		hostile_steps(r, &seed, 64);
	return NULL;
}

/*
 * The memory of such a driver: two regions that are neighbours in guest addresses only, one
 * read-only, and a canary that lies in the file but in no region. Lays the ring out as well.
 */
static void hostile_init(struct run *r, uint16_t size, uint64_t features)
{
	static const struct drv_region reg[] = { { 0, 0x200000, 0 }, { 0x200000, 0x80000, 0x280000 },
						 { 0x280000, 0x80000, 0x200000 } };
	struct vp_region_desc rd[4];
	struct vp_memtab *t4;
	unsigned i;

	drv_mem_init(&r->m, MEM, reg, 3);
	for (i = 0; i < 3; i++)
		rd[i] = (struct vp_region_desc){ .gpa = reg[i].gpa, .size = reg[i].size, .map = r->m.tab->r[i].map };
	rd[3] = (struct vp_region_desc){ .gpa = READONLY, .size = 0x1000 };
	REQUIRE(!vp_map_new(&rd[3].map, r->m.fd, READONLY, 0x1000, VP_MAP_READONLY, NULL));
	memset(r->m.p + READONLY, 0x77, 0x1000);
	memset(r->m.p + CANARY, 0x77, 0x1000);
	drv_init(&r->d, &r->m, size, features, 0x1000);
	REQUIRE(!vp_memtab_build(&t4, rd, 4, NULL));
	vp_map_unref(rd[3].map);
	vp_memtab_free(r->m.tab);
	r->m.tab = t4;
}

static void hostile_check(struct run *r)
{
	unsigned i;

	for (i = 0; i < 0x1000; i++)
		REQUIRE(r->m.p[READONLY + i] == 0x77 && r->m.p[CANARY + i] == 0x77);
}

/* Where a broken ring starts again: anywhere that the driver's indices make plausible. */
static uint32_t hostile_base(struct run *r, uint64_t *seed)
{
	unsigned size = r->d.size;

	if (r->d.packed)
		return (uint32_t)(drv_rand(seed) % size << 16 | drv_rand(seed) % size | (drv_rand(seed) & 0x80008000u));
	return (uint16_t)(drv_get16(&r->m, r->d.driver + 2) - drv_rand(seed) % (size + 2u));
}

#endif
