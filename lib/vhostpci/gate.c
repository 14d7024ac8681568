/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The gate, and what a stray access outside it meets. PKRU holds two bits for each key: access disabled, write disabled
 * (Intel SDM volume 3, 4.6.2). Linux starts each program with all keys but 0 closed, and signal handlers likewise.
 */
#include "vhostpci/gate.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

#define PAGE 4096

/* Alone in its page, so that it can be made read-only: who can change the mask can keep the gate from closing. */
static union {
	struct {
		int      key;     /* 0 = none yet */
		uint32_t mask;    /* its two bits of PKRU */
	};
	uint8_t page[PAGE];
} gate __attribute__((aligned(PAGE)));

#if defined(__x86_64__)

extern const uint8_t vhp_gate_insn_open[], vhp_gate_insn_close[];

/* In two functions, so that each has its label once. */
__attribute__((noinline)) void vhp_gate_open(void)
{
	uint32_t a, d;

	__asm__ volatile("rdpkru" : "=a"(a), "=d"(d) : "c"(0));
	__asm__ volatile(".globl vhp_gate_insn_open\n\t.hidden vhp_gate_insn_open\nvhp_gate_insn_open:\n\twrpkru"
			 : : "a"(a & ~gate.mask), "c"(0), "d"(0) : "memory");
}

__attribute__((noinline)) void vhp_gate_close(void)
{
	uint32_t a, d;

	__asm__ volatile("rdpkru" : "=a"(a), "=d"(d) : "c"(0));
	__asm__ volatile(".globl vhp_gate_insn_close\n\t.hidden vhp_gate_insn_close\nvhp_gate_insn_close:\n\twrpkru"
			 : : "a"(a | gate.mask), "c"(0), "d"(0) : "memory");
}

bool vhp_gate_owns(const void *addr)
{
	return addr == vhp_gate_insn_open || addr == vhp_gate_insn_close;
}

/* What stderr gets of a stray access. Async-signal-safe. */
static void on_segv(int sig, siginfo_t *si, void *uc)
{
	char msg[] = "vhost-pci: stopped a load or store at 0x0000000000000000, outside the gate of a protected port: "
		     "a fault of this program, or an attack on it; the other VM's memory was not touched\n";
	char *digit = strstr(msg, "0x") + 17;

	if (si->si_code == SEGV_PKUERR) {
		for (uintptr_t a = (uintptr_t)si->si_addr; a; a >>= 4)
			*digit-- = "0123456789abcdef"[a & 15];
		if (write(STDERR_FILENO, msg, sizeof(msg) - 1) < 0)
			errno = 0;
	}
	/* The access happens again when we return, and ends the program as if we had never been. */
	signal(sig, SIG_DFL);
}

static void explain_faults(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO }, old;

	/* A program with a handler of its own looks at si_code itself. */
	if (!sigaction(SIGSEGV, NULL, &old) && !(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_DFL)
		sigaction(SIGSEGV, &sa, NULL);
}

int vhp_gate_key(struct vp_err *e)
{
	int key;

	if (gate.key)
		return gate.key;
	key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	if (key < 0 && errno == ENOSPC)
		return vp_err_set(e, -ENOSPC,
				  "protect: the processor has no protection keys, the kernel does not use them, or "
				  "this program has used up all 15 (grep pku /proc/cpuinfo); open the port without");
	if (key < 0)
		return vp_err_set(
			e, -EOPNOTSUPP,
			"protect: this kernel has no protection keys (pkey_alloc: %m); open the port without");
	gate.key = key;
	gate.mask = 3u << (2 * key);
	explain_faults();
	return key;
}

#else

void vhp_gate_open(void)
{
}

void vhp_gate_close(void)
{
}

bool vhp_gate_owns(const void *addr)
{
	(void)addr;
	return false;
}

int vhp_gate_key(struct vp_err *e)
{
	return vp_err_set(e, -EOPNOTSUPP,
			  "protect: made for the protection keys of x86-64 processors only; open the port without");
}

#endif

int vhp_gate_freeze(struct vp_err *e)
{
	if (!gate.key)
		return vp_err_set(e, -EINVAL, "seal: no port was opened with params.protect");
	if (mprotect(&gate, sizeof(gate), PROT_READ))
		return vp_err_set(e, -errno, "seal: mprotect: %m");
	return 0;
}
