/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A copy engine between a driver (unit/virtq/driver.h) and a device side (virtq.h on the pool), each in memory of its
 * own. Included by one program each; gives static functions.
 */
#ifndef VP_TESTS_COPY_RIG_H
#define VP_TESTS_COPY_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../virtq/driver.h"
#include "engine/copyq.h"

#define RIG_MUST(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); abort(); } } while (0)

#define RIG_MEM       (16u << 20)
#define RIG_RING      0x10000u
#define RIG_TABLE     0x100000u
#define RIG_DATA      0x200000u
#define RIG_POOL_ADDR 0x40000000u

enum rig_kind { RIG_TX, RIG_RX };  /* transmit (early), receive */

struct rig_conf {
	enum rig_kind kind;
	uint16_t size;
	uint64_t drv_features, dev_features;
	uint64_t area;         /* bytes of the area, 0 = 256 KiB */
	void    *kept;         /* what outlives the engine, or NULL */
};

struct rig {
	struct drv_mem  m, pool;
	struct drv      d;
	struct vp_queue rq;
	struct vp_copyq *b;
	struct vp_scratch *s;
	struct vp_virtq dev;
	struct vp_burst burst;
	int call, kick;
	uint64_t area;
	struct vp_copyq_conf conf;
};

static void __attribute__((unused)) rig_new(struct rig *r, const struct rig_conf *c)
{
	uint64_t rb = vp_copyq_ring_bytes(), area = c->area ? c->area : 256 << 10;
	struct vp_copyq_conf bc = { .rq = &r->rq, .features = c->dev_features };
	struct vp_vq_conf vc;
	struct vp_err e = { 0 };
	struct drv_region pr = { RIG_POOL_ADDR, vp_align_up(rb + 2 * area, 4096), 0 };

	memset(r, 0, sizeof(*r));
	r->area = area;
	drv_mem_init(&r->m, RIG_MEM, NULL, 0);
	drv_mem_init(&r->pool, pr.size, &pr, 1);
	drv_init(&r->d, &r->m, c->size, c->drv_features, RIG_RING);
	vc = drv_conf(&r->d, c->drv_features & F_PACKED ? 0x80008000 : 0);
	RIG_MUST(!vp_vq_start(&r->rq.vq, &vc, &e));
	r->rq.features = c->drv_features;
	r->call = r->rq.call_fd = eventfd(0, EFD_NONBLOCK);
	r->kick = bc.kick_fd = eventfd(0, EFD_NONBLOCK);
	r->s = vp_scratch_new();
	RIG_MUST(r->s && r->call >= 0 && r->kick >= 0);
	bc.pool = r->pool.tab->r[0].host;
	bc.pool_addr = RIG_POOL_ADDR;
	bc.ring = (struct vp_copyq_area){ 0, rb };
	bc.data = (struct vp_copyq_area){ c->kind == RIG_TX ? rb : rb + area, area };
	bc.early = c->kind == RIG_TX;
	bc.kept = c->kept;
	r->conf = bc;
	if (vp_copyq_new(&r->b, &bc, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		abort();
	}
	vc = (struct vp_vq_conf){
		.size = r->b->shadow.size, .base = vp_copyq_base(r->b), .features = c->dev_features,
		.desc = r->b->desc_addr, .driver = r->b->avail_addr, .device = r->b->used_addr, .tab = r->pool.tab,
	};
	if (vp_vq_start(&r->dev, &vc, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		abort();
	}
}

/* The end of the device VM's run, and what the driver is told of it. */
static void __attribute__((unused)) rig_stop(struct rig *r)
{
	if (vp_copyq_stop(r->b, true))
		vp_queue_call(&r->rq, r->s);
}

static void __attribute__((unused)) rig_free(struct rig *r)
{
	vp_copyq_free(r->b);
	free(r->s);
	drv_free(&r->d);
	drv_mem_free(&r->m);
	drv_mem_free(&r->pool);
	close(r->call);
	close(r->kick);
}

/* Was it raised? Takes it back. */
static bool __attribute__((unused)) rig_raised(int fd)
{
	uint64_t n;

	return read(fd, &n, sizeof(n)) == sizeof(n);
}

static unsigned __attribute__((unused)) rig_run(struct rig *r)
{
	unsigned n, total = 0;

	while ((n = vp_copyq_run(r->b, r->s)))
		total += n;
	return total;
}

/* What drivers and device sides negotiate. */
static const uint64_t rig_drv_formats[] = {
	0, F_EVENT_IDX, F_IN_ORDER, F_PACKED, F_PACKED | F_EVENT_IDX, F_PACKED | F_EVENT_IDX | F_IN_ORDER,
	F_EVENT_IDX | F_INDIRECT, F_PACKED | F_INDIRECT,
};
static const uint64_t rig_dev_formats[] = { 0,		F_EVENT_IDX,	      F_PACKED, F_PACKED | F_EVENT_IDX,
					    F_IN_ORDER, F_PACKED | F_IN_ORDER };

static void __attribute__((unused)) rig_each(void (*fn)(uint64_t drv, uint64_t dev))
{
	for (unsigned i = 0; i < VP_ARRAY_SIZE(rig_drv_formats); i++)
		for (unsigned k = 0; k < VP_ARRAY_SIZE(rig_dev_formats); k++)
			fn(rig_drv_formats[i] | F_VERSION_1, rig_dev_formats[k] | F_VERSION_1);
}

#endif
