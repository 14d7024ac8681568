// SPDX-License-Identifier: BSD-3-Clause
/*
 * The agent with a vhost-user back-end of a disk that does as it is told: it stops a ring at once, whatever is under
 * way there, as qemu-storage-daemon does. The port is a double; the used index of the ring is written by the test.
 */
#include "double.h"

#include <endian.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "vhostuser/proto.h"

#define DISK 2u
#define FEATURES (F_V1 | BIT(9) | BIT(VU_F_PROTOCOL_FEATURES))
/* That of a back-end which forgets its memory when it is told to, so that nothing else ends the connection. */
#define PROTOCOL (BIT(VU_PF_CONFIGURE_MEM_SLOTS) | BIT(VU_PF_RESET_DEVICE) | BIT(VU_PF_DEVICE_STATE))
/* More than a pipe holds. */
#define STATE_BYTES 300000u

static struct fake_port f;
static struct agent *a;
static struct datapath *dp;
static char dir[64], path[96], kept[96];
static pthread_t thread;
static int listener;
/* Of the back-end: shared, atomic. */
static uint32_t taken, connections, ended, late, refuse, saved, loaded, modern;

static uint32_t get(const uint32_t *n)
{
	return __atomic_load_n(n, __ATOMIC_ACQUIRE);
}

/* The used index of queue q. */
static void returned(unsigned int q, uint16_t n)
{
	uint16_t le = htole16(n);

	assert_int_equal(pwrite(f.win_fd[0], &le, sizeof(le), q * 0x4000 + 0x2002), sizeof(le));
}

/* A header, and the fd that came with it. */
static bool header(int fd, void *m, int *got)
{
	union {
		struct cmsghdr h;
		char b[CMSG_SPACE(8 * sizeof(int))];
	} c;
	struct iovec v = { m, 12 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = c.b, .msg_controllen = sizeof(c) };
	bool ok = recvmsg(fd, &h, MSG_WAITALL | MSG_CMSG_CLOEXEC) == 12;
	int fds[8] = { -1 };

	*got = -1;
	if (!ok || !CMSG_FIRSTHDR(&h))
		return ok;
	memcpy(fds, CMSG_DATA(&c.h), c.h.cmsg_len - CMSG_LEN(0));
	*got = fds[0];
	for (unsigned int i = 1; i < (c.h.cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
		close(fds[i]);
	return ok;
}

/* Its state is a pattern. What it is given ends where the pipe does. */
static void transfer(int fd, bool save)
{
	static uint8_t buf[STATE_BYTES + 1];
	size_t n = 0;
	ssize_t r;

	for (size_t i = 0; save && i < STATE_BYTES; i++)
		buf[i] = (uint8_t)(i * 7 + (i >> 8));
	if (save) {
		while (n < STATE_BYTES && (r = write(fd, buf + n, STATE_BYTES - n)) > 0)
			n += (size_t)r;
		__atomic_store_n(&saved, (uint32_t)n, __ATOMIC_RELEASE);
		return;
	}
	while ((r = read(fd, buf + n, sizeof(buf) - n)) > 0)
		n += (size_t)r;
	for (size_t i = 0; i < n; i++)
		if (buf[i] != (uint8_t)(i * 7 + (i >> 8)))
			return;
	__atomic_store_n(&loaded, (uint32_t)n, __ATOMIC_RELEASE);
}

static void serve(int fd)
{
	int got;
	struct __attribute__((packed)) {
		uint32_t request, flags, size;
		uint64_t v[32];
	} m;

	while (header(fd, &m, &got) && m.size <= sizeof(m.v)) {
		bool save = false;

		if (m.size && recv(fd, m.v, m.size, MSG_WAITALL) != (ssize_t)m.size)
			return;
		switch (m.request) {
		case VU_GET_FEATURES:
			m.v[0] = FEATURES;
			break;
		case VU_GET_PROTOCOL_FEATURES:
			m.v[0] = PROTOCOL;
			break;
		case VU_GET_MAX_MEM_SLOTS:
			m.v[0] = 32;
			break;
		case VU_GET_VRING_BASE:
			/* index, number */
			m.v[0] = (uint32_t)m.v[0] | (uint64_t)__atomic_load_n(&taken, __ATOMIC_ACQUIRE) << 32;
			break;
		case VU_SET_DEVICE_STATE_FD:
			save = !m.v[0];
			m.v[0] = 0x100;
			break;
		case VU_CHECK_DEVICE_STATE:
			m.v[0] = get(&refuse);
			break;
		case VU_SET_FEATURES:
			/* As libvhost-user. */
			if (get(&modern) && !(m.v[0] & F_V1))
				return;
			continue;
		default:
			if (got >= 0)
				close(got);
			continue;
		}
		m.flags = 1 | 4;
		m.size = 8;
		if (send(fd, &m, 20, MSG_NOSIGNAL) != 20)
			return;
		if (m.request == VU_SET_DEVICE_STATE_FD)
			transfer(got, save);
		if (got >= 0)
			close(got);
		if (m.request == VU_GET_VRING_BASE && get(&late))
			returned((unsigned int)(uint32_t)m.v[0], (uint16_t)get(&taken));
	}
}

static void *backend(void *arg)
{
	int fd;

	/* One connection after the other. */
	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		__atomic_add_fetch(&connections, 1, __ATOMIC_RELEASE);
		serve(fd);
		close(fd);
		__atomic_add_fetch(&ended, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static int setup(void **state)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct vp_err e = { 0 };
	struct vhp_abi_state *s;

	snprintf(dir, sizeof(dir), "/tmp/vhpagentXXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/s", dir);
	snprintf(kept, sizeof(kept), "%s/state", dir);
	memcpy(un.sun_path, path, strlen(path) + 1);
	taken = connections = ended = late = refuse = saved = loaded = modern = 0;
	dp_vhostuser_finish_ms = 0;
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(listener, (struct sockaddr *)&un, sizeof(un)) || listen(listener, 4) ||
	    pthread_create(&thread, NULL, backend, NULL))
		return -1;
	fake_init(&f, 2);
	fake_up(&f, 2);
	s = fake_begin(&f);
	s->device_type = htole32(DISK);
	s->config_size = 0;
	fake_end(&f);
	if (dp_vhostuser_open(path, false, kept, &dp, &e))
		return -1;
	a = agent_new(&f.port, dp);
	return !a;
}

static int teardown(void **state)
{
	agent_free(a);
	dp->ops->close(dp);
	shutdown(listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(listener);
	fake_free(&f);
	unlink(path);
	unlink(kept);
	rmdir(dir);
	return 0;
}

static bool all_run(void)
{
	return a->up && a->q[0].enabled && a->q[1].enabled;
}

/* The agent's loop until that holds; 20 s at most. */
static void run_until(bool (*holds)(void))
{
	for (int i = 0; i < 2000; i++) {
		struct pollfd p[DP_MAX_FDS];
		unsigned int n;
		int t;

		a->attach_ms = 0;
		assert_int_equal(agent_reconcile(a), 0);
		if (holds())
			return;
		n = agent_fds(a, p);
		t = agent_timeout(a);
		if (poll(p, n, t < 0 || t > 10 ? 10 : t) > 0)
			agent_handle(a, p, n);
	}
	fail_msg("not so in time");
}

static void run_up(void)
{
	run_until(all_run);
}

/* The agent ends in an orderly way, and the next one comes. */
static void next_agent(void)
{
	struct vp_err e = { 0 };

	agent_stop(a);
	agent_free(a);
	dp->ops->close(dp);
	for (unsigned int q = 0; q < 2; q++)
		fake_queue(&f, q, 0x10000 + q * 0x4000, 256, 0);
	assert_int_equal(dp_vhostuser_open(path, false, kept, &dp, &e), 0);
	a = agent_new(&f.port, dp);
	assert_non_null(a);
}

static void mode(uint32_t m)
{
	fake_begin(&f)->mode = htole32(m);
	fake_end(&f);
}

/* The back-end has taken so many requests of both queues, and returned so many of the first, and all of the second. */
static void progress(uint16_t took, uint16_t first)
{
	__atomic_store_n(&taken, took, __ATOMIC_RELEASE);
	returned(0, first);
	returned(1, took);
}

static void stop_queue(unsigned int q)
{
	fake_begin(&f)->queues[q].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	assert_int_equal(agent_reconcile(a), 0);
}

static void next_run(unsigned int q, uint32_t base)
{
	fake_queue(&f, q, 0x10000 + q * 0x4000, 256, base);
}

static void test_all_returned(void **state)
{
	struct sent c;

	mode(VHP_MODE_FAST);
	run_up();
	progress(9, 9);
	stop_queue(0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 9);
	assert_true(a->attached && a->q[1].running);
	next_run(0, 9);
	run_up();
	assert_int_equal(get(&connections), 1);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 0);
}

/* As others than qemu-storage-daemon do. */
static void test_returned_after_the_stop(void **state)
{
	struct sent c;

	dp_vhostuser_finish_ms = 100000;
	__atomic_store_n(&late, 1, __ATOMIC_RELEASE);
	mode(VHP_MODE_FAST);
	run_up();
	progress(9, 7);
	stop_queue(0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 1);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 9);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 0);
	assert_true(a->q[1].running);
}

/* Where it stands nobody knows. The other queue is stopped, too, at its place: the connection is that of both. */
static void test_open_in_fast_mode(void **state)
{
	struct sent c;

	mode(VHP_MODE_FAST);
	run_up();
	progress(9, 7);
	stop_queue(0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 2);
	for (unsigned int i = 0; i < f.nsent; i++)
		if (f.sent[i].opcode == VHP_CMD_QUEUE_STOPPED && !f.sent[i].args[VHP_STOPPED_QUEUE])
			assert_int_equal(f.sent[i].args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_NO_BASE);
	assert_int_equal(c.args[VHP_STOPPED_QUEUE], 1);
	assert_int_equal(c.args[VHP_STOPPED_BASE], 9);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
	assert_false(a->attached || a->up);
	next_run(0, 9);
	next_run(1, 9);
	run_up();
	assert_int_equal(get(&connections), 2);
	assert_int_equal(get(&ended), 1);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
}

/* The daemon owns the ring, and would write the next run's there as soon as it hears of the stop. */
static void test_open_in_copy_mode(void **state)
{
	mode(VHP_MODE_COPY);
	run_up();
	progress(9, 7);
	stop_queue(0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL), 0);
	assert_int_equal(f.sent[f.nsent - 1].opcode, VHP_CMD_DETACH);
	next_run(0, 0);
	next_run(1, 0);
	run_up();
	assert_int_equal(get(&connections), 2);
	assert_int_equal(get(&ended), 1);
}

/* Its driver is another one, whose disk the last one's writes must not reach after its own. */
static void test_open_when_the_driver_vm_goes(void **state)
{
	mode(VHP_MODE_COPY);
	run_up();
	progress(3, 2);
	fake_begin(&f)->link_epoch = htole64(2);
	fake_end(&f);
	next_run(0, 0);
	next_run(1, 0);
	assert_int_equal(agent_reconcile(a), 0);
	assert_false(a->up);
	run_up();
	assert_int_equal(get(&connections), 2);
	assert_int_equal(get(&ended), 1);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
}

/* A ring that cannot be read counts as one with open requests. */
static void test_memory_that_has_gone(void **state)
{
	mode(VHP_MODE_FAST);
	run_up();
	progress(0, 0);
	assert_int_equal(ftruncate(f.win_fd[0], 0), 0);
	stop_queue(0);
	assert_int_equal(fake_count(&f, VHP_CMD_DETACH, NULL), 1);
}

/* A net device takes buffers ahead. */
static void test_net_keeps_its_connection(void **state)
{
	mode(VHP_MODE_FAST);
	fake_begin(&f)->device_type = htole32(1);
	fake_end(&f);
	run_up();
	progress(9, 7);
	stop_queue(0);
	next_run(0, 9);
	run_up();
	assert_int_equal(get(&connections), 1);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

/* What the back-end knows reaches its next process, once. */
static void test_state(void **state)
{
	run_up();
	next_agent();
	assert_int_equal(get(&saved), STATE_BYTES);
	assert_int_equal(access(kept, F_OK), 0);
	run_up();
	assert_int_equal(get(&loaded), STATE_BYTES);
	assert_int_equal(access(kept, F_OK), -1);
	assert_int_equal(get(&connections), 2);
}

/* A state that is not accepted is not tried again, and the back-end serves without it. */
static void test_state_refused(void **state)
{
	run_up();
	next_agent();
	__atomic_store_n(&refuse, 1, __ATOMIC_RELEASE);
	run_up();
	assert_int_equal(get(&loaded), STATE_BYTES);
	assert_int_equal(access(kept, F_OK), -1);
	assert_int_equal(get(&connections), 3);
	/* Neither is one that was not saved. */
	next_agent();
	assert_int_equal(access(kept, F_OK), -1);
	run_up();
	assert_int_equal(get(&connections), 4);
}

/* Requests are under way there: its state is not that of the ring. */
static void test_no_state_of_an_unclean_end(void **state)
{
	mode(VHP_MODE_FAST);
	run_up();
	progress(9, 7);
	next_agent();
	assert_int_equal(get(&saved), 0);
	assert_int_equal(access(kept, F_OK), -1);
}

static unsigned int hints;

static void hear(int level, const char *msg)
{
	hints += strstr(msg, "disable-legacy=on") != NULL;
}

static bool twice(void)
{
	return get(&connections) >= 3;
}

/* A driver without VERSION_1, and a back-end that does not want it: said once, however often that one leaves. */
static void test_legacy_driver(void **state)
{
	vp_log_set(hear, VP_LOG_WARNING);
	hints = 0;
	__atomic_store_n(&modern, 1, __ATOMIC_RELEASE);
	fake_begin(&f)->features[0] = htole64(BIT(9));
	fake_end(&f);
	run_until(twice);
	assert_int_equal(hints, 1);
	/* And never of another driver. */
	__atomic_store_n(&modern, 0, __ATOMIC_RELEASE);
	fake_begin(&f)->features[0] = htole64(F_V1 | BIT(9));
	fake_end(&f);
	run_up();
	vp_log_set(NULL, VP_LOG_WARNING);
	assert_int_equal(hints, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(all_returned), T(returned_after_the_stop), T(open_in_fast_mode), T(open_in_copy_mode),
		T(open_when_the_driver_vm_goes), T(memory_that_has_gone), T(net_keeps_its_connection),
		T(state), T(state_refused), T(no_state_of_an_unclean_end),
		T(legacy_driver),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
