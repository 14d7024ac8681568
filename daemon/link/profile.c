/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/profile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "conf/types.h"
#include "base/util.h"

#define TEXT_MAX 1024

static void path_of(const struct vp_conf_daemon *c, const struct vp_conf_link *l, const char *suffix, char *buf,
		    size_t size)
{
	snprintf(buf, size, "%s/%s.profile%s", c->state_dir, l->name, suffix);
}

void vp_profile_load(const struct vp_conf_daemon *c, const struct vp_conf_link *l, struct vp_profile *p)
{
	char path[2 * VP_CONF_SOCKET_MAX], text[TEXT_MAX + 1];
	ssize_t n;
	int fd;

	vp_profile_written(l, p);
	if (p->known)
		return;
	path_of(c, l, "", path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return;
	n = read(fd, text, TEXT_MAX);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	if (vp_profile_read(l, text, p)) {
		vp_log(VP_LOG_NOTICE, "link %s: %s is not a profile of type %s; the back-end will be asked anew",
		       l->name, path, vp_type_name(l->device_type));
		memset(p, 0, sizeof(*p));
	}
}

void vp_profile_save(const struct vp_conf_daemon *c, const struct vp_conf_link *l, const struct vp_profile *p)
{
	char path[2 * VP_CONF_SOCKET_MAX], new[2 * VP_CONF_SOCKET_MAX], text[TEXT_MAX];
	unsigned n = vp_profile_write(l, p, text, sizeof(text));
	int fd, err = 0;

	path_of(c, l, "", path, sizeof(path));
	path_of(c, l, ".new", new, sizeof(new));
	/* seccomp control: mkdir mkdirat unlink unlinkat rename renameat renameat2 fsync */
	/* Made before the daemon gave files up, if there was a link then that needs it. */
	mkdir(c->state_dir, 0700);
	unlink(new);
	fd = open(new, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0)
		errno = ENOSPC; /* where write() takes a part only */
	if (fd < 0 || write(fd, text, n) != (ssize_t)n || fsync(fd) || rename(new, path))
		err = errno;
	vp_close(&fd);
	if (err)
		unlink(new);
	if (err)
		vp_log(VP_LOG_WARNING,
		       "link %s: what was learned of its back-end cannot be kept in %s: %s; %s, or set "
		       "StateDirectory=; until then the next daemon has to learn it anew",
		       l->name, path, strerror(err),
		       err == ENOSPC || err == EDQUOT ? "make room there"
		       : err == ENOENT		      ? "make the directory"
						      : "let the daemon write there");
}

void vp_profile_forget(const struct vp_conf_daemon *c, const struct vp_conf_link *l)
{
	char path[2 * VP_CONF_SOCKET_MAX];

	path_of(c, l, "", path, sizeof(path));
	unlink(path);
}
