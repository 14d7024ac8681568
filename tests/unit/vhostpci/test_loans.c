/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packets and buffers on loan from libvhostpci: their memory stays, whatever becomes of their region, queue, ring, link
 * and port, until the program has given them back; and it goes then. For packets
 * that were received the driver is notified at the next call, whichever it is, and no later than their queue stops.
 */
#include "scripted.h"

#define RING_GPA 0x200000u /* window 5, stays */
#define DATA_GPA 0x400000u /* window 6, goes */

static uint8_t *ring, *data; /* the driver VM's view of both */
static uint32_t ring_size = 16;

static void two_regions(bool with_data)
{
	begin();
	d.c->state.link_status = VHP_LINK_UP;
	d.c->state.link_reason = VHP_REASON_NONE;
	d.c->state.mode = VHP_MODE_FAST;
	d.c->state.nwindows = d.c->state.nregions = with_data ? 2 : 1;
	for (unsigned i = 0; i < 2; i++) {
		d.c->state.windows[i] = (struct vhp_abi_window){ .size = 0x10000,
								 .locator = 5 + i,
								 .serial = 1 + i,
								 .kind = VHP_WINDOW_FD,
								 .flags = VHP_WINDOW_READY };
		d.c->state.regions[i] = (struct vhp_abi_region){ .addr = i ? DATA_GPA : RING_GPA,
								 .size = 0x10000,
								 .window = i,
								 .flags = VHP_REGION_READ | VHP_REGION_WRITE };
	}
	d.c->state.regions_generation++;
	d.c->state.features[0] = 1ull << 32;
	d.c->state.nqueues = 2;
	commit();
}

/* One buffer of 100 bytes, offered in each of both rings. */
static void offer(unsigned q, uint16_t flags)
{
	uint8_t *desc = ring + 0x8000 * q, *avail = desc + 0x1000;

	*(uint64_t *)desc = DATA_GPA + 0x1000 * q;
	*(uint32_t *)(desc + 8) = 100;
	*(uint16_t *)(desc + 12) = flags;
	*(uint16_t *)(avail + 4) = 0;
	*(uint16_t *)(avail + 2) = 1;
	memset(data + 0x1000 * q, 'a' + (int)q, 100);
}

static uint16_t used_idx(unsigned q)
{
	return *(uint16_t *)(ring + 0x8000 * q + 0x2002);
}

static void ring_flags(unsigned q, uint32_t flags)
{
	begin();
	d.c->state.queues[q] = (struct vhp_abi_queue){
		.desc_addr = RING_GPA + 0x8000 * q,
		.avail_addr = RING_GPA + 0x8000 * q + 0x1000,
		.used_addr = RING_GPA + 0x8000 * q + 0x2000,
		.size = ring_size,
		.flags = flags,
		.run = 1,
		.kick_signal = 1 + q,
		.doorbell = 1 + q,
	};
	commit();
}

static bool is_mapped(const void *p)
{
	unsigned char v;

	return !mincore((void *)((uintptr_t)p & ~4095ul), 4096, &v);
}

static int loan_fd[2];
static struct vhp_loan *loan[2];
static uint8_t *piece[2];

/* A port whose queues have a buffer each. */
static struct vhp_port *offered(void)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p;

	daemon_start(WELL);
	for (unsigned i = 0; i < 2; i++) {
		loan_fd[i] = memfd_create("window", 0);
		assert_int_equal(ftruncate(loan_fd[i], 0x10000), 0);
		loan[i] = vhp_loan_new();
		assert_non_null(loan[i]);
	}
	ring = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, loan_fd[0], 0);
	data = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, loan_fd[1], 0);
	assert_true(ring != MAP_FAILED && data != MAP_FAILED);
	p = opened();
	for (unsigned i = 0; i < 2; i++)
		say(VHP_LOCAL_WINDOW, 5 + i, 0, 0x10000, 0, 0, &loan_fd[i], 1);
	offer(0, 2);
	offer(1, 0);
	two_regions(true);
	ring_flags(0, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	ring_flags(1, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	assert_int_equal(vhp_update(p, &e), 1);
	return p;
}

/* The same, with a packet on loan from each. */
static struct vhp_port *lent(void)
{
	struct vhp_port *p = offered();

	assert_int_equal(vhp_reserve(p, 0, loan[0], 4), 1);
	assert_int_equal(vhp_borrow(p, 0, loan[1], 4), 1);
	for (unsigned i = 0; i < 2; i++) {
		unsigned n;

		piece[i] = vhp_loan_segs(loan[i], 0, &n)->data;
		assert_int_equal(n, 1);
	}
	return p;
}

/* Both pieces are what they were, and stay the driver VM's memory. */
static void still_there(void)
{
	assert_true(is_mapped(piece[0]) && is_mapped(piece[1]));
	assert_int_equal(piece[1][99], 'b');
	piece[0][99] = 'x';
	assert_int_equal(data[99], 'x');
}

static void offered_end(void)
{
	munmap(ring, 0x10000);
	munmap(data, 0x10000);
	for (unsigned i = 0; i < 2; i++) {
		vhp_loan_free(loan[i]);
		close(loan_fd[i]);
	}
	daemon_end();
}

static void lent_end(void)
{
	offered_end();
	assert_true(!is_mapped(piece[0]) && !is_mapped(piece[1]));
}

/* The region of a loan goes, the link and the queues stay: given back as ever, and then nothing is mapped any more. */
static void test_loan_outlives_its_region(void **state)
{
	const uint32_t len = 50;
	struct vhp_error e = { 0 };
	struct vhp_port *p = lent();

	two_regions(false);
	assert_int_equal(vhp_update(p, &e), 1);
	assert_int_equal(d.opcode, VHP_CMD_SYNC);
	say(VHP_LOCAL_WINDOW_GONE, 6, 0, 0, 0, 0, NULL, 0);
	assert_int_equal(vhp_update(p, &e), 1);
	still_there();
	/* Another change: what it holds is what it was made under. */
	two_regions(false);
	assert_int_equal(vhp_update(p, &e), 1);
	still_there();
	assert_int_equal(vhp_borrow(p, 0, loan[1], 1), -EBUSY);
	assert_int_equal(vhp_return(p, loan[1]), 0);
	assert_int_equal(vhp_commit(p, loan[0], &len), 0);
	assert_true(used_idx(0) == 1 && used_idx(1) == 1);
	assert_true(!is_mapped(piece[0]) && !is_mapped(piece[1]));
	vhp_close(p);
	lent_end();
}

/* The queue is stopped first, then its memory goes; the program gives the loan back, or uses it again. */
static void test_loan_outlives_its_queue(void **state)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p = lent();

	for (unsigned q = 0; q < 2; q++)
		ring_flags(q, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED | VHP_QUEUE_STOP);
	assert_int_equal(vhp_update(p, &e), 1);
	assert_true(used_idx(0) == 1 && used_idx(1) == 1);
	ring_flags(0, 0);
	ring_flags(1, 0);
	two_regions(false);
	assert_int_equal(vhp_update(p, &e), 1);
	still_there();
	assert_int_equal(vhp_return(p, loan[1]), 0);
	assert_true(is_mapped(piece[0])); /* the other loan holds the same mapping */
	begin();
	d.c->state.queues[0] = (struct vhp_abi_queue){
		.desc_addr = RING_GPA,
		.avail_addr = RING_GPA + 0x1000,
		.used_addr = RING_GPA + 0x2000,
		.size = 16,
		.base = 1,
		.flags = VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED,
		.run = 2,
		.kick_signal = 1,
		.doorbell = 1,
	};
	commit();
	assert_int_equal(vhp_update(p, &e), 1);
	assert_int_equal(vhp_reserve(p, 0, loan[0], 1), 0);
	assert_false(is_mapped(piece[0]));
	vhp_close(p);
	lent_end();
}

/* Everything goes: the link, then the port, then the loans. */
static void test_loan_outlives_its_port(void **state)
{
	struct vhp_error e = { 0 };
	struct vhp_port *p = lent();

	begin();
	d.c->state.link_status = VHP_LINK_DOWN;
	d.c->state.link_reason = VHP_REASON_NO_DRIVER;
	d.c->state.nregions = d.c->state.nwindows = d.c->state.nqueues = 0;
	d.c->state.regions_generation++;
	commit();
	assert_int_equal(vhp_update(p, &e), 0);
	still_there();
	vhp_close(p);
	still_there();
	lent_end();
}

/* The memory of the rings themselves goes, and the daemon does not answer: nothing of them is touched. */
static void test_loan_outlives_its_ring(void **state)
{
	const uint32_t len = 50;
	struct vhp_error e = { 0 };
	struct vhp_port *p = lent();

	begin();
	d.c->state.regions[0] = d.c->state.regions[1];
	d.c->state.nregions = 1;
	d.c->state.regions_generation++;
	commit();
	d.silent = true;
	assert_true(vhp_update(p, &e) < 0);
	still_there();
	assert_int_equal(vhp_return(p, loan[1]), 0);
	assert_int_equal(vhp_commit(p, loan[0], &len), 0);
	assert_true(used_idx(0) == 0 && used_idx(1) == 0);
	d.silent = false;
	vhp_close(p);
	lent_end();
}

/* What a queue's driver was notified of since the last time. */
static uint64_t calls(unsigned q)
{
	uint64_t n;

	return read(d.bell[1 + q], &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* The program is one that answers: it sends its nth packet. */
static void answer(struct vhp_port *p, unsigned n)
{
	const struct vhp_packet pkt = { .data = (uint8_t[64]){ 0 }, .len = 64 };

	*(uint16_t *)(ring + 0x1002) = (uint16_t)n;
	assert_int_equal(vhp_send(p, 0, &pkt, 1), 1);
}

/*
 * One packet was received, by a program that answers. Its buffer is given back, and the driver, which wants to know,
 * does not know yet.
 */
static struct vhp_port *received(void)
{
	struct vhp_port *p = offered();
	struct vhp_packet pkt = { .data = (uint8_t[128]){ 0 }, .room = 128 };

	answer(p, 1);
	memset(data + 0x1000, 0, 12); /* no offloads */
	assert_int_equal(vhp_recv(p, 0, &pkt, 1), 1);
	assert_int_equal(pkt.len, 88);
	assert_int_equal(used_idx(1), 1);
	assert_int_equal(calls(1), 0);
	return p;
}

enum next { RECV, ARM, BORROW, FORWARD, DISABLE, STOP, CLOSE, NEXTS };

static void test_received_notifies_late(void **state)
{
	for (enum next next = RECV; next < NEXTS; next++) {
		struct vhp_port *p = received();
		struct vhp_packet pkt = { .data = (uint8_t[128]){ 0 }, .room = 128 };
		struct vhp_mover *m = vhp_mover_new();
		struct vhp_error e = { 0 };

		switch (next) {
		case RECV:
			assert_int_equal(vhp_recv(p, 0, &pkt, 1), 0);
			break;
		case ARM:
			assert_false(vhp_recv_arm(p, 0));
			break;
		case BORROW:
			assert_int_equal(vhp_borrow(p, 0, loan[1], 1), 0);
			break;
		case FORWARD:
			assert_int_equal(vhp_forward(p, 0, p, 0, m), 0);
			break;
		case DISABLE:
			/* No call looks at it until the driver enables it again. */
			ring_flags(1, VHP_QUEUE_STARTED);
			assert_int_equal(vhp_update(p, &e), 1);
			break;
		case STOP:
			ring_flags(1, VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED | VHP_QUEUE_STOP);
			assert_int_equal(vhp_update(p, &e), 1);
			break;
		default:
			vhp_close(p);
			p = NULL;
		}
		assert_int_equal(calls(1), 1);
		/* Once: nothing is left for the end. */
		if (p)
			vhp_close(p);
		assert_int_equal(calls(1), 0);
		assert_int_equal(used_idx(1), 1);
		vhp_mover_free(m);
		offered_end();
	}
}

/* Packets that come without a pause: a notification is never further away than the next of them. */
static void test_received_notifies_for_two(void **state)
{
	struct vhp_port *p = received();
	struct vhp_packet pkt = { .data = (uint8_t[128]){ 0 }, .room = 128 };

	for (unsigned i = 2; i < 6; i++) {
		answer(p, i);
		*(uint16_t *)(ring + 0x8000 + 0x1002) = (uint16_t)i;
		assert_int_equal(vhp_recv(p, 0, &pkt, 1), 1);
		assert_int_equal(used_idx(1), i);
		assert_int_equal(calls(1), i % 2 ? 0 : 1);
	}
	/* One that does not answer any more has nothing that could come first. */
	for (unsigned i = 6; i < 9; i++) {
		*(uint16_t *)(ring + 0x8000 + 0x1002) = (uint16_t)i;
		assert_int_equal(vhp_recv(p, 0, &pkt, 1), 1);
		assert_int_equal(calls(1), 1);
	}
	vhp_close(p);
	offered_end();
}

/* Many at once, or most of a ring: at once. */
static void test_received_many_notify(void **state)
{
	static uint8_t room[8][128];
	static const struct { uint32_t size; unsigned n, late; } t[] = {
		{ 16, 4, 1 }, { 16, 5, 0 }, { 8, 4, 1 }, { 4, 2, 1 }, { 4, 3, 0 }, { 2, 2, 0 }, { 1, 1, 0 },
	};

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct vhp_packet pkt[8];
		struct vhp_port *p;

		ring_size = t[i].size;
		p = offered();
		answer(p, 1);
		memset(data + 0x1000, 0, 12);
		*(uint16_t *)(ring + 0x8000 + 0x1002) = (uint16_t)t[i].n;
		for (unsigned k = 0; k < 8; k++)
			pkt[k] = (struct vhp_packet){ .data = room[k], .room = sizeof(room[k]) };
		assert_int_equal(vhp_recv(p, 0, pkt, 8), t[i].n);
		assert_int_equal(calls(1), !t[i].late);
		vhp_close(p);
		assert_int_equal(calls(1), t[i].late);
		offered_end();
	}
	ring_size = 16;
}

/* Its ring is gone: nothing of it is touched, and nobody is notified. */
static void test_received_outlives_its_ring(void **state)
{
	struct vhp_port *p = received();
	struct vhp_error e = { 0 };

	begin();
	d.c->state.regions[0] = d.c->state.regions[1];
	d.c->state.nregions = 1;
	d.c->state.regions_generation++;
	commit();
	d.silent = true;
	assert_true(vhp_update(p, &e) < 0);
	d.silent = false;
	vhp_close(p);
	assert_int_equal(calls(1), 0);
	offered_end();
}

int main(void)
{
	const struct CMUnitTest t[] = {
		cmocka_unit_test(test_loan_outlives_its_region), cmocka_unit_test(test_loan_outlives_its_queue),
		cmocka_unit_test(test_loan_outlives_its_port), cmocka_unit_test(test_loan_outlives_its_ring),
		cmocka_unit_test(test_received_notifies_late), cmocka_unit_test(test_received_notifies_for_two),
		cmocka_unit_test(test_received_many_notify), cmocka_unit_test(test_received_outlives_its_ring),
	};

	return cmocka_run_group_tests(t, NULL, NULL);
}
