/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the engine share; for agent.c, complain.c, describe.c and tell.c only. */
#ifndef VHP_AGENT_AGENT_PRIV_H
#define VHP_AGENT_AGENT_PRIV_H

#include "agent.h"

#define COMMAND_TIMEOUT_MS	2000u
#define RETRY_MS		500u

/* Complaints that stay true for a while and are logged when they begin. */
enum {
	QUIET_NONE,
	QUIET_TORN,
	QUIET_INVALID,
	QUIET_ATTACH,
	QUIET_TYPE,
	QUIET_FEATURES,
	QUIET_WINDOW,
	QUIET_SETUP,
	QUIET_PROFILE
};

uint64_t agent_now_ms(void);
/* Log it, unless it is what was complained of last. */
__attribute__((format(printf, 4, 5)))
void agent_complain(struct agent *a, int what, int level, const char *fmt, ...);
/* Have agent_reconcile() called then, or sooner. */
void agent_retry_at(struct agent *a, uint64_t when);

/* describe.c. 0: the daemon knows what the data path is; -EAGAIN: not now; -ENODEV. */
int agent_describe(struct agent *a);
/* The driver VM's word about the config space, once for each back-end. */
void agent_apply_set_config(struct agent *a);

/* tell.c. Counters count from here. */
void agent_counters_begin(struct agent *a);
/* Once a second, where the daemon asks for them and they are others than before. */
void agent_counters_tell(struct agent *a);
/* Memory that the data path waits for. What is refused breaks its queue, in the next pass. */
void agent_ask_for_memory(struct agent *a);

#endif
