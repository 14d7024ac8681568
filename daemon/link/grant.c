/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: what a driver VM grants is its own memory; a VM that lies harms itself. It is checked against the
 * memory table all the same, for a range that is none would take the link down. A device VM that keeps a window is not
 * waited for: the port takes it away after a bounded time. Its VMM is trusted as the host's kernel is: when that does
 * not say that a window has gone, the driver VM's VMM gets no answer, and the log says who is to be ended.
 */
#include "link/grant.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "guestmem/map.h"
#include "link/grant_channel.h"
#include "link/grant_viommu.h"
#include "sys/timer.h"

/* An acknowledgement of the device VM's VMM takes milliseconds. */
#define ALARM_US 5000000u

struct vp_grants {
	struct vp_plink         *pl;
	struct vp_grant_channel *channel;  /* NULL = none */
	struct vp_grant_viommu  *viommu;   /* Grant=viommu; else NULL. Then what is granted is there, and not in size */
	uint64_t                 addr, size;  /* what is granted; size 0 = nothing */
	uint64_t                 since_us;
	char                     by[64];
	char                     message[200]; /* why nothing is, or what is wrong */
	bool                     dropping;  /* it goes as soon as the link is down */
	bool                     stale;     /* regions are to be shown anew, whatever they look like */
	bool                     pool;      /* the pool is shown: some queue of this front-end was copied */
	bool                     asked;     /* the driver VM was, since the last time that nothing was granted */
	bool                     alarm;     /* a window does not go */
	sd_event_source         *timer;
	struct vp_port_region   *now;       /* as the port has them */
	unsigned                 n_now, room;
};

static const char needs_viommu[] =
	"the driver VM has a vIOMMU in front of the device; take that away, or use Grant=viommu";

static uint64_t now_us(const struct vp_grants *g)
{
	uint64_t t = 0;

	sd_event_now(g->pl->l->d->event, CLOCK_MONOTONIC, &t);
	return t;
}

static bool ring_counts(const struct vp_plink *pl, unsigned i)
{
	return vp_vdev_ring(pl->slot.v, i)->usable && !pl->q[i].gone;
}

static bool rings_run(const struct vp_plink *pl)
{
	for (unsigned i = 0; pl->slot.v && !pl->closing && i < pl->n; i++)
		if (ring_counts(pl, i))
			return true;
	return false;
}

static bool some_handed(const struct vp_plink *pl)
{
	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].handed)
			return true;
	return false;
}

static void forget(struct vp_grants *g, const char *why)
{
	if (!g->size)
		return;
	vp_log(VP_LOG_INFO, "%s: what it granted is not granted any more: %s", g->pl->name, why);
	g->size = 0;
	g->dropping = false;
	g->asked = false;
	g->message[0] = 0;
}

static const struct vp_memtab *table(const struct vp_grants *g)
{
	return vp_plink_memory(g->pl);
}

/* Index of the region of t that holds all of it, or -1. */
static int whole(const struct vp_memtab *t, uint64_t addr, uint64_t size)
{
	int k = vp_memtab_find(t, addr);

	return k >= 0 && size <= t->r[k].size - (addr - t->r[k].gpa) ? k : -1;
}

/* Ring addresses are IOVAs then, and what the driver VM's kernel knows of guest physical addresses is of no use. */
static bool has_iommu(const struct vp_grants *g)
{
	return vp_vdev_features(g->pl->slot.v) & VP_BIT(VIRTIO_F_ACCESS_PLATFORM);
}

/* ---- Grant=memory ------------------------------------------------------------------------------------ */

/* The one memory device of that size: all of a file, and the file is nothing else. */
static void look_for_memory(struct vp_grants *g, const struct vp_memtab *t)
{
	uint64_t size = g->pl->l->conf.grant_size;
	unsigned n = 0, at = 0;

	for (unsigned i = 0; i < t->n; i++)
		if (t->r[i].size == size && !t->r[i].offset && t->r[i].map && t->r[i].gpa &&
		    !((t->r[i].gpa | size) & 4095)) {
			at = i;
			n++;
		}
	if (n != 1) {
		snprintf(g->message, sizeof(g->message),
			 n ? "the driver VM has %u memory devices of GrantSize=; give the one for grants a size of its "
			     "own"
			   : "the driver VM has no memory device of GrantSize= bytes; plug one: -object "
			     "memory-backend-memfd,id=pool,size=...,share=on -device pc-dimm,memdev=pool",
			 n);
		return;
	}
	g->addr = t->r[at].gpa;
	g->size = size;
	g->since_us = now_us(g);
	g->message[0] = 0;
	snprintf(g->by, sizeof(g->by), "its memory device");
}

/* ---- what the port shows ------------------------------------------------------------------------------- */

static void add(struct vp_grants *g, struct vp_port_region *r, unsigned *n, uint64_t from, uint64_t to)
{
	const struct vp_memtab *t = table(g);
	int k;

	from &= ~UINT64_C(4095);
	to = vp_align_up(to, 4096);
	k = whole(t, from, to - from);
	if (k < 0 || !t->r[k].map)
		return;
	r[(*n)++] = (struct vp_port_region){
		.addr = from, .size = to - from, .offset = t->r[k].offset + (from - t->r[k].gpa),
		.fd = t->r[k].map->fd, .flags = VHP_REGION_READ | VHP_REGION_WRITE, .own = true,
	};
}

static int by_addr(const void *a, const void *b)
{
	const struct vp_port_region *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

/* Those that overlap become one; neighbours, where they go together. */
static unsigned merged(struct vp_port_region *r, unsigned n, bool neighbours)
{
	unsigned m = 0;

	qsort(r, n, sizeof(*r), by_addr);
	for (unsigned i = 0; i < n; i++) {
		uint64_t end = r[i].addr + r[i].size;

		if (m && r[i].addr < r[m - 1].addr + r[m - 1].size + neighbours)
			r[m - 1].size = VP_MAX(end, r[m - 1].addr + r[m - 1].size) - r[m - 1].addr;
		else
			r[m++] = r[i];
	}
	return m;
}

static unsigned ring_regions(struct vp_grants *g, const struct vp_virtq *vq, struct vp_port_region *r)
{
	unsigned n = 0;

	add(g, r, &n, vq->desc_addr, vq->desc_addr + vp_vq_desc_bytes(vq->size));
	add(g, r, &n, vq->driver_addr, vq->driver_addr + vp_vq_driver_bytes(vq->size, vq->packed));
	add(g, r, &n, vq->device_addr, vq->device_addr + vp_vq_device_bytes(vq->size, vq->packed));
	return merged(r, n, true);
}

static unsigned regions(struct vp_grants *g, struct vp_port_region *r)
{
	struct vp_plink *pl = g->pl;
	unsigned n = 0;

	if (g->viommu && table(g)) {
		n = vp_gv_regions(g->viommu, table(g), r);
		g->pool |= vp_gv_copies(g->viommu);
		if (g->pool && vp_plink_pool_region(pl, n ? r[n - 1].addr + r[n - 1].size : 0, &r[n])) {
			r[n].own = r[n].fd >= 0;
			r[n++].late = true;
		}
		return n;
	}
	g->pool = false;
	if (!g->size || !table(g))
		return 0;
	add(g, r, &n, g->addr, g->addr + g->size);
	/* Neighbours among these stay apart: each goes when its own ring stops. */
	for (unsigned i = 0; i < pl->n; i++)
		if (ring_counts(pl, i))
			n += ring_regions(g, &vp_vdev_ring(pl->slot.v, i)->rq.vq, r + n);
	return merged(r, n, false);
}

static bool same(const struct vp_grants *g, const struct vp_port_region *r, unsigned n)
{
	if (g->stale || n != g->n_now)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (r[i].addr != g->now[i].addr || r[i].size != g->now[i].size || r[i].offset != g->now[i].offset ||
		    r[i].win_offset != g->now[i].win_offset || r[i].win_size != g->now[i].win_size)
			return false;
	return true;
}

static void hold(struct vp_grants *g)
{
	struct vp_plink *pl = g->pl;
	bool without = g->alarm || (g->viommu ? !vp_gv_gives(g->viommu) && !vp_gv_copies(g->viommu) :
				    !g->size || g->dropping);

	if (pl->ungranted == without)
		return;
	pl->ungranted = without;
	vp_plink_set_hold(pl);
}

void vp_grants_update(struct vp_grants *g, const struct vp_port_region *extra)
{
	struct vp_plink *pl = g->pl;
	const struct vp_memtab *t = table(g);
	bool run = t && rings_run(pl);
	struct vp_port_region *r;
	struct vp_err e = { 0 };
	unsigned n;

	vp_port_begin(pl->port);
	if (g->size && (!run || whole(t, g->addr, g->size) < 0))
		forget(g, run ? "it is no piece of the driver VM's memory any more"
			      : "the driver VM's rings have stopped");
	/* Not with the first queue that has stopped: the device VM may be at work on the next one. */
	if (g->dropping && !vp_port_is_up(pl->port) && !some_handed(pl))
		forget(g, "it was dropped");
	if (!run)
		g->asked = false;
	if (run && !g->size && !has_iommu(g) && pl->l->conf.grant == VP_GRANT_MEMORY)
		look_for_memory(g, t);
	if (run && !g->size && !has_iommu(g) && g->channel && !g->asked) {
		g->asked = true;
		vp_grant_channel_ask(g->channel);
	}
	if (g->viommu)
		vp_gv_update(g->viommu);
	hold(g);
	r = calloc(g->room, sizeof(*r));
	n = r ? regions(g, r) : 0;
	if (n && extra)
		r[n++] = *extra;
	if (r && !same(g, r, n)) {
		if (vp_port_set_memory(pl->port, r, n, &e))
			vp_log(VP_LOG_WARNING, "%s: what it grants cannot be shown to the device VM: %s", pl->name,
			       e.msg);
		memcpy(g->now, r, n * sizeof(*r));
		g->n_now = n;
		g->stale = false;
	}
	free(r);
	vp_port_commit(pl->port);
}

void vp_grants_memory_changed(struct vp_grants *g)
{
	g->stale = true;
}

/* ---- queues come and go ---------------------------------------------------------------------------------- */

static bool ring_shown(const struct vp_grants *g, const struct vp_virtq *vq)
{
	const struct vp_port *p = g->pl->port;

	return vp_port_shows_whole(p, vq->desc_addr, vp_vq_desc_bytes(vq->size)) &&
	       vp_port_shows_whole(p, vq->driver_addr, vp_vq_driver_bytes(vq->size, vq->packed)) &&
	       vp_port_shows_whole(p, vq->device_addr, vp_vq_device_bytes(vq->size, vq->packed));
}

/*
 * A look at what is available: a driver that does not bounce its buffers is found out before the device VM gives the
 * queue up. No more than that: the device VM sees the ring, and reaches what is granted, whatever is found here.
 */
static bool buffers_inside(struct vp_grants *g, unsigned i)
{
	static struct vp_burst burst;
	struct vp_virtq look = vp_vdev_ring(g->pl->slot.v, i)->rq.vq;

	vp_vq_fetch(&look, &burst, 16);
	for (unsigned s = 0; s < burst.nseg; s++) {
		if (vp_port_shows(g->pl->port, burst.seg[s].addr, burst.seg[s].len))
			continue;
		snprintf(g->message, sizeof(g->message),
			 "queue %u has a buffer at 0x%" PRIx64
			 ", outside of what is granted; start the driver VM's kernel "
			 "with swiotlb=force, and its device with iommu_platform=on",
			 i, burst.seg[s].addr);
		vp_log(VP_LOG_WARNING, "%s: %s", g->pl->name, g->message);
		return false;
	}
	return true;
}

int vp_grants_may_begin(struct vp_grants *g, unsigned i)
{
	if (!ring_shown(g, &vp_vdev_ring(g->pl->slot.v, i)->rq.vq) || (g->viommu && vp_gv_revoking(g->viommu))) {
		g->pl->q[i].waits = true;
		return VP_LATER;
	}
	return g->viommu || buffers_inside(g, i) ? 0 : -EPERM;
}

static bool owes(const struct vp_grants *g)
{
	const struct vp_plink *pl = g->pl;

	if (g->viommu && vp_gv_revoking(g->viommu))
		return true;
	for (unsigned i = 0; i < pl->n; i++)
		if (pl->q[i].gone && pl->q[i].stop_owed)
			return true;
	return false;
}

static int on_alarm(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_grants *g = arg;
	struct vp_plink *pl = g->pl;

	if (!owes(g) || !vp_port_windows_leaving(pl->port))
		return 0;
	vp_log(VP_LOG_ERR,
	       "%s: the VMM of VM %s has not said for %u s that a window has gone; the driver VM's VMM waits for that. "
	       "End "
	       "the device VM's VMM",
	       pl->dev_name, pl->l->conf.side[VP_SIDE_DEVICE].vm, ALARM_US / 1000000);
	snprintf(g->message, sizeof(g->message), "the device VM's VMM has not let a window go; end it");
	g->alarm = true;
	hold(g);
	vp_plink_say(pl, "the device VM's VMM has not let a window go");
	return 0;
}

int vp_grants_leave(struct vp_grants *g, unsigned i, const struct vp_port_region *extra)
{
	struct vp_plink *pl = g->pl;

	vp_grants_update(g, extra);
	if (!vp_port_windows_leaving(pl->port))
		return 0;
	vp_timer_in(pl->l->d->event, &g->timer, ALARM_US, on_alarm, g, pl->name);
	return VP_LATER;
}

/* A queue that waited has its windows. */
static bool may_go_on(const struct vp_grants *g)
{
	struct vp_plink *pl = g->pl;

	if (g->viommu && vp_gv_revoking(g->viommu))
		return false;
	for (unsigned i = 0; pl->slot.v && !pl->closing && i < pl->n; i++)
		if (pl->q[i].waits && ring_counts(pl, i) && !pl->q[i].handed &&
		    (pl->q[i].copied ? vp_plink_pool_there(pl) :
				       ring_shown(g, &vp_vdev_ring(pl->slot.v, i)->rq.vq)))
			return true;
	return false;
}

void vp_grants_tidy(struct vp_grants *g)
{
	struct vp_plink *pl = g->pl;
	bool leaving = vp_port_windows_leaving(pl->port);

	if (!leaving && g->alarm) {
		g->alarm = false;
		g->message[0] = 0;
		hold(g);
	}
	for (unsigned i = 0; !leaving && pl->slot.v && !pl->closing && i < pl->n; i++)
		if (pl->q[i].gone && pl->q[i].stop_owed)
			vp_plink_answer_stop(pl, i);
	if (g->viommu)
		vp_gv_tidy(g->viommu);
	/* Only those that waited: another that stays behind for a reason of its own would be looked at without end. */
	if (may_go_on(g)) {
		for (unsigned i = 0; i < pl->n; i++)
			pl->q[i].waits = false;
		vp_plink_update(pl);
	}
}

/* ---- Grant=viommu: the device VM asks, the driver VM's vIOMMU takes back ----------------------------------- */

bool vp_grants_gave_up(struct vp_grants *g, unsigned i)
{
	return g->viommu && vp_gv_gave_up(g->viommu, i);
}

uint32_t vp_grants_map(struct vp_grants *g, uint64_t addr, uint64_t size, bool *covered)
{
	return g->viommu ? vp_gv_map(g->viommu, addr, size, covered) : VHP_ST_REFUSED;
}

void vp_grants_unmap(struct vp_grants *g, uint64_t addr, uint64_t size)
{
	if (g->viommu)
		vp_gv_unmap(g->viommu, addr, size);
}

void vp_grants_translated(struct vp_grants *g)
{
	if (g->viommu)
		vp_gv_translated(g->viommu);
}

int vp_grants_revoke(struct vp_grants *g, uint64_t iova, uint64_t last, bool remap, uint64_t uva)
{
	int ret = g->viommu ? vp_gv_revoke(g->viommu, iova, last, remap, uva) : 0;

	if (ret == VP_LATER)
		vp_timer_in(g->pl->l->d->event, &g->timer, ALARM_US, on_alarm, g, g->pl->name);
	return ret;
}

/* ---- granted from outside ------------------------------------------------------------------------------- */

int vp_grants_give(struct vp_grants *g, uint64_t addr, uint64_t size, const char *by, struct vp_err *e)
{
	struct vp_plink *pl = g->pl;
	const struct vp_memtab *t = table(g);
	uint64_t end;

	if (pl->l->conf.grant != VP_GRANT_SWIOTLB)
		return vp_err_set(e, -EINVAL, "link %s has Grant=%s: what is granted is found, not told",
				  pl->l->conf.name, vp_grant_name(pl->l->conf.grant));
	if (!size || (addr | size) & 4095 || vp_add_overflow(addr, size, &end))
		return vp_err_set(e, -EINVAL, "0x%" PRIx64 "+0x%" PRIx64 " does not consist of whole pages", addr,
				  size);
	if (!t || !rings_run(pl))
		return vp_err_set(
			e, -ENOTCONN,
			"the driver VM of link %s has no ring that runs; a grant lasts from then until its last "
			"ring stops",
			pl->l->conf.name);
	if (has_iommu(g))
		return vp_err_set(e, -EINVAL, "%s", needs_viommu);
	if (whole(t, addr, size) < 0)
		return vp_err_set(e, -ERANGE, "0x%" PRIx64 "+0x%" PRIx64 " is not one piece of the driver VM's memory",
				  addr, size);
	if (g->size && (g->addr != addr || g->size != size || g->dropping))
		return vp_err_set(e, -EEXIST, "0x%" PRIx64 "+0x%" PRIx64 " is granted already; drop that first",
				  g->addr, g->size);
	if (g->size)
		return 0;
	vp_plink_touch(pl);
	g->addr = addr;
	g->size = size;
	g->since_us = now_us(g);
	g->message[0] = 0;
	snprintf(g->by, sizeof(g->by), "%.60s", by);
	vp_log(VP_LOG_NOTICE, "%s: VM %s grants 0x%" PRIx64 "+0x%" PRIx64 " (%" PRIu64 " MiB) to VM %s, by %s",
	       pl->name, pl->l->conf.side[VP_SIDE_DRIVER].vm, addr, size, size >> 20,
	       pl->l->conf.side[VP_SIDE_DEVICE].vm, g->by);
	vp_plink_update(pl);
	return 0;
}

void vp_grants_drop(struct vp_grants *g, const char *by)
{
	vp_plink_touch(g->pl);
	if (g->viommu)
		vp_gv_drop(g->viommu, "it was dropped by hand");
	if (!g->size)
		return;
	vp_log(VP_LOG_NOTICE, "%s: the grant of 0x%" PRIx64 "+0x%" PRIx64 " is dropped by %s", g->pl->name, g->addr,
	       g->size, by);
	g->dropping = true;
	vp_plink_update(g->pl);
}

/* The driver VM says something on its channel. Returns what to answer, in e when it is an error. */
static int said(void *ctx, uint64_t addr, uint64_t size, struct vp_err *e)
{
	return vp_grants_give(ctx, addr, size, "its channel", e);
}

static void refused(void *ctx, const char *why)
{
	struct vp_grants *g = ctx;

	if (g->size)
		return;
	snprintf(g->message, sizeof(g->message), "the driver VM says: %.170s", why);
	vp_log(VP_LOG_NOTICE, "%s: it grants nothing; %s", g->pl->name, g->message);
}

static void touched(void *ctx)
{
	struct vp_grants *g = ctx;

	vp_plink_touch(g->pl);
}

static bool wants(void *ctx)
{
	struct vp_grants *g = ctx;

	return !g->size && table(g) && rings_run(g->pl);
}

/* ---- for another daemon ------------------------------------------------------------------------------------ */

/* Of the first part, beside those of copy.c; and of the second. */
enum tag { TAG_SOCKET = 16, TAG_GRANT = 1, TAG_BY, TAG_MESSAGE, TAG_CHANNEL, TAG_VIOMMU };

enum { G_DROPPING = 1, G_POOL = 2, G_ASKED = 4, G_UNGRANTED = 8 };

struct grant_rec {
	uint64_t addr, size, since_us;
	uint32_t flags, pad;
};

void vp_grants_save(const struct vp_grants *g, struct vp_rec *r)
{
	if (!g->channel)
		return;
	vp_rec_begin(r, TAG_SOCKET);
	vp_grant_channel_save(g->channel, r);
	vp_rec_end(r);
}

int vp_grants_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e)
{
	struct vp_rec_in channel;

	*fd = -1;
	return vp_rec_find(in, TAG_SOCKET, &channel) ? vp_grant_channel_record_socket(&channel, fd, ours, e) : 0;
}

/* The socket of the daemon before, to where the channel looks for it. */
static int adopt_channel(struct vp_plink *pl, struct vp_err *e)
{
	struct vp_rec_in mode, channel;

	return vp_plink_heir_mode(pl, &mode) && vp_rec_find(&mode, TAG_SOCKET, &channel) ?
		       vp_grant_channel_adopt(pl->l->d, &pl->l->conf, &channel, e) : 0;
}

void vp_grants_save_hot(const struct vp_grants *g, struct vp_rec *r)
{
	const struct grant_rec s = {
		.addr = g->addr, .size = g->size, .since_us = g->since_us,
		.flags = (g->dropping ? G_DROPPING : 0) | (g->pool ? G_POOL : 0) | (g->asked ? G_ASKED : 0) |
			 (g->pl->ungranted ? G_UNGRANTED : 0),
	};

	vp_rec_put(r, TAG_GRANT, &s, sizeof(s));
	vp_rec_str(r, TAG_BY, g->by);
	vp_rec_str(r, TAG_MESSAGE, g->message);
	if (g->channel) {
		vp_rec_begin(r, TAG_CHANNEL);
		vp_grant_channel_save_hot(g->channel, r);
		vp_rec_end(r);
	}
	if (g->viommu) {
		vp_rec_begin(r, TAG_VIOMMU);
		vp_gv_save(g->viommu, r);
		vp_rec_end(r);
	}
}

int vp_grants_restore_hot(struct vp_grants *g, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in body;
	struct grant_rec s;
	int r = 0;

	if (vp_rec_get(in, TAG_GRANT, &s, sizeof(s)) || (s.addr | s.size) & 4095 ||
	    vp_rec_text(in, TAG_BY, g->by, sizeof(g->by)) ||
	    vp_rec_text(in, TAG_MESSAGE, g->message, sizeof(g->message)))
		return vp_err_set(e, -EPROTO, "the record of what is granted is malformed");
	g->addr = s.addr;
	g->size = s.size;
	g->since_us = s.since_us;
	g->dropping = s.flags & G_DROPPING;
	g->pool = s.flags & G_POOL;
	g->asked = s.flags & G_ASKED;
	if (g->channel && vp_rec_find(in, TAG_CHANNEL, &body))
		r = vp_grant_channel_restore_hot(g->channel, &body, e);
	if (!r && g->viommu)
		r = vp_rec_find(in, TAG_VIOMMU, &body) ? vp_gv_restore(g->viommu, &body, e) :
		    vp_err_set(e, -EPROTO, "the record of what its vIOMMU gives is missing");
	/* Before the port is as it was: it would take windows away that nobody is to miss. */
	g->pl->ungranted = s.flags & G_UNGRANTED;
	vp_plink_set_hold(g->pl);
	return r;
}

/* ---- start, end, show --------------------------------------------------------------------------------------- */

/* As grant_rings() of fast.c. */
static void show(struct vp_plink *pl)
{
	pl->m->rings(pl);
}

int vp_grants_new(struct vp_grants **out, struct vp_plink *pl, struct vp_err *e)
{
	static const struct vp_grant_channel_ops ops = {
		.grant = said, .refuse = refused, .wants = wants, .touch = touched,
	};
	struct vp_grants *g = calloc(1, sizeof(*g));
	int r = 0;

	*out = g;
	if (!g)
		return vp_err_set(e, -ENOMEM, "out of memory");
	g->pl = pl;
	g->room = pl->l->conf.grant == VP_GRANT_VIOMMU ? VHP_MAX_REGIONS : 3 * pl->n + 2;
	g->now = calloc(g->room, sizeof(*g->now));
	if (!g->now)
		r = vp_err_set(e, -ENOMEM, "out of memory");
	if (!r)
		r = adopt_channel(pl, e);
	if (!r && pl->l->conf.grant == VP_GRANT_SWIOTLB)
		r = vp_grant_channel_new(&g->channel, pl->l->d, &pl->l->conf, &ops, g, e);
	if (!r && pl->l->conf.grant == VP_GRANT_VIOMMU)
		r = vp_gv_new(&g->viommu, pl, show, e);
	pl->ungranted = true;
	vp_plink_set_hold(pl);
	if (r) {
		vp_grants_free(g);
		*out = NULL;
	}
	return r;
}

void vp_grants_free(struct vp_grants *g)
{
	if (!g)
		return;
	if (g->pl->l->leaving)
		vp_grant_channel_leave(g->channel);
	vp_grant_channel_free(g->channel);
	vp_gv_free(g->viommu);
	sd_event_source_disable_unref(g->timer);
	free(g->now);
	free(g);
}

static const char *way_out(const struct vp_grants *g)
{
	if (g->viommu && !g->message[0] && (vp_gv_gives(g->viommu) || vp_gv_message(g->viommu)[0]))
		return vp_gv_message(g->viommu);
	if (g->size || g->message[0])
		return g->message;
	if (!table(g) || !rings_run(g->pl))
		return "the driver VM's driver does not run";
	if (g->viommu)
		return "the driver VM's vIOMMU has not mapped its rings yet; the device needs iommu_platform=on,ats=on "
		       "and "
		       "the VM a vIOMMU (intel-iommu with device-iotlb=on, or virtio-iommu)";
	if (has_iommu(g))
		return needs_viommu;
	return "the driver VM has not said where its pool is; install vhost-pci-grant in it and give it the channel "
	       "(vhost-pcictl generate LINK --driver), or use vhost-pcictl grant";
}

json_t *vp_grants_json(const struct vp_grants *g)
{
	json_t *ranges = json_array(), *copied = json_array();
	uint64_t bytes = 0, since = g->since_us;
	bool gives = g->viommu ? vp_gv_gives(g->viommu) : g->size;

	for (unsigned i = 0; i < g->n_now; i++) {
		const struct vp_port_region *r = &g->now[i];
		const char *what = !g->viommu ? "ring" : r->addr == VP_PLINK_POOL_ADDR ? "copy" : "mapped";
		bool pool = g->size && r->addr <= g->addr && r->addr + r->size >= g->addr + g->size;

		bytes += r->size;
		json_array_append_new(ranges, json_pack("{s:I,s:I,s:s}", "address", (json_int_t)r->addr, "size",
							(json_int_t)r->size, "what",
							r->flags & VHP_REGION_INFLIGHT ? "in-flight"
							: pool			       ? "pool"
										       : what));
	}
	if (g->viommu)
		bytes = vp_gv_bytes(g->viommu, &since);
	for (unsigned i = 0; g->pl->slot.v && i < g->pl->n; i++)
		if (g->pl->q[i].copied)
			json_array_append_new(copied, json_integer(i));
	return json_pack("{s:s,s:s,s:I,s:o,s:o,s:o,s:s,s:s,s:o}", "source", vp_grant_name(g->pl->l->conf.grant),
			 "state",
			 g->alarm      ? "stuck"
			 : g->dropping ? "ending"
			 : g->viommu && vp_gv_copies_all(g->viommu) ? "copied"
			 : gives       ? "granted"
			 /* Not "none" before the device VM has none of it. */
			 : vp_port_windows_leaving(g->pl->port) ? "ending"
								: "none",
			 "bytes", (json_int_t)bytes, "ranges", ranges, "copied", copied, "age_s",
			 gives ? json_integer((json_int_t)((now_us(g) - since) / 1000000)) : json_null(), "by",
			 g->viommu && gives ? "its vIOMMU"
			 : g->size	    ? g->by
					    : "",
			 "message", way_out(g), "channel", vp_grant_channel_json(g->channel));
}
