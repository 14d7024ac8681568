/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/runs.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

int vp_runs_init(struct vp_runs *r, uint32_t n)
{
	uint32_t words = (n + 63) / 64;

	*r = (struct vp_runs){ .n = n, .free = n };
	r->bit = calloc(words + 1, sizeof(*r->bit));
	if (!r->bit)
		return -ENOMEM;
	for (uint32_t w = 0; w < words; w++)
		r->bit[w] = ~UINT64_C(0);
	if (n % 64)
		r->bit[words - 1] = (UINT64_C(1) << n % 64) - 1;
	return 0;
}

void vp_runs_fini(struct vp_runs *r)
{
	free(r->bit);
	r->bit = NULL;
}

/* Set or clear blocks [at, at + n). */
static void mark(struct vp_runs *r, uint32_t at, uint32_t n, bool free)
{
	while (n) {
		uint32_t off = at % 64, k = VP_MIN(n, 64 - off);
		uint64_t mask = (k == 64 ? ~UINT64_C(0) : (UINT64_C(1) << k) - 1) << off;

		if (free)
			r->bit[at / 64] |= mask;
		else
			r->bit[at / 64] &= ~mask;
		at += k;
		n -= k;
	}
}

/* The first free block at or behind `at`; r->n when there is none. */
static uint32_t next_free(const struct vp_runs *r, uint32_t at)
{
	uint32_t w = at / 64, words = (r->n + 63) / 64;
	uint64_t v;

	if (at >= r->n)
		return r->n;
	v = r->bit[w] & (~UINT64_C(0) << at % 64);
	while (!v && ++w < words)
		v = r->bit[w];
	return v ? w * 64 + (uint32_t)__builtin_ctzll(v) : r->n;
}

/* Free blocks from at on, up to max. */
static uint32_t run_length(const struct vp_runs *r, uint32_t at, uint32_t max)
{
	uint32_t len = 0;

	while (len < max && at + len < r->n) {
		uint32_t off = (at + len) % 64;
		uint64_t used = ~r->bit[(at + len) / 64] >> off;
		uint32_t k = used ? (uint32_t)__builtin_ctzll(used) : 64 - off;

		len += k;
		if (k < 64 - off)
			break;
	}
	return VP_MIN(VP_MIN(len, max), r->n - at);
}

unsigned vp_runs_take(struct vp_runs *r, uint32_t n, struct vp_run *out, unsigned max)
{
	uint32_t at, len, got = 0;
	unsigned k = 0;

	if (!n || n > r->free)
		return 0;
	at = next_free(r, r->low * 64);
	r->low = at / 64;
	for (; at < r->n; at = next_free(r, at + len + 1)) {
		len = run_length(r, at, n);
		if (len == n) {
			out[0] = (struct vp_run){ at, n };
			mark(r, at, n, false);
			r->free -= n;
			return 1;
		}
	}
	/* Fragments. */
	for (at = next_free(r, r->low * 64); at < r->n && k < max && got < n; at = next_free(r, at + len + 1)) {
		len = run_length(r, at, n - got);
		out[k++] = (struct vp_run){ at, len };
		got += len;
	}
	if (got < n)
		return 0;
	for (unsigned i = 0; i < k; i++)
		mark(r, out[i].at, out[i].n, false);
	r->free -= n;
	return k;
}

void vp_runs_give(struct vp_runs *r, const struct vp_run *run)
{
	mark(r, run->at, run->n, true);
	r->free += run->n;
	r->low = VP_MIN(r->low, run->at / 64);
}

bool vp_runs_claim(struct vp_runs *r, const struct vp_run *run)
{
	if (!run->n || run->at >= r->n || run->n > r->n - run->at || run_length(r, run->at, run->n) != run->n)
		return false;
	mark(r, run->at, run->n, false);
	r->free -= run->n;
	return true;
}
