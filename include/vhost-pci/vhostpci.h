/* SPDX-License-Identifier: BSD-3-Clause */
/**
 * @file vhostpci.h
 * libvhostpci: a program is the device side of a vhost-pci link.
 *
 * A program in the device VM opens a port, `/dev/vhost-pciN`. A program on the host opens one through
 * the daemon's socket, `unix:PATH` (the `local` attachment). The program then processes the virtqueues
 * of the driver VM's virtio-net device, in bursts, in one of three ways:
 *
 *  - **copy**: vhp_recv() and vhp_send() copy packets to and from the program's memory.
 *  - **in place**: between vhp_borrow() and vhp_return() the program looks at packets where they lie.
 *    Between vhp_reserve() and vhp_commit() it writes packets where they will lie.
 *  - **forward**: vhp_forward() moves packets from one port's driver VM into another's, with one copy.
 *
 * **Words.** *Receive* means from the driver VM, that is, from its transmit queues. *Send* means to the
 * driver VM, into its receive queues. A *pair* is one queue of each kind; pairs count from 0.
 *
 * **Rings** may be split or packed, with any features of the link; the program sees no difference.
 * Offloads travel in `struct virtio_net_hdr` (linux/virtio_net.h; virtio 1.3, section 5.1.6).
 *
 * **Units.** Lengths and sizes are in bytes. A packet begins with its Ethernet header. In place a
 * virtio-net header of vhp_hdr_len() bytes stands in front of it.
 *
 * **Ownership.** The caller owns what it passes in, and the library keeps no pointer to it after the
 * call. The port owns the file descriptors and strings that it returns; they are never closed or freed
 * by the caller, and last until the next vhp_update() or vhp_close().
 *
 * **Security.** The driver VM may be hostile. The library validates everything in a ring and never
 * touches memory outside the link's regions. The *contents* of packets are the program's to validate.
 * The driver VM can change the memory that vhp_borrow() shows at any moment: read each field once.
 *
 * **Threads.** A pair belongs to one thread at a time. vhp_update() changes all pairs of its port, so no
 * other function of that port may run at the same time. Different ports are independent.
 *
 * **Cost.** The burst functions allocate nothing, take no lock, and make no system call except one
 * eventfd write a burst for a driver that asked to be notified.
 *
 * **Errors** are negative errno values. Two of them every burst function may return:
 *
 *  - `-ENOLINK`: the link is down, or the pair does not run. Call vhp_update() when the port changes.
 *  - `-EIO`: the queue is broken, because the driver broke the rules of the ring. vhp_pair_info() says
 *    how. The queue stays broken until its driver starts it anew; other queues go on. Call vhp_update(),
 *    which tells the daemon.
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

/** The most packets that one call takes; a larger `n` is cut to this. */
#define VHP_BURST_MAX 64

/** An open port. */
struct vhp_port;

/** What went wrong, as a sentence for people. A function that takes one fills it when it fails. May be NULL. */
struct vhp_error {
	int  code;     /**< a negative errno value */
	char msg[256]; /**< NUL-terminated */
};

/** How to open a port. A program sets `size` and leaves what it does not know at 0. */
struct vhp_params {
	/** `sizeof(struct vhp_params)`: tells a later version of the library what the program knows. */
	size_t   size;
	/**
	 * The virtio features that the program can take; 0 = all that the library can. The offload bits
	 * matter to programs that look at packets: `VIRTIO_NET_F_GUEST_*`: the program may send such packets;
	 * `VIRTIO_NET_F_HOST_*` and `VIRTIO_NET_F_CSUM`: it takes such packets.
	 */
	uint64_t features;
	/** The program polls only: the library attaches no kick eventfds. */
	bool     no_kicks;
	/** Only the functions of this header reach the driver VM's memory: see "The protected view". */
	bool     protect;
};

/**
 * Open a port and attach to its link. The link may still be down afterwards: see vhp_update().
 *
 * @param[out] out  the port, to be closed with vhp_close()
 * @param where     `/dev/vhost-pciN`, or `unix:PATH` (the daemon's socket of a local port)
 * @param params    NULL = the defaults
 * @param err       says what failed; may be NULL
 * @return 0, or
 *  - `-ENODEV`: there is no such port
 *  - `-EBUSY`: another program has the port
 *  - `-EACCES`: the daemon does not give this port to this user
 *  - `-EOPNOTSUPP`: the link needs features that `params` excludes, or what `params->protect` needs is not
 *    there; `err` names them
 *  - `-ENOSPC`: `params->protect`, and the processor has no protection keys, or none is free
 *  - `-EPROTO`: the daemon or the module speaks another version
 *  - another negative errno value of a system call
 */
VHP_API int vhp_open(struct vhp_port **out, const char *where, const struct vhp_params *params,
		     struct vhp_error *err);

/** Stop all pairs, tell the daemon where they stand, detach, and free the port. NULL is allowed. */
VHP_API void vhp_close(struct vhp_port *p);

/** A file descriptor that is readable when vhp_update() should be called. The port owns it. */
VHP_API int vhp_fd(const struct vhp_port *p);

/**
 * Is vhp_update() to be called: has the state changed since the last one, or does a queue wait for memory that is
 * to be asked for? Costs two loads; for programs that poll.
 */
VHP_API bool vhp_changed(const struct vhp_port *p);

/**
 * Bring the port in line with its state page: start and stop pairs, map and unmap the driver VM's memory,
 * answer the daemon. Call it within 1 s of a change, or the daemon cuts the port off.
 *
 * A driver VM may give its memory as it is asked for (`Grant=viommu`). A queue then stops at the first buffer that is
 * not there, as if there were no more; vhp_changed() becomes true, vhp_update() asks, and when the memory is there
 * vhp_fd() becomes readable and the queue goes on. What the driver VM does not give breaks the queue (`-EIO`).
 *
 * @return
 *  - 1: the link is up
 *  - 0: the link is down; vhp_port_info() says why
 *  - `-ENODEV`: the port is gone for good; close it
 *  - another negative errno value: a passing problem, which `err` names. The link is down for now.
 */
VHP_API int vhp_update(struct vhp_port *p, struct vhp_error *err);

/** What a port and its link are at the moment. */
struct vhp_port_info {
	char        name[33];  /**< of the port, for people; NUL-terminated */
	bool        up;        /**< the link is up */
	const char *reason;    /**< why the link is down; "" when it is up */
	const char *mode;      /**< "fast", "copy", ...: for display */
	uint64_t    epoch;     /**< the number of driver VMs that the link has had */
	uint64_t    features;  /**< virtio features negotiated with the driver VM */
	unsigned    pairs;     /**< pairs that the driver VM has enabled */
	unsigned    max_pairs; /**< pairs that the link can have */
	uint8_t     mac[6];    /**< of the driver VM's device */
	uint16_t    mtu;       /**< in bytes; 0 = not given */
	unsigned    regions;   /**< memory regions of the driver VM that are mapped */
};
/** Fill `info`. */
VHP_API void vhp_port_info(const struct vhp_port *p, struct vhp_port_info *info);

/** What a pair has done since the port was opened. */
struct vhp_counters {
	uint64_t recv_packets; /**< packets from the driver VM */
	uint64_t recv_bytes;   /**< bytes from the driver VM */
	uint64_t send_packets; /**< packets to the driver VM */
	uint64_t send_bytes;   /**< bytes to the driver VM */
	uint64_t send_full;    /**< calls that found no buffer of the driver VM */
	uint64_t recv_errors;  /**< packets given up: malformed, or too big for the program's buffer */
	uint64_t send_errors;  /**< packets given up: malformed, or too big for the driver VM's buffers */
	uint64_t calls;        /**< notifications sent to the driver */
	const char *recv_broken; /**< NULL, or why the queue from the driver VM is broken */
	const char *send_broken; /**< NULL, or why the queue to the driver VM is broken */
};
/** Fill `c`. @return 0, or `-EINVAL`: there is no such pair */
VHP_API int vhp_pair_info(const struct vhp_port *p, unsigned pair, struct vhp_counters *c);

/**
 * Tell the daemon what the port's pairs have moved since the last vhp_open() or attachment, so that an
 * administrator of the host sees it: nobody there can count the packets of a link in mode "fast". A program calls
 * this now and then, from the thread that calls vhp_update(). It does nothing more often than once a second, when
 * nothing has changed, or when the daemon does not ask; else it is one command, and waits for its answer.
 *
 * @return 0, or as vhp_update() below 0
 */
VHP_API int vhp_report(struct vhp_port *p, struct vhp_error *err);

/** @name Copy
 * Packets to and from the program's memory. @{ */

/** A packet in the program's memory. */
struct vhp_packet {
	void    *data; /**< the program's memory */
	uint32_t len;  /**< bytes of the packet, Ethernet header first. vhp_recv() sets it, vhp_send() reads it */
	uint32_t room; /**< vhp_recv() only: bytes that fit at `data` */
	struct virtio_net_hdr hdr; /**< offloads that the packet asks for; all zero = none */
};

/**
 * Receive up to `n` packets. A packet that is larger than its room is given up and counted in `recv_errors`.
 *
 * A driver VM may have asked to be notified when it gets its buffers back. Of one packet, or a few, received by a
 * program that has sent to this pair since it received the last time, it is notified at the next call for this queue
 * (vhp_recv(), vhp_borrow(), vhp_forward(), or vhp_recv_arm() before sleeping), so that an answer does not wait.
 *
 * @return the number received, 0 = none now; `-ENOLINK`; `-EIO`. When the number is below `n` there may be
 * more, in packets that lie in many pieces.
 */
VHP_API int vhp_recv(struct vhp_port *p, unsigned pair, struct vhp_packet *pkt, unsigned n);

/**
 * Send up to `n` packets, in order. A packet that can never fit, or asks for an offload that the driver did
 * not negotiate, is taken, given up, and counted in `send_errors`.
 *
 * @return the number taken; `-ENOLINK`; `-EIO`. It is below `n` when the driver VM offers no more buffers.
 */
VHP_API int vhp_send(struct vhp_port *p, unsigned pair, const struct vhp_packet *pkt, unsigned n);
/** @} */

/** @name In place
 * Packets where they lie, in the driver VM's memory. @{ */

/** One piece of a packet in the driver VM's memory. */
struct vhp_seg {
	void    *data; /**< where the piece is mapped in this process */
	uint64_t addr; /**< its address in the driver VM's address space */
	uint32_t len;  /**< bytes */
};

/**
 * Packets or buffers on loan from one queue. Several loans may be out at a time. A loan is given back whole.
 * Loans go back in any order, unless VIRTIO_F_IN_ORDER was negotiated: then in the order of borrowing.
 *
 * The pieces of a loan stay accessible until the loan is returned, committed, used again or freed. The loan
 * holds its mappings, whatever vhp_update() does meanwhile: when the pair stops, when its region is removed,
 * when the link goes down, and when the port is closed. After such a change what is read there need not be
 * the packet any more, and what is written need not reach the driver VM. Give a loan back soon: until then
 * the memory of a driver VM that has gone cannot be freed.
 */
struct vhp_loan;

/** A new, empty loan: about 110 KiB. NULL: out of memory. */
VHP_API struct vhp_loan *vhp_loan_new(void);

/** Free a loan. What is still on it does not go back to the driver VM: return it first. NULL is allowed. */
VHP_API void vhp_loan_free(struct vhp_loan *l);

/**
 * The pieces of packet `i` of the loan. The virtio-net header comes first: vhp_hdr_len() bytes.
 *
 * @param[out] n  the number of pieces
 */
VHP_API const struct vhp_seg *vhp_loan_segs(const struct vhp_loan *l, unsigned i, unsigned *n);

/** The bytes of all pieces of packet `i` together, header included. */
VHP_API uint32_t vhp_loan_len(const struct vhp_loan *l, unsigned i);

/** The bytes of the virtio-net header in front of each packet: 12, or 10 with a legacy driver. */
VHP_API unsigned vhp_hdr_len(const struct vhp_port *p);

/**
 * Borrow up to `n` packets that the driver VM sends.
 *
 * @return the number borrowed, 0 = none now; `-ENOLINK`; `-EIO`; `-EBUSY`: the loan is in use
 */
VHP_API int vhp_borrow(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n);

/**
 * Give borrowed packets back. This is right also after the link went down or changed; it then only frees
 * the loan and its mappings.
 *
 * @return 0
 */
VHP_API int vhp_return(struct vhp_port *p, struct vhp_loan *l);

/** Reserve up to `n` of the driver VM's receive buffers, to write packets into. @return as vhp_borrow() */
VHP_API int vhp_reserve(struct vhp_port *p, unsigned pair, struct vhp_loan *l, unsigned n);

/**
 * Hand reserved buffers over to the driver VM.
 *
 * @param p    the port
 * @param l    the loan
 * @param len  an element for each buffer of the loan: the bytes written to it, header included; 0 = the
 *             buffer goes back empty
 * @return 0
 */
VHP_API int vhp_commit(struct vhp_port *p, struct vhp_loan *l, const uint32_t *len);
/** @} */

/** @name The protected view
 *
 * A port that was opened with `vhp_params.protect` maps the driver VM's memory with a protection key
 * (pkeys(7)). Each function of this header opens the gate to that memory for as long as it runs. A load or
 * store of the rest of the program (a parser, a plug-in, an overflowed buffer) that goes there raises SIGSEGV
 * with `si_code` SEGV_PKUERR. A program without a handler of its own ends with a sentence on stderr.
 *
 * This needs x86-64 with protection keys (`ospke` in /proc/cpuinfo) and a port of a device VM.
 * @{
 */

/**
 * Read from a packet of a loan, wherever its pieces lie. A protected port's pieces can be read this way only,
 * not through vhp_loan_segs(). It works with unprotected ports, too.
 *
 * @param i    the packet
 * @param off  in bytes, from its virtio-net header on
 * @param n    bytes wanted
 * @return bytes copied: fewer than `n` at the packet's end, 0 when `i` or `off` is outside
 */
VHP_API uint32_t vhp_peek(const struct vhp_port *p, const struct vhp_loan *l, unsigned i, uint32_t off, void *dst,
			  uint32_t n);

/** Write to a buffer of a reserved loan. As vhp_peek(); also 0 when the loan was borrowed. */
VHP_API uint32_t vhp_poke(const struct vhp_port *p, struct vhp_loan *l, unsigned i, uint32_t off, const void *src,
			  uint32_t n);

/**
 * Close what a key alone leaves open, for the rest of the process's life and in all its threads. Call it when
 * all libraries are loaded and all protected ports are open, or at least one.
 *
 * From then on system calls fail with EPERM that go past the key or bring in new code: pkey_alloc(), pkey_free(),
 * pkey_mprotect(), io_uring, ptrace(), process_vm_readv() and process_vm_writev(), execve(), and mmap() and
 * mprotect() with PROT_EXEC (so there is no dlopen()). pkey_set() of libc raises SIGILL.
 *
 * @return 0, or a negative errno value; the process is then as it was, but for pkey_set()
 *  - `-EPERM`: executable memory holds an instruction that could open the gate, or is writable; or a thread is
 *    inside the gate. `err` names the place
 *  - `-EBUSY`: a thread does not answer; it blocks all signals
 *  - `-EINVAL`: no port was opened with `vhp_params.protect`
 *  - `-EOPNOTSUPP`: not on this processor
 */
VHP_API int vhp_protect_seal(struct vhp_error *err);
/** @} */

/** @name Forward
 * From one driver VM straight into another. @{ */

/** The working space of vhp_forward(). One thread uses it at a time. */
struct vhp_mover;

/** A new mover: about 470 KiB. NULL: out of memory. */
VHP_API struct vhp_mover *vhp_mover_new(void);

/** Free a mover. NULL is allowed. */
VHP_API void vhp_mover_free(struct vhp_mover *m);

/**
 * Move up to 32 packets from one port's driver VM straight into the buffers of another's. Each is copied
 * once, and no byte passes through this program's memory. The library does in software what offloads the
 * receiver did not negotiate. While the receiver offers no buffers, packets wait at most 10 ms and are then
 * dropped. While the receiver's link is down, they are dropped at once.
 *
 * @return the number taken; `-ENOLINK` or `-EIO`: of the port `from`
 */
VHP_API int vhp_forward(struct vhp_port *from, unsigned from_pair, struct vhp_port *to, unsigned to_pair,
			struct vhp_mover *m);
/** @} */

/** @name Sleeping
 * How a program waits for the driver VM. @{ */

/**
 * The eventfd that becomes readable when the driver VM kicks the queue that the program receives from;
 * -1 = there is none. Use edge-triggered epoll, or read it. The port owns it. It changes when the pair starts
 * anew, at vhp_update().
 */
VHP_API int vhp_recv_fd(const struct vhp_port *p, unsigned pair);

/** The same for the queue that the program sends to: the driver VM has offered buffers. */
VHP_API int vhp_send_fd(const struct vhp_port *p, unsigned pair);

/**
 * A number that changes, at vhp_update(), when those file descriptors may have become others, be it with the
 * same numbers. An epoll set keeps a file descriptor that was closed for as long as its file is open
 * elsewhere. So give the set duplicates; when this number changes, take them out, close them, and put
 * duplicates of the new ones in.
 */
VHP_API unsigned vhp_fds_serial(const struct vhp_port *p);

/** Ask for kicks, before sleeping on vhp_recv_fd(). @return true: there is work already, do not sleep */
VHP_API bool vhp_recv_arm(struct vhp_port *p, unsigned pair);
/** Ask for kicks, before sleeping on vhp_send_fd(). @return true: there are buffers already, do not sleep */
VHP_API bool vhp_send_arm(struct vhp_port *p, unsigned pair);
/** The program is awake again: it needs no more kicks of the queue that it receives from. */
VHP_API void vhp_recv_disarm(struct vhp_port *p, unsigned pair);
/** The program is awake again: it needs no more kicks of the queue that it sends to. */
VHP_API void vhp_send_disarm(struct vhp_port *p, unsigned pair);
/** @} */

#ifdef __cplusplus
}
#endif

#endif
