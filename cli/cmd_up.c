/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, &cmd_up, argc, argv, 1, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.up", json_pack("{s:s}", "name", argv[1]), &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	json_decref(result);
	return 0;
}

const struct cli_command cmd_up = {
	"up", "LINK", "Let packets pass",
	"Undoes down.\n", run,
};
