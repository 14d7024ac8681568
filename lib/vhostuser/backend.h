/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The back-end's side of a vhost-user connection: a state machine that turns the messages of a
 * front-end (QEMU, Cloud Hypervisor, DPDK virtio-user) into calls to its owner. It has no event loop,
 * no threads and no policy. It maps nothing: it hands addresses and fds on as they were sent.
 *
 * Threat model: see codec.h. In addition, *values* of a message are checked here when they concern the
 * session (ring index, ring size, flags, bits that were not offered, tables beyond the slot limit).
 * Values that name memory (regions, ring addresses, IOTLB entries, log sizes) are the owner's to check.
 *
 * Threads: one thread calls all functions of a session, and gets the callbacks. Nothing blocks.
 *
 * fds handed to a callback: a callback that keeps one stores -1 in its slot and owns it from then on.
 * The session closes the ones that are left, whatever the callback returned.
 *
 * Typical owner:
 *   poll(vu_backend_fd, vu_backend_events)            -> vu_backend_readable / vu_backend_writable
 *   poll(vu_backend_req_fd, vu_backend_req_events)    -> vu_backend_req_ready
 * It asks for both fds and event masks again in ops->events_changed.
 */
#ifndef VP_VHOSTUSER_BACKEND_H
#define VP_VHOSTUSER_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/record.h"
#include "vhostuser/codec.h"
#include "vhostuser/proto.h"

struct vu_backend;

/*
 * A callback that returns VP_LATER (base/err.h) cannot finish now. The session then reads no further
 * message. It answers when the owner calls vu_backend_done() or, for ring_stop,
 * vu_backend_ring_stopped(). Never call those from inside the callback.
 */

/* ring_changed: what happened, a mask. */
enum vu_ring_change {
	VU_RING_STARTED  = 0x01, /* size, base, addresses and kick are there: go */
	VU_RING_ENABLED  = 0x02, /* enabled flipped, see the ring */
	VU_RING_KICK     = 0x04, /* kick fd (or polling) replaced while started */
	VU_RING_CALL     = 0x08, /* call fd replaced, started or not */
	VU_RING_ERR      = 0x10, /* error fd replaced */
	VU_RING_LOG      = 0x20, /* only logging (VHOST_VRING_F_LOG, log address) changed while started */
};

enum vu_base_from {
	VU_BASE_NONE,   /* nobody said: it starts anew */
	VU_BASE_STOP,   /* where it stopped */
	VU_BASE_SENT,   /* SET_VRING_BASE */
};

struct vu_ring {
	uint32_t num;               /* entries; 0 = not set */
	/*
	 * Where to go on. Split: bits 0-15 are the next available index. Packed: bits 0-14 are the next
	 * available index, 15 its wrap counter, 16-30 the used index, 31 its wrap counter. If the
	 * front-end left the upper half empty, as DPDK's does, it is filled in when the ring starts.
	 */
	uint32_t base;
	enum vu_base_from base_from;
	/* As sent: front-end user addresses, or IOVAs when ACCESS_PLATFORM was acknowledged. */
	uint64_t desc, avail, used;
	uint64_t log_addr;          /* guest physical; valid when log is true */
	bool log;                   /* log writes to the used ring (device area) */
	bool addr_set;
	bool kick_set;              /* SET_VRING_KICK seen since the last stop */
	bool call_set;
	bool enabled;
	bool started;
	bool stopping;              /* ring_stop was answered with VP_LATER */
	/*
	 * -1 = none: poll (kick), do not notify (call), or taken by vu_backend_take_fd(). The session
	 * owns them. It closes a replaced fd after ring_changed has returned, and the kick fd also
	 * after the ring has stopped. An owner whose other threads use them takes or duplicates them.
	 */
	int kick_fd, call_fd, err_fd;
};

/*
 * All callbacks may be NULL unless said otherwise. They return 0 or -errno; those marked LATER also
 * VP_LATER. e is never NULL: a sentence there becomes the error's, else one is made.
 *
 * The session answers with an error if the front-end asked for an answer. If it did not, the session
 * goes on after MTU, RARP, SET_CONFIG, SET_STATUS, LOG_FD, and after an error of ring_changed (a bad
 * ring harms only itself). After the rest it ends, because front-end and back-end would disagree from
 * then on.
 */
struct vu_backend_ops {
	/*
	 * LATER. The acknowledged bits (VHOST_F_LOG_ALL among them), a subset of the offered ones. Called only
	 * when they changed.
	 */
	int (*set_features)(void *ctx, uint64_t features, struct vp_err *e);
	int (*set_protocol_features)(void *ctx, uint64_t pf, struct vp_err *e);

	/*
	 * LATER. Required. The whole table anew: n up to VU_MAX_TABLE_REGIONS, 0 = nothing mapped.
	 * fds[i] belongs to r[i].
	 */
	int (*mem_table)(void *ctx, const struct vu_mem_region *r, int *fds, unsigned int n, struct vp_err *e);
	/* LATER. Required when VU_PF_CONFIGURE_MEM_SLOTS is offered. */
	int (*mem_add)(void *ctx, const struct vu_mem_region *r, int *fd, struct vp_err *e);
	/* LATER. r is as it was added. */
	int (*mem_remove)(void *ctx, const struct vu_mem_region *r, struct vp_err *e);

	/* Required. Mask of enum vu_ring_change. An error to VU_RING_STARTED leaves the ring stopped. */
	int (*ring_changed)(void *ctx, unsigned int q, unsigned int what, struct vp_err *e);
	/*
	 * LATER. Required. Stop q and store where it stopped, encoded as vu_ring.base (preset with the
	 * ring's base). Once it has returned 0, or the owner has called vu_backend_ring_stopped(),
	 * nothing may touch the ring any more. Called for started rings only.
	 */
	int (*ring_stop)(void *ctx, unsigned int q, uint32_t *base, struct vp_err *e);
	/*
	 * LATER. RESET_DEVICE: stop all rings (there are no ring_stop calls); the device's state is
	 * that after connecting.
	 */
	int (*reset)(void *ctx, struct vp_err *e);

	/* Fill buf with len bytes of config space from off. */
	int (*get_config)(void *ctx, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e);
	int (*set_config)(void *ctx, uint32_t off, uint32_t len, uint32_t flags, const uint8_t *buf, struct vp_err *e);
	int (*set_status)(void *ctx, uint8_t status, struct vp_err *e);
	int (*set_mtu)(void *ctx, uint64_t mtu, struct vp_err *e);
	int (*send_rarp)(void *ctx, const uint8_t mac[6], struct vp_err *e);

	/* LATER. Dirty log: size and offset in bytes within *fd. */
	int (*set_log)(void *ctx, int *fd, uint64_t size, uint64_t offset, struct vp_err *e);
	/* Eventfd to signal when the log was written; rarely used. */
	int (*set_log_fd)(void *ctx, int *fd, struct vp_err *e);

	/* io: num_queues and queue_size in; mmap_size, mmap_offset out. *fd out: stays the owner's. */
	int (*get_inflight)(void *ctx, struct vu_inflight *io, int *fd, struct vp_err *e);
	int (*set_inflight)(void *ctx, const struct vu_inflight *in, int *fd, struct vp_err *e);

	/* LATER. UPDATE or INVALIDATE; the session acknowledges it when it has taken effect everywhere. */
	int (*iotlb)(void *ctx, const struct vhost_iotlb_msg *m, struct vp_err *e);

	/* Sizes of the shared memory regions; *n preset with VU_MAX_SHMEM. Required when VU_PF_SHMEM is offered. */
	int (*get_shmem_config)(void *ctx, unsigned int *n, uint64_t *sizes, struct vp_err *e);

	/*
	 * Optional: what vu_backend_save() writes is about to change. With cfg.journal not for an IOTLB message that is
	 * done, a miss, and what comes back for it.
	 */
	void (*touch)(void *ctx);

	/* The fds or event masks to poll for changed (also called when a request channel appears or goes). */
	void (*events_changed)(void *ctx);
};

struct vu_backend_cfg {
	uint64_t features;          /* virtio features offered; VU_F_PROTOCOL_FEATURES is added when pf != 0 */
	uint64_t pf;                /* protocol features offered (bits of enum vu_protocol_feature) */
	unsigned int max_queues;    /* 1 .. VU_MAX_QUEUES; answer to GET_QUEUE_NUM and bound of ring indices */
	unsigned int queue_num;     /* answer to GET_QUEUE_NUM when it is not max_queues; 0 = it is */
	unsigned int max_ring_size; /* 0 = VU_MAX_RING_SIZE */
	unsigned int max_mem_slots; /* 1 .. VU_MAX_MEM_SLOTS, 0 = that */
	unsigned int msgs_per_sec;  /* beyond it (a second's worth may come at once) the session ends; 0 = no limit */
	const char  *name;          /* of the session, in the log; not copied; NULL = "vhost-user" */
	struct vu_journal *journal; /* not owned, all zeroes; NULL = nobody keeps it (vu_backend_recover()) */
};

/*
 * Take over fd (also on failure) and make a session on it; ctx is handed to the callbacks. NULL on
 * failure. -EINVAL: cfg asks for protocol features that are not implemented, or whose callback is
 * missing; this is a bug of the caller.
 */
struct vu_backend *vu_backend_new(int fd, const struct vu_backend_cfg *cfg, const struct vu_backend_ops *ops,
				  void *ctx, struct vp_err *e);

/*
 * The result of a request: 0, -EREMOTEIO (the front-end answered with an error), -ECANCELED (channel or
 * session closed). Without REPLY_ACK there are no answers: done gets 0 as soon as the message has been
 * sent, inside the call. done may make more requests; it never calls vu_backend_destroy.
 */
typedef void (*vu_req_done)(void *arg, int result);

/* Has the front-end said which features it takes? */
bool vu_backend_negotiated(const struct vu_backend *b);
/* The front-end negotiated and never sent any memory. */
bool vu_backend_no_memory(const struct vu_backend *b);
/*
 * The session for another process to go on with (docs/handover.md), and how that process makes it: in the place of
 * vu_backend_new(), without any callback. Where a started ring is, the owner knows: it says so first. A session with an
 * answer owed (VP_LATER) is not at rest and cannot be saved. Nobody hears of the answers to requests that were open,
 * unless the owner says so: vu_backend_pending(), the arg of the i-th of them, oldest first, says what it was to the
 * process that saves; vu_backend_await() says who hears of it in the other one. -ENOENT: they are fewer.
 */
bool vu_backend_at_rest(const struct vu_backend *b);
void vu_backend_note_base(struct vu_backend *b, unsigned int q, uint32_t base);
void *vu_backend_pending(const struct vu_backend *b, unsigned int i);
void vu_backend_save(const struct vu_backend *b, struct vp_rec *r);
struct vu_backend *vu_backend_restore(const struct vp_rec_in *in, const struct vu_backend_cfg *cfg,
				      const struct vu_backend_ops *ops, void *ctx, struct vp_err *e);

/*
 * Of a session that was restored, before anything else is done with it: its record is one of a process that ended
 * anywhere, and old is its journal. What had been read and not answered is answered. IOTLB messages that it had done
 * are not known here: the owner begins with an empty IOTLB. -EPROTO: the two do not go together.
 */
int vu_backend_recover(struct vu_backend *b, const struct vu_journal *old, struct vp_err *e);
/* Answers to misses of a process before this one are to come: whose they are, their order alone says. */
bool vu_backend_stale(const struct vu_backend *b);
bool vu_backend_journaled(const struct vu_backend *b);

int vu_backend_await(struct vu_backend *b, unsigned int i, vu_req_done done, void *arg);

/*
 * Close all fds that the session owns, and complete outstanding requests with -ECANCELED. There is no
 * other callback. Never call it from inside a callback. An answer that is still owed (VP_LATER) is
 * dropped: do not complete it later.
 */
void vu_backend_destroy(struct vu_backend *b);

/* --- main channel --- */

int vu_backend_fd(const struct vu_backend *b);
/* POLLIN (unless an answer is owed) and POLLOUT (only when something waits to be sent). */
short vu_backend_events(const struct vu_backend *b);

/*
 * Call when readable, and on POLLHUP or POLLERR even when POLLIN was not asked for. Handles a bounded
 * number of messages. 0, or -errno with *e set when the session is over: -ECONNRESET the front-end went
 * away, other values: it was cut off, and *e says why. Then destroy the session.
 */
int vu_backend_readable(struct vu_backend *b, struct vp_err *e);
int vu_backend_writable(struct vu_backend *b, struct vp_err *e);

/*
 * Finish what was answered with VP_LATER: result is 0 or -errno. -EINVAL when nothing (or something
 * else) is owed; otherwise as vu_backend_readable().
 */
int vu_backend_done(struct vu_backend *b, int result, struct vp_err *e);
int vu_backend_ring_stopped(struct vu_backend *b, unsigned int q, uint32_t base, struct vp_err *e);

/* --- state --- */

static inline bool vu_has(uint64_t mask, unsigned int bit)
{
	return mask >> bit & 1;
}

/* Acknowledged features without VU_F_PROTOCOL_FEATURES and VHOST_F_LOG_ALL; 0 before SET_FEATURES. */
uint64_t vu_backend_features(const struct vu_backend *b);
/* VHOST_F_LOG_ALL acknowledged: writes to buffers are to be logged. */
bool vu_backend_log_all(const struct vu_backend *b);
uint64_t vu_backend_pf(const struct vu_backend *b);
/* NULL when q is out of range. Valid until destroyed; contents change by messages. */
const struct vu_ring *vu_backend_ring(const struct vu_backend *b, unsigned int q);
/* Take over a ring's VU_RING_KICK, _CALL or _ERR fd; -1 when there is none. */
int vu_backend_take_fd(struct vu_backend *b, unsigned int q, enum vu_ring_change which);
/* Replace what GET_FEATURES answers from now on. Only before SET_FEATURES, else -EBUSY. */
int vu_backend_offer(struct vu_backend *b, uint64_t features);

struct vu_backend_info {
	unsigned int state;              /* enum vu_state */
	uint64_t offered, acked;         /* raw, with bits 26 and 30 */
	uint64_t pf_offered, pf;
	unsigned int max_queues, nrings_started;
	unsigned int nregions;
	uint8_t status;                  /* as last sent with SET_STATUS */
	uint64_t msgs, replies, refused; /* messages read, answers sent, messages refused */
	uint64_t reqs, reqs_failed;      /* back-end requests sent, refused by the front-end */
	unsigned int reqs_pending;
	unsigned int out_waiting;        /* messages the front-end has not read */
	bool req_channel;
	uint32_t owed;                   /* message whose answer is deferred, 0 = none */
	char refusal[256];               /* why the last refused message was refused, "" = never */
	char req_error[256];             /* why the request channel was closed, "" = it was not */
	uint32_t count[VU_FE_MSG_END];   /* by message id */
};
void vu_backend_get_info(const struct vu_backend *b, struct vu_backend_info *info);

/* --- requests to the front-end, on the channel of SET_BACKEND_REQ_FD --- */

#define VU_MAX_REQS 256     /* unanswered requests of one session */

bool vu_backend_has_req(const struct vu_backend *b);
int vu_backend_req_fd(const struct vu_backend *b);       /* -1 = none */
/* Changes with each channel that comes or goes, unlike the number of its fd. 0 = there never was one. */
unsigned int vu_backend_req_serial(const struct vu_backend *b);
short vu_backend_req_events(const struct vu_backend *b);
/*
 * Any event on the channel. Its loss is not an error of the session: it fails the requests and calls
 * events_changed.
 */
void vu_backend_req_ready(struct vu_backend *b);

/*
 * 0 = accepted: done (may be NULL) is called exactly once. Otherwise done is not called: -ENOTCONN (no
 * channel), -EOPNOTSUPP (feature not negotiated), -EBUSY (VU_MAX_REQS unanswered), -ENOBUFS.
 *
 * SHMEM_MAP and UNMAP need VU_PF_SHMEM and REPLY_ACK, MAP also BACKEND_SEND_FD. The fd stays the
 * caller's. QEMU crashes on these requests while the device is not started, so the owner must not make
 * them then.
 */
int vu_backend_shmem_map(struct vu_backend *b, uint8_t shmid, int fd, uint64_t fd_offset, uint64_t shm_offset,
			 uint64_t len, uint64_t flags, vu_req_done done, void *arg);
int vu_backend_shmem_unmap(struct vu_backend *b, uint8_t shmid, uint64_t shm_offset, uint64_t len,
			   vu_req_done done, void *arg);
/* perm is VHOST_ACCESS_*; only with ACCESS_PLATFORM. The update itself arrives on the main channel. */
int vu_backend_iotlb_miss(struct vu_backend *b, uint64_t iova, uint8_t perm, vu_req_done done, void *arg);
int vu_backend_iotlb_access_fail(struct vu_backend *b, uint64_t iova, uint8_t perm, vu_req_done done, void *arg);
int vu_backend_config_change(struct vu_backend *b, vu_req_done done, void *arg);

#endif
