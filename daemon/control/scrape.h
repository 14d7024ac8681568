/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The socket of the metrics: HTTP/1.1 on a UNIX stream socket, GET /metrics, one answer a connection. Main thread.
 */
#ifndef VP_DAEMON_SCRAPE_H
#define VP_DAEMON_SCRAPE_H

#include "base/err.h"

struct vp_daemon;
struct vp_scrapes;

/* fd: a listening socket that somebody else made (taken over), or -1 for one at the configured path. */
int vp_scrapes_new(struct vp_scrapes **out, struct vp_daemon *d, int fd, struct vp_err *e);
void vp_scrapes_free(struct vp_scrapes *s);

#endif
