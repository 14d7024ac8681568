/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A direct-mapped table: an address that hashes onto another replaces it, so a flood of
 * forged sources can make the switch flood, never grow.
 */
#include "fwd.h"

#include <stdlib.h>
#include <string.h>

#define FDB_SIZE 4096u
#define FDB_AGE  300u

struct entry {
	uint64_t mac;  /* 0 = free: not a valid source */
	uint64_t seen;
	unsigned port;
};

struct fdb {
	struct entry e[FDB_SIZE];
};

struct fdb *fdb_new(void)
{
	return calloc(1, sizeof(struct fdb));
}

void fdb_free(struct fdb *f)
{
	free(f);
}

static uint64_t key(const uint8_t mac[6])
{
	uint64_t k = 0;

	memcpy(&k, mac, 6);
	return k;
}

static unsigned slot(uint64_t k)
{
	return (unsigned)((k * 0x9e3779b97f4a7c15u) >> 40) % FDB_SIZE;
}

void fdb_learn(struct fdb *f, const uint8_t mac[6], unsigned port, uint64_t now)
{
	uint64_t k = key(mac);

	if ((mac[0] & 1) || !k)
		return;
	f->e[slot(k)] = (struct entry){ k, now, port };
}

int fdb_find(const struct fdb *f, const uint8_t mac[6], uint64_t now)
{
	uint64_t k = key(mac);
	const struct entry *e = &f->e[slot(k)];

	if ((mac[0] & 1) || e->mac != k || !k || now - e->seen > FDB_AGE)
		return -1;
	return (int)e->port;
}
