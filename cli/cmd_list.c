/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli.h"

static const struct cli_column columns[] = {
	{ "LINK" }, { "TYPE" }, { "MODE" }, { "DRIVER" }, { "DEVICE" }, { "ENDPOINT" }, { "STATUS" },
};

static int run(struct cli *c, int argc, char **argv)
{
	static const char *const keys[] = { "name", "type", "mode", "driver_vm", "device_vm", "endpoint", "status" };
	struct libscols_table *t;
	json_t *result, *l;
	size_t i;
	int n, r = cli_operands(c, &cmd_list, argc, argv, 0, 0, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.list", NULL, &result);
	if (r)
		return r;
	t = cli_table(c, "links", columns, 7);
	json_array_foreach(json_object_get(result, "links"), i, l) {
		const char *v[7];

		for (int k = 0; k < 7; k++)
			v[k] = cli_str(l, keys[k]);
		if (t)
			cli_row(t, 7, v);
	}
	if (t)
		cli_table_print(t);
	json_decref(result);
	return t ? 0 : EXIT_REFUSED;
}

const struct cli_command cmd_list = {
	"list", "[--json]", "List all links",
	"STATUS is up (both VMs are connected and ready), partial (only one is, or one is\n"
	"still starting), waiting (none is), down (switched off) or broken (a queue broke\n"
	"the rules; show says which and why).\n", run,
};
