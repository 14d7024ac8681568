// SPDX-License-Identifier: BSD-3-Clause
/*
 * The kernel's vhost-scsi: the driver VM gets the LUNs of a target of this VM, by its WWPN.
 *
 * vhost-scsi pins the pages that a request reads or writes, and a window has none: it is memory of a PCI device. So,
 * unlike the other kernel data paths, this one gives vhost-scsi rings and memory of this process, and copies each
 * request between those and the windows, with the engine that copies requests in the daemon (engine/request.h). It
 * serves any ring format for that reason, and lays payloads out in whole sectors, as direct I/O wants them.
 *
 * vhost-scsi has one switch for all queues, its endpoint: a queue is set up while that is off. Taking it away waits for
 * what the target has under way. What the target had when this process is killed is given again by the daemon in copy
 * mode.
 *
 * Threat model: the rings and requests are hostile, and parsed by lib/virtq. A window that is revoked reads as zeroes
 * (guestmem/map.h), and its queues break.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/vhost.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_scsi.h>

#include "base/log.h"
#include "base/util.h"
#include "datapath.h"
#include "engine/request.h"
#include "vfeatures.h"
#include "vhost.h"

#define VHOST_SCSI "/dev/vhost-scsi"
#define TARGETS	   "/sys/kernel/config/target/vhost"

#define WWPN_MAX  sizeof(((struct vhost_scsi_target *)0)->vhost_wwpn)
#define POOL_ADDR UINT64_C(0x100000) /* where vhost-scsi finds the pool */
#define DATA_IO	  (UINT64_C(16) << 20) /* of a queue of commands; pages come when they are used */
#define DATA_REST (UINT64_C(256) << 10)
#define FIRST_IO  2u
#define ROUNDS	  64u /* of one queue before the others have their turn */

struct vs_queue {
	struct vp_queue rq; /* the driver VM's ring */
	struct vp_reqq *r;  /* NULL: not set up */
	bool on;
	int kick_fd; /* the engine's: the driver VM kicked */
	int bell;    /* kicks vhost-scsi */
};

struct vhostscsi {
	struct datapath dp;
	char wwpn[WWPN_MAX];
	uint64_t features, shadow; /* of vhost-scsi; of the rings that it gets */
	uint64_t driver;	   /* negotiated by the driver VM */
	int fd;			   /* -1: not open */
	bool endpoint;
	int call; /* vhost-scsi has answered, on any queue */
	int said; /* error that was logged last */
	unsigned int lost;
	void *pool;
	uint64_t pool_size;
	struct vp_memtab *tab;
	struct vp_scratch *scratch;
	struct vs_queue q[VHP_MAX_QUEUES];
};

#define VS(d) vp_container_of(d, struct vhostscsi, dp)

/* ---- the device and its endpoint -------------------------------------------------------------- */

static int vs_open(struct vhostscsi *v, struct vp_err *e)
{
	int rc;

	if (v->fd >= 0)
		return 0;
	v->fd = open(VHOST_SCSI, O_RDWR | O_CLOEXEC);
	if (v->fd < 0)
		return vp_err_set(e, -errno,
				  errno == ENOENT || errno == ENODEV
					  ? "there is no " VHOST_SCSI
					    ": load the module (modprobe vhost_scsi), or use --vhost-user"
					  : "cannot open " VHOST_SCSI ": %s",
				  strerror(errno));
	if (!ioctl(v->fd, VHOST_SET_OWNER, NULL) && !ioctl(v->fd, VHOST_GET_FEATURES, &v->features))
		return 0;
	rc = vp_err_set(e, -errno, VHOST_SCSI " cannot be set up: %s", strerror(errno));
	vp_close(&v->fd);
	return rc;
}

/*
 * vhost-scsi finds a target only by trying to use it, when the queues are there; the file system of LIO tells before.
 */
static int vs_find(struct vhostscsi *v, struct vp_err *e)
{
	char path[sizeof(TARGETS) + sizeof(v->wwpn) + 1];

	snprintf(path, sizeof(path), TARGETS "/%s", v->wwpn);
	if (!access(path, F_OK))
		return 0;
	return vp_err_set(e, -ENOENT,
			  "there is no vhost target %s in this VM (%s): make it, with targetcli or in configfs",
			  v->wwpn, path);
}

static bool vs_ready(struct datapath *d)
{
	struct vhostscsi *v = VS(d);
	struct vp_err e = { 0 };
	int rc = vs_open(v, &e);

	if (!rc)
		rc = vs_find(v, &e);
	if (rc && rc != v->said)
		vp_log(VP_LOG_ERR, "%s", e.msg);
	v->said = rc;
	return !rc;
}

static int vs_switch(struct vhostscsi *v, bool on, struct vp_err *e)
{
	struct vhost_scsi_target t = { .abi_version = VHOST_SCSI_ABI_VERSION, .vhost_tpgt = 1 };

	if (v->endpoint == on)
		return 0;
	memcpy(t.vhost_wwpn, v->wwpn, sizeof(t.vhost_wwpn));
	if (ioctl(v->fd, on ? VHOST_SCSI_SET_ENDPOINT : VHOST_SCSI_CLEAR_ENDPOINT, &t) < 0) {
		if (on && (errno == EEXIST || errno == ENODEV))
			return vp_err_set(
				e, -errno,
				"vhost-scsi cannot use target %s: no group of it (tpgt_N) has a nexus and is free",
				v->wwpn);
		return vp_err_set(e, -errno, "vhost-scsi cannot %s target %s: %s", on ? "use" : "leave", v->wwpn,
				  strerror(errno));
	}
	v->endpoint = on;
	return 0;
}

/* It serves while there is a queue that is on. */
static int vs_resume(struct vhostscsi *v, struct vp_err *e)
{
	bool any = false;

	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
		any |= v->q[i].on;
	return vs_switch(v, any, e);
}

/* ---- what it is -------------------------------------------------------------------------------- */

/* The rings of the driver VM are served here. */
static void vs_features(struct datapath *d, uint64_t f[2])
{
	f[0] = (VS(d)->features & VP_BIT(VIRTIO_SCSI_F_HOTPLUG)) | VP_ANY_NEUTRAL | VP_BIT(VIRTIO_F_VERSION_1) |
	       VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) |
	       VP_BIT(VIRTIO_F_ANY_LAYOUT) | VP_BIT(VIRTIO_F_ORDER_PLATFORM);
	f[1] = 0;
}

static int vs_describe(struct datapath *d, uint32_t type, uint32_t config_size, struct dp_desc *out, struct vp_err *e)
{
	vs_features(d, out->features);
	return 0;
}

static unsigned int vs_max_queues(struct datapath *d)
{
	return VHP_MAX_QUEUES;
}

/* ---- a session --------------------------------------------------------------------------------- */

static uint64_t data_size(unsigned int q)
{
	return q < FIRST_IO ? DATA_REST : DATA_IO;
}

static uint64_t ring_size(void)
{
	return vp_align_up(vp_copyq_ring_bytes(), 4096);
}

/* Of a queue in the pool: its ring, and behind that its data, in whole pages. */
static uint64_t place(unsigned int q)
{
	return q * ring_size() + VP_MIN(q, FIRST_IO) * DATA_REST + (q > FIRST_IO ? q - FIRST_IO : 0) * DATA_IO;
}

/* Address space only: pages come with the requests. */
static int make_pool(struct vhostscsi *v, struct vp_err *e)
{
	uint64_t size = place(VHP_MAX_QUEUES);
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return vp_err_set(e, -errno, "no memory for requests: %s", strerror(errno));
	v->pool = p;
	v->pool_size = size;
	return 0;
}

static int vs_configure(struct datapath *d, const uint64_t features[2], struct vp_err *e)
{
	struct vhostscsi *v = VS(d);
	struct {
		struct vhost_memory m;
		struct vhost_memory_region r;
	} t = { .m = { .nregions = 1 } };
	int rc;

	rc = vs_open(v, e);
	if (!rc && !v->pool)
		rc = make_pool(v, e);
	if (rc)
		return rc;
	v->driver = features[0];
	v->shadow = (v->features & (VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_RING_F_EVENT_IDX))) |
		    (features[0] & v->features & VP_BIT(VIRTIO_SCSI_F_HOTPLUG));
	if (ioctl(v->fd, VHOST_SET_FEATURES, &v->shadow) < 0)
		return vp_err_set(e, -errno, "vhost-scsi refuses the features %#llx: %s", (unsigned long long)v->shadow,
				  strerror(errno));
	t.r = (struct vhost_memory_region){ .guest_phys_addr = POOL_ADDR, .memory_size = v->pool_size,
					    .userspace_addr = (uintptr_t)v->pool };
	if (ioctl(v->fd, VHOST_SET_MEM_TABLE, &t) < 0)
		return vp_err_set(e, -errno, "vhost-scsi refuses its memory: %s", strerror(errno));
	return 0;
}

/* The windows as the engine reaches them; running queues move over. */
static int vs_set_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	struct vp_region_desc *r = calloc(m->nregions + 1, sizeof(*r));
	struct vhostscsi *v = VS(d);
	struct vp_memtab *tab = NULL;
	int rc = 0;

	if (!r)
		return vp_err_set(e, -ENOMEM, "out of memory");
	for (unsigned int i = 0; i < m->nregions && !rc; i++) {
		r[i] = (struct vp_region_desc){ .gpa = m->r[i].addr, .size = m->r[i].size, .offset = m->r[i].offset,
						.uva = m->r[i].win->uva + m->r[i].offset };
		rc = vp_map_new(&r[i].map, m->r[i].win->fd, r[i].offset, r[i].size, VP_MAP_VOUCHED, e);
	}
	if (!rc)
		rc = vp_memtab_build(&tab, r, m->nregions, e);
	for (unsigned int i = 0; i < m->nregions; i++)
		vp_map_unref(r[i].map);
	free(r);
	if (rc)
		return rc;
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
		if (v->q[i].r && vp_vq_rebind(&v->q[i].rq.vq, tab, NULL, e))
			vp_vq_break(&v->q[i].rq.vq, VP_VQ_BAD_RING);
	vp_memtab_free(v->tab);
	v->tab = tab;
	return 0;
}

/* ---- a queue ------------------------------------------------------------------------------------- */

static int driver_ring(struct vhostscsi *v, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	bool packed = v->driver & VP_BIT(VIRTIO_F_RING_PACKED);
	uint16_t size = c->size > UINT16_MAX ? 0 : (uint16_t)c->size;
	struct vp_vq_conf vc = { .size = size, .base = c->base, .features = v->driver, .tab = v->tab };
	struct vs_queue *vq = &v->q[q];
	int rc;

	rc = vp_memtab_uva_to_gpa(v->tab, c->ring.desc, vp_vq_desc_bytes(size), &vc.desc);
	if (!rc)
		rc = vp_memtab_uva_to_gpa(v->tab, c->ring.avail, vp_vq_driver_bytes(size, packed), &vc.driver);
	if (!rc)
		rc = vp_memtab_uva_to_gpa(v->tab, c->ring.used, vp_vq_device_bytes(size, packed), &vc.device);
	if (rc)
		return vp_err_set(e, rc, "its ring is not within the driver VM's memory");
	vq->rq = (struct vp_queue){ .features = v->driver, .call_fd = c->call_fd };
	return vp_vq_start(&vq->rq.vq, &vc, e);
}

static int vs_start(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	struct vhostscsi *v = VS(d);
	struct vs_queue *vq = &v->q[q];
	const uint64_t ring = place(q), data = ring + ring_size();
	struct vp_reqq_conf rc = { .rq = &vq->rq, .pool = vp_gptr_from_map(v->pool), .pool_addr = POOL_ADDR,
				   .ring = { ring, ring_size() }, .data = { data, data_size(q) }, .fail_status = -1 };
	struct dp_queue shadow;
	uintptr_t uva;
	int ret;

	/* A ring is set up while there is no endpoint. */
	ret = vs_switch(v, false, e);
	if (!ret)
		ret = driver_ring(v, q, c, e);
	if (ret)
		return ret;
	if (q >= FIRST_IO) {
		rc.out_head = sizeof(struct virtio_scsi_cmd_req);
		rc.in_head = sizeof(struct virtio_scsi_cmd_resp);
	}
	if (vq->bell < 0)
		vq->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	/* What the last run left. */
	madvise((char *)v->pool + data, data_size(q), MADV_REMOVE);
	ret = vp_reqq_new(&vq->r, &rc, e);
	if (!ret)
		ret = vp_reqq_begin(vq->r, v->shadow, vq->bell, 0, e);
	if (ret)
		goto fail;
	uva = (uintptr_t)v->pool;
	shadow = (struct dp_queue){ .size = vq->r->size,
				    .base = vp_reqq_base(vq->r),
				    .kick_fd = vq->bell,
				    .call_fd = v->call,
				    .ring = { uva + (vq->r->desc_addr - POOL_ADDR),
					      uva + (vq->r->avail_addr - POOL_ADDR),
					      uva + (vq->r->used_addr - POOL_ADDR) } };
	/* Without an eventfd for errors: what vhost-scsi complains of there are requests, which it answers. */
	ret = vhost_ring(v->fd, "vhost-scsi", q, &shadow, -1, e);
	if (ret)
		goto fail;
	vq->kick_fd = c->kick_fd;
	return 0;
fail:
	vp_reqq_free(vq->r);
	vq->r = NULL;
	return ret;
}

static int vs_enable(struct datapath *d, unsigned int q, bool on, struct vp_err *e)
{
	struct vhostscsi *v = VS(d);
	struct vs_queue *vq = &v->q[q];
	int rc;

	/* Off and on again: vhost-scsi makes room for the commands of a queue when it takes the endpoint. */
	rc = vs_switch(v, false, e);
	if (rc)
		return rc;
	vq->on = on;
	rc = vs_resume(v, e);
	for (unsigned int i = 0; !rc && i < VHP_MAX_QUEUES; i++)
		if (v->q[i].on && eventfd_write(v->q[i].bell, 1) < 0) /* it looked away from kicks that came before */
			vp_log(VP_LOG_DEBUG, "vhost-scsi: queue %u is signalled already", i);
	return rc;
}

static int vs_stop(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct vhostscsi *v = VS(d);
	struct vs_queue *vq = &v->q[q];
	unsigned int failed = 0;
	uint32_t unused;
	bool call;
	int rc;

	if (v->fd < 0 || !vq->r)
		return -ENODATA;
	/* Waits for what the target has. */
	rc = vs_switch(v, false, e);
	vq->on = false;
	call = vp_reqq_end(vq->r, true, NULL);
	call |= vp_reqq_stop(vq->r, true, &failed);
	if (failed)
		vp_log(VP_LOG_WARNING, "vhost-scsi: queue %u: %u requests have failed", q, failed);
	if (call)
		vp_queue_call(&vq->rq, v->scratch);
	*base = vp_vq_base(&vq->rq.vq);
	vp_reqq_free(vq->r);
	vq->r = NULL;
	if (!rc)
		rc = vhost_ring_end(v->fd, "vhost-scsi", q, &unused, e);
	return rc ? rc : vs_resume(v, e);
}

static void vs_reset(struct datapath *d)
{
	struct vhostscsi *v = VS(d);

	/* The last of the file takes the endpoint away, and waits. */
	vp_close(&v->fd);
	v->endpoint = false;
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++) {
		vp_reqq_free(v->q[i].r);
		v->q[i].r = NULL;
		v->q[i].on = false;
		vp_close(&v->q[i].bell);
	}
	vp_memtab_free(v->tab);
	v->tab = NULL;
	if (v->pool)
		munmap(v->pool, v->pool_size);
	v->pool = NULL;
}

static void vs_config(struct datapath *d, const struct dp_config *c)
{
}

static void vs_carrier(struct datapath *d, bool on)
{
}

/* ---- requests ------------------------------------------------------------------------------------- */

static unsigned int vs_fds(struct datapath *d, struct pollfd *p)
{
	struct vhostscsi *v = VS(d);
	unsigned int n = 0;

	p[n++] = (struct pollfd){ .fd = v->call, .events = POLLIN };
	for (unsigned int q = 0; q < VHP_MAX_QUEUES; q++)
		if (v->q[q].on)
			p[n++] = (struct pollfd){ .fd = v->q[q].kick_fd, .events = POLLIN };
	return n;
}

/* Until there is no more to do, and both ends will say when there is; or it is the others' turn. */
static void work(struct vhostscsi *v, struct vs_queue *vq)
{
	vp_reqq_disarm(vq->r);
	for (unsigned int i = 0; i < ROUNDS; i++)
		if (!vp_reqq_run(vq->r, v->scratch) && !vp_reqq_arm(vq->r))
			return;
	eventfd_write(vq->kick_fd, 1);
}

static int vs_handle(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2], struct vp_err *e)
{
	struct vhostscsi *v = VS(d);
	unsigned int lost = vp_map_lost_count();
	bool any = false;
	eventfd_t count;

	for (unsigned int i = 0; i < n; i++) {
		if (!(p[i].revents & POLLIN))
			continue;
		any = true;
		if (eventfd_read(p[i].fd, &count) < 0 && errno != EAGAIN)
			vp_log(VP_LOG_DEBUG, "vhost-scsi: a signal cannot be read: %s", strerror(errno));
	}
	for (unsigned int q = 0; any && q < VHP_MAX_QUEUES; q++) {
		struct vs_queue *vq = &v->q[q];

		if (!vq->on || !vq->r)
			continue;
		work(v, vq);
		if (lost != v->lost && vp_memtab_lost(v->tab))
			vp_vq_break(&vq->rq.vq, VP_VQ_LOST_MEMORY);
		if (!vq->rq.vq.broken && !vq->r->shadow.broken)
			continue;
		if (vq->r->too_big)
			vp_log(VP_LOG_ERR,
			       "vhost-scsi: queue %u: a request of %llu bytes is larger than the %llu that there are "
			       "for it: "
			       "lower max_sectors_kb in the driver VM",
			       q, (unsigned long long)vq->r->too_big, (unsigned long long)DATA_IO);
		broken[q / 64] |= VP_BIT(q % 64);
	}
	v->lost = lost;
	return 0;
}

static void vs_close(struct datapath *d)
{
	struct vhostscsi *v = VS(d);

	vs_reset(d);
	vp_close(&v->call);
	free(v->scratch);
	free(v);
}

static const struct datapath_ops vs_ops = {
	.name = "vhost-scsi",
	.device_type = VIRTIO_ID_SCSI,
	.ready = vs_ready,
	.describe = vs_describe,
	.features = vs_features,
	.max_queues = vs_max_queues,
	.configure = vs_configure,
	.set_mem = vs_set_mem,
	.start = vs_start,
	.enable = vs_enable,
	.stop = vs_stop,
	.reset = vs_reset,
	.config = vs_config,
	.carrier = vs_carrier,
	.fds = vs_fds,
	.handle = vs_handle,
	.close = vs_close,
};

int dp_vhostscsi_open(const char *wwpn, struct datapath **out, struct vp_err *e)
{
	struct vhostscsi *v;
	int rc;

	if (!*wwpn || strlen(wwpn) >= sizeof(v->wwpn) || strchr(wwpn, '/'))
		return vp_err_set(e, -EINVAL, "'%s' is no WWPN: naa.5001405… is wanted, as in " TARGETS, wwpn);
	rc = vp_map_guard_faults();
	if (rc)
		return vp_err_set(e, rc, "no handler for revoked memory: %s", strerror(-rc));
	v = calloc(1, sizeof(*v));
	if (!v)
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->dp.ops = &vs_ops;
	snprintf(v->wwpn, sizeof(v->wwpn), "%s", wwpn);
	v->fd = -1;
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
		v->q[i].bell = -1;
	v->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->scratch = vp_scratch_new();
	rc = v->call < 0 || !v->scratch ? vp_err_set(e, -ENOMEM, "out of memory") : vs_open(v, e);
	if (rc) {
		vs_close(&v->dp);
		return rc;
	}
	*out = &v->dp;
	return 0;
}
