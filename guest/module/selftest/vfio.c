// SPDX-License-Identifier: GPL-2.0-only
/*
 * A window given to a PCI device that this program drives by VFIO: QEMU's "edu", which copies between its 4 KiB buffer
 * and memory, behind an emulated IOMMU. What becomes of such a device's access when the window is taken back?
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "selftest.h"

#define IOVA_MEM	0x100000
#define IOVA_WINDOW	0x1000000
#define EDU_BUFFER	0x40000
#define EDU_SRC		0x80
#define EDU_DST		0x88
#define EDU_COUNT	0x90
#define EDU_CMD		0x98
#define EDU_START	1
#define EDU_TO_MEMORY	2

static int container;
static volatile uint8_t *regs;

static int map_dma(void *p, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map m = {
		.argsz = sizeof(m), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)p, .iova = iova, .size = size,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &m) ? -errno : 0;
}

/* How many bytes were still mapped there. */
static uint64_t unmap_dma(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap u = { .argsz = sizeof(u), .iova = iova, .size = size };

	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &u));
	return u.size;
}

static void open_edu(const char *addr)
{
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info conf = { .argsz = sizeof(conf), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	char link[256], path[300], *name;
	int group, device;
	uint16_t cmd;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", addr);
	n = readlink(path, link, sizeof(link) - 1);
	CHECK(n > 0);
	link[n] = 0;
	name = strrchr(link, '/');
	snprintf(path, sizeof(path), "/dev/vfio%s", name);
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open(path, O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, addr);
	CHECK(device >= 0);
	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar));
	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &conf));
	CHECK(pread(device, &cmd, 2, (off_t)conf.offset + PCI_COMMAND) == 2);
	cmd |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	CHECK(pwrite(device, &cmd, 2, (off_t)conf.offset + PCI_COMMAND) == 2);
	regs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(regs != MAP_FAILED);
}

static void edu(uint64_t src, uint64_t dst, uint64_t cmd)
{
	double end = now() + 10;

	*(volatile uint64_t *)(regs + EDU_SRC) = src;
	*(volatile uint64_t *)(regs + EDU_DST) = dst;
	*(volatile uint64_t *)(regs + EDU_COUNT) = 64;
	*(volatile uint64_t *)(regs + EDU_CMD) = cmd | EDU_START;
	while (*(volatile uint64_t *)(regs + EDU_CMD) & EDU_START) {
		if (now() > end)
			fail("the device does not get done");
		usleep(1000);
	}
}

void t_vfio(const char *addr)
{
	const char *after = "nothing was there";
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_window w;
	volatile uint64_t *mem, *m, *next;
	int fd = open_port(O_RDWR), r;

	open_edu(addr);
	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 30);
	window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	m = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, 0);
	mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED && mem != MAP_FAILED);
	mem[0] = 0x0123456789abcdef;
	CHECK(!map_dma((void *)mem, IOVA_MEM, 4096));
	r = map_dma((void *)m, IOVA_WINDOW, 2 << 20);
	if (r) {
		printf("ok vfio refuses windows: %s\n", strerror(-r));
		return;
	}
	/* from memory into the device, from there into the window */
	edu(IOVA_MEM, EDU_BUFFER, 0);
	edu(EDU_BUFFER, IOVA_WINDOW + 0x1000, EDU_TO_MEMORY);
	CHECK(m[512] == mem[0]);
	/* the window goes, and the next comes */
	CHECK(command(fd, VHP_CMD_QUEUE_STOPPED, 0xfade, 0, 0, 0, NULL) == VHP_ST_OK);
	wait_state(fd, c, &s, is_down, 30);
	wait_state(fd, c, &s, is_up, 30);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, w.fd, 0) == MAP_FAILED && errno == ENODEV);
	window(fd, s.regions[0].window, s.windows[s.regions[0].window].serial, &w);
	next = mmap(NULL, w.size, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, 0);
	CHECK(next != MAP_FAILED && next[512] == (0x1000 | 0x5a));
	edu(EDU_BUFFER, IOVA_WINDOW + 0x1000, EDU_TO_MEMORY);
	if (next[512] == mem[0])
		after = "the next window was changed";
	printf("ok vfio takes windows, and keeps %llu bytes of one that is gone: %s\n",
	       (unsigned long long)unmap_dma(IOVA_WINDOW, 2 << 20), after);
}
