// SPDX-License-Identifier: BSD-3-Clause
/*
 * The agent with a vhost-user back-end that we did not write: dpdk-testpmd, which swaps the
 * addresses of what is transmitted and sends it back. The port is a double, its window the
 * memory of a driver that lives in this test. Skipped where there is no dpdk-testpmd.
 */
#include "double.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../virtq/driver.h"

#define RING 256
#define NBUF 128
#define BUF_SIZE 2048
#define HDR 12
#define MEM_SIZE (8 << 20)
#define RX_AT 0x100000
#define TX_AT 0x200000

static struct fake_port f;
static struct agent *a;
static struct datapath *dp;
static struct drv_mem mem;
static struct drv rx, tx;
static char dir[64], path[96];
static pid_t child;
static unsigned int rx_posted;
static int rx_slot[65536];

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static bool have_testpmd(void)
{
	return system("command -v dpdk-testpmd >/dev/null 2>&1") == 0;
}

static void spawn_testpmd(bool client)
{
	char vdev[160], prefix[64];

	if (!client)
		unlink(path);
	snprintf(vdev, sizeof(vdev), "net_vhost0,iface=%s,queues=1%s", path, client ? ",client=1" : "");
	snprintf(prefix, sizeof(prefix), "vhpagent%d", (int)getpid());
	child = fork();
	assert_true(child >= 0);
	if (child)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!freopen("/dev/null", "r", stdin) || !freopen("/dev/null", "w", stdout) ||
	    !freopen("/dev/null", "w", stderr))
		_exit(126);
	execlp("dpdk-testpmd", "dpdk-testpmd", "-l", "0,1", "--no-pci", "--no-huge", "-m", "128", "--no-telemetry",
	       "--file-prefix", prefix, "--vdev", vdev, "--", "--forward-mode=macswap", "--auto-start",
	       "--nb-cores=1", "--port-topology=loop", "--total-num-mbufs=4096", "--stats-period=600", (char *)NULL);
	_exit(127);
}

static void kill_testpmd(void)
{
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	child = 0;
}

/* The agent's poll loop until cond or 20 s. */
static void run_until(bool (*cond)(void))
{
	uint64_t end = now_ms() + 20000;

	while (!cond()) {
		struct pollfd p[DP_MAX_FDS];
		unsigned int n;
		int t;

		assert_int_equal(agent_reconcile(a), 0);
		if (cond())
			return;
		assert_true(now_ms() < end);
		n = agent_fds(a, p);
		t = agent_timeout(a);
		if (poll(p, n, t < 0 || t > 50 ? 50 : t) > 0)
			agent_handle(a, p, n);
	}
}

static bool is_up(void)
{
	return a->up && a->q[0].enabled && a->q[1].enabled;
}

static bool is_detached(void)
{
	return !a->attached;
}

static void publish_queue(unsigned int q, const struct drv *d, uint32_t base)
{
	struct vhp_abi_queue *e;

	fake_queue(&f, q, 0, RING, base);
	fake_begin(&f);
	e = &f.c->state.queues[q];
	e->desc_addr = htole64(d->desc);
	e->avail_addr = htole64(d->driver);
	e->used_addr = htole64(d->device);
	fake_end(&f);
}

static void start(bool packed, bool server)
{
	uint64_t feat = F_V1 | (packed ? F_PACKED : 0);
	uint32_t base = packed ? 0x80008000u : 0;
	struct vp_err e = { 0 };
	struct vhp_abi_state *s;

	fake_init(&f, 2);
	drv_mem_init(&mem, MEM_SIZE, NULL, 0);
	drv_init(&rx, &mem, RING, feat, 0x10000);
	drv_init(&tx, &mem, RING, feat, 0x20000);
	rx_posted = 0;
	fake_window(&f, 0, MEM_SIZE, mem.fd);
	fake_region(&f, 0, MEM_SIZE, 0, 0);
	publish_queue(0, &rx, base);
	publish_queue(1, &tx, base);
	s = fake_begin(&f);
	s->link_status = htole32(VHP_LINK_UP);
	s->link_epoch = htole64(1);
	s->features[0] = s->required_features[0] = htole64(feat);
	fake_end(&f);
	assert_int_equal(dp_vhostuser_open(path, server, NULL, &dp, &e), 0);
	a = agent_new(&f.port, dp);
	assert_non_null(a);
}

static void finish(void)
{
	agent_free(a);
	dp->ops->close(dp);
	kill_testpmd();
	drv_free(&rx);
	drv_free(&tx);
	drv_mem_free(&mem);
	fake_free(&f);
}

static void kick(unsigned int q)
{
	uint64_t one = 1;

	assert_int_equal(write(f.kick[1 + q], &one, sizeof(one)), sizeof(one));
}

static void post_rx(void)
{
	while (rx_posted < NBUF) {
		unsigned int slot = rx_posted++;
		struct drv_buf b = { .addr = RX_AT + slot * BUF_SIZE, .len = BUF_SIZE, .write = true };
		int id = drv_add(&rx, &b, 1, 0);

		assert_true(id >= 0);
		rx_slot[id] = (int)slot;
	}
	drv_publish(&rx);
	kick(0);
}

static void repost(uint16_t id)
{
	int slot = rx_slot[id];
	struct drv_buf b = { .addr = RX_AT + (uint64_t)slot * BUF_SIZE, .len = BUF_SIZE, .write = true };
	int n = drv_add(&rx, &b, 1, 0);

	assert_true(n >= 0);
	rx_slot[n] = slot;
	drv_publish(&rx);
}

static void reap_tx(void)
{
	uint16_t id;
	uint32_t len;

	while (drv_get_used(&tx, &id, &len))
		;
}

/* One frame there and back; false when it did not come within ms. */
static bool echo(uint32_t number, unsigned int ms)
{
	uint64_t end = now_ms() + ms;
	uint64_t at = TX_AT + (number % 64) * BUF_SIZE;
	struct drv_buf b = { .addr = at, .len = HDR + 100 };
	uint8_t *p = drv_ptr(&mem, at);

	memset(p, 0, HDR + 100);
	memcpy(p + HDR, "\x02\0\0\0\0\1\x02\0\0\0\0\2\x88\xb5", 14);
	memcpy(p + HDR + 14, &number, 4);
	reap_tx();
	if (drv_add(&tx, &b, 1, 0) < 0)
		return false;
	drv_publish(&tx);
	kick(1);
	while (now_ms() < end) {
		uint16_t id;
		uint32_t len, got;
		uint8_t *r;

		if (!drv_get_used(&rx, &id, &len)) {
			usleep(200);
			continue;
		}
		r = drv_ptr(&mem, RX_AT + (uint64_t)rx_slot[id] * BUF_SIZE);
		memcpy(&got, r + HDR + 14, 4);
		assert_int_equal(len, HDR + 100);
		assert_memory_equal(r + HDR, "\x02\0\0\0\0\2\x02\0\0\0\0\1\x88\xb5", 14);
		repost(id);
		if (got == number)
			return true;
	}
	return false;
}

/* testpmd's forwarding begins some time after its link is up. */
static void echo_some(uint32_t first, unsigned int n)
{
	uint64_t end = now_ms() + 20000;

	while (!echo(first, 200))
		assert_true(now_ms() < end);
	for (uint32_t i = 1; i < n; i++)
		assert_true(echo(first + i, 5000));
}

static uint32_t stop_queue(unsigned int q)
{
	struct sent c = { 0 };
	unsigned int before = fake_count(&f, VHP_CMD_QUEUE_STOPPED, NULL);

	fake_begin(&f)->queues[q].flags |= htole32(VHP_QUEUE_STOP);
	fake_end(&f);
	assert_int_equal(agent_reconcile(a), 0);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), before + 1);
	assert_int_equal(c.args[VHP_STOPPED_QUEUE], q);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], 0);
	return (uint32_t)c.args[VHP_STOPPED_BASE];
}

static void through(bool packed)
{
	uint32_t b0, b1;

	spawn_testpmd(false);
	start(packed, false);
	run_until(is_up);
	post_rx();
	echo_some(1, 400);
	/* stop, and go on exactly there */
	reap_tx();
	b0 = stop_queue(0);
	b1 = stop_queue(1);
	if (!packed) {
		/* all that was transmitted was used, and as many buffers taken as were filled */
		reap_tx();
		assert_int_equal(b1, drv_get16(&mem, tx.driver + 2));
		assert_int_equal(b1, drv_get16(&mem, tx.device + 2));
		assert_int_equal(b0, drv_get16(&mem, rx.device + 2));
	}
	publish_queue(0, &rx, b0);
	publish_queue(1, &tx, b1);
	run_until(is_up);
	echo_some(1000, 400);
	agent_stop(a);
	assert_int_equal(f.sent[f.nsent - 1].opcode, VHP_CMD_DETACH);
	finish();
}

static void test_split(void **state)
{
	if (!have_testpmd())
		skip();
	through(false);
}

static void test_packed(void **state)
{
	if (!have_testpmd())
		skip();
	through(true);
}

/* This time the agent listens; the back-end connects, is killed and comes back. */
static void test_backend_restarts(void **state)
{
	struct sent c;

	if (!have_testpmd())
		skip();
	start(false, true);
	assert_int_equal(agent_reconcile(a), 0);
	assert_false(a->attached);
	spawn_testpmd(true);
	run_until(is_up);
	post_rx();
	echo_some(1, 100);
	kill_testpmd();
	run_until(is_detached);
	assert_int_equal(fake_count(&f, VHP_CMD_QUEUE_STOPPED, &c), 2);
	assert_int_equal(c.args[VHP_STOPPED_FLAGS], VHP_STOPPED_F_NO_BASE);
	/* the daemon goes on at the used index */
	reap_tx();
	publish_queue(0, &rx, drv_get16(&mem, rx.device + 2));
	publish_queue(1, &tx, drv_get16(&mem, tx.device + 2));
	spawn_testpmd(true);
	run_until(is_up);
	echo_some(1000, 100);
	assert_int_equal(fake_count(&f, VHP_CMD_ATTACH, NULL), 2);
	finish();
}

static int setup(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/vhpagentXXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/s", dir);
	return 0;
}

static int teardown(void **state)
{
	kill_testpmd();
	unlink(path);
	rmdir(dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_split, setup, teardown),
		cmocka_unit_test_setup_teardown(test_packed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_backend_restarts, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
