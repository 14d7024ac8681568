/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port's life: up and down, how long a guest may take, and how it is cut off; a port that was taken over from an
 * earlier process. Threat model: port.c.
 */
#include "port/port.h"

#include <endian.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "port/priv.h"
#include "sys/timer.h"

/* Nobody waits for a link to go down, unlike for a driver's stop: a slow guest is given that many times longer. */
#define FALL_TIMEOUTS 5

uint64_t port_now(struct vp_port *p)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* ---- up and down ----------------------------------------------------------- */

/*
 * Nearest to the guest first (spec, "link_reason"). A guest that was cut, or refused for its features, is told why it
 * is not attached.
 */
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
	if (p->hold & VP_PORT_HOLD_GRANT)
		return VHP_REASON_GRANT;
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

	p->st.flags = htole32((p->attached ? VHP_STATE_ATTACHED : 0) | (p->conf.count ? VHP_STATE_COUNT : 0) |
			      (p->maps ? VHP_STATE_MAP : 0) | (p->logged ? VHP_STATE_LOGGED : 0));
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
		wait |= port_stop_within(p, q, FALL_TIMEOUTS * p->conf.answer_timeout_us) == VP_LATER;
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
			port_end_all_runs(p);
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
		port_end_all_runs(p);
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

/* ---- the device VM comes and goes --------------------------------------------- */

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
				 (unsigned long long)p->conf.answer_timeout_us / 1000 *
					 (p->falling ? FALL_TIMEOUTS : 1));
			cut(p, why);
			break;
		} else if (p->q[q].await && p->q[q].await <= now) {
			snprintf(why, sizeof(why), "it did not let go of queue %u within %u ms", q,
				 PORT_SYNC_US / 1000);
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
