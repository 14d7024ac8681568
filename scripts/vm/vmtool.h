/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of vmtool share: vmtool.c, vmtool_agent.c, vmtool_migrate.c, vmtool_traffic.c. */
#ifndef VMTOOL_H
#define VMTOOL_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static inline int die(const char *what)
{
	fprintf(stderr, "vmtool: %s: %s\n", what, strerror(errno));
	return 1;
}

/* vmtool_agent.c */
int agent(const char *dev);
int init_guest(void);

/* vmtool_traffic.c */
int rx(int port);
int tx(const char *host, int port, const char *amount);
int fill(const char *path, unsigned long mib);
int recvfile(int port, const char *path);
int sendfile_(const char *host, int port, const char *path);
int utx(const char *host, int port, unsigned long count, size_t size, double pps);
int urx(int port, unsigned long count, double secs);

/* vmtool_migrate.c */
int hot(unsigned long mib, const char *stop, double pps);
int uecho(int port, double secs);
int ugap(const char *host, int port, double secs, double pps, size_t size);

#endif
