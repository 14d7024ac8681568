/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Why is it slow? Two looks at the counters, and one at the processes that are connected. Each finding names the thing,
 * says how it was seen, and the way out. What cannot be looked at (another user's processes) is said, not guessed.
 */
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "rates.h"

#define SMALL_MEMORY (64ull << 20)  /* mappings below this are not a VM's memory */

static json_t *findings;

/* subject: "link ab", "VM a", "data thread 0"; check: a stable word. */
static void found(const char *check, const char *subject, const char *level, const char *way_out, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
static void found(const char *check, const char *subject, const char *level, const char *way_out, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_array_append_new(findings, json_pack("{s:s,s:s,s:s,s:s,s:s}", "check", check, "subject", subject, "level",
						  level, "what", text, "way_out", way_out));
}

static double delta(const json_t *now, const json_t *before, const char *key)
{
	double d = (double)(cli_int(now, key) - cli_int(before, key));

	return d > 0 ? d : 0;
}

/* ---- threads ---------------------------------------------------------------------------------------- */

static void threads(const json_t *now, const json_t *before, double s)
{
	json_t *t, *all = json_object_get(now, "threads");
	char subject[48];
	size_t i;

	json_array_foreach(all, i, t) {
		const json_t *old = json_array_get(json_object_get(before, "threads"), i);
		double busy = delta(t, old, "busy_us") / 1e6 / s, cpu = delta(t, old, "cpu_us") / 1e6 / s;

		snprintf(subject, sizeof(subject), "data thread %zu", i);
		if (busy > 0.9)
			found("busy", subject, "problem",
			      json_array_size(all) == 1 || cli_int(t, "jobs") > 1
				      ? "raise Threads= in [Daemon] of vhost-pci.conf, or Queues= of the link"
				      : "this queue needs a whole CPU: raise Queues= of the link and in the guest",
			      "busy %.0f %% of the time with %lld queues: it sets the pace", busy * 100,
			      cli_int(t, "jobs"));
		else
			found("busy", subject, "note", "nothing to do: it has room",
			      "busy %.0f %% of the time, on a CPU %.0f %%, with %lld queues", busy * 100, cpu * 100,
			      cli_int(t, "jobs"));
		if (busy > 0.3 && cpu + 0.1 < busy)
			found("stolen", subject, "problem",
			      "give the data threads CPUs of their own: CPUs= in vhost-pci.conf",
			      "has work %.0f %% of the time and a CPU only %.0f %%", busy * 100, cpu * 100);
	}
}

/* ---- what a link does ---------------------------------------------------------------------------------- */

static void traffic(const char *subject, const char *side, const json_t *now, const json_t *before)
{
	const json_t *drops = json_object_get(now, "drops"), *old = json_object_get(before, "drops"), *v;
	double packets = delta(now, before, "packets"), calls = delta(now, before, "calls"),
	       bursts = delta(now, before, "bursts"), n;
	static const struct {
		const char *reason, *out;
	} outs[] = {
		{ "no-peer", "start the other side's VM and its driver; vhost-pcictl show says what is missing" },
		{ "no-buffer",
		  "the receiver is the slow one: give its VM more CPU, or a larger ring (rx_queue_size=1024 in QEMU)" },
		{ "too-big",
		  "set the same MTU on both sides (MTU= in [Net]), and let the receiver take mergeable buffers" },
		{ "rate", "raise PacketsPerSecond= of the link or of the VM" },
	};
	const char *key;

	json_object_foreach((json_t *)drops, key, v) {
		const char *out = "the sender's driver is at fault: update it";

		n = delta(drops, old, key);
		for (size_t i = 0; i < sizeof(outs) / sizeof(outs[0]); i++)
			if (!strcmp(outs[i].reason, key))
				out = outs[i].out;
		if (n > 0)
			found("drops", subject, "problem", out, "%.0f packets of the %s side were dropped: %s", n, side,
			      key);
	}
	if (packets < 100)
		return;
	found("batch", subject, packets / (bursts > 0 ? bursts : 1) < 2 ? "note" : "ok",
	      "small batches are what a low load looks like; under full load raise BusyPollMicroseconds=, or the "
	      "senders' queue depth",
	      "%.0f packets of the %s side, %.1f in a batch", packets, side, bursts > 0 ? packets / bursts : packets);
	if (calls / packets > 0.5)
		found("notifications", subject, "note",
		      "let the driver negotiate EVENT_IDX; in the guest raise interrupt coalescing (ethtool -C), or "
		      "poll",
		      "%.2f notifications a packet of the %s side", calls / packets, side);
	if (delta(now, before, "segmented") + delta(now, before, "checksummed") > packets / 10)
		found("software-offload", subject, "problem",
		      "let the receiver's driver take GUEST_CSUM and GUEST_TSO4/6 (ethtool -K DEV gro on tso on; no "
		      "guest_tso4=off in QEMU)",
		      "%.0f segmentations and %.0f checksums of the %s side's packets were done in software",
		      delta(now, before, "segmented"), delta(now, before, "checksummed"), side);
}

/* ---- a VMM, from /proc ------------------------------------------------------------------------------------ */

/* 1: it has a KVM VM, 0: it has none, -1: not to be seen. */
static int has_kvm(long pid)
{
	char path[300], target[64];
	struct dirent *de;
	int seen = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%ld/fd", pid);
	d = opendir(path);
	if (!d)
		return -1;
	while (!seen && (de = readdir(d))) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%ld/fd/%s", pid, de->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		target[n < 0 ? 0 : n] = 0;
		seen = !strcmp(target, "anon_inode:kvm-vm");
	}
	closedir(d);
	return seen;
}

static int is_vmm(long pid)
{
	char path[64], name[32] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
	f = fopen(path, "r");
	if (!f)
		return 0;
	if (!fgets(name, sizeof(name), f))
		name[0] = 0;
	fclose(f);
	return !strncmp(name, "qemu-system", 11) || !strncmp(name, "qemu-kvm", 8) || !strncmp(name, "cloud-hyp", 9) ||
	       !strncmp(name, "crosvm", 6) || !strncmp(name, "kvm", 3);
}

/*
 * Of its large shared mappings: bytes, and of these in huge pages (of hugetlbfs, or transparent). Of its large private
 * ones of a file: bytes. False: not to be seen.
 */
static bool memory_of(long pid, unsigned long long *bytes, unsigned long long *huge, unsigned long long *own)
{
	char path[64], line[512], perms[8];
	unsigned long long from, to, inode, size = 0, n;
	bool count = false;
	FILE *f;

	*bytes = *huge = *own = 0;
	snprintf(path, sizeof(path), "/proc/%ld/smaps", pid);
	f = fopen(path, "r");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx-%llx %7s %*x %*s %llu", &from, &to, perms, &inode) == 4) {
			size = to - from;
			*own += inode && !strncmp(perms, "rw-p", 4) && size >= SMALL_MEMORY ? size : 0;
			count = perms[3] == 's' && size >= SMALL_MEMORY;
			*bytes += count ? size : 0;
		} else if (count && sscanf(line, "KernelPageSize: %llu", &n) == 1) {
			*huge += n > 64 ? size : 0;
		} else if (count && (sscanf(line, "ShmemPmdMapped: %llu", &n) == 1 ||
				     sscanf(line, "FilePmdMapped: %llu", &n) == 1)) {
			*huge += n << 10;
		}
	}
	fclose(f);
	return true;
}

/* Pages of large mappings, by node. Number of nodes with most of them in *node; -1: not to be seen. */
static int node_of_memory(long pid)
{
	unsigned long long pages[64] = { 0 }, most = 0, n;
	char path[64], line[2048], *at;
	unsigned node;
	int best = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%ld/numa_maps", pid);
	f = fopen(path, "r");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		for (at = line; (at = strstr(at, " N")); at++)
			if (sscanf(at, " N%u=%llu", &node, &n) == 2 && node < 64)
				pages[node] += n;
	fclose(f);
	for (node = 0; node < 64; node++)
		if (pages[node] > most) {
			most = pages[node];
			best = (int)node;
		}
	return best;
}

static int node_of_cpu(int cpu)
{
	char path[96];

	for (int node = 0; node < 64; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpu%d", node, cpu);
		if (!access(path, F_OK))
			return node;
	}
	return -1;
}

/* Where the thread ran last. */
static int cpu_of(long long pid, long long tid)
{
	char path[64], line[1024], *at;
	int cpu = -1, field = 2;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%lld/task/%lld/stat", pid, tid);
	f = fopen(path, "r");
	if (!f)
		return -1;
	if (fgets(line, sizeof(line), f) && (at = strrchr(line, ')'))) {
		for (at++; *at && field < 38; at++)
			field += *at == ' ';
		cpu = atoi(at);
	}
	fclose(f);
	return cpu;
}

static void vmm(const json_t *side, const json_t *daemon)
{
	unsigned long long bytes, huge, own;
	long pid = (long)cli_int(side, "pid");
	char subject[80];
	json_t *t;
	size_t i;
	int kvm, node;

	snprintf(subject, sizeof(subject), "VM %.64s", cli_str(side, "vm"));
	if (!pid || !is_vmm(pid))
		return;
	kvm = has_kvm(pid);
	if (kvm < 0) {
		found("seen", subject, "note", "run doctor as root",
		      "process %ld belongs to another user: KVM, huge pages and NUMA were not looked at", pid);
		return;
	}
	if (!kvm)
		found("kvm", subject, "problem",
		      "start it with -accel kvm, as a user who may open /dev/kvm (group kvm); turn on virtualization "
		      "in the firmware",
		      "process %ld runs without KVM: everything in it is emulated", pid);
	if (!memory_of(pid, &bytes, &huge, &own))
		bytes = own = 0;
	/* Only who has a vhost-user session hands its memory over; a VM with an ivshmem port need not share its own. */
	if (!bytes && own && json_object_get(side, "sessions"))
		found("memory", subject, "problem",
		      "start it with share=on for its memory-backend (libvirt: <access mode='shared'/> in "
		      "<memoryBacking>)",
		      "process %ld keeps what its guest writes to itself: its memory is not shared, and no request "
		      "or packet of its driver is ever seen",
		      pid);
	if (bytes && huge < bytes / 2)
		found("hugepages", subject, "note",
		      "memory-backend-memfd,hugetlb=on,hugetlbsize=2M (libvirt: <memoryBacking><hugepages/>), and "
		      "vm.nr_hugepages enough for it",
		      "%llu of %llu MiB of its memory are in huge pages", huge >> 20, bytes >> 20);
	node = node_of_memory(pid);
	json_array_foreach(json_object_get(daemon, "threads"), i, t) {
		int cpu = cpu_of(cli_int(daemon, "pid"), cli_int(t, "tid")), there = cpu < 0 ? -1 : node_of_cpu(cpu);

		if (node >= 0 && there >= 0 && there != node)
			found("numa", subject, "problem",
			      "name CPUs of that node in CPUs= of vhost-pci.conf, or bind the VM's memory to the other "
			      "(host-nodes=, policy=bind)",
			      "its memory is on node %d, data thread %zu runs on node %d", node, i, there);
	}
}

/* ---- what a link is -------------------------------------------------------------------------------------- */

static void features(const char *subject, const char *side, const char *text)
{
	static const char *const wanted[] = { "GUEST_CSUM", "GUEST_TSO4", "HOST_TSO4", "MRG_RXBUF", "EVENT_IDX" };
	char missing[160] = "";
	size_t n = 0;

	if (!strcmp(text, "-"))
		return;
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (!strcasestr(text, wanted[i]))
			n += (size_t)snprintf(missing + n, sizeof(missing) - n, "%s%s", n ? ", " : "", wanted[i]);
	if (n)
		found("offloads", subject, "note",
		      "leave Offloads= of the link and the offloads of the driver as they are by default; update an "
		      "old driver",
		      "the driver of the %s side works without %s", side, missing);
}

/* Has a driver set up any of its queues? */
static bool driven(const json_t *queues)
{
	const json_t *q;
	size_t i;

	json_array_foreach(queues, i, q)
		if (strcmp(cli_str(q, "state"), "stopped"))
			return true;
	return false;
}

static void side(const char *subject, const char *name, const json_t *s, const json_t *before, const json_t *daemon,
		 bool net)
{
	/* A process on the host, which is nobody's VM. */
	const bool host = !strcmp(cli_str(s, "attachment"), "vhost-user");
	const json_t *iommu = json_object_get(s, "iommu"), *q;
	json_t *queues = json_object_get(s, "queues");
	double misses = delta(iommu, json_object_get(before, "iommu"), "misses");
	size_t i;

	char who[80];

	if (cli_socket_closed(s, who, sizeof(who)))
		found("socket", subject, "note",
		      "if that VM's VMM runs as another user, name it with User= in the VM's file, and reload",
		      "nobody has come to %s, which %s alone may open", cli_str(s, "socket"), who);
	if (json_is_true(json_object_get(s, "connected")) && json_array_size(queues) && !driven(queues))
		found("driver", subject, "problem",
		      "wait for the guest to boot; its kernel needs the driver of this virtio device",
		      "the VMM of VM %s is connected, and no driver runs the device of the %s side in that VM",
		      cli_str(s, "vm"), name);
	if (host && !json_is_true(json_object_get(s, "connected")))
		found("back-end", subject, "problem",
		      "start the back-end, as root or as a user that User= in the VM's file names; vhost-pcictl show "
		      "says which socket, and who makes it",
		      "no back-end is connected%s%s", json_is_string(json_object_get(s, "last")) ? ": " : "",
		      json_is_string(json_object_get(s, "last")) ? cli_str(s, "last") : "");
	if (json_is_string(json_object_get(s, "misfit")))
		found("back-end", subject, "problem",
		      "start another back-end, or change the link's file; vhost-pcictl profile says what the driver VM "
		      "is told, and --forget makes the next back-end decide",
		      "the last back-end that came does not fit: %s", cli_str(s, "misfit"));
	else if (json_is_true(json_object_get(s, "online")) && !strcmp(cli_str(s, "reason"), "features"))
		found("data-path", subject, "problem",
		      "switch off in the link's file what it lacks, or use another data path; vhost-net has no packed "
		      "rings (PackedRings=)",
		      "the data path lacks features of the link's device, which the log of vhost-pci-agent names");
	else if (!host && json_is_true(json_object_get(s, "online")) && !json_is_true(json_object_get(s, "attached")))
		found("data-path", subject, "problem",
		      "run vhost-pci-agent in the device VM; where there is no /dev/vhost-pci0, its kernel's log says "
		      "why (ivshmem: the device has too few vectors=, vhost-pcictl generate prints how many)",
		      "the device is connected, and no data path is attached");
	if (!host)
		vmm(s, daemon);
	if (net)
		features(subject, name, cli_str(s, "features"));
	if (json_is_object(iommu) && misses > 0)
		found("viommu", subject, "problem",
		      "in the guest iommu=pt, or iommu.strict=0; for DPDK hugepages and --iova-mode=pa",
		      "%.0f translations of the %s side's vIOMMU were missing in the time looked at", misses, name);
	json_array_foreach(queues, i, q) {
		if (json_is_string(json_object_get(q, "error")))
			found("broken", subject, "problem",
			      "set the queue up again (restart its driver); if it comes back, the driver is at fault",
			      "queue %lld of the %s side is broken: %s", cli_int(q, "queue"), name,
			      cli_str(q, "error"));
		if (!json_is_true(json_object_get(q, "kick")) && !strcmp(cli_str(q, "state"), "running") &&
		    json_object_get(q, "kick"))
			found("polled", subject, "note",
			      "the driver wants to be polled: a data thread never sleeps; let it kick if that is not "
			      "meant",
			      "queue %lld of the %s side has no kick", cli_int(q, "queue"), name);
	}
}

static void link_of(const json_t *l, const json_t *before, const json_t *now, const json_t *then, const json_t *daemon)
{
	static const char *const names[] = { "driver", "device" };
	const json_t *sides = json_object_get(l, "sides");
	char subject[80];

	snprintf(subject, sizeof(subject), "link %.64s", cli_str(l, "name"));
	if (strcmp(cli_str(l, "status"), "up"))
		found("status", subject, "problem", "vhost-pcictl show says what is missing", "is %s",
		      cli_str(l, "status"));
	for (int i = 0; i < 2; i++) {
		const json_t *tx = json_object_get(json_object_get(json_object_get(now, "sides"), names[i]), "tx");
		const json_t *old = json_object_get(json_object_get(json_object_get(then, "sides"), names[i]), "tx");
		const json_t *s = json_object_get(sides, names[i]);

		side(subject, names[i], s, json_object_get(json_object_get(before, "sides"), names[i]), daemon,
		     !strcmp(cli_str(l, "type"), "net"));
		if (strcmp(cli_str(l, "mode"), "fast"))
			traffic(subject, names[i], tx, old);
	}
	if (!strcmp(cli_str(l, "mode"), "fast"))
		found("uncounted", subject, "note",
		      "look in the device VM: vhost-pci-agent and its back-end do the work there",
		      "in fast mode no packet passes the daemon: its rate is not known here");
}

/* ---- the command ---------------------------------------------------------------------------------------------- */

static int look(struct cli *c, const char *name, json_t **stats, json_t **shown, json_t **daemon)
{
	json_t *l, *o;
	size_t i;
	int r = cli_call(c, "daemon.show", NULL, daemon);

	*stats = *shown = NULL;
	if (!r)
		r = cli_call(c, "link.stats", name ? json_pack("{s:s}", "name", name) : NULL, stats);
	*shown = json_array();
	json_array_foreach(json_object_get(*stats, "links"), i, l) {
		if (r)
			break;
		r = cli_call(c, "link.show", json_pack("{s:s}", "name", cli_str(l, "name")), &o);
		if (!r)
			json_array_append_new(*shown, o);
	}
	return r;
}

static const json_t *named(const json_t *array, const char *name)
{
	json_t *o;
	size_t i;

	json_array_foreach((json_t *)array, i, o)
		if (!strcmp(cli_str(o, "name"), name))
			return o;
	return NULL;
}

static void print(void)
{
	json_t *f;
	size_t i, n = 0;

	json_array_foreach(findings, i, f) {
		const char *level = cli_str(f, "level");

		n += !strcmp(level, "problem");
		printf("%s%s: %s\n",
		       !strcmp(level, "problem") ? "PROBLEM  "
		       : !strcmp(level, "note")	 ? "note     "
						 : "ok       ",
		       cli_str(f, "subject"), cli_str(f, "what"));
		if (strcmp(level, "ok"))
			printf("         %s\n", cli_str(f, "way_out"));
	}
	printf("%zu problem%s\n", n, n == 1 ? "" : "s");
}

static int run(struct cli *c, int argc, char **argv)
{
	json_t *stats[2], *shown[2], *daemon[2], *l;
	const char *name;
	size_t i;
	int n, r = cli_operands(c, &cmd_doctor, argc, argv, 0, 1, &n);

	if (r >= 0)
		return r;
	name = n ? argv[1] : NULL;
	r = look(c, name, &stats[0], &shown[0], &daemon[0]);
	if (r)
		return r;
	sleep(1);
	r = look(c, name, &stats[1], &shown[1], &daemon[1]);
	if (r)
		return r;
	findings = json_array();
	threads(daemon[1], daemon[0], (double)(cli_int(stats[1], "time_us") - cli_int(stats[0], "time_us")) / 1e6);
	if (access("/dev/kvm", F_OK))
		found("kvm", "host", "problem",
		      "load kvm_intel or kvm_amd; turn on virtualization in the firmware, or nested virtualization of "
		      "the host above",
		      "there is no /dev/kvm: every VM here is emulated");
	json_array_foreach(shown[1], i, l)
		link_of(l, named(shown[0], cli_str(l, "name")),
			named(json_object_get(stats[1], "links"), cli_str(l, "name")),
			named(json_object_get(stats[0], "links"), cli_str(l, "name")), daemon[1]);
	if (c->json) {
		json_t *o = json_pack("{s:O}", "findings", findings);

		cli_print_json(o);
		json_decref(o);
	} else {
		print();
	}
	json_decref(findings);
	for (int k = 0; k < 2; k++) {
		json_decref(stats[k]);
		json_decref(shown[k]);
		json_decref(daemon[k]);
	}
	return 0;
}

const struct cli_command cmd_doctor = {
	"doctor", "[LINK] [--json]", "Say why a link is slow, and the way out",
	"Watches for a second, under the load that is to be judged: which thread sets the pace,\n"
	"batches, notifications, drops, offloads done in software, KVM, huge pages, NUMA nodes,\n"
	"vIOMMU misses. Run it as root to have the VMMs looked at.\n", run,
};
