/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the ring is the guest's, its memory the VMM's; both may be changed, the file truncated. As in shmem.c.
 */
#include "handover/lastsig.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <unistd.h>

#include "sys/fds.h"
#include "guestmem/memtab.h"
#include "port/sring.h"

struct vp_lastsig {
	int              call;
	bool             ring;
	struct vp_virtq  vq;
	struct vp_memtab *tab;
	struct vp_burst  *burst;
};

static int open_ring(struct vp_lastsig *s, const struct vp_lastsig_conf *c)
{
	struct vp_region_desc d = { .gpa = c->gpa, .size = c->size, .uva = c->gpa, .offset = c->offset };
	struct vp_vq_conf vc = {
		.size = (uint16_t)c->num,
		.desc = c->desc,
		.driver = c->avail,
		.device = c->used,
		.features = VP_BIT(VIRTIO_F_VERSION_1),
	};
	/* seccomp guard: fstatfs newfstatat fstat fcntl mmap(arg2 & PROT_EXEC == 0) madvise munmap close */
	/* The daemon has mapped it, and vouches for it. */
	int r = vp_map_new(&d.map, c->ram, c->offset, c->size, VP_MAP_VOUCHED, NULL);

	if (!r)
		r = vp_memtab_build(&s->tab, &d, 1, NULL);
	vp_map_unref(d.map);
	s->burst = calloc(1, sizeof(*s->burst));
	if (!r && !s->burst)
		r = -ENOMEM;
	vc.tab = s->tab;
	if (!r)
		r = vp_vq_start(&s->vq, &vc, NULL);
	/* Each buffer that was taken was returned at once: the used index is where to go on. */
	vc.base = s->vq.used_idx;
	if (!r)
		r = vp_vq_start(&s->vq, &vc, NULL);
	s->ring = !r;
	return r;
}

int vp_lastsig_new(struct vp_lastsig **out, const struct vp_lastsig_conf *c)
{
	struct vp_lastsig *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->call = c->call;
	if (c->ram >= 0)
		r = open_ring(s, c);
	if (r) {
		vp_lastsig_free(s);
		return r;
	}
	*out = s;
	return 0;
}

void vp_lastsig_raise(struct vp_lastsig *s)
{
	/* seccomp guard: write */
	if (s->call >= 0 && (!s->ring || vp_sring_return(&s->vq, s->burst)))
		vp_eventfd_raise(s->call);
}

void vp_lastsig_free(struct vp_lastsig *s)
{
	if (!s)
		return;
	vp_memtab_free(s->tab);
	free(s->burst);
	free(s);
}
