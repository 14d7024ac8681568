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
	return f[0] & v->features & ~(VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VHOST_NET_F_VIRTIO_NET_HDR) |
				      VP_BIT(VIRTIO_F_ACCESS_PLATFORM));
}

static int vn_open_pair(struct vhostnet *v, unsigned int pair, struct vp_err *e);

static void vn_close_pair(struct vhostnet *v, unsigned int pair)
{
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
	return vhost_set_mem(v->fd[pair], "vhost-net", v->max_regions, m, e);
}

static int vn_set_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	struct vhostnet *v = VN(d);
	int rc;

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
	int rc;

	rc = vn_open_pair(v, q / 2, e);
	if (rc)
		return rc;
	if (v->q[q].err_fd < 0)
		v->q[q].err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = vhost_ring(v->fd[q / 2], "vhost-net", q & 1, c, v->q[q].err_fd, e);
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
