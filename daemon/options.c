/* SPDX-License-Identifier: BSD-3-Clause */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "conf/keys.h"

static const char usage[] =
	"Usage: vhost-pcid [OPTION]...\n"
	"Join virtual machines by vhost-user devices; see vhost-pcid(8).\n"
	"\n"
	"  --config DIR       read vhost-pci.conf, *.vm and *.link from DIR; may be repeated,\n"
	"                     first one wins (default: /etc/vhost-pci, /run/vhost-pci,\n"
	"                     /usr/lib/vhost-pci)\n"
	"  --check-config     check the configuration, say what is wrong, and exit\n"
	"  --control PATH     the control socket (default: control.sock in the runtime directory)\n"
	"  --runtime-dir DIR  where sockets with relative or default paths are made\n"
	"                     (default: /run/vhost-pci)\n"
	"  --threads N        data threads (default: Threads= of vhost-pci.conf, or 1)\n"
	"  --cpus LIST        CPUs for the data threads, such as 2-5,8\n"
	"  --runas USER       become USER when started as root (default: User= of vhost-pci.conf)\n"
	"  --hold[=SECONDS]   a process keeps the sessions of relay links, and of fast links over\n"
	"                     local and shmem, for the next daemon, for so long (default: 5) after\n"
	"                     this one has ended, crashed or been killed; for a daemon that no\n"
	"                     service manager starts\n"
	"  --log-level LEVEL  error, warning, notice, info (default) or debug\n"
	"  --help, --version\n";

enum {
	OPT_CONFIG = 256,
	OPT_CHECK,
	OPT_CONTROL,
	OPT_RUNTIME,
	OPT_THREADS,
	OPT_CPUS,
	OPT_RUNAS,
	OPT_HOLD,
	OPT_LOG,
	OPT_TAKE_OVER,
	OPT_HELP,
	OPT_VERSION
};

static const struct option options[] = {
	{ "config", required_argument, NULL, OPT_CONFIG },
	{ "check-config", no_argument, NULL, OPT_CHECK },
	{ "control", required_argument, NULL, OPT_CONTROL },
	{ "runtime-dir", required_argument, NULL, OPT_RUNTIME },
	{ "threads", required_argument, NULL, OPT_THREADS },
	{ "cpus", required_argument, NULL, OPT_CPUS },
	{ "runas", required_argument, NULL, OPT_RUNAS },
	{ "hold", optional_argument, NULL, OPT_HOLD },
	{ "log-level", required_argument, NULL, OPT_LOG },
	{ "take-over", required_argument, NULL, OPT_TAKE_OVER },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ NULL }
};

static int bad(const char *what, const char *value, const char *hint)
{
	fprintf(stderr, "vhost-pcid: %s %s: %s\n", what, value, hint);
	return 2;
}

static int log_level(struct vp_options *o, const char *word)
{
	o->log_level = vp_log_level_of(word);
	return o->log_level < 0 ? bad("--log-level", word, "use error, warning, notice, info or debug") : 0;
}

static int hold_time(struct vp_options *o, const char *value)
{
	char *end;
	unsigned long n = value ? strtoul(value, &end, 10) : 5;

	if (value && (!*value || *value == '-' || *end || n < 1 || n > 3600))
		return bad("--hold", value, "give seconds, 1 to 3600");
	o->hold = (unsigned)n;
	return 0;
}

/* The socket and directory paths must fit sun_path; absolute, since the daemon's directory is nobody's business. */
static int path_option(const char **slot, const char *name, const char *value)
{
	if (*value != '/')
		return bad(name, value, "give an absolute path");
	if (strlen(value) >= VP_CONF_SOCKET_MAX)
		return bad(name, value, "longer than a UNIX socket's path may be; use a shorter one");
	*slot = value;
	return 0;
}

int vp_options_parse(struct vp_options *o, int argc, char **argv, bool *done)
{
	struct vp_conf_daemon scratch;
	struct vp_err e;
	int opt, r = 0;

	*o = (struct vp_options){ .log_level = VP_LOG_INFO, .take_over = -1 };
	*done = false;
	while (!r && (opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case OPT_CONFIG:
			if (o->paths.n == VP_CONF_MAX_DIRS)
				return bad("--config", optarg, "too many directories");
			o->paths.dir[o->paths.n++] = optarg;
			o->paths.named = true;
			break;
		case OPT_CHECK:
			o->check_config = true;
			break;
		case OPT_CONTROL:
			r = path_option(&o->paths.control_socket, "--control", optarg);
			break;
		case OPT_RUNTIME:
			r = path_option(&o->paths.runtime_dir, "--runtime-dir", optarg);
			break;
		case OPT_THREADS:
			o->threads = optarg;
			if (vp_conf_key_set(VP_CONF_DAEMON, &scratch, "Daemon", "Threads", optarg, &e) < 0)
				return bad("--threads", optarg, e.msg);
			break;
		case OPT_CPUS:
			o->cpus = optarg;
			if (vp_conf_parse_cpus(&scratch, optarg, &e))
				return bad("--cpus", optarg, e.msg);
			break;
		case OPT_RUNAS:
			o->user = optarg;
			if (vp_conf_key_set(VP_CONF_DAEMON, &scratch, "Daemon", "User", optarg, &e) < 0)
				return bad("--runas", optarg, e.msg);
			break;
		case OPT_HOLD:
			r = hold_time(o, optarg);
			break;
		case OPT_LOG:
			r = log_level(o, optarg);
			break;
		case OPT_TAKE_OVER:
			/* Of the starter only (handover/starter.h). */
			o->take_over = atoi(optarg);
			if (o->take_over < 3)
				return bad("--take-over", optarg, "give the number of an open file descriptor");
			break;
		case OPT_HELP:
			fputs(usage, stdout);
			*done = true;
			return 0;
		case OPT_VERSION:
			printf("vhost-pcid %s\n", VP_VERSION);
			*done = true;
			return 0;
		default:
			fputs("Try vhost-pcid --help.\n", stderr);
			return 2;
		}
	}
	if (!r && optind < argc)
		return bad("unexpected argument", argv[optind], "try vhost-pcid --help");
	if (!o->paths.n) {
		static const char *const dirs[] = { "/etc/vhost-pci", "/run/vhost-pci", "/usr/lib/vhost-pci" };

		for (; o->paths.n < VP_ARRAY_SIZE(dirs); o->paths.n++)
			o->paths.dir[o->paths.n] = dirs[o->paths.n];
	}
	return r;
}
