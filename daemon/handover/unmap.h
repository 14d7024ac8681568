/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Windows of a shmem port, taken back by another process than the daemon, which has gone (guard.h). The port's record
 * (port/record.h) says which there are. One thread; nothing blocks.
 *
 * The VMM tells its back-end of its memory as it unmaps, and waits for an answer: it gets that. When it asks anything
 * else, or the daemon ended within a message, nobody can go on, and to close the connections is the way out.
 */
#ifndef VP_DAEMON_HANDOVER_UNMAP_H
#define VP_DAEMON_HANDOVER_UNMAP_H

struct vp_unmap;

/* DONE: each has been answered. LOST: nobody can say. */
enum vp_unmap_state { VP_UNMAP_WAITS, VP_UNMAP_DONE, VP_UNMAP_LOST };

/*
 * req: the channel for requests; conn: the connection; recordfd: the port's record. They stay the caller's, and open
 * until vp_unmap_free(). -ENOMEM, -EINVAL.
 */
int  vp_unmap_new(struct vp_unmap **out, int req, int conn, int recordfd);
/* As far as it goes now; call it again after a while. */
enum vp_unmap_state vp_unmap_look(struct vp_unmap *u);
/* Windows that were asked for. */
unsigned vp_unmap_count(const struct vp_unmap *u);
void vp_unmap_free(struct vp_unmap *u);

#endif
