/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * --capture: the packets of the interface that the kernel data path serves, as a capture file. What passes through a
 * fast link passes through this interface, and is seen nowhere else.
 */
#ifndef VHP_AGENT_CAPTURE_H
#define VHP_AGENT_CAPTURE_H

#include <stdint.h>

#include "base/err.h"

struct capture_conf {
	const char *name;	/* of the interface: a tap, or a macvtap */
	const char *path;	/* "-" = standard output */
	const char *filter;	/* NULL = none */
	uint32_t snaplen;	/* bytes of each packet, 0 = all */
	uint64_t count;		/* 0 = until sigfd is readable, or standard output is closed */
};

/* sigfd: a signalfd. 0, or -errno with a sentence. */
int capture_run(const struct capture_conf *c, int sigfd, struct vp_err *e);

#endif
