/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhost-pci-grant: runs in a driver VM and tells the host where the kernel's swiotlb pool is (Grant=swiotlb).
 *
 *   pool.c     finds it      channel.c  the lines that are exchanged
 *
 * One thread, one poll loop. Only this file exits.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "pool.h"

#define EXIT_START 1
#define EXIT_USAGE 2
#define EXIT_GONE  3

#define PORTS	   "/dev/virtio-ports/org.vhost-pci.grant.*"
#define AWAY_MS	   500 /* between looks at a port whose other end is not there: it gives no other sign */
#define LOOK_AGAIN 10  /* seconds between searches for a pool that was not found */

#ifndef VP_VERSION
#define VP_VERSION "unknown"
#endif

static const char help[] =
	"Usage: vhost-pci-grant [--port PORT]\n"
	"       vhost-pci-grant --show [--json]\n"
	"\n"
	"Tells the host where this VM's kernel has its swiotlb pool, so that a link with Grant=swiotlb can\n"
	"show the device VM that, and nothing else. The kernel is booted with swiotlb=force.\n"
	"\n"
	"  -p, --port PORT  the virtio-serial port of the link (default: the first\n"
	"                   " PORTS ")\n"
	"  -s, --show       print the pool, or why there is none, and exit\n"
	"  -j, --json       with --show: as JSON\n"
	"  -h, --help\n"
	"  -V, --version\n"
	"\n"
	"Exit status: 0 stopped by a signal, 1 cannot start or no pool, 2 usage, 3 the port was unplugged.\n";

static void say(const char *what, const char *text)
{
	fprintf(stderr, "vhost-pci-grant: %s%s\n", what, text);
}

static int show(bool json)
{
	struct pool p;

	pool_find(&pool_this_vm, &p);
	/* None of the texts has a character that JSON wants to be escaped, but what the command line has. */
	for (char *c = p.why; json && *c; c++)
		if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ')
			*c = '?';
	if (json && p.found)
		printf("{\"address\": \"0x%" PRIx64 "\", \"bytes\": %" PRIu64 ", \"source\": \"%s\"}\n", p.address,
		       p.size, p.source);
	else if (json)
		printf("{\"refused\": \"%s\"}\n", p.why);
	else if (p.found)
		printf("0x%" PRIx64 "+0x%" PRIx64 " (%" PRIu64 " MiB; told by %s)\n", p.address, p.size, p.size >> 20,
		       p.source);
	else
		say("", p.why);
	return p.found ? 0 : EXIT_START;
}

/* fd, or -1 after saying why. */
static int open_port(const char *port)
{
	glob_t found = { 0 };
	int fd = -1;

	if (!port && !glob(PORTS, 0, NULL, &found))
		port = found.gl_pathv[0];
	if (!port) {
		say("no port for grants here: ", PORTS);
	} else {
		fd = open(port, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			fprintf(stderr, "vhost-pci-grant: %s: %s\n", port,
				errno == EBUSY ? "another program has it open" : strerror(errno));
	}
	globfree(&found);
	return fd;
}

static int signals_fd(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* The place does not change while the kernel runs. One that was not found may be later: the journal starts after us. */
static void look(struct channel *c, struct pool *p)
{
	static time_t last;
	char before[POOL_TEXT_MAX];

	if (p->found || (last && now() - last < LOOK_AGAIN))
		return;
	last = now();
	memcpy(before, p->why, sizeof(before));
	pool_find(&pool_this_vm, p);
	channel_set_answer(c, p);
	if (p->found)
		fprintf(stderr, "vhost-pci-grant: pool 0x%" PRIx64 ", %" PRIu64 " MiB, told by %s\n", p->address,
			p->size >> 20, p->source);
	else if (strcmp(before, p->why))
		say("", p->why);
}

/* What the host said of the answer: a line a second at most, whatever it sends. */
static void tell(const struct channel_heard *heard)
{
	static time_t last;

	if ((!heard->ok && !heard->error[0]) || (last && now() == last))
		return;
	last = now();
	say(heard->ok ? "the host took the grant" : "the host: ", heard->error);
}

/* Until a signal: 0, or EXIT_GONE. */
static int serve(int fd, int sigfd, struct channel *c, struct pool *p)
{
	struct pollfd on[] = { { .fd = sigfd, .events = POLLIN }, { .fd = fd } };
	struct channel_heard heard;
	bool away = false;
	char data[4096];
	ssize_t n;

	for (;;) {
		/* A port without its other end is ready for nothing, and says so at once each time. */
		on[1].events = POLLIN | (c->owed ? POLLOUT : 0);
		if (poll(on, away ? 1 : 2, away ? AWAY_MS : -1) < 0 && errno != EINTR)
			return EXIT_START;
		if (on[0].revents)
			return 0;
		n = read(fd, data, sizeof(data));
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return EXIT_GONE;
		away = !n;
		if (away)
			channel_gone(c);
		if (n > 0) {
			channel_input(c, data, (size_t)n, &heard);
			tell(&heard);
			if (heard.asked)
				look(c, p);
		}
		if (!away && channel_output(c, fd) < 0)
			return EXIT_GONE;
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "port", required_argument, NULL, 'p' }, { "show", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },	  { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },	  { NULL }
	};
	struct channel channel = { .owed = true };
	struct pool pool = { 0 };
	const char *port = NULL;
	bool only_show = false, json = false;
	int opt, fd, sigfd, rc;

	while ((opt = getopt_long(argc, argv, "p:sjhV", options, NULL)) != -1) {
		switch (opt) {
		case 'p':
			port = optarg;
			break;
		case 's':
			only_show = true;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return 0;
		case 'V':
			puts("vhost-pci-grant " VP_VERSION);
			return 0;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind != argc || (json && !only_show) || (port && only_show)) {
		fputs(help, stderr);
		return EXIT_USAGE;
	}
	if (only_show)
		return show(json);
	fd = open_port(port);
	sigfd = signals_fd();
	if (fd < 0 || sigfd < 0)
		return EXIT_START;
	look(&channel, &pool);
	rc = serve(fd, sigfd, &channel, &pool);
	if (rc == EXIT_GONE)
		say("the port has gone", "");
	close(fd);
	return rc;
}
