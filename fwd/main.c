/* SPDX-License-Identifier: BSD-3-Clause */
#include "fwd.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cpus.h"
#include "base/watch.h"

#define IDLE_ROUNDS 2000 /* empty rounds before sleeping */

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	stop = 1;
}

static void usage(FILE *to)
{
	fputs("Usage: vhost-pci-fwd [OPTIONS] PORT...\n"
	      "Move packets between the driver VMs of vhost-pci ports.\n\n"
	      "PORT is /dev/vhost-pciN in a device VM, or unix:PATH (a local port of vhost-pcid) on the host.\n\n"
	      "  -m, --mode MODE     cross: ports 0 and 1, 2 and 3, ... are joined, one copy a packet (default)\n"
	      "                      switch: all ports are one learning Ethernet switch\n"
	      "                      macswap: each packet goes back where it came from, addresses exchanged\n"
	      "  -c, --capture N=FILE  write the packets of port N (both directions) to FILE, pcap format\n"
	      "  -p, --poll          never sleep: lowest latency, one busy CPU\n"
	      "  -P, --protect       only libvhostpci reaches the driver VMs' memory (protection keys); the rest of\n"
	      "                      this program is sealed off from it. Ports of a device VM only\n"
	      "  -r, --reconnect     wait for a port that is not there, or is gone, and attach again\n"
	      "  -C, --cpu N         run on this CPU\n"
	      "  -s, --stats SECS    print counters every SECS seconds\n"
	      "  -j, --json          print counters as JSON, one object a line\n"
	      "  -h, --help          this text\n"
	      "  -V, --version       version\n", to);
}

static uint64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec;
}

static void sum_counters(const struct fwd_port *port, struct vhp_port_info *info, struct vhp_counters *sum)
{
	struct vhp_counters c;
	unsigned i;

	*sum = port->before;
	*info = (struct vhp_port_info){ .reason = "gone" };
	if (!port->p)
		return;
	vhp_port_info(port->p, info);
	for (i = 0; i < info->max_pairs && !vhp_pair_info(port->p, i, &c); i++) {
		sum->recv_packets += c.recv_packets;
		sum->recv_bytes += c.recv_bytes;
		sum->send_packets += c.send_packets;
		sum->send_bytes += c.send_bytes;
		sum->recv_errors += c.recv_errors;
		sum->send_errors += c.send_errors;
		sum->send_full += c.send_full;
		if (c.recv_broken)
			sum->recv_broken = c.recv_broken;
		if (c.send_broken)
			sum->send_broken = c.send_broken;
	}
}

static void print_stats(const struct fwd *f, bool json)
{
	unsigned i;

	if (json)
		printf("[");
	else
		printf("%-4s %-28s %-5s %14s %14s %10s %10s\n", "port", "where", "link", "received", "sent", "lost",
		       "errors");
	for (i = 0; i < f->n; i++) {
		struct vhp_port_info info;
		struct vhp_counters c;

		sum_counters(&f->port[i], &info, &c);
		if (json)
			printf("%s{\"port\":%u,\"where\":\"%s\",\"up\":%s,\"recv_packets\":%llu,\"recv_bytes\":%llu,"
			       "\"send_packets\":%llu,\"send_bytes\":%llu,\"lost\":%llu,\"errors\":%llu}",
			       i ? "," : "", i, f->port[i].where, info.up ? "true" : "false",
			       (unsigned long long)c.recv_packets, (unsigned long long)c.recv_bytes,
			       (unsigned long long)c.send_packets, (unsigned long long)c.send_bytes,
			       (unsigned long long)f->port[i].lost,
			       (unsigned long long)(c.recv_errors + c.send_errors));
		else
			printf("%-4u %-28s %-5s %14llu %14llu %10llu %10llu\n", i, f->port[i].where,
			       info.up ? "up" : "down", (unsigned long long)c.recv_packets,
			       (unsigned long long)c.send_packets, (unsigned long long)f->port[i].lost,
			       (unsigned long long)(c.recv_errors + c.send_errors));
	}
	if (json)
		printf("]\n");
	fflush(stdout);
}

/* The port's kick fds are others now. */
static void forget_kicks(struct fwd_port *port)
{
	for (unsigned pair = 0; pair < FWD_MAX_PAIRS; pair++)
		vp_watch_end(&port->kick[pair]);
}

static void close_port(struct fwd_port *port)
{
	forget_kicks(port);
	vp_watch_end(&port->watch);
	vhp_close(port->p);
	port->p = NULL;
}

/* It went for good: free what it had, the driver VM's memory first of all. */
static void lose_port(struct fwd_port *port)
{
	struct vhp_port_info info;
	struct vhp_counters sum;

	sum_counters(port, &info, &sum);
	port->before = sum;
	port->said.msg[0] = 0;
	close_port(port);
}

static int open_port(struct fwd *f, unsigned i)
{
	struct vhp_params params = { .size = sizeof(params), .protect = f->protect };
	struct fwd_port *port = &f->port[i];
	struct vhp_error err = { 0 };
	int ret = vhp_open(&port->p, port->where, &params, &err);

	if (!ret) {
		ret = vp_watch_add(&port->watch, f->ep, vhp_fd(port->p), EPOLLIN, 0);
		if (!ret)
			return 0;
		snprintf(err.msg, sizeof(err.msg), "%s", strerror(-ret));
		close_port(port);
	}
	port->p = NULL;
	/* Once, not every second. */
	if (strcmp(err.msg, port->said.msg))
		fprintf(stderr, "vhost-pci-fwd: %s: %s%s\n", port->where, err.msg,
			f->reconnect ? " (waiting for it)" : "");
	port->said = err;
	return ret;
}

/* Is it there again? Asked once a second. */
static bool reopen(struct fwd *f, unsigned i)
{
	struct fwd_port *port = &f->port[i];

	if (port->tried == f->now)
		return false;
	port->tried = f->now;
	if (open_port(f, i))
		return false;
	fprintf(stderr, "port %u (%s): attached\n", i, port->where);
	return true;
}

/* Bring all ports in line with their state pages, saying what changed. */
static void update_ports(struct fwd *f, bool all)
{
	unsigned i;

	for (i = 0; i < f->n; i++) {
		struct fwd_port *port = &f->port[i];
		struct vhp_error err = { 0 };
		bool was = port->up;
		int ret;

		if (!port->p) {
			if (!reopen(f, i))
				continue;
		} else if (!all && !vhp_changed(port->p)) {
			continue;
		}
		ret = vhp_update(port->p, &err);
		port->up = ret == 1;
		if (ret < 0)
			fprintf(stderr, "port %u (%s): %s\n", i, port->where, err.msg);
		if (ret == -ENODEV) {
			stop |= !f->reconnect;
			if (f->reconnect)
				lose_port(port);
		}
		if (port->up != was) {
			struct vhp_port_info info;

			struct vhp_counters c;

			sum_counters(port, &info, &c);
			fprintf(stderr, "port %u (%s): link %s%s%s\n", i, port->where, port->up ? "up" : "down",
				port->up ? "" : ": ", info.reason);
		}
	}
}

/* For the administrators of the host. What is wrong with a port, update_ports() finds out and says. */
static void report_ports(const struct fwd *f)
{
	for (unsigned i = 0; i < f->n; i++)
		if (f->port[i].p)
			vhp_report(f->port[i].p, NULL);
}

/* Will a kick of this pair end the sleep? */
static bool wait_kick(struct fwd_port *port, unsigned pair, int ep)
{
	int fd = vhp_recv_fd(port->p, pair);

	if (fd < 0 || pair >= FWD_MAX_PAIRS)
		return false;
	return port->kick[pair] || !vp_watch_add(&port->kick[pair], ep, fd, EPOLLIN | EPOLLET, 0);
}

/* Ask for kicks and sleep until one comes, a state page changes, or a second has passed. */
static void nap(struct fwd *f)
{
	struct epoll_event ev[FWD_MAX_PORTS];
	unsigned i, pair;
	bool work = false;

	for (i = 0; i < f->n; i++) {
		struct fwd_port *port = &f->port[i];
		struct vhp_port_info info;

		if (!port->p)
			continue;
		if (port->fds_serial != vhp_fds_serial(port->p))
			forget_kicks(port);
		port->fds_serial = vhp_fds_serial(port->p);
		vhp_port_info(port->p, &info);
		for (pair = 0; port->up && pair < info.pairs; pair++)
			/* Whom nobody wakes has to poll. */
			work |= !wait_kick(port, pair, f->ep) || vhp_recv_arm(port->p, pair);
	}
	if (!work)
		epoll_wait(f->ep, ev, FWD_MAX_PORTS, 1000);
	for (i = 0; i < f->n; i++) {
		struct vhp_port_info info;

		if (!f->port[i].p)
			continue;
		vhp_port_info(f->port[i].p, &info);
		for (pair = 0; f->port[i].up && pair < info.pairs; pair++)
			vhp_recv_disarm(f->port[i].p, pair);
	}
}

static int open_ports(struct fwd *f, char **where, unsigned n)
{
	struct vhp_error err;

	if (!n || n > FWD_MAX_PORTS) {
		fprintf(stderr, "vhost-pci-fwd: give 1 to %u ports (see --help)\n", FWD_MAX_PORTS);
		return -EINVAL;
	}
	f->now = now_s();
	for (unsigned i = 0; i < n; i++) {
		int ret;

		f->port[i].where = where[i];
		f->port[i].tried = f->now;
		f->n = i + 1;
		ret = open_port(f, i);
		if (ret && !f->reconnect)
			return ret;
	}
	if (f->protect && vhp_protect_seal(&err)) {
		fprintf(stderr, "vhost-pci-fwd: --protect: %s\n", err.msg);
		return err.code;
	}
	return 0;
}

static int open_capture(const struct fwd *f, char *spec, struct pcap **slot)
{
	char *file = strchr(spec, '=');
	unsigned long port = strtoul(spec, NULL, 10);

	if (!file || port >= FWD_MAX_PORTS) {
		fprintf(stderr, "vhost-pci-fwd: --capture %s: give PORT=FILE, ports count from 0\n", spec);
		return -EINVAL;
	}
	slot[port] = pcap_create(file + 1);
	if (!slot[port]) {
		fprintf(stderr, "vhost-pci-fwd: --capture: %s: %s\n", file + 1, strerror(errno));
		return -errno;
	}
	return 0;
}

static int parse_mode(const char *s, enum fwd_mode *m)
{
	static const char *const name[] = { "cross", "switch", "macswap" };
	unsigned i;

	for (i = 0; i < 3; i++)
		if (!strcmp(s, name[i])) {
			*m = (enum fwd_mode)i;
			return 0;
		}
	fprintf(stderr, "vhost-pci-fwd: --mode %s: choose cross, switch or macswap\n", s);
	return -EINVAL;
}

static int pin(const char *s)
{
	char why[240] = "give the number of a CPU", *end;
	unsigned long cpu = strtoul(s, &end, 10);

	cpu = cpu < UINT_MAX ? cpu : UINT_MAX;
	if (*s >= '0' && *s <= '9' && !*end && !vp_cpu_pin(pthread_self(), (unsigned)cpu, why, sizeof(why)))
		return 0;
	fprintf(stderr, "vhost-pci-fwd: --cpu %s: %s\n", s, why);
	return -EINVAL;
}

/* Packet buffers in huge pages where the kernel gives them. */
static int alloc_buffers(struct fwd *f)
{
	char *m = mmap(NULL, (size_t)FWD_BURST * FWD_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned i;

	f->fdb = fdb_new();
	f->mover = vhp_mover_new();
	if (m == MAP_FAILED || !f->fdb || !f->mover)
		return -ENOMEM;
	madvise(m, (size_t)FWD_BURST * FWD_ROOM, MADV_HUGEPAGE);
	for (i = 0; i < FWD_BURST; i++)
		f->pkt[i] = (struct vhp_packet){ .data = m + (size_t)i * FWD_ROOM, .room = FWD_ROOM };
	return 0;
}

static void run(struct fwd *f, bool poll, unsigned stats, bool json)
{
	unsigned idle = 0, rounds = 0;
	uint64_t next = now_s() + stats, told = 0;

	update_ports(f, true);
	while (!stop) {
		idle = fwd_round(f) ? 0 : idle + 1;
		if (idle > IDLE_ROUNDS && !poll) {
			nap(f);
			update_ports(f, true);
			idle = 0;
		} else if (rounds % 256 == 0) {
			update_ports(f, true);
		} else {
			update_ports(f, false);
		}
		if (rounds++ % 4096 == 0 || !idle) {
			f->now = now_s();
			if (f->now != told)
				report_ports(f);
			told = f->now;
			if (stats && f->now >= next) {
				print_stats(f, json);
				next = f->now + stats;
			}
		}
	}
	if (stats)
		print_stats(f, json);
}

int main(int argc, char **argv)
{
	static const struct option opts[] = {
		{ "mode", 1, 0, 'm' },	  { "capture", 1, 0, 'c' },
		{ "poll", 0, 0, 'p' },	  { "cpu", 1, 0, 'C' },
		{ "protect", 0, 0, 'P' }, { "reconnect", 0, 0, 'r' },
		{ "stats", 1, 0, 's' },	  { "json", 0, 0, 'j' },
		{ "help", 0, 0, 'h' },	  { "version", 0, 0, 'V' },
		{ 0 },
	};
	struct sigaction sa = { .sa_handler = on_signal };
	struct pcap *cap[FWD_MAX_PORTS] = { 0 };
	bool poll = false, json = false;
	unsigned i, stats = 0;
	struct fwd f = { 0 };
	int c, ret = 0;

	while ((c = getopt_long(argc, argv, "m:c:pPrC:s:jhV", opts, NULL)) != -1) {
		switch (c) {
		case 'm': ret = parse_mode(optarg, &f.mode); break;
		case 'c': ret = open_capture(&f, optarg, cap); break;
		case 'p': poll = true; break;
		case 'P': f.protect = true; break;
		case 'r': f.reconnect = true; break;
		case 'C': ret = pin(optarg); break;
		case 's': stats = (unsigned)atoi(optarg); break;
		case 'j': json = true; break;
		case 'h': usage(stdout); return 0;
		case 'V': puts("vhost-pci-fwd " VHOST_PCI_VERSION); return 0;
		default: usage(stderr); return 2;
		}
		if (ret)
			return 2;
	}
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	if (f.protect && f.reconnect) {
		fputs("vhost-pci-fwd: --reconnect: a program that is sealed (--protect) cannot attach again\n",
		      stderr);
		return 2;
	}
	f.ep = epoll_create1(EPOLL_CLOEXEC);
	if (f.ep < 0 || alloc_buffers(&f)) {
		fprintf(stderr, "vhost-pci-fwd: out of memory\n");
		return 1;
	}
	ret = open_ports(&f, argv + optind, (unsigned)(argc - optind));
	for (i = 0; i < FWD_MAX_PORTS; i++)
		f.port[i].pcap = cap[i];
	if (!ret)
		run(&f, poll, stats, json);
	for (i = 0; i < FWD_MAX_PORTS; i++) {
		close_port(&f.port[i]);
		c = pcap_close(f.port[i].pcap);
		if (c)
			fprintf(stderr, "vhost-pci-fwd: capture of port %u is incomplete: %s\n", i, strerror(-c));
	}
	vhp_mover_free(f.mover);
	fdb_free(f.fdb);
	close(f.ep);
	return ret ? 1 : 0;
}
