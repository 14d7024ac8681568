/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A sorted array under a seqlock: readers search it without a lock and search again when the writer was
 * there. All its words are accessed atomically, so a torn reading is only ever a wrong answer that is thrown away.
 */
#include "guestmem/iotlb_priv.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cycles.h"

#define LOOK_PAUSES 256 /* 10 us or so */

#define SPAN   VP_IOTLB_SPAN
#define PIECES (2 * SPAN + 5) /* those, the gaps between them, the ends of the first and last, and their neighbours */
_Static_assert(VP_IOTLB_MAX / 8 >= PIECES, "make_room() makes less room than one change may take");

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

/* The permissions of which the entry says whether they are there. */
static unsigned entry_settles(const struct entry *e)
{
	return (unsigned)((e->gpa_perm | e->gpa_perm >> 2) & 3);
}

static void write_begin(struct vp_iotlb *t)
{
	SET(t->seq, t->seq + 1);
	/* The odd value comes before what changes. Pairs with the reader's acquire fence. */
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

/*
 * 1: found. 0: there is none. -EBUSY: the writer took longer than `patience` pauses; UINT_MAX = wait
 * for it.
 */
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
		/* The reading comes before the second look. Pairs with write_begin()'s fence. */
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

/* Note a miss once. When the list is full, the reader asks again later. */
static void note_miss(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	const uint64_t page = iova & ~UINT64_C(4095);
	struct miss *slot;
	uint32_t none;
	unsigned i;

	/*
	 * Look again when another reader took the slot: it may not have kept it, and then would not
	 * wake the writer for us.
	 */
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
	} while (!__atomic_compare_exchange_n(&slot->state, &none, MISS_FILLING, false, __ATOMIC_ACQUIRE,
					      __ATOMIC_RELAXED));
	/*
	 * The answer to another reader's miss may have come since we looked. Its slot is free again
	 * after that.
	 */
	if (settled(t, iova, acc)) {
		__atomic_store_n(&slot->state, MISS_FREE, __ATOMIC_RELEASE);
		return;
	}
	SET(slot->iova, page);
	SET(slot->acc, (uint32_t)acc);
	/* Pairs with the writer's acquire, and comes before the wake: the writer that wakes up sees it. */
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
	/*
	 * Others need this thread, too. The owner runs the reader again after each change, as after a
	 * miss.
	 */
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
	t->e = calloc(VP_IOTLB_MAX, sizeof(*t->e));
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

/* Cut [first, last] out. Entries that reach beyond it keep their ends. Inside a write section. */
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

/*
 * The table is full: make room anywhere but at iova. What is still needed is missed again. Inside a
 * write section.
 */
static void make_room(struct vp_iotlb *t, uint64_t iova)
{
	unsigned at = lower(t, t->n, iova);

	__atomic_store_n(&t->iommu.forgets, true, __ATOMIC_RELAXED);
	splice(t, at > t->n / 2 ? 0 : t->n - t->room / 8, t->room / 8, NULL, 0);
	__atomic_fetch_add(&t->iommu.generation, 1, __ATOMIC_RELEASE);
}

static bool continues(const struct entry *a, const struct entry *b)
{
	uint64_t size = a->last - a->iova + 1;

	return a->last + 1 == b->iova && a->host + size == b->host && a->gpa_perm + (size << GPA_SHIFT) == b->gpa_perm;
}

static struct entry piece_of(const struct entry *e, uint64_t first, uint64_t last)
{
	uint64_t off = first - e->iova;

	return (struct entry){ first, last, e->host + off, e->gpa_perm + (off << GPA_SHIFT) };
}

/*
 * Do both lead to the same place? The differences are modulo 2^64. An entry that begins before the
 * other, or behind its start, goes on in step with it.
 */
static bool agrees(const struct entry *a, const struct entry *b)
{
	return a->host - a->iova == b->host - b->iova;
}

/* What becomes of a range. */
struct change {
	struct entry e;   /* the range, and where an update says that it leads: without permissions */
	unsigned     may; /* an update's: permissions that stay where they were known */
	unsigned     add; /* and that are known now */
	unsigned     deny; /* a refusal's: what is not to be had where it is not there */
};

/* One piece of the change, which `old` covers, or nothing (NULL). False: nothing is known of it. */
static bool change_piece(const struct change *c, const struct entry *old, uint64_t first, uint64_t last,
			 struct entry *p)
{
	unsigned perm = old ? entry_perm(old) : 0;

	if (c->deny) {
		*p = old ? piece_of(old, first, last) : (struct entry){ .iova = first, .last = last };
		p->gpa_perm |= (c->deny & ~perm) << 2;
		return true;
	}
	*p = piece_of(&c->e, first, last);
	p->gpa_perm |= (old && agrees(old, &c->e) ? perm & c->may : 0) | c->add;
	return entry_perm(p);
}

static void push(struct entry *out, unsigned *k, struct entry e)
{
	if (*k && continues(&out[*k - 1], &e))
		out[*k - 1].last = e.last;
	else
		out[(*k)++] = e;
}

/*
 * Entries [at, end) are those in the range. This makes the list of what they and the gaps between them
 * become, merged with their neighbours.
 */
static unsigned change_list(const struct vp_iotlb *t, const struct change *c, unsigned at, unsigned end,
			    struct entry *out)
{
	const uint64_t first = c->e.iova, last = c->e.last;
	const bool one_by_one = end - at <= SPAN;
	const struct entry *e = t->e;
	uint64_t pos = first;
	unsigned k = 0, i;
	struct entry p;

	if (at)
		push(out, &k, e[at - 1]);
	if (at < end && e[at].iova < first)
		push(out, &k, piece_of(&e[at], e[at].iova, first - 1));
	for (i = at; one_by_one && i < end; i++) {
		uint64_t from = VP_MAX(e[i].iova, first), to = VP_MIN(e[i].last, last);

		if (pos < from && change_piece(c, NULL, pos, from - 1, &p))
			push(out, &k, p);
		if (change_piece(c, &e[i], from, to, &p))
			push(out, &k, p);
		pos = to + 1;
		if (to == last)
			break;
	}
	/* pos may have come round at the end of the address space. */
	if ((i == end || !one_by_one) && change_piece(c, NULL, pos, last, &p))
		push(out, &k, p);
	if (at < end && e[end - 1].last > last)
		push(out, &k, piece_of(&e[end - 1], last + 1, e[end - 1].last));
	if (end < t->n)
		push(out, &k, e[end]);
	return k;
}

static void change(struct vp_iotlb *t, const struct change *c)
{
	struct entry out[PIECES];
	unsigned at, end, k;

	write_begin(t);
	if (t->n + PIECES > t->room)
		make_room(t, c->e.iova);
	at = end = lower(t, t->n, c->e.iova);
	while (end < t->n && t->e[end].iova <= c->e.last)
		end++;
	/* There are very many: what was known of them is missed again. */
	if (end - at > SPAN)
		__atomic_store_n(&t->iommu.forgets, true, __ATOMIC_RELAXED);
	k = change_list(t, c, at, end, out);
	splice(t, at - (at > 0), end - at + (at > 0) + (end < t->n), out, k);
	write_end(t);
}

static bool miss_in(const struct miss *m, uint64_t first, uint64_t last)
{
	return (m->iova | 4095) >= first && m->iova <= last;
}

/*
 * Misses that this range settles may be noted again. Those that it answers with less than they asked
 * for wait for vp_iotlb_answered().
 */
static void misses_settled(struct vp_iotlb *t, uint64_t first, uint64_t last, unsigned settles)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];
		uint32_t state = __atomic_load_n(&m->state, __ATOMIC_ACQUIRE);

		if (state < MISS_SENT || !miss_in(m, first, last))
			continue;
		if (settles & (1u << m->acc))
			__atomic_store_n(&m->state, MISS_FREE, __ATOMIC_RELEASE);
		else if (state == MISS_SENT)
			__atomic_store_n(&m->state, MISS_SHORT, __ATOMIC_RELEASE);
	}
}

static int make_entry(struct entry *e, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		      unsigned perm)
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

bool vp_iotlb_changes(const struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size,
		      uint64_t uaddr, unsigned perm)
{
	struct entry e;
	unsigned i;

	if (make_entry(&e, tab, iova, size, uaddr, perm))
		return false;
	for (i = lower(t, t->n, iova); i < t->n && t->e[i].iova <= e.last; i++) {
		const struct entry *old = &t->e[i];

		if (entry_perm(old) && (!agrees(old, &e) || entry_perm(old) & ~entry_perm(&e)))
			return true;
	}
	return false;
}

int vp_iotlb_update(struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		    unsigned perm, unsigned proven)
{
	struct change c = { .may = perm & 3 };
	int ret = make_entry(&c.e, tab, iova, size, uaddr, perm);

	if (ret)
		return ret;
	t->updates++;
	c.e.gpa_perm &= ~UINT64_C(3);
	c.add = c.may & proven;
	change(t, &c);
	misses_settled(t, c.e.iova, c.e.last, c.add);
	return 0;
}

unsigned vp_iotlb_granted(const struct vp_iotlb *t, uint64_t iova, uint64_t size)
{
	unsigned i, perm = 0;

	for (i = 0; size && i < VP_IOTLB_MISSES; i++) {
		const struct miss *m = &t->miss[i];

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) == MISS_GRANTED &&
		    miss_in(m, iova, iova + size - 1))
			perm |= 1u << m->acc;
	}
	return perm;
}

/* The miss at that page, if it was sent. */
static struct miss *miss_find(struct vp_iotlb *t, uint64_t page, enum vp_access acc)
{
	unsigned i;

	for (i = 0; i < VP_IOTLB_MISSES; i++) {
		struct miss *m = &t->miss[i];

		if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) >= MISS_SENT && m->iova == page &&
		    m->acc == (uint32_t)acc)
			return m;
	}
	return NULL;
}

void vp_iotlb_refuse(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	struct miss *m;

	iova &= ~UINT64_C(4095);
	change(t, &(struct change){ .e = { .iova = iova, .last = iova | 4095 }, .deny = 1u << acc });
	/* Readers that see it free see the refusal. */
	m = miss_find(t, iova, acc);
	if (m)
		__atomic_store_n(&m->state, MISS_FREE, __ATOMIC_RELEASE);
}

/* Does everything that is known of the page lack acc? */
static bool page_lacks(const struct vp_iotlb *t, uint64_t page, enum vp_access acc)
{
	unsigned i;

	for (i = lower(t, t->n, page); i < t->n && t->e[i].iova <= (page | 4095); i++)
		if (entry_perm(&t->e[i]) & (1u << acc))
			return false;
	return true;
}

bool vp_iotlb_answered(struct vp_iotlb *t, uint64_t iova, enum vp_access acc)
{
	struct miss *m = miss_find(t, iova & ~UINT64_C(4095), acc);

	if (!m)
		return false;
	if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) != MISS_SHORT) {
		__atomic_store_n(&m->state, MISS_GRANTED, __ATOMIC_RELEASE);
		return false;
	}
	if (page_lacks(t, m->iova, acc)) {
		vp_iotlb_refuse(t, iova, acc);
		return true;
	}
	__atomic_store_n(&m->state, MISS_FREE, __ATOMIC_RELEASE);
	return false;
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
	/* A range inside an entry leaves two entries. */
	if (t->n >= t->room)
		make_room(t, iova);
	cut(t, iova, last);
	write_end(t);
	misses_settled(t, iova, last, ~0u);
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
		if (__atomic_load_n(&t->miss[i].state, __ATOMIC_ACQUIRE) >= MISS_NOTED)
			__atomic_store_n(&t->miss[i].state, MISS_FREE, __ATOMIC_RELEASE);
}

void vp_iotlb_stats(const struct vp_iotlb *t, struct vp_iotlb_stats *s)
{
	*s = (struct vp_iotlb_stats){
		.entries = t->n, .updates = t->updates, .invalidations = t->invalidations,
		.misses = GET(t->misses), .lookups = GET(t->lookups),
	};
}
