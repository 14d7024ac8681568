/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard's process, see guard.h.
 *
 * Threat model: guests write what they like into their control blocks (port/orphan.c), a VMM may make an eventfd block,
 * and a daemon that was taken over may send anything. The guard can do no more than its list of system calls says: no
 * file, no socket of its own, no message to anybody but to the VMM that has windows to unmap (unmap.c).
 */
#include "handover/guard_priv.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "guestmem/map.h"
#include "handover/verdict.h"
#include "sandbox/isolate.h"
#include "handover/unmap.h"
#include "port/orphan.h"
#include "sys/sock.h"

#define LOOK_MS      1
#define WAIT_MS      20      /* for the next daemon */
#define INTERRUPT_US 100000

struct ward {
	struct ward      *next;
	uint64_t          id;
	char              name[32];
	int               fd[GUARD_FDS];  /* as in the message; -1 = none */
	struct vp_lastsig_conf conf;
	struct vp_orphan *orphan;       /* NULL = the daemon has it */
	struct vp_lastsig *signal;
	struct vp_unmap  *unmap;        /* NULL = the guest is waited for, or it has no such windows */
	bool              let_go;       /* the guest has, or its device VM has gone */
	bool              waits;        /* for a next daemon, whose guard takes it; else it is seen off */
	uint64_t          since_ms, unmap_ms;
};

struct guard {
	struct ward       *list;
	struct vp_verdict *born, *heir;  /* of the hand-over to our daemon, and of that to the next; NULL = none */
	bool               daemon_lives;
	bool               decided;      /* the daemon has gone, and whose the wards are is known */
	uint64_t           gone_ms;
	bool               service;      /* a service manager keeps the links, not a holder */
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/*
 * A signal ends, every INTERRUPT_US, a write that blocks or a connection's end that lingers
 * (base/foreign.h).
 */
static int interrupt(bool on)
{
	const struct itimerval every = { { 0, on ? INTERRUPT_US : 0 }, { 0, on ? INTERRUPT_US : 0 } };

	/* seccomp guard: setitimer */
	return setitimer(ITIMER_REAL, &every, NULL) ? -errno : 0;
}

static void ward_free(struct ward **at)
{
	struct ward *w = *at;

	interrupt(true);
	*at = w->next;
	vp_orphan_free(w->orphan);
	vp_lastsig_free(w->signal);
	vp_unmap_free(w->unmap);
	for (unsigned i = 0; i < GUARD_FDS; i++)
		vp_close(&w->fd[i]);
	free(w);
}

/* The timer ends a write that blocks. */
static void signal_guest(const struct ward *w)
{
	if (w->signal)
		vp_lastsig_raise(w->signal);
}

static void on_alarm(int sig)
{
}

/* The daemon has gone, or this link has. False: there is nothing to wait for. */
static bool begin(struct ward *w)
{
	/* seccomp guard: shutdown */
	int r = interrupt(true) ? -errno : vp_orphan_new(&w->orphan, w->fd[GUARD_MEM], w->fd[GUARD_RECORD]);

	if (r) {
		vp_log(VP_LOG_ERR, "guard: link %s: the device VM cannot be waited for: %s", w->name, strerror(-r));
		return false;
	}
	w->since_ms = now_ms();
	w->conf.call = w->fd[GUARD_CALL];
	w->conf.ram = w->fd[GUARD_RAM];
	r = vp_lastsig_new(&w->signal, &w->conf);
	if (r)
		vp_log(VP_LOG_WARNING, "guard: link %s: the device VM cannot be signalled: %s", w->name, strerror(-r));
	if (w->fd[GUARD_CONN] >= 0)
		shutdown(w->fd[GUARD_CONN], SHUT_WR);
	signal_guest(w);
	return true;
}

/* The guest has let go, or was waited for long enough. */
static bool waited(struct ward *w)
{
	enum vp_orphan_state s = vp_orphan_look(w->orphan);
	uint64_t ms = now_ms() - w->since_ms;

	w->let_go = s == VP_ORPHAN_LET_GO || vp_sock_hung_up(w->fd[GUARD_CONN]);
	if (s == VP_ORPHAN_ANSWERED)
		signal_guest(w);
	/* A driver VM that is gone waits for nothing. */
	if (!w->let_go && ms < GUARD_PATIENCE_MS && !vp_sock_hung_up(w->fd[GUARD_DRIVER]))
		return false;
	if (w->let_go || ms < GUARD_PATIENCE_MS)
		vp_log(VP_LOG_INFO, "guard: link %s: %s after %llu ms; the driver VM's connection ends", w->name,
		       w->let_go ? "the device VM has let go" : "the driver VM has gone", (unsigned long long)ms);
	else
		vp_log(VP_LOG_WARNING,
		       "guard: link %s: the device VM has not let go of the driver VM's rings in %u s; the driver VM's "
		       "connection ends all the same",
		       w->name, GUARD_PATIENCE_MS / 1000);
	return true;
}

/* Its VMM unmaps what it has; false: it was asked, and is waited for. */
static bool unmapped(struct ward *w)
{
	enum vp_unmap_state s = VP_UNMAP_WAITS;

	if (w->fd[GUARD_REQ] < 0 || vp_sock_hung_up(w->fd[GUARD_HOLD]))
		return true;
	if (!w->unmap) {
		w->unmap_ms = now_ms();
		if (vp_unmap_new(&w->unmap, w->fd[GUARD_REQ], w->fd[GUARD_HOLD], w->fd[GUARD_RECORD]))
			s = VP_UNMAP_LOST;
	}
	if (w->unmap)
		s = vp_unmap_look(w->unmap);
	if (s == VP_UNMAP_WAITS && now_ms() - w->unmap_ms < GUARD_UNMAP_MS)
		return false;
	if (s == VP_UNMAP_DONE)
		vp_log(VP_LOG_INFO, "guard: link %s: the device VM's VMM has let go of %u windows after %llu ms",
		       w->name, vp_unmap_count(w->unmap), (unsigned long long)(now_ms() - w->unmap_ms));
	else
		vp_log(VP_LOG_WARNING,
		       "guard: link %s: the device VM's VMM has not said that it let all windows go; the device VM may "
		       "have them until its VMM connects again, or ends",
		       w->name);
	return true;
}

/* Has it been seen off? */
static bool over(struct ward *w)
{
	if (!w->unmap && !waited(w))
		return false;
	if (!unmapped(w))
		return false;
	vp_orphan_finish(w->orphan, w->let_go);
	signal_guest(w);
	/* Somebody may keep them, too, for a daemon that will not go on with them. */
	if (w->fd[GUARD_LINE] >= 0 && w->fd[GUARD_DRIVER] >= 0)
		shutdown(w->fd[GUARD_DRIVER], SHUT_RDWR);
	if (w->fd[GUARD_LINE] >= 0 && w->fd[GUARD_HOLD] >= 0)
		shutdown(w->fd[GUARD_HOLD], SHUT_RDWR);
	return true;
}

static struct ward **find(struct ward **list, uint64_t id)
{
	/* One that is being seen off is the daemon's no more, whatever it says. */
	for (; *list; list = &(*list)->next)
		if ((*list)->id == id && !(*list)->orphan)
			break;
	return list;
}

/* The byte in a line is one guard's, once. */
static bool have_byte(int line)
{
	char byte;
	struct iovec io = { &byte, 1 };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };

	/* seccomp guard: recvmsg */
	return recvmsg(line, &h, MSG_DONTWAIT) == 1;
}

static void take(struct ward **list, const struct guard_msg *m, int *fd)
{
	struct guard_answer a = { .id = m->id, .got = fd[GUARD_CLAIM] < 0 || have_byte(fd[GUARD_CLAIM]) };
	struct ward **at = find(list, m->id), *w;

	/* A daemon that has gone hears nothing any more. */
	if (fd[GUARD_CLAIM] >= 0 && write(GUARD_SOCK_FD, &a, sizeof(a)) < 0 && errno != EPIPE)
		vp_log(VP_LOG_ERR, "guard: link %.31s: the daemon cannot be answered: %m", m->name);
	vp_close(&fd[GUARD_CLAIM]);
	if (*at)
		ward_free(at);
	w = a.got ? calloc(1, sizeof(*w)) : NULL;
	if (!w) {
		for (unsigned i = 0; i < GUARD_FDS; i++)
			if (fd[i] >= 0)
				close(fd[i]);
		return;
	}
	w->id = m->id;
	memcpy(w->name, m->name, sizeof(w->name) - 1);
	memcpy(w->fd, fd, sizeof(w->fd));
	w->conf = m->signal;
	w->next = *list;
	*list = w;
}

static void see_off(struct ward **at)
{
	if (*at && !begin(*at))
		ward_free(at);
}

/* Those that are being seen off were taken away before that; their connections are nobody else's. */
static void forget_all(struct ward **at)
{
	while (*at)
		if ((*at)->orphan)
			at = &(*at)->next;
		else
			ward_free(at);
}

/*
 * A service manager that is about to end all that the daemon has left behind asks first, and waits for it: there is no
 * next daemon before that. The signal is blocked.
 */
static bool asked_to_end(const struct guard *g)
{
	sigset_t set;

	/* seccomp guard: rt_sigpending */
	return g->service && !sigpending(&set) && sigismember(&set, SIGTERM) == 1;
}

/* The daemon has gone. */
static void wait_or_see_off(struct ward **at)
{
	struct ward *w = *at;

	w->waits = w->fd[GUARD_LINE] >= 0 && !vp_sock_hung_up(w->fd[GUARD_LINE]);
	vp_log(VP_LOG_NOTICE,
	       w->waits ? "guard: link %s: the daemon has gone; the next one may go on with it" :
			  "guard: link %s: the daemon has gone; the device VM is asked to let go of the driver VM's "
			  "rings",
	       w->name);
	if (!w->waits)
		see_off(at);
}

/* Has the next daemon gone on with it, or will none? */
static void look_for_next(struct guard *g, struct ward **at)
{
	struct ward *w = *at;

	if (!vp_sock_hung_up(w->fd[GUARD_LINE]) && !asked_to_end(g))
		return;
	w->waits = false;
	if (!have_byte(w->fd[GUARD_LINE])) {
		vp_log(VP_LOG_INFO, "guard: link %s: the next daemon has it", w->name);
		ward_free(at);
		return;
	}
	vp_log(VP_LOG_NOTICE,
	       "guard: link %s: no daemon goes on with it; the device VM is asked to let go of the driver VM's rings",
	       w->name);
	see_off(at);
}

static void take_verdict(struct vp_verdict **v, int fd)
{
	int r;

	vp_verdict_free(*v);
	*v = NULL;
	r = vp_verdict_map(v, fd);
	if (r)
		vp_log(VP_LOG_ERR, "guard: the verdict of a hand-over cannot be read: %s", strerror(-r));
}

/* fd[GUARD_FDS]: n that came, then -1. */
static void obey(struct guard *g, const struct guard_msg *m, int *fd, unsigned n)
{
	const uint32_t must = 1u << GUARD_MEM | 1u << GUARD_RECORD, may = (1u << GUARD_FDS) - 1;
	struct ward **list = &g->list, **at = find(list, m->id);

	if (m->op == GUARD_TAKE && (m->fds & must) == must && !(m->fds & ~may) &&
	    n == (unsigned)__builtin_popcount(m->fds)) {
		/* From behind, each to its place. */
		for (unsigned i = GUARD_FDS; i-- > 0;)
			fd[i] = m->fds & 1u << i ? fd[--n] : -1;
		take(list, m, fd);
		return;
	}
	if (n == 1 && (m->op == GUARD_BORN || m->op == GUARD_HEIR))
		take_verdict(m->op == GUARD_BORN ? &g->born : &g->heir, fd[0]);
	for (unsigned i = 0; i < n; i++)
		close(fd[i]);
	if (m->op == GUARD_TAKE)
		vp_log(VP_LOG_ERR,
		       "guard: link %.31s is not guarded: %u of its %u file descriptors came; raise LimitNOFILE=",
		       m->name, n, (unsigned)__builtin_popcount(m->fds));
	if (m->op == GUARD_LEAVE)
		forget_all(list);
	at = find(list, m->id);
	if (m->op == GUARD_DROP && *at)
		ward_free(at);
	else if (m->op == GUARD_SEE_OFF)
		see_off(at);
}

/* False: the daemon has gone. */
static bool listen_to_daemon(struct guard *g)
{
	union {
		struct cmsghdr align;
		char           buf[CMSG_SPACE(GUARD_FDS * sizeof(int))];
	} ctl;
	struct guard_msg m;
	struct iovec io = { &m, sizeof(m) };
	/* CMSG_LEN: the padding of CMSG_SPACE would have room for one more. */
	struct msghdr h = { .msg_iov = &io,
			    .msg_iovlen = 1,
			    .msg_control = ctl.buf,
			    .msg_controllen = CMSG_LEN(GUARD_FDS * sizeof(int)) };
	int fd[GUARD_FDS];
	unsigned n = 0;
	/* seccomp guard: recvmsg close poll */
	ssize_t len = recvmsg(GUARD_SOCK_FD, &h, MSG_DONTWAIT);
	struct cmsghdr *cm = len >= 0 ? CMSG_FIRSTHDR(&h) : NULL;

	memset(fd, -1, sizeof(fd));
	if (len < 0)
		return errno == EAGAIN || errno == EINTR;
	if (cm && cm->cmsg_level == SOL_SOCKET && cm->cmsg_type == SCM_RIGHTS) {
		n = (unsigned)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fd, CMSG_DATA(cm), n * sizeof(int));
	}
	if (!len)
		return false;
	if (len != sizeof(m))
		m.op = 0;
	obey(g, &m, fd, n);
	return true;
}

/*
 * The daemon has gone. Somebody may have what it had: the one before it, which never heard that this one takes over, or
 * its successor. That may be about to say so; it is not waited for longer than a guest would be.
 */
static enum vp_verdict_is whose(struct guard *g)
{
	/* Ours, or that of whom our daemon meant to follow. */
	if (g->born && vp_verdict_for_old(g->born) == VP_VERDICT_OLD)
		return VP_VERDICT_NEW;
	if (!g->heir)
		return VP_VERDICT_OLD;
	return now_ms() - g->gone_ms < GUARD_PATIENCE_MS ? vp_verdict_look(g->heir) : vp_verdict_for_old(g->heir);
}

static void daemon_gone(struct guard *g)
{
	enum vp_verdict_is is = whose(g);

	if (is == VP_VERDICT_OPEN)
		return;
	g->decided = true;
	if (is == VP_VERDICT_NEW) {
		forget_all(&g->list);
		return;
	}
	for (struct ward **at = &g->list; *at;) {
		struct ward *w = *at;

		if (!w->orphan)
			wait_or_see_off(at);
		if (*at == w)
			at = &w->next;
	}
}

_Noreturn void vp_guard_main(const struct vp_conf_daemon *c)
{
	struct sigaction sa = { .sa_handler = on_alarm };  /* no SA_RESTART: that is the point */
	struct guard g = { .daemon_lives = true, .service = getenv("NOTIFY_SOCKET") };
	struct vp_err e = { 0 };
	sigset_t set;

	/* A service manager that ends what the daemon left behind asks all of it; this ends by itself. */
	sigfillset(&set);
	sigdelset(&set, SIGALRM);
	sigdelset(&set, SIGSYS);
	sigdelset(&set, SIGBUS);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigaction(SIGALRM, &sa, NULL);
	prctl(PR_SET_NAME, "vhost-pci-guard");
	vp_map_guard_faults();
	vp_foreign_no_threads();
	if (vp_isolate_guard(c, &e)) {
		vp_log(VP_LOG_ERR, "guard: %s", e.msg);
		_exit(1);
	}
	if (write(GUARD_SOCK_FD, "", 1) != 1)
		_exit(1);
	while (g.daemon_lives || g.list) {
		struct pollfd p = { .fd = g.daemon_lives ? GUARD_SOCK_FD : -1, .events = POLLIN };
		bool waiting = !g.daemon_lives && !g.decided, next = false;

		for (const struct ward *w = g.list; w; w = w->next) {
			waiting |= w->orphan != NULL;
			next |= w->waits;
		}
		if (!waiting)
			interrupt(false);
		if (poll(&p, 1, waiting ? LOOK_MS : next ? WAIT_MS : -1) == 1 && !listen_to_daemon(&g)) {
			g.daemon_lives = false;
			g.gone_ms = now_ms();
		}
		if (!g.daemon_lives && !g.decided)
			daemon_gone(&g);
		for (struct ward **at = &g.list, *w; (w = *at);) {
			if (w->waits)
				look_for_next(&g, at);
			else if (w->orphan && over(w))
				ward_free(at);
			if (*at == w)
				at = &w->next;
		}
	}
	_exit(0);
}
