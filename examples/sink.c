/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Look at packets where they lie, in the driver VM's memory, and count bytes by EtherType: the in-place way.
 *
 *   cc sink.c $(pkg-config --cflags --libs libvhostpci) -o sink
 *   ./sink /dev/vhost-pci0              in a device VM
 *   ./sink unix:/run/vhost-pci/nf.sock  on the host
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

static unsigned long ipv4, ipv6, other;

static void look(const struct vhp_loan *l, unsigned i, unsigned hdr)
{
	unsigned char type[2];
	unsigned n;
	const struct vhp_seg *s = vhp_loan_segs(l, i, &n);

	/* The header and the start of the packet are usually in one piece; vhp_recv() is for the rest. */
	if (s[0].len < hdr + 14) {
		other++;
		return;
	}
	/* Read once: the driver VM may change it while we look. */
	memcpy(type, (const char *)s[0].data + hdr + 12, sizeof(type));
	if (type[0] == 0x08 && type[1] == 0x00)
		ipv4++;
	else if (type[0] == 0x86 && type[1] == 0xdd)
		ipv6++;
	else
		other++;
}

int main(int argc, char **argv)
{
	struct vhp_loan *loan = vhp_loan_new();
	struct vhp_error err;
	struct vhp_port *port;

	if (argc != 2 || !loan) {
		fprintf(stderr, "usage: sink PORT\n");
		return 2;
	}
	if (vhp_open(&port, argv[1], NULL, &err)) {
		fprintf(stderr, "sink: %s\n", err.msg);
		return 1;
	}
	for (;;) {
		int up = vhp_update(port, &err), n;

		if (up < 0)
			fprintf(stderr, "sink: %s\n", err.msg);
		if (up == -ENODEV)
			break; /* the port is gone for good */
		while ((n = vhp_borrow(port, 0, loan, VHP_BURST_MAX)) > 0) {
			for (int i = 0; i < n; i++)
				look(loan, (unsigned)i, vhp_hdr_len(port));
			vhp_return(port, loan);
			if (vhp_changed(port))
				break;
		}
		/* Nothing there: ask for a kick, and sleep unless something came just then. */
		if (!vhp_recv_arm(port, 0)) {
			struct pollfd fds[2] = { { vhp_fd(port), POLLIN, 0 }, { vhp_recv_fd(port, 0), POLLIN, 0 } };
			uint64_t kicks;

			/*
			 * Reading takes the eventfd back to zero; it may block when another reader was faster, so poll
			 * says first.
			 */
			if (poll(fds, 2, 1000) > 0 && (fds[1].revents & POLLIN) &&
			    read(fds[1].fd, &kicks, sizeof(kicks)) < 0)
				perror("sink: kick");
			printf("\rIPv4 %lu  IPv6 %lu  other %lu", ipv4, ipv6, other);
			fflush(stdout);
		}
		vhp_recv_disarm(port, 0);
	}
	vhp_close(port);
	vhp_loan_free(loan);
	return 0;
}
