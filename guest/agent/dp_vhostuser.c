// SPDX-License-Identifier: BSD-3-Clause
/*
 * A vhost-user back-end in this VM as the data path: the agent is its front-end. The windows'
 * fds are its memory regions, the module's eventfds its kicks and calls; the agent itself sees
 * no packet.
 *
 * Threat model: the back-end is a process of this VM that the administrator chose, and it gets
 * the driver VM's memory; it is trusted with that but not to be alive, quick or correct. All
 * waits are bounded by TIMEOUT_MS, and an answer that makes no sense ends the connection.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_ids.h>

#include "base/log.h"
#include "base/util.h"
#include "datapath.h"
#include "guestmem/map.h"
#include "vfeatures.h"
#include "vhostuser/frontend.h"

/* Longer than the daemon waits for a stop (1 s by default) is of no use to anybody. */
#define TIMEOUT_MS	3000u
#define CONNECT_AGAIN_MS 200u

/* The daemon's patience with a stop is 1 s by default, for all queues. */
unsigned int dp_vhostuser_finish_ms = 400;

#define WANTED_PF                                                                                             \
	(VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_MTU) | VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) | \
	 VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_BACKEND_REQ) | VP_BIT(VU_PF_RESET_DEVICE) | \
	 VP_BIT(VU_PF_INFLIGHT_SHMFD) | VP_BIT(VU_PF_DEVICE_STATE))

struct vhostuser {
	struct datapath dp;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *state;	/* file for its state between two of its processes, NULL: none */
	bool used;		/* it has state of a driver VM's: a ring has run, or it was loaded */
	bool server;
	int listen_fd;		/* -1 unless server */
	struct vu_frontend *fe;	/* NULL: not connected */
	uint64_t connect_ms;	/* no attempt before */
	int said;		/* errno of the last failure that was logged */
	uint64_t offered;
	bool legacy;		/* the driver VM's driver knows nothing of virtio 1 */
	bool told_legacy;	/* what may come of that */
	unsigned int nqueues;
	uint32_t type;		/* virtio ID of the link's device, 0: not known yet */
	bool changed;		/* the back-end says that its config space is another one */
	uint16_t mtu;
	bool set[VHP_MAX_QUEUES];
	const struct memmap *mem;	/* as set last; the engine's */
	bool packed;
	uint64_t used_at[VHP_MAX_QUEUES];	/* user address of the used ring */
	unsigned int finish_ms;	/* what is left of the patience with its stops */
	bool unclean;		/* it may still be at work on requests of a queue that was stopped */
	unsigned int nmem;	/* regions that the back-end has */
	bool has_inflight;	/* and this place for its account of open requests, */
	uint32_t inflight_serial;
};

#define VU(d) vp_container_of(d, struct vhostuser, dp)

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void disconnect(struct vhostuser *v)
{
	vu_frontend_destroy(v->fe);
	v->fe = NULL;
	v->nmem = 0;
	v->mem = NULL;
	v->unclean = v->used = false;
	v->has_inflight = false;
	memset(v->set, 0, sizeof(v->set));
	v->connect_ms = now_ms() + CONNECT_AGAIN_MS;
}

/* libvhost-user, which QEMU's back-ends are made with, ends the connection when such a driver's features are set. */
static void look_legacy(struct vhostuser *v)
{
	if (v->legacy && !v->told_legacy)
		vp_log(VP_LOG_WARNING,
		       "%s: the driver VM uses a legacy device (without VERSION_1), which may be why its back-end "
		       "leaves: qemu-storage-daemon serves none; give the driver VM's device disable-legacy=on",
		       v->path);
	v->told_legacy = v->legacy;
}

/*
 * Any failed call: was it refused, or is the connection gone? The front-end closes it by itself
 * after timeouts and broken streams.
 */
static int failed(struct vhostuser *v, int rc, struct vp_err *e)
{
	if (rc == -EREMOTEIO || rc == -EOPNOTSUPP || rc == -E2BIG || rc == -EINVAL || rc == -ENOMEM)
		return rc;
	if (e && e->msg[0])
		vp_log(VP_LOG_WARNING, "%s: %s", v->path, e->msg);
	look_legacy(v);
	disconnect(v);
	return -ECONNRESET;
}

static int try_connect(struct vhostuser *v)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd;

	if (v->server) {
		fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	memcpy(a.sun_path, v->path, sizeof(a.sun_path));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

/* Only that the config space changed is of interest; memory and notifiers of ours it has not been given. */
static int on_request(void *ctx, uint32_t request, const union vu_payload *p, uint32_t size, int *fd)
{
	struct vhostuser *v = ctx;

	if (request != VU_BE_CONFIG_CHANGE)
		return -EOPNOTSUPP;
	v->changed = true;
	return 0;
}

/* ---- its state, from one process of it to the next ----------------------------------------------- */

static int write_file(const char *path, const void *data, size_t size, struct vp_err *e)
{
	char tmp[PATH_MAX];
	int fd, rc = 0;

	snprintf(tmp, sizeof(tmp), "%s.new", path);
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return vp_err_set(e, -errno, "%s: %s", tmp, strerror(errno));
	for (size_t n = 0; !rc && n < size;) {
		ssize_t put = write(fd, (const char *)data + n, size - n);

		if (put < 0 && errno != EINTR)
			rc = vp_err_set(e, -errno, "%s: %s", tmp, strerror(errno));
		n += put > 0 ? (size_t)put : 0;
	}
	if (!rc && (fsync(fd) < 0 || rename(tmp, path) < 0))
		rc = vp_err_set(e, -errno, "%s: %s", path, strerror(errno));
	close(fd);
	if (rc)
		unlink(tmp);
	return rc;
}

static void save_state(struct vhostuser *v)
{
	struct vp_err e = { 0 };
	void *data = NULL;
	size_t size;

	if (!v->state || !v->fe || !v->used || v->unclean)
		return;
	if (vu_frontend_save_state(v->fe, &data, &size, &e) || write_file(v->state, data, size, &e))
		vp_log(VP_LOG_WARNING, "%s: what the driver VM has open is lost: %s", v->path, e.msg);
	else
		vp_log(VP_LOG_NOTICE, "%s: the back-end's state, %zu bytes, is in %s", v->path, size, v->state);
	free(data);
}

/* 0, also when there is none. A state is given once: the file goes first. */
static int load_state(struct vhostuser *v, struct vp_err *e)
{
	int fd = v->state ? open(v->state, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1, rc = 0;
	struct stat st;
	void *data;

	if (fd < 0)
		return 0;
	data = fstat(fd, &st) ? NULL : malloc((size_t)st.st_size + 1);
	if (!data || !S_ISREG(st.st_mode) || read(fd, data, (size_t)st.st_size) != st.st_size)
		rc = vp_err_set(e, -EIO, "%s cannot be read", v->state);
	close(fd);
	unlink(v->state);
	if (!rc)
		rc = vu_frontend_load_state(v->fe, data, (size_t)st.st_size, e);
	free(data);
	v->used = !rc;
	if (!rc)
		vp_log(VP_LOG_NOTICE, "%s: the back-end goes on with the state of the last one", v->path);
	else
		vp_log(VP_LOG_ERR, "%s: what the driver VM has open is lost: %s", v->path, e->msg);
	return rc;
}

static int handshake(struct vhostuser *v, int fd, struct vp_err *e)
{
	int rc;

	v->fe = vu_frontend_new(fd, TIMEOUT_MS, e);
	if (!v->fe)
		return -ENOMEM;
	vu_frontend_on_request(v->fe, on_request, v);
	rc = vu_frontend_negotiate(v->fe, WANTED_PF, &v->offered, e);
	if (!rc)
		rc = vu_frontend_queue_num(v->fe, 2, &v->nqueues, e);
	if (!rc)
		rc = load_state(v, e);
	if (rc)
		disconnect(v);
	return rc;
}

static bool vu_ready(struct datapath *d)
{
	struct vhostuser *v = VU(d);
	struct vp_err e = { 0 };
	int fd;

	if (v->fe)
		return true;
	if (now_ms() < v->connect_ms)
		return false;
	v->connect_ms = now_ms() + CONNECT_AGAIN_MS;
	fd = try_connect(v);
	if (fd < 0) {
		if (v->said != fd)
			vp_log(VP_LOG_NOTICE, "%s: %s", v->path,
			       v->server			      ? "waiting for the vhost-user back-end to connect"
			       : fd == -ENOENT || fd == -ECONNREFUSED ? "waiting for the vhost-user back-end to listen"
								      : strerror(-fd));
		v->said = fd;
		return false;
	}
	if (handshake(v, fd, &e)) {
		if (v->said != 1)
			vp_log(VP_LOG_ERR, "%s: no vhost-user back-end: %s", v->path, e.msg);
		v->said = 1;
		return false;
	}
	v->said = 0;
	/*
	 * GET_QUEUE_NUM counts pairs for net devices in DPDK and rings in others; what is more than there is stays
	 * idle.
	 */
	vp_log(VP_LOG_NOTICE, "%s: vhost-user back-end connected, features %#llx", v->path,
	       (unsigned long long)v->offered);
	return true;
}

static void vu_features(struct datapath *d, uint64_t f[2])
{
	struct vhostuser *v = VU(d);
	uint64_t own = VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VU_F_PROTOCOL_FEATURES);

	f[0] = (v->offered & ~own) | (!v->type || v->type == VIRTIO_ID_NET ? VP_NET_NEUTRAL : VP_ANY_NEUTRAL);
	/* A back-end with one pair only may offer MQ all the same: what counts is that it has MQ at all. */
	f[1] = 0;
}

static int vu_describe(struct datapath *d, uint32_t type, uint32_t config_size, struct dp_desc *out, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	int rc = 0;

	if (!v->fe)
		return vp_err_set(e, -ECONNRESET, "%s: the back-end is not connected", v->path);
	v->type = type;
	v->changed = false;
	vu_features(d, out->features);
	out->queues = 0;
	/* Net devices are configured on the host, and count pairs or queues as it pleases them. */
	if (type == VIRTIO_ID_NET)
		return 0;
	out->queues = v->nqueues;
	out->config_size = VP_MIN(config_size, VHP_CONFIG_MAX);
	if (out->config_size && vu_frontend_pf(v->fe) & VP_BIT(VU_PF_CONFIG))
		rc = vu_frontend_get_config(v->fe, 0, out->config_size, out->config, e);
	else
		out->config_size = 0;
	if (rc == -EREMOTEIO) {
		/* It has less of it: the daemon says how much is wanted. */
		out->config_size = 0;
		rc = 0;
	}
	return rc ? failed(v, rc, e) : 0;
}

static bool vu_changed(struct datapath *d)
{
	struct vhostuser *v = VU(d);
	bool changed = v->changed && v->fe;

	v->changed = false;
	return changed;
}

static int vu_set_config(struct datapath *d, uint32_t off, uint32_t len, const uint8_t *data, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	rc = vu_frontend_set_config(v->fe, off, len, data, e);
	return rc ? failed(v, rc, e) : 0;
}

static unsigned int vu_max_queues(struct datapath *d)
{
	return VHP_MAX_QUEUES;
}

static int vu_configure(struct datapath *d, const uint64_t features[2], struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	/* The link addresses are translated already; see VP_NET_NEUTRAL. */
	uint64_t f = features[0] & v->offered & ~(VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM) |
						  VP_BIT(VU_F_PROTOCOL_FEATURES));
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	v->packed = f & VP_BIT(VIRTIO_F_RING_PACKED);
	v->legacy = !vp_has(features, VIRTIO_F_VERSION_1);
	v->told_legacy &= v->legacy;
	rc = vu_frontend_set_features(v->fe, f, e);
	if (!rc && v->mtu && (!v->type || v->type == VIRTIO_ID_NET) && vu_frontend_pf(v->fe) & VP_BIT(VU_PF_MTU) &&
	    f & VP_BIT(VIRTIO_NET_F_MTU))
		rc = vu_frontend_set_mtu(v->fe, v->mtu, e);
	return rc ? failed(v, rc, e) : 0;
}

static bool vu_keeps_account(struct datapath *d)
{
	struct vhostuser *v = VU(d);

	return v->fe && vu_frontend_pf(v->fe) & VP_BIT(VU_PF_INFLIGHT_SHMFD);
}

/*
 * Before the first ring of a session: what is open there is given to the driver VM's requests by the back-end itself.
 */
static int set_inflight(struct vhostuser *v, const struct memmap *m, struct vp_err *e)
{
	const struct mm_region *r = &m->inflight;
	uint64_t size;
	int rc;

	if (!r->win || !vu_keeps_account(&v->dp) || (v->has_inflight && v->inflight_serial == r->win->serial))
		return 0;
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
		if (v->set[i])
			return 0;
	rc = vu_frontend_inflight_size(v->fe, m->inflight_queues, m->inflight_entries, &size, e);
	if (!rc && size > r->size)
		rc = vp_err_set(e, -E2BIG,
				"the back-end wants %llu bytes for its account of open requests, there are %llu",
				(unsigned long long)size, (unsigned long long)r->size);
	if (!rc)
		rc = vu_frontend_set_inflight(v->fe, m->inflight_queues, m->inflight_entries, r->win->fd, r->offset,
					      size, e);
	v->has_inflight = !rc;
	v->inflight_serial = r->win->serial;
	return rc;
}

static int vu_set_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	static struct vu_mem_region r[VHP_MAX_REGIONS];
	static int fds[VHP_MAX_REGIONS];
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	rc = set_inflight(v, m, e);
	if (rc)
		return failed(v, rc, e);
	for (unsigned int i = 0; i < m->nregions; i++) {
		r[i] = (struct vu_mem_region){
			.gpa = m->r[i].addr, .size = m->r[i].size,
			.uva = m->r[i].win->uva + m->r[i].offset, .mmap_offset = m->r[i].offset,
		};
		fds[i] = m->r[i].win->fd;
	}
	rc = vu_frontend_set_mem(v->fe, r, fds, m->nregions, e);
	if (rc == -E2BIG)
		return vp_err_set(e, rc,
				  "the driver VM's memory has %u regions, this back-end takes %u: give that VM its "
				  "memory in fewer pieces",
				  m->nregions, VU_MAX_TABLE_REGIONS);
	if (rc)
		return failed(v, rc, e);
	v->nmem = m->nregions;
	v->mem = m;
	return 0;
}

static int vu_start(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	struct vu_frontend_ring r = {
		.num = c->size, .base = c->base,
		.desc = c->ring.desc, .avail = c->ring.avail, .used = c->ring.used,
		.kick_fd = c->kick_fd, .call_fd = c->call_fd, .err_fd = -1,
	};
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	rc = vu_frontend_start_ring(v->fe, q, &r, e);
	if (rc)
		return failed(v, rc, e);
	v->set[q] = v->used = true;
	v->used_at[q] = c->ring.used;
	v->finish_ms = dp_vhostuser_finish_ms;
	return 0;
}

static int vu_enable(struct datapath *d, unsigned int q, bool on, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	rc = vu_frontend_enable(v->fe, q, on, e);
	/* Without protocol features rings are enabled by being started. */
	if (rc == -EOPNOTSUPP)
		rc = 0;
	return rc ? failed(v, rc, e) : 0;
}

/* The used index of a split ring; false: it cannot be reached. */
static bool used_index(const struct vhostuser *v, unsigned int q, uint16_t *idx)
{
	const uint64_t at = v->used_at[q] + 2;	/* behind flags */

	for (unsigned int i = 0; v->mem && i < v->mem->nregions; i++) {
		const struct mm_region *r = &v->mem->r[i];
		uint64_t uva = r->win->uva + r->offset;
		struct vp_map *m;
		bool lost;

		if (at < uva || at - uva >= r->size)
			continue;
		if (vp_map_new(&m, r->win->fd, r->offset + (at - uva), sizeof(*idx), VP_MAP_READONLY | VP_MAP_VOUCHED,
			       NULL))
			return false;
		*idx = vp_ld16_acquire(m->host, 0);
		lost = vp_map_lost(m);
		vp_map_unref(m);
		return !lost;
	}
	return false;
}

/*
 * Did it say that it has stopped while requests were under way? Some return them in the ring after that all the same,
 * which is soon seen. qemu-storage-daemon returns them in the ring that it is given next. Before it serves another
 * connection it waits for them. What a net device has taken ahead it has not begun with.
 */
static bool left_open(struct vhostuser *v, unsigned int q, uint32_t base)
{
	uint16_t used;

	if (!v->type || v->type == VIRTIO_ID_NET)
		return false;
	if (v->packed)
		return (uint16_t)base != base >> 16;
	while (used_index(v, q, &used)) {
		if ((uint16_t)base == used)
			return false;
		if (v->unclean || !v->finish_ms)
			return true;
		poll(NULL, 0, 1);
		v->finish_ms--;
	}
	return true;
}

static int vu_stop(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e)
{
	struct vhostuser *v = VU(d);
	int rc;

	if (!v->fe)
		return -ECONNRESET;
	if (!v->set[q])
		return -ENODATA;
	v->set[q] = false;
	rc = vu_frontend_stop_ring(v->fe, q, base, e);
	if (rc)
		return failed(v, rc, e);
	if (!left_open(v, q, *base))
		return 0;
	if (!v->unclean)
		vp_log(VP_LOG_NOTICE,
		       "%s: the back-end stopped queue %u with requests under way: connecting again when it has done "
		       "them",
		       v->path, q);
	v->unclean = true;
	/* Which of them will have been returned by then, its index does not tell. */
	return -ENODATA;
}

static bool vu_unclean(struct datapath *d)
{
	return VU(d)->unclean;
}

/*
 * The back-end should let go of the memory. Region by region it can be told to. With a bare SET_MEM_TABLE it can't, and
 * some (passt) look for the rings of the last run in the next table, and end when they are not there: they are left,
 * and met again as new. So are those of QEMU's library that serve other devices (qemu-storage-daemon), which look for
 * them whenever a region is added. Those that can be reset (virtiofsd) do not, and would end with their first
 * connection.
 */
static bool keeps_rings(const struct vhostuser *v)
{
	uint64_t pf = vu_frontend_pf(v->fe);

	return !(pf & VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS)) ||
	       (v->type && v->type != VIRTIO_ID_NET && !(pf & VP_BIT(VU_PF_RESET_DEVICE)));
}

static void vu_reset(struct datapath *d)
{
	struct vhostuser *v = VU(d);
	struct vp_err e = { 0 };
	int rc;

	if (!v->fe || !v->nmem)
		return;
	if (v->unclean || keeps_rings(v)) {
		disconnect(v);
		v->connect_ms = 0; /* it has not failed */
		return;
	}
	rc = vu_frontend_set_mem(v->fe, NULL, NULL, 0, &e);
	if (rc)
		failed(v, rc, &e);
	v->nmem = 0;
	v->mem = NULL;
}

static void vu_config(struct datapath *d, const struct dp_config *c)
{
	struct vhostuser *v = VU(d);

	v->mtu = 0;
	if (v->type && v->type != VIRTIO_ID_NET)
		return;
	if (vp_has(c->features, VIRTIO_NET_F_MTU) && c->size >= 12)
		v->mtu = (uint16_t)(c->data[10] | c->data[11] << 8);
}

static void vu_carrier(struct datapath *d, bool on)
{
}

static unsigned int vu_fds(struct datapath *d, struct pollfd *p)
{
	struct vhostuser *v = VU(d);

	if (v->fe) {
		p[0] = (struct pollfd){ .fd = vu_frontend_fd(v->fe), .events = POLLIN | POLLRDHUP };
		if (vu_frontend_req_fd(v->fe) < 0)
			return 1;
		p[1] = (struct pollfd){ .fd = vu_frontend_req_fd(v->fe), .events = POLLIN };
		return 2;
	}
	if (v->server) {
		p[0] = (struct pollfd){ .fd = v->listen_fd, .events = POLLIN };
		return 1;
	}
	return 0;
}

static int vu_handle(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2],
		     struct vp_err *e)
{
	struct vhostuser *v = VU(d);

	/* Its end shows on the main channel. */
	if (v->fe && n > 1 && p[1].revents)
		vu_frontend_serve(v->fe, NULL);
	if (!v->fe || !n || !p[0].revents)
		return 0;
	/* Nothing was asked, so whatever comes means that the back-end left or lost its wits. */
	vp_err_set(e, -ECONNRESET, "the vhost-user back-end %s", p[0].revents & (POLLHUP | POLLRDHUP | POLLERR) ?
		   "closed the connection" : "sent something unasked");
	look_legacy(v);
	disconnect(v);
	return -ECONNRESET;
}

static void vu_close(struct datapath *d)
{
	struct vhostuser *v = VU(d);

	save_state(v);
	vu_frontend_destroy(v->fe);
	if (v->listen_fd >= 0) {
		close(v->listen_fd);
		unlink(v->path);
	}
	free(v);
}

static const struct datapath_ops vu_ops = {
	.name = "vhost-user",
	.ready = vu_ready,
	.describe = vu_describe,
	.changed = vu_changed,
	.set_config = vu_set_config,
	.features = vu_features,
	.keeps_account = vu_keeps_account,
	.max_queues = vu_max_queues,
	.configure = vu_configure,
	.set_mem = vu_set_mem,
	.start = vu_start,
	.enable = vu_enable,
	.stop = vu_stop,
	.unclean = vu_unclean,
	.reset = vu_reset,
	.config = vu_config,
	.carrier = vu_carrier,
	.fds = vu_fds,
	.handle = vu_handle,
	.close = vu_close,
};

static int do_listen(struct vhostuser *v, struct vp_err *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;

	v->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (v->listen_fd < 0)
		return vp_err_set(e, -errno, "no socket: %s", strerror(errno));
	memcpy(a.sun_path, v->path, sizeof(a.sun_path));
	/* Left over from a crash? Nobody listens at it, as we own the port that it is for. */
	if (lstat(v->path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(v->path);
	if (bind(v->listen_fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(v->listen_fd, 1) < 0) {
		int rc = vp_err_set(e, -errno, "cannot listen at %s: %s: choose another path, or make its directory",
				    v->path, strerror(errno));

		vp_close(&v->listen_fd);
		return rc;
	}
	return 0;
}

int dp_vhostuser_open(const char *path, bool server, const char *state, struct datapath **out, struct vp_err *e)
{
	struct vhostuser *v;
	int rc;

	if (!*path || strlen(path) >= sizeof(v->path))
		return vp_err_set(e, -ENAMETOOLONG, "'%s' is no socket path: 1 to %zu characters", path,
				  sizeof(v->path) - 1);
	rc = vp_map_guard_faults();
	if (rc)
		return vp_err_set(e, rc, "no handler for revoked memory: %s", strerror(-rc));
	v = calloc(1, sizeof(*v));
	if (!v)
		return vp_err_set(e, -ENOMEM, "out of memory");
	v->dp.ops = &vu_ops;
	v->server = server;
	v->state = state;
	v->listen_fd = -1;
	snprintf(v->path, sizeof(v->path), "%s", path);
	if (server) {
		rc = do_listen(v, e);
		if (rc) {
			free(v);
			return rc;
		}
	}
	*out = &v->dp;
	return 0;
}
