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
