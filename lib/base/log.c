/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

static vp_log_sink log_sink;
static int log_max = VP_LOG_INFO;

void vp_log_set(vp_log_sink sink, int max_level)
{
	log_sink = sink;
	log_max = max_level;
}

void vp_log(int level, const char *fmt, ...)
{
	char buf[512];
	va_list ap;

	if (!log_sink || level > log_max)
		return;
	va_start(ap, fmt);
	vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	log_sink(level, buf);
}
