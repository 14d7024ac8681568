/* SPDX-License-Identifier: BSD-3-Clause */
#include "guestmem/memtab.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct vp_window vp_window_none;

static int region_cmp(const void *a, const void *b)
{
	const struct vp_region *x = a, *y = b;

	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/* Granules for each region at most: the more there are, the fewer have two regions in them. */
#define GRANULES_PER_REGION 16

static uint64_t last_of(const struct vp_region *r)
{
	return r->gpa + (r->size - 1);
}

static bool shares_granule(const struct vp_memtab *t)
{
	for (unsigned i = 1; i < t->n; i++)
		if (last_of(&t->r[i - 1]) >> t->shift == t->r[i].gpa >> t->shift)
			return true;
	return false;
}

/* Into the granules of the region; where there are two, the larger one first. */
static void index_put(struct vp_memtab *t, struct vp_window *win, const struct vp_region *r)
{
	const uint64_t first = r->gpa >> t->shift, n = (last_of(r) >> t->shift) - first + 1;

	for (uint64_t i = 0; i < n; i++) {
		struct vp_window *at = &win[(first + i) & t->mask], was = *at;
		struct vp_window w = { .start = r->gpa, .size = r->size, .host = r->host };

		if (w.size > was.size) {
			*at = w;
			w = was;
		}
		if (w.size > at[t->second].size)
			at[t->second] = w;
	}
}

static bool index_build(struct vp_memtab *t)
{
	uint64_t granules = 2, windows;
	bool shared;

	if (!t->n)
		return true;
	while (granules < t->n)
		granules *= 2;
	for (;; granules *= 2) {
		t->shift = 0;
		while ((last_of(&t->r[t->n - 1]) >> t->shift) - (t->r[0].gpa >> t->shift) >= granules)
			t->shift++;
		shared = shares_granule(t);
		if (!shared || granules >= GRANULES_PER_REGION * t->n)
			break;
	}
	t->mask = (uint32_t)granules - 1;
	t->second = shared ? (uint32_t)granules : 0;
	windows = granules + t->second;
	t->win[VP_READ] = aligned_alloc(VP_CACHELINE, 2 * windows * sizeof(struct vp_window));
	if (!t->win[VP_READ])
		return false;
	t->win[VP_WRITE] = t->win[VP_READ] + windows;
	memset(t->win[VP_READ], 0, 2 * windows * sizeof(struct vp_window));
	for (unsigned i = 0; i < t->n; i++) {
		const struct vp_region *r = &t->r[i];

		if (r->map)
			index_put(t, t->win[VP_READ], r);
		if (r->map && r->map->writable)
			index_put(t, t->win[VP_WRITE], r);
	}
	return true;
}

int vp_memtab_build(struct vp_memtab **out, const struct vp_region_desc *d, unsigned n,
		    struct vp_err *e)
{
	struct vp_memtab *t;
	uint64_t end;
	unsigned i;

	*out = NULL;
	if (n > VP_MEMTAB_MAX)
		return vp_err_set(e, -E2BIG, "memory table: %u regions, at most %d are supported", n,
				  VP_MEMTAB_MAX);
	t = calloc(1, sizeof(*t) + n * sizeof(t->r[0]));
	if (!t)
		return vp_err_set(e, -ENOMEM, "memory table: out of memory");
	for (i = 0; i < n; i++) {
		/* The last byte may be the last of the address space, the end may not wrap past it. */
		if (!d[i].size || vp_add_overflow(d[i].gpa, d[i].size - 1, &end) ||
		    vp_add_overflow(d[i].uva, d[i].size - 1, &end)) {
			vp_err_set(e, -EINVAL,
				   "memory table: region %u (address 0x%llx, size 0x%llx) is empty or wraps around", i,
				   (unsigned long long)d[i].gpa, (unsigned long long)d[i].size);
			goto inval;
		}
		if (d[i].map && d[i].map->size < d[i].size) {
			vp_err_set(e, -EINVAL, "memory table: region %u has 0x%llx bytes but its mapping only 0x%llx",
				   i, (unsigned long long)d[i].size, (unsigned long long)d[i].map->size);
			goto inval;
		}
		t->r[i] = (struct vp_region){
			.gpa = d[i].gpa, .size = d[i].size, .uva = d[i].uva, .offset = d[i].offset,
			.map = d[i].map, .host = d[i].map ? d[i].map->host : VP_GPTR_NULL,
		};
	}
	qsort(t->r, n, sizeof(t->r[0]), region_cmp);
	for (i = 1; i < n; i++) {
		if (t->r[i].gpa - t->r[i - 1].gpa < t->r[i - 1].size) {
			vp_err_set(e, -EINVAL, "memory table: regions at 0x%llx and 0x%llx overlap",
				   (unsigned long long)t->r[i - 1].gpa, (unsigned long long)t->r[i].gpa);
			goto inval;
		}
	}
	t->n = n;
	if (!index_build(t)) {
		free(t);
		return vp_err_set(e, -ENOMEM, "memory table: out of memory");
	}
	for (i = 0; i < n; i++)
		vp_map_ref(t->r[i].map);
	*out = t;
	return 0;
inval:
	free(t);
	return -EINVAL;
}

void vp_memtab_free(struct vp_memtab *t)
{
	unsigned i;

	if (!t)
		return;
	for (i = 0; i < t->n; i++)
		vp_map_unref(t->r[i].map);
	free(t->win[VP_READ]);
	free(t);
}

int vp_memtab_find(const struct vp_memtab *t, uint64_t gpa)
{
	unsigned lo = 0, hi = t->n;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (t->r[mid].gpa <= gpa)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo || gpa - t->r[lo - 1].gpa >= t->r[lo - 1].size)
		return -1;
	return (int)lo - 1;
}

int vp_memtab_uva_to_gpa(const struct vp_memtab *t, uint64_t uva, uint64_t len, uint64_t *gpa)
{
	unsigned i;

	for (i = 0; i < t->n; i++) {
		if (!vp_range_inside(uva, len, t->r[i].uva, t->r[i].size))
			continue;
		*gpa = t->r[i].gpa + (uva - t->r[i].uva);
		return 0;
	}
	return -EFAULT;
}

struct vp_map_use vp_memtab_use(const struct vp_memtab *t)
{
	struct vp_map_use u = { 0 };
	unsigned i;

	for (i = 0; t && i < t->n; i++) {
		if (!t->r[i].map || !t->r[i].map->use || t->r[i].map->refs != 1)
			continue;
		u.maps++;
		u.bytes += t->r[i].map->base_len;
	}
	return u;
}

bool vp_memtab_lost(const struct vp_memtab *t)
{
	unsigned i;

	for (i = 0; t && i < t->n; i++)
		if (t->r[i].map && vp_map_lost(t->r[i].map))
			return true;
	return false;
}

void vp_xlate_init(struct vp_xlate *x, const struct vp_memtab *tab, struct vp_iommu *iommu)
{
	x->tab = tab;
	x->direct = tab && tab->n && !iommu ? tab : NULL;
	x->iommu = iommu;
	x->generation = iommu ? __atomic_load_n(&iommu->generation, __ATOMIC_ACQUIRE) : 0;
	x->grows = false;
	vp_xlate_flush(x);
}

int vp_xlate_piece(struct vp_xlate *x, uint64_t addr, uint64_t len, enum vp_access acc,
		   vp_gptr *host, uint64_t *span)
{
	const struct vp_region *r;
	struct vp_window w;
	uint64_t off;
	int i, ret;

	if (x->iommu) {
		ret = x->iommu->translate(x->iommu, addr, len, acc, &w);
		if (ret)
			return ret;
		x->own[acc] = w;
		x->hot[acc] = &x->own[acc];
		off = addr - w.start;
		*host = vp_gptr_add(w.host, off);
		*span = VP_MIN(len, w.size - off);
		return 0;
	}
	if (x->direct) {
		const struct vp_window *named = vp_memtab_window(x->direct, addr, acc);

		off = addr - named->start;
		if (vp_likely(off < named->size)) {
			x->hot[acc] = named;
			*host = vp_gptr_add(named->host, off);
			*span = VP_MIN(len, named->size - off);
			return 0;
		}
	}
	i = x->tab ? vp_memtab_find(x->tab, addr) : -1;
	if (i < 0 && x->grows) {
		x->miss = (struct vp_miss){ .addr = addr, .size = len, .acc = acc };
		return -EAGAIN;
	}
	if (i < 0)
		return -EFAULT;
	r = &x->tab->r[i];
	if (!r->map || (acc == VP_WRITE && !r->map->writable))
		return -EFAULT;
	/* The third region of a granule, or one that is smaller still. */
	x->own[acc] = (struct vp_window){ .start = r->gpa, .size = r->size, .host = r->host };
	x->hot[acc] = &x->own[acc];
	off = addr - r->gpa;
	*host = vp_gptr_add(r->host, off);
	*span = VP_MIN(len, r->size - off);
	return 0;
}

int vp_xlate_contig(struct vp_xlate *x, uint64_t addr, uint64_t len, enum vp_access acc,
		    vp_gptr *host)
{
	uint64_t done, span;
	vp_gptr next;
	int ret;

	ret = vp_xlate_piece(x, addr, len, acc, host, &span);
	if (ret)
		return ret;
	/* Two regions may be neighbours in guest and in host addresses alike. */
	for (done = span; done < len; done += span) {
		ret = vp_xlate_piece(x, addr + done, len - done, acc, &next, &span);
		if (ret)
			return ret;
		if (next.p != vp_gptr_add(*host, done).p)
			return -EFAULT;
	}
	return 0;
}

int vp_xlate_copy_in(struct vp_xlate *x, void *dst, uint64_t addr, uint64_t len)
{
	uint64_t span, done;
	vp_gptr g;
	int ret;

	for (done = 0; done < len; done += span) {
		ret = vp_xlate_piece(x, addr + done, len - done, VP_READ, &g, &span);
		if (ret)
			return ret;
		vp_copy_in((char *)dst + done, g, span);
	}
	return 0;
}

int vp_xlate_copy_out(struct vp_xlate *x, uint64_t addr, const void *src, uint64_t len)
{
	uint64_t span, done;
	vp_gptr g;
	int ret;

	for (done = 0; done < len; done += span) {
		ret = vp_xlate_piece(x, addr + done, len - done, VP_WRITE, &g, &span);
		if (ret)
			return ret;
		vp_copy_out(g, (const char *)src + done, span);
	}
	return 0;
}

/* All memory that there is, and no more: a bitmap may be much larger than the memory it is for. */
static void mark_all(const struct vp_dirty_log *log, const struct vp_memtab *tab)
{
	for (unsigned i = 0; i < tab->n; i++) {
		uint64_t page = tab->r[i].gpa >> 12, last = (tab->r[i].gpa + tab->r[i].size - 1) >> 12;

		for (; page <= last && page & 63; page++)
			vp_dirty_log_mark(log, page << 12, 1);
		for (; page + 63 <= last && page + 64 <= log->pages; page += 64)
			vp_st64(log->map->host, page >> 3, UINT64_MAX);
		if (page <= last)
			vp_dirty_log_mark(log, page << 12, (last - page + 1) << 12);
	}
}

void vp_dirty_log_mark_xlate(const struct vp_dirty_log *log, const struct vp_xlate *x, uint64_t addr, uint64_t len)
{
	uint64_t gpa, span;

	if (!x->iommu) {
		vp_dirty_log_mark(log, addr, len);
		return;
	}
	for (; len; addr += span, len -= span) {
		if (x->iommu->gpa(x->iommu, addr, &gpa, &span)) {
			/*
			 * The page was invalidated since, then it is the guest's to care for again; or
			 * it was forgotten, then it may be any page.
			 */
			if (__atomic_load_n(&x->iommu->forgets, __ATOMIC_RELAXED))
				mark_all(log, x->tab);
			return;
		}
		span = VP_MIN(span, len);
		vp_dirty_log_mark(log, gpa, span);
	}
}

void vp_dirty_log_mark(const struct vp_dirty_log *log, uint64_t gpa, uint64_t len)
{
	uint64_t page, last;

	if (!len)
		return;
	last = (gpa + len - 1) >> 12;
	for (page = gpa >> 12; page <= last && page < log->pages; page++)
		vp_or8(log->map->host, page >> 3, (uint8_t)(1u << (page & 7)));
}
