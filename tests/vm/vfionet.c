/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A network driver in user space whose buffers come and go, as VFIO maps and unmaps them.
 *
 *   vfionet DEVICE ROUNDS MS FROM TO     DEVICE: 0000:00:04.0, bound to vfio-pci; FROM, TO: IPv4 addresses
 *
 * Each round maps two pages, posts one of them for receiving, asks in the other one who has TO, and waits for the
 * answer. Then it unmaps both: when that returns, the grant has ended. MS later (an emulated processor's access may
 * come late) it writes canaries into them. All of a large area are canaries but for the two pages. At the end, and
 * every 100 rounds, it prints
 *
 *   rounds=N bad=PAGES unmap_us=MEAN most_us=MOST
 *
 * bad: pages whose canaries are not whole. With ROUNDS 0 it sets its rings up, says so, and sleeps.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE	4096u
#define AREA	(32u << 20)
#define RINGS	(4 * PAGE)	/* two queues: descriptors and available ring in one page, used ring in the next */
#define ENTRIES	128u
#define RINGS_AT 0x10000000ull	/* addresses as the device sees them */
#define AREA_AT	0x20000000ull
#define HDR	12u

static int container, device;
static char *rings, *area;
static volatile struct virtio_pci_common_cfg *common;
static char *notify;
static uint32_t notify_multiplier;
static uint16_t used_seen[2], avail_at[2];

static _Noreturn void fail(const char *what)
{
	printf("error %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* As in canary.c. */
static uint64_t canary(void)
{
	static volatile uint64_t inverse = ~UINT64_C(0xca4a17b1dca9e5ed);

	return ~inverse;
}

static void plant(char *page)
{
	for (unsigned i = 0; i < PAGE; i += 8)
		memcpy(page + i, &(uint64_t){ canary() }, 8);
}

static bool whole(const char *page)
{
	const uint64_t c = canary();

	for (unsigned i = 0; i < PAGE; i += 8)
		if (memcmp(page + i, &c, 8))
			return false;
	return true;
}

/* ---- vfio and PCI ---------------------------------------------------------------------------------------- */

static void map(const char *at, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map m = {
		.argsz = sizeof(m), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)at, .iova = iova, .size = size,
	};

	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &m))
		fail("map");
}

static void unmap(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap u = { .argsz = sizeof(u), .iova = iova, .size = size };

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &u) || u.size != size)
		fail("unmap");
}

static struct vfio_region_info region(unsigned index)
{
	struct vfio_region_info r = { .argsz = sizeof(r), .index = index };

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &r))
		fail("region");
	return r;
}

static char *bar(unsigned index)
{
	struct vfio_region_info r = region(index);
	char *m = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)r.offset);

	if (m == MAP_FAILED)
		fail("bar");
	return m;
}

static void open_device(const char *name)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[256], link[256] = "";
	int group;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", name);
	if (readlink(path, link, sizeof(link) - 1) < 0)
		fail(path);
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(link, '/') + 1);
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open(path, O_RDWR);
	if (container < 0 || group < 0)
		fail(path);
	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) || !(status.flags & VFIO_GROUP_FLAGS_VIABLE) ||
	    ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail("group");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (device < 0)
		fail("device");
}

static void find_structures(void)
{
	off_t config = (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX).offset;
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	uint8_t c[256];

	if (pread(device, c, sizeof(c), config) != sizeof(c) || pwrite(device, &command, 2, config + PCI_COMMAND) != 2)
		fail("config space");
	for (uint8_t p = c[PCI_CAPABILITY_LIST]; p && p < 240; p = c[p + 1]) {
		struct virtio_pci_notify_cap cap;

		memcpy(&cap, c + p, sizeof(cap));
		if (cap.cap.cap_vndr != PCI_CAP_ID_VNDR)
			continue;
		if (cap.cap.cfg_type == VIRTIO_PCI_CAP_COMMON_CFG)
			common = (void *)(bar(cap.cap.bar) + cap.cap.offset);
		if (cap.cap.cfg_type == VIRTIO_PCI_CAP_NOTIFY_CFG) {
			notify = bar(cap.cap.bar) + cap.cap.offset;
			notify_multiplier = cap.notify_off_multiplier;
		}
	}
	if (!common || !notify)
		fail("no modern virtio device");
}

/* ---- the device ------------------------------------------------------------------------------------------ */

static volatile struct vring_desc *desc(unsigned q)
{
	return (void *)(rings + 2 * q * PAGE);
}

static volatile struct vring_avail *avail(unsigned q)
{
	return (void *)(rings + 2 * q * PAGE + 16 * ENTRIES);
}

static volatile struct vring_used *used(unsigned q)
{
	return (void *)(rings + (2 * q + 1) * PAGE);
}

static void set_up(void)
{
	const uint64_t want = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_ACCESS_PLATFORM;

	common->device_status = 0;
	while (common->device_status)
		usleep(1000);
	common->device_status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	for (unsigned i = 0; i < 2; i++) {
		common->guest_feature_select = i;
		common->guest_feature = (uint32_t)(want >> 32 * i);
	}
	common->device_status |= VIRTIO_CONFIG_S_FEATURES_OK;
	if (!(common->device_status & VIRTIO_CONFIG_S_FEATURES_OK))
		fail("features");
	for (uint16_t q = 0; q < 2; q++) {
		uint64_t at = RINGS_AT + 2 * q * PAGE, used_at = at + PAGE, avail_at_ = at + 16 * ENTRIES;

		avail(q)->flags = VRING_AVAIL_F_NO_INTERRUPT;
		common->queue_select = q;
		common->queue_size = ENTRIES;
		common->queue_desc_lo = (uint32_t)at;
		common->queue_desc_hi = (uint32_t)(at >> 32);
		common->queue_avail_lo = (uint32_t)avail_at_;
		common->queue_avail_hi = (uint32_t)(avail_at_ >> 32);
		common->queue_used_lo = (uint32_t)used_at;
		common->queue_used_hi = (uint32_t)(used_at >> 32);
		common->queue_enable = 1;
	}
	common->device_status |= VIRTIO_CONFIG_S_DRIVER_OK;
}

static void kick(uint16_t q)
{
	common->queue_select = q;
	*(volatile uint16_t *)(notify + common->queue_notify_off * notify_multiplier) = q;
}

static void post(uint16_t q, uint64_t iova, uint32_t len)
{
	unsigned i = avail_at[q] % ENTRIES;

	desc(q)[i].addr = iova;
	desc(q)[i].len = len;
	desc(q)[i].flags = q ? 0 : VRING_DESC_F_WRITE;
	avail(q)->ring[i] = (uint16_t)i;
	__atomic_store_n(&avail(q)->idx, ++avail_at[q], __ATOMIC_RELEASE);
	kick(q);
}

static bool wait_used(unsigned q, unsigned ms)
{
	uint64_t end = now_us() + 1000ull * ms;

	while (__atomic_load_n(&used(q)->idx, __ATOMIC_ACQUIRE) == used_seen[q]) {
		if (now_us() > end)
			return false;
		usleep(200);
	}
	used_seen[q]++;
	return true;
}

/* ---- a round ----------------------------------------------------------------------------------------------- */

static const uint8_t mac[6] = { 0x52, 0x54, 0, 0x0d, 0, 1 };

static uint32_t question(char *page, uint32_t from, uint32_t to)
{
	static const uint8_t arp[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };
	char *f = page + HDR;

	memset(page, 0, PAGE);
	memset(f, 0xff, 6);
	memcpy(f + 6, mac, 6);
	memcpy(f + 12, arp, sizeof(arp));
	memcpy(f + 22, mac, 6);
	memcpy(f + 28, &from, 4);
	memcpy(f + 38, &to, 4);
	return HDR + 60;
}

static bool is_answer(const char *page, uint32_t to)
{
	const char *f = page + HDR;

	return f[12] == 8 && f[13] == 6 && f[21] == 2 && !memcmp(f + 28, &to, 4);
}

static uint64_t one_round(unsigned n, uint32_t from, uint32_t to, unsigned ms)
{
	unsigned page = 2 * (n % (AREA / PAGE / 2));
	char *rx = area + page * PAGE, *tx = rx + PAGE;
	uint64_t iova = AREA_AT + page * PAGE, t, took;
	unsigned asked = 0;
	uint32_t len;

	memset(rx, 0, PAGE);
	len = question(tx, from, to);
	map(rx, iova, 2 * PAGE);
	post(0, iova, PAGE);
	/* What else the device VM says is no answer. */
	do {
		if (asked) {
			memset(rx, 0, PAGE);
			post(0, iova, PAGE);
		}
		if (asked++ == 100)
			fail("nobody answers as asked");
		post(1, iova + PAGE, len);
		if (!wait_used(1, 60000))
			fail("a packet is not taken");
		if (!wait_used(0, 60000))
			fail("no packet comes");
	} while (!is_answer(rx, to));
	t = now_us();
	unmap(iova, 2 * PAGE);
	took = now_us() - t;
	usleep(1000 * ms);
	plant(rx);
	plant(tx);
	return took;
}

static unsigned bad_pages(void)
{
	unsigned bad = 0;

	for (unsigned i = 0; i < AREA; i += PAGE)
		bad += !whole(area + i);
	return bad;
}

int main(int argc, char **argv)
{
	uint64_t sum = 0, most = 0;
	unsigned rounds, ms;
	uint32_t from, to;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc != 6 || !inet_pton(AF_INET, argv[4], &from) || !inet_pton(AF_INET, argv[5], &to)) {
		fputs("usage: vfionet DEVICE ROUNDS MS FROM TO\n", stderr);
		return 2;
	}
	rounds = (unsigned)atoi(argv[2]);
	ms = (unsigned)atoi(argv[3]);
	rings = mmap(NULL, RINGS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (rings == MAP_FAILED || area == MAP_FAILED || mlock(area, AREA))
		fail("memory");
	for (unsigned i = 0; i < AREA; i += PAGE)
		plant(area + i);
	open_device(argv[1]);
	map(rings, RINGS_AT, RINGS);
	find_structures();
	set_up();
	printf("rounds=0 bad=%u\n", bad_pages());
	for (unsigned n = 1; n <= rounds; n++) {
		uint64_t took = one_round(n, from, to, ms);

		sum += took;
		most = took > most ? took : most;
		if (n % 100 == 0 || n == rounds)
			printf("rounds=%u bad=%u unmap_us=%llu most_us=%llu\n", n, bad_pages(),
			       (unsigned long long)(sum / n), (unsigned long long)most);
	}
	for (;;)
		pause();
}
