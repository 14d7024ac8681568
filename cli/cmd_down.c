/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	return cli_call_link(c, &cmd_down, "link.down", argc, argv);
}

const struct cli_command cmd_down = {
	"down", "LINK", "Stop packets, as if the cable were unplugged",
	"The front-ends stay connected; what their VMs send is dropped and counted.\n", run,
};
