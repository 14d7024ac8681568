/* SPDX-License-Identifier: BSD-3-Clause */
/* generate --qemu: arguments for QEMU's command line. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"

#define ROOT_PORTS 16  /* chassis and slot numbers of one link */

/* QEMU's devices of other types than net. One that does not connect anew ends QEMU if it is not connected at once. */
static const struct model {
	const char *type, *model, *queues; /* queues: the property that counts request queues; NULL = none */
	bool        again;                 /* connects anew */
	bool        again_ms;              /* does so where QEMU knows reconnect-ms= */
	bool        legacy;                /* unless told otherwise */
} models[] = {
	{ "blk", "vhost-user-blk-pci", "num-queues", true, true, true },
	{ "fs", "vhost-user-fs-pci", "num-request-queues", false, false, false },
	{ "scsi", "vhost-user-scsi-pci", "num_queues", false, true, true },
	{ "vsock", "vhost-user-vsock-pci", NULL, false, false, false },
	{ "4", "vhost-user-rng-pci", NULL, false, false, false },
};

/* For all that QEMU knows by their virtio ID only. */
static const struct model any_model = { NULL, "vhost-user-test-device-pci", "num_vqs", false, false, false };

static const struct model *model_of(const struct gen *g)
{
	for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
		/* An entropy device of QEMU's has one queue. */
		if (!strcmp(models[i].type, g->type) && (strcmp(g->type, "4") || g->queues == 1))
			return &models[i];
	return &any_model;
}

static bool connects_anew(const struct gen *g)
{
	return gen_is_net(g) || (g->reconnect_ms ? model_of(g)->again_ms : model_of(g)->again);
}

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

void gen_mac(const struct gen *g, char buf[GEN_MAC_MAX])
{
	const char *parts[] = { g->link, g->driver ? "/driver" : "/device" };
	unsigned long long h = 0xcbf29ce484222325; /* FNV-1a */

	for (size_t i = 0; i < 2; i++)
		for (const char *p = parts[i]; *p; p++)
			h = (h ^ (unsigned char)*p) * 0x100000001b3;
	h ^= h >> 40;
	/* Locally administered, of one station. */
	snprintf(buf, GEN_MAC_MAX, "02:%02x:%02x:%02x:%02x:%02x", (unsigned)(h >> 32) & 0xff,
		 (unsigned)(h >> 24) & 0xff, (unsigned)(h >> 16) & 0xff, (unsigned)(h >> 8) & 0xff, (unsigned)h & 0xff);
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

	if (g->endpoint == GEN_VIRTIO && !connects_anew(g))
		how = g->listen ? ",server=on,wait=on" : "";
	else if (g->listen)
		how = ",server=on,wait=off";
	else if (g->endpoint == GEN_VIRTIO)
		how = gen_reconnect(g);
	if (path)
		add(args, "-chardev", "socket,id=vp-%s,path=%s%s", g->link, path, how);
	free(path);
}

/* The driver goes through the DMA API, so through the pool; no legacy device has that. */
static const char *platform(const struct gen *g, bool legacy)
{
	if (g->grant != GEN_SWIOTLB && g->grant != GEN_VIOMMU)
		return "";
	if (g->grant == GEN_VIOMMU)
		return legacy ? ",disable-legacy=on,iommu_platform=on,ats=on" : ",iommu_platform=on,ats=on";
	return legacy ? ",disable-legacy=on,iommu_platform=on" : ",iommu_platform=on";
}

static void nic(const struct gen *g, json_t *args)
{
	char id[GEN_ID_MAX + 16], mac[GEN_MAC_MAX], more[128] = "";
	size_t n = 0;

	snprintf(id, sizeof(id), "vp-%s-nic", g->link);
	if (g->pairs > 1)
		n += snprintf(more + n, sizeof(more) - n, ",mq=on");
	/* Without KVM, QEMU 7.2 ends in a vhost-user NIC with vectors. */
	if (g->pairs > 1 || g->tcg)
		n += snprintf(more + n, sizeof(more) - n, ",vectors=%u", g->tcg ? 0 : 2 * g->pairs + 2);
	/* QEMU's own first address is the same in every VM. */
	gen_mac(g, mac);
	n += snprintf(more + n, sizeof(more) - n, ",mac=%s", g->mac ? g->mac : mac);
	if (g->mtu)
		n += snprintf(more + n, sizeof(more) - n, ",host_mtu=%u", g->mtu);
	if (g->packed)
		n += snprintf(more + n, sizeof(more) - n, ",packed=on");
	snprintf(more + n, sizeof(more) - n, "%s", platform(g, true));
	add(args, "-netdev", "vhost-user,id=vp-%s-net,chardev=vp-%s,queues=%u", g->link, g->link, g->pairs);
	add(args, "-device", "virtio-net-pci,netdev=vp-%s-net,id=%s%s", g->link, g->nic ? g->nic : id, more);
}

/* The driver side of any other type. */
static void user_device(const struct gen *g, json_t *args)
{
	const struct model *m = model_of(g);
	char queues[48] = "", more[192] = "", *tag = gen_escaped(g->tag);

	if (m->queues)
		snprintf(queues, sizeof(queues), ",%s=%u", m->queues, g->pairs);
	if (m == &any_model)
		snprintf(more, sizeof(more), ",virtio-id=%s,config_size=%u", g->type, g->config_size);
	else if (!strcmp(g->type, "fs") && tag)
		snprintf(more, sizeof(more), ",tag=%s", tag);
	else if (!strcmp(g->type, "blk"))
		/* qemu-storage-daemon says "write-through" and caches: a driver that may read this never flushes. */
		snprintf(more, sizeof(more), ",config-wce=off");
	free(tag);
	/* As with the network device. */
	add(args, "-device", "%s,id=vp-%s-dev,chardev=vp-%s%s%s%s%s%s", m->model, g->link, g->link, queues, more,
	    g->tcg ? ",vectors=0" : "", g->packed ? ",packed=on" : "", platform(g, m->legacy));
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
	    1 + g->queues, port);
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
	if (g->endpoint == GEN_VIRTIO) {
		if (gen_is_net(g))
			nic(g, args);
		else
			user_device(g, args);
		grant(g, args);
	} else if (g->endpoint == GEN_IVSHMEM) {
		ivshmem(g, args);
	} else {
		add(args, "-device",
		    "vhost-user-test-device-pci,id=vp-%s-port,chardev=vp-%s,virtio-id=22,num_vqs=%u,config_size=16",
		    g->link, g->link, 1 + g->queues);
	}
}
