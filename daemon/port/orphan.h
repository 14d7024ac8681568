/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An orphan is a port whose daemon has gone while the guest may be at work on the driver VM's rings.
 * What remains is to tell the guest, unless the daemon has, and to see it let go (spec, "Life cycle",
 * 9). An orphan knows no link, no attachment and no driver VM: only the control block, and what the
 * daemon kept of it. The next daemon that has the port goes on from there.
 *
 * One thread at a time. Nothing blocks, nothing is logged.
 */
#ifndef VP_DAEMON_PORT_ORPHAN_H
#define VP_DAEMON_PORT_ORPHAN_H

#include <stdbool.h>

struct vp_orphan;

/*
 * Tell the guest that its link is down (reason "daemon"); somebody has to raise signal 0 then. memfd:
 * the port's control memory, recordfd: vp_port_record_fd(); both stay the caller's. The daemon must not
 * write to the port any more. 0; -EINVAL: those are no such files; -ENOMEM; -errno of mmap().
 */
int vp_orphan_new(struct vp_orphan **out, int memfd, int recordfd);

enum vp_orphan_state {
	VP_ORPHAN_QUIET,     /* nothing new */
	VP_ORPHAN_ANSWERED,  /* a command was answered: raise signal 0 */
	VP_ORPHAN_LET_GO,    /* SYNC, ATTACH or DETACH: it is at work on no queue any more */
};
/*
 * Look at the command page. ATTACH is left to the next daemon, if there is one; any other command is
 * answered.
 */
enum vp_orphan_state vp_orphan_look(struct vp_orphan *o);

/*
 * No daemon and no attachment are left: the guest finds itself not attached. Raise signal 0 then.
 * let_go: the next daemon need not wait for the guest.
 */
void vp_orphan_finish(struct vp_orphan *o, bool let_go);
void vp_orphan_free(struct vp_orphan *o);

#endif
