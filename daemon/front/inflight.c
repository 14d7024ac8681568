/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The account of open requests that a front-end keeps for its back-ends (vhost-user, "Inflight I/O tracking").
 *
 * Threat model: engine/inflight.h. The memory is a sealed file of ours when we made it, and any file when the front-end
 * brings one: mapped like guest memory, a truncated one reads as zeroes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "front/vdev_priv.h"

/* An area of ours: a file that can be any attachment's window, for which ivshmem wants a power of two. */
static int area_file(uint64_t size, uint64_t *bytes, struct vp_err *e)
{
	int fd;

	for (*bytes = 64 << 10; *bytes < size;)
		*bytes *= 2;
	/* seccomp control: memfd_create ftruncate fcntl */
	fd = memfd_create("vhost-pci inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)*bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		vp_err_set(e, -errno, "no in-flight area of %llu bytes: %s", (unsigned long long)*bytes,
			   strerror(errno));
		vp_close(&fd);
		return e->code;
	}
	return fd;
}

int vp_vdev_get_inflight(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	bool packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	int made = area_file(io->num_queues * vp_inflight_bytes(io->queue_size, packed), &io->mmap_size, e);

	if (made < 0)
		return made;
	vp_close(&v->inflight_fd);
	v->inflight_fd = made;
	io->mmap_offset = 0;
	*fd = v->inflight_fd;
	return 0;
}

static void take_area(struct vp_vdev *v, struct vp_map *map, uint64_t off, uint64_t bytes, unsigned queues,
		      unsigned entries)
{
	vp_map_unref(v->inflight);
	v->inflight = map;
	v->inflight_off = off;
	v->inflight_bytes = bytes;
	v->inflight_queues = queues;
	v->inflight_size = entries;
}

int vp_vdev_inflight_take(struct vp_vdev *v, int fd, uint64_t offset, uint64_t bytes, unsigned queues, unsigned entries,
			  bool again, struct vp_err *e)
{
	struct vp_map *map = NULL;
	int r = vp_map_new(&map, fd, offset, bytes, again ? VP_MAP_AGAIN : 0, e);

	if (!r)
		take_area(v, map, offset, bytes, queues, entries);
	return r;
}

int vp_vdev_set_inflight(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	bool packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	int r;

	for (unsigned q = 0; q < v->n; q++)
		if (v->ring[q].usable || v->ring[q].wait)
			return vp_err_set(e, -EBUSY, "SET_INFLIGHT_FD while queue %u runs", q);
	if (in->mmap_offset & 63)
		return vp_err_set(e, -EINVAL, "an in-flight area at 0x%llx is not aligned to 64 bytes",
				  (unsigned long long)in->mmap_offset);
	if (in->mmap_size < in->num_queues * vp_inflight_bytes(in->queue_size, packed))
		return vp_err_set(e, -EINVAL, "an in-flight area of %llu bytes does not hold %u queues of %u entries",
				  (unsigned long long)in->mmap_size, in->num_queues, in->queue_size);
	r = vp_vdev_inflight_take(v, *fd, in->mmap_offset, in->mmap_size, in->num_queues, in->queue_size, false,
				  e);
	if (r)
		return r;
	v->inflight_own = false;
	if (v->ops->memory)
		v->ops->memory(v->ctx);
	return 0;
}

#define OWN_ENTRIES 1024u /* VMMs make no larger rings */

/*
 * For a front-end that has none: it lives as long as the session, and is begun anew whenever the front-end starts a
 * ring.
 */
static int make_own(struct vp_vdev *v, struct vp_err *e)
{
	struct vp_map *map = NULL;
	uint64_t bytes;
	int fd = area_file(v->n * vp_inflight_bytes(OWN_ENTRIES, true), &bytes, e), r;

	if (fd < 0)
		return fd;
	r = vp_map_new(&map, fd, 0, bytes, 0, e);
	vp_close(&fd);
	if (r)
		return r;
	take_area(v, map, 0, bytes, v->n, OWN_ENTRIES);
	v->inflight_own = true;
	return 0;
}

int vp_vdev_inflight(struct vp_vdev *v, struct vp_vdev_inflight *out, struct vp_err *e)
{
	int r = v->inflight ? 0 : make_own(v, e);
	struct stat st;

	if (r)
		return r;
	/* Of a front-end that made it itself. */
	if (v->inflight_off & 4095 || fstat(v->inflight->fd, &st) < 0 ||
	    (uint64_t)st.st_size < v->inflight_off + vp_align_up(v->inflight_bytes, 4096))
		return vp_err_set(e, -EINVAL, "the in-flight area of its VMM does not consist of whole pages");
	*out = (struct vp_vdev_inflight){
		.fd = v->inflight->fd, .offset = v->inflight_off, .size = vp_align_up(v->inflight_bytes, 4096),
		.queues = v->inflight_queues, .entries = v->inflight_size,
	};
	return 0;
}

static vp_gptr account_of(const struct vp_vdev *v, unsigned q, uint64_t *bytes)
{
	*bytes = vp_inflight_bytes((uint16_t)v->inflight_size, v->ring[q].rq.vq.packed);
	return vp_gptr_add(v->inflight->host, q * *bytes);
}

static bool has_account(const struct vp_vdev *v, unsigned q)
{
	return v->inflight && q < v->inflight_queues && v->ring[q].rq.vq.size <= v->inflight_size;
}

vp_gptr vp_vdev_inflight_at(const struct vp_vdev *v, unsigned q)
{
	uint64_t bytes;
	vp_gptr mem;

	if (!has_account(v, q))
		return VP_GPTR_NULL;
	mem = account_of(v, q, &bytes);
	return (q + 1) * bytes <= v->inflight_bytes ? mem : VP_GPTR_NULL;
}

static int account_open(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	uint64_t bytes;
	vp_gptr mem;
	int ret;

	vp_inflight_saved_free(&r->saved);
	r->inflight.on = false;
	if (!has_account(v, q))
		return 0;
	mem = account_of(v, q, &bytes);
	/* The front-end may have acknowledged packed rings after it gave the area. */
	if ((q + 1) * bytes > v->inflight_bytes)
		return vp_err_set(
			e, -EINVAL,
			"its in-flight area of %llu bytes was given for split rings, and has no room for packed ones",
			(unsigned long long)v->inflight_bytes);
	ret = vp_inflight_open(&r->inflight, &r->saved, mem, &r->rq.vq);
	return ret ? vp_err_set(e, ret, ret == -ENOMEM ? "out of memory" :
				"its in-flight account is of another kind, or contradicts itself") : 0;
}

int vp_vdev_inflight_start(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	uint64_t bytes;
	vp_gptr mem;

	if (v->inflight && v->inflight_own && q < v->inflight_queues) {
		mem = account_of(v, q, &bytes);
		vp_zero(mem, bytes);
	}
	return account_open(v, q, e);
}

int vp_vdev_ring_reopen(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_virtq *vq = &r->rq.vq;
	int ret = 0;

	if (!r->usable || vq->broken)
		return 0;
	/* A packed ring does not say where it stands, its account does. */
	if (!vq->packed)
		ret = vp_vdev_ring_resume(v, q, false, 0, e);
	if (ret)
		return ret;
	ret = account_open(v, q, e);
	if (!ret && (r->saved.fresh || !r->inflight.on) && vp_vq_unfinished(vq))
		ret = vp_err_set(e, -ENODATA, "its back-end has written no account of its requests");
	if (ret) {
		vp_vq_break(vq, VP_VQ_LOST_REQUESTS);
		r->reported = true;
		vp_vdev_ring_failed(v, q, e->msg);
	}
	return ret;
}

void vp_vdev_inflight_free(struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++)
		vp_inflight_saved_free(&v->ring[q].saved);
	vp_close(&v->inflight_fd);
	vp_map_unref(v->inflight);
}
