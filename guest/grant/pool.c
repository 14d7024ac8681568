/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool.h"

#define PAGE	    4096u
#define RECORD_MAX  8192 /* the kernel makes none that is longer */
#define CMDLINE_MAX 4096
#define PREFIX	    "software IO TLB: "
#define MAXMEM	    "start QEMU with -m SIZE,slots=1,maxmem=4G"

const struct pool_places pool_this_vm = {
	.cmdline = "/proc/cmdline",
	.kmsg = "/dev/kmsg",
	/* Facility 0 is the kernel's own: what programs write to /dev/kmsg has another one. */
	.journal = "exec journalctl --quiet --no-pager --boot --dmesg --output=cat SYSLOG_FACILITY=0 2>/dev/null",
};

void pool_log_message(struct pool_log *l, const char *msg)
{
	uint64_t start, end;
	int n = 0;

	if (strncmp(msg, PREFIX, strlen(PREFIX)))
		return;
	msg += strlen(PREFIX);
	if (!strncmp(msg, "tearing down", 12)) {
		l->given_up = true;
		return;
	}
	if (sscanf(msg, "mapped [mem 0x%" SCNx64 "-0x%" SCNx64 "]%n", &start, &end, &n) != 2 || !n)
		return;
	l->told = true;
	l->given_up = false;
	l->start = start;
	/* Kernels up to 7.3 print the first byte behind the pool; other ranges are printed with the last one in it. */
	l->end = end + (end & 1);
}

void pool_log_record(struct pool_log *l, const char *record)
{
	const char *msg = strchr(record, ';');
	unsigned priority;
	char text[256];

	if (!msg || sscanf(record, "%u,", &priority) != 1 || priority >> 3)
		return;
	/* Lines that follow are the record's properties. */
	snprintf(text, sizeof(text), "%.*s", (int)strcspn(msg + 1, "\n"), msg + 1);
	pool_log_message(l, text);
}

/* As the kernel reads its parameter: [SLOTS[,AREAS],]force. */
static bool is_force(const char *value)
{
	for (int n = 0; n < 2 && *value >= '0' && *value <= '9'; n++) {
		char *end;

		strtoul(value, &end, 0);
		value = *end == ',' ? end + 1 : end;
	}
	return !strcmp(value, "force");
}

bool pool_forced(const char *cmdline, char *given, size_t size)
{
	char word[256];
	bool forced = false;

	given[0] = 0;
	while (*cmdline) {
		bool quoted = false;
		size_t n = 0;

		cmdline += strspn(cmdline, " \n");
		for (; *cmdline && (quoted || !strchr(" \n", *cmdline)); cmdline++) {
			if (*cmdline == '"')
				quoted = !quoted;
			else if (n < sizeof(word) - 1)
				word[n++] = *cmdline;
		}
		word[n] = 0;
		/* What follows is for init. */
		if (!strcmp(word, "--"))
			break;
		if (strncmp(word, "swiotlb=", 8))
			continue;
		/* The kernel reads each of them, and none takes back what one before it said. */
		snprintf(given, size, "%s", word + 8);
		forced |= is_force(given);
	}
	return forced;
}

static void __attribute__((format(printf, 2, 3))) because(struct pool *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->why, sizeof(p->why), fmt, ap);
	va_end(ap);
}

static bool bounces(const char *path, struct pool *p)
{
	char text[CMDLINE_MAX] = "", given[40];
	FILE *f = fopen(path, "re");
	size_t n = 0;

	if (f) {
		n = fread(text, 1, sizeof(text) - 1, f);
		fclose(f);
	}
	text[n] = 0;
	if (!n)
		because(p, "cannot read %s", path);
	else if (pool_forced(text, given, sizeof(given)))
		return true;
	else if (given[0])
		because(p, "its kernel understands no swiotlb=%s; boot it with swiotlb=force, or swiotlb=SLOTS,force",
			given);
	else
		because(p, "its kernel bounces nothing; boot it with swiotlb=force");
	return false;
}

/* 0, or -errno. */
static int read_kmsg(const char *path, struct pool_log *l)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), err = 0;
	char record[RECORD_MAX + 1];
	unsigned long long seq;
	bool first = true;

	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t n = read(fd, record, RECORD_MAX);

		/* EPIPE: records were overwritten meanwhile. */
		if (n < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (n < 0 && errno != EAGAIN)
			err = -errno;
		if (n <= 0)
			break;
		record[n] = 0;
		if (first && sscanf(record, "%*u,%llu,", &seq) == 1 && seq)
			l->cut = true;
		first = false;
		pool_log_record(l, record);
	}
	close(fd);
	return err;
}

static void read_journal(const char *command, struct pool_log *l)
{
	FILE *f = popen(command, "re");
	char *line = NULL;
	size_t room = 0;
	ssize_t n;

	if (!f)
		return;
	while ((n = getline(&line, &room, f)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = 0;
		pool_log_message(l, line);
	}
	free(line);
	pclose(f);
}

static void judge(const struct pool_log *l, const char *source, struct pool *p)
{
	if (l->given_up) {
		because(p, "its kernel gave the pool up, because an IOMMU translates for its devices; Grant=viommu is "
			   "for that");
	} else if (l->end <= l->start || l->start % PAGE || l->end % PAGE) {
		because(p, "its kernel tells of a pool from 0x%" PRIx64 " to 0x%" PRIx64 ", which is not whole pages",
			l->start, l->end);
	} else {
		p->found = true;
		p->address = l->start;
		p->size = l->end - l->start;
		p->source = source;
	}
}

void pool_find(const struct pool_places *where, struct pool *p)
{
	struct pool_log log = { 0 }, kept = { 0 };
	int err;

	memset(p, 0, sizeof(*p));
	if (!bounces(where->cmdline, p))
		return;
	err = read_kmsg(where->kmsg, &log);
	if (log.told || log.given_up) {
		judge(&log, "the kernel's log", p);
		return;
	}
	if ((err || log.cut) && where->journal)
		read_journal(where->journal, &kept);
	if (kept.told || kept.given_up)
		judge(&kept, "the journal of this boot", p);
	else if (err)
		because(p, "vhost-pci-grant cannot read the kernel's log (%s: %s); run it as root", where->kmsg,
			strerror(-err));
	else if (log.cut)
		because(p, "its kernel's log has lost the lines that told the pool; boot it with log_buf_len=4M, "
			   "and " MAXMEM);
	else
		because(p, "its kernel does not say where the pool is, as no RAM of it can lie above 4 GiB; " MAXMEM);
}
