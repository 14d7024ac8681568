/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stage 5: system call filters. The lists come from the comments in the sources (seccomp_table.py); those here are
 * the C library's own needs, and those of libraries that we do not write comments into.
 *
 * The control thread's list holds for all threads, for they are its children; the others narrow it down. The
 * programs are made by libseccomp before the first thread starts, so that a new thread only makes one system call.
 */
#include <cap-ng.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <pwd.h>
#include <sched.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "sandbox/isolate.h"

struct vp_call_rule {
	const char *name;
	int         error;  /* 0 = allowed */
	int         arg;    /* -1 = whatever the arguments are */
	uint64_t    mask, value;
	const char *where;
};

/* malloc and thread stacks: memory, but none to run code from. */
/* seccomp all: brk munmap mremap madvise
 *              mmap(arg2 & PROT_EXEC == 0) mmap(arg2 & PROT_EXEC == PROT_EXEC)->EPERM
 *              mprotect(arg2 & PROT_EXEC == 0) mprotect(arg2 & PROT_EXEC == PROT_EXEC)->EPERM
 */
/* malloc looks at the overcommit setting before it gives memory back, and does without it. */
/* seccomp data: openat->EACCES; signal: openat->EACCES */
/*
 * The first free() of a thread may come to make it an arena: how many there may be goes by the CPUs, else by two
 * (findings/glibc-malloc-asks-for-cpus.sh).
 */
/* seccomp data: sched_getaffinity->EPERM; signal: sched_getaffinity->EPERM */
/* Locks, signal handlers, the end of a thread; time where the vDSO has none. */
/* seccomp all: futex rt_sigreturn rt_sigprocmask rt_sigaction restart_syscall exit exit_group
 *              getpid gettid tgkill clock_gettime gettimeofday sched_yield clock_nanosleep nanosleep
 */
/*
 * pthread_create(): threads, never processes. clone3()'s flags cannot be looked at; the C library then takes clone().
 */
/* seccomp control: clone(arg0 & CLONE_THREAD == CLONE_THREAD) clone3->ENOSYS set_robust_list rseq
 *                  prctl(arg0 == PR_SET_NAME) sched_getaffinity sched_setaffinity set_tid_address
 */
/* The C library where it reads files: configuration, users and groups. */
/* seccomp control: openat read pread64 close fstat newfstatat statx lseek getdents64 access faccessat faccessat2
 *                  readlink readlinkat fcntl ioctl->ENOTTY uname getrandom sysinfo
 *                  getuid geteuid getgid getegid getgroups getppid prlimit64(arg2 == 0) getrlimit
 */
/* Look-ups of users in services: nscd, sssd, systemd. */
/* seccomp control: socket(arg0 == AF_UNIX) socket->EAFNOSUPPORT connect sendto sendmsg recvfrom recvmsg poll ppoll
 *                  getsockopt setsockopt getpeername getsockname
 */
/* sd-event and sd_notify(). */
/* seccomp control: epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 timerfd_create timerfd_settime
 *                  signalfd4 eventfd2 pidfd_open->ENOSYS name_to_handle_at->EOPNOTSUPP write writev
 */
/* liburcu. */
/* seccomp control: membarrier; data: membarrier poll */
/* The threads' own filters. */
/* seccomp control: seccomp(arg0 == SECCOMP_SET_MODE_FILTER) */

#include "sandbox/seccomp_table.h"

static const struct {
	const struct vp_call_rule *rule;
	unsigned                   n;
	const char                *name;
} lists[VP_THREADS] = {
	[VP_THREAD_CONTROL] = { calls_control, VP_ARRAY_SIZE(calls_control), "control" },
	[VP_THREAD_DATA] = { calls_data, VP_ARRAY_SIZE(calls_data), "data" },
	[VP_THREAD_SIGNAL] = { calls_signal, VP_ARRAY_SIZE(calls_signal), "signal" },
	[VP_THREAD_GUARD] = { calls_guard, VP_ARRAY_SIZE(calls_guard), "guard" },
	[VP_THREAD_HOLDER] = { calls_holder, VP_ARRAY_SIZE(calls_holder), "holder" },
};

static struct sock_fprog prog[VP_THREADS];

unsigned vp_isolate_list_size(enum vp_thread_kind kind)
{
	return lists[kind].n;
}

const char *vp_isolate_list_call(enum vp_thread_kind kind, unsigned i, const char **where)
{
	if (i >= lists[kind].n)
		return NULL;
	if (where)
		*where = lists[kind].rule[i].where;
	return lists[kind].rule[i].name;
}

static int add_rule(scmp_filter_ctx ctx, const struct vp_call_rule *r)
{
	uint32_t action = r->error ? SCMP_ACT_ERRNO(r->error) : SCMP_ACT_ALLOW;
	int nr = seccomp_syscall_resolve_name(r->name);

	if (nr < 0)
		return 0;  /* this architecture does not have it */
	if (r->arg < 0)
		return seccomp_rule_add(ctx, action, nr, 0);
	return seccomp_rule_add(ctx, action, nr, 1, SCMP_CMP((unsigned)r->arg, SCMP_CMP_MASKED_EQ, r->mask, r->value));
}

/* Is there a rule with a condition for the same call, which the unconditional r would swallow? */
static bool exception_exists(enum vp_thread_kind kind, const struct vp_call_rule *r)
{
	for (unsigned i = 0; i < lists[kind].n; i++)
		if (lists[kind].rule[i].arg >= 0 && !strcmp(lists[kind].rule[i].name, r->name))
			return true;
	return false;
}

static int add_rules(scmp_filter_ctx ctx, enum vp_thread_kind kind, struct vp_err *e)
{
	for (unsigned i = 0; i < lists[kind].n; i++) {
		const struct vp_call_rule *r = &lists[kind].rule[i];
		int ret = 0;

		if (r->arg < 0 && r->error && exception_exists(kind, r)) {
			/* "Fails unless": the rest of the values, below and above. Only for == on whole arguments. */
			for (unsigned k = 0; !ret && k < lists[kind].n; k++) {
				const struct vp_call_rule *x = &lists[kind].rule[k];

				if (x->arg >= 0 && !strcmp(x->name, r->name))
					ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(r->error),
							       seccomp_syscall_resolve_name(r->name), 1,
							       SCMP_CMP((unsigned)x->arg, SCMP_CMP_NE, x->value));
			}
		} else {
			ret = add_rule(ctx, r);
		}
		if (ret)
			return vp_err_set(e, ret, "seccomp: no rule for %s (%s): %s", r->name, r->where,
					  strerror(-ret));
	}
	return 0;
}

/* The filter as the kernel wants it. */
static int build(enum vp_thread_kind kind, struct vp_err *e)
{
#ifdef VP_SECCOMP_TRAP
	uint32_t deny = SCMP_ACT_TRAP;
#else
	uint32_t deny = SCMP_ACT_KILL_PROCESS;
#endif
	scmp_filter_ctx ctx = seccomp_init(deny);
	int fd = -1, r = -ENOMEM;
	struct stat st;

	if (!ctx)
		return vp_err_set(e, -ENOMEM, "seccomp: out of memory");
	seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	r = add_rules(ctx, kind, e);
	if (r)
		goto out;
	fd = memfd_create("seccomp", MFD_CLOEXEC);
	if (fd < 0 || seccomp_export_bpf(ctx, fd) || fstat(fd, &st)) {
		r = vp_err_set(e, -EIO, "seccomp: the list of the %s thread does not compile", lists[kind].name);
		goto out;
	}
	prog[kind].len = (unsigned short)((size_t)st.st_size / sizeof(struct sock_filter));
	prog[kind].filter = malloc((size_t)st.st_size);
	if (!prog[kind].filter || pread(fd, prog[kind].filter, (size_t)st.st_size, 0) != st.st_size)
		r = vp_err_set(e, -ENOMEM, "seccomp: out of memory");
out:
	vp_close(&fd);
	seccomp_release(ctx);
	return r;
}

/*
 * SPEC_ALLOW: kernels before 5.16 otherwise switch off speculative store bypass for the thread, which costs data
 * threads a good part of their speed and protects nobody: all code in this process is its own.
 */
static int load(enum vp_thread_kind kind)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog[kind]) ? -errno : 0;
}

#ifdef VP_SECCOMP_TRAP
#include <signal.h>
#include <stdio.h>

/* Builds for development name the call before they end. */
static void on_denied(int sig, siginfo_t *si, void *uc)
{
	char line[160];
	int n = snprintf(line, sizeof(line), "seccomp: system call %d is not on the list of thread %d\n",
			 si->si_syscall, (int)gettid());

	(void)!write(STDERR_FILENO, line, (size_t)n);
	_exit(159);
}
#endif

static void trap_denied(void)
{
#ifdef VP_SECCOMP_TRAP
	sigaction(SIGSYS, &(struct sigaction){ .sa_sigaction = on_denied, .sa_flags = SA_SIGINFO }, NULL);
#endif
}

/* Modules that look up users are loaded at the first look-up; executable memory is not to be had any more later. */
static void warm_up(void)
{
	(void)getpwnam("root");
	(void)getgrnam("root");
	(void)getpwnam("vhost-pci-no-such-user");
	(void)getgrnam("vhost-pci-no-such-group");
}

static void narrow(enum vp_thread_kind kind)
{
	int r = load(kind);

	if (r)  /* the control thread's list holds all the same */
		vp_log(VP_LOG_ERR, "seccomp: the list of the %s thread cannot be loaded: %s", lists[kind].name,
		       strerror(-r));
}

int vp_isolate_calls(const struct vp_conf_daemon *c, struct vp_err *e)
{
	int r = 0;

#ifdef VP_INSTRUMENTED
	return vp_isolate_lacking(VP_STAGE_CALLS, c, e,
				  "this build is instrumented, which makes system calls of its own");
#endif
	if (c->no_filter)
		return vp_isolate_lacking(VP_STAGE_CALLS, c, e, "SystemCallFilter=no");
	warm_up();
	for (unsigned k = 0; k < VP_THREADS && !r; k++)
		r = build(k, e);
	if (r)
		return r;
	trap_denied();
	r = load(VP_THREAD_CONTROL);
	if (r == -EINVAL || r == -ENOSYS)
		return vp_isolate_lacking(VP_STAGE_CALLS, c, e, "this kernel has no seccomp filters");
	if (r)
		return vp_err_set(e, r, "seccomp: the filter cannot be loaded: %s", strerror(-r));
	vp_thread_hook(narrow);
	vp_isolate_done(VP_STAGE_CALLS,
			"seccomp: control thread %u rules, data threads %u, signal threads %u, guard %u",
			lists[VP_THREAD_CONTROL].n, lists[VP_THREAD_DATA].n, lists[VP_THREAD_SIGNAL].n,
			lists[VP_THREAD_GUARD].n);
	return 0;
}

static int alone(enum vp_thread_kind kind, const struct vp_conf_daemon *c, struct vp_err *e)
{
	int r;

	if (capng_get_caps_process())
		return vp_err_set(e, -EPERM, "cannot read the process's capabilities; is /proc mounted?");
	if (capng_have_capabilities(CAPNG_SELECT_CAPS) != CAPNG_NONE) {
		capng_clear(CAPNG_SELECT_CAPS);
		if (capng_apply(CAPNG_SELECT_CAPS))
			return vp_err_set(e, -EPERM, "cannot drop capabilities");
	}
#ifdef VP_INSTRUMENTED
	return 0;
#endif
	if (c->no_filter)
		return 0;
	r = build(kind, e);
	if (r)
		return r;
	trap_denied();
	r = load(kind);
	/* A kernel without filters is the daemon's to speak of. */
	return !r || r == -EINVAL || r == -ENOSYS
		       ? 0
		       : vp_err_set(e, r, "seccomp: the filter cannot be loaded: %s", strerror(-r));
}

int vp_isolate_guard(const struct vp_conf_daemon *c, struct vp_err *e)
{
	return alone(VP_THREAD_GUARD, c, e);
}

int vp_isolate_holder(const struct vp_conf_daemon *c, struct vp_err *e)
{
	return alone(VP_THREAD_HOLDER, c, e);
}
