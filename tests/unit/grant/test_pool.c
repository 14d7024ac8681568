/* SPDX-License-Identifier: BSD-3-Clause */
/* The pool is found in logs as kernels wrote them; other lines are not believed; each failure has a way out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pool.h"

/* Records of /dev/kmsg around the line, of Debian's kernels in VMs of 384 MiB with maxmem=4G. */
#define HEAD "5,0,0,-;Linux version 6.1.0-57-amd64 (debian-kernel@lists.debian.org)"
static const struct {
	const char *name, *records[8];
	uint64_t address, size;
} recorded[] = {
	{ "6.1",
	  { HEAD, "6,89,0,-;software IO TLB: area num 1.",
	    "6,167,1012632,-;DMA: preallocated 128 KiB GFP_KERNEL|GFP_DMA pool for atomic allocations",
	    "6,276,1650640,-;PCI-DMA: Using software bounce buffering for IO (SWIOTLB)",
	    "6,277,1650679,-;software IO TLB: mapped [mem 0x0000000013400000-0x0000000017400000] (64MB)",
	    "5,278,1659725,-;Initialise system trusted keyrings" },
	  0x13400000,
	  64 << 20 },
	{ "6.1, swiotlb=8192,force",
	  { HEAD, "6,278,2189363,-;PCI-DMA: Using software bounce buffering for IO (SWIOTLB)",
	    "6,279,2189425,-;software IO TLB: mapped [mem 0x0000000016400000-0x0000000017400000] (16MB)" },
	  0x16400000,
	  16 << 20 },
	{ "6.12",
	  { HEAD, "6,97,0,-;software IO TLB: area num 1.",
	    "6,280,1768787,-;PCI-DMA: Using software bounce buffering for IO (SWIOTLB)",
	    "6,281,1768815,-;software IO TLB: mapped [mem 0x0000000013400000-0x0000000017400000] (64MB)" },
	  0x13400000,
	  64 << 20 },
	{ "7.3",
	  { HEAD, "6,99,0,-;software IO TLB: area num 1.",
	    "6,287,2306021,-;PCI-DMA: Using software bounce buffering for IO (SWIOTLB)",
	    "6,288,2306043,-;software IO TLB: mapped [mem 0x0000000013400000-0x0000000017400000] (64MB)",
	    "6,289,2311291,-;Trying to unpack rootfs image as initramfs..." },
	  0x13400000,
	  64 << 20 },
	/* As other ranges are printed: the last byte. And a record with its caller and properties. */
	{ "inclusive",
	  { HEAD, "6,288,2306043,-,caller=T1;software IO TLB: mapped [mem 0x000000007bdb8000-0x000000007fdb7fff] "
		  "(64MB)\n SUBSYSTEM=x\n" },
	  0x7bdb8000,
	  64 << 20 },
};

static char dir[] = "/tmp/vpgrantXXXXXX";
static char cmdline[64], kmsg[64];

static int make_dir(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	snprintf(cmdline, sizeof(cmdline), "%s/cmdline", dir);
	return 0;
}

static int remove_dir(void **state)
{
	unlink(cmdline);
	return rmdir(dir);
}

static void write_cmdline(const char *text)
{
	FILE *f = fopen(cmdline, "w");

	assert_non_null(f);
	fprintf(f, "console=ttyS0 quiet %s\n", text);
	fclose(f);
}

static void log_of(struct pool_log *l, const char *const *records, size_t n)
{
	memset(l, 0, sizeof(*l));
	for (size_t i = 0; i < n && records[i]; i++)
		pool_log_record(l, records[i]);
}

static void test_recorded(void **state)
{
	struct pool_log l;

	for (size_t i = 0; i < sizeof(recorded) / sizeof(recorded[0]); i++) {
		print_message("  %s\n", recorded[i].name);
		log_of(&l, recorded[i].records, 8);
		assert_true(l.told && !l.given_up);
		assert_int_equal(l.start, recorded[i].address);
		assert_int_equal(l.end - l.start, recorded[i].size);
	}
}

/* Anybody who may write /dev/kmsg gets facility 1 there; and a line of another kind may hold the words. */
static void test_not_the_kernels(void **state)
{
	static const char *const records[] = {
		"14,300,1,-;software IO TLB: mapped [mem 0x0000000000000000-0x0000000010000000] (256MB)",
		"12,301,1,-;software IO TLB: tearing down default memory pool",
		"6,302,1,-;usb 1-1: Product: software IO TLB: mapped [mem 0x0000000000000000-0x0000000010000000] "
		"(256MB)",
		"6,303,1,-;software IO TLB: mapped [mem 0x",
		"6,303,1,-;software IO TLB: mapped [mem 0x10-0x20",
		"no record at all",
		";software IO TLB: mapped [mem 0x1000-0x2000] (0MB)",
	};
	struct pool_log l;

	log_of(&l, records, sizeof(records) / sizeof(records[0]));
	assert_false(l.told || l.given_up);
}

static void test_given_up(void **state)
{
	struct pool_log l = { 0 };

	pool_log_message(&l, "software IO TLB: mapped [mem 0x0000000013400000-0x0000000017400000] (64MB)");
	pool_log_message(&l, "software IO TLB: tearing down default memory pool");
	assert_true(l.given_up);
}

static void test_forced(void **state)
{
	static const struct {
		const char *cmdline;
		bool forced;
		const char *given;
	} cases[] = {
		{ "quiet swiotlb=force", true, "force" },
		{ "swiotlb=8192,force quiet", true, "8192,force" },
		{ "swiotlb=0x2000,4,force", true, "0x2000,4,force" },
		{ "swiotlb=force swiotlb=65536", true, "65536" },
		{ "\"swiotlb=force\"\n", true, "force" },
		{ "swiotlb=force,8192", false, "force,8192" },
		{ "swiotlb=any", false, "any" },
		{ "swiotlb=noforce", false, "noforce" },
		{ "swiotlb=8192", false, "8192" },
		{ "swiotlb=", false, "" },
		{ "quiet", false, "" },
		{ "", false, "" },
		{ "quiet -- swiotlb=force", false, "" },
		{ "dyndbg=\"file x swiotlb=force\"", false, "" },
		{ "xswiotlb=force", false, "" },
	};
	char given[64];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		print_message("  %s\n", cases[i].cmdline);
		assert_int_equal(pool_forced(cases[i].cmdline, given, sizeof(given)), cases[i].forced);
		assert_string_equal(given, cases[i].given);
	}
}

/* A log of one record, and what is found with it. */
static void find(const char *record, const char *journal, struct pool *p)
{
	struct pool_places where = { cmdline, kmsg, journal };
	FILE *f;

	snprintf(kmsg, sizeof(kmsg), "%s/kmsg", dir);
	f = fopen(kmsg, "w");
	assert_non_null(f);
	fputs(record, f);
	fclose(f);
	pool_find(&where, p);
	/* Whole: nothing was cut off. */
	assert_in_range(strlen(p->why), 0, POOL_TEXT_MAX - 2);
	unlink(kmsg);
}

#define LINE "software IO TLB: mapped [mem 0x0000000013400000-0x0000000017400000] (64MB)"

static void test_found(void **state)
{
	struct pool p;

	write_cmdline("swiotlb=force");
	find("6,0,1,-;" LINE "\n", NULL, &p);
	assert_true(p.found);
	assert_int_equal(p.address, 0x13400000);
	assert_int_equal(p.size, 64 << 20);
	assert_string_equal(p.source, "the kernel's log");
	/* The ring buffer has lost it, the journal has not. */
	find("6,5000,1,-;something else\n", "echo x; echo '" LINE "'", &p);
	assert_true(p.found);
	assert_int_equal(p.address, 0x13400000);
	assert_string_equal(p.source, "the journal of this boot");
}

static void test_reasons(void **state)
{
	struct pool_places nowhere = { cmdline, "/nonexistent/kmsg", NULL };
	struct pool p;

	write_cmdline("quiet");
	find("6,0,1,-;" LINE "\n", NULL, &p);
	assert_true(!p.found && strstr(p.why, "boot it with swiotlb=force"));
	write_cmdline("swiotlb=force,8192");
	find("6,0,1,-;" LINE "\n", NULL, &p);
	assert_true(!p.found && strstr(p.why, "swiotlb=force,8192") && strstr(p.why, "SLOTS,force"));
	write_cmdline("swiotlb=force");
	/* complete, and no line */
	find("6,0,1,-;x\n", "echo '" LINE "'", &p);
	assert_true(!p.found && strstr(p.why, "maxmem=4G") && !strstr(p.why, "log_buf_len"));
	/* overwritten */
	find("6,500,1,-;x\n", "true", &p);
	assert_true(!p.found && strstr(p.why, "log_buf_len=4M"));
	find("6,0,1,-;software IO TLB: tearing down default memory pool\n", NULL, &p);
	assert_true(!p.found && strstr(p.why, "Grant=viommu"));
	find("6,0,1,-;software IO TLB: mapped [mem 0x0000000013400800-0x0000000017400000] (63MB)\n", NULL, &p);
	assert_true(!p.found && strstr(p.why, "whole pages"));
	find("6,0,1,-;software IO TLB: mapped [mem 0x0000000017400000-0x0000000013400000] (64MB)\n", NULL, &p);
	assert_true(!p.found && strstr(p.why, "whole pages"));
	pool_find(&nowhere, &p);
	assert_true(!p.found && strstr(p.why, "run it as root"));
	nowhere.cmdline = "/nonexistent/cmdline";
	pool_find(&nowhere, &p);
	assert_true(!p.found && strstr(p.why, "cannot read /nonexistent/cmdline"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_recorded), cmocka_unit_test(test_not_the_kernels),
		cmocka_unit_test(test_given_up), cmocka_unit_test(test_forced),
		cmocka_unit_test(test_found),	 cmocka_unit_test(test_reasons),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
