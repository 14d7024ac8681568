/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which of two daemons goes on, the one that was there or its successor (docs/handover.md): a word of memory that both
 * have, and the guard of each. It is decided once, by whoever comes first, and for all four in the same moment. So a
 * guard whose daemon has gone knows whether what that had is somebody else's now.
 *
 * Threat model: only these four have the file. The daemon that makes it seals it: its page cannot go.
 */
#ifndef VP_DAEMON_VERDICT_H
#define VP_DAEMON_VERDICT_H

#include <stdbool.h>

struct vp_verdict;

enum vp_verdict_is { VP_VERDICT_OPEN, VP_VERDICT_NEW, VP_VERDICT_OLD };

/* One that is open. -errno. */
int  vp_verdict_new(struct vp_verdict **out);
/* That of another process. fd stays the caller's. -EINVAL: it is none; -errno. */
int  vp_verdict_map(struct vp_verdict **out, int fd);
void vp_verdict_free(struct vp_verdict *v);  /* NULL is allowed */
int  vp_verdict_fd(const struct vp_verdict *v);

/* Where it is open, the successor goes on; or the daemon that was there does. What holds from now on. */
enum vp_verdict_is vp_verdict_for_new(struct vp_verdict *v);
enum vp_verdict_is vp_verdict_for_old(struct vp_verdict *v);
enum vp_verdict_is vp_verdict_look(const struct vp_verdict *v);

#endif
