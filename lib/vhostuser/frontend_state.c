/* SPDX-License-Identifier: BSD-3-Clause */
/* The front-end's side of DEVICE_STATE: a back-end's state passes through a pipe. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "vhostuser/frontend.h"

enum { SAVE, LOAD }; /* direction; the phase, "stopped", is 0 */

#define NO_FD	 0x100u	      /* of the answer */
#define STATE_MAX (64u << 20) /* a back-end that has more of it has lost its wits */

/* *fd: our end of the pipe, not blocking. */
static int begin(struct vu_frontend *f, uint32_t direction, int *fd, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_DEVICE_STATE_FD, .size = 8 }, .p.u64 = direction }, r;
	int p[2], theirs = -1, rc;

	*fd = -1;
	if (!(vu_frontend_pf(f) >> VU_PF_DEVICE_STATE & 1))
		return vp_err_set(e, -EOPNOTSUPP, "the back-end cannot save or load its state (DEVICE_STATE)");
	if (pipe2(p, O_CLOEXEC) < 0)
		return vp_err_set(e, -errno, "no pipe: %s", strerror(errno));
	rc = vu_frontend_call(f, &m, &p[direction == SAVE], 1, &r, &theirs, e);
	vp_close(&p[direction == SAVE]);
	if (!rc && r.p.u64 & 0xff)
		rc = vp_err_set(e, -EREMOTEIO, "the back-end refused to %s its state (%llu)",
				direction == SAVE ? "save" : "load", (unsigned long long)r.p.u64 & 0xff);
	/* It may bring a better one. */
	if (!rc && !(r.p.u64 & NO_FD) && theirs >= 0) {
		vp_close(&p[direction != SAVE]);
		p[direction != SAVE] = theirs;
		theirs = -1;
	}
	vp_close(&theirs);
	*fd = p[direction != SAVE];
	if (!rc && fcntl(*fd, F_SETFL, O_NONBLOCK) < 0)
		rc = vp_err_set(e, -errno, "pipe: %s", strerror(errno));
	if (rc)
		vp_close(fd);
	return rc;
}

static int ready(struct vu_frontend *f, int fd, short events, struct vp_err *e)
{
	struct pollfd p = { .fd = fd, .events = events };
	int n;

	do
		n = poll(&p, 1, (int)vu_frontend_timeout_ms(f));
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return 0;
	return vp_err_set(e, -ETIMEDOUT, "the back-end does not %s its state", events == POLLIN ? "send" : "take");
}

static int check(struct vu_frontend *f, const char *what, struct vp_err *e)
{
	struct vu_msg m = { .hdr = { .request = VU_CHECK_DEVICE_STATE } }, r;
	int rc = vu_frontend_call(f, &m, NULL, 0, &r, NULL, e);

	if (!rc && r.p.u64)
		rc = vp_err_set(e, -EREMOTEIO, "the back-end failed to %s its state", what);
	return rc;
}

int vu_frontend_save_state(struct vu_frontend *f, void **data, size_t *size, struct vp_err *e)
{
	uint8_t *buf = NULL;
	size_t room = 0, n = 0;
	int fd, rc = begin(f, SAVE, &fd, e);

	while (!rc) {
		ssize_t got;

		if (n == room) {
			uint8_t *more = room < STATE_MAX ? realloc(buf, room += 64 << 10) : NULL;

			rc = more ? 0 : vp_err_set(e, -ENOMEM, "no room for the back-end's state behind %zu bytes", n);
			buf = more ? more : buf;
			continue;
		}
		rc = ready(f, fd, POLLIN, e);
		got = rc ? -1 : read(fd, buf + n, room - n);
		if (!got)
			break;
		if (got < 0 && !rc && errno != EAGAIN && errno != EINTR)
			rc = vp_err_set(e, -errno, "the back-end's state cannot be read: %s", strerror(errno));
		n += got > 0 ? (size_t)got : 0;
	}
	vp_close(&fd);
	if (!rc)
		rc = check(f, "save", e);
	if (rc) {
		free(buf);
		return rc;
	}
	*data = buf;
	*size = n;
	return 0;
}

int vu_frontend_load_state(struct vu_frontend *f, const void *data, size_t size, struct vp_err *e)
{
	const uint8_t *p = data;
	int fd, rc = begin(f, LOAD, &fd, e);

	for (size_t n = 0; !rc && n < size;) {
		ssize_t put;

		rc = ready(f, fd, POLLOUT, e);
		put = rc ? -1 : write(fd, p + n, size - n);
		if (put < 0 && !rc && errno != EAGAIN && errno != EINTR)
			rc = vp_err_set(e, -errno, "the back-end does not take its state: %s", strerror(errno));
		n += put > 0 ? (size_t)put : 0;
	}
	/* Its end is the end of the state. */
	vp_close(&fd);
	return rc ? rc : check(f, "load", e);
}
