/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/cycles.h"

#define BUCKET_SHIFT 16 /* of vp_bucket's unit of time */

static const char *const drop_str[VP_DROP_MAX] = {
	[VP_DROP_NO_PEER]    = "no-peer",
	[VP_DROP_NO_BUFFER]  = "no-buffer",
	[VP_DROP_TOO_BIG]    = "too-big",
	[VP_DROP_BAD_HEADER] = "bad-header",
	[VP_DROP_BAD_PACKET] = "bad-packet",
	[VP_DROP_RATE]       = "rate",
};

const char *vp_drop_str(enum vp_drop d)
{
	return (unsigned)d < VP_DROP_MAX ? drop_str[d] : "unknown";
}

struct vp_scratch *vp_scratch_new(void)
{
	struct vp_scratch *s = NULL;

	if (posix_memalign((void **)&s, VP_CACHELINE, sizeof(*s)))
		return NULL;
	s->hz = vp_cycles_hz();
	s->call_seq = 0;
	s->src.slow = s->dst.slow = true; /* of which the rest is not initialised */
	return s;
}

int vp_notify(int fd, uint64_t who, struct vp_scratch *s)
{
	uint64_t one = 1;
	ssize_t n;

	if (vp_unlikely(vp_blame_held(who)))
		return -EIO;
	__atomic_store_n(&s->call_seq, s->call_seq + 1, __ATOMIC_RELAXED);
	/* seccomp data: write */
	n = write(fd, &one, sizeof(one));
	__atomic_store_n(&s->call_seq, s->call_seq + 1, __ATOMIC_RELAXED);
	if (n == sizeof(one) || (n < 0 && errno == EAGAIN))
		return 0; /* EAGAIN: the counter is full, a notification is pending */
	if (n < 0 && errno == EINTR)
		vp_blame(who);
	return -EIO;
}

int vp_queue_call(struct vp_queue *q, struct vp_scratch *s)
{
	int r = q->call_fd < 0 ? 0 : vp_notify(q->call_fd, q->who, s);

	if (vp_unlikely(r))
		vp_vq_break(&q->vq, VP_VQ_BAD_CALL);
	return r;
}

/* A limit at one moment: what a packet costs and what may come at once, in 65536ths of a tick. */
struct limit {
	uint64_t now, cost, burst;
};

/* False: there is none. */
static bool limit_of(const struct vp_bucket *b, uint64_t now, uint64_t hz, struct limit *l)
{
	uint64_t rate = __atomic_load_n(&b->rate, __ATOMIC_RELAXED);

	if (!rate)
		return false;
	l->now = now << BUCKET_SHIFT;
	l->cost = VP_MAX((hz << BUCKET_SHIFT) / rate, 1);
	l->burst = l->cost * VP_MAX(rate / 100, 64);
	return true;
}

/*
 * The time up to which packets have been let pass: not longer ago than a burst, and ahead of now by as much at most,
 * for what is owed. Beyond that it is of another time, and as good as none.
 */
static uint64_t limit_from(const struct limit *l, uint64_t due)
{
	return due && due - l->now + l->burst <= 2 * l->burst ? due : l->now - l->burst;
}

/* Relaxed throughout: only this number is shared, and a packet more or less does not matter. */
static unsigned bucket_take(struct vp_bucket *b, uint64_t now, uint64_t hz, unsigned n)
{
	uint64_t due, from;
	struct limit l;
	unsigned pass;

	if (!limit_of(b, now, hz, &l))
		return n;
	due = __atomic_load_n(&b->due, __ATOMIC_RELAXED);
	do {
		from = limit_from(&l, due);
		if ((int64_t)(l.now - from) < 0)
			return 0;
		pass = (unsigned)VP_MIN((uint64_t)n, (l.now - from) / l.cost);
		if (!pass)
			return 0;
	} while (!__atomic_compare_exchange_n(&b->due, &due, from + pass * l.cost, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
	return pass;
}

static void bucket_charge(struct vp_bucket *b, uint64_t now, uint64_t hz, unsigned n)
{
	uint64_t due, to;
	struct limit l;

	if (!limit_of(b, now, hz, &l))
		return;
	due = __atomic_load_n(&b->due, __ATOMIC_RELAXED);
	do {
		to = limit_from(&l, due) + n * l.cost;
		if ((int64_t)(to - l.now) > (int64_t)l.burst)
			to = l.now + l.burst;
	} while (!__atomic_compare_exchange_n(&b->due, &due, to, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

static void bucket_give_back(struct vp_bucket *b, uint64_t hz, unsigned n)
{
	struct limit l;

	if (n && limit_of(b, 0, hz, &l))
		__atomic_fetch_sub(&b->due, n * l.cost, __ATOMIC_RELAXED);
}

static bool bucket_owes(const struct vp_bucket *b, uint64_t now, uint64_t hz)
{
	struct limit l;

	if (!limit_of(b, now, hz, &l))
		return false;
	return (int64_t)(l.now - limit_from(&l, __atomic_load_n(&b->due, __ATOMIC_RELAXED))) < 0;
}

/*
 * Bytes that may come at once after a pause: 10 ms worth, and at least the largest packet. What is owed is paid in 2 s
 * at most.
 */
#define BYTES_BURST(rate) VP_MAX((rate) / 100, UINT64_C(65536))
#define BYTES_OWED_S      2

/* Where the limit of bytes stands: the time up to which bytes are paid for. */
static uint64_t bytes_from(const struct vp_bucket *b, uint64_t rate, uint64_t now, uint64_t hz, uint64_t *cost)
{
	uint64_t credit, owed = (hz * BYTES_OWED_S) << BUCKET_SHIFT;

	*cost = ((hz << BUCKET_SHIFT) + rate - 1) / rate;
	credit = *cost * BYTES_BURST(rate);
	now <<= BUCKET_SHIFT;
	return b->due && b->due - now + credit <= credit + owed ? b->due : now - credit;
}

static bool bytes_owed(const struct vp_bucket *b, uint64_t now, uint64_t hz)
{
	uint64_t cost, rate = __atomic_load_n(&b->rate, __ATOMIC_RELAXED);

	return rate && (int64_t)((now << BUCKET_SHIFT) - bytes_from(b, rate, now, hz, &cost)) < 0;
}

void vp_queue_spend(struct vp_queue *src, uint64_t now, uint64_t hz, uint64_t n)
{
	struct vp_bucket *b = &src->bytes;
	uint64_t cost, from, most = (now + hz * BYTES_OWED_S) << BUCKET_SHIFT;
	uint64_t rate = __atomic_load_n(&b->rate, __ATOMIC_RELAXED);

	if (!rate || !n)
		return;
	from = bytes_from(b, rate, now, hz, &cost);
	b->due = (int64_t)(most - from) / (int64_t)cost < (int64_t)n ? most : from + n * cost;
}

void vp_queue_give_back(struct vp_queue *src, uint64_t hz, unsigned n)
{
	bucket_give_back(&src->own, hz, n);
	if (src->shared)
		bucket_give_back(src->shared, hz, n);
}

unsigned vp_queue_allow(struct vp_queue *src, uint64_t now, uint64_t hz, unsigned n)
{
	unsigned pass;

	if (bytes_owed(&src->bytes, now, hz))
		return 0;
	n = bucket_take(&src->own, now, hz, n);
	if (!src->shared || !n)
		return n;
	pass = bucket_take(src->shared, now, hz, n);
	bucket_give_back(&src->own, hz, n - pass);
	return pass;
}

void vp_queue_charge(struct vp_queue *src, uint64_t now, uint64_t hz, unsigned more)
{
	if (!more)
		return;
	bucket_charge(&src->own, now, hz, more);
	if (src->shared)
		bucket_charge(src->shared, now, hz, more);
}

bool vp_queue_owes(const struct vp_queue *src, uint64_t now, uint64_t hz)
{
	return bytes_owed(&src->bytes, now, hz) || bucket_owes(&src->own, now, hz) ||
	       (src->shared && bucket_owes(src->shared, now, hz));
}

bool vp_queue_must_wait(const struct vp_queue *src)
{
	return vp_queue_limited(src) && vp_queue_owes(src, vp_cycles(), vp_cycles_hz());
}
