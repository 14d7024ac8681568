/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Endpoint=vhost-user: an unmodified vhost-user back-end on the host is the device side, and this daemon is its
 * front-end. To the port this is a device VM whose guest and agent are one, in hostdev_session.c.
 *
 * Threat model: as the local attachment. In fast mode, which policy allows within a trust group only, the back-end gets
 * what a direct connection to the driver VM's VMM would give it. Else it gets the pool, which holds what a device VM
 * would see of the driver VM and nothing else, one kick and one call eventfd a queue, and a socket for its own
 * requests. It may fall silent (its answers have a deadline), may answer anything (checked against the table, then by
 * value), sends what nobody asked for (then it is dropped), shares the eventfds' open files with us (never read here;
 * written by threads with a supervisor only), and keeps what it was given mapped for as long as it lives, also when it
 * was dropped: its successor gets another pool.
 */
#include "attach/hostdev.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/blame.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"
#include "conf/types.h"
#include "context/audit.h"
#include "context/context.h"
#include "device/device.h"
#include "sys/sock.h"
#include "sys/source.h"
#include "sys/timer.h"

#define RETRY_MIN_US 100000u
#define RETRY_MAX_US 2000000u
#define REFUSED_EVERY_US 1000000u /* said at most so often */

static void connect_later(struct hostdev *h);

uint64_t hostdev_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* ---- when to go on ------------------------------------------------------------------------------ */

static int on_work(sd_event_source *s, void *arg)
{
	hostdev_session_run(arg);
	return 0;
}

/* Not at once: we may be deep inside a call of the port. */
static void work_soon(struct hostdev *h)
{
	if (h->work)
		sd_event_source_set_enabled(h->work, SD_EVENT_ONESHOT);
	else
		vp_event_added(sd_event_add_defer(h->c.d->event, &h->work, on_work, h), h->c.name, "deferred call");
}

static int on_later(sd_event_source *s, uint64_t usec, void *arg)
{
	hostdev_session_run(arg);
	return 0;
}

void hostdev_later(struct hostdev *h, uint64_t us)
{
	vp_timer_in(h->c.d->event, &h->later, us, on_later, h, h->c.name);
}

static int on_deadline(sd_event_source *s, uint64_t usec, void *arg)
{
	struct hostdev *h = arg;
	char nb[24], why[100];

	if (!h->here || !(h->s.waits || h->s.moving))
		return 0;
	snprintf(why, sizeof(why), "it did not answer %s within %u ms",
		 vu_msg_name(VU_FROM_FRONTEND, h->s.request, nb, sizeof(nb)), HOSTDEV_ANSWER_US / 1000);
	hostdev_drop(h, true, why);
	return 0;
}

void hostdev_rearm(struct hostdev *h)
{
	char nb[24];

	if (!h->here)
		return;
	vp_source_events(h->io, EPOLLIN | (vu_conn_want_write(&h->main) ? EPOLLOUT : 0));
	/* A queue that does not drain is a message without an answer, too. */
	if (h->s.waits || h->s.moving)
		vp_timer_in(h->c.d->event, &h->deadline, HOSTDEV_ANSWER_US, on_deadline, h, h->c.name);
	else if (h->deadline)
		sd_event_source_set_enabled(h->deadline, SD_EVENT_OFF);
	if (!h->s.waits)
		vp_slow_end(&h->slow);
	else if (!h->slow.since_us)
		vp_slow_begin(&h->slow, h->c.d->event,
			      "the back-end is stopped or busy, look at that process; it is dropped after 3 s",
			      "%s: %s to the back-end (pid %d)", h->c.name,
			      vu_msg_name(VU_FROM_FRONTEND, h->s.request, nb, sizeof(nb)), (int)h->cred.pid);
}

/* ---- the connection ------------------------------------------------------------------------------- */

static void drop_direct(struct hostdev *h, unsigned q)
{
	for (unsigned i = 0; i < 2; i++) {
		vp_wire_free(h->poke[q][i]);
		h->poke[q][i] = NULL;
	}
	vp_close(&h->poke_fd[q]);
	vp_close(&h->drv_kick[q]);
	vp_close(&h->drv_call[q]);
}

static void close_signals(struct hostdev *h)
{
	for (unsigned i = 0; i < h->n; i++) {
		drop_direct(h, i);
		vp_close(&h->sig[i]);
		vp_close(&h->bell[i]);
	}
}

void hostdev_drop(struct hostdev *h, bool fault, const char *why)
{
	if (!h->here)
		return;
	h->here = false;
	h->n_cuts += fault;
	snprintf(h->last, sizeof(h->last), "%.150s", why);
	vp_log(fault ? VP_LOG_WARNING : VP_LOG_INFO, "%s: back-end (pid %d) %s: %s", h->c.name, (int)h->cred.pid,
	       fault ? "is dropped" : "has left", h->last);
	vp_foreign_from(h->c.who);
	vp_source_end(&h->io);
	vp_source_end(&h->req_io);
	hostdev_state_stop(h);
	vu_conn_close(&h->main);
	vu_conn_close(&h->req);
	vp_timer_end(&h->deadline);
	vp_slow_end(&h->slow);
	vp_timer_end(&h->later);
	/* Data threads may be using the eventfds until the runs have ended. */
	vp_port_online(h->port, false);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		h->win[i].fd = -1;
	close_signals(h);
	h->c.wires_changed(h->c.ctx);
	if (h->c.gone)
		h->c.gone(h->c.ctx);
	if (h->c.link->side[VP_SIDE_DEVICE].socket_mode == VP_SOCKET_CLIENT)
		connect_later(h);
}

static int on_main(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct hostdev *h = arg;
	struct vp_err e = { 0 };
	int r = 0;

	vp_foreign_from(h->c.who);
	if (revents & EPOLLOUT)
		r = vu_conn_flush(&h->main, &e);
	if (!r && revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		r = vu_conn_recv(&h->main, &e);
	if (r > 0) {
		r = hostdev_session_answer(h, &e);
		vu_conn_next(&h->main);
	}
	if (!r && vp_foreign_pending(h->c.who) >= VP_FOREIGN_PENDING_MAX)
		r = vp_err_set(&e, -EBADF,
			       "it sends files that cannot be closed, for whoever serves them does not answer");
	if (r == -ECONNRESET)
		hostdev_drop(h, false, "it closed the connection");
	else if (r)
		hostdev_drop(h, true, e.msg);
	else
		hostdev_session_run(h);
	return 0;
}

static int on_req(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct hostdev *h = arg;
	struct vp_err e = { 0 };
	int r;

	vp_foreign_from(h->c.who);
	r = vu_conn_flush(&h->req, &e);
	if (!r)
		r = vu_conn_recv(&h->req, &e);
	if (r > 0) {
		r = hostdev_session_request(h, &e);
		vu_conn_next(&h->req);
	}
	if (r < 0) {
		vp_log(VP_LOG_NOTICE, "%s: the channel for requests of the back-end is closed: %s", h->c.name, e.msg);
		vp_source_end(&h->req_io);
		vu_conn_close(&h->req);
	}
	work_soon(h);
	return 0;
}

static int watch_main(struct hostdev *h)
{
	int r = vp_source_add(&h->io, h->c.d->event, h->main.fd, EPOLLIN, on_main, h);

	if (r >= 0)
		vp_source_limit(h->io, 100000, 2000);
	return r;
}

static int watch_requests(struct hostdev *h)
{
	int r = vp_source_add(&h->req_io, h->c.d->event, h->req.fd, EPOLLIN, on_req, h);

	if (r >= 0)
		vp_source_limit(h->req_io, 100000, 100);
	return r;
}

int hostdev_channel(struct hostdev *h, int *theirs)
{
	int sv[2], r;

	/* seccomp control: socketpair(arg0 == AF_UNIX) */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	vu_conn_init(&h->req, sv[0], VU_FROM_BACKEND, false);
	r = watch_requests(h);
	if (r < 0) {
		close(sv[1]);
		return r;
	}
	*theirs = sv[1];
	return 0;
}

static int make_signals(struct hostdev *h)
{
	int r = 0;

	for (unsigned i = 0; i < h->n && !r; i++) {
		r = vp_eventfd_new(&h->sig[i]);
		if (!r)
			r = vp_eventfd_new(&h->bell[i]);
	}
	/* Nobody else has them yet. A back-end that begins looks once, and when its ring is enabled (hostdev_poke). */
	for (unsigned i = 0; i < h->n && !r; i++) {
		vp_eventfd_raise(h->sig[i]);
		r = vp_eventfd_new(&h->poke_fd[i]);
		if (!r)
			r = vp_wire_new(&h->poke[i][0], h->c.f, h->poke_fd[i], h->sig[i], h->c.who);
	}
	return r;
}

static int backend_begin(struct hostdev *h, int fd)
{
	int r;

	vu_conn_init(&h->main, fd, VU_FROM_FRONTEND, true);
	vu_conn_init(&h->req, -1, VU_FROM_BACKEND, false);
	r = make_signals(h);
	if (!r)
		r = watch_main(h);
	if (r < 0) {
		close_signals(h);
		vu_conn_close(&h->main);
		return r;
	}
	h->here = true;
	h->unclean = false;
	h->n_conns++;
	vp_log(VP_LOG_INFO, "%s: back-end connected (pid %d, user %u)", h->c.name, (int)h->cred.pid, h->cred.uid);
	hostdev_session_begin(h);
	return 0;
}

static bool may_serve(struct hostdev *h, const struct ucred *cred)
{
	const struct vp_conf_side *side = &h->c.link->side[VP_SIDE_DEVICE];

	return vp_policy_user_ok(vp_conf_vm_find(h->c.d->conf, side->vm), cred->uid, geteuid());
}

/* cred: of one that came to our socket. At most once a second in the log. */
static void say_refused(struct hostdev *h, const struct ucred *cred, bool may)
{
	const char *vm = h->c.link->side[VP_SIDE_DEVICE].vm;
	uint64_t now;

	sd_event_now(h->c.d->event, CLOCK_MONOTONIC, &now);
	if (h->refused_said_us && now - h->refused_said_us < REFUSED_EVERY_US)
		return;
	h->refused_said_us = now;
	if (may) {
		vp_log(VP_LOG_WARNING,
		       "%s: refused a second back-end (pid %d) while pid %d is connected; stop one of them", h->c.name,
		       (int)cred->pid, (int)h->cred.pid);
		return;
	}
	snprintf(h->last, sizeof(h->last),
		 "refused pid %d of user %u, who may not serve as %s; add it to User= in %s.vm", (int)cred->pid,
		 cred->uid, vm, vm);
	vp_log(VP_LOG_WARNING, "%s: %s", h->c.name, h->last);
	vp_audit_vmm(h->c.d, h->c.name, vm, cred);
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct hostdev *h = arg;
	struct ucred cred;
	bool known, may;
	/* seccomp control: accept4 */
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(h->c.d, lfd, h->c.name);
		return 0;
	}
	/* Its predecessor died and the hang-up is still to be handled. */
	if (h->here && vp_sock_hung_up(h->main.fd))
		hostdev_drop(h, false, "it closed the connection");
	known = !vp_sock_peer(fd, &cred);
	may = known && may_serve(h, &cred);
	if (h->here || !may) {
		h->n_refused++;
		if (known)
			say_refused(h, &cred, may);
		close(fd);
		return 0;
	}
	h->cred = cred;
	backend_begin(h, fd);
	return 0;
}

static int on_connect(sd_event_source *s, uint64_t usec, void *arg)
{
	struct hostdev *h = arg;
	const char *path = h->c.link->side[VP_SIDE_DEVICE].socket;
	struct vp_err e = { 0 };
	int fd = -1, r = vp_sock_connect(path, &fd, &e);

	if (!r)
		r = vp_sock_peer(fd, &h->cred);
	if (!r && !may_serve(h, &h->cred)) {
		h->n_refused++;
		r = vp_err_set(&e, -EACCES, "%s: belongs to user %u, who may not serve as %s; add it to User= in %s.vm",
			       path, h->cred.uid, h->c.link->side[VP_SIDE_DEVICE].vm,
			       h->c.link->side[VP_SIDE_DEVICE].vm);
	}
	if (!r) {
		r = backend_begin(h, fd);
		fd = -1;
	}
	if (!r) {
		h->retry_logged = false;
		return 0;
	}
	vp_close(&fd);
	/* Said once, and again when it is something else. */
	if (e.code && (vp_err_is_new(&e, h->last, sizeof(h->last)) || !h->retry_logged))
		vp_log(VP_LOG_NOTICE, "%s: %s; trying again until it works", h->c.name, e.msg);
	h->retry_logged = true;
	connect_later(h);
	return 0;
}

/*
 * The time grows, also for a back-end that comes and says nothing: one that gets as far as being attached sets it back.
 */
static void connect_later(struct hostdev *h)
{
	if (h->s.attached)
		h->retry_us = RETRY_MIN_US;
	h->s.attached = false;
	vp_timer_in(h->c.d->event, &h->again, h->retry_us, on_connect, h, h->c.name);
	h->retry_us = VP_MIN(2 * h->retry_us, RETRY_MAX_US);
}

/* ---- towards the port -------------------------------------------------------------------------- */

static int give(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e)
{
	struct hostdev *h = att;

	*kind = VHP_WINDOW_FD;
	*locator = w->slot;
	h->win[w->slot] = (struct hostdev_window){ .fd = w->fd, .offset = w->offset, .uva = h->next_uva };
	h->next_uva += vp_align_up(w->size, UINT64_C(1) << 30) + (UINT64_C(1) << 30);
	return 0;
}

static int take(void *att, unsigned slot)
{
	struct hostdev *h = att;

	h->win[slot].fd = -1;
	return 0;
}

static void signal_guest(void *att, unsigned i)
{
	if (!i)
		work_soon(att);
}

static const struct vp_port_att_ops port_ops = { .give = give, .take = take, .signal = signal_guest };

/* ---- towards the link ---------------------------------------------------------------------------- */

static int hostdev_wire(struct vp_attach *a, unsigned i, int src, struct vp_wire **out)
{
	struct hostdev *h = (struct hostdev *)a;

	if (!i || i > h->n || !h->here)
		return -ENOTCONN;
	return vp_wire_new(out, h->c.f, src, h->sig[i - 1], h->c.who);
}

static int hostdev_call_fd(struct vp_attach *a, unsigned i)
{
	struct hostdev *h = (struct hostdev *)a;

	return i && i <= h->n ? h->bell[i - 1] : -1;
}

static int hostdev_signal_fd(struct vp_attach *a, unsigned i)
{
	struct hostdev *h = (struct hostdev *)a;

	return i && i <= h->n ? h->sig[i - 1] : -1;
}

static void hostdev_unclean(struct vp_attach *a)
{
	struct hostdev *h = (struct hostdev *)a;

	h->unclean = h->here;
	work_soon(h);
}

static bool hostdev_saves(struct vp_attach *a)
{
	const struct hostdev *h = (struct hostdev *)a;

	return h->here && h->s.ran && h->s.pf >> VU_PF_DEVICE_STATE & 1;
}

/* Who can make either block is whoever has them: the driver VM's VMM, and now the back-end. */
static int wire_to_driver(struct hostdev *h, unsigned q)
{
	uint64_t who = vp_blame_either(vp_blame_id(h->c.link->side[VP_SIDE_DRIVER].vm), h->c.who);
	const int fds[2] = { h->drv_kick[q], h->drv_call[q] };
	int r = 0;

	for (unsigned i = 0; i < 2 && !r; i++)
		if (fds[i] >= 0)
			r = vp_wire_new(&h->poke[q][i], h->c.f, h->poke_fd[q], fds[i], who);
	return r;
}

static int poke_wires(struct hostdev *h, unsigned q)
{
	int r = vp_eventfd_new(&h->poke_fd[q]);

	/* A wire begins with a signal then: a back-end without protocol features starts a ring with its first kick. */
	if (!r)
		vp_eventfd_raise(h->poke_fd[q]);
	return r ? r : wire_to_driver(h, q);
}

/* Only duplicates: messages that carry them are sent later. */
static unsigned hostdev_direct(struct vp_attach *a, unsigned q, int kick, int call)
{
	struct hostdev *h = (struct hostdev *)a;

	if (q >= h->n)
		return 0;
	drop_direct(h, q);
	if (!h->here)
		return 0;
	h->s.q[q].kick_moved = h->s.q[q].call_moved = h->s.q[q].running;
	/* seccomp control: fcntl */
	h->drv_kick[q] = kick >= 0 ? fcntl(kick, F_DUPFD_CLOEXEC, 3) : -1;
	h->drv_call[q] = call >= 0 ? fcntl(call, F_DUPFD_CLOEXEC, 3) : -1;
	if (poke_wires(h, q)) {
		vp_close(&h->drv_kick[q]);
		vp_close(&h->drv_call[q]);
	}
	work_soon(h);
	return h->drv_kick[q] >= 0 ? VP_ATTACH_KICK : 0;
}

void hostdev_poke(struct hostdev *h, unsigned q)
{
	/* The forwarder passes it on. */
	if (h->poke_fd[q] >= 0)
		vp_eventfd_raise(h->poke_fd[q]);
}

/* A back-end whose front-end has gone sees its socket closed. */
static void hostdev_last_signal(struct vp_attach *a, struct vp_lastsig_conf *c)
{
}

static void hostdev_show(struct vp_attach *a, json_t *o)
{
	struct hostdev *h = (struct hostdev *)a;
	unsigned kicks = 0, calls = 0;

	for (unsigned q = 0; q < h->n; q++) {
		kicks += h->drv_kick[q] >= 0;
		calls += h->drv_call[q] >= 0;
	}
	if (kicks | calls) {
		json_object_set_new(o, "kicks_direct", json_integer(kicks));
		json_object_set_new(o, "calls_direct", json_integer(calls));
	}
	json_object_set_new(o, "connected", json_boolean(h->here));
	json_object_set_new(o, "pid", h->here ? json_integer(h->cred.pid) : json_null());
	json_object_set_new(o, "connections", json_integer((json_int_t)h->n_conns));
	json_object_set_new(o, "refused", json_integer((json_int_t)h->n_refused));
	json_object_set_new(o, "dropped", json_integer((json_int_t)h->n_cuts));
	json_object_set_new(o, "last", h->last[0] ? json_string(h->last) : json_null());
}

static void hostdev_free(struct vp_attach *a)
{
	struct hostdev *h = (struct hostdev *)a;

	if (!h)
		return;
	h->c.gone = NULL;
	hostdev_drop(h, false, "the link is being taken away");
	hostdev_state_forget(h);
	vp_source_end(&h->listen_io);
	sd_event_source_disable_unref(h->work);
	sd_event_source_disable_unref(h->again);
	sd_event_source_disable_unref(h->deadline);
	sd_event_source_disable_unref(h->later);
	if (h->lfd >= 0)
		unlink(h->c.link->side[VP_SIDE_DEVICE].socket);
	vp_close(&h->lfd);
	if (h->ctrl)
		munmap(h->ctrl, VHP_CTRL_SIZE);
	free(h->sig);
	free(h->bell);
	free(h->drv_kick);
	free(h->drv_call);
	free(h->poke_fd);
	free(h->poke);
	free(h);
}

/* ---- for another daemon -------------------------------------------------------------------------- */

int hostdev_listen(struct hostdev *h, struct vp_err *e)
{
	int r = h->lfd >= 0 ? vp_source_add(&h->listen_io, h->c.d->event, h->lfd, EPOLLIN, on_accept, h) : 0;

	return r < 0 ? vp_err_set(e, r, "%s: cannot wait for connections: %s",
				  h->c.link->side[VP_SIDE_DEVICE].socket, strerror(-r)) : 0;
}

int hostdev_watch(struct hostdev *h, struct vp_err *e)
{
	int r = watch_main(h);

	if (r >= 0 && h->req.fd >= 0)
		r = watch_requests(h);
	return r < 0 ? vp_err_set(e, r, "its back-end cannot be watched: %s", strerror(-r)) : 0;
}

static void hostdev_go_on(struct vp_attach *a)
{
	struct hostdev *h = (struct hostdev *)a;
	int r = 0;

	if (!h->here) {
		if (h->c.link->side[VP_SIDE_DEVICE].socket_mode == VP_SOCKET_CLIENT)
			vp_timer_at(h->c.d->event, &h->again, h->again_us, on_connect, h, h->c.name);
		return;
	}
	for (unsigned i = 0; i < h->n && !r; i++)
		r = h->drv_kick[i] >= 0 || h->drv_call[i] >= 0 ? wire_to_driver(h, i) :
		    vp_wire_new(&h->poke[i][0], h->c.f, h->poke_fd[i], h->sig[i], h->c.who);
	if (r) {
		hostdev_drop(h, false, strerror(-r));
		return;
	}
	/* What its times are due for it finds again. */
	hostdev_rearm(h);
	work_soon(h);
}

static const struct vp_attach_ops attach_ops = {
	.free = hostdev_free, .wire = hostdev_wire, .call_fd = hostdev_call_fd, .show = hostdev_show,
	.signal_fd = hostdev_signal_fd, .last_signal = hostdev_last_signal, .direct = hostdev_direct,
	.unclean = hostdev_unclean, .saves = hostdev_saves, .pages = true, .at_rest = hostdev_at_rest,
	.save_hot = hostdev_save_hot, .restore_hot = hostdev_restore_hot, .go_on = hostdev_go_on,
};

void vp_hostdev_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc)
{
	pc->nsignals = 1 + pc->max_queues;
	pc->driver_vm = l->side[VP_SIDE_DRIVER].vm;
	pc->device_vm = l->side[VP_SIDE_DEVICE].vm;
	pc->queue_doorbell = 1;
	pc->unsealed_ok = true;
}

static int begin(struct hostdev *h, struct vp_err *e)
{
	const struct vp_conf_side *side = &h->c.link->side[VP_SIDE_DEVICE];
	uint64_t size;
	void *at;
	int r;

	/* seccomp control: mmap(arg2 & PROT_EXEC == 0) munmap */
	at = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vp_port_memfd(h->port, &size), 0);
	if (at == MAP_FAILED)
		return vp_err_set(e, -errno, "%s: the control block cannot be mapped: %m", h->c.name);
	h->ctrl = at;
	if (h->c.heir)
		return 0;
	if (side->socket_mode == VP_SOCKET_CLIENT)
		return vp_timer_in(h->c.d->event, &h->again, 0, on_connect, h, h->c.name) < 0 ?
		       vp_err_set(e, -ENOMEM, "%s: out of memory", h->c.name) : 0;
	r = vp_sock_listen(side->socket, vp_conf_socket_file_mode(h->c.d->conf, side->vm), &h->lfd, e);
	return r ? r : hostdev_listen(h, e);
}

int vp_hostdev_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e)
{
	struct hostdev *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	h->a.ops = &attach_ops;
	h->c = *c;
	h->port = p;
	h->lfd = h->state.pipe = -1;
	h->next_uva = UINT64_C(1) << 40;
	h->retry_us = RETRY_MIN_US;
	vu_conn_init(&h->main, -1, VU_FROM_FRONTEND, true);
	vu_conn_init(&h->req, -1, VU_FROM_BACKEND, false);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		h->win[i].fd = -1;
	h->n = vp_type_queues(c->link);
	h->sig = malloc(h->n * sizeof(int));
	h->bell = malloc(h->n * sizeof(int));
	h->drv_kick = malloc(h->n * sizeof(int));
	h->drv_call = malloc(h->n * sizeof(int));
	h->poke_fd = malloc(h->n * sizeof(int));
	h->poke = calloc(h->n, sizeof(*h->poke));
	if (!h->sig || !h->bell || !h->drv_kick || !h->drv_call || !h->poke_fd || !h->poke)
		h->n = 0;
	for (unsigned i = 0; i < h->n; i++)
		h->sig[i] = h->bell[i] = h->drv_kick[i] = h->drv_call[i] = h->poke_fd[i] = -1;
	r = h->n ? begin(h, e) : vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	if (r) {
		hostdev_free(&h->a);
		return r;
	}
	vp_port_set_attachment(p, &port_ops, h);
	*out = &h->a;
	return 0;
}
