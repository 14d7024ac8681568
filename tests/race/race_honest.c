/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A well-behaved driver thread against the device side: numbered, patterned
 * buffers, all feature combinations, polling and sleeping. Nothing may be lost,
 * doubled, reordered or damaged, no wake-up may be missing, and under
 * ThreadSanitizer every access must be ordered by the rings alone.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../unit/virtq/driver.h"

#define REQUIRE(x) do { if (!(x)) { \
	fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #x, what); abort(); } } while (0)

#define MEM   (8u << 20)
#define DATA  0x200000u
#define TABLE 0x100000u
#define CELL  2048u /* bytes of buffer space for each chain in flight */

static char what[128];

struct run {
	struct drv_mem m;
	struct drv d;
	struct vp_virtq vq;
	unsigned ms;      /* how long the driver goes on adding */
	uint64_t total;   /* how many there will be, once the driver knows */
	bool sleep;
	sem_t kick, call;
	uint64_t kicks, calls;
};

static uint8_t pattern(uint64_t number, unsigned i)
{
	return (uint8_t)(number * 167 + i * 13 + (number >> 8));
}

/* A wake-up that does not come within seconds is lost. */
static bool wait_for(sem_t *s)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 20;
	while (sem_timedwait(s, &ts) < 0)
		if (errno != EINTR)
			return false;
	return true;
}

static void *device(void *arg)
{
	struct run *r = arg;
	struct vp_burst *b = calloc(1, sizeof(*b));
	struct vp_used used[VP_BURST];
	uint64_t seed = 4711, next = 0;
	unsigned i, k, n, j;

	while (next < __atomic_load_n(&r->total, __ATOMIC_RELAXED)) {
		n = vp_vq_fetch(&r->vq, b, 1 + (unsigned)(drv_rand(&seed) % VP_BURST));
		REQUIRE(!r->vq.broken);
		if (!n) {
			if (r->sleep) {
				if (!vp_vq_enable_kicks(&r->vq))
					REQUIRE(wait_for(&r->kick));
				vp_vq_disable_kicks(&r->vq);
			} else {
				sched_yield();
			}
			continue;
		}
		n = 1 + (unsigned)(drv_rand(&seed) % n);
		for (i = 0; i < n; i++, next++) {
			const struct vp_chain *c = &b->chain[i];
			uint8_t buf[CELL];
			uint64_t number;

			REQUIRE(c->nout >= 1 && c->out_len >= 8 && c->out_len <= CELL);
			for (j = k = 0; k < c->nout; k++) {
				REQUIRE(drv_seg_ok(&r->m, &b->seg[c->seg + k]));
				vp_copy_in(buf + j, b->seg[c->seg + k].p, b->seg[c->seg + k].len);
				j += b->seg[c->seg + k].len;
			}
			memcpy(&number, buf, 8);
			REQUIRE(number == next);
			for (j = 8; j < c->out_len; j++)
				REQUIRE(buf[j] == pattern(number, j));
			for (j = 0; j < c->in_len; j++)
				buf[j] = pattern(~number, j);
			for (j = 0, k = c->nout; k < (unsigned)c->nout + c->nin; k++) {
				vp_copy_out(b->seg[c->seg + k].p, buf + j, b->seg[c->seg + k].len);
				j += b->seg[c->seg + k].len;
			}
			used[i] = (struct vp_used){ .id = c->id, .len = c->in_len, .slots = c->slots };
		}
		vp_vq_advance(&r->vq, b, n);
		if (!r->vq.in_order)
			for (i = 0; i < n; i++) {
				struct vp_used t = used[i];

				j = (unsigned)(drv_rand(&seed) % n);
				used[i] = used[j];
				used[j] = t;
			}
		for (i = 0; i < n; i += k) {
			k = 1 + (unsigned)(drv_rand(&seed) % (n - i));
			vp_vq_complete(&r->vq, used + i, k);
			if (r->sleep && vp_vq_need_call(&r->vq)) {
				r->calls++;
				sem_post(&r->call);
			}
		}
	}
	free(b);
	return NULL;
}

static void driver(struct run *r)
{
	struct { uint64_t number; unsigned in, read; bool busy; } *out = calloc(65536, sizeof(*out));
	uint64_t seed = 99, added = 0, got = 0;
	struct timespec t0, t;
	unsigned i, k, j;
	bool more = true;
	long ms;

	clock_gettime(CLOCK_MONOTONIC, &t0);
	while (more || got < added) {
		bool moved = false;
		uint16_t id;
		uint32_t len;

		for (k = 1 + (unsigned)(drv_rand(&seed) % 32); k && more; k--) {
			unsigned slot = r->d.packed ? (r->d.n_ids ? r->d.ids[r->d.n_ids - 1] : 0) : r->d.free_head;
			unsigned nout = 1 + (unsigned)(drv_rand(&seed) % 3), nin = (unsigned)(drv_rand(&seed) % 3);
			unsigned off = 0, in = 0;
			struct drv_buf b[5];
			int ret;

			if (r->d.num_free < nout + nin)
				break;
			for (i = 0; i < nout + nin; i++) {
				unsigned l = (i ? 1 : 8) + (unsigned)(drv_rand(&seed) % 200);

				b[i] = (struct drv_buf){ DATA + (uint64_t)CELL * slot + off, l, i >= nout };
				if (i >= nout)
					in += l;
				off += l;
			}
			for (j = 0, i = 0; i < nout; i++) {
				uint8_t *p = drv_ptr(&r->m, b[i].addr);
				unsigned x;

				for (x = 0; x < b[i].len; x++, j++)
					p[x] = j < 8 ? (uint8_t)(added >> 8 * j) : pattern(added, j);
			}
			ret = drv_add(&r->d, b, nout + nin, (r->d.features & F_INDIRECT) && drv_rand(&seed) % 2 ?
				      TABLE + 80ull * slot : 0);
			REQUIRE(ret >= 0 && (unsigned)ret == slot && !out[ret].busy);
			out[ret].number = added++;
			out[ret].in = in;
			out[ret].read = off - in;
			out[ret].busy = true;
			moved = true;
		}
		if (moved) {
			drv_publish(&r->d);
			if (r->sleep && drv_kick_needed(&r->d)) {
				r->kicks++;
				sem_post(&r->kick);
			}
		}
		while (drv_get_used(&r->d, &id, &len)) {
			const uint8_t *p = drv_ptr(&r->m, DATA + (uint64_t)CELL * id);

			REQUIRE(out[id].busy && len == out[id].in);
			if (r->vq.in_order)
				REQUIRE(out[id].number == got);
			/* The readable buffers are as they were, the writable ones lie behind them. */
			for (j = 0; j < out[id].read; j++)
				REQUIRE(p[j] == (j < 8 ? (uint8_t)(out[id].number >> 8 * j) :
						 pattern(out[id].number, j)));
			for (j = 0; j < len; j++)
				REQUIRE(p[out[id].read + j] == pattern(~out[id].number, j));
			out[id].busy = false;
			got++;
			moved = true;
		}
		clock_gettime(CLOCK_MONOTONIC, &t);
		ms = (t.tv_sec - t0.tv_sec) * 1000 + (t.tv_nsec - t0.tv_nsec) / 1000000;
		/* On a busy machine longer, so that something happens at all. */
		if (more && ms >= (long)r->ms && (added >= 300 || ms >= 20L * r->ms)) {
			more = false;
			__atomic_store_n(&r->total, added, __ATOMIC_RELAXED);
			sem_post(&r->kick); /* the device may be done, and asleep */
		} else if (!moved) {
			if (r->sleep) {
				if (!drv_enable_calls(&r->d))
					REQUIRE(wait_for(&r->call));
				drv_disable_calls(&r->d);
			} else {
				sched_yield();
			}
		}
	}
	REQUIRE(r->d.num_free == r->d.size);
	free(out);
}

static void one(uint16_t size, uint64_t features, bool sleep, unsigned ms)
{
	struct run *r = calloc(1, sizeof(*r));
	struct vp_vq_conf c;
	pthread_t t;

	snprintf(what, sizeof(what), "%s, size %u,%s%s%s %s", features & F_PACKED ? "packed" : "split", size,
		 features & F_INDIRECT ? " indirect" : "", features & F_EVENT_IDX ? " event_idx" : "",
		 features & F_IN_ORDER ? " in_order" : "", sleep ? "sleeping" : "polling");
	drv_mem_init(&r->m, MEM, NULL, 0);
	drv_mem_share(&r->m);
	drv_init(&r->d, &r->m, size, features, 0x1000);
	c = drv_conf(&r->d, features & F_PACKED ? 0x80008000 : 0);
	REQUIRE(!vp_vq_start(&r->vq, &c, NULL));
	r->ms = ms;
	r->total = UINT64_MAX;
	r->sleep = sleep;
	sem_init(&r->kick, 0, 0);
	sem_init(&r->call, 0, 0);
	REQUIRE(!pthread_create(&t, NULL, device, r));
	driver(r);
	pthread_join(t, NULL);
	printf("ok: %s, %llu chains, %llu kicks, %llu calls\n", what, (unsigned long long)r->total,
	       (unsigned long long)r->kicks,
	       (unsigned long long)r->calls);
	drv_free(&r->d);
	drv_mem_free(&r->m);
	free(r);
}

int main(int argc, char **argv)
{
	static const uint16_t split[] = { 8, 256 }, packed[] = { 7, 255 };
	unsigned ms = argc > 1 ? (unsigned)atoi(argv[1]) : 200, f, i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (f = 0; f < 32; f++) {
		uint64_t features = (f & 1 ? F_INDIRECT : 0) | (f & 2 ? F_EVENT_IDX : 0) | (f & 4 ? F_IN_ORDER : 0) |
				    (f & 8 ? F_PACKED : 0);

		for (i = 0; i < 2; i++)
			one(f & 8 ? packed[i] : split[i], features, f & 16, ms);
	}
	return 0;
}
