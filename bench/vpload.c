/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device side made of libvhostpci only: what a network function pays for its packets.
 *
 *   vpload PORT...         ports as vhp_open() takes them, such as unix:/run/x.sock
 *
 * Commands on standard input, one a line; each is answered by one line of JSON:
 *   recv            from every port into private buffers (copy)
 *   borrow          from every port, look at the first bytes, give back (in place)
 *   send SIZE       to every port from private buffers (copy)
 *   reserve SIZE    write a header and the first bytes into reserved buffers (in place)
 *   echo            recv, then send the same packets back to the same port
 *   loop            vhp_forward() from every port to itself
 *   fwd             vhp_forward() between ports 0 and 1, 2 and 3, ... both ways
 *   sleep-echo      echo that sleeps on the driver's kick when there is nothing to do
 *   stop            nothing (sleeps)
 *   stats           packets, bursts and busy cycles since the start
 *   quit
 * Busy cycles are those of rounds that moved packets, as dpdk-testpmd counts them.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cycles.h"
#include "base/util.h"
#include <vhost-pci/vhostpci.h>

#define MAX_PORTS  16
#define BURST      32
#define BUFFERS    256  /* in turn, as a packet pool's cache would */
#define STRIDE     2304
#define MAX_PACKET 2048
#define LOOK_EVERY 4096

enum mode { STOP, RECV, BORROW, SEND, RESERVE, ECHO, LOOP, FWD, SLEEP_ECHO };
static const char *const mode_names[] = { "stop", "recv", "borrow", "send", "reserve", "echo", "loop", "fwd", "sleep-echo" };

static struct {
	struct vhp_port *p;
	bool up;
} port[MAX_PORTS];
static unsigned nports;

static struct {
	uint64_t packets, bursts, busy, unsent, sleeps;
} stats;

static uint8_t *buffers;
static unsigned next_buffer, size = 64;
static struct vhp_loan *loan;
static struct vhp_mover *mover;
static volatile uint64_t sink;

static uint8_t *buffer(unsigned i)
{
	return buffers + (size_t)(i % BUFFERS) * STRIDE + 128;
}

static void prepare(struct vhp_packet *pkt, bool out)
{
	for (unsigned i = 0; i < BURST; i++) {
		pkt[i].data = buffer(next_buffer + i);
		pkt[i].room = MAX_PACKET;
		pkt[i].len = out ? size : 0;
		memset(&pkt[i].hdr, 0, sizeof(pkt[i].hdr));
	}
	/* What was received stays where it is: the next burst goes elsewhere. */
	next_buffer = (next_buffer + BURST) % BUFFERS;
}

static int do_recv(struct vhp_port *p)
{
	struct vhp_packet pkt[BURST];

	prepare(pkt, false);
	return vhp_recv(p, 0, pkt, BURST);
}

static int do_send(struct vhp_port *p)
{
	struct vhp_packet pkt[BURST];

	prepare(pkt, true);
	return vhp_send(p, 0, pkt, BURST);
}

static int do_echo(struct vhp_port *p)
{
	struct vhp_packet pkt[BURST];
	int n, done = 0, k = 1;

	prepare(pkt, false);
	n = vhp_recv(p, 0, pkt, BURST);
	while (n > 0 && done < n && k > 0) {
		k = vhp_send(p, 0, pkt + done, (unsigned)(n - done));
		if (k > 0)
			done += k;
	}
	if (n > 0)
		stats.unsent += (uint64_t)(n - done);
	return n;
}

static int do_borrow(struct vhp_port *p)
{
	int n = vhp_borrow(p, 0, loan, BURST);
	uint64_t s = 0, w;

	for (int i = 0; i < n; i++) {
		unsigned nseg;
		const struct vhp_seg *seg = vhp_loan_segs(loan, (unsigned)i, &nseg);

		/* The start of the Ethernet header, once. */
		memcpy(&w, (const char *)seg[0].data + (seg[0].len >= 24 ? 12 : 0), sizeof(w));
		s += w;
	}
	sink += s;
	if (n > 0)
		vhp_return(p, loan);
	return n;
}

static int do_reserve(struct vhp_port *p)
{
	unsigned hlen = vhp_hdr_len(p);
	static const uint8_t eth[14] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5 };
	struct virtio_net_hdr_mrg_rxbuf hdr = { .num_buffers = 1 };
	uint32_t len[BURST];
	int n = vhp_reserve(p, 0, loan, BURST);

	for (int i = 0; i < n; i++) {
		unsigned nseg;
		const struct vhp_seg *seg = vhp_loan_segs(loan, (unsigned)i, &nseg);

		len[i] = 0;
		if (seg[0].len < hlen + size)
			continue;
		memcpy(seg[0].data, &hdr, hlen);
		memcpy((char *)seg[0].data + hlen, eth, sizeof(eth));
		len[i] = hlen + size;
	}
	if (n > 0)
		vhp_commit(p, loan, len);
	return n;
}

static int work(enum mode m, unsigned i)
{
	struct vhp_port *p = port[i].p;

	switch (m) {
	case RECV:
		return do_recv(p);
	case BORROW:
		return do_borrow(p);
	case SEND:
		return do_send(p);
	case RESERVE:
		return do_reserve(p);
	case ECHO:
	case SLEEP_ECHO:
		return do_echo(p);
	case LOOP:
		return vhp_forward(p, 0, p, 0, mover);
	case FWD:
		return (i ^ 1) < nports && port[i ^ 1].up ? vhp_forward(p, 0, port[i ^ 1].p, 0, mover) : 0;
	default:
		return 0;
	}
}

static unsigned round_of(enum mode m)
{
	unsigned total = 0;

	for (unsigned i = 0; i < nports; i++) {
		uint64_t t0 = vp_cycles();
		int n = port[i].up ? work(m, i) : 0;

		if (n > 0) {
			stats.busy += vp_cycles() - t0;
			stats.packets += (unsigned)n;
			stats.bursts++;
			total += (unsigned)n;
		} else if (n < 0 && n != -ENOLINK) {
			fprintf(stderr, "vpload: port %u: %s\n", i, strerror(-n));
			port[i].up = false;
		}
	}
	return total;
}

static bool update(unsigned i)
{
	struct vhp_error e = { 0 };
	int r = vhp_update(port[i].p, &e);

	port[i].up = r == 1;
	if (r < 0)
		fprintf(stderr, "vpload: port %u: %s\n", i, e.msg);
	return r != -ENODEV;
}

/* Wait for a command, a change of a port, or (when the mode sleeps) a kick. */
static void rest(enum mode m, int ms)
{
	struct pollfd fds[1 + 2 * MAX_PORTS];
	uint64_t v;
	unsigned n = 0;

	fds[n++] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	for (unsigned i = 0; i < nports; i++)
		fds[n++] = (struct pollfd){ .fd = vhp_fd(port[i].p), .events = POLLIN };
	for (unsigned i = 0; m == SLEEP_ECHO && i < nports; i++) {
		fds[n++] = (struct pollfd){ .fd = port[i].up ? vhp_recv_fd(port[i].p, 0) : -1, .events = POLLIN };
		if (port[i].up && vhp_recv_arm(port[i].p, 0))
			ms = 0;
	}
	if (ms)
		stats.sleeps++;
	poll(fds, n, ms);
	for (unsigned i = 0; i < nports; i++)
		if (vhp_changed(port[i].p) || fds[1 + i].revents)
			update(i);
	for (unsigned i = 0; m == SLEEP_ECHO && i < nports; i++) {
		vhp_recv_disarm(port[i].p, 0);
		if (fds[1 + nports + i].revents & POLLIN && read(fds[1 + nports + i].fd, &v, sizeof(v)) < 0)
			continue;
	}
}

static void answer(void)
{
	unsigned up = 0;

	for (unsigned i = 0; i < nports; i++)
		up += port[i].up;
	printf("{\"up\": %u, \"packets\": %llu, \"bursts\": %llu, \"busy_cycles\": %llu, \"unsent\": %llu, \"sleeps\": %llu}\n", up,
	       (unsigned long long)stats.packets, (unsigned long long)stats.bursts, (unsigned long long)stats.busy,
	       (unsigned long long)stats.unsent, (unsigned long long)stats.sleeps);
	fflush(stdout);
}

/* False when asked to end. */
static bool command(enum mode *m)
{
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	char line[64] = "", word[32] = "";
	unsigned arg = 0;

	if (poll(&p, 1, 0) <= 0)
		return true;
	if (!fgets(line, sizeof(line), stdin))
		return false;
	sscanf(line, "%31s %u", word, &arg);
	if (!strcmp(word, "quit"))
		return false;
	for (unsigned i = 0; i < VP_ARRAY_SIZE(mode_names); i++)
		if (!strcmp(word, mode_names[i]))
			*m = (enum mode)i;
	if (arg >= 14 && arg <= MAX_PACKET)
		size = arg;
	answer();
	return true;
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params) };
	enum mode m = STOP;
	uint64_t round = 0;

	if (argc < 2 || argc - 1 > MAX_PORTS) {
		fprintf(stderr, "usage: vpload PORT...\n");
		return 2;
	}
	setvbuf(stdin, NULL, _IONBF, 0); /* poll() must see what fgets() has not taken */
	buffers = mmap(NULL, BUFFERS * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	loan = vhp_loan_new();
	mover = vhp_mover_new();
	if (buffers == MAP_FAILED || !loan || !mover) {
		perror("vpload");
		return 1;
	}
	memset(buffers, 0x5a, BUFFERS * STRIDE);
	for (; nports < (unsigned)argc - 1; nports++) {
		struct vhp_error e = { 0 };

		if (vhp_open(&port[nports].p, argv[1 + nports], &params, &e)) {
			fprintf(stderr, "vpload: %s: %s\n", argv[1 + nports], e.msg);
			return 1;
		}
		update(nports);
	}
	answer();
	for (;; round++) {
		unsigned n;

		if (m == STOP || round % LOOK_EVERY == 0) {
			rest(m, m == STOP ? 100 : 0);
			if (!command(&m))
				break;
		}
		n = round_of(m);
		if (m == SLEEP_ECHO && !n) {
			rest(m, 1000);
			if (!command(&m))
				break;
		}
		for (unsigned i = 0; i < nports; i++)
			if (vhp_changed(port[i].p))
				update(i);
	}
	for (unsigned i = 0; i < nports; i++)
		vhp_close(port[i].p);
	return 0;
}
