/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What it takes to open and close the gate of a protected port once: lib/vhostpci/gate.c itself, compiled in.
 *
 *   gate MS      one JSON object: cycles for both, the least of many runs; exit status 3 without protection keys
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cycles.h"
#include "base/err.h"
#include "vhostpci/gate.h"

#define RUN 1000

int main(int argc, char **argv)
{
	uint64_t best = UINT64_MAX, end;
	struct vp_err e = { 0 };

	if (argc != 2) {
		fprintf(stderr, "usage: gate MS\n");
		return 2;
	}
	if (vhp_gate_key(&e) < 0) {
		fprintf(stderr, "gate: %s\n", e.msg);
		return 3;
	}
	end = vp_cycles() + vp_cycles_hz() / 1000 * strtoull(argv[1], NULL, 10);
	do {
		uint64_t t0 = vp_cycles();

		for (unsigned i = 0; i < RUN; i++) {
			vhp_gate_open();
			vhp_gate_close();
		}
		t0 = vp_cycles() - t0;
		best = VP_MIN(best, t0);
	} while (vp_cycles() < end);
	printf("{\"cycles\": %.1f}\n", (double)best / RUN);
	return 0;
}
