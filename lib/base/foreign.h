/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File descriptors that a peer sent, before it is known what they are.
 *
 * A file may be served by somebody: FUSE asks a process, and waits for its answer. With a server that never answers, the calls
 * that look harmless wait for ever, too: fstat(), fstatfs(), any access to a mapping, and close(), for it flushes. So what a
 * descriptor is must be found out by calls that ask nobody, and those that may have to wait are closed by a thread of their own.
 *
 * A socket is no better: who closes the last descriptor of a TCP socket with SO_LINGER waits for as
 * long as its owner said, and so does who closes a UNIX socket with such a one in its queue, or
 * makes the kernel throw it away by receiving a message without room for all its descriptors. So
 * this is how every socket is closed whose other end may be hostile, and messages are received with
 * room for VP_FOREIGN_FDS_MAX descriptors, also where none is expected (vp_recv_plain() of
 * daemon/sys/fds.h).
 */
#ifndef VP_BASE_FOREIGN_H
#define VP_BASE_FOREIGN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum vp_foreign_kind {
	VP_FOREIGN_MEMORY,   /* a file on tmpfs (memfd, POSIX shared memory) or hugetlbfs: nobody is asked for its pages */
	VP_FOREIGN_INNER,    /* socket, pipe, anonymous inode (eventfd, a port's window): the kernel's own */
	VP_FOREIGN_FILE,     /* a file or directory on any other file system */
	VP_FOREIGN_DEVICE,   /* a character or block device */
};

/* Asks nobody. dev: where the file lies, rdev: which device it is, in the form of makedev(). NULL allowed. */
enum vp_foreign_kind vp_foreign_kind(int fd, uint64_t *dev, uint64_t *rdev);

/*
 * Close *fd if it is open and forget it. What may have to wait for somebody is closed by a thread of its own, and counts as
 * pending until that is done; where no thread can be made it stays open.
 */
void vp_close_foreign(int *fd);

#define VP_FOREIGN_FDS_MAX 253u  /* that a message can carry: SCM_MAX_FD of Linux */

/*
 * Interrupt those closings that have lasted for longer than since the last call, by the signal of
 * vp_foreign_nudge_by(), which has a handler without SA_RESTART. A socket lingers no longer then; a
 * server that is silent is not impressed. Any thread.
 */
void vp_foreign_nudge(void);
/* Before any closing. */
void vp_foreign_nudge_by(int sig);

/*
 * Unmap len bytes at base (NULL = there is no mapping) and close *fd, a file of memory. Who lets go of
 * the last descriptor frees its pages, 4 GiB in about a second. Where vp_foreign_free_elsewhere()
 * said so a thread does it that exists while there is something to be freed, in order; up to 1 MiB,
 * and when very many wait, the caller. Any thread; the switch belongs to the process's start.
 */
void vp_foreign_free(void *base, size_t len, int *fd);
void vp_foreign_free_elsewhere(bool on);

/* Whose descriptors the calling thread closes from now on, as in blame.h; 0 = nobody's. */
void vp_foreign_from(uint64_t who);

/* Descriptors of who whose closing has not ended; sockets when they are many, or linger. No more are to be taken from it when there are VP_FOREIGN_PENDING_MAX. Any thread. */
unsigned vp_foreign_pending(uint64_t who);
/* Of everybody, whatever they are (for tests). */
unsigned vp_foreign_closing(void);
#define VP_FOREIGN_PENDING_MAX 16  /* two messages full */

#endif
