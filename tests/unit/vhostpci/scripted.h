/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A scripted daemon on the local attachment (include/vhost-pci/local.h), for tests of libvhostpci: a thread that greets
 * as it is told to and answers commands; the test writes the state page itself. One at a time. Whatever is open after
 * daemon_end() is a leak.
 */
#ifndef TEST_SCRIPTED_H
#define TEST_SCRIPTED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it */
#include <cmocka.h>

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <vhost-pci/abi.h>
#include <vhost-pci/local.h>
#include <vhost-pci/vhostpci.h>

enum greeting {
	WELL, NOTHING, CLOSES, HALF, OTHER_VERSION, NO_FD, SMALL, NO_HELLO, REFUSES, NFDS_WRONG, SURPLUS_FDS,
};

static struct {
	char path[108];
	int lfd, sock, memfd, sig[3], bell[3];
	struct vhp_abi_control *c;
	pthread_t thread;
	enum greeting greeting;
	/* commands */
	uint32_t status, opcode, commands;
	uint64_t value, arg[4];
	bool silent, hangs_up, stop;
	uint32_t seen;
} d;

static unsigned fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void say(uint32_t type, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, const int *fd,
		unsigned n)
{
	struct vhp_local_msg m = { .type = type,
				   .nfds = d.greeting == NFDS_WRONG ? n + 1 : n,
				   .arg = { a0, a1, a2, a3, a4 } };
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(8 * sizeof(int))];
	} u = { 0 };
	struct iovec iov = { &m, d.greeting == HALF ? sizeof(m) / 2 : sizeof(m) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n) {
		struct cmsghdr *c;

		h.msg_control = u.buf;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fd, n * sizeof(int));
	}
	if (sendmsg(d.sock, &h, MSG_NOSIGNAL) < 0)
		return; /* it has hung up: what many cases are about */
}

static void greet(void)
{
	int extra[4] = { d.sig[0], d.sig[1], d.sig[2], d.sig[0] };

	switch (d.greeting) {
	case NOTHING:
		return;
	case CLOSES:
		shutdown(d.sock, SHUT_RDWR);
		return;
	case REFUSES:
		say(VHP_LOCAL_ERROR, EACCES, 0, 0, 0, 0, NULL, 0);
		return;
	case SMALL:
		assert_int_equal(ftruncate(d.memfd, 4096), 0);
		break;
	case SURPLUS_FDS:
		say(4711, 0, 0, 0, 0, 0, extra, 4); /* unknown: skipped */
		say(VHP_LOCAL_SIGNALS, 1000, 0, 0, 0, 0, extra, 4); /* beyond what there is, before it is known */
		break;
	default:
		break;
	}
	if (d.greeting != NO_HELLO)
		say(VHP_LOCAL_HELLO, d.greeting == OTHER_VERSION ? 99 : VHP_LOCAL_VERSION, VHP_ABI_VERSION,
		    VHP_CTRL_SIZE, 3, 3, &d.memfd, d.greeting != NO_FD);
	if (d.greeting == HALF || d.greeting == NFDS_WRONG) {
		shutdown(d.sock, SHUT_WR);
		return;
	}
	say(VHP_LOCAL_SIGNALS, 0, 0, 0, 0, 0, d.sig, 3);
	say(VHP_LOCAL_DOORBELLS, 0, 0, 0, 0, 0, d.bell, 3);
	if (d.greeting == SURPLUS_FDS) {
		say(VHP_LOCAL_SIGNALS, 2, 0, 0, 0, 0, extra, 4); /* one of them replaces, three are beyond */
		say(VHP_LOCAL_READY, 0, 0, 0, 0, 0, extra, 2);
	} else {
		say(VHP_LOCAL_READY, 0, 0, 0, 0, 0, NULL, 0);
	}
}

/* ---- the state page -------------------------------------------------------------------------- */

static void begin(void)
{
	__atomic_store_n(&d.c->state.generation, d.c->state.generation | 1, __ATOMIC_SEQ_CST);
}

static void commit(void)
{
	uint64_t one = 1;

	__atomic_store_n(&d.c->state.generation, d.c->state.generation + 1, __ATOMIC_SEQ_CST);
	assert_int_equal(write(d.sig[0], &one, 8), 8);
}

static void answer_command(void)
{
	uint32_t seq = __atomic_load_n(&d.c->command.seq, __ATOMIC_ACQUIRE);

	if (seq == d.seen)
		return;
	d.seen = seq;
	d.opcode = d.c->command.opcode;
	for (unsigned i = 0; i < 4; i++)
		d.arg[i] = d.c->command.args[i];
	__atomic_fetch_add(&d.commands, 1, __ATOMIC_SEQ_CST);
	if (d.hangs_up)
		shutdown(d.sock, SHUT_RDWR);
	if (d.silent || d.hangs_up)
		return;
	begin();
	d.c->state.answer =
		(struct vhp_abi_answer){ .seq = seq, .opcode = d.opcode, .status = d.status, .value = { d.value } };
	if (d.opcode == VHP_CMD_ATTACH && d.status == VHP_ST_OK) {
		d.c->state.flags |= VHP_STATE_ATTACHED;
		if (d.c->state.link_reason == VHP_REASON_TIMEOUT)
			d.c->state.link_reason = VHP_REASON_NO_DRIVER;
	}
	commit();
}

static void *daemon_main(void *arg)
{
	while (!__atomic_load_n(&d.stop, __ATOMIC_ACQUIRE)) {
		struct pollfd p[2] = { { d.lfd, POLLIN, 0 }, { d.bell[0], POLLIN, 0 } };
		uint64_t v;

		poll(p, 2, 10);
		if (p[0].revents) {
			d.sock = accept(d.lfd, NULL, NULL);
			greet();
		}
		if (p[1].revents && read(d.bell[0], &v, 8) == 8)
			answer_command();
	}
	return NULL;
}

static unsigned before;

static void daemon_start(enum greeting g)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	memset(&d, 0, sizeof(d));
	d.greeting = g;
	d.sock = -1;
	before = fds();
	snprintf(d.path, sizeof(d.path), "unix:/tmp/vplib%d", (int)getpid());
	strcpy(a.sun_path, d.path + 5);
	unlink(a.sun_path);
	d.lfd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(d.lfd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(d.lfd, 4), 0);
	d.memfd = memfd_create("control", 0);
	assert_int_equal(ftruncate(d.memfd, 2 * VHP_CTRL_POOL_OFF), 0);
	d.c = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, d.memfd, 0);
	assert_ptr_not_equal(d.c, MAP_FAILED);
	d.c->header = (struct vhp_abi_header){
		.magic = VHP_MAGIC,
		.abi_version = VHP_ABI_VERSION,
		.header_size = 0x80,
		.state_offset = 0x10000,
		.state_size = 0x10000,
		.command_offset = 0x1000,
		.command_size = 0x1000,
		.attachment = VHP_ATTACHMENT_LOCAL,
		.max_queues = 2,
		.nsignals = 3,
		.name = "scripted",
	};
	d.c->state.abi_version = VHP_ABI_VERSION;
	d.c->state.link_reason = VHP_REASON_NO_DRIVER;
	d.c->state.max_queues = 2;
	for (unsigned i = 0; i < 3; i++) {
		d.sig[i] = eventfd(0, EFD_NONBLOCK);
		d.bell[i] = eventfd(0, EFD_NONBLOCK);
	}
	assert_int_equal(pthread_create(&d.thread, NULL, daemon_main, NULL), 0);
}

static void daemon_end(void)
{
	__atomic_store_n(&d.stop, true, __ATOMIC_RELEASE);
	pthread_join(d.thread, NULL);
	for (unsigned i = 0; i < 3; i++) {
		close(d.sig[i]);
		close(d.bell[i]);
	}
	munmap(d.c, VHP_CTRL_SIZE);
	close(d.memfd);
	close(d.lfd);
	if (d.sock >= 0)
		close(d.sock);
	unlink(d.path + 5);
	assert_int_equal(fds(), before);
}

static struct vhp_port *opened(void)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	if (vhp_open(&p, d.path, NULL, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(d.opcode, VHP_CMD_ATTACH);
	return p;
}

#endif
