/* SPDX-License-Identifier: BSD-3-Clause */
/* Eventfds of ours, and fds that travel with messages. Any thread. */
#ifndef VP_DAEMON_FDS_H
#define VP_DAEMON_FDS_H

#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* An eventfd of ours, non-blocking. -errno. */
int vp_eventfd_new(int *fd);
/* Raise it. Only where nobody else has it: another end could make it block. */
void vp_eventfd_raise(int fd);
/*
 * A number that no other eventfd of this machine has while this one is open. 0: the kernel does not
 * tell (before 5.2).
 */
uint64_t vp_eventfd_id(int fd);

/*
 * recv() that never blocks, from a socket on which no fds are expected. Returns bytes, 0 at the end of
 * the stream, -errno. -EBADMSG: fds came all the same; they are closed as foreign ones, and the caller
 * ends the connection. recv() itself would leave closing them to the kernel, which waits for a socket
 * that lingers (base/foreign.h).
 */
ssize_t vp_recv_plain(int sock, void *buf, size_t len);

/*
 * Close each fd of this process above 2 but keep. own: its /proc/self/fd, stays open. For a process that ends: the
 * kernel closes in an order of its own (findings/linux-exit-closes-backwards.sh), and one fd's end may be another
 * process's sign that all of them are closed.
 */
void vp_fds_close_but(DIR *own, int keep);

#define VP_SEND_FDS_MAX 32u
/*
 * Send one message of len bytes on a stream socket, with n fds (at most VP_SEND_FDS_MAX, may be 0),
 * which stay the caller's. Never blocks. 0. -EAGAIN: nothing was sent. -EPIPE: closed, or it took a
 * part only. -errno.
 */
int vp_send_fds(int sock, const void *buf, size_t len, const int *fds, unsigned n);

#endif
