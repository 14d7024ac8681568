/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/util.h"

struct head {
	uint32_t tag, len;
};

/* In the place of an fd. */
struct fd_mark {
	uint32_t index, kind;
	uint64_t inode; /* of a socket or file, else 0 */
};

/* ---- writing ------------------------------------------------------------------------------- */

static void add(struct vp_rec *r, const void *p, size_t n)
{
	if (r->failed)
		return;
	if (r->n + n > r->cap) {
		size_t cap = VP_MAX(2 * r->cap, r->n + n + 4096);
		uint8_t *q = realloc(r->p, cap);

		if (!q) {
			r->failed = true;
			return;
		}
		r->p = q;
		r->cap = cap;
	}
	if (n)
		memcpy(r->p + r->n, p, n);
	r->n += n;
}

void vp_rec_begin(struct vp_rec *r, unsigned tag)
{
	struct head h = { .tag = tag };

	if (r->depth == VP_REC_DEPTH) {
		r->failed = true;
		return;
	}
	r->open[r->depth++] = r->n;
	add(r, &h, sizeof(h));
}

void vp_rec_end(struct vp_rec *r)
{
	uint32_t len;

	if (r->failed || !r->depth)
		return;
	r->depth--;
	len = (uint32_t)(r->n - r->open[r->depth] - sizeof(struct head));
	memcpy(r->p + r->open[r->depth] + offsetof(struct head, len), &len, sizeof(len));
}

void vp_rec_put(struct vp_rec *r, unsigned tag, const void *p, size_t n)
{
	struct head h = { .tag = tag, .len = (uint32_t)n };

	add(r, &h, sizeof(h));
	add(r, p, n);
}

void vp_rec_u64(struct vp_rec *r, unsigned tag, uint64_t v)
{
	vp_rec_put(r, tag, &v, sizeof(v));
}

void vp_rec_str(struct vp_rec *r, unsigned tag, const char *s)
{
	vp_rec_put(r, tag, s, strlen(s));
}

static uint64_t inode_of(int fd)
{
	struct stat st;

	/* seccomp control: fstat newfstatat */
	return fstat(fd, &st) ? 0 : st.st_ino;
}

void vp_rec_fd(struct vp_rec *r, unsigned tag, enum vp_rec_fd kind, int fd)
{
	struct fd_mark m = { .index = r->n_fds, .kind = kind };

	if (fd < 0)
		return;
	if (r->n_fds == r->cap_fds) {
		unsigned cap = r->cap_fds ? 2 * r->cap_fds : 64;
		int *q = realloc(r->fd, cap * sizeof(*q));

		if (!q) {
			r->failed = true;
			return;
		}
		r->fd = q;
		r->cap_fds = cap;
	}
	if (kind == VP_REC_FD_SOCKET || kind == VP_REC_FD_FILE)
		m.inode = inode_of(fd);
	r->fd[r->n_fds++] = fd;
	vp_rec_put(r, tag, &m, sizeof(m));
}

void vp_rec_free(struct vp_rec *r)
{
	free(r->p);
	free(r->fd);
	memset(r, 0, sizeof(*r));
}

/* ---- reading ------------------------------------------------------------------------------- */

void vp_rec_fds_close(struct vp_rec_fds *f)
{
	for (unsigned i = 0; i < f->n; i++)
		vp_close_foreign(&f->fd[i]);
	free(f->fd);
	f->fd = NULL;
	f->n = 0;
}

bool vp_rec_next(struct vp_rec_in *in, unsigned *tag, struct vp_rec_in *body)
{
	struct head h;

	if (in->n < sizeof(h))
		return false;
	memcpy(&h, in->p, sizeof(h));
	if (h.len > in->n - sizeof(h))
		return false;
	*tag = h.tag;
	*body = (struct vp_rec_in){ in->p + sizeof(h), h.len, in->fds };
	in->p += sizeof(h) + h.len;
	in->n -= sizeof(h) + h.len;
	return true;
}

bool vp_rec_find(const struct vp_rec_in *in, unsigned tag, struct vp_rec_in *body)
{
	struct vp_rec_in rest = *in;
	unsigned t;

	while (vp_rec_next(&rest, &t, body))
		if (t == tag)
			return true;
	return false;
}

int vp_rec_get_this(const struct vp_rec_in *body, void *p, size_t n)
{
	memset(p, 0, n);
	if (body->n > n)
		return -EPROTO;
	memcpy(p, body->p, body->n);
	return 0;
}

int vp_rec_get(const struct vp_rec_in *in, unsigned tag, void *p, size_t n)
{
	struct vp_rec_in b;

	memset(p, 0, n);
	return vp_rec_find(in, tag, &b) ? vp_rec_get_this(&b, p, n) : -ENOENT;
}

uint64_t vp_rec_num(const struct vp_rec_in *in, unsigned tag, uint64_t none)
{
	uint64_t v;

	return vp_rec_get(in, tag, &v, sizeof(v)) ? none : v;
}

int vp_rec_text(const struct vp_rec_in *in, unsigned tag, char *buf, size_t n)
{
	struct vp_rec_in b;

	buf[0] = 0;
	if (!vp_rec_find(in, tag, &b))
		return 0;
	if (b.n >= n || memchr(b.p, 0, b.n))
		return -EPROTO;
	memcpy(buf, b.p, b.n);
	buf[b.n] = 0;
	return 0;
}

static bool is_eventfd(int fd)
{
	char path[40], target[40];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	/* seccomp control: readlink readlinkat */
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = 0;
	return !strcmp(target, "anon_inode:[eventfd]");
}

static bool is_what_it_was(int fd, const struct fd_mark *m)
{
	struct stat st;

	if (m->kind == VP_REC_FD_ANY)
		return true;
	if (m->kind == VP_REC_FD_EVENTFD)
		return is_eventfd(fd);
	/* The writer has found it to be one that answers. */
	if (fstat(fd, &st) || st.st_ino != m->inode)
		return false;
	return m->kind == VP_REC_FD_SOCKET ? S_ISSOCK(st.st_mode) : !S_ISSOCK(st.st_mode);
}

int vp_rec_take_this(const struct vp_rec_in *body, enum vp_rec_fd kind, int *fd, struct vp_err *e)
{
	struct fd_mark m;

	*fd = -1;
	if (body->n != sizeof(m))
		return vp_err_set(e, -EPROTO, "a record names a file descriptor in %zu bytes", body->n);
	memcpy(&m, body->p, sizeof(m));
	if (m.kind != (uint32_t)kind || !body->fds || m.index >= body->fds->n || body->fds->fd[m.index] < 0)
		return vp_err_set(e, -EBADF, "file descriptor %u of a record is missing, or was named twice", m.index);
	if (!is_what_it_was(body->fds->fd[m.index], &m))
		return vp_err_set(e, -EBADF, "file descriptor %u of a record is not what the record says", m.index);
	*fd = body->fds->fd[m.index];
	body->fds->fd[m.index] = -1;
	return 0;
}

int vp_rec_take(const struct vp_rec_in *in, unsigned tag, enum vp_rec_fd kind, int *fd, struct vp_err *e)
{
	struct vp_rec_in b;

	*fd = -1;
	return vp_rec_find(in, tag, &b) ? vp_rec_take_this(&b, kind, fd, e) : 0;
}

int vp_rec_take_all(const struct vp_rec_in *in, unsigned tag, enum vp_rec_fd kind, int *fd, unsigned n,
		    struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned t, i = 0;
	int r = 0;

	for (unsigned k = 0; k < n; k++)
		fd[k] = -1;
	while (!r && i < n && vp_rec_next(&rest, &t, &body))
		if (t == tag)
			r = vp_rec_take_this(&body, kind, &fd[i++], e);
	return !r && i < n ? vp_err_set(e, -EPROTO, "a record lacks file descriptors: %u of %u are there", i, n) : r;
}
