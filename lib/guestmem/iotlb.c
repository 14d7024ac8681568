/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A sorted array under a seqlock: readers search it without a lock and search again when the writer was
 * there. All its words are accessed atomically, so a torn reading is only ever a wrong answer that is thrown away.
 */
#include "guestmem/iotlb.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cycles.h"

struct entry {
	uint64_t iova, last; /* inclusive */
	uint64_t host;       /* our address of iova, as a number */
	uint64_t gpa_perm;   /* guest physical address of iova << 2 | permissions */
};

struct miss {
	uint64_t iova;
	uint32_t acc;
	uint32_t state; /* 0 free, 1 being filled, 2 noted, 3 sent */
};

struct vp_iotlb {
	struct vp_iommu iommu;
	uint32_t seq;
	unsigned n, room;
	struct entry *e;      /* replaced only while no reader is inside: see grow() */
	struct miss miss[VP_IOTLB_MISSES];
	void   (*wake)(void *arg);
	void    *arg;
	uint64_t updates, invalidations, misses, lookups;
};

#define GET(field)    __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define SET(field, v) __atomic_store_n(&(field), (v), __ATOMIC_RELAXED)

static void entry_set(struct entry *to, const struct entry *from)
{
	SET(to->iova, from->iova);
	SET(to->last, from->last);
	SET(to->host, from->host);
	SET(to->gpa_perm, from->gpa_perm);
}

static struct entry entry_get(const struct entry *e)
{
	return (struct entry){ GET(e->iova), GET(e->last), GET(e->host), GET(e->gpa_perm) };
}

static unsigned entry_perm(const struct entry *e)
{
	return (unsigned)(e->gpa_perm & 3);
}

static void write_begin(struct vp_iotlb *t)
{
	SET(t->seq, t->seq + 1);
	/* The odd value before what changes. Pairs with the reader's acquire fence. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void write_end(struct vp_iotlb *t)
{
	/* Pairs with the reader's acquire of the even value. */
	__atomic_store_n(&t->seq, t->seq + 1, __ATOMIC_RELEASE);
}

/* Index of the first entry whose end is not before iova. */
static unsigned lower(const struct vp_iotlb *t, unsigned n, uint64_t iova)
{
	unsigned lo = 0, hi = n;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (GET(t->e[mid].last) < iova)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* ---- readers ---------------------------------------------------------------------------------------- */

static bool find(struct vp_iotlb *t, uint64_t iova, struct entry *out)
{
	uint32_t s;
	unsigned i, n;

	for (;;) {
		s = __atomic_load_n(&t->seq, __ATOMIC_ACQUIRE);
		if (s & 1) {
			vp_relax();
			continue;
		}
		n = GET(t->n);
		i = lower(t, n, iova);
		if (i < n)
			*out = entry_get(&t->e[i]);
		/* The reading before the second look. Pairs with write_begin()'s fence. */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (GET(t->seq) == s)
			return i < n && out->iova <= iova;
	}
}

/* Note a miss once; a full list means that the reader asks again later. */
static void note_miss(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	struct miss *slot = NULL;
	uint32_t none = 0;
	unsigned i;

	iova &= ~UINT64_C(4095);
	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];
		uint32_t state = __atomic_load_n(&m->state, __ATOMIC_ACQUIRE);

		if (!state && !slot)
			slot = m;
		if (state >= 2 && GET(m->iova) == iova && GET(m->acc) == (uint32_t)acc)
			return;
	}
	if (!slot || !__atomic_compare_exchange_n(&slot->state, &none, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	SET(slot->iova, iova);
	SET(slot->acc, (uint32_t)acc);
	/* Pairs with the writer's acquire, and is before the wake: the writer that wakes up sees it. */
	__atomic_store_n(&slot->state, 2, __ATOMIC_RELEASE);
	__atomic_fetch_add(&t->misses, 1, __ATOMIC_RELAXED);
	if (t->wake)
		t->wake(t->arg);
}

static int iotlb_translate(struct vp_iommu *iommu, uint64_t iova, uint64_t len, enum vp_access acc,
			   struct vp_window *w)
{
	struct vp_iotlb *t = vp_container_of(iommu, struct vp_iotlb, iommu);
	struct entry e;

	SET(t->lookups, GET(t->lookups) + 1); /* may lose some to another thread: it is for people */
	if (!find(t, iova, &e)) {
		note_miss(t, iova, acc);
		return -EAGAIN;
	}
	if (!(entry_perm(&e) & (1u << acc))) {
		if (!entry_perm(&e))
			return -EFAULT; /* refused */
		note_miss(t, iova, acc);
		return -EAGAIN;
	}
	w->start = e.iova;
	w->size = e.last - e.iova + 1;
	w->host = vp_gptr_from_map((void *)(uintptr_t)e.host);
	return 0;
}

static int iotlb_gpa(struct vp_iommu *iommu, uint64_t iova, uint64_t *gpa, uint64_t *span)
{
	struct vp_iotlb *t = vp_container_of(iommu, struct vp_iotlb, iommu);
	struct entry e;

	if (!find(t, iova, &e) || !entry_perm(&e))
		return -EFAULT;
	*gpa = (e.gpa_perm >> 2) + (iova - e.iova);
	*span = e.last - iova + 1;
	return 0;
}

/* ---- the writer --------------------------------------------------------------------------------------- */

int vp_iotlb_new(struct vp_iotlb **out, void (*wake)(void *arg), void *arg)
{
	struct vp_iotlb *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	/* Reserved whole, so that readers never see it move; untouched pages cost nothing. */
	t->e = calloc(VP_IOTLB_MAX + 2, sizeof(*t->e));
	if (!t->e) {
		free(t);
		return -ENOMEM;
	}
	t->room = VP_IOTLB_MAX;
	t->iommu.translate = iotlb_translate;
	t->iommu.gpa = iotlb_gpa;
	t->wake = wake;
	t->arg = arg;
	*out = t;
	return 0;
}

void vp_iotlb_free(struct vp_iotlb *t)
{
	if (!t)
		return;
	free(t->e);
	free(t);
}

struct vp_iommu *vp_iotlb_iommu(struct vp_iotlb *t)
{
	return &t->iommu;
}

/* Replace entries [at, at + del) by the `add` entries at e. */
static void splice(struct vp_iotlb *t, unsigned at, unsigned del, const struct entry *e, unsigned add)
{
	unsigned i, tail = t->n - at - del;

	if (add > del)
		for (i = tail; i-- > 0;)
			entry_set(&t->e[at + add + i], &t->e[at + del + i]);
	else if (add < del)
		for (i = 0; i < tail; i++)
			entry_set(&t->e[at + add + i], &t->e[at + del + i]);
	for (i = 0; i < add; i++)
		entry_set(&t->e[at + i], &e[i]);
	SET(t->n, at + add + tail);
}

/* Cut [first, last] out; entries that reach beyond keep their ends. Inside a write section. */
static void cut(struct vp_iotlb *t, uint64_t first, uint64_t last)
{
	unsigned at = lower(t, t->n, first), end = at, k = 0;
	struct entry keep[2];

	while (end < t->n && t->e[end].iova <= last)
		end++;
	if (at == end)
		return;
	if (t->e[at].iova < first) {
		keep[k] = t->e[at];
		keep[k++].last = first - 1;
	}
	if (t->e[end - 1].last > last) {
		uint64_t off = last + 1 - t->e[end - 1].iova;

		keep[k] = t->e[end - 1];
		keep[k].iova += off;
		keep[k].host += off;
		keep[k].gpa_perm += off << 2;
		k++;
	}
	splice(t, at, end - at, keep, k);
}

static bool continues(const struct entry *a, const struct entry *b)
{
	uint64_t size = a->last - a->iova + 1;

	return a->last + 1 == b->iova && a->host + size == b->host && a->gpa_perm + (size << 2) == b->gpa_perm;
}

/* Misses that this range answers may be noted again. */
static void misses_answered(struct vp_iotlb *t, uint64_t first, uint64_t last)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) == 3 && (m->iova | 4095) >= first && m->iova <= last)
			__atomic_store_n(&m->state, 0, __ATOMIC_RELEASE);
	}
}

/* Put e in, cutting out what was there, and merging it with neighbours that it continues. */
static void insert(struct vp_iotlb *t, struct entry e)
{
	const uint64_t first = e.iova, last = e.last;
	unsigned at, del = 0;

	write_begin(t);
	cut(t, first, last);
	if (t->n >= t->room) {
		/* Full: make room anywhere else; what is still needed is missed again. */
		at = lower(t, t->n, first);
		splice(t, at > t->n / 2 ? 0 : t->n - t->room / 8, t->room / 8, NULL, 0);
		__atomic_fetch_add(&t->iommu.generation, 1, __ATOMIC_RELEASE);
	}
	at = lower(t, t->n, first);
	if (at > 0 && continues(&t->e[at - 1], &e)) {
		at--;
		e.iova = t->e[at].iova;
		e.host = t->e[at].host;
		e.gpa_perm = t->e[at].gpa_perm;
		del++;
	}
	if (at + del < t->n && continues(&e, &t->e[at + del])) {
		e.last = t->e[at + del].last;
		del++;
	}
	splice(t, at, del, &e, 1);
	write_end(t);
	misses_answered(t, first, last);
}

int vp_iotlb_update(struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		    unsigned perm)
{
	struct entry e = { .iova = iova };
	const struct vp_region *r;
	uint64_t gpa, end;
	int i;

	if (!size || vp_add_overflow(iova, size - 1, &end) || vp_add_overflow(uaddr, size - 1, &gpa))
		return -EINVAL;
	if (!tab || vp_memtab_uva_to_gpa(tab, uaddr, size, &gpa) || (gpa >> 62))
		return -EFAULT;
	i = vp_memtab_find(tab, gpa);
	r = i < 0 ? NULL : &tab->r[i];
	if (!r || !r->map)
		return -EFAULT;
	e.last = end;
	e.host = vp_gptr_addr(vp_gptr_add(r->host, gpa - r->gpa));
	if (!(perm & 3))
		return -EINVAL;
	e.gpa_perm = gpa << 2 | (perm & 3);
	t->updates++;
	insert(t, e);
	return 0;
}

void vp_iotlb_refuse(struct vp_iotlb *t, uint64_t iova)
{
	iova &= ~UINT64_C(4095);
	insert(t, (struct entry){ .iova = iova, .last = iova | 4095 });
}

void vp_iotlb_invalidate(struct vp_iotlb *t, uint64_t iova, uint64_t size)
{
	uint64_t last;

	if (!size)
		return;
	if (vp_add_overflow(iova, size - 1, &last))
		last = UINT64_MAX;
	t->invalidations++;
	write_begin(t);
	cut(t, iova, last);
	write_end(t);
	misses_answered(t, iova, last);
	/* Readers drop their windows at the next burst. Pairs with the acquire in vp_xlate_sync(). */
	__atomic_fetch_add(&t->iommu.generation, 1, __ATOMIC_RELEASE);
}

void vp_iotlb_clear(struct vp_iotlb *t)
{
	vp_iotlb_invalidate(t, 0, UINT64_MAX);
	write_begin(t);
	SET(t->n, 0);
	write_end(t);
}

int vp_iotlb_next_miss(struct vp_iotlb *t, uint64_t *iova, enum vp_access *acc)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) != 2)
			continue;
		*iova = GET(m->iova);
		*acc = (enum vp_access)GET(m->acc);
		__atomic_store_n(&m->state, 3, __ATOMIC_RELEASE);
		return 1;
	}
	return 0;
}

void vp_iotlb_forget_misses(struct vp_iotlb *t)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++)
		if (__atomic_load_n(&t->miss[i].state, __ATOMIC_ACQUIRE) == 3)
			__atomic_store_n(&t->miss[i].state, 0, __ATOMIC_RELEASE);
}

void vp_iotlb_stats(const struct vp_iotlb *t, struct vp_iotlb_stats *s)
{
	*s = (struct vp_iotlb_stats){
		.entries = t->n, .updates = t->updates, .invalidations = t->invalidations,
		.misses = GET(t->misses), .lookups = GET(t->lookups),
	};
}
