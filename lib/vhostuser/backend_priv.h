/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside of a back-end session, shared by backend*.c only. */
#ifndef VP_VHOSTUSER_BACKEND_PRIV_H
#define VP_VHOSTUSER_BACKEND_PRIV_H

#include "vhostuser/backend.h"
#include "vhostuser/journal.h"

struct vu_req {
	uint32_t request;
	bool heir;                  /* made by another process */
	vu_req_done done;
	void *arg;
};

struct vu_backend {
	struct vu_conn main;
	struct vu_conn req;         /* fd -1: no request channel */
	struct vu_backend_cfg cfg;
	const struct vu_backend_ops *ops;
	void *ctx;

	unsigned int state;         /* enum vu_state */
	uint64_t offered, acked;    /* with VU_F_PROTOCOL_FEATURES */
	uint64_t pf;
	bool features_set, pf_set;
	uint8_t status;

	/*
	 * A message that is answered later stays in main.rx until it is. owed is its id, or 0.
	 * answer: whether an answer was asked for (or is always due).
	 */
	uint32_t owed;
	bool answer;

	bool fatal;                 /* the error being returned ends the session, asked for or not */
	bool soft;                  /* ... never ends it */
	bool dead;
	short seen_events, seen_req_events;
	unsigned int req_serial, seen_req;   /* of channels; as it was when the owner was told last */

	struct vu_mem_region regions[VU_MAX_MEM_SLOTS];
	unsigned int nregions;
	struct vu_mem_region gone[16];  /* removed last, see add_region() */
	unsigned int next_gone;

	double tokens;              /* messages that may still come at once */
	uint64_t tokens_ns;         /* CLOCK_MONOTONIC of the last refill */

	uint32_t was_asked, was_heard; /* of the record that it was restored from: as its journal had it */
	struct vu_req reqs[VU_MAX_REQS];
	unsigned int req_head, req_len;

	struct vu_backend_info stat; /* only its counters and sentences */
	struct vu_ring *rings;      /* cfg.max_queues of them */
};

/* What a handler returns besides 0 (done, acknowledge if asked), VP_LATER and -errno. */
#define VU_ANSWER 2             /* send what is in main.rx (and *rfd) as the answer */

/* A message that no honest front-end sends: ends the session. */
int vu_violation(struct vu_backend *b, struct vp_err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* backend_msg.c, backend_ring.c: *rfd is preset with -1 and is not closed by the caller. */
int vu_handle_plain(struct vu_backend *b, struct vu_msg *m, int *rfd, struct vp_err *e);
int vu_handle_ring(struct vu_backend *b, struct vu_msg *m, struct vp_err *e);
int vu_set_features(struct vu_backend *b, uint64_t v, struct vp_err *e);

/* The owner has done what m asked for: make it so in the session. Only for messages whose callback may say VP_LATER. */
void vu_commit(struct vu_backend *b, const struct vu_msg *m);

int vu_ring_try_start(struct vu_backend *b, unsigned int q, struct vp_err *e);
void vu_ring_commit_stop(struct vu_backend *b, unsigned int q, uint32_t base);
void vu_rings_reset(struct vu_backend *b);
void vu_rings_close(struct vu_backend *b);

int vu_req_channel_set(struct vu_backend *b, int *fd, struct vp_err *e);
void vu_req_channel_close(struct vu_backend *b, const char *why);

static inline void vu_at(enum vu_journal_point p)
{
	if (__builtin_expect(vu_journal_at != NULL, 0))
		vu_journal_at(p);
}

/* The record changes by more than the journal says. */
void vu_touch(struct vu_backend *b);

/* Tell the owner if what is to be polled has changed. */
void vu_events_update(struct vu_backend *b);

#endif
