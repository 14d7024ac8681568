/* SPDX-License-Identifier: BSD-3-Clause */
/* generate: what the writers of the two formats are given. Strings belong to link.show's answer. */
#ifndef VP_CLI_GENERATE_H
#define VP_CLI_GENERATE_H

#include <jansson.h>
#include <stdbool.h>

#define GEN_MAX_INDEX 4   /* links of a VM: further ones have no place on q35's root bus at the addresses used here */
#define GEN_MAX_BUSES 8   /* root ports for windows: functions of one slot there */

enum gen_endpoint {
	GEN_NIC,      /* virtio-net: the driver side, and both sides of a relay link */
	GEN_IVSHMEM,
	GEN_SHMEM,
	GEN_LOCAL,    /* no VM at all */
};

struct gen {
	bool               driver;
	enum gen_endpoint  endpoint;
	const char        *link, *vm, *socket;
	bool               listen;         /* the VMM listens, the daemon connects */
	const char        *qmp;            /* NULL = none */
	bool               qmp_connects;   /* the VMM does, the daemon listens */
	const char        *nic;            /* id that the network device must have; NULL = any */
	const char        *mac;            /* NULL = the VMM's choice */
	unsigned           mtu;            /* 0 = not announced */
	unsigned           pairs;
	bool               packed;
	const char        *buses;          /* ids of root ports for windows, one blank between them; NULL = none */
	unsigned long long window_reserve, port_reserve, memory, peer_memory;  /* bytes */
	unsigned           index;          /* of this link among those of the VM */
	bool               reconnect_ms;
	bool               tcg;            /* no KVM */
};

/* Append options and values to args, an array of strings of which each second one is a value. */
void gen_qemu(const struct gen *g, json_t *args);
/* Print a domain. */
void gen_libvirt(const struct gen *g);

/* The n-th id of g->buses into buf, which is large enough for any; false when there is none (or n is GEN_MAX_BUSES). */
#define GEN_ID_MAX 64
bool gen_bus(const struct gen *g, unsigned n, char buf[GEN_ID_MAX]);
/* The end of a chardev whose socket the daemon makes. */
const char *gen_reconnect(const struct gen *g);
/* A value in which QEMU reads , as the end of it: each one twice, as it wants to have them. Freed by the caller. */
char *gen_escaped(const char *value);

#endif
