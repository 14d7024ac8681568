/* SPDX-License-Identifier: BSD-3-Clause */
#include "traffic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

/*
 * Behind the Ethernet header; little-endian as the machine is. The sum is CRC-32 (IEEE 802.3) of all that follows it.
 */
struct __attribute__((packed)) header {
	uint8_t  eth[14];
	uint32_t sum, id, epoch, len;
	uint64_t life, seq, ack_life, ack_seq;
};

_Static_assert(sizeof(struct header) <= PKT_MIN, "header");
_Static_assert(sizeof(struct end_page) <= 1024, "end_page");

static uint32_t crc_table[256];

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

uint64_t end_random(struct end *e)
{
	e->rng ^= e->rng << 13;
	e->rng ^= e->rng >> 7;
	e->rng ^= e->rng << 17;
	return e->rng;
}

static uint32_t crc32(const uint8_t *p, size_t n)
{
	uint32_t c = 0xffffffff;

	while (n--)
		c = crc_table[(c ^ *p++) & 0xff] ^ c >> 8;
	return ~c;
}

bool end_option(struct end_options *o, int argc, char **argv, int *i)
{
	const char *name = argv[*i], *v = *i + 1 < argc ? argv[*i + 1] : "";

	if (!strcmp(name, "--pages"))
		o->file = v;
	else if (!strcmp(name, "--link"))
		o->link = (unsigned)atoi(v);
	else if (!strcmp(name, "--end"))
		o->end = !!atoi(v);
	else if (!strcmp(name, "--life"))
		o->life = strtoull(v, NULL, 10);
	else if (!strcmp(name, "--rate"))
		o->rate = atof(v);
	else
		return false;
	++*i;
	return true;
}

int end_open(struct end *e, const struct end_options *o)
{
	/* Without a file: pages of one's own. */
	int fd = o->file ? open(o->file, O_RDWR | O_CLOEXEC) : memfd_create("pages", MFD_CLOEXEC);
	uint8_t *p;

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
		crc_table[i] = c;
	}
	if (o->rate <= 0)
		return -EINVAL;
	if (fd < 0)
		return -errno;
	if (!o->file && ftruncate(fd, PAGES) < 0) {
		close(fd);
		return -errno;
	}
	p = mmap(NULL, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return -errno;
	*e = (struct end){
		.ctl = (struct ctl_page *)(p + PAGE_CTL),
		.page = (struct end_page *)(p + PAGE_END * (1 + o->end)),
		.id = 2 * o->link + o->end,
		.life = o->life,
		.rate = o->rate,
		.burst = 8,
		.token_ns = now_ns(),
		.progress_ns = now_ns(),
	};
	e->rng = (o->life << 20 | e->id << 8 | 1) * UINT64_C(0x9e3779b97f4a7c15);
	__atomic_store_n(&e->page->life, o->life, __ATOMIC_RELEASE);
	e->page->running = 0;
	return 0;
}

void end_bad(struct end *e, uint64_t *counter, const char *fmt, ...)
{
	struct end_page *p = e->page;
	va_list ap;

	/* The first violation is the one to look at; until then, the last error. */
	if (!(p->dup | p->corrupt | p->stale | p->foreign | p->broken)) {
		va_start(ap, fmt);
		vsnprintf(p->msg, sizeof(p->msg), fmt, ap);
		va_end(ap);
	}
	__atomic_store_n(counter, *counter + 1, __ATOMIC_RELEASE);
}

unsigned end_may_send(struct end *e)
{
	uint64_t t = now_ns(), under_way = e->seq - e->acked;

	e->tokens += (double)(t - e->token_ns) * e->rate / 1e9;
	e->token_ns = t;
	if (e->tokens > e->burst)
		e->tokens = e->burst;
	if (e->tokens < 1 || __atomic_load_n(&e->ctl->pause, __ATOMIC_RELAXED))
		return 0;
	if (under_way < WINDOW)
		return (unsigned)VP_MIN((uint64_t)e->tokens, WINDOW - under_way);
	if (t - e->progress_ns < PROBE_MS * UINT64_C(1000000))
		return 0;
	e->progress_ns = t;
	e->page->probes++;
	return 1;
}

int end_wait_ms(struct end *e, int max)
{
	double need = 1 - e->tokens;

	if (e->seq - e->acked >= WINDOW)
		return VP_MIN(max, PROBE_MS / 4);
	return need <= 0 ? 0 : VP_MIN(max, (int)(need * 1000 / e->rate) + 1);
}

uint32_t end_make(struct end *e, uint8_t *buf)
{
	uint64_t r = end_random(e), x;
	uint32_t len = r & 3 ? PKT_MIN + (uint32_t)(r >> 8) % 200
			     : PKT_MIN + (uint32_t)(r >> 8) % (PKT_MAX - PKT_MIN + 1);
	struct header h = {
		.eth = { 2, 0, 0, 0, 0, (uint8_t)!(e->id & 1), 2, 0, 0, 0, 0, (uint8_t)(e->id & 1), 0x88, 0xb5 },
		.id = e->id, .len = len, .life = e->life, .seq = ++e->seq,
		.epoch = __atomic_load_n(&e->ctl->epoch, __ATOMIC_ACQUIRE),
		.ack_life = e->page->peer_life, .ack_seq = e->page->peer_seq,
	};

	memcpy(buf, &h, sizeof(h));
	x = (h.seq << 16 ^ h.life << 8 ^ h.id) * UINT64_C(0x9e3779b97f4a7c15);
	for (uint32_t i = sizeof(h); i < len; i++) {
		buf[i] = (uint8_t)(x >> (i & 7) * 8);
		if ((i & 7) == 7)
			x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
	}
	h.sum = crc32(buf + 18, len - 18);
	memcpy(buf + 14, &h.sum, 4);
	e->tokens -= 1;
	__atomic_store_n(&e->page->tx, e->page->tx + 1, __ATOMIC_RELAXED);
	return len;
}

void end_unmake(struct end *e)
{
	e->seq--;
	e->tokens += 1;
	__atomic_store_n(&e->page->tx, e->page->tx - 1, __ATOMIC_RELAXED);
}

static void acknowledged(struct end *e, const struct header *h, uint64_t t)
{
	if (h->ack_life != e->life || h->ack_seq <= e->acked || h->ack_seq > e->seq)
		return;
	e->acked = h->ack_seq;
	e->progress_ns = t;
}

void end_take(struct end *e, const uint8_t *buf, uint32_t len)
{
	struct end_page *p = e->page;
	uint64_t t = now_ns(), next;
	struct header h;

	if (len < PKT_MIN || len > PKT_MAX) {
		end_bad(e, &p->corrupt, "a packet of %u bytes", len);
		return;
	}
	memcpy(&h, buf, sizeof(h));
	if (h.len != len || crc32(buf + 18, len - 18) != h.sum) {
		end_bad(e, &p->corrupt,
			"a changed packet: %u bytes instead of %u, life %llu, number %llu, sum %08x instead of %08x",
			len, h.len, (unsigned long long)h.life, (unsigned long long)h.seq, crc32(buf + 18, len - 18),
			h.sum);
		return;
	}
	if (h.id != (e->id ^ 1)) {
		end_bad(e, &p->foreign, "a packet of link %u end %u came to link %u end %u", h.id >> 1, h.id & 1,
			e->id >> 1, e->id & 1);
		return;
	}
	if (h.life < p->peer_life) {
		end_bad(e, &p->stale, "number %llu of life %llu after life %llu had begun", (unsigned long long)h.seq,
			(unsigned long long)h.life, (unsigned long long)p->peer_life);
		return;
	}
	next = h.life == p->peer_life ? p->peer_seq + 1 : 1;
	if (h.seq < next) {
		end_bad(e, &p->dup, "number %llu of life %llu after number %llu", (unsigned long long)h.seq,
			(unsigned long long)h.life, (unsigned long long)p->peer_seq);
		return;
	}
	__atomic_store_n(&p->lost, p->lost + (h.seq - next), __ATOMIC_RELAXED);
	/* The order matters to a successor: a new life never stands beside an old number. */
	if (h.life != p->peer_life) {
		__atomic_store_n(&p->peer_seq, 0, __ATOMIC_RELEASE);
		__atomic_store_n(&p->peer_life, h.life, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&p->peer_seq, h.seq, __ATOMIC_RELEASE);
	acknowledged(e, &h, t);
	if (p->last_rx_ns && t - p->last_rx_ns > p->max_gap_ns)
		__atomic_store_n(&p->max_gap_ns, t - p->last_rx_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&p->last_rx_ns, t, __ATOMIC_RELAXED);
	p->rx_bytes += len;
	__atomic_store_n(&p->rx, p->rx + 1, __ATOMIC_RELAXED);
	__atomic_store_n(&p->epoch_seen, h.epoch, __ATOMIC_RELEASE);
}
