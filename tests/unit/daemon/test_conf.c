/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration: every mistake is named with file, line, thing and way out; files combine as documented. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "conf/conf.h"

struct said {
	char     text[8192];
	unsigned n;
};

static void collect(void *arg, const char *msg)
{
	struct said *s = arg;

	s->n++;
	strncat(s->text, msg, sizeof(s->text) - strlen(s->text) - 2);
	strcat(s->text, "\n");
}

/* One .link text; how many problems, and does their text contain want? */
static void link_text(const char *text, size_t len, unsigned problems, const char *want)
{
	struct said s = { .n = 0 };
	struct vp_conf_report rep = { .fn = collect, .arg = &s };
	struct vp_conf_link l;

	assert_int_equal(vp_conf_link_init(&l, "x", NULL), 0);
	vp_conf_parse_text(VP_CONF_LINK, &l, "x.link", text, len, &rep);
	if (rep.errors != problems || (want && !strstr(s.text, want)))
		fail_msg("%.60s: %u problems:\n%s", text, rep.errors, s.text);
}

static void test_line_errors(void **state)
{
	static const struct {
		const char *text;
		unsigned problems;
		const char *want;
	} t[] = {
		{ "", 0, NULL },
		{ "# comment\n; comment\n\n[Link]\nMode=relay\n", 0, NULL },
		{ "[Link]\r\nMode=relay\r\n", 0, NULL },
		{ "[Link]\n  Mode = relay  \n   Queues=2", 0, NULL },
		{ "Mode=relay\n", 1, "x.link:1: Mode= stands before the first [section]" },
		{ "[Link]\nmode=relay\n", 1, "x.link:2: unknown key mode in [Link]; known: Mode" },
		{ "[link]\nMode=relay\n", 1, "x.link:1: unknown section [link]; known: [Link]" },
		{ "[Nothing]\n", 1, "unknown section [Nothing]" },
		{ "[Link]\nMode=warp\n", 1, "x.link:2: Mode=warp is not known; use one of: auto, relay, fast, copy" },
		{ "[Link]\nMode=\n", 1, "Mode= is not known" },
		{ "[Link]\nMode=relay\nMode=relay\n", 1, "x.link:3: Mode= is set twice" },
		{ "[Link]\nMode=relay\n[Net]\nMTU=9000\n[Link]\nMode=auto\n", 1, "x.link:6: Mode= is set twice" },
		{ "[Link]\nQueues=0\n", 1, "Queues=0 is not a number from 1 to 64" },
		{ "[Link]\nQueues=-1\n", 1, "Queues=-1 is not a number" },
		{ "[Link]\nQueues=65\n", 1, "Queues=65 is not" },
		{ "[Link]\nQueues=1x\n", 1, "Queues=1x is not" },
		{ "[Link]\nQueues=99999999999999999999999\n", 1, "is not a number" },
		{ "[Link]\nQueues\n", 1, "x.link:2: neither" },
		{ "[Link\n", 1, "x.link:1: neither" },
		{ "[Link]\nDeviceType=floppy\n", 1, "DeviceType=floppy is not a device type; use net" },
		{ "[Net]\nMTU=67\n", 1, "MTU=67 is not a number from 68" },
		{ "[Net]\nDriverMAC=52:54:00:12:34\n", 1, "is not a MAC address" },
		{ "[Net]\nDriverMAC=53:54:00:12:34:56\n", 1, "is a group address" },
		{ "[Net]\nDriverMAC=00:00:00:00:00:00\n", 1, "is the null address" },
		{ "[Net]\nDriverMAC=52:54:00:12:34:5g\n", 1, "is not a MAC address" },
		{ "[Net]\nOffloads=csum,warp\n", 1, "warp is not known; use all, none or some of" },
		{ "[Net]\nOffloads=tso4\n", 1, "need csum" },
		{ "[Net]\nOffloads=csum ecn\n", 1, "ecn needs tso4" },
		{ "[Net]\nOffloads=none\n", 0, NULL },
		{ "[Driver]\nVM=../../etc\n", 1, "is not a name" },
		{ "[Driver]\nVM=\n", 1, "is not a name" },
		{ "[Driver]\nSocket=/dir/\n", 1, "ends in /" },
		{ "[Driver]\nSocketMode=both\n", 1, "use one of: server, client" },
	};

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		link_text(t[i].text, strlen(t[i].text), t[i].problems, t[i].want);
	link_text("[Link]\nMode=re\0lay\n", 19, 1, "x.link:2: the line contains a zero byte");
}

static void test_long_things(void **state)
{
	char text[600], path[200];

	memset(path, 'p', sizeof(path));
	path[0] = '/';
	path[108] = 0;
	snprintf(text, sizeof(text), "[Driver]\nSocket=%s\n", path);
	link_text(text, strlen(text), 1, "is 108 bytes long, a UNIX socket's path has at most 107");
	path[107] = 0;
	snprintf(text, sizeof(text), "[Driver]\nSocket=%s\n", path);
	link_text(text, strlen(text), 0, NULL);
	memset(text, 'x', 400);
	memcpy(text, "[Link]\n", 7);
	memcpy(text + 390, "\nMode=relay\n", 13);
	link_text(text, strlen(text), 1, "x.link:2: the line is longer than");
}

static void test_values(void **state)
{
	struct vp_conf_link l, again;
	struct vp_err e;
	char mac[18], off[64];

	assert_int_equal(vp_conf_link_init(&l, "x", &e), 0);
	assert_int_equal(l.offloads, VP_OFFLOAD_ALL);
	assert_int_equal(vp_conf_link_set(&l, "Link", "Mode", "copy", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Link", "Queues", "4", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Link", "State", "down", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Net", "DeviceMAC", "52:54:00:ab:CD:ef", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Net", "Offloads", "tso6, csum", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Net", "Frames", "1", &e), -ENOENT);
	assert_int_equal(vp_conf_link_set(&l, "Net", "MTU", "1", &e), -EINVAL);
	assert_int_equal(l.mode, VP_MODE_COPY);
	assert_int_equal(l.pairs, 4);
	assert_true(l.start_down);
	assert_true(l.side[VP_SIDE_DEVICE].has_mac);
	assert_false(l.side[VP_SIDE_DRIVER].has_mac);
	vp_mac_str(l.side[VP_SIDE_DEVICE].mac, mac);
	assert_string_equal(mac, "52:54:00:ab:cd:ef");
	assert_string_equal(vp_offloads_str(l.offloads, off, sizeof(off)), "csum,tso6");

	/* A shorter value leaves nothing of a longer one behind: equal settings compare equal. */
	assert_int_equal(vp_conf_link_set(&l, "Driver", "VM", "long-name-of-a-vm", &e), 0);
	again = l;
	assert_int_equal(vp_conf_link_set(&l, "Driver", "VM", "longer-name-of-another-vm", &e), 0);
	assert_int_equal(vp_conf_link_set(&l, "Driver", "VM", "long-name-of-a-vm", &e), 0);
	assert_memory_equal(&l, &again, sizeof(l));
	assert_int_equal(vp_conf_link_init(&l, "no/slash", &e), -EINVAL);
	assert_int_equal(vp_conf_link_init(&l, ".hidden", &e), -EINVAL);
	assert_int_equal(vp_conf_link_init(&l, "", &e), -EINVAL);
}

/* ---- directories ----------------------------------------------------------- */

static char top[] = "/tmp/vpconfXXXXXX";

static void put(const char *path, const char *text)
{
	char full[256], *slash;
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", top, path);
	for (slash = strchr(full + strlen(top) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(full, 0755);
		*slash = '/';
	}
	f = fopen(full, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static int load(struct vp_conf **c, struct said *s)
{
	char hi[256], lo[256];
	struct vp_conf_paths p = { .dir = { hi, lo, "/nonexistent/dir" }, .n = 3, .runtime_dir = "/run/x" };
	struct vp_conf_report rep = { .fn = collect, .arg = s };

	snprintf(hi, sizeof(hi), "%s/hi", top);
	snprintf(lo, sizeof(lo), "%s/lo", top);
	memset(s, 0, sizeof(*s));
	return vp_conf_load(c, &p, &rep);
}

static void test_directories(void **state)
{
	struct vp_conf *c = NULL;
	struct said s;

	put("hi/vhost-pci.conf", "[Daemon]\nThreads=2\nCPUs=0,2-4\n");
	put("lo/vhost-pci.conf", "[Daemon]\nThreads=5\n");
	put("hi/vhost-pci.conf.d/a.conf", "[Daemon]\nBusyPollMicroseconds=7\n");
	put("hi/a.vm", "[VM]\nTrustGroup=g\nUser=root 12 34\n");
	put("lo/a.vm", "[VM]\nTrustGroup=other\n");
	put("lo/b.vm", "[VM]\n");
	put("lo/ab.link", "[Driver]\nVM=a\n[Device]\nVM=b\nSocket=sub/b.sock\n[Net]\nMTU=1400\n");
	put("hi/ab.link.d/20.conf", "[Net]\nMTU=2000\n");
	put("lo/ab.link.d/10.conf", "[Net]\nMTU=1700\nDriverMAC=52:54:00:00:00:01\n");
	put("lo/ab.link.d/20.conf", "[Net]\nMTU=1\n");
	put("lo/masked.link", "[Driver]\nVM=a\n[Device]\nVM=b\n");
	put("hi/masked.link", "");
	put("hi/not-read.link.bak", "garbage");
	if (load(&c, &s))
		fail_msg("%s", s.text);
	assert_int_equal(c->daemon.threads, 2);
	assert_int_equal(c->daemon.busy_poll_us, 7);
	assert_int_equal(c->daemon.n_cpus, 4);
	assert_int_equal(c->daemon.cpus[3], 4);
	assert_string_equal(c->daemon.control_socket, "/run/x/control.sock");
	assert_int_equal(c->n_vms, 2);
	assert_int_equal(c->n_links, 1);
	assert_string_equal(vp_conf_vm_find(c, "a")->trust_group, "g");
	assert_int_equal(vp_conf_vm_find(c, "a")->n_users, 3);
	assert_int_equal(vp_conf_vm_find(c, "a")->users[2], 34);
	assert_null(vp_conf_vm_find(c, "ghost"));
	assert_int_equal(c->links[0].mtu, 2000);
	assert_true(c->links[0].side[0].has_mac);
	assert_string_equal(c->links[0].side[0].socket, "/run/x/ab.driver.sock");
	assert_string_equal(c->links[0].side[1].socket, "/run/x/sub/b.sock");
	vp_conf_free(c);

	/* One run shows all problems, in files and between them. */
	put("hi/c1.link", "[Driver]\nVM=a\nSocket=/same\n[Device]\nVM=b\n");
	put("hi/c2.link", "[Driver]\nVM=a\nSocket=/same\n[Device]\nVM=b\n");
	put("hi/c3.link", "[Driver]\nVM=a\nSocket=/one\n[Device]\nVM=b\nSocket=/one\n");
	put("hi/c4.link", "[Driver]\nVM=a\n");
	put("hi/c5.link", "[Driver]\nVM=ghost\n[Device]\nVM=b\n");
	put("hi/c6.link", "[Driver]\nVM=a\nSocketMode=client\n[Device]\nVM=b\n");
	put("hi/c7.link", "[Driver]\nVM=a\nSocket=/run/x/control.sock\n[Device]\nVM=b\n");
	put("hi/-bad.link", "[Driver]\nVM=a\n[Device]\nVM=b\n");
	put("hi/u.vm", "[VM]\nUser=no-such-user-here\n");
	assert_int_equal(load(&c, &s), -EINVAL);
	for (unsigned i = 0; i < 9; i++) {
		static const char *const want[] = {
			"the socket /same already belongs to the driver side of link c",
			"c3.link: both sides use the socket /one",
			"c4.link: [Device] VM= is missing",
			"c5.link: [Driver] VM=ghost is not configured; write a file ghost.vm",
			"c6.link: the driver side is SocketMode=client but has no Socket=",
			"is the control socket",
			"'-bad' is not a name",
			"there is no user no-such-user-here",
			"u.vm:2",
		};

		if (!strstr(s.text, want[i]))
			fail_msg("missing: %s\n%s", want[i], s.text);
	}
}

static int make_top(void **state)
{
	return mkdtemp(top) ? 0 : -1;
}

static void test_memory_of_a_vm(void **state)
{
	static const struct {
		const char *value;
		uint64_t    bytes;  /* 0 = refused */
	} t[] = {
		{ "1M", UINT64_C(1) << 20 },
		{ "48G", UINT64_C(48) << 30 },
		{ "1536M", UINT64_C(1536) << 20 },
		{ "32T", UINT64_C(32) << 40 },
		{ "33T" },
		{ "1048577M" },
		{ "1023K" },
		{ "0G" },
		{ "48" },
		{ "48GB" },
		{ "-1G" },
		{ "18446744073709551617G" },
		{ "" },
	};
	static const char from[] = "[VM]\nMemoryFrom=/dev/dax0.0, /srv/pmem\n",
			  relative[] = "[VM]\nMemoryFrom=dax0.0\n";
	struct vp_conf_report rep = { .fn = collect };
	struct said s = { .n = 0 };
	struct vp_conf_vm vm = { 0 };
	char text[80];

	rep.arg = &s;
	for (size_t i = 0; i < VP_ARRAY_SIZE(t); i++) {
		int n = snprintf(text, sizeof(text), "[VM]\nMaxMemory=%s\n", t[i].value);

		rep.errors = 0;
		vm.max_memory = 0;
		vp_conf_parse_text(VP_CONF_VM, &vm, "x.vm", text, (size_t)n, &rep);
		if (rep.errors != !t[i].bytes || vm.max_memory != t[i].bytes)
			fail_msg("MaxMemory=%s: %llu, %s", t[i].value, (unsigned long long)vm.max_memory, s.text);
	}
	assert_non_null(strstr(s.text, "MaxMemory=33T is not a size from 1M to 32T, like 48G"));
	rep.errors = 0;
	vp_conf_parse_text(VP_CONF_VM, &vm, "x.vm", from, strlen(from), &rep);
	assert_true(!rep.errors && !strcmp(vm.memory_from, "/dev/dax0.0 /srv/pmem"));
	vp_conf_parse_text(VP_CONF_VM, &vm, "x.vm", relative, strlen(relative), &rep);
	assert_int_equal(rep.errors, 1);
}

static int remove_top(void **state)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", top);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_line_errors), cmocka_unit_test(test_long_things), cmocka_unit_test(test_values),
		cmocka_unit_test(test_directories), cmocka_unit_test(test_memory_of_a_vm),
	};

	return cmocka_run_group_tests(tests, make_top, remove_top);
}
