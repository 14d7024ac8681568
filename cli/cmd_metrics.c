/* SPDX-License-Identifier: BSD-3-Clause */
/* The metrics, from the daemon's socket for them to standard output. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"

static int fail(const char *path, const char *what)
{
	fprintf(stderr, "vhost-pcictl: %s: %s\n", path, what);
	return EXIT_NO_DAEMON;
}

/* The answer's body to standard output, its head is looked at. */
static int copy(int fd, const char *path)
{
	static char buf[1 << 18];
	char *body = NULL;
	size_t have = 0;
	ssize_t n;

	while (!body && have < sizeof(buf) - 1) {
		n = recv(fd, buf + have, sizeof(buf) - 1 - have, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(path, n ? strerror(errno) : "the daemon closed the connection");
		have += (size_t)n;
		buf[have] = 0;
		body = strstr(buf, "\r\n\r\n");
	}
	if (!body)
		return fail(path, "the answer is not HTTP");
	body += 4;
	if (strncmp(buf, "HTTP/1.1 200 ", 13)) {
		fprintf(stderr, "vhost-pcictl: %s: %s", path, body);
		return EXIT_REFUSED;
	}
	fflush(stdout);
	n = (ssize_t)(have - (size_t)(body - buf));
	for (;;) {
		if (n && write(STDOUT_FILENO, body, (size_t)n) != n) {
			perror("vhost-pcictl: cannot write the output");
			return EXIT_REFUSED;
		}
		do
			n = recv(fd, buf, sizeof(buf), MSG_WAITALL);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			return fail(path, strerror(errno));
		if (!n)
			return 0;
		body = buf;
	}
}

static int scrape(const char *path, bool openmetrics)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char request[160];
	int fd, n, r;

	if (strlen(path) >= sizeof(a.sun_path))
		return fail(path, strerror(ENAMETOOLONG));
	memcpy(a.sun_path, path, strlen(path));
	n = snprintf(request, sizeof(request), "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: %s\r\n\r\n",
		     openmetrics ? "application/openmetrics-text" : "text/plain");
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) || send(fd, request, (size_t)n, MSG_NOSIGNAL) != n)
		r = fail(path, strerror(errno));
	else
		r = copy(fd, path);
	if (fd >= 0)
		close(fd);
	return r;
}

static int run(struct cli *c, int argc, char **argv)
{
	bool openmetrics = false;
	json_t *o;
	int n, r;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--openmetrics"))
			continue;
		openmetrics = true;
		memmove(&argv[i], &argv[i + 1], (size_t)(argc - i) * sizeof(argv[0]));
		argc--;
		i--;
	}
	r = cli_operands(c, &cmd_metrics, argc, argv, 0, 0, &n);
	if (r >= 0)
		return r;
	if (c->json) {
		fputs("vhost-pcictl metrics: there is no JSON of metrics; vhost-pcictl stats --json has the counters\n",
		      stderr);
		return EXIT_USAGE;
	}
	r = cli_call(c, "daemon.version", NULL, &o);
	if (r)
		return r;
	r = scrape(cli_str(o, "metrics_socket"), openmetrics);
	json_decref(o);
	return r;
}

const struct cli_command cmd_metrics = {
	"metrics", "[--openmetrics]", "Print all metrics, for Prometheus",
	"In the format of the node exporter's textfile collector; --openmetrics: in the OpenMetrics\n"
	"format. A scraper reads the same from the daemon's socket, see [Metrics] in vhost-pci.conf(5).\n", run,
};
