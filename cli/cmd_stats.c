/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "rates.h"

static const struct cli_column columns[] = {
	{ "LINK" }, { "FROM" },
	{ "PACKETS", true }, { "BYTES", true },
	{ "DROPPED", true }, { "WHY" },
	{ "GSO", true }, { "CALLS", true },
};

/* "no-peer 12, rate 3" */
static void reasons(const json_t *drops, char *buf, size_t size)
{
	const char *key;
	json_t *v;
	size_t n = 0;

	buf[0] = 0;
	json_object_foreach((json_t *)drops, key, v) if (json_integer_value(v) && n < size)
		n += snprintf(buf + n, size - n, "%s%s %lld", n ? ", " : "", key, (long long)json_integer_value(v));
}

static int row(struct cli_table *t, const json_t *l, const char *side, bool *marked)
{
	const json_t *tx = json_object_get(json_object_get(json_object_get(l, "sides"), side), "tx");
	static const char *const keys[] = { "packets", "bytes", "dropped", "gso", "calls" };
	char num[5][24], why[200], from[16];
	const char *who = rates_side(l, side, from, sizeof(from), marked);

	for (int i = 0; i < 5; i++)
		/* What nobody has counted is no zero; what was drained while the link was down is ours to know. */
		if (i == 2 || (who && (i < 2 || !strcmp(who, side))))
			snprintf(num[i], sizeof(num[i]), "%lld", cli_int(tx, keys[i]));
		else
			snprintf(num[i], sizeof(num[i]), "-");
	reasons(json_object_get(tx, "drops"), why, sizeof(why));
	return cli_row(t, (const char *[]){ cli_str(l, "name"), who ? who : side, num[0], num[1], num[2], why, num[3],
					    num[4] });
}

static int run(struct cli *c, int argc, char **argv)
{
	struct cli_table *t;
	json_t *result, *l;
	bool marked = false;
	size_t i;
	int n, r = cli_operands(c, &cmd_stats, argc, argv, 0, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.stats", n ? json_pack("{s:s}", "name", argv[1]) : NULL, &result);
	if (r)
		return r;
	if (c->json) {
		cli_print_json(result);
		json_decref(result);
		return 0;
	}
	t = cli_table(columns, 8);
	json_array_foreach(json_object_get(result, "links"), i, l)
		if (t) {
			row(t, l, "driver", &marked);
			row(t, l, "device", &marked);
		}
	json_decref(result);
	if (!t)
		return EXIT_REFUSED;
	r = cli_table_print(t);
	rates_legend(marked);
	return r;
}

const struct cli_command cmd_stats = {
	"stats", "[LINK] [--json]", "Show packet counters",
	"A line for each side: what its VM has sent, how much of it arrived (PACKETS,\n"
	"BYTES), how much was dropped and why. --json adds what is known of every queue.\n"
	"Packets of a fast link do not pass through the daemon: rows with a * show what\n"
	"its device VM says, and - is what nobody has counted.\n", run,
};
