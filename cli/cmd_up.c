/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	return cli_call_link(c, &cmd_up, "link.up", argc, argv);
}

const struct cli_command cmd_up = {
	"up", "LINK", "Let packets pass",
	"Undoes down.\n", run,
};
