/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, &cmd_remove, argc, argv, 1, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.remove", json_pack("{s:s}", "name", argv[1]), &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	json_decref(result);
	return 0;
}

const struct cli_command cmd_remove = {
	"remove", "LINK", "Remove a link now",
	"Both front-ends are disconnected and the sockets go. A link that has a .link file\n"
	"comes back at the next reload unless the file is gone too.\n", run,
};
