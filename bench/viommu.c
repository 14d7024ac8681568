/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver VM with a vIOMMU, as far as its device can tell: a vhost-user front-end that sends packets and maps and
 * unmaps their pages as a guest kernel does.
 *
 *   viommu SOCKET FAR MODE SIZE MILLISECONDS
 *
 * FAR takes the packets: the socket of a second front-end without a vIOMMU, or unix:PATH, a port of libvhostpci.
 * MODE:
 *   strict     each page is mapped for its packet; unmapped, and the invalidation answered, before it is used again
 *   lazy       the same, but 256 unmaps share one invalidation of everything (Linux: iommu.strict=0)
 *   pooled     all buffers lie in 2 MiB pages that are mapped once (DPDK, SPDK)
 *   identity   no vIOMMU
 * Prints one JSON object. The front-end answers a miss as QEMU does: one page an update.
 */
#include <fcntl.h>
#include <linux/vhost_types.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cycles.h"
#include "vhostuser/frontend.h"
#include "virtq/drvq.h"
#include <vhost-pci/vhostpci.h>

#define MEM       (8u << 20)
#define RINGS     0x20000u            /* of both queues */
#define DATA      0x200000u
#define PAGES     1024u
#define QSIZE     256u
#define IN_FLIGHT 64u
#define FLUSH     256u

#define IOVA_RING 0x100000000ull
#define IOVA_POOL 0x200000000ull
#define IOVA_DYN  0x300000000ull
#define DYN       65536u              /* pages of addresses, in turn */

enum mode { STRICT, LAZY, POOLED, IDENTITY };
static const char *const modes[] = { "strict", "lazy", "pooled", "identity" };

struct vm {
	struct vu_frontend *f;
	uint8_t *mem;
	bool     iommu;
	struct vp_drvq q[2];
	int      kick[2];
	uint16_t page_of[QSIZE];          /* by id */
	uint64_t iova_of[QSIZE];
};

static struct vm near, far;
static enum mode mode;
static uint16_t dyn[DYN];                /* page + 1 that an address is mapped to */
static uint32_t next_dyn;
static uint16_t free_page[PAGES];
static unsigned n_free;
static uint64_t asked[256];              /* misses that were not answered yet */
static unsigned n_asked;
static struct {
	uint64_t misses, updates, invalidations, refused;
} stats;

static void die(const char *what, const struct vp_err *e)
{
	fprintf(stderr, "viommu: %s: %s\n", what, e && e->msg[0] ? e->msg : "failed");
	exit(1);
}

static int on_request(void *ctx, uint32_t request, const union vu_payload *p, uint32_t size, int *fd)
{
	if (request != VU_BE_IOTLB_MSG || p->iotlb.type != VHOST_IOTLB_MISS)
		return 0;
	stats.misses++;
	if (n_asked < VP_ARRAY_SIZE(asked))
		asked[n_asked++] = p->iotlb.iova;
	return 0;
}

static void iotlb(uint8_t type, uint64_t iova, uint64_t size, const void *at)
{
	struct vhost_iotlb_msg m = {
		.iova = iova, .size = size, .uaddr = (uint64_t)(uintptr_t)at, .perm = VHOST_ACCESS_RW, .type = type
	};
	struct vp_err e = { 0 };

	if (vu_frontend_iotlb(near.f, &m, &e))
		die("IOTLB message", &e);
}

static void answer(uint64_t iova)
{
	uint64_t page = iova & ~UINT64_C(4095);

	stats.updates++;
	if (iova >= IOVA_DYN && iova < IOVA_DYN + DYN * 4096ull) {
		uint16_t to = dyn[(iova - IOVA_DYN) / 4096];

		if (!to)
			stats.refused++; /* unmapped meanwhile: as a guest's, it is not answered */
		else
			iotlb(VHOST_IOTLB_UPDATE, page, 4096, near.mem + DATA + (to - 1) * 4096u);
	} else if (iova >= IOVA_POOL && iova < IOVA_POOL + PAGES * 4096ull) {
		page = iova & ~UINT64_C(0x1fffff);
		iotlb(VHOST_IOTLB_UPDATE, page, 2 << 20, near.mem + DATA + (page - IOVA_POOL));
	} else if (iova >= IOVA_RING && iova < IOVA_RING + RINGS) {
		iotlb(VHOST_IOTLB_UPDATE, page, 4096, near.mem + (page - IOVA_RING));
	} else {
		stats.refused++;
	}
}

static void serve(void)
{
	struct pollfd p = { .fd = vu_frontend_req_fd(near.f), .events = POLLIN };
	struct vp_err e = { 0 };

	while (p.fd >= 0 && poll(&p, 1, 0) > 0)
		if (vu_frontend_serve(near.f, &e))
			die("request channel", &e);
	while (n_asked)
		answer(asked[--n_asked]);
}

static void vm_open(struct vm *v, const char *path, bool iommu)
{
	uint64_t want = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_NET_F_MRG_RXBUF), offered, half = RINGS / 2;
	struct vu_mem_region r = { .size = MEM };
	struct vp_err e = { 0 };
	int fd = memfd_create("viommu", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, MEM) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		die("memory", NULL);
	v->mem = mmap(NULL, MEM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	v->iommu = iommu;
	v->f = vu_frontend_connect(path, 5000, &e);
	if (v->mem == MAP_FAILED || !v->f ||
	    vu_frontend_negotiate(v->f, VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_BACKEND_REQ),
				  &offered, &e))
		die(path, &e);
	want |= iommu ? VP_BIT(VIRTIO_F_ACCESS_PLATFORM) : 0;
	vu_frontend_on_request(v->f, on_request, NULL);
	r.uva = (uint64_t)(uintptr_t)v->mem;
	if (vu_frontend_set_features(v->f, want, &e) || vu_frontend_set_mem(v->f, &r, &fd, 1, &e))
		die(path, &e);
	close(fd);
	for (unsigned q = 0; q < 2; q++) {
		uint64_t driver, device, base = q * half, at;
		struct vu_frontend_ring fr = { .num = QSIZE, .call_fd = -1, .err_fd = -1 };

		vp_drvq_layout(QSIZE, false, &driver, &device);
		driver = vp_align_up(driver, 4096);
		at = iommu ? IOVA_RING + base : r.uva + base;
		if (vp_drvq_init(&v->q[q], QSIZE, want, vp_gptr_from_map(v->mem + base)))
			die("rings", NULL);
		vp_drvq_layout(QSIZE, false, &driver, &device);
		vp_drvq_disable_calls(&v->q[q]);
		v->kick[q] = fr.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		fr.desc = at;
		fr.avail = at + driver;
		fr.used = at + device;
		if (iommu)
			for (uint64_t p = 0; p < half; p += 4096)
				answer(IOVA_RING + base + p);
		fr.call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (vu_frontend_start_ring(v->f, q, &fr, &e) || vu_frontend_enable(v->f, q, true, &e))
			die(path, &e);
	}
	if (iommu)
		serve();
}

static void publish(struct vm *v, unsigned q)
{
	const uint64_t one = 1;

	vp_drvq_publish(&v->q[q]);
	if (vp_drvq_need_kick(&v->q[q]) && write(v->kick[q], &one, sizeof(one)) < 0)
		return; /* full: raised already */
}

static void send_some(unsigned size)
{
	struct vp_drvq *q = &near.q[1];

	while (n_free && q->outstanding < IN_FLIGHT) {
		uint16_t page = free_page[--n_free], id;
		uint64_t addr = DATA + page * 4096ull;

		if (mode == POOLED)
			addr = IOVA_POOL + page * 4096ull;
		if (mode == STRICT || mode == LAZY) {
			addr = IOVA_DYN + next_dyn * 4096ull;
			dyn[next_dyn] = (uint16_t)(page + 1);
			next_dyn = (next_dyn + 1) % DYN;
		}
		id = vp_drvq_add_one(q, addr, 12 + size, false);
		near.page_of[id] = page;
		near.iova_of[id] = addr;
	}
	publish(&near, 1);
}

static void reclaim(void)
{
	static unsigned unmapped;
	struct vp_drvq_used u[64];
	unsigned n = vp_drvq_get_burst(&near.q[1], u, 64);

	if (near.q[1].broken)
		die("the back-end broke the transmit ring", NULL);
	for (unsigned i = 0; i < n; i++) {
		uint64_t iova = near.iova_of[u[i].id];

		free_page[n_free++] = near.page_of[u[i].id];
		if (mode != STRICT && mode != LAZY)
			continue;
		dyn[(iova - IOVA_DYN) / 4096] = 0;
		if (mode == STRICT) {
			iotlb(VHOST_IOTLB_INVALIDATE, iova, 4096, NULL);
			stats.invalidations++;
		} else if (++unmapped == FLUSH) {
			iotlb(VHOST_IOTLB_INVALIDATE, IOVA_DYN, DYN * 4096ull, NULL);
			stats.invalidations++;
			unmapped = 0;
		}
	}
}

static void far_post(void)
{
	struct vp_drvq *q = &far.q[0];

	while (q->num_free) {
		uint16_t id = vp_drvq_add_one(q, 0, 2048, true);

		vp_st64(q->desc, 16 * (size_t)id, DATA + id * 4096ull);
	}
	publish(&far, 0);
}

static unsigned far_take(struct vhp_port *port, bool *up)
{
	static uint8_t buf[32][2048];
	struct vp_drvq_used u[64];
	struct vhp_packet p[32];
	unsigned n;
	int k;

	if (!port) {
		n = vp_drvq_get_burst(&far.q[0], u, 64);
		if (n)
			far_post();
		return n;
	}
	if (!*up || vhp_changed(port))
		*up = vhp_update(port, NULL) == 1;
	for (unsigned i = 0; i < 32; i++)
		p[i] = (struct vhp_packet){ .data = buf[i], .room = sizeof(buf[i]) };
	k = *up ? vhp_recv(port, 0, p, 32) : 0;
	return k > 0 ? (unsigned)k : 0;
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params) };
	uint64_t hz = vp_cycles_hz(), t0 = 0, end, packets = 0;
	struct vhp_port *port = NULL;
	struct vhp_error he = { 0 };
	unsigned size, ms;
	bool up = false;

	if (argc != 6) {
		fprintf(stderr, "usage: viommu SOCKET FAR strict|lazy|pooled|identity SIZE MILLISECONDS\n");
		return 2;
	}
	while (mode < VP_ARRAY_SIZE(modes) && strcmp(argv[3], modes[mode]))
		mode++;
	size = (unsigned)atoi(argv[4]);
	ms = (unsigned)atoi(argv[5]);
	if (mode == VP_ARRAY_SIZE(modes) || size < 14 || size > 1518 || !ms)
		return 2;
	while (n_free < PAGES) {
		free_page[n_free] = (uint16_t)n_free;
		n_free++;
	}
	if (!strncmp(argv[2], "unix:", 5)) {
		if (vhp_open(&port, argv[2], &params, &he)) {
			fprintf(stderr, "viommu: %s\n", he.msg);
			return 1;
		}
	} else {
		vm_open(&far, argv[2], false);
		far_post();
	}
	vm_open(&near, argv[1], mode != IDENTITY);
	end = vp_cycles() + 5 * hz;
	for (;;) {
		uint64_t now = vp_cycles();

		if (now > end)
			break;
		send_some(size);
		serve();
		packets += far_take(port, &up);
		reclaim();
		if (!t0 && packets > 200) {
			/* Warm: from here on it counts. */
			memset(&stats, 0, sizeof(stats));
			packets = 0;
			t0 = vp_cycles();
			end = t0 + hz / 1000 * ms;
		}
	}
	if (!t0) {
		fprintf(stderr, "viommu: no packets come through (misses %llu, updates %llu)\n",
			(unsigned long long)stats.misses, (unsigned long long)stats.updates);
		return 1;
	}
	printf("{\"packets\": %llu, \"seconds\": %.4f, \"misses\": %llu, \"updates\": %llu, \"invalidations\": %llu, "
	       "\"refused\": %llu}\n",
	       (unsigned long long)packets, (double)(vp_cycles() - t0) / (double)hz, (unsigned long long)stats.misses,
	       (unsigned long long)stats.updates, (unsigned long long)stats.invalidations,
	       (unsigned long long)stats.refused);
	vu_frontend_destroy(near.f);
	if (far.f)
		vu_frontend_destroy(far.f);
	if (port)
		vhp_close(port);
	return 0;
}
