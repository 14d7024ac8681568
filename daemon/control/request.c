/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the line comes from any local process that may open the
 * control socket. Length is bounded by the caller, depth by jansson; every
 * member is type-checked, unknown members are refused so that a misspelt
 * request never half works.
 */
#include "control/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int vp_request_parse(struct vp_request *r, const char *line, size_t len, struct vp_err *e)
{
	json_t *version, *method, *v;
	json_error_t je;
	const char *k;

	memset(r, 0, sizeof(*r));
	if (len > VP_REQUEST_MAX_LINE)
		return vp_err_set(e, -EBADMSG, "the request is longer than %d bytes", VP_REQUEST_MAX_LINE);
	r->root = json_loadb(line, len, JSON_REJECT_DUPLICATES, &je);
	if (!r->root)
		return vp_err_set(e, -EBADMSG, "not JSON at column %d: %.120s; send one object per line", je.column,
				  je.text);
	if (!json_is_object(r->root))
		return vp_err_set(e, -EBADMSG, "not a JSON object; send {\"version\":1,\"id\":...,\"method\":...}");
	v = json_object_get(r->root, "id");
	if (json_is_string(v) || json_is_integer(v))
		r->id = v;
	else if (v)
		return vp_err_set(e, -EINVAL, "id must be a string or an integer");
	version = json_object_get(r->root, "version");
	if (!json_is_integer(version))
		return vp_err_set(e, -EINVAL, "version is missing or not an integer; this daemon speaks version %d",
				  VP_CONTROL_VERSION);
	if (json_integer_value(version) != VP_CONTROL_VERSION)
		return vp_err_set(e, -EPROTONOSUPPORT, "version %lld is not spoken here; this daemon speaks version %d",
				  (long long)json_integer_value(version), VP_CONTROL_VERSION);
	json_object_foreach(r->root, k,
			    v) if (strcmp(k, "version") && strcmp(k, "id") && strcmp(k, "method") &&
				   strcmp(k, "params")) return vp_err_set(e, -EINVAL,
									  "unknown member '%.60s'; a request has "
									  "version, id, method and params",
									  k);
	method = json_object_get(r->root, "method");
	if (!json_is_string(method))
		return vp_err_set(e, -EINVAL, "method is missing or not a string");
	r->params = json_object_get(r->root, "params");
	if (r->params && !json_is_object(r->params))
		return vp_err_set(e, -EINVAL, "params must be an object");
	r->method = json_string_value(method);
	return 0;
}

void vp_request_free(struct vp_request *r)
{
	json_decref(r->root);
	memset(r, 0, sizeof(*r));
}

static char *finish(json_t *o, size_t *len)
{
	size_t n = 0;
	char *s = o ? json_dumps(o, JSON_COMPACT) : NULL, *t;

	json_decref(o);
	if (!s)
		return NULL;
	n = strlen(s);
	t = realloc(s, n + 2);
	if (!t) {
		free(s);
		return NULL;
	}
	memcpy(t + n, "\n", 2);
	*len = n + 1;
	return t;
}

static json_t *frame(const struct vp_request *r)
{
	json_t *o = json_pack("{s:i}", "version", VP_CONTROL_VERSION);

	if (o && r->id)
		json_object_set(o, "id", r->id);
	else if (o)
		json_object_set_new(o, "id", json_null());
	return o;
}

char *vp_reply_ok(const struct vp_request *r, json_t *result, size_t *len)
{
	json_t *o = frame(r);

	if (!o || json_object_set_new(o, "result", result ? result : json_object()))
		return NULL;
	return finish(o, len);
}

char *vp_reply_text(const struct vp_request *r, struct vp_text *text, size_t *len)
{
	char *id = r->id ? json_dumps(r->id, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
	struct vp_text t = { 0 };

	vp_text_room(&t, text->n + 64);
	vp_text_str(&t, "{\"version\":");
	vp_text_u64(&t, VP_CONTROL_VERSION);
	vp_text_str(&t, ",\"id\":");
	vp_text_str(&t, id ? id : "null");
	vp_text_str(&t, ",\"result\":");
	vp_text_add(&t, text->s, text->n);
	vp_text_str(&t, "}\n");
	free(id);
	t.failed |= text->failed;
	vp_text_free(text);
	if (t.failed)
		vp_text_free(&t);
	*len = t.n;
	return t.s;
}

char *vp_reply_error(const struct vp_request *r, const struct vp_err *e, size_t *len)
{
	/* Messages may quote what the client sent, cut at any byte: mend to UTF-8 for jansson. */
	char msg[sizeof(e->msg)];
	json_t *o = frame(r);

	for (size_t i = 0; i < sizeof(msg); i++) {
		msg[i] = (signed char)e->msg[i] < 0 ? '?' : e->msg[i];
		if (!msg[i])
			break;
	}
	msg[sizeof(msg) - 1] = 0;
	if (!o ||
	    json_object_set_new(o, "error", json_pack("{s:s,s:s}", "code", vp_error_word(e->code), "message", msg)))
		return NULL;
	return finish(o, len);
}

char *vp_event_line(const char *event, uint64_t time_us, json_t *data, size_t *len)
{
	return finish(json_pack("{s:i,s:s,s:I,s:o}", "version", VP_CONTROL_VERSION, "event", event, "time_us",
				(json_int_t)time_us, "data", data),
		      len);
}

const char *vp_error_word(int code)
{
	static const struct {
		int code;
		const char *word;
	} words[] = {
		{ EBADMSG, "parse" }, { EPROTONOSUPPORT, "version" }, { ENOSYS, "method" }, { EINVAL, "invalid" },
		{ ENOENT, "not-found" }, { EEXIST, "exists" }, { EACCES, "denied" }, { EPERM, "denied" },
		{ EDQUOT, "limit" }, { EMFILE, "limit" }, { ENOMEM, "memory" }, { EADDRINUSE, "in-use" },
		{ EBUSY, "in-use" },
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (words[i].code == -code)
			return words[i].word;
	return "failed";
}
