// SPDX-License-Identifier: BSD-3-Clause
/*
 * The kernel's vhost-vsock: programs in this VM reach the driver VM by AF_VSOCK at the CID that --vsock names. As with
 * vhost-net the driver VM's memory is reached through this process's mappings of the windows, and no packet passes
 * here.
 *
 * vhost-vsock starts and stops both queues together: it runs while both are enabled. Its file is closed with each
 * session, which resets the connections of this side: a driver VM whose driver is a new one knows none of them.
 *
 * Threat model: as dp_vhostnet.c.
 */
#include <errno.h>
#include <fcntl.h>
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
#include "vhost.h"

#define VHOST_VSOCK "/dev/vhost-vsock"
#define NQUEUES	    2u

struct vv_queue {
	bool set, on; /* ring set up; enabled */
	int err_fd;
	int kick_fd; /* the engine's */
};

struct vhostvsock {
	struct datapath dp;
	uint64_t cid, features;
	unsigned int max_regions;
	int fd; /* holds the CID; -1: not open */
	bool running;
	int said; /* error that was logged last */
	struct vv_queue q[NQUEUES];
};

#define VV(d) vp_container_of(d, struct vhostvsock, dp)

/* Open the device and take the CID. */
static int vv_open(struct vhostvsock *v, struct vp_err *e)
{
	int rc;

	v->fd = open(VHOST_VSOCK, O_RDWR | O_CLOEXEC);
	if (v->fd < 0)
		return vp_err_set(
			e, -errno,
			errno == ENOENT || errno == ENODEV
				? "there is no " VHOST_VSOCK
				  ": load the module (modprobe vhost_vsock), or use --vhost-user"
				: "cannot open " VHOST_VSOCK ": %s",
			strerror(errno));
	if (ioctl(v->fd, VHOST_SET_OWNER, NULL) < 0 ||
	    ioctl(v->fd, VHOST_GET_FEATURES, &v->features) < 0) {
		rc = vp_err_set(e, -errno, VHOST_VSOCK " cannot be set up: %s", strerror(errno));
		goto fail;
	}
	if (ioctl(v->fd, VHOST_VSOCK_SET_GUEST_CID, &v->cid) < 0) {
		rc = vp_err_set(e, -errno,
				errno == EADDRINUSE ? "CID %llu is in use in this VM: choose "
						      "another one, here and in the link's CID="
						    : "vhost-vsock refuses CID %llu: %s",
				(unsigned long long)v->cid, strerror(errno));
		goto fail;
	}
	return 0;
fail:
	vp_close(&v->fd);
	return rc;
}

static bool vv_ready(struct datapath *d)
{
	struct vhostvsock *v = VV(d);
	struct vp_err e = { 0 };
	int rc = v->fd >= 0 ? 0 : vv_open(v, &e);

	if (rc && rc != v->said)
		vp_log(VP_LOG_ERR, "%s", e.msg);
	v->said = rc;
	return !rc;
}

static void vv_features(struct datapath *d, uint64_t f[2])
{
	f[0] = (VV(d)->features & ~VP_BIT(VHOST_F_LOG_ALL)) | VP_ANY_NEUTRAL;
	f[1] = 0;
}

static int vv_describe(struct datapath *d, uint32_t type, uint32_t config_size, struct dp_desc *out,
		       struct vp_err *e)
{
	vv_features(d, out->features);
	out->queues = NQUEUES;
	out->config_size = 8;
	for (unsigned int i = 0; i < 8; i++)
		out->config[i] = (uint8_t)(VV(d)->cid >> 8 * i);
	return 0;
}

static unsigned int vv_max_queues(struct datapath *d)
{
	return NQUEUES;
}

/* Link addresses are translated already: no ACCESS_PLATFORM, as with vhost-net. */
static int vv_configure(struct datapath *d, const uint64_t features[2], struct vp_err *e)
{
	struct vhostvsock *v = VV(d);
	uint64_t f = features[0] & v->features &
		     ~(VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM));

	if (ioctl(v->fd, VHOST_SET_FEATURES, &f) < 0)
		return vp_err_set(e, -errno, "vhost-vsock refuses the features %#llx: %s",
				  (unsigned long long)f, strerror(errno));
	return 0;
}

static int vv_set_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	return vhost_set_mem(VV(d)->fd, "vhost-vsock", VV(d)->max_regions, m, e);
}

static int vv_start(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	struct vhostvsock *v = VV(d);
	struct vv_queue *vq = &v->q[q];
	int rc;

	if (vq->err_fd < 0)
		vq->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = vhost_ring(v->fd, "vhost-vsock", q, c, vq->err_fd, e);
	if (rc)
		return rc;
	vq->kick_fd = c->kick_fd;
	vq->set = true;
	return 0;
}

static int vv_run(struct vhostvsock *v, struct vp_err *e)
{
	int on = v->q[0].set && v->q[0].on && v->q[1].set && v->q[1].on;

	if (on == v->running)
		return 0;
	/* Off: waits until both workers have left the rings. */
	if (ioctl(v->fd, VHOST_VSOCK_SET_RUNNING, &on) < 0)
		return vp_err_set(e, -errno, "vhost-vsock cannot be %s: %s",
				  on ? "started" : "stopped", strerror(errno));
	v->running = on;
	/* It looked away from kicks that came before. */
	for (unsigned int i = 0; on && i < NQUEUES; i++)
		if (eventfd_write(v->q[i].kick_fd, 1) < 0)
			vp_log(VP_LOG_DEBUG, "vhost-vsock: queue %u is signalled already", i);
	return 0;
}

static int vv_enable(struct datapath *d, unsigned int q, bool on, struct vp_err *e)
{
	struct vhostvsock *v = VV(d);

	v->q[q].on = on;
	return vv_run(v, e);
}

static int vv_stop(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct vhostvsock *v = VV(d);
	int rc;

	if (v->fd < 0 || !v->q[q].set)
		return -ENODATA;
	v->q[q].on = false;
	rc = vv_run(v, e);
	v->q[q].set = false;
	return rc ? rc : vhost_ring_end(v->fd, "vhost-vsock", q, base, e);
}

static void vv_reset(struct datapath *d)
{
	struct vhostvsock *v = VV(d);

	vp_close(&v->fd);
	v->running = false;
	for (unsigned int i = 0; i < NQUEUES; i++) {
		vp_close(&v->q[i].err_fd);
		v->q[i].set = v->q[i].on = false;
	}
}

static void vv_config(struct datapath *d, const struct dp_config *c)
{
}

static void vv_carrier(struct datapath *d, bool on)
{
}

static unsigned int vv_fds(struct datapath *d, struct pollfd *p)
{
	struct vhostvsock *v = VV(d);
	unsigned int n = 0;

	for (unsigned int q = 0; q < NQUEUES; q++)
		if (v->q[q].set && v->q[q].err_fd >= 0)
			p[n++] = (struct pollfd){ .fd = v->q[q].err_fd, .events = POLLIN };
	return n;
}

static int vv_handle(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2],
		     struct vp_err *e)
{
	struct vhostvsock *v = VV(d);
	eventfd_t count;

	for (unsigned int i = 0; i < n; i++) {
		if (!(p[i].revents & POLLIN))
			continue;
		for (unsigned int q = 0; q < NQUEUES; q++)
			if (v->q[q].err_fd == p[i].fd && !eventfd_read(p[i].fd, &count))
				broken[0] |= VP_BIT(q);
	}
	return 0;
}

static void vv_close(struct datapath *d)
{
	vv_reset(d);
	free(VV(d));
}

static const struct datapath_ops vv_ops = {
	.name = "vhost-vsock",
	.device_type = VIRTIO_ID_VSOCK,
	.needs_map = true,
	.ready = vv_ready,
	.describe = vv_describe,
	.features = vv_features,
	.max_queues = vv_max_queues,
	.configure = vv_configure,
	.set_mem = vv_set_mem,
	.start = vv_start,
	.enable = vv_enable,
	.stop = vv_stop,
	.reset = vv_reset,
	.config = vv_config,
	.carrier = vv_carrier,
	.fds = vv_fds,
	.handle = vv_handle,
	.close = vv_close,
};

int dp_vhostvsock_open(uint64_t cid, struct datapath **out, struct vp_err *e)
{
	struct vhostvsock *v = calloc(1, sizeof(*v));
	int rc;

	if (!v)
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->dp.ops = &vv_ops;
	v->cid = cid;
	v->max_regions = vhost_max_regions();
	v->q[0].err_fd = v->q[1].err_fd = -1;
	rc = vv_open(v, e);
	if (rc) {
		free(v);
		return rc;
	}
	*out = &v->dp;
	return 0;
}
