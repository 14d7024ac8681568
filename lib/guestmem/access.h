/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one place where memory of another VM is touched.
 *
 * Security model: every byte behind a vp_gptr may be changed by a hostile peer
 * at any moment, between any two of our instructions. So:
 *  - a vp_gptr points to an incomplete type: dereferencing, indexing or adding
 *    to it outside this file does not compile;
 *  - a field is loaded exactly once, by a single (relaxed or acquire) atomic
 *    access, into a local; only the local is validated and used;
 *  - bulk copies may see a torn mixture of old and new bytes, never anything
 *    outside [p, p + n): the caller has translated (address, length) first
 *    (memtab.h).
 *
 * Multi-byte fields are little-endian (virtio 1.x, "2.6 Virtqueues").
 */
#ifndef VP_GUESTMEM_ACCESS_H
#define VP_GUESTMEM_ACCESS_H

#include <endian.h>
#include <string.h>

#include "base/util.h"

struct vp_peer_byte; /* never defined */

/* A location in peer memory, mapped into this process. {NULL} = none. */
typedef struct {
	struct vp_peer_byte *p;
} vp_gptr;

#define VP_GPTR_NULL ((vp_gptr){ NULL })

/* For the mapping layer only (lib/guestmem; a test may be one): wrap memory that this process has mapped. */
VP_INLINE vp_gptr vp_gptr_from_map(void *p)
{
	return (vp_gptr){ (struct vp_peer_byte *)p };
}

/* For the mapping layer only: what munmap() and the fault handler need. */
VP_INLINE uintptr_t vp_gptr_addr(vp_gptr g)
{
	return (uintptr_t)g.p;
}

VP_INLINE bool vp_gptr_is_null(vp_gptr g)
{
	return !g.p;
}

/* g + off; the caller has checked that the result lies in the translated range. */
VP_INLINE vp_gptr vp_gptr_add(vp_gptr g, size_t off)
{
	return (vp_gptr){ (struct vp_peer_byte *)((char *)g.p + off) };
}

#define VP_GPTR_AT(type, g, off) ((type *)((char *)(g).p + (off)))

/* Single-copy atomic loads; off is in bytes and g + off is naturally aligned. */
VP_INLINE uint8_t vp_ld8(vp_gptr g, size_t off)
{
	return __atomic_load_n(VP_GPTR_AT(uint8_t, g, off), __ATOMIC_RELAXED);
}
VP_INLINE uint16_t vp_ld16(vp_gptr g, size_t off)
{
	return le16toh(__atomic_load_n(VP_GPTR_AT(uint16_t, g, off), __ATOMIC_RELAXED));
}
VP_INLINE uint32_t vp_ld32(vp_gptr g, size_t off)
{
	return le32toh(__atomic_load_n(VP_GPTR_AT(uint32_t, g, off), __ATOMIC_RELAXED));
}
VP_INLINE uint64_t vp_ld64(vp_gptr g, size_t off)
{
	return le64toh(__atomic_load_n(VP_GPTR_AT(uint64_t, g, off), __ATOMIC_RELAXED));
}

/* Acquire: nothing after it is read before it. Pairs with the peer's release of an index or flag. */
VP_INLINE uint16_t vp_ld16_acquire(vp_gptr g, size_t off)
{
	return le16toh(__atomic_load_n(VP_GPTR_AT(uint16_t, g, off), __ATOMIC_ACQUIRE));
}

VP_INLINE uint32_t vp_ld32_acquire(vp_gptr g, size_t off)
{
	return le32toh(__atomic_load_n(VP_GPTR_AT(uint32_t, g, off), __ATOMIC_ACQUIRE));
}

VP_INLINE uint64_t vp_ld64_acquire(vp_gptr g, size_t off)
{
	return le64toh(__atomic_load_n(VP_GPTR_AT(uint64_t, g, off), __ATOMIC_ACQUIRE));
}

VP_INLINE void vp_st8(vp_gptr g, size_t off, uint8_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint8_t, g, off), v, __ATOMIC_RELAXED);
}
VP_INLINE void vp_st16(vp_gptr g, size_t off, uint16_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint16_t, g, off), htole16(v), __ATOMIC_RELAXED);
}
VP_INLINE void vp_st32(vp_gptr g, size_t off, uint32_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint32_t, g, off), htole32(v), __ATOMIC_RELAXED);
}
VP_INLINE void vp_st64(vp_gptr g, size_t off, uint64_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint64_t, g, off), htole64(v), __ATOMIC_RELAXED);
}

/* Release: everything written before it is visible before it. Pairs with the peer's acquire. */
VP_INLINE void vp_st8_release(vp_gptr g, size_t off, uint8_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint8_t, g, off), v, __ATOMIC_RELEASE);
}

VP_INLINE void vp_st16_release(vp_gptr g, size_t off, uint16_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint16_t, g, off), htole16(v), __ATOMIC_RELEASE);
}

VP_INLINE void vp_st32_release(vp_gptr g, size_t off, uint32_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint32_t, g, off), htole32(v), __ATOMIC_RELEASE);
}

VP_INLINE void vp_st64_release(vp_gptr g, size_t off, uint64_t v)
{
	__atomic_store_n(VP_GPTR_AT(uint64_t, g, off), htole64(v), __ATOMIC_RELEASE);
}

/*
 * Set bits in a byte of a bitmap that others update too (the dirty log). Release: whoever takes
 * the bit sees the page as written.
 */
VP_INLINE void vp_or8(vp_gptr g, size_t off, uint8_t bits)
{
	__atomic_fetch_or(VP_GPTR_AT(uint8_t, g, off), bits, __ATOMIC_RELEASE);
}

/* Bulk copies: into private memory, out to a peer, from one peer to another. Ranges do not overlap. */
VP_INLINE void vp_copy_in(void *dst, vp_gptr src, size_t n)
{
	memcpy(dst, (const void *)src.p, n);
	__asm__ volatile("" ::: "memory"); /* later uses see the copy, not the source again */
}
VP_INLINE void vp_copy_out(vp_gptr dst, const void *src, size_t n)
{
	memcpy((void *)dst.p, src, n);
}
VP_INLINE void vp_copy_peer(vp_gptr dst, vp_gptr src, size_t n)
{
	memcpy((void *)dst.p, (const void *)src.p, n);
}

VP_INLINE void vp_zero(vp_gptr dst, size_t n)
{
	memset((void *)dst.p, 0, n);
}

VP_INLINE void vp_prefetch(vp_gptr g, size_t off)
{
	__builtin_prefetch((const char *)g.p + off, 0, 3);
}
/* For writing: brings the line in without its other owners, so that the store does not ask again. */
VP_INLINE void vp_prefetchw(vp_gptr g, size_t off)
{
#if defined(__x86_64__)
	/*
	 * Compilers for plain x86-64 fall back to a prefetch for reading; the instruction is a hint (or nothing)
	 * everywhere.
	 */
	__asm__ volatile("prefetchw %0" : : "m"(*((const char *)g.p + off)));
#else
	__builtin_prefetch((const char *)g.p + off, 1, 3);
#endif
}

#endif
