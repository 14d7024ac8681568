// SPDX-License-Identifier: BSD-3-Clause
/*
 * The kernel data path: one stock vhost-net for each queue pair, with one queue pair of a tap
 * as its backend. The driver VM's memory is reached through the mappings of the windows in this
 * process, which vhost-net's worker borrows; kicks and calls are eventfds that the module
 * raises, so once set up no packet passes through user space.
 *
 * Threat model: the rings and buffers are hostile; it is vhost-net that parses them, as it does for any
 * guest. It reports malformed rings on the error eventfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vhost.h>
#include <linux/virtio_ids.h>

#include "base/log.h"
#include "base/util.h"
#include "datapath.h"
#include "vfeatures.h"
#include "tap.h"
#include "vhost.h"

#define VHOST_NET "/dev/vhost-net"

struct vn_queue {
	bool set;	/* ring set up, GET_VRING_BASE will be wanted */
	bool on;	/* backend attached */
	int err_fd;
};

/* vhost-net waits for it; told by its own IOTLB's misses. */
struct vn_miss {
	unsigned int pair;
	bool asked;	/* missing() has returned it */
	struct dp_missing m;
};

#define VN_MISSES 64

struct vhostnet {
	struct datapath dp;
	struct tap *tap;
	unsigned int npairs;
	unsigned int busy_poll_us;
	unsigned int max_regions;
	uint64_t features;	/* of this kernel's vhost-net */
	int fd[TAP_MAX_PAIRS];	/* one for each pair of the session; -1: not open */
	uint64_t acked;
	bool configured;
	const struct memmap *mem;	/* as set last; the engine's */
	bool grows;	/* vhost-net has link addresses, and asks for what it needs of the table */
	unsigned int nmisses;
	struct vn_miss miss[VN_MISSES];
	struct vn_queue q[2 * TAP_MAX_PAIRS];
};

#define VN(d) vp_container_of(d, struct vhostnet, dp)

static bool vn_ready(struct datapath *d)
{
	return true;
}

static void vn_features(struct datapath *d, uint64_t f[2])
{
	struct vhostnet *v = VN(d);

	f[0] = (v->features & ~VP_BIT(VHOST_F_LOG_ALL)) | v->tap->features | VP_NET_NEUTRAL;
	if (v->npairs > 1)
		f[0] |= VP_BIT(VIRTIO_NET_F_MQ);
	f[1] = 0;
}

static unsigned int vn_max_queues(struct datapath *d)
{
	return 2 * VN(d)->npairs;
}

/*
 * What vhost-net itself is told. Bit 27 means ANY_LAYOUT to a driver but "make the header yourself" to vhost-net;
 * ACCESS_PLATFORM would make it ask for translations, which the region table has already.
 */
static uint64_t vn_acked(const struct vhostnet *v, const uint64_t f[2])
{
	return (f[0] & v->features & ~(VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VHOST_NET_F_VIRTIO_NET_HDR) |
				       VP_BIT(VIRTIO_F_ACCESS_PLATFORM))) |
	       (v->grows ? VP_BIT(VIRTIO_F_ACCESS_PLATFORM) : 0);
}

/* ---- memory that comes as it is asked for: vhost-net's own IOTLB --------------------------------- */

static bool vn_tell(struct vhostnet *v, unsigned int pair, uint64_t addr)
{
	uint64_t uva;
	const struct mm_region *r = memmap_find(v->mem, addr, 1, &uva);

	return r && !vhost_iotlb_tell(v->fd[pair], r->addr, r->size, r->win->uva + r->offset);
}

/* Those that the table has by now are answered. */
static void vn_answer(struct vhostnet *v)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < v->nmisses; i++)
		if (!vn_tell(v, v->miss[i].pair, v->miss[i].m.addr))
			v->miss[n++] = v->miss[i];
	v->nmisses = n;
}

static void vn_forget(struct vhostnet *v, unsigned int pair, bool receives, bool sends)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < v->nmisses; i++) {
		const struct vn_miss *x = &v->miss[i];

		if (x->pair != pair || !(x->m.write ? receives : sends))
			v->miss[n++] = *x;
	}
	v->nmisses = n;
}

/* It reads what is sent to it and writes what it sends; rings are there from the start. */
static void vn_misses(struct vhostnet *v, unsigned int pair)
{
	uint64_t addr;
	bool write;

	while (vhost_iotlb_ask(v->fd[pair], &addr, &write)) {
		if (vn_tell(v, pair, addr) || v->nmisses == VN_MISSES)
			continue;
		v->miss[v->nmisses++] = (struct vn_miss){
			.pair = pair, .m = { .addr = addr, .write = write, .queue = 2 * pair + !write },
		};
	}
}

static unsigned int vn_missing(struct datapath *d, struct dp_missing *m, unsigned int n)
{
	struct vhostnet *v = VN(d);
	unsigned int k = 0;

	for (unsigned int i = 0; i < v->nmisses && k < n; i++) {
		if (v->miss[i].asked)
			continue;
		v->miss[i].asked = true;
		m[k++] = v->miss[i].m;
	}
	return k;
}

static void vn_set_grows(struct datapath *d, bool on)
{
	VN(d)->grows = on;
}

/* What the old table had and the new one has not, or elsewhere: vhost-net forgets it before the old one goes. */
static void vn_forget_regions(struct vhostnet *v, const struct memmap *old, const struct memmap *m)
{
	uint64_t uva;

	for (unsigned int i = 0; old && i < old->nregions; i++) {
		const struct mm_region *r = &old->r[i];

		if (memmap_find(m, r->addr, r->size, &uva) && uva == r->win->uva + r->offset)
			continue;
		for (unsigned int k = 0; k < v->npairs; k++)
			if (v->fd[k] >= 0)
				vhost_iotlb_tell(v->fd[k], r->addr, r->size, 0);
	}
}

/* Before it is started, vhost-net looks at a ring, and does not wait for what it misses then. */
static void vn_tell_ring(struct vhostnet *v, unsigned int q, const struct dp_queue *c)
{
	const uint64_t area[3][2] = {
		{ c->addr.desc, 16 * (uint64_t)c->size },
		{ c->addr.avail, 6 + 2 * (uint64_t)c->size },
		{ c->addr.used, 6 + 8 * (uint64_t)c->size },
	};

	for (unsigned int i = 0; i < 3; i++) {
		vn_tell(v, q / 2, area[i][0]);
		vn_tell(v, q / 2, area[i][0] + area[i][1] - 1);
	}
}

static int vn_open_pair(struct vhostnet *v, unsigned int pair, struct vp_err *e);

static void vn_close_pair(struct vhostnet *v, unsigned int pair)
{
	vn_forget(v, pair, true, true);
	vp_close(&v->fd[pair]);
	for (unsigned int i = 2 * pair; i < 2 * pair + 2; i++) {
		vp_close(&v->q[i].err_fd);
		v->q[i].set = v->q[i].on = false;
	}
}

static int vn_configure(struct datapath *d, const uint64_t features[2], struct vp_err *e)
{
	struct vhostnet *v = VN(d);
	int rc = tap_configure(v->tap, features, e);

	if (rc)
		return rc;
	v->acked = vn_acked(v, features);
	v->configured = true;
	return 0;
}

static int vn_mem(struct vhostnet *v, unsigned int pair, const struct memmap *m, struct vp_err *e)
{
	static const struct memmap none;

	return vhost_set_mem(v->fd[pair], "vhost-net", v->max_regions, v->grows ? &none : m, e);
}

static int vn_set_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	struct vhostnet *v = VN(d);
	int rc;

	if (v->grows) {
		vn_forget_regions(v, v->mem, m);
		v->mem = m;
		for (unsigned int i = 0; i < v->nmisses; i++)
			v->miss[i].asked = false;
		vn_answer(v);
		return 0;
	}
	if (m->nregions > v->max_regions)
		return vn_mem(v, 0, m, e);	/* the same error, before anything is open */
	for (unsigned int i = 0; i < v->npairs; i++) {
		if (v->fd[i] < 0)
			continue;
		rc = vn_mem(v, i, m, e);
		if (rc)
			return rc;
	}
	v->mem = m;
	return 0;
}

static int vn_open_pair(struct vhostnet *v, unsigned int pair, struct vp_err *e)
{
	int rc;

	if (v->fd[pair] >= 0)
		return 0;
	v->fd[pair] = open(VHOST_NET, O_RDWR | O_CLOEXEC);
	if (v->fd[pair] < 0 || ioctl(v->fd[pair], VHOST_SET_OWNER, NULL) < 0 ||
	    ioctl(v->fd[pair], VHOST_SET_FEATURES, &v->acked) < 0) {
		rc = vp_err_set(e, -errno, "vhost-net cannot be set up for queue pair %u with features %#llx: %s", pair,
				(unsigned long long)v->acked, strerror(errno));
		goto fail;
	}
	rc = v->grows ? vhost_iotlb_on(v->fd[pair]) : 0;
	if (rc) {
		vp_err_set(e, rc, "vhost-net cannot ask for memory (IOTLB messages): %s", strerror(-rc));
		goto fail;
	}
	rc = vn_mem(v, pair, v->mem, e);
	if (rc)
		goto fail;
	return 0;
fail:
	vn_close_pair(v, pair);
	return rc;
}

static int vn_backend(struct vhostnet *v, unsigned int q, int fd)
{
	struct vhost_vring_file f = { .index = q & 1, .fd = fd };

	return ioctl(v->fd[q / 2], VHOST_NET_SET_BACKEND, &f) < 0 ? -errno : 0;
}

static int vn_start(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	struct vhostnet *v = VN(d);
	struct dp_queue at = *c;
	int rc;

	rc = vn_open_pair(v, q / 2, e);
	if (rc)
		return rc;
	if (v->grows) {
		at.ring = c->addr;
		vn_tell_ring(v, q, c);
	}
	if (v->q[q].err_fd < 0)
		v->q[q].err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = vhost_ring(v->fd[q / 2], "vhost-net", q & 1, &at, v->q[q].err_fd, e);
	if (rc)
		return rc;
	if (v->busy_poll_us) {
		rc = vhost_state(v->fd[q / 2], q & 1, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, v->busy_poll_us);
		if (rc)
			return vp_err_set(e, rc, "vhost-net refuses busy polling: %s", strerror(-rc));
	}
	v->q[q].set = true;
	return 0;
}

static int vn_enable(struct datapath *d, unsigned int q, bool on, struct vp_err *e)
{
	struct vhostnet *v = VN(d);
	unsigned int pair = q / 2;
	int rc;

	/* The tap's pair must be attached to the interface before vhost-net uses it, and detached after. */
	if (on) {
		rc = tap_queue(v->tap, pair, true, e);
		if (rc)
			return rc;
	}
	rc = vn_backend(v, q, on ? v->tap->fd[pair] : -1);
	if (rc)
		return vp_err_set(e, rc, "vhost-net refuses the backend %s: %s", v->tap->name, strerror(-rc));
	v->q[q].on = on;
	if (!v->q[2 * pair].on && !v->q[2 * pair + 1].on)
		return tap_queue(v->tap, pair, false, e);
	return 0;
}

static int vn_stop(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct vhostnet *v = VN(d);

	if (v->fd[q / 2] < 0 || !v->q[q].set)
		return -ENODATA;
	/* Waits until the worker has left the ring: afterwards all used entries are visible. */
	if (v->q[q].on)
		vn_enable(d, q, false, e);
	v->q[q].set = false;
	vn_forget(v, q / 2, !(q & 1), q & 1);
	return vhost_ring_end(v->fd[q / 2], "vhost-net", q & 1, base, e);
}

static void vn_reset(struct datapath *d)
{
	struct vhostnet *v = VN(d);

	for (unsigned int i = 0; i < v->npairs; i++) {
		struct vp_err e;

		vn_close_pair(v, i);
		tap_queue(v->tap, i, false, &e);
	}
	v->mem = NULL;
	v->configured = false;
}

static void vn_config(struct datapath *d, const struct dp_config *c)
{
	struct vhostnet *v = VN(d);
	struct virtio_net_config n = { 0 };
	struct vp_err e = { 0 };
	uint16_t mtu;

	memcpy(&n, c->data, VP_MIN(c->size, sizeof(n)));
	if (vp_has(c->features, VIRTIO_NET_F_MAC) && c->size >= 6 && tap_avoid_mac(v->tap, n.mac, &e))
		vp_log(VP_LOG_WARNING, "%s", e.msg);
	mtu = (uint16_t)(c->data[10] | c->data[11] << 8);
	if (vp_has(c->features, VIRTIO_NET_F_MTU) && c->size >= 12 && mtu && !v->tap->fixed_mtu &&
	    tap_set_mtu(v->tap, mtu, &e))
		vp_log(VP_LOG_WARNING, "%s", e.msg);
}

static void vn_carrier(struct datapath *d, bool on)
{
	tap_carrier(VN(d)->tap, on);
}

static unsigned int vn_fds(struct datapath *d, struct pollfd *p)
{
	struct vhostnet *v = VN(d);
	unsigned int n = 0;

	for (unsigned int q = 0; q < 2 * v->npairs; q++)
		if (v->q[q].set && v->q[q].err_fd >= 0)
			p[n++] = (struct pollfd){ .fd = v->q[q].err_fd, .events = POLLIN };
	for (unsigned int i = 0; v->grows && i < v->npairs; i++)
		if (v->fd[i] >= 0)
			p[n++] = (struct pollfd){ .fd = v->fd[i], .events = POLLIN };
	return n;
}

static int vn_handle(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2],
		     struct vp_err *e)
{
	struct vhostnet *v = VN(d);

	for (unsigned int i = 0; i < n; i++) {
		uint64_t count;

		if (!(p[i].revents & POLLIN))
			continue;
		for (unsigned int k = 0; v->grows && k < v->npairs; k++)
			if (v->fd[k] == p[i].fd)
				vn_misses(v, k);
		for (unsigned int q = 0; q < 2 * v->npairs; q++)
			if (v->q[q].err_fd == p[i].fd && read(p[i].fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
				broken[q / 64] |= VP_BIT(q % 64);
	}
	return 0;
}

static void vn_close(struct datapath *d)
{
	struct vhostnet *v = VN(d);

	/* The tap may live on, for the next port: nobody is at its other end until then. */
	tap_carrier(v->tap, false);
	vn_reset(d);
	free(v);
}

static bool vn_counters(struct datapath *d, struct dp_counters *c)
{
	return tap_counters(VN(d)->tap, c->n);
}

static const struct datapath_ops vn_ops = {
	.name = "vhost-net",
	.device_type = VIRTIO_ID_NET,
	.needs_map = true,
	.ready = vn_ready,
	.features = vn_features,
	.max_queues = vn_max_queues,
	.configure = vn_configure,
	.set_mem = vn_set_mem,
	.set_grows = vn_set_grows,
	.missing = vn_missing,
	.start = vn_start,
	.enable = vn_enable,
	.stop = vn_stop,
	.reset = vn_reset,
	.config = vn_config,
	.carrier = vn_carrier,
	.counters = vn_counters,
	.fds = vn_fds,
	.handle = vn_handle,
	.close = vn_close,
};

int dp_vhostnet_open(struct tap *t, unsigned int busy_poll_us, struct datapath **out, struct vp_err *e)
{
	struct vhostnet *v;
	uint64_t features;
	int fd = open(VHOST_NET, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return vp_err_set(e, -errno,
				  errno == ENOENT || errno == ENODEV
					  ? "there is no " VHOST_NET
					    ": load the module (modprobe vhost_net), or use --vhost-user"
					  : "cannot open " VHOST_NET ": %s",
				  strerror(errno));
	if (ioctl(fd, VHOST_GET_FEATURES, &features) < 0) {
		int rc = vp_err_set(e, -errno, VHOST_NET " does not tell its features: %s", strerror(errno));

		close(fd);
		return rc;
	}
	close(fd);
	v = calloc(1, sizeof(*v));
	if (!v)
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->dp.ops = &vn_ops;
	v->tap = t;
	v->npairs = t->npairs;
	v->busy_poll_us = busy_poll_us;
	v->features = features;
	v->max_regions = vhost_max_regions();
	for (unsigned int i = 0; i < TAP_MAX_PAIRS; i++)
		v->fd[i] = v->q[2 * i].err_fd = v->q[2 * i + 1].err_fd = -1;
	if (vhost_param("/sys/module/vhost_net/parameters/experimental_zcopytx", 0))
		vp_log(VP_LOG_WARNING, "vhost-net's zero-copy transmit cannot reach memory behind a PCI device: load "
		       "vhost_net with experimental_zcopytx=0");
	*out = &v->dp;
	return 0;
}
