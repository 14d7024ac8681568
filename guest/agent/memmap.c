// SPDX-License-Identifier: BSD-3-Clause
/*
 * Threat model: ring addresses and sizes come from the driver VM (through the daemon) and are
 * hostile; the region table was checked by port_read_state. Nothing is translated without an
 * overflow-safe range check, and a ring area must lie in one piece.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "memmap.h"

#define RING_MAX 32768u

/*
 * Numbers for windows that are not mapped here. DPDK keeps its old mapping when a new table
 * has the same addresses and sizes, so a number is never given twice.
 */
static uint64_t next_uva = UINT64_C(1) << 40;

static void window_put(struct mm_window *w)
{
	if (--w->refs)
		return;
	if (w->map)
		munmap(w->map, w->size);
	vp_close(&w->fd);
	free(w);
}

/* Map a window such that pages as large as align fit: address and offset congruent modulo align. */
static int window_map(struct mm_window *w, uint64_t align)
{
	uint64_t start, span;
	char *base, *at;

	if (align < 4096 || !vp_is_pow2(align))
		align = 4096;
	if (align > w->size)
		align = 4096;
	if (w->size > SIZE_MAX / 2 || vp_add_overflow(w->size, align, &span))
		return -EFBIG;
	/* Reserve more than needed, put the window on an aligned address, give back the rest. */
	base = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return -errno;
	start = vp_align_up((uintptr_t)base, align);
	at = mmap((void *)(uintptr_t)start, w->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, w->fd, 0);
	if (at == MAP_FAILED) {
		int err = errno;

		munmap(base, span);
		return -err;
	}
	if (at > base)
		munmap(base, (size_t)(at - base));
	munmap(at + w->size, span - w->size - (size_t)(at - base));
	w->map = at;
	w->uva = start;
	return 0;
}

static int window_get(struct port *p, uint32_t slot, uint32_t serial, uint64_t size, bool map,
		      struct mm_window **out, struct vp_err *e)
{
	struct port_window pw = { .fd = -1 };
	struct mm_window *w;
	int rc = p->ops->window(p, slot, serial, &pw);

	if (rc)
		return vp_err_set(e, rc, "window %u cannot be had: %s", slot, strerror(-rc));
	w = calloc(1, sizeof(*w));
	if (!w) {
		close(pw.fd);
		return vp_err_set(e, -ENOMEM, "out of memory");
	}
	*w = (struct mm_window){ .refs = 1, .slot = slot, .serial = serial, .fd = pw.fd, .size = pw.size };
	if (pw.size < size) {
		rc = vp_err_set(e, -EPROTO, "window %u has %llu bytes instead of %llu", slot,
				(unsigned long long)pw.size, (unsigned long long)size);
		goto fail;
	}
	if (map) {
		rc = window_map(w, pw.align);
		if (rc) {
			vp_err_set(e, rc, "cannot map window %u (%llu MiB): %s", slot,
				   (unsigned long long)pw.size >> 20, strerror(-rc));
			goto fail;
		}
	} else {
		w->uva = next_uva;
		next_uva += vp_align_up(pw.size, UINT64_C(1) << 30) + (UINT64_C(1) << 30);
	}
	*out = w;
	return 0;
fail:
	window_put(w);
	return rc;
}

static struct mm_window *find_window(const struct memmap *m, uint32_t slot, uint32_t serial)
{
	for (unsigned int i = 0; m && i < m->nregions; i++)
		if (m->r[i].win->slot == slot && m->r[i].win->serial == serial)
			return m->r[i].win;
	if (m && m->inflight.win && m->inflight.win->slot == slot && m->inflight.win->serial == serial)
		return m->inflight.win;
	return NULL;
}

/*
 * Did a region of the old table end here? Then it keeps its shape: a vhost-user back-end that is told region by region
 * would otherwise lose, for a moment, memory that its rings use.
 */
static bool was_end(const struct memmap *old, const struct mm_window *w, uint64_t addr)
{
	for (unsigned int i = 0; old && i < old->nregions; i++)
		if (old->r[i].win == w && old->r[i].addr + old->r[i].size == addr)
			return true;
	return false;
}

int memmap_build(struct port *p, const struct vp_state *s, const struct memmap *old, bool map,
		 struct memmap **out, struct vp_err *e)
{
	struct memmap *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return vp_err_set(e, -ENOMEM, "out of memory");
	m->generation = s->regions_generation;
	for (uint32_t i = 0; i < s->nregions; i++) {
		const struct vp_state_region *g = &s->regions[i];
		const struct vp_state_window *pw = &s->windows[g->window];
		struct mm_region *last = m->nregions ? &m->r[m->nregions - 1] : NULL;
		struct mm_window *w = find_window(m, g->window, pw->serial);

		if (!w)
			w = find_window(old, g->window, pw->serial);
		if (w) {
			w->refs++;
		} else {
			rc = pw->flags & VHP_WINDOW_READY ?
				window_get(p, g->window, pw->serial, pw->size, map, &w, e) : -EAGAIN;
			if (rc == -EAGAIN) {
				m->pending++;
				continue;
			}
			if (rc)
				goto fail;
		}
		if (g->flags & VHP_REGION_INFLIGHT) {
			if (m->inflight.win)
				window_put(m->inflight.win);
			m->inflight =
				(struct mm_region){ .addr = g->addr, .size = g->size, .offset = g->offset, .win = w };
			m->inflight_queues = s->inflight_queues;
			m->inflight_entries = s->inflight_entries;
			continue;
		}
		/* Neighbours that continue each other in both spaces become one. */
		if (last && last->win == w && last->addr + last->size == g->addr &&
		    last->offset + last->size == g->offset && !was_end(old, w, g->addr)) {
			last->size += g->size;
			window_put(w);
			continue;
		}
		m->r[m->nregions++] = (struct mm_region){
			.addr = g->addr, .size = g->size, .offset = g->offset, .win = w,
		};
	}
	*out = m;
	return 0;
fail:
	memmap_free(m);
	return rc;
}

void memmap_free(struct memmap *m)
{
	if (!m)
		return;
	for (unsigned int i = 0; i < m->nregions; i++)
		window_put(m->r[i].win);
	if (m->inflight.win)
		window_put(m->inflight.win);
	free(m);
}

const struct mm_region *memmap_find(const struct memmap *m, uint64_t addr, uint64_t len, uint64_t *uva)
{
	for (unsigned int i = 0; m && i < m->nregions; i++) {
		const struct mm_region *r = &m->r[i];

		if (!vp_range_inside(addr, len, r->addr, r->size))
			continue;
		*uva = r->win->uva + r->offset + (addr - r->addr);
		return r;
	}
	return NULL;
}

static int area(const struct memmap *m, const char *name, uint64_t addr, uint64_t len, uint64_t align,
		uint64_t *uva, struct vp_err *e)
{
	if (addr & (align - 1))
		return vp_err_set(e, -EINVAL, "its %s at %#llx is not aligned to %llu", name,
				  (unsigned long long)addr, (unsigned long long)align);
	if (!memmap_find(m, addr, len, uva))
		return vp_err_set(e, -EFAULT, "its %s at %#llx (%llu bytes) lies outside the regions, or in two pieces",
				  name, (unsigned long long)addr, (unsigned long long)len);
	return 0;
}

int memmap_ring(const struct memmap *m, const struct vp_state_queue *q, bool packed, struct mm_ring *out,
		struct vp_err *e)
{
	uint64_t n = q->size;
	int rc;

	if (!n || n > RING_MAX || (!packed && !vp_is_pow2(n)))
		return vp_err_set(e, -EINVAL, "its size %u is not allowed", q->size);
	rc = area(m, "descriptors", q->desc, n * 16, 16, &out->desc, e);
	if (!rc)
		rc = area(m, packed ? "driver area" : "available ring", q->avail, packed ? 4 : 6 + 2 * n,
			  packed ? 4 : 2, &out->avail, e);
	if (!rc)
		rc = area(m, packed ? "device area" : "used ring", q->used, packed ? 4 : 6 + 8 * n, 4, &out->used, e);
	return rc;
}
