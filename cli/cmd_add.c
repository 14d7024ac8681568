/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	json_t *l, *config, *sides;
	int n, r = cli_operands(c, &cmd_add, argc, argv, 1, 64, &n);

	if (r >= 0)
		return r;
	config = cli_config(argv + 2, n - 1);
	if (!config)
		return EXIT_USAGE;
	r = cli_call(c, "link.add", json_pack("{s:s,s:o}", "name", argv[1], "config", config), &l);
	if (r)
		return r;
	sides = json_object_get(l, "sides");
	if (c->json)
		cli_print_json(l);
	else
		printf("link %s added, mode %s\n  driver socket %s\n  device socket %s\n", cli_str(l, "name"),
		       cli_str(l, "mode"), cli_str(json_object_get(sides, "driver"), "socket"),
		       cli_str(json_object_get(sides, "device"), "socket"));
	json_decref(l);
	return 0;
}

const struct cli_command cmd_add = {
	"add", "LINK SECTION.KEY=VALUE...", "Add a link now, until the daemon ends",
	"The keys are those of a .link file, see vhost-pci.link(5). Example:\n\n"
	"  vhost-pcictl add web-db Driver.VM=web Device.VM=db Net.MTU=9000\n\n"
	"For a link that outlives the daemon, write /etc/vhost-pci/LINK.link and reload.\n", run,
};
