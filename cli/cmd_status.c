/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result, *t;
	size_t i;
	int n, r = cli_operands(c, &cmd_status, argc, argv, 0, 0, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "daemon.show", NULL, &result);
	if (r)
		return r;
	if (c->json) {
		cli_print_json(result);
	} else {
		printf("vhost-pcid %s, pid %lld, up %lld s: %lld links, %lld open fds, %lld reloads\n",
		       cli_str(result, "version"), cli_int(result, "pid"), cli_int(result, "uptime_s"),
		       cli_int(result, "links"), cli_int(result, "open_fds"), cli_int(result, "reloads"));
		if (cli_int(result, "guard_pid") > 0)
			printf("  guard: pid %lld\n", cli_int(result, "guard_pid"));
		else
			printf("  guard: NOT there, see vhost-pcid(8)\n");
		json_array_foreach(json_object_get(result, "threads"), i, t) {
			printf("  data thread %zu: tid %lld, ", i, cli_int(t, "tid"));
			if (cli_int(t, "cpu") >= 0)
				printf("CPU %lld, ", cli_int(t, "cpu"));
			printf("%lld jobs, %s, slept %lld times\n", cli_int(t, "jobs"),
			       json_is_true(json_object_get(t, "awake")) ? "awake" : "asleep", cli_int(t, "sleeps"));
		}
		json_array_foreach(json_object_get(result, "isolation"), i, t)
			printf("  isolation %lld, %s: %s%s\n", cli_int(t, "stage"), cli_str(t, "name"),
			       json_is_true(json_object_get(t, "in_force")) ? "" : "NOT in force: ",
			       cli_str(t, "what"));
	}
	json_decref(result);
	return 0;
}

const struct cli_command cmd_status = {
	"status", "[--json]", "Show the daemon itself",
	"Version, uptime, data threads, and what the daemon has given up.\n", run,
};
