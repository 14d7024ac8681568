/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Region tables: which addresses of a driver VM are reachable, and where.
 *
 * A table never changes once built. The owner builds a new one from scratch, validates all of it,
 * publishes it, waits for a grace period and drops the old one (as Linux's vhost_set_memory() does).
 * Tables share mappings by reference, so adding one region to a table of 500 maps once.
 *
 * A region has a guest physical address (what descriptors hold), a front-end user address (what ring
 * addresses hold), a size, and an offset into its file. Source: vhost-user, "Memory regions
 * description".
 */
#ifndef VP_GUESTMEM_MEMTAB_H
#define VP_GUESTMEM_MEMTAB_H

#include "guestmem/map.h"

#define VP_MEMTAB_MAX 509 /* what vhost-user front-ends announce at most */

struct vp_region {
	uint64_t       gpa;
	uint64_t       size;
	uint64_t       uva;    /* front-end user address; never shown to another VM */
	uint64_t       offset; /* of gpa in the file */
	vp_gptr        host;
	struct vp_map *map;
};

/* What a translation is for. A device-readable buffer is only ever read. */
enum vp_access { VP_READ = 0, VP_WRITE = 1 };

/* A contiguous piece of a driver VM's address space and where it is mapped here. */
struct vp_window {
	uint64_t start, size; /* 0 bytes: nothing is allowed there */
	vp_gptr  host;
} __attribute__((aligned(32))); /* one line, and an index that is a shift */

/*
 * The span of all regions is cut into granules of one size, the largest for which no granule has two regions in it (or
 * the smallest that there may be). Each granule has the window of its region: a look-up loads one line, however many
 * regions there are. An address outside the span names the wrong window: a window is right only when it holds the
 * address.
 */
struct vp_memtab {
	unsigned         n;
	unsigned         shift;  /* a granule has 1 << shift bytes */
	uint32_t         mask;   /* granules - 1: a power of two less one */
	uint32_t         second; /* how far behind a granule's window that of its second region is; 0: none has one */
	/* By enum vp_access, by (gpa >> shift) & mask. 0 bytes: access not allowed, or nothing is mapped here. */
	struct vp_window *win[2];
	struct vp_region r[];    /* sorted by gpa, disjoint */
};

/* One region to add; map may be NULL for a region that is translated but not mapped here. */
struct vp_region_desc {
	uint64_t       gpa, size, uva, offset;
	struct vp_map *map;
};

/*
 * Build a table of n regions (copied; each map gets a reference of its own).
 * -EINVAL: zero size, wrapping or overlapping addresses, a map smaller than its
 * region; -E2BIG: more than VP_MEMTAB_MAX; -ENOMEM.
 */
int vp_memtab_build(struct vp_memtab **out, const struct vp_region_desc *d, unsigned n,
		    struct vp_err *e);
void vp_memtab_free(struct vp_memtab *t);

/* Index of the region that holds gpa, or -1. */
int vp_memtab_find(const struct vp_memtab *t, uint64_t gpa);

/* Front-end user address to guest physical address; -EFAULT when [uva, uva+len) is not inside one region. */
int vp_memtab_uva_to_gpa(const struct vp_memtab *t, uint64_t uva, uint64_t len, uint64_t *gpa);

/*
 * The mappings that go when this table goes, as vp_map_charge() counts them: those that no other table
 * shares. NULL: none.
 */
struct vp_map_use vp_memtab_use(const struct vp_memtab *t);

/* True when a mapping of this table was truncated under us. */
bool vp_memtab_lost(const struct vp_memtab *t);

/* A second translation stage in front of the table: a vIOMMU's IOTLB (iotlb.h). */
struct vp_iommu {
	/*
	 * The window around iova that allows acc. -EAGAIN: not yet, come back after the next change.
	 * -EFAULT: not allowed.
	 */
	int (*translate)(struct vp_iommu *iommu, uint64_t iova, uint64_t len, enum vp_access acc,
			 struct vp_window *w);
	/* The guest physical address of iova and the bytes that continue it: for the dirty log. -EFAULT: gone. */
	int (*gpa)(struct vp_iommu *iommu, uint64_t iova, uint64_t *gpa, uint64_t *span);
	uint32_t generation; /* changes with every invalidation; atomic */
	bool     forgets;    /* gpa() may fail for what is mapped: there is more than it can hold; atomic */
};

/*
 * The per-virtqueue translator. It remembers the last window hit in each
 * direction, so that the usual case is one subtraction and two compares.
 * One thread at a time.
 */
struct vp_xlate {
	const struct vp_window *hot[2]; /* by enum vp_access; never NULL */
	struct vp_window        own[2]; /* what hot[] points at, where that is not one of the table's */
	const struct vp_memtab *tab;
	const struct vp_memtab *direct; /* tab, or NULL where addresses are not guest physical, or tab has no regions */
	struct vp_iommu        *iommu;  /* NULL = addresses are guest physical */
	uint32_t                generation; /* of the iommu, that hot[] belongs to */
	/*
	 * No iommu, and the table grows by what is asked for: what it has not is not -EFAULT but -EAGAIN, as a vIOMMU's
	 * miss is, and is noted here. size 0 = nothing was missed.
	 */
	bool                    grows;
	struct vp_miss {
		uint64_t       addr, size;
		enum vp_access acc;
	} miss;
};

extern const struct vp_window vp_window_none;

/* Use tab (and iommu, or NULL) from now on; forgets cached windows. Not owned. */
void vp_xlate_init(struct vp_xlate *x, const struct vp_memtab *tab, struct vp_iommu *iommu);

/* Forget cached windows (after an IOTLB invalidation). */
VP_INLINE void vp_xlate_flush(struct vp_xlate *x)
{
	x->hot[0] = &vp_window_none;
	x->hot[1] = &vp_window_none;
}

/*
 * Call it at the start of a burst: the burst then uses nothing that was remembered from before an
 * invalidation. Together with a grace period behind the invalidation this makes it safe to acknowledge
 * the invalidation.
 */
VP_INLINE void vp_xlate_sync(struct vp_xlate *x)
{
	uint32_t g;

	if (vp_likely(!x->iommu))
		return;
	g = __atomic_load_n(&x->iommu->generation, __ATOMIC_ACQUIRE);
	if (g != x->generation) {
		x->generation = g;
		vp_xlate_flush(x);
	}
}

/*
 * Do len bytes at off lie in the window? A length of zero becomes the largest there is, and fails as
 * any other that is too large.
 */
VP_INLINE bool vp_window_holds(const struct vp_window *w, uint64_t off, uint32_t len)
{
	return off < w->size && (uint64_t)len - 1 < w->size - off;
}

/* The window that holds addr, if the table names it: the caller looks whether it does. */
VP_INLINE const struct vp_window *vp_memtab_window(const struct vp_memtab *t, uint64_t addr, enum vp_access acc)
{
	const struct vp_window *w = &t->win[acc][(addr >> t->shift) & t->mask];

	if (vp_unlikely(addr - w->start >= w->size))
		w += t->second;
	return w;
}

/*
 * For the loops of the fast path, which keep the hot window in *w: does it hold [addr, addr + len)? With a table (that
 * of vp_xlate.direct) the window is looked for there first, and becomes *w. A loop without goes by the hot window
 * alone, and one with follows it from the first address on that lies elsewhere: so buffers in one region cost no
 * look-up, and buffers in many no wrong guess. False leaves all to vp_xlate_piece(): there may be a third region in
 * the granule.
 */
VP_INLINE bool vp_xlate_window(const struct vp_memtab *direct, const struct vp_window **w, uint64_t addr, uint32_t len,
			       enum vp_access acc)
{
	if (direct)
		*w = vp_memtab_window(direct, addr, acc);
	return vp_window_holds(*w, addr - (*w)->start, len);
}

/* The slow half: one contiguous piece at addr; *span <= len. -EFAULT, -EAGAIN. */
int vp_xlate_piece(struct vp_xlate *x, uint64_t addr, uint64_t len, enum vp_access acc,
		   vp_gptr *host, uint64_t *span);

/*
 * The same, without a look at the table when the last address of its kind was near by. For bursts: see
 * vp_xlate_sync().
 */
VP_INLINE int vp_xlate_near(struct vp_xlate *x, uint64_t addr, uint64_t len, enum vp_access acc, vp_gptr *host,
			    uint64_t *span)
{
	const struct vp_window *w = x->hot[acc];
	uint64_t off = addr - w->start;

	if (vp_unlikely(off >= w->size))
		return vp_xlate_piece(x, addr, len, acc, host, span);
	*host = vp_gptr_add(w->host, off);
	*span = VP_MIN(len, w->size - off);
	return 0;
}

/* A range that must be contiguous (ring areas). 0, -EFAULT or -EAGAIN. len > 0. */
int vp_xlate_contig(struct vp_xlate *x, uint64_t addr, uint64_t len, enum vp_access acc,
		    vp_gptr *host);

/*
 * Copy from or to guest addresses across region borders (slow path: state that is read rarely). 0,
 * -EFAULT or -EAGAIN. On failure an unknown prefix was copied.
 */
int vp_xlate_copy_in(struct vp_xlate *x, void *dst, uint64_t addr, uint64_t len);
int vp_xlate_copy_out(struct vp_xlate *x, uint64_t addr, const void *src, uint64_t len);

/*
 * The dirty log of live migration (vhost-user, "Migration"): a bitmap, one bit
 * for each 4 KiB page of guest physical memory.
 */
struct vp_dirty_log {
	struct vp_map *map;
	uint64_t       pages; /* bits in the bitmap */
};

/* Mark what lies at addr (guest physical, or an IOVA of x's iommu) dirty. */
void vp_dirty_log_mark_xlate(const struct vp_dirty_log *log, const struct vp_xlate *x, uint64_t addr, uint64_t len);

/* Mark [gpa, gpa + len) dirty, after the write itself. Pages beyond the bitmap are ignored. */
void vp_dirty_log_mark(const struct vp_dirty_log *log, uint64_t gpa, uint64_t len);

#endif
