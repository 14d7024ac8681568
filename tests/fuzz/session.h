/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A whole daemon in this process, for fuzz_session.c: its main loop, data threads and signal thread are stepped by
 * hand, its clock is moved by hand, and there is a link of every mode and attachment. It lives as long as the process;
 * inputs come and go as its peers.
 *
 * What is checked at the end of each input, when all its peers have gone and only the duplicates of what they sent are
 * still open: no epoll set has more in it than before, and nothing whose fd is closed; no fd is left; no step took
 * longer than it may.
 */
#ifndef VP_FUZZ_SESSION_H
#define VP_FUZZ_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "context/context.h"

struct vp_forward;
struct worker_pool;

/* CPU time in ms. The faults took 5 ms and more; sanitizers and coverage make everything about four times as dear. */
#ifdef __SANITIZE_ADDRESS__
#define RIG_SLOWER 4
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RIG_SLOWER 4
#endif
#endif
#ifndef RIG_SLOWER
#define RIG_SLOWER 1
#endif
#define RIG_ROUND_MS (3 * RIG_SLOWER)
#define RIG_TURN_MS  (10 * RIG_SLOWER)
#define RIG_INPUT_MS (100 * RIG_SLOWER)

enum rig_mode { RIG_RELAY, RIG_FAST, RIG_COPY };
enum rig_att  { RIG_NONE, RIG_LOCAL, RIG_SHMEM, RIG_IVSHMEM };

struct rig_link {
	enum rig_mode mode;
	enum rig_att  att;
	const char   *name;
	char          driver[64], device[64];  /* sockets */
};

#define RIG_LINKS 7
extern struct rig_link rig_links[RIG_LINKS];
extern struct vp_daemon rig_daemon;
extern int rig_qmp_fd;  /* listens for the QMP connection of link fi */

/* Once; later calls do nothing. */
void rig_start(void);
/* Everything that is to be done now, but no more than turns rounds of it. */
void rig_run(unsigned turns);
/* us pass. */
void rig_sleep(uint64_t us);

/* CPU time in us. More than ms since then is a fault. */
uint64_t rig_cpu(void);
void rig_took(const char *what, uint64_t since, unsigned ms);
__attribute__((noreturn, format(printf, 1, 2))) void rig_fault(const char *fmt, ...);

/* Its status and counters, on stderr. */
void rig_show(const struct rig_link *l);

void rig_trace(const uint8_t *data, size_t size);
/* Around an input; between them nothing is open that the caller opened. */
void rig_input_begin(void);
/* Its peers have gone; before the duplicates are closed. */
void rig_peers_gone(void);
/* They are closed. */
void rig_input_end(void);

/* session_worker.c, session_forward.c */
void rig_threads_are(struct worker_pool *p);
bool rig_threads_step(void);
int  rig_threads_epfd(unsigned i);
bool rig_forward_step(struct vp_forward *f);
int  rig_forward_epfd(const struct vp_forward *f);

#endif
