/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the protected view stops: receive packets, seal, then store where no program should, in the driver VM's memory.
 *
 *   cc wild.c $(pkg-config --cflags --libs libvhostpci) -o wild
 *   ./wild /dev/vhost-pci0              ends with SIGSEGV at the store
 *   ./wild --no-protect /dev/vhost-pci0  the store reaches the other VM
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <vhost-pci/vhostpci.h>

/* Wait for a packet of the driver VM and look at its Ethernet header. 0, or a negative errno. */
static int first_packet(struct vhp_port *port, struct vhp_loan *loan, struct vhp_error *err)
{
	for (;;) {
		struct pollfd fd[2] = { { .fd = vhp_fd(port), .events = POLLIN }, { .fd = -1, .events = POLLIN } };
		int up = vhp_update(port, err), n;

		if (up < 0 && up != -EAGAIN)
			return up;
		n = up > 0 ? vhp_borrow(port, 0, loan, 1) : 0;
		if (n > 0)
			return 0;
		if (up <= 0 || !vhp_recv_arm(port, 0)) {
			fd[1].fd = vhp_recv_fd(port, 0);
			poll(fd, 2, 100);
		}
	}
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params), .protect = argc < 2 || strcmp(argv[1], "--no-protect") };
	const char *where = argv[argc > 2 ? 2 : 1];
	struct vhp_loan *loan = vhp_loan_new();
	const struct vhp_seg *seg;
	struct vhp_error err;
	struct vhp_port *port;
	unsigned char eth[14];
	unsigned n;

	if (!where || !loan) {
		fprintf(stderr, "usage: wild [--no-protect] /dev/vhost-pciN\n");
		return 2;
	}
	if (vhp_open(&port, where, &params, &err) || (params.protect && vhp_protect_seal(&err)) ||
	    first_packet(port, loan, &err)) {
		fprintf(stderr, "wild: %s\n", err.msg);
		return 1;
	}
	/* The right way works, protected or not. */
	if (vhp_peek(port, loan, 0, vhp_hdr_len(port), eth, sizeof(eth)) != sizeof(eth)) {
		fprintf(stderr, "wild: a packet without an Ethernet header\n");
		return 1;
	}
	printf("a packet from %02x:%02x:%02x:%02x:%02x:%02x\n", eth[6], eth[7], eth[8], eth[9], eth[10], eth[11]);
	fflush(stdout);
	/* The wild store: into the packet, which is the driver VM's to change. */
	seg = vhp_loan_segs(loan, 0, &n);
	((volatile unsigned char *)seg[0].data)[seg[0].len - 1] ^= 0xff;
	printf("the store went through\n");
	vhp_return(port, loan);
	vhp_close(port);
	return 0;
}
