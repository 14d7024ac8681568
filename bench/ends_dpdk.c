/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Both ends of a link on one core, so that whatever lies between them has the other: a driver VM (a DPDK virtio-user
 * port, that of the EAL options) and a device VM (libvhostpci, that of PORT). Packets
 * circulate: the device sends back what it receives, the driver too.
 *
 *   ends_dpdk EAL-OPTIONS -- [PORT]     without PORT only the driver VM
 *
 * Commands on standard input, one a line; each is answered by one line of JSON:
 *   start SIZE BURSTS   let BURSTS bursts of 32 packets of SIZE bytes go round
 *   use SIZE BURSTS     the same, and both ends use them (use.h): read all of what comes, then write all of what goes
 *   bounce SIZE BURSTS  as use, and the driver VM's buffers are a pool through which it bounces: it copies what comes
 * into memory of its own, and what goes from there, as a kernel with swiotlb=force does cost SIZE           cycles that
 * reading and writing a packet take when it lies in this core's cache stop                takes all of them out again,
 * and sleeps stats               packets and busy cycles of both ends since the start quit Busy cycles are those of
 * rounds that moved packets, as dpdk-testpmd counts them; using packets is part of them.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <vhost-pci/vhostpci.h>

#include "use.h"

#define BURST      32
#define RING       256
#define MBUFS      4095
#define BUFFERS    BURST /* the same for every burst, as those of a pool that gives out what came back last */
#define STRIDE     2304
#define MAX_PACKET 2048
#define LOOK_EVERY 4096

static struct rte_mempool *pool;
static struct vhp_port *port;
static uint8_t *buffers;
static bool up, using, bouncing;
static uint8_t *own; /* the driver VM's memory that no device reaches */

static struct {
	uint64_t packets, bursts, busy;
} drv, dev;
static uint64_t unsent;

static int driver_start(void)
{
	struct rte_eth_conf conf = { 0 };
	int ret = rte_eth_dev_configure(0, 1, 1, &conf);

	if (!ret)
		ret = rte_eth_rx_queue_setup(0, 0, RING, SOCKET_ID_ANY, NULL, pool);
	if (!ret)
		ret = rte_eth_tx_queue_setup(0, 0, RING, SOCKET_ID_ANY, NULL);
	return ret ? ret : rte_eth_dev_start(0);
}

static void inject(unsigned size, unsigned bursts)
{
	struct rte_mbuf *m[BURST];

	while (bursts--) {
		unsigned n = 0;

		if (rte_pktmbuf_alloc_bulk(pool, m, BURST))
			return;
		for (unsigned i = 0; i < BURST; i++) {
			memset(rte_pktmbuf_mtod(m[i], void *), 2, size);
			m[i]->pkt_len = m[i]->data_len = (uint16_t)size;
		}
		n = rte_eth_tx_burst(0, 0, m, BURST);
		if (n < BURST)
			rte_pktmbuf_free_bulk(m + n, BURST - n);
	}
}

/* Packet i of a burst as its driver uses it: where it lies, or in memory of its own. */
static void driver_use(struct rte_mbuf *m, unsigned i, bool back)
{
	uint8_t *data = rte_pktmbuf_mtod(m, uint8_t *), *at = bouncing ? own + (size_t)i * STRIDE + 128 : data;

	if (bouncing)
		memcpy(at, data, m->data_len);
	use_read(at, m->data_len);
	if (!back)
		return;
	use_write(at, m->data_len);
	if (bouncing)
		memcpy(data, at, m->data_len);
}

/* back: send again what came. */
static void driver_round(bool back)
{
	struct rte_mbuf *m[BURST];
	uint64_t t0 = rte_rdtsc();
	unsigned n = rte_eth_rx_burst(0, 0, m, BURST), k;

	if (!n)
		return;
	for (unsigned i = 0; using && i < n; i++)
		driver_use(m[i], i, back);
	k = back ? rte_eth_tx_burst(0, 0, m, (uint16_t)n) : 0;
	if (k < n) {
		rte_pktmbuf_free_bulk(m + k, n - k);
		unsent += back ? n - k : 0;
	}
	drv.packets += n;
	drv.bursts++;
	drv.busy += rte_rdtsc() - t0;
}

static void device_round(void)
{
	struct vhp_packet p[BURST];
	uint64_t t0 = rte_rdtsc();
	int n, k = 1, done = 0;

	for (unsigned i = 0; i < BURST; i++) {
		p[i].data = buffers + (size_t)i * STRIDE + 128;
		p[i].room = MAX_PACKET;
	}
	n = vhp_recv(port, 0, p, BURST);
	if (n <= 0)
		return;
	for (int i = 0; using && i < n; i++)
		use_read(p[i].data, p[i].len);
	for (int i = 0; using && i < n; i++)
		use_write(p[i].data, p[i].len);
	while (done < n && k > 0) {
		k = vhp_send(port, 0, p + done, (unsigned)(n - done));
		done += k > 0 ? k : 0;
	}
	unsent += (unsigned)(n - done);
	dev.packets += (unsigned)n;
	dev.bursts++;
	dev.busy += rte_rdtsc() - t0;
}

static void look(void)
{
	struct vhp_error e = { 0 };
	int r;

	if (!port)
		return;
	r = vhp_update(port, &e);
	if (r < 0)
		fprintf(stderr, "ends_dpdk: %s\n", e.msg);
	up = r == 1;
}

static void rounds(unsigned n, bool back)
{
	while (n--) {
		driver_round(back);
		if (!port)
			continue;
		if (vhp_changed(port))
			look();
		if (up)
			device_round();
	}
}

static int by_value(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Medians over bursts, in the buffers and in the order that the device VM has them. */
static void cost(unsigned size)
{
	uint64_t rd[1001], wr[1001], t0, t1;

	for (unsigned k = 0; k < RTE_DIM(rd); k++) {
		t0 = rte_rdtsc();
		for (unsigned i = 0; i < BURST; i++)
			use_read(buffers + (size_t)i * STRIDE + 128, size);
		t1 = rte_rdtsc();
		for (unsigned i = 0; i < BURST; i++)
			use_write(buffers + (size_t)i * STRIDE + 128, size);
		wr[k] = rte_rdtsc() - t1;
		rd[k] = t1 - t0;
	}
	qsort(rd, RTE_DIM(rd), sizeof(rd[0]), by_value);
	qsort(wr, RTE_DIM(wr), sizeof(wr[0]), by_value);
	printf("{\"read\": %.1f, \"write\": %.1f}\n", (double)rd[RTE_DIM(rd) / 2] / BURST,
	       (double)wr[RTE_DIM(wr) / 2] / BURST);
	fflush(stdout);
}

static void answer(void)
{
	printf("{\"up\": %d, \"hz\": %" PRIu64 ", \"packets\": %" PRIu64 ", \"driver_bursts\": %" PRIu64
	       ", \"driver_cycles\": %" PRIu64 ", \"device_packets\": %" PRIu64 ", \"device_bursts\": %" PRIu64
	       ", \"device_cycles\": %" PRIu64 ", \"unsent\": %" PRIu64 "}\n",
	       up, rte_get_tsc_hz(), drv.packets, drv.bursts, drv.busy, dev.packets, dev.bursts, dev.busy, unsent);
	fflush(stdout);
}

/* False when asked to end. */
static bool command(bool *on)
{
	char line[64] = "", word[32] = "";
	unsigned size = 0, bursts = 0;

	if (!fgets(line, sizeof(line), stdin))
		return false;
	sscanf(line, "%31s %u %u", word, &size, &bursts);
	if (!strcmp(word, "quit"))
		return false;
	if (!strcmp(word, "cost") && size >= 14 && size <= MAX_PACKET) {
		cost(size);
		return true;
	}
	if ((!strcmp(word, "start") || !strcmp(word, "use") || !strcmp(word, "bounce")) && size >= 14 &&
	    size <= MAX_PACKET) {
		bouncing = word[0] == 'b';
		using = word[0] == 'u' || bouncing;
		look();
		inject(size, bursts);
		*on = true;
	} else if (!strcmp(word, "stop")) {
		rounds(100000, false);
		*on = false;
	}
	answer();
	return true;
}

int main(int argc, char **argv)
{
	struct vhp_params params = { .size = sizeof(params) };
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	struct vhp_error e = { 0 };
	bool on = false;
	int ret = rte_eal_init(argc, argv);

	if (ret < 0)
		return 2;
	argc -= ret;
	argv += ret;
	setvbuf(stdin, NULL, _IONBF, 0); /* poll() must see what fgets() has not taken */
	pool = rte_pktmbuf_pool_create("packets", MBUFS, 128, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	buffers =
		mmap(NULL, BUFFERS * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	own = malloc(BUFFERS * STRIDE);
	if (!pool || buffers == MAP_FAILED || !own || driver_start()) {
		fprintf(stderr, "ends_dpdk: cannot start the port: %s\n", rte_strerror(rte_errno));
		return 2;
	}
	if (argc > 1 && vhp_open(&port, argv[1], &params, &e)) {
		fprintf(stderr, "ends_dpdk: %s: %s\n", argv[1], e.msg);
		return 2;
	}
	answer();
	for (;;) {
		if (poll(&in, 1, on ? 0 : 100) > 0 && !command(&on))
			break;
		if (on)
			rounds(LOOK_EVERY, true);
		else
			look();
	}
	if (port)
		vhp_close(port);
	rte_eth_dev_stop(0);
	rte_eth_dev_close(0);
	rte_eal_cleanup();
	return 0;
}
