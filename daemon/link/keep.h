/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A link in memory that outlives this process (docs/handover.md): its record and fds in a box (handover/box.h) that the
 * keeper has (sys/fdstore.h), and where its rings are (virtq/place.h). For the links whose mode knows how to go on.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_LINK_KEEP_H
#define VP_DAEMON_LINK_KEEP_H

#include "base/err.h"
#include "link/link.h"
#include "vhostuser/journal.h"
#include "virtq/place.h"

struct vp_keep;

/*
 * The link is being made: it is kept from now on, where there is a keeper. rings: of each side; each: bytes for an
 * engine of each ring, 0 = there are none. Errors are logged.
 */
void vp_keep_new(struct vp_link *l, unsigned rings, size_t each);
/* It ends. What is kept of it goes, unless l->leaving. NULL in l->keep is allowed. */
void vp_keep_free(struct vp_link *l);
/* The lines of a side's rings; NULL: nobody keeps them. */
struct vp_place *vp_keep_places(const struct vp_link *l, unsigned side);
/* The journal of a side's session (vhostuser/journal.h); NULL: nobody keeps it. */
struct vu_journal *vp_keep_journal(const struct vp_link *l, unsigned side);
/* While a link is restored that another daemon has kept, up to its ops->recover(): that of a side. NULL: none is. */
const struct vu_journal *vp_keep_was(unsigned side);
/* Is what its ops->save() writes for a box? Then it is read with lines and journals. */
bool vp_keep_boxing(const struct vp_link *l);
/* What an engine of that ring may write, aligned to a page, first all zeroes; NULL: nobody keeps it. */
void *vp_keep_engine(const struct vp_link *l, unsigned ring);
/* In ops->recover(): what the daemon before has written there is there. */
int vp_keep_engine_load(const struct vp_link *l, unsigned ring);
/*
 * Something of what its ops->save() writes is about to change. From here on until it is in a new box, which is soon,
 * nobody can go on with it.
 */
void vp_keep_touch(struct vp_link *l);

/* If the daemon ended now, could the next one go on with the link? */
bool vp_keep_good(const struct vp_link *l);

/* For tests: VHOST_PCI_CRASH_AT=P,N (virtq/place.h). */
void vp_keeps_hook(void);
/* Has the daemon before us left links? */
bool vp_keeps_there(const struct vp_daemon *d);
/*
 * Go on with them, while data threads are paused. What is wrong with one is logged, and that link is not there then;
 * all fds of it are closed.
 */
void vp_keeps_restore(struct vp_daemon *d);
/* The daemon ends, and data threads are paused: the links that are kept are left as they are (l->leaving). */
void vp_keeps_leave(struct vp_daemon *d);
/*
 * An upgrade has made this process the daemon, and the keeper listens to it: what the one before had kept of the links
 * in its record (vp_links_save()) goes, and all links are kept anew.
 */
void vp_keeps_inherit(struct vp_daemon *d, const struct vp_rec_in *in);
/* Another process may be the daemon soon (true), or is not (false): who finds what is kept does not go on with it. */
void vp_keeps_disown(struct vp_daemon *d, bool disown);

#endif
