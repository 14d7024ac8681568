/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/log_sink.h"

#include <ctype.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loglimit.h"
#include "base/util.h"
#include "sys/timer.h"

#define LOOK_US 1000000u  /* between looks for lines left out that are to be told */

static bool to_journal;
static int journal = -1;           /* its datagram socket, connected; -1 = none */
static pthread_t main_thread;
static const char *(*vm_of)(const char *link, const char *side);
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

/* "link ab, driver side" or "link ab": its name and side. Names have no blank and no comma. */
static size_t fields_of(const char *msg, char *out, size_t size)
{
	char name[64] = "", side[8] = "";
	const char *vm = NULL;

	if (sscanf(msg, "link %63[^ ,:], %7[a-z] side:", name, side) < 1 || !msg[5 + strlen(name)] ||
	    !strchr(":,", msg[5 + strlen(name)]))
		return 0;
	/* What VM that is, only the main thread can look up. */
	if (vm_of && *side && pthread_equal(pthread_self(), main_thread))
		vm = vm_of(name, side);
	return (size_t)snprintf(out, size, "LINK=%s\n%s%s%s%s%s%s", name, *side ? "SIDE=" : "", side, *side ? "\n" : "",
				vm ? "VM=" : "", vm ? vm : "", vm ? "\n" : "");
}

/* To the journal's own socket, with fields. False: it has to be a line on stderr. */
static bool put_journal(int level, const char *head, const char *msg, const char *fields)
{
	char first[96];
	struct iovec v[5] = {
		{ first, 0 }, { (void *)head, strlen(head) }, { (void *)msg, strlen(msg) }, { (void *)"\n", 1 },
		{ (void *)fields, strlen(fields) },
	};

	if (journal < 0)
		return false;
	v[0].iov_len =
		(size_t)snprintf(first, sizeof(first), "SYSLOG_IDENTIFIER=vhost-pcid\nPRIORITY=%d\nMESSAGE=", level);
	/* seccomp all: writev */
	return writev(journal, v, 5) > 0;
}

/* One write a line, so that lines of several threads do not mix; nothing a peer sent can start a line of its own. */
static void put(int level, const char *msg)
{
	static const char *const words[] = {
		[VP_LOG_ERR] = "error: ", [VP_LOG_WARNING] = "warning: ", [VP_LOG_DEBUG] = "debug: ",
	};
	char line[600], fields[200] = "";
	size_t head;
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
	line[n] = 0;
	head = to_journal ? strcspn(line, ">") + 1 : 0;
	if (to_journal && journal >= 0) {
		fields_of(msg, fields, sizeof(fields));
		if (put_journal(level, "", line + head, fields))
			return;
	}
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

void vp_log_sink_forked(void)
{
	journal = -1;
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

void vp_log_sink_vms(const char *(*fn)(const char *link, const char *side))
{
	vm_of = fn;
}

void vp_log_sink_long(int level, const char *head, const char *text, const char *fields)
{
	char prefix[16] = "vhost-pcid: ";
	struct iovec v[4] = {
		{ prefix, 0 }, { (void *)head, strlen(head) }, { (void *)text, strlen(text) }, { (void *)"\n", 1 }
	};

	if (put_journal(level, head, text, fields))
		return;
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

/*
 * Before the daemon gives up the file system. Its socket stays the same as long as the journal's daemon lives; then
 * lines go to stderr.
 */
static int open_journal(void)
{
	const struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket" };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)))
		vp_close(&fd);
	return fd;
}

void vp_log_sink_start(int max_level)
{
	main_thread = pthread_self();
	to_journal = stderr_is_journal();
	if (to_journal)
		journal = open_journal();
	vp_log_set(sink, max_level);
}
