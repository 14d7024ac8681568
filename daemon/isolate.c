/* SPDX-License-Identifier: BSD-3-Clause */
#include "isolate.h"

#include <cap-ng.h>
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "base/log.h"

static int stage1_limits(struct vp_err *e)
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

int vp_isolate_stage1(struct vp_err *e)
{
	int r = stage1_limits(e);

	if (r)
		return r;
#ifndef __SANITIZE_ADDRESS__  /* the leak checker must attach to us */
	if (prctl(PR_SET_DUMPABLE, 0))
		return vp_err_set(e, -errno, "cannot make the process undumpable: %s", strerror(errno));
#endif
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return vp_err_set(e, -errno, "cannot set no_new_privs: %s", strerror(errno));
	vp_log(VP_LOG_DEBUG, "isolation stage 1: no core files, undumpable, no_new_privs");
	return 0;
}

int vp_isolate_stage2(struct vp_err *e)
{
	/*
	 * CHOWN: the control socket's group. DAC_OVERRIDE: sockets in directories of other users
	 * (SocketMode=client towards a VMM of another user, run-time links). SYS_NICE: none needed.
	 */
	static const capng_type_t types = CAPNG_EFFECTIVE | CAPNG_PERMITTED;
	capng_select_t what = CAPNG_SELECT_CAPS;

	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_get_caps_process())
		return vp_err_set(e, -EPERM, "cannot read the process's capabilities; is /proc mounted?");
	if (capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP))
		what = CAPNG_SELECT_BOTH;
	if (what == CAPNG_SELECT_CAPS && capng_have_capabilities(CAPNG_SELECT_CAPS) == CAPNG_NONE) {
		vp_log(VP_LOG_DEBUG, "isolation stage 2: no capabilities to drop");
		return 0;
	}
	{
		int chown = capng_have_capability(CAPNG_PERMITTED, CAP_CHOWN);
		int dac = capng_have_capability(CAPNG_PERMITTED, CAP_DAC_OVERRIDE);

		capng_clear(what);
		if (chown)
			capng_update(CAPNG_ADD, types, CAP_CHOWN);
		if (dac)
			capng_update(CAPNG_ADD, types, CAP_DAC_OVERRIDE);
	}
	if (capng_apply(what))
		return vp_err_set(e, -EPERM, "cannot drop capabilities");
	vp_log(VP_LOG_DEBUG, "isolation stage 2: capabilities reduced%s",
	       what == CAPNG_SELECT_BOTH ? ", bounding set emptied" : "");
	return 0;
}
