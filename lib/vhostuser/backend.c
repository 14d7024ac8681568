/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The session itself: reading, dispatching, answering, deferring. Threat model:
 * see backend.h. What one message means is in backend_msg.c and backend_ring.c.
 */
#include "vhostuser/backend_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"

/* Messages handled in one go, so that one front-end cannot keep the event loop for itself. */
#define BUDGET 32

/* Protocol features that this file can speak, and the callback each needs. */
static int check_cfg(const struct vu_backend_cfg *cfg, const struct vu_backend_ops *ops, struct vp_err *e)
{
	const struct {
		unsigned int pf;
		bool ok;
	} can[] = {
		{ VU_PF_MQ, true }, { VU_PF_REPLY_ACK, true }, { VU_PF_BACKEND_REQ, true },
		{ VU_PF_BACKEND_SEND_FD, true }, { VU_PF_STATUS, true },
		{ VU_PF_LOG_SHMFD, ops->set_log != NULL },
		{ VU_PF_RARP, ops->send_rarp != NULL },
		{ VU_PF_MTU, ops->set_mtu != NULL },
		{ VU_PF_CONFIG, ops->get_config != NULL },
		{ VU_PF_INFLIGHT_SHMFD, ops->get_inflight && ops->set_inflight },
		{ VU_PF_RESET_DEVICE, ops->reset != NULL },
		{ VU_PF_CONFIGURE_MEM_SLOTS, ops->mem_add && ops->mem_remove },
		{ VU_PF_SHMEM, ops->get_shmem_config != NULL },
	};
	uint64_t left = cfg->pf;
	char names[128];
	unsigned int i;

	for (i = 0; i < VP_ARRAY_SIZE(can); i++)
		if (can[i].ok)
			left &= ~VP_BIT(can[i].pf);
	if (left)
		return vp_err_set(e, -EINVAL, "protocol features %s cannot be offered: not implemented or no callback",
				  vu_pf_str(left, names, sizeof(names)));
	if (!ops->mem_table || !ops->ring_changed || !ops->ring_stop)
		return vp_err_set(e, -EINVAL, "a vhost-user session needs mem_table, ring_changed and ring_stop");
	if (!cfg->max_queues || cfg->max_queues > VU_MAX_QUEUES)
		return vp_err_set(e, -EINVAL, "a vhost-user session can have 1 to %u queues, not %u",
				  VU_MAX_QUEUES, cfg->max_queues);
	if (cfg->max_mem_slots > VU_MAX_MEM_SLOTS || cfg->max_ring_size > VU_MAX_RING_SIZE)
		return vp_err_set(e, -EINVAL, "at most %u memory slots and %u ring entries are possible",
				  VU_MAX_MEM_SLOTS, VU_MAX_RING_SIZE);
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * UINT64_C(1000000000) + ts.tv_nsec;
}

struct vu_backend *vu_backend_new(int fd, const struct vu_backend_cfg *cfg, const struct vu_backend_ops *ops,
				  void *ctx, struct vp_err *e)
{
	struct vu_backend *b = NULL;
	unsigned int i;

	if (check_cfg(cfg, ops, e))
		goto fail;
	b = calloc(1, sizeof(*b));
	if (!b)
		goto nomem;
	b->rings = calloc(cfg->max_queues, sizeof(*b->rings));
	if (!b->rings)
		goto nomem;
	for (i = 0; i < cfg->max_queues; i++)
		b->rings[i].kick_fd = b->rings[i].call_fd = b->rings[i].err_fd = -1;
	b->cfg = *cfg;
	if (!b->cfg.queue_num)
		b->cfg.queue_num = cfg->max_queues;
	if (!b->cfg.name)
		b->cfg.name = "vhost-user";
	if (!b->cfg.max_ring_size)
		b->cfg.max_ring_size = VU_MAX_RING_SIZE;
	if (!b->cfg.max_mem_slots)
		b->cfg.max_mem_slots = VU_MAX_MEM_SLOTS;
	b->ops = ops;
	b->ctx = ctx;
	b->state = VU_ST_NEW;
	b->offered = cfg->features | (cfg->pf ? VP_BIT(VU_F_PROTOCOL_FEATURES) : 0);
	b->tokens = cfg->msgs_per_sec;
	b->tokens_ns = now_ns();
	vu_conn_init(&b->main, fd, VU_FROM_FRONTEND, false);
	vu_conn_init(&b->req, -1, VU_FROM_BACKEND, true);
	b->seen_events = POLLIN;
	return b;

nomem:
	vp_err_set(e, -ENOMEM, "out of memory for a vhost-user session");
	free(b);
fail:
	vp_close(&fd);
	return NULL;
}

void vu_backend_destroy(struct vu_backend *b)
{
	if (!b)
		return;
	b->dead = true;
	b->cfg.journal = NULL; /* another process may go on with it */
	vu_req_channel_close(b, "the session ended");
	vu_conn_close(&b->main);
	vu_rings_close(b);
	free(b->rings);
	free(b);
}

int vu_backend_fd(const struct vu_backend *b)
{
	return b->main.fd;
}

short vu_backend_events(const struct vu_backend *b)
{
	return (b->owed ? 0 : POLLIN) | (vu_conn_want_write(&b->main) ? POLLOUT : 0);
}

void vu_events_update(struct vu_backend *b)
{
	short ev = vu_backend_events(b), rev = vu_backend_req_events(b);

	if (b->dead || (ev == b->seen_events && rev == b->seen_req_events && b->req_serial == b->seen_req))
		return;
	b->seen_events = ev;
	b->seen_req_events = rev;
	b->seen_req = b->req_serial;
	if (b->ops->events_changed)
		b->ops->events_changed(b->ctx);
}

int vu_violation(struct vu_backend *b, struct vp_err *e, int code, const char *fmt, ...)
{
	char msg[sizeof(e->msg)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	b->fatal = true;
	return vp_err_set(e, code, "%s", msg);
}

static int die(struct vu_backend *b, int code, struct vp_err *user, const struct vp_err *e)
{
	b->dead = true;
	return vp_err_set(user, code, "%s", e->msg);
}

/* Send main.rx as the answer to itself. */
static int answer(struct vu_backend *b, int rfd, struct vp_err *e)
{
	struct vu_msg *m = &b->main.rx;

	m->hdr.flags = VU_FLAG_VERSION | VU_FLAG_REPLY;
	b->stat.replies++;
	return vu_conn_send(&b->main, m, &rfd, rfd >= 0, e);
}

static int answer_u64(struct vu_backend *b, uint64_t v, struct vp_err *e)
{
	b->main.rx.hdr.size = sizeof(v);
	b->main.rx.p.u64 = v;
	return answer(b, -1, e);
}

/*
 * A message was refused, e says why. Answer it so that the front-end can go on
 * where the protocol has a way to say no; 0 then, else the session is over.
 */
static int refuse(struct vu_backend *b, int code, struct vp_err *e)
{
	struct vu_msg *m = &b->main.rx;
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_FRONTEND, m->hdr.request);

	b->stat.refused++;
	snprintf(b->stat.refusal, sizeof(b->stat.refusal), "%s", e->msg);
	vp_log(VP_LOG_DEBUG, "%s: refused: %s", b->cfg.name, e->msg);
	if (b->fatal)
		return code;
	switch (m->hdr.request) {
	case VU_GET_CONFIG:             /* "zero length of payload to indicate an error" */
	case VU_POSTCOPY_ADVISE:        /* no userfaultfd attached: the front-end gives up postcopy */
		m->hdr.size = 0;
		return answer(b, -1, e);
	case VU_GET_INFLIGHT_FD:        /* an area of size 0: front-ends take that for "none" */
		m->p.inflight.mmap_size = 0;
		m->p.inflight.mmap_offset = 0;
		return answer(b, -1, e);
	case VU_IOTLB_MSG:
	case VU_POSTCOPY_END:
	case VU_CHECK_DEVICE_STATE:
		return answer_u64(b, 1, e);
	case VU_SET_DEVICE_STATE_FD:    /* error in the low byte, bit 8: no fd */
		return answer_u64(b, 1 | VU_VRING_NOFD, e);
	}
	if (info && info->reply == VU_REPLY_ALWAYS)
		return code;            /* no way to say no */
	if (b->answer)
		return answer_u64(b, 1, e);
	if (b->soft || (info && info->flags & VU_MI_SOFT))
		return 0;
	return code;
}

/* The handler, or the owner later, is through with main.rx: rc says how. 0, or -errno: the session is over. */
static int finish(struct vu_backend *b, int rc, int rfd, struct vp_err *e)
{
	struct vu_msg *m = &b->main.rx;
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_FRONTEND, m->hdr.request);

	if (rc < 0) {
		char nb[24];

		if (!e->msg[0])
			vp_err_set(e, rc, "%s failed: %s",
				   vu_msg_name(VU_FROM_FRONTEND, m->hdr.request, nb, sizeof(nb)), strerror(-rc));
		rc = refuse(b, rc, e);
	} else if (rc == VU_ANSWER) {
		rc = answer(b, rfd, e);
	} else {
		vu_commit(b, m);
		if (info && info->reply == VU_REPLY_ALWAYS)
			rc = answer_u64(b, 0, e);
		else if (b->answer)
			rc = answer_u64(b, 0, e);
	}
	b->owed = 0;
	vu_conn_next(&b->main);
	return rc;
}

static bool rate_exceeded(struct vu_backend *b)
{
	uint64_t t;

	if (!b->cfg.msgs_per_sec)
		return false;
	t = now_ns();
	b->tokens += (double)(t - b->tokens_ns) * b->cfg.msgs_per_sec / 1e9;
	b->tokens = VP_MIN(b->tokens, (double)b->cfg.msgs_per_sec);
	b->tokens_ns = t;
	b->tokens -= 1;
	return b->tokens < 0;
}

/* One whole message is in main.rx. */
static int handle(struct vu_backend *b, struct vp_err *e)
{
	struct vu_msg *m = &b->main.rx;
	int rc, rfd = -1;
	unsigned int i;

	b->stat.msgs++;
	if (m->hdr.request < VU_FE_MSG_END)
		b->stat.count[m->hdr.request]++;
	b->fatal = b->soft = false;
	/* The rule of REPLY_ACK: negotiated before this message, and asked for by it. */
	b->answer = vu_has(b->pf, VU_PF_REPLY_ACK) && (m->hdr.flags & VU_FLAG_NEED_REPLY);
	if (rate_exceeded(b)) {
		b->fatal = true;
		rc = vp_err_set(e, -EDQUOT, "the front-end sends more than %u messages a second", b->cfg.msgs_per_sec);
		goto out;
	}
	rc = vu_msg_check(VU_FROM_FRONTEND, m, b->main.rx_nfds, b->pf, b->state, e);
	if (rc) {
		b->fatal = rc == -EBADMSG || rc == -EBADF;
		goto out;
	}
	switch (m->hdr.request) {
	case VU_SET_VRING_NUM:
	case VU_SET_VRING_ADDR:
	case VU_SET_VRING_BASE:
	case VU_GET_VRING_BASE:
	case VU_SET_VRING_KICK:
	case VU_SET_VRING_CALL:
	case VU_SET_VRING_ERR:
	case VU_SET_VRING_ENABLE:
		rc = vu_handle_ring(b, m, e);
		break;
	default:
		rc = vu_handle_plain(b, m, &rfd, e);
	}
	if (rc == VP_LATER) {
		b->owed = m->hdr.request;
		for (i = 0; i < b->main.rx_nfds; i++)
			vp_close_foreign(&b->main.rx_fds[i]);
		b->main.rx_nfds = 0;
		return 0;
	}
out:
	return finish(b, rc, rfd, e);
}

void vu_touch(struct vu_backend *b)
{
	if (b->ops->touch)
		b->ops->touch(b->ctx);
}

bool vu_backend_journaled(const struct vu_backend *b)
{
	return b->cfg.journal != NULL;
}

/*
 * Read and answer IOTLB message m, which comes next and is done. Who is killed in here is followed by one who knows
 * whether it was read, and whether it was answered.
 */
static int take(struct vu_backend *b, const struct vu_msg *m, struct vp_err *e)
{
	uint8_t raw[VU_HDR_SIZE + sizeof(m->p.iotlb)];
	const struct vu_hdr h = { m->hdr.request, VU_FLAG_VERSION | VU_FLAG_REPLY, sizeof(uint64_t) };
	struct vu_msg late = { .hdr = h };
	struct vu_journal *j = b->cfg.journal;
	struct vu_journal_state s;
	ssize_t n;

	vu_at(VU_AT_DONE);
	vu_journal_begin(j, VU_DOING_TAKE);
	n = vu_journal_recv(j, b->main.fd, raw, sizeof(raw));
	if (n != (ssize_t)sizeof(raw))
		return vp_err_set(e, -EIO, "cannot read from the vhost-user socket what was there: %s",
				  n < 0 ? strerror((int)-n) : "somebody else reads it, too");
	vu_at(VU_AT_READ);
	memset(raw, 0, VU_HDR_SIZE + sizeof(uint64_t));
	memcpy(raw, &h, sizeof(h));
	n = vu_journal_send(j, b->main.fd, raw, VU_HDR_SIZE + sizeof(uint64_t));
	vu_at(VU_AT_ANSWERED);
	b->stat.replies++;
	if (n == -EAGAIN || n == -ENOBUFS) {
		vu_touch(b);
		n = vu_conn_send(&b->main, &late, NULL, 0, e);
	} else if (n != VU_HDR_SIZE + (ssize_t)sizeof(uint64_t)) {
		n = vp_err_set(e, n == -EPIPE ? -ECONNRESET : n < 0 ? (int)n : -EIO, "cannot answer IOTLB_MSG: %s",
			       n < 0 ? strerror((int)-n) : "the socket took half of it");
	} else {
		n = 0;
	}
	s = vu_journal_get(j);
	s.doing = VU_DOING_NOTHING;
	vu_journal_set(j, s);
	return (int)n;
}

/*
 * With a vIOMMU that is strict these come with each packet. One that is done changes nothing of the session's record,
 * as its owner begins with an empty IOTLB there. It is done before it is read, so who is killed at it leaves it to the
 * next one. 1: one is through; 0: nothing is there; -EAGAIN: something else comes next.
 */
static int next_iotlb(struct vu_backend *b, struct vp_err *e)
{
	struct vp_err why = { 0 };
	struct vu_msg m;
	int rc = vu_conn_peek(&b->main, sizeof(m.p.iotlb), &m), rfd = -1;

	if (rc != 1)
		return rc ? -EAGAIN : 0;
	if (m.hdr.request != VU_IOTLB_MSG || vu_msg_check(VU_FROM_FRONTEND, &m, 0, b->pf, b->state, &why) ||
	    (b->cfg.msgs_per_sec && b->tokens < 2))
		return -EAGAIN;
	rate_exceeded(b);
	b->fatal = b->soft = false;
	b->answer = true;
	e->msg[0] = '\0';
	rc = vu_handle_plain(b, &m, &rfd, e);
	b->stat.msgs++;
	b->stat.count[VU_IOTLB_MSG]++;
	if (!rc) {
		rc = take(b, &m, e);
		return rc < 0 ? rc : 1;
	}
	vu_touch(b);
	/* All of it is there. */
	if (vu_conn_recv(&b->main, &why) != 1)
		return vp_err_set(e, -EIO, "cannot read from the vhost-user socket what was there");
	if (rc == VP_LATER) {
		b->owed = VU_IOTLB_MSG;
		return 1;
	}
	rc = finish(b, rc, -1, e);
	return rc < 0 ? rc : 1;
}

int vu_backend_readable(struct vu_backend *b, struct vp_err *user)
{
	struct vp_err e = { 0 };
	int i, rc;

	if (b->dead)
		return vp_err_set(user, -ENOTCONN, "the vhost-user session is over");
	if (b->owed) {
		struct pollfd p = { .fd = b->main.fd };

		/* Nothing is read now, but a front-end that has gone must be noticed. */
		if (poll(&p, 1, 0) == 1 && p.revents & (POLLHUP | POLLERR | POLLNVAL)) {
			char nb[24];

			vp_err_set(&e, -ECONNRESET, "the front-end closed the connection before %s was answered",
				   vu_msg_name(VU_FROM_FRONTEND, b->owed, nb, sizeof(nb)));
			return die(b, -ECONNRESET, user, &e);
		}
		return 0;
	}
	for (i = 0; i < BUDGET && !b->owed; i++) {
		rc = b->cfg.journal ? next_iotlb(b, &e) : -EAGAIN;
		if (rc == 1)
			continue;
		if (rc == -EAGAIN) {
			vu_touch(b);
			rc = vu_conn_recv(&b->main, &e);
		}
		if (!rc)
			break;
		if (rc > 0) {
			e.msg[0] = '\0';
			rc = handle(b, &e);
		}
		if (rc < 0)
			return die(b, rc, user, &e);
	}
	vu_events_update(b);
	return 0;
}

int vu_backend_writable(struct vu_backend *b, struct vp_err *user)
{
	struct vp_err e = { 0 };
	int rc;

	if (b->dead)
		return vp_err_set(user, -ENOTCONN, "the vhost-user session is over");
	vu_touch(b);
	rc = vu_conn_flush(&b->main, &e);
	if (rc)
		return die(b, rc, user, &e);
	vu_events_update(b);
	return 0;
}

static int finish_later(struct vu_backend *b, int rc, struct vp_err *user)
{
	struct vp_err e = { 0 };

	b->fatal = b->soft = false;
	vu_touch(b);
	rc = finish(b, rc, -1, &e);
	if (rc < 0)
		return die(b, rc, user, &e);
	vu_events_update(b);
	return 0;
}

int vu_backend_done(struct vu_backend *b, int result, struct vp_err *e)
{
	if (b->dead || !b->owed || b->owed == VU_GET_VRING_BASE)
		return vp_err_set(e, -EINVAL, "no vhost-user message waits for its result");
	return finish_later(b, VP_MIN(result, 0), e);
}

int vu_backend_ring_stopped(struct vu_backend *b, unsigned int q, uint32_t base, struct vp_err *e)
{
	struct vu_msg *m = &b->main.rx;

	if (b->dead || b->owed != VU_GET_VRING_BASE || m->p.state.index != q)
		return vp_err_set(e, -EINVAL, "no GET_VRING_BASE waits for ring %u", q);
	vu_ring_commit_stop(b, q, base);
	m->p.state.num = b->rings[q].base;
	return finish_later(b, VU_ANSWER, e);
}

uint64_t vu_backend_features(const struct vu_backend *b)
{
	return b->acked & ~(VP_BIT(VU_F_PROTOCOL_FEATURES) | VP_BIT(VHOST_F_LOG_ALL));
}

bool vu_backend_log_all(const struct vu_backend *b)
{
	return vu_has(b->acked, VHOST_F_LOG_ALL);
}

uint64_t vu_backend_pf(const struct vu_backend *b)
{
	return b->pf;
}

int vu_backend_offer(struct vu_backend *b, uint64_t features)
{
	if (b->features_set)
		return -EBUSY;
	b->offered = features | (b->cfg.pf ? VP_BIT(VU_F_PROTOCOL_FEATURES) : 0);
	return 0;
}

void vu_backend_get_info(const struct vu_backend *b, struct vu_backend_info *info)
{
	unsigned int i;

	*info = b->stat;
	info->state = b->state;
	info->offered = b->offered;
	info->acked = b->acked;
	info->pf_offered = b->cfg.pf;
	info->pf = b->pf;
	info->max_queues = b->cfg.max_queues;
	info->nrings_started = 0;
	for (i = 0; i < b->cfg.max_queues; i++)
		info->nrings_started += b->rings[i].started;
	info->nregions = b->nregions;
	info->status = b->status;
	info->reqs_pending = b->req_len;
	info->out_waiting = b->main.out_len;
	info->req_channel = b->req.fd >= 0;
	info->owed = b->owed;
}

bool vu_backend_negotiated(const struct vu_backend *b)
{
	return b->features_set;
}

bool vu_backend_no_memory(const struct vu_backend *b)
{
	return b->features_set && !b->nregions;
}
