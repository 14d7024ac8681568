/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a VM does that uses its packets: it reads every byte of what it receives, and writes every byte of what it
 * sends. The least that can be called use; the same code in both VMs and on all links.
 */
#ifndef VP_BENCH_USE_H
#define VP_BENCH_USE_H

#include <stdint.h>
#include <string.h>

/* Here sums go, so that no reading is left out. */
static volatile uint64_t use_sink;

static inline uint64_t use_word(const uint8_t *p)
{
	uint64_t w;

	memcpy(&w, p, sizeof(w));
	return w;
}

/* len >= 8 */
static inline void use_read(const void *data, unsigned len)
{
	const uint8_t *p = data;
	uint64_t s = use_word(p + len - 8);

	for (unsigned i = 0; i < len / 8; i++)
		s += use_word(p + 8 * (size_t)i);
	use_sink = s;
}

static inline void use_write(void *data, unsigned len)
{
	static uint8_t next;

	memset(data, next++, len);
}

#endif
