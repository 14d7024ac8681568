/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What passes through a link, out of the rings that the daemon's data threads write (lib/base/capring.h): the records
 * of all rings in the order of their times. Packets as a file or a line each, requests of other devices a line each.
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/capring.h"
#include "capture.h"
#include "capfile/filter.h"
#include "capfile/pcapng.h"
#include "cli.h"

#define SNAPLEN_MAX (256u << 10)
#define LOOK_MS     5          /* between two looks at rings that had nothing */
#define HOLD_NS     10000000u  /* threads publish what they wrote some time after the time that it has */
#define RINGS_MAX   128

struct capture {
	const char *link, *path, *filter_text;
	long long   snaplen, buffer, count;
	bool        json, packets;
	char        type[24];
	FILE       *out;
	struct vp_filter *filter;
	struct vp_capring_reader ring[RINGS_MAX];
	unsigned    rings;
	void       *mem;
	size_t      mem_size;
	uint64_t    lost;           /* since the last record that was written */
	struct vp_pcapng_stats stats;
	unsigned long long written;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	stop = 1;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int bad(const char *what)
{
	fprintf(stderr, "vhost-pcictl capture: %s; try vhost-pcictl capture --help\n", what);
	return EXIT_USAGE;
}

/* A number from 1, with K or M behind it. 0: it is none. */
static long long read_number(const char *s)
{
	char *end;
	long long v = strtoll(s, &end, 10), unit = *end == 'K' ? 1 << 10 : *end == 'M' ? 1 << 20 : 1;

	if (end == s || v < 1 || v > UINT32_MAX || end[*end == 'K' || *end == 'M'])
		return 0;
	return v * unit;
}

/* -1: all read. */
static int read_options(struct cli *c, int argc, char **argv, struct capture *cap)
{
	static const struct option options[] = { { "write", required_argument, NULL, 'w' },
						 { "filter", required_argument, NULL, 'f' },
						 { "snaplen", required_argument, NULL, 's' },
						 { "count", required_argument, NULL, 'c' },
						 { "buffer", required_argument, NULL, 'B' },
						 { "json", no_argument, NULL, 'j' },
						 { "help", no_argument, NULL, 'h' },
						 { NULL } };
	int opt;

	optind = 0;
	while ((opt = getopt_long(argc, argv, "w:s:c:", options, NULL)) != -1) {
		switch (opt) {
		case 'w':
			cap->path = optarg;
			break;
		case 'f':
			cap->filter_text = optarg;
			break;
		case 's':
			cap->snaplen = read_number(optarg);
			if (!cap->snaplen || cap->snaplen > SNAPLEN_MAX)
				return bad("--snaplen is 1 to 256K bytes of each packet");
			break;
		case 'c':
			cap->count = read_number(optarg);
			if (!cap->count)
				return bad("--count is a number from 1");
			break;
		case 'B':
			cap->buffer = read_number(optarg);
			if (!cap->buffer)
				return bad("--buffer is a size such as 16M");
			break;
		case 'j':
			c->json = true;
			break;
		case 'h':
			printf("Usage: vhost-pcictl capture %s\n%s.\n\n%s", cmd_capture.args, cmd_capture.summary,
			       cmd_capture.help);
			return 0;
		default:
			return bad("that is not an option of it");
		}
	}
	if (optind != argc - 1)
		return bad("it takes one link");
	cap->link = argv[optind];
	cap->json = c->json;
	if (cap->path && cap->json)
		return bad("-w writes a capture file, --json lines: one of both");
	if (cap->path && !strcmp(cap->path, "-") && isatty(STDOUT_FILENO))
		return bad("a capture file is nothing for a terminal; name a file, or give it to a program: -w - | "
			   "tshark -i -");
	return -1;
}

/* ---- the rings ------------------------------------------------------------------------------- */

static int open_rings(struct capture *cap, int fd, const json_t *result)
{
	long long n = cli_int(result, "rings"), size = cli_int(result, "ring_size");
	const size_t each = VP_CAPRING_PAGE + (size_t)size;
	struct stat st;

	if (fd < 0 || cli_int(result, "format") != VP_CAPRING_FORMAT || n < 1 || n > RINGS_MAX ||
	    size < VP_CAPRING_MIN || fstat(fd, &st) || (size_t)st.st_size < (size_t)n * each) {
		fputs("vhost-pcictl: the daemon's capture has another form; are both of one version?\n", stderr);
		return EXIT_REFUSED;
	}
	cap->mem_size = (size_t)n * each;
	cap->mem = mmap(NULL, cap->mem_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (cap->mem == MAP_FAILED) {
		perror("vhost-pcictl: the capture's buffer cannot be mapped");
		return EXIT_REFUSED;
	}
	cap->rings = (unsigned)n;
	for (unsigned i = 0; i < cap->rings; i++)
		vp_capring_open(&cap->ring[i], (uint8_t *)cap->mem + i * each, (uint32_t)size);
	return 0;
}

/* The ring whose first record is the oldest, if that is not younger than `until`. */
static struct vp_capring_reader *oldest(struct capture *cap, uint64_t until)
{
	struct vp_capring_reader *best = NULL;

	for (unsigned i = 0; i < cap->rings; i++) {
		const struct vp_cap_rec *r = vp_capring_first(&cap->ring[i]);

		if (r && r->ns <= until) {
			until = r->ns;
			best = &cap->ring[i];
		}
	}
	return best;
}

static bool enough(const struct capture *cap)
{
	return cap->count && cap->written >= (unsigned long long)cap->count;
}

/* False: there is no room for it in its ring's record, which no writer of ours makes. */
static bool whole(const struct vp_cap_rec *r)
{
	const struct vp_cap_packet *p = (const struct vp_cap_packet *)r;

	if (r->type == VP_CAP_REQUEST)
		return r->bytes >= sizeof(struct vp_cap_request);
	return r->type == VP_CAP_PACKET && r->bytes >= sizeof(*p) && p->caplen <= r->bytes - sizeof(*p);
}

static void write_record(struct capture *cap, const struct vp_cap_rec *r)
{
	const struct vp_cap_packet *p = (const struct vp_cap_packet *)r;

	cap->lost += r->lost;
	if (!whole(r) || (r->type == VP_CAP_PACKET) != cap->packets)
		return;
	if (cap->packets && !vp_filter_match(cap->filter, p + 1, p->len, p->caplen))
		return;
	if (cap->path)
		capture_write_packet(cap->out, p, cap->lost);
	else if (cap->packets)
		capture_print_packet(cap->out, p, cap->lost, cap->json);
	else
		capture_print_request(cap->out, (const struct vp_cap_request *)r, cap->lost, cap->json);
	cap->lost = 0;
	cap->written++;
}

static void drain(struct capture *cap, uint64_t until)
{
	struct vp_capring_reader *r;

	for (unsigned i = 0; i < cap->rings; i++)
		vp_capring_look(&cap->ring[i]);
	while (!enough(cap) && !ferror(cap->out) && (r = oldest(cap, until))) {
		write_record(cap, vp_capring_first(r));
		vp_capring_next(r);
	}
	fflush(cap->out);
}

/* ---- the capture ------------------------------------------------------------------------------ */

/* The daemon says something: that the link has gone, or nothing any more. */
static int told(struct cli *c)
{
	json_t *o = cli_next(c);

	if (!o)
		return EXIT_NO_DAEMON;
	if (!strcmp(cli_str(o, "event"), "capture.ended"))
		fprintf(stderr, "vhost-pcictl: the capture ended: %s\n",
			cli_str(json_object_get(o, "data"), "why"));
	json_decref(o);
	return EXIT_REFUSED;
}

static int follow(struct cli *c, struct capture *cap)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };
	int r = 0;

	while (!stop && !r && !enough(cap) && !ferror(cap->out)) {
		drain(cap, now_ns() - HOLD_NS);
		if (!enough(cap) && poll(&p, 1, LOOK_MS) > 0)
			r = told(c);
	}
	drain(cap, UINT64_MAX);
	return r;
}

static void finish(struct capture *cap)
{
	uint64_t seen, dropped;

	cap->stats.end_ns = now_ns();
	for (unsigned i = 0; i < cap->rings; i++) {
		dropped = vp_capring_dropped(&cap->ring[i], &seen);
		cap->stats.received += seen;
		cap->stats.dropped += dropped;
	}
	cap->stats.accepted = cap->written;
	if (cap->path)
		vp_pcapng_end(cap->out, &cap->stats);
	fprintf(stderr, "%llu %s, of %llu; %llu dropped for want of buffer%s\n", cap->written,
		cap->packets ? "packets captured" : "requests traced", (unsigned long long)cap->stats.received,
		(unsigned long long)cap->stats.dropped,
		cap->stats.dropped ? ": a larger --buffer, or a shorter --snaplen" : "");
}

static int open_output(struct capture *cap, const json_t *result)
{
	char about[400];

	cap->out = cap->path && strcmp(cap->path, "-") ? fopen(cap->path, "we") : stdout;
	if (!cap->out) {
		fprintf(stderr, "vhost-pcictl: %s: %s\n", cap->path, strerror(errno));
		return EXIT_REFUSED;
	}
	setvbuf(cap->out, NULL, _IOFBF, 1 << 18);
	if (!cap->path)
		return 0;
	snprintf(about, sizeof(about), "vhost-pci link, mode %s: outbound is what driver VM %s sends, inbound what "
		 "device VM %s sends", cli_str(result, "mode"), cli_str(result, "driver_vm"),
		 cli_str(result, "device_vm"));
	vp_pcapng_begin(cap->out, &(struct vp_pcapng_interface){
		.application = "vhost-pcictl " VP_VERSION, .name = cap->link, .description = about,
		.filter = cap->filter_text, .snaplen = cap->snaplen ? (uint32_t)cap->snaplen : SNAPLEN_MAX });
	fflush(cap->out);
	return 0;
}

static int begin(struct cli *c, struct capture *cap)
{
	json_t *params = json_pack("{s:s}", "name", cap->link), *result;
	struct vp_err e = { 0 };
	int fd = -1, r;

	if (cap->snaplen)
		json_object_set_new(params, "snaplen", json_integer(cap->snaplen));
	if (cap->buffer)
		json_object_set_new(params, "buffer", json_integer(cap->buffer));
	if (cap->filter_text &&
	    vp_filter_new(&cap->filter, cap->filter_text, cap->snaplen ? (uint32_t)cap->snaplen : SNAPLEN_MAX, &e)) {
		fprintf(stderr, "vhost-pcictl capture: %s\n", e.msg);
		json_decref(params);
		return EXIT_USAGE;
	}
	cap->stats.start_ns = now_ns();
	r = cli_call_fd(c, "link.capture", params, &result, &fd);
	if (r)
		return r;
	cap->packets = !strcmp(cli_str(result, "type"), "net");
	snprintf(cap->type, sizeof(cap->type), "%s", cli_str(result, "type"));
	capture_set_type(cap->type);
	if (!cap->packets && (cap->path || cap->filter_text))
		r = bad("the link has requests, not packets: neither -w nor --filter");
	if (!r)
		r = open_rings(cap, fd, result);
	if (fd >= 0)
		close(fd);
	if (!r)
		r = open_output(cap, result);
	json_decref(result);
	return r;
}

static int run(struct cli *c, int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal };
	static struct capture cap;
	int r = read_options(c, argc, argv, &cap);

	if (r >= 0)
		return r;
	r = begin(c, &cap);
	if (r)
		return r;
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	fprintf(stderr, "capturing link %s\n", cap.link);
	r = follow(c, &cap);
	finish(&cap);
	if (cap.out != stdout && (fflush(cap.out) || ferror(cap.out) || fclose(cap.out))) {
		fprintf(stderr, "vhost-pcictl: %s cannot be written: %s\n", cap.path, strerror(errno));
		r = EXIT_REFUSED;
	}
	vp_filter_free(cap.filter);
	munmap(cap.mem, cap.mem_size);
	return r;
}

const struct cli_command cmd_capture = {
	"capture",
	"LINK [-w FILE|-] [OPTION]...",
	"Show or save the packets of a link, or trace the requests of a disk",
	"  -w FILE          write a capture file (pcapng) for tcpdump, tshark, Wireshark; -: to standard\n"
	"                   output. Without it: a line a packet, or a request\n"
	"  --filter EXPR    only packets that match, such as \"udp port 53\"; see pcap-filter(7)\n"
	"  --snaplen BYTES  of each packet no more than that\n"
	"  --count N        end after so many\n"
	"  --buffer SIZE    between the daemon and this command, such as 16M (default 4M)\n"
	"  --json           an object a line\n\n"
	"Relay and copy links; of a fast link the packets are in its VMs only. Ends with Ctrl-C.\n"
	"Example:  vhost-pcictl capture web-db -w - | tshark -i -\n",
	run,
};
