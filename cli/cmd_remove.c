/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	return cli_call_link(c, &cmd_remove, "link.remove", argc, argv);
}

const struct cli_command cmd_remove = {
	"remove", "LINK", "Remove a link now",
	"Both front-ends are disconnected and the sockets go. A link that has a .link file\n"
	"comes back at the next reload unless the file is gone too.\n", run,
};
