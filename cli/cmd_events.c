/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <time.h>

#include "cli.h"

/* Local time, with its offset: "2026-01-31T12:00:00.123+01:00 ". */
static void print_time(long long us)
{
	time_t s = us / 1000000;
	char text[40], zone[8];
	struct tm tm;

	if (!us || !localtime_r(&s, &tm))
		return;
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	strftime(zone, sizeof(zone), "%z", &tm);
	printf("%s.%03lld%.3s:%s ", text, us / 1000 % 1000, zone, zone + 3);
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *o;
	int n, r = cli_operands(c, &cmd_events, argc, argv, 0, 0, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "events.subscribe", NULL, &o);
	if (r)
		return r;
	json_decref(o);
	while ((o = cli_next(c))) {
		const json_t *d = json_object_get(o, "data");

		if (c->json) {
			json_dumpf(o, stdout, JSON_COMPACT);
			putchar('\n');
		} else {
			print_time(cli_int(o, "time_us"));
			printf("%s %s %s %s\n", cli_str(o, "event"), cli_str(d, "link"), cli_str(d, "status"),
			       cli_str(d, "why"));
		}
		fflush(stdout);
		json_decref(o);
	}
	return EXIT_NO_DAEMON;
}

const struct cli_command cmd_events = {
	"events", "[--json]", "Print what happens, as it happens",
	"One line an event, until interrupted.\n", run,
};
