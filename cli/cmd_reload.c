/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static void print(const json_t *result)
{
	/* A daemon that is older does not name them. */
	static const char *const kinds[][2] = {
		{ "added", "added" }, { "removed", "removed" }, { "anew", "made anew" },
		{ "altered", "changed as they ran" }, { "kept", "left as they were" },
	};
	json_t *v;
	size_t i;

	printf("%lld links changed, %lld VMs changed, %lld links in all\n", cli_int(result, "changed"),
	       cli_int(result, "vms"), cli_int(result, "links"));
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		json_array_foreach(json_object_get(result, kinds[k][0]), i, v)
			printf("%s%s%s", i ? "" : kinds[k][1], i ? ", " : ": ", json_string_value(v));
		if (json_array_size(json_object_get(result, kinds[k][0])))
			putchar('\n');
	}
	fflush(stdout);
	json_array_foreach(json_object_get(result, "warnings"), i, v)
		fprintf(stderr, "vhost-pcictl: reload: warning: %s\n", json_string_value(v));
}

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
		print(result);
	json_decref(result);
	return 0;
}

const struct cli_command cmd_reload = {
	"reload", "[--yes|--keep]", "Read the configuration again and apply what changed",
	"Links that did not change are not touched; the others are named. If the new\n"
	"configuration is not valid, nothing changes and the first problem is printed.\n"
	"The daemon removes a link added at run time that policy does not allow any more,\n"
	"and names it.\n"
	"What each key does to a running link is in its man page. If a port's device would\n"
	"have to be plugged anew, nothing is applied, and the link and the key are named.\n\n"
	"  --yes   make such links anew all the same; plug their devices anew then\n"
	"  --keep  apply the rest, and leave such links as they run\n", run,
};
