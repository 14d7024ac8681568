/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver thread that rewrites ring memory as fast as it can while the device
 * side works on it. Meant for AddressSanitizer. Every segment that the device
 * side hands out must lie in the region that its address names, and the
 * read-only region and a canary region that no table names stay as they were.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "mutator.h"

static unsigned fights;

static void one(uint16_t size, uint64_t features, unsigned ms)
{
	struct run *r = calloc(1, sizeof(*r));
	struct vp_burst *b = calloc(1, sizeof(*b));
	uint64_t rounds = 0, chains = 0, segs = 0, broke[VP_VQ_BROKEN_MAX] = { 0 }, seed = 5, mine = 6;
	struct timespec t0, t;
	struct vp_virtq vq;
	struct vp_vq_conf c;
	pthread_t th;
	unsigned i, j, n;
	static uint8_t sink[65536];
	bool fight;
	long t_ms;

	hostile_init(r, size, features);
	c = drv_conf(&r->d, features & F_PACKED ? 0x80008000 : 0);
	REQUIRE(!vp_vq_start(&vq, &c, NULL));
	REQUIRE(!pthread_create(&th, NULL, hostile, r));
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		struct vp_used used[VP_BURST];
		unsigned done = 0;

		hostile_steps(r, &mine, 16);
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
			c = drv_conf(&r->d, hostile_base(r, &seed));
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
	} while (t_ms < (long)ms || ((!fight || rounds < 1000) && t_ms < 10L * ms));
	r->stop = true;
	pthread_join(th, NULL);
	hostile_check(r);
	printf("%s %u%s%s: %llu rounds, %llu chains, %llu segments; broken:", features & F_PACKED ? "packed" : "split",
	       size, features & F_INDIRECT ? " indirect" : "", features & F_EVENT_IDX ? " event_idx" : "",
	       (unsigned long long)rounds, (unsigned long long)chains, (unsigned long long)segs);
	for (i = 1; i < VP_VQ_BROKEN_MAX; i++)
		printf(" %llu", (unsigned long long)broke[i]);
	printf("\n");
	fights += fight;
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
	REQUIRE(fights); /* else nothing was tested */
	return 0;
}
