/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What processes the queues: vhost-net with a tap, vhost-vsock, vhost-scsi, or a vhost-user back-end. The engine
 * (agent.c) decides when; a data path does.
 *
 * Order of calls: features(); then for each session (link up): configure, set_mem, and for each queue start,
 * enable, stop; set_mem again whenever the regions change; at the end, when all queues are
 * stopped, reset. config() comes at any time. Threads: one. Errors: 0 or -errno with a sentence
 * in *e. -ECONNRESET from any call: the data path is gone (a back-end that died); ready() says
 * when it is back.
 */
#ifndef VHP_AGENT_DATAPATH_H
#define VHP_AGENT_DATAPATH_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "memmap.h"

struct datapath;

struct dp_queue {
	uint32_t size;
	uint32_t base;		/* as VHOST_SET_VRING_BASE takes it */
	struct mm_ring ring;	/* user addresses of the memory table that was set last */
	struct mm_ring addr;	/* the same as link addresses */
	int kick_fd, call_fd;	/* eventfds; stay the engine's */
};

struct dp_config {
	uint64_t features[2];	/* offered to the driver VM: say which fields are valid */
	const uint8_t *data;
	uint32_t size;
};

/* What a data path for another device than net is: told to the daemon before ATTACH. */
struct dp_desc {
	uint64_t features[2];
	uint32_t queues;	/* 0: it does not say */
	uint32_t config_size;	/* 0: it has no config space, or does not tell it */
	uint8_t config[VHP_CONFIG_MAX];
};

#define DP_MAX_FDS	(2 * VHP_MAX_QUEUES + 4)

/* A link address that the table lacks and that queue waits for. */
struct dp_missing {
	uint64_t addr;
	bool write;
	unsigned int queue;
};

/* What it has moved since it was opened, from the driver VM's point of view. */
struct dp_counters {
	uint64_t n[VHP_COUNTS];	/* VHP_COUNT_* */
};

struct datapath_ops {
	const char *name;
	uint32_t device_type;	/* virtio ID that it serves, 0 = any */
	bool needs_map;		/* windows must be mapped into this process */

	/* Can it work now? Tries to get there (connects) without waiting. */
	bool (*ready)(struct datapath *d);
	/*
	 * NULL: it serves net only. The link's device has this virtio ID, and config_size bytes of its config
	 * space are wanted. Only while ready, before features().
	 */
	int (*describe)(struct datapath *d, uint32_t type, uint32_t config_size, struct dp_desc *out, struct vp_err *e);
	/* NULL: never. Is it another than it described? Forgets that. */
	bool (*changed)(struct datapath *d);
	/* NULL: nothing is writable. The driver VM has written these bytes of the config space. */
	int (*set_config)(struct datapath *d, uint32_t off, uint32_t len, const uint8_t *data, struct vp_err *e);
	/* What it supports, for ATTACH. Only while ready. */
	void (*features)(struct datapath *d, uint64_t f[2]);
	/* NULL: no. Does it keep an account of open requests where the table of set_mem has a place for it? */
	bool (*keeps_account)(struct datapath *d);
	unsigned int (*max_queues)(struct datapath *d);

	/* features: negotiated by the driver VM */
	int (*configure)(struct datapath *d, const uint64_t features[2], struct vp_err *e);
	int (*set_mem)(struct datapath *d, const struct memmap *m, struct vp_err *e);
	/*
	 * NULL: it cannot. From the next configure on the table grows by what is missing: an address that it lacks
	 * makes its queue wait.
	 */
	void (*set_grows)(struct datapath *d, bool on);
	/* What is missing since the last call or the last set_mem, at most n; returns how many. */
	unsigned int (*missing)(struct datapath *d, struct dp_missing *m, unsigned int n);
	int (*start)(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e);
	int (*enable)(struct datapath *d, unsigned int q, bool on, struct vp_err *e);
	/* *base: where to go on. -ENODATA: stopped, but the index is unknown. */
	int (*stop)(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e);
	/*
	 * NULL: never. Some queue was stopped while requests of it were under way, which the data path may do and
	 * return whenever it likes. It has let go of them when it is ready() after reset().
	 */
	bool (*unclean)(struct datapath *d);
	/* Forget memory and features. */
	void (*reset)(struct datapath *d);

	/* The served device's configuration (MAC, MTU). */
	void (*config)(struct datapath *d, const struct dp_config *c);
	/* The link carries data, or not. */
	void (*carrier)(struct datapath *d, bool on);

	/* NULL, or false: it does not know. */
	bool (*counters)(struct datapath *d, struct dp_counters *c);

	/* fds to poll; returns how many of at most DP_MAX_FDS were filled in. */
	unsigned int (*fds)(struct datapath *d, struct pollfd *p);
	/* After poll. Sets bits of queues whose rings were found malformed. -ECONNRESET as above. */
	int (*handle)(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2],
		      struct vp_err *e);

	void (*close)(struct datapath *d);
};

struct datapath {
	const struct datapath_ops *ops;
};

struct tap;

/* The tap stays the caller's. busy_poll_us: busy polling of vhost-net, 0 = off. */
int dp_vhostnet_open(struct tap *t, unsigned int busy_poll_us, struct datapath **out, struct vp_err *e);

/* cid: what the driver VM is called in this VM. */
int dp_vhostvsock_open(uint64_t cid, struct datapath **out, struct vp_err *e);

/* wwpn: of a vhost target of this VM's LIO. */
int dp_vhostscsi_open(const char *wwpn, struct datapath **out, struct vp_err *e);

/*
 * How long requests that are under way at a stop may take in a back-end that returns them after it. For tests to
 * change.
 */
extern unsigned int dp_vhostuser_finish_ms;

/*
 * server: listen at path, else connect to it (again and again). state: a file in which close() leaves what the back-end
 * knows beyond its rings, and from which the next one is given it, once; NULL: none.
 */
int dp_vhostuser_open(const char *path, bool server, const char *state, struct datapath **out, struct vp_err *e);

#endif
