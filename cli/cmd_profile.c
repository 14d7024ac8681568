/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static int run(struct cli *c, int argc, char **argv)
{
	bool forget = false;
	json_t *result;
	int n, r;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--forget"))
			continue;
		forget = true;
		memmove(&argv[i], &argv[i + 1], (size_t)(argc - i) * sizeof(argv[0]));
		argc--;
		i--;
	}
	r = cli_operands(c, &cmd_profile, argc, argv, 1, 1, &n);
	if (r >= 0)
		return r;
	r = cli_call(c, "link.profile", json_pack("{s:s,s:b}", "name", argv[1], "forget", forget), &result);
	if (r)
		return r;
	if (c->json) {
		cli_print_json(result);
	} else if (!json_is_true(json_object_get(result, "known"))) {
		printf("link %s, type %s: nothing is known of its back-end yet; the first one that comes decides\n",
		       cli_str(result, "name"), cli_str(result, "type"));
	} else {
		printf("link %s, type %s, %s\n", cli_str(result, "name"), cli_str(result, "type"),
		       json_is_true(json_object_get(result, "learned")) ? "learned from its back-end"
									: "from the link file");
		printf("  features: %s\n", cli_str(result, "features"));
		if (cli_int(result, "queues") > 0)
			printf("  queues:   %lld\n", cli_int(result, "queues"));
		printf("  config:   %s\n", cli_str(result, "config"));
	}
	json_decref(result);
	return 0;
}

const struct cli_command cmd_profile = {
	"profile",
	"LINK [--forget] [--json]",
	"Show what is known of a link's back-end",
	"Not for network links. --forget: the daemon asks the next back-end that comes anew;\n"
	"only while the driver VM is not connected.\n",
	run,
};
