/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Peers whose notifiers block. A peer shares its eventfds with us, and can make a write to one block at
 * any time. The thread then hangs, with all that it does for others, until a supervisor interrupts it.
 * Once may be an accident. A peer that does it again is held off, twice as long each time up to a
 * minute. In the end blocking takes a thread 2 % of its time.
 *
 * A peer is a number, vp_blame_id() of its name; 0 is nobody. All functions: any thread.
 *
 * A peer that was given another peer's eventfd can do the same with it, and nobody can tell which of
 * the two it was. Then neither of them is to blame: otherwise one could have the other held off
 * everywhere. What both have counts against the two together, vp_blame_either(). What each has alone
 * goes on.
 */
#ifndef VP_BASE_BLAME_H
#define VP_BASE_BLAME_H

#include <stdbool.h>
#include <stdint.h>

/* Never 0. */
uint64_t vp_blame_id(const char *name);

/* A number for two peers, in any order, who both have a notifier. Never 0, and no peer's own number. */
uint64_t vp_blame_either(uint64_t a, uint64_t b);

/* The notifier of `who` has just blocked. */
void vp_blame(uint64_t who);

/*
 * True: do not notify it now; give the queue or the wire up at once. Costs one load while nobody is to
 * blame.
 */
bool vp_blame_held(uint64_t who);

/* Forget all (for tests). */
void vp_blame_forget(void);

#endif
