/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File descriptors that a peer sent, before we know what they are.
 *
 * A process may serve a file: FUSE asks it and waits for its answer. When that server never answers,
 * calls that look harmless wait for ever: fstat(), fstatfs(), any access to a mapping, and close(),
 * because it flushes. So these functions find out what a descriptor is by calls that ask nobody, and
 * close those that may have to wait in a thread of their own.
 *
 * A socket is no better. The process that closes the last descriptor of a TCP socket with SO_LINGER
 * waits for as long as the socket's owner said. So does a process that closes a UNIX socket with such a
 * descriptor in its queue, or receives a message without room for all its descriptors, which makes the
 * kernel throw the rest away. Every socket whose other end may be hostile is therefore closed here.
 * Messages are received with room for VP_FOREIGN_FDS_MAX descriptors, also where none is expected
 * (vp_recv_plain() of daemon/sys/fds.h).
 */
#ifndef VP_BASE_FOREIGN_H
#define VP_BASE_FOREIGN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum vp_foreign_kind {
	VP_FOREIGN_MEMORY,   /* on tmpfs (memfd, POSIX shared memory) or hugetlbfs: pages come from the kernel */
	VP_FOREIGN_INNER,    /* socket, pipe, anonymous inode (eventfd, a port's window): the kernel's own */
	VP_FOREIGN_FILE,     /* a file or directory on any other file system */
	VP_FOREIGN_DEVICE,   /* a character or block device */
};

/*
 * What fd is; asks nobody. dev: where the file lies. rdev: which device it is, in the form of
 * makedev(). NULL is allowed.
 */
enum vp_foreign_kind vp_foreign_kind(int fd, uint64_t *dev, uint64_t *rdev);

/*
 * Close *fd if it is open, and forget it. A thread closes what may have to wait for somebody; that
 * counts as pending until it is done. Where no thread can be made, the descriptor stays open.
 */
void vp_close_foreign(int *fd);

#define VP_FOREIGN_FDS_MAX 253u  /* that a message can carry: SCM_MAX_FD of Linux */

/*
 * Interrupt the closings that have lasted for longer than since the last call. This sends the signal of
 * vp_foreign_nudge_by(), which has a handler without SA_RESTART. A socket then stops lingering; a
 * server that is silent takes no notice. Any thread.
 */
void vp_foreign_nudge(void);
/* Choose that signal. Before any closing. */
void vp_foreign_nudge_by(int sig);

/*
 * Unmap len bytes at base (NULL = there is no mapping) and close *fd, a file of memory. Whoever closes
 * the last descriptor frees the file's pages, 4 GiB in about a second. After
 * vp_foreign_free_elsewhere(true) a thread does that, in order; it exists while there is something to
 * be freed. The caller does it for up to 1 MiB, and when very many files wait. Any thread; the switch
 * belongs to the process's start.
 */
void vp_foreign_free(void *base, size_t len, int *fd);
void vp_foreign_free_elsewhere(bool on);
/* This process makes no threads: the caller closes and frees, and what lingers is the caller's to interrupt. */
void vp_foreign_no_threads(void);

/* From now on the calling thread closes descriptors of this peer (a number as in blame.h); 0 = nobody's. */
void vp_foreign_from(uint64_t who);

/*
 * The descriptors of this peer whose closing has not ended; sockets count when they are many, or
 * linger. At VP_FOREIGN_PENDING_MAX take no more from it. Any thread.
 */
unsigned vp_foreign_pending(uint64_t who);
/* The same of all peers, of whatever kind (for tests). */
unsigned vp_foreign_closing(void);
#define VP_FOREIGN_PENDING_MAX 16  /* two messages full */

#endif
