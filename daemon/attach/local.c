/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The local attachment: a process on the host is the device side
 * (docs/local-attachment.md, vhost-pci/local.h).
 *
 * Threat model: as a device VM's guest, plus: it may not read its socket (then it is dropped, nothing is
 * queued for it), may send anything (dropped unread), and shares the eventfds' open files
 * with us (never read here, written by the forwarder only).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "attach/attach.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "conf/types.h"
#include "context/context.h"
#include "conf/policy.h"
#include "device/device.h"
#include "sys/sock.h"
#include "sys/source.h"
#include "vhost-pci/local.h"

#define DIRECT_KICK 1u
#define DIRECT_CALL 2u

struct local {
	struct vp_attach       a;
	struct vp_attach_conf  c;
	struct vp_port        *port;
	unsigned               nsig;
	int                    lfd, fd;
	struct vp_source      *listen_io, *io, *bell_io;
	sd_event_source       *drop;
	struct ucred           cred;
	int                   *sig, *bell;     /* to and from the guest, nsig each; -1 while nobody is there */
	int                    sig0;           /* ours; raised for signal 0, wired to sig[0] */
	struct vp_wire        *wire0;
	uint64_t               key;
	uint64_t               keys[VHP_MAX_WINDOWS];
	uint8_t                direct[VHP_MAX_QUEUES];  /* DIRECT_*: the process has the driver VM's own eventfds */
	uint64_t               n_conns, n_refused;
	char                   last[100];
};

static int send_msg(int fd, uint32_t type, const uint64_t *arg, unsigned narg, const int *fds, unsigned nfds)
{
	struct vhp_local_msg m = { .type = type, .nfds = nfds };

	for (unsigned i = 0; i < narg; i++)
		m.arg[i] = arg[i];
	return vp_send_fds(fd, &m, sizeof(m), fds, nfds);
}

static int send_fds(int fd, uint32_t type, const int *fds, unsigned n)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; i += VHP_LOCAL_MAX_FDS) {
		uint64_t first = i;

		r = send_msg(fd, type, &first, 1, fds + i, VP_MIN(n - i, VHP_LOCAL_MAX_FDS));
	}
	return r;
}

static void client_gone(struct local *l, const char *why)
{
	if (l->fd < 0)
		return;
	l->c.touch(l->c.ctx);
	vp_log(VP_LOG_INFO, "%s: process %d has left: %s", l->c.name, (int)l->cred.pid, why);
	snprintf(l->last, sizeof(l->last), "%s", why);
	vp_source_end(&l->io);
	vp_source_end(&l->bell_io);
	vp_close_foreign(&l->fd);
	vp_wire_free(l->wire0);
	l->wire0 = NULL;
	/* Data threads may be using the eventfds until the runs have ended. */
	vp_port_online(l->port, false);
	for (unsigned i = 0; i < l->nsig; i++) {
		vp_close(&l->sig[i]);
		vp_close(&l->bell[i]);
	}
	memset(l->direct, 0, sizeof(l->direct));
	l->c.wires_changed(l->c.ctx);
	/* What could not be said to it any more meanwhile is no fault of the next process. */
	if (l->drop)
		sd_event_source_set_enabled(l->drop, SD_EVENT_OFF);
}

static int on_drop(sd_event_source *s, void *arg)
{
	client_gone(arg, "it does not read its messages");
	return 0;
}

/* Not at once: we may be deep inside a call of the port. */
static void drop_soon(struct local *l)
{
	if (l->drop)
		sd_event_source_set_enabled(l->drop, SD_EVENT_ONESHOT);
	else if (sd_event_add_defer(l->c.d->event, &l->drop, on_drop, l) < 0)
		vp_log(VP_LOG_ERR, "%s: out of memory", l->c.name);
}

static int on_client(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	char buf[256];
	ssize_t n = vp_recv_plain(fd, buf, sizeof(buf));

	if (n == -EBADMSG)
		client_gone(arg, "it sent file descriptors");
	else if (!n || (n < 0 && n != -EAGAIN && n != -EINTR))
		client_gone(arg, "it closed the connection");
	return 0;
}

static int on_bell(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct local *l = arg;

	vp_port_command(l->port);
	return 0;
}

static int welcome(struct local *l, int fd)
{
	uint64_t size, arg[5] = { VHP_LOCAL_VERSION, VHP_ABI_VERSION, 0, l->nsig, l->nsig };
	int memfd = vp_port_memfd(l->port, &size), r = 0;

	for (unsigned i = 0; i < l->nsig && !r; i++) {
		r = vp_eventfd_new(&l->sig[i]);
		if (!r)
			r = vp_eventfd_new(&l->bell[i]);
	}
	arg[2] = size;
	if (!r)
		r = send_msg(fd, VHP_LOCAL_HELLO, arg, 5, &memfd, 1);
	if (!r)
		r = send_fds(fd, VHP_LOCAL_SIGNALS, l->sig, l->nsig);
	if (!r)
		r = send_fds(fd, VHP_LOCAL_DOORBELLS, l->bell, l->nsig);
	if (!r)
		r = send_msg(fd, VHP_LOCAL_READY, NULL, 0, NULL, 0);
	if (!r)
		r = vp_wire_new(&l->wire0, l->c.f, l->sig0, l->sig[0], l->c.who);
	return r;
}

static int watch_client(struct local *l)
{
	int r = vp_source_add(&l->io, l->c.d->event, l->fd, EPOLLIN, on_client, l);

	if (r >= 0)
		vp_source_limit(l->io, 100000, 500);  /* it has nothing to say */
	/* Edge-triggered and never read: the other end shares the file. */
	if (r >= 0)
		r = vp_source_add(&l->bell_io, l->c.d->event, l->bell[0], EPOLLIN | EPOLLET, on_bell, l);
	if (r >= 0)
		vp_source_limit(l->bell_io, 100000, 500);
	return r;
}

static int client_begin(struct local *l, int fd)
{
	int r;

	l->c.touch(l->c.ctx);
	r = welcome(l, fd);
	l->fd = fd;
	if (!r)
		r = watch_client(l);
	if (r < 0) {
		client_gone(l, strerror(-r));
		return r;
	}
	l->n_conns++;
	vp_log(VP_LOG_INFO, "%s: process %d (user %u) has the port", l->c.name, (int)l->cred.pid, l->cred.uid);
	vp_port_online(l->port, true);
	l->c.wires_changed(l->c.ctx);
	return 0;
}

static void refuse(struct local *l, int fd, int why)
{
	uint64_t arg = (uint64_t)why;

	l->n_refused++;
	send_msg(fd, VHP_LOCAL_ERROR, &arg, 1, NULL, 0);
	vp_close_foreign(&fd);
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct local *l = arg;
	const struct vp_conf_side *side = &l->c.link->side[VP_SIDE_DEVICE];
	struct ucred cred;
	/* seccomp control: accept4 */
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(l->c.d, lfd, l->c.name);
		return 0;
	}
	if (vp_sock_peer(fd, &cred) ||
	    !vp_policy_user_ok(vp_conf_vm_find(l->c.d->conf, side->vm), cred.uid, geteuid())) {
		refuse(l, fd, EACCES);
		return 0;
	}
	/* Its predecessor has gone and the hang-up is still to be handled, whatever either of them had not read. */
	if (l->fd >= 0 && vp_sock_hung_up(l->fd))
		client_gone(l, "it closed the connection");
	if (l->fd >= 0) {
		refuse(l, fd, EBUSY);
		return 0;
	}
	l->cred = cred;
	client_begin(l, fd);
	return 0;
}

static int listen_to(struct local *l, struct vp_err *e)
{
	int r = vp_source_add(&l->listen_io, l->c.d->event, l->lfd, EPOLLIN, on_accept, l);

	return r < 0 ? vp_err_set(e, r, "%s: cannot wait for connections: %s",
				  l->c.link->side[VP_SIDE_DEVICE].socket, strerror(-r)) : 0;
}

/* ---- towards the port -------------------------------------------------------------------------- */

static int give(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e)
{
	struct local *l = att;
	uint64_t arg[3] = { ++l->key, w->offset, w->size };
	int r;

	*kind = VHP_WINDOW_FD;
	*locator = l->keys[w->slot] = l->key;
	r = send_msg(l->fd, VHP_LOCAL_WINDOW, arg, 3, &w->fd, 1);
	if (r) {
		drop_soon(l);
		return vp_err_set(e, r, "the process does not take it: %s", strerror(-r));
	}
	return 0;
}

static int take(void *att, unsigned slot)
{
	struct local *l = att;

	if (send_msg(l->fd, VHP_LOCAL_WINDOW_GONE, &l->keys[slot], 1, NULL, 0))
		drop_soon(l);
	return 0;
}

static void signal_guest(void *att, unsigned i)
{
	struct local *l = att;

	/* The port itself raises signal 0 only; the others are wired. */
	if (!i)
		vp_eventfd_raise(l->sig0);
}

static const struct vp_port_att_ops port_ops = { .give = give, .take = take, .signal = signal_guest };

/* ---- towards the link ---------------------------------------------------------------------------- */

static int local_wire(struct vp_attach *a, unsigned i, int src, struct vp_wire **out)
{
	struct local *l = (struct local *)a;

	if (i >= l->nsig || l->fd < 0)
		return -ENOTCONN;
	return vp_wire_new(out, l->c.f, src, l->sig[i], l->c.who);
}

static int local_call_fd(struct vp_attach *a, unsigned i)
{
	struct local *l = (struct local *)a;

	return i < l->nsig ? l->bell[i] : -1;
}

static int local_signal_fd(struct vp_attach *a, unsigned i)
{
	struct local *l = (struct local *)a;

	return i < l->nsig ? l->sig[i] : -1;
}

static void local_last_signal(struct vp_attach *a, struct vp_lastsig_conf *c)
{
	struct local *l = (struct local *)a;

	c->call = l->sig[0];
	c->conn = l->fd;
}

/* Give the process another eventfd for signal 1 + q: the driver VM's, or, without one, ours again. */
static bool replace(struct local *l, unsigned q, uint32_t type, unsigned flag, int theirs, int ours)
{
	uint64_t i = 1 + q;
	int fd = theirs >= 0 ? theirs : ours;

	if (theirs < 0 && !(l->direct[q] & flag))
		return false;
	l->direct[q] = (uint8_t)((l->direct[q] & ~flag) | (theirs >= 0 ? flag : 0));
	if (send_msg(l->fd, type, &i, 1, &fd, 1)) {
		l->direct[q] &= (uint8_t)~flag;
		drop_soon(l);
		return false;
	}
	/* Behind the message: a process that polls looks at its socket when the page has changed, not before. */
	vp_port_touch(l->port);
	return theirs >= 0;
}

static unsigned local_direct(struct vp_attach *a, unsigned q, int kick, int call)
{
	struct local *l = (struct local *)a;

	if (l->fd < 0 || 1 + q >= l->nsig)
		return 0;
	replace(l, q, VHP_LOCAL_DOORBELLS, DIRECT_CALL, call, l->bell[1 + q]);
	return replace(l, q, VHP_LOCAL_SIGNALS, DIRECT_KICK, kick, l->sig[1 + q]) ? VP_ATTACH_KICK : 0;
}

static void local_show(struct vp_attach *a, json_t *o)
{
	struct local *l = (struct local *)a;
	unsigned kicks = 0, calls = 0;

	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++) {
		kicks += l->direct[q] & DIRECT_KICK ? 1 : 0;
		calls += l->direct[q] & DIRECT_CALL ? 1 : 0;
	}

	json_object_set_new(o, "connected", json_boolean(l->fd >= 0));
	json_object_set_new(o, "pid", l->fd >= 0 ? json_integer(l->cred.pid) : json_null());
	json_object_set_new(o, "connections", json_integer((json_int_t)l->n_conns));
	json_object_set_new(o, "refused", json_integer((json_int_t)l->n_refused));
	json_object_set_new(o, "last", l->last[0] ? json_string(l->last) : json_null());
	if (kicks | calls) {
		json_object_set_new(o, "kicks_direct", json_integer(kicks));
		json_object_set_new(o, "calls_direct", json_integer(calls));
	}
}

static void end(struct local *l)
{
	vp_source_end(&l->listen_io);
	sd_event_source_disable_unref(l->drop);
	vp_close_foreign(&l->lfd);
	vp_close(&l->sig0);
	free(l->sig);
	free(l->bell);
	free(l);
}

static void local_free(struct vp_attach *a)
{
	struct local *l = (struct local *)a;

	if (!l)
		return;
	client_gone(l, "the link is being taken away");
	if (l->lfd >= 0)
		unlink(l->c.link->side[VP_SIDE_DEVICE].socket);
	end(l);
}

static void local_leave(struct vp_attach *a)
{
	struct local *l = (struct local *)a;

	vp_source_end(&l->io);
	vp_source_end(&l->bell_io);
	vp_close_foreign(&l->fd);
	vp_wire_free(l->wire0);
	for (unsigned i = 0; i < l->nsig; i++) {
		vp_close(&l->sig[i]);
		vp_close(&l->bell[i]);
	}
	end(l);
}

/* ---- for another daemon ------------------------------------------------------------------------- */

enum tag { TAG_LOCAL = 1, TAG_LISTENS, TAG_CONN, TAG_SIG0, TAG_SIGNAL, TAG_BELL, TAG_LAST };

struct local_rec {
	uint64_t n_conns, n_refused, key;
	uint32_t pid, uid, gid, nsig;
	uint64_t keys[VHP_MAX_WINDOWS];
	uint8_t  direct[VHP_MAX_QUEUES];
};

static void local_save_hot(struct vp_attach *a, struct vp_rec *r)
{
	struct local *l = (struct local *)a;
	struct local_rec s = {
		.n_conns = l->n_conns, .n_refused = l->n_refused, .key = l->key, .pid = (uint32_t)l->cred.pid,
		.uid = l->cred.uid, .gid = l->cred.gid, .nsig = l->nsig,
	};

	memcpy(s.keys, l->keys, sizeof(s.keys));
	memcpy(s.direct, l->direct, sizeof(s.direct));
	vp_rec_put(r, TAG_LOCAL, &s, sizeof(s));
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, l->lfd);
	vp_rec_fd(r, TAG_CONN, VP_REC_FD_SOCKET, l->fd);
	vp_rec_fd(r, TAG_SIG0, VP_REC_FD_EVENTFD, l->sig0);
	vp_rec_str(r, TAG_LAST, l->last);
	for (unsigned i = 0; l->fd >= 0 && i < l->nsig; i++) {
		vp_rec_fd(r, TAG_SIGNAL, VP_REC_FD_EVENTFD, l->sig[i]);
		vp_rec_fd(r, TAG_BELL, VP_REC_FD_EVENTFD, l->bell[i]);
	}
}

static int local_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct local *l = (struct local *)a;
	struct local_rec s;
	int r;

	if (vp_rec_get(in, TAG_LOCAL, &s, sizeof(s)) || s.nsig != l->nsig ||
	    vp_rec_text(in, TAG_LAST, l->last, sizeof(l->last)))
		return vp_err_set(e, -EPROTO, "the record of its attachment is malformed");
	l->n_conns = s.n_conns;
	l->n_refused = s.n_refused;
	l->key = s.key;
	l->cred = (struct ucred){ (pid_t)s.pid, s.uid, s.gid };
	memcpy(l->keys, s.keys, sizeof(l->keys));
	memcpy(l->direct, s.direct, sizeof(l->direct));
	r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &l->lfd, e);
	if (!r)
		r = vp_rec_take(in, TAG_SIG0, VP_REC_FD_EVENTFD, &l->sig0, e);
	if (!r)
		r = vp_rec_take(in, TAG_CONN, VP_REC_FD_SOCKET, &l->fd, e);
	if (!r && (l->lfd < 0 || l->sig0 < 0))
		r = vp_err_set(e, -EPROTO, "the record of its attachment lacks a socket");
	if (!r)
		r = vp_rec_take_all(in, TAG_SIGNAL, VP_REC_FD_EVENTFD, l->sig, l->fd >= 0 ? l->nsig : 0, e);
	if (!r)
		r = vp_rec_take_all(in, TAG_BELL, VP_REC_FD_EVENTFD, l->bell, l->fd >= 0 ? l->nsig : 0, e);
	if (!r)
		r = listen_to(l, e);
	if (r || l->fd < 0)
		return r;
	r = watch_client(l);
	return r < 0 ? vp_err_set(e, r, "its process cannot be watched: %s", strerror(-r)) : 0;
}

static void local_go_on(struct vp_attach *a)
{
	struct local *l = (struct local *)a;
	int r = l->fd >= 0 ? vp_wire_new(&l->wire0, l->c.f, l->sig0, l->sig[0], l->c.who) : 0;

	if (r)
		client_gone(l, strerror(-r));
}

static const struct vp_attach_ops attach_ops = {
	.save_hot = local_save_hot, .restore_hot = local_restore_hot, .go_on = local_go_on, .leave = local_leave,
	.free = local_free, .wire = local_wire, .call_fd = local_call_fd, .show = local_show,
	.signal_fd = local_signal_fd, .last_signal = local_last_signal, .direct = local_direct,
	.pages = true,
};

void vp_local_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc)
{
	pc->attachment = VHP_ATTACHMENT_LOCAL;
	pc->nsignals = 1 + pc->max_queues;
	pc->driver_vm = l->side[VP_SIDE_DRIVER].vm;
	pc->device_vm = l->side[VP_SIDE_DEVICE].vm;
	pc->queue_doorbell = 1;
	pc->unsealed_ok = true;
}

int vp_local_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e)
{
	const struct vp_conf_side *side = &c->link->side[VP_SIDE_DEVICE];
	struct local *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	l->a.ops = &attach_ops;
	l->c = *c;
	l->port = p;
	l->nsig = 1 + vp_type_queues(c->link);
	l->lfd = l->fd = l->sig0 = -1;
	l->sig = malloc(l->nsig * sizeof(int));
	l->bell = malloc(l->nsig * sizeof(int));
	r = !l->sig || !l->bell ? -ENOMEM : c->heir ? 0 : vp_eventfd_new(&l->sig0);
	for (unsigned i = 0; !r && i < l->nsig; i++)
		l->sig[i] = l->bell[i] = -1;
	if (r)
		vp_err_set(e, r, "%s: %s", c->name, strerror(-r));
	else if (!c->heir)
		r = vp_sock_listen(side->socket, vp_conf_socket_file_mode(c->d->conf, side->vm), &l->lfd, e);
	if (!r && !c->heir)
		r = listen_to(l, e);
	if (r < 0) {
		local_free(&l->a);
		return r;
	}
	vp_port_set_attachment(p, &port_ops, l);
	*out = &l->a;
	return 0;
}
