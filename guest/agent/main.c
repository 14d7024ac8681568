// SPDX-License-Identifier: BSD-3-Clause
/*
 * vhost-pci-agent: serves a vhost-pci port from inside the device VM.
 *
 *   opts.c          command line
 *   port.c          checked copy of the state page, commands    port_dev.c   the real device
 *   memmap.c        windows and regions: from link addresses to memory
 *   agent.c         the engine: brings the data path in line with the state page; describe.c   what the back-end has
 *   dp_vhostnet.c   kernel data path, with tap.c                dp_vhostuser.c   any vhost-user back-end
 *   dp_vhostvsock.c kernel data path for vsock                  dp_vhostscsi.c   kernel data path for scsi
 *   vhost.c         what the kernel data paths share
 *   vfeatures.c     names of feature bits     notify.c  sd_notify     status.c  --status
 *
 * One thread, one poll loop: signals, the port, the data path. Only this file exits.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "capture.h"
#include "agent.h"
#include "base/log.h"
#include "base/util.h"
#include "notify.h"
#include "opts.h"
#include "status.h"
#include "tap.h"

#define EXIT_START	1
#define EXIT_USAGE	2
#define EXIT_GONE	3

#define PORT_POLL_MS	500

static bool for_journal;

static void log_sink(int level, const char *msg)
{
	if (for_journal)
		fprintf(stderr, "<%d>%s\n", level, msg);
	else
		fprintf(stderr, "vhost-pci-agent: %s\n", msg);
}

static struct vp_state status_state;

static int do_status(const struct opts *o)
{
	struct vp_err e = { 0 };
	struct port *p;
	int rc = port_open(o->port, false, &p, &e);

	if (rc) {
		fprintf(stderr, "vhost-pci-agent: %s\n", e.msg);
		return EXIT_START;
	}
	rc = port_read_state(p, &status_state, &e);
	status_print(stdout, p, &status_state, rc ? e.msg : NULL, o->json);
	port_close(p);
	return rc ? EXIT_START : 0;
}

static int signals_fd(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int do_capture(const struct opts *o)
{
	const struct capture_conf c = { .name = o->capture, .path = o->write, .filter = o->filter,
					.snaplen = o->snaplen, .count = o->count };
	struct vp_err e = { 0 };
	int rc;

	if (!strcmp(c.path, "-") && isatty(STDOUT_FILENO)) {
		fputs("vhost-pci-agent: a capture file is nothing for a terminal: --write FILE\n", stderr);
		return EXIT_USAGE;
	}
	rc = capture_run(&c, signals_fd(), &e);
	if (rc)
		fprintf(stderr, "vhost-pci-agent: %s\n", e.msg);
	return rc ? EXIT_START : 0;
}

/* 0 got it, 1 asked to stop meanwhile, -errno. */
static int get_port(const struct opts *o, int sigfd, struct port **out)
{
	struct pollfd p = { .fd = sigfd, .events = POLLIN };
	struct vp_err e = { 0 };
	bool said = false;

	for (;;) {
		int rc = port_open(o->port, true, out, &e);

		if (!rc)
			return 0;
		if (!o->wait || (rc != -ENOENT && rc != -ENODEV)) {
			vp_log(VP_LOG_ERR, "%s", e.msg);
			return rc;
		}
		if (!said) {
			vp_log(VP_LOG_NOTICE, "waiting for a port: %s", e.msg);
			notify("READY=1\nSTATUS=waiting for port %s", o->port);
		}
		said = true;
		if (poll(&p, 1, PORT_POLL_MS) > 0)
			return 1;
	}
}

static int open_tap(const struct opts *o, const struct port *port, struct tap *t, struct vp_err *e)
{
	unsigned int pairs = o->pairs ? o->pairs : VP_MAX(1u, port->info.max_queues / 2);
	int rc;

	if (t->npairs)
		return 0;	/* it outlived the last port */
	rc = tap_open(t, o->tap, VP_MIN(pairs, (unsigned int)TAP_MAX_PAIRS), e);
	if (rc)
		return rc;
	t->keep = o->keep;
	if (o->has_mac)
		rc = tap_set_mac(t, o->mac, e);
	if (!rc && o->mtu) {
		rc = tap_set_mtu(t, (uint16_t)o->mtu, e);
		t->fixed_mtu = true;
	}
	if (!rc && o->bridge)
		rc = tap_bridge(t, o->bridge, e);
	if (!rc && (o->up || o->bridge))
		rc = tap_up(t, e);
	return rc;
}

static int open_path(const struct opts *o, struct tap *tap, struct datapath **out, struct vp_err *e)
{
	if (o->tap)
		return dp_vhostnet_open(tap, o->busy_poll_us, out, e);
	if (o->cid)
		return dp_vhostvsock_open(o->cid, out, e);
	if (o->wwpn)
		return dp_vhostscsi_open(o->wwpn, out, e);
	return dp_vhostuser_open(o->vhost_user, o->server, o->state, out, e);
}

static void tell_status(const struct agent *a)
{
	static char last[160];
	char now[sizeof(last)];

	if (a->up)
		snprintf(now, sizeof(now), "%s: link up, mode %s", a->port->what, vp_state_mode_str(a->s.mode));
	else
		snprintf(now, sizeof(now), "%s: link down: %s", a->port->what, a->attached ?
			 vp_state_reason_str(a->s.link_reason) : "not attached");
	if (!strcmp(now, last))
		return;
	memcpy(last, now, sizeof(last));
	notify("READY=1\nSTATUS=%s", now);
}

/* Until a signal (0), or until the port is gone (-ENODEV). */
static int serve(struct agent *a, int sigfd)
{
	struct pollfd p[2 + DP_MAX_FDS];

	for (;;) {
		uint32_t flags = 0;
		unsigned int n;
		int rc = agent_reconcile(a);

		if (rc)
			return rc;
		tell_status(a);
		p[0] = (struct pollfd){ .fd = sigfd, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = a->port->fd, .events = POLLIN };
		n = agent_fds(a, p + 2);
		rc = poll(p, 2 + n, agent_timeout(a));
		if (rc < 0 && errno != EINTR)
			return -errno;
		if (rc <= 0)
			continue;
		if (p[0].revents)
			return 0;
		if (p[1].revents & (POLLERR | POLLHUP | POLLNVAL))
			return -ENODEV;
		if (p[1].revents && a->port->ops->event(a->port, &flags) == -ENODEV)
			return -ENODEV;
		agent_port_event(a, flags);
		agent_handle(a, p + 2, n);
	}
}

/* One life of a port, from its opening to its end: an exit status, or -1 to wait for the next. */
static int run_port(const struct opts *o, int sigfd, struct tap *tap)
{
	struct datapath *dp = NULL;
	struct agent *a = NULL;
	struct port *port = NULL;
	struct vp_err e = { 0 };
	int status = EXIT_START, rc;
	char cid[24];

	rc = get_port(o, sigfd, &port);
	if (rc)
		return rc == 1 ? 0 : EXIT_START;
	rc = o->tap ? open_tap(o, port, tap, &e) : 0;
	if (!rc)
		rc = open_path(o, tap, &dp, &e);
	if (!rc) {
		a = agent_new(port, dp);
		if (!a)
			rc = vp_err_set(&e, -ENOMEM, "out of memory");
	}
	if (rc) {
		vp_log(VP_LOG_ERR, "%s", e.msg);
		goto out;
	}
	snprintf(cid, sizeof(cid), "CID %u", o->cid);
	vp_log(VP_LOG_NOTICE, "%s%s%s%s: serving with %s%s%s", port->what, port->info.name[0] ? " (" : "",
	       port->info.name, port->info.name[0] ? ")" : "", dp->ops->name, o->tap ? " and " : " at ",
	       o->tap ? tap->name : o->cid ? cid : o->wwpn ? o->wwpn : o->vhost_user);
	rc = serve(a, sigfd);
	if (rc == -ENODEV) {
		vp_log(VP_LOG_NOTICE, "%s was unplugged", port->what);
		status = o->wait ? -1 : EXIT_GONE;
	} else if (!rc) {
		notify("STOPPING=1");
		agent_stop(a);
		status = 0;
	}
out:
	agent_free(a);
	if (dp)
		dp->ops->close(dp);
	port_close(port);
	return status;
}

int main(int argc, char **argv)
{
	struct opts o;
	struct tap tap = { .npairs = 0 };
	int sigfd, rc = opts_parse(&o, argc, argv);

	if (rc)
		return rc < 0 ? EXIT_USAGE : 0;
	if (o.status)
		return do_status(&o);
	if (o.capture)
		return do_capture(&o);
	for_journal = getenv("JOURNAL_STREAM");
	setvbuf(stderr, NULL, _IOLBF, 0);
	vp_log_set(log_sink, o.verbose ? VP_LOG_DEBUG : VP_LOG_INFO);
	sigfd = signals_fd();
	if (sigfd < 0) {
		vp_log(VP_LOG_ERR, "no signalfd: %s", strerror(errno));
		return EXIT_START;
	}
	do
		rc = run_port(&o, sigfd, &tap);
	while (rc < 0);
	tap_close(&tap);
	return rc;
}
