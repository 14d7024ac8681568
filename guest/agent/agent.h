/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine: keeps one data path in the state that the port's state page asks for. It is
 * level-triggered: agent_reconcile() reads the page, compares what is asked with what is
 * applied, and applies the difference; what happened in between does not matter
 * (docs/spec.md, "Life cycle").
 *
 * Threads: one. Nothing here waits except the port's commands and the data path's calls, all bounded.
 */
#ifndef VHP_AGENT_AGENT_H
#define VHP_AGENT_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "datapath.h"
#include "memmap.h"
#include "port.h"

struct agent_queue {
	bool running, enabled;
	uint32_t run;		/* the run that runs, or ran last */
	uint32_t given_up;	/* run that we ended ourselves: wait for another one; 0 = none */
	bool halted;		/* run was stopped here; where is below */
	uint32_t stop_base;	/* where run stood when it was stopped */
	uint64_t stop_flags;	/* VHP_STOPPED_F_* */
	int kick_fd, call_fd;	/* eventfds, made once; -1: not yet */
};

struct agent {
	struct port *port;	/* the caller's */
	struct datapath *dp;	/* the caller's */
	bool attached;		/* an ATTACH was accepted and still holds */
	bool up;		/* a session is set up in the data path */
	uint64_t epoch;		/* of that session */
	uint64_t features[2];	/* of that session, as negotiated */
	struct memmap *map;	/* of that session */
	uint32_t synced;	/* regions_generation of the last SYNC */
	bool described;		/* BACKEND was sent for this back-end, and accepted */
	uint64_t describe_ms;	/* not before, after a refusal */
	uint32_t set_seen;	/* set_generation that this back-end was told of */
	bool config_seen;
	uint32_t config_generation;
	uint64_t retry_ms;	/* CLOCK_MONOTONIC: reconcile then; 0 = no need */
	uint64_t attach_ms;	/* no ATTACH before */
	/* a queue was stopped with requests that the data path may still do: it is to let go first */
	bool open;
	struct dp_counters count_base, counted; /* when it attached; as told last */
	uint64_t count_ms;	/* not before: COUNTERS */
	uint64_t broken[2];	/* queues that the data path complained of, to be looked at */
	uint64_t unmapped[2];	/* of these, those whose memory was refused (MAP) */
	uint64_t refused[2];	/* required features that ATTACH was not sent for, to say so once */
	int quiet;		/* last complaint that was logged, to say it once: enum in agent.c */
	uint32_t down_reason;	/* last reason that was logged */
	struct agent_queue q[VHP_MAX_QUEUES];
	struct vp_state s;	/* last good reading */
};

/* NULL: out of memory. port and dp must live longer than the agent. */
struct agent *agent_new(struct port *port, struct datapath *dp);

/*
 * Bring the data path in line with the state page. 0, or -ENODEV: the port is gone (everything was
 * torn down). All else is handled: logged, and tried again at agent_timeout().
 */
int agent_reconcile(struct agent *a);

/* Milliseconds until agent_reconcile should be called without an event; -1 = never. */
int agent_timeout(const struct agent *a);

/* Event of the port: VHP_EV_* flags. */
void agent_port_event(struct agent *a, uint32_t flags);

/* The data path's fds, to be added to poll; then their results. The caller reconciles afterwards. */
unsigned int agent_fds(struct agent *a, struct pollfd *p);
void agent_handle(struct agent *a, const struct pollfd *p, unsigned int n);

/* Stop all queues, reporting where; DETACH. */
void agent_stop(struct agent *a);
/* Also after agent_stop. Sends nothing. */
void agent_free(struct agent *a);

#endif
