/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hostile VMMs and device VMs of a whole daemon (session.h): the input picks a link and is then a list of actions. Each fd that is
 * sent is kept: the daemon closes its copies while the peer still has the file. Rings are
 * started, stopped and moved while they run, their fds replaced, a vIOMMU answers late, wrongly or not at all, guest
 * memory is full of what is dear to walk.
 *
 * Input: link, set-up of each side, then actions: one byte what (bit 7: which peer), then its operands (missing ones read as 0).
 * ACTIONS below says what they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vhost_types.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "session.h"
#include "vhost-pci/abi.h"
#include "vhost-pci/local.h"
#include "vhostuser/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEM_BYTES  (4u << 20)
#define GPA        0x100000000u
#define UVA        0x7f5500000000u
#define RINGS      4u
#define RING_SIZE  32u
#define TABLE      0x100000u          /* 32,768 empty entries */
#define TSO        0x200000u          /* a packet of 32,000 bytes with an offload header */
#define BIG        0x280000u          /* a receive ring of 32,768 small buffers */
#define BIG_SIZE   32768u
#define RINGS_AT   0x1000u            /* each has 0x1000 */
#define FDS        32u
#define CHANNELS   8u
#define ACTIONS    22u

struct peer {
	bool     device;                /* which end of the link */
	bool     vu;                    /* speaks vhost-user */
	int      sock, chan[CHANNELS];  /* chan: our ends of request channels */
	unsigned n_chan;
	int      kick[RINGS], call[RINGS];
	uint16_t avail[RINGS];
	bool     packed, iommu, reply;
	int      memfds[2], memfd;      /* one that can shrink, one that cannot */
	uint8_t *mems[2], *mem;
	uint8_t *ctrl;                  /* a port's control block */
	size_t   ctrl_bytes;
	int      bell[RINGS + 1];       /* doorbells that the daemon handed out */
	unsigned n_bell;
	uint32_t seq;
};

static const uint8_t *in;
static size_t left;
static const struct rig_link *lk;
static struct peer peers[2];
static int kept[FDS];
static unsigned n_kept;
static int nullfd;

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

/* Ours to the end, or until 32 later ones. */
static int keep(int fd)
{
	int *at = &kept[n_kept++ % FDS];

	if (fd < 0)
		rig_fault("no fd");
	vp_close(at);
	*at = fd;
	return fd;
}

static int event(void)
{
	return keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

/* ---- messages ------------------------------------------------------------------------------------------------------- */

static void send_fds(int sock, const void *buf, size_t len, const int *fds, unsigned n)
{
	char ctl[CMSG_SPACE(16 * sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n && len) {
		struct cmsghdr *cm;

		mh.msg_control = ctl;
		mh.msg_controllen = CMSG_SPACE(n * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, n * sizeof(int));
	}
	(void)!sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* What came; up to 32 fds with it, of which the first max are the caller's. */
static ssize_t recv_fds(int sock, void *buf, size_t len, int *fds, unsigned max, unsigned *n)
{
	char ctl[CMSG_SPACE(64 * sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { buf, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl) };
	ssize_t got = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*n = 0;
	for (struct cmsghdr *cm = got > 0 ? CMSG_FIRSTHDR(&mh) : NULL; cm; cm = CMSG_NXTHDR(&mh, cm)) {
		unsigned k = (unsigned)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		for (unsigned i = 0; i < k; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
			if (*n < max)
				fds[(*n)++] = fd;
			else
				close(fd);
		}
	}
	return got;
}

static void say(struct peer *p, uint32_t id, const void *payload, uint32_t size, int fd)
{
	struct { struct vu_hdr h; uint8_t b[600]; } m = { .h = { id, 1 | (p->reply ? VU_FLAG_NEED_REPLY : 0), size } };

	if (p->sock < 0 || !p->vu)
		return;
	if (size)
		memcpy(m.b, payload, size);
	send_fds(p->sock, &m, sizeof(m.h) + size, &fd, fd >= 0);
}

static void say_u64(struct peer *p, uint32_t id, uint64_t v, int fd)
{
	say(p, id, &v, sizeof(v), fd);
}

static void say_state(struct peer *p, uint32_t id, uint32_t q, uint32_t num)
{
	struct vhost_vring_state s = { q, num };

	say(p, id, &s, sizeof(s), -1);
}

/* Answers are not looked at. */
static void listen_to(int sock)
{
	uint8_t buf[4096];
	int fds[1];
	unsigned n;

	while (sock >= 0 && recv_fds(sock, buf, sizeof(buf), fds, 0, &n) > 0)
		;
}

/* ---- a VMM ------------------------------------------------------------------------------------------------------------ */

static void write_table(struct peer *p)
{
	struct vring_desc *t = (struct vring_desc *)(p->mem + TABLE);

	for (unsigned i = 0; i < 32768; i++)
		t[i] = (struct vring_desc){ GPA, 0, i < 32767 ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1) };
}

static void write_tso(struct peer *p)
{
	static const uint8_t head[] = {
		1, 1, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0,  /* virtio_net_hdr: TSO, mss 1 */
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0x7d, 0x28, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x50, 0x10, 3, 0xe8,
	};

	memcpy(p->mem + TSO, head, sizeof(head));
}

static void write_big(struct peer *p)
{
	struct vring_desc *d = (struct vring_desc *)(p->mem + BIG);
	uint16_t *avail = (uint16_t *)(d + BIG_SIZE);

	for (unsigned i = 0; i < BIG_SIZE; i++) {
		d[i] = (struct vring_desc){ GPA + 0x80000, 128, VRING_DESC_F_WRITE, 0 };
		avail[2 + i] = (uint16_t)i;
	}
}

static void write_memory(struct peer *p)
{
	write_table(p);
	write_tso(p);
	write_big(p);
}

static void make_memory(struct peer *p)
{
	for (unsigned i = 0; i < 2; i++) {
		int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

		if (fd < 0 || ftruncate(fd, MEM_BYTES) || (i && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)))
			rig_fault("memory");
		p->memfds[i] = fd;
		p->mems[i] = p->mem = mmap(NULL, MEM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p->mem == MAP_FAILED)
			rig_fault("memory");
		write_memory(p);
	}
}

/* What a device VM's VMM is given must not shrink. */
static void choose_memory(struct peer *p)
{
	bool sealed = lk->mode == RIG_FAST && lk->att != RIG_LOCAL;

	p->memfd = p->memfds[sealed];
	p->mem = p->mems[sealed];
}

static void add_region(struct peer *p, uint32_t id, unsigned i)
{
	struct { uint64_t pad, gpa, size, uva, off; } m = {
		0, GPA + (uint64_t)i * MEM_BYTES, MEM_BYTES, UVA + (uint64_t)i * MEM_BYTES, 0,
	};

	say(p, id, &m, sizeof(m), id == VU_ADD_MEM_REG ? p->memfd : -1);
}

static void mem_table(struct peer *p, unsigned n)
{
	struct { uint32_t n, pad; uint64_t r[4]; } m = { 1, 0, { GPA, MEM_BYTES >> n, UVA, 0 } };

	say(p, VU_SET_MEM_TABLE, &m, sizeof(m), p->memfd);
}

static uint8_t *ring(struct peer *p, unsigned q)
{
	return p->mem + RINGS_AT + 0x1000 * q;
}

static void ring_addr(struct peer *p, unsigned q, unsigned move)
{
	uint64_t at = (p->iommu ? GPA : UVA) + RINGS_AT + 0x1000 * q + 64 * (uint64_t)move;
	struct vhost_vring_addr a = { .index = q, .desc_user_addr = at, .avail_user_addr = at + 0x400, .used_user_addr = at + 0x800 };

	say(p, VU_SET_VRING_ADDR, &a, sizeof(a), -1);
}

static void start_ring(struct peer *p, unsigned q)
{
	memset(ring(p, q), 0, 0x1000);
	p->avail[q] = 0;
	p->kick[q] = event();
	p->call[q] = event();
	say_state(p, VU_SET_VRING_NUM, q, RING_SIZE);
	say_state(p, VU_SET_VRING_BASE, q, p->packed ? 0x80008000 : 0);
	say_u64(p, VU_SET_VRING_CALL, q, p->call[q]);
	ring_addr(p, q, 0);
	say_u64(p, VU_SET_VRING_KICK, q, p->kick[q]);
	say_state(p, VU_SET_VRING_ENABLE, q, 1);
}

/* Ring 0, all of it available. */
static void start_big_ring(struct peer *p)
{
	uint64_t at = (p->iommu ? GPA : UVA) + BIG, avail = at + 16 * BIG_SIZE, used = (avail + 2 * BIG_SIZE + 6 + 3) & ~3ull;
	struct vhost_vring_addr a = { .desc_user_addr = at, .avail_user_addr = avail, .used_user_addr = used };

	memset(p->mem + BIG + (avail - at), 0, 4);
	memset(p->mem + BIG + (used - at), 0, 4);
	((uint16_t *)(p->mem + BIG + (avail - at)))[1] = BIG_SIZE - 1;
	p->kick[0] = event();
	say_state(p, VU_SET_VRING_NUM, 0, BIG_SIZE);
	say_state(p, VU_SET_VRING_BASE, 0, 0);
	say(p, VU_SET_VRING_ADDR, &a, sizeof(a), -1);
	say_u64(p, VU_SET_VRING_KICK, 0, p->kick[0]);
	say_state(p, VU_SET_VRING_ENABLE, 0, 1);
}

static void new_channel(struct peer *p)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		rig_fault("no channel");
	vp_close(&p->chan[p->n_chan % CHANNELS]);
	p->chan[p->n_chan++ % CHANNELS] = sv[0];
	say(p, VU_SET_BACKEND_REQ_FD, NULL, 0, keep(sv[1]));
}

/* The newest channel's requests: answered with status, or only read. */
static void serve_channel(struct peer *p, unsigned how)
{
	int fd = p->n_chan ? p->chan[(p->n_chan - 1) % CHANNELS] : -1, fds[1];
	struct { struct vu_hdr h; uint8_t b[600]; } m;
	unsigned n;
	ssize_t got;

	while (fd >= 0 && (got = recv_fds(fd, &m, sizeof(m), fds, 0, &n)) > 0)
		for (size_t at = 0; at + sizeof(m.h) <= (size_t)got; ) {
			struct vu_hdr h;
			struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) a;

			memcpy(&h, (uint8_t *)&m + at, sizeof(h));
			at += sizeof(h) + h.size;
			a.h = (struct vu_hdr){ how & 4 ? h.request ^ 1 : h.request, 5, 8 };
			a.v = how & 1;
			if (!(how & 2))
				send_fds(fd, &a, sizeof(a), NULL, 0);
		}
}

static int dial(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)))
		rig_fault("%s: %s", path, strerror(errno));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static uint64_t ask(struct peer *p, uint32_t id)
{
	struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) a = { .v = 0 };
	unsigned n;

	say(p, id, NULL, 0, -1);
	rig_run(4);
	recv_fds(p->sock, &a, sizeof(a), NULL, 0, &n);
	return a.v;
}

static void negotiate(struct peer *p, unsigned how)
{
	bool port = p->device && lk->att == RIG_SHMEM;
	uint64_t f = VP_BIT(VU_F_PROTOCOL_FEATURES) | VP_BIT(32), pf = VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_BACKEND_REQ) | VP_BIT(VU_PF_CONFIG);

	p->packed = !port && how & 1;
	p->iommu = !port && how & 2;
	if (!port)
		f |= VP_BIT(0) | VP_BIT(11) | VP_BIT(15) | VP_BIT(28) | (how & 8 ? VP_BIT(29) : 0) | (p->packed ? VP_BIT(34) : 0) |
		     (p->iommu ? VP_BIT(33) : 0) | (how & 16 ? VP_BIT(7) | VP_BIT(1) : 0);
	pf |= port ? VP_BIT(VU_PF_SHMEM) | VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(0) :
		     VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) | VP_BIT(VU_PF_STATUS) | VP_BIT(VU_PF_LOG_SHMFD) | VP_BIT(VU_PF_RESET_DEVICE);
	p->reply = false;
	f &= ask(p, VU_GET_FEATURES);
	say(p, VU_SET_OWNER, NULL, 0, -1);
	pf &= ask(p, VU_GET_PROTOCOL_FEATURES);
	say_u64(p, VU_SET_PROTOCOL_FEATURES, pf, -1);
	say_u64(p, VU_SET_FEATURES, f, -1);
	p->packed &= !!(f & VP_BIT(34));
	p->iommu &= !!(f & VP_BIT(33));
	p->reply = how & 4;
}

static void take_port(struct peer *p);
static void offer(struct peer *p, unsigned q, unsigned n, unsigned kind, unsigned arg);

/* Bits: 0 packed, 1 vIOMMU, 2 wants replies, 3 event index, 4 takes TSO, 5 with a request channel, 6 nothing more than the connection, 7 not even that */
static void come(struct peer *p, unsigned how)
{
	if (how & 128 || p->sock >= 0)
		return;
	p->sock = dial(p->device ? lk->device : lk->driver);
	rig_run(4);
	if (!p->vu)
		take_port(p);
	if (!p->vu || how & 64)
		return;
	negotiate(p, how);
	rig_run(4);
	if (how & 32 || p->iommu || p->device)
		new_channel(p);
	mem_table(p, 0);
	rig_run(4);
	/* A port of this size has three signals. */
	for (unsigned q = 0; q < (p->device && lk->att == RIG_SHMEM ? 3 : 2); q++) {
		start_ring(p, q);
		if (p->device && lk->att == RIG_SHMEM)
			offer(p, q, RING_SIZE / 2, 0, 0);
	}
	rig_run(8);
	listen_to(p->sock);
	if (p->device && lk->att == RIG_SHMEM)
		take_port(p);
}

static void leave(struct peer *p)
{
	vp_close(&p->sock);
	for (unsigned i = 0; i < CHANNELS; i++)
		vp_close(&p->chan[i]);
	p->n_chan = 0;
	if (p->ctrl)
		munmap(p->ctrl, p->ctrl_bytes);
	p->ctrl = NULL;
	for (unsigned i = 0; i < p->n_bell; i++)
		vp_close(&p->bell[i]);
	p->n_bell = 0;
	for (unsigned q = 0; q < RINGS; q++)
		p->kick[q] = p->call[q] = -1;
}

/* ---- a VMM's QMP: of the device VM of link fi ----------------------------------------------------------------------------- */

static int qmp = -1;

static void qmp_say(const char *text)
{
	if (qmp >= 0)
		(void)!send(qmp, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Whatever is asked for has been done. */
static void qmp_serve(void)
{
	char buf[4096], *at;
	int fds[4];
	unsigned n;
	ssize_t got;

	if (qmp < 0) {
		qmp = accept4(rig_qmp_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		qmp_say("{\"QMP\":{}}\n");
	}
	while (qmp >= 0 && (got = recv_fds(qmp, buf, sizeof(buf) - 1, fds, 4, &n)) >= 0) {
		for (unsigned i = 0; i < n; i++)
			keep(fds[i]);
		if (!got) {
			vp_close(&qmp);
			break;
		}
		buf[got] = 0;
		for (at = buf; (at = strstr(at, "\"id\":")); at++) {
			int id;
			char say_it[64];

			/* A device's name is an id, too, and no number. */
			if (sscanf(at + 5, "%d", &id) != 1)
				continue;
			snprintf(say_it, sizeof(say_it), "{\"return\":{},\"id\":%d}\n", id);
			qmp_say(say_it);
		}
	}
}

/* A QEMU that starts anew has no devices: what was plugged is forgotten. */
static void end_qmp(void)
{
	vp_close(&qmp);
	for (unsigned i = 0; lk->mode == RIG_FAST && lk->att == RIG_IVSHMEM && i < 8; i++) {
		rig_run(50);
		qmp_serve();
		rig_sleep(1000000);
	}
	vp_close(&qmp);
}

static void qmp_event(unsigned what)
{
	static const char *const lines[] = {
		"{\"event\":\"RESET\",\"data\":{}}\n", "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"vhp-fi-8001\"}}\n",
		"{\"return\":[{\"name\":\"vhp-fi-8001\"},{\"name\":\"vhp-fi-0001\"}],\"id\":2}\n", "{\"return\"", ":[]}\n", "\n", "{\"error\":{}}\n",
	};

	if (what % 8 == 7)
		vp_close(&qmp);
	else
		qmp_say(lines[what % 8]);
}

/* ---- a device VM -------------------------------------------------------------------------------------------------------- */

static void map_port(struct peer *p, int fd)
{
	off_t n = lseek(fd, 0, SEEK_END);

	if (!p->ctrl && n >= (off_t)VHP_CTRL_SIZE) {
		p->ctrl_bytes = (size_t)n;
		p->ctrl = mmap(NULL, p->ctrl_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p->ctrl == MAP_FAILED)
			p->ctrl = NULL;
	}
	close(fd);
}

/* Whatever the daemon sends of its port: memory is mapped, the first eventfds are bells, all others are kept. */
static void take_port(struct peer *p)
{
	int from;
	int fds[32];
	union { uint8_t b[52]; struct vhp_local_msg l; int64_t id; struct vu_hdr h; } m;
	unsigned n;

	if (!p->device || lk->att == RIG_NONE)
		return;
	from = p->vu ? (p->n_chan ? p->chan[(p->n_chan - 1) % CHANNELS] : -1) : p->sock;
	rig_run(4);
	while (from >= 0 && recv_fds(from, &m, p->vu ? 52 : lk->att == RIG_LOCAL ? sizeof(m.l) : 8, fds, 32, &n) > 0) {
		bool memory = p->vu || (lk->att == RIG_LOCAL ? m.l.type == VHP_LOCAL_HELLO : m.id == -1);
		bool bells = lk->att == RIG_LOCAL ? m.l.type == VHP_LOCAL_DOORBELLS : m.id == 1;

		for (unsigned i = 0; i < n; i++) {
			if (memory && !i)
				map_port(p, fds[i]);
			else if (bells && p->n_bell < RINGS + 1)
				p->bell[p->n_bell++] = fds[i];
			else
				keep(fds[i]);
		}
		if (p->vu) {
			struct { struct vu_hdr h; uint64_t v; } __attribute__((packed)) a = { { m.h.request, 5, 8 }, 0 };

			send_fds(from, &a, sizeof(a), NULL, 0);
			rig_run(4);
		}
	}
}

static void raise_fd(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
}

static void command(struct peer *p, unsigned opcode, uint64_t a, uint64_t b)
{
	struct { uint32_t seq, opcode; uint64_t arg[4]; } c = { ++p->seq, opcode, { a, b, 0, 1 } };

	if (!p->ctrl)
		return;
	if (opcode == 1) {
		c.arg[0] = VHP_ABI_VERSION;
		c.arg[1] = UINT64_MAX;
	}
	memcpy(p->ctrl + VHP_CTRL_COMMAND_OFF + 4, &c.opcode, sizeof(c) - 4);
	memcpy(p->ctrl + VHP_CTRL_COMMAND_OFF, &c.seq, 4);
	raise_fd(p->vu ? p->kick[0] : p->bell[0]);
}

/* ---- rings --------------------------------------------------------------------------------------------------------------- */

static void describe(struct peer *p, unsigned q, unsigned i, unsigned kind, unsigned arg)
{
	struct vring_desc d = { GPA + 0x80000 + 0x800 * (i % 64), 100 + arg, q & 1 ? 0 : VRING_DESC_F_WRITE, 0 };

	switch (kind % 6) {
	case 0:
		break;
	case 1: /* a long table of nothing; it ends well if it is the whole one */
		d = (struct vring_desc){ GPA + TABLE, 16u * 128u * (arg % 256 + 1), VRING_DESC_F_INDIRECT, 0 };
		break;
	case 2: /* a large segment with a small mss */
		d = (struct vring_desc){ GPA + TSO, 12 + 54 + 32000, 0, 0 };
		((uint16_t *)(p->mem + TSO))[2] = (uint16_t)(1 + arg * 4);
		break;
	case 3: /* somewhere */
		d.addr = GPA + (uint64_t)arg * 0x10000 - 50;
		break;
	case 4: /* a chain of empty ones */
		d = (struct vring_desc){ GPA, 0, VRING_DESC_F_NEXT, (uint16_t)((i + 1) % RING_SIZE) };
		break;
	case 5: /* anything */
		d.flags = (uint16_t)arg;
		d.next = (uint16_t)(arg / 3);
		break;
	}
	memcpy(ring(p, q) + 16 * (i % RING_SIZE), &d, sizeof(d));
	if (p->packed) {
		bool wrap = !(p->avail[q] / RING_SIZE & 1);
		uint16_t f = (uint16_t)((d.flags & 7) | (wrap ? 1 << 7 : 1 << 15)), id = (uint16_t)i;

		memcpy(ring(p, q) + 16 * (i % RING_SIZE) + 12, &id, 2);
		memcpy(ring(p, q) + 16 * (i % RING_SIZE) + 14, &f, 2);
	}
}

static void offer(struct peer *p, unsigned q, unsigned n, unsigned kind, unsigned arg)
{
	uint16_t *avail = (uint16_t *)(ring(p, q) + 0x400);

	for (unsigned i = 0; i < n; i++) {
		unsigned at = p->avail[q] % RING_SIZE;

		describe(p, q, at, kind, arg);
		avail[2 + at] = (uint16_t)at;
		p->avail[q]++;
	}
	if (!p->packed)
		avail[1] = p->avail[q];
	raise_fd(p->kick[q]);
}

/* ---- actions ---------------------------------------------------------------------------------------------------------------- */

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
		.iova = GPA + (uint64_t)page * 4096, .size = (uint64_t)pages * 4096, .uaddr = UVA + (uint64_t)page * 4096, .perm = perm & 3,
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
