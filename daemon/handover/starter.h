/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The starter: a process beside the daemon that can still start programs when the daemon cannot any more. It starts
 * the next daemon for an upgrade (docs/handover.md), with what the first one was started with: command line,
 * environment, user. It ends with the daemon.
 *
 * Threat model: a daemon that was taken over can ask it for one thing only: to run a program of the list, with the
 * daemon's own command line. The list is fixed before the daemon has heard of any VM: the daemon's own file, and
 * UpgradeBinaries= of the configuration. A file is run only if root or the starter's user owns it and nobody else may
 * write it.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_STARTER_H
#define VP_DAEMON_STARTER_H

#include <sys/types.h>

#include "base/err.h"
#include "conf/conf.h"

/* Make the process, while this is the only thread and nothing has been given up. argv: of main(). */
int  vp_starter_start(const struct vp_conf_daemon *c, char **argv, struct vp_err *e);
void vp_starter_end(void);
/*
 * Start the program at path, "" = the file that this daemon was started from. 0 and its process, with our end of a
 * socket to it; -errno and why not. Waits for the starter, which does nothing else.
 */
int  vp_starter_run(const char *path, pid_t *pid, int *sock, struct vp_err *e);
/* End what was started last, if it is still there. */
void vp_starter_kill(void);
pid_t vp_starter_pid(void);

#endif
