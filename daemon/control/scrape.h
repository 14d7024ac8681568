/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The socket of the metrics: HTTP/1.1 on a UNIX stream socket, GET /metrics, one answer a connection. Main thread.
 */
#ifndef VP_DAEMON_SCRAPE_H
#define VP_DAEMON_SCRAPE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/record.h"

struct vp_daemon;
struct vp_scrapes;

/*
 * fd: a listening socket that somebody else made (taken over; ours: its path is unlinked at the end), or -1 for one at
 * the configured path.
 */
int vp_scrapes_new(struct vp_scrapes **out, struct vp_daemon *d, int fd, bool ours, struct vp_err *e);
void vp_scrapes_free(struct vp_scrapes *s);

/* For another daemon (docs/handover.md). Who is being answered has to be waited for: it takes milliseconds. */
bool vp_scrapes_at_rest(const struct vp_scrapes *s);
void vp_scrapes_save(struct vp_scrapes *s, struct vp_rec *r);
int  vp_scrapes_record_socket(struct vp_daemon *d, const struct vp_rec_in *in, struct vp_err *e);
int  vp_scrapes_restore(struct vp_scrapes *s, const struct vp_rec_in *in, struct vp_err *e);

#endif
