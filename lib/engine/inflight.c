/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * struct inflight_split_region: features 0 (64 bit), version 8, desc_num 10, last_batch_head 12, used_idx 14, then for
 * each descriptor 16 bytes: inflight 0 (8 bit), next 6, counter 8.
 */
#include "engine/inflight.h"

#include <errno.h>
#include <stdlib.h>

#define VERSION 1u

uint64_t vp_inflight_bytes(uint16_t size)
{
	return vp_align_up(16 + 16 * (uint64_t)size, 64);
}

void vp_inflight_format(vp_gptr mem, uint16_t size)
{
	vp_st16(mem, 10, size);
	vp_st16_release(mem, 8, VERSION);
}

struct open_head {
	uint64_t counter;
	uint16_t head;
};

static int cmp_open(const void *a, const void *b)
{
	const struct open_head *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

int vp_inflight_open(struct vp_inflight *f, vp_gptr mem, uint16_t size, uint16_t used_idx, uint16_t *heads)
{
	uint16_t version = vp_ld16(mem, 8), num = vp_ld16(mem, 10), last = vp_ld16(mem, 12), seen = vp_ld16(mem, 14);
	struct open_head *o;
	unsigned n = 0;

	/* An area that was made for larger rings serves smaller ones; a fresh one carries no version. */
	if (version > VERSION || (version && num && num < size))
		return -EINVAL;
	o = calloc(size, sizeof(*o));
	if (!o)
		return -ENOMEM;
	if (!version || !num)
		vp_inflight_format(mem, size);
	/* The completion that was being made when the last device went. */
	if (seen != used_idx && last < size)
		vp_st8(mem, 16 + 16 * (size_t)last, 0);
	vp_st16(mem, 14, used_idx);
	*f = (struct vp_inflight){ .mem = mem, .size = size, .counter = 1, .on = true };
	for (unsigned i = 0; i < size; i++) {
		if (vp_ld8(mem, 16 + 16 * (size_t)i) != 1)
			continue;
		o[n++] = (struct open_head){ vp_ld64(mem, 16 + 16 * (size_t)i + 8), (uint16_t)i };
	}
	qsort(o, n, sizeof(*o), cmp_open);
	for (unsigned i = 0; i < n; i++)
		heads[i] = o[i].head;
	if (n && o[n - 1].counter < UINT64_MAX)
		f->counter = o[n - 1].counter + 1;
	free(o);
	return (int)n;
}
