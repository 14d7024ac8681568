/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which instructions of this process can write PKRU? WRPKRU (0F 01 EF), and XRSTOR (0F AE /5 with memory) when EAX has
 * bit 9. Bytes count at any offset: who can jump, can jump into the middle of an instruction. The idea of looking for
 * them is ERIM's (Vahldiek-Oberwagner et al., USENIX Security 2019).
 *
 * Two kinds are known to be everywhere. The dynamic linker's XRSTOR, which saves arguments of a lazily bound call, has
 * its mask in the two instructions before it: it may stay. libc's pkey_set() is made to trap: a protected program has
 * no use for it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "vhostpci/gate.h"

#define PKRU_BIT 9      /* of XRSTOR's mask */
#define FUNCTION 256    /* bytes that pkey_set() has at most */

struct text {
	const uint8_t *at, *end;
	unsigned long long offset; /* in its file */
	const char *file;
};

#if defined(__x86_64__)

/* mov $imm32,%eax; xor %edx,%edx; xrstor: the mask is in sight. */
static bool harmless_xrstor(const struct text *t, const uint8_t *at)
{
	uint32_t mask;

	if (at - t->at < 7 || at[-7] != 0xb8 || at[-2] != 0x31 || at[-1] != 0xd2)
		return false;
	memcpy(&mask, at - 6, sizeof(mask));
	return !(mask >> PKRU_BIT & 1);
}

/* 0: it is gone. */
static int make_trap(const uint8_t *at)
{
	uint8_t *page = (uint8_t *)((uintptr_t)at & ~(uintptr_t)4095);
	size_t len = (uintptr_t)at + 3 - (uintptr_t)page;

	if (mprotect(page, len, PROT_READ | PROT_WRITE | PROT_EXEC))
		return -errno;
	memcpy((uint8_t *)at, "\x0f\x0b\x90", 3); /* ud2; nop */
	return mprotect(page, len, PROT_READ | PROT_EXEC) ? -errno : 0;
}

static int stray(const struct text *t, const uint8_t *at, const char *what, struct vp_err *e)
{
	return vp_err_set(
		e, -EPERM,
		"seal: %s at offset 0x%llx of %.120s could open the gate; build it without, or do not load it", what,
		t->offset + (unsigned long long)(at - t->at), t->file[0] ? t->file : "anonymous memory");
}

static int scan_text(const struct text *t, const uint8_t *pkey_set_at, struct vp_err *e)
{
	for (const uint8_t *p = t->at; t->end - p >= 3; p++) {
		p = memchr(p, 0x0f, (size_t)(t->end - p - 2));
		if (!p)
			return 0;
		if (p[1] == 0x01 && p[2] == 0xef && !vhp_gate_owns(p)) {
			if (!pkey_set_at || p < pkey_set_at || p - pkey_set_at >= FUNCTION || make_trap(p))
				return stray(t, p, "WRPKRU", e);
		}
		if (p[1] == 0xae && (p[2] >> 3 & 7) == 5 && p[2] >> 6 != 3 && !harmless_xrstor(t, p))
			return stray(t, p, "XRSTOR", e);
	}
	return 0;
}

int vhp_gate_scan(struct vp_err *e)
{
	const uint8_t *pkey_set_at = dlsym(RTLD_DEFAULT, "pkey_set");
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512], perms[5];
	int ret = 0;

	if (!f)
		return vp_err_set(e, -errno, "seal: /proc/self/maps: %m");
	while (!ret && fgets(line, sizeof(line), f)) {
		unsigned long from, to;
		struct text t;
		int name = 0;

		if (sscanf(line, "%lx-%lx %4s %llx %*s %*s %n", &from, &to, perms, &t.offset, &name) != 4 ||
		    perms[2] != 'x')
			continue;
		line[strcspn(line, "\n")] = '\0';
		t.file = name ? line + name : "";
		/* The kernel's page, the same for all: three system calls, and not to be read. */
		if (!strcmp(t.file, "[vsyscall]"))
			continue;
		t.at = (const uint8_t *)from;
		t.end = (const uint8_t *)to;
		if (perms[1] == 'w')
			ret = vp_err_set(
				e, -EPERM,
				"seal: %.120s is mapped writable and executable: anybody could write a WRPKRU there",
				t.file[0] ? t.file : "anonymous memory");
		else if (perms[0] != 'r')
			ret = vp_err_set(
				e, -EPERM,
				"seal: %.120s is mapped executable but not readable: what is there cannot be looked at",
				t.file[0] ? t.file : "anonymous memory");
		else
			ret = scan_text(&t, pkey_set_at, e);
	}
	fclose(f);
	return ret;
}

#else

int vhp_gate_scan(struct vp_err *e)
{
	return vp_err_set(e, -EOPNOTSUPP, "seal: made for x86-64 processors only");
}

#endif
