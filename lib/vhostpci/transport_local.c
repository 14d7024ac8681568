/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The `local` attachment: include/vhost-pci/local.h. The daemon is trusted (it is part of this
 * process's host), but its messages are checked all the same, and no fd is ever leaked.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include <vhost-pci/local.h>

#include "base/watch.h"
#include "vhostpci/internal.h"

#define HANDSHAKE_MS 2000
#define COMMAND_MS   5000

struct local_window {
	uint64_t key, offset, size;
	int      fd;
};

struct local {
	struct vhp_transport t;
	int      sock, ctrl_fd;
	struct vp_watch *sock_watch, *kick_watch;  /* in t.fd; of signal 0 */
	void    *ctrl;
	uint64_t ctrl_len;
	bool     ready, dead;
	uint32_t seq;
	unsigned nkick, ncall;
	int      kick[VHP_MAX_SIGNALS], call[VHP_MAX_SIGNALS];
	struct local_window win[VHP_MAX_WINDOWS];
	unsigned nwin;
};

/* Take fds of a message as signals arg[0].. of one direction; what is replaced is closed. */
static void take_fds(struct local *l, int *slot, unsigned n, const struct vhp_local_msg *m, int *fds,
		     bool kick)
{
	unsigned i;

	for (i = 0; i < m->nfds && m->arg[0] + i < n; i++) {
		uint64_t at = m->arg[0] + i;

		if (kick && at == 0) {
			vp_watch_end(&l->kick_watch);
			vp_watch_add(&l->kick_watch, l->t.fd, fds[i], EPOLLIN, 0);
		}
		vp_close(&slot[at]);
		slot[at] = fds[i];
		fds[i] = -1;
	}
	l->t.serial++;
}

static void window_gone(struct local *l, uint64_t key)
{
	unsigned i;

	for (i = 0; i < l->nwin; i++) {
		if (l->win[i].key != key)
			continue;
		vp_close(&l->win[i].fd);
		l->win[i] = l->win[--l->nwin];
		return;
	}
}

static int handle(struct local *l, const struct vhp_local_msg *m, int *fds, struct vp_err *e)
{
	struct stat st;

	switch (m->type) {
	case VHP_LOCAL_HELLO:
		if (m->nfds != 1 || m->arg[0] != VHP_LOCAL_VERSION || l->ctrl)
			return vp_err_set(e, -EPROTO,
					  "the daemon's greeting is of version %llu, this program speaks %u",
					  (unsigned long long)m->arg[0], VHP_LOCAL_VERSION);
		if (fstat(fds[0], &st) < 0 || st.st_size < (off_t)VHP_CTRL_SIZE ||
		    (uint64_t)st.st_size < m->arg[2])
			return vp_err_set(e, -EPROTO, "the daemon's control memory is too small");
		l->ctrl = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
		if (l->ctrl == MAP_FAILED) {
			l->ctrl = NULL;
			return vp_err_set(e, -errno, "cannot map the control memory: %m");
		}
		l->ctrl_fd = fds[0];
		fds[0] = -1;
		l->ctrl_len = (uint64_t)st.st_size;
		l->nkick = (unsigned)VP_MIN(m->arg[3], VHP_MAX_SIGNALS);
		l->ncall = (unsigned)VP_MIN(m->arg[4], VHP_MAX_SIGNALS);
		return 0;
	case VHP_LOCAL_SIGNALS:
		take_fds(l, l->kick, l->nkick, m, fds, true);
		return 0;
	case VHP_LOCAL_DOORBELLS:
		if (m->arg[1] == 1) {
			if (m->arg[0] < l->ncall)
				vp_close(&l->call[m->arg[0]]);
			l->t.serial++;
			return 0;
		}
		take_fds(l, l->call, l->ncall, m, fds, false);
		return 0;
	case VHP_LOCAL_READY:
		l->ready = true;
		return 0;
	case VHP_LOCAL_WINDOW:
		if (m->nfds != 1 || l->nwin == VHP_MAX_WINDOWS)
			return 0;
		l->win[l->nwin++] = (struct local_window){ m->arg[0], m->arg[1], m->arg[2], fds[0] };
		fds[0] = -1;
		l->t.serial++;
		return 0;
	case VHP_LOCAL_WINDOW_GONE:
		window_gone(l, m->arg[0]);
		return 0;
	case VHP_LOCAL_ERROR:
		return vp_err_set(e, -(int)m->arg[0], "the daemon refuses the port: %s", strerror((int)m->arg[0]));
	default:
		return 0;
	}
}

/* One message. 1 handled, 0 none now, -errno. */
static int receive(struct local *l, struct vp_err *e)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(VHP_LOCAL_MAX_FDS * sizeof(int))];
	} u;
	int fds[VHP_LOCAL_MAX_FDS], ret;
	struct vhp_local_msg m;
	struct iovec iov = { &m, sizeof(m) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };
	struct cmsghdr *c;
	unsigned i, n = 0;
	ssize_t len;

	len = recvmsg(l->sock, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (len <= 0)
		return vp_err_set(e, -ENODEV, "the daemon closed the port");
	for (c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
		unsigned k;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		k = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), k * sizeof(int));
		n = k;
	}
	/* The rest of a message that was cut in the middle is on its way. */
	while (len < (ssize_t)sizeof(m)) {
		struct pollfd p = { l->sock, POLLIN, 0 };
		ssize_t more;

		if (poll(&p, 1, HANDSHAKE_MS) <= 0)
			break;
		more = recv(l->sock, (char *)&m + len, sizeof(m) - (size_t)len, MSG_DONTWAIT);
		if (more <= 0)
			break;
		len += more;
	}
	if (len < (ssize_t)sizeof(m) || m.nfds != n || (h.msg_flags & MSG_CTRUNC))
		ret = vp_err_set(e, -EPROTO, "the daemon sent an incomplete message");
	else
		ret = handle(l, &m, fds, e);
	for (i = 0; i < n; i++)
		vp_close(&fds[i]);
	return ret ? ret : 1;
}

static int local_pump(struct vhp_transport *t, struct vp_err *e)
{
	struct local *l = vp_container_of(t, struct local, t);
	uint64_t drained;
	int ret;

	if (l->dead)
		return vp_err_set(e, -ENODEV, "the port is gone");
	if (l->kick[0] >= 0) {
		struct pollfd p = { l->kick[0], POLLIN, 0 };

		if (poll(&p, 1, 0) == 1 && read(l->kick[0], &drained, sizeof(drained)) < 0 && errno != EAGAIN)
			return vp_err_set(e, -errno, "signal 0: %m");
	}
	while ((ret = receive(l, e)) > 0)
		;
	if (ret < 0)
		l->dead = true;
	return ret < 0 ? -ENODEV : 0;
}

static void ring(int fd)
{
	uint64_t one = 1;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return; /* full: a signal is pending already */
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Wait until something arrives or the time is over. */
static void wait_events(struct local *l, int64_t until)
{
	struct pollfd p = { l->t.fd, POLLIN, 0 };
	int64_t left = until - now_ms();

	if (left > 0)
		poll(&p, 1, (int)VP_MIN(left, 50));
}

static int local_command(struct vhp_transport *t, uint32_t opcode, const uint64_t *args, unsigned nargs,
			 uint32_t *status, uint64_t *value, struct vp_err *e)
{
	struct local *l = vp_container_of(t, struct local, t);
	struct vhp_abi_control *c = l->ctrl;
	int64_t until = now_ms() + COMMAND_MS;
	unsigned i;
	int ret;

	l->seq = l->seq + 1 ? l->seq + 1 : 1;
	for (i = 0; i < VHP_CMD_NARGS; i++)
		c->command.args[i] = htole64(i < nargs ? args[i] : 0);
	c->command.opcode = htole32(opcode);
	/* Pairs with the daemon's acquire: args and opcode are there when it sees seq. */
	__atomic_store_n(&c->command.seq, htole32(l->seq), __ATOMIC_RELEASE);
	ring(l->call[0]);
	for (;;) {
		const struct vhp_abi_answer *a = &c->state.answer;
		uint32_t g = vp_state_generation(c);

		if (!(g & 1) && le32toh(__atomic_load_n(&a->seq, __ATOMIC_RELAXED)) == l->seq) {
			*status = le32toh(a->status);
			for (i = 0; value && i < 6; i++)
				value[i] = le64toh(a->value[i]);
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			if (vp_state_generation(c) == g)
				return 0;
			continue;
		}
		if (now_ms() > until)
			return vp_err_set(e, -ETIMEDOUT, "the daemon did not answer command %u within %d ms", opcode,
					  COMMAND_MS);
		wait_events(l, until);
		ret = local_pump(t, e);
		if (ret)
			return ret;
	}
}

static int local_map(struct vhp_transport *t, const struct vp_state_window *w, unsigned slot,
		     uint64_t offset, uint64_t size, bool writable, struct vp_map **out, struct vp_err *e)
{
	struct local *l = vp_container_of(t, struct local, t);
	/* The daemon looked at what it passes on, and its administrator may have allowed more than we know. */
	unsigned i, flags = VP_MAP_VOUCHED | (writable ? 0 : VP_MAP_READONLY);

	if (w->kind == VHP_WINDOW_POOL)
		return vp_map_new(out, l->ctrl_fd, w->locator + offset, size, flags, e);
	if (w->kind != VHP_WINDOW_FD)
		return vp_err_set(e, -EPROTO, "window %u is of kind %u, which a local port does not have", slot,
				  w->kind);
	for (i = 0; i < l->nwin; i++)
		if (l->win[i].key == w->locator)
			return vp_map_new(out, l->win[i].fd, l->win[i].offset + offset, size, flags, e);
	return vp_err_set(e, -EAGAIN, "window %u has not arrived yet", slot);
}

static int local_kick_fd(struct vhp_transport *t, unsigned q, uint32_t signal)
{
	struct local *l = vp_container_of(t, struct local, t);

	return signal < VHP_MAX_SIGNALS ? l->kick[signal] : -1;
}

static int local_call_fd(struct vhp_transport *t, unsigned q, uint32_t doorbell)
{
	struct local *l = vp_container_of(t, struct local, t);

	return doorbell < VHP_MAX_SIGNALS ? l->call[doorbell] : -1;
}

static void local_close(struct vhp_transport *t)
{
	struct local *l = vp_container_of(t, struct local, t);
	unsigned i;

	for (i = 0; i < VHP_MAX_SIGNALS; i++) {
		vp_close(&l->kick[i]);
		vp_close(&l->call[i]);
	}
	for (i = 0; i < l->nwin; i++)
		vp_close(&l->win[i].fd);
	if (l->ctrl)
		munmap(l->ctrl, VHP_CTRL_SIZE);
	vp_watch_end(&l->kick_watch);
	vp_watch_end(&l->sock_watch);
	vp_close(&l->ctrl_fd);
	vp_close(&l->sock);
	vp_close(&l->t.fd);
	free(l);
}

static const struct vhp_transport_ops local_ops = {
	.pump = local_pump, .command = local_command, .map = local_map,
	.kick_fd = local_kick_fd, .call_fd = local_call_fd, .close = local_close,
};

int vhp_transport_local(struct vhp_transport **out, const char *path, struct vp_err *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct local *l;
	int64_t until;
	unsigned i;
	int ret;

	if (strlen(path) >= sizeof(a.sun_path))
		return vp_err_set(e, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
				  sizeof(a.sun_path) - 1);
	strcpy(a.sun_path, path);
	l = calloc(1, sizeof(*l));
	if (!l)
		return vp_err_set(e, -ENOMEM, "out of memory");
	l->t.ops = &local_ops;
	l->ctrl_fd = -1;
	for (i = 0; i < VHP_MAX_SIGNALS; i++)
		l->kick[i] = l->call[i] = -1;
	l->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	l->t.fd = epoll_create1(EPOLL_CLOEXEC);
	if (l->sock < 0 || l->t.fd < 0) {
		ret = vp_err_set(e, -errno, "socket: %m");
		goto fail;
	}
	if (connect(l->sock, (struct sockaddr *)&a, sizeof(a)) < 0) {
		ret = vp_err_set(e, -errno,
				 "%s: %m (does vhost-pcid run, and has this link Endpoint=port, Attachment=local?)",
				 path);
		goto fail;
	}
	ret = vp_watch_add(&l->sock_watch, l->t.fd, l->sock, EPOLLIN, 0);
	if (ret) {
		vp_err_set(e, ret, "epoll: %s", strerror(-ret));
		goto fail;
	}
	until = now_ms() + HANDSHAKE_MS;
	while (!l->ready) {
		ret = receive(l, e);
		if (ret < 0)
			goto fail;
		if (ret)
			continue;
		if (now_ms() > until) {
			ret = vp_err_set(e, -ETIMEDOUT, "%s: the daemon did not finish its greeting within %d ms", path,
					 HANDSHAKE_MS);
			goto fail;
		}
		wait_events(l, until);
	}
	if (!l->ctrl) {
		ret = vp_err_set(e, -EPROTO, "%s: the daemon sent no control memory", path);
		goto fail;
	}
	l->t.ctrl = l->ctrl;
	/* Differs from the last command and from the last answer, whoever gave them. */
	l->seq = VP_MAX(le32toh(((struct vhp_abi_control *)l->ctrl)->command.seq),
			le32toh(((struct vhp_abi_control *)l->ctrl)->state.answer.seq));
	*out = &l->t;
	return 0;
fail:
	local_close(&l->t);
	return ret;
}
