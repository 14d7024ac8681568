/* SPDX-License-Identifier: BSD-3-Clause */
/* See session_peer.h. */
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
#include "session_peer.h"
#include "vhost-pci/abi.h"
#include "vhost-pci/local.h"
#include "vhostuser/proto.h"

const struct rig_link *lk;
struct peer peers[2];
int kept[FDS];
unsigned n_kept;

/* Ours to the end, or until 32 later ones. */
int keep(int fd)
{
	int *at = &kept[n_kept++ % FDS];

	if (fd < 0)
		rig_fault("no fd");
	vp_close(at);
	*at = fd;
	return fd;
}

int event(void)
{
	return keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

/*
 * ---- messages -------------------------------------------------------------------------------------------------------
 */

void send_fds(int sock, const void *buf, size_t len, const int *fds, unsigned n)
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
ssize_t recv_fds(int sock, void *buf, size_t len, int *fds, unsigned max, unsigned *n)
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

void say(struct peer *p, uint32_t id, const void *payload, uint32_t size, int fd)
{
	struct { struct vu_hdr h; uint8_t b[600]; } m = { .h = { id, 1 | (p->reply ? VU_FLAG_NEED_REPLY : 0), size } };

	if (p->sock < 0 || !p->vu)
		return;
	if (size)
		memcpy(m.b, payload, size);
	send_fds(p->sock, &m, sizeof(m.h) + size, &fd, fd >= 0);
}

void say_u64(struct peer *p, uint32_t id, uint64_t v, int fd)
{
	say(p, id, &v, sizeof(v), fd);
}

void say_state(struct peer *p, uint32_t id, uint32_t q, uint32_t num)
{
	struct vhost_vring_state s = { q, num };

	say(p, id, &s, sizeof(s), -1);
}

/* Answers are not looked at. */
void listen_to(int sock)
{
	uint8_t buf[4096];
	int fds[1];
	unsigned n;

	while (sock >= 0 && recv_fds(sock, buf, sizeof(buf), fds, 0, &n) > 0)
		;
}

/*
 * ---- a VMM
 * ------------------------------------------------------------------------------------------------------------
 */

static void write_table(struct peer *p)
{
	struct vring_desc *t = (struct vring_desc *)(p->mem + TABLE);

	for (unsigned i = 0; i < 32768; i++)
		t[i] = (struct vring_desc){ GPA, 0, i < 32767 ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1) };
}

static void write_tso(struct peer *p)
{
	static const uint8_t head[] = {
		1, 1,  54, 0, 1, 0,  34, 0, 16, 0, 0, 0, /* virtio_net_hdr: TSO, mss 1 */
		2, 0,  0,  0, 0, 1,  2,	 0, 0,	0, 0, 2, 8, 0, 0x45, 0, 0x7d, 0x28, 0, 1, 0, 0,	   64,	 6, 0,
		0, 10, 0,  0, 1, 10, 0,	 0, 2,	0, 1, 0, 2, 0, 0,    0, 3,    0,    0, 0, 4, 0x50, 0x10, 3, 0xe8,
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

void write_memory(struct peer *p)
{
	write_table(p);
	write_tso(p);
	write_big(p);
}

void make_memory(struct peer *p)
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
void choose_memory(struct peer *p)
{
	bool sealed = lk->mode == RIG_FAST && lk->att != RIG_LOCAL;

	p->memfd = p->memfds[sealed];
	p->mem = p->mems[sealed];
}

void add_region(struct peer *p, uint32_t id, unsigned i)
{
	struct { uint64_t pad, gpa, size, uva, off; } m = {
		0, GPA + (uint64_t)i * MEM_BYTES, MEM_BYTES, UVA + (uint64_t)i * MEM_BYTES, 0,
	};

	say(p, id, &m, sizeof(m), id == VU_ADD_MEM_REG ? p->memfd : -1);
}

void mem_table(struct peer *p, unsigned n)
{
	struct { uint32_t n, pad; uint64_t r[4]; } m = { 1, 0, { GPA, MEM_BYTES >> n, UVA, 0 } };

	say(p, VU_SET_MEM_TABLE, &m, sizeof(m), p->memfd);
}

uint8_t *ring(struct peer *p, unsigned q)
{
	return p->mem + RINGS_AT + 0x1000 * q;
}

void ring_addr(struct peer *p, unsigned q, unsigned move)
{
	uint64_t at = (p->iommu ? GPA : UVA) + RINGS_AT + 0x1000 * q + 64 * (uint64_t)move;
	struct vhost_vring_addr a = {
		.index = q, .desc_user_addr = at, .avail_user_addr = at + 0x400, .used_user_addr = at + 0x800
	};

	say(p, VU_SET_VRING_ADDR, &a, sizeof(a), -1);
}

void start_ring(struct peer *p, unsigned q)
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
void start_big_ring(struct peer *p)
{
	uint64_t at = (p->iommu ? GPA : UVA) + BIG, avail = at + 16 * BIG_SIZE,
		 used = (avail + 2 * BIG_SIZE + 6 + 3) & ~3ull;
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

void new_channel(struct peer *p)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		rig_fault("no channel");
	vp_close(&p->chan[p->n_chan % CHANNELS]);
	p->chan[p->n_chan++ % CHANNELS] = sv[0];
	say(p, VU_SET_BACKEND_REQ_FD, NULL, 0, keep(sv[1]));
}

/* The newest channel's requests: answered with status, or only read. */
void serve_channel(struct peer *p, unsigned how)
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
	uint64_t f = VP_BIT(VU_F_PROTOCOL_FEATURES) | VP_BIT(32),
		 pf = VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_BACKEND_REQ) | VP_BIT(VU_PF_CONFIG);

	p->packed = !port && how & 1;
	p->iommu = !port && how & 2;
	if (!port)
		f |= VP_BIT(0) | VP_BIT(11) | VP_BIT(15) | VP_BIT(28) | (how & 8 ? VP_BIT(29) : 0) |
		     (p->packed ? VP_BIT(34) : 0) | (p->iommu ? VP_BIT(33) : 0) |
		     (how & 16 ? VP_BIT(7) | VP_BIT(1) : 0);
	pf |= port ? VP_BIT(VU_PF_SHMEM) | VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(0)
		   : VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) | VP_BIT(VU_PF_STATUS) | VP_BIT(VU_PF_LOG_SHMFD) |
			      VP_BIT(VU_PF_RESET_DEVICE);
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


/*
 * Bits: 0 packed, 1 vIOMMU, 2 wants replies, 3 event index, 4 takes TSO, 5 with a request channel, 6 nothing more than
 * the connection, 7 not even that
 */
void come(struct peer *p, unsigned how)
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

void leave(struct peer *p)
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

/*
 * ---- a VMM's QMP: of the device VM of link fi
 * -----------------------------------------------------------------------------
 */

static int qmp = -1;

static void qmp_say(const char *text)
{
	if (qmp >= 0)
		(void)!send(qmp, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Whatever is asked for has been done. */
void qmp_serve(void)
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
void end_qmp(void)
{
	vp_close(&qmp);
	for (unsigned i = 0; lk->mode == RIG_FAST && lk->att == RIG_IVSHMEM && i < 8; i++) {
		rig_run(50);
		qmp_serve();
		rig_sleep(1000000);
	}
	vp_close(&qmp);
}

void qmp_event(unsigned what)
{
	static const char *const lines[] = {
		"{\"event\":\"RESET\",\"data\":{}}\n",
		"{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"vhp-fi-8001\"}}\n",
		"{\"return\":[{\"name\":\"vhp-fi-8001\"},{\"name\":\"vhp-fi-0001\"}],\"id\":2}\n",
		"{\"return\"",
		":[]}\n",
		"\n",
		"{\"error\":{}}\n",
	};

	if (what % 8 == 7)
		vp_close(&qmp);
	else
		qmp_say(lines[what % 8]);
}

/*
 * ---- a device VM
 * --------------------------------------------------------------------------------------------------------
 */

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
void take_port(struct peer *p)
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
			struct {
				struct vu_hdr h;
				uint64_t v;
			} __attribute__((packed)) a = { { m.h.request, 5, 8 }, 0 };

			send_fds(from, &a, sizeof(a), NULL, 0);
			rig_run(4);
		}
	}
}

void raise_fd(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
}

void command(struct peer *p, unsigned opcode, uint64_t a, uint64_t b)
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

/*
 * ---- rings
 * ---------------------------------------------------------------------------------------------------------------
 */

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

void offer(struct peer *p, unsigned q, unsigned n, unsigned kind, unsigned arg)
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
