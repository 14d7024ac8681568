// SPDX-License-Identifier: BSD-3-Clause
/* What the agent tells the daemon, and asks of it, beside the life of queues. */
#include <string.h>

#include "agent_priv.h"
#include "base/log.h"
#include "base/util.h"

#define COUNT_MS		1050u	/* the specification allows one a second */

void agent_counters_begin(struct agent *a)
{
	memset(&a->count_base, 0, sizeof(a->count_base));
	memset(&a->counted, 0, sizeof(a->counted));
	if (a->dp->ops->counters)
		a->dp->ops->counters(a->dp, &a->count_base);
	a->count_ms = 0;
}

void agent_counters_tell(struct agent *a)
{
	uint64_t args[VHP_CMD_NARGS] = { 0 }, now = agent_now_ms();
	struct dp_counters c;

	if (!a->attached || !(a->s.flags & VHP_STATE_COUNT) || !a->dp->ops->counters)
		return;
	if (now < a->count_ms) {
		agent_retry_at(a, a->count_ms);
		return;
	}
	a->count_ms = now + COUNT_MS;
	agent_retry_at(a, a->count_ms);
	if (!a->dp->ops->counters(a->dp, &c))
		return;
	/* An interface that was made anew counts from 0. */
	for (unsigned int i = 0; i < VHP_COUNTS; i++)
		args[i] = c.n[i] >= a->count_base.n[i] ? c.n[i] - a->count_base.n[i] : c.n[i];
	if (!memcmp(args, a->counted.n, sizeof(a->counted.n)))
		return;
	memcpy(a->counted.n, args, sizeof(a->counted.n));
	port_command_all(a->port, VHP_CMD_COUNTERS, args, COMMAND_TIMEOUT_MS, NULL);
}

void agent_ask_for_memory(struct agent *a)
{
	struct dp_missing m[16];
	unsigned int n = a->dp->ops->missing(a->dp, m, VP_ARRAY_SIZE(m));

	for (unsigned int i = 0; i < n; i++) {
		uint64_t args[4] = { [VHP_MAP_ADDR] = m[i].addr, [VHP_MAP_SIZE] = 1,
				     [VHP_MAP_ACCESS] = m[i].write ? VHP_REGION_WRITE : VHP_REGION_READ };
		int rc = port_command(a->port, VHP_CMD_MAP, args, COMMAND_TIMEOUT_MS, NULL);

		if (rc == VHP_ST_REFUSED) {
			vp_log(VP_LOG_INFO, "%s: queue %u: the driver VM does not give the memory at %#llx",
			       a->port->what, m[i].queue, (unsigned long long)m[i].addr);
			a->broken[m[i].queue / 64] |= VP_BIT(m[i].queue % 64);
			a->unmapped[m[i].queue / 64] |= VP_BIT(m[i].queue % 64);
		}
	}
	if (n)
		agent_retry_at(a, agent_now_ms());
}
