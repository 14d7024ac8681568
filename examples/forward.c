/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Join two driver VMs: one copy from the one's memory into the other's, none of it through ours. Polling.
 *
 *   cc forward.c $(pkg-config --cflags --libs libvhostpci) -o forward
 */
#include <errno.h>
#include <stdio.h>

#include <vhost-pci/vhostpci.h>

int main(int argc, char **argv)
{
	struct vhp_mover *mover = vhp_mover_new();
	struct vhp_port *port[2];
	struct vhp_error err;

	if (argc != 3 || !mover) {
		fprintf(stderr, "usage: forward PORT PORT\n");
		return 2;
	}
	for (int i = 0; i < 2; i++) {
		if (vhp_open(&port[i], argv[1 + i], NULL, &err)) {
			fprintf(stderr, "forward: %s: %s\n", argv[1 + i], err.msg);
			return 1;
		}
	}
	for (int up = 0; up != -ENODEV;) {
		for (int i = 0; i < 2; i++) {
			int n = vhp_forward(port[i], 0, port[!i], 0, mover);

			/*
			 * -EIO: the driver broke its ring; vhp_update() tells the daemon, and starts it anew when the
			 * driver does.
			 */
			if (n < 0 || vhp_changed(port[i])) {
				up = vhp_update(port[i], &err);
				if (up < 0)
					fprintf(stderr, "forward: port %d: %s\n", i, err.msg);
				if (up == -ENODEV)
					break;
			}
		}
	}
	vhp_close(port[0]);
	vhp_close(port[1]);
	vhp_mover_free(mover);
	return 0;
}
