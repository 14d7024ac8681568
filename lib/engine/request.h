/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine for requests. It serves one virtqueue of any virtio device but net, by a device side
 * that is not trusted with the driver VM's memory. It works as copyq.h does, but for chains that are
 * read and written, come back in any order, and must not be lost:
 *
 *   driver's ring --fetch--> a request: private record, run of pool blocks --shadow ring--> device side
 *
 * The record outlives the device side. When the device side goes, the requests that it has not returned
 * wait. The next device side gets them in the order in which the driver sent them (vp_reqq_begin()).
 * While nobody serves, new requests stay in the driver's ring.
 *
 * Readable bytes are copied at hand-over, writable ones back at completion. How many are copied back
 * depends on the type. Devices of some types are known to tell the length that they wrote (trust_len):
 * that many bytes. For all others it is everything that the driver made writable, because real
 * back-ends report 0 or too little. The blocks were zeroed before, so neither end sees bytes of another
 * request.
 *
 * Zeroing costs as much as a copy. A request that its device fills whole (fills, fill_op: a disk's read) is spared it
 * once the device side has told the full length of several such requests in a row. When it then tells less, nothing is
 * copied: the request is given to it again, with zeroed blocks. When it tells of an error, the blocks are zeroed
 * afterwards.
 *
 * Security model: that of copyq.h. Of the pool only used entries, event fields and returned bytes are read, each once.
 * Where a request came from and may be written is in private memory. A request is completed once, when the device side
 * has returned its id, which it had.
 *
 * Back-pressure: a request that finds no blocks waits in the driver's ring. One that can never have
 * enough breaks the queue (`too_big` says how many bytes it wanted). After vp_reqq_new() nothing here
 * allocates but vp_reqq_begin(). One thread at a time.
 */
#ifndef VP_ENGINE_REQUEST_H
#define VP_ENGINE_REQUEST_H

#include "base/capring.h"
#include "engine/copyq.h"
#include "engine/inflight.h"
#include "engine/runs.h"

#define VP_REQ_RUNS  8	  /* pieces of the pool that a request may be split into */
#define VP_REQ_BLOCK 512u /* bytes of the pool's unit */
#define VP_REQ_MAX   1024 /* requests in the device side's hands at most, and entries of the shadow ring */

struct vp_reqq_conf {
	struct vp_queue *rq;  /* the driver's queue, started. Not owned; vq may be rebound between calls */
	vp_gptr pool;		    /* 64-byte aligned */
	uint64_t pool_addr;	    /* its link address */
	struct vp_copyq_area ring; /* at least vp_copyq_ring_bytes() */
	struct vp_copyq_area data; /* blocks, read and written by the device side */
	bool trust_len;		    /* what the device says it wrote is what is copied back */
	bool once; /* not to be done again: what is open fails when a device side goes, if it has readable bytes */
	int fail_status; /* byte that tells the driver of a failed request, in its last writable byte; -1: none */
	bool fuse;	 /* a failed request is told by a FUSE header, -EIO */
	/*
	 * Bytes of the headers before what is read and what is written, at most a block; 0: none. If there is either,
	 * what follows them begins at a multiple of a block, for a device side that does direct I/O on it (and for our
	 * copies: x86's string instructions want that), and each header is in one piece.
	 */
	uint16_t out_head, in_head;
	/* requests that begin with the 32 bits fill_op fill what is writable, but for their status (fail_status) */
	bool fills;
	uint32_t fill_op;
	struct vp_inflight inflight;
	struct vp_inflight_saved *saved; /* what an earlier daemon had taken; outlives this, NULL: nothing */
	/*
	 * vp_reqq_keep_bytes() of memory that outlives the process, 64-byte aligned, for vp_reqq_recover(); not owned,
	 * nobody else's. NULL: none.
	 */
	void *keep;
};

enum vp_req_state {
	VP_REQ_FREE,
	VP_REQ_WAITS, /* for a device side */
	VP_REQ_AWAY,  /* in its hands */
	VP_REQ_BACK,  /* returned, not yet given to the driver */
};

struct vp_req {
	uint64_t seq;		       /* order of arrival */
	uint32_t out_len, in_len, len; /* len: as the device side reported it, at most in_len */
	uint16_t nout, nin;	       /* segments, merged */
	uint16_t id, slots;	       /* the driver's chain */
	uint16_t pos;		       /* place in the shadow ring (split) */
	uint64_t give_at, back_at;     /* how many had been given to the device side, and returned, before this one */
	uint16_t desc[2 * VP_REQ_RUNS]; /* its descriptors in the shadow ring (split), or its id there (packed) */
	uint16_t entry;		       /* of the account: id, or its own number there (packed) */
	uint16_t prev, next;	       /* order of arrival; next: free list, too */
	uint8_t state;		       /* enum vp_req_state */
	uint8_t nruns;
	bool raw; /* its writable blocks may hold bytes of other requests */
	struct vp_run
		run[VP_REQ_RUNS]; /* readable bytes, writable ones behind them: see vp_req_in_at() */
	struct vp_run segs;	  /* in seg[] when there are more than fit below */
	struct vp_copyq_seg seg[4];
	/* of a queue that is traced: when it was taken, 0 = it was not yet, and how its readable part begins */
	uint64_t taken_ns;
	uint8_t head_len, head[VP_CAP_HEAD];
};

struct vp_reqq {
	struct vp_reqq_conf c;
	struct vp_drvq shadow; /* while `served` */
	struct vp_runs blocks, segs;
	struct vp_req *req; /* [n] */
	struct vp_copyq_seg *seg;
	uint16_t *pend; /* [mask + 1], returned ones in the order of their return */
	unsigned n_heads, next_head; /* of c.saved */
	unsigned next_desc;	     /* packed: of the next one */
	uint32_t n, mask, pend_head, pend_tail;
	uint16_t size;		    /* of the shadow ring */
	uint16_t free, first, last; /* requests: free list; oldest and newest that are out. n = none */
	uint16_t regive;	    /* next that waits, n = none */
	unsigned out;		    /* requests taken and not completed */
	uint64_t given, returned;   /* so far, + 1 */
	struct vp_req_keep *keep;   /* engine/request_keep.c; NULL: none */
	uint64_t seq;
	uint64_t kicks;
	uint64_t regiven, failed;
	uint64_t too_big; /* bytes that a request wanted and can never have */
	bool served;	  /* a device side is there */
	bool blocked, again, stalled, open;
	bool anew; /* both ends are notified, whatever there is to do */
	bool moved; /* by the last run; else that has at most called the driver */
	bool told; /* drained: attention was asked for */
	unsigned full;	    /* fills: full lengths told in a row */
	uint64_t owed;	    /* bytes that the driver was given without a call, */
	unsigned n_owed;    /* in so many requests, */
	uint64_t owed_since;
	bool flush;	    /* and it is to be called now */
	int kick_fd;
	uint64_t kick_who;
	uint64_t desc_addr, avail_addr, used_addr;
};

/*
 * -EINVAL: areas that are too small or misaligned, or a ring that is not started; -ENOMEM. Nobody
 * serves the queue yet.
 */
int vp_reqq_new(struct vp_reqq **out, const struct vp_reqq_conf *c, struct vp_err *e);
void vp_reqq_free(struct vp_reqq *q);
/*
 * For another process (docs/handover.md), while no thread works with q. There, with the driver's queue where it was,
 * the same pool, and c as vp_reqq_new() was told (inflight and saved as vp_inflight_restore() made them): the engine
 * goes on, also one that nobody serves, and nothing was written. kick_fd, kick_who: as for vp_reqq_begin(). What is in
 * c->saved is the engine's then. -EPROTO; -ENOMEM.
 */
void vp_reqq_save(const struct vp_reqq *q, struct vp_rec *r);
int  vp_reqq_restore(struct vp_reqq **out, const struct vp_reqq_conf *c, int kick_fd, uint64_t kick_who,
		     const struct vp_rec_in *in, struct vp_err *e);

/*
 * For a process that comes when this one has been killed anywhere. vp_reqq_save_kept() is what does not change while
 * data threads run; all else is in c->keep, which is the same memory there. The engine goes on, and what was seen in
 * part is finished: of the shadow ring, and of the driver's, which is set up, and is put where it was. Its first run
 * notifies both ends. features as for vp_reqq_begin(). -EPROTO: c->keep contradicts itself, the rings or the features;
 * -ENODATA: it was at what is not written down; -ENOMEM.
 */
uint64_t vp_reqq_keep_bytes(void);
void vp_reqq_save_kept(const struct vp_reqq *q, struct vp_rec *r);
int  vp_reqq_recover(struct vp_reqq **out, const struct vp_reqq_conf *c, uint64_t features, int kick_fd,
		     uint64_t kick_who, const struct vp_rec_in *in, struct vp_err *e);

/*
 * A device side has come: an empty shadow ring at desc_addr and so on, of q->size entries. It first
 * gets what waits. features: of the shadow ring. The caller has zeroed the data area, or nobody else
 * has seen it. -ENOMEM.
 */
int vp_reqq_begin(struct vp_reqq *q, uint64_t features, int kick_fd, uint64_t kick_who, struct vp_err *e);
/*
 * The device side has let go, or was cut off. The driver gets what it returned, if the driver is
 * reachable. base: where it stopped, NULL: nobody knows; what lies behind that it never had, and need not fail.
 * True: the driver wants a call.
 */
bool vp_reqq_end(struct vp_reqq *q, bool reachable, const uint32_t *base);

/* Requests that the device side has and has not returned. */
unsigned vp_reqq_away(const struct vp_reqq *q);

/* As the functions of the same names in copyq.h. */
unsigned vp_reqq_run(struct vp_reqq *q, struct vp_scratch *s);
bool vp_reqq_arm(struct vp_reqq *q);
void vp_reqq_disarm(struct vp_reqq *q);
void vp_reqq_set_open(struct vp_reqq *q, bool open);
uint32_t vp_reqq_base(const struct vp_reqq *q);

/*
 * After vp_reqq_end(), before the driver's ring is stopped: makes vp_vq_base() exact. Open requests are
 * left in the driver's ring where an index can say so, or stay in the in-flight account. Else they
 * fail, and *failed says how many. True: the driver wants a call.
 */
bool vp_reqq_stop(struct vp_reqq *q, bool reachable, unsigned *failed);

/* Requests taken and not completed. */
static inline unsigned vp_reqq_outstanding(const struct vp_reqq *q)
{
	return __atomic_load_n(&q->out, __ATOMIC_RELAXED);
}

#endif
