/* SPDX-License-Identifier: BSD-3-Clause */
/* Small helpers that every part may use; no state, no I/O. */
#ifndef VP_BASE_UTIL_H
#define VP_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#define vp_likely(x)   __builtin_expect(!!(x), 1)
#define vp_unlikely(x) __builtin_expect(!!(x), 0)

#define VP_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define VP_MIN(a, b)     ((a) < (b) ? (a) : (b))
#define VP_MAX(a, b)     ((a) > (b) ? (a) : (b))
#define VP_BIT(n)        (UINT64_C(1) << (n))
#define VP_CACHELINE     64
#define VP_INLINE        static inline __attribute__((always_inline))

#define vp_container_of(ptr, type, member) \
	((type *)((char *)(ptr) - offsetof(type, member)))

/* a + b into *sum; true when it wrapped around. */
VP_INLINE bool vp_add_overflow(uint64_t a, uint64_t b, uint64_t *sum)
{
	return __builtin_add_overflow(a, b, sum);
}

/*
 * True when [addr, addr + len) lies inside [base, base + size), for any
 * values: nothing here can wrap. Empty ranges lie inside when addr does.
 */
VP_INLINE bool vp_range_inside(uint64_t addr, uint64_t len, uint64_t base, uint64_t size)
{
	uint64_t off = addr - base;

	return off < size && len <= size - off;
}

VP_INLINE bool vp_is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* v rounded up to a multiple of a (a power of two); the caller rules out overflow. */
VP_INLINE uint64_t vp_align_up(uint64_t v, uint64_t a)
{
	return (v + a - 1) & ~(a - 1);
}

/* Close *fd if it is open and forget it. */
static inline void vp_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

#endif
