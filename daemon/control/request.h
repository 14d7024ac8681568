/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One line of the control socket's protocol (docs/control-api.md) to and from JSON. No I/O and no
 * state: the fuzz target drives exactly this. Main thread.
 */
#ifndef VP_DAEMON_REQUEST_H
#define VP_DAEMON_REQUEST_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/text.h"

#define VP_CONTROL_VERSION  1
#define VP_REQUEST_MAX_LINE 65536  /* bytes, without the newline */

struct vp_request {
	json_t     *root;    /* owns the rest */
	json_t     *id;      /* borrowed; NULL when the line has none or is not JSON */
	const char *method;  /* borrowed */
	json_t     *params;  /* borrowed object; NULL when left out */
};

/*
 * Parse a line (no newline). 0. -EBADMSG: not a JSON object. -EPROTONOSUPPORT: another version.
 * -EINVAL: a member is missing, unknown or of the wrong type. After any return r->id may be used for
 * the answer; always call vp_request_free().
 */
int vp_request_parse(struct vp_request *r, const char *line, size_t len, struct vp_err *e);
void vp_request_free(struct vp_request *r);

/* As vp_reply_ok(), with a result that is JSON text already (text->s; emptied). */
char *vp_reply_text(const struct vp_request *r, struct vp_text *text, size_t *len);
/* Answers, malloc'ed with the newline, length in *len; NULL when out of memory. Steals result. */
char *vp_reply_ok(const struct vp_request *r, json_t *result, size_t *len);
char *vp_reply_error(const struct vp_request *r, const struct vp_err *e, size_t *len);
/* time_us: of day, since 1970. Steals data. */
char *vp_event_line(const char *event, uint64_t time_us, json_t *data, size_t *len);

/* The protocol's word for an errno: "invalid", "not-found", "exists", "denied", ... */
const char *vp_error_word(int code);

#endif
