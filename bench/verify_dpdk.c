/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Numbered, checksummed packets of all sizes from one virtio-user port to
 * another and back, through whatever joins them. The driver is DPDK's; this
 * program only makes packets and looks at what arrives.
 *
 *   verify_dpdk EAL-OPTIONS -- PACKETS MAX_SIZE QUEUES SEGMENTS [IDLE_US]
 *
 * PACKETS in each direction and queue; sizes 34 to MAX_SIZE at random; up to SEGMENTS
 * mbufs (descriptors) a packet; with IDLE_US the sender pauses now and then, so that the middle falls asleep and
 * must be woken. Every stream has a window smaller than the receive ring, so a packet that does
 * not arrive was lost, not too many. Prints one JSON object; exits 0 when every packet arrived once, whole and in
 * order.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>

#define RING       1024
/* packets in flight of a stream; a 9000 byte packet takes 5 buffers of a port's mergeable ring */
#define WINDOW     384
#define BURST      32
#define MIN_SIZE   34      /* HEAD */
#define MAX_QUEUES 8
#define SILENCE_MS 15000   /* nothing came for so long, on a busy machine too: what is missing is lost */
#define K          UINT64_C(0x9e3779b97f4a7c15)

/* Behind the Ethernet addresses and type. All on the same host: no byte order. */
struct stamp {
	uint16_t type;
	uint16_t stream;   /* direction and queue */
	uint16_t size;     /* of the whole packet */
	uint64_t seq;
	uint64_t sum;      /* of what follows, seeded with the fields above */
} __attribute__((packed));
#define HEAD (12 + sizeof(struct stamp))
_Static_assert(HEAD == MIN_SIZE, "the smallest packet is a bare stamp");

struct stream {
	uint64_t sent, expect, received, bytes;
	uint64_t lost, late, corrupt, foreign;
	uint64_t rng;
};

static struct rte_mempool *pool;
static struct stream streams[2][MAX_QUEUES];
static unsigned queues, max_size, max_segs;
static uint64_t goal;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= K;
	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 32;
}

static uint64_t rnd(struct stream *s)
{
	s->rng += K;
	return mix(s->rng);
}

static uint64_t sum(const uint8_t *p, unsigned n, uint64_t h)
{
	uint64_t w;

	for (; n >= 8; n -= 8, p += 8) {
		memcpy(&w, p, 8);
		h = (h ^ w) * K;
		h ^= h >> 32;
	}
	w = n;
	memcpy(&w, p, n);
	return mix(h ^ w);
}

static uint64_t seed(const struct stamp *st)
{
	return mix(st->seq * K + ((uint64_t)st->stream << 48 | (uint64_t)st->size << 16 | st->type));
}

/* The packet as one piece of memory, then cut into mbufs. */
static void make(struct stream *s, unsigned id, uint8_t *buf, unsigned size)
{
	struct stamp st = { .type = 0x88b5, .stream = (uint16_t)id, .size = (uint16_t)size, .seq = s->sent };
	uint64_t x = rnd(s);
	unsigned i;

	memset(buf, 0x02, 12);
	for (i = HEAD; i + 8 <= size; i += 8) {
		x += K;
		memcpy(buf + i, &x, 8);
	}
	for (; i < size; i++)
		buf[i] = (uint8_t)(x >> 8 * (i & 7));
	st.sum = sum(buf + HEAD, size - HEAD, seed(&st));
	memcpy(buf + 12, &st, sizeof(st));
}

static struct rte_mbuf *to_mbufs(struct stream *s, const uint8_t *buf, unsigned size)
{
	unsigned room, left = size, segs = max_segs > 1 ? 1 + rnd(s) % max_segs : 1;
	struct rte_mbuf *head = NULL, **link = &head, *m;

	while (left) {
		m = rte_pktmbuf_alloc(pool);
		if (!m)
			goto fail;
		*link = m;
		link = &m->next;
		room = rte_pktmbuf_tailroom(m);
		if (segs > 1) /* any cut will do, also inside the header */
			room = RTE_MIN(room, 1 + (unsigned)(rnd(s) % left));
		room = RTE_MIN(room, left);
		memcpy(rte_pktmbuf_mtod(m, void *), buf, room);
		m->data_len = (uint16_t)room;
		buf += room;
		left -= room;
		if (segs > 1)
			segs--;
		if (m != head)
			head->nb_segs++;
	}
	head->pkt_len = size;
	return head;
fail:
	rte_pktmbuf_free(head);
	return NULL;
}

static unsigned pick_size(struct stream *s)
{
	uint64_t r = rnd(s);

	/* Small, large and in between alike; the exact borders often. */
	switch (r & 7) {
	case 0:
		return MIN_SIZE + (unsigned)((r >> 8) % 100);
	case 1:
		return max_size - (unsigned)((r >> 8) % 8);
	default:
		return MIN_SIZE + (unsigned)((r >> 8) % (max_size - MIN_SIZE + 1));
	}
}

static unsigned send_some(unsigned dir, unsigned q)
{
	struct stream *s = &streams[dir][q];
	struct rte_mbuf *m[BURST];
	static uint8_t buf[16384];
	unsigned n = 0, done;

	while (n < BURST && s->sent + n < goal && s->sent + n - s->expect < WINDOW / (max_size > 2000 ? 4 : 1)) {
		uint64_t keep = s->sent;
		unsigned size = pick_size(s);

		s->sent += n;
		make(s, dir * MAX_QUEUES + q, buf, size);
		s->sent = keep;
		m[n] = to_mbufs(s, buf, size);
		if (!m[n])
			break;
		n++;
	}
	done = 0;
	/* In order or not at all: what the ring did not take is tried again until it is. */
	while (done < n) {
		unsigned k = rte_eth_tx_burst((uint16_t)dir, (uint16_t)q, m + done, (uint16_t)(n - done));

		if (!k && done)
			break;
		if (!k)
			goto none;
		done += k;
	}
	if (done < n) {
		uint64_t end = rte_get_timer_cycles() + rte_get_timer_hz();

		while (done < n && rte_get_timer_cycles() < end)
			done += rte_eth_tx_burst((uint16_t)dir, (uint16_t)q, m + done, (uint16_t)(n - done));
	}
	s->sent += done;
	rte_pktmbuf_free_bulk(m + done, n - done);
	return done;
none:
	rte_pktmbuf_free_bulk(m, n);
	return 0;
}

static void look(struct rte_mbuf *m, unsigned port)
{
	unsigned size = m->pkt_len, dir = !port, q;
	static uint8_t copy[65536];
	const uint8_t *p = rte_pktmbuf_read(m, 0, size, copy);
	struct stamp st;
	struct stream *s;

	if (!p || size < HEAD) {
		streams[dir][0].corrupt++;
		return;
	}
	memcpy(&st, p + 12, sizeof(st));
	q = st.stream % MAX_QUEUES;
	if (st.stream / MAX_QUEUES != dir || q >= queues || st.type != 0x88b5) {
		streams[dir][0].foreign++;
		return;
	}
	s = &streams[dir][q];
	if (st.size != size || st.sum != sum(p + HEAD, size - HEAD, seed(&st))) {
		s->corrupt++;
		return;
	}
	s->received++;
	s->bytes += size;
	if (st.seq < s->expect) {
		s->late++; /* a second time, or overtaken */
		return;
	}
	s->lost += st.seq - s->expect;
	s->expect = st.seq + 1;
}

static unsigned receive(unsigned port)
{
	struct rte_mbuf *m[BURST];
	unsigned total = 0;

	for (unsigned q = 0; q < queues; q++) {
		unsigned n = rte_eth_rx_burst((uint16_t)port, (uint16_t)q, m, BURST);

		for (unsigned i = 0; i < n; i++)
			look(m[i], port);
		rte_pktmbuf_free_bulk(m, n);
		total += n;
	}
	return total;
}

static int port_start(uint16_t port)
{
	struct rte_eth_conf conf = { 0 };
	struct rte_eth_dev_info info;
	int ret = rte_eth_dev_info_get(port, &info);

	if (ret)
		return ret;
	conf.rxmode.mtu = max_size > 1518 ? max_size - 14 : RTE_ETHER_MTU + 8;
	if (max_size > 1518)
		conf.rxmode.offloads = RTE_ETH_RX_OFFLOAD_SCATTER & info.rx_offload_capa;
	conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_MULTI_SEGS & info.tx_offload_capa;
	ret = rte_eth_dev_configure(port, (uint16_t)queues, (uint16_t)queues, &conf);
	for (uint16_t q = 0; !ret && q < queues; q++) {
		ret = rte_eth_rx_queue_setup(port, q, RING, SOCKET_ID_ANY, NULL, pool);
		if (!ret)
			ret = rte_eth_tx_queue_setup(port, q, RING, SOCKET_ID_ANY, NULL);
	}
	return ret ? ret : rte_eth_dev_start(port);
}

static int report(double seconds)
{
	struct stream t = { 0 };

	for (unsigned d = 0; d < 2; d++)
		for (unsigned q = 0; q < queues; q++) {
			struct stream *s = &streams[d][q];

			s->lost += s->sent - s->expect; /* at the end of the stream */
			t.sent += s->sent;
			t.received += s->received;
			t.bytes += s->bytes;
			t.lost += s->lost;
			t.late += s->late;
			t.corrupt += s->corrupt;
			t.foreign += s->foreign;
		}
	printf("{\"sent\": %" PRIu64 ", \"received\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"lost\": %" PRIu64
	       ", \"late\": %" PRIu64 ", \"corrupt\": %" PRIu64 ", \"foreign\": %" PRIu64 ", \"seconds\": %.1f}\n",
	       t.sent, t.received, t.bytes, t.lost, t.late, t.corrupt, t.foreign, seconds);
	fflush(stdout);
	return t.lost || t.late || t.corrupt || t.foreign || t.sent != t.received || t.sent != 2 * queues * goal;
}

int main(int argc, char **argv)
{
	uint64_t t0, last, hz, said, idle = 0, got = 0;
	int ret = rte_eal_init(argc, argv);

	if (ret < 0)
		return 2;
	argc -= ret;
	argv += ret;
	if (argc < 5) {
		fprintf(stderr, "usage: verify_dpdk EAL-OPTIONS -- PACKETS MAX_SIZE QUEUES SEGMENTS [IDLE_US]\n");
		return 2;
	}
	goal = strtoull(argv[1], NULL, 10);
	max_size = (unsigned)atoi(argv[2]);
	queues = (unsigned)atoi(argv[3]);
	max_segs = (unsigned)atoi(argv[4]);
	if (argc > 5)
		idle = strtoull(argv[5], NULL, 10);
	if (!goal || max_size < 64 || max_size > 9600 || queues < 1 || queues > MAX_QUEUES || max_segs < 1 ||
	    max_segs > 16 || rte_eth_dev_count_avail() != 2) {
		fprintf(stderr, "verify_dpdk: sizes 64 to 9600, 1 to 8 queues, 1 to 16 segments, two ports\n");
		return 2;
	}
	pool = rte_pktmbuf_pool_create("packets", 16383 * queues, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (!pool || port_start(0) || port_start(1)) {
		fprintf(stderr, "verify_dpdk: cannot start the ports: %s\n", rte_strerror(rte_errno));
		return 2;
	}
	/*
	 * The port enables its further queue pairs by messages that nobody answers. What is sent on a ring that is
	 * not enabled yet is taken and discarded (vhost-user, "Ring states"): that would be no loss of the middle's.
	 */
	if (queues > 1)
		rte_delay_us_sleep(1000000);
	hz = rte_get_timer_hz();
	for (unsigned i = 0; i < 2 * MAX_QUEUES; i++)
		streams[i / MAX_QUEUES][i % MAX_QUEUES].rng = i + 1;
	t0 = last = said = rte_get_timer_cycles();
	for (;;) {
		bool all = true;
		uint64_t now;
		unsigned n = 0;

		for (unsigned d = 0; d < 2; d++)
			for (unsigned q = 0; q < queues; q++) {
				send_some(d, q);
				all = all && streams[d][q].sent == goal && streams[d][q].expect == goal;
			}
		n = receive(0) + receive(1);
		got += n;
		now = rte_get_timer_cycles();
		if (n)
			last = now;
		/* With all there, a moment more, for duplicates. */
		if (now - last > (all ? hz / 10 : hz / 1000 * SILENCE_MS))
			break;
		if (idle && got >= 20000) {
			/* Drain, rest, go on. */
			rte_delay_us_sleep((unsigned)idle);
			got = 0;
		}
		if (now - said > 10 * hz) {
			said = now;
			fprintf(stderr, "verify_dpdk: %" PRIu64 " of %" PRIu64 " in the first stream\n",
				streams[0][0].expect, goal);
		}
	}
	ret = report((double)(last - t0) / (double)hz);
	for (uint16_t p = 0; p < 2; p++) {
		rte_eth_dev_stop(p);
		rte_eth_dev_close(p);
	}
	rte_eal_cleanup();
	return ret;
}
