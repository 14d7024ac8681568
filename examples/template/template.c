/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A data path on libvhostpci, complete and small: copy this directory and begin your own.
 *
 * It serves all pairs of one port, sleeps when nothing is to be done, follows the link up and down, and ends
 * on SIGINT or SIGTERM, or when the port is gone for good. What it does with packets is in handle().
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

#define BURST     32
#define ROOM      65562 /* bytes: the largest packet, should the driver VM leave segmentation to us */
#define MAX_PAIRS 16    /* the program leaves further pairs alone */

static volatile sig_atomic_t ended;

/* One buffer for each packet of a burst. Packets stay in this process: the driver VM cannot change them. */
static unsigned char memory[BURST][ROOM];

struct app {
	struct vhp_port *port;
	bool     up;
	unsigned pairs; /* that the driver VM has enabled, at most MAX_PAIRS; 0 while the link is down */
	unsigned long received, sent;
};

/*
 * YOUR CODE. Packet p came from the driver VM: p->len bytes at p->data, Ethernet header first, and the offloads that
 * it asks for in p->hdr. True: send it back to the driver VM as it is now. False: it ends here.
 *
 * The driver VM may be hostile: check every length that you take from the packet.
 */
static bool handle(struct vhp_packet *p)
{
	unsigned char *eth = p->data, mac[6];

	if (p->len < 14)
		return false;
	memcpy(mac, eth, 6);
	memcpy(eth, eth + 6, 6);
	memcpy(eth + 6, mac, 6);
	return true;
}

/* Receive one burst on a pair, handle it, send the answers. The number received, or a negative errno value. */
static int serve_pair(struct app *a, unsigned pair)
{
	struct vhp_packet pkt[BURST];
	unsigned answers = 0;
	int i, n, sent;

	for (i = 0; i < BURST; i++)
		pkt[i] = (struct vhp_packet){ .data = memory[i], .room = ROOM };
	n = vhp_recv(a->port, pair, pkt, BURST);
	if (n <= 0)
		return n;
	a->received += (unsigned)n;
	for (i = 0; i < n; i++) {
		if (handle(&pkt[i]))
			pkt[answers++] = pkt[i];
	}
	/* The driver VM may have no buffer for an answer. Then it is dropped, as on a wire. */
	sent = vhp_send(a->port, pair, pkt, answers);
	if (sent > 0)
		a->sent += (unsigned)sent;
	return n;
}

/* Follow a change of the port. 0, or -ENODEV: the port is gone for good. */
static int update(struct app *a)
{
	struct vhp_port_info info;
	struct vhp_error err;
	int ret = vhp_update(a->port, &err);

	if (ret == -ENODEV)
		return ret;
	if (ret < 0)
		fprintf(stderr, "template: %s\n", err.msg);
	vhp_port_info(a->port, &info);
	if (info.up != a->up)
		fprintf(stderr, "template: the link is %s%s%s\n", info.up ? "up" : "down", info.up ? "" : ": ",
			info.reason);
	a->up = info.up;
	a->pairs = !info.up ? 0 : info.pairs < MAX_PAIRS ? info.pairs : MAX_PAIRS;
	return 0;
}

/* Sleep until the driver kicks, the port changes, or a second has passed. True: the port asks for update(). */
static bool sleep_for_work(const struct app *a)
{
	struct pollfd fds[1 + MAX_PAIRS] = { { vhp_fd(a->port), POLLIN, 0 } };
	bool work = false, changed = false;
	unsigned i;

	/* Ask for kicks first. No kick tells of what came before the driver saw that: it is work already. */
	for (i = 0; i < a->pairs; i++) {
		work |= vhp_recv_arm(a->port, i);
		fds[1 + i] = (struct pollfd){ vhp_recv_fd(a->port, i), POLLIN, 0 };
	}
	if (!work && poll(fds, 1 + a->pairs, 1000) > 0) {
		changed = fds[0].revents != 0;
		for (i = 0; i < a->pairs; i++) {
			uint64_t kicks;

			/* Reading takes the eventfd back to zero. */
			if ((fds[1 + i].revents & POLLIN) && read(fds[1 + i].fd, &kicks, sizeof(kicks)) < 0)
				perror("template: kick");
		}
	}
	for (i = 0; i < a->pairs; i++)
		vhp_recv_disarm(a->port, i);
	return changed;
}

/* 0: a signal ended it. -ENODEV: the port is gone for good. */
static int run(struct app *a)
{
	int ret = update(a);

	while (!ended && !ret) {
		bool busy = false, look = false;

		for (unsigned i = 0; i < a->pairs; i++) {
			int n = serve_pair(a, i);

			busy |= n > 0;
			/* The link went down, or the driver broke its queue: update() follows, and tells the daemon. */
			look |= n < 0;
		}
		if (look || vhp_changed(a->port))
			ret = update(a);
		if (!ret && !busy && sleep_for_work(a))
			ret = update(a);
	}
	return ret;
}

static void on_signal(int sig)
{
	ended = sig;
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params) };
	struct app a = { 0 };
	struct vhp_error err;
	int ret;

	if (argc != 2 || argv[1][0] == '-') {
		fprintf(stderr, "usage: template PORT\n"
				"PORT is /dev/vhost-pciN in a device VM, or unix:SOCKET on the host.\n");
		return 2;
	}
	/* They interrupt poll(). One that comes just before it is noticed after a second. */
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	if (vhp_open(&a.port, argv[1], &params, &err)) {
		fprintf(stderr, "template: %s\n", err.msg);
		return 1;
	}
	ret = run(&a);
	vhp_close(a.port);
	printf("received %lu, sent %lu\n", a.received, a.sent);
	if (ret == -ENODEV)
		fprintf(stderr, "template: the port is gone\n");
	return ret ? 1 : 0;
}
