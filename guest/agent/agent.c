// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the daemon publishes is trusted but not believed blindly (port.c checks it); what the
 * driver VM has a hand in, ring addresses and sizes, is hostile (memmap.c checks it). A queue
 * that is malformed is given up as broken; the others go on.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent_priv.h"
#include "base/log.h"
#include "base/util.h"
#include "vfeatures.h"

#define ATTACH_TIMEOUT_MS	5000u
#define ATTACH_AGAIN_MS		1000u
#define TORN_RETRY_MS		200u
#define MAX_PASSES		4

struct agent *agent_new(struct port *port, struct datapath *dp)
{
	struct agent *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->port = port;
	a->dp = dp;
	a->down_reason = ~0u;
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
		a->q[i].kick_fd = a->q[i].call_fd = -1;
	return a;
}

void agent_free(struct agent *a)
{
	if (!a)
		return;
	memmap_free(a->map);
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++) {
		vp_close(&a->q[i].kick_fd);
		vp_close(&a->q[i].call_fd);
	}
	free(a);
}

/* ---- one queue ------------------------------------------------------------------------------ */

/* Does the last reading show run `run` of queue i as started? */
static bool run_current(const struct agent *a, unsigned int i, uint32_t run)
{
	return i < a->s.nqueues && a->s.queues[i].flags & VHP_QUEUE_STARTED && a->s.queues[i].run == run;
}

static void report_stopped(struct agent *a, unsigned int i, uint32_t run, uint32_t base, uint64_t flags)
{
	uint64_t args[4] = { [VHP_STOPPED_QUEUE] = i, [VHP_STOPPED_RUN] = run,
			     [VHP_STOPPED_BASE] = base, [VHP_STOPPED_FLAGS] = flags };
	int rc;

	/*
	 * A stop that is answered lets the daemon write the next run's ring, into which the data path may still write:
	 * DETACH answers it.
	 */
	if (a->open && a->s.mode == VHP_MODE_COPY)
		return;
	rc = port_command(a->port, VHP_CMD_QUEUE_STOPPED, args, COMMAND_TIMEOUT_MS, NULL);

	if (rc < 0)
		vp_log(VP_LOG_WARNING, "%s: queue %u: the daemon did not take the stop: %s", a->port->what, i,
		       strerror(-rc));
	else if (rc != VHP_ST_OK && rc != VHP_ST_STALE)
		vp_log(VP_LOG_WARNING, "%s: queue %u: the daemon refused the stop: %s", a->port->what, i,
		       vp_state_status_str((uint32_t)rc));
	else
		vp_log(VP_LOG_DEBUG, "%s: queue %u: run %u stopped at %#x%s%s", a->port->what, i, run, base,
		       flags & VHP_STOPPED_F_BROKEN ? ", broken" : "",
		       flags & VHP_STOPPED_F_NO_BASE ? ", index unknown" : "");
}

/* Take the queue from the data path and remember where it stood. */
static void queue_halt(struct agent *a, unsigned int i, bool *lost)
{
	struct agent_queue *q = &a->q[i];
	struct vp_err e = { 0 };
	int rc;

	q->running = q->enabled = false;
	q->halted = true;
	q->stop_base = 0;
	q->stop_flags = VHP_STOPPED_F_NO_BASE;
	/*
	 * First, so that a back-end which is kept busy by the driver VM gets to the request to stop (virtiofsd does one
	 * or the other). Who has the queue next looks at the ring by itself.
	 */
	a->port->ops->set_kick(a->port, 1 + i, -1);
	if (!*lost) {
		rc = a->dp->ops->stop(a->dp, i, &q->stop_base, &e);
		if (!rc)
			q->stop_flags = 0;
		else if (rc == -ECONNRESET)
			*lost = true;
		else if (rc != -ENODATA)
			vp_log(VP_LOG_WARNING, "%s: queue %u: %s", a->port->what, i, e.msg);
		a->open |= a->dp->ops->unclean && a->dp->ops->unclean(a->dp);
	}
	/* After the data path let go of them: what it called until now has been delivered. */
	a->port->ops->set_call(a->port, 1 + i, -1);
}

/* Stop on our own account: the daemon hears why, and the run is over for us. */
static void queue_give_up(struct agent *a, unsigned int i, uint64_t flags, bool *lost)
{
	struct agent_queue *q = &a->q[i];

	if (q->running)
		queue_halt(a, i, lost);
	q->given_up = q->run;
	q->stop_flags |= flags;
	report_stopped(a, i, q->run, q->stop_base, q->stop_flags);
}

static int queue_fds(struct agent_queue *q)
{
	if (q->kick_fd < 0)
		q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->kick_fd >= 0 && q->call_fd < 0)
		q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return q->kick_fd < 0 || q->call_fd < 0 ? -errno : 0;
}

static void poke(int fd)
{
	uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof(one));

	(void)n;	/* a full eventfd is signalled already */
}

static void queue_start(struct agent *a, unsigned int i, bool *lost)
{
	const struct vp_state_queue *sq = &a->s.queues[i];
	struct agent_queue *q = &a->q[i];
	struct dp_queue c = { .size = sq->size, .base = sq->base, .addr = { sq->desc, sq->avail, sq->used } };
	struct vp_err e = { 0 };
	int rc;

	rc = memmap_ring(a->map, sq, vp_has(a->features, VIRTIO_F_RING_PACKED), &c.ring, &e);
	if (rc == -EFAULT && a->map->pending) {
		agent_retry_at(a, agent_now_ms() + RETRY_MS);
		return;
	}
	/* A run that was halted without a word to the daemon goes on where it was, not where it began. */
	if (q->halted && q->run == sq->run) {
		c.base = q->stop_base;
		if (q->stop_flags) {
			queue_give_up(a, i, 0, lost);
			return;
		}
	}
	q->run = sq->run;
	q->halted = false;
	q->stop_base = c.base;
	q->stop_flags = 0;
	if (rc) {
		vp_log(VP_LOG_ERR, "%s: queue %u is broken until the driver VM starts it anew: %s", a->port->what, i,
		       e.msg);
		queue_give_up(a, i, VHP_STOPPED_F_BROKEN, lost);
		return;
	}
	rc = queue_fds(q);
	if (!rc)
		rc = a->port->ops->set_call(a->port, 1 + i, q->call_fd);
	if (!rc)
		rc = a->port->ops->set_kick(a->port, 1 + i, q->kick_fd);
	if (rc) {
		vp_err_set(&e, rc, "its eventfds cannot be set up: %s", strerror(-rc));
	} else {
		c.kick_fd = q->kick_fd;
		c.call_fd = q->call_fd;
		rc = a->dp->ops->start(a->dp, i, &c, &e);
	}
	if (rc) {
		a->port->ops->set_call(a->port, 1 + i, -1);
		a->port->ops->set_kick(a->port, 1 + i, -1);
		if (rc == -ECONNRESET) {
			*lost = true;
			return;
		}
		vp_log(VP_LOG_ERR, "%s: queue %u cannot be started: %s", a->port->what, i, e.msg);
		queue_give_up(a, i, 0, lost);
		return;
	}
	q->running = true;
	q->enabled = false;
	vp_log(VP_LOG_DEBUG, "%s: queue %u: run %u of %u entries starts at %#x", a->port->what, i, q->run, sq->size,
	       c.base);
}

static void queue_enable(struct agent *a, unsigned int i, bool on, bool *lost)
{
	struct agent_queue *q = &a->q[i];
	struct vp_err e = { 0 };
	int rc = a->dp->ops->enable(a->dp, i, on, &e);

	if (rc == -ECONNRESET) {
		*lost = true;
		return;
	}
	if (rc) {
		vp_log(VP_LOG_ERR, "%s: queue %u cannot be %s: %s", a->port->what, i, on ? "enabled" : "disabled",
		       e.msg);
		queue_give_up(a, i, 0, lost);
		return;
	}
	q->enabled = on;
	if (on) {
		/*
		 * Kicks that came before anybody listened, and calls that a data path which died
		 * still owed: both sides look once. Spurious ones are harmless.
		 */
		poke(q->kick_fd);
		poke(q->call_fd);
	}
}

/* ---- the session ---------------------------------------------------------------------------- */

static void session_forget(struct agent *a)
{
	if (a->up)
		a->dp->ops->carrier(a->dp, false);
	a->dp->ops->reset(a->dp);
	memmap_free(a->map);
	a->map = NULL;
	a->up = false;
}

static void detach(struct agent *a)
{
	static const uint64_t args[4];

	if (a->attached)
		port_command(a->port, VHP_CMD_DETACH, args, ATTACH_TIMEOUT_MS, NULL);
	a->attached = false;
}

/* Until the data path is a new one. */
static void leave(struct agent *a)
{
	detach(a);
	a->open = a->described = false;
	a->describe_ms = 0;
	a->set_seen = 0;
	agent_retry_at(a, agent_now_ms() + RETRY_MS);
}

/* Everything stops. Runs that the daemon still shows as started are reported, the others are over anyway. */
static void session_end(struct agent *a, bool report, bool *lost)
{
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++) {
		if (!a->q[i].running)
			continue;
		queue_halt(a, i, lost);
		if (report && run_current(a, i, a->q[i].run)) {
			a->q[i].given_up = a->q[i].run;
			report_stopped(a, i, a->q[i].run, a->q[i].stop_base, a->q[i].stop_flags);
		}
	}
	if (a->up || a->map)
		session_forget(a);
	if (a->open)
		leave(a);
}

/* The data path died under us: report what is known, leave the link, come back when it does. */
static void dp_lost(struct agent *a)
{
	bool lost = true;

	vp_log(VP_LOG_WARNING, "%s: the %s data path is gone; the link stays down until it is back", a->port->what,
	       a->dp->ops->name);
	session_end(a, true, &lost);
	session_forget(a);
	leave(a);
}

static bool session_wanted(const struct agent *a)
{
	return a->attached && a->s.link_status == VHP_LINK_UP &&
	       (!a->dp->ops->device_type || a->s.device_type == a->dp->ops->device_type);
}

static int session_memory(struct agent *a, bool *lost)
{
	struct vp_err e = { 0 };
	struct memmap *m;
	int rc = memmap_build(a->port, &a->s, a->map, a->dp->ops->needs_map, &m, &e);

	if (rc == -ENODEV)
		return rc;
	if (rc) {
		agent_complain(a, QUIET_WINDOW, VP_LOG_ERR, "%s", e.msg);
		agent_retry_at(a, agent_now_ms() + RETRY_MS);
		return -EAGAIN;
	}
	if (m->pending) {
		agent_complain(a, QUIET_WINDOW, VP_LOG_NOTICE,
			       "waiting for %u window%s: this VM has not found the device yet", m->pending,
			       m->pending > 1 ? "s" : "");
		agent_retry_at(a, agent_now_ms() + RETRY_MS);
		/* A new session waits for all; a running one takes what there is. */
		if (!a->up || (m->generation == a->map->generation && m->pending == a->map->pending)) {
			memmap_free(m);
			return -EAGAIN;
		}
	}
	rc = a->dp->ops->set_mem(a->dp, m, &e);
	if (rc) {
		memmap_free(m);
		if (rc == -ECONNRESET)
			*lost = true;
		else
			agent_complain(a, QUIET_SETUP, VP_LOG_ERR, "%s", e.msg);
		agent_retry_at(a, agent_now_ms() + ATTACH_AGAIN_MS);
		return -EAGAIN;
	}
	/* Only now, when the data path uses the new table, may windows of the old one go. */
	memmap_free(a->map);
	a->map = m;
	return 0;
}

static int session_begin(struct agent *a, bool *lost)
{
	struct vp_err e = { 0 };
	char names[512];
	int rc;

	if (!a->dp->ops->ready(a->dp)) {
		*lost = true;
		return -EAGAIN;
	}
	if (a->dp->ops->set_grows)
		a->dp->ops->set_grows(a->dp, a->s.flags & VHP_STATE_MAP);
	else if (a->s.flags & VHP_STATE_MAP)
		agent_complain(a, QUIET_SETUP, VP_LOG_WARNING,
			       "the driver VM's memory comes as it is asked for (Grant=viommu), and the %s data path "
			       "cannot ask: queues break at what it misses; use --tap, or a program on libvhostpci",
			       a->dp->ops->name);
	rc = a->dp->ops->configure(a->dp, a->s.features, &e);
	if (rc) {
		if (rc == -ECONNRESET)
			*lost = true;
		else
			agent_complain(a, QUIET_SETUP, VP_LOG_ERR, "%s", e.msg);
		agent_retry_at(a, agent_now_ms() + ATTACH_AGAIN_MS);
		return -EAGAIN;
	}
	rc = session_memory(a, lost);
	if (rc)
		return rc;
	a->up = true;
	a->epoch = a->s.link_epoch;
	memcpy(a->features, a->s.features, sizeof(a->features));
	a->down_reason = ~0u;
	a->quiet = QUIET_NONE;
	vp_log(VP_LOG_NOTICE, "%s: link up: mode %s, %u queues, driver VM number %llu, %u region%s, features %s",
	       a->port->what, vp_state_mode_str(a->s.mode), a->s.nqueues, (unsigned long long)a->epoch,
	       a->map->nregions, a->map->nregions == 1 ? "" : "s",
	       features_names(a->features, a->s.device_type, names, sizeof(names)));
	if (a->s.nqueues > a->dp->ops->max_queues(a->dp))
		vp_log(VP_LOG_WARNING, "%s: the link has %u queues, but the %s data path only %u: the rest stays idle",
		       a->port->what, a->s.nqueues, a->dp->ops->name, a->dp->ops->max_queues(a->dp));
	return 0;
}

/* ---- attaching ------------------------------------------------------------------------------ */

/* 1: attached just now, or described: read the state again. */
static int try_attach(struct agent *a)
{
	uint64_t args[VHP_CMD_NARGS] = { [VHP_ATTACH_ABI] = VHP_ABI_VERSION }, f[2] = { 0, 0 }, missing[2],
		 value[6] = { 0 };
	char names[400];
	int rc;

	if (agent_now_ms() < a->attach_ms) {
		agent_retry_at(a, a->attach_ms);
		return 0;
	}
	if (!a->dp->ops->ready(a->dp)) {
		agent_retry_at(a, agent_now_ms() + RETRY_MS);
		return 0;
	}
	if (a->dp->ops->device_type && a->s.device_type && a->s.device_type != a->dp->ops->device_type) {
		agent_complain(a, QUIET_TYPE, VP_LOG_ERR,
			       "not attached: the link's device has virtio ID %u, the %s data path "
			       "serves %u",
			       a->s.device_type, a->dp->ops->name, a->dp->ops->device_type);
		return 0;
	}
	if (a->dp->ops->describe && !a->described) {
		rc = agent_describe(a);
		return rc ? rc == -ENODEV ? rc : 0 : 1;
	}
	a->dp->ops->features(a->dp, f);
	missing[0] = a->s.required_features[0] & ~f[0];
	missing[1] = a->s.required_features[1] & ~f[1];
	args[VHP_ATTACH_FEATURES0] = f[0];
	args[VHP_ATTACH_FEATURES1] = f[1];
	args[VHP_ATTACH_TYPE] = a->dp->ops->device_type;
	if (missing[0] | missing[1]) {
		if (missing[0] != a->refused[0] || missing[1] != a->refused[1])
			a->quiet = QUIET_NONE;
		a->refused[0] = missing[0];
		a->refused[1] = missing[1];
		agent_complain(a, QUIET_FEATURES, VP_LOG_ERR,
			       "not attached: the %s data path lacks %s, which the link's profile "
			       "requires: narrow the profile on the host, or use another data path",
			       a->dp->ops->name, features_names(missing, a->s.device_type, names, sizeof(names)));
		/* It is refused; but on the host they know why then. */
		if (a->s.link_reason == VHP_REASON_NOT_ATTACHED) {
			rc = port_command(a->port, VHP_CMD_ATTACH, args, ATTACH_TIMEOUT_MS, NULL);
			a->attach_ms = agent_now_ms() + ATTACH_AGAIN_MS;
			return rc == -ENODEV ? rc : 0;
		}
		return 0;
	}
	if (a->dp->ops->keeps_account && a->dp->ops->keeps_account(a->dp))
		args[VHP_ATTACH_FLAGS] = VHP_ATTACH_F_INFLIGHT;
	rc = port_command_all(a->port, VHP_CMD_ATTACH, args, ATTACH_TIMEOUT_MS, value);
	if (rc == -ENODEV)
		return rc;
	a->attach_ms = agent_now_ms() + ATTACH_AGAIN_MS;
	if (rc == VHP_ST_OK) {
		a->attached = true;
		agent_counters_begin(a);
		a->quiet = QUIET_NONE;
		for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++)
			a->q[i].given_up = 0;
		a->synced = a->s.regions_generation;
		vp_log(VP_LOG_INFO, "%s: attached, features %s", a->port->what,
		       features_names(f, a->s.device_type, names, sizeof(names)));
		return 1;
	}
	if (rc < 0)
		agent_complain(a, QUIET_ATTACH, VP_LOG_WARNING, "attaching: %s; trying again", rc == -ETIMEDOUT ?
			 "the host's daemon does not answer (is vhost-pcid running?)" : strerror(-rc));
	else if (rc == VHP_ST_FEATURES)
		agent_complain(a, QUIET_ATTACH, VP_LOG_ERR,
			       "attaching was refused: features %s are missing; trying again",
			       features_names(value, a->s.device_type, names, sizeof(names)));
	else
		agent_complain(a, QUIET_ATTACH, VP_LOG_ERR, "attaching was refused: %s; trying again",
			 vp_state_status_str((uint32_t)rc));
	agent_retry_at(a, a->attach_ms);
	return 0;
}

/* ---- reconciling ---------------------------------------------------------------------------- */

static void apply_config(struct agent *a)
{
	struct dp_config c = { .data = a->s.config, .size = a->s.config_size };

	if (!c.size || (a->config_seen && a->config_generation == a->s.config_generation))
		return;
	a->config_seen = true;
	a->config_generation = a->s.config_generation;
	memcpy(c.features, a->s.offered_features, sizeof(c.features));
	a->dp->ops->config(a->dp, &c);
}

/* Stop what is to be stopped, and answer. Also for runs that never got as far as being started here. */
static void apply_stops(struct agent *a, bool *lost)
{
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++) {
		const struct vp_state_queue *sq = &a->s.queues[i];
		struct agent_queue *q = &a->q[i];
		bool mine = run_current(a, i, q->run);
		uint32_t flags = i < a->s.nqueues ? sq->flags : 0;
		bool bad = a->broken[i / 64] >> (i % 64) & 1, unmapped = a->unmapped[i / 64] >> (i % 64) & 1;

		if (q->running && mine && bad && !(flags & VHP_QUEUE_STOP) && a->s.link_status == VHP_LINK_UP) {
			if (!unmapped)
				vp_log(VP_LOG_ERR,
				       "%s: queue %u is broken until the driver VM starts it anew: the data path found "
				       "the ring malformed",
				       a->port->what, i);
			queue_give_up(a, i, VHP_STOPPED_F_BROKEN | (unmapped ? VHP_STOPPED_F_REFUSED : 0), lost);
			continue;
		}
		if (q->running && (!mine || flags & (VHP_QUEUE_STOP | VHP_QUEUE_BROKEN)))
			queue_halt(a, i, lost);
		if (!a->attached || !(flags & VHP_QUEUE_STOP))
			continue;
		if (mine)
			report_stopped(a, i, q->run, q->stop_base, q->stop_flags);
		else
			report_stopped(a, i, sq->run, sq->base, 0);
	}
	memset(a->broken, 0, sizeof(a->broken));
	memset(a->unmapped, 0, sizeof(a->unmapped));
}

static void apply_queues(struct agent *a, bool *lost)
{
	uint32_t n = VP_MIN(a->s.nqueues, a->dp->ops->max_queues(a->dp));
	unsigned int running = 0;

	for (unsigned int i = 0; i < n && !*lost; i++) {
		const struct vp_state_queue *sq = &a->s.queues[i];
		struct agent_queue *q = &a->q[i];
		uint32_t startable = VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_BROKEN;
		bool on = sq->flags & VHP_QUEUE_ENABLED;

		if (!q->running && (sq->flags & startable) == VHP_QUEUE_STARTED && sq->run != q->given_up)
			queue_start(a, i, lost);
		if (q->running && !*lost && q->enabled != on)
			queue_enable(a, i, on, lost);
		running += q->running;
	}
	a->dp->ops->carrier(a->dp, running > 0 && !*lost);
}

/* After a table was replaced: rings that are not where they were. */
static void check_rings(struct agent *a, bool *lost)
{
	for (unsigned int i = 0; i < VHP_MAX_QUEUES; i++) {
		struct mm_ring ring;
		struct vp_err e = { 0 };

		if (!a->q[i].running || i >= a->s.nqueues)
			continue;
		if (!memmap_ring(a->map, &a->s.queues[i], vp_has(a->features, VIRTIO_F_RING_PACKED), &ring, &e))
			continue;
		vp_log(VP_LOG_ERR, "%s: queue %u is broken, its memory was removed: %s", a->port->what, i, e.msg);
		queue_give_up(a, i, VHP_STOPPED_F_BROKEN, lost);
	}
}

static void send_sync(struct agent *a)
{
	uint32_t using = a->map ? a->map->generation : a->s.regions_generation;
	uint64_t args[4] = { [VHP_SYNC_REGIONS] = using };

	if (!a->attached || using == a->synced)
		return;
	a->synced = using;
	port_command(a->port, VHP_CMD_SYNC, args, COMMAND_TIMEOUT_MS, NULL);
}

static int pass(struct agent *a)
{
	struct vp_err e = { 0 };
	bool lost = false, want;
	int rc;

	a->retry_ms = 0;
	rc = port_read_state(a->port, &a->s, &e);
	if (rc == -ENODEV)
		return rc;
	if (rc == -EAGAIN) {
		agent_complain(a, QUIET_TORN, VP_LOG_WARNING, "%s", e.msg);
		agent_retry_at(a, agent_now_ms() + TORN_RETRY_MS);
		return 0;
	}
	if (rc) {
		agent_complain(a, QUIET_INVALID, VP_LOG_ERR,
			       "the state page is invalid, so the link counts as down: %s", e.msg);
		session_end(a, false, &lost);
		agent_retry_at(a, agent_now_ms() + ATTACH_AGAIN_MS);
		return 0;
	}
	apply_config(a);
	if (a->attached && !(a->s.flags & VHP_STATE_ATTACHED)) {
		vp_log(VP_LOG_WARNING, "%s: the daemon ended the attachment: %s", a->port->what,
		       vp_state_reason_str(a->s.link_reason));
		a->attached = false;
		session_end(a, false, &lost);
		a->attach_ms = agent_now_ms() + ATTACH_AGAIN_MS;
	}
	if (!a->attached) {
		rc = try_attach(a);
		if (rc)
			return rc;
	}
	if (a->attached && a->dp->ops->changed && a->dp->ops->changed(a->dp)) {
		a->described = false;
		a->describe_ms = 0;
		rc = agent_describe(a);
		if (rc == -ENODEV)
			return rc;
	}
	if (a->attached)
		agent_apply_set_config(a);
	apply_stops(a, &lost);
	if (a->open)
		session_end(a, true, &lost);
	want = session_wanted(a);
	if (a->up &&
	    (!want || a->epoch != a->s.link_epoch || memcmp(a->features, a->s.features, sizeof(a->features)))) {
		vp_log(VP_LOG_NOTICE, "%s: link %s: %s", a->port->what, want ? "changed" : "down",
		       want ? "the driver VM or its driver is a new one" : vp_state_reason_str(a->s.link_reason));
		a->down_reason = want ? ~0u : a->s.link_reason;
		session_end(a, true, &lost);
		want = want && a->attached;
	}
	if (a->attached && !want && a->down_reason != a->s.link_reason) {
		a->down_reason = a->s.link_reason;
		vp_log(VP_LOG_INFO, "%s: link is down: %s", a->port->what, vp_state_reason_str(a->s.link_reason));
	}
	rc = 0;
	if (want && !lost) {
		if (!a->up) {
			rc = session_begin(a, &lost);
		} else if (a->map->generation != a->s.regions_generation || a->map->pending) {
			rc = session_memory(a, &lost);
			if (!rc)
				check_rings(a, &lost);
		}
	}
	if (rc == -ENODEV)
		return rc;
	if (a->up && !lost)
		apply_queues(a, &lost);
	if (lost)
		dp_lost(a);
	send_sync(a);
	if (a->up && a->dp->ops->missing)
		agent_ask_for_memory(a);
	agent_counters_tell(a);
	return 0;
}

int agent_reconcile(struct agent *a)
{
	int rc = 1;

	for (int i = 0; rc == 1 && i < MAX_PASSES; i++)
		rc = pass(a);
	if (rc == -ENODEV) {
		bool lost = false;

		a->attached = false;
		session_end(a, false, &lost);
		return rc;
	}
	return 0;
}

int agent_timeout(const struct agent *a)
{
	uint64_t now = agent_now_ms();

	if (!a->retry_ms)
		return -1;
	return a->retry_ms <= now ? 0 : (int)(a->retry_ms - now);
}

void agent_port_event(struct agent *a, uint32_t flags)
{
	bool lost = false;

	if (!(flags & VHP_EV_DETACHED))
		return;
	vp_log(VP_LOG_NOTICE, "%s: the module detached (suspend): attaching again", a->port->what);
	a->attached = false;
	session_end(a, false, &lost);
	a->attach_ms = 0;
}

unsigned int agent_fds(struct agent *a, struct pollfd *p)
{
	return a->dp->ops->fds(a->dp, p);
}

void agent_handle(struct agent *a, const struct pollfd *p, unsigned int n)
{
	struct vp_err e = { 0 };

	/* Broken queues wait for the next reading: the run may be over already, and its memory revoked. */
	if (a->dp->ops->handle(a->dp, p, n, a->broken, &e) == -ECONNRESET) {
		if (e.msg[0])
			vp_log(VP_LOG_WARNING, "%s: %s", a->port->what, e.msg);
		dp_lost(a);
	}
}

void agent_stop(struct agent *a)
{
	struct vp_err e = { 0 };
	bool lost = false;

	port_read_state(a->port, &a->s, &e);
	session_end(a, a->attached, &lost);
	detach(a);
}
