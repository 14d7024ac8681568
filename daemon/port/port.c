/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the device VM's guest may write any command at any time, in floods, and may never
 * answer. A command is copied once and the copy is checked; what the guest leaves undone ends at a
 * deadline. In fast mode the guest is trusted with the driver VM's memory (policy.c has seen
 * to that), but never with the daemon's: nothing it says becomes an index or an address before a check.
 */
#include "port/port.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/foreign.h"
#include "base/log.h"
#include "port/priv.h"
#include "sys/timer.h"

/* Nobody waits for a link to go down, unlike for a driver's stop: a slow guest is given that many times longer. */
#define FALL_TIMEOUTS 5

static struct vp_port *ports;

uint64_t port_now(struct vp_port *p)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* ---- runs ------------------------------------------------------------------ */

struct vhp_abi_queue *port_queue_entry(struct vp_port *p, unsigned q)
{
	return &p->st.queues[q];
}

static void flags_change(struct vp_port *p, unsigned q, uint32_t set, uint32_t clear)
{
	port_queue_entry(p, q)->flags = htole32((le32toh(port_queue_entry(p, q)->flags) & ~clear) | set);
}

void port_end_run(struct vp_port *p, unsigned q, const struct vp_port_stop *s)
{
	p->q[q].running = false;
	p->q[q].stopping = false;
	p->q[q].deadline = 0;
	flags_change(p, q, s->broken ? VHP_QUEUE_BROKEN : 0, VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_ENABLED);
	if (s->base_known)
		port_queue_entry(p, q)->base = htole32(s->base);
	/*
	 * The next run may be of the same ring: shadow rings and pool always are, the driver VM's own where only its connection was lost.
	 * A guest in the middle of a burst would take buffers of the next run for those of the last, and put what it still has into
	 * them. It says with SYNC that it has seen this update.
	 */
	if (s->lost && p->attached) {
		port_touch_regions(p);
		p->q[q].lingers = true;
		p->q[q].gen = le32toh(p->st.regions_generation);
	}
	p->ops->queue_stopped(p->ctx, q, s);
}

/*
 * The guest is at work on no queue whose run is over: it has said so (SYNC of gen), or (NULL) it has gone, detached, or was cut and
 * must attach first. Whether the owner waits for one of them.
 */
bool port_let_go(struct vp_port *p, const uint32_t *gen)
{
	bool awaited = false;

	for (unsigned q = 0; q < p->nqueues; q++) {
		if (!p->q[q].lingers || (gen && (int32_t)(*gen - p->q[q].gen) < 0))
			continue;
		awaited |= p->q[q].await != 0;
		p->q[q].lingers = false;
		p->q[q].await = 0;
	}
	return awaited;
}

bool vp_port_queue_lingers(const struct vp_port *p, unsigned q)
{
	return p->q[q].lingers;
}

int vp_port_queue_await(struct vp_port *p, unsigned q)
{
	if (q >= p->nqueues || !p->q[q].lingers)
		return 0;
	if (!p->q[q].await) {
		p->q[q].await = port_now(p) + PORT_SYNC_US;
		port_arm(p);
	}
	return VP_LATER;
}

static void end_all_runs(struct vp_port *p)
{
	const struct vp_port_stop lost = { .lost = true };

	for (unsigned q = 0; q < p->nqueues; q++)
		if (p->q[q].running)
			port_end_run(p, q, &lost);
}

int vp_port_queue_run(struct vp_port *p, unsigned q, const struct vp_port_ring *r)
{
	struct vhp_abi_queue *e;

	if (q >= p->nqueues)
		return -ERANGE;
	if (!vp_port_is_up(p))
		return -ENOTCONN;
	if (p->q[q].running || p->q[q].lingers)
		return -EBUSY;
	vp_port_begin(p);
	e = port_queue_entry(p, q);
	e->desc_addr = htole64(r->desc);
	e->avail_addr = htole64(r->avail);
	e->used_addr = htole64(r->used);
	e->size = htole32(r->size);
	e->base = htole32(r->base);
	if (!++p->q[q].run)
		p->q[q].run = 1;
	e->run = htole32(p->q[q].run);
	e->flags = htole32(VHP_QUEUE_STARTED | (r->enabled ? VHP_QUEUE_ENABLED : 0));
	p->q[q].running = true;
	vp_port_commit(p);
	return 0;
}

void vp_port_queue_enable(struct vp_port *p, unsigned q, bool enabled)
{
	if (q >= p->nqueues || !p->q[q].running)
		return;
	vp_port_begin(p);
	flags_change(p, q, enabled ? VHP_QUEUE_ENABLED : 0, VHP_QUEUE_ENABLED);
	vp_port_commit(p);
}

/* An earlier request stands, if its time is not the longer one. */
static int stop_within(struct vp_port *p, unsigned q, uint64_t us)
{
	uint64_t deadline = port_now(p) + us;

	if (q >= p->nqueues || !p->q[q].running)
		return 0;
	if (!p->q[q].stopping || p->q[q].deadline > deadline) {
		vp_port_begin(p);
		p->q[q].stopping = true;
		p->q[q].deadline = deadline;
		flags_change(p, q, VHP_QUEUE_STOP, 0);
		vp_port_commit(p);
		port_arm(p);
	}
	return VP_LATER;
}

int vp_port_queue_stop(struct vp_port *p, unsigned q)
{
	return stop_within(p, q, p->conf.answer_timeout_us);
}

bool vp_port_queue_running(const struct vp_port *p, unsigned q)
{
	return q < p->nqueues && p->q[q].running;
}

bool vp_port_in_guests_hands(const struct vp_port *p)
{
	for (unsigned q = 0; q < p->nqueues; q++)
		if (p->q[q].running || p->q[q].lingers)
			return true;
	return false;
}

void vp_port_queue_end(struct vp_port *p, unsigned q)
{
	const struct vp_port_stop lost = { .lost = true };

	if (q >= p->nqueues || !p->q[q].running)
		return;
	vp_port_begin(p);
	port_end_run(p, q, &lost);
	vp_port_commit(p);
}

void vp_port_set_wire(struct vp_port *p, unsigned q, uint32_t kick_signal, uint32_t doorbell)
{
	if (q >= VHP_MAX_QUEUES)
		return;
	vp_port_begin(p);
	port_queue_entry(p, q)->kick_signal = htole32(kick_signal);
	port_queue_entry(p, q)->doorbell = htole32(doorbell);
	vp_port_commit(p);
}

/* ---- up and down ----------------------------------------------------------- */

/* Nearest to the guest first (spec, "link_reason"). A guest that was cut, or refused for its features, is told why it is not attached. */
static uint32_t reason_now(const struct vp_port *p)
{
	if (!p->nqueues)
		return VHP_REASON_NO_LINK;
	if (p->hold & VP_PORT_HOLD_POLICY)
		return VHP_REASON_POLICY;
	if (p->hold & VP_PORT_HOLD_ADMIN)
		return VHP_REASON_ADMIN;
	if (p->hold & VP_PORT_HOLD_PROFILE)
		return VHP_REASON_PROFILE;
	if (!p->attached)
		return p->cut ? VHP_REASON_TIMEOUT : p->bad_features ? VHP_REASON_FEATURES : VHP_REASON_NOT_ATTACHED;
	if (p->driver == VP_PORT_NO_DRIVER)
		return VHP_REASON_NO_DRIVER;
	if (p->hold & VP_PORT_HOLD_PROTOCOL)
		return VHP_REASON_PROTOCOL;
	if (p->driver != VP_PORT_DRIVER_RUNS)
		return VHP_REASON_NOT_READY;
	if (p->features & p->required & ~p->path[0])
		return VHP_REASON_FEATURES;
	if (p->limit)
		return VHP_REASON_LIMIT;
	if (p->n_unready || !p->st.nregions)
		return VHP_REASON_WINDOW;
	return VHP_REASON_NONE;
}

void port_show_status(struct vp_port *p)
{
	uint32_t reason = reason_now(p);

	p->st.flags = htole32(p->attached ? VHP_STATE_ATTACHED : 0);
	p->st.link_status = htole32(p->up ? VHP_LINK_UP : VHP_LINK_DOWN);
	p->st.link_reason = htole32(p->up ? VHP_REASON_NONE : reason);
	p->st.features[0] = htole64(p->driver == VP_PORT_NO_DRIVER ? 0 : p->features);
}

/*
 * The link goes down while the driver VM and the guest are well: an administrator wants it, or a window is
 * missing. The guest is still at work on the rings, so it is asked to stop before anybody else touches them.
 * Returns whether an answer is awaited.
 */
static bool ask_to_stop(struct vp_port *p)
{
	bool wait = false;

	if (!p->online || !p->attached || p->driver == VP_PORT_NO_DRIVER)
		return false;
	for (unsigned q = 0; q < p->nqueues; q++)
		wait |= stop_within(p, q, FALL_TIMEOUTS * p->conf.answer_timeout_us) == VP_LATER;
	p->falling = wait || p->falling;
	return wait;
}

void port_evaluate(struct vp_port *p)
{
	p->again = true;
	if (p->updating)
		return;
	vp_port_begin(p);
	p->updating = true;
	while (p->again) {
		bool up;

		p->again = false;
		port_windows_update(p);
		up = reason_now(p) == VHP_REASON_NONE && !p->falling;
		if (up == p->up || (!up && ask_to_stop(p)))
			continue;
		/* Down: the reason may have passed while queues were being stopped, and regions may go only now. */
		p->again = !up;
		p->falling = false;
		p->up = up;
		p->up_us = up ? port_now(p) : 0;
		if (up) {
			p->ops->up(p->ctx);
		} else {
			end_all_runs(p);
			p->ops->down(p->ctx);
		}
	}
	p->updating = false;
	port_show_status(p);
	if (p->busy && !port_windows_going(p))
		port_command_done(p);
	vp_port_commit(p);
	port_arm(p);
}

/* Afterwards the owner has all its queues back and windows are on their way out. */
void port_detach(struct vp_port *p)
{
	bool awaited;

	p->attached = false;
	p->falling = false;
	awaited = port_let_go(p, NULL);
	if (p->up) {
		p->up = false;
		p->up_us = 0;
		end_all_runs(p);
		p->ops->down(p->ctx);
	}
	/* Also when the link was up, with other queues: a connection may be held for these. */
	if (awaited && p->ops->released)
		p->ops->released(p->ctx);
	port_windows_withdraw(p);
}

static void cut(struct vp_port *p, const char *why)
{
	vp_log(VP_LOG_WARNING, "port %.32s: the guest is cut off: %s", p->conf.name, why);
	p->n_cuts++;
	p->cut = true;
	vp_port_begin(p);
	port_detach(p);
	port_evaluate(p);
	vp_port_commit(p);
}

/* ---- taken over from an earlier process ----------------------------------------- */

/* A data path that finds itself not attached any more lets go at once and asks again after a second. */
#define SETTLE_US 3000000u

void port_settle(struct vp_port *p)
{
	p->was_running = false;
	if (!p->settle_deadline)
		return;
	p->settle_deadline = 0;
	if (p->ops->settled)
		p->ops->settled(p->ctx);
}

bool vp_port_is_settled(const struct vp_port *p)
{
	return !p->settle_deadline;
}

/* ---- time ------------------------------------------------------------------ */

static int on_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_port *p = arg;
	uint64_t now = port_now(p);
	char why[80];

	vp_port_begin(p);
	for (unsigned q = 0; q < p->nqueues; q++)
		if (p->q[q].stopping && p->q[q].deadline <= now) {
			snprintf(why, sizeof(why), "it did not stop queue %u within %llu ms", q,
				 (unsigned long long)p->conf.answer_timeout_us / 1000 * (p->falling ? FALL_TIMEOUTS : 1));
			cut(p, why);
			break;
		} else if (p->q[q].await && p->q[q].await <= now) {
			snprintf(why, sizeof(why), "it did not let go of queue %u within %u ms", q, PORT_SYNC_US / 1000);
			cut(p, why);
			break;
		}
	if (p->busy && p->busy_deadline && p->busy_deadline <= now)
		port_command_done(p);
	if (p->settle_deadline && p->settle_deadline <= now)
		port_settle(p);
	port_windows_timer(p, now);
	port_evaluate(p);
	vp_port_commit(p);
	return 0;
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
	return !a ? b : !b ? a : VP_MIN(a, b);
}

void port_arm(struct vp_port *p)
{
	uint64_t t = port_windows_deadline(p);

	for (unsigned q = 0; q < p->nqueues; q++)
		t = sooner(sooner(t, p->q[q].deadline), p->q[q].await);
	if (p->busy)
		t = sooner(t, p->busy_deadline);
	t = sooner(t, p->settle_deadline);
	if (!t) {
		if (p->timer)
			sd_event_source_set_enabled(p->timer, SD_EVENT_OFF);
		return;
	}
	vp_timer_at(p->event, &p->timer, t, on_timer, p, p->conf.name);
}

/* ---- the attachment --------------------------------------------------------- */

void vp_port_set_attachment(struct vp_port *p, const struct vp_port_att_ops *ops, void *att)
{
	p->aops = ops;
	p->att = att;
}

void vp_port_online(struct vp_port *p, bool online)
{
	if (p->online == online)
		return;
	vp_port_begin(p);
	p->online = online;
	if (online && p->was_running) {
		p->was_running = false;
		p->settle_deadline = port_now(p) + SETTLE_US;
	} else if (!online) {
		port_settle(p);
		p->cut = p->bad_features = false;
		p->busy = false;
		port_windows_lost(p);
		port_detach(p);
	}
	port_evaluate(p);
	vp_port_commit(p);
	if (online)
		vp_port_command(p);
}

void vp_port_guest_reset(struct vp_port *p)
{
	vp_port_begin(p);
	p->cut = p->bad_features = false;
	port_detach(p);
	port_evaluate(p);
	vp_port_commit(p);
}

/* ---- the owner ---------------------------------------------------------------- */

void vp_port_set_link(struct vp_port *p, uint32_t device_type, uint32_t mode, uint32_t nqueues, uint64_t offered,
		      uint64_t required)
{
	vp_port_begin(p);
	p->device_type = device_type;
	p->nqueues = VP_MIN(nqueues, p->conf.max_queues);
	p->offered = offered;
	p->required = required;
	p->st.device_type = htole32(device_type);
	p->st.mode = htole32(mode);
	p->st.max_queues = htole32(p->nqueues);
	p->st.nqueues = htole32(p->nqueues);
	p->st.offered_features[0] = htole64(offered);
	p->st.required_features[0] = htole64(required);
	for (unsigned q = 0; q < p->nqueues; q++) {
		port_queue_entry(p, q)->kick_signal = htole32(1 + q);
		port_queue_entry(p, q)->doorbell = htole32(p->conf.queue_doorbell + q);
	}
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_set_hold(struct vp_port *p, unsigned hold)
{
	p->hold = hold;
	port_evaluate(p);
}

void vp_port_set_driver(struct vp_port *p, enum vp_port_driver d, uint64_t features)
{
	vp_port_begin(p);
	if (p->driver == VP_PORT_NO_DRIVER && d != VP_PORT_NO_DRIVER)
		p->st.link_epoch = htole64(le64toh(p->st.link_epoch) + 1);
	if (d != p->driver)
		p->driver_us = d == VP_PORT_DRIVER_RUNS ? port_now(p) : 0;
	p->driver = d;
	p->features = features;
	/* A driver that starts anew mends its rings. */
	for (unsigned q = 0; d != VP_PORT_DRIVER_RUNS && q < p->nqueues; q++)
		flags_change(p, q, 0, VHP_QUEUE_BROKEN);
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_set_config(struct vp_port *p, const void *config, unsigned size)
{
	size = VP_MIN(size, VHP_CONFIG_MAX);
	if (le32toh(p->st.config_size) == size && !memcmp(p->st.config, config, size))
		return;
	vp_port_begin(p);
	memset(p->st.config, 0, sizeof(p->st.config));
	memcpy(p->st.config, config, size);
	p->st.config_size = htole32(size);
	p->st.config_generation = htole32(le32toh(p->st.config_generation) + 1);
	vp_port_commit(p);
}

void vp_port_set_written(struct vp_port *p, uint32_t off, uint32_t len, const uint8_t *all)
{
	vp_port_begin(p);
	memcpy(p->st.set_config, all, sizeof(p->st.set_config));
	p->st.set_offset = htole32(off);
	p->st.set_size = htole32(len);
	p->st.set_generation = htole32(le32toh(p->st.set_generation) + 1);
	vp_port_commit(p);
}

bool port_lends(const char *vm, dev_t dev, ino_t ino)
{
	struct stat st;

	for (const struct vp_port *p = ports; p; p = p->next) {
		if (!vm || !p->conf.device_vm || strcmp(vm, p->conf.device_vm))
			continue;
		if (!fstat(p->memfd, &st) && st.st_dev == dev && st.st_ino == ino)
			return true;
		for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
			if (p->win[i].state != WIN_FREE && p->win[i].fd >= 0 && p->win[i].dev == dev && p->win[i].ino == ino)
				return true;
	}
	return false;
}

bool vp_port_lends(const char *vm, int fd)
{
	struct stat st;

	return vp_foreign_kind(fd, NULL, NULL) == VP_FOREIGN_MEMORY && !fstat(fd, &st) && port_lends(vm, st.st_dev, st.st_ino);
}

int vp_port_new(struct vp_port **out, sd_event *event, const struct vp_port_conf *conf, const struct vp_port_ops *ops,
		void *ctx, struct vp_err *e)
{
	struct vp_port *p;
	int r;

	if (!conf->max_queues || conf->max_queues > VHP_MAX_QUEUES)
		return vp_err_set(e, -EINVAL, "a port has 1 to %u queues, not %u", VHP_MAX_QUEUES, conf->max_queues);
	p = calloc(1, sizeof(*p));
	if (!p)
		return vp_err_set(e, -ENOMEM, "port %.32s: out of memory", conf->name);
	p->event = event;
	p->conf = *conf;
	if (!p->conf.nsignals)
		p->conf.nsignals = 1 + conf->max_queues;
	if (!p->conf.answer_timeout_us)
		p->conf.answer_timeout_us = 1000000;
	p->ops = ops;
	p->ctx = ctx;
	p->memfd = conf->kept ? conf->kept_memfd : -1;
	p->recordfd = conf->kept ? conf->kept_state : -1;
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		p->win[i].fd = -1;
	p->next = ports;
	ports = p;
	r = port_page_make(p, e);
	if (r) {
		vp_port_free(p);
		return r;
	}
	port_evaluate(p);
	*out = p;
	return 0;
}

void vp_port_goodbye(struct vp_port *p)
{
	if (!p || !p->record || p->gone)
		return;
	vp_port_begin(p);
	/* With queues in its hands it stays attached, or it would not say SYNC: somebody may be waiting for that (guard.h). */
	if (!p->left_running)
		p->st.flags = 0;
	p->st.link_status = htole32(VHP_LINK_DOWN);
	p->st.link_reason = htole32(VHP_REASON_DAEMON);
	for (unsigned q = 0; q < p->nqueues; q++)
		flags_change(p, q, 0, VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_ENABLED);
	if (p->st.nregions)
		port_touch_regions(p);
	p->st.nregions = 0;
	vp_port_commit(p);
	p->gone = true;
	port_record_left(p);
}

void vp_port_free(struct vp_port *p)
{
	struct vp_port **at;

	if (!p)
		return;
	p->aops = NULL; /* whoever owns the attachment has freed it by now */
	vp_port_goodbye(p);
	sd_event_source_disable_unref(p->timer);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		vp_close_foreign(&p->win[i].fd);
	port_mem_free(p);
	port_page_free(p);
	for (at = &ports; *at != p; at = &(*at)->next)
		;
	*at = p->next;
	free(p);
}
