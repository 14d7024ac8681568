/* SPDX-License-Identifier: BSD-3-Clause */
/* Threat model: ranges come from the front-end, and what is asked for from the guest. Both are bounded here. */
#include "link/mapped.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void vp_mapped_clear(struct vp_mapped *m)
{
	m->n = m->n_pieces = 0;
	m->join = VP_MAPPED_JOIN;
}

static uint64_t last_of(const struct vp_mapped_range *r)
{
	return r->iova + r->size - 1;
}

/* Index of the first range that does not end before iova. */
static unsigned lower(const struct vp_mapped *m, uint64_t iova)
{
	unsigned lo = 0, hi = m->n;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (last_of(&m->range[mid]) < iova)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool vp_mapped_hit(const struct vp_mapped *m, uint64_t iova, uint64_t last)
{
	unsigned i = lower(m, iova);

	return i < m->n && m->range[i].iova <= last;
}

bool vp_mapped_differs(const struct vp_mapped *m, uint64_t iova, uint64_t last, uint64_t uva)
{
	for (unsigned i = lower(m, iova); i < m->n && m->range[i].iova <= last; i++)
		if (m->range[i].uva - m->range[i].iova != uva - iova)
			return true;
	return false;
}

bool vp_mapped_has(const struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t *missing)
{
	unsigned i = lower(m, iova);

	while (size && i < m->n && m->range[i].iova <= iova) {
		uint64_t part = VP_MIN(size, last_of(&m->range[i]) - iova + 1);

		iova += part;
		size -= part;
		i++;
	}
	*missing = iova;
	return !size;
}

/* ---- pieces ------------------------------------------------------------------------------------------- */

/* Neighbours become one. */
static void join(struct vp_mapped *m)
{
	unsigned n = 0;

	for (unsigned i = 0; i < m->n_pieces; i++) {
		struct vp_mapped_piece *last = n ? &m->piece[n - 1] : NULL;

		if (last && last->uva + last->size == m->piece[i].uva)
			last->size += m->piece[i].size;
		else
			m->piece[n++] = m->piece[i];
	}
	m->n_pieces = n;
	m->join = n + VP_MAPPED_JOIN;
}

static int piece_put(struct vp_mapped *m, unsigned at, uint64_t uva, uint64_t size)
{
	if (m->n_pieces == VP_MAPPED_MAX)
		return -ENOSPC;
	memmove(&m->piece[at + 1], &m->piece[at], (m->n_pieces - at) * sizeof(m->piece[0]));
	m->piece[at] = (struct vp_mapped_piece){ uva, size };
	m->n_pieces++;
	return 0;
}

/* What no piece has of [uva, uva + size) becomes pieces. */
static int pieces_add(struct vp_mapped *m, uint64_t uva, uint64_t size)
{
	uint64_t end = uva + size;
	unsigned i = 0;
	int ret = 0;

	while (i < m->n_pieces && m->piece[i].uva + m->piece[i].size <= uva)
		i++;
	for (; !ret && uva < end; i++) {
		uint64_t next = i < m->n_pieces ? m->piece[i].uva : end;

		if (next > uva) {
			ret = piece_put(m, i, uva, VP_MIN(next, end) - uva);
			uva = VP_MIN(next, end);
		} else {
			uva = m->piece[i].uva + m->piece[i].size;
		}
	}
	if (!ret && m->n_pieces > m->join)
		join(m);
	return ret;
}

static int by_uva(const void *a, const void *b)
{
	const struct vp_mapped_piece *x = a, *y = b;

	return x->uva < y->uva ? -1 : x->uva > y->uva;
}

/* What some range names, sorted, in as few pieces as can be. */
static unsigned named(const struct vp_mapped *m, struct vp_mapped_piece *out)
{
	unsigned n = 0;

	for (unsigned i = 0; i < m->n; i++)
		out[i] = (struct vp_mapped_piece){ m->range[i].uva, m->range[i].size };
	qsort(out, m->n, sizeof(*out), by_uva);
	for (unsigned i = 0; i < m->n; i++) {
		uint64_t end = out[i].uva + out[i].size;

		if (n && out[i].uva <= out[n - 1].uva + out[n - 1].size)
			out[n - 1].size = VP_MAX(end, out[n - 1].uva + out[n - 1].size) - out[n - 1].uva;
		else
			out[n++] = out[i];
	}
	return n;
}

/*
 * Pieces lose what no range names any more. One that is left whole keeps its window; what is left of another one is
 * another window.
 */
static void prune(struct vp_mapped *m)
{
	struct vp_mapped_piece left[VP_MAPPED_MAX], old[VP_MAPPED_MAX];
	unsigned n = named(m, left), n_old = m->n_pieces, k = 0;

	memcpy(old, m->piece, n_old * sizeof(old[0]));
	m->n_pieces = 0;
	for (unsigned i = 0; i < n_old; i++) {
		uint64_t end = old[i].uva + old[i].size;

		while (k < n && left[k].uva + left[k].size <= old[i].uva)
			k++;
		for (unsigned j = k; j < n && left[j].uva < end && m->n_pieces < VP_MAPPED_MAX; j++) {
			uint64_t from = VP_MAX(left[j].uva, old[i].uva);

			m->piece[m->n_pieces++] =
				(struct vp_mapped_piece){ from, VP_MIN(left[j].uva + left[j].size, end) - from };
		}
	}
	m->join = VP_MIN(m->join, m->n_pieces + VP_MAPPED_JOIN);
}

static const struct vp_mapped_piece *piece_of(const struct vp_mapped *m, uint64_t uva)
{
	unsigned lo = 0, hi = m->n_pieces;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (m->piece[mid].uva <= uva)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo && uva - m->piece[lo - 1].uva < m->piece[lo - 1].size ? &m->piece[lo - 1] : NULL;
}

/* ---- ranges ------------------------------------------------------------------------------------------- */

static bool continues(const struct vp_mapped_range *a, const struct vp_mapped_range *b)
{
	return a->iova + a->size == b->iova && a->uva + a->size == b->uva;
}

static int range_put(struct vp_mapped *m, unsigned at, struct vp_mapped_range r)
{
	if (at && continues(&m->range[at - 1], &r)) {
		m->range[at - 1].size += r.size;
		if (at < m->n && continues(&m->range[at - 1], &m->range[at])) {
			m->range[at - 1].size += m->range[at].size;
			memmove(&m->range[at], &m->range[at + 1], (m->n - at - 1) * sizeof(r));
			m->n--;
		}
		return 0;
	}
	if (at < m->n && continues(&r, &m->range[at])) {
		m->range[at].iova = r.iova;
		m->range[at].uva = r.uva;
		m->range[at].size += r.size;
		return 0;
	}
	if (m->n == VP_MAPPED_MAX)
		return -ENOSPC;
	memmove(&m->range[at + 1], &m->range[at], (m->n - at) * sizeof(r));
	m->range[at] = r;
	m->n++;
	return 0;
}

int vp_mapped_add(struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t uva)
{
	uint64_t last, delta = uva - iova, end;
	int ret = 0;

	if (!size || (iova | size | uva) & 4095 || vp_add_overflow(iova, size - 1, &last) ||
	    vp_add_overflow(uva, size, &end))
		return -EINVAL;
	if (vp_mapped_differs(m, iova, last, uva))
		return -EEXIST;
	/* Each hole in the range is one more range at most; each hole in its memory one more piece. */
	if (m->n + 1 >= VP_MAPPED_MAX)
		return -ENOSPC;
	while (!ret && !vp_mapped_has(m, iova, last - iova + 1, &iova)) {
		unsigned at = lower(m, iova);
		uint64_t to = at < m->n && m->range[at].iova <= last ? m->range[at].iova - 1 : last;

		ret = range_put(m, at, (struct vp_mapped_range){ iova, to - iova + 1, iova + delta });
		if (!ret)
			ret = pieces_add(m, iova + delta, to - iova + 1);
		if (ret)
			vp_mapped_cut(m, iova, to);
		if (ret || to == last)
			break;
		iova = to + 1;
	}
	return ret;
}

bool vp_mapped_cut(struct vp_mapped *m, uint64_t first, uint64_t last)
{
	bool any = false;

	for (unsigned i = lower(m, first); i < m->n && m->range[i].iova <= last;) {
		struct vp_mapped_range r = m->range[i];
		uint64_t from = VP_MAX(first, r.iova), to = VP_MIN(last, last_of(&r));

		any = true;
		memmove(&m->range[i], &m->range[i + 1], (m->n - i - 1) * sizeof(r));
		m->n--;
		if (from > r.iova) {
			struct vp_mapped_range left = { r.iova, from - r.iova, r.uva };

			i += !range_put(m, i, left);
		}
		/* With the table full the rest goes as well: it is asked for again. */
		if (to < last_of(&r)) {
			struct vp_mapped_range right = { to + 1, last_of(&r) - to, r.uva + (to + 1 - r.iova) };

			i += !range_put(m, i, right);
		}
	}
	if (any)
		prune(m);
	return any;
}

bool vp_mapped_shares(const struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t first, uint64_t last)
{
	uint64_t end = iova + size - 1;

	for (unsigned i = lower(m, iova); size && i < m->n && m->range[i].iova <= end; i++) {
		const struct vp_mapped_range *r = &m->range[i];
		uint64_t from = VP_MAX(iova, r->iova) - r->iova + r->uva,
			 to = VP_MIN(end, last_of(r)) - r->iova + r->uva;

		for (unsigned k = lower(m, first); k < m->n && m->range[k].iova <= last; k++) {
			const struct vp_mapped_range *c = &m->range[k];
			uint64_t at = VP_MAX(first, c->iova) - c->iova + c->uva;
			uint64_t stop = VP_MIN(last, last_of(c)) - c->iova + c->uva;

			for (unsigned j = 0; j < m->n_pieces; j++) {
				const struct vp_mapped_piece *p = &m->piece[j];
				uint64_t top = p->uva + p->size - 1;

				if (p->uva <= to && top >= from && p->uva <= stop && top >= at)
					return true;
			}
		}
	}
	return false;
}

void vp_mapped_together(struct vp_mapped *m, uint64_t iova, uint64_t size)
{
	unsigned i = lower(m, iova), k = 0;
	const struct vp_mapped_range *r = &m->range[i];
	uint64_t uva, end;

	if (i == m->n || r->iova > iova || last_of(r) - iova < size - 1)
		return;
	uva = r->uva + (iova - r->iova);
	end = uva + size;
	for (i = 0; i < m->n_pieces; i++) {
		struct vp_mapped_piece p = m->piece[i];

		if (k && p.uva > uva && p.uva < end && m->piece[k - 1].uva + m->piece[k - 1].size == p.uva)
			m->piece[k - 1].size += p.size;
		else
			m->piece[k++] = p;
	}
	m->n_pieces = k;
}

unsigned vp_mapped_regions(struct vp_mapped *m, const struct vp_memtab *t, struct vp_port_region *out)
{
	unsigned n = 0;

	for (unsigned i = 0; i < m->n; i++) {
		uint64_t done = 0, gpa;

		if (vp_memtab_uva_to_gpa(t, m->range[i].uva, m->range[i].size, &gpa)) {
			vp_mapped_cut(m, m->range[i].iova, last_of(&m->range[i]));
			i--;
			continue;
		}
		while (done < m->range[i].size && n < VP_MAPPED_MAX) {
			const struct vp_mapped_range *r = &m->range[i];
			const struct vp_region *g = &t->r[vp_memtab_find(t, gpa)];
			const struct vp_mapped_piece *p = piece_of(m, r->uva + done);
			uint64_t from, to, size;

			if (!p || !g->map)
				break;
			size = VP_MIN(r->size - done, p->uva + p->size - (r->uva + done));
			/* Neighbours by address may lie in two regions of the table, and in two files. */
			from = VP_MAX(p->uva, g->uva);
			to = VP_MIN(p->uva + p->size, g->uva + g->size);
			out[n++] = (struct vp_port_region){
				.addr = r->iova + done,
				.size = size,
				.offset = g->offset + (r->uva + done - g->uva),
				.fd = g->map->fd,
				.flags = VHP_REGION_READ | VHP_REGION_WRITE,
				.own = true,
				.late = true,
				.win_offset = g->offset + (from - g->uva),
				.win_size = to - from,
			};
			done += size;
		}
	}
	return n;
}

/* ---- for another daemon ------------------------------------------------------------------------------- */

enum tag { TAG_RANGES = 1, TAG_PIECES, TAG_JOIN };

void vp_mapped_save(const struct vp_mapped *m, struct vp_rec *r)
{
	vp_rec_put(r, TAG_RANGES, m->range, m->n * sizeof(m->range[0]));
	vp_rec_put(r, TAG_PIECES, m->piece, m->n_pieces * sizeof(m->piece[0]));
	vp_rec_u64(r, TAG_JOIN, m->join);
}

static bool pages(uint64_t at, uint64_t size)
{
	uint64_t end;

	return size && !((at | size) & 4095) && !vp_add_overflow(at, size, &end);
}

static bool sane(const struct vp_mapped *m)
{
	for (unsigned i = 0; i < m->n; i++)
		if (!pages(m->range[i].iova, m->range[i].size) || !pages(m->range[i].uva, m->range[i].size) ||
		    (i && m->range[i].iova <= last_of(&m->range[i - 1])))
			return false;
	for (unsigned i = 0; i < m->n_pieces; i++)
		if (!pages(m->piece[i].uva, m->piece[i].size) ||
		    (i && m->piece[i].uva < m->piece[i - 1].uva + m->piece[i - 1].size))
			return false;
	return true;
}

int vp_mapped_restore(struct vp_mapped *m, const struct vp_rec_in *in)
{
	struct vp_rec_in ranges, pieces;

	vp_mapped_clear(m);
	if (!vp_rec_find(in, TAG_RANGES, &ranges) || ranges.n > sizeof(m->range) ||
	    ranges.n % sizeof(m->range[0]) || !vp_rec_find(in, TAG_PIECES, &pieces) ||
	    pieces.n > sizeof(m->piece) || pieces.n % sizeof(m->piece[0]))
		return -EPROTO;
	memcpy(m->range, ranges.p, ranges.n);
	memcpy(m->piece, pieces.p, pieces.n);
	m->n = (unsigned)(ranges.n / sizeof(m->range[0]));
	m->n_pieces = (unsigned)(pieces.n / sizeof(m->piece[0]));
	m->join = (unsigned)VP_MIN(vp_rec_num(in, TAG_JOIN, VP_MAPPED_JOIN), (uint64_t)VP_MAPPED_MAX + VP_MAPPED_JOIN);
	if (sane(m))
		return 0;
	vp_mapped_clear(m);
	return -EPROTO;
}
