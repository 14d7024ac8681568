/* SPDX-License-Identifier: BSD-3-Clause */
/**
 * @file local.h
 * The `local` attachment: how a process on the host gets a vhost-pci port from vhost-pcid.
 *
 * docs/local-attachment.md describes it; abi.h describes the memory.
 *
 * The process connects to a UNIX stream socket. The daemon checks the user of the process, then speaks
 * first and completely:
 *
 *     HELLO      fd: the control memfd
 *     SIGNALS    one or more: eventfds of the signals to the guest, by number, from 0 up
 *     DOORBELLS  one or more: eventfds of the signals from the guest, by number, from 0 up
 *     READY
 *
 * or it sends ERROR and ends the connection. Later, at any time, the daemon may send WINDOW, WINDOW_GONE,
 * SIGNALS and DOORBELLS (replacements). The process sends nothing. It writes commands into the command page
 * and raises signal 0 by its doorbell. The process has the port for as long as the connection lives. Closing
 * the connection is a DETACH without an answer.
 *
 * All messages have one size, and native byte order, because both ends are on one machine. File descriptors
 * travel with the first byte of their message, and the receiver owns them. A receiver skips messages of a
 * type that it does not know, and closes their file descriptors.
 */
#ifndef VHOST_PCI_LOCAL_H
#define VHOST_PCI_LOCAL_H

#include <linux/types.h>

#define VHP_LOCAL_VERSION	1u
#define VHP_LOCAL_MAX_FDS	32u	/**< in one message */

/** A message of the daemon. */
struct vhp_local_msg {
	__u32	type;		/**< VHP_LOCAL_* */
	__u32	nfds;		/**< file descriptors that come with it, at most VHP_LOCAL_MAX_FDS */
	__u64	arg[5];		/**< 0 unless stated */
};

/**
 * fd 0: the control memfd, sealed against resizing. The control block is at offset 0, the pool at
 * header.pool_offset.
 *
 * arg[0]: VHP_LOCAL_VERSION. arg[1]: abi_version. arg[2]: bytes of the memfd. arg[3]: nsignals, the number of
 * signals to the guest. arg[4]: the number of signals from the guest.
 */
#define VHP_LOCAL_HELLO		1u
/**
 * nfds eventfds for the signals to the guest arg[0], arg[0] + 1, ... The process reads or polls them.
 *
 * A later message replaces eventfds (by the driver VM's own kick eventfd, for example). The process takes the
 * new one, and acts as if it had been raised once.
 */
#define VHP_LOCAL_SIGNALS	2u
/**
 * nfds eventfds for the signals from the guest arg[0], arg[0] + 1, ... The process writes them.
 * queues[q].doorbell is such a number.
 *
 * A later message replaces eventfds: use the new one from now on. arg[1] = 1: nobody listens to it any more; do
 * not write it.
 */
#define VHP_LOCAL_DOORBELLS	3u
/** The handshake is complete. */
#define VHP_LOCAL_READY		4u
/**
 * fd 0: the memory of the windows of kind VHP_WINDOW_FD with locator arg[0]: arg[2] bytes from offset arg[1] of
 * the fd. The message comes before READY is set in the window's entry.
 */
#define VHP_LOCAL_WINDOW	5u
/** The daemon withdrew the window with locator arg[0]: unmap it and close its fd. Locators are never used again. */
#define VHP_LOCAL_WINDOW_GONE	6u
/**
 * The process cannot have the port; the connection ends. arg[0]: an errno value. EBUSY: another process has it.
 * EACCES: the wrong user.
 */
#define VHP_LOCAL_ERROR		7u

#endif /* VHOST_PCI_LOCAL_H */
