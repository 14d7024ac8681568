/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine for requests is a process that is killed at each point and at any moment, between a driver and a
 * device side that go on. Each request is given to the device side once and answered once, with the bytes that are its
 * own.
 */
#include <linux/virtio_net.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "request_rig.h"

#define KILLS 6 /* at each point */

static struct vp_rec kept; /* what does not change */
static void *keep, *account;
static uint64_t cookie, done;
static unsigned crashes;

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	RIG_MUST(p != MAP_FAILED);
	return p;
}

/* The engine, until it is killed. */
static _Noreturn void work(bool recover)
{
	struct vp_inflight_saved saved = { 0 };
	const struct vp_rec_in in = { .p = kept.p, .n = kept.n };
	struct vp_reqq_conf c = t.c;
	struct vp_err e = { 0 };
	int r = 0;

	if (recover) {
		c.saved = &saved;
		c.inflight = (struct vp_inflight){ .mem = account ? vp_gptr_from_map(account) : VP_GPTR_NULL };
		r = vp_reqq_recover(&t.q, &c, t.dev_features, t.kick, 0, &in, &e);
	}
	if (r) {
		fprintf(stderr, "%s\n", e.msg);
		_exit(4);
	}
	for (;;) {
		if (!vp_reqq_run(t.q, t.s))
			sched_yield();
		if (t.rq.vq.broken || t.q->shadow.broken) {
			fprintf(stderr, "broken: driver's %d, device side's %d\n", t.rq.vq.broken, t.q->shadow.broken);
			_exit(3);
		}
	}
}

static pid_t start(bool recover, unsigned at, unsigned nth)
{
	const pid_t parent = getpid(), pid = fork();

	RIG_MUST(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	vp_place_crash_at = at;
	vp_place_crash_n = nth;
	work(recover);
}

/* Neither end looks into its ring while it sleeps: whatever killed the engine, the next one wakes it. */
static bool driver_sleeps, device_sleeps;

static unsigned device_wakes(uint64_t *order)
{
	unsigned n = 0;

	if (device_sleeps && !rig_raised(t.kick))
		return 0;
	n = device_takes(order, 8);
	device_sleeps = !n && !vp_vq_enable_kicks(&t.dev);
	return n;
}

static unsigned driver_wakes(void)
{
	unsigned n;

	if (driver_sleeps && !rig_raised(t.call))
		return 0;
	n = answers();
	driver_sleeps = !n;
	return n;
}

/* A step of the driver, and of the device side, which answers out of order. */
static bool step(bool more)
{
	uint64_t order[64];
	unsigned n, moved = 0;

	/* What the device side has, it has once. */
	n = device_wakes(order);
	for (unsigned i = 0; i < n; i++) {
		unsigned same = 0;

		for (unsigned k = 0; k < n_holds; k++)
			same += holds[k].id == job_by_cookie(order[i]);
		assert_int_equal(same, 1);
	}
	moved += n;
	while (n_holds > (more ? (unsigned)rand() % 5 : 0)) {
		const unsigned k = (unsigned)rand() % n_holds;
		const uint32_t in_len = holds[k].in_len;

		device_returns(k, in_len, in_len);
		moved++;
	}
	n = driver_wakes();
	done += n;
	moved += n;
	for (unsigned k = 0; more && k < 3; k++) {
		unsigned nout = 1 + (unsigned)rand() % 3, nin = (unsigned)rand() % 4;

		if (ask(cookie, nout, nin, 64 + (uint32_t)rand() % 3000, false) < 0)
			break;
		cookie++;
		moved++;
	}
	return moved;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Until that process is killed, by itself or by us after so long. */
static void until_killed(pid_t pid, double after)
{
	const double end = now() + 20, kill_at = now() + after;
	bool killed = false;
	int status;

	while (waitpid(pid, &status, WNOHANG) != pid) {
		if (!step(true))
			sched_yield();
		if (after > 0 && !killed && now() > kill_at) {
			kill(pid, SIGKILL);
			killed = true;
		}
		RIG_MUST(now() < end);
	}
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	crashes++;
}

/* A process that goes on, and is asked for nothing new, answers all. */
static void all_comes_back(void)
{
	const pid_t pid = start(true, 0, 0);
	const double end = now() + 20;

	while (done < cookie && now() < end)
		if (!step(false))
			sched_yield();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(done, cookie);
}

/* Requests that the account says are open. */
static unsigned marked(void)
{
	const bool packed = t.rq.vq.packed;
	unsigned n = 0;

	for (unsigned i = 0; i < t.rq.vq.size; i++)
		n += ((uint8_t *)account)[(packed ? 32 : 16) + (packed ? 32 : 16) * i] == 1;
	return n;
}

/* The device side goes, and the next one gets what is open, from a process that is killed at that, too. */
static void another_device(void)
{
	const struct vp_rec_in in = { .p = kept.p, .n = kept.n };
	struct vp_inflight_saved saved = { 0 };
	struct vp_reqq_conf c = t.c;
	struct vp_err e = { 0 };

	c.saved = &saved;
	c.inflight.mem = account ? vp_gptr_from_map(account) : VP_GPTR_NULL;
	vp_reqq_free(t.q);
	RIG_MUST(!vp_reqq_recover(&t.q, &c, t.dev_features, t.kick, 0, &in, &e));
	if (account)
		assert_int_equal(marked(), vp_reqq_outstanding(t.q));
	vp_reqq_end(t.q, true, NULL);
	done += answers();
	n_holds = 0;
	device_sleeps = false;
	serve();
	until_killed(start(false, VP_POINT_TAKEN, 1 + (unsigned)rand() % 3), 0);
	vp_inflight_saved_free(&saved);
}

static void kills(uint64_t drv, uint64_t dev, bool accounts)
{
	struct vp_inflight_saved saved = { 0 };

	setup(16, F_VERSION_1 | drv, F_VERSION_1 | dev, 256 << 10);
	vp_reqq_free(t.q);
	account = accounts ? shared(16 << 10) : NULL;
	if (accounts)
		assert_int_equal(vp_inflight_open(&t.c.inflight, &saved, vp_gptr_from_map(account), &t.rq.vq), 0);
	keep = t.c.keep = shared(vp_reqq_keep_bytes());
	make_queue(&saved);
	serve();
	n_holds = 0;
	cookie = done = 0;
	driver_sleeps = device_sleeps = false;
	vp_reqq_save_kept(t.q, &kept);
	assert_false(kept.failed);
	until_killed(start(false, 0, 0), 0.01);
	for (unsigned at = VP_POINT_TAKEN; at <= VP_POINT_FREED; at++)
		for (unsigned k = 0; k < KILLS; k++) {
			until_killed(start(true, at, 1 + (unsigned)rand() % 12), 0);
			if (k % 3 == 0)
				another_device();
			if (k % 3 == 2)
				all_comes_back();
		}
	for (unsigned k = 0; k < 2 * KILLS; k++)
		until_killed(start(true, 0, 0), (double)(rand() % 20 + 1) * 1e-3);
	all_comes_back();
	if (accounts) {
		struct vp_inflight_saved left = { 0 };
		struct vp_inflight f;

		vp_inflight_saved_free(&saved);
		/* As another program reads it. */
		t.rq.vq.used_idx = drv & F_PACKED ? t.rq.vq.used_idx : vp_ld16(t.rq.vq.device, 2);
		assert_int_equal(vp_inflight_open(&f, &left, vp_gptr_from_map(account), &t.rq.vq), 0);
		assert_int_equal(left.n, 0);
		vp_inflight_saved_free(&left);
		munmap(account, 16 << 10);
	}
	vp_rec_free(&kept);
	kept = (struct vp_rec){ 0 };
	teardown();
	munmap(keep, vp_reqq_keep_bytes());
}

static void test_kills(void **state)
{
	(void)state;
	srand(1);
	for (unsigned i = 0; i < 16; i++)
		kills(i & 1 ? F_PACKED : 0, (i & 2 ? F_PACKED : 0) | (i & 8 ? F_EVENT_IDX : 0), i & 4);
	print_message("%u crashes\n", crashes);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_kills) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
