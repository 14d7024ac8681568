// SPDX-License-Identifier: GPL-2.0-only
/* Windows with a protection key (uapi.h, VHP_IOC_WINDOW): one mapping of one process, whose key stays. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <fcntl.h>

#include "selftest.h"

static sigjmp_buf stopped;
static volatile int stopped_by, stopped_key;

static void on_segv(int sig, siginfo_t *si, void *uc)
{
	(void)sig;
	(void)uc;
	stopped_by = si->si_code;
	stopped_key = (int)si->si_pkey;
	siglongjmp(stopped, 1);
}

/* si_code of the fault that reading (or writing) m raises; 0: none. */
static int touch(volatile uint8_t *m, bool write)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };

	stopped_by = 0;
	sigaction(SIGSEGV, &sa, NULL);
	if (!sigsetjmp(stopped, 1)) {
		if (write)
			m[64] = 1;
		else
			(void)m[0];
	}
	signal(SIGSEGV, SIG_DFL);
	return stopped_by;
}

static int keyed(int fd, const struct vhp_abi_state *s, uint32_t key, struct vhp_ioc_window *w)
{
	uint32_t slot = s->regions[0].window;
	double end = now() + 10;

	for (;;) {
		*w = (struct vhp_ioc_window){ .window = slot, .serial = s->windows[slot].serial, .pkey = key };
		if (!ioctl(fd, VHP_IOC_WINDOW, w))
			return w->fd;
		if (errno != EAGAIN || now() > end)
			return -errno;
		usleep(20000);
	}
}

/* In a child: the mapping is not there, and the fd is of no use. */
static void inherits_nothing(volatile uint8_t *m, int wfd, const struct vhp_ioc_window *w, int fd,
			     const struct vhp_abi_state *s, uint32_t key)
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (!pid) {
		struct vhp_ioc_window mine;

		if (touch(m, false) != SEGV_MAPERR)
			_exit(2);
		if (mmap(NULL, w->size, PROT_READ, MAP_SHARED, wfd, 0) != MAP_FAILED || errno != EACCES)
			_exit(3);
		_exit(keyed(fd, s, key, &mine) == -EBUSY ? 0 : 4);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status)
		fail("a child got at the window: %d", WEXITSTATUS(status));
}

void t_key(void)
{
	const struct vhp_abi_control *c;
	struct vhp_ioc_window w = { 0 }, again;
	struct vhp_abi_state s;
	int fd = open_port(O_RDWR), key, other, wfd;
	uint32_t k;
	volatile uint8_t *m;

	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	if (key < 0) {
		CHECK(keyed(fd, &s, 1, &w) == -EOPNOTSUPP);
		printf("ok key: none on this processor, and the module says so\n");
		return;
	}
	k = (uint32_t)key;
	other = pkey_alloc(0, 0);
	CHECK(other > 0);
	CHECK(keyed(fd, &s, 16, &w) == -EINVAL);
	wfd = keyed(fd, &s, k, &w);
	if (wfd < 0)
		fail("no window with a key: %s", strerror(-wfd));
	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, wfd, 0);
	CHECK(m != MAP_FAILED);

	/* from its first moment */
	CHECK(touch(m, false) == SEGV_PKUERR && stopped_key == key);
	CHECK(touch(m, true) == SEGV_PKUERR);
	pkey_set(key, 0);
	CHECK(!touch(m, false) && m[0] == 0x5a);
	CHECK(!touch(m, true) && m[64] == 1);
	m[64] = 0;
	pkey_set(key, PKEY_DISABLE_ACCESS);

	/* no second way to it */
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, wfd, 0) == MAP_FAILED && errno == EBUSY);
	CHECK(keyed(fd, &s, k, &again) == -EBUSY);
	CHECK(keyed(fd, &s, 0, &again) == -EBUSY);
	CHECK(keyed(fd, &s, (uint32_t)other, &again) == -EBUSY);
	/* no other key */
	CHECK(pkey_mprotect((void *)m, w.size, PROT_READ | PROT_WRITE, 0) < 0 && errno == EACCES);
	CHECK(pkey_mprotect((void *)m, 4096, PROT_READ, other) < 0 && errno == EACCES);
	CHECK(!mprotect((void *)m, 4096, PROT_READ) && touch(m, false) == SEGV_PKUERR);
	inherits_nothing(m, wfd, &w, fd, &s, k);

	/* Whoever lets go of it may have it again, on the same terms. */
	CHECK(!munmap((void *)m, w.size));
	CHECK(keyed(fd, &s, k, &again) == -EBUSY);
	close(wfd);
	CHECK(keyed(fd, &s, 0, &again) == -EBUSY);
	wfd = keyed(fd, &s, k, &w);
	CHECK(wfd >= 0);
	CHECK(!pkey_free(key));
	CHECK(mmap(NULL, w.size, PROT_READ, MAP_SHARED, wfd, 0) == MAP_FAILED && errno == EACCES);
	close(wfd);
	munmap((void *)c, VHP_CTRL_SIZE);
	close(fd);

	/* The next owner has nothing to do with it. */
	fd = open_port(O_RDWR);
	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	CHECK(window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w) >= 0);
	printf("ok key: one mapping, behind key %d, for one process\n", key);
}
