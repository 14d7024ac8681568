/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the VMM may refuse, delay or forget anything, and the guest may never release a device.
 * Each device here has a state of its own and waits alone. QEMU does not survive (seen with 7.2 and
 * 11.1) a memory size that is not a power of two, a peer's disconnect message, or a server that is
 * silent.
 */
#include "attach/ivshmem_windows_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "sys/fds.h"
#include "conf/policy.h"
#include "sys/timer.h"
#include "port/winid.h"

#define DEV_PREFIX   "vhp-"     /* then the link's name, a dash, the id */
#define LIST_MAX     4096       /* devices of a VM that are looked at */
#define BAR_LOOK_US  200000u
#define BAR_LOOKS    25         /* 5 s in all */
#define DEL_AGAIN_US 5000000u   /* an unplug request that the guest did not honour is repeated */

int vp_ivshmem_send(int sock, int64_t value, int fd)
{
	int64_t le = (int64_t)htole64((uint64_t)value);

	return vp_send_fds(sock, &le, sizeof(le), &fd, fd >= 0);
}

/* ---- one device ------------------------------------------------------------------------------------------ */

struct wdev *vp_ivwins_wdev(struct vp_ivwins *w, int slot)
{
	struct wdev *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->w = w;
	v->slot = slot;
	v->sock = v->bus = -1;
	v->next = w->list;
	w->list = v;
	return v;
}

void vp_ivwins_name_chardev(struct wdev *v)
{
	snprintf(v->chr, sizeof(v->chr), "c%s", v->dev);
}

/* gone: there is no such device in the VM; else there may be. */
static void wdev_free(struct wdev *v, bool gone)
{
	struct wdev **at = &v->w->list;

	if (gone)
		vp_winid_release(v->w->ids, v->id);
	else
		vp_winid_lose(v->w->ids, v->id);
	while (*at != v)
		at = &(*at)->next;
	*at = v->next;
	sd_event_source_disable_unref(v->timer);
	vp_close_foreign(&v->sock);  /* the VMM may have sent something */
	free(v);
}

static void arm(struct wdev *v, uint64_t us, sd_event_time_handler_t fn)
{
	vp_timer_end(&v->timer); /* it may be the other function's */
	vp_timer_in(v->w->d->event, &v->timer, us, fn, v, v->w->name);
}

/*
 * What an earlier daemon left behind may be in any of the root ports. QEMU (seen with 7.2) takes a
 * second device into an occupied one: behind a root port the guest looks for one device only, and never
 * finds the second.
 */
static bool left_behind(const struct vp_ivwins *w)
{
	for (const struct wdev *v = w->list; v; v = v->next)
		if (v->bus < 0)
			return true;
	return !w->listed;
}

/* The device is gone, or never was. */
static void wdev_finish(struct wdev *v)
{
	struct vp_ivwins *w = v->w;
	int slot = v->slot;

	wdev_free(v, true);
	w->n_unplugged++;
	if (slot >= 0 && !w->freeing)
		vp_port_window_taken(w->port, (unsigned)slot);
	else if (!w->freeing && !left_behind(w))
		vp_port_windows_retry(w->port);
}

static void chardev_removed(void *arg, json_t *ret, const char *err)
{
	struct wdev *v = arg;

	if (err)
		vp_log(VP_LOG_DEBUG, "%s: chardev-remove %s: %s", v->w->name, v->chr, err);
	wdev_finish(v);
}

static void deleted(struct wdev *v)
{
	if (v->state == W_CHARDEV)
		return;
	v->state = W_CHARDEV;
	sd_event_source_disable_unref(v->timer);
	v->timer = NULL;
	if (vp_qmp_call(v->w->qmp, "chardev-remove", json_pack("{s:s}", "id", v->chr), -1, chardev_removed, v)) {
		int slot = v->slot;

		/* The connection is being lost; commands that name v are still to be completed, then it is freed. */
		v->slot = -1;
		if (slot >= 0)
			vp_port_window_taken(v->w->port, (unsigned)slot);
	}
}

/* The device was deleted and we had not asked: the administrator did it, or the guest. */
static void vanished(struct wdev *v)
{
	struct vp_ivwins *w = v->w;
	int slot = v->slot;
	bool ours = v->unwanted || slot < 0;

	if (!ours) {
		v->slot = -1;
		v->unwanted = true;
	}
	deleted(v);
	if (!ours)
		vp_port_window_failed(w->port, (unsigned)slot, "its device was unplugged by somebody else");
}

static int on_del_again(sd_event_source *s, uint64_t usec, void *arg);

static void del_done(void *arg, json_t *ret, const char *err)
{
	struct wdev *v = arg;

	/* Not there any more: as good. Still being unplugged: the event will come. */
	if (err && strstr(err, "not found"))
		deleted(v);
}

static void wdev_remove(struct wdev *v)
{
	v->unwanted = true;
	if (v->state != W_PLUGGED && v->state != W_REMOVING)
		return;
	v->state = W_REMOVING;
	if (++v->asks == 2)
		vp_log(VP_LOG_WARNING,
		       "%s: the device VM's guest does not release window device %s; asking again every %u s",
		       v->w->name, v->dev, DEL_AGAIN_US / 1000000);
	arm(v, DEL_AGAIN_US, on_del_again);
	vp_qmp_call(v->w->qmp, "device_del", json_pack("{s:s}", "id", v->dev), -1, del_done, v);
}

static int on_del_again(sd_event_source *s, uint64_t usec, void *arg)
{
	wdev_remove(arg);
	return 0;
}

/* ---- did the guest give the BAR an address? ----------------------------------------------------------------- */

/* 1 = it has one, 0 = not (yet), -1 = device not in this tree. */
static int bar_address(json_t *devices, const char *id, unsigned depth)
{
	json_t *dev, *reg;
	size_t i, j;

	json_array_foreach(devices, i, dev) {
		const char *name = json_string_value(json_object_get(dev, "qdev_id"));
		int below;

		if (name && !strcmp(name, id)) {
			json_array_foreach(json_object_get(dev, "regions"), j, reg)
				if (json_integer_value(json_object_get(reg, "bar")) == 2)
					return json_integer_value(json_object_get(reg, "address")) > 0;
			return 0;
		}
		if (depth > 8)
			continue;
		below = bar_address(json_object_get(json_object_get(dev, "pci_bridge"), "devices"), id, depth + 1);
		if (below >= 0)
			return below;
	}
	return -1;
}

static int on_look(sd_event_source *s, uint64_t usec, void *arg);

static void looked(void *arg, json_t *ret, const char *err)
{
	struct wdev *v = arg;
	struct vp_ivwins *w = v->w;
	json_t *bus;
	size_t i;

	if (v->state != W_PLUGGED || v->unwanted || !ret)
		return;
	json_array_foreach(ret, i, bus) {
		if (bar_address(json_object_get(bus, "devices"), v->dev, 0) == 1) {
			v->error[0] = 0;
			return;
		}
	}
	if (++v->looks < BAR_LOOKS) {
		arm(v, BAR_LOOK_US, on_look);
		return;
	}
	snprintf(v->error, sizeof(v->error),
		 "its BAR got no address in the device VM; give root port %s pref64-reserve= of at least the memory's "
		 "size, and the VM enough address bits",
		 v->bus >= 0 ? w->bus[v->bus] : "?");
	if (v->slot >= 0)
		vp_port_window_failed(w->port, (unsigned)v->slot, v->error);
}

static int on_look(sd_event_source *s, uint64_t usec, void *arg)
{
	struct wdev *v = arg;

	vp_qmp_call(v->w->qmp, "query-pci", NULL, -1, looked, v);
	return 0;
}

/* ---- plugging ------------------------------------------------------------------------------------------------ */

static void step_done(void *arg, json_t *ret, const char *err)
{
	struct wdev *v = arg;

	if (err && !v->error[0])
		snprintf(v->error, sizeof(v->error), "%.170s", err);
}

static void device_added(void *arg, json_t *ret, const char *err)
{
	struct wdev *v = arg;
	struct vp_ivwins *w = v->w;
	int slot = v->slot;
	char why[260];

	step_done(arg, ret, err);
	if (!err) {
		w->n_plugged++;
		v->state = W_PLUGGED;
		if (v->unwanted || slot < 0) {
			wdev_remove(v);
			return;
		}
		arm(v, BAR_LOOK_US / 4, on_look);
		vp_log(VP_LOG_DEBUG, "%s: window device %s is plugged into %s", w->name, v->dev, w->bus[v->bus]);
		vp_port_window_given(w->port, (unsigned)slot, 0, NULL);
		return;
	}
	if (strstr(v->error, " in use by "))
		snprintf(why, sizeof(why), "root port %.40s is occupied (%.100s); HotplugBus= names ports that nobody "
			 "else uses", w->bus[v->bus], strstr(v->error, "in use by "));
	else
		snprintf(why, sizeof(why), "device_add behind %.40s: %.150s", w->bus[v->bus], v->error);
	if (vp_qmp_is_up(w->qmp))
		vp_qmp_call(w->qmp, "chardev-remove", json_pack("{s:s}", "id", v->chr), -1, NULL, NULL);
	wdev_free(v, vp_qmp_is_up(w->qmp) && !strstr(err, "uplicate"));
	if (slot >= 0 && !w->freeing)
		vp_port_window_given(w->port, (unsigned)slot, -EIO, why);
}

static int free_bus(struct vp_ivwins *w)
{
	for (unsigned k = 0; k < w->n_bus; k++) {
		unsigned i = (w->next_bus + k) % w->n_bus;
		bool used = false;

		for (struct wdev *v = w->list; v; v = v->next)
			used |= v->bus == (int)i;
		if (!used) {
			w->next_bus = i + 1;
			return (int)i;
		}
	}
	return -1;
}

static int check(struct vp_ivwins *w, const struct vp_port_window *req, struct vp_err *e)
{
	if (!w->qmp)
		return vp_err_set(e, -EINVAL,
				  "fast mode plugs the memory into the device VM as a device: set QMP= (a QMP socket "
				  "of that VM) and HotplugBus= (free pcie-root-ports), or use Attachment=shmem");
	if (!w->n_bus)
		return vp_err_set(e, -EINVAL,
				  "HotplugBus= names no pcie-root-port of the device VM to plug the memory into");
	if (!vp_is_pow2(req->size))
		return vp_err_set(e, -EINVAL,
				  "ivshmem memory must be a power of two, the driver VM's file has %llu MiB: give the "
				  "driver VM such a size, or use Attachment=shmem",
				  (unsigned long long)req->size >> 20);
	if (!vp_qmp_is_up(w->qmp))
		return vp_err_set(e, -EAGAIN, "QMP %s: %.120s", w->l->qmp, vp_qmp_why(w->qmp));
	if (left_behind(w))
		return vp_err_set(e, -EAGAIN, "the device VM has not released the windows of an earlier daemon yet");
	return 0;
}

static int handshake(struct wdev *v, int memfd, int *theirs, struct vp_err *e)
{
	int sv[2], r;

	/* seccomp control: socketpair(arg0 == AF_UNIX) */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return vp_err_set(e, -errno, "socketpair: %m");
	v->sock = sv[0];
	*theirs = sv[1];
	r = vp_ivshmem_send(v->sock, 0, -1);  /* protocol version */
	if (!r)
		r = vp_ivshmem_send(v->sock, v->id, -1);
	if (!r)
		r = vp_ivshmem_send(v->sock, -1, memfd);
	return r ? vp_err_set(e, r, "handshake: %s", strerror(-r)) : 0;
}

int vp_ivwins_give(struct vp_ivwins *w, const struct vp_port_window *req, uint64_t *locator, struct vp_err *e)
{
	int theirs = -1, bus, r = check(w, req, e);
	struct wdev *v;
	uint32_t id;

	if (r)
		return r;
	bus = free_bus(w);
	if (bus < 0)
		return vp_err_set(
			e, -ENOSPC,
			"all %u root ports of HotplugBus= are in use; add more to the device VM and to the list",
			w->n_bus);
	id = vp_winid_take(w->ids);
	if (!id)
		return vp_err_set(e, -ENOSPC, "the device VM has a device for every window id there is");
	v = vp_ivwins_wdev(w, (int)req->slot);
	if (!v) {
		vp_winid_release(w->ids, id);
		return -ENOMEM;
	}
	v->bus = bus;
	v->id = id;
	v->state = W_ADDING;
	snprintf(v->dev, sizeof(v->dev), "%s%04x", w->prefix, v->id);
	vp_ivwins_name_chardev(v);
	r = handshake(v, req->fd, &theirs, e);
	if (!r)
		r = vp_qmp_call(w->qmp, "getfd", json_pack("{s:s}", "fdname", v->chr), theirs, step_done, v);
	vp_close(&theirs);
	if (!r)
		r = vp_qmp_call(w->qmp, "chardev-add",
				json_pack("{s:s,s:{s:s,s:{s:{s:s,s:{s:s}},s:b}}}", "id", v->chr, "backend", "type",
					  "socket", "data", "addr", "type", "fd", "data", "str", v->chr, "server", 0),
				-1, step_done, v);
	if (!r)
		r = vp_qmp_call(w->qmp, "device_add",
				/* Without addr QEMU plugs it in beside whatever is behind the root port. */
				json_pack("{s:s,s:s,s:s,s:s,s:s,s:i}", "driver", "ivshmem-doorbell", "id", v->dev,
					  "chardev", v->chr, "bus", w->bus[bus], "addr", "0", "vectors", 1),
				-1, device_added, v);
	if (r) {
		/* Commands that went out complete later with v as their argument: it stays until QMP is lost. */
		v->slot = -1;
		v->unwanted = true;
		return e->code ? r : vp_err_set(e, r, "QMP: %s", strerror(-r));
	}
	*locator = v->id;
	return VP_LATER;
}

int vp_ivwins_take(struct vp_ivwins *w, unsigned slot)
{
	for (struct wdev *v = w->list; v; v = v->next)
		if (v->slot == (int)slot && !v->unwanted) {
			wdev_remove(v);
			return VP_LATER;
		}
	return 0;
}

void vp_ivwins_lost(struct vp_ivwins *w)
{
	for (struct wdev *v = w->list; v; v = v->next) {
		v->slot = -1;
		v->unwanted = true;
		if (v->state == W_PLUGGED && vp_qmp_is_up(w->qmp))
			wdev_remove(v);
	}
}

/* ---- QMP ------------------------------------------------------------------------------------------------------- */

static void on_event(void *ctx, const char *name, json_t *data)
{
	struct vp_ivwins *w = ctx;
	const char *id = json_string_value(json_object_get(data, "device"));

	if (!strcmp(name, "RESET")) {
		vp_port_guest_reset(w->port);
		return;
	}

	if (strcmp(name, "DEVICE_DELETED") || !id)
		return;
	for (struct wdev *v = w->list; v; v = v->next) {
		/* While the answer to its device_add is owed it was not there: that frees it, if it was refused. */
		if (strcmp(v->dev, id) || v->state == W_ADDING)
			continue;
		vanished(v);
		return;
	}
}

/* The id in the name of a window device, of whatever link; 0 = this is none. */
static uint32_t id_of(const char *name)
{
	size_t len = strlen(name);
	char *end;
	uint32_t id;

	if (strncmp(name, DEV_PREFIX, strlen(DEV_PREFIX)) || len < strlen(DEV_PREFIX) + 5 || name[len - 5] != '-')
		return 0;
	id = (uint32_t)strtoul(name + len - 4, &end, 16);
	return *end ? 0 : id;
}

/* A device of the VM that an earlier daemon plugged in, and that nobody here knows. */
static struct wdev *adopt(struct vp_ivwins *w, const char *name)
{
	struct wdev *v = vp_ivwins_wdev(w, -1);

	if (!v)
		return NULL;
	v->state = W_PLUGGED;
	v->unwanted = true;
	v->id = id_of(name);
	vp_winid_adopt(w->ids, v->id);
	snprintf(v->dev, sizeof(v->dev), "%s", name);
	vp_ivwins_name_chardev(v);
	vp_log(VP_LOG_INFO, "%s: removing window device %s of an earlier daemon", w->name, name);
	return v;
}

/*
 * Which of ours are plugged. The VMM says what it likes: neither the list that is walked nor the one that is made gets
 * long.
 */
static void mark_seen(struct vp_ivwins *w, json_t *ret)
{
	unsigned n_left = 0;
	struct wdev *v;
	json_t *o;
	size_t i;

	for (v = w->list; v; v = v->next) {
		v->seen = v->state == W_ADDING;
		n_left += v->bus < 0;
	}
	json_array_foreach(ret, i, o) {
		const char *name = json_string_value(json_object_get(o, "name"));

		if (i == LIST_MAX)
			break;
		if (name)
			vp_winid_seen(w->ids, id_of(name));
		if (!name || strncmp(name, w->prefix, strlen(w->prefix)) || strlen(name) != strlen(w->prefix) + 4)
			continue;
		for (v = w->list; v; v = v->next)
			if (!strcmp(v->dev, name))
				break;
		if (!v && n_left++ < VP_IVWINS_LEFT)
			v = adopt(w, name);
		if (v)
			v->seen = true;
	}
	if (n_left > VP_IVWINS_LEFT || json_array_size(ret) > LIST_MAX)
		vp_log(VP_LOG_WARNING,
		       "%s: the device VM says that it has %zu devices, %u of them windows of an earlier daemon; only "
		       "the first %u are removed",
		       w->name, json_array_size(ret), n_left, VP_IVWINS_LEFT);
}

void vp_ivwins_on_list(void *arg, json_t *ret, const char *err)
{
	struct vp_ivwins *w = arg;
	struct wdev *v, *next;

	/* One that follows knows better. */
	if (--w->asked)
		return;
	w->listed = true;
	if (!ret)
		return;
	vp_winids_listed(w->ids);
	mark_seen(w, ret);
	for (v = w->list; v; v = next) {
		next = v->next;
		if (!v->seen)
			vanished(v);
		else if (v->unwanted && v->state != W_ADDING)
			wdev_remove(v);
	}
	if (!left_behind(w))
		vp_port_windows_retry(w->port);
}

static void on_up(void *ctx)
{
	struct vp_ivwins *w = ctx;

	w->asked++;
	if (vp_qmp_call(w->qmp, "qom-list", json_pack("{s:s}", "path", "/machine/peripheral"), -1, vp_ivwins_on_list,
			w))
		w->asked--;
}

/* Commands in flight have failed by now. Whether the VM is gone too is seen on the port's own connection. */
static void on_down(void *ctx)
{
	struct vp_ivwins *w = ctx;
	struct wdev *v, *next;

	w->listed = false;
	for (v = w->list; v; v = next) {
		next = v->next;
		if (v->state == W_ADDING)
			wdev_free(v, false);  /* its device_add was never answered */
		else if (v->slot < 0)
			wdev_free(v, false);  /* found again by vp_ivwins_on_list() if it still exists */
		else
			sd_event_source_disable_unref(v->timer), v->timer = NULL;
	}
}

static bool on_allowed(void *ctx, uid_t uid)
{
	struct vp_ivwins *w = ctx;

	return vp_policy_user_ok(vp_conf_vm_find(w->d->conf, w->l->side[VP_SIDE_DEVICE].vm), uid, geteuid());
}

static void touch(void *ctx)
{
	struct vp_ivwins *w = ctx;

	w->c->touch(w->c->ctx);
}

const struct vp_qmp_ops vp_ivwins_qmp_ops = {
	.up = on_up, .down = on_down, .event = on_event, .allowed = on_allowed, .touch = touch,
};

/* In the record of another version these stand for the same. */
const vp_qmp_done vp_ivwins_calls[VP_IVWINS_CALLS] = { step_done, device_added, looked, del_done, chardev_removed };

void vp_ivwins_wait_on(struct wdev *v)
{
	if (v->state == W_PLUGGED)
		arm(v, BAR_LOOK_US, on_look);
	else if (v->state == W_REMOVING)
		arm(v, DEL_AGAIN_US, on_del_again);
}

void vp_ivwins_show(struct vp_ivwins *w, json_t *o)
{
	json_t *a = json_array();

	for (struct wdev *v = w->list; v; v = v->next)
		json_array_append_new(a, json_pack("{s:s,s:s,s:s,s:s?}", "device", v->dev, "bus",
						   v->bus >= 0 ? w->bus[v->bus] : "?", "state",
						   v->state == W_ADDING	   ? "adding"
						   : v->state == W_PLUGGED ? "plugged"
									   : "removing",
						   "error", v->error[0] ? v->error : NULL));
	json_object_set_new(o, "window_devices", a);
	json_object_set_new(o, "plugged", json_integer((json_int_t)w->n_plugged));
	json_object_set_new(o, "unplugged", json_integer((json_int_t)w->n_unplugged));
	json_object_set_new(o, "qmp", !w->qmp ? json_null() : vp_qmp_is_up(w->qmp) ? json_string("connected") :
			    json_string(vp_qmp_why(w->qmp)));
}

static void take_buses(struct vp_ivwins *w)
{
	char *save = NULL, *b;

	w->n_bus = w->next_bus = 0;
	w->bus[VP_IVWINS_BUSES] = "?";
	snprintf(w->buses, sizeof(w->buses), "%s", w->l->hotplug_bus);
	for (b = strtok_r(w->buses, " ", &save); b && w->n_bus < VP_IVWINS_BUSES; b = strtok_r(NULL, " ", &save))
		w->bus[w->n_bus++] = b;
}

static int take_qmp(struct vp_ivwins *w, struct vp_err *e)
{
	mode_t mode = vp_conf_socket_file_mode(w->d->conf, w->l->side[VP_SIDE_DEVICE].vm);

	if (!w->l->qmp[0])
		return 0;
	return vp_qmp_new(&w->qmp, w->d->event, w->l->qmp, w->l->qmp_mode == VP_SOCKET_SERVER ? mode : 0, w->name,
			  &vp_ivwins_qmp_ops, w, e);
}

int vp_ivwins_alter(struct vp_ivwins *w, struct vp_conf_link *l, const struct vp_conf_link *next, struct vp_err *e)
{
	char was[VP_CONF_BUS_MAX];

	vp_qmp_free(w->qmp);
	w->qmp = NULL;
	on_down(w);
	memcpy(was, w->buses, sizeof(was));
	vp_conf_take(VP_CONF_LINK, l, next, VP_EFFECTS_IN_PLACE);
	for (struct wdev *v = w->list; v; v = v->next)
		if (v->bus >= 0)
			v->bus = v->bus < VP_IVWINS_BUSES ? (int)(w->bus[v->bus] - w->buses) : -2;
	take_buses(w);
	for (struct wdev *v = w->list; v; v = v->next) {
		unsigned i = 0;

		if (v->bus == -1)
			continue;
		while (i < w->n_bus && (v->bus < 0 || strcmp(w->bus[i], was + v->bus)))
			i++;
		v->bus = i < w->n_bus ? (int)i : VP_IVWINS_BUSES;
	}
	return take_qmp(w, e);
}

int vp_ivwins_new(struct vp_ivwins **out, const struct vp_attach_conf *c, struct vp_port *p, struct vp_err *e)
{
	struct vp_ivwins *w = calloc(1, sizeof(*w));
	int r = 0;

	if (!w)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	w->c = c;
	w->d = c->d;
	w->l = c->link;
	w->name = c->name;
	w->port = p;
	snprintf(w->prefix, sizeof(w->prefix), DEV_PREFIX "%s-", w->l->name);
	take_buses(w);
	w->ids = vp_winids_get(w->l->side[VP_SIDE_DEVICE].vm);
	if (!w->ids)
		r = vp_err_set(e, -ENOMEM, "%s: out of memory", w->name);
	if (!r && !c->heir)
		r = take_qmp(w, e);
	if (r) {
		vp_winids_put(w->ids);
		free(w);
		return r;
	}
	*out = w;
	return 0;
}

void vp_ivwins_recover(struct vp_ivwins *w)
{
	w->listed = false;
	vp_winids_jump(w->ids);
}

void vp_ivwins_go_on(struct vp_ivwins *w)
{
	if (!w->listed && vp_qmp_is_up(w->qmp))
		on_up(w);
}

void vp_ivwins_leave(struct vp_ivwins *w)
{
	if (!w)
		return;
	vp_qmp_leave(w->qmp);
	/* Other links go by the ids: these may be in use still. */
	while (w->list)
		wdev_free(w->list, false);
	vp_winids_put(w->ids);
	free(w);
}

void vp_ivwins_free(struct vp_ivwins *w)
{
	if (!w)
		return;
	w->freeing = true;
	for (struct wdev *v = w->list; v; v = v->next)
		if (v->state == W_PLUGGED && w->qmp)
			vp_qmp_call(w->qmp, "device_del", json_pack("{s:s}", "id", v->dev), -1, NULL, NULL);
	vp_qmp_free(w->qmp);
	while (w->list)
		wdev_free(w->list, false);
	vp_winids_put(w->ids);
	free(w);
}
