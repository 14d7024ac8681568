/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

/* Whom the kernel turns away the daemon never hears of. */
static void show_who_may(const json_t *s)
{
	char who[80];

	if (cli_socket_closed(s, who, sizeof(who)))
		printf("  may open   %s alone; a VMM of another user needs User= in %s.vm\n", who, cli_str(s, "vm"));
}

/* The daemon makes the socket when it knows what to tell of the device. */
static bool not_made(const json_t *s)
{
	return !strcmp(cli_str(s, "socket_mode"), "server") && access(cli_str(s, "socket"), F_OK) && errno == ENOENT;
}

/* What the driver VM of a link of mode grant has granted; sizes in KiB, for windows are of whole pages. */
static void show_grant(const json_t *g)
{
	const char *message = json_string_value(json_object_get(g, "message"));
	json_t *r;
	size_t i;

	printf("  grant      %s, %s", cli_str(g, "source"), cli_str(g, "state"));
	if (cli_int(g, "bytes"))
		printf(": %lld KiB", cli_int(g, "bytes") >> 10);
	if (json_is_integer(json_object_get(g, "age_s")))
		printf(", for %lld s, by %s", cli_int(g, "age_s"), cli_str(g, "by"));
	putchar('\n');
	json_array_foreach(json_object_get(g, "ranges"), i, r)
		printf("             %-9s 0x%llx, %lld KiB\n", cli_str(r, "what"),
		       (unsigned long long)cli_int(r, "address"), cli_int(r, "size") >> 10);
	json_array_foreach(json_object_get(g, "copied"), i, r)
		printf("             queue %lld is copied\n", (long long)json_integer_value(r));
	if (message && *message)
		printf("             %s\n", message);
}

static void show_side(const char *name, const json_t *s)
{
	json_t *queues = json_object_get(s, "queues"), *carrier = json_object_get(s, "carrier"), *q;
	size_t i;

	printf("\n%s side: VM %s\n", name, cli_str(s, "vm"));
	printf("  socket     %s (%s)\n", cli_str(s, "socket"), cli_str(s, "socket_mode"));
	if (json_is_true(json_object_get(s, "connected")))
		printf("  front-end  pid %lld, user %lld, %lld memory regions%s\n", cli_int(s, "pid"),
		       cli_int(s, "uid"), cli_int(s, "regions"),
		       json_is_true(json_object_get(s, "dirty_log")) ? ", dirty log on" : "");
	else
		printf("  front-end  not connected%s\n",
		       not_made(s) ? "; its socket is not there yet, for nothing is known of the back-end" : "");
	show_who_may(s);
	if (json_is_string(json_object_get(s, "last")))
		printf("  last       %s\n", cli_str(s, "last"));
	printf("  sessions   %lld, refused connections %lld\n", cli_int(s, "sessions"), cli_int(s, "refused"));
	if (json_is_object(carrier))
		printf("  carrier    %s; QMP: %s%s%s\n", json_is_true(json_object_get(carrier, "up")) ? "up" : "down",
		       cli_str(carrier, "qmp"), json_is_string(json_object_get(carrier, "error")) ? ", set_link: " : "",
		       cli_str(carrier, "error"));
	if (json_is_object(json_object_get(s, "grant")))
		show_grant(json_object_get(s, "grant"));
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

static void show_took(double ms)
{
	if (ms < 1000)
		printf("  took       %.1f ms since the driver's queues ran\n", ms);
	else
		printf("  took       %.1f s since the driver's queues ran\n", ms / 1000);
}

/* A port: what stands between the daemon and the device VM's data path. */
static void show_port(const json_t *s)
{
	json_t *windows = json_object_get(s, "windows"), *queues = json_object_get(s, "queues"), *e;
	bool up = json_is_true(json_object_get(s, "up"));
	size_t i;

	printf("\ndevice side: VM %s\n", cli_str(s, "vm"));
	printf("  socket     %s\n", cli_str(s, "socket"));
	show_who_may(s);
	printf("  port       %s, %s, %s\n", cli_str(s, "attachment"),
	       json_is_true(json_object_get(s, "online")) ? "device connected" : "no device",
	       json_is_true(json_object_get(s, "attached")) ? "data path attached" : "no data path");
	printf("  link       %s%s\n", up ? "up" : "down: ", up ? "" : cli_str(s, "reason"));
	if (!up && !strcmp(cli_str(s, "reason"), "profile"))
		printf("             nothing is known of its back-end: start it, or write [Profile] in the link's "
		       "file\n");
	if (!json_is_true(json_object_get(s, "online")) && json_is_string(json_object_get(s, "last")))
		printf("  last       %s\n", cli_str(s, "last"));
	if (up && cli_int(s, "driver_us") && cli_int(s, "up_us") >= cli_int(s, "driver_us"))
		show_took((double)(cli_int(s, "up_us") - cli_int(s, "driver_us")) / 1e3);
	if (json_is_string(json_object_get(s, "misfit")))
		printf("  refused    a back-end: %s\n", cli_str(s, "misfit"));
	if (json_object_get(s, "requests_open"))
		printf("  requests   %lld open, %lld given again, %lld failed\n", cli_int(s, "requests_open"),
		       cli_int(s, "requests_given_again"), cli_int(s, "requests_failed"));
	printf("  signals    straight through: %lld kicks, %lld calls; forwarded so far: %lld\n",
	       cli_int(s, "kicks_direct"), cli_int(s, "calls_direct"), cli_int(s, "signals_forwarded"));
	printf("  commands   %lld, refused %lld; attached %lld times, cut off %lld times\n", cli_int(s, "commands"),
	       cli_int(s, "refused"), cli_int(s, "attaches"), cli_int(s, "cuts"));
	json_array_foreach(windows, i, e) {
		printf("  window %-3lld %lld MiB, %s\n", cli_int(e, "slot"), cli_int(e, "size") >> 20,
		       cli_str(e, "state"));
		if (json_is_string(json_object_get(e, "error")))
			printf("             %s\n", cli_str(e, "error"));
	}
	json_array_foreach(queues, i, e) {
		printf("  queue %-4lld %s", cli_int(e, "index"), cli_str(e, "state"));
		if (cli_int(e, "size"))
			printf("%s, ring of %lld, run %lld since index %lld",
			       json_is_true(json_object_get(e, "enabled")) ? "" : ", disabled", cli_int(e, "size"),
			       cli_int(e, "runs"), cli_int(e, "base"));
		putchar('\n');
	}
}

/* Counters that are the device VM's word. */
static void show_reported(const json_t *r)
{
	const json_t *drv = json_object_get(r, "driver"), *dev = json_object_get(r, "device");

	if (drv && dev)
		printf("  counted    by the device VM: driver VM sent %lld packets, device VM %lld\n",
		       cli_int(drv, "packets"), cli_int(dev, "packets"));
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *l, *policy, *sides, *device;
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
	if (!strcmp(cli_str(l, "type"), "net")) {
		printf("  queues     %lld pair%s\n", cli_int(l, "queue_pairs"),
		       cli_int(l, "queue_pairs") == 1 ? "" : "s");
		printf("  offloads   %s\n", cli_str(l, "offloads"));
	} else {
		printf("  type       %s\n", cli_str(l, "type"));
		printf("  queues     %lld\n", cli_int(l, "virtqueues"));
	}
	if (!json_is_true(json_object_get(l, "migratable")))
		printf("  migration  not of the driver VM: what is written to its memory is not logged\n");
	if (cli_int(l, "mtu"))
		printf("  MTU        %lld\n", cli_int(l, "mtu"));
	if (json_is_string(json_object_get(l, "description")))
		printf("  for        %s\n", cli_str(l, "description"));
	if (cli_int(l, "bits_per_second"))
		printf("  limit      %lld bits per second in each direction\n", cli_int(l, "bits_per_second"));
	if (cli_int(l, "packets_per_second"))
		printf("  limit      %lld packets per second in each direction\n", cli_int(l, "packets_per_second"));
	show_reported(json_object_get(l, "reported"));
	show_side("driver", json_object_get(sides, "driver"));
	device = json_object_get(sides, "device");
	if (json_object_get(device, "attachment"))
		show_port(device);
	else
		show_side("device", device);
out:
	json_decref(l);
	return 0;
}

const struct cli_command cmd_show = {
	"show", "LINK [--json]", "Show everything about one link",
	"Both sides with their front-ends, negotiated features and queues, and why a\n"
	"queue broke or a front-end was cut off.\n", run,
};
