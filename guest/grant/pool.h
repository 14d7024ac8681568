/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the kernel of this VM has its swiotlb pool, through which it bounces what its devices may reach.
 *
 * Only the kernel knows: the place moves with the kernel, the initramfs and the size of memory. It says so once, in its
 * log, at boot. Lines of programs in that log are not believed.
 */
#ifndef VP_GRANT_POOL_H
#define VP_GRANT_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POOL_TEXT_MAX 171 /* with the 0; the daemon keeps no more of it */

struct pool {
	bool found;
	uint64_t address, size;	 /* whole pages */
	const char *source;	 /* which log had it */
	char why[POOL_TEXT_MAX]; /* not found: why, and the way out */
};

/* What the lines of a log, oldest first, say. All zero at the start. */
struct pool_log {
	bool told;	     /* a line told the pool: */
	uint64_t start, end; /* end: the first byte behind it */
	bool given_up;	     /* the kernel took it down afterwards */
	bool cut;	     /* the log's beginning is not there any more */
};

/* One message of the kernel's, without what a log puts before it. */
void pool_log_message(struct pool_log *l, const char *msg);
/* One record as read from /dev/kmsg, ended by a 0. */
void pool_log_record(struct pool_log *l, const char *record);

/* Does this command line of a kernel have all DMA bounced? given[] is the last swiotlb=, "" if there is none. */
bool pool_forced(const char *cmdline, char *given, size_t size);

/* Where to look; tests have other places. journal is a command for the shell, NULL = none. */
struct pool_places {
	const char *cmdline, *kmsg, *journal;
};

extern const struct pool_places pool_this_vm;

void pool_find(const struct pool_places *where, struct pool *p);

#endif
