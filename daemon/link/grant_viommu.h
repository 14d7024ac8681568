/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Grant=viommu: what the driver VM's vIOMMU has mapped for the device, for reading and writing, becomes windows as the
 * device VM asks for it (MAP), and goes before the driver VM's VMM is told that a mapping is taken back. The areas of
 * rings that run are asked for by ourselves. Nothing is asked for that nobody needs: a question for an address that is
 * not mapped leaves a fault in the driver VM's log.
 *
 * A window is of no use for what the driver maps for a packet only, or not for both: a kernel's driver does that. The
 * queue of such a buffer is copied (vp_plink_queue.copied) from then until its ring stops, and none of its memory is
 * given. The device VM tells which queue that is: the one that it gives up when MAP is refused.
 *
 * For grant.c only, which shows what is here to the port. Main thread only.
 */
#ifndef VP_DAEMON_LINK_GRANT_VIOMMU_H
#define VP_DAEMON_LINK_GRANT_VIOMMU_H

#include "link/mapped.h"
#include "link/port_link.h"

struct vp_grant_viommu;

/* show: have vp_grants_update() called, from inside the functions below. */
int  vp_gv_new(struct vp_grant_viommu **out, struct vp_plink *pl, void (*show)(struct vp_plink *pl), struct vp_err *e);
void vp_gv_free(struct vp_grant_viommu *v);  /* NULL is allowed */

/* Rings may have started or stopped. Before vp_gv_regions(). */
void vp_gv_update(struct vp_grant_viommu *v);
/* As vp_mapped_regions(). */
unsigned vp_gv_regions(struct vp_grant_viommu *v, const struct vp_memtab *t, struct vp_port_region *out);
/* Something is granted, and not to be taken away. */
bool vp_gv_gives(const struct vp_grant_viommu *v);
/* Some queue that runs is copied, and nothing was taken away. all: all that run. */
bool vp_gv_copies(const struct vp_grant_viommu *v);
bool vp_gv_copies_all(const struct vp_grant_viommu *v);
/* As vp_grants_gave_up(). */
bool vp_gv_gave_up(struct vp_grant_viommu *v, unsigned i);
/* Bytes of memory, and since when (CLOCK_MONOTONIC). */
uint64_t vp_gv_bytes(const struct vp_grant_viommu *v, uint64_t *since_us);
/* Why not, for people; "" = nothing to say. */
const char *vp_gv_message(const struct vp_grant_viommu *v);
/* Nothing is given any more until the driver starts its rings anew. */
void vp_gv_drop(struct vp_grant_viommu *v, const char *why);

/* MAP, UNMAP: as in vp_port_ops. */
uint32_t vp_gv_map(struct vp_grant_viommu *v, uint64_t addr, uint64_t size, bool *covered);
void vp_gv_unmap(struct vp_grant_viommu *v, uint64_t addr, uint64_t size);
/* The vIOMMU has answered: as in vp_vdev_ops. */
void vp_gv_translated(struct vp_grant_viommu *v);
/* As in vp_vdev_ops. Then vp_gv_tidy() answers. */
int  vp_gv_revoke(struct vp_grant_viommu *v, uint64_t iova, uint64_t last, bool remap, uint64_t uva);
/* An answer is owed for that: no queue is handed over meanwhile. */
bool vp_gv_revoking(const struct vp_grant_viommu *v);
/* Queues may have stopped, windows may have gone. */
void vp_gv_tidy(struct vp_grant_viommu *v);

/* For another daemon, as vp_grants_save_hot(), while no answer is owed. vp_gv_translated() follows there. */
void vp_gv_save(const struct vp_grant_viommu *v, struct vp_rec *r);
int  vp_gv_restore(struct vp_grant_viommu *v, const struct vp_rec_in *in, struct vp_err *e);

#endif
