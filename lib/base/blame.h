/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Peers whose notifiers block. A peer shares its eventfds with us, and can make a write to one block at any time: the thread
 * hangs, with all that it does for others, until a supervisor interrupts it. Once may be an accident. Who does it again is
 * held off, twice as long each time up to a minute, so that blocking takes a thread 2 % of its time in the end.
 *
 * A peer is a number, vp_blame_id() of its name; 0 is nobody. All functions: any thread.
 *
 * Who was given somebody else's eventfd can do the same with it, and it cannot be told which of the
 * two it was. Then neither is to blame, or one could have the other held off everywhere: what both
 * have counts against the two of them together, vp_blame_either(), and what each has alone goes on.
 */
#ifndef VP_BASE_BLAME_H
#define VP_BASE_BLAME_H

#include <stdbool.h>
#include <stdint.h>

/* Never 0. */
uint64_t vp_blame_id(const char *name);

/* Two peers, in any order, who both have a notifier. Never 0, and no peer's own number. */
uint64_t vp_blame_either(uint64_t a, uint64_t b);

/* Its notifier has just blocked. */
void vp_blame(uint64_t who);

/* Do not notify it now: give the queue or the wire up at once. Costs one load while nobody is to blame. */
bool vp_blame_held(uint64_t who);

/* Forget all (for tests). */
void vp_blame_forget(void);

#endif
