/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver VM that has nothing to do but drive: DPDK's virtio-user port sends packets that were made before, and drops
 * what it receives. What dpdk-testpmd spends on making a packet would else set the pace of a fast receiver.
 *
 *   send_dpdk EAL-OPTIONS
 *
 * Commands on standard input, one a line; each is answered by one line of JSON:
 *   send SIZE      packets of SIZE bytes, made once
 *   write SIZE     the same, each byte written anew before every packet is sent: every line must come from this core
 *   take           receive and drop
 *   stop           nothing (sleeps)
 *   stats          packets, calls that moved some, and busy cycles since the start
 *   quit
 * Busy cycles are those of rounds that moved packets, as dpdk-testpmd counts them.
 *
 * A buffer comes back from the driver into the pool's cache as it was (one segment, lengths and offset untouched), so a
 * packet is ready as soon as it leaves the pool.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#define BURST      32
#define RING       256
#define TX_MBUFS   511  /* those in the ring, and few more: they stay in the cache */
#define RX_MBUFS   1023
#define CACHE      256  /* holds all that the driver gives back at once, which is most of its ring */
#define ROOM       (9216 + RTE_PKTMBUF_HEADROOM)
#define MAX_PACKET 9216
#define LOOK_EVERY 2048

enum mode { STOP, SEND, WRITE, TAKE };

static struct rte_mempool *tx_pool, *rx_pool;
static struct rte_mbuf *held[BURST];
static unsigned nheld, size;
static uint8_t seq;
static struct {
	uint64_t packets, bursts, busy;
} stats;

static int port_start(void)
{
	struct rte_eth_conf conf = { .rxmode.mtu = 9000, .rxmode.offloads = RTE_ETH_RX_OFFLOAD_SCATTER };
	struct rte_eth_dev_info info;
	struct rte_eth_txconf tx;
	int ret = rte_eth_dev_info_get(0, &info);

	conf.rxmode.offloads &= info.rx_offload_capa;
	tx = info.default_txconf;
	/* take buffers back as soon as there are some: few are in use, all in the cache */
	tx.tx_free_thresh = RING - BURST;
	if (!ret)
		ret = rte_eth_dev_configure(0, 1, 1, &conf);
	if (!ret)
		ret = rte_eth_rx_queue_setup(0, 0, RING, SOCKET_ID_ANY, NULL, rx_pool);
	if (!ret)
		ret = rte_eth_tx_queue_setup(0, 0, RING, SOCKET_ID_ANY, &tx);
	return ret ? ret : rte_eth_dev_start(0);
}

static void prepare_one(struct rte_mempool *pool, void *arg, void *obj, unsigned i)
{
	struct rte_mbuf *m = obj;

	rte_pktmbuf_reset(m);
	m->pkt_len = m->data_len = (uint16_t)size;
	memset(rte_pktmbuf_mtod(m, void *), 2, size);
}

/* Those in the ring too: the device side may see one change under it, and looks at nothing. */
static void prepare(unsigned n)
{
	size = n;
	rte_mempool_obj_iter(tx_pool, prepare_one, NULL);
}

static void send_some(bool write)
{
	uint64_t t0 = rte_rdtsc();
	unsigned n;

	if (nheld < BURST && !rte_mempool_get_bulk(tx_pool, (void **)(held + nheld), BURST - nheld)) {
		if (write) {
			seq++;
			for (unsigned i = nheld; i < BURST; i++)
				memset(rte_pktmbuf_mtod(held[i], void *), seq, size);
		}
		nheld = BURST;
	}
	n = rte_eth_tx_burst(0, 0, held, (uint16_t)nheld);
	if (!n)
		return;
	nheld -= n;
	memmove(held, held + n, nheld * sizeof(held[0]));
	stats.packets += n;
	stats.bursts++;
	stats.busy += rte_rdtsc() - t0;
}

static void take_some(void)
{
	struct rte_mbuf *m[BURST];
	uint64_t t0 = rte_rdtsc();
	unsigned n = rte_eth_rx_burst(0, 0, m, BURST);

	if (!n)
		return;
	rte_pktmbuf_free_bulk(m, n);
	stats.packets += n;
	stats.bursts++;
	stats.busy += rte_rdtsc() - t0;
}

static void answer(void)
{
	printf("{\"hz\": %" PRIu64 ", \"packets\": %" PRIu64 ", \"bursts\": %" PRIu64 ", \"busy_cycles\": %" PRIu64
	       "}\n",
	       rte_get_tsc_hz(), stats.packets, stats.bursts, stats.busy);
	fflush(stdout);
}

/* False when asked to end. */
static bool command(enum mode *m)
{
	char line[64] = "", word[32] = "";
	unsigned arg = 0;

	if (!fgets(line, sizeof(line), stdin))
		return false;
	sscanf(line, "%31s %u", word, &arg);
	if (!strcmp(word, "quit"))
		return false;
	if ((!strcmp(word, "send") || !strcmp(word, "write")) && arg >= 14 && arg <= MAX_PACKET) {
		prepare(arg);
		*m = word[0] == 's' ? SEND : WRITE;
	} else if (!strcmp(word, "take")) {
		*m = TAKE;
	} else if (!strcmp(word, "stop")) {
		*m = STOP;
	}
	answer();
	return true;
}

int main(int argc, char **argv)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	enum mode m = STOP;
	int ret = rte_eal_init(argc, argv);

	if (ret < 0)
		return 2;
	setvbuf(stdin, NULL, _IONBF, 0);
	tx_pool = rte_pktmbuf_pool_create("tx", TX_MBUFS, CACHE, 0, ROOM, SOCKET_ID_ANY);
	rx_pool = rte_pktmbuf_pool_create("rx", RX_MBUFS, CACHE, 0, ROOM, SOCKET_ID_ANY);
	if (!tx_pool || !rx_pool || port_start()) {
		fprintf(stderr, "send_dpdk: cannot start the port: %s\n", rte_strerror(rte_errno));
		return 2;
	}
	prepare(64);
	answer();
	for (;;) {
		if (poll(&in, 1, m == STOP ? 1000 : 0) > 0 && !command(&m))
			break;
		for (unsigned i = 0; m != STOP && i < LOOK_EVERY; i++) {
			if (m == TAKE)
				take_some();
			else
				send_some(m == WRITE);
		}
	}
	rte_eth_dev_stop(0);
	rte_eth_dev_close(0);
	rte_eal_cleanup();
	return 0;
}
