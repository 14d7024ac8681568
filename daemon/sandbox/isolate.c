/* SPDX-License-Identifier: BSD-3-Clause */
/* Stages 1 to 3; files are landlock.c's, system calls seccomp.c's. */
#include "sandbox/isolate.h"

#include <cap-ng.h>
#include <errno.h>
#include <pwd.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "sys/sock.h"

#ifndef PR_SET_MDWE  /* Linux 6.3 */
#define PR_SET_MDWE              65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

static struct {
	bool on;
	char what[200];
} state[VP_STAGES];

static const char *const stage_names[VP_STAGES] = { "", "process", "namespaces", "identity", "files", "calls" };

const char *vp_isolate_stage_name(enum vp_isolate_stage s)
{
	return stage_names[s];
}

const char *vp_isolate_state(enum vp_isolate_stage s, bool *on)
{
	if (on)
		*on = state[s].on;
	return state[s].what;
}

void vp_isolate_done(enum vp_isolate_stage s, const char *fmt, ...)
{
	va_list ap;

	state[s].on = true;
	va_start(ap, fmt);
	vsnprintf(state[s].what, sizeof(state[s].what), fmt, ap);
	va_end(ap);
	vp_log(VP_LOG_DEBUG, "isolation stage %d, %s: %s", (int)s, stage_names[s], state[s].what);
}

int vp_isolate_lacking(enum vp_isolate_stage s, const struct vp_conf_daemon *c, struct vp_err *e, const char *fmt, ...)
{
	va_list ap;

	state[s].on = false;
	va_start(ap, fmt);
	vsnprintf(state[s].what, sizeof(state[s].what), fmt, ap);
	va_end(ap);
	if (c->require & (1u << s))
		return vp_err_set(e, -EPERM,
				  "isolation stage %d, %s, is required but not available: %s; remove it from "
				  "RequireIsolation= to start without it",
				  (int)s, stage_names[s], state[s].what);
	vp_log(VP_LOG_NOTICE, "isolation stage %d, %s, is not in force: %s", (int)s, stage_names[s], state[s].what);
	return 0;
}

/* ---- stage 1 ---------------------------------------------------------------- */

static int limits(struct vp_err *e)
{
	struct rlimit rl;

	/* Two listening sockets a link, plus two fds a ring in use: take all that we may have. */
	if (getrlimit(RLIMIT_NOFILE, &rl))
		return vp_err_set(e, -errno, "cannot read the limit of open files: %s", strerror(errno));
	if (rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &rl))
			return vp_err_set(e, -errno, "cannot raise the limit of open files: %s", strerror(errno));
	}
	/* A core file would hold other VMs' memory. */
	rl = (struct rlimit){ 0, 0 };
	if (setrlimit(RLIMIT_CORE, &rl))
		return vp_err_set(e, -errno, "cannot forbid core files: %s", strerror(errno));
	return 0;
}

int vp_isolate_process(struct vp_err *e)
{
	bool mdwe;
	int r = limits(e);

	if (r)
		return r;
#ifndef VP_INSTRUMENTED  /* the leak checker must attach to us */
	if (prctl(PR_SET_DUMPABLE, 0))
		return vp_err_set(e, -errno, "cannot make the process undumpable: %s", strerror(errno));
#endif
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return vp_err_set(e, -errno, "cannot set no_new_privs: %s", strerror(errno));
	mdwe = !prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0);
	vp_isolate_done(VP_STAGE_PROCESS, "no core files, undumpable, no_new_privs%s",
			mdwe ? ", no memory becomes executable" : "");
	return 0;
}

/* ---- stage 2 ---------------------------------------------------------------- */

/* A service manager's PrivateNetwork= leaves nothing else to see. */
static bool only_loopback(void)
{
	char line[256];
	FILE *f = fopen("/proc/self/net/dev", "re");
	unsigned n, others = 0;

	if (!f)
		return false;
	/* Two lines of titles, then one for each interface. */
	for (n = 0; fgets(line, sizeof(line), f); n++)
		others += n >= 2 && strncmp(line + strspn(line, " "), "lo:", 3);
	fclose(f);
	return n >= 2 && !others;
}

/*
 * No user namespace: in one, SO_PEERCRED shows other users as 65534, and who may be which VM's VMM could not be
 * checked any more. No PID namespace: it would only hold children, of which there are none. No mount
 * namespace: landlock says more precisely which files there are. UNIX sockets with a path work across
 * network namespaces; those with an abstract name do not, and the service manager's may be one.
 */
int vp_isolate_namespaces(const struct vp_conf_daemon *c, struct vp_err *e)
{
	const char *notify = getenv("NOTIFY_SOCKET");
	bool net = !notify || *notify != '@';

	if (!unshare(CLONE_NEWIPC | CLONE_NEWUTS | (net ? CLONE_NEWNET : 0))) {
		vp_isolate_done(VP_STAGE_NAMESPACES, "%sIPC and UTS of our own", net ? "network, " : "");
		return 0;
	}
	if (errno != EPERM && errno != EINVAL && errno != ENOSPC)
		return vp_err_set(e, -errno, "cannot make namespaces: %s", strerror(errno));
	if (errno == EPERM && only_loopback()) {
		vp_isolate_done(VP_STAGE_NAMESPACES, "a network of its own, from the service manager");
		return 0;
	}
	return vp_isolate_lacking(VP_STAGE_NAMESPACES, c, e,
				  "%s; the service manager can do it instead (PrivateNetwork=, PrivateIPC=)",
				  errno == EPERM ? "they need CAP_SYS_ADMIN, which we do not have" : strerror(errno));
}

/* ---- stage 3 ---------------------------------------------------------------- */

/* The runtime directory must be the user's when it is made here; one that exists keeps its owner. */
static int make_runtime_dir(const struct vp_conf_daemon *c, const struct passwd *pw, struct vp_err *e)
{
	int r = vp_sock_mkdir(c->runtime_dir);

	if (r)
		return vp_err_set(e, r, "%s: cannot make its parent directories: %s", c->runtime_dir, strerror(-r));
	if (mkdir(c->runtime_dir, 0755))
		return errno == EEXIST
			       ? 0
			       : vp_err_set(e, -errno, "%s: cannot make it: %s", c->runtime_dir, strerror(errno));
	if (lchown(c->runtime_dir, pw->pw_uid, pw->pw_gid))
		return vp_err_set(e, -errno, "%s: cannot give it to user %s: %s", c->runtime_dir, pw->pw_name,
				  strerror(errno));
	return 0;
}

static int change_user(const struct vp_conf_daemon *c, struct vp_err *e)
{
	const struct passwd *pw = getpwnam(c->user);
	int r;

	if (!pw)
		return vp_err_set(e, -EINVAL, "User=: there is no user %s; create it (systemd-sysusers does)", c->user);
	if (geteuid() == pw->pw_uid && getuid() == pw->pw_uid)
		return 1;
	if (geteuid())
		return vp_err_set(e, -EPERM, "cannot become user %s without being root; start as root or as that user",
				  c->user);
	r = make_runtime_dir(c, pw, e);
	if (r)
		return r;
	capng_clear(CAPNG_SELECT_BOTH);
	r = capng_change_id((int)pw->pw_uid, (int)pw->pw_gid, CAPNG_INIT_SUPP_GRP | CAPNG_CLEAR_BOUNDING);
	if (r)
		return vp_err_set(e, -EPERM, "cannot become user %s (step %d of capng_change_id)", c->user, -r);
#ifndef VP_INSTRUMENTED
	prctl(PR_SET_DUMPABLE, 0);  /* a change of the user may have set it */
#endif
	vp_isolate_done(VP_STAGE_IDENTITY, "user %s, no capabilities", c->user);
	return 0;
}

int vp_isolate_identity(const struct vp_conf_daemon *c, struct vp_err *e)
{
	/*
	 * CHOWN: the control socket's group. DAC_OVERRIDE: sockets in directories of other users
	 * (SocketMode=client towards a VMM of another user, run-time links).
	 */
	static const capng_type_t types = CAPNG_EFFECTIVE | CAPNG_PERMITTED;
	capng_select_t what = CAPNG_SELECT_CAPS;
	int chown, dac, r = *c->user ? change_user(c, e) : 1;

	if (r <= 0)
		return r;
	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_get_caps_process())
		return vp_err_set(e, -EPERM, "cannot read the process's capabilities; is /proc mounted?");
	if (capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP))
		what = CAPNG_SELECT_BOTH;
	if (what == CAPNG_SELECT_CAPS && capng_have_capabilities(CAPNG_SELECT_CAPS) == CAPNG_NONE) {
		vp_isolate_done(VP_STAGE_IDENTITY, "user %u, no capabilities", geteuid());
		return 0;
	}
	chown = capng_have_capability(CAPNG_PERMITTED, CAP_CHOWN);
	dac = capng_have_capability(CAPNG_PERMITTED, CAP_DAC_OVERRIDE);
	capng_clear(what);
	if (chown)
		capng_update(CAPNG_ADD, types, CAP_CHOWN);
	if (dac)
		capng_update(CAPNG_ADD, types, CAP_DAC_OVERRIDE);
	if (capng_apply(what))
		return vp_err_set(e, -EPERM, "cannot drop capabilities");
	vp_isolate_done(VP_STAGE_IDENTITY, "user %u, capabilities: %s%s%s", geteuid(), chown ? "chown " : "",
			dac ? "dac_override " : "", chown || dac ? "and no others" : "none");
	if (!geteuid() && c->require & (1u << VP_STAGE_IDENTITY))
		return vp_err_set(
			e, -EPERM,
			"RequireIsolation= wants a user of its own, but the daemon runs as root; set User=vhost-pci");
	if (!geteuid())
		vp_log(VP_LOG_NOTICE, "running as root; User=vhost-pci in vhost-pci.conf, or the systemd unit, gives "
				      "the daemon a user of its own");
	return 0;
}
