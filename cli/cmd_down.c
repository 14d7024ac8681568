/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, &cmd_down, argc, argv, 1, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.down", json_pack("{s:s}", "name", argv[1]), &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	json_decref(result);
	return 0;
}

const struct cli_command cmd_down = {
	"down", "LINK", "Stop packets, as if the cable were unplugged",
	"The front-ends stay connected; what their VMs send is dropped and counted.\n", run,
};
