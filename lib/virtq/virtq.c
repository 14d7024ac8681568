/* SPDX-License-Identifier: BSD-3-Clause */
#include "virtq/virtq.h"

#include <errno.h>
#include <linux/virtio_config.h>

static const char *const broken_str[VP_VQ_BROKEN_MAX] = {
	[VP_VQ_OK]           = "ok",
	[VP_VQ_BAD_INDEX]    = "available index runs ahead by more than the queue size",
	[VP_VQ_BAD_DESC]     = "descriptor index outside the table",
	[VP_VQ_BAD_CHAIN]    = "descriptor chain loops or is longer than the queue",
	[VP_VQ_BAD_INDIRECT] = "invalid indirect descriptor table",
	[VP_VQ_BAD_ORDER]    = "device-readable descriptor behind a device-writable one",
	[VP_VQ_BAD_ADDR]     = "buffer outside the driver VM's memory",
	[VP_VQ_TOO_LONG]     = "descriptor chain too long",
	[VP_VQ_BAD_RING]     = "ring area is not in one region, or one grant, of memory for the device",
	[VP_VQ_LOST_MEMORY]  = "the memory's backing file was truncated",
	[VP_VQ_BAD_CALL]     = "the call notifier does not take notifications",
	[VP_VQ_LOST_REQUESTS] = "its back-end has gone with requests that it had not answered",
	[VP_VQ_BAD_BUFFER]   = "buffer of the wrong direction for this queue",
};

bool vp_vq_unfinished(const struct vp_virtq *vq)
{
	return vq->packed || vp_ld16(vq->driver, 2) != vp_ld16(vq->device, 2);
}

const char *vp_vq_broken_str(enum vp_vq_broken why)
{
	return (unsigned)why < VP_VQ_BROKEN_MAX ? broken_str[why] : "unknown";
}

void vp_vq_break(struct vp_virtq *vq, enum vp_vq_broken why)
{
	if (!vq->broken)
		vq->broken = (uint8_t)why;
}

uint64_t vp_vq_desc_bytes(uint16_t size)
{
	return 16 * (uint64_t)size;
}

uint64_t vp_vq_driver_bytes(uint16_t size, bool packed)
{
	return packed ? 4 : 6 + 2 * (uint64_t)size;
}

uint64_t vp_vq_device_bytes(uint16_t size, bool packed)
{
	return packed ? 4 : 6 + 8 * (uint64_t)size;
}

static int bind_area(struct vp_virtq *vq, const char *name, uint64_t addr, uint64_t len,
		     unsigned align, enum vp_access acc, vp_gptr *g, struct vp_err *e)
{
	uint64_t end;
	int ret;

	if (addr & (align - 1))
		return vp_err_set(e, -EINVAL, "%s at 0x%llx is not aligned to %u bytes", name,
				  (unsigned long long)addr, align);
	if (vp_add_overflow(addr, len - 1, &end))
		return vp_err_set(e, -EFAULT, "%s at 0x%llx wraps around", name, (unsigned long long)addr);
	ret = vp_xlate_contig(&vq->xl, addr, len, acc, g);
	if (ret == -EFAULT)
		vp_err_set(e, ret, "%s at 0x%llx (0x%llx bytes) does not lie in one memory region of the driver VM",
			   name, (unsigned long long)addr, (unsigned long long)len);
	else if (ret)
		vp_err_set(e, ret, "%s at 0x%llx is not mapped by the vIOMMU yet", name,
			   (unsigned long long)addr);
	/* A region may lie crooked in its file, and the accesses are atomic. */
	else if (vp_gptr_addr(*g) & (align - 1))
		ret = vp_err_set(
			e, -EINVAL,
			"%s at 0x%llx lies in a memory region whose offset in its file is not aligned to %u bytes",
			name, (unsigned long long)addr, align);
	return ret;
}

int vp_vq_rebind(struct vp_virtq *vq, const struct vp_memtab *tab, struct vp_iommu *iommu,
		 struct vp_err *e)
{
	bool packed = vq->packed, grows = vq->xl.grows;
	int ret;

	vp_xlate_init(&vq->xl, tab, iommu);
	vq->xl.grows = grows;
	ret = bind_area(vq, packed ? "descriptor ring" : "descriptor table", vq->desc_addr,
			vp_vq_desc_bytes(vq->size), 16, packed ? VP_WRITE : VP_READ, &vq->desc, e);
	if (!ret)
		ret = bind_area(vq, packed ? "driver event suppression" : "available ring", vq->driver_addr,
				vp_vq_driver_bytes(vq->size, packed), packed ? 4 : 2, VP_READ,
				&vq->driver, e);
	if (!ret)
		ret = bind_area(vq, packed ? "device event suppression" : "used ring", vq->device_addr,
				vp_vq_device_bytes(vq->size, packed), 4, VP_WRITE, &vq->device, e);
	return ret;
}

int vp_vq_start(struct vp_virtq *vq, const struct vp_vq_conf *c, struct vp_err *e)
{
	int ret;

	*vq = (struct vp_virtq){
		.size = c->size,
		.packed = c->features & VP_BIT(VIRTIO_F_RING_PACKED),
		.event_idx = c->features & VP_BIT(VIRTIO_RING_F_EVENT_IDX),
		.in_order = c->features & VP_BIT(VIRTIO_F_IN_ORDER),
		.out_only = c->out_only,
		.long_chains = c->long_chains,
		.indirect = c->features & VP_BIT(VIRTIO_RING_F_INDIRECT_DESC),
		.kicks_on = true, /* a ring's memory starts as zeroes: the driver kicks */
		.desc_addr = c->desc, .driver_addr = c->driver, .device_addr = c->device,
		.xl.grows = c->grows,
	};
	if (!c->size || c->size > VP_VQ_MAX_SIZE || (!vq->packed && !vp_is_pow2(c->size)))
		return vp_err_set(e, -EINVAL, "queue size %u is not valid: %s", c->size,
				  vq->packed ? "1 to 32768 for a packed ring"
					     : "a power of two up to 32768 for a split ring");
	ret = vp_vq_rebind(vq, c->tab, c->iommu, e);
	if (ret)
		return ret;
	if (vq->packed) {
		/*
		 * Some front-ends (DPDK's virtio-user) send 16 bits, for both places. From those that
		 * send 32, an upper half of zero means the same: nothing was in flight.
		 */
		uint16_t used = (uint16_t)(c->base >> 16 ? c->base >> 16 : c->base);

		vq->last_avail = c->base & 0x7fff;
		vq->avail_wrap = c->base & 0x8000;
		vq->used_idx = used & 0x7fff;
		vq->used_wrap = used & 0x8000;
		if (vq->last_avail >= vq->size || vq->used_idx >= vq->size)
			return vp_err_set(e, -EINVAL, "ring base 0x%x lies outside a ring of %u", c->base, c->size);
	} else {
		vq->last_avail = (uint16_t)c->base;
		vq->avail_seen = vq->last_avail;
		/* What was completed before we came: the driver has seen this index already. */
		vq->used_idx = vp_ld16(vq->device, 2);
	}
	return 0;
}

uint32_t vp_vq_base(const struct vp_virtq *vq)
{
	if (!vq->packed)
		return vq->last_avail;
	return (uint32_t)(vq->last_avail | (vq->avail_wrap ? 0x8000 : 0)) |
	       (uint32_t)(vq->used_idx | (vq->used_wrap ? 0x8000 : 0)) << 16;
}

void vp_vq_set_log(struct vp_virtq *vq, const struct vp_dirty_log *log, bool ring, uint64_t ring_addr)
{
	vq->log = log;
	vq->log_ring = ring;
	vq->log_addr = ring_addr;
}

void vp_vq_log_device(struct vp_virtq *vq, uint64_t off, uint64_t len)
{
	if (!vq->log || !vq->log_ring)
		return;
	/* Behind a vIOMMU front-ends send the IOVA of the used ring as its address for logging, too. */
	if (vq->xl.iommu)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, vq->device_addr + off, len);
	else
		vp_dirty_log_mark(vq->log, vq->log_addr + off, len);
}

void vp_vq_log_ring(struct vp_virtq *vq)
{
	if (vq->packed && vq->log && vq->log_ring)
		vp_dirty_log_mark_xlate(vq->log, &vq->xl, vq->desc_addr, vp_vq_desc_bytes(vq->size));
	vp_vq_log_device(vq, 0, vp_vq_device_bytes(vq->size, vq->packed));
}

/*
 * May one more descriptor, or piece of one, be looked at? b->seg[] has room for whatever passed here. A chain for
 * which the burst has nothing left comes first in the next one; one that comes first is too long then.
 */
VP_INLINE int spare(const struct vp_virtq *vq, const struct vp_burst *b)
{
	if (vp_likely(vp_burst_looked(b) < VP_BURST_DESCS))
		return 0;
	if (b->n)
		return -ENOSPC;
	return vq->long_chains && vp_burst_looked(b) < VP_CHAIN_DESCS ? 0 : VP_VQ_TOO_LONG;
}

int vp_chain_add(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		 uint32_t len, bool write)
{
	uint32_t *total = write ? &c->in_len : &c->out_len;
	uint64_t span, end;
	int ret;

	if (!len) {
		ret = spare(vq, b); /* carries nothing; some drivers produce it */
		b->empty += !ret;
		return ret;
	}
	if (!write && c->nin)
		return VP_VQ_BAD_ORDER;
	if (vp_add_overflow(addr, len - 1, &end))
		return VP_VQ_BAD_ADDR;
	if (__builtin_add_overflow(*total, len, total))
		return VP_VQ_TOO_LONG;
	/* A buffer that crosses region borders becomes several segments. */
	while (len) {
		struct vp_seg *s = &b->seg[b->nseg];

		ret = spare(vq, b);
		if (vp_unlikely(ret))
			return ret;
		ret = vp_xlate_near(&vq->xl, addr, len, write, &s->p, &span);
		if (ret)
			return ret == -EAGAIN ? ret : VP_VQ_BAD_ADDR;
		vp_seg_prefetch(s->p, (uint32_t)span, write);
		s->addr = addr;
		s->len = (uint32_t)span;
		b->nseg++;
		if (write)
			c->nin++;
		else
			c->nout++;
		addr += span;
		len -= (uint32_t)span;
	}
	return 0;
}

int vp_chain_indirect(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, uint64_t addr,
		      uint32_t len)
{
	uint32_t n = len / 16, max = VP_MIN(n, vq->size), i = 0, seen;
	uint64_t d[2], w, end, span;
	vp_gptr at;
	int ret;

	if (!vq->indirect || !n || len % 16 || n > VP_VQ_MAX_SIZE ||
	    vp_add_overflow(addr, len - 1, &end))
		return VP_VQ_BAD_INDIRECT;
	/* 2.7.5.3.1: no chain is longer than the queue. Neither Linux's driver nor DPDK's makes one. */
	for (seen = 0; seen < max; seen++) {
		uint16_t flags;

		/* One copy of the descriptor, and only the copy is looked at. */
		ret = vp_xlate_near(&vq->xl, addr + 16 * (uint64_t)i, 16, VP_READ, &at, &span);
		if (vp_likely(!ret && span == 16))
			vp_copy_in(d, at, 16);
		else if (!ret)
			ret = vp_xlate_copy_in(&vq->xl, d, addr + 16 * (uint64_t)i, 16);
		if (vp_unlikely(ret))
			return ret == -EAGAIN ? ret : VP_VQ_BAD_ADDR;
		w = le64toh(d[1]);
		flags = vq->packed ? VP_PACKED_FLAGS(w) : VP_SPLIT_FLAGS(w);
		if (flags & VRING_DESC_F_INDIRECT)
			return VP_VQ_BAD_INDIRECT;
		/*
		 * DPDK's driver leaves the WRITE flag in entries of packed tables that it sends. Where every
		 * buffer is to be read its meaning is plain, and reading its own buffers harms nobody else
		 * (findings/dpdk-packed-transmit-marked-writable.sh).
		 */
		if (vq->packed && vq->out_only)
			flags &= (uint16_t)~VRING_DESC_F_WRITE;
		ret = vp_chain_add(vq, b, c, le64toh(d[0]), VP_SPLIT_LEN(w), flags & VRING_DESC_F_WRITE);
		if (ret)
			return ret;
		if (vq->packed) {
			i++; /* 2.8.8: a packed table is used in order, NEXT is reserved */
			continue;
		}
		if (!(flags & VRING_DESC_F_NEXT))
			return 0;
		i = VP_SPLIT_NEXT(w);
		if (i >= n)
			return VP_VQ_BAD_INDIRECT;
	}
	return vq->packed && n == max ? 0 : VP_VQ_BAD_CHAIN;
}

bool vp_chain_end(struct vp_virtq *vq, struct vp_burst *b, struct vp_chain *c, int how)
{
	if (!how) {
		b->n++;
		b->bytes += c->out_len;
		return true;
	}
	b->nseg = c->seg;
	b->more = how == -ENOSPC;
	vq->stalled = how == -EAGAIN;
	if (how > 0)
		vp_vq_break(vq, (enum vp_vq_broken)how);
	return false;
}

static bool split_need_call(struct vp_virtq *vq)
{
	uint16_t old = vq->signalled, event;
	bool valid = vq->signalled_valid;

	if (!vq->event_idx)
		return !(vp_ld16(vq->driver, 0) & VRING_AVAIL_F_NO_INTERRUPT);
	vq->signalled = vq->used_idx;
	vq->signalled_valid = true;
	event = vp_ld16(vq->driver, 4 + 2 * (size_t)vq->size);
	return !valid || vring_need_event(event, vq->used_idx, old);
}

static bool packed_need_call(struct vp_virtq *vq)
{
	uint32_t word = vp_ld32(vq->driver, 0);
	uint16_t flags = (word >> 16) & 3, off = word & 0x7fff;
	uint16_t old = vq->signalled, now = vq->used_idx, event;
	bool valid = vq->signalled_valid, wrap = word & 0x8000;
	bool old_wrap = vq->signalled_wrap;

	vq->signalled = vq->used_idx;
	vq->signalled_wrap = vq->used_wrap;
	vq->signalled_valid = true;
	if (flags == VRING_PACKED_EVENT_FLAG_DISABLE)
		return false;
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx || !valid)
		return true;
	/* Unroll the ring around where we stand now, as in 2.8.10. */
	event = off;
	if (wrap != vq->used_wrap)
		event = (uint16_t)(event - vq->size);
	if (old_wrap != vq->used_wrap)
		old = (uint16_t)(old - vq->size);
	return vring_need_event(event, now, old);
}

bool vp_vq_need_call_fenced(struct vp_virtq *vq)
{
	return vq->packed ? packed_need_call(vq) : split_need_call(vq);
}

bool vp_vq_need_call(struct vp_virtq *vq)
{
	/* The used index before the event field. Pairs with the driver's barrier the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vp_vq_need_call_fenced(vq);
}

bool vp_vq_enable_kicks(struct vp_virtq *vq)
{
	if (vq->broken)
		return false;
	if (vq->packed && vq->event_idx) {
		vp_st16(vq->device, 0, (uint16_t)(vq->last_avail | (vq->avail_wrap ? 0x8000 : 0)));
		vp_st16_release(vq->device, 2, VRING_PACKED_EVENT_FLAG_DESC);
		vp_vq_log_device(vq, 0, 4);
	} else if (vq->packed) {
		vp_st16(vq->device, 2, VRING_PACKED_EVENT_FLAG_ENABLE);
		vp_vq_log_device(vq, 0, 4);
	} else if (vq->event_idx) {
		vp_st16(vq->device, 4 + 8 * (size_t)vq->size, vq->last_avail);
		vp_vq_log_device(vq, 4 + 8 * (uint64_t)vq->size, 2);
	} else {
		vp_st16(vq->device, 0, 0);
		vp_vq_log_device(vq, 0, 2);
	}
	vq->kicks_on = true;
	/* The request before the look. Pairs with the driver's barrier between index and event field. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vp_vq_has_avail(vq);
}

void vp_vq_disable_kicks(struct vp_virtq *vq)
{
	if (vq->broken || !vq->kicks_on)
		return;
	vq->kicks_on = false;
	if (vq->packed) {
		vp_st16(vq->device, 2, VRING_PACKED_EVENT_FLAG_DISABLE);
		vp_vq_log_device(vq, 0, 4);
	} else if (!vq->event_idx) {
		vp_st16(vq->device, 0, VRING_USED_F_NO_NOTIFY);
		vp_vq_log_device(vq, 0, 2);
	}
	/* Split with EVENT_IDX: an avail_event that is left behind asks for nothing. */
}
