/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/thread.h"

#include <stddef.h>
#include <sys/prctl.h>

static void (*thread_hook)(enum vp_thread_kind kind);

void vp_thread_hook(void (*hook)(enum vp_thread_kind kind))
{
	thread_hook = hook;
}

void vp_thread_begin(enum vp_thread_kind kind, const char *name)
{
	prctl(PR_SET_NAME, name);
	if (thread_hook)
		thread_hook(kind);
}
