/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What it costs the relay to write down where its rings are (virtq/place.h), on one core: both drivers are this
 * program, and only vp_relay_run() is timed. Bursts with and without take turns, eight and eight.
 *
 *   places
 *
 * Prints one line of JSON: for each ring format and size of burst the 10th and the 50th percentile of the cycles of a
 * burst of 64 B packets, without and with.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cycles.h"
#include "engine/relay.h"

#include "../tests/unit/virtq/driver.h"

#define SIZE   256
#define RUNS   8000
#define TURN   8       /* bursts of one kind in a row, of which the first two do not count */
#define BASE   0x80008000u /* of an unused packed ring */
#define LENGTH (12 + 64)

static uint64_t took[2][RUNS];
static unsigned n_took[2];

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void offer(struct drv *d, unsigned n, bool write, unsigned *at)
{
	for (; n; n--, *at = (*at + 1) % SIZE) {
		const struct drv_buf b = { .addr = (1u << 20) + 2048 * *at,
					   .len = write ? 2048 : LENGTH,
					   .write = write };

		if (drv_add(d, &b, 1, 0) < 0)
			exit(1);
	}
	drv_publish(d);
}

static void reap(struct drv *d)
{
	uint32_t len;
	uint16_t id;

	while (drv_get_used(d, &id, &len))
		;
}

static void measure(bool packed, unsigned burst, struct vp_scratch *s, struct vp_place *line)
{
	static struct vp_queue q[2];
	struct drv_mem m[2];
	struct drv d[2];
	unsigned at[2] = { 0 };

	for (unsigned i = 0; i < 2; i++) {
		struct vp_err e = { 0 };
		struct vp_vq_conf c;

		drv_mem_init(&m[i], 8 << 20, NULL, 0);
		drv_init(&d[i], &m[i], SIZE, F_VERSION_1 | (packed ? F_PACKED : 0), 0);
		c = drv_conf(&d[i], packed ? BASE : 0);
		c.out_only = !i;
		if (vp_vq_start(&q[i].vq, &c, &e))
			exit(1);
		q[i].features = d[i].features;
		q[i].call_fd = -1;
		vp_vq_disable_kicks(&q[i].vq);
		n_took[i] = 0;
	}
	for (unsigned k = 0; k < RUNS; k++) {
		const unsigned kept = k / TURN % 2;
		uint64_t t0;

		for (unsigned i = 0; i < 2; i++) {
			offer(&d[i], burst, i, &at[i]);
			q[i].vq.place = kept ? &line[i] : NULL;
			if (kept && k % TURN == 0)
				vp_place_reset(&line[i], &q[i].vq);
		}
		t0 = vp_cycles();
		if (vp_relay_run(&q[0], &q[1], s) != burst)
			exit(1);
		if (k % TURN > 1)
			took[kept][n_took[kept]++] = vp_cycles() - t0;
		reap(&d[0]);
		reap(&d[1]);
	}
	printf("\"%s, bursts of %u\": [", packed ? "packed" : "split", burst);
	for (unsigned i = 0; i < 2; i++) {
		qsort(took[i], n_took[i], sizeof(took[i][0]), by_value);
		printf("%s%llu, %llu", i ? ", " : "", (unsigned long long)took[i][n_took[i] / 10],
		       (unsigned long long)took[i][n_took[i] / 2]);
		drv_free(&d[i]);
		drv_mem_free(&m[i]);
	}
	printf("]");
}

int main(void)
{
	struct vp_place *line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct vp_scratch *s = vp_scratch_new();

	if (!s || line == MAP_FAILED)
		return 1;
	printf("{");
	for (unsigned packed = 0; packed < 2; packed++)
		for (unsigned burst = 4; burst <= VP_QUEUE_BURST; burst *= 2) {
			measure(packed, burst, s, line);
			printf(packed && burst == VP_QUEUE_BURST ? "}\n" : ", ");
		}
	free(s);
	return 0;
}
