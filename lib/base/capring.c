/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/capring.h"

#include <string.h>

_Static_assert(sizeof(struct vp_cap_rec) % 8 == 0 && sizeof(struct vp_cap_packet) % 8 == 0 &&
	       sizeof(struct vp_cap_request) % 8 == 0, "records are multiples of 8");
_Static_assert(sizeof(struct vp_capring) <= VP_CAPRING_PAGE && offsetof(struct vp_capring, tail) == 128,
	       "writer and reader have cache lines of their own");

/* ---- writer ---------------------------------------------------------------------------------- */

void vp_capring_init(struct vp_capring_writer *w, void *mem, uint32_t size)
{
	*w = (struct vp_capring_writer){ .ring = mem, .data = (uint8_t *)mem + VP_CAPRING_PAGE, .size = size };
}

static void put_rec(struct vp_capring_writer *w, enum vp_cap_type type, uint32_t bytes, uint64_t ns)
{
	const struct vp_cap_rec r = { .bytes = bytes, .type = (uint16_t)type, .ns = ns,
				      .lost = type == VP_CAP_FILL ? 0 : w->lost };
	uint8_t *p = w->data + (w->head & (w->size - 1));

	/* What is left in front of the end may be too small for all of a record's first fields. */
	memcpy(p, &r, bytes < sizeof(r) ? 8 : sizeof(r));
	w->head += bytes;
}

void *vp_capring_add(struct vp_capring_writer *w, enum vp_cap_type type, uint32_t bytes, uint64_t ns)
{
	const uint64_t used = w->head - __atomic_load_n(&w->ring->tail, __ATOMIC_ACQUIRE);
	uint32_t left = w->size - (uint32_t)(w->head & (w->size - 1)), want;
	uint8_t *p;

	bytes = (bytes + 7) & ~7u;
	w->seen++;
	want = bytes > left ? left + bytes : bytes;
	/* A tail that cannot be is as good as a full ring. */
	if (bytes > w->size / 2 || used > w->size || want > w->size - used) {
		w->dropped++;
		w->lost++;
		return NULL;
	}
	if (bytes > left)
		put_rec(w, VP_CAP_FILL, left, 0);
	p = w->data + (w->head & (w->size - 1));
	put_rec(w, type, bytes, ns);
	w->lost = 0;
	return p;
}

void vp_capring_publish(struct vp_capring_writer *w)
{
	__atomic_store_n(&w->ring->seen, w->seen, __ATOMIC_RELAXED);
	__atomic_store_n(&w->ring->dropped, w->dropped, __ATOMIC_RELAXED);
	__atomic_store_n(&w->ring->head, w->head, __ATOMIC_RELEASE);
}

/* ---- reader ---------------------------------------------------------------------------------- */

void vp_capring_open(struct vp_capring_reader *r, void *mem, uint32_t size)
{
	*r = (struct vp_capring_reader){ .ring = mem, .data = (const uint8_t *)mem + VP_CAPRING_PAGE, .size = size };
}

bool vp_capring_look(struct vp_capring_reader *r)
{
	uint64_t head = __atomic_load_n(&r->ring->head, __ATOMIC_ACQUIRE);

	if (head - r->tail > r->size || head == r->head)
		return false;
	r->head = head;
	return true;
}

static const struct vp_cap_rec *at_tail(const struct vp_capring_reader *r)
{
	return (const struct vp_cap_rec *)(r->data + (r->tail & (r->size - 1)));
}

const struct vp_cap_rec *vp_capring_first(struct vp_capring_reader *r)
{
	while (r->tail != r->head) {
		const struct vp_cap_rec *rec = at_tail(r);
		uint32_t left = r->size - (uint32_t)(r->tail & (r->size - 1));

		/* Not what a writer of ours makes: nothing behind it can be read. */
		if (rec->bytes < 8 || rec->bytes & 7 || rec->bytes > left || rec->bytes > r->head - r->tail) {
			r->tail = r->head;
			return NULL;
		}
		if (rec->type != VP_CAP_FILL)
			return rec;
		vp_capring_next(r);
	}
	return NULL;
}

void vp_capring_next(struct vp_capring_reader *r)
{
	r->tail += at_tail(r)->bytes;
	__atomic_store_n(&r->ring->tail, r->tail, __ATOMIC_RELEASE);
}

uint64_t vp_capring_dropped(const struct vp_capring_reader *r, uint64_t *seen)
{
	*seen = __atomic_load_n(&r->ring->seen, __ATOMIC_RELAXED);
	return __atomic_load_n(&r->ring->dropped, __ATOMIC_RELAXED);
}
