/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The IOTLB: what a driver VM's vIOMMU has mapped for one device, as its front-end tells us
 * (vhost-user, "IOMMU support"). Addresses in rings and descriptors are then IOVAs, and whatever is
 * not mapped, or not with the permission that an access needs, is out of reach.
 *
 * One writer (the main thread: update, invalidate), any number of readers (data threads: translate,
 * through vp_xlate). An invalidation takes effect for a reader at its next burst, which
 * starts with vp_xlate_sync(); the writer acknowledges it after a grace period
 * (synchronize_rcu), when every reader has started a new burst.
 *
 * A miss is noted and the reader goes on with other work; the writer collects the misses
 * (vp_iotlb_next_miss) when told through `wake`, and asks the front-end. A reader that finds the writer at a long change goes on with other
 * work, too. The owner runs the readers again after each change.
 *
 * Security model: IOTLB messages come from the front-end, which owns the memory. Ranges are validated
 * against the region table; the number of entries and of noted misses is bounded.
 */
#ifndef VP_GUESTMEM_IOTLB_H
#define VP_GUESTMEM_IOTLB_H

#include "guestmem/memtab.h"

/* Entries; beyond it the oldest-inserted neighbourhood is dropped, and missed again. Fuzzers have room for a few only, so as to meet the end. */
#ifndef VP_IOTLB_MAX
#define VP_IOTLB_MAX    65536
#endif
/* Entries that one update or refusal changes one by one; of more, what was known is forgotten. */
#ifndef VP_IOTLB_SPAN
#define VP_IOTLB_SPAN   64
#endif
#define VP_IOTLB_MISSES 64    /* noted at a time */

struct vp_iotlb;

/* wake(arg) is called by a reader when it notes a miss that was not noted yet: it must not block. */
int vp_iotlb_new(struct vp_iotlb **out, void (*wake)(void *arg), void *arg);
void vp_iotlb_free(struct vp_iotlb *t);

/* What a vp_xlate takes. */
struct vp_iommu *vp_iotlb_iommu(struct vp_iotlb *t);

/*
 * [iova, iova + size) is mapped to front-end user address uaddr; perm is a mask of 1 << enum
 * vp_access. QEMU says read and write whatever the guest mapped; only that it answered a miss for
 * an access without an error proves that access. So of perm are kept: `proven`, and what was known
 * of the same place already. Neighbours that continue each other are merged. -EINVAL: empty or
 * wrapping; -EFAULT: not inside one region of tab.
 */
int vp_iotlb_update(struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		    unsigned perm, unsigned proven);

/*
 * What is proven of a range whose update comes behind the answer: what was asked for of it and
 * vp_iotlb_answered().
 */
unsigned vp_iotlb_granted(const struct vp_iotlb *t, uint64_t iova, uint64_t size);

/*
 * Would that update take something away: an address leads elsewhere, or a permission goes? Then readers may hold what it was, and
 * it has to be treated as an invalidation first. False also for an update that vp_iotlb_update() refuses.
 */
bool vp_iotlb_changes(const struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		      unsigned perm);

/*
 * The page of iova is not to be had for acc: such accesses fail with -EFAULT, not with a miss,
 * until it is updated or invalidated. Where the access is known to be allowed it stays so.
 */
void vp_iotlb_refuse(struct vp_iotlb *t, uint64_t iova, enum vp_access acc);

/*
 * The front-end has answered the miss at iova without an error. True: it had sent an update that
 * lacks the permission which was asked for, and has it not meanwhile; that is a refusal. Where no
 * update has come yet, the one that comes proves the permission.
 */
bool vp_iotlb_answered(struct vp_iotlb *t, uint64_t iova, enum vp_access acc);

/* Forget [iova, iova + size); size may reach to the end of the address space. */
void vp_iotlb_invalidate(struct vp_iotlb *t, uint64_t iova, uint64_t size);

/* Forget everything (new memory table, reset). */
void vp_iotlb_clear(struct vp_iotlb *t);

/* A miss that was noted: 1 and where, 0 none. The writer's. */
int vp_iotlb_next_miss(struct vp_iotlb *t, uint64_t *iova, enum vp_access *acc);

/*
 * All misses may be noted again: they could not be sent, their answers were lost, or nobody waits
 * for them any more.
 */
void vp_iotlb_forget_misses(struct vp_iotlb *t);

struct vp_iotlb_stats {
	unsigned entries;
	uint64_t updates, invalidations, misses, lookups; /* lookups: those that missed the hot window */
};
void vp_iotlb_stats(const struct vp_iotlb *t, struct vp_iotlb_stats *s);

#endif
