/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stage 4: landlock. What is left of the file system afterwards:
 *
 *   configuration directories    read
 *   /etc                         read: passwd, group and what their look-ups need (User=, Group= at a reload)
 *   directories of the sockets   make, remove and connect to sockets, make directories
 *   the audit log's directory    make and append to files
 *   the state directory          read, make, write and remove files
 *   /dev/null                    open
 *   /proc/self/fdinfo            read: which eventfd is which
 *
 * Connecting to a UNIX socket by path is not landlock's business (the file's mode decides), so SocketMode=client
 * and QMP= need no rule. Memory arrives as open fds. TCP is forbidden where landlock knows of it, and so are
 * signals to and abstract sockets of others.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "device/device.h"
#include "sandbox/isolate.h"
#include "sys/sock.h"

/* Newer than the headers that we may be built with. */
#define FS_REFER      (UINT64_C(1) << 13)  /* ABI 2 */
#define FS_TRUNCATE   (UINT64_C(1) << 14)  /* ABI 3 */
#define FS_IOCTL_DEV  (UINT64_C(1) << 15)  /* ABI 5 */
#define NET_TCP       (UINT64_C(3))        /* ABI 4: bind and connect */
#define SCOPE_ALL     (UINT64_C(3))        /* ABI 6: abstract UNIX sockets, signals */

struct ruleset_attr {
	uint64_t handled_access_fs, handled_access_net, scoped;
};

#define READ    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define SOCKETS (LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | \
		 LANDLOCK_ACCESS_FS_READ_DIR)
#define STATE   (LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_FILE | READ)
#define APPEND  (LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_WRITE_FILE)

/* What is not there needs no rule: nobody can make it appear for us but outside of it. */
static int allow(int rs, const char *path, uint64_t access, struct vp_err *e)
{
	struct landlock_path_beneath_attr a = { .allowed_access = access };
	bool ours = !strncmp(path, "/proc/", 6);
	struct stat st;
	int r = 0;

	a.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (a.parent_fd < 0)
		return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? 0 :
		       vp_err_set(e, -errno, "landlock: %s: %s", path, strerror(errno));
	if (!fstat(a.parent_fd, &st) && !S_ISDIR(st.st_mode))
		a.allowed_access &= LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE;
	if (syscall(SYS_landlock_add_rule, rs, LANDLOCK_RULE_PATH_BENEATH, &a, 0))
		r = vp_err_set(e, -errno, "landlock: no rule for %s: %s", path, strerror(errno));
	/* proc forgets inodes that nobody holds, and the rule with them. */
	if (!ours || r)
		close(a.parent_fd);
	return r;
}

/* The directory that the file lies in. */
static int allow_parent(int rs, const char *file, uint64_t access, bool make, struct vp_err *e)
{
	char dir[256];
	char *slash;

	if (make)
		vp_sock_mkdir(file);  /* what fails now is told when the socket is made */
	snprintf(dir, sizeof(dir), "%s", file);
	slash = strrchr(dir, '/');
	if (!slash)
		return 0;
	slash[slash == dir] = 0;
	return allow(rs, dir, access, e);
}

static int allow_words(int rs, const char *words, uint64_t access, struct vp_err *e)
{
	char copy[VP_CONF_DIRS_MAX], *s = copy, *w;
	int r = 0;

	snprintf(copy, sizeof(copy), "%s", words);
	while (!r && (w = strsep(&s, " ")))
		if (*w)
			r = allow(rs, w, access, e);
	return r;
}

static int allow_all(int rs, const struct vp_conf *c, const struct vp_conf_paths *paths, struct vp_err *e)
{
	int r = allow(rs, "/etc", READ, e);

	for (unsigned i = 0; !r && i < paths->n; i++)
		r = allow(rs, paths->dir[i], READ, e);
	if (!r)
		r = allow(rs, "/dev/null", READ, e);
	if (!r)
		r = allow(rs, "/proc/self/fdinfo", READ, e);
	/* Where look-ups of users go that are not in /etc/passwd. */
	if (!r)
		r = allow(rs, "/run/systemd/userdb", READ, e);
	if (!r)
		r = allow(rs, "/var/lib/sss", READ, e);
	vp_sock_mkdir(c->daemon.control_socket);
	vp_sock_mkdir(c->daemon.metrics_socket);
	mkdir(c->daemon.runtime_dir, 0755);
	if (!r)
		r = allow(rs, c->daemon.runtime_dir, SOCKETS, e);
	if (!r)
		r = allow_parent(rs, c->daemon.control_socket, SOCKETS, true, e);
	if (!r)
		r = allow_parent(rs, c->daemon.metrics_socket, SOCKETS, true, e);
	if (!r)
		r = allow_words(rs, c->daemon.socket_dirs, SOCKETS, e);
	for (unsigned i = 0; i < c->n_links; i++)
		for (unsigned s = 0; !r && s < VP_SIDES; s++)
			if (c->links[i].side[s].socket_mode == VP_SOCKET_SERVER)
				r = allow_parent(rs, c->links[i].side[s].socket, SOCKETS, true, e);
	for (unsigned i = 0; !r && i < c->n_links; i++) {
		if (c->links[i].qmp_mode == VP_SOCKET_SERVER)
			r = allow_parent(rs, c->links[i].qmp, SOCKETS, true, e);
		if (!r && c->links[i].driver_qmp_mode == VP_SOCKET_SERVER)
			r = allow_parent(rs, c->links[i].driver_qmp, SOCKETS, true, e);
	}
	for (unsigned i = 0; i < c->n_links; i++)
		if (vp_device_of(&c->links[i])->waits)
			mkdir(c->daemon.state_dir, 0700);
	if (!r)
		r = allow(rs, c->daemon.state_dir, STATE, e);
	if (!r && *c->daemon.audit_log)
		r = allow_parent(rs, c->daemon.audit_log, APPEND, false, e);
	return r;
}

int vp_isolate_files(const struct vp_conf *c, const struct vp_conf_paths *paths, struct vp_err *e)
{
	const char *notify = getenv("NOTIFY_SOCKET");
	struct ruleset_attr a = {
		.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1,
		.handled_access_net = NET_TCP,
		.scoped = SCOPE_ALL,
	};
	size_t size = sizeof(a);
	int abi, rs, r;

#ifdef VP_INSTRUMENTED
	return vp_isolate_lacking(VP_STAGE_FILES, &c->daemon, e,
				  "this build is instrumented, which reads files of its own");
#endif
	abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	if (abi < 1)
		return vp_isolate_lacking(VP_STAGE_FILES, &c->daemon, e, "%s (%s)",
					  errno == EPERM ? "landlock's calls are forbidden here"
							 : "this kernel has no landlock",
					  strerror(errno));
	a.handled_access_fs |= (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0);
	if (notify && *notify == '@')
		a.scoped &= ~UINT64_C(1);
	if (abi < 6)
		size = offsetof(struct ruleset_attr, scoped);
	if (abi < 4)
		size = offsetof(struct ruleset_attr, handled_access_net);
	rs = (int)syscall(SYS_landlock_create_ruleset, &a, size, 0);
	if (rs < 0)
		return vp_err_set(e, -errno, "landlock: cannot make a ruleset: %s", strerror(errno));
	r = allow_all(rs, c, paths, e);
	if (!r && syscall(SYS_landlock_restrict_self, rs, 0))
		r = vp_err_set(e, -errno, "landlock: cannot be enforced: %s", strerror(errno));
	close(rs);
	if (!r)
		vp_isolate_done(VP_STAGE_FILES, "landlock ABI %d: configuration, sockets%s%s", abi,
				*c->daemon.audit_log ? ", audit log" : "", abi >= 4 ? "; no TCP" : "");
	return r;
}
