// SPDX-License-Identifier: BSD-3-Clause
/*
 * A packet socket on the interface. It shows packets as the kernel has them: large segments whole, checksums to be
 * filled in; PACKET_VNET_HDR says which. Without room in its buffer packets are missing, and counted by the kernel.
 *
 * The direction is the driver VM's, as in captures of the host's daemon: outbound is what the driver VM sends.
 */
#include "capture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>

#include "base/util.h"
#include "capfile/filter.h"
#include "capfile/pcapng.h"

#ifndef VP_VERSION
#define VP_VERSION "unknown"
#endif

#define SNAPLEN		(256u << 10)
#define BUFFER		(16 << 20)

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int open_socket(const char *name, int *out, struct vp_err *e)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				 .sll_ifindex = (int)if_nametoindex(name) };
	int on = 1, room = BUFFER, fd;

	if (!a.sll_ifindex)
		return vp_err_set(e, -ENODEV, "there is no interface %.15s in this network namespace", name);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return vp_err_set(e, -errno, "no packet socket: %s (CAP_NET_RAW is needed)", strerror(errno));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&a, sizeof(a))) {
		int r = vp_err_set(e, -errno, "%.15s cannot be captured: %s", name, strerror(errno));

		close(fd);
		return r;
	}
	*out = fd;
	return 0;
}

struct packet {
	struct virtio_net_hdr h;
	const uint8_t *data;
	uint32_t len, caplen;
	uint64_t ns;
	bool outgoing;
};

/* 1 and *p, 0 none now, -errno. buf holds SNAPLEN bytes. */
static int receive(int fd, uint8_t *buf, struct packet *p)
{
	char control[CMSG_SPACE(sizeof(struct timespec))];
	struct sockaddr_ll from;
	struct iovec iov[2] = { { &p->h, sizeof(p->h) }, { buf, SNAPLEN } };
	struct msghdr m = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = iov, .msg_iovlen = 2,
			    .msg_control = control, .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &m, MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR || errno == ENETDOWN ? 0 : -errno;
	p->data = buf;
	p->len = n > (ssize_t)sizeof(p->h) ? (uint32_t)(n - (ssize_t)sizeof(p->h)) : 0;
	p->caplen = VP_MIN(p->len, SNAPLEN);
	p->outgoing = from.sll_pkttype == PACKET_OUTGOING;
	p->ns = now_ns();
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
			struct timespec ts;

			memcpy(&ts, CMSG_DATA(c), sizeof(ts));
			p->ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
		}
	return 1;
}

/* What comes out of a tap was sent by the driver VM. The driver VM of a macvtap sends outwards. */
static bool is_tap(int fd, const char *name)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq ifr = { .ifr_data = (void *)&info };

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	return ioctl(fd, SIOCETHTOOL, &ifr) || !strcmp(info.driver, "tun");
}

static void write_packet(FILE *f, const struct packet *p, bool driver, uint32_t snaplen)
{
	char note[200];
	int n = vp_pcapng_offload_note(note, sizeof(note), &p->h);

	vp_pcapng_packet(f, &(struct vp_pcapng_packet){
		.ns = p->ns, .data = p->data, .len = p->len, .caplen = VP_MIN(p->caplen, snaplen),
		.flags = (driver ? VP_PCAPNG_OUT : VP_PCAPNG_IN) | vp_pcapng_offload_flags(&p->h),
		.comment = n ? note : NULL });
}

static int follow(const struct capture_conf *c, int fd, int sigfd, FILE *f, const struct vp_filter *filter,
		  struct vp_pcapng_stats *st)
{
	struct pollfd p[2] = { { .fd = sigfd, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
	uint32_t snaplen = c->snaplen ? c->snaplen : SNAPLEN;
	bool tap = is_tap(fd, c->name);
	uint8_t *buf = malloc(SNAPLEN);
	struct packet pkt;
	unsigned int n = 0;
	int r = buf ? 0 : -ENOMEM;

	while (!r && !p[0].revents && !ferror(f) && (!c->count || st->accepted < c->count)) {
		r = receive(fd, buf, &pkt);
		if (!r) {
			fflush(f);
			poll(p, 2, -1);
			continue;
		}
		if (r < 0)
			break;
		r = 0;
		/* Under load it never waits, and is to end all the same. */
		if (!(++n % 64))
			poll(p, 1, 0);
		if (!vp_filter_match(filter, pkt.data, pkt.len, pkt.caplen))
			continue;
		write_packet(f, &pkt, pkt.outgoing != tap, snaplen);
		st->accepted++;
	}
	free(buf);
	return r;
}

int capture_run(const struct capture_conf *c, int sigfd, struct vp_err *e)
{
	struct vp_pcapng_stats st = { .start_ns = now_ns() };
	struct tpacket_stats ks = { 0 };
	socklen_t len = sizeof(ks);
	struct vp_filter *filter = NULL;
	FILE *f = NULL;
	int fd = -1, r = 0;

	if (c->filter)
		r = vp_filter_new(&filter, c->filter, SNAPLEN, e);
	if (!r)
		r = open_socket(c->name, &fd, e);
	if (!r) {
		f = strcmp(c->path, "-") ? fopen(c->path, "we") : stdout;
		r = f ? 0 : vp_err_set(e, -errno, "%.150s: %s", c->path, strerror(errno));
	}
	if (r)
		goto out;
	setvbuf(f, NULL, _IOFBF, 1 << 18);
	vp_pcapng_begin(f, &(struct vp_pcapng_interface){
		.application = "vhost-pci-agent " VP_VERSION, .name = c->name, .filter = c->filter,
		.description = "vhost-pci, in the device VM: outbound is what the driver VM sends",
		.snaplen = c->snaplen ? c->snaplen : SNAPLEN });
	fprintf(stderr, "capturing %s\n", c->name);
	r = follow(c, fd, sigfd, f, filter, &st);
	st.end_ns = now_ns();
	if (!getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &ks, &len)) {
		st.received = ks.tp_packets;
		st.dropped = ks.tp_drops;
	}
	vp_pcapng_end(f, &st);
	fprintf(stderr, "%llu packets captured, of %llu; %llu dropped for want of buffer\n",
		(unsigned long long)st.accepted, (unsigned long long)st.received, (unsigned long long)st.dropped);
	if (r)
		vp_err_set(e, r, "%.15s: %s", c->name, strerror(-r));
	else if (fflush(f) || ferror(f))
		r = f == stdout ? 0 : vp_err_set(e, -EIO, "%.150s cannot be written", c->path);
out:
	if (f && f != stdout)
		fclose(f);
	if (fd >= 0)
		close(fd);
	vp_filter_free(filter);
	return r;
}
