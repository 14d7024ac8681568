/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Test support: a driver VM's side of memory and of virtqueues, written from
 * virtio 1.3 (2.7 split, 2.8 packed) and not from the code under test. It maps
 * the memory a second time, as another process would, and uses atomics for
 * every ring field, so that it can run in a thread of its own.
 */
#ifndef VP_TESTS_DRIVER_H
#define VP_TESTS_DRIVER_H

#include "virtq/virtq.h"

#define F_INDIRECT  VP_BIT(28)
#define F_EVENT_IDX VP_BIT(29)
#define F_VERSION_1 VP_BIT(32)
#define F_PACKED    VP_BIT(34)
#define F_IN_ORDER  VP_BIT(35)

#define D_NEXT     1u
#define D_WRITE    2u
#define D_INDIRECT 4u
#define D_AVAIL    0x80u
#define D_USED     0x8000u

/* Where [gpa, gpa + size) lies in the memory file. */
struct drv_region {
	uint64_t gpa, size, off;
};

struct drv_mem {
	int fd;
	uint8_t *p;              /* the driver's own mapping of the whole file */
	uint64_t size;
	unsigned n;
	struct drv_region r[VP_MEMTAB_MAX];
	struct vp_memtab *tab;   /* what the device side sees */
};

/* A sealed file of size bytes; one region at gpa 0 when r is NULL. Aborts on failure. */
void drv_mem_init(struct drv_mem *m, uint64_t size, const struct drv_region *r, unsigned n);
void drv_mem_free(struct drv_mem *m);
/* Let the driver use the device side's mapping (of one region), so that ThreadSanitizer sees both sides. */
void drv_mem_share(struct drv_mem *m);
/* Location of gpa in the driver's mapping; NULL when no region has it. */
uint8_t *drv_ptr(struct drv_mem *m, uint64_t gpa);
/* Is [p, p + len) a segment of the device side that lies wholly inside one region and belongs to gpa addr? */
bool drv_seg_ok(struct drv_mem *m, const struct vp_seg *s);

struct drv_buf {
	uint64_t addr;
	uint32_t len;
	bool     write;
};

struct drv {
	struct drv_mem *m;
	uint16_t size;
	uint64_t features;
	bool     packed, event_idx;
	uint64_t desc, driver, device; /* guest physical */
	uint16_t num_free;
	/* split */
	uint16_t free_head, avail, published, used;
	uint16_t *link;                /* free list; for a used chain, its next descriptor */
	uint16_t *chain_len;           /* by head (split) or id (packed) */
	/* packed */
	uint16_t slot, used_slot, kick_slot;
	bool     wrap, used_wrap, kick_wrap;
	uint16_t *ids;
	unsigned n_ids;
};

/* Lay a ring out from gpa on; returns the first address behind it. The memory is zeroed. */
uint64_t drv_init(struct drv *d, struct drv_mem *m, uint16_t size, uint64_t features, uint64_t gpa);
void drv_free(struct drv *d);
struct vp_vq_conf drv_conf(const struct drv *d, uint32_t base);

/*
 * Add a chain, direct (table 0) or with an indirect table at gpa table. Its id,
 * or -1 when the ring is full. A split chain becomes visible with drv_publish(), a packed one at once.
 */
int drv_add(struct drv *d, const struct drv_buf *b, unsigned n, uint64_t table);
void drv_publish(struct drv *d);
/* After drv_publish(): does the device want a kick for what was added since the last time? */
bool drv_kick_needed(struct drv *d);
/* Next used chain; false when there is none. Aborts when the device returned an id that is not out. */
bool drv_get_used(struct drv *d, uint16_t *id, uint32_t *len);
/* Ask for a call when the next chain is used; true when there is one already. */
bool drv_enable_calls(struct drv *d);
void drv_disable_calls(struct drv *d);

/* Raw writes, for rings that break the rules. */
void drv_set_desc(struct drv *d, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next);
void drv_set_pdesc(struct drv *d, unsigned i, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags);
void drv_set_avail(struct drv *d, uint16_t idx, uint16_t head); /* ring[idx % size] = head, idx + 1 */
void drv_set_avail_idx(struct drv *d, uint16_t idx);
uint16_t drv_get16(struct drv_mem *m, uint64_t gpa);
void drv_put16(struct drv_mem *m, uint64_t gpa, uint16_t v);
void drv_put64(struct drv_mem *m, uint64_t gpa, uint64_t v);

/* xorshift: the same numbers on every run. */
static inline uint64_t drv_rand(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

#endif
