/* SPDX-License-Identifier: BSD-3-Clause */
/* vhost-pci-fwd: a small network function on libvhostpci. One thread, any number of ports. */
#ifndef VHOST_PCI_FWD_H
#define VHOST_PCI_FWD_H

#include <stdio.h>

#include <vhost-pci/vhostpci.h>

#define FWD_MAX_PORTS 16
#define FWD_MAX_PAIRS 64 /* of a port that are waited for; more are polled */
#define FWD_BURST     32
#define FWD_ROOM      65600 /* bytes: the largest packet that a driver VM can send */

/* ---- pcap.c: capture into a file (libpcap's format, microseconds) -------------------------------- */

struct pcap;

/* Creates or truncates path. NULL with errno set. */
struct pcap *pcap_create(const char *path);
/* Append one packet; errors are kept and reported by pcap_close(). */
void pcap_packet(struct pcap *p, const void *data, uint32_t len);
/* 0 or the first -errno. NULL is allowed. */
int pcap_close(struct pcap *p);

/* ---- fdb.c: where MAC addresses were seen ----------------------------------------------------------- */

struct fdb;

struct fdb *fdb_new(void);
void fdb_free(struct fdb *f);
/* mac was seen as a source behind port. now in seconds. */
void fdb_learn(struct fdb *f, const uint8_t mac[6], unsigned port, uint64_t now);
/* Port of a unicast address, or -1: unknown, aged out (300 s), or a group address. */
int fdb_find(const struct fdb *f, const uint8_t mac[6], uint64_t now);

/* ---- the ports ----------------------------------------------------------------------------------------- */

enum fwd_mode { FWD_CROSS, FWD_SWITCH, FWD_MACSWAP };

struct vp_watch;

struct fwd_port {
	const char      *where;
	struct vhp_port *p; /* NULL = gone, and waited for (--reconnect) */
	bool             up;
	struct pcap     *pcap;
	struct vp_watch *watch;               /* of vhp_fd() */
	struct vp_watch *kick[FWD_MAX_PAIRS]; /* of vhp_recv_fd(), when we last slept */
	unsigned         fds_serial;          /* of kick[] */
	uint64_t         lost; /* sent to this port, but it offered no buffer */
	struct vhp_counters before; /* of attachments that have ended */
	uint64_t         tried; /* when it was last to be opened, while it is gone */
	struct vhp_error said;  /* why it could not be */
};

struct fwd {
	enum fwd_mode    mode;
	bool             reconnect, protect;
	int              ep;
	unsigned         n;
	struct fwd_port  port[FWD_MAX_PORTS];
	struct fdb      *fdb;
	struct vhp_mover *mover;
	struct vhp_packet pkt[FWD_BURST];
	uint64_t         now; /* seconds */
};

/* modes.c: move what is there on all ports; packets moved. */
unsigned fwd_round(struct fwd *f);

#endif
