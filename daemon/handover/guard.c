/* SPDX-License-Identifier: BSD-3-Clause */
/* The guard: the daemon's side, see guard.h. */
#include "handover/guard.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "handover/guard_priv.h"
#include "sys/fdstore.h"
#include "sys/fds.h"
#include "sys/log_sink.h"
#include "sys/source.h"

/* It has nothing else to do. */
#define ANSWER_MS 1000

struct vp_guard {
	int              sock, pidfd;
	pid_t            pid;
	uint64_t         last_id;
	struct vp_source *io;
	bool             kept, deaf, later, lasts;
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
		vp_log_sink_forked();
		if (dup2(sv[1], GUARD_SOCK_FD) < 0 || syscall(SYS_close_range, GUARD_SOCK_FD + 1, ~0u, 0))
			_exit(1);
		vp_guard_main(c);
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

	vp_log(VP_LOG_ERR,
	       "the guard (pid %d) has gone: a driver VM of a fast link may lose its network if the daemon ends under "
	       "traffic now; restart the daemon after `vhost-pcictl down` of its fast links",
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
	if (g->lasts)
		vp_log(VP_LOG_DEBUG, "the guard (pid %d) waits for the next daemon", (int)g->pid);
	else if (g->pidfd >= 0 && !poll(&p, 1, GUARD_PATIENCE_MS + GUARD_UNMAP_MS + 1000))
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
	/*
	 * It has nothing else to do, and will have read what is there in a moment. Somebody may have stopped it: that
	 * is waited for once.
	 */
	if (r == -EAGAIN && !g->deaf && poll(&p, 1, 1000) == 1)
		r = vp_send_fds(g->sock, m, sizeof(*m), fds, n);
	if (r && !(r == -EAGAIN && g->deaf))
		vp_log(VP_LOG_ERR,
		       "the guard (pid %d) takes no messages: %s; fast links that change now are not in its care",
		       (int)g->pid, strerror(-r));
	g->deaf = r == -EAGAIN;
	return r;
}

int vp_guard_line(int line[2])
{
	/* seccomp control: socketpair(arg0 == AF_UNIX) sendmsg */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, line))
		return -errno;
	return vp_send_fds(line[1], "", 1, NULL, 0);
}

/* Has it got what was claimed? */
static int hear(struct vp_guard *g, uint64_t id)
{
	struct pollfd p = { .fd = g->sock, .events = POLLIN };
	struct guard_answer a;

	/* seccomp control: read */
	while (poll(&p, 1, ANSWER_MS) == 1 && read(g->sock, &a, sizeof(a)) == sizeof(a))
		if (a.id == id)
			return a.got ? 0 : -ESTALE;
	vp_log(VP_LOG_ERR, "the guard (pid %d) does not answer", (int)g->pid);
	return -ETIMEDOUT;
}

static void tell(struct vp_guard *g, enum guard_op op, uint64_t id)
{
	struct guard_msg m = { .op = op, .id = id };

	say(g, &m, NULL, 0);
}

int vp_guard_take(struct vp_guard *g, const struct vp_guard_ward *w)
{
	const int all[GUARD_FDS] = { w->driver,	     w->memfd,	     w->recordfd,   w->signal.call, w->signal.conn,
				     w->signal.hold, w->signal.req,  w->signal.ram, w->line,	    w->claim };
	struct guard_msg m = { .op = GUARD_TAKE, .id = w->id, .signal = w->signal };
	int fd[GUARD_FDS], r;
	unsigned n = 0;

	snprintf(m.name, sizeof(m.name), "%s", w->name);
	for (unsigned i = 0; i < GUARD_FDS; i++) {
		if (all[i] < 0)
			continue;
		m.fds |= 1u << i;
		fd[n++] = all[i];
	}
	r = say(g, &m, fd, n);
	if (r || w->claim < 0)
		return r;
	r = hear(g, w->id);
	/* It may get it when it comes to that, and nobody here has the link then. */
	if (r == -ETIMEDOUT)
		tell(g, GUARD_SEE_OFF, w->id);
	return r;
}

void vp_guard_drop(struct vp_guard *g, uint64_t id)
{
	tell(g, GUARD_DROP, id);
}

void vp_guard_see_off(struct vp_guard *g, uint64_t id)
{
	tell(g, GUARD_SEE_OFF, id);
}

void vp_guard_leave(struct vp_guard *g)
{
	if (g)
		tell(g, GUARD_LEAVE, 0);
}

void vp_guard_lasts(struct vp_guard *g)
{
	g->lasts = true;
}

static int tell_verdict(struct vp_guard *g, enum guard_op op, const struct vp_verdict *v)
{
	struct guard_msg m = { .op = op };
	int fd = vp_verdict_fd(v), r = g ? say(g, &m, &fd, 1) : 0;

	/* One that has gone does nothing when the daemon has. */
	return r == -EPIPE || r == -ECONNRESET ? 0 : r;
}

int vp_guard_born(struct vp_guard *g, const struct vp_verdict *v)
{
	return tell_verdict(g, GUARD_BORN, v);
}

int vp_guard_heir(struct vp_guard *g, const struct vp_verdict *v)
{
	return tell_verdict(g, GUARD_HEIR, v);
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
	/* For the verdict of a hand-over, for the guest, for its VMM. */
	if (!poll(&p, 1, 2 * GUARD_PATIENCE_MS + GUARD_UNMAP_MS + 1000))
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

void vp_guard_keep_later(struct vp_guard *g)
{
	g->later = true;
}

void vp_guard_keep_heir(struct vp_guard *g)
{
	if (!g)
		return;
	/* That of the daemon before, also where its ports were not handed over. */
	vp_fdstore_drop("", "guard");
	/* What was put since went with it. */
	if (!g->later && !g->kept)
		return;
	g->kept = false;
	vp_guard_keep(g);
}
