/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One configuration file: inih finds sections and keys, the reader below
 * counts lines and refuses what inih would silently cut or misread (lines
 * that are too long, zero bytes, indented lines that look like
 * continuations, sections without keys).
 */
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "conf/keys.h"

/* inih's own buffer has INI_MAX_LINE bytes as compiled by the distribution; the header's value is that. */
#define LINE_MAX_LEN (INI_MAX_LINE - 3)

struct parse {
	enum vp_conf_kind      kind;
	void                  *object;
	const char            *path;
	const char            *text, *end;
	unsigned               line;
	uint64_t               seen;  /* bit = key index, for duplicates */
	struct vp_conf_report *rep;
};

void vp_conf_error(struct vp_conf_report *rep, const char *fmt, ...)
{
	char msg[768];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	rep->errors++;
	if (rep->fn)
		rep->fn(rep->arg, msg);
}

void vp_conf_warning(struct vp_conf_report *rep, const char *fmt, ...)
{
	char msg[2048];
	va_list ap;

	if (!rep->warn)
		return;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	rep->warn(rep->arg, msg);
}

static void check_line(struct parse *p, const char *buf)
{
	char section[INI_MAX_LINE], known[160];
	size_t n;

	if (!*buf || strchr(";#", *buf))
		return;
	if (*buf == '[') {
		n = strcspn(buf + 1, "]");
		memcpy(section, buf + 1, n);
		section[n] = 0;
		if (buf[1 + n] == ']' && !vp_conf_section_known(p->kind, section)) {
			vp_conf_sections(p->kind, known, sizeof(known));
			vp_conf_error(p->rep, "%s:%u: unknown section [%.50s]; known: %s", p->path, p->line, section,
				      known);
		}
		return;
	}
	n = strcspn(buf, "=:");
	if (n > 48)
		vp_conf_error(p->rep, "%s:%u: the part before = is longer than any known key", p->path, p->line);
}

/* ini_reader: hand inih one cleaned line. */
static char *read_line(char *str, int num, void *stream)
{
	struct parse *p = stream;
	const char *nl, *s;
	size_t len;

	if (p->text >= p->end)
		return NULL;
	p->line++;
	nl = memchr(p->text, '\n', p->end - p->text);
	s = p->text;
	len = (nl ? nl : p->end) - s;
	p->text = nl ? nl + 1 : p->end;
	while (len && isspace((unsigned char)*s))
		s++, len--;
	while (len && isspace((unsigned char)s[len - 1]))
		len--;
	if (memchr(s, 0, len)) {
		vp_conf_error(p->rep, "%s:%u: the line contains a zero byte", p->path, p->line);
		len = 0;
	} else if (len > (size_t)VP_MIN(num - 2, LINE_MAX_LEN)) {
		vp_conf_error(p->rep, "%s:%u: the line is longer than %d bytes; shorten it", p->path, p->line,
			      VP_MIN(num - 2, LINE_MAX_LEN));
		len = 0;
	}
	memcpy(str, s, len);
	str[len] = 0;
	check_line(p, str);
	str[len] = '\n';
	str[len + 1] = 0;
	return str;
}

/*
 * A # behind a blank: no value has that, and inih takes only ; for a comment there. Description= may say what it likes.
 */
static bool commented(const char *value)
{
	const char *at = strchr(value, '#');

	return at && at > value && isspace((unsigned char)at[-1]);
}

static int on_key(void *user, const char *section, const char *key, const char *value)
{
	struct parse *p = user;
	struct vp_err e = { 0 };
	int r;

	if (!*section) {
		vp_conf_error(p->rep, "%s:%u: %.50s= stands before the first [section]", p->path, p->line, key);
		return 1;
	}
	if (!vp_conf_section_known(p->kind, section))
		return 1;  /* reported at its heading */
	if (commented(value) && strcmp(key, "Description")) {
		vp_conf_error(p->rep,
			      "%s:%u: %.50s= has a comment behind its value; give the comment a line of its own, "
			      "beginning with #",
			      p->path, p->line, key);
		return 1;
	}
	r = vp_conf_key_set(p->kind, p->object, section, key, value, &e);
	if (r < 0) {
		vp_conf_error(p->rep, "%s:%u: %s", p->path, p->line, e.msg);
		return 1;
	}
	if (p->seen & VP_BIT(r))
		vp_conf_error(p->rep, "%s:%u: %s= is set twice in this file; remove one", p->path, p->line, key);
	p->seen |= VP_BIT(r);
	if (p->rep->into)
		vp_conf_note(p->rep->into, p->kind, p->kind == VP_CONF_DAEMON ? "" : p->object, section, key, p->path,
			     p->line);
	return 1;
}

void vp_conf_parse_text(enum vp_conf_kind kind, void *object, const char *path, const char *text, size_t len,
			struct vp_conf_report *rep)
{
	struct parse p = {
		.kind = kind, .object = object, .path = path, .text = text, .end = text + len, .rep = rep,
	};
	int r = ini_parse_stream(read_line, &p, on_key, &p);

	if (r > 0)
		vp_conf_error(rep, "%s:%d: neither a [section], a key=value line nor a # comment", path, r);
	else if (r < 0)
		vp_conf_error(rep, "%s: out of memory", path);
}
