/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line. */
#ifndef VHP_AGENT_OPTS_H
#define VHP_AGENT_OPTS_H

#include <stdbool.h>
#include <stdint.h>

struct opts {
	const char *port;		/* path, name or "auto" */
	const char *tap;		/* interface name or macvtap path; NULL: none */
	const char *vhost_user;		/* socket path; NULL: none */
	bool server;			/* listen at it */
	const char *state;		/* file for the back-end's state; NULL: none */
	unsigned int cid;		/* of --vsock; 0: none */
	const char *wwpn;		/* of --scsi; NULL: none */
	const char *bridge;
	unsigned int pairs;		/* 0: what the port has */
	unsigned int busy_poll_us;
	const char *capture;		/* interface whose packets are to be saved; NULL: none */
	const char *write, *filter;	/* of --capture; NULL: none */
	unsigned int snaplen, count;	/* of --capture, 0: all */
	bool up, keep, wait, verbose, status, json;
	bool has_mac;
	uint8_t mac[6];
	unsigned int mtu;		/* 0: the link's */
};

/* 0: go on. 1: done (--help, --version). -EINVAL: said what is wrong on stderr. */
int opts_parse(struct opts *o, int argc, char **argv);

#endif
