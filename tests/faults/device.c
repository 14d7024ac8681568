/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device side of a port for the fault campaign: a program on libvhostpci (VMM and agent in one on a local port),
 * with numbered traffic both ways (traffic.h). When the daemon is gone it opens the port again, for ever.
 *
 * With --echo it sends back what it receives instead (for tests that check packets themselves), and a queue that breaks
 * is the driver's business.
 *
 * SIGTERM: close the port, end. SIGUSR1: close it and open it again, as an agent that is restarted.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

#include "base/util.h"
#include "traffic.h"

#define BURST 16

static struct {
	struct end end;
	const char *where;
	bool in_place, poll, echo, up, quit, again;
	struct vhp_port *port;
	struct vhp_loan *loan;
	int sigfd;
} d;

static uint8_t buffer[BURST][PKT_MAX + 64];

static void problem(int ret, const char *what)
{
	struct vhp_counters c = { 0 };

	if (ret == -ENOLINK)
		d.up = false;
	if (ret != -EIO)
		return;
	vhp_pair_info(d.port, 0, &c);
	/* The drivers of the campaign keep to the rules. */
	end_bad(&d.end, &d.end.page->broken, "%s: the driver's ring is broken: %s", what,
		c.recv_broken ? c.recv_broken : c.send_broken ? c.send_broken : "?");
	d.up = false;
}

static int receive_copies(void)
{
	struct vhp_packet pkt[BURST];
	int n;

	for (unsigned i = 0; i < BURST; i++)
		pkt[i] = (struct vhp_packet){ .data = buffer[i], .room = sizeof(buffer[i]) };
	n = vhp_recv(d.port, 0, pkt, BURST);
	for (int i = 0; i < n; i++)
		end_take(&d.end, pkt[i].data, pkt[i].len);
	return n;
}

/* Looked at where they lie; they count when they have been given back: a successor would see them again before. */
static int receive_in_place(void)
{
	static uint8_t copy[BURST][PKT_MAX + 64];
	uint32_t len[BURST];
	unsigned hdr = vhp_hdr_len(d.port);
	int n = vhp_borrow(d.port, 0, d.loan, BURST);

	for (int i = 0; i < n; i++) {
		unsigned k, skip = hdr;
		const struct vhp_seg *s = vhp_loan_segs(d.loan, (unsigned)i, &k);

		len[i] = 0;
		for (; k; k--, s++) {
			uint32_t from = VP_MIN(skip, s->len),
				 m = VP_MIN(s->len - from, (uint32_t)sizeof(copy[i]) - len[i]);

			memcpy(copy[i] + len[i], (const uint8_t *)s->data + from, m);
			len[i] += m;
			skip -= from;
		}
	}
	if (n > 0)
		vhp_return(d.port, d.loan);
	for (int i = 0; i < n; i++)
		end_take(&d.end, copy[i], len[i]);
	return n;
}

static int send_copies(void)
{
	struct vhp_packet pkt[BURST];
	unsigned may = end_may_send(&d.end), n = VP_MIN(may, BURST);
	int ret;

	for (unsigned i = 0; i < n; i++) {
		pkt[i] = (struct vhp_packet){ .data = buffer[i] };
		pkt[i].len = end_make(&d.end, buffer[i]);
	}
	ret = n ? vhp_send(d.port, 0, pkt, n) : 0;
	for (unsigned i = (unsigned)VP_MAX(ret, 0); i < n; i++)
		end_unmake(&d.end);
	return ret;
}

static int send_in_place(void)
{
	unsigned may = end_may_send(&d.end), n = VP_MIN(may, BURST), hdr = vhp_hdr_len(d.port);
	struct virtio_net_hdr_mrg_rxbuf h = { .num_buffers = 1 };
	uint32_t len[BURST];
	int ret = n ? vhp_reserve(d.port, 0, d.loan, n) : 0;

	for (int i = 0; i < ret; i++) {
		unsigned k;
		const struct vhp_seg *s = vhp_loan_segs(d.loan, (unsigned)i, &k);

		len[i] = 0;
		if (s->len < hdr + PKT_MAX)
			continue;
		memcpy(s->data, &h, hdr);
		len[i] = hdr + end_make(&d.end, (uint8_t *)s->data + hdr);
	}
	if (ret > 0)
		vhp_commit(d.port, d.loan, len);
	return ret;
}

static bool update(void);

static bool echo(void)
{
	static uint8_t data[BURST][65536];
	struct vhp_packet pkt[BURST];
	int n, done = 0, k = 1;

	for (unsigned i = 0; i < BURST; i++)
		pkt[i] = (struct vhp_packet){ .data = data[i], .room = sizeof(data[i]) };
	n = vhp_recv(d.port, 0, pkt, BURST);
	/* Not for ever: a driver may have stopped offering buffers. A receive queue may be about to start anew. */
	for (unsigned tries = 0; done < n && tries < 200; tries++) {
		k = vhp_send(d.port, 0, pkt + done, (unsigned)(n - done));
		done += VP_MAX(k, 0);
		if (k < 0)
			update();
		if (k <= 0)
			poll(NULL, 0, 1);
	}
	if (n == -EIO || k == -EIO)
		update(); /* reports it */
	if (n == -ENOLINK)
		d.up = false;
	return n > 0;
}

static bool work(void)
{
	int r, s;

	if (!d.up)
		return false;
	if (d.echo)
		return echo();
	r = d.in_place ? receive_in_place() : receive_copies();
	if (r < 0)
		problem(r, "receive");
	if (!d.up)
		return r > 0;
	s = d.in_place ? send_in_place() : send_copies();
	if (s < 0)
		problem(s, "send");
	return r > 0 || s > 0;
}

/* False: the port is gone. */
static bool update(void)
{
	struct vhp_error e = { 0 };
	int ret = vhp_update(d.port, &e);

	if (ret == 1 && !d.up)
		d.end.page->sessions++;
	d.up = ret == 1;
	d.end.page->running = d.up;
	if (ret < 0)
		end_bad(&d.end, &d.end.page->errors, "%s", e.msg);
	return ret != -ENODEV;
}

static void signals(void)
{
	struct signalfd_siginfo s;

	while (read(d.sigfd, &s, sizeof(s)) == sizeof(s)) {
		d.quit |= s.ssi_signo == SIGTERM;
		d.again |= s.ssi_signo == SIGUSR1;
	}
}

static void run(void)
{
	bool lives = update();

	while (lives && !d.quit && !d.again) {
		struct pollfd p[3] = { { d.sigfd, POLLIN, 0 }, { vhp_fd(d.port), POLLIN, 0 }, { -1, POLLIN, 0 } };
		bool busy = work();
		int ms = busy ? 0 : d.poll ? 1 : d.echo ? 50 : end_wait_ms(&d.end, 20);

		if (!busy && d.up && !d.poll) {
			p[2].fd = vhp_recv_fd(d.port, 0);
			if (vhp_recv_arm(d.port, 0))
				ms = 0;
		}
		poll(p, 3, ms);
		if (!busy && d.up && !d.poll)
			vhp_recv_disarm(d.port, 0);
		if (p[2].revents & POLLIN) {
			uint64_t v;

			if (read(p[2].fd, &v, sizeof(v)) < 0 && errno != EAGAIN)
				perror("kick");
		}
		if (p[0].revents)
			signals();
		if (p[1].revents || vhp_changed(d.port))
			lives = update();
	}
	d.up = false;
	d.end.page->running = 0;
}

static int options(int argc, char **argv)
{
	struct end_options o = END_DEFAULTS(1);

	for (int i = 1; i < argc; i++) {
		const char *v = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--in-place"))
			d.in_place = true;
		else if (!strcmp(argv[i], "--echo"))
			d.echo = true;
		else if (!strcmp(argv[i], "--poll"))
			d.poll = true;
		else if (!strcmp(argv[i], "--port") && ++i)
			d.where = v;
		else if (!end_option(&o, argc, argv, &i))
			return -EINVAL;
	}
	if (!d.where || (!o.file && !d.echo))
		return -EINVAL;
	return end_open(&d.end, &o);
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params) };
	int ret = options(argc, argv);
	sigset_t set;

	if (ret) {
		fprintf(stderr, "usage: fault-device --port WHERE " END_USAGE " [--in-place] [--poll]\n"
			"       fault-device --port WHERE --echo: %s\n", strerror(-ret));
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d.sigfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	d.loan = vhp_loan_new();
	if (d.sigfd < 0 || !d.loan)
		return 1;
	while (!d.quit) {
		struct vhp_error e = { 0 };

		d.again = false;
		if (!vhp_open(&d.port, d.where, &params, &e)) {
			run();
			vhp_close(d.port);
		} else {
			end_bad(&d.end, &d.end.page->errors, "%s", e.msg);
			poll(&(struct pollfd){ d.sigfd, POLLIN, 0 }, 1, 20);
		}
		signals();
	}
	return 0;
}
