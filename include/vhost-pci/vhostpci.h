/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libvhostpci: the device side of a vhost-pci link, for programs.
 *
 * A program in the device VM opens a port (/dev/vhost-pciN), or a program on
 * the host opens one by the daemon's socket (the `local` attachment), and then
 * processes the virtqueues of the driver VM's virtio-net device in bursts, in
 * one of three ways:
 *
 *   copy      vhp_recv(), vhp_send(): packets to and from the program's memory
 *   in place  vhp_borrow() ... vhp_return(): look at packets where they lie,
 *             vhp_reserve() ... vhp_commit(): write them where they will lie
 *   forward   vhp_forward(): from one port's driver VM into another's, one copy
 *
 * Words: receive = from the driver VM (its transmit queues), send = to it (its
 * receive queues). A *pair* is one of each; pairs count from 0.
 *
 * Rings may be split or packed, with any features of the link; the program does not
 * see the difference. Offloads travel in struct virtio_net_hdr (linux/virtio_net.h, virtio 1.3
 * section 5.1.6).
 *
 * Security: the driver VM may be hostile. The library validates all ring contents and never touches
 * memory outside the link's regions. Packet *contents* are the program's to validate; memory
 * seen through vhp_borrow() can change while the program looks at it: read each field once.
 *
 * Threads: a pair belongs to one thread at a time. vhp_update() changes the
 * pairs of its port: no other function of the same port may run at the same time. Different
 * ports are independent.
 *
 * Nothing in the burst functions allocates, locks or makes a system call, except to notify a
 * driver that asked for it (one eventfd write a burst).
 *
 * Errors are negative errno values. -ENOLINK: the link is down (call vhp_update(), wait).
 * -EIO: the queue is broken (the driver broke the rules of the ring, vhp_pair_info() says how);
 * it stays so until the driver starts it anew, and harms nothing else.
 */
#ifndef VHOST_PCI_VHOSTPCI_H
#define VHOST_PCI_VHOSTPCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/virtio_net.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VHP_API __attribute__((visibility("default")))

#define VHP_BURST_MAX 64 /* packets per call at most; larger requests are cut to this */

struct vhp_port;

/* A sentence for people, filled when a function that takes it fails. May be NULL. */
struct vhp_error {
	int  code; /* negative errno */
	char msg[256];
};

struct vhp_params {
	size_t   size;      /* sizeof(struct vhp_params), for later versions */
	uint64_t features;  /* virtio features that the program can take: 0 = all that the library can.
			     * Offload bits (GUEST_*: it may send such packets, HOST_*: it takes such packets,
			     * CSUM) matter to programs that look at packets. */
	bool     no_kicks;  /* polls only: do not attach kick eventfds */
};

/*
 * Open a port and attach to its link. where: "/dev/vhost-pciN", or "unix:PATH" (the daemon's
 * socket for a local port). The link may be down still: see vhp_update().
 * -ENODEV no such port, -EBUSY somebody else has it, -EACCES not allowed, -EOPNOTSUPP the
 * link needs features that params exclude (named in err), -EPROTO version mismatch.
 */
VHP_API int vhp_open(struct vhp_port **out, const char *where, const struct vhp_params *params,
		     struct vhp_error *err);

/* Stops all pairs, tells the daemon where they stand, detaches. NULL is allowed. */
VHP_API void vhp_close(struct vhp_port *p);

/* Readable when vhp_update() should be called. Poll it together with others. Owned by the port. */
VHP_API int vhp_fd(const struct vhp_port *p);

/* One load: has the state changed since the last vhp_update()? For polling programs. */
VHP_API bool vhp_changed(const struct vhp_port *p);

/*
 * Bring the port in line with its state page: start and stop pairs, map and unmap memory, answer
 * the daemon. 1: link up, 0: link down, -ENODEV: the port is gone for good. Anything else: a passing
 * problem (err says which); the link is down for now. Must be called within 1 s of a change,
 * or the daemon cuts the port.
 */
VHP_API int vhp_update(struct vhp_port *p, struct vhp_error *err);

struct vhp_port_info {
	char        name[33];
	bool        up;
	const char *reason;      /* why it is down; "" when up */
	const char *mode;        /* "fast", "copy", ...: for display */
	uint64_t    epoch;       /* counts driver VMs */
	uint64_t    features;    /* negotiated with the driver VM */
	unsigned    pairs;       /* that the driver VM has enabled */
	unsigned    max_pairs;
	uint8_t     mac[6];      /* of the driver VM's device */
	uint16_t    mtu;         /* 0 = not given */
	unsigned    regions;
};
VHP_API void vhp_port_info(const struct vhp_port *p, struct vhp_port_info *info);

struct vhp_counters {
	uint64_t recv_packets, recv_bytes; /* from the driver VM */
	uint64_t send_packets, send_bytes; /* to the driver VM */
	uint64_t send_full;                /* calls that found no buffer */
	uint64_t recv_errors, send_errors; /* packets given up: malformed, or too big for the buffer */
	uint64_t calls;                    /* notifications sent */
	const char *recv_broken, *send_broken; /* NULL, or why the queue is broken */
};
VHP_API int vhp_pair_info(const struct vhp_port *p, unsigned pair, struct vhp_counters *c);

/* ---- copy --------------------------------------------------------------------------------- */

struct vhp_packet {
	void    *data;                /* the program's */
	uint32_t len;                 /* recv: out; send: in. Bytes of the packet, Ethernet header first */
	uint32_t room;                /* recv: bytes at data */
	struct virtio_net_hdr hdr;    /* offloads asked for; all zero = none */
};

/*
 * Receive up to n packets. Number received (0 = none now; fewer than n: there may be more, when they lie in
 * many pieces). A packet that is larger than its room is
 * given up and counted. -ENOLINK, -EIO.
 */
VHP_API int vhp_recv(struct vhp_port *p, unsigned pair, struct vhp_packet *pkt, unsigned n);

/*
 * Send up to n packets, in order. Number taken: fewer than n when the driver VM offers no more buffers.
 * A packet that can never fit, or asks for an offload that the driver did not negotiate, is taken,
 * given up and counted. -ENOLINK, -EIO.
 */
VHP_API int vhp_send(struct vhp_port *p, unsigned pair, const struct vhp_packet *pkt, unsigned n);

/* ---- in place ------------------------------------------------------------------------------- */

/* One piece of a packet in the driver VM's memory. */
struct vhp_seg {
	void    *data;
	uint64_t addr;  /* in the driver VM's address space */
	uint32_t len;
};

/*
 * Packets or buffers on loan. Several may be out at a time; given back whole, in any order unless
 * VIRTIO_F_IN_ORDER was negotiated: then in the order in which they were borrowed.
 *
 * The pieces of a loan can be accessed until it is returned, committed, borrowed or reserved anew, or freed,
 * whatever vhp_update() has done meanwhile: the loan holds its mappings, also after its pair was stopped, its
 * region was removed, the link went down or the port was closed. Only that what is read there then need not be the
 * packet any more, and what is written need not reach the driver VM. Give it back soon: until then the memory of a
 * driver VM that has gone cannot be freed.
 */
struct vhp_loan;
VHP_API struct vhp_loan *vhp_loan_new(void); /* about 110 KiB; NULL: out of memory */
VHP_API void vhp_loan_free(struct vhp_loan *l);

/* Packet i of the loan: its pieces (virtio-net header first: vhp_hdr_len() bytes), their number in *n. */
VHP_API const struct vhp_seg *vhp_loan_segs(const struct vhp_loan *l, unsigned i, unsigned *n);
/* Bytes of all its pieces together, header included. */
VHP_API uint32_t vhp_loan_len(const struct vhp_loan *l, unsigned i);
/* Bytes of the virtio-net header in front of each packet: 12, or 10 for legacy drivers. */
VHP_API unsigned vhp_hdr_len(const struct vhp_port *p);

/* Borrow up to n packets from the driver VM. Number, 0 = none now, -ENOLINK, -EIO, -EBUSY: the loan is in use. */
VHP_API int vhp_borrow(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n);
/* Give them back. Also after the link went down or changed: then it only frees the loan and its mappings. */
VHP_API int vhp_return(struct vhp_port *p, struct vhp_loan *l);

/* Reserve up to n of the driver VM's receive buffers to write packets into. As vhp_borrow(). */
VHP_API int vhp_reserve(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n);
/* Hand them over: len[i] bytes (header included) were written to buffer i; 0 = an empty buffer goes back. */
VHP_API int vhp_commit(struct vhp_port *p, struct vhp_loan *l, const uint32_t *len);

/* ---- forward --------------------------------------------------------------------------------- */

struct vhp_mover;
VHP_API struct vhp_mover *vhp_mover_new(void); /* working space, one per thread; about 470 KiB */
VHP_API void vhp_mover_free(struct vhp_mover *m);

/*
 * Move up to 32 packets from one port's driver VM straight into the buffers of another's: one copy, no byte
 * through this program's memory. Offloads that the receiver did not negotiate are done in software. While the receiver
 * offers no buffers, packets wait (at most 10 ms, then they are dropped); while its link is down they are
 * dropped. Number taken, -ENOLINK (from), -EIO (from).
 */
VHP_API int vhp_forward(struct vhp_port *from, unsigned from_pair, struct vhp_port *to, unsigned to_pair,
			struct vhp_mover *m);

/* ---- sleeping ---------------------------------------------------------------------------------- */

/*
 * The eventfd that the driver VM's kick of this queue makes readable; -1 when there is none. Edge-triggered epoll, or
 * read it. Owned by the port; changes when the pair restarts (vhp_update()).
 */
VHP_API int vhp_recv_fd(const struct vhp_port *p, unsigned pair);
VHP_API int vhp_send_fd(const struct vhp_port *p, unsigned pair);
/*
 * Changes, at vhp_update(), when those fds may have become others, be it with the same numbers. An
 * epoll set keeps an fd that was closed for as long as its file is open elsewhere: give it
 * duplicates, take them out and close them when this changes, and put the new ones in.
 */
VHP_API unsigned vhp_fds_serial(const struct vhp_port *p);

/* Ask for kicks before sleeping on the fd; true: there is work already, do not sleep. */
VHP_API bool vhp_recv_arm(struct vhp_port *p, unsigned pair);
VHP_API bool vhp_send_arm(struct vhp_port *p, unsigned pair);
/* Awake again: no more kicks are needed. */
VHP_API void vhp_recv_disarm(struct vhp_port *p, unsigned pair);
VHP_API void vhp_send_disarm(struct vhp_port *p, unsigned pair);

#ifdef __cplusplus
}
#endif

#endif
