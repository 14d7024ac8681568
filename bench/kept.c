/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What it costs the copy engine to write down where it is (engine/copyq_kept.c), on one core: driver and device side
 * are this program, and only vp_copyq_run() is timed. Bursts with and without take turns, eight and eight.
 *
 *   kept
 *
 * Prints one line of JSON: for each direction, format of both rings and size of burst the 10th and the 50th percentile
 * of the cycles of a burst of 64 B packets, without and with.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cycles.h"

#include "../tests/unit/engine/rig.h"

#define SIZE   256
#define RUNS   8000
#define TURN   8   /* bursts of one kind in a row, of which the first two do not count */
#define LENGTH (12 + 64)

static uint64_t took[2][RUNS];
static unsigned n_took[2];
static struct rig rig[2]; /* without and with */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void offer(struct rig *r, unsigned n, bool write, unsigned *at)
{
	for (; n; n--, *at = (*at + 1) % SIZE) {
		const struct drv_buf b = { .addr = RIG_DATA + 2048ull * *at, .len = write ? 2048 : LENGTH,
					   .write = write };

		RIG_MUST(drv_add(&r->d, &b, 1, 0) >= 0);
	}
	drv_publish(&r->d);
}

static void reap(struct rig *r)
{
	uint32_t len;
	uint16_t id;

	while (drv_get_used(&r->d, &id, &len))
		;
}

/* The device side returns all that it has, with a packet in it. */
static void turn_round(struct rig *r, bool write)
{
	struct vp_used u[VP_BURST];
	unsigned n;

	while ((n = vp_vq_fetch(&r->dev, &r->burst, VP_BURST))) {
		for (unsigned i = 0; i < n; i++) {
			const struct vp_chain *c = &r->burst.chain[i];

			if (write)
				for (unsigned k = 0; k < 12; k++)
					vp_st8(r->burst.seg[c->seg].p, k, 0);
			u[i] = (struct vp_used){ .id = c->id, .slots = c->slots, .len = write ? LENGTH : 0 };
		}
		vp_vq_advance(&r->dev, &r->burst, n);
		vp_vq_complete(&r->dev, u, n);
	}
}

static unsigned long pct(unsigned which, unsigned p)
{
	qsort(took[which], n_took[which], sizeof(took[which][0]), by_value);
	return (unsigned long)took[which][n_took[which] * p / 100];
}

static void measure(enum rig_kind kind, bool packed, unsigned burst, void *kept, bool first)
{
	const uint64_t f = packed ? F_PACKED | F_VERSION_1 : F_VERSION_1;
	unsigned at[2] = { 0 };
	static struct vp_place line;

	n_took[0] = n_took[1] = 0;
	memset(kept, 0, vp_copyq_kept_bytes());
	for (unsigned k = 0; k < 2; k++) {
		const struct rig_conf c = { kind, SIZE, f, f, 0, k ? kept : NULL };

		rig_new(&rig[k], &c);
		rig[k].rq.vq.place = k ? &line : NULL;
		vp_vq_disable_kicks(&rig[k].dev);
		drv_disable_calls(&rig[k].d);
	}
	for (unsigned i = 0; n_took[1] < RUNS; i++) {
		const unsigned k = i / TURN & 1;
		struct rig *r = &rig[k];
		uint64_t from;

		/* Of a receive queue the last ones come back, and new ones go to the device side. */
		offer(r, burst, kind == RIG_RX, &at[k]);
		from = vp_cycles();
		vp_copyq_run(r->b, r->s);
		from = vp_cycles() - from;
		if (i % TURN >= 2 && n_took[k] < RUNS)
			took[k][n_took[k]++] = from;
		turn_round(r, kind == RIG_RX);
		reap(r);
	}
	printf("%s{\"direction\": \"%s\", \"packed\": %s, \"burst\": %u, \"p10\": [%lu, %lu], \"p50\": [%lu, %lu]}",
	       first ? "" : ", ", kind == RIG_TX ? "transmit" : "receive", packed ? "true" : "false", burst, pct(0, 10),
	       pct(1, 10), pct(0, 50), pct(1, 50));
	rig_free(&rig[0]);
	rig_free(&rig[1]);
}

int main(void)
{
	void *kept = mmap(NULL, vp_copyq_kept_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bool first = true;

	RIG_MUST(kept != MAP_FAILED);
	printf("[");
	for (unsigned kind = 0; kind < 2; kind++)
		for (unsigned packed = 0; packed < 2; packed++)
			for (unsigned burst = 1; burst <= 32; burst *= burst == 1 ? 8 : 4) {
				measure(kind ? RIG_RX : RIG_TX, packed, burst, kept, first);
				first = false;
			}
	printf("]\n");
	return 0;
}
