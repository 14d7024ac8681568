/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside of the shmem attachment: shmem.c, and shmem_save.c for another daemon. */
#ifndef VP_DAEMON_SHMEM_PRIV_H
#define VP_DAEMON_SHMEM_PRIV_H

#include <pthread.h>

#include "attach/attach.h"
#include "front/peer.h"
#include "front/vdev.h"
#include "sys/slow.h"
#include "sys/source.h"
#include "vhostuser/backend.h"
#include "virtq/virtq.h"

struct sring {
	struct shmem   *s;
	unsigned        i;
	/* under s->lock: */
	struct vp_virtq vq;
	int             call_fd;
	bool            live;      /* vq may be used */
	/* main thread */
	int             kick_fd;
	bool            started, enabled;
};

struct extent {
	uint64_t off, len;         /* in region 1; len 0 = slot has none */
	bool     owed;             /* UNMAP is to be sent when there is room for a request */
};

struct shmem {
	struct vp_attach      a;
	struct vp_attach_conf c;
	struct vp_port       *port;
	struct vp_peer       *peer;
	unsigned              nsig;
	struct sring         *ring;
	pthread_mutex_t       lock;   /* rings against the forwarder */
	struct vp_memtab     *tab;
	char                  unmapped[200];  /* why some of its memory is not; "" = none */
	struct vp_burst      *burst;  /* the forwarder's, under lock */
	struct extent         ext[VHP_MAX_WINDOWS];
	uint32_t              epoch;  /* starts of the device; requests of earlier ones are forgotten */
	bool                  started, mapped;
	bool                  stuck;  /* a window of this start will not go; logged */
	struct vp_source     *bell_io;
	int                   sig0;
	struct vp_wire       *wire0;
	uint64_t              n_starts, n_maps, n_unmaps, n_failed;
	uint64_t              map_ns, unmap_ns;  /* from requests to answers, all together */
};

struct request {
	struct shmem *s;
	uint32_t      epoch;
	unsigned      slot;        /* VHP_MAX_WINDOWS = the control block */
	bool          map;
	uint64_t      asked_ns;
	struct vp_slow slow;
};

static inline struct vu_backend *vp_shmem_session(const struct shmem *s)
{
	return vp_peer_session(s->peer);
}

/* Set ring i up as vr says, or let it go on where it is. Under the lock. */
int  vp_shmem_ring_bind(struct shmem *s, unsigned i, const struct vu_ring *vr, struct vp_err *e);
/* The kick fd of ring 0 is a new one. */
void vp_shmem_watch_bell(struct shmem *s);
/* It was sent, by this daemon or the one before: who waits for long says so (sys/slow.h). */
void vp_shmem_request_await(struct request *q);
/* Of what this VMM was asked for: arg is a struct request, freed here. */
void vp_shmem_request_done(void *arg, int result);

/* shmem_save.c: of the attachment, and of its session's owner (struct vp_peer_ops). */
bool vp_shmem_at_rest(struct vp_attach *a);
void vp_shmem_save(struct vp_attach *a, struct vp_rec *r);
int  vp_shmem_restore(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e);
void vp_shmem_save_hot(struct vp_attach *a, struct vp_rec *r);
int  vp_shmem_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e);
int  vp_shmem_recover(struct vp_attach *a, struct vp_err *e);
void vp_shmem_save_device(void *ctx, struct vp_rec *r);
int  vp_shmem_restore_device(void *ctx, const struct vp_rec_in *in, struct vp_err *e);

#endif
