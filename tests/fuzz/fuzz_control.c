/* SPDX-License-Identifier: BSD-3-Clause */
/* Request lines of the control socket: parse any bytes, and answer them with valid JSON. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "control/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_be_json(char *line, size_t len)
{
	json_t *o;

	if (!line)
		return;
	if (!len || line[len - 1] != '\n' || memchr(line, '\n', len - 1))
		abort();
	o = json_loadb(line, len, 0, NULL);
	if (!o)
		abort();
	json_decref(o);
	free(line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vp_request r;
	struct vp_err e = { 0 };
	size_t len = 0;
	char *line;

	if (vp_request_parse(&r, (const char *)data, size, &e)) {
		line = vp_reply_error(&r, &e, &len);
	} else {
		vp_err_set(&e, -ENOENT, "there is no link %.64s", r.method);
		line = vp_reply_error(&r, &e, &len);
		must_be_json(line, len);
		line = vp_reply_ok(&r, json_incref(r.params), &len);
	}
	must_be_json(line, len);
	vp_request_free(&r);
	return 0;
}
