/* SPDX-License-Identifier: BSD-3-Clause */
/* vhost-pcid: the start and the end of it. The only file that may decide to exit. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <string.h>
#include <sys/eventfd.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/audit.h"
#include "context/context.h"
#include "control/control.h"
#include "control/reload.h"
#include "control/scrape.h"
#include "control/upgrade.h"
#include "guestmem/map.h"
#include "handover/guard.h"
#include "handover/holder.h"
#include "handover/starter.h"
#include "handover/takeover.h"
#include "link/begin.h"
#include "link/keep.h"
#include "link/lane.h"
#include "link/link.h"
#include "options.h"
#include "sandbox/isolate.h"
#include "sys/fdstore.h"
#include "sys/log_sink.h"
#include "threads/forward.h"
#include "threads/rates.h"
#include "sys/source.h"
#include "sys/timer.h"
#include "threads/worker.h"

static void print_problem(void *arg, const char *msg)
{
	fprintf(stderr, "%s\n", msg);
}

static void print_warning(void *arg, const char *msg)
{
	fprintf(stderr, "warning: %s\n", msg);
}

static void log_problem(void *arg, const char *msg)
{
	vp_log(VP_LOG_ERR, "%s", msg);
}

static void log_warning(void *arg, const char *msg)
{
	vp_log(VP_LOG_WARNING, "%s", msg);
}

static int check_config(struct vp_daemon *d)
{
	struct vp_conf_report rep = { .fn = print_problem, .warn = print_warning };
	struct vp_conf *c = NULL;

	if (vp_daemon_load_conf(d, &c, &rep)) {
		fprintf(stderr, "%u problem%s found\n", rep.errors, rep.errors == 1 ? "" : "s");
		return EXIT_FAILURE;
	}
	printf("configuration is valid: %u VM%s, %u link%s\n", c->n_vms, c->n_vms == 1 ? "" : "s", c->n_links,
	       c->n_links == 1 ? "" : "s");
	vp_conf_free(c);
	return EXIT_SUCCESS;
}

static int load_config(struct vp_daemon *d, struct vp_err *e)
{
	struct vp_conf_report rep = { .fn = log_problem, .warn = log_warning };

	return vp_daemon_load_conf(d, &d->conf, &rep)
		       ? vp_err_set(e, -EINVAL,
				    "the configuration is not valid; vhost-pcid --check-config lists what is wrong")
		       : 0;
}

static int on_reload(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	struct vp_daemon *d = arg;
	struct vp_err e;

	if (d->begin)
		d->reload_late = true;
	else
		vp_daemon_reload(d, VP_RELOAD_GENTLY, NULL, &e);
	return 0;
}

static int on_stop(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	vp_log(VP_LOG_INFO, "stopping on signal %u", si->ssi_signo);
	vp_daemon_stop(arg);
	return 0;
}

static int on_never(sd_event_source *s, uint64_t usec, void *arg)
{
	return 0;
}

static int open_loop(struct vp_daemon *d, struct vp_err *e)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_default(&d->event);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGHUP, on_reload, d);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGINT, on_stop, d);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGTERM, on_stop, d);
	/* Never fires: the loop gets its timer fd now, so that the number of open fds is a measure. */
	if (r >= 0)
		r = sd_event_add_time(d->event, NULL, CLOCK_MONOTONIC, UINT64_MAX, 0, on_never, NULL);
	if (r >= 0)
		r = sd_event_set_watchdog(d->event, true);
	if (r >= 0)
		r = vp_log_sink_watch(d->event);
	if (r < 0)
		return vp_err_set(e, r, "cannot set up the event loop: %s", strerror(-r));
	sd_event_now(d->event, CLOCK_MONOTONIC, &d->started_us);
	d->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return 0;
}

static int take_activation(struct vp_daemon *d, struct vp_err *e)
{
	char **names = NULL;
	/* Those of a daemon before us come with its records. */
	int n = d->opt.take_over < 0 ? sd_listen_fds_with_names(1, &names) : 0;

	if (n < 0)
		return vp_err_set(e, n, "cannot take the sockets of the service manager: %s", strerror(-n));
	d->activation.s = calloc(n + 1, sizeof(*d->activation.s));
	if (!d->activation.s)
		return vp_err_set(e, -ENOMEM, "out of memory");
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i;

		if (strncmp(names[i], VP_FDSTORE_PREFIX, strlen(VP_FDSTORE_PREFIX)) &&
		    sd_is_socket(fd, AF_UNIX, SOCK_STREAM, 1) <= 0)
			vp_log(VP_LOG_WARNING,
			       "socket %s of the service manager is not a listening UNIX stream socket; ignored",
			       names[i]);
		else {
			d->activation.s[d->activation.n].fd = fd;
			snprintf(d->activation.s[d->activation.n++].name, sizeof(d->activation.s[0].name), "%s",
				 names[i]);
		}
		free(names[i]);
	}
	free(names);
	return 0;
}

static int on_attention(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vp_daemon *d = arg;
	eventfd_t n;

	eventfd_read(fd, &n);
	vp_links_reap(d->links);
	vp_lanes_place(d->workers);
	return 0;
}

static int start_workers(struct vp_daemon *d, struct vp_err *e)
{
	const struct vp_conf_daemon *c = &d->conf->daemon;
	int cpus[VP_CONF_MAX_CPUS];
	struct worker_pool_conf wc = {
		.threads = c->threads,
		.busy_poll_us = c->busy_poll_us,
		.cpus = c->n_cpus ? cpus : NULL,
		.ncpus = c->n_cpus,
		.paused = d->opt.take_over >= 0 || vp_keeps_there(d),
	};
	int r;

	for (unsigned i = 0; i < c->n_cpus; i++)
		cpus[i] = (int)c->cpus[i];
	vp_map_guard_faults();
	vp_foreign_free_elsewhere(true);
	r = worker_pool_new(&d->workers, &wc, e);
	if (r)
		return r;
	r = vp_source_add(&d->attention, d->event, worker_attention_fd(d->workers), EPOLLIN, on_attention, d);
	return r < 0 ? vp_err_set(e, r, "cannot watch the data threads: %s", strerror(-r)) : 0;
}

/* A link whose socket is taken does not keep the others down: how many are there that cannot be made? */
static unsigned apply_links(struct vp_daemon *d)
{
	struct vp_conf_report rep = { .fn = log_problem };

	vp_links_apply(d->links, d->conf, false, NULL, &rep);
	return rep.errors;
}

static int open_registry(struct vp_daemon *d, struct vp_err *e)
{
	int r = vp_links_new(&d->links, d);

	if (r)
		return vp_err_set(e, r, "out of memory");
	vp_rate_apply(d->conf);
	vp_memory_apply(d->conf);
	return 0;
}

static int open_control(struct vp_daemon *d, struct vp_err *e)
{
	const struct vp_conf_daemon *c = &d->conf->daemon;
	bool ours;
	int fd = vp_activation_take_ours(&d->activation, "control", &ours);
	int r = vp_control_new(&d->control, d, fd, ours, c->control_socket, c->control_group, e);

	if (r)
		return r;
	fd = vp_activation_take_ours(&d->activation, "metrics", &ours);
	return vp_scrapes_new(&d->scrapes, d, fd, ours, e);
}

static void announce(struct vp_daemon *d)
{
	vp_fdstore_rest(&d->activation);
	for (unsigned i = 0; i < d->activation.n; i++)
		if (d->activation.s[i].fd >= 0)
			vp_log(VP_LOG_WARNING,
			       "socket %s of the service manager belongs to nothing here; name it control, metrics, "
			       "LINK.driver or LINK.device",
			       d->activation.s[i].name);
	vp_log(VP_LOG_INFO, "ready: %u links, %u data threads, control socket %s", vp_links_count(d->links),
	       worker_pool_size(d->workers), d->conf->daemon.control_socket);
	sd_notifyf(0, "READY=1\nSTATUS=%u links", vp_links_count(d->links));
}

static void close_all(struct vp_daemon *d)
{
	vp_upgrade_end(d);
	vp_begin_free(d->begin);
	if (d->links && vp_fdstore_there()) {
		worker_pool_pause(d->workers);
		vp_keeps_leave(d);
		worker_pool_resume(d->workers);
	}
	vp_scrapes_free(d->scrapes);
	d->scrapes = NULL;
	vp_control_free(d->control);
	d->control = NULL;
	vp_links_free(d->links);
	vp_forward_free(d->forward);
	vp_source_end(&d->attention);
	worker_pool_free(d->workers);
	vp_guard_free(d->guard);
	vp_holder_end();
	vp_starter_end();
	vp_timer_end(&d->keep_timer);
	for (unsigned i = 0; i < d->activation.n; i++)
		vp_close(&d->activation.s[i].fd);
	free(d->activation.s);
	vp_close(&d->spare_fd);
	if (d->fd_dir)
		closedir(d->fd_dir);
	vp_audit_free(d->audit);
	vp_conf_free(d->conf);
	vp_log_sink_end();
	sd_event_unref(d->event);
}

static int no_runtime_dir(const struct vp_conf_daemon *c, int err, struct vp_err *e)
{
	return vp_err_set(e, -err,
			  "the runtime directory %s: %s; make it, writable for %s%s, or name another one in "
			  "RuntimeDirectory= or --runtime-dir",
			  c->runtime_dir, strerror(err), *c->user ? "user " : "the user that the daemon runs as",
			  c->user);
}

/*
 * The single thread still: from here on it can do less and less. jansson's seed and the list of our own fds come
 * from files; they are opened while that can be done.
 */
static int isolate(struct vp_daemon *d, struct vp_err *e)
{
	const struct vp_conf_daemon *c = &d->conf->daemon;
	struct stat st;
	int r;

	json_object_seed(0);
	/* Before landlock says it in words of its own. */
	if (!stat(c->runtime_dir, &st) && !S_ISDIR(st.st_mode))
		return no_runtime_dir(c, ENOTDIR, e);
	r = vp_isolate_namespaces(c, e);
	if (!r)
		r = vp_isolate_identity(c, e);
	d->fd_dir = opendir("/proc/self/fd");
	if (!r)
		r = vp_audit_new(&d->audit, c->audit_log, e);
	if (!r)
		r = vp_isolate_files(d->conf, &d->opt.paths, e);
	/* Where no landlock is in force, which would have had to know it, nobody has made it yet. */
	if (!r)
		mkdir(c->runtime_dir, 0755);
	if (!r && !d->activation.n && faccessat(AT_FDCWD, c->runtime_dir, W_OK, AT_EACCESS))
		r = no_runtime_dir(c, errno, e);
	/* Before processes cannot be made any more. A daemon before us that lives still has the holder. */
	if (!r && d->opt.take_over < 0 && !getenv("NOTIFY_SOCKET"))
		r = vp_holder_start(c, d->opt.hold, &d->activation, e);
	if (!r)
		r = vp_guard_start(&d->guard, c, e);
	if (!r)
		r = vp_isolate_calls(c, e);
	if (!r)
		r = vp_guard_watch(d->guard, d->event, e);
	if (!r)
		r = vp_holder_watch(d->event, e);
	return r;
}

/*
 * What a daemon before us had goes on here. Until that one has heard that it does, it can go on itself; so whatever
 * fails, nothing is closed in order, for all of it is the other one's.
 */
static int take_over(struct vp_daemon *d, struct vp_err *e)
{
	struct vp_taken *t = NULL;
	uint64_t stall_us;
	int r = vp_upgrade_receive(&t, d, e);

	if (!r)
		r = open_registry(d, e);
	if (!r)
		r = vp_upgrade_links(t, d, e);
	if (!r)
		r = vp_upgrade_rest(t, d, e);
	if (!r)
		r = open_control(d, e);
	if (!r)
		r = vp_upgrade_control(t, d, e);
	if (!r && vp_upgrade_commit(t, d, &stall_us))
		r = vp_err_set(e, -ECANCELED, "it came too late; the daemon before goes on");
	if (!r) {
		unsigned failed = apply_links(d);

		vp_upgrade_answer(d, stall_us, failed);
		announce(d);
		return 0;
	}
	vp_takeover_failed(d->opt.take_over, e->msg);
	vp_log(VP_LOG_ERR, "upgrade: %s", e->msg);
	vp_log_sink_end();
	_exit(EXIT_FAILURE);
}

/* ---- a daemon that begins anew ---- */

struct fresh {
	struct vp_daemon *d;
	struct vp_err    *e;
	bool              went_on;  /* with links of the daemon before, which may be none of the files' */
};

static void on_links_made(void *arg)
{
	struct fresh *f = arg;
	struct vp_daemon *d = f->d;
	struct vp_err e;
	int r;

	vp_begin_free(d->begin);
	d->begin = NULL;
	if (f->went_on)
		apply_links(d);
	r = open_control(d, f->e);
	if (r) {
		sd_event_exit(d->event, r);
		return;
	}
	announce(d);
	if (d->reload_late)
		vp_daemon_reload(d, VP_RELOAD_GENTLY, NULL, &e);
}

static int begin(struct fresh *f)
{
	int r = open_registry(f->d, f->e);

	vp_keeps_hook();
	f->went_on = !r && vp_keeps_there(f->d);
	if (f->went_on) {
		vp_keeps_restore(f->d);
		worker_pool_resume(f->d->workers);
	}
	/* It has let go of what goes on here, and sees off the rest. */
	if (!r)
		vp_guard_await_last(&f->d->activation);
	if (f->went_on)
		vp_guard_keep_heir(f->d->guard);
	return r ? r : vp_begin_new(&f->d->begin, f->d, on_links_made, f, f->e);
}

int main(int argc, char **argv)
{
	struct vp_daemon d = { .spare_fd = -1 };
	struct vp_err e = { 0 };
	struct fresh fresh = { .d = &d, .e = &e };
	bool done;
	int r = vp_options_parse(&d.opt, argc, argv, &done);

	if (r || done)
		return r;
	if (d.opt.check_config)
		return check_config(&d);
	vp_log_sink_start(d.opt.log_level);

	r = vp_isolate_process(&e);
	if (!r && d.opt.take_over >= 0)
		vp_takeover_prepare();
	if (!r)
		r = load_config(&d, &e);
	/* It is to have all that we were started with. */
	if (!r)
		r = vp_starter_start(&d.conf->daemon, argv, &e);
	if (!r)
		r = open_loop(&d, &e);
	if (!r)
		r = take_activation(&d, &e);
	if (!r)
		r = isolate(&d, &e);
	if (!r)
		r = start_workers(&d, &e);
	if (!r)
		r = d.opt.take_over >= 0 ? take_over(&d, &e) : begin(&fresh);
	if (!r) {
		r = sd_event_loop(d.event);
		if (r < 0 && !e.code)
			vp_err_set(&e, r, "the event loop failed: %s", strerror(-r));
	}
	if (r < 0 && d.opt.take_over >= 0)
		vp_takeover_failed(d.opt.take_over, e.msg);
	close_all(&d);
	if (r < 0) {
		vp_log(VP_LOG_ERR, "%s", e.code ? e.msg : strerror(-r));
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
