/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The ivshmem attachment: the daemon is the "ivshmem server" of a stock ivshmem-doorbell device
 * (docs/spec.md, "ivshmem"; QEMU's ivshmem-spec.rst for the messages).
 *
 * BAR2 is the port's memfd for the life of the device. Vectors and doorbells are eventfds of ours: they
 * go on working in the VM whatever becomes of this connection. Doorbells live as long as the link,
 * vectors as long as their device. All of it outlives this process where the service manager keeps fds
 * (sys/fdstore.h).
 *
 * Threat model: the client is the device VM's VMM. It says nothing in this protocol; what it sends is
 * dropped.
 *
 * QEMU does not survive some things (seen with 7.2 and 11.1), so the daemon never does them: it sends
 * no own vectors before the memory, no peer's disconnect message, no memory whose size is not a power
 * of two; it is never silent; it never raises a vector of a device that was unplugged (without KVM,
 * QEMU goes on watching those, and jumps into what was freed: seen with 11.1.3).
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
#include "device/device.h"
#include "handover/guard.h"
#include "attach/ivshmem_direct.h"
#include "attach/ivshmem_windows.h"
#include "sys/fdstore.h"
#include "conf/policy.h"
#include "sys/sock.h"
#include "sys/source.h"

#define PORT_ID   0   /* IVPosition of the port */
#define DAEMON_ID 1   /* the peer whose doorbells are ours */
#define FREE_ID   16  /* peers from here up are driver VMs' eventfds (ivshmem_direct.h) */
#define NO_VERSION -1  /* of the protocol: a device that is refused is told this one */
#define HELLO     3   /* messages before the eventfds */

struct ivshmem {
	struct vp_attach      a;
	struct vp_attach_conf c;
	struct vp_port       *port;
	struct vp_ivwins     *wins;
	struct vp_ivdirect   *direct;
	unsigned              nsig;
	int                   lfd, fd;
	bool                  complete;   /* handshake sent */
	bool                  had_device; /* that was given sig[] */
	bool                  recovers;   /* from a box (link/keep.h) */
	unsigned              sent;       /* messages of the handshake sent so far */
	struct vp_source     *listen_io, *io, *bell_io;
	struct ucred          cred;
	int                  *sig, *bell;
	int                   sig0;
	struct vp_wire       *wire0;
	uint64_t              n_conns, n_refused;
	char                  last[100];
};

static void client_gone(struct ivshmem *v, const char *why)
{
	if (v->fd < 0)
		return;
	v->c.touch(v->c.ctx);
	vp_log(VP_LOG_INFO, "%s: the device of pid %d has gone: %s", v->c.name, (int)v->cred.pid, why);
	snprintf(v->last, sizeof(v->last), "%s", why);
	vp_source_end(&v->io);
	vp_close_foreign(&v->fd);
	v->complete = false;
	vp_ivdirect_device(v->direct, -1, true);
	vp_port_online(v->port, false);
	vp_ivwins_lost(v->wins);
	vp_fdstore_drop(v->c.link->name, "conn");
}

/* Message number n of the handshake. */
static int hello(struct ivshmem *v, unsigned n)
{
	if (n == 0)
		return vp_ivshmem_send(v->fd, 0, -1);  /* protocol version */
	if (n == 1)
		return vp_ivshmem_send(v->fd, PORT_ID, -1);
	if (n == 2)
		return vp_ivshmem_send(v->fd, -1, vp_port_memfd(v->port, NULL));
	n -= HELLO;
	if (n < v->nsig)
		return vp_ivshmem_send(v->fd, DAEMON_ID, v->bell[n]);
	return vp_ivshmem_send(v->fd, PORT_ID, v->sig[n - v->nsig]);
}

/* fresh: it was given nothing before by an earlier process. */
static void device_there(struct ivshmem *v, bool fresh)
{
	v->complete = true;
	vp_ivdirect_device(v->direct, v->fd, fresh);
	vp_port_online(v->port, true);
	vp_eventfd_raise(v->sig0);
}

/* As much of the handshake as the socket takes. 0 or -errno. */
static int go_on(struct ivshmem *v)
{
	while (v->sent < HELLO + 2 * v->nsig) {
		int r = hello(v, v->sent);

		if (r == -EAGAIN)
			return vp_source_events(v->io, EPOLLIN | EPOLLOUT);
		if (r)
			return r;
		v->sent++;
	}
	if (v->complete)
		return 0;
	vp_source_events(v->io, EPOLLIN);
	/* A device with fewer takes those that it has, and tells nobody but its own VMM and guest. */
	vp_log(VP_LOG_INFO, "%s: device connected (pid %d, user %u); it has to have vectors=%u", v->c.name,
	       (int)v->cred.pid, v->cred.uid, v->nsig);
	device_there(v, true);
	vp_fdstore_put(v->c.link->name, "conn", v->fd);
	return 0;
}

static int on_client(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct ivshmem *v = arg;
	char buf[256];
	ssize_t n;
	int r;

	if (revents & EPOLLOUT) {
		v->c.touch(v->c.ctx);
		r = go_on(v);
		if (r < 0) {
			client_gone(v, strerror(-r));
			return 0;
		}
	}
	if (!(revents & ~(uint32_t)EPOLLOUT))
		return 0;
	/* seccomp control: sendmsg */
	n = vp_recv_plain(fd, buf, sizeof(buf));
	if (n == -EBADMSG)
		client_gone(v, "it sent file descriptors");
	else if (!n || (n < 0 && n != -EAGAIN && n != -EINTR))
		client_gone(v, "the connection was closed");
	return 0;
}

static int watch_client(struct ivshmem *v, uint32_t events)
{
	int r = vp_source_add(&v->io, v->c.d->event, v->fd, events, on_client, v);

	if (r >= 0)
		vp_source_limit(v->io, 100000, 500);  /* it has nothing to say */
	return r;
}

static int on_bell(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct ivshmem *v = arg;

	vp_port_command(v->port);
	return 0;
}

static int watch_bell(struct ivshmem *v, struct vp_err *e)
{
	/* Edge-triggered and never read: the other end shares the file. */
	int r = vp_source_add(&v->bell_io, v->c.d->event, v->bell[0], EPOLLIN | EPOLLET, on_bell, v);

	if (r < 0)
		return vp_err_set(e, r, "%s: %s", v->c.name, strerror(-r));
	vp_source_limit(v->bell_io, 100000, 500);
	return 0;
}

static const char *sig_name(char *buf, size_t size, const char *which, unsigned i);

/* Vectors for another device: those of the last one must not be raised any more. All or none of them. */
static int renew_vectors(struct ivshmem *v)
{
	struct vp_wire *wire0 = NULL;
	int sig[VHP_MAX_SIGNALS], r = 0;
	unsigned n = 0;
	char s[16];

	while (!r && n < v->nsig) {
		r = vp_eventfd_new(&sig[n]);
		n += !r;
	}
	if (!r)
		r = vp_wire_new(&wire0, v->c.f, v->sig0, sig[0], v->c.who);
	if (r) {
		while (n--)
			close(sig[n]);
		return r;
	}
	vp_wire_free(v->wire0);
	v->wire0 = wire0;
	for (unsigned i = 0; i < v->nsig; i++) {
		sig_name(s, sizeof(s), "sig", i);
		vp_fdstore_drop(v->c.link->name, s);
		close(v->sig[i]);
		v->sig[i] = sig[i];
		vp_fdstore_put(v->c.link->name, s, sig[i]);
	}
	v->c.wires_changed(v->c.ctx);
	return 0;
}

/*
 * QEMU (seen with 7.2) takes the end of the connection in the handshake for a pause and waits for ever. A version that
 * it does not know it reports, and ends.
 */
static void refuse(int *fd)
{
	vp_ivshmem_send(*fd, NO_VERSION, -1);
	vp_close_foreign(fd);
}

static int on_accept(sd_event_source *s, int lfd, uint32_t revents, void *arg)
{
	struct ivshmem *v = arg;
	const struct vp_conf_side *side = &v->c.link->side[VP_SIDE_DEVICE];
	struct ucred cred;
	int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), r;

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			vp_daemon_shed(v->c.d, lfd, v->c.name);
		return 0;
	}
	/* Its predecessor has gone and the hang-up is still to be handled, whatever either of them had not read. */
	if (v->fd >= 0 && vp_sock_hung_up(v->fd))
		client_gone(v, "the connection was closed");
	if (vp_sock_peer(fd, &cred) || v->fd >= 0 ||
	    !vp_policy_user_ok(vp_conf_vm_find(v->c.d->conf, side->vm), cred.uid, geteuid())) {
		if (!v->n_refused++)
			vp_log(VP_LOG_WARNING, "%s: refused a device (pid %d, user %u): %s%.63s%s", v->c.name,
			       (int)cred.pid, cred.uid,
			       v->fd >= 0 ? "another one is connected" :
					    "this user may not run the VM; add it to User= in ",
			       v->fd >= 0 ? "" : side->vm, v->fd >= 0 ? "" : ".vm");
		refuse(&fd);
		return 0;
	}
	v->c.touch(v->c.ctx);
	r = v->had_device ? renew_vectors(v) : 0;
	if (r) {
		vp_log(VP_LOG_WARNING, "%s: a device (pid %d, user %u) cannot be given signals: %s", v->c.name,
		       (int)cred.pid, cred.uid, strerror(-r));
		refuse(&fd);
		return 0;
	}
	v->had_device = true;
	v->fd = fd;
	v->cred = cred;
	v->sent = 0;
	v->n_conns++;
	r = watch_client(v, EPOLLIN);
	if (r >= 0)
		r = go_on(v);
	if (r < 0)
		client_gone(v, strerror(-r));
	return 0;
}

static int listen_to(struct ivshmem *v, struct vp_err *e)
{
	int r = vp_source_add(&v->listen_io, v->c.d->event, v->lfd, EPOLLIN, on_accept, v);

	return r < 0 ? vp_err_set(e, r, "%s: cannot wait for connections: %s",
				  v->c.link->side[VP_SIDE_DEVICE].socket, strerror(-r)) : 0;
}

/* ---- towards the port -------------------------------------------------------------------------------------- */

static int give(void *att, const struct vp_port_window *w, uint32_t *kind, uint64_t *locator, struct vp_err *e)
{
	struct ivshmem *v = att;

	*kind = VHP_WINDOW_IVSHMEM;
	return vp_ivwins_give(v->wins, w, locator, e);
}

static int take(void *att, unsigned slot)
{
	struct ivshmem *v = att;

	return vp_ivwins_take(v->wins, slot);
}

static void signal_guest(void *att, unsigned i)
{
	struct ivshmem *v = att;

	if (!i)
		vp_eventfd_raise(v->sig0);
}

static const struct vp_port_att_ops port_ops = { .give = give, .take = take, .signal = signal_guest };

/* ---- towards the link --------------------------------------------------------------------------------------- */

static int ivshmem_wire(struct vp_attach *a, unsigned i, int src, struct vp_wire **out)
{
	struct ivshmem *v = (struct ivshmem *)a;

	return i < v->nsig ? vp_wire_new(out, v->c.f, src, v->sig[i], v->c.who) : -EINVAL;
}

static int ivshmem_call_fd(struct vp_attach *a, unsigned i)
{
	struct ivshmem *v = (struct ivshmem *)a;

	return i < v->nsig ? v->bell[i] : -1;
}

static int ivshmem_signal_fd(struct vp_attach *a, unsigned i)
{
	struct ivshmem *v = (struct ivshmem *)a;

	return i < v->nsig && v->complete ? v->sig[i] : -1;
}

static void ivshmem_last_signal(struct vp_attach *a, struct vp_lastsig_conf *c)
{
	c->call = ivshmem_signal_fd(a, 0);
}

static unsigned ivshmem_direct(struct vp_attach *a, unsigned q, int kick, int call)
{
	struct ivshmem *v = (struct ivshmem *)a;

	if (1 + q >= v->nsig)
		return 0;
	v->c.touch(v->c.ctx);
	vp_ivdirect_set(v->direct, q, call);
	return 0;
}

static void ivshmem_show(struct vp_attach *a, json_t *o)
{
	struct ivshmem *v = (struct ivshmem *)a;
	unsigned used, calls = vp_ivdirect_count(v->direct, &used);

	json_object_set_new(o, "connected", json_boolean(v->fd >= 0));
	json_object_set_new(o, "pid", v->fd >= 0 ? json_integer(v->cred.pid) : json_null());
	json_object_set_new(o, "connections", json_integer((json_int_t)v->n_conns));
	json_object_set_new(o, "refused", json_integer((json_int_t)v->n_refused));
	json_object_set_new(o, "last", v->last[0] ? json_string(v->last) : json_null());
	json_object_set_new(o, "calls_direct", json_integer(calls));
	json_object_set_new(o, "doorbells_used", json_integer(used));
	vp_ivwins_show(v->wins, o);
}

/* fd of signal i is kept under this name. */
static const char *sig_name(char *buf, size_t size, const char *which, unsigned i)
{
	snprintf(buf, size, "%s%u", which, i);
	return buf;
}

static void keep_all(struct ivshmem *v)
{
	const char *link = v->c.link->name;
	char s[16];

	vp_fdstore_put(link, "mem", vp_port_memfd(v->port, NULL));
	vp_fdstore_put(link, "state", vp_port_record_fd(v->port));
	for (unsigned i = 0; i < v->nsig; i++) {
		vp_fdstore_put(link, sig_name(s, sizeof(s), "sig", i), v->sig[i]);
		vp_fdstore_put(link, sig_name(s, sizeof(s), "bell", i), v->bell[i]);
	}
}

void vp_ivshmem_keep_nothing(const char *link, unsigned nsig)
{
	char s[16];

	vp_fdstore_drop(link, "conn");
	vp_fdstore_drop(link, "mem");
	vp_fdstore_drop(link, "state");
	for (unsigned i = 0; i < nsig; i++) {
		vp_fdstore_drop(link, sig_name(s, sizeof(s), "sig", i));
		vp_fdstore_drop(link, sig_name(s, sizeof(s), "bell", i));
	}
}

static void keep_nothing(struct ivshmem *v)
{
	vp_ivshmem_keep_nothing(v->c.link->name, v->nsig);
}

static void end(struct ivshmem *v)
{
	vp_source_end(&v->io);
	vp_source_end(&v->listen_io);
	vp_source_end(&v->bell_io);
	vp_ivdirect_free(v->direct);
	vp_wire_free(v->wire0);
	vp_close_foreign(&v->lfd);
	vp_close_foreign(&v->fd);
	vp_close(&v->sig0);
	for (unsigned i = 0; i < v->nsig; i++) {
		if (v->sig)
			vp_close(&v->sig[i]);
		if (v->bell)
			vp_close(&v->bell[i]);
	}
	free(v->sig);
	free(v->bell);
	free(v);
}

static void ivshmem_free(struct vp_attach *a)
{
	struct ivshmem *v = (struct ivshmem *)a;

	if (!v)
		return;
	if (!v->c.d->stopping)
		keep_nothing(v);
	vp_ivwins_free(v->wins);
	if (v->lfd >= 0)
		unlink(v->c.link->side[VP_SIDE_DEVICE].socket);
	end(v);
}

static void ivshmem_leave(struct vp_attach *a)
{
	struct ivshmem *v = (struct ivshmem *)a;

	vp_ivwins_leave(v->wins);
	end(v);
}

static int ivshmem_alter(struct vp_attach *a, struct vp_conf_link *l, const struct vp_conf_link *next, struct vp_err *e)
{
	return vp_ivwins_alter(((struct ivshmem *)a)->wins, l, next, e);
}

/* ---- for another daemon ------------------------------------------------------------------------- */

enum tag { TAG_IVSHMEM = 1, TAG_LISTENS, TAG_CONN, TAG_SIG0, TAG_SIGNAL, TAG_BELL, TAG_LAST, TAG_DIRECT, TAG_WINDOWS };

struct ivshmem_rec {
	uint64_t n_conns, n_refused;
	uint32_t pid, uid, gid, nsig;
	uint32_t sent, complete, had_device, pad;
};

static void ivshmem_save_hot(struct vp_attach *a, struct vp_rec *r)
{
	struct ivshmem *v = (struct ivshmem *)a;
	const struct ivshmem_rec s = {
		.n_conns = v->n_conns, .n_refused = v->n_refused, .pid = (uint32_t)v->cred.pid, .uid = v->cred.uid,
		.gid = v->cred.gid, .nsig = v->nsig, .sent = v->sent, .complete = v->complete,
		.had_device = v->had_device,
	};

	vp_rec_put(r, TAG_IVSHMEM, &s, sizeof(s));
	vp_rec_fd(r, TAG_LISTENS, VP_REC_FD_SOCKET, v->lfd);
	vp_rec_fd(r, TAG_CONN, VP_REC_FD_SOCKET, v->fd);
	vp_rec_fd(r, TAG_SIG0, VP_REC_FD_EVENTFD, v->sig0);
	vp_rec_str(r, TAG_LAST, v->last);
	for (unsigned i = 0; i < v->nsig; i++) {
		vp_rec_fd(r, TAG_SIGNAL, VP_REC_FD_EVENTFD, v->sig[i]);
		vp_rec_fd(r, TAG_BELL, VP_REC_FD_EVENTFD, v->bell[i]);
	}
	vp_rec_begin(r, TAG_DIRECT);
	vp_ivdirect_save(v->direct, r);
	vp_rec_end(r);
	vp_rec_begin(r, TAG_WINDOWS);
	vp_ivwins_save(v->wins, r);
	vp_rec_end(r);
}

static int take_fds(struct ivshmem *v, const struct vp_rec_in *in, struct vp_err *e)
{
	int r = vp_rec_take(in, TAG_LISTENS, VP_REC_FD_SOCKET, &v->lfd, e);

	if (!r)
		r = vp_rec_take(in, TAG_CONN, VP_REC_FD_SOCKET, &v->fd, e);
	if (!r)
		r = vp_rec_take(in, TAG_SIG0, VP_REC_FD_EVENTFD, &v->sig0, e);
	if (!r && (v->lfd < 0 || v->sig0 < 0))
		r = vp_err_set(e, -EPROTO, "the record of its attachment lacks a socket");
	if (!r)
		r = vp_rec_take_all(in, TAG_SIGNAL, VP_REC_FD_EVENTFD, v->sig, v->nsig, e);
	if (!r)
		r = vp_rec_take_all(in, TAG_BELL, VP_REC_FD_EVENTFD, v->bell, v->nsig, e);
	return r;
}

static int ivshmem_restore_hot(struct vp_attach *a, const struct vp_rec_in *in, struct vp_err *e)
{
	struct ivshmem *v = (struct ivshmem *)a;
	struct vp_rec_in direct, windows;
	struct ivshmem_rec s;
	int r;

	if (vp_rec_get(in, TAG_IVSHMEM, &s, sizeof(s)) || s.nsig != v->nsig || s.sent > HELLO + 2 * v->nsig ||
	    vp_rec_text(in, TAG_LAST, v->last, sizeof(v->last)) || !vp_rec_find(in, TAG_DIRECT, &direct) ||
	    !vp_rec_find(in, TAG_WINDOWS, &windows))
		return vp_err_set(e, -EPROTO, "the record of its attachment is malformed");
	v->n_conns = s.n_conns;
	v->n_refused = s.n_refused;
	v->cred = (struct ucred){ (pid_t)s.pid, s.uid, s.gid };
	v->sent = s.sent;
	v->complete = s.complete;
	v->had_device = s.had_device;
	r = take_fds(v, in, e);
	if (!r && s.complete && v->fd < 0)
		r = vp_err_set(e, -EPROTO, "the record of its attachment is malformed");
	if (!r)
		r = watch_bell(v, e);
	if (!r)
		r = listen_to(v, e);
	if (!r && v->fd >= 0 && watch_client(v, v->complete ? EPOLLIN : EPOLLIN | EPOLLOUT) < 0)
		r = vp_err_set(e, -ENOMEM, "its device cannot be watched");
	if (!r)
		r = vp_ivdirect_restore(v->direct, v->complete ? v->fd : -1, &direct, e);
	return r ? r : vp_ivwins_restore(v->wins, &windows, e);
}

static int ivshmem_recover(struct vp_attach *a, struct vp_err *e)
{
	struct ivshmem *v = (struct ivshmem *)a;

	v->recovers = true;
	vp_ivwins_recover(v->wins);
	return 0;
}

/* What the keeper has of it goes on being there; what it gave this process is what the box had, too. */
static void let_go_of_kept(struct ivshmem *v)
{
	static const char *const what[] = { "conn", "mem", "state" };
	struct vp_activation *a = &v->c.d->activation;
	const char *link = v->c.link->name;
	char s[16];
	int fd;

	for (unsigned i = 0; i < VP_ARRAY_SIZE(what); i++) {
		fd = vp_fdstore_take(a, link, what[i]);
		vp_close_foreign(&fd);
	}
	for (unsigned i = 0; i < 2 * v->nsig; i++) {
		fd = vp_fdstore_take(a, link, sig_name(s, sizeof(s), i & 1 ? "bell" : "sig", i / 2));
		vp_close(&fd);
	}
}

/* The service manager has all of it already, under the same names. */
static void ivshmem_go_on(struct vp_attach *a)
{
	struct ivshmem *v = (struct ivshmem *)a;
	int r = vp_wire_new(&v->wire0, v->c.f, v->sig0, v->sig[0], v->c.who);

	if (r)
		vp_log(VP_LOG_ERR, "%s: its guest cannot be signalled: %s", v->c.name, strerror(-r));
	if (!v->recovers)
		return;
	v->recovers = false;
	let_go_of_kept(v);
	vp_ivwins_go_on(v->wins);
}

static const struct vp_attach_ops attach_ops = {
	.save_hot = ivshmem_save_hot, .restore_hot = ivshmem_restore_hot, .go_on = ivshmem_go_on,
	.recover = ivshmem_recover, .leave = ivshmem_leave,
	.windows_on_their_way = true,
	.free = ivshmem_free, .wire = ivshmem_wire, .call_fd = ivshmem_call_fd, .show = ivshmem_show,
	.signal_fd = ivshmem_signal_fd, .last_signal = ivshmem_last_signal, .direct = ivshmem_direct,
	.alter = ivshmem_alter, .plugged = true,
};

void vp_ivshmem_port_conf(struct vp_daemon *d, const struct vp_conf_link *l, struct vp_port_conf *pc)
{
	int mem = -1, state = -1;

	/* What the keeper has is for a link that begins anew: of one that goes on the record has it. */
	if (!pc->silent) {
		mem = vp_fdstore_take(&d->activation, l->name, "mem");
		state = vp_fdstore_take(&d->activation, l->name, "state");
	}
	if (mem >= 0 && state >= 0) {
		pc->kept = true;
		pc->kept_memfd = mem;
		pc->kept_state = state;
	} else {
		vp_close(&mem);
		vp_close(&state);
	}
	pc->attachment = VHP_ATTACHMENT_IVSHMEM;
	pc->nsignals = 1 + pc->max_queues;
	pc->driver_vm = l->side[VP_SIDE_DRIVER].vm;
	pc->device_vm = l->side[VP_SIDE_DEVICE].vm;
	pc->doorbell = VHP_IVSHMEM_DOORBELL(DAEMON_ID, 0);
	pc->queue_doorbell = VHP_IVSHMEM_DOORBELL(DAEMON_ID, 1);
	pc->pow2 = true;
	pc->whole_files = true;
	pc->slow_take = true;
}

/* The vectors that the daemon before us gave to the device of a running VM. True when that is all of them. */
static bool kept_signals(struct ivshmem *v)
{
	struct vp_activation *a = &v->c.d->activation;
	bool all = true;
	char s[16];

	for (unsigned i = 0; i < v->nsig; i++) {
		v->sig[i] = vp_fdstore_take(a, v->c.link->name, sig_name(s, sizeof(s), "sig", i));
		v->bell[i] = vp_fdstore_take(a, v->c.link->name, sig_name(s, sizeof(s), "bell", i));
		all &= v->sig[i] >= 0 && v->bell[i] >= 0;
	}
	for (unsigned i = 0; i < v->nsig && !all; i++) {
		vp_close(&v->sig[i]);
		vp_close(&v->bell[i]);
	}
	return all;
}

static int make_signals(struct ivshmem *v, bool *kept)
{
	int r;

	*kept = kept_signals(v);
	r = vp_eventfd_new(&v->sig0);
	for (unsigned i = 0; i < v->nsig && !r && !*kept; i++) {
		r = vp_eventfd_new(&v->sig[i]);
		if (!r)
			r = vp_eventfd_new(&v->bell[i]);
	}
	if (!r)
		r = vp_wire_new(&v->wire0, v->c.f, v->sig0, v->sig[0], v->c.who);
	return r;
}

/* The device of a running VM, whose handshake was over long ago. */
static int take_over(struct ivshmem *v, bool kept)
{
	const struct vp_conf_vm *vm = vp_conf_vm_find(v->c.d->conf, v->c.link->side[VP_SIDE_DEVICE].vm);
	int fd = vp_fdstore_take(&v->c.d->activation, v->c.link->name, "conn"), r;

	if (fd < 0)
		return 0;
	if (!kept || vp_sock_peer(fd, &v->cred) || !vp_policy_user_ok(vm, v->cred.uid, geteuid())) {
		vp_log(VP_LOG_WARNING,
		       "%s: the device of the running VM cannot be taken over%s; unplug it and plug it again",
		       v->c.name, kept ? ": its user may not run the VM" : ", the port is another one");
		vp_fdstore_drop(v->c.link->name, "conn");
		vp_close_foreign(&fd);
		return 0;
	}
	v->fd = fd;
	v->had_device = true;
	v->sent = HELLO + 2 * v->nsig;
	r = watch_client(v, EPOLLIN);
	if (r < 0)
		return r;
	vp_log(VP_LOG_INFO, "%s: device taken over (pid %d, user %u)", v->c.name, (int)v->cred.pid, v->cred.uid);
	device_there(v, false);
	return 0;
}

/* What every daemon makes that has it from nobody. */
static int begin(struct ivshmem *v, bool *kept, struct vp_err *e)
{
	const struct vp_conf_side *side = &v->c.link->side[VP_SIDE_DEVICE];
	int r = make_signals(v, kept);

	v->had_device = *kept;
	if (r)
		return vp_err_set(e, r, "%s: %s", v->c.name, strerror(-r));
	r = watch_bell(v, e);
	if (!r)
		r = vp_sock_listen(side->socket, vp_conf_socket_file_mode(v->c.d->conf, side->vm), &v->lfd, e);
	return r ? r : listen_to(v, e);
}

int vp_ivshmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e)
{
	struct ivshmem *v = calloc(1, sizeof(*v));
	bool kept = false;
	int r;

	if (!v)
		return vp_err_set(e, -ENOMEM, "%s: out of memory", c->name);
	v->a.ops = &attach_ops;
	v->c = *c;
	v->port = p;
	v->nsig = 1 + vp_type_queues(c->link);
	v->lfd = v->fd = v->sig0 = -1;
	v->sig = malloc(v->nsig * sizeof(int));
	v->bell = malloc(v->nsig * sizeof(int));
	for (unsigned i = 0; v->sig && v->bell && i < v->nsig; i++)
		v->sig[i] = v->bell[i] = -1;
	r = v->sig && v->bell ? 0 : -ENOMEM;
	if (!r)
		r = vp_ivdirect_new(&v->direct, c->d->event, c->link->side[VP_SIDE_DEVICE].vm, c->name, p, FREE_ID,
				    v->nsig, VHP_IVSHMEM_DOORBELL(DAEMON_ID, 1));
	if (r < 0)
		vp_err_set(e, r, "%s: %s", c->name, strerror(-r));
	else
		r = vp_ivwins_new(&v->wins, &v->c, p, e);
	if (!r && !c->heir)
		r = begin(v, &kept, e);
	if (r < 0) {
		ivshmem_free(&v->a);
		return r;
	}
	vp_port_set_attachment(p, &port_ops, v);
	*out = &v->a;
	if (c->heir) {
		vp_guard_keep_later(c->d->guard);
		return 0;
	}
	vp_guard_keep(c->d->guard);
	kept &= vp_port_was_kept(p);
	if (!kept) {
		keep_nothing(v);
		keep_all(v);
	}
	return take_over(v, kept);
}
