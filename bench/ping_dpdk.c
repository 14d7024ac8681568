/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Round trips from a virtio-user port through whatever answers, one packet at a time.
 *
 *   ping_dpdk EAL-OPTIONS -- COUNT SIZE [intr]
 *
 * With intr the driver sleeps in epoll until its interrupt (call eventfd) comes, else it polls.
 * Prints one JSON object: cycles (TSC) of the 50th, 99th and 99.9th percentile, and the clock; of these, how many the
 * driver spent (median) in the call that sent ("tx") and in the one that received ("rx").
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_mbuf.h>

static struct rte_mempool *pool;
static bool intr;

static int port_start(void)
{
	struct rte_eth_conf conf = { .intr_conf.rxq = intr };
	int ret = rte_eth_dev_configure(0, 1, 1, &conf);

	if (!ret)
		ret = rte_eth_rx_queue_setup(0, 0, 256, SOCKET_ID_ANY, NULL, pool);
	if (!ret)
		ret = rte_eth_tx_queue_setup(0, 0, 256, SOCKET_ID_ANY, NULL);
	if (!ret)
		ret = rte_eth_dev_start(0);
	if (!ret && intr)
		ret = rte_eth_dev_rx_intr_ctl_q(0, 0, RTE_EPOLL_PER_THREAD, RTE_INTR_EVENT_ADD, NULL);
	return ret;
}

/* Sleep until a packet is there; false: nothing came for a second. */
static bool wait_packet(void)
{
	struct rte_epoll_event ev;
	int n;

	rte_eth_dev_rx_intr_enable(0, 0);
	if (rte_eth_rx_queue_count(0, 0) > 0) {
		rte_eth_dev_rx_intr_disable(0, 0);
		return true;
	}
	n = rte_epoll_wait(RTE_EPOLL_PER_THREAD, &ev, 1, 1000);
	rte_eth_dev_rx_intr_disable(0, 0);
	return n > 0;
}

/* Cycles of one round trip; 0: no answer. Those of the two calls that moved the packet in *tx and *rx. */
static uint64_t ping(unsigned size, uint64_t *tx, uint64_t *rx)
{
	struct rte_mbuf *m = rte_pktmbuf_alloc(pool), *r[8];
	uint64_t t0, t1, end;
	unsigned n;

	if (!m)
		return 0;
	memset(rte_pktmbuf_mtod(m, void *), 2, size);
	m->pkt_len = m->data_len = (uint16_t)size;
	t0 = rte_rdtsc();
	end = t0 + rte_get_tsc_hz();
	while (!rte_eth_tx_burst(0, 0, &m, 1)) {
		if (rte_rdtsc() > end) {
			rte_pktmbuf_free(m);
			return 0;
		}
	}
	*tx = rte_rdtsc() - t0;
	for (;;) {
		t1 = rte_rdtsc();
		n = rte_eth_rx_burst(0, 0, r, 8);
		if (n) {
			uint64_t t = rte_rdtsc();

			*rx = t - t1;
			rte_pktmbuf_free_bulk(r, n);
			return t - t0;
		}
		if (intr ? !wait_packet() : rte_rdtsc() > end)
			return 0;
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	unsigned long count, got = 0, failed = 0;
	unsigned size;
	uint64_t *t, *tx, *rx;
	int ret = rte_eal_init(argc, argv);

	if (ret < 0)
		return 2;
	argc -= ret;
	argv += ret;
	count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	size = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
	intr = argc > 3 && !strcmp(argv[3], "intr");
	if (!count || count > 10000000 || size < 14 || size > 2000) {
		fprintf(stderr, "usage: ping_dpdk EAL-OPTIONS -- COUNT SIZE [intr]\n");
		return 2;
	}
	t = calloc(count + 1, sizeof(*t));
	tx = calloc(count + 1, sizeof(*tx));
	rx = calloc(count + 1, sizeof(*rx));
	pool = rte_pktmbuf_pool_create("packets", 1023, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (!t || !tx || !rx || !pool || port_start()) {
		fprintf(stderr, "ping_dpdk: cannot start the port: %s\n", rte_strerror(rte_errno));
		return 2;
	}
	for (unsigned i = 0; i < 1000 && failed < 5; i++) /* until the other side is there, and warm */
		failed += !ping(size, tx, rx);
	failed = 0;
	while (got < count && failed < 100) {
		t[got] = ping(size, tx + got, rx + got);
		if (t[got])
			got++;
		else
			failed++;
	}
	if (!got) {
		fprintf(stderr, "ping_dpdk: no answer\n");
		return 1;
	}
	qsort(t, got, sizeof(*t), by_value);
	qsort(tx, got, sizeof(*tx), by_value);
	qsort(rx, got, sizeof(*rx), by_value);
	printf("{\"count\": %lu, \"failed\": %lu, \"hz\": %" PRIu64 ", \"p50\": %" PRIu64 ", \"p99\": %" PRIu64
	       ", \"p999\": %" PRIu64 ", \"min\": %" PRIu64 ", \"tx\": %" PRIu64 ", \"rx\": %" PRIu64 "}\n",
	       got, failed, rte_get_tsc_hz(), t[got / 2], t[got * 99 / 100], t[got * 999 / 1000], t[0], tx[got / 2],
	       rx[got / 2]);
	fflush(stdout);
	rte_eth_dev_stop(0);
	rte_eth_dev_close(0);
	rte_eal_cleanup();
	return 0;
}
