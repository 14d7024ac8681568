/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside of the IOTLB; for iotlb.c and iotlb_save.c only. */
#ifndef VP_GUESTMEM_IOTLB_PRIV_H
#define VP_GUESTMEM_IOTLB_PRIV_H

#include "guestmem/iotlb.h"

#define GPA_SHIFT 4

enum miss_state {
	MISS_FREE,
	MISS_FILLING,
	MISS_NOTED,
	MISS_SENT,
	MISS_GRANTED, /* answered without an error, and the update that goes with it has not come */
	MISS_SHORT,   /* an update came since, without the permission that was asked for */
};

struct entry {
	uint64_t iova, last; /* inclusive */
	uint64_t host;       /* our address of iova, as a number */
	uint64_t gpa_perm;   /* guest physical address of iova << GPA_SHIFT | what is denied << 2 | permissions */
};

struct miss {
	uint64_t iova;
	uint32_t acc;
	uint32_t state; /* enum miss_state */
};

struct vp_iotlb {
	struct vp_iommu iommu;
	uint32_t seq;
	unsigned n, room;
	struct entry *e;      /* replaced only while no reader is inside: see grow() */
	struct miss miss[VP_IOTLB_MISSES];
	void   (*wake)(void *arg);
	void    *arg;
	uint64_t updates, invalidations, misses, lookups;
};

#endif
