/* SPDX-License-Identifier: BSD-3-Clause */
#include "threads/rates.h"

#include <stdlib.h>
#include <string.h>

static struct rate {
	struct vp_bucket bucket;
	char             vm[VP_CONF_NAME_MAX];
	struct rate     *next;
} *rates;

struct vp_bucket *vp_rate_of(const char *vm)
{
	struct rate *r;

	for (r = rates; r; r = r->next)
		if (!strcmp(r->vm, vm))
			return &r->bucket;
	r = calloc(1, sizeof(*r));
	if (!r)
		return NULL;
	memcpy(r->vm, vm, strlen(vm) + 1);
	r->next = rates;
	rates = r;
	return &r->bucket;
}

void vp_rate_apply(const struct vp_conf *c)
{
	for (struct rate *r = rates; r; r = r->next) {
		const struct vp_conf_vm *vm = vp_conf_vm_find(c, r->vm);

		if (!vm)
			__atomic_store_n(&r->bucket.rate, 0, __ATOMIC_RELAXED);
	}
	for (unsigned i = 0; i < c->n_vms; i++) {
		struct vp_bucket *b = vp_rate_of(c->vms[i].name);

		if (b)
			__atomic_store_n(&b->rate, c->vms[i].pps, __ATOMIC_RELAXED);
	}
}

enum tag { TAG_BUCKET = 1, TAG_VM = 16, TAG_DUE };

void vp_rate_save(struct vp_rec *rec)
{
	for (struct rate *r = rates; r; r = r->next) {
		vp_rec_begin(rec, TAG_BUCKET);
		vp_rec_str(rec, TAG_VM, r->vm);
		vp_rec_u64(rec, TAG_DUE, __atomic_load_n(&r->bucket.due, __ATOMIC_RELAXED));
		vp_rec_end(rec);
	}
}

void vp_rate_restore(const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in, body;
	char vm[VP_CONF_NAME_MAX];
	unsigned tag;

	while (vp_rec_next(&rest, &tag, &body)) {
		if (vp_rec_text(&body, TAG_VM, vm, sizeof(vm)))
			continue;
		for (struct rate *r = rates; r; r = r->next)
			if (!strcmp(r->vm, vm))
				__atomic_store_n(&r->bucket.due, vp_rec_num(&body, TAG_DUE, 0), __ATOMIC_RELAXED);
	}
}
