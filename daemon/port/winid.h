/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Ids of window devices (spec, "ivshmem"). They are unique among all windows of a device VM, whoever
 * plugged them. They go round, and an id whose device may still be there is passed over. There are
 * three kinds of such ids: ids that a caller has taken; ids of devices that somebody else plugged, or
 * an earlier process; and ids of devices that were lost sight of, until a list of the VM's devices
 * settles it.
 *
 * One struct for each device VM, shared by its ports. Main thread only.
 */
#ifndef VP_DAEMON_WINID_H
#define VP_DAEMON_WINID_H

#include <stdint.h>

#include "base/record.h"

struct vp_winids;

/* NULL: no memory. vp_winids_put() for each; NULL is allowed there. */
struct vp_winids *vp_winids_get(const char *vm);
void     vp_winids_put(struct vp_winids *s);

/* An id that nothing in the VM has; 0 = there is none. */
uint32_t vp_winid_take(struct vp_winids *s);
/*
 * Take this id, for a device that is there already; vp_winid_take() goes on behind it. Ids outside the
 * range are passed over here and below.
 */
void     vp_winid_adopt(struct vp_winids *s, uint32_t id);
/* The device of this id has gone, or never came. */
void     vp_winid_release(struct vp_winids *s, uint32_t id);
/* Nobody here has it any more, but its device may still be there. */
void     vp_winid_lose(struct vp_winids *s, uint32_t id);

/*
 * A list of the VM's devices begins: vp_winid_seen() follows for each of them. What was lost and is not
 * among them has gone.
 */
void     vp_winids_listed(struct vp_winids *s);
void     vp_winid_seen(struct vp_winids *s, uint32_t id);

/*
 * Ids that nobody here has taken and that may be in use, for another daemon (docs/handover.md), as the element tag;
 * restore: beside those that are known already. -EPROTO.
 */
void     vp_winids_save(const struct vp_winids *s, unsigned tag, struct vp_rec *r);
int      vp_winids_restore(struct vp_winids *s, unsigned tag, const struct vp_rec_in *in);
/*
 * What was restored may be of an earlier time than what the VM has: others may have gone on from there. vp_winid_take()
 * goes on somewhere else.
 */
void     vp_winids_jump(struct vp_winids *s);

#endif
