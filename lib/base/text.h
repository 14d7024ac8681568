/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Text that grows at its end: what the control socket and the metrics write, thousands of lines at a time. Out of
 * memory is remembered and asked for once, at the end. One thread at a time.
 */
#ifndef VP_BASE_TEXT_H
#define VP_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Zeroed = empty. */
struct vp_text {
	char  *s;     /* malloc'ed, not terminated; NULL while empty */
	size_t n, cap;
	bool   failed;
};

/* Room for n more bytes behind s + n, NULL when out of memory. What is written there counts once t->n is moved on. */
char *vp_text_room(struct vp_text *t, size_t n);

static inline void vp_text_add(struct vp_text *t, const void *p, size_t n)
{
	char *to = n <= t->cap - t->n ? t->s + t->n : vp_text_room(t, n);

	if (!to || !n)
		return;
	memcpy(to, p, n);
	t->n += n;
}

static inline void vp_text_str(struct vp_text *t, const char *s)
{
	vp_text_add(t, s, strlen(s));
}

void vp_text_u64(struct vp_text *t, uint64_t v);
/* Microseconds as seconds: "12.345678". */
void vp_text_seconds(struct vp_text *t, uint64_t us);
/* A JSON string with its quotes. Bytes that are not ASCII become '?': s is a name or a message of ours. */
void vp_text_json(struct vp_text *t, const char *s);
void vp_text_free(struct vp_text *t);

#endif
