/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/log_sink.h"

#include <ctype.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loglimit.h"
#include "sys/timer.h"

#define LOOK_US 1000000u  /* between looks for lines left out that are to be told */

static bool to_journal;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vp_log_limit limit;  /* under lock */
static bool look;                  /* something was left out */
static sd_event *event;            /* the rest is the main thread's */
static sd_event_source *timer;

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* One write a line, so that lines of several threads do not mix; nothing a peer sent can start a line of its own. */
static void put(int level, const char *msg)
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

static void sink(int level, const char *msg)
{
	bool ok;

	pthread_mutex_lock(&lock);
	ok = vp_log_limit_allow(&limit, level, msg, now_us());
	if (!ok)
		__atomic_store_n(&look, true, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&lock);
	if (ok)
		put(level, msg);
}

void vp_log_sink_tell(bool all)
{
	char line[VP_LOG_NAME + 160];
	const char *name;
	uint64_t n;

	do {
		pthread_mutex_lock(&lock);
		name = vp_log_limit_untold(&limit, all, now_us(), &n);
		if (name)
			snprintf(line, sizeof(line),
				 "%s: %llu lines were left out here: at most %u at once and %u a second are logged",
				 name, (unsigned long long)n, VP_LOG_BURST, VP_LOG_PER_S);
		__atomic_store_n(&look, limit.n_untold > 0, __ATOMIC_RELAXED);
		pthread_mutex_unlock(&lock);
		if (name)
			put(VP_LOG_WARNING, line);
	} while (name);
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg)
{
	vp_log_sink_tell(false);
	return 0;
}

/* Behind each turn of the loop: an idle daemon has no timer. */
static int on_turn(sd_event_source *s, void *arg)
{
	if (__atomic_load_n(&look, __ATOMIC_RELAXED) && (!timer || !sd_event_source_get_enabled(timer, NULL)))
		vp_timer_in(event, &timer, LOOK_US, on_time, NULL, "log");
	return 0;
}

int vp_log_sink_watch(sd_event *ev)
{
	event = ev;
	return sd_event_add_post(ev, NULL, on_turn, NULL);
}

void vp_log_sink_end(void)
{
	vp_timer_end(&timer);
	event = NULL;
	vp_log_sink_tell(true);
}

void vp_log_sink_long(int level, const char *head, const char *text)
{
	char prefix[16] = "vhost-pcid: ";
	struct iovec v[4] = {
		{ prefix, 0 }, { (void *)head, strlen(head) }, { (void *)text, strlen(text) }, { (void *)"\n", 1 }
	};

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
