/* SPDX-License-Identifier: BSD-3-Clause */
#include "driver.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define REQUIRE(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); abort(); } } while (0)

#define LD16(p)    __atomic_load_n((uint16_t *)(p), __ATOMIC_ACQUIRE)
#define ST16(p, v) __atomic_store_n((uint16_t *)(p), (uint16_t)(v), __ATOMIC_RELEASE)
#define LD32(p)    __atomic_load_n((uint32_t *)(p), __ATOMIC_RELAXED)
#define LD64(p)    __atomic_load_n((uint64_t *)(p), __ATOMIC_ACQUIRE)
#define ST64(p, v) __atomic_store_n((uint64_t *)(p), (uint64_t)(v), __ATOMIC_RELEASE)

void drv_mem_init(struct drv_mem *m, uint64_t size, const struct drv_region *r, unsigned n)
{
	struct vp_region_desc *rd;
	struct drv_region one = { 0, size, 0 };
	unsigned i;

	if (!r) {
		r = &one;
		n = 1;
	}
	m->fd = memfd_create("driver VM", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	REQUIRE(m->fd >= 0 && !ftruncate(m->fd, (off_t)size));
	REQUIRE(!fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	m->p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	REQUIRE(m->p != MAP_FAILED);
	m->size = size;
	m->n = n;
	rd = calloc(n, sizeof(*rd));
	for (i = 0; i < n; i++) {
		m->r[i] = r[i];
		rd[i] = (struct vp_region_desc){ .gpa = r[i].gpa, .size = r[i].size, .offset = r[i].off,
						 .uva = 0x7f0000000000 + r[i].off };
		REQUIRE(!vp_map_new(&rd[i].map, m->fd, r[i].off, r[i].size, 0, NULL));
	}
	REQUIRE(!vp_memtab_build(&m->tab, rd, n, NULL));
	for (i = 0; i < n; i++)
		vp_map_unref(rd[i].map);
	free(rd);
}

void drv_mem_free(struct drv_mem *m)
{
	if (m->n != 1 || m->p != (uint8_t *)vp_gptr_addr(m->tab->r[0].host))
		munmap(m->p, m->size);
	vp_memtab_free(m->tab);
	close(m->fd);
}

void drv_mem_share(struct drv_mem *m)
{
	REQUIRE(m->n == 1 && !m->r[0].off && !m->r[0].gpa);
	munmap(m->p, m->size);
	m->p = (uint8_t *)vp_gptr_addr(m->tab->r[0].host);
}

uint8_t *drv_ptr(struct drv_mem *m, uint64_t gpa)
{
	unsigned i;

	for (i = 0; i < m->n; i++)
		if (gpa >= m->r[i].gpa && gpa - m->r[i].gpa < m->r[i].size)
			return m->p + m->r[i].off + (gpa - m->r[i].gpa);
	return NULL;
}

bool drv_seg_ok(struct drv_mem *m, const struct vp_seg *s)
{
	unsigned i;

	for (i = 0; i < m->tab->n; i++) {
		const struct vp_region *r = &m->tab->r[i];

		if (s->addr < r->gpa || s->addr - r->gpa >= r->size)
			continue;
		return s->len && s->len <= r->size - (s->addr - r->gpa) &&
		       vp_gptr_addr(s->p) == vp_gptr_addr(r->host) + (s->addr - r->gpa);
	}
	return false;
}

uint16_t drv_get16(struct drv_mem *m, uint64_t gpa)
{
	return LD16(drv_ptr(m, gpa));
}

void drv_put16(struct drv_mem *m, uint64_t gpa, uint16_t v)
{
	ST16(drv_ptr(m, gpa), v);
}

void drv_put64(struct drv_mem *m, uint64_t gpa, uint64_t v)
{
	ST64(drv_ptr(m, gpa), v);
}

static uint64_t up(uint64_t v, uint64_t a)
{
	return (v + a - 1) / a * a;
}

uint64_t drv_init(struct drv *d, struct drv_mem *m, uint16_t size, uint64_t features, uint64_t gpa)
{
	uint64_t end;
	unsigned i;

	*d = (struct drv){ .m = m, .size = size, .features = features, .num_free = size };
	d->packed = features & F_PACKED;
	d->event_idx = features & F_EVENT_IDX;
	d->desc = up(gpa, 16);
	if (d->packed) {
		d->driver = up(d->desc + 16ull * size, 4);
		d->device = d->driver + 4;
		end = d->device + 4;
	} else {
		d->driver = d->desc + 16ull * size;
		d->device = up(d->driver + 4 + 2ull * size + 2, 4);
		end = d->device + 4 + 8ull * size + 2;
	}
	memset(drv_ptr(m, d->desc), 0, end - d->desc);
	d->link = calloc(size, sizeof(*d->link));
	d->chain_len = calloc(size, sizeof(*d->chain_len));
	d->ids = calloc(size, sizeof(*d->ids));
	for (i = 0; i < size; i++) {
		d->link[i] = (uint16_t)(i + 1);
		d->ids[i] = (uint16_t)i;
	}
	d->n_ids = size;
	d->wrap = d->used_wrap = d->kick_wrap = true; /* 2.8.1: counters start at 1 */
	return end;
}

void drv_free(struct drv *d)
{
	free(d->link);
	free(d->chain_len);
	free(d->ids);
}

struct vp_vq_conf drv_conf(const struct drv *d, uint32_t base)
{
	return (struct vp_vq_conf){ .size = d->size, .base = base, .features = d->features, .desc = d->desc,
				    .driver = d->driver, .device = d->device, .tab = d->m->tab };
}

void drv_set_desc(struct drv *d, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	uint8_t *p = drv_ptr(d->m, d->desc + 16ull * i);

	ST64(p, addr);
	ST64(p + 8, len | (uint64_t)flags << 32 | (uint64_t)next << 48);
}

void drv_set_pdesc(struct drv *d, unsigned i, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	uint8_t *p = drv_ptr(d->m, d->desc + 16ull * i);

	ST64(p, addr);
	ST64(p + 8, len | (uint64_t)id << 32 | (uint64_t)flags << 48);
}

void drv_set_avail_idx(struct drv *d, uint16_t idx)
{
	drv_put16(d->m, d->driver + 2, idx);
}

void drv_set_avail(struct drv *d, uint16_t idx, uint16_t head)
{
	drv_put16(d->m, d->driver + 4 + 2ull * (idx % d->size), head);
	drv_set_avail_idx(d, (uint16_t)(idx + 1));
}

/* 2.7.5.3 and 2.8.8: tables of 16-byte descriptors in the ring's own format. */
static void fill_table(struct drv *d, const struct drv_buf *b, unsigned n, uint64_t table)
{
	unsigned i;

	for (i = 0; i < n; i++) {
		uint64_t flags = b[i].write ? D_WRITE : 0, w;

		if (d->packed) {
			w = b[i].len | flags << 48;
		} else {
			if (i + 1 < n)
				flags |= D_NEXT;
			w = b[i].len | flags << 32 | (uint64_t)(i + 1 < n ? i + 1 : 0) << 48;
		}
		ST64(drv_ptr(d->m, table + 16ull * i), b[i].addr);
		ST64(drv_ptr(d->m, table + 16ull * i + 8), w);
	}
}

static int add_split(struct drv *d, const struct drv_buf *b, unsigned n, uint64_t table)
{
	uint16_t head = d->free_head, i, k;

	if (d->num_free < (table ? 1 : n))
		return -1;
	if (table) {
		fill_table(d, b, n, table);
		drv_set_desc(d, head, table, 16 * n, D_INDIRECT, 0);
		d->free_head = d->link[head];
		d->chain_len[head] = 1;
	} else {
		for (k = 0, i = head; k < n; k++, i = d->link[i])
			drv_set_desc(d, i, b[k].addr, b[k].len,
				     (uint16_t)((b[k].write ? D_WRITE : 0) | (k + 1u < n ? D_NEXT : 0)),
				     k + 1u < n ? d->link[i] : 0);
		d->free_head = i;
		d->chain_len[head] = (uint16_t)n;
	}
	d->num_free = (uint16_t)(d->num_free - d->chain_len[head]);
	drv_put16(d->m, d->driver + 4 + 2ull * (d->avail & (d->size - 1)), head);
	d->avail++;
	return head;
}

static int add_packed(struct drv *d, const struct drv_buf *b, unsigned n, uint64_t table)
{
	unsigned slots = table ? 1 : n, k;
	uint16_t id, head = d->slot, head_flags = 0;

	if (d->num_free < slots || !d->n_ids)
		return -1;
	id = d->ids[--d->n_ids];
	if (table)
		fill_table(d, b, n, table);
	for (k = 0; k < slots; k++) {
		uint16_t flags = d->wrap ? D_AVAIL : D_USED;
		uint64_t addr = table ? table : b[k].addr;
		uint32_t len = table ? 16 * n : b[k].len;
		uint8_t *p = drv_ptr(d->m, d->desc + 16ull * d->slot);

		if (table)
			flags |= D_INDIRECT;
		else
			flags |= (uint16_t)((b[k].write ? D_WRITE : 0) | (k + 1 < slots ? D_NEXT : 0));
		ST64(p, addr);
		if (k)
			ST64(p + 8, len | (uint64_t)id << 32 | (uint64_t)flags << 48);
		else
			head_flags = flags;
		if (++d->slot == d->size) {
			d->slot = 0;
			d->wrap = !d->wrap;
		}
	}
	/* The head last, when all else is in place. */
	ST64(drv_ptr(d->m, d->desc + 16ull * head + 8),
	     (table ? 16 * n : b[0].len) | (uint64_t)id << 32 | (uint64_t)head_flags << 48);
	d->chain_len[id] = (uint16_t)slots;
	d->num_free = (uint16_t)(d->num_free - slots);
	return id;
}

int drv_add(struct drv *d, const struct drv_buf *b, unsigned n, uint64_t table)
{
	return d->packed ? add_packed(d, b, n, table) : add_split(d, b, n, table);
}

void drv_publish(struct drv *d)
{
	if (!d->packed)
		drv_set_avail_idx(d, d->avail);
}

bool drv_kick_needed(struct drv *d)
{
	uint32_t w, now, old, ev;
	bool ev_wrap;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!d->packed) {
		uint16_t o = d->published, e;

		d->published = d->avail;
		if (!d->event_idx)
			return !(drv_get16(d->m, d->device) & 1);
		e = drv_get16(d->m, d->device + 4 + 8ull * d->size);
		/* Was entry e one of those added, o <= e < avail modulo 2^16? */
		return (uint16_t)(e - o) < (uint16_t)(d->avail - o);
	}
	/* Positions counted from the start of the lap in which the last look ended. */
	old = d->kick_slot;
	now = d->slot + (d->wrap != d->kick_wrap ? d->size : 0u);
	ev_wrap = d->kick_wrap;
	d->kick_slot = d->slot;
	d->kick_wrap = d->wrap;
	w = LD32(drv_ptr(d->m, d->device));
	if ((w >> 16 & 3) == 0)
		return true;
	if ((w >> 16 & 3) == 1)
		return false;
	ev = w & 0x7fff;
	if (!!(w & 0x8000) != ev_wrap)
		ev += d->size;
	return ev >= old && ev < now;
}

bool drv_get_used(struct drv *d, uint16_t *id, uint32_t *len)
{
	uint64_t w;
	uint16_t i, n, k;

	if (!d->packed) {
		uint8_t *e;

		if (drv_get16(d->m, d->device + 2) == d->used)
			return false;
		e = drv_ptr(d->m, d->device + 4 + 8ull * (d->used & (d->size - 1)));
		REQUIRE(LD32(e) < d->size);
		*id = (uint16_t)LD32(e);
		*len = LD32(e + 4);
		n = d->chain_len[*id];
		REQUIRE(n); /* otherwise the chain came back twice, or was never out */
		d->chain_len[*id] = 0;
		for (i = *id, k = 1; k < n; k++)
			i = d->link[i];
		d->link[i] = d->free_head;
		d->free_head = *id;
		d->num_free = (uint16_t)(d->num_free + n);
		d->used++;
		return true;
	}
	w = LD64(drv_ptr(d->m, d->desc + 16ull * d->used_slot + 8));
	if (!!(w >> 48 & D_AVAIL) != d->used_wrap || !!(w >> 48 & D_USED) != d->used_wrap)
		return false;
	*id = (uint16_t)(w >> 32);
	*len = (uint32_t)w;
	REQUIRE(*id < d->size);
	n = d->chain_len[*id];
	REQUIRE(n);
	d->chain_len[*id] = 0;
	d->ids[d->n_ids++] = *id;
	d->num_free = (uint16_t)(d->num_free + n);
	d->used_slot = (uint16_t)(d->used_slot + n);
	if (d->used_slot >= d->size) {
		d->used_slot = (uint16_t)(d->used_slot - d->size);
		d->used_wrap = !d->used_wrap;
	}
	return true;
}

bool drv_enable_calls(struct drv *d)
{
	uint64_t w;

	if (d->packed) {
		uint32_t v = 0;

		if (d->event_idx)
			v = d->used_slot | (d->used_wrap ? 0x8000u : 0) | 2u << 16;
		__atomic_store_n((uint32_t *)drv_ptr(d->m, d->driver), v, __ATOMIC_RELEASE);
	} else if (d->event_idx) {
		drv_put16(d->m, d->driver + 4 + 2ull * d->size, d->used);
	} else {
		drv_put16(d->m, d->driver, 0);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!d->packed)
		return drv_get16(d->m, d->device + 2) != d->used;
	w = LD64(drv_ptr(d->m, d->desc + 16ull * d->used_slot + 8));
	return !!(w >> 48 & D_AVAIL) == d->used_wrap && !!(w >> 48 & D_USED) == d->used_wrap;
}

void drv_disable_calls(struct drv *d)
{
	if (d->packed)
		__atomic_store_n((uint32_t *)drv_ptr(d->m, d->driver), 1u << 16, __ATOMIC_RELEASE);
	else
		drv_put16(d->m, d->driver, 1);
}
