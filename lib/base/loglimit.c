/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/loglimit.h"

#include <string.h>

#include "base/log.h"
#include "base/util.h"

#define PROBE 8u  /* places that a name may have */

/* The guard's lines begin with "guard: ", and then with what they are about. */
static void subject_of(const char *line, char *name)
{
	const char *from = strncmp(line, "guard: ", 7) ? line : line + 7, *end = strstr(from, ": ");
	size_t n = end ? VP_MIN((size_t)(end - line), (size_t)VP_LOG_NAME - 1) : 0;

	memcpy(name, line, n);
	name[n] = 0;
}

static unsigned hash(const char *name)
{
	uint64_t h = 14695981039346656037u;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 1099511628211u;
	return (unsigned)(h >> 32);
}

/* The subject's place, or the place of the subject that was not heard of for longest. */
static struct vp_log_subject *find(struct vp_log_limit *l, const char *name, uint64_t now_us)
{
	struct vp_log_subject *s, *oldest = NULL;
	unsigned h = hash(name);

	for (unsigned i = 0; i < PROBE; i++) {
		s = &l->s[(h + i) % VP_LOG_SUBJECTS];
		if (s->used_us && !strcmp(s->name, name))
			goto found;
		if (!oldest || s->used_us < oldest->used_us)
			oldest = s;
	}
	s = oldest;
	if (s->untold) {
		l->lost += s->untold;
		l->n_untold--;
	}
	*s = (struct vp_log_subject){
		.said = { VP_LOG_BURST * 1000, now_us }, .debug = { VP_LOG_DEBUG_BURST * 1000, now_us },
	};
	memcpy(s->name, name, strlen(name) + 1);
found:
	s->used_us = now_us ? now_us : 1;
	return s;
}

static bool spend(struct vp_log_budget *b, unsigned per_s, unsigned burst, unsigned keep, uint64_t now_us)
{
	uint64_t us = VP_MIN(now_us - b->at_us, UINT64_C(1000000) * burst);

	/* In whole thousandths; what is less than one goes on counting. */
	b->milli = VP_MIN(b->milli + (int64_t)(us * per_s / 1000), (int64_t)burst * 1000);
	if (us * per_s >= 1000)
		b->at_us = now_us;
	if (b->milli < (int64_t)(keep + 1) * 1000)
		return false;
	b->milli -= 1000;
	return true;
}

bool vp_log_limit_allow(struct vp_log_limit *l, int level, const char *line, uint64_t now_us)
{
	struct vp_log_subject *s;
	char name[VP_LOG_NAME];
	bool ok;

	subject_of(line, name);
	s = find(l, name, now_us);
	if (level >= VP_LOG_DEBUG)
		ok = spend(&s->debug, VP_LOG_DEBUG_PER_S, VP_LOG_DEBUG_BURST, 0, now_us);
	else
		ok = spend(&s->said, VP_LOG_PER_S, VP_LOG_BURST, level <= VP_LOG_WARNING ? 0 : VP_LOG_RESERVE, now_us);
	if (!ok && !s->untold++) {
		s->since_us = now_us;
		l->n_untold++;
	}
	return ok;
}

const char *vp_log_limit_untold(struct vp_log_limit *l, bool all, uint64_t now_us, uint64_t *n)
{
	if (l->lost) {
		*n = l->lost;
		l->lost = 0;
		return "log";
	}
	for (unsigned i = 0; l->n_untold && i < VP_LOG_SUBJECTS; i++) {
		struct vp_log_subject *s = &l->s[i];

		if (!s->untold || (!all && now_us - s->since_us < VP_LOG_TELL_US))
			continue;
		*n = s->untold;
		s->untold = 0;
		l->n_untold--;
		return s->name[0] ? s->name : "log";
	}
	return NULL;
}
