/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Send every packet back to where it came from, its addresses exchanged: the copy way, polling.
 *
 *   cc echo.c $(pkg-config --cflags --libs libvhostpci) -o echo
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <vhost-pci/vhostpci.h>

#define BURST 32
#define ROOM  2048

static unsigned char memory[BURST][ROOM];

static void turn(struct vhp_packet *p)
{
	unsigned char *eth = p->data, mac[6];

	memcpy(mac, eth, 6);
	memcpy(eth, eth + 6, 6);
	memcpy(eth + 6, mac, 6);
}

int main(int argc, char **argv)
{
	/* It polls: no kicks are wanted. Packets larger than ROOM (segments to be cut) are given up. */
	struct vhp_params params = { .size = sizeof(params), .no_kicks = true };
	struct vhp_packet pkt[BURST];
	struct vhp_error err;
	struct vhp_port *port;

	if (argc != 2) {
		fprintf(stderr, "usage: echo PORT\n");
		return 2;
	}
	if (vhp_open(&port, argv[1], &params, &err)) {
		fprintf(stderr, "echo: %s\n", err.msg);
		return 1;
	}
	for (int up = 0, n; up != -ENODEV;) {
		for (int i = 0; i < BURST; i++) {
			pkt[i].data = memory[i];
			pkt[i].room = ROOM;
		}
		n = vhp_recv(port, 0, pkt, BURST);
		for (int i = 0; i < n; i++)
			turn(&pkt[i]);
		/* What the driver VM has no buffer for is dropped, as on a wire. */
		if (n > 0)
			vhp_send(port, 0, pkt, (unsigned)n);
		/* -ENOLINK or -EIO: the link is down, or the driver broke its ring. vhp_update() sees to both. */
		if (n < 0 || vhp_changed(port)) {
			up = vhp_update(port, &err);
			if (up < 0)
				fprintf(stderr, "echo: %s\n", err.msg);
		}
	}
	vhp_close(port);
	return 0;
}
