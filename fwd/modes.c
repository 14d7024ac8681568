/* SPDX-License-Identifier: BSD-3-Clause */
#include "fwd.h"

#include <string.h>

/* Pair `pair` of every port, or pair 0 where a port has fewer. */
static unsigned pair_of(const struct fwd_port *port, unsigned pair)
{
	struct vhp_port_info info;

	vhp_port_info(port->p, &info);
	return info.pairs ? pair % info.pairs : 0;
}

static void capture(const struct fwd_port *port, const struct vhp_packet *pkt, unsigned n)
{
	unsigned i;

	for (i = 0; port->pcap && i < n; i++)
		pcap_packet(port->pcap, pkt[i].data, pkt[i].len);
}

static void send_to(struct fwd *f, unsigned to, unsigned pair, const struct vhp_packet *pkt, unsigned n)
{
	struct fwd_port *port = &f->port[to];
	int sent = port->up ? vhp_send(port->p, pair_of(port, pair), pkt, n) : 0;

	if (sent < 0)
		sent = 0;
	capture(port, pkt, (unsigned)sent);
	port->lost += n - (unsigned)sent;
}

/* Without capture the packets go from guest to guest and are never in our memory. */
static unsigned cross(struct fwd *f, unsigned from, unsigned pair)
{
	struct fwd_port *a = &f->port[from];
	unsigned to = from ^ 1;
	struct fwd_port *b;
	int n;

	if (to >= f->n)
		return 0;
	b = &f->port[to];
	if (!a->pcap && !b->pcap && b->p) {
		n = vhp_forward(a->p, pair, b->p, pair_of(b, pair), f->mover);
		return n > 0 ? (unsigned)n : 0;
	}
	n = vhp_recv(a->p, pair, f->pkt, FWD_BURST);
	if (n <= 0)
		return 0;
	capture(a, f->pkt, (unsigned)n);
	send_to(f, to, pair, f->pkt, (unsigned)n);
	return (unsigned)n;
}

static unsigned macswap(struct fwd *f, unsigned from, unsigned pair)
{
	int i, n = vhp_recv(f->port[from].p, pair, f->pkt, FWD_BURST);

	if (n <= 0)
		return 0;
	capture(&f->port[from], f->pkt, (unsigned)n);
	for (i = 0; i < n; i++) {
		uint8_t *eth = f->pkt[i].data, mac[6];

		memcpy(mac, eth, 6);
		memcpy(eth, eth + 6, 6);
		memcpy(eth + 6, mac, 6);
	}
	send_to(f, from, pair, f->pkt, (unsigned)n);
	return (unsigned)n;
}

static unsigned l2switch(struct fwd *f, unsigned from, unsigned pair)
{
	int i, n = vhp_recv(f->port[from].p, pair, f->pkt, FWD_BURST);

	if (n <= 0)
		return 0;
	capture(&f->port[from], f->pkt, (unsigned)n);
	for (i = 0; i < n; i++) {
		const uint8_t *eth = f->pkt[i].data;
		unsigned to;
		int out;

		fdb_learn(f->fdb, eth + 6, from, f->now);
		out = fdb_find(f->fdb, eth, f->now);
		for (to = 0; to < f->n; to++)
			if (to != from && (out < 0 || out == (int)to))
				send_to(f, to, pair, &f->pkt[i], 1);
	}
	return (unsigned)n;
}

unsigned fwd_round(struct fwd *f)
{
	unsigned i, pair, moved = 0;

	for (i = 0; i < f->n; i++) {
		struct vhp_port_info info;

		if (!f->port[i].up)
			continue;
		vhp_port_info(f->port[i].p, &info);
		for (pair = 0; pair < info.pairs; pair++) {
			switch (f->mode) {
			case FWD_CROSS:
				moved += cross(f, i, pair);
				break;
			case FWD_SWITCH:
				moved += l2switch(f, i, pair);
				break;
			case FWD_MACSWAP:
				moved += macswap(f, i, pair);
				break;
			}
		}
	}
	return moved;
}
