/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/tap.h"

#include <string.h>
#include <time.h>

#include "net/offload.h"

static __thread unsigned my_ring;

void vp_tap_thread(unsigned i)
{
	my_ring = i;
}

uint64_t vp_tap_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static const struct vp_tap *first(const struct vp_queue *q)
{
	return __atomic_load_n(&q->tap, __ATOMIC_ACQUIRE);
}

static const struct vp_tap *next(const struct vp_tap *t)
{
	return __atomic_load_n(&t->next, __ATOMIC_ACQUIRE);
}

/* Up to max bytes of the pieces, from byte `at` on. */
static void gather(uint8_t *to, const struct vp_seg *sg, unsigned n, uint32_t at, uint32_t max)
{
	for (; n && max; n--, sg++) {
		uint32_t k;

		if (at >= sg->len) {
			at -= sg->len;
			continue;
		}
		k = VP_MIN(sg->len - at, max);
		vp_copy_in(to, vp_gptr_add(sg->p, at), k);
		to += k;
		max -= k;
		at = 0;
	}
}

static uint32_t bytes_of(const struct vp_seg *sg, unsigned n)
{
	uint64_t sum = 0;

	for (; n; n--, sg++)
		sum += sg->len;
	return sum > UINT32_MAX ? UINT32_MAX : (uint32_t)sum;
}

static void packet(const struct vp_queue *q, const struct vp_tap *t, const struct vp_seg *sg, unsigned n,
		   unsigned hdr_len, int why, uint64_t ns)
{
	uint32_t len = bytes_of(sg, n), caplen;
	struct virtio_net_hdr h = { 0 };
	struct vp_cap_packet *rec;

	/* Shorter than its header: what there is of that says nothing. */
	if (len >= hdr_len)
		gather((uint8_t *)&h, sg, n, 0, sizeof(h));
	len = len > hdr_len ? len - hdr_len : 0;
	caplen = VP_MIN(len, t->snaplen);
	rec = vp_capring_add(&t->ring[my_ring], VP_CAP_PACKET, (uint32_t)sizeof(*rec) + caplen, ns);
	if (!rec)
		return;
	rec->r.queue = q->tap_queue;
	rec->r.side = q->tap_side;
	rec->len = len;
	rec->caplen = caplen;
	rec->flags = h.flags;
	rec->gso_type = h.gso_type;
	rec->hdr_len = le16toh(h.hdr_len);
	rec->gso_size = le16toh(h.gso_size);
	rec->csum_start = le16toh(h.csum_start);
	rec->csum_offset = le16toh(h.csum_offset);
	rec->why = (uint16_t)(why + 1);
	rec->reserved = 0;
	gather((uint8_t *)(rec + 1), sg, n, hdr_len, caplen);
}

void vp_tap_packet(const struct vp_queue *q, const struct vp_seg *sg, unsigned n, unsigned hdr_len, int why,
		   uint64_t ns)
{
	for (const struct vp_tap *t = first(q); t; t = next(t)) {
		if (my_ring >= t->n)
			continue;
		packet(q, t, sg, n, hdr_len, why, ns);
		vp_capring_publish(&t->ring[my_ring]);
	}
}

void vp_tap_burst(const struct vp_queue *q, const struct vp_burst *b, unsigned from, unsigned to, uint64_t lost,
		  const uint8_t *why)
{
	const unsigned hlen = vp_net_hdr_len(q->features);
	const uint64_t ns = vp_tap_now();

	for (const struct vp_tap *t = first(q); t; t = next(t)) {
		if (my_ring >= t->n)
			continue;
		for (unsigned i = from; i < to; i++)
			packet(q, t, &b->seg[b->chain[i].seg], b->chain[i].nout, hlen, lost >> i & 1 ? why[i] : -1,
			       ns);
		vp_capring_publish(&t->ring[my_ring]);
	}
}

void vp_tap_dropped(const struct vp_queue *q, const struct vp_burst *b, unsigned n, enum vp_drop why)
{
	uint8_t all[VP_BURST];

	memset(all, why, sizeof(all));
	vp_tap_burst(q, b, 0, n, ~UINT64_C(0), all);
}

void vp_tap_request(const struct vp_queue *q, const struct vp_cap_request *from, uint64_t ns)
{
	for (const struct vp_tap *t = first(q); t; t = next(t)) {
		struct vp_cap_request *rec;

		if (my_ring >= t->n)
			continue;
		rec = vp_capring_add(&t->ring[my_ring], VP_CAP_REQUEST, sizeof(*rec), ns);
		if (rec) {
			memcpy((uint8_t *)rec + sizeof(rec->r), (const uint8_t *)from + sizeof(from->r),
			       sizeof(*rec) - sizeof(rec->r));
			rec->r.queue = q->tap_queue;
			rec->r.side = q->tap_side;
		}
		vp_capring_publish(&t->ring[my_ring]);
	}
}
