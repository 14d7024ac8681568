/* SPDX-License-Identifier: BSD-3-Clause */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* Take --binary PATH and --or-reload out of argv. 0, or an exit status. */
static int options(int *argc, char **argv, char *binary, bool *reload)
{
	int n = 1;

	for (int i = 1; i < *argc; i++) {
		const char *path = NULL;

		if (!strcmp(argv[i], "--or-reload")) {
			*reload = true;
			continue;
		}
		if (!strncmp(argv[i], "--binary=", 9))
			path = argv[i] + 9;
		else if (!strcmp(argv[i], "--binary") && i + 1 < *argc)
			path = argv[++i];
		if (!path) {
			argv[n++] = argv[i];
			continue;
		}
		if (!realpath(path, binary)) {
			fprintf(stderr, "vhost-pcictl: upgrade: ");
			perror(path);
			return EXIT_USAGE;
		}
	}
	argv[n] = NULL;
	*argc = n;
	return 0;
}

static int run(struct cli *c, int argc, char **argv)
{
	char binary[PATH_MAX] = "", keep[] = "--keep";
	bool reload = false;
	json_t *result;
	int n, r = options(&argc, argv, binary, &reload);

	if (r)
		return r;
	r = cli_operands(c, &cmd_upgrade, argc, argv, 0, 0, &n);
	if (r >= 0)
		return r;
	r = cli_call(c, "daemon.upgrade", *binary ? json_pack("{s:s}", "binary", binary) : NULL, &result);
	if (r == EXIT_REFUSED && reload) {
		fputs("vhost-pcictl: reloading instead\n", stderr);
		return cmd_reload.run(c, 2, (char *[]){ argv[0], keep, NULL });
	}
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	else
		printf("version %s, pid %lld, %lld links, traffic stood still for %.1f ms\n",
		       cli_str(result, "version"), cli_int(result, "pid"), cli_int(result, "links"),
		       (double)cli_int(result, "stall_us") / 1000);
	r = cli_int(result, "failed") ? EXIT_REFUSED : 0;
	if (r)
		fprintf(stderr,
			"vhost-pcictl: upgrade: taken over, but %lld links that have changed cannot be set up; the "
			"daemon's log names them\n",
			cli_int(result, "failed"));
	json_decref(result);
	return r;
}

const struct cli_command cmd_upgrade = {
	"upgrade", "[--binary PATH] [--or-reload]", "Have a new daemon take over, without a restart",
	"The running daemon starts the new one and hands over all sockets, sessions and\n"
	"rings. No VM notices. If the new daemon cannot take over, the old one goes on,\n"
	"and the reason is printed. The new daemon has read the configuration files, so\n"
	"this is a reload, too.\n\n"
	"  --binary PATH   start PATH, which UpgradeBinaries= has to name, and not the file\n"
	"                  that the running daemon was started from\n"
	"  --or-reload     if something cannot be handed over, reload\n", run,
};
