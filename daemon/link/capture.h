/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Captures: copies of what passes through a link, for a process that reads them in a file of rings (base/capring.h)
 * which it is given. Of networks the packets, of other devices the requests (a trace). The data threads write
 * (engine/tap.h), and wait for nobody.
 *
 * What a capture may take: VP_CAPTURES_MAX of them at once, their buffers, and for each packet the time of one more
 * copy for each capture of its link. The reader can harm its own capture only. Main thread.
 */
#ifndef VP_DAEMON_LINK_CAPTURE_H
#define VP_DAEMON_LINK_CAPTURE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct vp_link;
struct vp_capture;

#define VP_CAPTURES_MAX        4u
#define VP_CAPTURE_SNAPLEN     (256u << 10) /* more than any packet has */
#define VP_CAPTURE_BUFFER      (4u << 20)   /* bytes for all rings of a capture */
#define VP_CAPTURE_BUFFER_MAX  (64u << 20)

/* What the reader has to know of its file. */
struct vp_capture_info {
	int      fd;          /* stays the capture's */
	unsigned rings;
	uint32_t ring_size;   /* bytes of records; each ring has VP_CAPRING_PAGE in front of them */
};

/*
 * Begin. ended() is called, once, when the link goes; the capture is to be stopped all the same. 0. -EINVAL: a size, or
 * a link whose packets no thread of ours sees. -EDQUOT: too many captures. -ENOMEM. With a sentence.
 */
int vp_capture_start(struct vp_capture **out, struct vp_link *l, uint32_t snaplen, uint32_t buffer,
		     void (*ended)(void *ctx, const char *link, const char *why), void *ctx, struct vp_err *e);
/* NULL is allowed. Waits for a grace period. */
void vp_capture_stop(struct vp_capture *c);
void vp_capture_info(const struct vp_capture *c, struct vp_capture_info *info);

/* l has other queues than before: they get its captures. */
void vp_captures_apply(struct vp_link *l);
/* l has no queues any more, and goes. */
void vp_captures_end(struct vp_link *l, const char *why);

#endif
