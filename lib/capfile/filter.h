/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Filter expressions, as tcpdump takes them (pcap-filter(7)): libpcap compiles and runs them. It is opened when the
 * first filter is asked for, so that nothing else waits for it and for what it links.
 */
#ifndef VP_CAPFILE_FILTER_H
#define VP_CAPFILE_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct vp_filter;

/* For Ethernet. -ENOENT: there is no libpcap; -EINVAL: the expression. With a sentence. */
int vp_filter_new(struct vp_filter **out, const char *expr, uint32_t snaplen, struct vp_err *e);
/* NULL lets everything pass. */
bool vp_filter_match(const struct vp_filter *f, const void *data, uint32_t len, uint32_t caplen);
void vp_filter_free(struct vp_filter *f);

#endif
