/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The arguments of a VMM, or the XML of libvirt, that match a link: what both have in common is worked out here
 * (generate.h).
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "generate.h"

#define TAG_MAX 36 /* of a file system (virtio 1.3, 5.11.4) */
#define MIB(n) ((unsigned long long)(n) << 20)

/* "512M", "2G", "300000K": bytes, 0 when it is none, or not whole MiB. */
static unsigned long long read_size(const char *text)
{
	static const char units[] = "KMGT";
	char *end;
	unsigned long long n = strtoull(text, &end, 10);
	const char *u = *end ? strchr(units, *end) : NULL;
	unsigned shift = u ? 10 * (unsigned)(u - units + 1) : 0;

	if (end == text || *text == '-' || (*end && (!u || end[1])) || n > (~0ULL >> shift))
		return 0;
	n <<= shift;
	return n % MIB(1) ? 0 : n;
}

static unsigned long long next_pow2(unsigned long long n)
{
	unsigned long long p = 1;

	while (p && p < n)
		p *= 2;
	return p;
}

static const char *text(const json_t *config, const char *section, const char *key)
{
	return json_string_value(json_object_get(json_object_get(config, section), key));
}

static unsigned long long grant_size(const json_t *config)
{
	const char *size = text(config, "Driver", "GrantSize");

	return size ? read_size(size) : 0;
}

/* Where the pieces of a port go: its state page and pool, and in fast mode over ivshmem the driver VM's memory. */
static void work_out_port(struct gen *g, const json_t *config)
{
	const char *attachment = text(config, "Device", "Attachment"), *pool = text(config, "Device", "PoolSize");
	const char *mode = text(config, "Link", "Mode");
	unsigned long long bar = 2 * (pool ? read_size(pool) : 0);

	g->endpoint = GEN_LOCAL;
	if (attachment && !strcmp(attachment, "ivshmem"))
		g->endpoint = GEN_IVSHMEM;
	if (attachment && !strcmp(attachment, "shmem"))
		g->endpoint = GEN_SHMEM;
	/* Room enough that firmware puts it above 4 GiB, where the processor caches it. */
	g->port_reserve = next_pow2(bar > MIB(1024) ? bar : MIB(1024));
	if (g->endpoint == GEN_IVSHMEM && mode && (!strcmp(mode, "fast") || !strcmp(mode, "grant"))) {
		g->buses = text(config, "Device", "HotplugBus");
		g->window_reserve = next_pow2(strcmp(mode, "grant") ? g->peer_memory : grant_size(config));
	}
}

/* Of a link of mode grant: what its driver VM has, beyond any other. */
static void work_out_grant(struct gen *g, const json_t *config)
{
	const char *source = text(config, "Driver", "Grant");

	if (!source)
		return;
	g->grant_socket = text(config, "Driver", "GrantSocket");
	g->grant_size = grant_size(config);
	if (!strcmp(source, "swiotlb") && g->grant_socket)
		g->grant = GEN_SWIOTLB;
	else if (!strcmp(source, "memory") && g->grant_size)
		g->grant = GEN_MEMORY;
	else if (!strcmp(source, "viommu"))
		g->grant = GEN_VIOMMU;
	if (g->grant == GEN_SWIOTLB)
		fprintf(stderr,
			"vhost-pcictl: boot the kernel of VM %s with swiotlb=force, and install vhost-pci-grant "
			"in it\n",
			g->vm);
}

/* A window of ivshmem is a BAR, which is a power of two: the whole of the driver VM's memory. */
static bool memory_fits(const struct gen *g, const json_t *config)
{
	const char *attachment = text(config, "Device", "Attachment"), *mode = text(config, "Link", "Mode");
	unsigned long long memory = g->driver ? g->memory : g->peer_memory;

	if (!attachment || strcmp(attachment, "ivshmem") || !mode || strcmp(mode, "fast") ||
	    memory == next_pow2(memory))
		return true;
	fprintf(stderr,
		"vhost-pcictl: %s is a fast link over ivshmem: the driver VM's memory must be a power of two (%s), not "
		"%lluM\n",
		g->link, g->driver ? "--memory" : "--driver-memory", memory >> 20);
	return false;
}

bool gen_is_net(const struct gen *g)
{
	return !strcmp(g->type, "net");
}

/* What a device of another type than net is told by its VMM. */
static void work_out_device(struct gen *g, const json_t *config)
{
	g->tag = text(config, "Profile", "Tag");
	g->config_size =
		(unsigned)json_integer_value(json_object_get(json_object_get(config, "Profile"), "ConfigSize"));
	if (!g->tag) {
		size_t n = strlen(g->link);

		g->tag = g->link + (n > TAG_MAX ? n - TAG_MAX : 0);
		if (g->driver && !strcmp(g->type, "fs"))
			fprintf(stderr, "vhost-pcictl: %s has no Tag= in [Profile]; the guest mounts it as %s\n",
				g->link, g->tag);
	}
}

/* Which device this side's VM gets. False after saying that there is no VM. */
static bool work_out_endpoint(struct gen *g, const json_t *config, const char *endpoint)
{
	const char *opens = g->listen ? "it listens at" : "it opens";

	g->endpoint = GEN_VIRTIO;
	if (!g->driver && !strcmp(endpoint, "vhost-user")) {
		fprintf(stderr,
			"vhost-pcictl: the device side of %s is a back-end on the host (Endpoint=vhost-user), not a "
			"VM; %s unix:%s\n",
			g->link, opens, g->socket);
		return false;
	}
	if (!g->driver && !strcmp(endpoint, "port"))
		work_out_port(g, config);
	if (g->endpoint == GEN_LOCAL)
		fprintf(stderr,
			"vhost-pcictl: the device side of %s is a program (Attachment=local), not a VM; it opens "
			"unix:%s\n",
			g->link, g->socket);
	return g->endpoint != GEN_LOCAL;
}

/* What link.show says, put where writers look. False after saying what is missing. */
static bool work_out(struct gen *g, const json_t *link)
{
	const json_t *config = json_object_get(link, "config"), *side;
	const char *side_name = g->driver ? "Driver" : "Device", *endpoint = text(config, "Device", "Endpoint"),
		   *packed;

	side = json_object_get(config, side_name);
	g->link = cli_str(link, "name");
	g->type = cli_str(link, "type");
	g->vm = text(config, side_name, "VM");
	g->socket = text(config, side_name, "Socket");
	g->listen = text(config, side_name, "SocketMode") && !strcmp(text(config, side_name, "SocketMode"), "client");
	g->qmp = text(config, side_name, "QMP");
	g->qmp_connects = text(config, side_name, "QMPMode") && !strcmp(text(config, side_name, "QMPMode"), "server");
	g->nic = g->driver ? json_string_value(json_object_get(side, "NIC")) : NULL;
	g->mac = text(config, "Net", g->driver ? "DriverMAC" : "DeviceMAC");
	g->mtu = (unsigned)json_integer_value(json_object_get(json_object_get(config, "Net"), "MTU"));
	g->pairs = (unsigned)json_integer_value(json_object_get(json_object_get(config, "Link"), "Queues"));
	g->queues = (unsigned)json_integer_value(json_object_get(link, "virtqueues"));
	packed = text(config, "Device", "PackedRings");
	g->packed = g->driver && packed && !strcmp(packed, "yes");
	if (!g->vm || !g->socket || !g->pairs || !g->queues || !endpoint) {
		fputs("vhost-pcictl: the daemon does not tell the link's configuration; it is older than this "
		      "program\n",
		      stderr);
		return false;
	}
	if (!memory_fits(g, config))
		return false;
	work_out_device(g, config);
	if (g->driver)
		work_out_grant(g, config);
	return work_out_endpoint(g, config, endpoint);
}

/* For a program: each argument of its own. */
static int print_json(const struct gen *g)
{
	json_t *args = json_array();

	gen_qemu(g, args);
	cli_print_json(args);
	json_decref(args);
	return 0;
}

static void print_args(const struct gen *g)
{
	json_t *args = json_array(), *a;
	size_t i;

	gen_qemu(g, args);
	/* An option and its value on a line; values have no blanks unless paths have. */
	json_array_foreach(args, i, a)
		printf("%s%c", json_string_value(a), i % 2 ? '\n' : ' ');
	json_decref(args);
}

enum { QEMU = 1, LIBVIRT };

static int bad(const char *what)
{
	fprintf(stderr, "vhost-pcictl generate: %s\nTry vhost-pcictl generate --help.\n", what);
	return EXIT_USAGE;
}

/* -1: all read, the link is in *name. */
static int read_options(struct cli *c, int argc, char **argv, struct gen *g, int *format, const char **name)
{
	static const struct option options[] = { { "qemu", no_argument, NULL, 'q' },
						 { "libvirt", no_argument, NULL, 'l' },
						 { "driver", no_argument, NULL, 'd' },
						 { "device", no_argument, NULL, 'D' },
						 { "memory", required_argument, NULL, 'm' },
						 { "driver-memory", required_argument, NULL, 'M' },
						 { "index", required_argument, NULL, 'i' },
						 { "reconnect-ms", no_argument, NULL, 'r' },
						 { "tcg", no_argument, NULL, 't' },
						 { "json", no_argument, NULL, 'j' },
						 { "help", no_argument, NULL, 'h' },
						 { NULL } };
	int opt, side = 0;
	char *end;

	optind = 0;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'q':
		case 'l':
			if (*format)
				return bad("--qemu or --libvirt, not both");
			*format = opt == 'q' ? QEMU : LIBVIRT;
			break;
		case 'd':
		case 'D':
			if (side)
				return bad("--driver or --device, not both");
			side = opt;
			break;
		case 'm':
		case 'M':
			*(opt == 'm' ? &g->memory : &g->peer_memory) = read_size(optarg);
			if (!read_size(optarg))
				return bad("memory is whole MiB, such as 512M or 4G");
			break;
		case 'i':
			g->index = (unsigned)strtoul(optarg, &end, 10);
			if (*end || end == optarg || g->index >= GEN_MAX_INDEX)
				return bad("--index counts the links of a VM from 0");
			break;
		case 'r':
			g->reconnect_ms = true;
			break;
		case 't':
			g->tcg = true;
			break;
		case 'j':
			c->json = true;
			break;
		case 'h':
			printf("Usage: vhost-pcictl generate %s\n%s.\n\n%s", cmd_generate.args, cmd_generate.summary,
			       cmd_generate.help);
			return 0;
		default:
			return bad("that is not an option of it");
		}
	}
	if (optind != argc - 1)
		return bad("it takes one link");
	if (!*format || !side)
		return bad("say --qemu or --libvirt, and --driver or --device");
	if (c->json && *format == LIBVIRT)
		return bad("--json is for --qemu");
	g->driver = side == 'd';
	*name = argv[optind];
	return -1;
}

static int run(struct cli *c, int argc, char **argv)
{
	struct gen g = { .memory = MIB(1024), .peer_memory = MIB(1024) };
	const char *name = NULL;
	int format = 0, r = read_options(c, argc, argv, &g, &format, &name);
	json_t *link;

	if (r >= 0)
		return r;
	r = cli_call(c, "link.show", json_pack("{s:s}", "name", name), &link);
	if (r)
		return r;
	r = EXIT_REFUSED;
	if (!work_out(&g, link) || (format == LIBVIRT && !gen_libvirt_can(&g)))
		goto out;
	r = 0;
	if (format == LIBVIRT && g.nic && strncmp(g.nic, "ua-", 3) && strncmp(g.nic, "net", 3))
		fprintf(stderr,
			"vhost-pcictl: libvirt takes no device id like NIC=%s; use ua-%s, or net0 for the domain's "
			"first interface\n",
			g.nic, g.nic);
	if (format == LIBVIRT)
		gen_libvirt(&g);
	else if (c->json)
		print_json(&g);
	else
		print_args(&g);
out:
	json_decref(link);
	return r;
}

const struct cli_command cmd_generate = {
	"generate",
	"LINK --qemu|--libvirt --driver|--device [OPTION]...",
	"Print the VMM's arguments that match a link",
	"  --qemu              arguments of QEMU, an option and its value on a line (--json: an array)\n"
	"  --libvirt           a domain, to which you add disks and what else the VM has\n"
	"  --driver, --device  which of the link's two VMs\n"
	"  --memory SIZE       memory of that VM, such as 4G (default 1G)\n"
	"  --driver-memory SIZE  --device of a fast link over ivshmem: memory of the driver VM, a power\n"
	"                      of two (default 1G); room for it is kept on the root ports\n"
	"  --index N           this is the VM's link number N, from 0: only the first has the\n"
	"                      arguments of the machine and its memory\n"
	"  --reconnect-ms      for QEMU 9.2 and later, which connects again within 100 ms\n"
	"  --tcg               for a host without KVM\n\n"
	"Example:  qemu-system-x86_64 $(vhost-pcictl generate web-db --qemu --driver) -accel kvm ...\n",
	run,
};
