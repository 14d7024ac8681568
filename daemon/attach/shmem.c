/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The shmem attachment: QEMU's generic vhost-user device (11.1 and later) with shared memory regions
 * (docs/spec.md, "shmem").
 *
 * Threat model: the front-end is the device VM's VMM, and its guest may have taken it over. The session
 * has checked the messages; ring addresses are checked here against the device VM's memory. The
 * forwarder's thread uses the rings, under a lock. A broken ring loses its signal, nothing else.
 *
 * QEMU does not survive some things (seen with 11.1): MAP or UNMAP while the device is not started,
 * CONFIGURE_MEM_SLOTS on this connection, and sizes of the regions whose sum is not a power of two.
 * Hence the daemon makes requests only while every ring is started and enabled, none after a stop, and
 * none between the answer to DETACH and the next ATTACH (port.c gives windows only while attached).
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#include "attach/shmem_priv.h"
#include "base/blame.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/types.h"
#include "context/context.h"
#include "device/device.h"
#include "conf/policy.h"
#include "port/sring.h"
#include "sys/slow.h"

/* ---- signals to the guest (forwarder's thread) -------------------------------------------------------- */

static void fire(void *arg)
{
	struct sring *r = arg;
	struct shmem *s = r->s;
	const uint64_t one = 1;

	pthread_mutex_lock(&s->lock);
	/* seccomp control: write; signal: write */
	if (!r->live || !vp_sring_return(&r->vq, s->burst) || r->call_fd < 0) {
		/* nobody wants to know */
	} else if (vp_blame_held(s->c.who)) {
		vp_vq_break(&r->vq, VP_VQ_BAD_CALL);
	} else if (write(r->call_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
		vp_blame(s->c.who);  /* it blocks: a VMM that is up to no good */
		vp_vq_break(&r->vq, VP_VQ_BAD_CALL);
	}
	pthread_mutex_unlock(&s->lock);
}

/* ---- requests ------------------------------------------------------------------------------------------- */

static void online(struct shmem *s, bool on)
{
	if (s->mapped == on)
		return;
	s->mapped = on;
	if (!on)
		memset(s->ext, 0, sizeof(s->ext));  /* QEMU drops its mappings when the device stops */
	vp_port_online(s->port, on);
	s->c.wires_changed(s->c.ctx);
	if (on)
		vp_eventfd_raise(s->sig0);
}

static int ask_unmap(struct shmem *s, unsigned slot);

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void extent_free(struct shmem *s, unsigned slot)
{
	s->ext[slot].len = 0;
	vp_port_record_map(s->port, slot, 0, 0);
}

/* Nobody may believe that it has gone: whoever waits for that waits until the VMM has ended, or its device. */
static void not_taken(struct shmem *s, unsigned slot, int why)
{
	if (!s->stuck)
		vp_log(VP_LOG_ERR,
		       "%s: the VMM has not unmapped window %u: %s; the window counts as there until its device stops",
		       s->c.name, slot,
		       why == -EREMOTEIO ? "it refused" : "its request channel has gone");
	s->stuck = true;
}

static void ask_owed(struct shmem *s)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS && s->started; i++)
		if (s->ext[i].owed && ask_unmap(s, i))
			break;
}

void vp_shmem_request_done(void *arg, int result)
{
	struct request *q = arg;
	struct shmem *s = q->s;
	unsigned slot = q->slot;
	uint64_t asked_ns = q->asked_ns;
	bool map = q->map, mine = q->epoch == s->epoch && s->started;

	vp_slow_end(&q->slow);
	free(q);
	if (!mine)
		return;
	s->n_failed += result != 0;
	*(map ? &s->map_ns : &s->unmap_ns) += slot < VHP_MAX_WINDOWS ? now_ns() - asked_ns : 0;
	/* No answer: it may have mapped it or not. */
	if (result == -ECANCELED && slot < VHP_MAX_WINDOWS) {
		not_taken(s, slot, result);
		return;
	}
	if (slot == VHP_MAX_WINDOWS) {
		if (result)
			vp_log(VP_LOG_ERR, "%s: the VMM refused to map the control block; is this QEMU 11.1 or later?",
			       s->c.name);
		else
			online(s, true);
	} else if (map) {
		if (result)
			extent_free(s, slot);
		vp_port_window_given(s->port, slot, result, result ? "the VMM refused the mapping; see its log" : NULL);
	} else if (result) {
		not_taken(s, slot, result);
	} else {
		extent_free(s, slot);
		vp_port_window_taken(s->port, slot);
	}
	ask_owed(s);
}

static struct request *request_new(struct shmem *s, unsigned slot, bool map)
{
	struct request *q = malloc(sizeof(*q));

	if (q)
		*q = (struct request){
			.s = s, .epoch = s->epoch, .slot = slot, .map = map, .asked_ns = now_ns()
		};
	return q;
}

void vp_shmem_request_await(struct request *q)
{
	static const char way[] = "the device VM's VMM is stopped or busy, look at that process; the link waits for it";
	const char *verb = q->map ? "SHMEM_MAP" : "SHMEM_UNMAP";
	struct shmem *s = q->s;

	if (q->slot == VHP_MAX_WINDOWS)
		vp_slow_begin(&q->slow, s->c.d->event, way, "%s: %s of the control block", s->c.name, verb);
	else
		vp_slow_begin(&q->slow, s->c.d->event, way, "%s: %s of window %u", s->c.name, verb, q->slot);
}

static void map_control(struct shmem *s)
{
	struct request *q = request_new(s, VHP_MAX_WINDOWS, true);
	int r;

	if (!q)
		return;
	r = vu_backend_shmem_map(vp_shmem_session(s), VHP_SHMEM_REGION_CTRL, vp_port_memfd(s->port, NULL), 0, 0,
				 VHP_CTRL_SIZE, VU_SHMEM_MAP_RW, vp_shmem_request_done, q);
	vp_peer_rearm(s->peer);
	if (r) {
		free(q);
		vp_log(VP_LOG_ERR,
		       "%s: the control block cannot be mapped: %s; the device needs QEMU 11.1 or later with shared "
		       "memory regions",
		       s->c.name, strerror(-r));
		return;
	}
	vp_shmem_request_await(q);
}

/*
 * A place in region 1, such that the address in the BAR (region 1 starts at VHP_CTRL_SIZE of it) and
 * the offset in the file agree modulo the largest page that may back it. UINT64_MAX = there is no room.
 */
static uint64_t place(const struct shmem *s, uint64_t file_off, uint64_t len)
{
	uint64_t size = s->c.link->aperture - VHP_CTRL_SIZE;
	uint64_t align = len >= UINT64_C(1) << 30   ? UINT64_C(1) << 30
			 : len >= UINT64_C(2) << 20 ? UINT64_C(2) << 20
						    : 4096;
	uint64_t want = (file_off - VHP_CTRL_SIZE) & (align - 1), at = want;

	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		const struct extent *x = &s->ext[i];

		if (!x->len || at >= x->off + x->len || x->off >= at + len)
			continue;
		/* Behind it, and through all of them again: the extents are in no order. */
		at = x->off + x->len;
		at += (want - at) & (align - 1);
		i = (unsigned)-1;
	}
	return at <= size && len <= size - at ? at : UINT64_MAX;
}

static int give(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e)
{
	struct shmem *s = att;
	uint64_t at = place(s, w->offset, w->size);
	struct request *q;
	int r;

	if (at == UINT64_MAX)
		return vp_err_set(e, -ENOSPC, "no room for %llu MiB in the aperture of %llu GiB; raise ApertureSize=",
				  (unsigned long long)w->size >> 20, (unsigned long long)s->c.link->aperture >> 30);
	q = request_new(s, w->slot, true);
	if (!q || !s->started) {
		free(q);
		return -ENOTCONN;
	}
	vp_port_record_map(s->port, w->slot, at, w->size);
	r = vu_backend_shmem_map(vp_shmem_session(s), VHP_SHMEM_REGION_APERTURE, w->fd, w->offset, at, w->size,
				 VU_SHMEM_MAP_RW, vp_shmem_request_done, q);
	vp_peer_rearm(s->peer);
	if (r) {
		free(q);
		vp_port_record_map(s->port, w->slot, 0, 0);
		return vp_err_set(e, r, "the VMM cannot be asked to map it: %s", strerror(-r));
	}
	vp_shmem_request_await(q);
	s->n_maps++;
	s->ext[w->slot] = (struct extent){ at, w->size };
	*kind = VHP_WINDOW_SHMEM;
	*locator = at;
	return VP_LATER;
}

/* 0: asked, or it never will be; else the request waits for the answer of another one. */
static int ask_unmap(struct shmem *s, unsigned slot)
{
	struct request *q = request_new(s, slot, false);
	int r = -ENOMEM;

	vp_port_record_unmapping(s->port, slot);
	if (q)
		r = vu_backend_shmem_unmap(vp_shmem_session(s), VHP_SHMEM_REGION_APERTURE, s->ext[slot].off,
					   s->ext[slot].len, vp_shmem_request_done, q);
	vp_peer_rearm(s->peer);
	s->ext[slot].owed = r == -EBUSY || r == -ENOBUFS || r == -ENOMEM || r == -EMFILE;
	s->n_unmaps += !r;
	if (r)
		free(q);
	else
		vp_shmem_request_await(q);
	if (r && !s->ext[slot].owed)
		not_taken(s, slot, r);
	return s->ext[slot].owed ? r : 0;
}

static int take(void *att, unsigned slot)
{
	struct shmem *s = att;

	if (!s->started || !s->ext[slot].len)
		return 0;
	ask_unmap(s, slot);
	return VP_LATER;
}

static void signal_guest(void *att, unsigned i)
{
	struct shmem *s = att;

	if (!i)
		vp_eventfd_raise(s->sig0);
}

static const struct vp_port_att_ops port_ops = { .give = give, .take = take, .signal = signal_guest };

/* ---- the device's rings ------------------------------------------------------------------------------------ */

static int on_bell(sd_event_source *src, int fd, uint32_t revents, void *arg)
{
	struct shmem *s = arg;

	vp_port_command(s->port);
	return 0;
}

void vp_shmem_watch_bell(struct shmem *s)
{
	vp_source_end(&s->bell_io);
	/* Edge-triggered and never read: the other end shares the file. */
	if (s->ring[0].kick_fd >= 0 &&
	    vp_source_add(&s->bell_io, s->c.d->event, s->ring[0].kick_fd, EPOLLIN | EPOLLET, on_bell, s) >= 0)
		vp_source_limit(s->bell_io, 100000, 500);
}

static void stopped(struct shmem *s)
{
	if (!s->started)
		return;
	s->started = s->stuck = false;
	s->epoch++;
	vp_log(VP_LOG_DEBUG, "%s: the device has stopped", s->c.name);
	online(s, false);
	vp_source_end(&s->bell_io);
}

/* Then nothing is mapped any more. When its connection ends that is not said. */
static void stopped_by_vmm(struct shmem *s)
{
	if (s->started)
		vp_port_record_no_maps(s->port);
	stopped(s);
}

static void maybe_started(struct shmem *s)
{
	if (s->started)
		return;
	for (unsigned i = 0; i < s->nsig; i++)
		if (!s->ring[i].started || !s->ring[i].enabled)
			return;
	s->started = true;
	vp_port_record_no_maps(s->port);
	s->epoch++;
	s->n_starts++;
	vp_log(VP_LOG_DEBUG, "%s: the device has started", s->c.name);
	vp_shmem_watch_bell(s);
	map_control(s);
}

static int take_fd(struct shmem *s, unsigned i, enum vu_ring_change which, int *slot, struct vp_err *e)
{
	int fd = vu_backend_take_fd(vp_shmem_session(s), i, which);

	if (fd >= 0 && !vp_is_eventfd(fd)) {
		vp_close_foreign(&fd);
		return vp_err_set(e, -EINVAL, "queue %u: an fd is not an eventfd", i);
	}
	vp_close(slot);
	*slot = fd;
	return 0;
}

int vp_shmem_ring_bind(struct shmem *s, unsigned i, const struct vu_ring *vr, struct vp_err *e)
{
	struct sring *r = &s->ring[i];
	struct vp_vq_conf c = {
		.size = (uint16_t)vr->num, .base = r->live ? vp_vq_base(&r->vq) : vr->base,
		.features = VP_BIT(VIRTIO_F_VERSION_1), .tab = s->tab,
	};

	r->live = false;
	if (!s->tab || vp_memtab_uva_to_gpa(s->tab, vr->desc, vp_vq_desc_bytes(c.size), &c.desc) ||
	    vp_memtab_uva_to_gpa(s->tab, vr->avail, vp_vq_driver_bytes(c.size, false), &c.driver) ||
	    vp_memtab_uva_to_gpa(s->tab, vr->used, vp_vq_device_bytes(c.size, false), &c.device))
		return vp_err_set(e, -EFAULT, "queue %u does not lie in the device VM's memory", i);
	r->live = !vp_vq_start(&r->vq, &c, e);
	/* Regions that could not be mapped are in the table all the same. */
	if (!r->live && s->unmapped[0])
		vp_err_set(e, -EFAULT, "queue %u lies in memory that is not mapped: %s", i, s->unmapped);
	return r->live ? 0 : -EFAULT;
}

static int on_ring_changed(void *ctx, unsigned i, unsigned what, struct vp_err *e)
{
	struct shmem *s = ctx;
	const struct vu_ring *vr = vu_backend_ring(vp_shmem_session(s), i);
	struct sring *r;
	bool started = s->started;
	int ret = 0;

	if (i >= s->nsig)
		return 0;  /* the device has more queues than there are signals */
	r = &s->ring[i];
	pthread_mutex_lock(&s->lock);
	if (what & (VU_RING_STARTED | VU_RING_CALL) && vr->call_fd >= 0)
		ret = take_fd(s, i, VU_RING_CALL, &r->call_fd, e);
	if (!ret && what & (VU_RING_STARTED | VU_RING_KICK))
		ret = take_fd(s, i, VU_RING_KICK, &r->kick_fd, e);
	if (!ret && what & VU_RING_STARTED) {
		r->live = false;
		ret = vp_shmem_ring_bind(s, i, vr, e);
		r->started = !ret;
	}
	pthread_mutex_unlock(&s->lock);
	r->enabled = vr->enabled;
	if (ret)
		vp_log(VP_LOG_WARNING, "%s: %s", s->c.name, e->code ? e->msg : strerror(-ret));
	if (!r->enabled)
		stopped_by_vmm(s);
	maybe_started(s);
	if (started && s->started && what & VU_RING_KICK) {
		if (!i)
			vp_shmem_watch_bell(s);
		s->c.wires_changed(s->c.ctx);
	}
	return ret;
}

static void ring_end(struct shmem *s, unsigned i)
{
	struct sring *r = &s->ring[i];

	pthread_mutex_lock(&s->lock);
	r->live = false;
	vp_close(&r->call_fd);
	pthread_mutex_unlock(&s->lock);
	r->started = r->enabled = false;
	vp_close(&r->kick_fd);
}

static int on_ring_stop(void *ctx, unsigned i, uint32_t *base, struct vp_err *e)
{
	struct shmem *s = ctx;

	if (i >= s->nsig)
		return 0;
	stopped_by_vmm(s);
	if (s->ring[i].live)
		*base = vp_vq_base(&s->ring[i].vq);
	ring_end(s, i);
	return 0;
}

static int on_mem_table(void *ctx, const struct vu_mem_region *m, int *fds, unsigned n, struct vp_err *e)
{
	struct vp_region_desc d[VU_MAX_TABLE_REGIONS] = { 0 };
	struct shmem *s = ctx;
	const char *vm = s->c.link->side[VP_SIDE_DEVICE].vm;
	struct vp_map_use was = vp_memtab_use(s->tab);
	struct vp_err why = { 0 };
	struct vp_memtab *tab = NULL, *old = s->tab;
	int r = 0;

	/*
	 * Our own windows come back in here, and come last. Only RAM matters; what is missed shows when
	 * a ring lies in it.
	 */
	for (unsigned i = 0; i < 2 * n; i++) {
		const struct vu_mem_region *g = &m[i % n];

		if (vp_port_lends(vm, fds[i % n]) != (i >= n))
			continue;
		d[i % n] = (struct vp_region_desc){
			.gpa = g->gpa, .size = g->size, .uva = g->uva, .offset = g->mmap_offset
		};
		vp_memory_map(&d[i % n].map, vm, fds[i % n], g->mmap_offset, g->size, &was, i < n ? &why : NULL);
	}
	snprintf(s->unmapped, sizeof(s->unmapped), "%.190s", why.msg);
	if (n)
		r = vp_memtab_build(&tab, d, n, e);
	for (unsigned i = 0; i < n; i++)
		vp_map_unref(d[i].map);
	if (r)
		return r;
	pthread_mutex_lock(&s->lock);
	s->tab = tab;
	for (unsigned i = 0; i < s->nsig; i++) {
		struct vp_err re = { 0 };

		if (s->ring[i].live && vp_shmem_ring_bind(s, i, vu_backend_ring(vp_shmem_session(s), i), &re))
			vp_log(VP_LOG_WARNING, "%s: %s", s->c.name, re.msg);
	}
	pthread_mutex_unlock(&s->lock);
	vp_memtab_free(old);  /* the lock was the grace period */
	return 0;
}

static int on_get_config(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e)
{
	struct shmem *s = ctx;
	struct vhp_abi_shmem_config c = { .abi_version = htole32(VHP_ABI_VERSION), .nsignals = htole32(s->nsig) };

	memcpy(c.magic, VHP_MAGIC, sizeof(c.magic));
	memset(buf, 0, len);
	if (off < sizeof(c))
		memcpy(buf, (uint8_t *)&c + off, VP_MIN(len, sizeof(c) - off));
	return 0;
}

static int on_set_config(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e)
{
	return 0;  /* nothing there is the guest's to change */
}

static int on_shmem_config(void *ctx, unsigned *n, uint64_t *sizes, struct vp_err *e)
{
	struct shmem *s = ctx;

	*n = 2;
	sizes[VHP_SHMEM_REGION_CTRL] = VHP_CTRL_SIZE;
	sizes[VHP_SHMEM_REGION_APERTURE] = s->c.link->aperture - VHP_CTRL_SIZE;
	return 0;
}

static void on_events_changed(void *ctx)
{
	struct shmem *s = ctx;

	vp_peer_rearm(s->peer);
}

static const struct vu_backend_ops vu_ops = {
	.mem_table = on_mem_table,
	.ring_changed = on_ring_changed,
	.ring_stop = on_ring_stop,
	.get_config = on_get_config,
	.set_config = on_set_config,
	.get_shmem_config = on_shmem_config,
	.events_changed = on_events_changed,
};

/* ---- the session ---------------------------------------------------------------------------------------------- */

static int dev_open(void *ctx, struct vu_backend_cfg *cfg, struct vp_err *e)
{
	*cfg = (struct vu_backend_cfg){
		.features = VP_BIT(VIRTIO_F_VERSION_1),
		.pf = VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_BACKEND_REQ) |
		      VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_SHMEM),
		.max_queues = VU_MAX_QUEUES,
		.max_ring_size = VP_VQ_MAX_SIZE,
		.msgs_per_sec = 200000,
	};
	return 0;
}

static void dev_opened(void *ctx)
{
}

static void dev_gone(struct shmem *s)
{
	stopped(s);
	for (unsigned i = 0; i < s->nsig; i++)
		ring_end(s, i);
	vp_memtab_free(s->tab);
	s->tab = NULL;
}

static void dev_closing(void *ctx)
{
	dev_gone(ctx);
}

static void dev_closed(void *ctx, const char *why)
{
	dev_gone(ctx);
}

static void dev_touch(void *ctx)
{
	struct shmem *s = ctx;

	s->c.touch(s->c.ctx);
}

static const struct vp_peer_ops peer_ops = {
	.touch = dev_touch,
	.open = dev_open, .opened = dev_opened, .closing = dev_closing, .closed = dev_closed,
	.save = vp_shmem_save_device, .restore = vp_shmem_restore_device,
};

/* ---- towards the link ------------------------------------------------------------------------------------------ */

static int shmem_wire(struct vp_attach *a, unsigned i, int src, struct vp_wire **out)
{
	struct shmem *s = (struct shmem *)a;

	if (i >= s->nsig)
		return -EINVAL;
	return vp_wire_new_fn(out, s->c.f, src, fire, &s->ring[i]);
}

static int shmem_call_fd(struct vp_attach *a, unsigned i)
{
	struct shmem *s = (struct shmem *)a;

	return i < s->nsig ? s->ring[i].kick_fd : -1;
}

static void shmem_last_signal(struct vp_attach *a, struct vp_lastsig_conf *c)
{
	struct shmem *s = (struct shmem *)a;
	const struct sring *r = &s->ring[0];
	int i = r->live ? vp_memtab_find(s->tab, r->vq.desc_addr) : -1;
	const struct vp_region *m = i >= 0 ? &s->tab->r[i] : NULL;

	if (!m || !m->map)
		return;
	c->call = r->call_fd;
	c->hold = vu_backend_fd(vp_shmem_session(s));
	c->req = vu_backend_req_fd(vp_shmem_session(s));
	c->ram = m->map->fd;
	c->num = r->vq.size;
	c->gpa = m->gpa;
	c->size = m->size;
	c->offset = m->offset;
	c->desc = r->vq.desc_addr;
	c->avail = r->vq.driver_addr;
	c->used = r->vq.device_addr;
}

static void shmem_show(struct vp_attach *a, json_t *o)
{
	struct shmem *s = (struct shmem *)a;
	struct vp_peer_info i;

	vp_peer_get_info(s->peer, &i);
	json_object_set_new(o, "connected", json_boolean(i.state == VP_PEER_CONNECTED));
	json_object_set_new(o, "pid", i.pid ? json_integer(i.pid) : json_null());
	json_object_set_new(o, "device_started", json_boolean(s->started));
	json_object_set_new(o, "last", i.last[0] ? json_string(i.last) : json_null());
	json_object_set_new(o, "starts", json_integer((json_int_t)s->n_starts));
	json_object_set_new(o, "maps", json_integer((json_int_t)s->n_maps));
	json_object_set_new(o, "unmaps", json_integer((json_int_t)s->n_unmaps));
	json_object_set_new(o, "map_us", json_integer((json_int_t)(s->map_ns / 1000)));
	json_object_set_new(o, "unmap_us", json_integer((json_int_t)(s->unmap_ns / 1000)));
	json_object_set_new(o, "maps_failed", json_integer((json_int_t)s->n_failed));
}

static void end(struct shmem *s)
{
	vp_wire_free(s->wire0);
	vp_close(&s->sig0);
	pthread_mutex_destroy(&s->lock);
	free(s->burst);
	free(s->ring);
	free(s);
}

static void shmem_free(struct vp_attach *a)
{
	struct shmem *s = (struct shmem *)a;

	if (!s)
		return;
	vp_peer_free(s->peer);
	end(s);
}

static void shmem_leave(struct vp_attach *a)
{
	struct shmem *s = (struct shmem *)a;

	vp_peer_leave(s->peer);
	end(s);
}

static void shmem_go_on(struct vp_attach *a)
{
	struct shmem *s = (struct shmem *)a;
	int r = vp_wire_new_fn(&s->wire0, s->c.f, s->sig0, fire, &s->ring[0]);

	if (r)
		vp_log(VP_LOG_ERR, "%s: its guest cannot be signalled: %s", s->c.name, strerror(-r));
}

static const struct vp_attach_ops attach_ops = {
	.at_rest = vp_shmem_at_rest, .save = vp_shmem_save, .restore = vp_shmem_restore,
	.save_hot = vp_shmem_save_hot, .restore_hot = vp_shmem_restore_hot, .go_on = shmem_go_on,
	.recover = vp_shmem_recover, .leave = shmem_leave,
	.windows_on_their_way = true,
	.free = shmem_free, .wire = shmem_wire, .call_fd = shmem_call_fd, .show = shmem_show,
	.last_signal = shmem_last_signal, .plugged = true,
};

void vp_shmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc)
{
	pc->attachment = VHP_ATTACHMENT_SHMEM;
	pc->nsignals = 1 + pc->max_queues;
	pc->driver_vm = l->side[VP_SIDE_DRIVER].vm;
	pc->device_vm = l->side[VP_SIDE_DEVICE].vm;
	pc->queue_doorbell = 1;
}

int vp_shmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e)
{
	struct shmem *s = calloc(1, sizeof(*s));
	char act[VP_CONF_NAME_MAX + 16];
	int r = 0;

	if (!s)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	s->a.ops = &attach_ops;
	s->c = *c;
	s->port = p;
	s->nsig = 1 + vp_type_queues(c->link);
	s->sig0 = -1;
	pthread_mutex_init(&s->lock, NULL);
	s->ring = calloc(s->nsig, sizeof(*s->ring));
	s->burst = calloc(1, sizeof(*s->burst));
	for (unsigned i = 0; s->ring && i < s->nsig; i++)
		s->ring[i] = (struct sring){ .s = s, .i = i, .call_fd = -1, .kick_fd = -1 };
	if (!s->ring || !s->burst)
		r = -ENOMEM;
	if (!r && !c->heir)
		r = vp_eventfd_new(&s->sig0);
	if (!r && !c->heir)
		r = vp_wire_new_fn(&s->wire0, c->f, s->sig0, fire, &s->ring[0]);
	if (r) {
		vp_err_set(e, r, "%s: %s", c->name, strerror(-r));
	} else {
		vp_port_set_attachment(p, &port_ops, s);
		snprintf(act, sizeof(act), "%s.device", c->link->name);
		r = vp_peer_new(&s->peer, c->d, c->name, act, &c->link->side[VP_SIDE_DEVICE], &peer_ops, &vu_ops, s, e);
	}
	if (r) {
		shmem_free(&s->a);
		return r;
	}
	*out = &s->a;
	return 0;
}
