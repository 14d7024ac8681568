/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "sys/fds.h"
#include "sys/sock.h"

#define MAGIC      0x76706872u
#define PIECE      32768u
#define PIECE_FDS  VP_SEND_FDS_MAX
#define BYTES_MAX  (1u << 30)
#define FDS_MAX    (1u << 20)
#define ROOM_FDS   65536u
#define HELLO_MS   60000
#define RECORD_MS  30000
#define POINT_MS   1500

enum type { HELLO = 1, DATA, END, DONE, FAILED, ABORT, READY, STOP };

struct head {
	uint32_t magic, type;
	uint64_t bytes; /* END: of the whole record; else of this packet */
	uint64_t fds;   /* likewise */
};

struct packet {
	struct head h;
	uint8_t     body[PIECE];
};

int64_t vp_takeover_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int send_packet(int sock, enum type type, const void *body, size_t n, const int *fds, unsigned n_fds)
{
	struct packet p = { .h = { MAGIC, type, n, n_fds } };

	if (n)
		memcpy(p.body, body, n);
	return vp_send_fds(sock, &p, sizeof(p.h) + n, fds, n_fds);
}

/* One packet; its fds, at most PIECE_FDS, are the caller's. -EAGAIN, -EPIPE: the end; -EPROTO. */
static int get_packet(int sock, struct packet *p, int *fds, unsigned *n_fds)
{
	union {
		char buf[CMSG_SPACE(VP_FOREIGN_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec io = { p, sizeof(*p) };
	struct msghdr h = {
		.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf),
	};
	unsigned n = 0;
	ssize_t got;

	*n_fds = 0;
	/* seccomp control: recvmsg */
	got = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(&h); cm; cm = CMSG_NXTHDR(&h, cm)) {
		size_t have = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < have; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
			if (fds && n < PIECE_FDS)
				fds[n++] = fd;
			else
				vp_close_foreign(&fd);
		}
	}
	*n_fds = n;
	if (!got)
		return -EPIPE;
	if ((size_t)got < sizeof(p->h) || p->h.magic != MAGIC || h.msg_flags & (MSG_CTRUNC | MSG_TRUNC) ||
	    (p->h.type != END && (p->h.bytes != (size_t)got - sizeof(p->h) || p->h.fds != n)))
		return -EPROTO;
	return 0;
}

static void close_all(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		vp_close_foreign(&fds[i]);
}

/* False: the time is over. */
static bool wait_for(int sock, short events, int64_t deadline_ms)
{
	struct pollfd p = { .fd = sock, .events = events };
	int64_t left = deadline_ms - vp_takeover_ms();

	return left > 0 && (poll(&p, 1, (int)left) == 1 || vp_takeover_ms() < deadline_ms);
}

void vp_takeover_pause(int sock, int64_t deadline_ms)
{
	wait_for(sock, POLLIN, deadline_ms);
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

/* A packet of that type; as vp_takeover_hello(). */
static int expect(int sock, enum type type, struct packet *p, struct vp_err *e)
{
	unsigned n;
	int r = get_packet(sock, p, NULL, &n);

	if (r == -EAGAIN)
		return r;
	if (r == -EPIPE || r == -ECONNRESET)
		return vp_err_set(e, -ECHILD, "the new daemon ended before it was ready; its log says why");
	if (!r && p->h.type == FAILED)
		return vp_err_set(e, -ECHILD, "the new daemon cannot take over: %.*s", (int)VP_MIN(p->h.bytes, 180u),
				  (const char *)p->body);
	if (r || p->h.type != type)
		return vp_err_set(e, -EPROTO, "what was started is no vhost-pcid, or one that cannot take over");
	return 0;
}

int vp_takeover_ready(int sock, struct vp_err *e)
{
	struct packet p;

	return expect(sock, READY, &p, e);
}

int vp_takeover_hello(int sock, struct vp_takeover_hello *h, struct vp_err *e)
{
	struct packet p;
	int r = expect(sock, HELLO, &p, e);

	if (r)
		return r;
	if (p.h.bytes != sizeof(*h))
		return vp_err_set(e, -EPROTO, "what was started is no vhost-pcid, or one that cannot take over");
	memcpy(h, p.body, sizeof(*h));
	h->build[sizeof(h->build) - 1] = 0;
	return 0;
}

static int push(int sock, enum type type, const void *body, size_t n, const int *fds, unsigned n_fds,
		int64_t deadline_ms, struct vp_err *e)
{
	int r;

	while ((r = send_packet(sock, type, body, n, fds, n_fds)) == -EAGAIN || r == -ETOOMANYREFS)
		if (!wait_for(sock, r == -EAGAIN ? POLLOUT : POLLIN, deadline_ms))
			return vp_err_set(e, -ETIMEDOUT, "the new daemon did not read its records in time");
	return r ? vp_err_set(e, r, "the records could not be sent: %s", strerror(-r)) : 0;
}

int vp_takeover_send(int sock, const struct vp_rec *rec, int64_t deadline_ms, struct vp_err *e)
{
	struct packet end = { .h = { MAGIC, END, rec->n, rec->n_fds } };
	size_t at = 0;
	unsigned f = 0;
	int r = 0;

	while (!r && (at < rec->n || f < rec->n_fds)) {
		size_t n = VP_MIN(rec->n - at, (size_t)PIECE);
		unsigned n_fds = VP_MIN(rec->n_fds - f, PIECE_FDS);

		r = push(sock, DATA, rec->p + at, n, rec->fd + f, n_fds, deadline_ms, e);
		at += n;
		f += n_fds;
	}
	while (!r) {
		int s = vp_send_fds(sock, &end.h, sizeof(end.h), NULL, 0);

		if (!s)
			break;
		if (s != -EAGAIN || !wait_for(sock, POLLOUT, deadline_ms))
			r = vp_err_set(e, s, "the records could not be sent: %s", strerror(-s));
	}
	return r;
}

static int wait_done(int sock, int64_t deadline_ms, struct vp_err *e)
{
	struct packet p;
	bool shut = false;
	unsigned n;
	int r;

	for (;;) {
		r = get_packet(sock, &p, NULL, &n);
		if (!r && p.h.type == DONE)
			return 0;
		if (!r && p.h.type == FAILED)
			vp_err_set(e, -ECHILD, "the new daemon could not take over: %.*s",
				   (int)VP_MIN(p.h.bytes, 180u), (const char *)p.body);
		else if (r == -EPIPE || r == -ECONNRESET)
			return e->code ? e->code : vp_err_set(e, -ECHILD, "the new daemon ended while it took over");
		else if (r && r != -EAGAIN && !e->code)
			vp_err_set(e, r, "the new daemon answered what makes no sense");
		if (!e->code && !shut && wait_for(sock, POLLIN, deadline_ms))
			continue;
		if (!e->code)
			vp_err_set(e, -ETIMEDOUT, "the new daemon did not take over in time");
		if (shut)
			return e->code;
		/* From here on DONE cannot be sent. What was sent before is still to be read. */
		send_packet(sock, ABORT, NULL, 0, NULL, 0);
		/* seccomp control: shutdown */
		shutdown(sock, SHUT_RDWR);
		shut = true;
	}
}

int vp_takeover_wait(int sock, struct vp_verdict *v, int64_t deadline_ms, struct vp_err *e)
{
	int r = wait_done(sock, deadline_ms, e);

	/* One of a version that knows no verdict says DONE all the same. */
	if (!r)
		return vp_verdict_for_new(v) == VP_VERDICT_NEW ? 0 : -ECANCELED;
	return vp_verdict_for_old(v) == VP_VERDICT_NEW ? 0 : r;
}

/* ---- the successor ------------------------------------------------------------------------------- */

/* Points before the verdict count from 1 up, those behind it from -1 down. */
static long exit_at, wait_at, points, behind;

static long from_env(const char *name)
{
	const char *at = getenv(name);

	return at ? atol(at) : 0;
}

void vp_takeover_points(void)
{
	exit_at = from_env("VHOST_PCI_TAKEOVER_EXIT");
	wait_at = from_env("VHOST_PCI_TAKEOVER_WAIT");
	points = behind = 0;
}

static void point(long n)
{
	if (n == exit_at)
		_exit(99);
	if (wait_at)
		vp_log(VP_LOG_DEBUG, "upgrade: at point %ld%s", n, n == wait_at ? ", and waits" : "");
	if (n != wait_at)
		return;
	poll(NULL, 0, POINT_MS);
}

void vp_takeover_point(void)
{
	point(++points);
}

void vp_takeover_behind(void)
{
	point(--behind);
}

void vp_takeover_prepare(void)
{
	struct rlimit rl;
	int fd = -1;

	if (!getrlimit(RLIMIT_NOFILE, &rl) && rl.rlim_cur > 64)
		fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, (int)VP_MIN(rl.rlim_cur, (rlim_t)ROOM_FDS) - 1);
	vp_close(&fd);
}

int vp_takeover_check_user(int sock, struct vp_err *e)
{
	struct ucred cred;

	if (vp_sock_peer(sock, &cred))
		return vp_err_set(e, -EPERM, "who the daemon before is cannot be told");
	if (cred.uid && cred.uid != geteuid())
		return vp_err_set(e, -EPERM, "the records come from user %u, who is neither root nor the daemon's user",
				  cred.uid);
	return 0;
}

static int keep_piece(const struct packet *p, const int *got, unsigned n_got, uint8_t **bytes, size_t *n,
		      struct vp_rec_fds *fds)
{
	uint8_t *b = *n + p->h.bytes <= BYTES_MAX ? realloc(*bytes, *n + p->h.bytes + 1) : NULL;
	int *f = fds->n + n_got <= FDS_MAX ? realloc(fds->fd, (fds->n + n_got + 1) * sizeof(*f)) : NULL;

	*bytes = b ? b : *bytes;
	fds->fd = f ? f : fds->fd;
	if (!b || !f)
		return -ENOMEM;
	memcpy(b + *n, p->body, p->h.bytes);
	*n += p->h.bytes;
	memcpy(f + fds->n, got, n_got * sizeof(*f));
	fds->n += n_got;
	return 0;
}

int vp_takeover_receive(int sock, bool first, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds, struct vp_err *e)
{
	struct vp_takeover_hello hello = { .version = VP_RECORD_VERSION, .pid = getpid(), .build = VP_VERSION };
	int64_t deadline = vp_takeover_ms() + HELLO_MS;
	int got[PIECE_FDS], r = first ? vp_takeover_check_user(sock, e) : 0;
	struct packet p;
	unsigned n_got;

	if (!r && send_packet(sock, first ? HELLO : READY, &hello, first ? sizeof(hello) : 0, NULL, 0))
		r = vp_err_set(e, -EPIPE, "the daemon before does not listen");
	vp_takeover_point();
	while (!r) {
		r = get_packet(sock, &p, got, &n_got);
		if (r == -EAGAIN && wait_for(sock, POLLIN, deadline)) {
			r = 0;
			continue;
		}
		if (r == -EAGAIN)
			r = vp_err_set(e, -ETIMEDOUT, "the daemon before has not sent its records in time");
		else if (r == -EPIPE || (!r && p.h.type == ABORT))
			r = vp_err_set(e, -ECANCELED,
				       "the daemon before goes on, or ended before its records were whole");
		else if (r)
			vp_err_set(e, r, "the daemon before sends what makes no sense");
		else if (p.h.type == END) {
			if (p.h.bytes != *n || p.h.fds != fds->n)
				return vp_err_set(e, -EPROTO,
						  "the records are cut short: %zu of %llu bytes came, and %u of %llu "
						  "file descriptors",
						  *n, (unsigned long long)p.h.bytes, fds->n,
						  (unsigned long long)p.h.fds);
			vp_takeover_point();
			return 0;
		} else if (p.h.type == DATA) {
			r = keep_piece(&p, got, n_got, bytes, n, fds);
			if (!r)
				n_got = 0;
			else
				vp_err_set(e, r, "the records are too long, or there is no memory for them");
			deadline = vp_takeover_ms() + RECORD_MS;
			vp_takeover_point();
		} else {
			r = vp_err_set(e, -EPROTO, "the daemon before sends what makes no sense");
		}
		close_all(got, n_got);
	}
	return r;
}

int vp_takeover_collect(int sock, uint8_t **bytes, size_t *n, struct vp_rec_fds *fds)
{
	int got[PIECE_FDS], r;
	struct packet p;
	unsigned n_got;

	for (;;) {
		r = get_packet(sock, &p, got, &n_got);
		if (!r && p.h.type == END)
			return p.h.bytes == *n && p.h.fds == fds->n ? 0 : -EPROTO;
		if (!r && p.h.type != DATA)
			r = -EPROTO;
		if (!r)
			r = keep_piece(&p, got, n_got, bytes, n, fds);
		if (r) {
			close_all(got, n_got);
			return r;
		}
	}
}

int vp_takeover_done(int sock, struct vp_verdict *v)
{
	struct packet p;
	unsigned n;
	int r;

	vp_takeover_point();
	if (v && vp_verdict_for_new(v) != VP_VERDICT_NEW)
		return -ECANCELED;
	vp_takeover_behind();
	if (v) {
		/* It may be gone. */
		send_packet(sock, DONE, NULL, 0, NULL, 0);
		return 0;
	}
	if (!send_packet(sock, DONE, NULL, 0, NULL, 0))
		return 0;
	/* It has said that it goes on; or it is gone, at rest, and nobody else has what it had. */
	while (!(r = get_packet(sock, &p, NULL, &n)))
		if (p.h.type == ABORT)
			return -ECANCELED;
	vp_log(VP_LOG_WARNING, "the daemon before ended while it handed over; going on with what it had");
	return 0;
}

void vp_takeover_failed(int sock, const char *why)
{
	send_packet(sock, FAILED, why, VP_MIN(strlen(why), (size_t)200), NULL, 0);
}

void vp_takeover_stop(int sock)
{
	send_packet(sock, STOP, NULL, 0, NULL, 0);
}

bool vp_takeover_await_end(int sock, int ms)
{
	int64_t deadline = vp_takeover_ms() + ms;
	bool stop = false;
	struct packet p;
	unsigned n;
	int r;

	while (!(r = get_packet(sock, &p, NULL, &n)) || (r == -EAGAIN && wait_for(sock, POLLIN, deadline)))
		stop |= !r && p.h.type == STOP;
	return stop;
}
