/* SPDX-License-Identifier: BSD-3-Clause */
/* The IOTLB's record for another process (base/record.h). */
#include "guestmem/iotlb_priv.h"

#include <errno.h>
#include <string.h>

struct entry_rec {
	uint64_t iova, last, gpa_perm;
};

void vp_iotlb_save(const struct vp_iotlb *t, unsigned tag, struct vp_rec *r)
{
	vp_rec_begin(r, tag);
	for (unsigned i = 0; i < t->n; i++)
		vp_rec_put(r, 1, &(struct entry_rec){ t->e[i].iova, t->e[i].last, t->e[i].gpa_perm },
			   sizeof(struct entry_rec));
	vp_rec_end(r);
}

/* Where the entry leads in this process. False: nowhere. */
static bool entry_place(struct entry *e, const struct vp_memtab *tab)
{
	uint64_t gpa = e->gpa_perm >> GPA_SHIFT, size = e->last - e->iova + 1;
	int i;

	if (!(e->gpa_perm & 3))
		return true;
	i = tab ? vp_memtab_find(tab, gpa) : -1;
	if (i < 0 || !tab->r[i].map || !vp_range_inside(gpa, size, tab->r[i].gpa, tab->r[i].size))
		return false;
	e->host = vp_gptr_addr(vp_gptr_add(tab->r[i].host, gpa - tab->r[i].gpa));
	return true;
}

int vp_iotlb_restore(struct vp_iotlb *t, const struct vp_memtab *tab, const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag, n = 0;
	struct entry_rec s;

	while (vp_rec_next(&rest, &tag, &body)) {
		struct entry e;

		if (body.n != sizeof(s) || n == t->room)
			return -EPROTO;
		memcpy(&s, body.p, sizeof(s));
		e = (struct entry){ .iova = s.iova, .last = s.last, .gpa_perm = s.gpa_perm };
		if (e.last < e.iova || (n && e.iova <= t->e[n - 1].last) || !entry_place(&e, tab))
			return -EPROTO;
		t->e[n++] = e;
	}
	t->n = n;
	return rest.n ? -EPROTO : 0;
}
