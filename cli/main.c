/* SPDX-License-Identifier: BSD-3-Clause */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

#define DEFAULT_SOCKET "/run/vhost-pci/control.sock"

static const struct cli_command *const commands[] = {
	&cmd_list,    &cmd_show,     &cmd_stats,   &cmd_top,	&cmd_add,	&cmd_remove,
	&cmd_up,      &cmd_down,     &cmd_explain, &cmd_reload, &cmd_events,	&cmd_status,
	&cmd_profile, &cmd_grant, &cmd_generate, &cmd_metrics, &cmd_doctor, &cmd_log_level,
	&cmd_capture,
	&cmd_upgrade,
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void usage(FILE *f)
{
	fputs("Usage: vhost-pcictl [--control PATH] [--json] COMMAND [ARGUMENT]...\n"
	      "Look at and change the links of vhost-pcid; see vhost-pcictl(1).\n\n", f);
	for (size_t i = 0; i < N_COMMANDS; i++)
		fprintf(f, "  %-9s %-24s %s\n", commands[i]->name, commands[i]->args, commands[i]->summary);
	fputs("\n  --control PATH  the daemon's socket (default: $VHOST_PCI_CONTROL or " DEFAULT_SOCKET ")\n"
	      "  --json          print JSON instead of tables\n"
	      "  --help, --version\n\n"
	      "vhost-pcictl COMMAND --help tells more about one command.\n", f);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "control", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL }
	};
	const char *env = getenv("VHOST_PCI_CONTROL");
	struct cli c = { .socket = env && *env ? env : DEFAULT_SOCKET, .fd = -1 };
	int opt, r;

	while ((opt = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
		switch (opt) {
		case 'c':
			c.socket = optarg;
			break;
		case 'j':
			c.json = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		case 'V':
			printf("vhost-pcictl %s\n", VP_VERSION);
			return 0;
		default:
			fputs("Try vhost-pcictl --help.\n", stderr);
			return EXIT_USAGE;
		}
	}
	if (optind == argc) {
		usage(stderr);
		return EXIT_USAGE;
	}
	for (size_t i = 0; i < N_COMMANDS; i++)
		if (!strcmp(commands[i]->name, argv[optind])) {
			r = commands[i]->run(&c, argc - optind, argv + optind);
			if (c.fd >= 0)
				close(c.fd);
			free(c.in);
			if (fflush(stdout) || ferror(stdout)) {
				perror("vhost-pcictl: cannot write the output");
				return EXIT_REFUSED;
			}
			return r;
		}
	fprintf(stderr, "vhost-pcictl: there is no command %s; vhost-pcictl --help lists them\n", argv[optind]);
	return EXIT_USAGE;
}
