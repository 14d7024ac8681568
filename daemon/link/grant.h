/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Grant mode: which of the driver VM's memory the device VM can reach. That is the pages of the rings that run, and the
 * ranges that the driver VM has granted, each as a window of just these bytes; from the time when it granted them until
 * the last ring stops, the driver VM's VMM leaves, or the grant is dropped. Windows have gone from the device VM before
 * the driver VM's VMM is told that a ring has stopped.
 *
 * Ranges are link addresses. Where they come from (`Grant=`):
 *   swiotlb  the pool through which the driver VM's kernel bounces every buffer (swiotlb=force). The driver VM says
 *            where it is: on its channel (grant_channel.h), or an administrator says it for it (vp_grants_give());
 *   viommu   what the driver VM's IOMMU has mapped for this device (grant_viommu.h);
 *   memory   a memory device of the driver VM, known by its size: pool and rings of a user-space driver lie in it.
 *
 * Rings are never the authority: the device VM can write them. Main thread only.
 */
#ifndef VP_DAEMON_LINK_GRANT_H
#define VP_DAEMON_LINK_GRANT_H

#include "link/port_link.h"

struct vp_grants;

/* Opens the channel, if there is one. -ENOMEM, or the socket's error. */
int  vp_grants_new(struct vp_grants **out, struct vp_plink *pl, struct vp_err *e);
void vp_grants_free(struct vp_grants *g);  /* NULL is allowed */

/*
 * Rings, memory or link may be other ones than before: bring the port's memory in line. extra: a region that the link
 * shows besides, or NULL; its fd stays the caller's.
 */
void vp_grants_update(struct vp_grants *g, const struct vp_port_region *extra);
/* The driver VM's memory table is another one. Before vp_grants_update(). */
void vp_grants_memory_changed(struct vp_grants *g);

/*
 * May queue i be handed over? 0; VP_LATER: the windows of its ring are not there yet, and vp_grants_tidy() will say so;
 * -EPERM: its buffers lie outside what is granted (said in the log).
 */
int  vp_grants_may_begin(struct vp_grants *g, unsigned i);
/* Queue i's ring is not granted any more (q->gone). 0, or VP_LATER: vp_grants_tidy() answers its stop. */
int  vp_grants_leave(struct vp_grants *g, unsigned i, const struct vp_port_region *extra);
/*
 * The device VM has given queue i up: is it gone on with all the same, as one that is copied? Its ring is resumed.
 */
bool vp_grants_gave_up(struct vp_grants *g, unsigned i);
/* The port has changed: windows may have come or gone. */
void vp_grants_tidy(struct vp_grants *g);

/*
 * The driver VM grants [addr, addr + size): whole pages of its memory in one piece. by: who says so, for people.
 * -ENOTCONN: its driver does not run; -EEXIST: it has granted something else; -EINVAL, -ERANGE; with a sentence.
 */
int  vp_grants_give(struct vp_grants *g, uint64_t addr, uint64_t size, const char *by, struct vp_err *e);
/* Of Grant=viommu: as in vp_port_ops and vp_vdev_ops. */
uint32_t vp_grants_map(struct vp_grants *g, uint64_t addr, uint64_t size, bool *covered);
void vp_grants_unmap(struct vp_grants *g, uint64_t addr, uint64_t size);
void vp_grants_translated(struct vp_grants *g);
int  vp_grants_revoke(struct vp_grants *g, uint64_t iova, uint64_t last, bool remap, uint64_t uva);

/* It grants nothing any more: queues are stopped first. */
void vp_grants_drop(struct vp_grants *g, const char *by);

/*
 * For another daemon (docs/handover.md): sockets, which vp_grants_new() finds there (vp_plink_heir_mode()); and what is
 * granted, while the link's device is there and its port is not yet.
 */
void vp_grants_save(const struct vp_grants *g, struct vp_rec *r);
void vp_grants_save_hot(const struct vp_grants *g, struct vp_rec *r);
int  vp_grants_restore_hot(struct vp_grants *g, const struct vp_rec_in *in, struct vp_err *e);
/* The channel's listening socket in what vp_grants_save() wrote: as vp_grant_channel_record_socket(). */
int  vp_grants_record_socket(const struct vp_rec_in *in, int *fd, bool *ours, struct vp_err *e);

/* New reference. */
json_t *vp_grants_json(const struct vp_grants *g);

#endif
