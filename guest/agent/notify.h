/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sd_notify without libsystemd: one datagram to $NOTIFY_SOCKET. The agent also runs in
 * images that have no systemd and should stay a few kilobytes there; the protocol is
 * documented as stable (sd_notify(3)).
 */
#ifndef VHP_AGENT_NOTIFY_H
#define VHP_AGENT_NOTIFY_H

/* "READY=1\nSTATUS=..." Nothing happens when NOTIFY_SOCKET is not set or nobody listens. */
void notify(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
