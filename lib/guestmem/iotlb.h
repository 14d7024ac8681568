/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The IOTLB: what a driver VM's vIOMMU has mapped for one device, as the front-end tells us
 * (vhost-user, "IOMMU support"). Addresses in rings and descriptors are then IOVAs. An IOVA that is not
 * mapped, or not with the permission that an access needs, is out of reach.
 *
 * Threads: one writer (the main thread: update, invalidate), any number of readers (data threads:
 * translate, through vp_xlate). An invalidation takes effect for a reader at its next burst, which
 * starts with vp_xlate_sync(). The writer acknowledges it after a grace period (synchronize_rcu), when
 * every reader has started a new burst.
 *
 * Misses: a reader notes a miss and goes on with other work. It tells the writer through `wake`. The
 * writer collects the misses (vp_iotlb_next_miss) and asks the front-end. A reader that finds the
 * writer at a long change goes on with other work, too. The owner runs the readers again after each
 * change.
 *
 * Security model: IOTLB messages come from the front-end, which owns the memory. Ranges are validated
 * against the region table. The numbers of entries and of noted misses are bounded.
 */
#ifndef VP_GUESTMEM_IOTLB_H
#define VP_GUESTMEM_IOTLB_H

#include "base/record.h"
#include "guestmem/memtab.h"

/*
 * Entries. Beyond this number the neighbourhood that was inserted first is dropped, and missed again.
 * Fuzzers have room for a few only, so that they meet the end.
 */
#ifndef VP_IOTLB_MAX
#define VP_IOTLB_MAX    65536
#endif
/* Entries that one update or refusal changes one by one. Beyond this number it forgets what was known. */
#ifndef VP_IOTLB_SPAN
#define VP_IOTLB_SPAN   64
#endif
#define VP_IOTLB_MISSES 64    /* noted at a time */

struct vp_iotlb;

/* A reader calls wake(arg) when it notes a new miss; wake must not block. */
int vp_iotlb_new(struct vp_iotlb **out, void (*wake)(void *arg), void *arg);
void vp_iotlb_free(struct vp_iotlb *t);

/* What a vp_xlate takes. */
struct vp_iommu *vp_iotlb_iommu(struct vp_iotlb *t);

/*
 * [iova, iova + size) is mapped to front-end user address uaddr; perm is a mask of 1 << enum vp_access.
 * QEMU says read and write whatever the guest mapped. An access is proven only when QEMU has answered a
 * miss for it without an error. So of perm this keeps `proven`, and what was already known of the same
 * place. Neighbours that continue each other are merged. -EINVAL: empty or wrapping. -EFAULT: not
 * inside one region of tab.
 */
int vp_iotlb_update(struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size, uint64_t uaddr,
		    unsigned perm, unsigned proven);

/*
 * What is proven of a range whose update comes behind the answer: what was asked for of the range and
 * answered (vp_iotlb_answered()).
 */
unsigned vp_iotlb_granted(const struct vp_iotlb *t, uint64_t iova, uint64_t size);

/*
 * Would that update take something away, because an address leads elsewhere or a permission goes? Then
 * readers may hold what it was, and the caller has to treat it as an invalidation first. False also for
 * an update that vp_iotlb_update() refuses.
 */
bool vp_iotlb_changes(const struct vp_iotlb *t, const struct vp_memtab *tab, uint64_t iova, uint64_t size,
		      uint64_t uaddr, unsigned perm);

/*
 * The front-end refused the page of iova for acc. Such accesses fail with -EFAULT, not with a miss,
 * until the page is updated or invalidated. Where an access is known to be allowed it stays so.
 */
void vp_iotlb_refuse(struct vp_iotlb *t, uint64_t iova, enum vp_access acc);

/*
 * The front-end has answered the miss at iova without an error. True: it had sent an update that lacks
 * the permission which was asked for, and has not granted that meanwhile; this is a refusal. Where no
 * update has come yet, the one that comes proves the permission.
 */
bool vp_iotlb_answered(struct vp_iotlb *t, uint64_t iova, enum vp_access acc);

/* Forget [iova, iova + size); size may reach to the end of the address space. */
void vp_iotlb_invalidate(struct vp_iotlb *t, uint64_t iova, uint64_t size);

/* Forget everything (new memory table, reset). */
void vp_iotlb_clear(struct vp_iotlb *t);

/* A miss that was noted: 1 and where; 0: there is none. Writer only. */
int vp_iotlb_next_miss(struct vp_iotlb *t, uint64_t *iova, enum vp_access *acc);

/*
 * All misses may be noted again: they could not be sent, their answers were lost, or nobody waits for
 * them any more.
 */
void vp_iotlb_forget_misses(struct vp_iotlb *t);

/*
 * For another process (docs/handover.md), while no reader runs, and there, into one that is new. Misses are not part of
 * it: they are noted again. -EPROTO: malformed, or it leads outside tab.
 */
void vp_iotlb_save(const struct vp_iotlb *t, unsigned tag, struct vp_rec *r);
int  vp_iotlb_restore(struct vp_iotlb *t, const struct vp_memtab *tab, const struct vp_rec_in *in);

struct vp_iotlb_stats {
	unsigned entries;
	uint64_t updates, invalidations, misses, lookups; /* lookups: those that missed the hot window */
};
void vp_iotlb_stats(const struct vp_iotlb *t, struct vp_iotlb_stats *s);

#endif
