/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split: features 0 (64 bit), version 8, desc_num 10, last_batch_head 12, used_idx 14, then for each descriptor 16
 * bytes: inflight 0 (8 bit), next 6, counter 8.
 *
 * Packed: features 0 (64 bit), version 8, desc_num 10, free_head 12, old_free_head 14, used_idx 16, old_used_idx 18,
 * used_wrap_counter 20 (8 bit), old_used_wrap_counter 21 (8 bit), then from 32 on for each descriptor 32 bytes:
 * inflight 0 (8 bit), next 2, last 4, num 6, counter 8 (64 bit), id 16, flags 18, len 20 (32 bit), addr 24 (64 bit). A
 * request is a list of entries by `next`, from its head to `last`. What is about to be completed is in the fields
 * without `old_`.
 */
#include "engine/inflight.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>

#define VERSION 1u

#define S_ENTRY(i) (16 + 16 * (size_t)(i))
#define P_ENTRY(i) (32 + 32 * (size_t)(i))

static size_t entry_at(const struct vp_inflight *f, unsigned i)
{
	return f->packed ? P_ENTRY(i) : S_ENTRY(i);
}

uint64_t vp_inflight_bytes(uint16_t size, bool packed)
{
	return vp_align_up(packed ? P_ENTRY(size) : S_ENTRY(size), 64);
}

void vp_inflight_saved_free(struct vp_inflight_saved *s)
{
	free(s->heads);
	free(s->desc);
	free(s->n_desc);
	free(s->next);
	*s = (struct vp_inflight_saved){ 0 };
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

/* Those of `size` entries that are marked, oldest first; the next counter. */
static int find_open(struct vp_inflight *f, struct vp_inflight_saved *s)
{
	struct open_head *o = calloc(f->size, sizeof(*o));
	unsigned n = 0;

	s->heads = calloc(f->size, sizeof(*s->heads));
	if (!o || !s->heads) {
		free(o);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < f->size; i++) {
		size_t at = entry_at(f, i);

		if (vp_ld8(f->mem, at) == 1)
			o[n++] = (struct open_head){ vp_ld64(f->mem, at + 8), (uint16_t)i };
	}
	qsort(o, n, sizeof(*o), cmp_open);
	for (unsigned i = 0; i < n; i++)
		s->heads[i] = o[i].head;
	if (n && o[n - 1].counter < UINT64_MAX)
		f->counter = o[n - 1].counter + 1;
	free(o);
	s->n = n;
	return 0;
}

/* ---- split ------------------------------------------------------------------------------------ */

static int open_split(struct vp_inflight *f, struct vp_inflight_saved *s, struct vp_virtq *vq)
{
	uint16_t last = vp_ld16(f->mem, 12), seen = vp_ld16(f->mem, 14);
	int r;

	/* The completion that was being made when the last device went. */
	if (seen != vq->used_idx && last < f->size)
		vp_st8(f->mem, S_ENTRY(last), 0);
	vp_st16(f->mem, 14, vq->used_idx);
	r = find_open(f, s);
	/* The ring goes on behind what is open, wherever the front-end thinks that it was. */
	if (!r && s->n) {
		vq->last_avail = (uint16_t)(vq->used_idx + s->n);
		vq->avail_seen = vq->last_avail;
	}
	return r;
}

/* ---- packed ----------------------------------------------------------------------------------- */

struct place {
	uint16_t free_head, used;
	bool wrap;
};

static void put_place(const struct vp_inflight *f, const struct place *p, bool old)
{
	vp_st16(f->mem, old ? 14 : 12, p->free_head);
	vp_st16(f->mem, old ? 18 : 16, p->used);
	vp_st8(f->mem, old ? 21 : 20, p->wrap);
}

/* Entries of requests that are marked. */
static unsigned marked_entries(const struct vp_inflight *f)
{
	unsigned n = 0;

	for (unsigned i = 0; i < f->size; i++)
		n += vp_ld8(f->mem, P_ENTRY(i)) == 1 ? vp_ld16(f->mem, P_ENTRY(i) + 6) : 0;
	return n;
}

/*
 * Where the account stands. What was being completed counts if the driver can see it: then it is at the front of the
 * free list, and loses its mark. Else what was being taken does not count: its mark is where the free list begins. When
 * no entry is free the list begins anywhere.
 */
static struct place roll(const struct vp_inflight *f, const struct vp_virtq *vq)
{
	struct place now = { vp_ld16(f->mem, 12), vp_ld16(f->mem, 16), vp_ld8(f->mem, 20) == 1 };
	struct place old = { vp_ld16(f->mem, 14), vp_ld16(f->mem, 18), vp_ld8(f->mem, 21) == 1 };
	unsigned i = now.free_head;

	if (now.used != old.used || now.wrap != old.wrap) {
		if (old.used >= f->size || vp_packed_is_avail(vp_packed_load(vq->desc, old.used), old.wrap))
			return old;
		for (unsigned k = 0; k < f->size && i < f->size && (i != old.free_head || !k); k++) {
			vp_st8(f->mem, P_ENTRY(i), 0);
			i = vp_ld16(f->mem, P_ENTRY(i) + 2);
		}
		return now;
	}
	if (old.free_head < f->size && marked_entries(f) != f->size)
		vp_st8(f->mem, P_ENTRY(old.free_head), 0);
	return old;
}

/* The descriptors of the request that begins at `head`: n into d, marked in taken[]. */
static int read_chain(struct vp_inflight *f, uint16_t head, unsigned n, struct vp_packed_saved *d, bool *taken)
{
	for (unsigned k = 0, i = head; k < n; k++) {
		size_t at = P_ENTRY(i);

		if (i >= f->size || taken[i])
			return -EINVAL;
		taken[i] = true;
		d[k] = (struct vp_packed_saved){ .addr = vp_ld64(f->mem, at + 24), .len = vp_ld32(f->mem, at + 20),
						 .id = vp_ld16(f->mem, at + 16), .flags = vp_ld16(f->mem, at + 18) };
		/* What the last one says of a next one is nothing of ours, and may be any number. */
		f->next[i] = k + 1 < n ? vp_ld16(f->mem, at + 2) : 0;
		i = f->next[i];
	}
	return 0;
}

/* All that is in no request becomes the free list, in our memory and in the account. */
static void make_free_list(struct vp_inflight *f, const bool *taken)
{
	unsigned last = f->size;

	f->free_head = f->n_free = 0;
	for (unsigned i = 0; i < f->size; i++) {
		if (taken[i])
			continue;
		f->n_free++;
		vp_st8(f->mem, P_ENTRY(i), 0);
		if (last == f->size) {
			f->free_head = (uint16_t)i;
		} else {
			f->next[last] = (uint16_t)i;
			vp_st16(f->mem, P_ENTRY(last) + 2, (uint16_t)i);
		}
		last = i;
	}
}

static int read_chains(struct vp_inflight *f, struct vp_inflight_saved *s, unsigned *slots, bool *taken)
{
	*slots = 0;
	for (unsigned k = 0; k < s->n; k++) {
		unsigned num = vp_ld16(f->mem, P_ENTRY(s->heads[k]) + 6);

		if (!num || num > f->size - *slots || read_chain(f, s->heads[k], num, s->desc + *slots, taken))
			return -EINVAL;
		s->n_desc[k] = (uint16_t)num;
		*slots += num;
	}
	return 0;
}

static int open_packed(struct vp_inflight *f, struct vp_inflight_saved *s, struct vp_virtq *vq, bool fresh)
{
	struct place p = fresh ? (struct place){ 0, vq->used_idx, vq->used_wrap } : roll(f, vq);
	bool *taken = calloc(f->size, sizeof(*taken));
	unsigned slots = 0;
	int r = 0;

	f->next = s->next = calloc(f->size, sizeof(*s->next));
	s->desc = calloc(f->size, sizeof(*s->desc));
	s->n_desc = calloc(f->size, sizeof(*s->n_desc));
	if (!taken || !s->next || !s->desc || !s->n_desc)
		r = -ENOMEM;
	else if (p.used >= f->size)
		r = -EINVAL;
	if (!r)
		r = find_open(f, s);
	if (!r)
		r = read_chains(f, s, &slots, taken);
	if (!r) {
		make_free_list(f, taken);
		p.free_head = f->free_head;
		put_place(f, &p, false);
		put_place(f, &p, true);
		vq->used_idx = vq->last_avail = p.used;
		vq->used_wrap = vq->avail_wrap = p.wrap;
		vp_packed_step(vq->size, &vq->last_avail, &vq->avail_wrap, slots);
	}
	free(taken);
	return r;
}

uint16_t vp_inflight_take_packed(struct vp_inflight *f, const struct vp_virtq *vq, uint16_t slot, unsigned n)
{
	const uint16_t head = f->free_head;
	uint16_t i = head, last = head;

	f->n_free = (uint16_t)(f->n_free - n);
	for (unsigned k = 0; k < n; k++) {
		size_t at = P_ENTRY(i);
		uint64_t w = vp_packed_load(vq->desc, slot);

		vp_st16(f->mem, at + 16, VP_PACKED_ID(w));
		vp_st16(f->mem, at + 18, VP_PACKED_FLAGS(w));
		vp_st32(f->mem, at + 20, VP_PACKED_LEN(w));
		vp_st64(f->mem, at + 24, vp_ld64(vq->desc, 16 * (size_t)slot));
		last = i;
		i = f->next[i];
		slot = slot + 1 == vq->size ? 0 : (uint16_t)(slot + 1);
	}
	vp_st16(f->mem, P_ENTRY(head) + 4, last);
	vp_st16(f->mem, P_ENTRY(head) + 6, (uint16_t)n);
	vp_st64(f->mem, P_ENTRY(head) + 8, f->counter++);
	vp_st8_release(f->mem, P_ENTRY(head), 1);
	f->free_head = i;
	vp_st16_release(f->mem, 12, i);
	vp_st16_release(f->mem, 14, i);
	return head;
}

void vp_inflight_giving_packed(struct vp_inflight *f, uint16_t entry, unsigned n, const struct vp_virtq *vq)
{
	struct place p = { entry, vq->used_idx, vq->used_wrap };
	uint16_t last = entry;

	for (unsigned k = 1; k < n; k++)
		last = f->next[last];
	f->next[last] = f->free_head;
	vp_st16(f->mem, P_ENTRY(last) + 2, f->free_head);
	f->free_head = entry;
	f->n_free = (uint16_t)(f->n_free + n);
	vp_packed_step(vq->size, &p.used, &p.wrap, n);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	put_place(f, &p, false);
}

void vp_inflight_gave_packed(struct vp_inflight *f, uint16_t entry, const struct vp_virtq *vq)
{
	struct place p = { f->free_head, vq->used_idx, vq->used_wrap };

	vp_st8_release(f->mem, P_ENTRY(entry), 0);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	put_place(f, &p, true);
}

/* ---- both ------------------------------------------------------------------------------------- */

int vp_inflight_open(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, struct vp_virtq *vq)
{
	uint16_t version = vp_ld16(mem, 8), num = vp_ld16(mem, 10);
	bool fresh = !version || !num;
	int r;

	*s = (struct vp_inflight_saved){ 0 };
	*f = (struct vp_inflight){ .mem = mem, .size = vq->size, .packed = vq->packed, .counter = 1 };
	/* An area that was made for larger rings serves smaller ones; a fresh one carries no version. */
	if (version > VERSION || (!fresh && num < vq->size))
		return -EINVAL;
	r = vq->packed ? open_packed(f, s, vq, fresh) : open_split(f, s, vq);
	f->on = !r;
	if (r) {
		vp_inflight_saved_free(s);
	} else if (fresh) {
		vp_st16(mem, 10, vq->size);
		vp_st16_release(mem, 8, VERSION);
		s->fresh = true;
	}
	return r;
}

/* ---- after a crash ---------------------------------------------------------------------------- */

static int recover_split(struct vp_inflight *f, const struct vp_virtq *vq, const struct vp_inflight_request *open,
			 unsigned n, bool *taken)
{
	for (unsigned k = 0; k < n; k++) {
		if (open[k].entry >= f->size || taken[open[k].entry])
			return -EPROTO;
		taken[open[k].entry] = true;
	}
	for (unsigned i = 0; i < f->size; i++)
		if (!taken[i])
			vp_st8(f->mem, S_ENTRY(i), 0);
	vp_st16(f->mem, 14, vq->used_idx);
	return 0;
}

static int recover_packed(struct vp_inflight *f, struct vp_inflight_saved *s, const struct vp_virtq *vq,
			  const struct vp_inflight_request *open, unsigned n, bool *taken)
{
	struct place p = { 0, vq->used_idx, vq->used_wrap };
	unsigned slots = 0;

	f->next = s->next = calloc(f->size, sizeof(*s->next));
	s->desc = calloc(f->size, sizeof(*s->desc));
	if (!s->next || !s->desc)
		return -ENOMEM;
	for (unsigned k = 0; k < n; slots += open[k++].slots)
		if (!open[k].slots || open[k].slots > f->size - slots ||
		    read_chain(f, open[k].entry, open[k].slots, s->desc, taken))
			return -EPROTO;
	make_free_list(f, taken);
	p.free_head = f->free_head;
	put_place(f, &p, false);
	put_place(f, &p, true);
	return 0;
}

int vp_inflight_recover(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, const struct vp_virtq *vq,
			const struct vp_inflight_request *open, unsigned n)
{
	bool *taken = calloc(vq->size, sizeof(*taken));
	int r;

	if (!taken)
		return -ENOMEM;
	vp_inflight_saved_free(s);
	*f = (struct vp_inflight){ .mem = mem, .size = vq->size, .packed = vq->packed, .counter = 1, .on = true };
	r = f->packed ? recover_packed(f, s, vq, open, n, taken) : recover_split(f, vq, open, n, taken);
	free(taken);
	/* Whoever reads it after us finds them in this order. */
	for (unsigned k = 0; !r && k < n; k++) {
		vp_st64(mem, entry_at(f, open[k].entry) + 8, f->counter++);
		vp_st8(mem, entry_at(f, open[k].entry), 1);
	}
	f->on = !r;
	return r;
}
