/* SPDX-License-Identifier: BSD-3-Clause */
/* The conversation with the daemon: one JSON object a line each way (docs/control-api.md). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"

static int no_daemon(struct cli *c)
{
	const char *hint = "";

	if (errno == ENOENT || errno == ECONNREFUSED)
		hint = "; is vhost-pcid running? Try systemctl status vhost-pcid, or --control PATH";
	else if (errno == EACCES)
		hint = "; run as root or as a member of the group of [Control] Group=";
	fprintf(stderr, "vhost-pcictl: %s: %s%s\n", c->socket, strerror(errno), hint);
	return EXIT_NO_DAEMON;
}

static int open_socket(struct cli *c)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct timeval tv = { .tv_sec = 10 };

	if (c->fd >= 0)
		return 0;
	if (strlen(c->socket) >= sizeof(a.sun_path)) {
		errno = ENAMETOOLONG;
		return no_daemon(c);
	}
	memcpy(a.sun_path, c->socket, strlen(c->socket));
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)))
		return no_daemon(c);
	setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	return 0;
}

static int send_all(struct cli *c, const char *s, size_t n)
{
	while (n) {
		ssize_t w = send(c->fd, s, n, MSG_NOSIGNAL);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return no_daemon(c);
		s += w;
		n -= w;
	}
	return 0;
}

/* The next line, without its end, at c->in until take() is called. NULL after printing an error. */
static char *peek(struct cli *c)
{
	size_t looked = 0;

	for (;;) {
		char *nl = c->in_len > looked ? memchr(c->in + looked, '\n', c->in_len - looked) : NULL;
		ssize_t n;

		if (nl) {
			*nl = 0;
			return c->in;
		}
		looked = c->in_len;
		if (c->in_cap - c->in_len < 65536) {
			size_t cap = 2 * c->in_cap + 65536;
			char *p = realloc(c->in, cap);

			if (!p) {
				fputs("vhost-pcictl: out of memory\n", stderr);
				return NULL;
			}
			c->in = p;
			c->in_cap = cap;
		}
		n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			fprintf(stderr, "vhost-pcictl: %s: %s\n", c->socket,
				n ? strerror(errno) : "the daemon closed the connection");
			return NULL;
		}
		c->in_len += (size_t)n;
	}
}

static void take(struct cli *c, const char *line)
{
	size_t len = strlen(line) + 1;

	c->in_len -= len;
	memmove(c->in, c->in + len, c->in_len);
}

json_t *cli_next(struct cli *c)
{
	char *line = peek(c);
	json_error_t je;
	json_t *o;

	if (!line)
		return NULL;
	o = json_loads(line, 0, &je);
	if (!o)
		fprintf(stderr, "vhost-pcictl: %s: the answer is not JSON: %s\n", c->socket, je.text);
	take(c, line);
	return o;
}

static int is_answer(const json_t *o, int id)
{
	return json_integer_value(json_object_get(o, "id")) == id || json_is_null(json_object_get(o, "id"));
}

static int ask(struct cli *c, const char *method, json_t *params)
{
	int id = ++c->next_id, r = open_socket(c);
	json_t *req;
	char *line;

	if (r) {
		json_decref(params);
		return r;
	}
	req = json_pack("{s:i,s:i,s:s,s:o*}", "version", 1, "id", id, "method", method, "params", params);
	line = json_dumps(req, JSON_COMPACT);
	json_decref(req);
	if (!line) {
		fputs("vhost-pcictl: out of memory\n", stderr);
		return EXIT_REFUSED;
	}
	r = send_all(c, line, strlen(line));
	if (!r)
		r = send_all(c, "\n", 1);
	free(line);
	return r;
}

static int answered(struct cli *c, json_t **result)
{
	json_t *answer = NULL, *error;

	do {
		json_decref(answer);
		answer = cli_next(c);
		if (!answer)
			return EXIT_NO_DAEMON;
	} while (!is_answer(answer, c->next_id));
	error = json_object_get(answer, "error");
	if (error)
		fprintf(stderr, "vhost-pcictl: %s\n", cli_str(error, "message"));
	else
		*result = json_incref(json_object_get(answer, "result"));
	json_decref(answer);
	return error ? EXIT_REFUSED : 0;
}

int cli_call(struct cli *c, const char *method, json_t *params, json_t **result)
{
	int r = ask(c, method, params);

	return r ? r : answered(c, result);
}

/* The first bytes of an answer, and the fd that comes with them. */
static int receive_fd(struct cli *c, int *fd)
{
	union {
		char           buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov;
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };
	struct cmsghdr *m;
	ssize_t n;

	c->in_cap = 65536;
	c->in = malloc(c->in_cap);
	if (!c->in) {
		fputs("vhost-pcictl: out of memory\n", stderr);
		return EXIT_REFUSED;
	}
	iov = (struct iovec){ .iov_base = c->in, .iov_len = c->in_cap };
	do
		n = recvmsg(c->fd, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0) {
		fprintf(stderr, "vhost-pcictl: %s: %s\n", c->socket,
			n ? strerror(errno) : "the daemon closed the connection");
		return EXIT_NO_DAEMON;
	}
	c->in_len = (size_t)n;
	m = CMSG_FIRSTHDR(&h);
	if (m && m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_RIGHTS && m->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(m), sizeof(int));
	return 0;
}

int cli_call_fd(struct cli *c, const char *method, json_t *params, json_t **result, int *fd)
{
	int r = ask(c, method, params);

	*fd = -1;
	if (!r)
		r = receive_fd(c, fd);
	return r ? r : answered(c, result);
}

int cli_call_text(struct cli *c, const char *method, json_t *params, char **result)
{
	char head[64], *line;
	int r = ask(c, method, params);
	json_t *o;
	size_t n;

	if (r)
		return r;
	line = peek(c);
	if (!line)
		return EXIT_NO_DAEMON;
	snprintf(head, sizeof(head), "{\"version\":1,\"id\":%d,\"result\":", c->next_id);
	n = strlen(line);
	if (!strncmp(line, head, strlen(head)) && line[n - 1] == '}') {
		*result = strndup(line + strlen(head), n - strlen(head) - 1);
		take(c, line);
	} else {
		r = answered(c, &o);
		if (r)
			return r;
		*result = json_dumps(o, JSON_COMPACT);
		json_decref(o);
	}
	if (!*result)
		fputs("vhost-pcictl: out of memory\n", stderr);
	return *result ? 0 : EXIT_REFUSED;
}

int cli_call_link(struct cli *c, const struct cli_command *cmd, const char *method, int argc, char **argv)
{
	json_t *result;
	int n, r = cli_operands(c, cmd, argc, argv, 1, 1, &n);

	if (r >= 0)
		return r;
	r = cli_call(c, method, json_pack("{s:s}", "name", argv[1]), &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	json_decref(result);
	return 0;
}
