/* SPDX-License-Identifier: BSD-3-Clause */
/* generate: what the writers of the two formats are given. Strings belong to link.show's answer. */
#ifndef VP_CLI_GENERATE_H
#define VP_CLI_GENERATE_H

#include <jansson.h>
#include <stdbool.h>

#define GEN_MAX_INDEX 4   /* links of a VM: further ones have no place on q35's root bus at the addresses used here */
#define GEN_GRANT_PORT "org.vhost-pci.grant."   /* and the link: the virtio-serial port that vhost-pci-grant opens */
#define GEN_MAX_BUSES 8   /* root ports for windows: functions of one slot there */

enum gen_endpoint {
	GEN_VIRTIO,   /* the device itself: the driver side, and both sides of a relay link */
	GEN_IVSHMEM,
	GEN_SHMEM,
	GEN_LOCAL,    /* no VM at all: a program */
};

enum gen_grant {
	GEN_NO_GRANT,
	GEN_SWIOTLB,
	GEN_MEMORY,
	GEN_VIOMMU,
};

struct gen {
	const char        *type;           /* of the device: "net", "blk", ... or a virtio ID */
	bool               driver;
	enum gen_endpoint  endpoint;
	const char        *link, *vm, *socket;
	bool               listen;         /* the VMM listens, the daemon connects */
	const char        *qmp;            /* NULL = none */
	bool               qmp_connects;   /* the VMM does, the daemon listens */
	const char        *nic;            /* id that the network device must have; NULL = any */
	const char        *mac;            /* NULL = none is configured: the VMM's choice, or gen_mac() */
	unsigned           mtu;            /* 0 = not announced */
	unsigned           pairs;          /* of net; of other types request queues */
	unsigned           queues;         /* virtqueues: a port has a vector for each, and one more */
	const char        *tag;            /* of fs */
	unsigned           config_size;    /* of a virtio ID: bytes */
	bool               packed;
	const char        *buses;          /* ids of root ports for windows, one blank between them; NULL = none */
	unsigned long long window_reserve, port_reserve, memory, peer_memory;  /* bytes */
	unsigned           index;          /* of this link among those of the VM */
	bool               reconnect_ms;
	bool               tcg;            /* no KVM */
	/* The driver side of a link of mode grant; else GEN_NO_GRANT. */
	enum gen_grant     grant;
	const char        *grant_socket;   /* GEN_SWIOTLB */
	unsigned long long grant_size;     /* GEN_MEMORY: bytes */
};

/*
 * Up to where memory of the driver VM could be plugged, in bytes; 0 = nothing is to be plugged. Its kernel tells where
 * its swiotlb pool is only if RAM can lie above 4 GiB.
 */
unsigned long long gen_maxmem(const struct gen *g);
#define GEN_MAXMEM_SLOTS GEN_MAX_INDEX

/* A network device, not any other type's. */
bool gen_is_net(const struct gen *g);

/* Append options and values to args, an array of strings of which each second one is a value. */
void gen_qemu(const struct gen *g, json_t *args);
/* Does libvirt have words for the device? False after saying that it has none. */
bool gen_libvirt_can(const struct gen *g);
/* Print a domain. */
void gen_libvirt(const struct gen *g);

/* The n-th id of g->buses into buf, which is large enough for any; false when there is none (or n is GEN_MAX_BUSES). */
#define GEN_ID_MAX 64
bool gen_bus(const struct gen *g, unsigned n, char buf[GEN_ID_MAX]);
/* An address for a network device that has none: that of this side of this link each time, and of no other. */
#define GEN_MAC_MAX 18
void gen_mac(const struct gen *g, char buf[GEN_MAC_MAX]);
/* The end of a chardev whose socket the daemon makes. */
const char *gen_reconnect(const struct gen *g);
/* A value in which QEMU reads , as the end of it: each one twice, as it wants to have them. Freed by the caller. */
char *gen_escaped(const char *value);

#endif
