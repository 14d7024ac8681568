// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test program for /dev/vhost-pciN, run in a guest by tests/vm/test_module.py, whose fake daemon plays the
 * host's side. Prints "ok NAME …" or "FAIL NAME: why" and exits with 0 or 1.
 *
 *   vhost-pci-selftest [-d /dev/vhost-pci0] TEST [arguments]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "selftest.h"

static const char *dev = "/dev/vhost-pci0";
static const char *test;

void fail(const char *fmt, ...)
{
	va_list ap;

	printf("FAIL %s: ", test);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int open_port(int flags)
{
	int fd = open(dev, flags | O_CLOEXEC);

	if (fd < 0)
		fail("open %s: %s", dev, strerror(errno));
	return fd;
}

const struct vhp_abi_control *map_control(int fd)
{
	void *p = mmap(NULL, VHP_CTRL_SIZE, PROT_READ, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		fail("mmap of the control block: %s", strerror(errno));
	return p;
}

void read_state(const struct vhp_abi_control *c, struct vhp_abi_state *s)
{
	const _Atomic uint32_t *gen = (const _Atomic uint32_t *)&c->state.generation;
	double end = now() + 2;
	uint32_t g;

	do {
		g = atomic_load_explicit(gen, memory_order_acquire);
		if (!(g & 1)) {
			memcpy(s, &c->state, sizeof(*s));
			atomic_thread_fence(memory_order_acquire);
			if (atomic_load_explicit(gen, memory_order_relaxed) == g)
				return;
		}
	} while (now() < end);
	fail("state page stays torn");
}

/* Wait until the state satisfies `ok`, woken by the port's fd alone. */
void wait_state(int fd, const struct vhp_abi_control *c, struct vhp_abi_state *s,
		bool (*ok)(const struct vhp_abi_state *), double secs)
{
	double end = now() + secs;
	struct vhp_event ev;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };

		read_state(c, s);
		if (ok(s))
			return;
		if (now() > end)
			fail("state did not come: link %u reason %u flags %x", s->link_status,
			     s->link_reason, s->flags);
		if (poll(&p, 1, 200) > 0)
			CHECK(read(fd, &ev, sizeof(ev)) == sizeof(ev));
	}
}

bool is_up(const struct vhp_abi_state *s)
{
	return s->link_status == VHP_LINK_UP;
}

bool is_down(const struct vhp_abi_state *s)
{
	return s->link_status != VHP_LINK_UP;
}

uint32_t command(int fd, uint32_t op, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		 uint64_t *value)
{
	struct vhp_ioc_command c = { .opcode = op, .args = { a0, a1, a2, a3 } };

	if (ioctl(fd, VHP_IOC_COMMAND, &c))
		fail("command %u: %s", op, strerror(errno));
	if (value)
		memcpy(value, c.value, sizeof(c.value));
	return c.status;
}

void attach(int fd)
{
	uint32_t st = command(fd, VHP_CMD_ATTACH, VHP_ABI_VERSION, ~0ull, ~0ull, 0, NULL);

	if (st)
		fail("ATTACH: status %u", st);
}

/* The window's fd; waits while the device that carries it is being plugged. */
int window(int fd, uint32_t slot, uint32_t serial, struct vhp_ioc_window *out)
{
	double end = now() + 10;

	for (;;) {
		*out = (struct vhp_ioc_window){ .window = slot, .serial = serial };
		if (!ioctl(fd, VHP_IOC_WINDOW, out))
			return out->fd;
		if (errno != EAGAIN || now() > end)
			fail("window %u/%u: %s", slot, serial, strerror(errno));
		usleep(20000);
	}
}

int set_eventfd(int fd, unsigned long req, uint32_t signal, int efd)
{
	struct vhp_ioc_eventfd e = { .signal = signal, .fd = efd };

	return ioctl(fd, req, &e) ? -errno : 0;
}

void set_all_eventfds(int fd, uint32_t n, int *kick, int *call)
{
	for (uint32_t q = 0; q < n; q++) {
		kick[q] = eventfd(0, EFD_NONBLOCK);
		call[q] = eventfd(0, EFD_NONBLOCK);
		CHECK(!set_eventfd(fd, VHP_IOC_SET_KICK, 1 + q, kick[q]));
		CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1 + q, call[q]));
	}
}

uint64_t wait_eventfd(int efd, int ms)
{
	struct pollfd p = { .fd = efd, .events = POLLIN };
	uint64_t v = 0;

	if (poll(&p, 1, ms) == 1)
		CHECK(read(efd, &v, 8) == 8);
	return v;
}

static sigjmp_buf jmp;
static volatile sig_atomic_t jumping;

static void on_sigbus(int sig)
{
	(void)sig;
	if (!jumping)
		_exit(99);
	siglongjmp(jmp, 1);
}

/* 1: the access raised SIGBUS. */
static int faults(volatile uint8_t *p)
{
	int r = 1;

	signal(SIGBUS, on_sigbus);
	jumping = 1;
	if (!sigsetjmp(jmp, 1)) {
		(void)*p;
		r = 0;
	}
	jumping = 0;
	return r;
}

/* ---- the tests ------------------------------------------------------------------------------------ */

static void t_info(void)
{
	struct vhp_ioc_info i;
	int fd = open_port(O_RDONLY);

	CHECK(!ioctl(fd, VHP_IOC_INFO, &i));
	printf("ok info version %u abi %#x attachment %u queues %u signals %u flags %#x name %s bus %s\n",
	       i.version, i.abi_version, i.attachment, i.max_queues, i.nsignals, i.flags, i.name, i.bus);
}

static void t_openers(void)
{
	const struct vhp_abi_control *c;
	struct vhp_ioc_command cmd = { .opcode = VHP_CMD_ATTACH };
	struct vhp_ioc_window w = { 0 };
	struct vhp_ioc_signal sig = { 0 };
	struct vhp_ioc_info i;
	struct vhp_event ev;
	int a = open_port(O_RDWR), b, efd = eventfd(0, 0);
	void *p;

	CHECK(open(dev, O_RDWR) < 0 && errno == EBUSY);
	CHECK(open(dev, O_WRONLY) < 0 && errno == EBUSY);
	b = open_port(O_RDONLY);
	CHECK(!ioctl(b, VHP_IOC_INFO, &i) && !(i.flags & VHP_INFO_OWNER));
	CHECK(!ioctl(a, VHP_IOC_INFO, &i) && (i.flags & VHP_INFO_OWNER));
	CHECK(ioctl(b, VHP_IOC_COMMAND, &cmd) < 0 && errno == EPERM);
	CHECK(ioctl(b, VHP_IOC_WINDOW, &w) < 0 && errno == EPERM);
	CHECK(ioctl(b, VHP_IOC_SIGNAL, &sig) < 0 && errno == EPERM);
	CHECK(set_eventfd(b, VHP_IOC_SET_KICK, 0, efd) == -EPERM);
	/* an observer sees state and events */
	c = map_control(b);
	CHECK(!memcmp(c->header.magic, VHP_MAGIC, 8));
	CHECK(read(b, &ev, sizeof(ev)) == sizeof(ev) && (ev.flags & VHP_EV_STATE));
	/* nobody writes the control block, not even later */
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0) == MAP_FAILED && errno == EACCES);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, a, 0);
	CHECK(p != MAP_FAILED && mprotect(p, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
	/* ranges */
	CHECK(mmap(NULL, VHP_CTRL_SIZE + 4096, PROT_READ, MAP_SHARED, a, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, a, VHP_CTRL_SIZE) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, a, 0) == MAP_FAILED && errno == EINVAL);
	/* bad arguments */
	CHECK(set_eventfd(a, VHP_IOC_SET_KICK, i.nsignals, efd) == -EINVAL);
	CHECK(set_eventfd(a, VHP_IOC_SET_CALL, i.nsignals, efd) == -EINVAL);
	CHECK(set_eventfd(a, VHP_IOC_SET_KICK, 1, b) == -EINVAL);
	CHECK(set_eventfd(a, VHP_IOC_SET_CALL, 1, b) == -EINVAL);
	CHECK(set_eventfd(a, VHP_IOC_SET_CALL, 1, 1000) == -EBADF);
	sig.signal = i.nsignals;
	CHECK(ioctl(a, VHP_IOC_SIGNAL, &sig) < 0 && errno == EINVAL);
	w.window = VHP_MAX_WINDOWS;
	CHECK(ioctl(a, VHP_IOC_WINDOW, &w) < 0 && errno == ENOENT);
	CHECK(ioctl(a, _IO(VHP_IOC_TYPE, 0x7f)) < 0 && errno == ENOTTY);
	/* a mapping holds the file like an fd does */
	close(a);
	CHECK(open(dev, O_RDWR) < 0 && errno == EBUSY);
	munmap(p, 4096);
	/* the next owner comes in (waits for the detach) */
	a = open_port(O_RDWR);
	close(a);
	printf("ok openers\n");
}

/* Commands: good, bad, refused; as the fake daemon answers them. */
static void t_commands(void)
{
	uint64_t v[6];
	int fd = open_port(O_RDWR), i;
	double t;

	CHECK(command(fd, VHP_CMD_ATTACH, VHP_ABI_VERSION, 0, 0, 0, v) == VHP_ST_FEATURES);
	CHECK(v[0]);
	CHECK(command(fd, 77, 0, 0, 0, 0, v) == VHP_ST_UNKNOWN);
	attach(fd);
	t = now();
	for (i = 0; i < 200; i++)
		CHECK(command(fd, VHP_CMD_SYNC, i, 0, 0, 0, v) == VHP_ST_OK);
	t = now() - t;
	CHECK(command(fd, VHP_CMD_DETACH, 0, 0, 0, 0, v) == VHP_ST_OK);
	printf("ok commands %.0f us each\n", t / 200 * 1e6);
}

/* A window: contents both ways, its own fd in another process, kernel access, huge pages. */
static void t_window(void)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w;
	int fd = open_port(O_RDWR), wfd, sp[2], pfd[2];
	volatile uint64_t *m;
	uint64_t x, off, n = 0;
	pid_t pid;
	double t;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	CHECK(s.nregions >= 1);
	CHECK(ioctl(fd, VHP_IOC_WINDOW, &(struct vhp_ioc_window){ .window = s.regions[0].window,
		    .serial = s.windows[s.regions[0].window].serial + 1 }) < 0 && errno == ESTALE);
	wfd = window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	CHECK(w.size == s.windows[s.regions[0].window].size);

	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
	CHECK(m != MAP_FAILED);
	/* the host wrote each page's offset into its first word; we answer in the second */
	t = now();
	for (off = 0; off < w.size; off += 4096) {
		x = m[off / 8];
		if (x != (off | 0x5a))
			fail("at %#llx: %#llx", (unsigned long long)off, (unsigned long long)x);
		m[off / 8 + 1] = off | 0xa5;
		n++;
	}
	t = now() - t;
	/* a mapping of a part, at an offset */
	if (w.size > 8192) {
		volatile uint64_t *q = mmap(NULL, 4096, PROT_READ, MAP_SHARED, wfd, w.size - 4096);

		CHECK(q != MAP_FAILED && q[0] == ((w.size - 4096) | 0x5a));
		munmap((void *)q, 4096);
	}
	CHECK(mmap(NULL, w.size + 4096, PROT_READ, MAP_SHARED, wfd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, wfd, w.size) == MAP_FAILED);
	/* the kernel reads and writes through a user address in the window, as vhost-net does */
	CHECK(!pipe(pfd));
	CHECK(write(pfd[1], (void *)&m[512], 8) == 8 && read(pfd[0], &x, 8) == 8 && x == (4096 | 0x5a));
	x = 0x1122334455667788;
	CHECK(write(pfd[1], &x, 8) == 8 && read(pfd[0], (void *)&m[514], 8) == 8 && m[514] == x);
	/* there are no struct pages: whoever wants some (vmsplice here) is refused, without harm */
	{
		struct iovec io = { (void *)m, 4096 };

		CHECK(vmsplice(pfd[1], &io, 1, 0) < 0 && errno == EFAULT);
	}
	/* the fd works in another process that gets it over a socket */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sp));
	pid = fork();
	if (!pid) {
		char cb[CMSG_SPACE(sizeof(int))], b;
		struct iovec io = { &b, 1 };
		struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = cb,
				    .msg_controllen = sizeof(cb) };
		int f;

		close(fd);
		close(wfd);
		CHECK(recvmsg(sp[1], &h, 0) == 1 && CMSG_FIRSTHDR(&h));
		memcpy(&f, CMSG_DATA(CMSG_FIRSTHDR(&h)), sizeof(f));
		m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
		CHECK(m != MAP_FAILED && m[0] == 0x5a && m[1] == 0xa5);
		m[2] = 0x77;
		_exit(0);
	} else {
		char cb[CMSG_SPACE(sizeof(int))] = { 0 }, b = 0;
		struct iovec io = { &b, 1 };
		struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = cb,
				    .msg_controllen = sizeof(cb) };
		struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
		int st;

		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cm), &wfd, sizeof(int));
		CHECK(sendmsg(sp[0], &h, 0) == 1);
		CHECK(waitpid(pid, &st, 0) == pid && st == 0);
	}
	CHECK(m[2] == 0x77);
	/* smaps of a process with such mappings must not upset the kernel */
	CHECK(system("cat /proc/$PPID/smaps /proc/$PPID/numa_maps > /dev/null 2>&1") >= 0);
	munmap((void *)m, 4096);	/* splits a huge entry */
	CHECK(m[(w.size - 4096) / 8] == ((w.size - 4096) | 0x5a));
	printf("ok window size %llu align %llu pages %llu in %.1f ms\n", (unsigned long long)w.size,
	       (unsigned long long)w.align, (unsigned long long)n, t * 1e3);
}

/* Signals both ways; the host echoes every call of queue q with `echo` kicks. */
static void t_signals(int rounds)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_info info;
	int fd = open_port(O_RDWR), kick[VHP_MAX_QUEUES], call[VHP_MAX_QUEUES], spare;
	uint64_t one = 1;
	uint32_t q;
	double t;
	int i;

	CHECK(!ioctl(fd, VHP_IOC_INFO, &info));
	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	set_all_eventfds(fd, info.max_queues, kick, call);
	/* drop what the host kicked while nobody listened */
	usleep(20000);
	for (q = 0; q < info.max_queues; q++)
		wait_eventfd(kick[q], 0);
	CHECK(info.max_queues < 2 || set_eventfd(fd, VHP_IOC_SET_CALL, 1, call[1]) == -EBUSY);

	t = now();
	for (i = 0; i < rounds; i++) {
		q = i % info.max_queues;
		CHECK(write(call[q], &one, 8) == 8);
		if (!wait_eventfd(kick[q], 2000))
			fail("no kick on queue %u in round %d", q, i);
	}
	t = now() - t;
	/* the module took the counts; each queue's echo came on that queue alone */
	for (q = 0; q < info.max_queues; q++) {
		uint64_t v;

		CHECK(read(call[q], &v, 8) < 0 && errno == EAGAIN);
		CHECK(!wait_eventfd(kick[q], 0));
	}
	/* a hooked eventfd that everybody closed, and one that is replaced */
	spare = eventfd(0, 0);
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, spare));
	close(spare);
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, call[0]));
	CHECK(write(call[0], &one, 8) == 8 && wait_eventfd(kick[0], 2000));
	/* without an eventfd a kick is kept, and delivered when there is one */
	CHECK(!set_eventfd(fd, VHP_IOC_SET_KICK, 1, -1));
	CHECK(write(call[0], &one, 8) == 8);
	usleep(100000);
	CHECK(!wait_eventfd(kick[0], 0));
	CHECK(!set_eventfd(fd, VHP_IOC_SET_KICK, 1, kick[0]) && wait_eventfd(kick[0], 0));
	/* one written before it was hooked rings at once */
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, -1));
	CHECK(write(call[0], &one, 8) == 8);
	CHECK(!wait_eventfd(kick[0], 50));
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, call[0]) && wait_eventfd(kick[0], 2000));
	/* straight through: the kick's eventfd is another queue's call */
	if (info.max_queues >= 2) {
		wait_eventfd(kick[1], 0);
		CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 2, -1));
		CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 2, kick[0]));
		CHECK(write(call[0], &one, 8) == 8);
		CHECK(wait_eventfd(kick[1], 2000));
	}
	printf("ok signals %d rounds, %.1f us per round trip\n", rounds, t / rounds * 1e6);
}

/* The port goes while we wait for the answer to DETACH, which does not come. */
static void t_detach(void)
{
	struct vhp_ioc_command cmd = { .opcode = VHP_CMD_DETACH, .timeout_ms = 60000 };
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct rusage u;
	int fd = open_port(O_RDWR);
	double t, cpu;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	CHECK(command(fd, VHP_CMD_QUEUE_STOPPED, 0xdeaf, 0, 0, 0, NULL) == VHP_ST_OK);
	t = now();
	CHECK(ioctl(fd, VHP_IOC_COMMAND, &cmd) < 0);
	t = now() - t;
	CHECK(errno == ENODEV);
	CHECK(!getrusage(RUSAGE_SELF, &u));
	cpu = (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6;
	if (t > 45 || cpu > 10)
		fail("%.1f s, %.1f s of them busy", t, cpu);
	close(fd);
	printf("ok detach left after %.1f s, busy for %.2f s\n", t, cpu);
}

/* Map a window, tell the host to take it away ("take" on stdout), expect SIGBUS; it comes again. */
static void t_revoke(int cycles)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w;
	int fd = open_port(O_RDWR), i;

	c = map_control(fd);
	attach(fd);
	for (i = 0; i < cycles; i++) {
		volatile uint8_t *m;
		int wfd, pfd[2], r;
		uint32_t slot;
		double t;

		wait_state(fd, c, &s, is_up, 30);
		slot = s.regions[0].window;
		wfd = window(fd, slot, s.windows[slot].serial, &w);
		m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
		CHECK(m != MAP_FAILED && m[0] == 0x5a);
		m[w.size - 1] = 1;
		CHECK(command(fd, VHP_CMD_QUEUE_STOPPED, 0xfade, i, 0, 0, NULL) == VHP_ST_OK);
		wait_state(fd, c, &s, is_down, 30);
		t = now();
		/*
		 * One that was not touched yet faults as soon as the window is marked, those that were when they have
		 * been unmapped.
		 */
		while (!(faults(m + 4096) && faults(m) && faults(m + w.size - 1)) && now() - t < 5)
			usleep(1000);
		CHECK(faults(m + 4096) && faults(m) && faults(m + w.size - 1));
		CHECK(!pipe(pfd));
		r = write(pfd[1], (void *)m, 8);
		CHECK(r < 0 && errno == EFAULT);
		close(pfd[0]);
		close(pfd[1]);
		CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, wfd, 0) == MAP_FAILED && errno == ENODEV);
		w.window = slot;
		CHECK(ioctl(fd, VHP_IOC_WINDOW, &w) < 0 && (errno == ENOENT || errno == ESTALE));
		munmap((void *)m, w.size);
		close(wfd);
	}
	printf("ok revoke %d cycles\n", cycles);
}

/* The owner dies while another process still maps the window: revoked after the grace time. */
static void t_orphan(void)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w;
	int fd = open_port(O_RDWR), wfd, st;
	volatile uint8_t *m;
	pid_t pid;
	double t;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	wfd = window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
	CHECK(m != MAP_FAILED && m[0] == 0x5a);
	pid = fork();
	if (!pid) {
		close(fd);
		munmap((void *)c, VHP_CTRL_SIZE);
		for (t = now(); now() - t < 5; usleep(10000))
			if (faults(m))
				_exit(now() - t > 0.5 ? 0 : 3);
		_exit(4);
	}
	usleep(100000);
	close(fd);
	munmap((void *)c, VHP_CTRL_SIZE);
	munmap((void *)m, w.size);
	t = now();
	CHECK(open(dev, O_RDWR | O_NONBLOCK) < 0 && errno == EAGAIN);
	fd = open_port(O_RDWR);
	t = now() - t;
	CHECK(waitpid(pid, &st, 0) == pid);
	CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 0);
	c = map_control(fd);
	read_state(c, &s);
	CHECK(!(s.flags & VHP_STATE_ATTACHED));
	printf("ok orphan next owner after %.2f s\n", t);
}

/* Everything open and mapped; say "ready"; the host unplugs; everything must fail politely. */
static void t_unplug(void)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w = { 0 };
	struct vhp_ioc_info info;
	struct vhp_event ev;
	int fd = open_port(O_RDWR), ro = open_port(O_RDONLY), efd = eventfd(0, EFD_NONBLOCK), wfd;
	volatile uint8_t *m;
	uint64_t one = 1;
	struct pollfd p;
	double t;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	wfd = window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
	CHECK(m != MAP_FAILED && m[0] == 0x5a);
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, efd));
	CHECK(!set_eventfd(fd, VHP_IOC_SET_KICK, 1, efd));
	CHECK(command(fd, VHP_CMD_QUEUE_STOPPED, 0xdead, 0, 0, 0, NULL) == VHP_ST_OK);
	t = now();
	for (;;) {
		p = (struct pollfd){ .fd = ro, .events = POLLIN };
		poll(&p, 1, 1000);
		if (p.revents & POLLHUP)
			break;
		if (p.revents & POLLIN)
			(void)!read(ro, &ev, sizeof(ev));
		if (now() - t > 20)
			fail("no POLLHUP");
	}
	CHECK(read(fd, &ev, sizeof(ev)) < 0 && errno == ENODEV);
	CHECK(ioctl(fd, VHP_IOC_INFO, &info) < 0 && errno == ENODEV);
	CHECK(ioctl(fd, VHP_IOC_WINDOW, &w) < 0 && errno == ENODEV);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, wfd, 0) == MAP_FAILED && errno == ENODEV);
	/* the signal that it is gone comes a little before the last mapping goes */
	for (t = now(); now() - t < 3 && (!faults((volatile uint8_t *)c) || !faults(m)); usleep(1000))
		;
	CHECK(faults((volatile uint8_t *)c) && faults(m));
	CHECK(write(efd, &one, 8) == 8);
	close(fd);
	close(ro);
	close(wfd);
	printf("ok unplug\n");
}

/* Hold everything open until killed or for some seconds. */
static void t_hold(int secs)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w = { 0 };
	int fd = open_port(O_RDWR), wfd, efd = eventfd(0, EFD_NONBLOCK);
	volatile uint8_t *m;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	wfd = window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
	CHECK(m != MAP_FAILED && m[0] == 0x5a);
	CHECK(!set_eventfd(fd, VHP_IOC_SET_CALL, 1, efd));
	CHECK(!set_eventfd(fd, VHP_IOC_SET_KICK, 1, eventfd(0, 0)));
	printf("ok hold\n");
	fflush(stdout);
	sleep(secs);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 2 && !strcmp(argv[1], "-d")) {
		dev = argv[2];
		argc -= 2;
		argv += 2;
	}
	if (argc < 2) {
		fprintf(stderr, "usage: %s [-d device] info|openers|commands|window|signals|wiring|"
			"revoke|orphan|unplug|detach|key|vfio ADDRESS|hold [n]\n", argv[0]);
		return 2;
	}
	test = argv[1];
	if (!strcmp(test, "info"))
		t_info();
	else if (!strcmp(test, "openers"))
		t_openers();
	else if (!strcmp(test, "commands"))
		t_commands();
	else if (!strcmp(test, "window"))
		t_window();
	else if (!strcmp(test, "signals"))
		t_signals(argc > 2 ? atoi(argv[2]) : 1000);
	else if (!strcmp(test, "wiring"))
		t_wiring(argc > 2 ? atoi(argv[2]) : 100);
	else if (!strcmp(test, "revoke"))
		t_revoke(argc > 2 ? atoi(argv[2]) : 3);
	else if (!strcmp(test, "orphan"))
		t_orphan();
	else if (!strcmp(test, "unplug"))
		t_unplug();
	else if (!strcmp(test, "detach"))
		t_detach();
	else if (!strcmp(test, "key"))
		t_key();
	else if (!strcmp(test, "vfio") && argc > 2)
		t_vfio(argv[2]);
	else if (!strcmp(test, "hold"))
		t_hold(argc > 2 ? atoi(argv[2]) : 3600);
	else
		fail("no such test");
	return 0;
}
