/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What of a driver VM's memory its vIOMMU has mapped and the device VM was given: ranges of IOVAs, and the pieces of
 * memory that they lie in. Each piece is a window. The pieces are disjoint and have just the bytes that ranges name. A
 * piece that has a window keeps it until there are many: then neighbours become one piece, and that is a window anew.
 *
 * Memory is named by the front-end's user addresses (uva), as the vIOMMU does. Main thread only.
 */
#ifndef VP_DAEMON_LINK_MAPPED_H
#define VP_DAEMON_LINK_MAPPED_H

#include "base/record.h"
#include "guestmem/memtab.h"
#include "port/port.h"

/* Room for the regions of the pool and of the in-flight area is left. */
#define VP_MAPPED_MAX (VHP_MAX_REGIONS - 2)
/* Pieces beyond which neighbours are joined: that many new ones come before it is done again. */
#define VP_MAPPED_JOIN 64

struct vp_mapped_range {
	uint64_t iova, size, uva;
};

struct vp_mapped_piece {
	uint64_t uva, size;
};

struct vp_mapped {
	unsigned n, n_pieces, join;
	struct vp_mapped_range range[VP_MAPPED_MAX];  /* sorted by iova, disjoint */
	struct vp_mapped_piece piece[VP_MAPPED_MAX];  /* sorted by uva, disjoint */
};

void vp_mapped_clear(struct vp_mapped *m);

/*
 * [iova, iova + size) leads to uva; whole pages. -EEXIST: a part of it was given and leads elsewhere; -ENOSPC: too many
 * ranges or pieces, and a part may be there; -EINVAL.
 */
int vp_mapped_add(struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t uva);

/* [iova, iova + size) is there, a ring's area: if its memory is in one piece, it is to be in one window. */
void vp_mapped_together(struct vp_mapped *m, uint64_t iova, uint64_t size);

/* Is all of [iova, iova + size) there? If not, *missing is its first address that is not. */
bool vp_mapped_has(const struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t *missing);

/* Is some of [iova, last] there, or does some of it lead elsewhere than from iova to uva on? */
bool vp_mapped_hit(const struct vp_mapped *m, uint64_t iova, uint64_t last);
bool vp_mapped_differs(const struct vp_mapped *m, uint64_t iova, uint64_t last, uint64_t uva);

/* Does [iova, iova + size) lie in a piece that vp_mapped_cut() of [first, last] takes something from? */
bool vp_mapped_shares(const struct vp_mapped *m, uint64_t iova, uint64_t size, uint64_t first, uint64_t last);

/* Take [first, last] out. Returns whether anything was there. */
bool vp_mapped_cut(struct vp_mapped *m, uint64_t first, uint64_t last);

/*
 * Take out what does not lie in one region of t any more, and show the rest as regions: at most VP_MAPPED_MAX, sorted
 * by address, each with the window that it is to be in. fds stay t's.
 */
unsigned vp_mapped_regions(struct vp_mapped *m, const struct vp_memtab *t, struct vp_port_region *out);

/* As a record, for another daemon. restore: -EPROTO, and nothing is there. */
void vp_mapped_save(const struct vp_mapped *m, struct vp_rec *r);
int  vp_mapped_restore(struct vp_mapped *m, const struct vp_rec_in *in);

#endif
