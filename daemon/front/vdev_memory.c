/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory of a device's front-end: its table, and the dirty log. Threat model: vdev.c. */
#include "front/vdev_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"

/* Translate a running ring anew; what no longer resolves is broken, and only that. */
static void ring_rebind(struct vp_vdev *v, unsigned q)
{
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_virtq *vq = &r->rq.vq;
	struct vp_vq_conf c = { .size = vq->size };
	struct vp_err e = { 0 };
	int ret;

	if (r->wait == VP_VDEV_WAIT_START || (!r->usable && !r->wait) || vq->broken)
		return;
	ret = vp_vdev_ring_addrs(v, vu_ring_of(v, q), vq->packed, &c, &e);
	if (!ret && (c.desc != vq->desc_addr || c.driver != vq->driver_addr || c.device != vq->device_addr))
		ret = vp_err_set(&e, -EINVAL, "the memory under the ring was moved while it ran");
	if (!ret)
		ret = vp_vq_rebind(vq, v->tab, iommu_of(v), &e);
	if (ret == -EAGAIN) {
		r->usable = false;
		r->wait = VP_VDEV_WAIT_REBIND;
	}
	if (!ret || ret == -EAGAIN)
		return;
	vp_vq_break(vq, VP_VQ_BAD_RING);
	vp_vdev_ring_failed(v, q, e.code ? e.msg : strerror(-ret));
	r->reported = true;
}

static void table_replace(struct vp_vdev *v, struct vp_memtab *tab)
{
	struct vp_memtab *old = v->tab;

	v->ops->withdraw(v->ctx, 0, v->n);
	v->tab = tab;
	if (v->iotlb)
		vp_iotlb_clear(v->iotlb);  /* it holds addresses inside the old mappings */
	for (unsigned q = 0; q < v->n; q++)
		ring_rebind(v, q);
	if (v->ops->memory)
		v->ops->memory(v->ctx);
	v->ops->offer(v->ctx, 0, v->n);
	vp_memtab_free(old);  /* withdraw() was the grace period */
}

static int map_region(struct vp_vdev *v, const struct vu_mem_region *m, int fd, const struct vp_map_use *instead,
		      struct vp_region_desc *d, struct vp_err *e)
{
	int r;

	*d = (struct vp_region_desc){ .gpa = m->gpa, .size = m->size, .uva = m->uva, .offset = m->mmap_offset };
	r = vp_memory_map(&d->map, v->conf->side[v->side].vm, fd, m->mmap_offset, m->size, instead, e);
	if (r && !e->code)
		vp_err_set(e, r, "region at 0x%llx cannot be mapped: %s", (unsigned long long)m->gpa, strerror(-r));
	return r;
}

/* The present table's regions as descriptions (borrowing its maps), n of them. */
static unsigned describe(const struct vp_memtab *t, struct vp_region_desc *d, unsigned max)
{
	unsigned n = t ? VP_MIN(t->n, max) : 0;

	for (unsigned i = 0; i < n; i++)
		d[i] = (struct vp_region_desc){
			.gpa = t->r[i].gpa, .size = t->r[i].size, .uva = t->r[i].uva,
			.offset = t->r[i].offset, .map = t->r[i].map,
		};
	return n;
}

int vp_vdev_on_mem_table(void *ctx, const struct vu_mem_region *m, int *fds, unsigned n, struct vp_err *e)
{
	struct vp_region_desc d[VU_MAX_TABLE_REGIONS] = { 0 };
	struct vp_vdev *v = vdev_of(ctx);
	struct vp_map_use old = vp_memtab_use(v->tab);
	struct vp_memtab *tab = NULL;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = map_region(v, &m[i], fds[i], &old, &d[i], e);
	if (!r && n)
		r = vp_memtab_build(&tab, d, n, e);
	for (unsigned i = 0; i < n; i++)
		vp_map_unref(d[i].map);
	if (!r)
		table_replace(v, tab);
	return r;
}

int vp_vdev_on_mem_add(void *ctx, const struct vu_mem_region *m, int *fd, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	struct vp_region_desc *d = calloc(VP_MEMTAB_MAX + 1, sizeof(*d));
	struct vp_memtab *tab = NULL;
	unsigned n;
	int r;

	if (!d)
		return -ENOMEM;
	n = describe(v->tab, d, VP_MEMTAB_MAX);
	r = map_region(v, m, *fd, NULL, &d[n], e);
	if (!r)
		r = vp_memtab_build(&tab, d, n + 1, e);
	vp_map_unref(d[n].map);
	free(d);
	if (!r)
		table_replace(v, tab);
	return r;
}

int vp_vdev_on_mem_remove(void *ctx, const struct vu_mem_region *m, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	struct vp_region_desc *d = calloc(VP_MEMTAB_MAX, sizeof(*d));
	struct vp_memtab *tab = NULL;
	unsigned n, out = 0;
	int r = 0;

	if (!d)
		return -ENOMEM;
	n = describe(v->tab, d, VP_MEMTAB_MAX);
	for (unsigned i = 0; i < n; i++)
		if (d[i].gpa != m->gpa || d[i].size != m->size || d[i].uva != m->uva)
			d[out++] = d[i];
	if (out == n)
		r = vp_err_set(e, -ENOENT, "there is no region at 0x%llx of 0x%llx bytes to remove",
			       (unsigned long long)m->gpa, (unsigned long long)m->size);
	else if (out)
		r = vp_memtab_build(&tab, d, out, e);
	free(d);
	if (!r)
		table_replace(v, tab);
	return r;
}

int vp_vdev_on_log(void *ctx, int *fd, uint64_t size, uint64_t offset, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	struct vp_map *map = NULL, *old = v->log.map;
	uint64_t pages = size > UINT64_MAX / 8 ? UINT64_MAX : size * 8;
	int r;

	for (unsigned i = 0; v->tab && i < v->tab->n; i++) {
		const struct vp_region *g = &v->tab->r[i];

		if ((g->gpa + g->size - 1) / 4096 >= pages)
			return vp_err_set(e, -EINVAL, "a dirty log of %llu bytes does not cover memory up to 0x%llx",
					  (unsigned long long)size, (unsigned long long)(g->gpa + g->size));
	}
	r = vp_memory_map(&map, v->conf->side[v->side].vm, *fd, offset, size, NULL, e);
	if (r)
		return r;
	v->ops->withdraw(v->ctx, 0, v->n);
	v->log.map = map;
	v->log.pages = pages;
	v->log_offset = offset;
	for (unsigned q = 0; q < v->n; q++)
		vp_vdev_ring_set_log(v, q);
	v->ops->offer(v->ctx, 0, v->n);
	vp_map_unref(old);
	return vp_vdev_ask_logged(v);
}

int vp_vdev_ask_logged(struct vp_vdev *v)
{
	return vp_vdev_logging(v) && v->ops->logged ? v->ops->logged(v->ctx) : 0;
}

int vp_vdev_logged(struct vp_vdev *v, struct vp_err *e)
{
	return vu_backend_done(v->ops->session(v->ctx), 0, e);
}
