/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, &cmd_log_level, argc, argv, 0, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "daemon.log-level", n ? json_pack("{s:s}", "level", argv[1]) : NULL, &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	else
		printf("%s\n", cli_str(result, "level"));
	json_decref(result);
	return 0;
}

const struct cli_command cmd_log_level = {
	"log-level", "[error|warning|notice|info|debug]", "Show or set how much the daemon logs",
	"Until the daemon ends; --log-level of vhost-pcid(8) is for the next one.\n", run,
};
