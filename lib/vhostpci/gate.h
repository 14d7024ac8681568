/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The gate: in a protected port (vhp_params.protect) the windows carry a protection key (pkeys(7)), and only the
 * functions of this library open it, each for as long as it runs.
 *
 * One key for the process: whoever is in the gate for one port is in it for all. Threads do not matter: the right is a
 * register of each thread's (PKRU), which starts closed.
 */
#ifndef VHP_GATE_H
#define VHP_GATE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/util.h"

/*
 * Allocate the process's key at the first call; later ones return the same. The key (1..15), or -EOPNOTSUPP, -ENOSPC
 * with e filled.
 */
int vhp_gate_key(struct vp_err *e);

/* Out of line: each of the two has the one instruction of its kind, whose place the seal knows (gate_scan.c). */
void vhp_gate_open(void);
void vhp_gate_close(void);

/* Is [addr, addr + 3) one of those two instructions? */
bool vhp_gate_owns(const void *addr);

/* Make the gate's own variables read-only. After that vhp_gate_key() only returns the key that there is. */
int vhp_gate_freeze(struct vp_err *e);

VP_INLINE void vhp_gate_leave(const bool *inside)
{
	if (vp_unlikely(*inside))
		vhp_gate_close();
}

/* Open the gate of a protected port until the end of the enclosing block, whichever way that is left. */
#define VHP_GATE(port) \
	const bool vhp_inside __attribute__((cleanup(vhp_gate_leave))) = (port)->protect; \
	if (vp_unlikely(vhp_inside)) \
		vhp_gate_open()

/*
 * Executable memory that could write PKRU from elsewhere: 0, or -EPERM with e naming file and offset. libc's pkey_set()
 * is made to trap instead.
 */
int vhp_gate_scan(struct vp_err *e);

#endif
