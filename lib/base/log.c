/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static vp_log_sink log_sink;
static int log_max = VP_LOG_INFO;

void vp_log_set(vp_log_sink sink, int max_level)
{
	log_sink = sink;
	vp_log_set_level(max_level);
}

void vp_log_set_level(int max_level)
{
	__atomic_store_n(&log_max, max_level, __ATOMIC_RELAXED);
}

int vp_log_level(void)
{
	return __atomic_load_n(&log_max, __ATOMIC_RELAXED);
}

static const char *const words[] = {
	[VP_LOG_ERR] = "error", [VP_LOG_WARNING] = "warning", [VP_LOG_NOTICE] = "notice", [VP_LOG_INFO] = "info",
	[VP_LOG_DEBUG] = "debug",
};

int vp_log_level_of(const char *word)
{
	for (int i = VP_LOG_ERR; i <= VP_LOG_DEBUG; i++)
		if (!strcmp(words[i], word))
			return i;
	return -1;
}

const char *vp_log_level_str(int level)
{
	return level >= VP_LOG_ERR && level <= VP_LOG_DEBUG ? words[level] : "?";
}

void vp_log(int level, const char *fmt, ...)
{
	char buf[512];
	va_list ap;

	if (!log_sink || level > vp_log_level())
		return;
	va_start(ap, fmt);
	vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	log_sink(level, buf);
}
