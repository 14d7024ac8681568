/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/log_sink.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"

static bool to_journal;

/* One write a line, so that lines of several threads do not mix; nothing a peer sent can start a line of its own. */
static void sink(int level, const char *msg)
{
	static const char *const words[] = {
		[VP_LOG_ERR] = "error: ", [VP_LOG_WARNING] = "warning: ", [VP_LOG_DEBUG] = "debug: ",
	};
	char line[600];
	int n;

	if (to_journal)
		n = snprintf(line, sizeof(line) - 1, "<%d>%s", level, msg);
	else
		n = snprintf(line, sizeof(line) - 1, "vhost-pcid: %s%s", words[level] ? words[level] : "", msg);
	if (n >= (int)sizeof(line) - 1)
		n = sizeof(line) - 2;
	for (int i = 0; i < n; i++)
		if (iscntrl((unsigned char)line[i]))
			line[i] = '?';
	line[n++] = '\n';
	/* seccomp all: write */
	(void)!write(STDERR_FILENO, line, n);
}

void vp_log_sink_long(int level, const char *head, const char *text)
{
	char prefix[16] = "vhost-pcid: ";
	struct iovec v[4] = { { prefix, 0 }, { (void *)head, strlen(head) }, { (void *)text, strlen(text) }, { (void *)"\n", 1 } };

	if (to_journal)
		snprintf(prefix, sizeof(prefix), "<%d>", level);
	v[0].iov_len = strlen(prefix);
	/* seccomp control: writev */
	(void)!writev(STDERR_FILENO, v, 4);
}

/* JOURNAL_STREAM names the device and inode of the journal's socket; is stderr that? */
static bool stderr_is_journal(void)
{
	const char *s = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return s && sscanf(s, "%llu:%llu", &dev, &ino) == 2 && !fstat(STDERR_FILENO, &st) && st.st_dev == dev &&
	       st.st_ino == ino;
}

void vp_log_sink_start(int max_level)
{
	to_journal = stderr_is_journal();
	vp_log_set(sink, max_level);
}
