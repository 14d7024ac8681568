/* SPDX-License-Identifier: BSD-3-Clause */
/* UNIX sockets by path. Any thread; nothing blocks. */
#ifndef VP_DAEMON_SOCK_H
#define VP_DAEMON_SOCK_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/err.h"

/*
 * Listen at path with this mode. *fd is the caller's, close-on-exec and non-blocking. A socket file
 * that nobody listens on any more is replaced. -EADDRINUSE when somebody does; -EEXIST when the path is
 * something else.
 */
int vp_sock_listen(const char *path, mode_t mode, int *fd, struct vp_err *e);

/* Remove the socket file at path, if nobody listens there. */
void vp_sock_forget(const char *path);

/* Give the socket file there this mode, if it is the daemon's and has another one. Whether that was done. */
bool vp_sock_set_mode(const char *path, mode_t mode);

/* Connect without waiting. 0 and *fd, or -errno (-ENOENT, -ECONNREFUSED, -EAGAIN: try later). */
int vp_sock_connect(const char *path, int *fd, struct vp_err *e);

/* The credentials that the process at the other end had when the connection was made. 0 or -errno. */
int vp_sock_peer(int fd, struct ucred *cred);

/*
 * Has the other end of a connection closed it, or gone? Reads nothing. A negative fd has no other end:
 * false.
 */
bool vp_sock_hung_up(int fd);

/* mkdir -p of the directory that path (a file) lies in, mode 0755. 0 or -errno. */
int vp_sock_mkdir(const char *path);

#endif
