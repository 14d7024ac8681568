// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <fcntl.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>


#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>

#include "base/log.h"
#include "base/util.h"
#include "vfeatures.h"
#include "tap.h"

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef TUNSETCARRIER
#define TUNSETCARRIER _IOW('T', 226, int)
#endif

#define TAP_HDR_LEN 12

/* An ioctl on the interface by its name. */
static int if_ioctl(const struct tap *t, unsigned long req, struct ifreq *ifr)
{
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc;

	/* A small kernel may lack IPv4, but then has other sockets. */
	if (s < 0)
		s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return -errno;
	snprintf(ifr->ifr_name, sizeof(ifr->ifr_name), "%s", t->name);
	rc = ioctl(s, req, ifr) < 0 ? -errno : 0;
	close(s);
	return rc;
}

/* Does the kernel say so? A tap has this file, nothing else does. */
static bool is_tap(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/class/net/%s/tun_flags", name);
	return !access(path, F_OK);
}

static int open_error(const char *path, const char *name, int err, struct vp_err *e)
{
	switch (err) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return vp_err_set(e, -ENOENT, "there is no %s: load the module (modprobe %s)", path,
				  strcmp(path, "/dev/net/tun") ? "macvtap" : "tun");
	case EBUSY:
		return vp_err_set(e, -EBUSY,
				  "interface %s is in use by another process: stop it, or choose another name", name);
	case EINVAL:
		if (!strcmp(name, "lo") || !is_tap(name))
			return vp_err_set(e, -EINVAL, "interface %s exists and is not a tap: choose another name",
					  name);
		return vp_err_set(e, -EINVAL, "interface %s exists and is no tap of this kind (multiqueue or not): "
				  "remove it (ip link del %s), or choose another name", name, name);
	case EPERM:
	case EACCES:
		return vp_err_set(e, -err, "interface %s: not permitted: CAP_NET_ADMIN is needed", name);
	default:
		return vp_err_set(e, -err, "interface %s: %s", name, strerror(err));
	}
}

static int open_queue(struct tap *t, const char *path, unsigned int i, bool multi, struct vp_err *e)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };

	if (multi)
		ifr.ifr_flags |= IFF_MULTI_QUEUE;
	t->fd[i] = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (t->fd[i] < 0)
		return open_error(path, t->name, errno, e);
	if (!t->macvtap)
		snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", t->name);
	if (ioctl(t->fd[i], TUNSETIFF, &ifr) < 0)
		return open_error(path, t->name, errno, e);
	t->on[i] = true;
	if (!i && ioctl(t->fd[0], TUNGETIFF, &ifr) == 0)
		snprintf(t->name, sizeof(t->name), "%.*s", IFNAMSIZ - 1, ifr.ifr_name);
	return 0;
}

/* What this kernel's tap can do, found out by asking for it. */
static void probe(struct tap *t)
{
	const unsigned int base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;

	t->features = 0;
	if (ioctl(t->fd[0], TUNSETOFFLOAD, base) == 0)
		t->features |= VP_BIT(VIRTIO_NET_F_CSUM) | VP_BIT(VIRTIO_NET_F_GUEST_CSUM) |
			       VP_BIT(VIRTIO_NET_F_HOST_TSO4) | VP_BIT(VIRTIO_NET_F_GUEST_TSO4) |
			       VP_BIT(VIRTIO_NET_F_HOST_TSO6) | VP_BIT(VIRTIO_NET_F_GUEST_TSO6);
	if (t->features && ioctl(t->fd[0], TUNSETOFFLOAD, base | TUN_F_TSO_ECN) == 0)
		t->features |= VP_BIT(VIRTIO_NET_F_HOST_ECN) | VP_BIT(VIRTIO_NET_F_GUEST_ECN);
	if (t->features && ioctl(t->fd[0], TUNSETOFFLOAD, base | TUN_F_UFO) == 0)
		t->features |= VP_BIT(VIRTIO_NET_F_HOST_UFO) | VP_BIT(VIRTIO_NET_F_GUEST_UFO);
	if (t->features && ioctl(t->fd[0], TUNSETOFFLOAD, base | TUN_F_USO4 | TUN_F_USO6) == 0)
		t->features |= VP_BIT(VP_NET_F_HOST_USO) | VP_BIT(VP_NET_F_GUEST_USO4) | VP_BIT(VP_NET_F_GUEST_USO6);
	ioctl(t->fd[0], TUNSETOFFLOAD, 0);
}

int tap_open(struct tap *t, const char *what, unsigned int pairs, struct vp_err *e)
{
	const char *path = "/dev/net/tun";
	bool existed;
	int rc = 0;

	memset(t, 0, sizeof(*t));
	for (unsigned int i = 0; i < TAP_MAX_PAIRS; i++)
		t->fd[i] = -1;
	if (!pairs || pairs > TAP_MAX_PAIRS)
		return vp_err_set(e, -EINVAL, "%u queue pairs: 1 to %u are possible", pairs, TAP_MAX_PAIRS);
	t->macvtap = strchr(what, '/');
	if (t->macvtap) {
		path = what;
		snprintf(t->name, sizeof(t->name), "macvtap");
	} else {
		if (strlen(what) >= IFNAMSIZ || !*what)
			return vp_err_set(e, -EINVAL, "'%s' is no interface name: 1 to %d characters", what,
					  IFNAMSIZ - 1);
		snprintf(t->name, sizeof(t->name), "%s", what);
	}
	existed = if_nametoindex(t->name);
	for (unsigned int i = 0; !rc && i < pairs; i++) {
		t->npairs = i + 1;
		rc = open_queue(t, path, i, pairs > 1, e);
	}
	if (rc) {
		tap_close(t);
		return rc;
	}
	t->created = !t->macvtap && !existed;
	/* A crash must not take the interface and its addresses along: the next start finds it again. */
	if (t->created && ioctl(t->fd[0], TUNSETPERSIST, 1) < 0)
		vp_log(VP_LOG_WARNING, "interface %s will vanish if this program dies: %s", t->name, strerror(errno));
	probe(t);
	t->carrier = true;
	tap_carrier(t, false);
	for (unsigned int i = 1; !rc && i < pairs; i++)
		rc = tap_queue(t, i, false, e);
	if (rc)
		tap_close(t);
	return rc;
}

void tap_close(struct tap *t)
{
	if (t->created && !t->keep && t->fd[0] >= 0)
		ioctl(t->fd[0], TUNSETPERSIST, 0);
	for (unsigned int i = 0; i < t->npairs; i++)
		vp_close(&t->fd[i]);
	t->npairs = 0;
}

int tap_configure(struct tap *t, const uint64_t features[2], struct vp_err *e)
{
	int len = vp_net_hdr_len(features), le = vp_has(features, VIRTIO_F_VERSION_1);
	unsigned int off = 0;

	/*
	 * The offloads say what this kernel may hand over unfinished, that is, what the driver VM
	 * takes: its GUEST_ features. What it sends itself (HOST_, CSUM) is described packet by packet.
	 */
	if (vp_has(features, VIRTIO_NET_F_GUEST_CSUM)) {
		off |= TUN_F_CSUM;
		off |= vp_has(features, VIRTIO_NET_F_GUEST_TSO4) ? TUN_F_TSO4 : 0;
		off |= vp_has(features, VIRTIO_NET_F_GUEST_TSO6) ? TUN_F_TSO6 : 0;
		off |= vp_has(features, VIRTIO_NET_F_GUEST_UFO) ? TUN_F_UFO : 0;
		if (off & (TUN_F_TSO4 | TUN_F_TSO6) && vp_has(features, VIRTIO_NET_F_GUEST_ECN))
			off |= TUN_F_TSO_ECN;
		/* The kernel knows only both together. */
		if (vp_has(features, VP_NET_F_GUEST_USO4) && vp_has(features, VP_NET_F_GUEST_USO6))
			off |= TUN_F_USO4 | TUN_F_USO6;
	}
	if (ioctl(t->fd[0], TUNSETVNETHDRSZ, &len) < 0)
		return vp_err_set(e, -errno, "interface %s: header length %d: %s", t->name, len, strerror(errno));
	if (ioctl(t->fd[0], TUNSETVNETLE, &le) < 0)
		return vp_err_set(e, -errno, "interface %s: header byte order: %s", t->name, strerror(errno));
	if (ioctl(t->fd[0], TUNSETOFFLOAD, off) < 0)
		return vp_err_set(e, -errno, "interface %s: offloads %#x: %s", t->name, off, strerror(errno));
	return 0;
}

int tap_queue(struct tap *t, unsigned int i, bool on, struct vp_err *e)
{
	struct ifreq ifr = { .ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };

	if (!i || i >= t->npairs || t->on[i] == on)
		return 0;
	if (ioctl(t->fd[i], TUNSETQUEUE, &ifr) < 0)
		return vp_err_set(e, -errno, "interface %s: queue %u cannot be %s: %s", t->name, i,
				  on ? "attached" : "detached", strerror(errno));
	t->on[i] = on;
	return 0;
}

void tap_carrier(struct tap *t, bool on)
{
	int v = on;

	if (t->macvtap || t->carrier == on)
		return;
	t->carrier = on;
	if (ioctl(t->fd[0], TUNSETCARRIER, &v) < 0)
		vp_log(VP_LOG_WARNING, "interface %s: carrier: %s", t->name, strerror(errno));
}

int tap_set_mtu(struct tap *t, uint16_t mtu, struct vp_err *e)
{
	struct ifreq ifr = { .ifr_mtu = mtu };
	int rc = if_ioctl(t, SIOCSIFMTU, &ifr);

	return rc ? vp_err_set(e, rc, "interface %s: MTU %u: %s", t->name, mtu, strerror(-rc)) : 0;
}

int tap_set_mac(struct tap *t, const uint8_t mac[6], struct vp_err *e)
{
	struct ifreq ifr = { .ifr_hwaddr.sa_family = ARPHRD_ETHER };
	int rc;

	memcpy(ifr.ifr_hwaddr.sa_data, mac, 6);
	rc = if_ioctl(t, SIOCSIFHWADDR, &ifr);
	return rc ? vp_err_set(e, rc, "interface %s: MAC address: %s", t->name, strerror(-rc)) : 0;
}

int tap_avoid_mac(struct tap *t, const uint8_t mac[6], struct vp_err *e)
{
	struct ifreq ifr = { 0 };
	uint8_t other[6];
	int rc;

	/* A macvtap is the driver VM's interface on the lower device, and gets only what is for its address. */
	if (t->macvtap)
		return 0;
	rc = if_ioctl(t, SIOCGIFHWADDR, &ifr);
	if (rc || memcmp(ifr.ifr_hwaddr.sa_data, mac, 6))
		return 0;
	if (getrandom(other, sizeof(other), GRND_NONBLOCK) != (ssize_t)sizeof(other)) {
		memcpy(other, mac, 6);
		other[5] ^= 1;
	}
	other[0] = (uint8_t)((other[0] & 0xfe) | 2);
	vp_log(VP_LOG_WARNING, "interface %s has the driver VM's MAC address: it gets another one", t->name);
	return tap_set_mac(t, other, e);
}

int tap_up(struct tap *t, struct vp_err *e)
{
	struct ifreq ifr = { 0 };
	int rc = if_ioctl(t, SIOCGIFFLAGS, &ifr);

	if (!rc && !(ifr.ifr_flags & IFF_UP)) {
		ifr.ifr_flags |= IFF_UP;
		rc = if_ioctl(t, SIOCSIFFLAGS, &ifr);
	}
	return rc ? vp_err_set(e, rc, "interface %s cannot be brought up: %s", t->name, strerror(-rc)) : 0;
}

int tap_bridge(struct tap *t, const char *bridge, struct vp_err *e)
{
	struct tap b = { 0 };
	struct ifreq ifr = { .ifr_ifindex = (int)if_nametoindex(t->name) };
	int rc;

	if (strlen(bridge) >= IFNAMSIZ || !if_nametoindex(bridge))
		return vp_err_set(e, -ENODEV, "there is no bridge %s: make one (ip link add %s type bridge)", bridge,
				  bridge);
	snprintf(b.name, sizeof(b.name), "%.*s", IFNAMSIZ - 1, bridge);
	rc = if_ioctl(&b, SIOCBRADDIF, &ifr);
	if (rc == -EBUSY) {
		char path[128];

		/* In this bridge already (a restart), or in another one? */
		snprintf(path, sizeof(path), "/sys/class/net/%s/brif/%s", b.name, t->name);
		if (access(path, F_OK) == 0)
			return 0;
		return vp_err_set(e, rc, "interface %s is in another bridge: take it out (ip link set %s nomaster)",
				  t->name, t->name);
	}
	return rc ? vp_err_set(e, rc, "interface %s cannot join bridge %s: %s", t->name, bridge, strerror(-rc)) : 0;
}

static bool statistic(const char *name, const char *what, uint64_t *n)
{
	char path[100], text[32] = "";
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/sys/class/net/%s/statistics/%s", name, what);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	*n = got > 0 ? strtoull(text, NULL, 10) : 0;
	return got > 0;
}

bool tap_counters(const struct tap *t, uint64_t n[VHP_COUNTS])
{
	static const char *const names[2][VHP_COUNTS] = {
		/* What the driver VM sends comes out of a tap's file: this VM receives it. */
		{ "rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped" },
		/* A macvtap's file is one end of the interface, and what is written there is sent. */
		{ "tx_packets", "tx_bytes", "tx_dropped", "rx_packets", "rx_bytes", "rx_dropped" },
	};

	for (unsigned int i = 0; i < VHP_COUNTS; i++)
		if (!statistic(t->name, names[t->macvtap][i], &n[i]))
			return false;
	return true;
}
