/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the driver VM's front-end sends mappings as it likes; mapped.c bounds what is kept, and of who takes
 * back what it has given all the time no more windows are made. The device VM asks for what it likes: it is given only
 * what the vIOMMU maps for this device, and at most MAX_ASKED questions are open. A device VM that does not let go is
 * cut by the port; its VMM is waited for (grant.c raises the alarm).
 */
#include "link/grant_viommu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "context/context.h"

#define MAX_ASKED   64u
#define MAX_AT_ONCE 16u /* pages of one range; misses that are noted at a time are VP_IOTLB_MISSES */
/* That many times in that time is what a driver does that maps each buffer for itself. */
#define STORM     64u
#define STORM_US  10000000u

struct vp_grant_viommu {
	struct vp_plink *pl;
	void           (*show)(struct vp_plink *pl);
	struct vp_mapped m;
	uint64_t         since_us;
	struct asked {
		uint64_t addr, size;
	}                asked[MAX_ASKED];  /* MAP, without an answer of the vIOMMU */
	unsigned         n_asked;
	bool             rings_wait;        /* so does the area of a ring */
	bool             unfit;             /* nothing is given until the rings have stopped */
	char             message[200];
	/* what is being taken back; the front-end waits */
	bool             revoking, cut, busy;
	uint64_t         first, last;
	uint64_t         storm_us;
	unsigned         storm;             /* times since then */
};

static uint64_t now_us(const struct vp_grant_viommu *v)
{
	uint64_t t = 0;

	sd_event_now(v->pl->l->d->event, CLOCK_MONOTONIC, &t);
	return t;
}

int vp_gv_new(struct vp_grant_viommu **out, struct vp_plink *pl, void (*show)(struct vp_plink *pl), struct vp_err *e)
{
	*out = calloc(1, sizeof(**out));
	if (!*out)
		return vp_err_set(e, -ENOMEM, "out of memory");
	(*out)->pl = pl;
	(*out)->show = show;
	vp_mapped_clear(&(*out)->m);
	vp_port_set_maps(pl->port, true);
	return 0;
}

void vp_gv_free(struct vp_grant_viommu *v)
{
	free(v);
}

/* ---- rings ---------------------------------------------------------------------------------------------- */

static struct vp_vdev *device(const struct vp_grant_viommu *v)
{
	return v->pl->closing ? NULL : v->pl->slot.v;
}

/* Areas of a ring: link addresses. */
static void areas(const struct vp_virtq *vq, uint64_t a[3][2])
{
	a[0][0] = vq->desc_addr;
	a[0][1] = vp_vq_desc_bytes(vq->size);
	a[1][0] = vq->driver_addr;
	a[1][1] = vp_vq_driver_bytes(vq->size, vq->packed);
	a[2][0] = vq->device_addr;
	a[2][1] = vp_vq_device_bytes(vq->size, vq->packed);
}

/* Started, and its front-end has not been told that it stopped; be it that its translation is awaited. */
static bool lives(const struct vp_grant_viommu *v, unsigned i)
{
	const struct vp_vdev_ring *r = vp_vdev_ring(device(v), i);

	return (r->usable || r->wait == VP_VDEV_WAIT_REBIND) && !v->pl->q[i].gone;
}

/* And the device VM has it, or is to have it, in the driver VM's own memory. */
static bool granted(const struct vp_grant_viommu *v, unsigned i)
{
	return lives(v, i) && !v->pl->q[i].copied;
}

static bool runs(const struct vp_grant_viommu *v)
{
	for (unsigned i = 0; device(v) && i < v->pl->n; i++)
		if (lives(v, i))
			return true;
	return false;
}

/* ---- what the vIOMMU gives --------------------------------------------------------------------------------- */

/* 0: all of it is given; -EAGAIN: the vIOMMU was asked; -EFAULT, -ENOSPC. */
static int take(struct vp_grant_viommu *v, uint64_t addr, uint64_t size)
{
	struct vp_vdev_mapping x;
	uint64_t at, past;
	int ret, all = 0;
	unsigned asked = 0;

	while (!vp_mapped_has(&v->m, addr, size, &at)) {
		if (v->revoking || !device(v))
			return -EAGAIN;
		ret = vp_vdev_mapping(device(v), at, &x);
		if (!ret && x.size > VP_PLINK_POOL_ADDR - VP_MIN(x.iova, VP_PLINK_POOL_ADDR))
			return -EFAULT;
		if (!ret && !v->m.n)
			v->since_us = now_us(v);
		if (!ret)
			ret = vp_mapped_add(&v->m, x.iova, x.size, x.uva);
		if (ret && ret != -EAGAIN)
			return ret == -ENOSPC ? ret : -EFAULT;
		/* The pages behind it are wanted as well: their answers come together. */
		past = ret ? (at | 4095) + 1 - addr : at - addr;
		all = ret ? ret : all;
		asked += ret != 0;
		if (past >= size || asked == MAX_AT_ONCE)
			return all;
		size -= past;
		addr += past;
	}
	return all;
}

static void refused(struct vp_grant_viommu *v, int ret, uint64_t addr, const char *what)
{
	bool said = v->message[0];

	if (ret == -ENOSPC)
		snprintf(v->message, sizeof(v->message),
			 "the driver VM has mapped its memory in more than %u pieces; what is more is copied; give its "
			 "driver hugepages",
			 VP_MAPPED_MAX);
	else if (ret == -EBUSY)
		snprintf(v->message, sizeof(v->message),
			 "the driver VM's vIOMMU takes mappings back as fast as packets go, which is what a kernel's "
			 "driver does; queues that need more are copied");
	else
		snprintf(v->message, sizeof(v->message),
			 "%s at 0x%" PRIx64
			 " is not mapped by the driver VM's vIOMMU for reading and writing, which is what a kernel's "
			 "driver does; queues with such memory are copied",
			 what, addr);
	if (!said)
		vp_log(VP_LOG_NOTICE, "%s: %s", v->pl->name, v->message);
}

/* ---- queues that are copied -------------------------------------------------------------------------------- */

/* Mappings that were given were taken back again so often lately that no more are given. */
static bool short_lived(const struct vp_grant_viommu *v)
{
	return v->storm >= STORM && now_us(v) - v->storm_us <= STORM_US;
}

static bool some(const struct vp_grant_viommu *v, bool (*is)(const struct vp_grant_viommu *v, unsigned i))
{
	for (unsigned i = 0; device(v) && i < v->pl->n; i++)
		if (is(v, i))
			return true;
	return false;
}

static bool copied(const struct vp_grant_viommu *v, unsigned i)
{
	return lives(v, i) && v->pl->q[i].copied;
}

/* The device VM works in the driver VM's memory, though it may be asked not to. */
static bool at_work(const struct vp_grant_viommu *v, unsigned i)
{
	return v->pl->q[i].handed && !v->pl->q[i].m->lanes;
}

bool vp_gv_copies(const struct vp_grant_viommu *v)
{
	return !v->unfit && some(v, copied);
}

bool vp_gv_copies_all(const struct vp_grant_viommu *v)
{
	return vp_gv_copies(v) && !some(v, granted);
}

static void copy_instead(struct vp_grant_viommu *v, unsigned i)
{
	v->pl->q[i].copied = true;
	vp_log(VP_LOG_NOTICE, "%s: queue %u is copied until its driver starts it anew", v->pl->name, i);
}

/* Ring areas of a queue that is granted lie in windows that end with [first, last]. */
static bool needed(const struct vp_grant_viommu *v, uint64_t first, uint64_t last)
{
	uint64_t a[3][2];

	for (unsigned i = 0; device(v) && i < v->pl->n; i++) {
		if (!granted(v, i) && !at_work(v, i))
			continue;
		areas(&vp_vdev_ring(device(v), i)->rq.vq, a);
		for (unsigned k = 0; k < 3; k++)
			if (vp_mapped_shares(&v->m, a[k][0], a[k][1], first, last))
				return true;
	}
	return false;
}

/* It is nobody's now. What else lies in the pages of its ring is asked for again. */
bool vp_gv_gave_up(struct vp_grant_viommu *v, unsigned i)
{
	uint64_t a[3][2];

	if (v->unfit || !device(v) || !lives(v, i))
		return false;
	copy_instead(v, i);
	areas(&vp_vdev_ring(device(v), i)->rq.vq, a);
	for (unsigned k = 0; !v->revoking && k < 3; k++) {
		uint64_t first = a[k][0] & ~UINT64_C(4095), last = (a[k][0] + a[k][1] - 1) | 4095;

		if (!needed(v, first, last))
			vp_mapped_cut(&v->m, first, last);
	}
	return true;
}

void vp_gv_update(struct vp_grant_viommu *v)
{
	uint64_t a[3][2];
	int ret;

	v->rings_wait = false;
	if (!runs(v)) {
		vp_mapped_clear(&v->m);
		v->n_asked = v->storm = 0;
		v->unfit = v->revoking = v->cut = false;
		v->message[0] = 0;
		return;
	}
	if (v->unfit) {
		if (!vp_port_is_up(v->pl->port) && !some(v, at_work))
			vp_mapped_clear(&v->m);
		return;
	}
	for (unsigned i = 0; i < v->pl->n; i++) {
		if (!granted(v, i) || !vp_vdev_ring(device(v), i)->usable)
			continue;
		areas(&vp_vdev_ring(device(v), i)->rq.vq, a);
		for (unsigned k = 0; k < 3 && !v->pl->q[i].copied; k++) {
			ret = take(v, a[k][0], a[k][1]);
			if (!ret)
				vp_mapped_together(&v->m, a[k][0], a[k][1]);
			v->rings_wait |= ret == -EAGAIN;
			if (ret && ret != -EAGAIN) {
				refused(v, ret, a[k][0], "a ring");
				copy_instead(v, i);
			}
		}
	}
	if (!v->revoking && !some(v, granted) && !some(v, at_work)) {
		vp_mapped_clear(&v->m);
		v->n_asked = 0;
	}
}

unsigned vp_gv_regions(struct vp_grant_viommu *v, const struct vp_memtab *t, struct vp_port_region *out)
{
	return vp_mapped_regions(&v->m, t, out);
}

bool vp_gv_gives(const struct vp_grant_viommu *v)
{
	return v->m.n && !v->unfit;
}

uint64_t vp_gv_bytes(const struct vp_grant_viommu *v, uint64_t *since_us)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < v->m.n_pieces; i++)
		bytes += v->m.piece[i].size;
	*since_us = v->since_us;
	return bytes;
}

const char *vp_gv_message(const struct vp_grant_viommu *v)
{
	return v->message;
}

void vp_gv_drop(struct vp_grant_viommu *v, const char *why)
{
	snprintf(v->message, sizeof(v->message), "%s", why);
	vp_log(VP_LOG_WARNING, "%s: nothing of its memory is given any more: %s", v->pl->name, why);
	v->unfit = true;
	v->n_asked = 0;
	vp_plink_update(v->pl);
}

/* ---- the device VM asks -------------------------------------------------------------------------------------- */

uint32_t vp_gv_map(struct vp_grant_viommu *v, uint64_t addr, uint64_t size, bool *covered)
{
	int ret;

	*covered = vp_port_shows(v->pl->port, addr, size);
	if (*covered)
		return VHP_ST_OK;
	if (v->unfit || !some(v, granted))
		return VHP_ST_REFUSED;
	ret = short_lived(v) ? -EBUSY : take(v, addr, size);
	if (ret && ret != -EAGAIN) {
		refused(v, ret, addr, "a buffer");
		return VHP_ST_REFUSED;
	}
	if (ret) {
		for (unsigned i = 0; i < v->n_asked; i++)
			if (v->asked[i].addr == addr && v->asked[i].size == size)
				return VHP_ST_OK;
		if (v->n_asked == MAX_ASKED)
			return VHP_ST_LIMIT;
		v->asked[v->n_asked].addr = addr;
		v->asked[v->n_asked++].size = size;
	}
	v->show(v->pl);
	return VHP_ST_OK;
}

void vp_gv_unmap(struct vp_grant_viommu *v, uint64_t addr, uint64_t size)
{
	if (!v->revoking && !needed(v, addr, addr + (size - 1)) && vp_mapped_cut(&v->m, addr, addr + (size - 1)))
		v->show(v->pl);
}

void vp_gv_translated(struct vp_grant_viommu *v)
{
	unsigned n = 0;

	if (!device(v) || v->revoking)
		return;
	for (unsigned i = 0; i < v->n_asked; i++)
		if (take(v, v->asked[i].addr, v->asked[i].size) == -EAGAIN)
			v->asked[n++] = v->asked[i];
	vp_port_begin(v->pl->port);
	if (n != v->n_asked) {
		v->n_asked = n;
		vp_port_maps_changed(v->pl->port);
		v->show(v->pl);
	}
	if (v->rings_wait)
		vp_plink_update(v->pl);
	vp_port_commit(v->pl->port);
}

/* ---- the vIOMMU takes back ----------------------------------------------------------------------------------- */

/* Queue i's ring lies in a window that goes. */
static bool in_the_way(const struct vp_grant_viommu *v, unsigned i)
{
	uint64_t a[3][2];

	if (!at_work(v, i))
		return false;
	areas(&vp_vdev_ring(device(v), i)->rq.vq, a);
	for (unsigned k = 0; k < 3; k++)
		if (vp_mapped_shares(&v->m, a[k][0], a[k][1], v->first, v->last))
			return true;
	return false;
}

/* As far as it can be done now. False: the device VM, or its VMM, has to do something first. */
static bool go_on(struct vp_grant_viommu *v)
{
	for (unsigned i = 0; !v->cut && i < v->pl->n; i++)
		if (in_the_way(v, i))
			return false;
	if (!v->cut) {
		v->cut = true;
		vp_mapped_cut(&v->m, v->first, v->last);
		v->show(v->pl);
	}
	return !vp_port_windows_leaving(v->pl->port);
}

static void count(struct vp_grant_viommu *v)
{
	uint64_t now = now_us(v);

	if (now - v->storm_us > STORM_US) {
		v->storm_us = now;
		v->storm = 0;
	}
	v->storm++;
}

int vp_gv_revoke(struct vp_grant_viommu *v, uint64_t iova, uint64_t last, bool remap, uint64_t uva)
{
	struct vp_plink *pl = v->pl;

	if (!device(v) || !(remap ? vp_mapped_differs(&v->m, iova, last, uva) : vp_mapped_hit(&v->m, iova, last)))
		return 0;
	v->busy = true;
	count(v);
	v->revoking = true;
	v->cut = false;
	v->first = iova;
	v->last = last;
	vp_port_begin(pl->port);
	for (unsigned i = 0; i < pl->n; i++)
		if (in_the_way(v, i)) {
			if (short_lived(v) && !pl->q[i].copied)
				copy_instead(v, i);
			pl->q[i].taken = true;
			vp_port_queue_stop(pl->port, i);
		}
	vp_port_commit(pl->port);
	v->revoking = !go_on(v);
	v->busy = false;
	return v->revoking ? VP_LATER : 0;
}

bool vp_gv_revoking(const struct vp_grant_viommu *v)
{
	return v->revoking;
}

void vp_gv_tidy(struct vp_grant_viommu *v)
{
	struct vp_plink *pl = v->pl;
	struct vp_err e = { 0 };
	bool done;

	if (!v->revoking || v->busy || !device(v))
		return;
	v->busy = true;
	done = go_on(v);
	v->busy = false;
	if (!done || !v->revoking)
		return;
	v->revoking = false;
	if (vp_vdev_revoked(pl->slot.v, &e))
		vp_peer_kick_out(pl->peer, e.code ? e.msg : "the front-end went away");
	vp_peer_rearm(pl->peer);
	/* What was asked for meanwhile. */
	vp_gv_translated(v);
}

/* ---- for another daemon ---------------------------------------------------------------------------------------- */

enum tag { TAG_STATE = 1, TAG_MAPPED, TAG_ASKED, TAG_MESSAGE };

struct state_rec {
	uint64_t since_us, storm_us;
	uint32_t storm, unfit;
};

void vp_gv_save(const struct vp_grant_viommu *v, struct vp_rec *r)
{
	const struct state_rec s = {
		.since_us = v->since_us, .storm_us = v->storm_us, .storm = v->storm, .unfit = v->unfit,
	};

	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	vp_rec_begin(r, TAG_MAPPED);
	vp_mapped_save(&v->m, r);
	vp_rec_end(r);
	vp_rec_put(r, TAG_ASKED, v->asked, v->n_asked * sizeof(v->asked[0]));
	vp_rec_str(r, TAG_MESSAGE, v->message);
}

int vp_gv_restore(struct vp_grant_viommu *v, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in mapped, asked;
	struct state_rec s;

	if (vp_rec_get(in, TAG_STATE, &s, sizeof(s)) || !vp_rec_find(in, TAG_MAPPED, &mapped) ||
	    vp_mapped_restore(&v->m, &mapped) || !vp_rec_find(in, TAG_ASKED, &asked) ||
	    asked.n > sizeof(v->asked) || asked.n % sizeof(v->asked[0]) ||
	    vp_rec_text(in, TAG_MESSAGE, v->message, sizeof(v->message)))
		return vp_err_set(e, -EPROTO, "the record of what its vIOMMU gives is malformed");
	v->since_us = s.since_us;
	v->storm_us = s.storm_us;
	v->storm = s.storm;
	v->unfit = s.unfit;
	memcpy(v->asked, asked.p, asked.n);
	v->n_asked = (unsigned)(asked.n / sizeof(v->asked[0]));
	return 0;
}
