/* SPDX-License-Identifier: BSD-3-Clause */
/* See session.h. */
#include "session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "conf/policy.h"
#include "control/reload.h"
#include "guestmem/map.h"
#include "handover/guard.h"
#include "link/link.h"
#include "threads/rates.h"
#include "threads/worker.h"

struct vp_daemon rig_daemon = { .spare_fd = -1 };
struct rig_link rig_links[RIG_LINKS] = {
	{ RIG_RELAY, RIG_NONE, "r" },	 { RIG_FAST, RIG_LOCAL, "fl" }, { RIG_FAST, RIG_SHMEM, "fs" },
	{ RIG_FAST, RIG_IVSHMEM, "fi" }, { RIG_COPY, RIG_LOCAL, "cl" }, { RIG_COPY, RIG_SHMEM, "cs" },
	{ RIG_COPY, RIG_IVSHMEM, "ci" },
};
int rig_qmp_fd = -1;
static char dir[] = "/tmp/vpfuzzXXXXXX";
static uint64_t input_begun;
static unsigned base_items, base_fds;

/* ---- the guard is a process of its own: not here ---------------------------------------------------------------- */

uint64_t vp_guard_id(struct vp_guard *g) { return 1; }
int vp_guard_take(struct vp_guard *g, const struct vp_guard_ward *w) { return 0; }
void vp_guard_drop(struct vp_guard *g, uint64_t id) { }
void vp_guard_see_off(struct vp_guard *g, uint64_t id) { }
pid_t vp_guard_pid(const struct vp_guard *g) { return 0; }
void vp_guard_keep(struct vp_guard *g) { }
void vp_guard_keep_later(struct vp_guard *g) { }
void vp_guard_lasts(struct vp_guard *g) { }
int vp_guard_line(int line[2]) { return -ENOSYS; }

/* Nor is a sink: the text is made and thrown away. */
void vp_log_sink_long(int level, const char *head, const char *text, const char *fields);
void vp_log_sink_long(int level, const char *head, const char *text, const char *fields) { }
void vp_log_sink_vms(const char *(*fn)(const char *link, const char *side));
void vp_log_sink_vms(const char *(*fn)(const char *link, const char *side)) { }

static void no_log(int level, const char *msg)
{
	if (getenv("VP_FUZZ_LOG"))
		fprintf(stderr, "%s\n", msg);
}

/*
 * ---- time ---------------------------------------------------------------------------------------------------------
 */

static uint64_t ahead_us;
static uintptr_t sd_from, sd_to;

/* Where libsystemd's code is. */
static void find_systemd(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	unsigned long from, to;

	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "libsystemd") && sscanf(line, "%lx-%lx r-xp", &from, &to) == 2 &&
		    strstr(line, "r-xp")) {
			sd_from = from;
			sd_to = to;
		}
	if (f)
		fclose(f);
}

/* The loop's clock can be moved; those of the fuzzer cannot. */
int clock_gettime(clockid_t c, struct timespec *ts)
{
	uintptr_t from = (uintptr_t)__builtin_return_address(0);
	int r = (int)syscall(SYS_clock_gettime, c, ts);

	if (from >= sd_from && from < sd_to) {
		uint64_t us = ahead_us + (uint64_t)ts->tv_nsec / 1000;

		ts->tv_sec += us / 1000000;
		ts->tv_nsec = (long)(us % 1000000) * 1000;
	}
	return r;
}

void rig_sleep(uint64_t us)
{
	ahead_us += us;
}

uint64_t rig_cpu(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void clean_up(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	(void)!system(cmd);
}

void rig_fault(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	clean_up();
	abort();
}

void rig_took(const char *what, uint64_t since, unsigned ms)
{
	uint64_t us = rig_cpu() - since;

	if (us > ms * UINT64_C(1000))
		rig_fault("slow: %s took %llu us of CPU time, %u ms are allowed", what, (unsigned long long)us, ms);
}

/*
 * ---- the daemon ---------------------------------------------------------------------------------------------------
 */

static void file(const char *name, const char *fmt, ...)
{
	char path[128];
	va_list ap;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	if (!f)
		rig_fault("%s: %m", path);
	va_start(ap, fmt);
	vfprintf(f, fmt, ap);
	va_end(ap);
	fclose(f);
}

static void write_files(void)
{
	char drop[64];

	static const char *const att[] = { "", "local", "shmem", "ivshmem" }, *const mode[] = { "relay", "fast",
												"copy" };

	snprintf(drop, sizeof(drop), "%s/fi.link.d", dir);
	mkdir(drop, 0755);
	file("a.vm", "[VM]\nTrustGroup=t\n");
	file("b.vm", "[VM]\nTrustGroup=t\n");
	for (unsigned i = 0; i < RIG_LINKS; i++) {
		struct rig_link *l = &rig_links[i];
		char name[16];

		snprintf(name, sizeof(name), "%s.link", l->name);
		file(name, "[Link]\nMode=%s\n[Driver]\nVM=a\n[Device]\nVM=b\nEndpoint=%s\n%s%s\n%s%s", mode[l->mode],
		     l->att ? "port" : "virtio-net", l->att ? "Attachment=" : "", att[l->att],
		     l->att == RIG_SHMEM ? "ApertureSize=1G\n" : "", l->mode == RIG_COPY ? "PoolSize=2M\n" : "");
		if (l->mode == RIG_FAST && l->att == RIG_IVSHMEM)
			file("fi.link.d/qmp.conf", "[Device]\nQMP=%s/qmp\nHotplugBus=rp0 rp1\n", dir);
		snprintf(l->driver, sizeof(l->driver), "%s/run/%s.driver.sock", dir, l->name);
		snprintf(l->device, sizeof(l->device), "%s/run/%s.device.sock", dir, l->name);
	}
}

/* The device VM's QEMU, as far as the harness is it. */
static void open_qmp(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/qmp", dir);
	rig_qmp_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (rig_qmp_fd < 0 || bind(rig_qmp_fd, (struct sockaddr *)&a, sizeof(a)) || listen(rig_qmp_fd, 8))
		rig_fault("no QMP socket");
}

static void problem(void *arg, const char *msg)
{
	fprintf(stderr, "%s\n", msg);
}

static int on_attention(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) > 0)
		vp_links_reap(rig_daemon.links);
	return 0;
}

static int on_never(sd_event_source *s, uint64_t usec, void *arg)
{
	return 0;
}

void rig_start(void)
{
	static char run[64];
	struct vp_daemon *d = &rig_daemon;
	struct vp_conf_report rep = { .fn = problem };
	struct worker_pool_conf wc = { .threads = 2 };
	struct rlimit files = { 1024, 1024 };
	struct vp_err e = { 0 };

	if (d->event)
		return;
	setrlimit(RLIMIT_NOFILE, &files);
	find_systemd();
	if (!mkdtemp(dir) || !sd_to)
		rig_fault("cannot start");
	atexit(clean_up);
	write_files();
	open_qmp();
	vp_log_set(no_log, VP_LOG_DEBUG);
	signal(SIGPIPE, SIG_IGN);
	snprintf(run, sizeof(run), "%s/run", dir);
	d->opt.paths.dir[0] = dir;
	d->opt.paths.n = 1;
	d->opt.paths.runtime_dir = run;
	if (vp_daemon_load_conf(d, &d->conf, &rep) || sd_event_new(&d->event) < 0)
		rig_fault("the configuration is not right");
	sd_event_add_time(d->event, NULL, CLOCK_MONOTONIC, UINT64_MAX, 0, on_never, NULL);
	d->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	vp_map_guard_faults();
	if (worker_pool_new(&d->workers, &wc, &e) || vp_links_new(&d->links, d))
		rig_fault("%s", e.msg);
	rig_threads_are(d->workers);
	sd_event_add_io(d->event, NULL, worker_attention_fd(d->workers), EPOLLIN, on_attention, d);
	vp_rate_apply(d->conf);
	vp_memory_apply(d->conf);
	vp_links_apply(d->links, d->conf, false, NULL, &rep);
	if (rep.errors || vp_links_count(d->links) != RIG_LINKS)
		rig_fault("not all links can be made");
}

void rig_run(unsigned turns)
{
	bool more = true;

	while (more && turns--) {
		uint64_t since = rig_cpu();

		more = sd_event_run(rig_daemon.event, 0) > 0;
		rig_took("a turn of the main loop", since, RIG_TURN_MS);
		more |= rig_threads_step();
		more |= rig_forward_step(rig_daemon.forward);
	}
}

/*
 * ---- what must hold -------------------------------------------------------------------------------------------------
 */

/* How many things epfd watches; none of them by an fd that is closed. */
static unsigned items(int epfd)
{
	char path[64], buf[16384];
	unsigned n = 0;
	ssize_t len = 0, got;
	int fd;

	if (epfd < 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", epfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && len < (ssize_t)sizeof(buf) - 1 &&
	       (got = read(fd, buf + len, sizeof(buf) - 1 - (size_t)len)) > 0)
		len += got;
	close(fd);
	buf[len] = 0;
	for (char *at = buf; (at = strstr(at, "tfd:")); at++) {
		int tfd = atoi(at + 4);

		n++;
		if (fcntl(tfd, F_GETFD) < 0)
			rig_fault("stale: epoll set %d watches fd %d, which is closed", epfd, tfd);
	}
	return n;
}

static unsigned all_items(void)
{
	unsigned n = items(sd_event_get_fd(rig_daemon.event)) + items(rig_forward_epfd(rig_daemon.forward));

	for (unsigned i = 0; rig_threads_epfd(i) >= 0; i++)
		n += items(rig_threads_epfd(i));
	return n;
}

/* Pipes are the fuzzer's own. */
static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	struct stat st;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.' && !fstat(atoi(e->d_name), &st) && !S_ISFIFO(st.st_mode);
	closedir(d);
	return n;
}

static void list_fds(void)
{
	char path[32], to[128];

	for (int fd = 0; fd < 1024; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, to, sizeof(to) - 1);
		if (n > 0)
			fprintf(stderr, "fd %d: %.*s\n", fd, (int)n, to);
	}
}

/* What waits for a peer gives up within 10 s of the loop's time, and starts anew. */
static void settle(void)
{
	rig_run(200);
	for (unsigned i = 0; i < 3; i++) {
		rig_sleep(5000000);
		rig_run(200);
	}
}

void rig_show(const struct rig_link *l)
{
	struct vp_link *link = vp_link_find(rig_daemon.links, l->name);
	json_t *o = link->ops->sides(link, true);
	char *text = json_dumps(o, JSON_COMPACT);

	fprintf(stderr, "link %s: %s %s\n", l->name, link->ops->status(link), text ? text : "");
	free(text);
	json_decref(o);
}

/*
 * With VP_FUZZ_TRACE=DIR every input becomes a file there: a daemon outlives its peers, and a fault may need several.
 */
void rig_trace(const uint8_t *data, size_t size)
{
	const char *to = getenv("VP_FUZZ_TRACE");
	static unsigned n;
	char path[256];
	int fd;

	if (!to)
		return;
	snprintf(path, sizeof(path), "%s/%06u", to, n++);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		rig_fault("%s: %m", path);
	close(fd);
}

void rig_input_begin(void)
{
	if (!base_fds) {
		settle();
		base_items = all_items();
		if (getenv("VP_FUZZ_LOG"))
			list_fds();
		base_fds = open_fds();
	}
	input_begun = rig_cpu();
}

void rig_peers_gone(void)
{
	unsigned n;

	settle();
	rig_took("the input", input_begun, RIG_INPUT_MS);
	n = all_items();
	if (n > base_items)
		rig_fault("stale: %u more things are watched than before, and their owners have gone", n - base_items);
}

void rig_input_end(void)
{
	unsigned n = open_fds();

	/* What others have sent is closed by threads of their own (base/foreign.h). */
	for (unsigned ms = 0; n > base_fds && ms < 2000; ms++) {
		usleep(1000);
		n = open_fds();
	}
	if (n <= base_fds)
		return;
	list_fds();
	rig_fault("leak: %u fds more than before", n - base_fds);
}
