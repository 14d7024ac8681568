/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VP_DAEMON_OPTIONS_H
#define VP_DAEMON_OPTIONS_H

#include "context/context.h"

/*
 * The command line. 0, or an exit status > 0 with everything said; *done: there is nothing more to do (--help,
 * --version).
 */
int vp_options_parse(struct vp_options *o, int argc, char **argv, bool *done);

#endif
