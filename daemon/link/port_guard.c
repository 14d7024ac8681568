/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Port links: what the guard (guard.h) is told of them. Only links whose device VM has the driver VM's own rings, or
 * windows of its memory that a VMM has to unmap.
 */
#include "link/port_link.h"

#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "handover/guard.h"
#include "link/keep.h"

static bool has_driver(const struct vp_plink *pl)
{
	return pl->slot.v && !pl->closing && vp_peer_session(pl->peer);
}

static bool wanted(const struct vp_plink *pl)
{
	if (pl->m->lanes)
		return false;
	return (has_driver(pl) && vp_port_in_guests_hands(pl->port)) ||
	       (pl->l->conf.attachment == VP_ATTACH_SHMEM && pl->att && vp_port_windows_out(pl->port));
}

static void end_line(struct vp_plink *pl)
{
	vp_close(&pl->line[0]);
	vp_close(&pl->line[1]);
}

/* Where the link is kept the next daemon may have the ward: its line is in the next box. */
static void make_line(struct vp_plink *pl)
{
	int r;

	if (!pl->l->keep || pl->line[0] >= 0)
		return;
	vp_keep_touch(pl->l);
	r = vp_guard_line(pl->line);
	if (r) {
		vp_log(VP_LOG_WARNING, "link %s: the next daemon cannot go on with it: %s", pl->l->conf.name,
		       strerror(-r));
		end_line(pl);
	}
}

void vp_plink_guard_update(struct vp_plink *pl)
{
	struct vp_guard *g = pl->l->d->guard;
	struct vp_guard_ward w = { .name = pl->l->conf.name, .signal = VP_LASTSIG_NONE };

	if (!g || pl->leaving)
		return;
	if (!wanted(pl)) {
		if (pl->guarded)
			vp_guard_drop(g, pl->guard_id);
		pl->guarded = false;
		end_line(pl);
		return;
	}
	if (pl->guarded && !pl->guard_stale && pl->guards_driver == has_driver(pl))
		return;
	if (!pl->guard_id)
		pl->guard_id = vp_guard_id(g);
	w.id = pl->guard_id;
	pl->guards_driver = has_driver(pl);
	w.driver = pl->guards_driver ? vu_backend_fd(vp_peer_session(pl->peer)) : -1;
	w.memfd = vp_port_memfd(pl->port, NULL);
	w.recordfd = vp_port_record_fd(pl->port);
	pl->att->ops->last_signal(pl->att, &w.signal);
	make_line(pl);
	w.line = pl->line[0];
	w.claim = pl->claim;
	pl->guarded = !vp_guard_take(g, &w);
	pl->guard_stale = false;
	if (pl->guarded && w.line >= 0 && !vp_port_is_silent(pl->port))
		vp_guard_keep(g);
	else if (pl->guarded && w.line >= 0)
		vp_guard_keep_later(g);
}

void vp_plink_guard_leave(struct vp_plink *pl)
{
	pl->leaving = true;
}

void vp_plink_guard_left(struct vp_plink *pl)
{
	if (pl->guarded && pl->l->leaving && !pl->recovers)
		vp_guard_lasts(pl->l->d->guard);
	else if (pl->guarded)
		vp_guard_see_off(pl->l->d->guard, pl->guard_id);
	pl->guarded = false;
	end_line(pl);
	vp_close(&pl->claim);
}
