/* SPDX-License-Identifier: BSD-3-Clause */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "rates.h"

static const struct cli_column columns[] = {
	{ "LINK" }, { "STATUS" }, { "FROM" }, { "PKT/S", SCOLS_FL_RIGHT }, { "BIT/S", SCOLS_FL_RIGHT },
	{ "DROP/S", SCOLS_FL_RIGHT }, { "CALL/S", SCOLS_FL_RIGHT }, { "CYC/PKT", SCOLS_FL_RIGHT },
};

static const json_t *tx_of(const json_t *l, const char *side)
{
	return json_object_get(json_object_get(json_object_get(l, "sides"), side), "tx");
}

static void row(struct libscols_table *t, const json_t *l, const json_t *before, const char *side, double s)
{
	const json_t *now = tx_of(l, side), *old = tx_of(before, side);
	static const char *const keys[] = { "packets", "bytes", "dropped", "calls", "busy_cycles" };
	double d[5];
	char text[5][24];

	for (int i = 0; i < 5; i++) {
		d[i] = (double)(cli_int(now, keys[i]) - cli_int(old, keys[i]));
		if (d[i] < 0)  /* the link was made anew */
			d[i] = 0;
	}
	rates_human(d[0] / s, text[0], sizeof(text[0]));
	rates_human(d[1] * 8 / s, text[1], sizeof(text[1]));
	rates_human(d[2] / s, text[2], sizeof(text[2]));
	rates_human(d[3] / s, text[3], sizeof(text[3]));
	if (d[0] + d[2] > 0)
		snprintf(text[4], sizeof(text[4]), "%.0f", d[4] / (d[0] + d[2]));
	else
		snprintf(text[4], sizeof(text[4]), "-");
	cli_row(t, 8, (const char *[]){ cli_str(l, "name"), cli_str(l, "status"), side, text[0], text[1], text[2], text[3], text[4] });
}

static int print(struct cli *c, json_t *now, json_t *before, const char *only)
{
	double s = (cli_int(now, "time_us") - cli_int(before, "time_us")) / 1e6;
	struct libscols_table *t = cli_table(c, "top", columns, 8);
	json_t *l;
	size_t i;

	if (!t)
		return EXIT_REFUSED;
	json_array_foreach(json_object_get(now, "links"), i, l) {
		json_t *old = rates_find(before, cli_str(l, "name"));

		if (!old || s <= 0 || (only && strcmp(only, cli_str(l, "name"))))
			continue;
		row(t, l, old, "driver", s);
		row(t, l, old, "device", s);
	}
	if (!c->json && isatty(STDOUT_FILENO))
		fputs("\033[H\033[2J", stdout);
	cli_table_print(t);
	fflush(stdout);
	return 0;
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *before, *now;
	int rounds = 0, n, r;
	const char *only;

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "--rounds")) {
			rounds = atoi(argv[i + 1]);
			if (rounds < 1) {
				fputs("vhost-pcictl top: --rounds needs a number from 1\n", stderr);
				return EXIT_USAGE;
			}
			memmove(&argv[i], &argv[i + 2], (argc - i - 1) * sizeof(*argv));
			argc -= 2;
			break;
		}
	r = cli_operands(c, &cmd_top, argc, argv, 0, 1, &n);
	if (r >= 0)
		return r;
	only = n ? argv[1] : NULL;
	r = cli_call(c, "link.stats", only ? json_pack("{s:s}", "name", only) : NULL, &before);
	for (int i = 0; !r && (!rounds || i < rounds); i++) {
		sleep(1);
		r = cli_call(c, "link.stats", only ? json_pack("{s:s}", "name", only) : NULL, &now);
		if (r)
			break;
		r = print(c, now, before, only);
		json_decref(before);
		before = now;
	}
	if (!r)
		json_decref(before);
	return r;
}

const struct cli_command cmd_top = {
	"top", "[LINK] [--rounds N]", "Show live rates, once a second",
	"CYC/PKT is what a packet cost the data thread, in processor cycles, counted\n"
	"over bursts that moved packets. --rounds N stops after N seconds.\n", run,
};
