/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Peers whose notifiers block. A peer shares its eventfds with us, and can make a write to one block at any time: the thread
 * hangs, with all that it does for others, until a supervisor interrupts it. Once may be an accident. Who does it again is
 * held off, twice as long each time up to a minute, so that blocking takes a thread 2 % of its time in the end.
 *
 * A peer is a number, vp_blame_id() of its name; 0 is nobody. All functions: any thread.
 */
#ifndef VP_BASE_BLAME_H
#define VP_BASE_BLAME_H

#include <stdbool.h>
#include <stdint.h>

/* Never 0. */
uint64_t vp_blame_id(const char *name);

/* Its notifier has just blocked. */
void vp_blame(uint64_t who);

/* Do not notify it now: give the queue or the wire up at once. Costs one load while nobody is to blame. */
bool vp_blame_held(uint64_t who);

/* Forget all (for tests). */
void vp_blame_forget(void);

#endif
