/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hostile VMMs and device VMs of a whole daemon (session.h): the input picks a link and is then a list of actions. Each
 * fd that is sent is kept: the daemon closes its copies while the peer still has the file. Rings are started, stopped
 * and moved while they run, their fds replaced, a vIOMMU answers late, wrongly or not at all, guest memory is full of
 * what is dear to walk.
 *
 * Input: link, set-up of each side, then actions: one byte what (bit 7: which peer), then its operands (missing ones
 * read as 0). act() says what they are.
 */
#include <fcntl.h>
#include <linux/vhost_types.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "session_peer.h"
#include "vhostuser/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ACTIONS    22u

static int nullfd;
static const uint8_t *in;
static size_t left;

static uint8_t byte(void)
{
	if (!left)
		return 0;
	left--;
	return *in++;
}

static uint16_t two(void)
{
	uint16_t v = byte();

	return (uint16_t)(v | byte() << 8);
}

/*
 * ---- actions
 * ----------------------------------------------------------------------------------------------------------------
 */

static int some_fd(struct peer *p, unsigned what)
{
	switch (what % 6) {
	case 0: return event();
	case 1: return kept[what / 6 % FDS];
	case 2: return p->memfd;
	case 3: return nullfd;
	case 4: return p->kick[what / 6 % RINGS];
	default: return -1;
	}
}

static void raw_message(struct peer *p)
{
	uint8_t b[300];
	uint32_t id = byte() % 48, n = byte();
	int fd = some_fd(p, byte());

	for (unsigned i = 0; i < n; i++)
		b[i] = byte();
	say(p, id, b, n, fd);
}

static void iotlb(struct peer *p, unsigned type, unsigned page, unsigned pages, unsigned perm)
{
	struct vhost_iotlb_msg m = {
		.iova = GPA + (uint64_t)page * 4096,
		.size = (uint64_t)pages * 4096,
		.uaddr = UVA + (uint64_t)page * 4096,
		.perm = perm & 3,
		.type = type,
	};

	say(p, VU_IOTLB_MSG, &m, sizeof(m), -1);
}

/* Entries with room between them, then a hole in each. */
static void iotlb_storm(struct peer *p, unsigned n, unsigned holes)
{
	for (unsigned i = 0; i < n; i++) {
		iotlb(p, VHOST_IOTLB_UPDATE, 4 * i % 1000, 3, 3);
		if (i % 16 == 15)
			rig_run(8), listen_to(p->sock);
	}
	for (unsigned i = 0; i < holes; i++) {
		iotlb(p, VHOST_IOTLB_INVALIDATE, 4 * i % 1000 + 1, 1, 0);
		if (i % 16 == 15)
			rig_run(8), listen_to(p->sock);
	}
}

/* The device VM writes something into its port: shadow rings, the state page, the pool. */
static void scribble(struct peer *p)
{
	uint32_t at = two() * 16u + byte() % 16, n = 1u << byte() % 3;
	uint64_t v = two();

	if (p->ctrl && at + 8 <= p->ctrl_bytes)
		memcpy(p->ctrl + (at & ~(n - 1)), &v, n);
}

static void truncate_memory(struct peer *p, unsigned to)
{
	if (ftruncate(p->memfd, to * 4096))
		return;
	for (unsigned q = 0; q < 2; q++)
		raise_fd(p->kick[q]);
	rig_run(16);
	if (ftruncate(p->memfd, MEM_BYTES))
		rig_fault("truncate");
	write_memory(p);
}

static void act(struct peer *p, unsigned what)
{
	unsigned q = byte() % RINGS, a, b;

	switch (what % ACTIONS) {
	case 0:
		come(p, byte());
		break;
	case 1:
		leave(p);
		break;
	case 2:
		raw_message(p);
		break;
	case 3:
		p->kick[q] = some_fd(p, byte());
		say_u64(p, VU_SET_VRING_KICK, q | (p->kick[q] < 0 ? VU_VRING_NOFD : 0), p->kick[q]);
		break;
	case 4:
		p->call[q] = some_fd(p, byte());
		say_u64(p, VU_SET_VRING_CALL, q | (p->call[q] < 0 ? VU_VRING_NOFD : 0), p->call[q]);
		break;
	case 5:
		raise_fd(kept[byte() % FDS]);
		break;
	case 6:
		new_channel(p);
		break;
	case 7: {
		uint8_t junk[64] = { byte() };

		send_fds(p->chan[byte() % CHANNELS], junk, byte() % 64, NULL, 0);
		break;
	}
	case 8:
		serve_channel(p, byte());
		break;
	case 9:
		a = byte();
		b = byte();
		iotlb(p, 1 + q, a, b, byte());
		break;
	case 10:
		a = byte();
		iotlb_storm(p, a, byte());
		break;
	case 11:
		a = byte();
		b = byte();
		offer(p, q, byte() % (RING_SIZE + 2), a, b);
		break;
	case 12:
		say_state(p, VU_GET_VRING_BASE, q, 0);
		break;
	case 13:
		start_ring(p, q);
		break;
	case 14:
		a = byte();
		ring_addr(p, q, a);
		break;
	case 15:
		add_region(p, q & 1 ? VU_REM_MEM_REG : VU_ADD_MEM_REG, byte() % 4);
		break;
	case 16:
		mem_table(p, q);
		break;
	case 17:
		a = byte() % 6;
		b = byte();
		command(p, a, b, byte());
		break;
	case 18:
		if (q)
			scribble(p);
		else
			truncate_memory(p, byte());
		break;
	case 19:
		rig_sleep(1000u << byte() % 14);
		break;
	case 20:
		qmp_event(byte());
		break;
	case 21:
		start_big_ring(p);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned setup[2];

	if (!peers[0].mem) {
		for (unsigned i = 0; i < FDS; i++)
			kept[i] = -1;
		nullfd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		for (unsigned i = 0; i < 2; i++) {
			struct peer *p = &peers[i];

			make_memory(p);
			p->sock = -1;
			memset(p->chan, 0xff, sizeof(p->chan));
			leave(p);
		}
		rig_start();
	}
	rig_trace(data, size);
	in = data;
	left = size;
	lk = &rig_links[byte() % RIG_LINKS];
	peers[1].device = true;
	peers[0].vu = true;
	peers[1].vu = lk->att == RIG_NONE || lk->att == RIG_SHMEM;
	for (unsigned i = 0; i < 2; i++)
		choose_memory(&peers[i]);
	rig_input_begin();
	for (unsigned i = 0; i < 2; i++)
		setup[i] = byte();
	for (unsigned i = 0; i < 2; i++)
		come(&peers[i], setup[i]);
	if (!peers[1].vu || lk->att == RIG_SHMEM)
		command(&peers[1], 1, 0, 0);
	for (unsigned i = 0; i < 4; i++) {
		rig_run(16);
		take_port(&peers[1]);
		qmp_serve();
	}
	for (unsigned n = 0; left && n < 40; n++) {
		unsigned what = byte();

		act(&peers[what >> 7], what & 127);
		rig_run(12);
		for (unsigned i = 0; i < 2; i++) {
			if (peers[i].vu)
				listen_to(peers[i].sock);
			else
				take_port(&peers[i]);
		}
		qmp_serve();
	}
	if (getenv("VP_FUZZ_LOG"))
		rig_show(lk);
	leave(&peers[0]);
	leave(&peers[1]);
	end_qmp();
	rig_peers_gone();
	for (unsigned i = 0; i < FDS; i++)
		vp_close(&kept[i]);
	n_kept = 0;
	rig_run(16);
	rig_input_end();
	return 0;
}
