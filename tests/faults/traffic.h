/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Numbered and checksummed packets between the two ends of a link, and the page on which an end tells the campaign what
 * it saw.
 *
 * A link has one file: a control page and a page for each end. They outlive the processes, so that an end that
 * was killed and started anew goes on checking where its predecessor had stopped: a packet
 * that both of them receive is a packet received twice.
 *
 * Numbers start at 1 in each *life* of a sender (lives are numbered by the campaign, upwards) and rise by one. What the
 * receiver may see: rising numbers of the present life, or the first packets of a later one. Each packet acknowledges
 * the highest number received from the other end, and a sender has at most WINDOW packets under way, fewer than any
 * ring holds: so an undisturbed link loses nothing, however slow its ends are.
 *
 * One thread for each end. The campaign reads the pages at any time.
 */
#ifndef FAULTS_TRAFFIC_H
#define FAULTS_TRAFFIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WINDOW     32
#define PKT_MIN    66
#define PKT_MAX    1514
#define PROBE_MS   50   /* without an answer for so long: one packet beyond the window */

/* Offsets and sizes are the campaign's too (link.py). */
struct ctl_page {
	uint32_t epoch;  /* put into every packet; raised by the campaign when a fault is over */
	uint32_t pause;  /* send nothing */
};

struct end_page {
	uint64_t life, tx, rx, rx_bytes;
	uint64_t lost;                            /* numbers that never came */
	/* violations: again or backwards; changed; of an earlier life; of another link */
	uint64_t dup, corrupt, stale, foreign;
	uint64_t broken;                          /* violation: rings that the other end broke */
	uint64_t probes, sessions, errors;
	uint64_t max_gap_ns, last_rx_ns;          /* the campaign sets max_gap_ns to 0 */
	uint64_t peer_life, peer_seq;             /* the last one seen */
	uint32_t epoch_seen, running;
	char     msg[256];                        /* the first violation, or the last error */
};

#define PAGE_CTL 0
#define PAGE_END 1024
#define PAGES    4096

struct end {
	struct ctl_page *ctl;
	struct end_page *page;
	uint32_t id;                 /* of the link and this end: 2 * link + end */
	uint64_t life, seq, acked;   /* of what this end sends */
	uint64_t progress_ns;        /* last time that something was acknowledged */
	uint64_t rng;
	/* rate */
	double   rate, tokens;       /* packets per second */
	unsigned burst;
	uint64_t token_ns;
};

uint64_t now_ns(void);
uint64_t end_random(struct end *e);

/* What both programs take: --pages FILE, --link N, --end 0|1, --life N, --rate N (packets per second). */
#define END_USAGE "--pages FILE [--link N] [--end 0|1] [--life N] [--rate N]"

struct end_options {
	const char *file;        /* NULL: nobody else sees the pages */
	unsigned    link, end;   /* link numbers are below 2^31 */
	uint64_t    life;
	double      rate;
};
#define END_DEFAULTS(end_) { .end = (end_), .life = 1, .rate = 500 }

/* One of them with its value? Then *i moves to the value. */
bool end_option(struct end_options *o, int argc, char **argv, int *i);

/* -errno */
int end_open(struct end *e, const struct end_options *o);

/* How many packets may be sent now (rate, window, pause). */
unsigned end_may_send(struct end *e);
/* Milliseconds until there may be something to send, at most max. */
int end_wait_ms(struct end *e, int max);

/* Write the next packet into buf (PKT_MAX bytes); its length. Counted as sent. */
uint32_t end_make(struct end *e, uint8_t *buf);
/* Take back the last one, which could not be sent. */
void end_unmake(struct end *e);
/* Check and count a packet. */
void end_take(struct end *e, const uint8_t *buf, uint32_t len);

/* A violation of a kind that is counted in *counter (a field of e->page), or a mere error. */
void end_bad(struct end *e, uint64_t *counter, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
