/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Canaries in a driver VM, and a device VM that looks for them.
 *
 *   canary fill MIB            driver VM: fills memory with canaries; at SIGUSR1 it looks whether they are still there
 *   canary scan FILE MIB       device VM, root: reads all windows of a shmem port and what lies between them, in the
 *                              BAR's resource file, over and over. At SIGUSR1 it reports, after one more round:
 *                              now=PAGES with something in them, hits=CANARIES seen so far
 *   canary scribble FILE MIB   device VM, root: writes into all of it, once
 *   canary hold DEVICE         device VM: owns the port, maps every window, answers nothing that the host asks; at
 *                              SIGUSR1 it says what it reads there
 *   canary keep DEVICE         device VM: as hold, but it answers at once, and keeps its mappings all the same. When
 *                              windows have been taken back it reads there: of these, and of all so far, it tells at
 *                              SIGUSR1: grants=TIMES windows=THEN sigbus= zero= data= seen=WINDOWS that had data before
 *
 * Each answer is a line on stdout. The first one says that it has begun.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../include/vhost-pci/abi.h"
#include "../../include/vhost-pci/uapi.h"

#define PAGE  4096u
#define WORDS (PAGE / 8)
#define STEP  (512 / 8) /* words between looks into a page that is not the scanner's own */

static volatile sig_atomic_t asked;

static void on_ask(int sig)
{
	(void)sig;
	asked = 1;
}

static _Noreturn void fail(const char *what)
{
	printf("error %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Not in the program's text as it is in memory: only what fill() has written looks like this. */
static uint64_t canary(void)
{
	static volatile uint64_t inverse = ~UINT64_C(0xca4a17b1dca9e5ed);

	return ~inverse;
}

static _Noreturn void fill(size_t bytes)
{
	uint64_t *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0),
		 c = canary();

	if (m == MAP_FAILED || mlock(m, bytes))
		fail("memory");
	for (size_t i = 0; i < bytes / 8; i++)
		m[i] = c;
	printf("pages=%zu bad=0\n", bytes / PAGE);
	for (;;) {
		size_t bad = 0;

		while (!asked)
			usleep(20000);
		asked = 0;
		for (size_t p = 0; p < bytes / PAGE; p++)
			for (size_t i = 0; i < WORDS; i++)
				if (m[p * WORDS + i] != c) {
					bad++;
					break;
				}
		printf("pages=%zu bad=%zu\n", bytes / PAGE, bad);
	}
}

static volatile uint64_t *aperture(const char *path, size_t bytes)
{
	int fd = open(path, O_RDWR);
	char *m = fd < 0 ? MAP_FAILED : mmap(NULL, VHP_CTRL_SIZE + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (m == MAP_FAILED)
		fail(path);
	/* The port's own pages come first, then windows and what lies between them. */
	return (volatile uint64_t *)(m + VHP_CTRL_SIZE);
}

static _Noreturn void scan(const char *path, size_t bytes)
{
	volatile uint64_t *m = aperture(path, bytes);
	uint64_t c = canary();
	unsigned long rounds = 0, hits = 0;

	printf("rounds=0 now=0 hits=0\n");
	for (;;) {
		/* What is asked for is told after a round that began later. */
		bool last = asked;
		unsigned long now = 0;

		for (size_t p = 0; p < bytes / PAGE; p++) {
			uint64_t any = 0;

			for (size_t i = 0; i < WORDS; i += STEP) {
				uint64_t x = m[p * WORDS + i];

				hits += x == c;
				any |= x;
			}
			now += !!any;
		}
		rounds++;
		if (last) {
			asked = 0;
			printf("rounds=%lu now=%lu hits=%lu\n", rounds, now, hits);
		}
	}
}

static int scribble(const char *path, size_t bytes)
{
	volatile uint64_t *m = aperture(path, bytes);

	for (size_t i = 0; i < bytes / 8; i += STEP)
		m[i] = UINT64_C(0xeeeeeeeeeeeeeeee);
	printf("written=%zu\n", bytes / PAGE);
	return 0;
}

static sigjmp_buf back;

static void on_sigbus(int sig)
{
	(void)sig;
	siglongjmp(back, 1);
}

static bool is_zero(const volatile uint64_t *m, size_t bytes)
{
	for (size_t i = 0; i < bytes / 8; i += STEP)
		if (m[i])
			return false;
	return true;
}

struct windows {
	const volatile uint64_t *m[VHP_MAX_WINDOWS];
	size_t size[VHP_MAX_WINDOWS];
	unsigned n;
};

struct found {
	unsigned long windows, sigbus, zero, data;
};

/* What reading them gives. */
static void look(const struct windows *w, struct found *f)
{
	for (volatile unsigned i = 0; i < w->n; i++) {
		f->windows++;
		if (sigsetjmp(back, 1))
			f->sigbus++;
		else if (is_zero(w->m[i], w->size[i]))
			f->zero++;
		else
			f->data++;
	}
}

static uint64_t command(int fd, uint32_t opcode, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct vhp_ioc_command x = { .opcode = opcode, .args = { a, b, c, d } };

	return ioctl(fd, VHP_IOC_COMMAND, &x) ? ~0ull : x.status;
}

static const volatile struct vhp_abi_state *own(const char *path, int *fd)
{
	const struct vhp_abi_control *c;

	*fd = open(path, O_RDWR);
	c = mmap(NULL, VHP_CTRL_SIZE, PROT_READ, MAP_SHARED, *fd, 0);
	if (*fd < 0 || c == MAP_FAILED || command(*fd, VHP_CMD_ATTACH, VHP_ABI_VERSION, ~0ull, ~0ull, 0))
		fail(path);
	signal(SIGBUS, on_sigbus);
	return &c->state;
}

static bool window(int fd, const volatile struct vhp_abi_state *s, unsigned i, struct windows *w)
{
	struct vhp_ioc_window x = { .window = i, .serial = s->windows[i].serial };

	if (!s->windows[i].kind || ioctl(fd, VHP_IOC_WINDOW, &x))
		return false;
	w->m[w->n] = mmap(NULL, x.size, PROT_READ | PROT_WRITE, MAP_SHARED, x.fd, 0);
	close(x.fd);
	if (w->m[w->n] == MAP_FAILED)
		return false;
	w->size[w->n++] = x.size;
	return true;
}

static _Noreturn void hold(const char *path)
{
	static struct windows w;
	int fd;
	const volatile struct vhp_abi_state *s = own(path, &fd);

	while (s->link_status != VHP_LINK_UP)
		usleep(20000);
	for (unsigned i = 0; i < s->nwindows; i++)
		if (s->windows[i].kind && !window(fd, s, i, &w))
			fail("window");
	for (;;) {
		struct found f = { 0 };

		asked = 0;
		look(&w, &f);
		printf("windows=%lu sigbus=%lu zero=%lu data=%lu\n", f.windows, f.sigbus, f.zero, f.data);
		while (!asked)
			usleep(20000);
	}
}

/* Nothing is kept up that the host asks for: queues are stopped, and tables are known, at once. */
static void obey(int fd, const volatile struct vhp_abi_state *s, uint32_t *synced)
{
	uint32_t g = s->regions_generation;

	for (unsigned i = 0; i < s->nqueues; i++)
		if (s->queues[i].flags & VHP_QUEUE_STOP)
			command(fd, VHP_CMD_QUEUE_STOPPED, i, s->queues[i].run, 0, VHP_STOPPED_F_NO_BASE);
	if (g != *synced && !command(fd, VHP_CMD_SYNC, g, 0, 0, 0))
		*synced = g;
}

static bool some_window(const volatile struct vhp_abi_state *s)
{
	for (unsigned i = 0; i < s->nwindows; i++)
		if (s->windows[i].kind)
			return true;
	return false;
}

static _Noreturn void keep(const char *path)
{
	static struct windows w;
	struct found before = { 0 }, after = { 0 };
	unsigned long grants = 0;
	uint32_t synced = 0;
	int fd;
	const volatile struct vhp_abi_state *s = own(path, &fd);

	printf("grants=0\n");
	for (;;) {
		/* Before it obeys: once the queues are stopped the windows go. */
		if (!w.n && s->link_status == VHP_LINK_UP) {
			for (unsigned i = 0; i < s->nwindows; i++)
				window(fd, s, i, &w);
			look(&w, &before);
		}
		obey(fd, s, &synced);
		if (w.n && s->link_status != VHP_LINK_UP && !some_window(s)) {
			look(&w, &after);
			for (unsigned i = 0; i < w.n; i++)
				munmap((void *)(uintptr_t)w.m[i], w.size[i]);
			w.n = 0;
			grants++;
		}
		if (asked) {
			asked = 0;
			printf("grants=%lu windows=%lu sigbus=%lu zero=%lu data=%lu seen=%lu\n", grants, after.windows,
			       after.sigbus, after.zero, after.data, before.data);
		}
		usleep(1000);
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGUSR1, on_ask);
	if (argc == 3 && !strcmp(argv[1], "fill"))
		fill(strtoul(argv[2], NULL, 0) << 20);
	if (argc == 4 && !strcmp(argv[1], "scan"))
		scan(argv[2], (strtoul(argv[3], NULL, 0) << 20) - VHP_CTRL_SIZE);
	if (argc == 4 && !strcmp(argv[1], "scribble"))
		return scribble(argv[2], (strtoul(argv[3], NULL, 0) << 20) - VHP_CTRL_SIZE);
	if (argc == 3 && !strcmp(argv[1], "hold"))
		hold(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "keep"))
		keep(argv[2]);
	fputs("usage: canary fill MIB | scan FILE MIB | scribble FILE MIB | hold|keep DEVICE\n", stderr);
	return 2;
}
