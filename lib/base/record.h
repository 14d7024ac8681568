/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Records: the state of this process as another one reads it, in another version perhaps (docs/handover.md). A record
 * is a tree of elements. An element has a tag and either other elements, or bytes, or an fd.
 *
 * Threat model of the reader: the bytes come from a process that may have been taken over. Lengths are checked before
 * anything is read, an fd is taken once and must be what the writer said, and what is not taken is closed.
 *
 * Bytes are structures of fixed layout that grow at their end only: a shorter one was written by an older version, and
 * what it lacks is zero; a longer one is refused.
 *
 * One thread.
 */
#ifndef VP_BASE_RECORD_H
#define VP_BASE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Goes up when a reader of the version before would misunderstand what is written. */
#define VP_RECORD_VERSION 1u

#define VP_REC_DEPTH 8

/* A record that is being written. All zeroes at first. */
struct vp_rec {
	uint8_t *p;
	size_t   n, cap;
	int     *fd;          /* borrowed */
	unsigned n_fds, cap_fds;
	size_t   open[VP_REC_DEPTH];
	unsigned depth;
	bool     failed;      /* out of memory, or elements too deep */
};

void vp_rec_begin(struct vp_rec *r, unsigned tag);
void vp_rec_end(struct vp_rec *r);
void vp_rec_put(struct vp_rec *r, unsigned tag, const void *p, size_t n);
void vp_rec_u64(struct vp_rec *r, unsigned tag, uint64_t v);
void vp_rec_str(struct vp_rec *r, unsigned tag, const char *s);

/* What the reader holds an fd against. ANY: it came from a peer, and nobody has looked at it. */
enum vp_rec_fd { VP_REC_FD_ANY, VP_REC_FD_SOCKET, VP_REC_FD_EVENTFD, VP_REC_FD_FILE };
/* It stays the caller's, and open until the record has been sent. -1: nothing is written. */
void vp_rec_fd(struct vp_rec *r, unsigned tag, enum vp_rec_fd kind, int fd);
void vp_rec_free(struct vp_rec *r);

/* The fds that came with a record; -1 = taken. */
struct vp_rec_fds {
	int     *fd;
	unsigned n;
};
void vp_rec_fds_close(struct vp_rec_fds *f);

/* Elements that are being read: the whole record, or what one element has. */
struct vp_rec_in {
	const uint8_t     *p;
	size_t             n;
	struct vp_rec_fds *fds;
};

/* The next element, in order. False: there is none, or (in->n is not 0) the rest is no element. */
bool vp_rec_next(struct vp_rec_in *in, unsigned *tag, struct vp_rec_in *body);
/* The first with that tag. */
bool vp_rec_find(const struct vp_rec_in *in, unsigned tag, struct vp_rec_in *body);
/* Fill the structure of n bytes with the first such element's. -ENOENT, -EPROTO: longer. */
int  vp_rec_get(const struct vp_rec_in *in, unsigned tag, void *p, size_t n);
/* The same with the body of an element, one of several. */
int  vp_rec_get_this(const struct vp_rec_in *body, void *p, size_t n);
uint64_t vp_rec_num(const struct vp_rec_in *in, unsigned tag, uint64_t none);
/* A text into a buffer of n bytes, "" when it is not there. -EPROTO: too long, or a zero in it. */
int  vp_rec_text(const struct vp_rec_in *in, unsigned tag, char *buf, size_t n);
/*
 * The fd of the first such element, the caller's from now on, -1 in *fd when there is none. -EBADF: it did not come,
 * was taken already, or is not what the writer said.
 */
int  vp_rec_take(const struct vp_rec_in *in, unsigned tag, enum vp_rec_fd kind, int *fd, struct vp_err *e);
/* The same of the element that body is of. */
int  vp_rec_take_this(const struct vp_rec_in *body, enum vp_rec_fd kind, int *fd, struct vp_err *e);
/* Those of the first n such elements, into fd[n]; -1 where an error came first, which fewer than n are too. */
int  vp_rec_take_all(const struct vp_rec_in *in, unsigned tag, enum vp_rec_fd kind, int *fd, unsigned n,
		     struct vp_err *e);

#endif
