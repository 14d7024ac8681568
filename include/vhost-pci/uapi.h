/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * /dev/vhost-pciN: what the guest module vhost_pci.ko gives to user space.
 *
 * Openers. The first one that opens for writing (O_RDWR) owns the port; a second gets EBUSY, and
 * EAGAIN (O_NONBLOCK) or a short wait while the last owner is still being detached. Any number
 * may open O_RDONLY to observe: VHP_IOC_INFO, mmap of the control block, read and poll; everything
 * else is EPERM for them. When the owner has closed (every copy of its fd and every mapping of the
 * control block is gone, or it died), the module takes back all windows and eventfds and sends DETACH. Window mappings that other processes still hold (a vhost-user
 * back-end) get one second to go away on their own, then they are revoked.
 *
 * mmap of the port's fd: offset 0, up to VHP_CTRL_SIZE bytes, the control block of abi.h, shared,
 * read-only (commands go through VHP_IOC_COMMAND). Read it as a seqlock: state.generation.
 *
 * mmap of a window's fd: offset 0 is the start of the window, shared, cached, in pages as large as
 * the alignment allows. The fd may be passed to other processes. A window that the daemon takes
 * back, that is detached or unplugged, is revoked: accesses raise SIGBUS (EFAULT in system calls),
 * new mmaps fail with ENODEV. A window fd never shows other memory than it did at first. Only VFIO
 * (type 1) goes on with the address of a window that it was given: unmap it there before SYNC.
 *
 * read of the port's fd returns one struct vhp_event and blocks (or EAGAIN) while there is nothing
 * new since this fd's last read; poll says POLLIN. The first read returns at once. Events are
 * level-triggered and merge: look at the state page, not at the event, to learn what is so.
 * A port that was unplugged: POLLHUP | POLLERR, and every call returns ENODEV.
 *
 * All structures are in native byte order; reserved fields must be zero (EINVAL).
 */
#ifndef VHOST_PCI_UAPI_H
#define VHOST_PCI_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VHP_IOC_VERSION		1u

struct vhp_event {
	__u32	generation;		/* state.generation when the event was made; may be odd */
	__u32	flags;			/* VHP_EV_* since the last read */
};

#define VHP_EV_STATE	(1u << 0)	/* the state page changed, or may have */
#define VHP_EV_WINDOW	(1u << 1)	/* a window became obtainable or went away */
#define VHP_EV_DETACHED	(1u << 2)	/* the module detached by itself (suspend): attach again */

/* VHP_IOC_INFO: owner and observers. */
struct vhp_ioc_info {
	__u32	version;		/* VHP_IOC_VERSION of the module */
	__u32	abi_version;		/* header.abi_version */
	__u32	attachment;		/* VHP_ATTACHMENT_* */
	__u32	max_queues;
	__u32	nsignals;		/* usable numbers in both directions: 0 .. nsignals - 1 */
	__u32	ctrl_size;		/* bytes that mmap of this fd gives */
	__u32	flags;			/* VHP_INFO_* */
	__u32	reserved;
	char	name[32];		/* header.name, NUL terminated */
	char	bus[32];		/* where the device sits, e.g. "0000:00:05.0" */
};

#define VHP_INFO_OWNER		(1u << 0)	/* this fd owns the port */
#define VHP_INFO_ATTACHED	(1u << 1)	/* an ATTACH sent through the module was accepted */

/*
 * VHP_IOC_WINDOW: a new fd (close-on-exec) for a window. Ask by index and serial, both taken from
 * one consistent reading of windows[].
 * ENOENT: no such slot or empty. ESTALE: the slot's serial differs by now: read the state again.
 * EAGAIN: not ready yet (the device is being plugged): VHP_EV_WINDOW tells when to try again.
 */
struct vhp_ioc_window {
	__u32	window;			/* in: index in state.windows[] */
	__u32	serial;			/* in: its serial */
	__s32	fd;			/* out */
	__u32	reserved;
	__u64	size;			/* out: bytes that can be mapped */
	__u64	align;			/* out: largest page size that mappings can use, bytes */
};

/*
 * VHP_IOC_SET_KICK: signal `signal` to the guest (0 = state, 1 + q = kick of queue q) is written
 * to eventfd `fd` from the interrupt handler. fd -1 takes it away. A signal that arrived while
 * there was no eventfd is delivered at once. The module keeps its own reference.
 * VHP_IOC_SET_CALL: whenever eventfd `fd` is written, signal `signal` from the guest (0 = command,
 * 1 + q = call of queue q) is raised from within that write; the module consumes the counter.
 * fd -1 takes it away. Which vector or doorbell carries a queue is the module's business.
 * EINVAL: number out of range or not an eventfd. EBUSY (call): eventfd already used for a signal.
 */
struct vhp_ioc_eventfd {
	__u32	signal;
	__s32	fd;
	__u32	reserved[2];
};

/* VHP_IOC_SIGNAL: raise one signal from the guest. */
struct vhp_ioc_signal {
	__u32	signal;
	__u32	reserved;
};

/*
 * VHP_IOC_COMMAND: one command through the mailbox, serialised with those of the module itself.
 * Returns 0 once answered, whatever `status` says. ETIMEDOUT: no answer within the time (the
 * command may still be executed; commands are idempotent). EINTR: a signal, as above. ENODEV: the
 * port went meanwhile, DETACH included, which the module then sends itself.
 */
struct vhp_ioc_command {
	__u32	opcode;			/* in: VHP_CMD_* */
	__u32	timeout_ms;		/* in: 0 = 5000; at most 60000 */
	__u64	args[15];		/* in: native byte order */
	__u32	status;			/* out: VHP_ST_* */
	__u32	reserved;
	__u64	value[6];		/* out: native byte order */
};

#define VHP_IOC_TYPE		0xb7

#define VHP_IOC_INFO		_IOR(VHP_IOC_TYPE, 0x40, struct vhp_ioc_info)
#define VHP_IOC_WINDOW		_IOWR(VHP_IOC_TYPE, 0x41, struct vhp_ioc_window)
#define VHP_IOC_SET_KICK	_IOW(VHP_IOC_TYPE, 0x42, struct vhp_ioc_eventfd)
#define VHP_IOC_SET_CALL	_IOW(VHP_IOC_TYPE, 0x43, struct vhp_ioc_eventfd)
#define VHP_IOC_SIGNAL		_IOW(VHP_IOC_TYPE, 0x44, struct vhp_ioc_signal)
#define VHP_IOC_COMMAND		_IOWR(VHP_IOC_TYPE, 0x45, struct vhp_ioc_command)

#endif /* VHOST_PCI_UAPI_H */
