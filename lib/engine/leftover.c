/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/leftover.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

int vp_leftover_count(const struct vp_virtq *vq)
{
	const unsigned size = vq->size, mask = size - 1;
	unsigned same = 0, n;

	if (vq->packed)
		return -ENODATA;
	for (; same < size; same++) {
		unsigned at = (vq->used_idx - 1u - same) & mask;

		if (vp_ld32(vq->device, 4 + 8 * (size_t)at) != vp_ld16(vq->driver, 4 + 2 * (size_t)at))
			break;
	}
	/*
	 * The driver may go on meanwhile, over places that were just compared: the index comes last. It does not go
	 * further than once around what was returned.
	 */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	n = (uint16_t)(vp_ld16(vq->driver, 2) - vq->used_idx);
	return n <= size && same >= size - n ? (int)n : -ENODATA;
}

uint32_t vp_fuse_fail(struct vp_virtq *vq, uint64_t ask, uint32_t ask_len, uint64_t answer, uint32_t answer_len)
{
	/* struct fuse_out_header: length, error, and the request's number, which is in its struct fuse_in_header. */
	uint8_t h[16] = { sizeof(h), 0, 0, 0, (uint8_t)-EIO, 0xff, 0xff, 0xff };

	if (ask_len < 16 || answer_len < sizeof(h) || vp_xlate_copy_in(&vq->xl, h + 8, ask + 8, 8) ||
	    vp_xlate_copy_out(&vq->xl, answer, h, sizeof(h)))
		return 0;
	if (vq->log)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, answer, sizeof(h));
	return sizeof(h);
}

/* The first n fail. */
static void fail_next(struct vp_virtq *vq, unsigned n, struct vp_burst *b)
{
	while (n) {
		unsigned got = vp_vq_fetch(vq, b, VP_MIN(n, VP_BURST));

		if (!got)
			break;
		for (unsigned i = 0; i < got; i++) {
			const struct vp_chain *c = &b->chain[i];
			const struct vp_seg *ask = &b->seg[c->seg], *answer = ask + c->nout;
			struct vp_used u = { .id = c->id, .slots = c->slots };

			if (c->nout && c->nin)
				u.len = vp_fuse_fail(vq, ask->addr, ask->len, answer->addr, answer->len);
			vp_vq_complete(vq, &u, 1);
		}
		vp_vq_advance(vq, b, got);
		n -= got;
	}
}

/* ---- in another order --------------------------------------------------------------------------------------- */

#define TRIES     8u	/* the driver may make requests meanwhile, until the ring is full */
/*
 * Descriptors that all tries together look at: what a driver can make of a large ring would take seconds. Of one that
 * is used as it is meant to be, a head has some hundreds at most, and most heads are none.
 */
#define LOOKS     (4u << 20)
#define OLD	  UINT32_MAX

enum head_is {
	HEAD_RETURNED, /* for certain, or it is the head of nothing */
	HEAD_OPEN,     /* a request whose answer is not there */
	HEAD_MAYBE,    /* one that is answered or wants no answer, and was not seen to be returned */
};

struct head {
	uint32_t at;   /* how many have become available since, OLD: it does not show any more */
	uint32_t used; /* the same in what was returned: returned after so many that are available by now */
	int seen;      /* more often available than returned, as far as it shows */
	uint64_t ask;  /* where the request is */
	enum head_is is;
};

/* What the two halves of the ring show of each head. n: how many are open; a: the available index. */
static void look_back(const struct vp_virtq *vq, struct head *h, uint16_t a, unsigned n)
{
	const unsigned size = vq->size, mask = size - 1;

	for (unsigned i = 0; i < size; i++)
		h[i] = (struct head){ .at = OLD, .used = OLD };
	for (unsigned back = 0; back < size; back++) {
		uint16_t id = vp_ld16(vq->driver, 4 + 2 * (size_t)((a - 1u - back) & mask));

		if (id >= size)
			continue;
		h[id].at = VP_MIN(h[id].at, back);
		h[id].seen++;
	}
	for (unsigned back = n; back < size; back++) {
		uint32_t id = vp_ld32(vq->device, 4 + 8 * (size_t)((a - 1u - back) & mask));

		if (id >= size)
			continue;
		h[id].used = VP_MIN(h[id].used, back);
		h[id].seen--;
	}
}

/* The heads of a ring, and the order in which they are gone through. */
struct search {
	struct head *h;
	uint32_t *order;
	unsigned looked; /* descriptors */
};

/* Is there a FUSE request at this head, and is it answered? @b is overwritten. */
static enum head_is ask_request(const struct vp_virtq *vq, struct vp_burst *b, uint16_t id, struct head *h)
{
	struct vp_virtq probe = *vq; /* nothing that is wrong with an old descriptor breaks the queue */
	const struct vp_chain *c = &b->chain[0];
	const struct vp_seg *s;
	uint8_t in[16], out[16];
	uint32_t len;

	vp_burst_clear(b);
	if (!vp_split_chain(&probe, b, id) || b->n != 1 || !c->nout)
		return HEAD_RETURNED;
	s = &b->seg[c->seg];
	if (s->len < 40 || vp_xlate_copy_in(&probe.xl, in, s->addr, sizeof(in)))
		return HEAD_RETURNED;
	memcpy(&len, in, sizeof(len));
	if (le32toh(len) != c->out_len)
		return HEAD_RETURNED;
	h->ask = s->addr;
	s += c->nout;
	if (!c->nin)
		return HEAD_MAYBE;
	if (s->len < sizeof(out) || vp_xlate_copy_in(&probe.xl, out, s->addr, sizeof(out)))
		return HEAD_RETURNED;
	memcpy(&len, out, sizeof(len));
	return le32toh(len) >= sizeof(out) && !memcmp(in + 8, out + 8, 8) ? HEAD_MAYBE : HEAD_OPEN;
}

/* By where the request is, then the newest first. */
static int cmp_ask(const void *a, const void *b, void *heads)
{
	const struct head *h = heads, *x = &h[*(const uint32_t *)a], *y = &h[*(const uint32_t *)b];

	if (x->ask != y->ask)
		return x->ask < y->ask ? -1 : 1;
	return x->at < y->at ? -1 : x->at > y->at;
}

/* The oldest first, as far as it shows. */
static int cmp_age(const void *a, const void *b, void *heads)
{
	const struct head *h = heads;
	uint32_t i = *(const uint32_t *)a, k = *(const uint32_t *)b;

	if (h[i].at != h[k].at)
		return h[i].at > h[k].at ? -1 : 1;
	return i < k ? -1 : i > k;
}

/* Those that are open, or (maybe) may be, in that order. Their number. */
static unsigned sorted(const struct search *s, unsigned size, bool maybe,
		       int (*cmp)(const void *, const void *, void *))
{
	unsigned n = 0;

	for (unsigned i = 0; i < size; i++)
		if (s->h[i].is == HEAD_OPEN || (maybe && s->h[i].is == HEAD_MAYBE))
			s->order[n++] = i;
	qsort_r(s->order, n, sizeof(s->order[0]), cmp, s->h);
	return n;
}

/* Memory that a later request has is not that of an earlier one any more. */
static void drop_reused(const struct search *s, unsigned size)
{
	const unsigned n = sorted(s, size, false, cmp_ask);
	const struct head *newest = NULL;

	for (unsigned k = 0; k < n; k++) {
		struct head *h = &s->h[s->order[k]];

		if (!newest || newest->ask != h->ask)
			newest = h;
		else if (h->at > newest->at)
			h->is = HEAD_RETURNED;
	}
}

/*
 * Marks those that are open in h. False: it is not clear which they are, or how the driver made more of them.
 * What was returned at place u was available then, and had been made so at place u or, out of order, at one of the
 * next size - 1. So a head that became available at or before the place at which it was last returned is returned.
 */
static bool find_open(struct vp_virtq *vq, struct vp_burst *b, struct search *s, uint16_t a, unsigned n)
{
	struct head *h = s->h;
	unsigned open = 0, maybe = 0;

	look_back(vq, h, a, n);
	for (unsigned i = 0; i < vq->size; i++) {
		/* One that became available too long ago to show did so before all those that show. */
		bool returned = h[i].used != OLD && h[i].used <= h[i].at;

		if (s->looked > LOOKS)
			return false;
		h[i].is = returned ? HEAD_RETURNED : ask_request(vq, b, (uint16_t)i, &h[i]);
		/* Also of a chain that failed, which the burst has not any more. */
		s->looked += returned ? 0 : 1 + b->empty + b->chain[0].nout + b->chain[0].nin;
		if (h[i].is == HEAD_MAYBE && (h[i].at == OLD || h[i].seen < 1))
			h[i].is = HEAD_RETURNED;
	}
	drop_reused(s, vq->size);
	for (unsigned i = 0; i < vq->size; i++) {
		open += h[i].is == HEAD_OPEN;
		maybe += h[i].is == HEAD_MAYBE;
	}
	/* What the driver writes before it publishes an index looks open: once more then, with the new index. */
	if (vp_ld16_acquire(vq->driver, 2) != a)
		return false;
	if (open + maybe == n)
		return true;
	for (unsigned i = 0; i < vq->size; i++)
		if (h[i].is == HEAD_MAYBE)
			h[i].is = HEAD_RETURNED;
	return open == n;
}

/* All that were found: oldest first, as far as it shows. */
static void fail_found(struct vp_virtq *vq, struct vp_burst *b, const struct search *s, uint16_t a)
{
	const unsigned n = sorted(s, vq->size, true, cmp_age);

	for (unsigned k = 0; k < n; k++) {
		struct vp_used u = { .slots = 1, .id = (uint16_t)s->order[k] };

		s->h[u.id].is = HEAD_RETURNED;
		vp_burst_clear(b);
		if (vp_split_chain(vq, b, u.id) && b->chain[0].nout && b->chain[0].nin) {
			const struct vp_seg *ask = &b->seg[b->chain[0].seg], *answer = ask + b->chain[0].nout;

			u.len = vp_fuse_fail(vq, ask->addr, ask->len, answer->addr, answer->len);
		}
		vp_vq_complete(vq, &u, 1);
	}
	vq->last_avail = vq->avail_seen = a;
}

int vp_leftover_fail(struct vp_virtq *vq, struct vp_burst *b, bool *call)
{
	struct search s = { 0 };
	int n = -ENODATA;

	*call = false;
	/* Old descriptors name what a vIOMMU, or a grant, may not have any more. */
	if (!vq->packed && !vq->xl.iommu && !vq->xl.grows) {
		s.h = calloc(vq->size, sizeof(*s.h));
		s.order = calloc(vq->size, sizeof(*s.order));
		if (!s.h || !s.order) {
			free(s.h);
			free(s.order);
			return -ENOMEM;
		}
	}
	for (unsigned i = 0; s.h && i < TRIES && s.looked <= LOOKS; i++) {
		uint16_t a = vp_ld16_acquire(vq->driver, 2);
		unsigned left = (uint16_t)(a - vq->used_idx);

		if (left > vq->size)
			break;
		if (!find_open(vq, b, &s, a, left))
			continue;
		n = (int)left;
		fail_found(vq, b, &s, a);
		break;
	}
	if (n < 0) {
		n = vp_leftover_count(vq);
		/* It looks as if it was served in order, but for a request that has waited too long to show there. */
		for (unsigned i = 0; s.h && n >= 0 && i < vq->size; i++)
			if (s.h[i].is == HEAD_OPEN && s.h[i].at >= (unsigned)n)
				n = -ENODATA;
		if (n > 0)
			fail_next(vq, (unsigned)n, b);
	}
	free(s.h);
	free(s.order);
	*call = n > 0 && !vq->broken && vp_vq_need_call(vq);
	return n;
}
