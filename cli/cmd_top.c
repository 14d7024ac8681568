/* SPDX-License-Identifier: BSD-3-Clause */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "rates.h"

static const struct cli_column columns[] = {
	{ "LINK" }, { "STATUS" }, { "FROM" }, { "PKT/S", true }, { "BIT/S", true },
	{ "DROP/S", true }, { "CALL/S", true }, { "CYC/PKT", true },
};

static const json_t *tx_of(const json_t *l, const char *side)
{
	return json_object_get(json_object_get(json_object_get(l, "sides"), side), "tx");
}

static const struct {
	const char *counter, *rate;
} rates[] = {
	{ "packets", "packets_per_second" }, { "bytes", "bits_per_second" }, { "dropped", "drops_per_second" },
	{ "calls", "calls_per_second" }, { "busy_cycles", "cycles_per_packet" },
};
#define RATES (sizeof(rates) / sizeof(rates[0]))

/* Of what a side sent, between two looks; the last one is below 0 when there was no packet. */
static void rates_of(const json_t *l, const json_t *before, const char *side, double s, double v[RATES])
{
	const json_t *now = tx_of(l, side), *old = tx_of(before, side);
	double d[RATES];

	for (size_t i = 0; i < RATES; i++) {
		d[i] = (double)(cli_int(now, rates[i].counter) - cli_int(old, rates[i].counter));
		if (d[i] < 0)  /* the link was made anew */
			d[i] = 0;
		v[i] = d[i] / s;
	}
	v[1] *= 8;
	v[RATES - 1] = d[0] + d[2] > 0 ? d[RATES - 1] / (d[0] + d[2]) : -1;
}

static void row(struct cli_table *t, const json_t *l, const char *side, const double v[RATES], bool *marked)
{
	char text[RATES][24], from[16];
	const char *who = rates_side(l, side, from, sizeof(from), marked);

	for (size_t i = 0; i < RATES - 1; i++)
		rates_human(v[i], text[i], sizeof(text[i]));
	if (v[RATES - 1] < 0)
		snprintf(text[RATES - 1], sizeof(text[0]), "-");
	else
		snprintf(text[RATES - 1], sizeof(text[0]), "%.0f", v[RATES - 1]);
	/* What nobody has counted is no zero. */
	for (size_t i = 0; i < RATES - 1; i++)
		if (i != 2 && (!who || (i > 2 && strcmp(who, side))))
			snprintf(text[i], sizeof(text[0]), "-");
	cli_row(t, (const char *[]){ cli_str(l, "name"), cli_str(l, "status"), who ? who : side, text[0], text[1],
				     text[2], text[3], text[4] });
}

static json_t *side_json(const double v[RATES])
{
	json_t *o = json_object();

	for (size_t i = 0; i < RATES; i++)
		json_object_set_new(o, rates[i].rate, v[i] < 0 ? json_null() : json_real(v[i]));
	return o;
}

static int print(struct cli *c, json_t *now, json_t *before, const char *only)
{
	static const char *const sides[] = { "driver", "device" };
	double s = (double)(cli_int(now, "time_us") - cli_int(before, "time_us")) / 1e6, v[RATES];
	struct cli_table *t = c->json ? NULL : cli_table(columns, 8);
	json_t *l, *links = json_array();
	bool marked = false;
	size_t i;

	if (!c->json && !t)
		return EXIT_REFUSED;
	json_array_foreach(json_object_get(now, "links"), i, l) {
		json_t *old = rates_find(before, cli_str(l, "name")), *o;

		if (!old || s <= 0 || (only && strcmp(only, cli_str(l, "name"))))
			continue;
		o = json_object();
		for (int k = 0; k < 2; k++) {
			rates_of(l, old, sides[k], s, v);
			if (t)
				row(t, l, sides[k], v, &marked);
			else
				json_object_set_new(o, sides[k], side_json(v));
		}
		json_array_append_new(links, json_pack("{s:s,s:s,s:s,s:o}", "name", cli_str(l, "name"), "status",
						       cli_str(l, "status"), "counted_by", cli_str(l, "counted_by"),
						       "sides", o));
	}
	if (c->json) {
		json_t *o = json_pack("{s:I,s:O}", "time_us", (json_int_t)cli_int(now, "time_us"), "links", links);

		json_dumpf(o, stdout, JSON_COMPACT);
		putchar('\n');
		json_decref(o);
	}
	json_decref(links);
	if (t && isatty(STDOUT_FILENO))
		fputs("\033[H\033[2J", stdout);
	if (t) {
		cli_table_print(t);
		rates_legend(marked);
	}
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
