/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

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
			printf("%s %s %s %s\n", cli_str(o, "event"), cli_str(d, "link"), cli_str(d, "status"), cli_str(d, "why"));
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
