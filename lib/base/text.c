/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"

char *vp_text_room(struct vp_text *t, size_t n)
{
	size_t cap = VP_MAX(t->n + n, VP_MAX(2 * t->cap, (size_t)256));
	char *s;

	if (t->failed)
		return NULL;
	if (n <= t->cap - t->n)
		return t->s + t->n;
	s = realloc(t->s, cap);
	if (!s) {
		t->failed = true;
		return NULL;
	}
	t->s = s;
	t->cap = cap;
	return s + t->n;
}

void vp_text_u64(struct vp_text *t, uint64_t v)
{
	char digits[20];
	unsigned at = sizeof(digits);

	do {
		digits[--at] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	vp_text_add(t, digits + at, sizeof(digits) - at);
}

void vp_text_seconds(struct vp_text *t, uint64_t us)
{
	char part[8];
	uint64_t below = us % 1000000;

	vp_text_u64(t, us / 1000000);
	part[0] = '.';
	for (unsigned i = 6; i; i--, below /= 10)
		part[i] = (char)('0' + below % 10);
	vp_text_add(t, part, 7);
}

void vp_text_json(struct vp_text *t, const char *s)
{
	char code[8];

	vp_text_add(t, "\"", 1);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\') {
			vp_text_add(t, "\\", 1);
			vp_text_add(t, s, 1);
		} else if (c < 0x20) {
			snprintf(code, sizeof(code), "\\u%04x", c);
			vp_text_add(t, code, 6);
		} else {
			vp_text_add(t, c < 0x80 ? s : "?", 1);
		}
	}
	vp_text_add(t, "\"", 1);
}

void vp_text_free(struct vp_text *t)
{
	free(t->s);
	*t = (struct vp_text){ 0 };
}
