// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vhost.h>

#include "base/util.h"
#include "vhost.h"

unsigned int vhost_param(const char *path, unsigned int fallback)
{
	unsigned int v = fallback;
	FILE *f = fopen(path, "re");

	if (!f)
		return fallback;
	if (fscanf(f, "%u", &v) != 1)
		v = fallback;
	fclose(f);
	return v;
}

unsigned int vhost_max_regions(void)
{
	return vhost_param("/sys/module/vhost/parameters/max_mem_regions", 64);
}

int vhost_set_mem(int fd, const char *what, unsigned int max_regions, const struct memmap *m,
		  struct vp_err *e)
{
	struct vhost_memory *t;
	int rc = 0;

	if (m->nregions > max_regions)
		return vp_err_set(
			e, -E2BIG,
			"the driver VM's memory has %u regions, this %s takes %u: load vhost with "
			"max_mem_regions=%u, or give that VM its memory in fewer pieces",
			m->nregions, what, max_regions, VHP_MAX_REGIONS);
	if (fd < 0)
		return 0;
	t = calloc(1, sizeof(*t) + m->nregions * sizeof(t->regions[0]));
	if (!t)
		return vp_err_set(e, -ENOMEM, "out of memory");
	t->nregions = m->nregions;
	for (unsigned int i = 0; i < m->nregions; i++)
		t->regions[i] = (struct vhost_memory_region){
			.guest_phys_addr = m->r[i].addr,
			.memory_size = m->r[i].size,
			.userspace_addr = m->r[i].win->uva + m->r[i].offset,
		};
	if (ioctl(fd, VHOST_SET_MEM_TABLE, t) < 0) {
		rc = -errno;
		vp_err_set(e, rc, "%s refuses the memory table of %u regions: %s", what,
			   m->nregions, strerror(-rc));
	}
	free(t);
	return rc;
}

int vhost_file(int fd, unsigned int index, unsigned long req, int file)
{
	struct vhost_vring_file f = { .index = index, .fd = file };

	return ioctl(fd, req, &f) < 0 ? -errno : 0;
}

int vhost_state(int fd, unsigned int index, unsigned long req, uint32_t num)
{
	struct vhost_vring_state s = { .index = index, .num = num };

	return ioctl(fd, req, &s) < 0 ? -errno : 0;
}

int vhost_ring(int fd, const char *what, unsigned int index, const struct dp_queue *c, int err_fd,
	       struct vp_err *e)
{
	struct vhost_vring_addr a = {
		.index = index,
		.desc_user_addr = c->ring.desc,
		.avail_user_addr = c->ring.avail,
		.used_user_addr = c->ring.used,
	};
	const char *step = "size";
	int rc = vhost_state(fd, index, VHOST_SET_VRING_NUM, c->size);

	if (!rc) {
		step = "base";
		rc = vhost_state(fd, index, VHOST_SET_VRING_BASE, c->base);
	}
	if (!rc) {
		step = "addresses";
		rc = ioctl(fd, VHOST_SET_VRING_ADDR, &a) < 0 ? -errno : 0;
	}
	if (!rc) {
		step = "call";
		rc = vhost_file(fd, index, VHOST_SET_VRING_CALL, c->call_fd);
	}
	if (!rc) {
		step = "error eventfd";
		rc = vhost_file(fd, index, VHOST_SET_VRING_ERR, err_fd);
	}
	if (!rc) {
		step = "kick";
		rc = vhost_file(fd, index, VHOST_SET_VRING_KICK, c->kick_fd);
	}
	if (rc)
		return vp_err_set(e, rc, "%s refuses the %s (size %u, base %#x): %s", what, step,
				  c->size, c->base, strerror(-rc));
	return 0;
}

int vhost_ring_end(int fd, const char *what, unsigned int index, uint32_t *base, struct vp_err *e)
{
	struct vhost_vring_state s = { .index = index };

	if (ioctl(fd, VHOST_GET_VRING_BASE, &s) < 0)
		return vp_err_set(e, -errno, "%s does not say where it stopped: %s", what,
				  strerror(errno));
	vhost_file(fd, index, VHOST_SET_VRING_KICK, -1);
	vhost_file(fd, index, VHOST_SET_VRING_CALL, -1);
	*base = s.num;
	return 0;
}

int vhost_iotlb_on(int fd)
{
	uint64_t features = VP_BIT(VHOST_BACKEND_F_IOTLB_MSG_V2);
	int flags = fcntl(fd, F_GETFL);

	if (ioctl(fd, VHOST_SET_BACKEND_FEATURES, &features) < 0 || flags < 0 ||
	    fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

int vhost_iotlb_ask(int fd, uint64_t *addr, bool *write)
{
	struct vhost_msg_v2 m;

	while (read(fd, &m, sizeof(m)) == (ssize_t)sizeof(m)) {
		if (m.type != VHOST_IOTLB_MSG_V2 || m.iotlb.type != VHOST_IOTLB_MISS)
			continue;
		*addr = m.iotlb.iova;
		*write = m.iotlb.perm & VHOST_ACCESS_WO;
		return 1;
	}
	return 0;
}

int vhost_iotlb_tell(int fd, uint64_t addr, uint64_t size, uint64_t uva)
{
	struct vhost_msg_v2 m = { .type = VHOST_IOTLB_MSG_V2 };

	m.iotlb.iova = addr;
	m.iotlb.size = size;
	m.iotlb.uaddr = uva;
	m.iotlb.perm = uva ? VHOST_ACCESS_RW : 0;
	m.iotlb.type = uva ? VHOST_IOTLB_UPDATE : VHOST_IOTLB_INVALIDATE;
	return write(fd, &m, sizeof(m)) == (ssize_t)sizeof(m) ? 0 : -errno;
}
