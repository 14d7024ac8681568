// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "opts.h"
#include "tap.h"

#ifndef VP_VERSION
#define VP_VERSION "unknown"
#endif

static const char help[] =
	"Usage: vhost-pci-agent --tap NAME [options]\n"
	"       vhost-pci-agent --vsock CID [options]\n"
	"       vhost-pci-agent --scsi WWPN [options]\n"
	"       vhost-pci-agent --vhost-user PATH | --vhost-user-server PATH [options]\n"
	"       vhost-pci-agent --status [--json] [--port PORT]\n"
	"       vhost-pci-agent --capture NAME --write FILE|- [--filter EXPR] [--snaplen BYTES] [--count N]\n"
	"\n"
	"Serves the virtio device that another VM drives through a vhost-pci port of this VM.\n"
	"\n"
	"Data path, one of:\n"
	"  -t, --tap NAME               kernel: vhost-net and the tap interface NAME (made if missing),\n"
	"                               or a macvtap given by its path (/dev/tapN)\n"
	"  -c, --vsock CID              kernel: vhost-vsock; programs of this VM reach the driver VM at\n"
	"                               the vsock address CID, which is the link's CID=\n"
	"  -S, --scsi WWPN              kernel: vhost-scsi; the driver VM gets the disks of this VM's\n"
	"                               target WWPN (naa.…, made with targetcli or in configfs)\n"
	"  -u, --vhost-user PATH        a vhost-user back-end that listens at PATH\n"
	"  -U, --vhost-user-server PATH a vhost-user back-end that connects to PATH\n"
	"\n"
	"Options:\n"
	"  -p, --port PORT      /dev/vhost-pciN, the port's name, or auto (default): the first free one\n"
	"  -w, --wait           wait for the port when there is none yet, or when it is unplugged\n"
	"  -q, --queues N       queue pairs of the tap, 1 to 64 (default: what the port has)\n"
	"  -b, --bridge BR      make the tap a port of bridge BR, and bring it up\n"
	"      --up             bring the tap up\n"
	"      --mac ADDR       the tap's own MAC address (not the driver VM's)\n"
	"      --mtu N          the tap's MTU (default: the link's, if it has one)\n"
	"      --keep           leave the tap in place at exit\n"
	"      --busy-poll USEC let vhost-net poll this long before it sleeps (default 0)\n"
	"      --state FILE     of a vhost-user back-end that can (virtiofsd): what it knows, such as\n"
	"                       open files, from an orderly end of the agent to its next start\n"
	"  -s, --status         print what the port says, and exit\n"
	"  -j, --json           with --status: as JSON\n"
	"      --capture NAME   save the packets of the interface NAME that an agent serves (--tap), as a\n"
	"                       capture file (pcapng) for tcpdump, tshark, Wireshark; until a signal\n"
	"      --write FILE     where to; -: standard output\n"
	"      --filter EXPR    only packets that match, see pcap-filter(7)\n"
	"      --snaplen BYTES  of each packet no more than that\n"
	"      --count N        end after so many\n"
	"  -v, --verbose        log more\n"
	"  -h, --help\n"
	"  -V, --version\n"
	"\n"
	"Exit status: 0 stopped by a signal, 1 cannot start, 2 usage, 3 the port was unplugged.\n";

enum { O_UP = 256, O_MAC, O_MTU, O_KEEP, O_BUSY, O_CAPTURE, O_WRITE, O_FILTER, O_SNAPLEN, O_COUNT, O_STATE };

static const struct option longopts[] = {
	{ "tap", required_argument, NULL, 't' },
	{ "vsock", required_argument, NULL, 'c' },
	{ "scsi", required_argument, NULL, 'S' },
	{ "vhost-user", required_argument, NULL, 'u' },
	{ "vhost-user-server", required_argument, NULL, 'U' },
	{ "state", required_argument, NULL, O_STATE },
	{ "port", required_argument, NULL, 'p' },
	{ "wait", no_argument, NULL, 'w' },
	{ "queues", required_argument, NULL, 'q' },
	{ "bridge", required_argument, NULL, 'b' },
	{ "up", no_argument, NULL, O_UP },
	{ "mac", required_argument, NULL, O_MAC },
	{ "mtu", required_argument, NULL, O_MTU },
	{ "keep", no_argument, NULL, O_KEEP },
	{ "busy-poll", required_argument, NULL, O_BUSY },
	{ "capture", required_argument, NULL, O_CAPTURE },
	{ "write", required_argument, NULL, O_WRITE },
	{ "filter", required_argument, NULL, O_FILTER },
	{ "snaplen", required_argument, NULL, O_SNAPLEN },
	{ "count", required_argument, NULL, O_COUNT },
	{ "status", no_argument, NULL, 's' },
	{ "json", no_argument, NULL, 'j' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

__attribute__((format(printf, 1, 2)))
static int usage(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("vhost-pci-agent: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputs("\nTry 'vhost-pci-agent --help'.\n", stderr);
	va_end(ap);
	return -EINVAL;
}

static int number(const char *name, const char *s, unsigned long min, unsigned long max, unsigned int *out)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(s, &end, 10);
	if (errno || end == s || *end || *s == '-' || v < min || v > max)
		return usage("--%s %s: a number from %lu to %lu is wanted", name, s, min, max);
	*out = (unsigned int)v;
	return 0;
}

static int parse_mac(struct opts *o, const char *s)
{
	int n = 0;

	if (sscanf(s, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &o->mac[0], &o->mac[1], &o->mac[2], &o->mac[3],
		   &o->mac[4], &o->mac[5], &n) != 6 || s[n] || o->mac[0] & 1)
		return usage("--mac %s: a unicast address like 02:00:00:00:00:01 is wanted", s);
	o->has_mac = true;
	return 0;
}

static int parse_one(struct opts *o, int c)
{
	switch (c) {
	case 't':
		o->tap = optarg;
		return 0;
	case 'c':
		/* 0 to 2 have meanings of their own (VMADDR_CID_*), and so has the last. */
		return number("vsock", optarg, 3, UINT32_MAX - 1, &o->cid);
	case 'S':
		if (!*optarg || strchr(optarg, '/'))
			return usage("--scsi %s: a WWPN like naa.5001405000000001 is wanted", optarg);
		o->wwpn = optarg;
		return 0;
	case 'u':
	case 'U':
		if (o->vhost_user)
			return usage("--vhost-user and --vhost-user-server exclude each other");
		o->vhost_user = optarg;
		o->server = c == 'U';
		return 0;
	case O_STATE:
		if (!*optarg || strlen(optarg) > PATH_MAX - 8)
			return usage("--state '%s': the path of a file is wanted", optarg);
		o->state = optarg;
		return 0;
	case 'p':
		o->port = optarg;
		return 0;
	case 'w':
		o->wait = true;
		return 0;
	case 'q':
		return number("queues", optarg, 1, TAP_MAX_PAIRS, &o->pairs);
	case 'b':
		o->bridge = optarg;
		return 0;
	case O_UP:
		o->up = true;
		return 0;
	case O_MAC:
		return parse_mac(o, optarg);
	case O_MTU:
		return number("mtu", optarg, 68, 65535, &o->mtu);
	case O_KEEP:
		o->keep = true;
		return 0;
	case O_BUSY:
		return number("busy-poll", optarg, 0, 1000000, &o->busy_poll_us);
	case O_CAPTURE:
		o->capture = optarg;
		return 0;
	case O_WRITE:
		o->write = optarg;
		return 0;
	case O_FILTER:
		o->filter = optarg;
		return 0;
	case O_SNAPLEN:
		return number("snaplen", optarg, 1, 262144, &o->snaplen);
	case O_COUNT:
		return number("count", optarg, 1, UINT32_MAX, &o->count);
	case 's':
		o->status = true;
		return 0;
	case 'j':
		o->json = true;
		return 0;
	case 'v':
		o->verbose = true;
		return 0;
	case 'h':
		fputs(help, stdout);
		return 1;
	case 'V':
		puts("vhost-pci-agent " VP_VERSION);
		return 1;
	default:
		return usage("unknown option, or an option without its argument");
	}
}

int opts_parse(struct opts *o, int argc, char **argv)
{
	int c, rc, paths;

	*o = (struct opts){ .port = "auto" };
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, "t:c:S:u:U:p:wq:b:sjvhV", longopts, NULL)) != -1) {
		rc = parse_one(o, c);
		if (rc)
			return rc;
	}
	if (optind < argc)
		return usage("unexpected argument '%s'", argv[optind]);
	paths = !!o->tap + !!o->cid + !!o->wwpn + !!o->vhost_user;
	if (o->capture)
		return paths || o->status ? usage("--capture only looks: it takes no data path")
		       : !o->write	  ? usage("--capture wants --write FILE, or --write - for standard output")
					  : 0;
	if (o->write || o->filter || o->snaplen || o->count)
		return usage("--write, --filter, --snaplen and --count go with --capture");
	if (o->status)
		return paths ? usage("--status only looks: it takes no data path") : 0;
	if (o->json)
		return usage("--json goes with --status");
	if (paths > 1)
		return usage("--tap, --vsock, --scsi and --vhost-user exclude each other");
	if (!paths)
		return usage("say what processes the queues: --tap NAME, --vsock CID, --scsi WWPN, --vhost-user PATH "
			     "or --vhost-user-server PATH");
	if (!o->tap && (o->bridge || o->up || o->has_mac || o->mtu || o->pairs || o->keep || o->busy_poll_us))
		return usage("--bridge, --up, --mac, --mtu, --queues, --keep and --busy-poll go with --tap");
	if (o->state && !o->vhost_user)
		return usage("--state goes with --vhost-user and --vhost-user-server");
	if (!*o->port)
		return usage("--port: a path, a name or auto is wanted");
	return 0;
}
