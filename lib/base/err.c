/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int vp_err_set(struct vp_err *e, int code, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
	va_end(ap);
	return code;
}

bool vp_err_is_new(const struct vp_err *e, char *last, size_t size)
{
	if (!strncmp(last, e->msg, size - 1))
		return false;
	snprintf(last, size, "%s", e->msg);
	return true;
}
