/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one program of the test guests besides busybox: init, command agent and traffic tools.
 * Linked statically, so that an initramfs needs no libraries. Runs only inside test VMs and trusts its host.
 * Here: what looks at interfaces, and the command line.
 */
#include "vmtool.h"

#include <arpa/inet.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* ---- looking at interfaces ------------------------------------------------------------------------------ */

/* What crosses @dev in @secs seconds: frames in and out and the longest of each. */
static int sniff(const char *dev, double secs)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	unsigned long n[2] = { 0, 0 }, big[2] = { 0, 0 };
	ssize_t max[2] = { 0, 0 };
	static char buf[131072];
	int s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	double end = now() + secs;

	a.sll_ifindex = (int)if_nametoindex(dev);
	if (s < 0 || bind(s, (void *)&a, sizeof(a)) < 0)
		return die(dev);
	while (now() < end) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		struct sockaddr_ll from;
		socklen_t fl = sizeof(from);
		ssize_t r;
		int d;

		if (poll(&pf, 1, 100) <= 0)
			continue;
		r = recvfrom(s, buf, sizeof(buf), MSG_TRUNC, (void *)&from, &fl);
		if (r <= 0)
			continue;
		d = from.sll_pkttype == PACKET_OUTGOING;
		n[d]++;
		if (r > 1600)
			big[d]++;
		if (r > max[d])
			max[d] = r;
	}
	printf("in=%lu in_big=%lu in_max=%zd out=%lu out_big=%lu out_max=%zd\n", n[0], big[0], max[0], n[1], big[1],
	       max[1]);
	return 0;
}

static int ethtool_val(const char *dev, uint32_t cmd, uint32_t val)
{
	struct ethtool_value v = { .cmd = cmd, .data = val };
	struct ifreq ifr = { .ifr_data = (void *)&v };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	printf("%u\n", v.data);
	return 0;
}

static int channels(const char *dev, unsigned int want)
{
	struct ethtool_channels c = { .cmd = ETHTOOL_GCHANNELS };
	struct ifreq ifr = { .ifr_data = (void *)&c };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	if (want) {
		c.cmd = ETHTOOL_SCHANNELS;
		c.combined_count = want;
		if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
			return die(dev);
	}
	printf("max=%u now=%u\n", c.max_combined, c.combined_count);
	return 0;
}

static int stats(const char *dev)
{
	struct ethtool_drvinfo di = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq ifr = { .ifr_data = (void *)&di };
	struct ethtool_gstrings *gs;
	struct ethtool_stats *st;
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	gs = calloc(1, sizeof(*gs) + (size_t)di.n_stats * ETH_GSTRING_LEN);
	st = calloc(1, sizeof(*st) + (size_t)di.n_stats * 8);
	gs->cmd = ETHTOOL_GSTRINGS;
	gs->string_set = ETH_SS_STATS;
	gs->len = di.n_stats;
	ifr.ifr_data = (void *)gs;
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	st->cmd = ETHTOOL_GSTATS;
	st->n_stats = di.n_stats;
	ifr.ifr_data = (void *)st;
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	for (uint32_t i = 0; i < di.n_stats; i++)
		printf("%.32s=%llu\n", (char *)gs->data + i * ETH_GSTRING_LEN, (unsigned long long)st->data[i]);
	return 0;
}

int main(int argc, char **argv)
{
	const char *c = argc > 1 ? argv[1] : getpid() == 1 ? "init" : "";

	signal(SIGPIPE, SIG_IGN);
	if (getpid() == 1)
		return init_guest();
	if (!strcmp(c, "agent") && argc == 3)
		return agent(argv[2]);
	if (!strcmp(c, "rx") && argc == 3)
		return rx(atoi(argv[2]));
	if (!strcmp(c, "tx") && argc == 5)
		return tx(argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(c, "fill") && argc == 4)
		return fill(argv[2], strtoul(argv[3], NULL, 0));
	if (!strcmp(c, "recvfile") && argc == 4)
		return recvfile(atoi(argv[2]), argv[3]);
	if (!strcmp(c, "sendfile") && argc == 5)
		return sendfile_(argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(c, "urx") && argc == 5)
		return urx(atoi(argv[2]), strtoul(argv[3], NULL, 0), atof(argv[4]));
	if (!strcmp(c, "utx") && argc == 7)
		return utx(argv[2], atoi(argv[3]), strtoul(argv[4], NULL, 0), strtoul(argv[5], NULL, 0), atof(argv[6]));
	if (!strcmp(c, "uecho") && argc == 4)
		return uecho(atoi(argv[2]), atof(argv[3]));
	if (!strcmp(c, "ugap") && argc == 7)
		return ugap(argv[2], atoi(argv[3]), atof(argv[4]), atof(argv[5]), strtoul(argv[6], NULL, 0));
	if (!strcmp(c, "hot") && argc == 5)
		return hot(strtoul(argv[2], NULL, 0), argv[3], atof(argv[4]));
	if (!strcmp(c, "sniff") && argc == 4)
		return sniff(argv[2], atof(argv[3]));
	if (!strcmp(c, "gro") && argc == 4)
		return ethtool_val(argv[2], ETHTOOL_SGRO, (uint32_t)atoi(argv[3]));
	if (!strcmp(c, "tso") && (argc == 3 || argc == 4))
		return ethtool_val(argv[2], argc == 4 ? ETHTOOL_STSO : ETHTOOL_GTSO,
				   argc == 4 ? (uint32_t)atoi(argv[3]) : 0);
	if (!strcmp(c, "channels") && (argc == 3 || argc == 4))
		return channels(argv[2], argc == 4 ? (unsigned int)atoi(argv[3]) : 0);
	if (!strcmp(c, "stats") && argc == 3)
		return stats(argv[2]);
	fprintf(stderr, "usage: vmtool rx PORT | tx HOST PORT secs=N|mib=N[@MIB_A_SECOND] | fill FILE MIB | recvfile "
			"PORT FILE | "
			"sendfile HOST PORT FILE |\n"
			"  urx PORT COUNT SECS | utx HOST PORT COUNT SIZE PPS | sniff DEV SECS | gro DEV 0|1 | tso DEV "
			"[0|1] |\n"
			"  channels DEV [N] | stats DEV | agent TTY | uecho PORT SECS | ugap HOST PORT SECS PPS SIZE "
			"|\n"
			"  hot MIB STOPFILE PAGES_A_SECOND\n");
	return 2;
}
