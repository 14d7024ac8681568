/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: guests write what they like into their control blocks (port/orphan.c), a VMM may make an eventfd block, and a daemon
 * that was taken over may send anything. The guard can do no more than its list of system calls says: no file, no socket of
 * its own, no message to anybody.
 */
#include "handover/guard.h"

#include <cap-ng.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "guestmem/map.h"
#include "sandbox/isolate.h"
#include "sys/fdstore.h"
#include "sys/fds.h"
#include "handover/lastsig.h"
#include "port/orphan.h"
#include "sys/sock.h"
#include "sys/source.h"

/* A data path that hears of it lets go at once; the time is for one that gets no CPU. As long as the next daemon would wait (port.c). */
#define PATIENCE_MS  3000u
#define LOOK_MS      1
#define INTERRUPT_US 100000
#define SOCK_FD      3

enum guard_op { GUARD_TAKE = 1, GUARD_DROP, GUARD_SEE_OFF };

/* What a ward consists of, in this order; those behind FD_KEEP may be missing. */
enum { FD_DRIVER, FD_MEM, FD_KEEP, FD_CALL, FD_CONN, FD_HOLD, FD_RAM, MAX_FDS };

/* One packet of a SEQPACKET socket. TAKE comes with the fds of the mask. */
struct guard_msg {
	uint32_t op, fds;
	uint64_t id;
	char     name[32];
	struct vp_lastsig_conf signal;  /* but for its fds */
};

/* ---- the guard's side ----------------------------------------------------------------------- */

struct ward {
	struct ward      *next;
	uint64_t          id;
	char              name[32];
	int               fd[MAX_FDS];  /* as in the message; -1 = none */
	struct vp_lastsig_conf conf;
	struct vp_orphan *orphan;       /* NULL = the daemon has it */
	struct vp_lastsig *signal;
	uint64_t          since_ms;
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
	for (unsigned i = 0; i < MAX_FDS; i++)
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
	int r = interrupt(true) ? -errno : vp_orphan_new(&w->orphan, w->fd[FD_MEM], w->fd[FD_KEEP]);

	if (r) {
		vp_log(VP_LOG_ERR, "guard: link %s: the device VM cannot be waited for: %s", w->name, strerror(-r));
		return false;
	}
	w->since_ms = now_ms();
	w->conf.call = w->fd[FD_CALL];
	w->conf.ram = w->fd[FD_RAM];
	r = vp_lastsig_new(&w->signal, &w->conf);
	if (r)
		vp_log(VP_LOG_WARNING, "guard: link %s: the device VM cannot be signalled: %s", w->name, strerror(-r));
	if (w->fd[FD_CONN] >= 0)
		shutdown(w->fd[FD_CONN], SHUT_WR);
	signal_guest(w);
	return true;
}

/* Has it been seen off? */
static bool over(struct ward *w)
{
	enum vp_orphan_state s = vp_orphan_look(w->orphan);
	bool let_go = s == VP_ORPHAN_LET_GO || vp_sock_hung_up(w->fd[FD_CONN]);
	uint64_t ms = now_ms() - w->since_ms;

	if (s == VP_ORPHAN_ANSWERED)
		signal_guest(w);
	/* A driver VM that is gone waits for nothing. */
	if (!let_go && ms < PATIENCE_MS && !vp_sock_hung_up(w->fd[FD_DRIVER]))
		return false;
	vp_orphan_finish(w->orphan, let_go);
	signal_guest(w);
	if (let_go || ms < PATIENCE_MS)
		vp_log(VP_LOG_INFO, "guard: link %s: %s after %llu ms; the driver VM's connection ends", w->name,
		       let_go ? "the device VM has let go" : "the driver VM has gone", (unsigned long long)ms);
	else
		vp_log(VP_LOG_WARNING, "guard: link %s: the device VM has not let go of the driver VM's rings in %u s; the driver VM's connection ends all the same",
		       w->name, PATIENCE_MS / 1000);
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

static void take(struct ward **list, const struct guard_msg *m, const int *fd)
{
	struct ward **at = find(list, m->id), *w;

	if (*at)
		ward_free(at);
	w = calloc(1, sizeof(*w));
	if (!w) {
		for (unsigned i = 0; i < MAX_FDS; i++)
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

/* fd[MAX_FDS]: n that came, then -1. */
static void obey(struct ward **list, const struct guard_msg *m, int *fd, unsigned n)
{
	const uint32_t must = 1u << FD_DRIVER | 1u << FD_MEM | 1u << FD_KEEP, may = (1u << MAX_FDS) - 1;
	struct ward **at = find(list, m->id);

	if (m->op == GUARD_TAKE && (m->fds & must) == must && !(m->fds & ~may) && n == (unsigned)__builtin_popcount(m->fds)) {
		/* From behind, each to its place. */
		for (unsigned i = MAX_FDS; i-- > 0;)
			fd[i] = m->fds & 1u << i ? fd[--n] : -1;
		take(list, m, fd);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		close(fd[i]);
	if (m->op == GUARD_TAKE)
		vp_log(VP_LOG_ERR, "guard: link %.31s is not guarded: %u of its %u file descriptors came; raise LimitNOFILE=", m->name, n,
		       (unsigned)__builtin_popcount(m->fds));
	if (m->op == GUARD_DROP && *at)
		ward_free(at);
	else if (m->op == GUARD_SEE_OFF)
		see_off(at);
}

/* False: the daemon has gone. */
static bool listen_to_daemon(struct ward **list)
{
	union {
		struct cmsghdr align;
		char           buf[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} ctl;
	struct guard_msg m;
	struct iovec io = { &m, sizeof(m) };
	/* CMSG_LEN: the padding of CMSG_SPACE would have room for one more. */
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = CMSG_LEN(MAX_FDS * sizeof(int)) };
	int fd[MAX_FDS] = { -1, -1, -1, -1, -1, -1, -1 };
	unsigned n = 0;
	/* seccomp guard: recvmsg close poll */
	ssize_t len = recvmsg(SOCK_FD, &h, MSG_DONTWAIT);
	struct cmsghdr *cm = len >= 0 ? CMSG_FIRSTHDR(&h) : NULL;

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
	obey(list, &m, fd, n);
	return true;
}

_Noreturn static void guard_main(const struct vp_conf_daemon *c)
{
	struct sigaction sa = { .sa_handler = on_alarm };  /* no SA_RESTART: that is the point */
	struct ward *list = NULL, **at;
	bool daemon_lives = true;
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
	vp_foreign_free_elsewhere(false);  /* it makes no threads */
	if (vp_isolate_guard(c, &e)) {
		vp_log(VP_LOG_ERR, "guard: %s", e.msg);
		_exit(1);
	}
	if (write(SOCK_FD, "", 1) != 1)
		_exit(1);
	while (daemon_lives || list) {
		struct pollfd p = { .fd = daemon_lives ? SOCK_FD : -1, .events = POLLIN };
		bool waiting = false;

		for (const struct ward *w = list; w; w = w->next)
			waiting |= w->orphan != NULL;
		if (!waiting)
			interrupt(false);
		if (poll(&p, 1, waiting ? LOOK_MS : -1) == 1 && !listen_to_daemon(&list)) {
			daemon_lives = false;
			for (at = &list; *at;) {
				struct ward *w = *at;

				if (!w->orphan) {
					vp_log(VP_LOG_NOTICE, "guard: link %s: the daemon has gone; the device VM is asked to let go of the driver VM's rings", w->name);
					see_off(at);
				}
				if (*at == w)
					at = &w->next;
			}
		}
		for (at = &list; *at;) {
			if ((*at)->orphan && over(*at))
				ward_free(at);
			else
				at = &(*at)->next;
		}
	}
	_exit(0);
}

/* ---- the daemon's side ---------------------------------------------------------------------- */

struct vp_guard {
	int              sock, pidfd;
	pid_t            pid;
	uint64_t         last_id;
	struct vp_source *io;
	bool             kept, deaf;
};

static int make_process(struct vp_guard *g, const struct vp_conf_daemon *c)
{
	int sv[2];
	char ready;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	g->pid = fork();
	if (!g->pid) {
		/* Nothing of the daemon's but its log: a listening socket here would keep clients waiting. */
		if (dup2(sv[1], SOCK_FD) < 0 || syscall(SYS_close_range, SOCK_FD + 1, ~0u, 0))
			_exit(1);
		guard_main(c);
	}
	close(sv[1]);
	g->sock = sv[0];
	if (g->pid < 0)
		return -errno;
	g->pidfd = (int)syscall(SYS_pidfd_open, g->pid, 0);
	if (g->pidfd < 0)
		return -errno;
	/* It ends at once where it cannot do what it needs, and has said why. */
	return recv(g->sock, &ready, 1, 0) == 1 ? 0 : -ECHILD;
}

int vp_guard_start(struct vp_guard **out, const struct vp_conf_daemon *c, struct vp_err *e)
{
	struct vp_guard *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return vp_err_set(e, -ENOMEM, "out of memory");
	g->sock = g->pidfd = -1;
	r = make_process(g, c);
	if (r) {
		vp_guard_free(g);
		return vp_err_set(e, r, "cannot start the process that guards fast links: %s", strerror(-r));
	}
	*out = g;
	return 0;
}

static int on_death(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_guard *g = arg;

	vp_log(VP_LOG_ERR, "the guard (pid %d) has gone: a driver VM of a fast link may lose its network if the daemon ends under traffic now; restart the daemon after `vhost-pcictl down` of its fast links",
	       (int)g->pid);
	vp_source_end(&g->io);
	vp_close(&g->sock);
	g->pid = 0;
	return 0;
}

int vp_guard_watch(struct vp_guard *g, sd_event *event, struct vp_err *e)
{
	int r = vp_source_add(&g->io, event, g->sock, 0, on_death, g);

	return r < 0 ? vp_err_set(e, r, "cannot watch the guard: %s", strerror(-r)) : 0;
}

void vp_guard_free(struct vp_guard *g)
{
	struct pollfd p;

	if (!g)
		return;
	vp_source_end(&g->io);
	vp_close(&g->sock);
	p = (struct pollfd){ .fd = g->pidfd, .events = POLLIN };
	if (g->pidfd >= 0 && !poll(&p, 1, 5000))
		vp_log(VP_LOG_WARNING, "the guard (pid %d) is still at work", (int)g->pid);
	else if (g->kept)
		vp_fdstore_drop("", "guard");
	vp_close(&g->pidfd);
	free(g);
}

uint64_t vp_guard_id(struct vp_guard *g)
{
	return ++g->last_id;
}

static int say(struct vp_guard *g, const struct guard_msg *m, const int *fds, unsigned n)
{
	struct pollfd p = { .fd = g->sock, .events = POLLOUT };
	int r;

	if (g->sock < 0)
		return -EPIPE;
	r = vp_send_fds(g->sock, m, sizeof(*m), fds, n);
	/* It has nothing else to do, and will have read what is there in a moment. Somebody may have stopped it: that is waited for once. */
	if (r == -EAGAIN && !g->deaf && poll(&p, 1, 1000) == 1)
		r = vp_send_fds(g->sock, m, sizeof(*m), fds, n);
	if (r && !(r == -EAGAIN && g->deaf))
		vp_log(VP_LOG_ERR, "the guard (pid %d) takes no messages: %s; fast links that change now are not in its care", (int)g->pid, strerror(-r));
	g->deaf = r == -EAGAIN;
	return r;
}

int vp_guard_take(struct vp_guard *g, const struct vp_guard_ward *w)
{
	const int all[MAX_FDS] = { w->driver, w->memfd, w->recordfd, w->signal.call, w->signal.conn, w->signal.hold, w->signal.ram };
	struct guard_msg m = { .op = GUARD_TAKE, .id = w->id, .signal = w->signal };
	int fd[MAX_FDS];
	unsigned n = 0;

	snprintf(m.name, sizeof(m.name), "%s", w->name);
	for (unsigned i = 0; i < MAX_FDS; i++) {
		if (all[i] < 0)
			continue;
		m.fds |= 1u << i;
		fd[n++] = all[i];
	}
	return say(g, &m, fd, n);
}

static void tell(struct vp_guard *g, enum guard_op op, uint64_t id)
{
	struct guard_msg m = { .op = op, .id = id };

	say(g, &m, NULL, 0);
}

void vp_guard_drop(struct vp_guard *g, uint64_t id)
{
	tell(g, GUARD_DROP, id);
}

void vp_guard_see_off(struct vp_guard *g, uint64_t id)
{
	tell(g, GUARD_SEE_OFF, id);
}

pid_t vp_guard_pid(const struct vp_guard *g)
{
	return g ? g->pid : 0;
}

/* ---- from one daemon to the next -------------------------------------------------------------- */

void vp_guard_await_last(struct vp_activation *a)
{
	struct pollfd p = { .fd = vp_fdstore_take(a, "", "guard"), .events = POLLIN };

	if (p.fd < 0)
		return;
	if (!poll(&p, 1, PATIENCE_MS + 1000))
		vp_log(VP_LOG_WARNING, "the guard of the daemon before this one is still at work");
	vp_fdstore_drop("", "guard");
	vp_close(&p.fd);
}

void vp_guard_keep(struct vp_guard *g)
{
	if (!g->kept)
		vp_fdstore_put("", "guard", g->pidfd);
	g->kept = true;
}
