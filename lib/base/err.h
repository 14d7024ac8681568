/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors that a person will read. A function that can fail for a reason worth a sentence takes a struct
 * vp_err and returns -errno. The message names the thing and the way out. Functions that take no vp_err
 * return a bare -errno.
 */
#ifndef VP_BASE_ERR_H
#define VP_BASE_ERR_H

#include <stdbool.h>
#include <stddef.h>

struct vp_err {
	int  code;      /* negative errno, 0 = none */
	char msg[256];  /* one sentence, no newline, always terminated */
};

/* Fill e (which may be NULL) and return code; code is a negative errno. */
int vp_err_set(struct vp_err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Keep the message in last, cut to size. True if it is another one than was there, which is worth a line in the log. */
bool vp_err_is_new(const struct vp_err *e, char *last, size_t size);

/*
 * A third kind of return value, besides 0 and -errno: the function has begun and cannot finish now. It
 * says later that it has finished, by a callback or by a function of its caller's that its own comment
 * names. It never says so before it has returned.
 */
#define VP_LATER 1

#endif
