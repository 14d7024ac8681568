/* SPDX-License-Identifier: BSD-3-Clause */
/* generate --qemu: arguments for QEMU's command line. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"

#define ROOT_PORTS 16  /* chassis and slot numbers of one link */

bool gen_bus(const struct gen *g, unsigned n, char buf[GEN_ID_MAX])
{
	const char *p = g->buses;
	size_t len;

	if (n >= GEN_MAX_BUSES)
		return false;
	while (p && n--) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	len = p ? strcspn(p, " ") : 0;
	if (!len || len >= GEN_ID_MAX)
		return false;
	memcpy(buf, p, len);
	buf[len] = 0;
	return true;
}

const char *gen_reconnect(const struct gen *g)
{
	return g->reconnect_ms ? ",reconnect-ms=100" : ",reconnect=1";
}

char *gen_escaped(const char *value)
{
	char *out = malloc(2 * strlen(value) + 1), *o = out;

	for (; out && *value; value++) {
		*o++ = *value;
		if (*value == ',')
			*o++ = ',';
	}
	if (out)
		*o = 0;
	return out;
}

static void __attribute__((format(printf, 3, 4))) add(json_t *args, const char *option, const char *fmt, ...)
{
	char *value = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&value, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	json_array_append_new(args, json_string(option));
	json_array_append_new(args, json_string(value));
	free(value);
}

static unsigned long long mib(unsigned long long bytes)
{
	return bytes >> 20;
}

unsigned long long gen_maxmem(const struct gen *g)
{
	const unsigned long long high = 4ULL << 30;

	if (g->grant == GEN_MEMORY)
		return g->memory + GEN_MAXMEM_SLOTS * g->grant_size;
	return g->grant == GEN_SWIOTLB && g->memory < high ? high : 0;
}

/* Shared memory is what vhost-user hands on; the ivshmem device hands nothing on. */
static void machine(const struct gen *g, json_t *args)
{
	bool shared = g->endpoint != GEN_IVSHMEM;

	add(args, "-name", "%s", g->vm);
	add(args, "-machine", "q35%s", shared ? ",memory-backend=vp-mem" : "");
	if (gen_maxmem(g))
		add(args, "-m", "%lluM,slots=%u,maxmem=%lluM", mib(g->memory), GEN_MAXMEM_SLOTS, mib(gen_maxmem(g)));
	else
		add(args, "-m", "%lluM", mib(g->memory));
	if (shared)
		add(args, "-object", "memory-backend-memfd,id=vp-mem,size=%lluM,share=on", mib(g->memory));
	/* Before the devices behind it. */
	if (g->grant == GEN_VIOMMU)
		add(args, "-device", "intel-iommu,intremap=off,device-iotlb=on,caching-mode=on");
}

static void chardev(const struct gen *g, json_t *args)
{
	char *path = gen_escaped(g->socket);
	const char *how = "";

	if (g->listen)
		how = ",server=on,wait=off";
	else if (g->endpoint == GEN_NIC)
		how = gen_reconnect(g);
	if (path)
		add(args, "-chardev", "socket,id=vp-%s,path=%s%s", g->link, path, how);
	free(path);
}

static void nic(const struct gen *g, json_t *args)
{
	char id[GEN_ID_MAX + 16], more[128] = "";
	size_t n = 0;

	snprintf(id, sizeof(id), "vp-%s-nic", g->link);
	if (g->pairs > 1)
		n += snprintf(more + n, sizeof(more) - n, ",mq=on");
	/* Without KVM, QEMU 7.2 ends in a vhost-user NIC with vectors. */
	if (g->pairs > 1 || g->tcg)
		n += snprintf(more + n, sizeof(more) - n, ",vectors=%u", g->tcg ? 0 : 2 * g->pairs + 2);
	if (g->mac)
		n += snprintf(more + n, sizeof(more) - n, ",mac=%s", g->mac);
	if (g->mtu)
		n += snprintf(more + n, sizeof(more) - n, ",host_mtu=%u", g->mtu);
	if (g->packed)
		n += snprintf(more + n, sizeof(more) - n, ",packed=on");
	/* The driver goes through the DMA API, so through the pool; no legacy device has that. */
	if (g->grant == GEN_SWIOTLB || g->grant == GEN_VIOMMU)
		snprintf(more + n, sizeof(more) - n, ",disable-legacy=on,iommu_platform=on%s",
			 g->grant == GEN_VIOMMU ? ",ats=on" : "");
	add(args, "-netdev", "vhost-user,id=vp-%s-net,chardev=vp-%s,queues=%u", g->link, g->link, g->pairs);
	add(args, "-device", "virtio-net-pci,netdev=vp-%s-net,id=%s%s", g->link, g->nic ? g->nic : id, more);
}

/* What the driver VM grants, or says it with. */
static void grant(const struct gen *g, json_t *args)
{
	char *path = g->grant == GEN_SWIOTLB ? gen_escaped(g->grant_socket) : NULL;

	if (path) {
		add(args, "-chardev", "socket,id=vp-%s-grant,path=%s,%s", g->link, path,
		    g->reconnect_ms ? "reconnect-ms=100" : "reconnect=1");
		add(args, "-device", "virtio-serial-pci,id=vp-%s-serial", g->link);
		add(args, "-device", "virtserialport,bus=vp-%s-serial.0,chardev=vp-%s-grant,name=" GEN_GRANT_PORT "%s",
		    g->link, g->link, g->link);
	}
	free(path);
	if (g->grant == GEN_MEMORY) {
		add(args, "-object", "memory-backend-memfd,id=vp-%s-pool,size=%lluM,share=on", g->link,
		    mib(g->grant_size));
		add(args, "-device", "pc-dimm,id=vp-%s-dimm,memdev=vp-%s-pool", g->link, g->link);
	}
}

static void root_port(const struct gen *g, json_t *args, const char *id, unsigned n, unsigned long long reserve)
{
	unsigned number = ROOT_PORTS * g->index + n + 1;

	add(args, "-device", "pcie-root-port,id=%s,chassis=%u,slot=%u,pref64-reserve=%lluM", id, number, number,
	    mib(reserve));
}

static void ivshmem(const struct gen *g, json_t *args)
{
	char bus[GEN_ID_MAX], port[GEN_ID_MAX + 16];
	unsigned n = 0;

	for (; gen_bus(g, n, bus); n++)
		root_port(g, args, bus, n, g->window_reserve);
	snprintf(port, sizeof(port), "vp-%s-bus", g->link);
	root_port(g, args, port, n, g->port_reserve);
	add(args, "-device", "ivshmem-doorbell,id=vp-%s-port,chardev=vp-%s,vectors=%u,bus=%s", g->link, g->link,
	    1 + 2 * g->pairs, port);
}

void gen_qemu(const struct gen *g, json_t *args)
{
	char *qmp = g->qmp ? gen_escaped(g->qmp) : NULL;

	if (!g->index)
		machine(g, args);
	if (qmp && g->qmp_connects) {
		add(args, "-chardev", "socket,id=vp-%s-qmp,path=%s%s", g->link, qmp, gen_reconnect(g));
		add(args, "-mon", "chardev=vp-%s-qmp,mode=control", g->link);
	} else if (qmp) {
		add(args, "-qmp", "unix:%s,server=on,wait=off", qmp);
	}
	free(qmp);
	chardev(g, args);
	if (g->endpoint == GEN_NIC) {
		nic(g, args);
		grant(g, args);
	} else if (g->endpoint == GEN_IVSHMEM) {
		ivshmem(g, args);
	} else {
		add(args, "-device",
		    "vhost-user-test-device-pci,id=vp-%s-port,chardev=vp-%s,virtio-id=22,num_vqs=%u,config_size=16",
		    g->link, g->link, 1 + 2 * g->pairs);
	}
}
