/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhp_protect_seal() in a guest with protection keys: what it refuses, and what it closes. Prints "ok seal" or what
 * went wrong.
 *
 *   seal /dev/vhost-pciN
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <vhost-pci/vhostpci.h>

#define CHECK(c)                                                                                  \
	do {                                                                                      \
		if (!(c)) {                                                                       \
			printf("line %d: %s (%s; %s)\n", __LINE__, #c, strerror(errno), err.msg); \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

static struct vhp_error err;
static volatile int made, leave;

/* mov %edi,%eax; xor %ecx,%ecx; xor %edx,%edx; wrpkru; ret: made at run time, so that no file holds it. */
static void *make_code(void)
{
	static const unsigned char code[] = { 0x89, 0xf8, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xee + 1, 0xc3 };
	unsigned char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(m, code, sizeof(code));
	CHECK(!mprotect(m, 4096, PROT_READ | PROT_EXEC));
	return m;
}

static void *wait_for_leave(void *arg)
{
	(void)arg;
	made = 1;
	while (!leave)
		usleep(1000);
	return NULL;
}

#define REFUSED(call) (errno = 0, (call) < 0 && errno == EPERM)

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params), .protect = true };
	struct iovec v = { &v, sizeof(v) };
	struct vhp_port *port;
	void (*set_pkru)(unsigned);
	pthread_t t;
	void *m;

	if (argc != 2)
		return 2;
	CHECK(vhp_protect_seal(&err) == -EINVAL && strstr(err.msg, "no port"));
	CHECK(!vhp_open(&port, argv[1], &params, &err));

	/* an instruction that could open the gate */
	set_pkru = (void (*)(unsigned))make_code();
	CHECK(vhp_protect_seal(&err) == -EPERM && strstr(err.msg, "WRPKRU"));
	/* a thread that was made inside the gate */
	set_pkru(0);
	CHECK(!pthread_create(&t, NULL, wait_for_leave, NULL));
	set_pkru(0x55555554);
	CHECK(!munmap((void *)set_pkru, 4096));
	while (!made)
		usleep(1000);
	CHECK(vhp_protect_seal(&err) == -EPERM && strstr(err.msg, "inside the gate"));
	leave = 1;
	pthread_join(t, NULL);
	/* memory that is writable and executable */
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED && vhp_protect_seal(&err) == -EPERM && strstr(err.msg, "writable and executable"));
	munmap(m, 4096);

	/* Nothing was closed by a seal that refused. A thread that sees the filter later has it, too. */
	CHECK((m = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED);
	munmap(m, 4096);
	CHECK(!vhp_protect_seal(&err));
	CHECK(REFUSED(pkey_alloc(0, 0)) && REFUSED(pkey_free(1)) && REFUSED(pkey_mprotect(&params, 1, PROT_READ, 0)));
	CHECK(REFUSED(syscall(SYS_io_uring_setup, 1, NULL)) && REFUSED(syscall(SYS_ptrace, 0, 0, 0, 0)));
	CHECK(REFUSED(process_vm_readv(getpid(), &v, 1, &v, 1, 0)) &&
	      REFUSED(process_vm_writev(getpid(), &v, 1, &v, 1, 0)));
	CHECK(REFUSED(execve("/bin/sh", argv, NULL)));
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED &&
	      errno == EPERM);
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED && REFUSED(mprotect(m, 4096, PROT_READ | PROT_EXEC)) && !mprotect(m, 4096, PROT_READ));
	/* and the port goes on */
	CHECK(vhp_update(port, &err) >= 0);
	vhp_close(port);
	printf("ok seal\n");
	return 0;
}
