/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/fdstore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

struct keep_name {
	char s[VP_ACTIVATION_NAME_MAX];
};

static struct keep_name name_of(const char *link, const char *what)
{
	struct keep_name n;

	snprintf(n.s, sizeof(n.s), VP_FDSTORE_PREFIX "%s.%s", link, what);
	return n;
}

static const struct vp_fdstore_ops *other;

void vp_fdstore_use(const struct vp_fdstore_ops *ops)
{
	other = ops;
}

bool vp_fdstore_there(void)
{
	return other || getenv("NOTIFY_SOCKET");
}

int vp_fdstore_try(const char *link, const char *what, int fd)
{
	struct keep_name n = name_of(link, what);
	char msg[sizeof(n.s) + 32];
	int r;

	if (other)
		return other->put(n.s, fd);
	/* seccomp control: sendmsg close */
	/* A socket whose other end is closed is not to be forgotten for that. */
	snprintf(msg, sizeof(msg), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", n.s);
	r = sd_pid_notify_with_fds(0, 0, msg, &fd, 1);
	return r > 0 ? 0 : r ? r : -ENOTCONN;
}

void vp_fdstore_put(const char *link, const char *what, int fd)
{
	struct keep_name n = name_of(link, what);
	char msg[sizeof(n.s) + 32];
	int r;

	snprintf(msg, sizeof(msg), "FDSTORE=1\nFDNAME=%s", n.s);
	r = other ? other->put(n.s, fd) : sd_pid_notify_with_fds(0, 0, msg, &fd, 1);
	if (r < 0)
		vp_log(VP_LOG_WARNING,
		       "link %s: the service manager refused to keep its %s, which is lost when this process ends: %s",
		       link, what, strerror(-r));
}

int vp_fdstore_take(struct vp_activation *a, const char *link, const char *what)
{
	return vp_activation_take(a, name_of(link, what).s);
}

static void drop(const char *name)
{
	if (other)
		other->drop(name);
	else
		sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void vp_fdstore_drop(const char *link, const char *what)
{
	drop(name_of(link, what).s);
}

bool vp_fdstore_next(const struct vp_activation *a, const char *what, unsigned *at, char *link, unsigned size)
{
	const size_t head = strlen(VP_FDSTORE_PREFIX), tail = strlen(what);

	while (*at < a->n) {
		const char *name = a->s[*at].name;
		size_t n = strlen(name);
		bool there = a->s[(*at)++].fd >= 0;

		if (!there || strncmp(name, VP_FDSTORE_PREFIX, head) || n < head + 1 + tail + 1 ||
		    name[n - tail - 1] != '.' || strcmp(name + n - tail, what) || n - head - tail - 1 >= size)
			continue;
		snprintf(link, size, "%.*s", (int)(n - head - tail - 1), name + head);
		return true;
	}
	return false;
}

void vp_fdstore_rest(struct vp_activation *a)
{
	for (unsigned i = 0; i < a->n; i++) {
		if (a->s[i].fd < 0 || strncmp(a->s[i].name, VP_FDSTORE_PREFIX, strlen(VP_FDSTORE_PREFIX)))
			continue;
		vp_log(VP_LOG_INFO, "%s of an earlier daemon belongs to no link any more", a->s[i].name);
		drop(a->s[i].name);
		vp_close(&a->s[i].fd);
	}
}
