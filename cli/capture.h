/* SPDX-License-Identifier: BSD-3-Clause */
/* capture: how a record is written. lost: records right before it that the capture has not got. */
#ifndef VP_CLI_CAPTURE_H
#define VP_CLI_CAPTURE_H

#include <stdbool.h>
#include <stdio.h>

#include "base/capring.h"

/* Into a capture file. */
void capture_write_packet(FILE *f, const struct vp_cap_packet *p, uint64_t lost);
/* As a line, of JSON or of text. */
void capture_print_packet(FILE *f, const struct vp_cap_packet *p, uint64_t lost, bool json);
void capture_print_request(FILE *f, const struct vp_cap_request *r, uint64_t lost, bool json);

/* Which device the requests are for: its virtio ID's word, as in link.list. */
void capture_set_type(const char *type);

#endif
