/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A process that runs a copy engine is killed, and the next one goes on (engine/copyq_kept.c): numbered packets arrive
 * once each, and in their order. The engine runs in a child, for one round or until it is killed; driver and device
 * side live in the parent, which goes on with the engine where the child left it.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "rig.h"

#define F_MRG	VP_BIT(15)
#define BUF	0x400u /* of memory, for each descriptor */
#define ROUNDS	60
#define HDR	12u
#define HELD	256

static const enum vp_place_point points[] = {
	0,		     VP_POINT_COPY_TOOK, VP_POINT_COPY_ALL,    VP_POINT_COPY_NOTED, VP_POINT_COPY_COUNTS,
	VP_POINT_COPY_SHOWN, VP_POINT_COPY_GIVEN,	 VP_POINT_HALF,	     VP_POINT_PLACED,
};

static struct rig r;
static void *kept;
static uint64_t seed;
static struct vp_place line;

static bool anew;   /* the engine's next run is the first one of its process */
static bool asleep; /* the device side waits for a kick */

/* What the two ends have sent and got. */
static uint64_t sent, got, killed;
static unsigned next_buf, rx_out;
static struct { struct vp_chain c; struct vp_seg sg; } held[HELD]; /* of the device side */
static unsigned n_held;
static uint64_t id_addr[64]; /* of the driver's chains: where their first buffer lies */
static uint64_t want_part; /* mergeable: the buffer of its packet that comes next */
static unsigned part, parts_sent; /* of the packet that the device side is in the midst of; 0 buffers: there is none */

static unsigned up_to(unsigned n)
{
	return (unsigned)(drv_rand(&seed) >> 20) % n;
}

static uint64_t buf(void)
{
	return RIG_DATA + (uint64_t)(next_buf++ % 4096) * BUF;
}

/* The device side sleeps until it is kicked, unless there is something. */
static void device_sleeps(void)
{
	rig_raised(r.kick);
	asleep = !vp_vq_enable_kicks(&r.dev);
}

/* What those who sleep were told by an engine that ran to its end. */
static void check_notified(void)
{
	if (asleep && vp_vq_enable_kicks(&r.dev)) {
		assert_true(rig_raised(r.kick));
		asleep = false;
	}
	/* It does not know what the one before it told the driver. */
	if (anew)
		assert_true(rig_raised(r.call));
	anew = false;
}

/* The engine in a process of its own, that is killed when it passes that point for the nth time, or when it is done. */
static void run_and_die(enum vp_place_point p, unsigned n)
{
	pid_t pid = fork();
	int st;

	RIG_MUST(pid >= 0);
	if (!pid) {
		vp_place_crash_at = p;
		vp_place_crash_n = n;
		rig_run(&r);
		_exit(0);
	}
	RIG_MUST(waitpid(pid, &st, 0) == pid);
	RIG_MUST(WIFSIGNALED(st) ? WTERMSIG(st) == SIGKILL : !WEXITSTATUS(st));
	if (WIFSIGNALED(st))
		killed++;
	else
		check_notified();
}

/* What the next process knows: the ring's addresses, and what is kept. */
static void go_on(void)
{
	struct vp_vq_conf vc = drv_conf(&r.d, r.d.packed ? 0x80008000 : 0);
	struct vp_err e = { 0 };

	vp_copyq_free(r.b);
	r.b = NULL;
	RIG_MUST(!vp_vq_start(&r.rq.vq, &vc, &e));
	r.rq.vq.place = &line;
	RIG_MUST(!vp_copyq_recover(&r.b, &r.conf, &e));
	RIG_MUST(line.pos == vp_vq_pos(&r.rq.vq) || !r.d.packed);
	rig_raised(r.call);
	anew = true;
}

/* ---- transmit ---- */

static void driver_sends(unsigned n)
{
	struct drv_buf b[3];

	for (unsigned i = 0; i < n; i++) {
		unsigned kind = up_to(8), parts = kind < 5 ? 1 : kind - 4;
		uint32_t len = HDR + 60 + up_to(700);

		if (kind == 7) {
			b[0] = (struct drv_buf){ buf(), HDR + 3, false }; /* no packet: it is dropped */
			parts = 1;
		} else {
			b[0] = (struct drv_buf){ buf(), parts == 1 ? len : HDR + 20, false };
			for (unsigned k = 1; k < parts; k++)
				b[k] = (struct drv_buf){ buf(), 40 + up_to(300), false };
		}
		for (unsigned k = 0; k < parts; k++)
			memset(drv_ptr(&r.m, b[k].addr), 0, BUF);
		memcpy(drv_ptr(&r.m, b[0].addr) + HDR, &sent, sizeof(sent));
		if (drv_add(&r.d, b, parts, 0) < 0)
			break;
		sent += kind != 7;
	}
	drv_publish(&r.d);
}

static void driver_reclaims(void)
{
	uint32_t len;
	uint16_t id;

	/* It aborts when one comes back twice. */
	while (drv_get_used(&r.d, &id, &len))
		assert_int_equal(len, 0);
}

static void device_takes(unsigned max)
{
	unsigned n = vp_vq_fetch(&r.dev, &r.burst, VP_MIN(max, HELD - n_held));

	for (unsigned i = 0; i < n; i++) {
		held[n_held].c = r.burst.chain[i];
		held[n_held++].sg = r.burst.seg[r.burst.chain[i].seg];
	}
	vp_vq_advance(&r.dev, &r.burst, n);
	if (n)
		asleep = false;
}

static void device_gets(unsigned max)
{
	unsigned first = n_held;

	device_takes(max);
	for (; first < n_held; first++) {
		uint64_t seq;

		vp_copy_in(&seq, vp_gptr_add(held[first].sg.p, HDR), sizeof(seq));
		assert_int_equal(seq, got);
		got++;
	}
}

static void forget(unsigned at, unsigned n)
{
	n_held -= n;
	memmove(&held[at], &held[at + n], (n_held - at) * sizeof(held[0]));
}

static void device_returns(void)
{
	unsigned i = up_to(n_held);

	vp_vq_complete(&r.dev, &(struct vp_used){ .id = held[i].c.id, .slots = held[i].c.slots }, 1);
	forget(i, 1);
}

/* IN_ORDER: one used entry for the n oldest (virtio 1.2, 2.7.9 and 2.8.18). A step of the engine may end among them. */
static void device_returns_batch(unsigned n)
{
	struct vp_used u = { .id = held[n - 1].c.id };

	for (unsigned i = 0; i < n; i++)
		u.slots = (uint16_t)(u.slots + held[i].c.slots);
	if (r.dev.packed) {
		vp_vq_complete(&r.dev, &u, 1);
	} else {
		vp_st64(r.dev.device, 4 + 8 * (size_t)(r.dev.used_idx & (r.dev.size - 1)), u.id);
		r.dev.used_idx = (uint16_t)(r.dev.used_idx + n);
		vp_st16_release(r.dev.device, 2, r.dev.used_idx);
	}
	forget(0, n);
}

static void device_returns_some(bool in_order, unsigned n)
{
	while (n) {
		unsigned k = in_order ? 1 + up_to(n) : 1;

		if (in_order)
			device_returns_batch(k);
		else
			device_returns();
		n -= k;
	}
}

/* ---- receive ---- */

static void driver_offers(void)
{
	struct drv_buf b[3];
	int id;

	for (unsigned n = up_to(30); n; n--) {
		unsigned kind = up_to(12), parts = kind < 9 ? 1 : VP_MIN(kind - 8, 3u);

		for (unsigned k = 0; k < parts; k++)
			b[k] = (struct drv_buf){ buf(), parts == 1 ? BUF - 16 : k ? 400 : 64, true };
		/* One with nothing in it; among those of a packet it would cost the packet. */
		if (kind == 11 && !(r.rq.features & F_MRG)) {
			b[0].len = 0;
			parts = 1;
		}
		id = drv_add(&r.d, b, parts, 0);
		if (id < 0)
			break;
		id_addr[id] = b[0].addr;
	}
	drv_publish(&r.d);
}

/*
 * A packet of so many buffers, each the next one that the device side has, or any. It may stop in the midst of a
 * packet, and goes on with that one the next time.
 */
static void device_sends(unsigned bufs, bool in_order)
{
	if (!part) {
		parts_sent = 0;
		part = bufs;
	}
	while (n_held && parts_sent < part) {
		const unsigned k = parts_sent++, at = in_order ? 0 : up_to(n_held);
		const struct vp_chain *c = &held[at].c;
		const uint64_t what[2] = { sent, k };
		vp_gptr p = held[at].sg.p;

		if (!k) {
			for (unsigned i = 0; i < HDR; i++)
				vp_st8(p, i, 0);
			vp_st16(p, 10, (uint16_t)part);
		}
		vp_copy_out(vp_gptr_add(p, k ? 0 : HDR), what, sizeof(what));
		vp_vq_complete(&r.dev, &(struct vp_used){ .id = c->id, .slots = c->slots,
							   .len = (k ? 0 : HDR) + 60 + up_to(200) }, 1);
		forget(at, 1);
		if (!up_to(4))
			break;
	}
	if (parts_sent == part) {
		part = 0;
		sent++;
	}
}

static void driver_gets(void)
{
	uint64_t what[2];
	uint32_t len;
	uint16_t id;

	while (drv_get_used(&r.d, &id, &len)) {
		const uint8_t *p = drv_ptr(&r.m, id_addr[id]);

		if (!len)
			continue;
		if (!want_part)
			assert_true(p[10] >= 1);
		memcpy(what, p + (want_part ? 0 : HDR), sizeof(what));
		assert_int_equal(what[0], got);
		assert_int_equal(what[1], want_part);
		if (!want_part)
			rx_out = p[10];
		if (++want_part == rx_out) {
			want_part = 0;
			got++;
		}
	}
}

/* ---- both ---- */

static void up(enum rig_kind kind, uint16_t size, uint64_t drv, uint64_t dev, uint64_t area)
{
	struct rig_conf c = { kind, size, drv, dev, area, kept };

	memset(kept, 0, vp_copyq_kept_bytes());
	sent = got = n_held = want_part = next_buf = part = 0;
	anew = asleep = false;
	rig_new(&r, &c);
	r.rq.vq.place = &line;
	vp_place_reset(&line, &r.rq.vq);
}

static void tx(uint64_t drv, uint64_t dev)
{
	const bool order = dev & F_IN_ORDER;
	/* A step takes back VP_BURST at most: it may end in a batch. Without batches the area is too small for all. */
	const unsigned times = order ? 4 : 1;

	up(RIG_TX, (drv & dev & F_PACKED ? 24 : 32) * times, drv, dev, order ? 128 << 10 : 24 << 10);
	for (unsigned i = 0; i < ROUNDS; i++) {
		if (up_to(2))
			device_sleeps();
		driver_sends(up_to(40 * times));
		run_and_die(points[i % VP_ARRAY_SIZE(points)], 1 + up_to(3));
		/* Before anybody goes on: what the dead one showed is seen. */
		if (up_to(2)) {
			driver_reclaims();
			device_gets(up_to(40 * times));
		}
		if (up_to(2))
			driver_sends(up_to(10));
		go_on();
		driver_reclaims();
		device_gets(up_to(40 * times));
		device_returns_some(order, up_to(n_held + 1));
	}
	while (n_held || got < sent) {
		rig_run(&r);
		driver_reclaims();
		device_gets(64);
		device_returns_some(order, n_held);
	}
	assert_int_equal(r.d.num_free, r.d.size);
	rig_stop(&r);
	rig_free(&r);
}

static void rx(uint64_t drv, uint64_t dev)
{
	const bool order = (drv | dev) & F_IN_ORDER;
	const bool mrg = drv & F_MRG;

	/* Too small an area for all, but where a packet may wait for the room that its own first buffer keeps. */
	up(RIG_RX, drv & dev & F_PACKED ? 24 : 32, drv, dev, mrg ? 48 << 10 : 24 << 10);
	for (unsigned i = 0; i < ROUNDS; i++) {
		driver_offers();
		if (up_to(2))
			rig_run(&r);
		device_takes(up_to(40));
		for (unsigned k = up_to(n_held + 1); k && n_held; k--) {
			device_sends(mrg ? 1 + up_to(3) : 1, order);
		}
		run_and_die(points[i % VP_ARRAY_SIZE(points)], 1 + up_to(3));
		if (up_to(2))
			driver_gets();
		if (up_to(2))
			driver_offers();
		go_on();
		driver_gets();
	}
	for (unsigned k = 0; k < 100; k++) {
		rig_run(&r);
		driver_gets();
		driver_offers();
		device_takes(64);
		if (part || k < 80)
			device_sends(1, order);
	}
	assert_int_equal(part, 0);
	rig_run(&r);
	driver_gets();
	assert_int_equal(got, sent);
	assert_int_equal(want_part, 0);
	rig_stop(&r);
	rig_free(&r);
}

static void each_tx(uint64_t drv, uint64_t dev)
{
	seed = 88172645463325252ull;
	killed = 0;
	tx(drv, dev);
	assert_true(killed > 20);
}

static void each_rx(uint64_t drv, uint64_t dev)
{
	seed = 88172645463325252ull;
	for (unsigned i = 0; i < 2; i++) {
		killed = 0;
		rx(drv | (i ? F_MRG : 0), dev);
		assert_true(killed > 10);
	}
}

static void test_tx(void **state)
{
	rig_each(each_tx);
}

static void test_rx(void **state)
{
	rig_each(each_rx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tx),
		cmocka_unit_test(test_rx),
	};

	kept = mmap(NULL, vp_copyq_kept_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	RIG_MUST(kept != MAP_FAILED);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
