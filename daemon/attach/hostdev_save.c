/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Endpoint=vhost-user as a record, for the daemon that goes on with it (docs/handover.md): the connection, what was
 * said on it, the driver VM's eventfds that it was given, and what its back-end knew that is kept for the next one. The
 * back-end is asked for nothing. Threat model: base/record.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attach/hostdev_priv.h"

#define STATE_MAX (16u << 20)

enum tag {
	TAG_HOSTDEV = 1, TAG_LISTENS, TAG_MAIN, TAG_REQUESTS, TAG_LAST, TAG_WINDOW, TAG_STATE, TAG_SESSION, TAG_CONFIG,
	TAG_QUEUE, TAG_SIGNAL, TAG_BELL, TAG_POKE,
	/* of queue q: TAG_DRIVER + 2 * q its kick, + 1 its call */
	TAG_DRIVER = 64,
};

enum { F_HERE = 1, F_RETRY_LOGGED = 2, F_KEPT = 4 };

struct hostdev_rec {
	uint64_t next_uva, retry_us, again_us, state_epoch, n_conns, n_refused, n_cuts;
	uint32_t flags, n, seq, pid, uid, gid;
};

struct window_rec {
	uint32_t slot, pad;
	uint64_t offset, uva;
};

enum {
	S_ONLINE = 1, S_DESCRIBED = 2, S_ATTACHED = 4, S_CHANGED = 8, S_SET_UP = 16, S_RAN = 32,
};

struct session_rec {
	uint64_t offered, its_pf, pf, features, epoch, config_us, attach_us;
	uint32_t flags, hello, queues, setup, config_wanted, set_seen, synced, mem_seen;
};

enum { Q_RUNNING = 1, Q_ENABLED = 2, Q_KICK_MOVED = 4, Q_CALL_MOVED = 8 };

struct queue_rec {
	uint32_t flags, step, run, given_up;
};

/* ---- writing ------------------------------------------------------------------------------- */

bool hostdev_at_rest(struct vp_attach *a)
{
	const struct hostdev *h = (struct hostdev *)a;

	return !h->here || !(h->s.waits || h->s.moving || h->s.saved || h->unclean);
}

static void save_session(const struct hostdev *h, struct vp_rec *r)
{
	const struct hostdev_session *s = &h->s;
	const struct session_rec sr = {
		.offered = s->offered, .its_pf = s->its_pf, .pf = s->pf, .features = s->features, .epoch = s->epoch,
		.config_us = s->config_us, .attach_us = s->attach_us, .hello = s->hello, .queues = s->queues,
		.setup = s->setup, .config_wanted = s->config_wanted, .set_seen = s->set_seen, .synced = s->synced,
		.mem_seen = s->mem_seen,
		.flags = (s->online ? S_ONLINE : 0) | (s->described ? S_DESCRIBED : 0) |
			 (s->attached ? S_ATTACHED : 0) | (s->changed ? S_CHANGED : 0) | (s->set_up ? S_SET_UP : 0) |
			 (s->ran ? S_RAN : 0),
	};

	vp_rec_put(r, TAG_SESSION, &sr, sizeof(sr));
	vp_rec_put(r, TAG_CONFIG, s->config, s->config_size);
	for (unsigned q = 0; q < h->n; q++) {
		const struct hostdev_queue *hq = &s->q[q];
		const struct queue_rec qr = {
			.flags = (hq->running ? Q_RUNNING : 0) | (hq->enabled ? Q_ENABLED : 0) |
				 (hq->kick_moved ? Q_KICK_MOVED : 0) | (hq->call_moved ? Q_CALL_MOVED : 0),
			.step = hq->step, .run = hq->run, .given_up = hq->given_up,
		};

		vp_rec_put(r, TAG_QUEUE, &qr, sizeof(qr));
	}
	vu_conn_save(&h->main, TAG_MAIN, r);
	vu_conn_save(&h->req, TAG_REQUESTS, r);
	for (unsigned q = 0; q < h->n; q++) {
		vp_rec_fd(r, TAG_SIGNAL, VP_REC_FD_EVENTFD, h->sig[q]);
		vp_rec_fd(r, TAG_BELL, VP_REC_FD_EVENTFD, h->bell[q]);
		vp_rec_fd(r, TAG_POKE, VP_REC_FD_EVENTFD, h->poke_fd[q]);
		vp_rec_fd(r, TAG_DRIVER + 2 * q, VP_REC_FD_EVENTFD, h->drv_kick[q]);
		vp_rec_fd(r, TAG_DRIVER + 2 * q + 1, VP_REC_FD_EVENTFD, h->drv_call[q]);
	}
}

void hostdev_save_hot(struct vp_attach *a, struct vp_rec *r)
{
	struct hostdev *h = (struct hostdev *)a;
	struct hostdev_rec s = {
		.next_uva = h->next_uva, .retry_us = h->retry_us, .state_epoch = h->state.epoch, .n_conns = h->n_conns,
		.n_refused = h->n_refused, .n_cuts = h->n_cuts, .n = h->n, .seq = h->seq, .pid = (uint32_t)h->cred.pid,
		.uid = h->cred.uid, .gid = h->cred.gid,
		.flags = (h->here ? F_HERE : 0) | (h->retry_logged ? F_RETRY_LOGGED : 0) |
			 (h->state.kept ? F_KEPT : 0),
	};

	if (h->again)
		sd_event_source_get_time(h->again, &s.again_us);
	vp_rec_put(r, TAG_HOSTDEV, &s, sizeof(s));
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, h->lfd);
	vp_rec_str(r, TAG_LAST, h->last);
	if (h->state.kept)
		vp_rec_put(r, TAG_STATE, h->state.data, h->state.size);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		const struct window_rec w = { .slot = i, .offset = h->win[i].offset, .uva = h->win[i].uva };

		if (h->win[i].fd >= 0)
			vp_rec_put(r, TAG_WINDOW, &w, sizeof(w));
	}
	if (h->here)
		save_session(h, r);
}

/* ---- reading ------------------------------------------------------------------------------- */

static bool load_window(struct hostdev *h, const struct vp_rec_in *body)
{
	struct window_rec s;
	int fd;

	if (vp_rec_get_this(body, &s, sizeof(s)) || s.slot >= VHP_MAX_WINDOWS)
		return false;
	fd = vp_port_window_fd(h->port, s.slot);
	h->win[s.slot] = (struct hostdev_window){ .fd = fd, .offset = s.offset, .uva = s.uva };
	return fd >= 0;
}

static bool load_queue(struct hostdev *h, unsigned q, const struct vp_rec_in *body)
{
	struct queue_rec s;

	if (q >= h->n || vp_rec_get_this(body, &s, sizeof(s)) || s.step > HOSTDEV_START_DONE)
		return false;
	h->s.q[q] = (struct hostdev_queue){
		.running = s.flags & Q_RUNNING, .enabled = s.flags & Q_ENABLED, .step = s.step, .run = s.run,
		.given_up = s.given_up, .kick_moved = s.flags & Q_KICK_MOVED, .call_moved = s.flags & Q_CALL_MOVED,
	};
	return true;
}

static bool load_session(struct hostdev *h, const struct vp_rec_in *in)
{
	struct hostdev_session *s = &h->s;
	struct vp_rec_in config;
	struct session_rec r;

	if (vp_rec_get(in, TAG_SESSION, &r, sizeof(r)) || !vp_rec_find(in, TAG_CONFIG, &config) ||
	    config.n > sizeof(s->config) || r.queues > VU_MAX_QUEUES)
		return false;
	s->offered = r.offered;
	s->its_pf = r.its_pf;
	s->pf = r.pf;
	s->features = r.features;
	s->epoch = r.epoch;
	s->config_us = r.config_us;
	s->attach_us = r.attach_us;
	s->hello = r.hello;
	s->queues = r.queues;
	s->setup = r.setup;
	s->config_wanted = r.config_wanted;
	s->set_seen = r.set_seen;
	s->synced = r.synced;
	s->mem_seen = r.mem_seen;
	s->online = r.flags & S_ONLINE;
	s->described = r.flags & S_DESCRIBED;
	s->attached = r.flags & S_ATTACHED;
	s->changed = r.flags & S_CHANGED;
	s->set_up = r.flags & S_SET_UP;
	s->ran = r.flags & S_RAN;
	s->config_size = (uint32_t)config.n;
	if (config.n)
		memcpy(s->config, config.p, config.n);
	return true;
}

static bool load_state(struct hostdev *h, const struct vp_rec_in *in)
{
	struct vp_rec_in body;

	if (!vp_rec_find(in, TAG_STATE, &body) || body.n > STATE_MAX)
		return false;
	h->state.data = malloc(body.n + 1);
	if (!h->state.data)
		return false;
	if (body.n)
		memcpy(h->state.data, body.p, body.n);
	h->state.size = h->state.room = body.n;
	h->state.kept = true;
	return true;
}

/* A back-end is there: its connection and eventfds. */
static int load_backend(struct hostdev *h, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag, q = 0;
	int r;

	while (vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_QUEUE && !load_queue(h, q++, &body))
			return vp_err_set(e, -EPROTO, "the record of its back-end's queues is malformed");
	if (q != h->n || !load_session(h, in) || !vp_rec_find(in, TAG_MAIN, &body))
		return vp_err_set(e, -EPROTO, "the record of its back-end is malformed");
	r = vu_conn_restore(&h->main, &body, e);
	if (!r && vp_rec_find(in, TAG_REQUESTS, &body))
		r = vu_conn_restore(&h->req, &body, e);
	if (!r)
		r = vp_rec_take_all(in, TAG_SIGNAL, VP_REC_FD_EVENTFD, h->sig, h->n, e);
	if (!r)
		r = vp_rec_take_all(in, TAG_BELL, VP_REC_FD_EVENTFD, h->bell, h->n, e);
	if (!r)
		r = vp_rec_take_all(in, TAG_POKE, VP_REC_FD_EVENTFD, h->poke_fd, h->n, e);
	for (q = 0; !r && q < h->n; q++) {
		r = vp_rec_take(in, TAG_DRIVER + 2 * q, VP_REC_FD_EVENTFD, &h->drv_kick[q], e);
		if (!r)
			r = vp_rec_take(in, TAG_DRIVER + 2 * q + 1, VP_REC_FD_EVENTFD, &h->drv_call[q], e);
	}
	if (!r)
		r = hostdev_watch(h, e);
	h->here = !r;
	return r;
}

int hostdev_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct hostdev *h = (struct hostdev *)a;
	struct vp_rec_in rest = *in, body;
	struct hostdev_rec s;
	unsigned tag;
	int r;

	if (vp_rec_get(in, TAG_HOSTDEV, &s, sizeof(s)) || s.n != h->n ||
	    vp_rec_text(in, TAG_LAST, h->last, sizeof(h->last)))
		return vp_err_set(e, -EPROTO, "the record of its attachment is malformed");
	h->next_uva = s.next_uva;
	h->retry_us = s.retry_us;
	h->again_us = s.again_us;
	h->retry_logged = s.flags & F_RETRY_LOGGED;
	h->n_conns = s.n_conns;
	h->n_refused = s.n_refused;
	h->n_cuts = s.n_cuts;
	h->seq = s.seq;
	h->cred = (struct ucred){ (pid_t)s.pid, s.uid, s.gid };
	h->state.epoch = s.state_epoch;
	if (s.flags & F_KEPT && !load_state(h, in))
		return vp_err_set(e, -EPROTO, "the record of its back-end's state is malformed");
	while (vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_WINDOW && !load_window(h, &body))
			return vp_err_set(e, -EPROTO, "the record of its windows is malformed");
	r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &h->lfd, e);
	if (!r)
		r = hostdev_listen(h, e);
	return !r && s.flags & F_HERE ? load_backend(h, in, e) : r;
}
