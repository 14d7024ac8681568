// SPDX-License-Identifier: BSD-3-Clause
/*
 * linkup DEVICE OWN-IP PEER-IP SECONDS: in a driver VM, how long after its driver started does a frame come back?
 *
 * Binds the virtio-net driver to DEVICE (virtioN; unbinds it before if it is bound), which sets DRIVER_OK, and asks for
 * PEER-IP by ARP every 2 ms until it is answered. One clock, the driver VM's own. Prints
 *   bind=MS  the write to "bind": reset to DRIVER_OK, with the VMM's whole conversation with its back-end
 *   answer=MS  from the end of that write to the first answer   asked=N  ARP requests sent
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DRIVER "/sys/bus/virtio/drivers/virtio_net/"

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int put(const char *path, const char *s)
{
	int fd = open(path, O_WRONLY);
	ssize_t n = fd < 0 ? -1 : write(fd, s, strlen(s));

	if (fd >= 0)
		close(fd);
	if (n >= 0)
		return 0;
	perror(path);
	return 1;
}

/* The network device of virtio device @dev. */
static int netdev(const char *dev, char *name)
{
	char path[128];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/sys/bus/virtio/devices/%.32s/net", dev);
	d = opendir(path);
	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.') {
			snprintf(name, IFNAMSIZ, "%.15s", e->d_name);
			closedir(d);
			return 0;
		}
	perror(path);
	return 1;
}

static int answered(int s, in_addr_t peer)
{
	struct ether_arp a;
	in_addr_t from;

	while (recv(s, &a, sizeof(a), MSG_DONTWAIT) == (ssize_t)sizeof(a)) {
		memcpy(&from, a.arp_spa, 4);
		if (ntohs(a.arp_op) == ARPOP_REPLY && from == peer)
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP), .sll_halen = 6,
				  .sll_addr = { 255, 255, 255, 255, 255, 255 } };
	struct ether_arp ask = { .ea_hdr = { .ar_hrd = htons(1), .ar_pro = htons(ETH_P_IP), .ar_hln = 6, .ar_pln = 4,
					     .ar_op = htons(ARPOP_REQUEST) } };
	struct ifreq r = { 0 };
	in_addr_t own, peer;
	double t0, t1, t2;
	char path[128];
	int s, n = 0;

	if (argc != 5)
		return 2;
	own = inet_addr(argv[2]);
	peer = inet_addr(argv[3]);
	snprintf(path, sizeof(path), DRIVER "%.32s", argv[1]);
	if (!access(path, F_OK)) {
		if (put(DRIVER "unbind", argv[1]))
			return 1;
		usleep(300000);
	}
	s = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP));
	t0 = now();
	if (s < 0 || put(DRIVER "bind", argv[1]))
		return 1;
	t1 = now();
	if (netdev(argv[1], r.ifr_name) || ioctl(s, SIOCGIFHWADDR, &r) < 0)
		return 1;
	memcpy(ask.arp_sha, r.ifr_hwaddr.sa_data, 6);
	memcpy(ask.arp_spa, &own, 4);
	memcpy(ask.arp_tpa, &peer, 4);
	to.sll_ifindex = (int)if_nametoindex(r.ifr_name);
	if (ioctl(s, SIOCGIFFLAGS, &r) < 0)
		return 1;
	r.ifr_flags |= IFF_UP;
	if (ioctl(s, SIOCSIFFLAGS, &r) < 0)
		return 1;
	do {
		struct pollfd p = { .fd = s, .events = POLLIN };

		if (sendto(s, &ask, sizeof(ask), 0, (void *)&to, sizeof(to)) > 0)
			n++;
		poll(&p, 1, 2);
		t2 = now();
		if (answered(s, peer)) {
			printf("bind=%.1f answer=%.1f asked=%d\n", t1 - t0, t2 - t1, n);
			return 0;
		}
	} while (t2 - t1 < atof(argv[4]) * 1e3);
	fprintf(stderr, "no answer within %s s (%d requests)\n", argv[4], n);
	return 1;
}
