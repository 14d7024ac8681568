/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of libvhostpci share; nothing here is public. */
#ifndef VHP_INTERNAL_H
#define VHP_INTERNAL_H

#include <vhost-pci/vhostpci.h>

#include "engine/packet.h"
#include "engine/queue.h"
#include "net/offload.h"
#include "statepage/state.h"
#include "vhostpci/gate.h"

/* ---- transport: how this process reaches the port -------------------------------------------- */

struct vhp_transport;

struct vhp_transport_ops {
	/* Take in what has arrived. 0, or -ENODEV: the port is gone for good. */
	int (*pump)(struct vhp_transport *t, struct vp_err *e);
	/*
	 * One command and its answer. *status is VHP_ST_*, value[6] its values. 0; -ETIMEDOUT; -ENODEV.
	 */
	int (*command)(struct vhp_transport *t, uint32_t opcode, const uint64_t *args, unsigned nargs,
		       uint32_t *status, uint64_t *value, struct vp_err *e);
	/* Map [offset, offset + size) of window `slot`. -EAGAIN: not there yet, pump() later. */
	int (*map)(struct vhp_transport *t, const struct vp_state_window *w, unsigned slot,
		   uint64_t offset, uint64_t size, bool writable, struct vp_map **out, struct vp_err *e);
	/*
	 * The eventfd that a kick of queue q makes readable; `signal` is the to-guest signal that carries it.
	 * -1 = none. Stays the transport's.
	 */
	int (*kick_fd)(struct vhp_transport *t, unsigned q, uint32_t signal);
	/* The eventfd whose write calls queue q; -1 = none. Stays the transport's. */
	int (*call_fd)(struct vhp_transport *t, unsigned q, uint32_t doorbell);
	void (*close)(struct vhp_transport *t);
};

struct vhp_transport {
	const struct vhp_transport_ops *ops;
	const void *ctrl;    /* control block, VHP_CTRL_SIZE bytes */
	int         fd;      /* readable when pump() has something to do */
	unsigned    serial;  /* changes when kick or call fds were replaced */
};

int vhp_transport_local(struct vhp_transport **out, const char *path, struct vp_err *e);
/* pkey: the protection key that windows get, 0 = none. */
int vhp_transport_dev(struct vhp_transport **out, const char *path, bool kicks, int pkey, struct vp_err *e);

/* ---- port ------------------------------------------------------------------------------------- */

struct vhp_region_map {
	uint32_t slot, serial;
	uint64_t offset, size;
	bool     writable;
	struct vp_map *map;
};

/*
 * The mappings of one regions[]. The port has the newest. A loan that outlives them there keeps the
 * mappings that it was made under.
 */
struct vhp_maps {
	unsigned refs; /* atomic: threads give loans of different pairs back */
	unsigned n;
	struct vhp_region_map m[];
};

struct vhp_loan {
	struct vp_burst b;
	struct vp_used  used[VP_BURST];
	/* in use: linked into its queue */
	struct vhp_queue *q;
	struct vhp_loan  *next, **prev;
	struct vhp_maps  *held; /* what its pieces lie in, once the port may let go of it; else NULL */
};

struct vhp_queue {
	struct vp_queue rq;     /* ring, features, call fd, counters of forwarding */
	uint32_t run;                 /* of the state page, that this is or was */
	bool     started, enabled;
	bool     reported;            /* the daemon knows that it is broken */
	bool     asked;               /* MAP was sent for what it waits for, since regions[] changed last */
	bool     answer_near;         /* vp_vq_near() was called since the last packet came */
	bool     refused;             /* and was refused, which is why it is broken */
	unsigned lost_seen;           /* vp_map_lost_count() when last looked */
	int      kick_fd;
	struct vp_burst *burst;       /* copy flavour's working space; allocated at the first start */
	struct vp_used  *used;
	bool     untold;              /* vhp_recv() gave buffers back, and did not notify yet */
	bool     sent;                /* vhp_send() was called since vhp_recv() last looked here */
	struct vhp_loan *loans;
	uint64_t packets, bytes, full, errors, calls;
};

struct vhp_port {
	struct vhp_transport *t;
	struct vp_state *cur, *next; /* applied; being read */
	uint32_t  seen;                   /* generation of cur */
	unsigned  t_serial;
	unsigned  kicks_serial;  /* changes when a queue has another signal */
	bool      have, up, map_pending;
	bool      wants;                  /* some queue waits for memory that MAP was not sent for; atomic */
	bool      protect;                /* its windows lie behind the gate (gate.h) */
	uint64_t  path;                   /* features that ATTACH offers */
	struct vp_memtab *tab;
	struct vhp_maps *maps;            /* of tab; NULL = none yet */
	unsigned  nq;
	struct vhp_queue *q;              /* max_queues of the port */
	unsigned  hdr_len;
	/* what vhp_report() counts from, and told last; not before, CLOCK_MONOTONIC in milliseconds */
	uint64_t  count_base[VHP_COUNTS], counted[VHP_COUNTS], count_ms;
	struct vp_scratch *scratch; /* notifications of the copy and in-place flavours */
	char      name[33];
};

/*
 * The queue of a pair that we receive from: the driver VM's transmit queue. Below, its receive queue.
 * NULL: no such pair.
 */
static inline struct vhp_queue *vhp_rxq(const struct vhp_port *p, unsigned pair)
{
	return pair < p->nq / 2 ? &p->q[2 * pair + 1] : NULL;
}

static inline struct vhp_queue *vhp_txq(const struct vhp_port *p, unsigned pair)
{
	return pair < p->nq / 2 ? &p->q[2 * pair] : NULL;
}

/* q waits for memory that no region has: vhp_update() is to ask for it. Any thread. */
static inline void vhp_want(struct vhp_port *p, const struct vhp_queue *q)
{
	if (!q->asked)
		__atomic_store_n(&p->wants, true, __ATOMIC_RELAXED);
}

/* Drop a reference; the last one unmaps. Any thread. NULL is allowed. */
void vhp_maps_unref(struct vhp_maps *m);

/*
 * Make the loans of a queue keep maps, which the port is about to let go of. NULL only if there are no
 * loans.
 */
void vhp_loans_keep(struct vhp_queue *q, struct vhp_maps *maps);

/* The notification that vhp_recv() put off, of a queue at which no call of the program looks any more. */
void vhp_tell(struct vhp_port *p, struct vhp_queue *q);

/*
 * Give every loan of a queue back, on behalf of the program, and notify for what vhp_recv() did. The program may
 * still be at work in the memory, so the loans keep maps.
 */
void vhp_loans_end(struct vhp_port *p, struct vhp_queue *q, struct vhp_maps *maps);

#endif
