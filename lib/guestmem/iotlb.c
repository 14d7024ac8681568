/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A sorted array under a seqlock: readers search it without a lock and search again when the writer was
 * there. All its words are accessed atomically, so a torn reading is only ever a wrong answer that is thrown away.
 */
#include "guestmem/iotlb.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "base/cycles.h"

#define GPA_SHIFT 4

enum miss_state {
	MISS_FREE,
	MISS_FILLING,
	MISS_NOTED,
	MISS_SENT,
	MISS_SHORT,  /* an update came since, without the permission that was asked for */
};

struct entry {
	uint64_t iova, last; /* inclusive */
	uint64_t host;       /* our address of iova, as a number */
	uint64_t gpa_perm;   /* guest physical address of iova << GPA_SHIFT | what is denied << 2 | permissions */
};

struct miss {
	uint64_t iova;
	uint32_t acc;
	uint32_t state; /* enum miss_state */
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

#define LOOK_PAUSES 256 /* 10 us or so */

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

static bool entry_denies(const struct entry *e, enum vp_access acc)
{
	return e->gpa_perm >> 2 & (1u << acc);
}

/* The permissions of which it says whether they are there. */
static unsigned entry_settles(const struct entry *e)
{
	return (unsigned)((e->gpa_perm | e->gpa_perm >> 2) & 3);
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

/* 1 found, 0 there is none, -EBUSY: the writer took longer than `patience` pauses, UINT_MAX = wait for it. */
static int look(struct vp_iotlb *t, uint64_t iova, struct entry *out, unsigned patience)
{
	uint32_t s;
	unsigned i, n;

	for (;;) {
		s = __atomic_load_n(&t->seq, __ATOMIC_ACQUIRE);
		if (s & 1) {
			if (!patience)
				return -EBUSY;
			patience -= patience != UINT_MAX;
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

static bool find(struct vp_iotlb *t, uint64_t iova, struct entry *out)
{
	return look(t, iova, out, UINT_MAX) > 0;
}

static bool settled(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	struct entry e;

	return find(t, iova, &e) && entry_settles(&e) & (1u << acc);
}

/* Note a miss once; a full list means that the reader asks again later. */
static void note_miss(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	const uint64_t page = iova & ~UINT64_C(4095);
	struct miss *slot;
	uint32_t none;
	unsigned i;

	/* Again when another reader took the slot: it may not have kept it, and then would not wake for us. */
	do {
		slot = NULL;
		none = MISS_FREE;
		for (i = 0; i < VP_IOTLB_MISSES; i++) {
			struct miss *m = &t->miss[i];
			uint32_t state = __atomic_load_n(&m->state, __ATOMIC_ACQUIRE);

			if (state == MISS_FREE && !slot)
				slot = m;
			if (state >= MISS_NOTED && GET(m->iova) == page && GET(m->acc) == (uint32_t)acc)
				return;
		}
		if (!slot)
			return;
	} while (!__atomic_compare_exchange_n(&slot->state, &none, MISS_FILLING, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
	/* The answer to another reader's miss may have come since we looked; its slot is free again after that. */
	if (settled(t, iova, acc)) {
		__atomic_store_n(&slot->state, MISS_FREE, __ATOMIC_RELEASE);
		return;
	}
	SET(slot->iova, page);
	SET(slot->acc, (uint32_t)acc);
	/* Pairs with the writer's acquire, and is before the wake: the writer that wakes up sees it. */
	__atomic_store_n(&slot->state, MISS_NOTED, __ATOMIC_RELEASE);
	__atomic_fetch_add(&t->misses, 1, __ATOMIC_RELAXED);
	if (t->wake)
		t->wake(t->arg);
}

static int iotlb_translate(struct vp_iommu *iommu, uint64_t iova, uint64_t len, enum vp_access acc,
			   struct vp_window *w)
{
	struct vp_iotlb *t = vp_container_of(iommu, struct vp_iotlb, iommu);
	struct entry e;
	int ret;

	SET(t->lookups, GET(t->lookups) + 1); /* may lose some to another thread: it is for people */
	ret = look(t, iova, &e, LOOK_PAUSES);
	/* Others need this thread, too. After each change the reader is run again, as after a miss. */
	if (ret < 0)
		return -EAGAIN;
	if (!ret) {
		note_miss(t, iova, acc);
		return -EAGAIN;
	}
	if (!(entry_perm(&e) & (1u << acc))) {
		if (entry_denies(&e, acc))
			return -EFAULT;
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
	*gpa = (e.gpa_perm >> GPA_SHIFT) + (iova - e.iova);
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
		keep[k].gpa_perm += off << GPA_SHIFT;
		k++;
	}
	splice(t, at, end - at, keep, k);
}

static bool continues(const struct entry *a, const struct entry *b)
{
	uint64_t size = a->last - a->iova + 1;

	return a->last + 1 == b->iova && a->host + size == b->host && a->gpa_perm + (size << GPA_SHIFT) == b->gpa_perm;
}

/* Misses that this range settles may be noted again; those that it answers with less than was asked for wait for vp_iotlb_deny(). */
static void misses_answered(struct vp_iotlb *t, uint64_t first, uint64_t last, unsigned settles)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) >= MISS_SENT && (m->iova | 4095) >= first && m->iova <= last)
			__atomic_store_n(&m->state, settles & (1u << m->acc) ? MISS_FREE : MISS_SHORT, __ATOMIC_RELEASE);
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
		__atomic_store_n(&t->iommu.forgets, true, __ATOMIC_RELAXED);
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
	misses_answered(t, first, last, entry_settles(&e));
}

static int make_entry(struct entry *e, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr, unsigned perm)
{
	const struct vp_region *r;
	uint64_t gpa, end;
	int i;

	if (!size || vp_add_overflow(iova, size - 1, &end) || vp_add_overflow(uaddr, size - 1, &gpa))
		return -EINVAL;
	if (!tab || vp_memtab_uva_to_gpa(tab, uaddr, size, &gpa) || gpa >> (64 - GPA_SHIFT))
		return -EFAULT;
	i = vp_memtab_find(tab, gpa);
	r = i < 0 ? NULL : &tab->r[i];
	if (!r || !r->map)
		return -EFAULT;
	if (!(perm & 3))
		return -EINVAL;
	*e = (struct entry){ .iova = iova, .last = end, .host = vp_gptr_addr(vp_gptr_add(r->host, gpa - r->gpa)),
			     .gpa_perm = gpa << GPA_SHIFT | (perm & 3) };
	return 0;
}

bool vp_iotlb_changes(const struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		      unsigned perm)
{
	struct entry e;
	unsigned i;

	if (make_entry(&e, tab, iova, size, uaddr, perm))
		return false;
	for (i = lower(t, t->n, iova); i < t->n && t->e[i].iova <= e.last; i++) {
		const struct entry *old = &t->e[i];

		/* Differences modulo 2^64: an entry that begins before e, or behind its start, goes on in step with it. */
		if (entry_perm(old) && (old->host - old->iova != e.host - e.iova || entry_perm(old) & ~entry_perm(&e)))
			return true;
	}
	return false;
}

int vp_iotlb_update(struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		    unsigned perm)
{
	struct entry e;
	int ret = make_entry(&e, tab, iova, size, uaddr, perm);

	if (ret)
		return ret;
	t->updates++;
	insert(t, e);
	return 0;
}

void vp_iotlb_refuse(struct vp_iotlb *t, uint64_t iova)
{
	iova &= ~UINT64_C(4095);
	insert(t, (struct entry){ .iova = iova, .last = iova | 4095, .gpa_perm = 3 << 2 });
}

bool vp_iotlb_deny(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	struct miss *m;
	struct entry e;
	uint64_t off;
	unsigned i;

	iova &= ~UINT64_C(4095);
	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		m = &t->miss[i];
		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) == MISS_SHORT && m->iova == iova && m->acc == (uint32_t)acc)
			break;
	}
	if (i == VP_IOTLB_MISSES)
		return false;
	/* Of the page, what is mapped without the permission. Entries need not begin and end with pages. */
	i = lower(t, t->n, iova);
	if (i == t->n || t->e[i].iova > (iova | 4095) || entry_perm(&t->e[i]) & (1u << acc)) {
		__atomic_store_n(&m->state, MISS_FREE, __ATOMIC_RELEASE);
		return false;
	}
	e = t->e[i];
	off = e.iova < iova ? iova - e.iova : 0;
	e.iova += off;
	e.host += off;
	e.gpa_perm = (e.gpa_perm + (off << GPA_SHIFT)) | 1u << acc << 2;
	e.last = VP_MIN(e.last, iova | 4095);
	insert(t, e); /* frees the slot: readers that see it free see the denial */
	return true;
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
	misses_answered(t, iova, last, ~0u);
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

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) != MISS_NOTED)
			continue;
		*iova = GET(m->iova);
		*acc = (enum vp_access)GET(m->acc);
		__atomic_store_n(&m->state, MISS_SENT, __ATOMIC_RELEASE);
		return 1;
	}
	return 0;
}

void vp_iotlb_forget_misses(struct vp_iotlb *t)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++)
		if (__atomic_load_n(&t->miss[i].state, __ATOMIC_ACQUIRE) >= MISS_SENT)
			__atomic_store_n(&t->miss[i].state, MISS_FREE, __ATOMIC_RELEASE);
}

void vp_iotlb_stats(const struct vp_iotlb *t, struct vp_iotlb_stats *s)
{
	*s = (struct vp_iotlb_stats){
		.entries = t->n, .updates = t->updates, .invalidations = t->invalidations,
		.misses = GET(t->misses), .lookups = GET(t->lookups),
	};
}
