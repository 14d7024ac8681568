/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/**
 * @file uapi.h
 * /dev/vhost-pciN: what the guest module vhost_pci.ko gives to user space.
 *
 * **Openers.** The first opener with O_RDWR owns the port. A second one gets EBUSY. While the last owner is
 * still being detached, an opener waits for a short time, or gets EAGAIN (O_NONBLOCK). Any number of
 * observers may open the port with O_RDONLY. They may use VHP_IOC_INFO, mmap of the control block, read and
 * poll; everything else is EPERM for them.
 *
 * The owner has closed the port when every copy of its fd and every mapping of the control block is gone, or
 * when it died. The module then takes back all windows and eventfds and sends DETACH. Other processes, such
 * as a vhost-user back-end, may still hold mappings of windows. They get one second to let go of them; then
 * the module revokes the mappings.
 *
 * **mmap of the port's fd** gives the control block of abi.h: offset 0, up to VHP_CTRL_SIZE bytes, shared,
 * read-only. Commands go through VHP_IOC_COMMAND. Read the state page as a seqlock: state.generation.
 *
 * **mmap of a window's fd** gives the window: offset 0 is its start. The mapping is shared and cached, in
 * pages as large as the alignment allows. The fd may be passed to other processes. The module revokes a
 * window that the daemon takes back, and one that is detached or unplugged. Accesses then raise SIGBUS
 * (EFAULT in system calls), and new mmaps fail with ENODEV. A window fd never shows other memory than it did
 * at first. VFIO (type 1) alone goes on with the address of a window that it was given: unmap the window
 * there before SYNC.
 *
 * **read of the port's fd** returns one struct vhp_event. It blocks (or fails with EAGAIN) while there is
 * nothing new since this fd's last read; poll says POLLIN when there is. The first read returns at once.
 * Events are level-triggered and merge: the state page, not the event, says what is so.
 *
 * **An unplugged port** shows POLLHUP | POLLERR, and every call returns ENODEV.
 *
 * All structures are in native byte order. Reserved fields must be zero (EINVAL).
 */
#ifndef VHOST_PCI_UAPI_H
#define VHOST_PCI_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VHP_IOC_VERSION		1u

/** What read returns. */
struct vhp_event {
	__u32	generation;		/**< state.generation when the event was made; may be odd */
	__u32	flags;			/**< VHP_EV_* since the last read */
};

#define VHP_EV_STATE	(1u << 0)	/**< the state page changed, or may have */
#define VHP_EV_WINDOW	(1u << 1)	/**< a window became obtainable or went away */
#define VHP_EV_DETACHED	(1u << 2)	/**< the module detached by itself (suspend): attach again */

/** VHP_IOC_INFO: what the port is. The owner and observers may ask. */
struct vhp_ioc_info {
	__u32	version;		/**< VHP_IOC_VERSION of the module */
	__u32	abi_version;		/**< header.abi_version */
	__u32	attachment;		/**< VHP_ATTACHMENT_* */
	__u32	max_queues;
	__u32	nsignals;		/**< usable numbers in both directions: 0 .. nsignals - 1 */
	__u32	ctrl_size;		/**< bytes that mmap of this fd gives */
	__u32	flags;			/**< VHP_INFO_* */
	__u32	reserved;
	char	name[32];		/**< header.name, NUL terminated */
	char	bus[32];		/**< where the device sits, e.g. "0000:00:05.0" */
};

#define VHP_INFO_OWNER		(1u << 0)	/**< this fd owns the port */
#define VHP_INFO_ATTACHED	(1u << 1)	/**< an ATTACH sent through the module was accepted */

/**
 * VHP_IOC_WINDOW: a new fd (close-on-exec) for a window. Ask by index and serial, both taken from one
 * consistent reading of windows[]. The caller owns the fd.
 *
 *  - ENOENT: there is no such slot, or it is empty.
 *  - ESTALE: the slot has another serial by now; read the state again.
 *  - EAGAIN: the window is not ready (its device is being plugged); VHP_EV_WINDOW says when to try again.
 *
 * With a protection key (pkeys(7)) the window is for the process that asks, and for nobody else. Its fd can be
 * mapped once at a time, by that process. The mapping has the key from its first moment and keeps it:
 * pkey_mprotect() with another key fails with EACCES. fork() does not inherit it. From then on the owner of the
 * port gets windows with this key, in this process, only.
 *
 *  - EBUSY: another key than the first window's, or none; or an fd or a mapping of the window is still there.
 *  - EACCES (mmap): the key is not allocated, or another process maps.
 *  - EINVAL: there is no such key; a module before this version says so of every key.
 *  - EOPNOTSUPP: this processor, or this kernel, has no protection keys.
 */
struct vhp_ioc_window {
	__u32	window;			/**< in: index in state.windows[] */
	__u32	serial;			/**< in: its serial */
	__s32	fd;			/**< out */
	__u32	pkey;			/**< in: protection key of the mapping; 0 = none */
	__u64	size;			/**< out: bytes that can be mapped */
	__u64	align;			/**< out: largest page size that mappings can use, bytes */
};

/**
 * VHP_IOC_SET_KICK: the interrupt handler writes eventfd `fd` when signal `signal` to the guest is raised
 * (0 = state, 1 + q = kick of queue q). A signal that arrived while there was no eventfd is delivered at once.
 *
 * VHP_IOC_SET_CALL: a write to eventfd `fd` raises signal `signal` from the guest (0 = command, 1 + q = call
 * of queue q) from within that write. The module consumes the counter.
 *
 * The fd -1 takes the eventfd away. The module keeps its own reference, so the caller may close its fd. The
 * module knows which vector or doorbell carries a queue.
 *
 *  - EINVAL: the signal is out of range, or the fd is no eventfd.
 *  - EBUSY (VHP_IOC_SET_CALL): the eventfd already raises a signal.
 */
struct vhp_ioc_eventfd {
	__u32	signal;
	__s32	fd;
	__u32	reserved[2];
};

/** VHP_IOC_SIGNAL: raise one signal from the guest. */
struct vhp_ioc_signal {
	__u32	signal;
	__u32	reserved;
};

/**
 * VHP_IOC_COMMAND: send one command through the mailbox and wait for its answer. The module serialises it with
 * its own commands. Returns 0 once the daemon has answered, whatever `status` says.
 *
 *  - ETIMEDOUT: no answer within the time. The daemon may still execute the command; commands are idempotent.
 *  - EINTR: a UNIX signal came. As with ETIMEDOUT, the daemon may still execute the command.
 *  - ENODEV: the port went meanwhile. This holds for DETACH too, which the module then sends itself.
 */
struct vhp_ioc_command {
	__u32	opcode;			/**< in: VHP_CMD_* */
	__u32	timeout_ms;		/**< in: 0 = 5000; at most 60000 */
	__u64	args[15];		/**< in: native byte order */
	__u32	status;			/**< out: VHP_ST_* */
	__u32	reserved;
	__u64	value[6];		/**< out: native byte order */
};

#define VHP_IOC_TYPE		0xb7

#define VHP_IOC_INFO		_IOR(VHP_IOC_TYPE, 0x40, struct vhp_ioc_info)
#define VHP_IOC_WINDOW		_IOWR(VHP_IOC_TYPE, 0x41, struct vhp_ioc_window)
#define VHP_IOC_SET_KICK	_IOW(VHP_IOC_TYPE, 0x42, struct vhp_ioc_eventfd)
#define VHP_IOC_SET_CALL	_IOW(VHP_IOC_TYPE, 0x43, struct vhp_ioc_eventfd)
#define VHP_IOC_SIGNAL		_IOW(VHP_IOC_TYPE, 0x44, struct vhp_ioc_signal)
#define VHP_IOC_COMMAND		_IOWR(VHP_IOC_TYPE, 0x45, struct vhp_ioc_command)

#endif /* VHOST_PCI_UAPI_H */
