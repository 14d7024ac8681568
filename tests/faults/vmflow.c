/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Traffic in a test guest that goes on whatever happens: numbered and checksummed datagrams to the other end of a link,
 * and the judgement of what comes from there. For the fault campaign with VMs (vms.py); runs only inside them and
 * trusts its host.
 *
 *   vmflow LINK END PEER PORT PPS FILE
 *
 * LINK, END: numbers that tell packets of one end from those of any other. At most WINDOW packets are under way, so a
 * link that nobody disturbs loses none, however slow the machine. FILE always holds a line of counters; SIGUSR1 begins
 * a new longest gap (gap_ms). clock tells how fast this guest's seconds pass: a TSC that was measured while the
 * emulator waited for a CPU may run several times too fast.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x76706674u
#define WINDOW 32u
#define MAX_LEN 1440u
#define LIVES 64u
#define PROBE 0.1 /* seconds between attempts while nothing is acknowledged, and between lines of counters */

struct packet {
	uint32_t magic, where, life, seq, ack_life, ack_seq, len, sum;
	uint8_t fill[MAX_LEN];
};

#define HEAD (sizeof(struct packet) - MAX_LEN)

static struct {
	uint32_t tx, rx, lost, dup, bad, stale, foreign, errors, peer_life, peer_seq;
} count;
static double max_gap, last_rx;
static volatile sig_atomic_t new_gap;

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void on_usr1(int sig)
{
	(void)sig;
	new_gap = 1;
}

static uint32_t length(uint32_t seq)
{
	return seq * 97 % MAX_LEN;
}

/* What follows from life and number, and a checksum over the rest. */
static void finish(struct packet *p)
{
	uint64_t x = (uint64_t)p->life << 32 | p->seq | 1;
	uint32_t a = 1, b = 0, *w = (uint32_t *)p;

	p->len = length(p->seq);
	for (uint32_t i = 0; i < p->len; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p->fill[i] = (uint8_t)(x >> 32);
	}
	for (size_t i = 0; i < HEAD / 4 - 1; i++) {
		a += w[i];
		b = (b << 5 | b >> 27) ^ a;
	}
	p->sum = b;
}

static void judge(const struct packet *p, size_t len, uint32_t from, uint32_t life, uint32_t *acked)
{
	static uint32_t lives[LIVES];
	struct packet want;

	want = *p;
	if (len < HEAD || p->magic != MAGIC) {
		count.bad++;
		return;
	}
	finish(&want);
	if (len != HEAD + want.len || memcmp(&want, p, len)) {
		count.bad++;
		return;
	}
	if (p->where != from) {
		count.foreign++;
		return;
	}
	if (p->life != count.peer_life) {
		for (unsigned int i = 0; i < LIVES; i++) {
			if (lives[i] == p->life) {
				count.stale++;
				return;
			}
		}
		memmove(lives + 1, lives, sizeof(lives) - sizeof(lives[0]));
		lives[0] = count.peer_life;
		count.peer_life = p->life;
	} else if ((int32_t)(p->seq - count.peer_seq) <= 0) {
		count.dup++;
		return;
	} else {
		count.lost += p->seq - count.peer_seq - 1;
	}
	count.peer_seq = p->seq;
	count.rx++;
	if (now() - last_rx > max_gap)
		max_gap = now() - last_rx;
	last_rx = now();
	if (p->ack_life == life && (int32_t)(p->ack_seq - *acked) > 0)
		*acked = p->ack_seq;
}

static void report(const char *file, uint32_t life)
{
	char tmp[256];
	double gap = now() - last_rx;
	FILE *f;

	if (new_gap) {
		new_gap = 0;
		max_gap = 0;
	}
	snprintf(tmp, sizeof(tmp), "%s.new", file);
	f = fopen(tmp, "we");
	if (!f)
		return;
	fprintf(f,
		"life=%u tx=%u rx=%u lost=%u dup=%u bad=%u stale=%u foreign=%u errors=%u peer_life=%u peer_seq=%u "
		"gap_ms=%.0f clock=%.3f\n",
		life, count.tx, count.rx, count.lost, count.dup, count.bad, count.stale, count.foreign, count.errors,
		count.peer_life, count.peer_seq, (gap > max_gap ? gap : max_gap) * 1e3, now());
	if (fclose(f) == 0)
		rename(tmp, file);
}

int main(int argc, char **argv)
{
	struct sockaddr_in peer = { .sin_family = AF_INET }, self = { .sin_family = AF_INET };
	struct sigaction sa = { .sa_handler = on_usr1 };
	int s = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
	uint32_t life, where, acked = 0;
	double next = now(), probe = 0, told = 0;
	static struct packet p;
	double step;

	if (argc != 7 || !inet_aton(argv[3], &peer.sin_addr) || getrandom(&life, sizeof(life), 0) != sizeof(life))
		return 2;
	life |= 1;
	where = (uint32_t)(atoi(argv[1]) << 1 | atoi(argv[2]));
	peer.sin_port = self.sin_port = htons((uint16_t)atoi(argv[4]));
	step = 1 / atof(argv[5]);
	sigaction(SIGUSR1, &sa, NULL);
	/* Without a UDP checksum: what was changed on the way is to be seen, not dropped by the kernel. */
	if (setsockopt(s, SOL_SOCKET, SO_NO_CHECK, &one, sizeof(one)) < 0 || bind(s, (void *)&self, sizeof(self)) < 0) {
		perror("vmflow");
		return 1;
	}
	last_rx = now();
	for (;;) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		double t = now();
		ssize_t r;

		if (t >= next) {
			/* Not what was missed while nobody ran this. */
			next = t - next > 1 ? t + step : next + step;
			if (count.tx - acked < WINDOW || t - probe > PROBE) {
				probe = t;
				memset(&p, 0, HEAD);
				p.magic = MAGIC;
				p.where = where;
				p.life = life;
				p.seq = count.tx + 1;
				p.ack_life = count.peer_life;
				p.ack_seq = count.peer_seq;
				finish(&p);
				if (sendto(s, &p, HEAD + p.len, MSG_DONTWAIT, (void *)&peer, sizeof(peer)) < 0)
					count.errors++;
				else
					count.tx++;
			}
		}
		if (t - told > PROBE) {
			told = t;
			report(argv[6], life);
		}
		t = next - now();
		poll(&pf, 1, t > 0 ? (int)(t * 1e3) + 1 : 0);
		while ((r = recv(s, &p, sizeof(p), MSG_DONTWAIT)) >= 0)
			judge(&p, (size_t)r, where ^ 1, life, &acked);
	}
}
