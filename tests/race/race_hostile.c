/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver thread that rewrites ring memory as fast as it can while the device
 * side works on it. Meant for AddressSanitizer. Every segment that the device
 * side hands out must lie in the region that its address names, and the
 * read-only region and a canary region that no table names stay as they were.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

static uint64_t some_word(const struct drv *d, uint64_t r, uint32_t len)
{
	uint64_t flags = 0, link = (r >> 20) % (d->size + (r & 0xf00 ? 0 : 9));

	if (!(r & 3))
		flags |= D_NEXT;
	if (r & 4)
		flags |= D_WRITE;
	if (!(r & 0x38)) {
		flags |= D_INDIRECT;
		len = 16 * ((r >> 40) % 40) + (r & 0x3c0 ? 0 : 5);
	}
	if (d->packed)
		return len | link << 32 | (flags | (r & 0x400 ? D_AVAIL : 0) | (r & 0x800 ? D_USED : 0)) << 48;
	return len | flags << 32 | link << 48;
}

static void *hostile(void *arg)
{
	struct run *r = arg;
	struct drv *d = &r->d;
	uint64_t seed = 2463534242u, n;

	while (!r->stop) {
		for (n = 0; n < 64; n++) {
			uint64_t x = drv_rand(&seed), y = drv_rand(&seed);
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
				drv_put64(&r->m, at + 8, some_word(d, y >> 8, some_len(x >> 32)));
				break;
			case 2: case 3:
				drv_put64(&r->m, at + 8, some_word(d, y >> 8, some_len(x >> 32)));
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
				drv_put16(&r->m, d->driver, (uint16_t)(y >> 8));
				break;
			default: /* what the device writes, too */
				drv_put16(&r->m, d->device + 2 * (x % (d->packed ? 2 : 4 * d->size)), (uint16_t)(y >> 8));
			}
		}
	}
	return NULL;
}

static void one(uint16_t size, uint64_t features, unsigned ms)
{
	/* The regions: two neighbours that are none in the file, and one that is read-only. */
	static const struct drv_region reg[] = { { 0, 0x200000, 0 }, { 0x200000, 0x80000, 0x280000 },
						 { 0x280000, 0x80000, 0x200000 } };
	struct vp_region_desc rd[4];
	struct run *r = calloc(1, sizeof(*r));
	struct vp_burst *b = malloc(sizeof(*b));
	uint64_t rounds = 0, chains = 0, segs = 0, broke[VP_VQ_BROKEN_MAX] = { 0 }, seed = 5;
	struct timespec t0, t;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	pthread_t th;
	unsigned i, j, n;
	static uint8_t sink[65536];
	bool fight;
	long t_ms;

	drv_mem_init(&r->m, MEM, reg, 3);
	for (i = 0; i < 3; i++)
		rd[i] = (struct vp_region_desc){ .gpa = reg[i].gpa, .size = reg[i].size, .map = r->m.tab->r[i].map };
	rd[3] = (struct vp_region_desc){ .gpa = READONLY, .size = 0x1000 };
	REQUIRE(!vp_map_new(&rd[3].map, r->m.fd, READONLY, 0x1000, VP_MAP_READONLY, NULL));
	memset(r->m.p + READONLY, 0x77, 0x1000);
	memset(r->m.p + CANARY, 0x77, 0x1000);
	drv_init(&r->d, &r->m, size, features, 0x1000);
	{
		struct vp_memtab *t4;

		REQUIRE(!vp_memtab_build(&t4, rd, 4, NULL));
		vp_map_unref(rd[3].map);
		vp_memtab_free(r->m.tab);
		r->m.tab = t4;
	}
	c = drv_conf(&r->d, features & F_PACKED ? 0x80008000 : 0);
	REQUIRE(!vp_vq_start(&vq, &c, NULL));
	REQUIRE(!pthread_create(&th, NULL, hostile, r));
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		struct vp_used used[VP_BURST];
		unsigned done = 0;

		n = rounds & 1 ? vp_vq_fetch(&vq, b, VP_BURST) : vp_vq_fetch_dir(&vq, b, VP_BURST, VP_WRITE);
		REQUIRE(n <= VP_BURST && n <= size);
		for (i = 0; i < n; i++) {
			const struct vp_chain *ch = &b->chain[i];
			uint64_t out = 0, in = 0;

			REQUIRE(ch->slots >= 1 && ch->slots <= size);
			for (j = 0; j < (unsigned)ch->nout + ch->nin; j++) {
				const struct vp_seg *s = &b->seg[ch->seg + j];
				uint32_t l = VP_MIN(s->len, (uint32_t)sizeof(sink));

				REQUIRE(ch->seg + j < b->nseg && drv_seg_ok(&r->m, s));
				if (j < ch->nout) {
					out += s->len;
					vp_copy_in(sink, s->p, l);
				} else {
					in += s->len;
					REQUIRE(s->addr < READONLY || s->addr >= READONLY + 0x1000);
					if (s->addr >= DATA) /* to be found again, the rings are left alone */
						vp_copy_out(s->p, sink, l);
				}
				segs++;
			}
			REQUIRE(out == ch->out_len && in == ch->in_len);
			used[i] = (struct vp_used){ .id = ch->id, .len = ch->in_len, .slots = ch->slots };
		}
		chains += n;
		if (n && drv_rand(&seed) % 4)
			n = 1 + (unsigned)(drv_rand(&seed) % n);
		vp_vq_advance(&vq, b, n);
		while (done < n) {
			unsigned k = 1 + (unsigned)(drv_rand(&seed) % (n - done));

			vp_vq_complete(&vq, used + done, k);
			done += k;
			(void)vp_vq_need_call(&vq);
		}
		if (!(drv_rand(&seed) % 8)) {
			(void)vp_vq_enable_kicks(&vq);
			vp_vq_disable_kicks(&vq);
		}
		if (features & F_PACKED)
			REQUIRE(vq.last_avail < size && vq.used_idx < size);
		if (vq.broken) {
			REQUIRE(vq.broken < VP_VQ_BROKEN_MAX);
			broke[vq.broken]++;
			c = drv_conf(&r->d, features & F_PACKED ? (uint32_t)(drv_rand(&seed) % size << 16 | drv_rand(&seed) % size |
						(drv_rand(&seed) & 0x80008000u)) :
				     (uint16_t)(drv_get16(&r->m, r->d.driver + 2) - drv_rand(&seed) % (size + 2u)));
			REQUIRE(!vp_vq_start(&vq, &c, NULL));
		}
		rounds++;
		__atomic_store_n(&r->pos, vq.last_avail, __ATOMIC_RELAXED);
		if (!n)
			sched_yield(); /* with one processor, too */
		clock_gettime(CLOCK_MONOTONIC, &t);
		t_ms = (t.tv_sec - t0.tv_sec) * 1000 + (t.tv_nsec - t0.tv_nsec) / 1000000;
		/* It must have been a fight: chains got through and rings broke. A busy machine needs longer. */
		fight = chains && segs && broke[VP_VQ_BAD_ADDR] && broke[VP_VQ_BAD_ORDER];
	} while (t_ms < (long)ms || (!fight && t_ms < 50L * ms));
	r->stop = true;
	pthread_join(th, NULL);
	for (i = 0; i < 0x1000; i++)
		REQUIRE(r->m.p[READONLY + i] == 0x77 && r->m.p[CANARY + i] == 0x77);
	printf("%s %u%s%s: %llu rounds, %llu chains, %llu segments; broken:", features & F_PACKED ? "packed" : "split", size,
	       features & F_INDIRECT ? " indirect" : "", features & F_EVENT_IDX ? " event_idx" : "",
	       (unsigned long long)rounds, (unsigned long long)chains, (unsigned long long)segs);
	for (i = 1; i < VP_VQ_BROKEN_MAX; i++)
		printf(" %llu", (unsigned long long)broke[i]);
	printf("\n");
	REQUIRE(fight);
	drv_free(&r->d);
	drv_mem_free(&r->m);
	free(b);
	free(r);
}

int main(int argc, char **argv)
{
	unsigned ms = argc > 1 ? (unsigned)atoi(argv[1]) : 400, f;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (f = 0; f < 8; f++) {
		uint64_t features = (f & 1 ? F_INDIRECT : 0) | (f & 2 ? F_EVENT_IDX : 0) | (f & 4 ? F_PACKED : 0);

		one(f & 4 ? 13 : 16, features, ms);
		one(256, features, ms);
	}
	return 0;
}
