/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Windows of the ivshmem attachment as a record, for the daemon that goes on with them (docs/handover.md). QEMU hears
 * nothing of that: what it was asked is answered to that daemon. Threat model: base/record.h.
 */
#include "attach/ivshmem_windows_priv.h"

#include <errno.h>
#include <string.h>

#include "context/context.h"
#include "port/winid.h"

enum tag {
	TAG_WINDOWS = 1, TAG_IDS, TAG_QMP, TAG_DEVICE,
	/* of a device */
	TAG_STATE = 32, TAG_SOCKET, TAG_NAME, TAG_ERROR,
};

struct windows_rec {
	uint64_t n_plugged, n_unplugged;
	uint32_t listed, next_bus;
};

enum { D_UNWANTED = 1, D_WAITS = 2 };

struct device_rec {
	int32_t  slot, bus;
	uint32_t id, state, flags, looks, asks, pad;
};

/* ---- writing ------------------------------------------------------------------------------- */

/* Which answer it is, and whose: a device's, by its place in the list from 1 on, or (0) that of w itself. Never 0. */
#define CALL(which, device) ((uint64_t)(device) << 8 | (1 + (which)))

static uint64_t number(void *ctx, vp_qmp_done done, void *arg)
{
	const struct vp_ivwins *w = ctx;
	unsigned which = 0, device = 1;

	if (done == vp_ivwins_on_list)
		return CALL(VP_IVWINS_CALLS, 0);
	while (which < VP_IVWINS_CALLS && vp_ivwins_calls[which] != done)
		which++;
	for (const struct wdev *v = w->list; v && v != arg; v = v->next)
		device++;
	return CALL(which, device);
}

static void save_device(const struct wdev *v, struct vp_rec *r)
{
	const struct device_rec s = {
		.slot = v->slot, .bus = v->bus, .id = v->id, .state = v->state, .looks = v->looks, .asks = v->asks,
		.flags = (v->unwanted ? D_UNWANTED : 0) |
			 (v->timer && sd_event_source_get_enabled(v->timer, NULL) > 0 ? D_WAITS : 0),
	};

	vp_rec_begin(r, TAG_DEVICE);
	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	vp_rec_fd(r, TAG_SOCKET, VP_REC_FD_SOCKET, v->sock);
	vp_rec_str(r, TAG_NAME, v->dev);
	vp_rec_str(r, TAG_ERROR, v->error);
	vp_rec_end(r);
}

void vp_ivwins_save(const struct vp_ivwins *w, struct vp_rec *r)
{
	const struct windows_rec s = {
		.n_plugged = w->n_plugged, .n_unplugged = w->n_unplugged, .listed = w->listed, .next_bus = w->next_bus,
	};

	vp_rec_put(r, TAG_WINDOWS, &s, sizeof(s));
	vp_winids_save(w->ids, TAG_IDS, r);
	for (const struct wdev *v = w->list; v; v = v->next)
		save_device(v, r);
	if (!w->qmp)
		return;
	vp_rec_begin(r, TAG_QMP);
	vp_qmp_save(w->qmp, number, r);
	vp_rec_end(r);
}

/* ---- reading ------------------------------------------------------------------------------- */

static bool find(void *ctx, uint64_t number, vp_qmp_done *done, void **arg)
{
	struct vp_ivwins *w = ctx;
	uint64_t which = (number & 0xff) - 1, device = number >> 8;
	struct wdev *v = w->list;

	if (number == CALL(VP_IVWINS_CALLS, 0)) {
		w->asked++;
		*done = vp_ivwins_on_list;
		*arg = w;
		return true;
	}
	while (v && --device)
		v = v->next;
	if (!v || which >= VP_IVWINS_CALLS)
		return false;
	*done = vp_ivwins_calls[which];
	*arg = v;
	return true;
}

/* In the order in which they were, which commands that are under way go by. */
static void to_the_end(struct vp_ivwins *w, struct wdev *v)
{
	struct wdev **at = &w->list;

	w->list = v->next;
	v->next = NULL;
	while (*at)
		at = &(*at)->next;
	*at = v;
}

static int load_device(struct vp_ivwins *w, const struct vp_rec_in *in, struct vp_err *e)
{
	struct device_rec s;
	struct wdev *v;
	int r;

	if (vp_rec_get(in, TAG_STATE, &s, sizeof(s)) || s.slot < -1 || s.slot >= (int)VHP_MAX_WINDOWS || s.bus < -1 ||
	    s.bus > VP_IVWINS_BUSES || (s.bus != VP_IVWINS_BUSES && s.bus >= (int)w->n_bus) || s.state > W_CHARDEV)
		return vp_err_set(e, -EPROTO, "the record of a window device is malformed");
	v = vp_ivwins_wdev(w, s.slot);
	if (!v)
		return vp_err_set(e, -ENOMEM, "out of memory");
	to_the_end(w, v);
	v->bus = s.bus;
	v->id = s.id;
	v->state = (enum wstate)s.state;
	v->unwanted = s.flags & D_UNWANTED;
	v->looks = s.looks;
	v->asks = s.asks;
	vp_winid_adopt(w->ids, v->id);
	r = vp_rec_take(in, TAG_SOCKET, VP_REC_FD_SOCKET, &v->sock, e);
	if (r)
		return r;
	if (vp_rec_text(in, TAG_NAME, v->dev, sizeof(v->dev)) || vp_rec_text(in, TAG_ERROR, v->error, sizeof(v->error)))
		return vp_err_set(e, -EPROTO, "the record of a window device is malformed");
	vp_ivwins_name_chardev(v);
	if (s.flags & D_WAITS)
		vp_ivwins_wait_on(v);
	return 0;
}

int vp_ivwins_restore(struct vp_ivwins *w, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct windows_rec s;
	unsigned tag;
	int r = 0;

	if (vp_rec_get(in, TAG_WINDOWS, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of its windows is malformed");
	w->n_plugged = s.n_plugged;
	w->n_unplugged = s.n_unplugged;
	w->listed = s.listed;
	w->next_bus = s.next_bus;
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_DEVICE)
			r = load_device(w, &body, e);
	/* Behind the devices: the next id is behind that which was given last. */
	if (!r && vp_winids_restore(w->ids, TAG_IDS, in))
		r = vp_err_set(e, -EPROTO, "the record of its windows is malformed");
	if (!r && w->l->qmp[0] && !vp_rec_find(in, TAG_QMP, &body))
		r = vp_err_set(e, -EPROTO, "the record of its QMP connection is missing");
	if (!r && w->l->qmp[0])
		r = vp_qmp_restore(&w->qmp, w->d->event, w->l->qmp, w->name, &vp_ivwins_qmp_ops, w, &body, find, e);
	return r;
}
