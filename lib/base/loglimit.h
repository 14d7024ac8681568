/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How much may be logged about one subject. A line begins with its subject, up to ": " ("ab.driver:
 * ...", "link ab: ..."). A subject is always a name of the configuration, never a peer's. So a peer
 * that causes lines by the thousand uses up what its own side of a link may say, and nobody else's.
 * Lines left out are counted, and told later (vp_log_limit_untold()).
 *
 * Nothing here takes a lock or reads a clock. Times are in us of any clock that only goes forward.
 */
#ifndef VP_BASE_LOGLIMIT_H
#define VP_BASE_LOGLIMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VP_LOG_SUBJECTS  512u      /* more share their places */
#define VP_LOG_NAME      64u
#define VP_LOG_BURST     200u      /* lines at once, and these a second: */
#define VP_LOG_PER_S     5u
#define VP_LOG_RESERVE   50u       /* of the burst, for warnings and errors only */
#define VP_LOG_DEBUG_BURST 2000u   /* debug lines have a budget of their own */
#define VP_LOG_DEBUG_PER_S 200u
#define VP_LOG_TELL_US   5000000u  /* lines left out are told this long after the first of them */

struct vp_log_budget {
	int64_t  milli;            /* thousandths of a line */
	uint64_t at_us;
};

struct vp_log_subject {
	char     name[VP_LOG_NAME];
	uint64_t used_us;
	uint64_t untold, since_us; /* lines left out, the first of them when */
	struct vp_log_budget said, debug;
};

struct vp_log_limit {
	struct vp_log_subject s[VP_LOG_SUBJECTS];
	unsigned n_untold;         /* subjects with something untold */
	uint64_t lost;             /* untold lines of subjects that lost their places */
};

/* May this line be written now? If not, it counts as left out. */
bool vp_log_limit_allow(struct vp_log_limit *l, int level, const char *line, uint64_t now_us);

/*
 * A subject that lines were left out of and that is to be told now (all: however recent), with the
 * number of its lines. They then count as told. NULL = there is none. The name is valid until the next
 * call of vp_log_limit_allow().
 */
const char *vp_log_limit_untold(struct vp_log_limit *l, bool all, uint64_t now_us, uint64_t *n);

#endif
