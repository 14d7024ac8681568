/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The network interface of the kernel data path: a tap, or a macvtap given by the path of its
 * device. It appears once and stays while the link comes and goes; the carrier follows the link.
 *
 * Threads: one. 0 or -errno with a sentence in *e.
 */
#ifndef VHP_AGENT_TAP_H
#define VHP_AGENT_TAP_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "vhost-pci/abi.h"

#define TAP_MAX_PAIRS 64

struct tap {
	char name[IFNAMSIZ];
	bool macvtap;
	bool created;		/* by us: goes away at tap_close unless keep is set */
	bool keep;
	bool fixed_mtu;		/* the administrator chose it: not to be changed */
	bool carrier;
	unsigned int npairs;
	int fd[TAP_MAX_PAIRS];	/* one queue pair each; fd[0] is always attached */
	bool on[TAP_MAX_PAIRS];
	uint64_t features;	/* virtio-net bits that it can do */
};

/*
 * what: interface name, or path of a macvtap (contains '/'). pairs: queue pairs wanted; more than one makes it
 * multiqueue. A persistent tap that exists is taken over. -EBUSY, -EINVAL (made with other flags), -ENOENT (no tun in
 * the kernel), -EPERM.
 */
int tap_open(struct tap *t, const char *what, unsigned int pairs, struct vp_err *e);
void tap_close(struct tap *t);

/* Header length, endianness and offloads for these negotiated features. */
int tap_configure(struct tap *t, const uint64_t features[2], struct vp_err *e);
/* Let the kernel use queue pair i, or not. Pair 0 is always used. */
int tap_queue(struct tap *t, unsigned int i, bool on, struct vp_err *e);
/* Best effort: macvtap follows its lower device. */
void tap_carrier(struct tap *t, bool on);
int tap_set_mtu(struct tap *t, uint16_t mtu, struct vp_err *e);
/* Give the interface another address if it has this one, which is the driver VM's. */
int tap_avoid_mac(struct tap *t, const uint8_t mac[6], struct vp_err *e);
int tap_set_mac(struct tap *t, const uint8_t mac[6], struct vp_err *e);
int tap_up(struct tap *t, struct vp_err *e);
/*
 * What has passed through it since it was made, by VHP_COUNT_*. False: the kernel does not say (it was moved to another
 * network namespace).
 */
bool tap_counters(const struct tap *t, uint64_t n[VHP_COUNTS]);
int tap_bridge(struct tap *t, const char *bridge, struct vp_err *e);

#endif
