/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static void vm_line(const json_t *vms, const char *side)
{
	const json_t *v = json_object_get(vms, side);

	printf("  %s VM %s: %s%s\n", side, cli_str(v, "vm"),
	       json_is_string(json_object_get(v, "trust_group")) ? "trust group " : "in no trust group",
	       json_is_string(json_object_get(v, "trust_group")) ? cli_str(v, "trust_group") : "");
}

/* "+ rule: why" and the lines that set what it looked at. */
static void rule_lines(const json_t *rule)
{
	json_t *w;
	size_t i;

	printf("  %s %s: %s\n", json_is_true(json_object_get(rule, "allowed")) ? "allowed by" : "REFUSED by",
	       cli_str(rule, "rule"), cli_str(rule, "why"));
	json_array_foreach(json_object_get(rule, "where"), i, w)
		printf("      set at %s\n", json_string_value(w));
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *params, *result, *config, *rule;
	size_t i;
	bool allowed;
	int n, r = cli_operands(c, &cmd_explain, argc, argv, 1, 64, &n);

	if (r >= 0)
		return r;
	params = json_pack("{s:s}", "name", argv[1]);
	if (n > 1) {
		config = cli_config(argv + 2, n - 1);
		if (!config) {
			json_decref(params);
			return EXIT_USAGE;
		}
		json_object_set_new(params, "config", config);
	}
	r = cli_call(c, "policy.explain", params, &result);
	if (r)
		return r;
	allowed = json_is_true(json_object_get(result, "allowed"));
	if (c->json) {
		cli_print_json(result);
	} else {
		printf("link %s: asks for mode %s with endpoint %s\n", cli_str(result, "name"),
		       cli_str(result, "asked"), cli_str(result, "endpoint"));
		vm_line(json_object_get(result, "vms"), "driver");
		vm_line(json_object_get(result, "vms"), "device");
		json_array_foreach(json_object_get(result, "rules"), i, rule)
			rule_lines(rule);
		printf("  %s: mode %s, by rule %s\n", allowed ? "allowed" : "refused", cli_str(result, "mode"),
		       cli_str(result, "rule"));
	}
	json_decref(result);
	return allowed ? 0 : EXIT_REFUSED;
}

const struct cli_command cmd_explain = {
	"explain", "LINK [SECTION.KEY=VALUE...]", "Say what policy decides about a link, and why",
	"With keys: about a link that does not exist yet. Exit status 1 when policy\n"
	"refuses.\n", run,
};
