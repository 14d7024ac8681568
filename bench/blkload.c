/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver VM with a virtio-blk device, as far as its device can tell: a vhost-user front-end with one request queue.
 * It reads and writes at random places of the disk with so many requests open.
 *
 *   blkload SOCKET
 *
 * The socket is the daemon's for a driver VM, or a vhost-user-blk back-end's own. Prints {"bytes": CAPACITY} when it is
 * ready. Then it takes one command a line and answers each by one JSON object:
 *
 *   run read|write BYTES DEPTH sleep|poll MILLISECONDS
 *
 * sleep: waits for calls (interrupts); poll: asks for none, and yields its CPU between looks, as it may share it with
 * the back-end.
 */
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cycles.h"
#include "vhostuser/frontend.h"
#include "virtq/drvq.h"

#define QSIZE	256u
#define DEPTHS	(QSIZE / 3) /* a header, the data, the status */
#define BYTES	(256u << 10)
#define HEADERS 0x10000u
#define DATA	0x100000u
#define MEM	(DATA + DEPTHS * BYTES)
#define SAMPLES (1u << 20)

static struct {
	struct vu_frontend *f;
	uint8_t *mem;
	uint64_t uva, sectors;
	struct vp_drvq q;
	int kick, call;
} vm;
static uint64_t sent_at[DEPTHS];
static uint32_t took[SAMPLES];
static unsigned n_took;
static uint64_t kicks;

static void die(const char *what, const struct vp_err *e)
{
	fprintf(stderr, "blkload: %s: %s\n", what, e && e->msg[0] ? e->msg : "failed");
	exit(1);
}

static void open_disk(const char *path)
{
	const uint64_t want = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_BLK_F_FLUSH);
	struct vu_frontend_ring r = { .num = QSIZE, .err_fd = -1 };
	struct vu_mem_region reg = { .size = MEM };
	uint64_t offered, driver, device;
	struct vp_err e = { 0 };
	uint8_t cfg[60];
	int fd = memfd_create("blkload", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, MEM) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		die("memory", NULL);
	vm.mem = mmap(NULL, MEM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (vm.mem == MAP_FAILED)
		die("memory", NULL);
	reg.uva = (uint64_t)(uintptr_t)vm.mem;
	vm.f = vu_frontend_connect(path, 5000, &e);
	if (!vm.f ||
	    vu_frontend_negotiate(vm.f, VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_CONFIG), &offered,
				  &e) ||
	    vu_frontend_get_config(vm.f, 0, sizeof(cfg), cfg, &e) ||
	    vu_frontend_set_features(vm.f, want & offered, &e) || vu_frontend_set_mem(vm.f, &reg, &fd, 1, &e))
		die(path, &e);
	close(fd);
	memcpy(&vm.sectors, cfg, sizeof(vm.sectors));
	vp_drvq_layout(QSIZE, false, &driver, &device);
	if (vp_drvq_init(&vm.q, QSIZE, want & offered, vp_gptr_from_map(vm.mem)))
		die("ring", NULL);
	r.desc = reg.uva;
	r.avail = reg.uva + driver;
	r.used = reg.uva + device;
	vm.kick = r.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm.call = r.call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vu_frontend_start_ring(vm.f, 0, &r, &e) || vu_frontend_enable(vm.f, 0, true, &e))
		die(path, &e);
}

static uint64_t place(uint32_t bytes)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % (vm.sectors * 512 / bytes) * (bytes / 512);
}

static void start(unsigned i, bool write, uint32_t bytes)
{
	const uint64_t hdr = HEADERS + 32 * i, data = DATA + (uint64_t)i * BYTES;
	struct virtio_blk_outhdr *h = (struct virtio_blk_outhdr *)(vm.mem + hdr);
	struct vp_drvq_buf b[3] = { { hdr, sizeof(*h), false },
				    { data, bytes, !write },
				    { hdr + sizeof(*h), 1, true } };
	int id;

	*h = (struct virtio_blk_outhdr){ .type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, .sector = place(bytes) };
	vm.mem[hdr + sizeof(*h)] = 0xff;
	id = vp_drvq_add(&vm.q, b, 3);
	if (id < 0)
		die("ring", NULL);
	vp_drvq_set_tag(&vm.q, (uint16_t)id, (uint16_t)i);
	sent_at[i] = vp_cycles();
}

static void publish(void)
{
	const uint64_t one = 1;

	vp_drvq_publish(&vm.q);
	if (!vp_drvq_need_kick(&vm.q))
		return;
	kicks++;
	if (write(vm.kick, &one, sizeof(one)) < 0)
		return; /* full: raised already */
}

static void await(bool sleeps)
{
	struct pollfd p = { .fd = vm.call, .events = POLLIN };
	uint64_t n;

	if (!sleeps) {
		sched_yield();
		return;
	}
	if (vp_drvq_enable_calls(&vm.q))
		return;
	if (poll(&p, 1, 5000) != 1)
		die("the back-end", &(struct vp_err){ .msg = "no answer within 5 s" });
	if (read(vm.call, &n, sizeof(n)) < 0)
		return;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void run(bool write, uint32_t bytes, unsigned depth, bool sleeps, unsigned ms)
{
	const uint64_t hz = vp_cycles_hz(), c0 = cpu_ns(), t0 = vp_cycles(), end = t0 + hz / 1000 * ms;
	uint64_t done = 0, wakes = 0, t1 = t0;
	unsigned open = depth;
	double us = 1e6 / (double)hz;

	n_took = 0;
	kicks = 0;
	vp_drvq_disable_calls(&vm.q);
	for (unsigned i = 0; i < depth; i++)
		start(i, write, bytes);
	publish();
	while (open) {
		struct vp_drvq_used u[64];
		unsigned n = vp_drvq_get_burst(&vm.q, u, 64), again = 0;

		if (vm.q.broken)
			die("the back-end broke the ring", NULL);
		if (!n) {
			wakes++;
			await(sleeps);
			continue;
		}
		t1 = vp_cycles();
		for (unsigned k = 0; k < n; k++) {
			const unsigned i = u[k].tag;

			if (vm.mem[HEADERS + 32 * i + sizeof(struct virtio_blk_outhdr)] != VIRTIO_BLK_S_OK)
				die("the disk", &(struct vp_err){ .msg = "a request failed" });
			if (n_took < SAMPLES)
				took[n_took++] = (uint32_t)(t1 - sent_at[i]);
			done++;
			open--;
			if (t1 < end) {
				start(i, write, bytes);
				open++;
				again++;
			}
		}
		if (again)
			publish();
	}
	qsort(took, n_took, sizeof(*took), by_value);
	printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu\": %llu, \"waits\": %llu, \"kicks\": %llu, "
	       "\"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}\n",
	       (unsigned long long)done, (double)(t1 - t0) / (double)hz, (unsigned long long)(cpu_ns() - c0),
	       (unsigned long long)wakes, (unsigned long long)kicks, took[n_took / 2] * us,
	       took[n_took - 1 - n_took / 100] * us, took[n_took - 1] * us);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[128], kind[16], wait[16];
	unsigned bytes, depth, ms;

	if (argc != 2) {
		fprintf(stderr, "usage: blkload SOCKET\n");
		return 2;
	}
	open_disk(argv[1]);
	printf("{\"bytes\": %llu}\n", (unsigned long long)vm.sectors * 512);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "run %15s %u %u %15s %u", kind, &bytes, &depth, wait, &ms) != 5 || !bytes ||
		    bytes > BYTES || bytes % 512 || vm.sectors * 512 < bytes || !depth || depth > DEPTHS ||
		    (strcmp(kind, "read") && strcmp(kind, "write")) ||
		    (strcmp(wait, "sleep") && strcmp(wait, "poll"))) {
			fprintf(stderr, "blkload: cannot run: %s", line);
			return 2;
		}
		run(*kind == 'w', bytes, depth, *wait == 's', ms);
	}
	vu_frontend_destroy(vm.f);
	return 0;
}
