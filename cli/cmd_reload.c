/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	const char *replug = "ask";
	json_t *result;
	int n = 1, r;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--yes"))
			replug = "yes";
		else if (!strcmp(argv[i], "--keep"))
			replug = "keep";
		else
			argv[n++] = argv[i];
	}
	argv[n] = NULL;
	r = cli_operands(c, &cmd_reload, n, argv, 0, 0, &n);
	if (r >= 0)
		return r;
	r = cli_call(c, "daemon.reload", json_pack("{s:s}", "replug", replug), &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	else
		printf("%lld links changed, %lld VMs changed, %lld links in all\n", cli_int(result, "changed"),
		       cli_int(result, "vms"), cli_int(result, "links"));
	json_decref(result);
	return 0;
}

const struct cli_command cmd_reload = {
	"reload", "[--yes|--keep]", "Read the configuration again and apply what changed",
	"Links that did not change are not touched. If the new configuration is not\n"
	"valid, nothing changes and the first problem is printed. The daemon removes a\n"
	"link added at run time that policy does not allow any more, and names it.\n"
	"What each key does to a running link is in its man page. If a port's device would\n"
	"have to be plugged anew, nothing is applied, and the link and the key are named.\n\n"
	"  --yes   make such links anew all the same; plug their devices anew then\n"
	"  --keep  apply the rest, and leave such links as they run\n", run,
};
