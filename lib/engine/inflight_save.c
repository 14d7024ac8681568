/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The account of open requests as a record (docs/handover.md): where its owner is in it, and what of an earlier
 * daemon's is still to be taken. The account itself is in memory that both have. Threat model: base/record.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/inflight.h"

enum tag { TAG_ACCOUNT = 1, TAG_NEXT, TAG_HEADS, TAG_DESCS, TAG_N_DESC };

enum { F_ON = 1, F_PACKED = 2 };

struct account_rec {
	uint64_t counter;
	uint32_t flags;
	uint16_t size, free_head, n_free, pad;
};

_Static_assert(sizeof(struct vp_packed_saved) == 16, "written as it is");

void vp_inflight_save(const struct vp_inflight *f, const struct vp_inflight_saved *s, unsigned from, unsigned to,
		      unsigned desc, struct vp_rec *r)
{
	const struct account_rec a = {
		.counter = f->counter, .flags = (f->on ? F_ON : 0) | (f->packed ? F_PACKED : 0), .size = f->size,
		.free_head = f->free_head, .n_free = f->n_free,
	};
	unsigned descs = 0;

	vp_rec_put(r, TAG_ACCOUNT, &a, sizeof(a));
	if (!f->on)
		return;
	if (f->packed)
		vp_rec_put(r, TAG_NEXT, f->next, f->size * sizeof(f->next[0]));
	if (from >= to)
		return;
	vp_rec_put(r, TAG_HEADS, s->heads + from, (to - from) * sizeof(s->heads[0]));
	if (!f->packed)
		return;
	for (unsigned k = from; k < to; k++)
		descs += s->n_desc[k];
	vp_rec_put(r, TAG_N_DESC, s->n_desc + from, (to - from) * sizeof(s->n_desc[0]));
	vp_rec_put(r, TAG_DESCS, s->desc + desc, descs * sizeof(s->desc[0]));
}

static bool all_below(const uint16_t *v, unsigned n, unsigned max)
{
	while (n)
		if (v[--n] >= max)
			return false;
	return true;
}

/* The first such element's, at most `max` of `size` bytes each, or none; how many there are, -1: too many. */
static int load_array(const struct vp_rec_in *in, unsigned tag, void *to, size_t size, unsigned max)
{
	struct vp_rec_in body;

	if (!vp_rec_find(in, tag, &body))
		return 0;
	if (body.n % size || body.n / size > max)
		return -1;
	if (body.n)
		memcpy(to, body.p, body.n);
	return (int)(body.n / size);
}

static bool load_packed(struct vp_inflight *f, struct vp_inflight_saved *s, const struct vp_rec_in *in)
{
	unsigned descs = 0;

	if (load_array(in, TAG_NEXT, s->next, sizeof(s->next[0]), f->size) != f->size ||
	    !all_below(s->next, f->size, f->size) || f->free_head >= f->size || f->n_free > f->size ||
	    load_array(in, TAG_N_DESC, s->n_desc, sizeof(s->n_desc[0]), f->size) != (int)s->n)
		return false;
	for (unsigned k = 0; k < s->n; k++) {
		if (!s->n_desc[k] || s->n_desc[k] > f->size - descs)
			return false;
		descs += s->n_desc[k];
	}
	return load_array(in, TAG_DESCS, s->desc, sizeof(s->desc[0]), f->size) == (int)descs;
}

static int load(struct vp_inflight *f, struct vp_inflight_saved *s, const struct vp_rec_in *in)
{
	int n;

	s->heads = calloc(f->size, sizeof(*s->heads));
	if (f->packed) {
		f->next = s->next = calloc(f->size, sizeof(*s->next));
		s->desc = calloc(f->size, sizeof(*s->desc));
		s->n_desc = calloc(f->size, sizeof(*s->n_desc));
	}
	if (!s->heads || (f->packed && (!s->next || !s->desc || !s->n_desc)))
		return -ENOMEM;
	n = load_array(in, TAG_HEADS, s->heads, sizeof(s->heads[0]), f->size);
	if (n < 0 || !all_below(s->heads, (unsigned)n, f->size))
		return -EPROTO;
	s->n = (unsigned)n;
	return !f->packed || load_packed(f, s, in) ? 0 : -EPROTO;
}

int vp_inflight_restore(struct vp_inflight *f, struct vp_inflight_saved *s, vp_gptr mem, const struct vp_virtq *vq,
			const struct vp_rec_in *in)
{
	struct account_rec a;
	int r;

	vp_inflight_saved_free(s);
	*f = (struct vp_inflight){ 0 };
	if (vp_rec_get(in, TAG_ACCOUNT, &a, sizeof(a)))
		return -EPROTO;
	if (!(a.flags & F_ON))
		return 0;
	if (vp_gptr_is_null(mem) || a.size != vq->size || !(a.flags & F_PACKED) != !vq->packed)
		return -EPROTO;
	*f = (struct vp_inflight){
		.mem = mem, .size = a.size, .counter = a.counter, .packed = vq->packed, .free_head = a.free_head,
		.n_free = a.n_free,
	};
	r = load(f, s, in);
	if (r)
		vp_inflight_saved_free(s);
	f->on = !r;
	return r;
}
