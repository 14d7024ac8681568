/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhp_protect_seal(): what a protection key alone does not stop. The kernel does some things past the key of whoever
 * asks (docs/threat-model.md, "The protected view"), a thread that was made inside a gate stays inside, and any WRPKRU
 * in the program opens it.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

#include "vhostpci/gate.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* ---- threads ------------------------------------------------------------------------------------------- */

#define THREAD_MS 1000 /* that a thread has for an answer */

static volatile uint32_t answer_pkru;
static volatile int answered;
static uint32_t pkru_offset; /* in a signal frame's XSAVE area */

/*
 * A thread's PKRU is in the frame of its signal: the kernel saves it there and gives the handler another. Without the
 * component's bit in the header it has the initial value, 0: all keys open.
 */
static void on_asked(int sig, siginfo_t *si, void *context)
{
	const ucontext_t *uc = context;
	const uint8_t *area = (const uint8_t *)uc->uc_mcontext.fpregs;
	uint64_t present = 0;
	uint32_t pkru = 0;

	(void)sig;
	(void)si;
	if (area) {
		memcpy(&present, area + 512, sizeof(present));
		if (present >> 9 & 1)
			memcpy(&pkru, area + pkru_offset, sizeof(pkru));
	}
	answer_pkru = pkru;
	__atomic_store_n(&answered, 1, __ATOMIC_RELEASE);
}

/* closed: the bit of PKRU that keeps the thread out. */
static int look_at_thread(int tid, int sig, uint32_t closed, struct vp_err *e)
{
	__atomic_store_n(&answered, 0, __ATOMIC_RELEASE);
	if (syscall(SYS_tgkill, getpid(), tid, sig))
		return errno == ESRCH ? 0 : vp_err_set(e, -errno, "seal: cannot ask thread %d: %m", tid);
	for (int ms = 0; !__atomic_load_n(&answered, __ATOMIC_ACQUIRE); ms++) {
		if (ms == THREAD_MS)
			return vp_err_set(e, -EBUSY,
					  "seal: thread %d does not answer signal %d: unblock it, or seal before you "
					  "make threads",
					  tid, sig);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	if (!(answer_pkru & closed))
		return vp_err_set(e, -EPERM,
				  "seal: thread %d is inside the gate: it was made there, or opened it by itself", tid);
	return 0;
}

/* A real-time signal that nobody uses. */
static int free_signal(void)
{
	struct sigaction old;

	for (int sig = SIGRTMAX; sig >= SIGRTMIN; sig--)
		if (!sigaction(sig, NULL, &old) && !(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_DFL)
			return sig;
	return 0;
}

/* Every thread is outside the gate. */
static int look_at_threads(int key, struct vp_err *e)
{
	struct sigaction sa = { .sa_sigaction = on_asked, .sa_flags = SA_SIGINFO | SA_RESTART };
	unsigned a, b, c, d;
	int sig = free_signal(), ret = 0;
	struct dirent *t;
	DIR *dir;

	if (!__get_cpuid_count(0xd, 9, &a, &b, &c, &d) || !b)
		return vp_err_set(e, -EOPNOTSUPP, "seal: the processor does not say where it saves PKRU");
	pkru_offset = b;
	dir = opendir("/proc/self/task");
	if (!dir)
		return vp_err_set(e, -errno, "seal: /proc/self/task: %m");
	if (!sig) {
		closedir(dir);
		return vp_err_set(e, -EBUSY, "seal: every real-time signal has a handler: leave one free");
	}
	sigaction(sig, &sa, NULL);
	while (!ret && (t = readdir(dir))) {
		int tid = atoi(t->d_name);

		if (tid)
			ret = look_at_thread(tid, sig, 1u << (2 * key), e);
	}
	signal(sig, SIG_DFL);
	closedir(dir);
	return ret;
}

/* ---- system calls ---------------------------------------------------------------------------------------- */

#define LOAD(field)  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE       BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define ALLOW        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define IS(value, yes, no)  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define CALL(name)   IS(SYS_##name, 0, 1), REFUSE
#define X32_BIT      0x40000000u

/* Ways past the key, and ways to another program text. */
static struct sock_filter filter[] = {
	LOAD(arch),
	IS(AUDIT_ARCH_X86_64, 1, 0),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	LOAD(nr),
	BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1),
	REFUSE,
	CALL(pkey_alloc), CALL(pkey_free), CALL(pkey_mprotect),
	CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register),
	CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev),
	CALL(execve), CALL(execveat), CALL(personality), CALL(modify_ldt), CALL(remap_file_pages),
	CALL(shmat), CALL(kexec_load), CALL(kexec_file_load),
	IS(SYS_mmap, 1, 0),
	IS(SYS_mprotect, 0, 2),
	LOAD(args[2]),
	BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
	ALLOW,
	REFUSE,
};

static int close_side_ways(struct vp_err *e)
{
	struct sock_fprog prog = { .len = sizeof(filter) / sizeof(filter[0]), .filter = filter };

	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return vp_err_set(e, -errno, "seal: prctl: %m");
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog))
		return vp_err_set(e, -errno, "seal: seccomp: %m");
	return 0;
}

static int seal(struct vp_err *e)
{
	int ret = vhp_gate_freeze(e);

	if (!ret)
		ret = vhp_gate_scan(e);
	if (!ret)
		ret = look_at_threads(vhp_gate_key(e), e);
	return ret ? ret : close_side_ways(e);
}

#else

static int seal(struct vp_err *e)
{
	return vp_err_set(e, -EOPNOTSUPP, "seal: made for the protection keys of x86-64 processors only");
}

#endif

int vhp_protect_seal(struct vhp_error *err)
{
	struct vp_err e = { 0 };
	int ret = seal(&e);

	if (ret && err) {
		err->code = ret;
		snprintf(err->msg, sizeof(err->msg), "%s", e.msg);
	}
	return ret;
}
