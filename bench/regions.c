/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a region table of many entries costs per packet: a split ring whose buffers lie in another region each time, or
 * all in one. The driver side is lib/virtq's own; only the device side (look, translate, give back) is counted.
 *
 *   regions REGIONS one|all MS      one JSON object: cycles per packet, the median of rings full of packets, so that
 *                                   an interrupt or a change of process counts for nothing
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/virtio_config.h>

#include "base/cycles.h"
#include "virtq/drvq.h"
#include "virtq/virtq.h"

#define RING    256u
#define ROUNDS  (1u << 16) /* ringfuls that are counted at most */
#define BURST   32u
#define REGION  UINT64_C(0x10000)
#define STEP    (2 * REGION) /* a hole behind each, so that none can be joined */

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	unsigned n = argc == 4 ? (unsigned)atoi(argv[1]) : 0, at = 0, i;
	struct vp_region_desc *d = calloc(n + 1, sizeof(*d));
	uint64_t driver, device, bytes = vp_drvq_layout(RING, false, &driver, &device), end;
	bool all = argc == 4 && !strcmp(argv[2], "all");
	static struct vp_burst burst;
	static uint32_t cycles[ROUNDS];
	unsigned rounds = 0;
	static uint64_t addr[8192];
	struct vp_memtab *tab;
	struct vp_virtq vq;
	struct vp_drvq dq;
	struct vp_map *map;
	struct vp_err e;
	int fd = memfd_create("regions", MFD_CLOEXEC);

	if (n < 1 || n > VP_MEMTAB_MAX || !d || bytes > REGION) {
		fprintf(stderr, "usage: regions 1-%u one|all MS\n", VP_MEMTAB_MAX);
		return 2;
	}
	/* The ring in a region of its own, in front; the table holds n regions. */
	if (fd < 0 || ftruncate(fd, (off_t)(REGION * (n + 1))) || vp_map_new(&map, fd, 0, REGION * (n + 1), 0, &e)) {
		perror("regions");
		return 1;
	}
	for (i = 0; i < n; i++)
		d[i] = (struct vp_region_desc){
			.gpa = i * STEP, .size = REGION, .uva = i * STEP, .offset = i * REGION, .map = map
		};
	d[0].size = n > 1 ? REGION : 2 * REGION;
	if (vp_memtab_build(&tab, d, n, &e) || vp_drvq_init(&dq, RING, VP_BIT(VIRTIO_F_VERSION_1), tab->r[0].host) ||
	    vp_vq_start(&vq,
			&(struct vp_vq_conf){ .size = RING,
					      .features = VP_BIT(VIRTIO_F_VERSION_1),
					      .out_only = true,
					      .driver = driver,
					      .device = device,
					      .tab = tab },
			&e)) {
		fprintf(stderr, "regions: %s\n", e.msg);
		return 1;
	}
	end = vp_cycles_hz() / 1000 * strtoull(argv[3], NULL, 10);
	end += vp_cycles();
	/* Beforehand: a processor that is still dividing when the clock is read would count that. */
	for (i = 0; i < VP_ARRAY_SIZE(addr); i++) {
		/* 508 and 7 have no common factor: every region in turn, never the neighbour. */
		uint64_t r = !all ? n - 1 : n == 1 ? 0 : 1 + i * 7 % (n - 1);

		addr[i] = r * STEP + (n == 1 ? REGION : 0) + i % 32 * 2048;
	}
	while (rounds < ROUNDS && vp_cycles() < end) {
		struct vp_used used[BURST];
		uint64_t t0;
		uint32_t len;
		uint16_t id;

		for (i = 0; i < RING; i++, at++) {
			struct vp_drvq_buf b = { .addr = addr[at % VP_ARRAY_SIZE(addr)], .len = 76 };

			if (vp_drvq_add(&dq, &b, 1) < 0)
				return 1;
		}
		vp_drvq_publish(&dq);
		t0 = vp_cycles();
		while (vp_vq_fetch_dir(&vq, &burst, BURST, VP_READ)) {
			for (i = 0; i < burst.n; i++)
				used[i] = (struct vp_used){ .id = burst.chain[i].id, .slots = burst.chain[i].slots };
			vp_vq_advance(&vq, &burst, burst.n);
			vp_vq_complete(&vq, used, burst.n);
		}
		cycles[rounds++] = (uint32_t)(vp_cycles() - t0);
		while (vp_drvq_get(&dq, &id, &len) > 0)
			;
	}
	if (vq.broken || !rounds) {
		fprintf(stderr, "regions: %s\n", vp_vq_broken_str(vq.broken));
		return 1;
	}
	qsort(cycles, rounds, sizeof(cycles[0]), by_value);
	printf("{\"cycles\": %.2f}\n", (double)cycles[rounds / 2] / RING);
	return 0;
}
