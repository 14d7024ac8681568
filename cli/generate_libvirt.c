/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * generate --libvirt: a domain. libvirt is told of what it knows, so that its own rules (who may open which socket,
 * where devices go) count it in. Two things it must not know, else it would use them: the root ports into which the
 * daemon plugs windows are given to QEMU behind its back, at addresses where libvirt puts nothing by itself.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"

#define WINDOW_SLOT  0x18  /* on pcie.0, plus the index of the link */
#define SHMEM_SLOT   0x1e  /* on pcie.0, minus that index */
#define CHASSIS_BASE 128   /* libvirt counts its own root ports from 1 */

/* As XML wants it, in an attribute with ' around it. */
static void put(const char *s)
{
	for (; *s; s++) {
		switch (*s) {
		case '&':
			fputs("&amp;", stdout);
			break;
		case '<':
			fputs("&lt;", stdout);
			break;
		case '\'':
			fputs("&apos;", stdout);
			break;
		default:
			putchar(*s);
		}
	}
}

static void attribute(const char *before, const char *value, const char *after)
{
	fputs(before, stdout);
	put(value);
	fputs(after, stdout);
}

static void arg(const char *before, const char *value, const char *after)
{
	char *escaped = gen_escaped(value);

	attribute("    <qemu:arg value='", before, "");
	put(escaped ? escaped : value);
	attribute("", after, "'/>\n");
	free(escaped);
}

bool gen_libvirt_can(const struct gen *g)
{
	if (g->endpoint != GEN_VIRTIO || gen_is_net(g))
		return true;
	if (strcmp(g->type, "blk") && strcmp(g->type, "fs")) {
		fprintf(stderr,
			"vhost-pcictl: libvirt has no words for a device of type %s behind a vhost-user socket; take "
			"--qemu\n",
			g->type);
		return false;
	}
	if (g->listen)
		fprintf(stderr,
			"vhost-pcictl: libvirt's QEMU does not listen for the daemon on a device of type %s; take "
			"--qemu, or leave SocketMode=client out of [Driver]\n",
			g->type);
	return !g->listen;
}

/* The driver's memory accesses go through the DMA API. */
static bool is_platform(const struct gen *g)
{
	return g->grant == GEN_SWIOTLB || g->grant == GEN_VIOMMU;
}

/* The rest of a <driver>: what all types have. */
static void driver_end(const struct gen *g)
{
	printf("%s%s%s/>\n", is_platform(g) ? " iommu='on'" : "", g->grant == GEN_VIOMMU ? " ats='on'" : "",
	       g->packed ? " packed='on'" : "");
}

/* The name that libvirt gives to the device: it counts the devices of a type in their order. */
static void alias_of(const struct gen *g, char *buf, size_t size)
{
	const char *word = gen_is_net(g) ? "net" : !strcmp(g->type, "blk") ? "virtio-disk" : "fs";

	snprintf(buf, size, "%s%u", word, g->index);
}

static void disk(const struct gen *g)
{
	printf("    <disk type='vhostuser' device='disk'%s>\n",
	       is_platform(g) ? " model='virtio-non-transitional'" : "");
	printf("      <driver name='qemu' type='raw' queues='%u'", g->pairs);
	driver_end(g);
	attribute("      <source type='unix' path='", g->socket, "'>\n");
	fputs("        <reconnect enabled='yes' timeout='1'/>\n      </source>\n", stdout);
	printf("      <target dev='vd%c' bus='virtio'/>\n    </disk>\n", (int)('a' + g->index));
}

static void filesystem(const struct gen *g)
{
	fputs("    <filesystem type='mount'>\n      <driver type='virtiofs'", stdout);
	driver_end(g);
	attribute("      <source socket='", g->socket, "'/>\n");
	attribute("      <target dir='", g->tag, "'/>\n    </filesystem>\n");
}

static void nic(const struct gen *g)
{
	bool platform = is_platform(g);

	fputs("    <interface type='vhostuser'>\n", stdout);
	if (g->mac)
		attribute("      <mac address='", g->mac, "'/>\n");
	attribute("      <source type='unix' path='", g->socket, "'");
	if (g->listen)
		fputs(" mode='server'/>\n", stdout);
	else
		fputs(" mode='client'>\n        <reconnect enabled='yes' timeout='1'/>\n      </source>\n", stdout);
	printf("      <model type='virtio%s'/>\n", platform ? "-non-transitional" : "");
	if (g->pairs > 1 || g->packed || platform) {
		fputs("      <driver", stdout);
		if (g->pairs > 1)
			printf(" queues='%u'", g->pairs);
		driver_end(g);
	}
	if (g->mtu)
		printf("      <mtu size='%u'/>\n", g->mtu);
	/* libvirt numbers the others itself: net0, net1, in their order. */
	if (g->nic && !strncmp(g->nic, "ua-", 3))
		attribute("      <alias name='", g->nic, "'/>\n");
	fputs("    </interface>\n", stdout);
}

/* The channel for grants, and what behind_its_back() has not. */
static void grant(const struct gen *g)
{
	if (g->grant == GEN_SWIOTLB) {
		attribute("    <channel type='unix'>\n      <source mode='connect' path='", g->grant_socket, "'>\n");
		fputs("        <reconnect enabled='yes' timeout='1'/>\n      </source>\n", stdout);
		attribute("      <target type='virtio' name='" GEN_GRANT_PORT, g->link, "'/>\n    </channel>\n");
	}
	if (g->grant == GEN_VIOMMU)
		fputs("    <iommu model='intel'>\n"
		      "      <driver caching_mode='on' iotlb='on'/>\n"
		      "    </iommu>\n", stdout);
}

static void ivshmem_device(const struct gen *g)
{
	unsigned bus = g->index + 1;

	printf("    <controller type='pci' index='%u' model='pcie-root-port'/>\n", bus);
	attribute("    <shmem name='", g->link, "'>\n      <model type='ivshmem-doorbell'/>\n");
	attribute("      <server path='", g->socket, "'/>\n");
	printf("      <msi vectors='%u'/>\n"
	       "      <address type='pci' domain='0x0000' bus='0x%02x' slot='0x00' function='0x0'/>\n"
	       "    </shmem>\n", 1 + g->queues, bus);
}

static void windows(const struct gen *g)
{
	char bus[GEN_ID_MAX], line[160];

	for (unsigned n = 0; gen_bus(g, n, bus); n++) {
		unsigned number = CHASSIS_BASE + GEN_MAX_BUSES * g->index + n;

		snprintf(line, sizeof(line), ",bus=pcie.0,addr=0x%x.0x%x%s,chassis=%u,slot=%u,pref64-reserve=%lluM",
			 WINDOW_SLOT + g->index, n, n ? "" : ",multifunction=on", number, number,
			 g->window_reserve >> 20);
		arg("-device", "", "");
		arg("pcie-root-port,id=", bus, line);
	}
}

/* A DIMM, which libvirt would want to be on a file of its own choice. */
static void memory_device(const struct gen *g)
{
	char line[160];

	snprintf(line, sizeof(line), "memory-backend-memfd,id=vp-%s-pool,size=%lluM,share=on", g->link,
		 g->grant_size >> 20);
	arg("-object", "", "");
	arg(line, "", "");
	snprintf(line, sizeof(line), "pc-dimm,id=vp-%s-dimm,memdev=vp-%s-pool", g->link, g->link);
	arg("-device", "", "");
	arg(line, "", "");
}

static void shmem_device(const struct gen *g)
{
	char line[160], dev[160];

	snprintf(line, sizeof(line), "socket,id=vp-%s,path=", g->link);
	snprintf(dev, sizeof(dev),
		 "vhost-user-test-device-pci,chardev=vp-%s,virtio-id=22,num_vqs=%u,config_size=16,bus=pcie.0,addr=0x%x",
		 g->link, 1 + g->queues, SHMEM_SLOT - g->index);
	arg("-chardev", "", "");
	arg(line, g->socket, "");
	arg("-device", "", "");
	arg(dev, "", "");
}

static void qmp(const struct gen *g)
{
	char id[160], end[32];

	if (!g->qmp)
		return;
	if (!g->qmp_connects) {
		arg("-qmp", "", "");
		arg("unix:", g->qmp, ",server=on,wait=off");
		return;
	}
	snprintf(id, sizeof(id), "socket,id=vp-%s-qmp,path=", g->link);
	snprintf(end, sizeof(end), "%s", gen_reconnect(g));
	arg("-chardev", "", "");
	arg(id, g->qmp, end);
	snprintf(id, sizeof(id), "chardev=vp-%s-qmp,mode=control", g->link);
	arg("-mon", "", "");
	arg(id, "", "");
}

/* What libvirt has no words for. */
static void behind_its_back(const struct gen *g)
{
	bool shmem = g->endpoint == GEN_SHMEM;

	if (!g->qmp && !g->buses && !shmem && g->grant != GEN_MEMORY)
		return;
	fputs("  <qemu:commandline>\n", stdout);
	qmp(g);
	windows(g);
	if (g->grant == GEN_MEMORY)
		memory_device(g);
	if (shmem)
		shmem_device(g);
	fputs("  </qemu:commandline>\n", stdout);
}

/* Properties of one of libvirt's devices that libvirt has no word for, one each between begin and end. */
static void override_begin(const char *alias)
{
	printf("  <qemu:override>\n"
	       "    <qemu:device alias='%s'>\n"
	       "      <qemu:frontend>\n", alias);
}

static void override(const char *property, const char *type, const char *value)
{
	printf("        <qemu:property name='%s' type='%s' value='%s'/>\n", property, type, value);
}

static void override_number(const char *property, unsigned long long value)
{
	char number[24];

	snprintf(number, sizeof(number), "%llu", value);
	override(property, "unsigned", number);
}

static void override_end(void)
{
	fputs("      </qemu:frontend>\n"
	      "    </qemu:device>\n"
	      "  </qemu:override>\n", stdout);
}

static void overrides(const struct gen *g)
{
	bool blk = !strcmp(g->type, "blk"), more_queues = !strcmp(g->type, "fs") && g->pairs > 1;
	char alias[32];

	if (g->endpoint == GEN_IVSHMEM) {
		/* The root port of the port gets room for it. */
		snprintf(alias, sizeof(alias), "pci.%u", g->index + 1);
		override_begin(alias);
		override_number("pref64-reserve", g->port_reserve);
		override_end();
	}
	if (g->endpoint != GEN_VIRTIO || (!g->tcg && !blk && !more_queues))
		return;
	alias_of(g, alias, sizeof(alias));
	override_begin(g->nic ? g->nic : alias);
	/* As gen_qemu() has them. */
	if (g->tcg)
		override_number("vectors", 0);
	if (blk)
		override("config-wce", "bool", "false");
	if (more_queues)
		override_number("num-request-queues", g->pairs);
	override_end();
}

/* What libvirt has words for. */
static void device(const struct gen *g)
{
	if (g->endpoint == GEN_IVSHMEM)
		ivshmem_device(g);
	if (g->endpoint != GEN_VIRTIO)
		return;
	if (gen_is_net(g))
		nic(g);
	else if (!strcmp(g->type, "blk"))
		disk(g);
	else
		filesystem(g);
	grant(g);
}

void gen_libvirt(const struct gen *g)
{
	printf("<domain type='%s' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
	       "  <name>%s</name>\n", g->tcg ? "qemu" : "kvm", g->vm);
	if (gen_maxmem(g))
		printf("  <maxMemory slots='%u' unit='MiB'>%llu</maxMemory>\n", GEN_MAXMEM_SLOTS, gen_maxmem(g) >> 20);
	printf("  <memory unit='MiB'>%llu</memory>\n", g->memory >> 20);
	if (g->endpoint != GEN_IVSHMEM)
		fputs("  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n", stdout);
	/* Without ACPI a guest does not see what is plugged in. */
	fputs("  <vcpu>1</vcpu>\n"
	      "  <os><type arch='x86_64' machine='q35'>hvm</type></os>\n"
	      "  <features><acpi/><apic/></features>\n", stdout);
	/* A 64-bit BAR that is plugged into an emulated AMD processor's guest gets no address. */
	fputs(g->tcg ? "  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Nehalem</model>"
		     : "  <cpu mode='host-passthrough'>",
	      stdout);
	/* libvirt takes a maxMemory of VMs with NUMA nodes only. */
	if (gen_maxmem(g))
		printf("\n    <numa><cell id='0' cpus='0' memory='%llu' unit='MiB' memAccess='shared'/></numa>\n  ",
		       g->memory >> 20);
	fputs("</cpu>\n", stdout);
	fputs("  <devices>\n"
	      "    <controller type='pci' index='0' model='pcie-root'/>\n", stdout);
	device(g);
	fputs("  </devices>\n", stdout);
	behind_its_back(g);
	overrides(g);
	fputs("</domain>\n", stdout);
}
