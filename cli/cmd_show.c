/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#include "cli.h"

static void show_side(const char *name, const json_t *s)
{
	json_t *queues = json_object_get(s, "queues"), *q;
	size_t i;

	printf("\n%s side: VM %s\n", name, cli_str(s, "vm"));
	printf("  socket     %s (%s)\n", cli_str(s, "socket"), cli_str(s, "socket_mode"));
	if (json_is_true(json_object_get(s, "connected")))
		printf("  front-end  pid %lld, user %lld, %lld memory regions%s\n", cli_int(s, "pid"), cli_int(s, "uid"),
		       cli_int(s, "regions"), json_is_true(json_object_get(s, "dirty_log")) ? ", dirty log on" : "");
	else
		printf("  front-end  not connected\n");
	if (json_is_string(json_object_get(s, "last")))
		printf("  last       %s\n", cli_str(s, "last"));
	printf("  sessions   %lld, refused connections %lld\n", cli_int(s, "sessions"), cli_int(s, "refused"));
	if (json_is_string(json_object_get(s, "mac")))
		printf("  MAC        %s\n", cli_str(s, "mac"));
	if (json_is_string(json_object_get(s, "features")))
		printf("  features   %s\n", cli_str(s, "features"));
	json_array_foreach(queues, i, q) {
		printf("  queue %-4lld %s, %s", cli_int(q, "queue"), cli_str(q, "direction"), cli_str(q, "state"));
		if (cli_int(q, "size"))
			printf(", %s ring of %lld%s%s", cli_str(q, "format"), cli_int(q, "size"),
			       json_is_true(json_object_get(q, "kick")) ? "" : ", driver does not kick",
			       json_is_true(json_object_get(q, "call")) ? "" : ", driver polls");
		if (json_is_string(json_object_get(q, "error")))
			printf("\n             %s", cli_str(q, "error"));
		putchar('\n');
	}
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *l, *policy, *sides;
	int n, r = cli_operands(c, &cmd_show, argc, argv, 1, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, "link.show", json_pack("{s:s}", "name", argv[1]), &l);
	if (r)
		return r;
	if (c->json) {
		cli_print_json(l);
		goto out;
	}
	policy = json_object_get(l, "policy");
	sides = json_object_get(l, "sides");
	printf("link %s: %s, %s\n", cli_str(l, "name"), cli_str(l, "mode"), cli_str(l, "status"));
	printf("  policy     %s (rule %s)\n", cli_str(policy, "why"), cli_str(policy, "rule"));
	printf("  from       %s\n", cli_str(l, "origin"));
	printf("  queues     %lld pair%s\n", cli_int(l, "queue_pairs"), cli_int(l, "queue_pairs") == 1 ? "" : "s");
	printf("  offloads   %s\n", cli_str(l, "offloads"));
	if (cli_int(l, "mtu"))
		printf("  MTU        %lld\n", cli_int(l, "mtu"));
	if (cli_int(l, "packets_per_second"))
		printf("  limit      %lld packets per second in each direction\n", cli_int(l, "packets_per_second"));
	show_side("driver", json_object_get(sides, "driver"));
	show_side("device", json_object_get(sides, "device"));
out:
	json_decref(l);
	return 0;
}

const struct cli_command cmd_show = {
	"show", "LINK [--json]", "Show everything about one link",
	"Both sides with their front-ends, negotiated features and queues, and why a\n"
	"queue broke or a front-end was cut off.\n", run,
};
