/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The `local` attachment: how a process on the host gets a vhost-pci port from vhost-pcid.
 * Described in docs/local-attachment.md; the memory itself is that of abi.h.
 *
 * A UNIX stream socket. The process connects; the daemon checks its user, then speaks first and
 * completely:
 *
 *   HELLO      fd: the control memfd
 *   SIGNALS    one or more: eventfds of the signals to the guest, by number, from 0 up
 *   DOORBELLS  one or more: eventfds of the signals from the guest, by number, from 0 up
 *   READY
 *
 * or ERROR and the end of the connection. Later, at any time: WINDOW, WINDOW_GONE, SIGNALS and
 * DOORBELLS (replacements). The process sends nothing: it writes commands into the command page and
 * raises signal 0 by its doorbell. The port is its for as long as the connection lives;
 * closing it is a DETACH without an answer.
 *
 * Messages have one size and native byte order (both ends are on one machine). fds travel with the
 * first byte of their message. Unknown types are skipped, their fds closed.
 */
#ifndef VHOST_PCI_LOCAL_H
#define VHOST_PCI_LOCAL_H

#include <linux/types.h>

#define VHP_LOCAL_VERSION	1u
#define VHP_LOCAL_MAX_FDS	32u	/* in one message */

struct vhp_local_msg {
	__u32	type;		/* VHP_LOCAL_* */
	__u32	nfds;		/* fds that come with it, at most VHP_LOCAL_MAX_FDS */
	__u64	arg[5];		/* 0 unless stated */
};

/*
 * fd 0: the control memfd (control block at offset 0, pool at header.pool_offset), sealed against
 * resizing. arg[0] VHP_LOCAL_VERSION, [1] abi_version, [2] bytes of the memfd, [3] nsignals: signals
 * to the guest, [4] signals from the guest.
 */
#define VHP_LOCAL_HELLO		1u
/*
 * nfds eventfds for the signals to the guest arg[0], arg[0]+1, ...: the process reads or polls them. In a later message they
 * replace (the driver VM's own kick eventfd, for example): take the new one and act as if it had been raised once.
 */
#define VHP_LOCAL_SIGNALS	2u
/*
 * nfds eventfds for the signals from the guest arg[0], ...: the process writes them. queues[q].doorbell is such a number. In a later
 * message they replace: use the new one from now on. arg[1] = 1: nobody hears it any more, do not write.
 */
#define VHP_LOCAL_DOORBELLS	3u
/* The handshake is complete. */
#define VHP_LOCAL_READY		4u
/* fd 0: the memory of windows of kind VHP_WINDOW_FD with locator arg[0]: arg[2] bytes from offset arg[1] of the fd. Comes before READY is set in the entry. */
#define VHP_LOCAL_WINDOW	5u
/* The window with locator arg[0] was withdrawn: unmap it and close its fd. Keys are never used again. */
#define VHP_LOCAL_WINDOW_GONE	6u
/* The port cannot be had: arg[0] an errno value (EBUSY: another process has it, EACCES: wrong user). The connection ends. */
#define VHP_LOCAL_ERROR		7u

#endif /* VHOST_PCI_LOCAL_H */
