/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, &cmd_reload, argc, argv, 0, 0, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "daemon.reload", NULL, &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	else
		printf("%lld changed, %lld links\n", cli_int(result, "changed"), cli_int(result, "links"));
	json_decref(result);
	return 0;
}

const struct cli_command cmd_reload = {
	"reload", "", "Read the configuration again and apply what changed",
	"Links that did not change are not touched. If the new configuration is not\n"
	"valid, nothing changes and the first problem is printed. The daemon removes a\n"
	"link added at run time that policy does not allow any more, and names it.\n", run,
};
