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
#include <unistd.h>

#include "base/util.h"
#include "front/vdev_priv.h"

int vp_vdev_get_inflight(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	bool packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	uint64_t size = io->num_queues * vp_inflight_bytes(io->queue_size, packed);

	vp_close(&v->inflight_fd);
	/* seccomp control: memfd_create ftruncate fcntl */
	v->inflight_fd = memfd_create("vhost-pci inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (v->inflight_fd < 0 || ftruncate(v->inflight_fd, (off_t)size) < 0 ||
	    fcntl(v->inflight_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return vp_err_set(e, -errno, "no in-flight area of %llu bytes: %s", (unsigned long long)size,
				  strerror(errno));
	io->mmap_size = size;
	io->mmap_offset = 0;
	*fd = v->inflight_fd;
	return 0;
}

int vp_vdev_set_inflight(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e)
{
	struct vp_vdev *v = vdev_of(ctx);
	bool packed = v->features & VP_BIT(VIRTIO_F_RING_PACKED);
	struct vp_map *map = NULL;
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
	r = vp_map_new(&map, *fd, in->mmap_offset, in->mmap_size, 0, e);
	if (r)
		return r;
	vp_map_unref(v->inflight);
	v->inflight = map;
	v->inflight_queues = in->num_queues;
	v->inflight_size = in->queue_size;
	return 0;
}

int vp_vdev_inflight_start(struct vp_vdev *v, unsigned q, struct vp_err *e)
{
	struct vp_vdev_ring *r = &v->ring[q];
	struct vp_virtq *vq = &r->rq.vq;
	vp_gptr mem;
	int ret;

	vp_inflight_saved_free(&r->saved);
	r->inflight.on = false;
	if (!v->inflight || q >= v->inflight_queues || vq->size > v->inflight_size)
		return 0;
	mem = vp_gptr_add(v->inflight->host, q * vp_inflight_bytes((uint16_t)v->inflight_size, vq->packed));
	ret = vp_inflight_open(&r->inflight, &r->saved, mem, vq);
	return ret ? vp_err_set(e, ret, ret == -ENOMEM ? "out of memory" : "its in-flight account is of another kind, or contradicts itself") : 0;
}

void vp_vdev_inflight_free(struct vp_vdev *v)
{
	for (unsigned q = 0; q < v->n; q++)
		vp_inflight_saved_free(&v->ring[q].saved);
	vp_close(&v->inflight_fd);
	vp_map_unref(v->inflight);
}
