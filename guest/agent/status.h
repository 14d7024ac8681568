/* SPDX-License-Identifier: BSD-3-Clause */
/* --status: the port's state as this VM sees it, for people or as JSON. */
#ifndef VHP_AGENT_STATUS_H
#define VHP_AGENT_STATUS_H

#include <stdio.h>

#include "port.h"

/* problem: NULL, or why s is not to be believed; then s is not shown. */
void status_print(FILE *f, const struct port *p, const struct vp_state *s, const char *problem, bool json);

#endif
