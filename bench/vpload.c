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
 *   use-echo        the same, and use them (use.h): read all of what comes, then write all of what goes
 *   loop            vhp_forward() from every port to itself
 *   fwd             vhp_forward() from every port to its partner: 0 and 1, 2 and 3, ...; a last odd one is its own
 *   copy            the same by recv and send
 *   place           the same by borrow and reserve: this program copies from one driver's memory into the other's
 *   sleep-echo      echo that sleeps on the driver's kick when there is nothing to do
 *   stop            nothing (sleeps)
 *   pairs N         the modes serve queue pairs 0 to N - 1
 *   stats           packets, bursts and busy cycles since the start
 *   quit
 * Busy cycles are those of rounds that moved packets, as dpdk-testpmd counts them.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "base/cycles.h"
#include "base/util.h"
#include "base/watch.h"
#include <vhost-pci/vhostpci.h>

#include "use.h"

#define MAX_PORTS  16
#define BURST      32
#define BUFFERS    BURST /* the same for every burst, as those of a pool that gives out what came back last */
#define STRIDE     9472
#define MAX_PACKET 9216
#define LOOK_EVERY 4096
#define PATIENCE   20000000 /* cycles that a packet waits for a receive buffer */

enum mode { STOP, RECV, BORROW, SEND, RESERVE, ECHO, LOOP, FWD, COPY, PLACE, SLEEP_ECHO, USE_ECHO };
static const char *const mode_names[] = { "stop", "recv", "borrow", "send", "reserve", "echo", "loop", "fwd", "copy",
					  "place", "sleep-echo", "use-echo" };

static struct {
	struct vhp_port *p;
	unsigned pairs; /* that its driver VM has enabled */
	bool up, gone;
	unsigned fds_serial;
	struct vp_watch *kick, *change; /* of the first pair; of the port */
} port[MAX_PORTS];
static unsigned nports, npairs = 1;
static int ep = -1; /* for the mode that sleeps: kicks edge-triggered, so that nobody has to read them */

static struct {
	uint64_t packets, bursts, busy, unsent, sleeps;
} stats;

static uint8_t *buffers;
static unsigned size = 64;
static struct vhp_loan *loan, *room;
static struct vhp_mover *mover;
static volatile uint64_t sink;

/* What is received into, and what is sent: where and how much stays the same, vhp_recv() sets the rest. */
static struct vhp_packet in[BURST], out[BURST];

static void prepare(void)
{
	for (unsigned i = 0; i < BURST; i++) {
		in[i] = (struct vhp_packet){ .data = buffers + (size_t)i * STRIDE + 128, .room = MAX_PACKET };
		out[i] = in[i];
		out[i].len = size;
	}
}

static int do_recv(struct vhp_port *p, unsigned pair)
{
	return vhp_recv(p, pair, in, BURST);
}

static int do_send(struct vhp_port *p, unsigned pair)
{
	return vhp_send(p, pair, out, BURST);
}

/* Receive and send on; packets wait for buffers. use: as use.h says. */
static int do_copy(struct vhp_port *from, struct vhp_port *to, unsigned pair, bool use)
{
	uint64_t since = 0;
	int n = vhp_recv(from, pair, in, BURST), done = 0;

	for (int i = 0; use && i < n; i++)
		use_read(in[i].data, in[i].len);
	for (int i = 0; use && i < n; i++)
		use_write(in[i].data, in[i].len);
	while (n > 0 && done < n) {
		int k = vhp_send(to, pair, in + done, (unsigned)(n - done));

		if (k < 0 || (!k && since && vp_cycles() - since > PATIENCE))
			break;
		if (!k && !since)
			since = vp_cycles();
		done += VP_MAX(k, 0);
	}
	if (n > 0)
		stats.unsent += (uint64_t)(n - done);
	return n;
}

/* Where in the pieces of a packet. */
struct place {
	const struct vhp_seg *s;
	unsigned left;
	uint32_t off;
};

static uint32_t take(struct place *p, void **at, uint32_t max)
{
	uint32_t k = VP_MIN(max, p->s->len - p->off);

	*at = (char *)p->s->data + p->off;
	p->off += k;
	if (p->off == p->s->len && p->left) {
		p->s++;
		p->left--;
		p->off = 0;
	}
	return k;
}

/* Packet i of the loan into the buffers of room from k on, header and all. Number of buffers, 0: more are needed. */
static unsigned place(unsigned hlen, unsigned i, unsigned k, unsigned nroom, uint32_t *len)
{
	uint32_t total = vhp_loan_len(loan, i), have = 0, left = total;
	struct virtio_net_hdr_mrg_rxbuf *h;
	struct place src = { .off = 0 };
	unsigned first = k, last = k, n;

	while (have < total && last < nroom)
		have += vhp_loan_len(room, last++);
	if (have < total)
		return 0;
	src.s = vhp_loan_segs(loan, i, &n);
	src.left = n - 1;
	for (; k < last; k++) {
		struct place dst = { .off = 0 };
		uint32_t want = VP_MIN(left, vhp_loan_len(room, k));

		dst.s = vhp_loan_segs(room, k, &n);
		dst.left = n - 1;
		h = dst.s->data;
		len[k] = want;
		left -= want;
		while (want) {
			struct place look = dst;
			void *from, *to;
			uint32_t c = take(&look, &to, want);

			c = take(&src, &from, c);
			memcpy(to, from, c);
			take(&dst, &to, c);
			want -= c;
		}
		if (k == first && hlen == sizeof(*h) && dst.s->len >= hlen)
			h->num_buffers = (uint16_t)(last - first);
	}
	return last - first;
}

static int do_place(struct vhp_port *from, struct vhp_port *to, unsigned pair)
{
	int n = vhp_borrow(from, pair, loan, BURST), done = 0;
	unsigned hlen = vhp_hdr_len(from);
	uint64_t since = 0;

	/* Buffers that only hold a part of a packet come back empty, and more are asked for the next time. */
	for (unsigned more = 0; n > 0 && done < n;) {
		int m = vhp_reserve(to, pair, room, (unsigned)(n - done) + more);
		uint32_t len[VHP_BURST_MAX] = { 0 };
		unsigned k = 0, took = 1;

		if (m < 0 || (!m && since && vp_cycles() - since > PATIENCE))
			break;
		if (!m && !since)
			since = vp_cycles();
		while (m > 0 && done < n && took) {
			took = place(hlen, (unsigned)done, k, (unsigned)m, len);
			k += took;
			done += took > 0;
		}
		if (m > 0)
			vhp_commit(to, room, len);
		more = m > 0 && !took ? 8 : 0;
	}
	if (n > 0) {
		stats.unsent += (uint64_t)(n - done);
		vhp_return(from, loan);
	}
	return n;
}

static int do_borrow(struct vhp_port *p, unsigned pair)
{
	int n = vhp_borrow(p, pair, loan, BURST);
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

static int do_reserve(struct vhp_port *p, unsigned pair)
{
	unsigned hlen = vhp_hdr_len(p);
	static const uint8_t eth[14] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5 };
	struct virtio_net_hdr_mrg_rxbuf hdr = { .num_buffers = 1 };
	uint32_t len[BURST];
	int n = vhp_reserve(p, pair, loan, BURST);

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

static int work(enum mode m, unsigned i, unsigned pair)
{
	struct vhp_port *p = port[i].p;
	unsigned to = (i ^ 1) < nports ? i ^ 1 : i;

	/* Packets wait while there is nowhere to go. */
	if (m >= FWD && m <= PLACE && (!port[to].up || pair >= port[to].pairs))
		return 0;
	switch (m) {
	case RECV:
		return do_recv(p, pair);
	case BORROW:
		return do_borrow(p, pair);
	case SEND:
		return do_send(p, pair);
	case RESERVE:
		return do_reserve(p, pair);
	case ECHO:
	case SLEEP_ECHO:
	case USE_ECHO:
		return do_copy(p, p, pair, m == USE_ECHO);
	case LOOP:
		return vhp_forward(p, pair, p, pair, mover);
	case FWD:
		return vhp_forward(p, pair, port[to].p, pair, mover);
	case COPY:
		return do_copy(p, port[to].p, pair, false);
	case PLACE:
		return do_place(p, port[to].p, pair);
	default:
		return 0;
	}
}

static void update(unsigned i)
{
	struct vhp_error e = { 0 };
	struct vhp_port_info info;
	int r;

	if (port[i].gone)
		return;
	r = vhp_update(port[i].p, &e);
	port[i].up = r == 1;
	port[i].gone = r == -ENODEV;
	if (port[i].gone)
		vp_watch_end(&port[i].change);
	vhp_port_info(port[i].p, &info);
	port[i].pairs = info.pairs;
	if (r < 0)
		fprintf(stderr, "vpload: port %u: %s\n", i, e.msg);
}

static unsigned round_of(enum mode m)
{
	unsigned total = 0;

	for (unsigned k = 0; k < nports * npairs; k++) {
		unsigned i = k / npairs;
		uint64_t t0 = vp_cycles();
		int n = port[i].up ? work(m, i, k % npairs) : 0;

		if (n > 0) {
			stats.busy += vp_cycles() - t0;
			stats.packets += (unsigned)n;
			stats.bursts++;
			total += (unsigned)n;
		} else if (n < 0 && n != -ENOLINK) {
			/* The driver broke its ring: the daemon is told, and the port goes on without it. */
			fprintf(stderr, "vpload: port %u: %s\n", i, strerror(-n));
			update(i);
		}
	}
	return total;
}

/* Wait for a command or a change of a port. */
static void rest(int ms)
{
	struct pollfd fds[1 + MAX_PORTS];
	unsigned n = 0;

	fds[n++] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	for (unsigned i = 0; i < nports; i++)
		fds[n++] = (struct pollfd){ .fd = port[i].gone ? -1 : vhp_fd(port[i].p), .events = POLLIN };
	poll(fds, n, ms);
	for (unsigned i = 0; i < nports; i++)
		if (vhp_changed(port[i].p) || fds[1 + i].revents)
			update(i);
}

/* Will a kick end the sleep? */
static bool kick_wakes(unsigned i)
{
	if (port[i].fds_serial != vhp_fds_serial(port[i].p))
		vp_watch_end(&port[i].kick);
	port[i].fds_serial = vhp_fds_serial(port[i].p);
	return port[i].kick ||
	       !vp_watch_add(&port[i].kick, ep, vhp_recv_fd(port[i].p, 0), EPOLLIN | EPOLLET, nports);
}

/* The same, or a kick: with one system call, as vhost-pci-fwd sleeps. True: look for a command. */
static bool nap(void)
{
	struct epoll_event ev[1 + 2 * MAX_PORTS];
	bool command = false;
	int n, ms = 1000;

	for (unsigned i = 0; i < nports; i++)
		if (port[i].up && (!kick_wakes(i) || vhp_recv_arm(port[i].p, 0)))
			ms = 0;
	if (ms)
		stats.sleeps++;
	n = epoll_wait(ep, ev, VP_ARRAY_SIZE(ev), ms);
	for (int k = 0; k < n; k++) {
		command |= ev[k].data.u64 == UINT64_MAX;
		if (ev[k].data.u64 < nports)
			update((unsigned)ev[k].data.u64);
	}
	for (unsigned i = 0; i < nports; i++)
		vhp_recv_disarm(port[i].p, 0);
	return command || n <= 0;
}

static int nap_begin(void)
{
	static struct vp_watch *commands;
	int r;

	ep = epoll_create1(EPOLL_CLOEXEC);
	r = ep < 0 ? -errno : vp_watch_add(&commands, ep, STDIN_FILENO, EPOLLIN, UINT64_MAX);
	if (r == -EPERM)
		r = 0; /* a file: always readable */
	for (unsigned i = 0; i < nports && !r; i++)
		r = vp_watch_add(&port[i].change, ep, vhp_fd(port[i].p), EPOLLIN, i);
	return r;
}

static void answer(void)
{
	uint64_t unsent = stats.unsent;
	unsigned up = 0;

	for (unsigned i = 0; i < nports; i++) {
		struct vhp_counters c;

		up += port[i].up;
		/* What the library gave up: packets that vhp_forward() found no room for, malformed ones. */
		for (unsigned k = 0; k < npairs && !vhp_pair_info(port[i].p, k, &c); k++)
			unsent += c.recv_errors + c.send_errors;
	}
	printf("{\"up\": %u, \"packets\": %llu, \"bursts\": %llu, \"busy_cycles\": %llu, \"unsent\": %llu, \"sleeps\": "
	       "%llu}\n",
	       up, (unsigned long long)stats.packets, (unsigned long long)stats.bursts, (unsigned long long)stats.busy,
	       (unsigned long long)unsent, (unsigned long long)stats.sleeps);
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
	if (!strcmp(word, "pairs"))
		npairs = VP_MAX(arg, 1);
	else if (arg >= 14 && arg <= MAX_PACKET)
		size = arg;
	prepare();
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
	buffers =
		mmap(NULL, BUFFERS * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	loan = vhp_loan_new();
	room = vhp_loan_new();
	mover = vhp_mover_new();
	if (buffers == MAP_FAILED || !loan || !room || !mover) {
		perror("vpload");
		return 1;
	}
	memset(buffers, 0x5a, BUFFERS * STRIDE);
	prepare();
	for (; nports < (unsigned)argc - 1; nports++) {
		struct vhp_error e = { 0 };

		if (vhp_open(&port[nports].p, argv[1 + nports], &params, &e)) {
			fprintf(stderr, "vpload: %s: %s\n", argv[1 + nports], e.msg);
			return 1;
		}
		update(nports);
	}
	if (nap_begin()) {
		fprintf(stderr, "vpload: cannot wait for kicks\n");
		return 1;
	}
	answer();
	for (;; round++) {
		unsigned n;

		if (m == STOP || round % LOOK_EVERY == 0) {
			rest(m == STOP ? 100 : 0);
			if (!command(&m))
				break;
		}
		n = round_of(m);
		if (m == SLEEP_ECHO && !n && nap() && !command(&m))
			break;
		for (unsigned i = 0; i < nports; i++)
			if (vhp_changed(port[i].p))
				update(i);
	}
	for (unsigned i = 0; i < nports; i++)
		vhp_close(port[i].p);
	return 0;
}
