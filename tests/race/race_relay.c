/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The relay between two drivers that both rewrite their rings and packets as
 * fast as they can. Meant for AddressSanitizer; read-only memory and memory
 * outside the regions of both must stay as it was, and the counters must add up.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <linux/virtio_net.h>

#include "engine/relay.h"
#include "mutator.h"

#define F(x) VP_BIT(VIRTIO_NET_F_##x)

static void restart(struct run *r, struct vp_queue *q, uint64_t *seed)
{
	struct vp_vq_conf c = drv_conf(&r->d, hostile_base(r, seed));

	REQUIRE(!vp_vq_start(&q->vq, &c, NULL));
	q->blocked_since = 0;
}

static uint64_t delivered;

static void one(uint64_t fa, uint64_t fb, unsigned ms)
{
	struct run *ra = calloc(1, sizeof(*ra)), *rb = calloc(1, sizeof(*rb));
	struct vp_queue a = { .features = fa, .call_fd = -1 }, b = { .features = fb, .call_fd = -1 };
	struct vp_scratch *s = vp_scratch_new();
	uint64_t seed = 77, mine_a = 1234567, mine_b = 7654321, taken = 0, dropped = 0, broken_a = 0, broken_b = 0,
		 rounds = 0;
	struct timespec t0, t;
	pthread_t ta, tb;
	unsigned i;
	long t_ms;

	ra->role = SENDS;
	rb->role = RECEIVES;
	hostile_init(ra, fa & F_PACKED ? 61 : 64, fa);
	hostile_init(rb, fb & F_PACKED ? 61 : 64, fb);
	restart(ra, &a, &seed);
	restart(rb, &b, &seed);
	REQUIRE(!pthread_create(&ta, NULL, hostile, ra) && !pthread_create(&tb, NULL, hostile, rb));
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		unsigned n;

		hostile_steps(ra, &mine_a, 48);
		hostile_steps(rb, &mine_b, 48);
		n = vp_relay_run(&a, drv_rand(&seed) % 64 ? &b : NULL, s);

		REQUIRE(n <= VP_QUEUE_BURST);
		taken += n;
		if (a.vq.broken) {
			restart(ra, &a, &seed);
			broken_a++;
		}
		if (b.vq.broken) {
			restart(rb, &b, &seed);
			broken_b++;
		}
		__atomic_store_n(&ra->pos, a.vq.last_avail, __ATOMIC_RELAXED);
		__atomic_store_n(&rb->pos, b.vq.last_avail, __ATOMIC_RELAXED);
		if (!n)
			sched_yield();
		clock_gettime(CLOCK_MONOTONIC, &t);
		t_ms = (t.tv_sec - t0.tv_sec) * 1000 + (t.tv_nsec - t0.tv_nsec) / 1000000;
		rounds++;
	} while (t_ms < (long)ms || (t_ms < 20L * ms && rounds < 2000));
	ra->stop = rb->stop = true;
	pthread_join(ta, NULL);
	pthread_join(tb, NULL);
	hostile_check(ra);
	hostile_check(rb);
	for (i = 0; i < VP_DROP_MAX; i++)
		dropped += a.stats.drops[i];
	printf("%s to %s: %llu taken, %llu delivered, %llu dropped, %llu cut; broken %llu and %llu times\n",
	       fa & F_PACKED ? "packed" : "split", fb & F_PACKED ? "packed" : "split", (unsigned long long)taken,
	       (unsigned long long)a.stats.packets, (unsigned long long)dropped, (unsigned long long)a.stats.cut,
	       (unsigned long long)broken_a, (unsigned long long)broken_b);
	REQUIRE(a.stats.packets + dropped == taken);
	delivered += a.stats.packets;
	drv_free(&ra->d);
	drv_free(&rb->d);
	drv_mem_free(&ra->m);
	drv_mem_free(&rb->m);
	free(ra);
	free(rb);
	free(s);
}

int main(int argc, char **argv)
{
	unsigned ms = argc > 1 ? (unsigned)atoi(argv[1]) : 400, f;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (f = 0; f < 16; f++)
		one(F_VERSION_1 | F(CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F_INDIRECT | (f & 1 ? F_PACKED : 0),
		    (f & 4 ? F_VERSION_1 : 0) | F_INDIRECT | F_EVENT_IDX | (f & 2 ? F_PACKED : 0) |
		    (f & 8 ? F(MRG_RXBUF) : 0), ms);
	REQUIRE(delivered); /* else nothing was tested */
	return 0;
}
